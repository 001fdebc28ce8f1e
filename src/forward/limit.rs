//! `limit` of a rule: a token bucket per rule and core, at the limit divided by the cores (SPEC 5.2).

use crate::live::Now;

/// One request, in what buckets count: so fine that a millisecond at a small rate is not lost.
const REQUEST: u64 = 1_000_000;

/// The buckets of one table version.
#[derive(Default)]
pub struct RuleLimits {
    version: u64,
    /// Millionths of a request, and when it was last filled (`mono_ms`).
    buckets: Vec<(u64, u64)>,
}

impl RuleLimits {
    /// Takes one request from the bucket of the rule at `position`; false where it is empty. `per_second` is for the
    /// whole router, `cores` how many share it. A new table begins with full buckets.
    pub fn take(&mut self, version: u64, position: u32, per_second: u32, cores: usize, now: Now) -> bool {
        if self.version != version {
            self.version = version;
            self.buckets.clear();
        }
        let index = position as usize;
        let rate = u64::from(per_second) * 1000 / cores as u64;
        let full = (rate * 1000).max(REQUEST);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, (u64::MAX, now.mono_ms));
        }
        let (level, filled) = &mut self.buckets[index];
        let gained = now.mono_ms.saturating_sub(*filled).saturating_mul(rate);
        *level = level.saturating_add(gained).min(full);
        *filled = now.mono_ms;
        if *level < REQUEST {
            return false;
        }
        *level -= REQUEST;
        true
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
        let mut limits = RuleLimits::default();
        let passed =
            |limits: &mut RuleLimits, ms| (0..100).filter(|_| limits.take(1, 3, 10, 1, at(ms))).count();
        assert_eq!(passed(&mut limits, 0), 10);
        assert_eq!(passed(&mut limits, 500), 5);
        assert_eq!(passed(&mut limits, 10_000), 10);
    }

    #[test]
    fn a_new_table_begins_with_full_buckets_and_cores_share_a_limit() {
        let mut limits = RuleLimits::default();
        assert_eq!((0..100).filter(|_| limits.take(1, 0, 10, 2, at(0))).count(), 5);
        assert_eq!((0..100).filter(|_| limits.take(2, 0, 10, 2, at(0))).count(), 5);
    }

    /// A rate below one in a core's share still lets one through at a time.
    #[test]
    fn a_small_limit_is_not_zero() {
        let mut limits = RuleLimits::default();
        assert!(limits.take(1, 0, 1, 4, at(0)));
        assert!(!limits.take(1, 0, 1, 4, at(3_999)));
        assert!(limits.take(1, 0, 1, 4, at(4_001)));
    }
}
