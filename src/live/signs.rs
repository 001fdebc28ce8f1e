//! What cores notice of a backend by themselves (SPEC 8.2): ICMP errors and 503s with Retry-After. Atomics only; a core
//! writes here when something is wrong and never otherwise. `control::health` takes the signs and acts on them.
//!
//! A 503 counts once it comes for several sources: one phone that dials a dead trunk must not turn a backend off.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

use super::Now;

/// Sources that are told apart; the rules ask for so many at most.
pub const MOST_SOURCES: usize = 8;

/// When 503s make a back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// Different sources whose requests must have been met with one; at least 1.
    pub sources: usize,
    /// Within so many seconds.
    pub window_s: u32,
    /// Longest back-off, in seconds, whatever Retry-After says.
    pub most_s: u32,
}

impl Default for BackOff {
    fn default() -> BackOff {
        BackOff { sources: 3, window_s: 10, most_s: 300 }
    }
}

/// A sign that asks for a probe at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sign {
    /// ICMP port unreachable: nobody listens there.
    Refused = 1,
    /// ICMP host or network unreachable.
    Unreachable = 2,
    /// 503 with Retry-After for several sources.
    Busy = 4,
    /// The operator wants to know.
    Asked = 8,
}

/// On cache lines of its own: cores write it while others read the state beside it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Signs {
    /// Bits of `Sign` that control has not taken yet.
    pending: AtomicU8,
    /// Until when, in `Now::mono_ms`, a back-off lasts that several sources were asked for.
    busy_until_ms: AtomicU64,
    /// Messages to it that came back undeliverable.
    undeliverable: AtomicU64,
    /// Hash of a source's address above, second of its last 503 (of `mono_ms`) below.
    sources: [AtomicU64; MOST_SOURCES],
}

impl Signs {
    /// An ICMP error came back.
    pub fn unreachable(&self, sign: Sign) {
        self.undeliverable.fetch_add(1, Relaxed);
        self.raise(sign);
    }

    /// Asks for a probe at once.
    pub fn raise(&self, sign: Sign) {
        // Most of a burst find it raised and write nothing.
        if self.pending.load(Relaxed) & sign as u8 == 0 {
            self.pending.fetch_or(sign as u8, Relaxed);
        }
    }

    /// A request of `source` was met with 503 and Retry-After.
    pub fn busy(&self, source: IpAddr, retry_s: u32, now: Now, rules: &BackOff) {
        // From 1 on, so that no entry is 0, which is free. What two cores lose to each other comes again.
        let second = (now.mono_ms / 1000) as u32 + 1;
        let hash = hash(source);
        let live = |entry: u64| entry != 0 && second.saturating_sub(entry as u32) <= rules.window_s;
        let (mut others, mut place, mut oldest) = (0, 0, u32::MAX);
        let mut known = false;
        for (at, entry) in self.sources.iter().enumerate() {
            let entry = entry.load(Relaxed);
            if entry != 0 && (entry >> 32) as u32 == hash {
                (place, known) = (at, true);
                continue;
            }
            others += usize::from(live(entry));
            if !known && (entry as u32) < oldest {
                (place, oldest) = (at, entry as u32);
            }
        }
        self.sources[place].store(u64::from(hash) << 32 | u64::from(second), Relaxed);
        if others + 1 >= rules.sources {
            let until = now.mono_ms + u64::from(retry_s.min(rules.most_s)) * 1000;
            self.busy_until_ms.fetch_max(until, Relaxed);
            self.raise(Sign::Busy);
        }
    }

    /// Takes the signs that came since the last call: bits of `Sign`.
    pub fn take(&self) -> u8 {
        if self.pending.load(Relaxed) == 0 { 0 } else { self.pending.swap(0, Relaxed) }
    }

    /// Until when several sources were asked to stay away; 0: never.
    pub fn busy_until_ms(&self) -> u64 {
        self.busy_until_ms.load(Relaxed)
    }

    pub fn undeliverable(&self) -> u64 {
        self.undeliverable.load(Relaxed)
    }
}

/// One subscriber has a whole /64 of IPv6.
fn hash(source: IpAddr) -> u32 {
    let hash = match source.to_canonical() {
        IpAddr::V4(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()[..8]),
    };
    hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Now {
        Now { mono_ms: s * 1000, unix_s: s }
    }

    fn ip(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    #[test]
    fn one_source_is_no_back_off_and_three_are() {
        let (signs, rules) = (Signs::default(), BackOff::default());
        for _ in 0..1000 {
            signs.busy(ip(1), 60, at(5), &rules);
        }
        signs.busy(ip(2), 60, at(6), &rules);
        signs.busy("::ffff:192.0.2.2".parse().expect("an address"), 60, at(6), &rules);
        assert_eq!((signs.take(), signs.busy_until_ms()), (0, 0));
        signs.busy(ip(3), 20, at(7), &rules);
        assert_eq!((signs.take(), signs.busy_until_ms()), (Sign::Busy as u8, 27_000));
        assert_eq!(signs.take(), 0);
        signs.busy(ip(3), 100_000, at(7), &rules);
        assert_eq!(signs.busy_until_ms(), 307_000, "no longer than the rules allow");
    }

    #[test]
    fn sources_of_long_ago_do_not_count() {
        let (signs, rules) = (Signs::default(), BackOff::default());
        signs.busy(ip(1), 60, at(1), &rules);
        signs.busy(ip(2), 60, at(2), &rules);
        signs.busy(ip(3), 60, at(13), &rules);
        assert_eq!(signs.take(), 0);
        for n in 10..200 {
            signs.busy(ip(n), 60, at(100 * u64::from(n)), &rules);
        }
        assert_eq!(signs.take(), 0, "each is alone in its time");
        let six = |n: u16| IpAddr::from([0x2001, 0xdb8, 1, 1, n, n, n, n]);
        (0..50).for_each(|n| signs.busy(six(n), 60, at(50_000), &rules));
        assert_eq!(signs.take(), 0, "one /64 is one source");
    }

    #[test]
    fn icmp_is_told_once_until_it_is_taken() {
        let signs = Signs::default();
        for _ in 0..3 {
            signs.unreachable(Sign::Refused);
        }
        signs.unreachable(Sign::Unreachable);
        assert_eq!((signs.take(), signs.take(), signs.undeliverable()), (3, 0, 4));
    }
}
