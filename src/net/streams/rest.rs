//! Which slot a new connection gets (SPEC 3.2): one that has rested, so that the id of who had it stays known as closed.
//!
//! Where many come and go the slots are bounded all the same: the one that has rested longest is given before its time. A
//! FlowId names its connection by the slot's generation, of 16 bits; so only those of the first half may be hurried, and
//! an id comes again after the other half's rests at the earliest: 22 days.

use std::collections::VecDeque;

/// How long a slot rests.
const REST_MS: u64 = 60_000;
/// From this generation on it rests as long, whatever waits.
const UNHURRIED: u16 = 1 << 15;

/// Slots without a connection, each with the time of its close; the oldest first.
#[derive(Default)]
pub struct Rest {
    hurried: VecDeque<(u32, u64)>,
    unhurried: VecDeque<(u32, u64)>,
}

impl Rest {
    /// A connection, of this generation of its slot, has ended.
    pub fn put(&mut self, slot: u32, generation: u16, now_ms: u64) {
        let queue = if generation < UNHURRIED { &mut self.hurried } else { &mut self.unhurried };
        queue.push_back((slot, now_ms));
    }

    /// A slot for the next connection; `None`: it needs a new one. `full`: there are as many as there ought to be.
    pub fn take(&mut self, full: bool, now_ms: u64) -> Option<u32> {
        let is_rested = |queue: &VecDeque<(u32, u64)>| {
            queue.front().is_some_and(|(_, closed_ms)| closed_ms + REST_MS <= now_ms)
        };
        let queue = if is_rested(&self.unhurried) {
            &mut self.unhurried
        } else if full || is_rested(&self.hurried) {
            &mut self.hurried
        } else {
            return None;
        };
        queue.pop_front().map(|(slot, _)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_rests_while_there_may_be_others() {
        let mut rest = Rest::default();
        rest.put(1, 1, 0);
        rest.put(2, 1, 10);
        assert_eq!(rest.take(false, 59_999), None);
        assert_eq!(rest.take(false, 60_000), Some(1));
        assert_eq!(rest.take(false, 60_000), None);
        assert_eq!(rest.take(true, 60_000), Some(2));
        assert_eq!(rest.take(true, 60_000), None);
    }

    /// SPEC 3.2: however many come and go, an id does not come again within days.
    #[test]
    fn a_slot_that_was_hurried_often_rests_as_long_as_it_ought_to() {
        let mut rest = Rest::default();
        rest.put(1, UNHURRIED - 1, 0);
        assert_eq!(rest.take(true, 0), Some(1));
        rest.put(1, UNHURRIED, 0);
        rest.put(2, u16::MAX, 10);
        assert_eq!(rest.take(true, 59_999), None);
        assert_eq!(rest.take(true, 60_000), Some(1));
        assert_eq!(rest.take(false, 60_010), Some(2));
    }

    /// 70,000 connections a second, one after the other.
    #[test]
    fn a_flood_makes_few_slots() {
        const MOST: usize = 64;
        const COUNT: usize = 7_000_000;
        let (mut rest, mut generations) = (Rest::default(), Vec::<u16>::new());
        for n in 0..COUNT {
            let now_ms = n as u64 / 70;
            let slot = rest.take(generations.len() >= MOST, now_ms).unwrap_or_else(|| {
                generations.push(0);
                generations.len() as u32 - 1
            });
            let generation = &mut generations[slot as usize];
            *generation = generation.wrapping_add(1);
            rest.put(slot, *generation, now_ms);
        }
        assert!(generations.len() <= MOST + COUNT / usize::from(UNHURRIED), "{}", generations.len());
    }
}
