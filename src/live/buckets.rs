//! What each source may still send: new dialogs and malformed messages, counted apart (SPEC 10). One core's own, since one
//! 4-tuple meets one core; a source that speaks from several ports has its share of each core that it meets.
//!
//! A source is an IPv4 address or the /64 of an IPv6 one. The table is a fixed number of places in sets of eight, found by
//! a seeded hash; where all eight are taken the one that was quiet longest goes, and comes back with full buckets. Not
//! asked for backends, trusted and exempt sources, nor for messages in dialogs. Time is passed in.

use std::net::{IpAddr, Ipv6Addr};

use super::Now;
use crate::config::settings::Protection;

/// Places of one set.
const SET: usize = 8;
/// One message, in what buckets count.
const ONE: u32 = 1000;
/// A source that was quiet for so long is no loss.
const STALE_MS: u64 = 60_000;

/// What one source may do.
#[derive(Clone, Copy, Debug)]
struct Rates {
    /// A second, and at once; 0 a second: any number.
    dialogs: (u32, u32),
    answers: (u32, u32),
    malformed: (u32, u32),
    /// So many drops within so many milliseconds are a reason for a ban; 0: none are.
    ban_after: u32,
    window_ms: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Taken,
    /// To be told to come later.
    Refused,
    /// To be dropped. `ban`: it was the one too many.
    Dropped {
        ban: bool,
    },
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// 0: free.
    key: u64,
    seen_ms: u64,
    /// What is left, in thousandths.
    dialogs: u32,
    answers: u32,
    malformed: u32,
    /// Drops since `window_ms`.
    drops: u32,
    window_ms: u64,
}

pub struct Buckets {
    rates: Rates,
    sets: Box<[[Entry; SET]]>,
    seeds: ahash::RandomState,
    used: usize,
    dropped: u64,
}

impl Buckets {
    pub fn new(of: &Protection) -> Buckets {
        Buckets::with_room(of, of.sources)
    }

    /// Room for `sources`, rounded up to whole sets of a power of two.
    pub fn with_room(of: &Protection, sources: usize) -> Buckets {
        let sets = sources.div_ceil(SET).max(1).next_power_of_two();
        Buckets {
            rates: Rates {
                dialogs: (of.new_dialogs, of.new_dialogs_burst.max(1)),
                answers: (of.answers, of.answers.max(1)),
                malformed: (of.malformed, of.malformed_burst.max(1)),
                ban_after: of.ban_after,
                window_ms: of.ban_window.as_millis() as u64,
            },
            sets: vec![[Entry::default(); SET]; sets].into(),
            seeds: ahash::RandomState::new(),
            used: 0,
            dropped: 0,
        }
    }

    /// A client begins something new.
    pub fn new_dialog(&mut self, ip: IpAddr, now: Now) -> Verdict {
        if self.rates.dialogs.0 == 0 {
            return Verdict::Taken;
        }
        let rates = self.rates;
        let entry = self.entry(ip, now);
        if spend(&mut entry.dialogs) {
            Verdict::Taken
        } else if rates.answers.0 > 0 && spend(&mut entry.answers) {
            Verdict::Refused
        } else {
            entry.drop(&rates, now)
        }
    }

    /// A client sent what no sound program writes, or what can go nowhere.
    pub fn malformed(&mut self, ip: IpAddr, now: Now) -> Verdict {
        if self.rates.malformed.0 == 0 {
            return Verdict::Taken;
        }
        let rates = self.rates;
        let entry = self.entry(ip, now);
        if spend(&mut entry.malformed) { Verdict::Taken } else { entry.drop(&rates, now) }
    }

    /// Sources that had to make room although they spoke a moment ago, since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Sources that are counted (gauge).
    pub fn len(&self) -> usize {
        self.used
    }

    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    pub fn capacity(&self) -> usize {
        self.sets.len() * SET
    }

    /// The source's place, with what it has gained since it was last seen.
    fn entry(&mut self, ip: IpAddr, now: Now) -> &mut Entry {
        let key = self.seeds.hash_one(source(ip)) | 1;
        let set = (key >> 32) as usize & (self.sets.len() - 1);
        let set = &mut self.sets[set];
        let known = set.iter().position(|entry| entry.key == key);
        let at = known.or_else(|| set.iter().position(|entry| entry.key == 0)).unwrap_or_else(|| {
            let oldest = (0..SET).min_by_key(|&at| set[at].seen_ms);
            oldest.unwrap_or(0)
        });
        let entry = &mut set[at];
        if known.is_none() {
            if entry.key == 0 {
                self.used += 1;
            } else if entry.seen_ms + STALE_MS > now.mono_ms {
                self.dropped += 1;
            }
            let full = |(_, burst): (u32, u32)| burst.saturating_mul(ONE);
            let Rates { dialogs, answers, malformed, .. } = self.rates;
            *entry = Entry {
                key,
                seen_ms: now.mono_ms,
                dialogs: full(dialogs),
                answers: full(answers),
                malformed: full(malformed),
                drops: 0,
                window_ms: now.mono_ms,
            };
            return entry;
        }
        let elapsed = now.mono_ms.saturating_sub(entry.seen_ms);
        if elapsed > 0 {
            entry.seen_ms = now.mono_ms;
            gain(&mut entry.dialogs, self.rates.dialogs, elapsed);
            gain(&mut entry.answers, self.rates.answers, elapsed);
            gain(&mut entry.malformed, self.rates.malformed, elapsed);
        }
        entry
    }
}

