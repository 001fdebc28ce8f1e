//! Entity-tags that a backend was seen to give: where they are one decimal counter for each process (Asterisk), a tag
//! clearly below one already seen is the sign of a restart (SPEC 6.2).
//!
//! Clearly: below every tag of a minute ago, for answers overtake each other and a retransmitted PUBLISH is answered with
//! its old tag for 32 s (RFC 3261 17.2.2); or so far below that no backend gives as many tags in that time. Shared by the
//! cores, atomics only: two that meet a new minute at once tell the same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Now;

/// Longer than a transaction's answers are repeated, in seconds.
const SETTLE_S: u64 = 64;
/// More tags than a backend gives within `SETTLE_S`.
const FAR: u64 = 1 << 17;

/// The counter of one backend. Numbers are kept plus one: 0 is none.
#[derive(Debug, Default)]
pub struct Tags {
    highest: AtomicU64,
    /// `highest` when the present minute began, and when the one before it did.
    settled: AtomicU64,
    floor: AtomicU64,
    /// When the present minute began, in seconds of `mono_ms`, plus one.
    since: AtomicU64,
}

impl Tags {
    /// The backend gave this tag. True where that is a sign that it restarted.
    pub fn saw(&self, tag: &[u8], now: Now) -> bool {
        let Some(number) = decimal(tag) else {
            // Who also gives other tags does not count: eight random characters may all be digits.
            if self.highest.load(Relaxed) != 0 {
                self.begin(0, now);
            }
            return false;
        };
        let highest = self.highest.load(Relaxed);
        if highest == 0 {
            self.begin(number, now);
            return false;
        }
        self.turn(now);
        if number < self.floor.load(Relaxed) || number + FAR < highest {
            self.begin(number, now);
            return true;
        }
        if number > highest {
            self.highest.fetch_max(number, Relaxed);
        }
        false
    }

    fn begin(&self, number: u64, now: Now) {
        self.floor.store(0, Relaxed);
        self.settled.store(0, Relaxed);
        self.highest.store(number, Relaxed);
        self.since.store(now.mono_ms / 1000 + 1, Relaxed);
    }

    /// A minute is over: what was the highest when it began can be given no more.
    fn turn(&self, now: Now) {
        let (since, second) = (self.since.load(Relaxed), now.mono_ms / 1000 + 1);
        if second < since + SETTLE_S || self.since.compare_exchange(since, second, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let highest = self.highest.load(Relaxed);
        let settled = self.settled.swap(highest, Relaxed);
        // After a pause of two minutes nothing that was given before it is still on its way.
        self.floor.store(if second >= since + 2 * SETTLE_S { highest } else { settled }, Relaxed);
    }
}

/// A plain number of at most 18 digits, plus one.
fn decimal(tag: &[u8]) -> Option<u64> {
    if tag.is_empty() || tag.len() > 18 || !tag.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(tag.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1000, unix_s: seconds }
    }

    fn saw(tags: &Tags, tag: u64, seconds: u64) -> bool {
        tags.saw(tag.to_string().as_bytes(), at(seconds))
    }

    #[test]
    fn a_counter_that_begins_anew_is_a_restart() {
        let tags = Tags::default();
        for tag in 0..50 {
            assert!(!saw(&tags, tag, 10 + tag));
        }
        assert!(!saw(&tags, 50, 300));
        assert!(saw(&tags, 0, 301), "below what was given five minutes ago");
        for tag in 1..50 {
            assert!(!saw(&tags, tag, 302), "told once");
        }
        assert!(saw(&tags, 0, 1000), "and the next one again");
    }

    #[test]
    fn answers_that_come_late_or_twice_are_none() {
        let tags = Tags::default();
        // A hundred a second for ten minutes; each is answered again for 32 s.
        for second in 0..600 {
            for n in 0..100 {
                assert!(!saw(&tags, second * 100 + n, second));
                assert!(!saw(&tags, (second.saturating_sub(32)) * 100 + n, second), "{second}");
            }
        }
        assert!(saw(&tags, 400 * 100, 600));
    }

    #[test]
    fn a_far_lower_tag_needs_no_minute() {
        let tags = Tags::default();
        assert!(!saw(&tags, 1_000_000, 5));
        assert!(!saw(&tags, 990_000, 5));
        assert!(saw(&tags, 3, 6));
    }

    #[test]
    fn who_gives_other_tags_too_has_no_counter() {
        let tags = Tags::default();
        assert!(!tags.saw(b"12345678", at(1)));
        assert!(!tags.saw(b"a.1700000000.7", at(2)));
        assert!(!saw(&tags, 5, 900));
        for tag in ["", "-1", "+1", "0x7", "1 ", "1234567890123456789", "k7"] {
            assert!(!tags.saw(tag.as_bytes(), at(2000)), "{tag}");
        }
    }
}
