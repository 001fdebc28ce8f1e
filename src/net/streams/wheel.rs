//! A coarse timer wheel: seconds, lazily armed (ARCHITECTURE, "Facts measured").
//!
//! It names slots whose time may have come; whoever holds the slot knows whether it has, and arms it again where not. So a
//! deadline that moves away, as with each byte of an idle timeout, costs nothing.

/// Seconds that the wheel spans; what is due later is looked at once on the way.
const SPAN: usize = 512;

pub struct Wheel {
    buckets: Box<[Vec<(u32, u16)>]>,
    /// Seconds up to here have been taken.
    at_s: u64,
}

impl Wheel {
    pub fn new(now_ms: u64) -> Wheel {
        Wheel { buckets: (0..SPAN).map(|_| Vec::new()).collect(), at_s: now_ms / 1000 }
    }

    /// Has `slot` named once `due_ms` has passed, or earlier. Gives the second of that.
    pub fn arm(&mut self, slot: u32, generation: u16, due_ms: u64) -> u64 {
        let due_s = due_ms.div_ceil(1000).clamp(self.at_s + 1, self.at_s + SPAN as u64 - 1);
        self.buckets[due_s as usize % SPAN].push((slot, generation));
        due_s
    }

    /// Names the slots of the seconds up to now. A bucket's memory is kept while it is small.
    pub fn take(&mut self, now_ms: u64, into: &mut Vec<(u32, u16)>) {
        let now_s = now_ms / 1000;
        // After a long stop of the process each bucket once is enough.
        let from = (self.at_s + 1).max((now_s + 1).saturating_sub(SPAN as u64));
        for second in from..=now_s {
            let bucket = &mut self.buckets[second as usize % SPAN];
            into.append(bucket);
            bucket.shrink_to(64);
        }
        self.at_s = self.at_s.max(now_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(wheel: &mut Wheel, now_ms: u64) -> Vec<u32> {
        let mut into = Vec::new();
        wheel.take(now_ms, &mut into);
        into.sort_unstable();
        into.into_iter().map(|(slot, _)| slot).collect()
    }

    #[test]
    fn each_slot_is_named_once_and_not_before_its_second() {
        let mut wheel = Wheel::new(10_500);
        assert_eq!(wheel.arm(1, 0, 10_600), 11);
        assert_eq!(wheel.arm(2, 0, 12_001), 13);
        assert_eq!(wheel.arm(3, 0, 5_000), 11, "what is past is due at the next second");
        assert_eq!(wheel.arm(4, 0, 10_000_000), 521, "what is far away is looked at on the way");
        assert!(taken(&mut wheel, 10_999).is_empty());
        assert_eq!(taken(&mut wheel, 11_000), [1, 3]);
        assert!(taken(&mut wheel, 12_999).is_empty());
        assert_eq!(taken(&mut wheel, 13_000), [2]);
        assert_eq!(taken(&mut wheel, 600_000), [4]);
        assert!(taken(&mut wheel, 60_000_000).is_empty());
        assert_eq!(wheel.arm(5, 0, 60_000_001), 60_001);
        assert_eq!(taken(&mut wheel, 60_001_000), [5]);
    }
}