impl Entry {
    fn drop(&mut self, rates: &Rates, now: Now) -> Verdict {
        if now.mono_ms.saturating_sub(self.window_ms) > rates.window_ms {
            self.window_ms = now.mono_ms;
            self.drops = 0;
        }
        self.drops = self.drops.saturating_add(1);
        let ban = rates.ban_after > 0 && self.drops >= rates.ban_after;
        if ban {
            self.drops = 0;
        }
        Verdict::Dropped { ban }
    }
}

fn spend(level: &mut u32) -> bool {
    let left = level.checked_sub(ONE);
    if let Some(left) = left {
        *level = left;
    }
    left.is_some()
}

fn gain(level: &mut u32, (rate, burst): (u32, u32), elapsed_ms: u64) {
    let gained = u64::from(rate).saturating_mul(elapsed_ms);
    let full = u64::from(burst) * u64::from(ONE);
    *level = u32::try_from(u64::from(*level).saturating_add(gained).min(full)).unwrap_or(u32::MAX);
}

/// Whom buckets and bans mean by an address: one subscriber has a whole /64 of IPv6.
pub fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: 0 }
    }

    fn ip(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    fn protection() -> Protection {
        Protection {
            new_dialogs: 10,
            new_dialogs_burst: 20,
            answers: 5,
            malformed: 1,
            malformed_burst: 3,
            ban_after: 4,
            ban_window: Duration::from_secs(10),
            sources: 8,
            ..Protection::default()
        }
    }

    fn ask(of: &mut Buckets, times: usize, ms: u64) -> (usize, usize, usize) {
        let all: Vec<_> = (0..times).map(|_| of.new_dialog(ip(1), at(ms))).collect();
        let count = |which: fn(&Verdict) -> bool| all.iter().filter(|v| which(v)).count();
        (
            count(|v| *v == Verdict::Taken),
            count(|v| *v == Verdict::Refused),
            count(|v| matches!(v, Verdict::Dropped { .. })),
        )
    }

    #[test]
    fn a_burst_is_taken_then_some_are_told_and_the_rest_is_dropped() {
        let mut of = Buckets::new(&protection());
        assert_eq!(ask(&mut of, 40, 1_000), (20, 5, 15));
        assert_eq!(ask(&mut of, 40, 2_000), (10, 5, 25), "what a second brings, although all were refused");
        assert_eq!(of.new_dialog(ip(2), at(2_000)), Verdict::Taken, "another is not its concern");
        for ms in 3_000..4_000 {
            of.new_dialog(ip(1), at(ms));
        }
        assert_eq!(ask(&mut of, 1, 9_000).0, 1, "fractions of a message are not lost");
    }

    #[test]
    fn malformed_messages_are_counted_apart_and_too_many_drops_are_a_reason() {
        let mut of = Buckets::new(&protection());
        let mut all = Vec::new();
        for _ in 0..12 {
            all.push(of.malformed(ip(1), at(1_000)));
        }
        let ban = |n: usize| all[n] == Verdict::Dropped { ban: true };
        assert!(all[..3].iter().all(|v| *v == Verdict::Taken));
        assert_eq!((0..12).filter(|&n| ban(n)).collect::<Vec<_>>(), [6, 10]);
        assert_eq!(of.new_dialog(ip(1), at(1_000)), Verdict::Taken);
    }

    #[test]
    fn drops_of_long_ago_are_no_reason() {
        let mut of = Buckets::new(&Protection { malformed_burst: 1, ..protection() });
        of.malformed(ip(1), at(0));
        for second in 1..20 {
            let verdict = of.malformed(ip(1), at(second * 4_000 + 1));
            let again = of.malformed(ip(1), at(second * 4_000 + 2));
            assert!(verdict != Verdict::Dropped { ban: true } && again != Verdict::Dropped { ban: true });
        }
    }

    #[test]
    fn the_quietest_of_a_full_set_goes_and_only_a_live_one_is_counted() {
        let mut of = Buckets::new(&protection());
        for n in 0..8 {
            of.new_dialog(ip(n), at(u64::from(n) + 1));
        }
        assert_eq!((of.len(), of.capacity(), of.take_dropped()), (8, 8, 0));
        of.new_dialog(ip(100), at(20));
        assert_eq!((of.len(), of.take_dropped()), (8, 1));
        of.new_dialog(ip(101), at(20 + STALE_MS));
        assert_eq!((of.len(), of.take_dropped()), (8, 0));
    }

    #[test]
    fn nothing_a_second_is_no_limit_and_a_source_of_six_is_its_64() {
        let mut of = Buckets::new(&Protection { new_dialogs: 0, malformed: 0, ..protection() });
        assert!((0..1000).all(|_| of.new_dialog(ip(1), at(1)) == Verdict::Taken));
        assert!((0..1000).all(|_| of.malformed(ip(1), at(1)) == Verdict::Taken));
        let six = |text: &str| source(text.parse().expect("an address"));
        assert_eq!(six("2001:db8:1:2::3"), six("2001:db8:1:2:ff::"));
        assert_ne!(six("2001:db8:1:2::3"), six("2001:db8:1:3::3"));
        assert_eq!(six("::ffff:192.0.2.1"), six("192.0.2.1"));
    }
}
