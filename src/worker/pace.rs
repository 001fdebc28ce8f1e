//! Does this core keep up? (SPEC 10.) It is behind once it has not emptied its queues for some time, over many turns: a
//! long burst ends before that, and a thread that merely was not run has few turns. It has caught up once it was not near
//! that for a while, so that shedding does not come and go with each datagram.

/// Turns without an end of what waits, beside the time.
const TURNS: u32 = 16;

/// When a core is behind, and when no more; milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub behind_ms: u64,
    pub calm_ms: u64,
}

pub(super) struct Pace {
    patience: Patience,
    /// When a turn last left nothing waiting, and how many have left something since.
    emptied_ms: u64,
    turns: u32,
    /// When it was last near to be behind.
    strained_ms: u64,
    behind: bool,
}

impl Pace {
    pub fn new(patience: Patience, now_ms: u64) -> Pace {
        Pace { patience, emptied_ms: now_ms, turns: 0, strained_ms: 0, behind: false }
    }

    /// A turn that began at `now_ms` has ended; something that it should have done `waits`, or not. Tells a change: behind, or not any more.
    pub fn turned(&mut self, now_ms: u64, waits: bool) -> Option<bool> {
        if !waits {
            self.emptied_ms = now_ms;
            self.turns = 0;
        } else {
            self.turns = self.turns.saturating_add(1);
        }
        let busy_ms = if self.turns >= TURNS { now_ms.saturating_sub(self.emptied_ms) } else { 0 };
        let Patience { behind_ms, calm_ms } = self.patience;
        if self.turns >= TURNS && busy_ms >= behind_ms / 2 {
            self.strained_ms = now_ms;
        }
        let behind = if self.behind {
            now_ms.saturating_sub(self.strained_ms) < calm_ms
        } else {
            self.turns >= TURNS && busy_ms >= behind_ms
        };
        let changed = behind != self.behind;
        self.behind = behind;
        changed.then_some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(Patience { behind_ms: 100, calm_ms: 1_000 }, 0)
    }

    #[test]
    fn behind_is_who_never_comes_to_an_end_for_long() {
        let mut pace = pace();
        for ms in 0..=98 {
            assert_eq!(pace.turned(ms, true), None);
        }
        assert_eq!(pace.turned(99, false), None, "a burst has ended");
        for ms in 100..=198 {
            assert_eq!(pace.turned(ms, true), None);
        }
        assert_eq!(pace.turned(199, true), Some(true));
        assert_eq!(pace.turned(200, true), None);
    }

    #[test]
    fn a_thread_that_was_not_run_is_not_behind() {
        let mut pace = pace();
        for turn in 1..10 {
            assert_eq!(pace.turned(turn * 500, true), None);
        }
        assert_eq!(pace.turned(5_000, false), None);
    }

    #[test]
    fn it_has_caught_up_only_once_it_was_not_near_it_for_a_while() {
        let mut pace = pace();
        (0..100).for_each(|ms| assert_eq!(pace.turned(ms, true), None));
        assert_eq!(pace.turned(100, true), Some(true));
        for ms in 101..1_000 {
            assert_eq!(pace.turned(ms, ms % 2 == 0), None);
        }
        // Half of what makes one behind keeps one behind.
        (1_000..1_060).for_each(|ms| assert_eq!(pace.turned(ms, true), None));
        assert_eq!(pace.turned(1_100, false), None);
        assert_eq!(pace.turned(2_058, false), None);
        assert_eq!(pace.turned(2_059, false), Some(false));
        assert_eq!(pace.turned(9_000, false), None);
    }
}
