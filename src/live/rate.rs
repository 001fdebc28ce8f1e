//! `limit` of a rule: so many requests a second for the whole router (SPEC 5.2), shared by the cores, since one peer's
//! requests all meet one of them.
//!
//! One number for each rule that has a limit, written by each request that the rule takes and no other: the time at which
//! the bucket will be full again (the generic cell rate algorithm). A request moves it on by its share of a second; one that
//! would move it further ahead than a second is over the limit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Now;

const SECOND_NS: u64 = 1_000_000_000;

/// A bucket of one second's requests, full at first.
#[derive(Debug)]
pub struct Rate {
    per_second: u32,
    /// In nanoseconds of the clock of `Now::mono_ms`.
    full_ns: AtomicU64,
}

impl Rate {
    /// `per_second`: at least 1.
    pub fn new(per_second: u32) -> Rate {
        Rate { per_second: per_second.max(1), full_ns: AtomicU64::new(0) }
    }

    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes one request; false where none is left.
    pub fn take(&self, now: Now) -> bool {
        let now_ns = now.mono_ms * 1_000_000;
        let share_ns = SECOND_NS / u64::from(self.per_second);
        let later = |full_ns: u64| {
            let full_ns = full_ns.max(now_ns) + share_ns;
            (full_ns <= now_ns + SECOND_NS).then_some(full_ns)
        };
        self.full_ns.fetch_update(Relaxed, Relaxed, later).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: 0 }
    }

    #[test]
    fn a_limit_lets_its_rate_through_and_no_more() {
        let rate = Rate::new(10);
        let passed = |ms| (0..100).filter(|_| rate.take(at(ms))).count();
        assert_eq!((passed(5), passed(505), passed(10_000)), (10, 5, 10));
        assert!(!rate.take(at(10_099)) && rate.take(at(10_100)));
        let one = Rate::new(1);
        assert!(one.take(at(0)) && !one.take(at(999)) && one.take(at(1000)));
    }

    #[test]
    fn cores_share_it_and_each_may_have_all() {
        let rate = Rate::new(1000);
        let passed = || (0..10_000).filter(|_| rate.take(at(1))).count();
        let of_all: usize = std::thread::scope(|scope| {
            let cores: Vec<_> = (0..4).map(|_| scope.spawn(passed)).collect();
            cores.into_iter().map(|core| core.join().expect("it ends")).sum()
        });
        assert_eq!((of_all, (0..10_000).filter(|_| rate.take(at(1001))).count()), (1000, 1000));
    }
}
