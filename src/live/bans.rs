//! Who is banned (SPEC 10): read by every core through one pointer, written by control.
//!
//! A core that has seen too much of a source asks for its ban (`ask`): rarely, and never for a single message. Control takes
//! the questions (`take_asked`), judges them, and lets bans begin and end. Cores see a change by `version`, one word, so
//! that a message of somebody who is known and not banned costs one compare; those who are connected are looked at only
//! where somebody new is banned (`begun`). A ban is of an IPv4 address or of the /64 of
//! an IPv6 one; it outlives tables. Nothing here knows who must not be banned: `control::bans` does.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use ahash::HashSet;
use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::buckets::source;

/// Questions that wait for control; those beyond come again with the next offence.
const MOST_ASKED: usize = 1024;

/// Why somebody is banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    Malformed,
    Excess,
    /// The operator wants it.
    Operator,
}

impl Cause {
    pub const ALL: [Cause; 3] = [Cause::Malformed, Cause::Excess, Cause::Operator];

    pub const fn label(self) -> &'static str {
        match self {
            Cause::Malformed => "malformed",
            Cause::Excess => "excess",
            Cause::Operator => "operator",
        }
    }
}

/// One ban, in force or remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    pub cause: Cause,
    pub since_unix_s: u64,
    pub until_unix_s: u64,
    /// How often in a row.
    pub times: u32,
}

/// How long bans last.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// In force at one time, at most.
    pub most: usize,
    pub seconds: u64,
    /// Each further ban of a source lasts twice as long as the one before, up to `longest_s`, unless that one is over for as
    /// long.
    pub doubles: bool,
    pub longest_s: u64,
}

pub struct Bans {
    terms: Terms,
    /// Those in force, as cores ask.
    present: ArcSwap<HashSet<IpAddr>>,
    version: AtomicU64,
    begun: AtomicU64,
    /// With those that are over but not forgotten.
    book: Mutex<BTreeMap<IpAddr, Ban>>,
    asked: Mutex<Vec<(IpAddr, Cause)>>,
    is_asked: AtomicBool,
}

impl Bans {
    pub fn new(terms: Terms) -> Bans {
        Bans {
            terms,
            present: ArcSwap::default(),
            version: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            book: Mutex::default(),
            asked: Mutex::default(),
            is_asked: AtomicBool::new(false),
        }
    }

    /// Another one with each change of who is banned.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// Another one with each change by which somebody is banned who was not before.
    #[inline]
    pub fn begun(&self) -> u64 {
        self.begun.load(Acquire)
    }

    pub fn is_banned(&self, ip: IpAddr) -> bool {
        let present = self.present.load();
        !present.is_empty() && present.contains(&source(ip))
    }

    /// A core has had enough of this source. Where many are asked for at once, some come again.
    pub fn ask(&self, ip: IpAddr, cause: Cause) {
        let mut asked = self.asked.lock();
        if asked.len() < MOST_ASKED && !asked.contains(&(source(ip), cause)) {
            asked.push((source(ip), cause));
            self.is_asked.store(true, Release);
        }
    }

    /// What cores have asked for since the last call.
    pub fn take_asked(&self) -> Vec<(IpAddr, Cause)> {
        if !self.is_asked.load(Acquire) {
            return Vec::new();
        }
        let mut asked = self.asked.lock();
        self.is_asked.store(false, Release);
        std::mem::take(&mut *asked)
    }

    /// Begins bans of these sources, each for its own time or by the terms; one that is in force is prolonged, never
    /// shortened. Gives how many found no room.
    pub fn begin(
        &self,
        wanted: impl IntoIterator<Item = (IpAddr, Cause, Option<u64>)>,
        unix_s: u64,
    ) -> usize {
        let mut book = self.book.lock();
        let mut live = book.values().filter(|ban| ban.until_unix_s > unix_s).count();
        let mut left_out = 0;
        for (ip, cause, seconds) in wanted {
            let ip = source(ip);
            let before = book.get(&ip).copied();
            let in_force = before.is_some_and(|ban| ban.until_unix_s > unix_s);
            if !in_force && live >= self.terms.most {
                left_out += 1;
                continue;
            }
            live += usize::from(!in_force);
            let times = before.map_or(0, |ban| ban.times).saturating_add(u32::from(!in_force));
            let seconds = seconds.unwrap_or_else(|| self.terms.of(times));
            let since_unix_s = before.filter(|_| in_force).map_or(unix_s, |ban| ban.since_unix_s);
            let longest = before.map_or(0, |ban| ban.until_unix_s);
            let until_unix_s = unix_s.saturating_add(seconds).max(longest);
            book.insert(ip, Ban { cause, since_unix_s, until_unix_s, times });
        }
        self.publish(&book, unix_s);
        left_out
    }

    /// Ends a ban, and forgets it. False where there is none.
    pub fn lift(&self, ip: IpAddr, unix_s: u64) -> bool {
        let mut book = self.book.lock();
        let was = book.remove(&source(ip)).is_some_and(|ban| ban.until_unix_s > unix_s);
        self.publish(&book, unix_s);
        was
    }

    /// Ends what is over; called now and then by control. True where anything changed for cores.
    pub fn sweep(&self, unix_s: u64) -> bool {
        let mut book = self.book.lock();
        let terms = &self.terms;
        book.retain(|_, ban| ban.until_unix_s.saturating_add(terms.memory(ban)) > unix_s);
        // Those that are over are bounded too: of more than there may be bans, the first to end are forgotten.
        if book.len() > terms.most.saturating_mul(2) {
            let mut ends: Vec<u64> = book.values().map(|ban| ban.until_unix_s).collect();
            ends.sort_unstable();
            let least = ends[book.len() - terms.most];
            book.retain(|_, ban| ban.until_unix_s >= least || ban.until_unix_s > unix_s);
        }
        self.publish(&book, unix_s)
    }

    /// Those in force, by address.
    pub fn list(&self, unix_s: u64) -> Vec<(IpAddr, Ban)> {
        let book = self.book.lock();
        let live = book.iter().filter(|(_, ban)| ban.until_unix_s > unix_s);
        live.map(|(ip, ban)| (*ip, *ban)).collect()
    }

    /// With those that are remembered, for the state directory; `restore` takes them back.
    pub fn book(&self) -> BTreeMap<IpAddr, Ban> {
        self.book.lock().clone()
    }

    pub fn restore(&self, kept: BTreeMap<IpAddr, Ban>, unix_s: u64) {
        let mut book = self.book.lock();
        // Those in force first; of the rest, which only makes a further ban longer, as many as there is room for.
        let (live, over): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(_, ban)| ban.until_unix_s > unix_s);
        book.extend(live.into_iter().chain(over).take(self.terms.most));
        self.publish(&book, unix_s);
    }

    /// Bans in force (gauge).
    pub fn len(&self) -> usize {
        self.present.load().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    fn publish(&self, book: &BTreeMap<IpAddr, Ban>, unix_s: u64) -> bool {
        let live = book.iter().filter(|(_, ban)| ban.until_unix_s > unix_s);
        let present: HashSet<IpAddr> = live.map(|(ip, _)| *ip).collect();
        let before = self.present.load_full();
        if present == *before {
            return false;
        }
        let has_begun = !present.is_subset(&before);
        self.present.store(present.into());
        self.version.fetch_add(1, Release);
        self.begun.fetch_add(has_begun.into(), Release);
        true
    }
}

impl Terms {
    /// For how many seconds the ban lasts that is the `times`-th in a row.
    fn of(&self, times: u32) -> u64 {
        let doublings = if self.doubles { times.saturating_sub(1).min(32) } else { 0 };
        self.seconds.saturating_mul(1 << doublings).min(self.longest_s.max(self.seconds))
    }

    /// How long a ban that is over is remembered: as long as it lasted.
    fn memory(&self, ban: &Ban) -> u64 {
        if self.doubles { ban.until_unix_s - ban.since_unix_s.min(ban.until_unix_s) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { most: 3, seconds: 60, doubles: true, longest_s: 200 };

    fn ip(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn one(bans: &Bans, n: u8, at: u64) -> u64 {
        assert_eq!(bans.begin([(ip(n), Cause::Excess, None)], at), 0);
        let until = bans.list(at).iter().find(|(of, _)| *of == ip(n)).map(|(_, ban)| ban.until_unix_s);
        until.expect("it is banned") - at
    }

    #[test]
    fn a_ban_begins_and_ends_and_each_change_is_a_version() {
        let bans = Bans::new(TERMS);
        assert!(!bans.is_banned(ip(1)) && bans.version() == 0);
        assert_eq!(one(&bans, 1, 1000), 60);
        assert!(bans.is_banned(ip(1)) && !bans.is_banned(ip(2)) && bans.version() == 1);
        assert!(bans.is_banned("::ffff:192.0.2.1".parse().expect("an address")));
        assert!(!bans.sweep(1059) && bans.version() == 1);
        assert!(bans.sweep(1060) && bans.version() == 2);
        assert!(!bans.is_banned(ip(1)) && bans.list(1060).is_empty());
    }

    /// The end of a ban is nothing to those who are connected.
    #[test]
    fn only_the_beginning_of_a_ban_is_a_reason_to_look_at_who_is_connected() {
        let bans = Bans::new(TERMS);
        let begin = |n, at| bans.begin([(ip(n), Cause::Excess, None)], at);
        begin(1, 1000);
        begin(2, 1030);
        assert_eq!((bans.begun(), bans.version()), (2, 2));
        assert!(bans.sweep(1060) && bans.lift(ip(2), 1061));
        assert_eq!((bans.begun(), bans.version()), (2, 4), "one is over, one is lifted");
        begin(1, 1062);
        assert_eq!((bans.begun(), bans.version()), (3, 5));
        begin(1, 1070);
        assert_eq!((bans.begun(), bans.version()), (3, 5), "prolonged");
        begin(3, 1300);
        assert_eq!((bans.begun(), bans.version()), (4, 6), "one begins where another ends");
    }

    #[test]
    fn who_comes_back_stays_away_for_longer_and_in_time_is_forgiven() {
        let bans = Bans::new(TERMS);
        assert_eq!(one(&bans, 1, 1000), 60);
        bans.sweep(1100);
        assert_eq!(one(&bans, 1, 1100), 120);
        bans.sweep(1230);
        assert_eq!(one(&bans, 1, 1230), 200, "no longer than the longest");
        bans.sweep(1630);
        assert_eq!(one(&bans, 1, 1630), 60);
        assert_eq!(one(&bans, 1, 1640), 60, "one that is in force is prolonged");
        bans.begin([(ip(1), Cause::Operator, Some(5))], 1640);
        assert_eq!(bans.list(1640)[0].1.until_unix_s, 1700, "and never shortened");
    }

    #[test]
    fn there_is_room_for_so_many_and_a_lifted_one_makes_room() {
        let bans = Bans::new(TERMS);
        let wanted = (0..5).map(|n| (ip(n), Cause::Malformed, None));
        assert_eq!((bans.begin(wanted, 1000), bans.len()), (2, 3));
        assert!(bans.lift(ip(0), 1000) && !bans.lift(ip(0), 1000) && !bans.is_banned(ip(0)));
        assert_eq!(bans.begin([(ip(9), Cause::Operator, Some(1))], 1000), 0);
        for second in 0..1000u64 {
            let n = (second % 250) as u8;
            bans.begin([(ip(n), Cause::Excess, None)], 2000 + second * 61);
            bans.sweep(2000 + second * 61);
            assert!(bans.book().len() <= 7);
        }
    }

    #[test]
    fn what_cores_ask_for_is_taken_once_and_bounded() {
        let bans = Bans::new(TERMS);
        assert!(bans.take_asked().is_empty());
        for n in 0..5000u32 {
            let ip: IpAddr = std::net::Ipv4Addr::from_bits(n / 2).into();
            bans.ask(ip, Cause::Excess);
        }
        assert_eq!((bans.take_asked().len(), bans.take_asked().len()), (MOST_ASKED, 0));
    }

    #[test]
    fn a_restart_keeps_them() {
        let bans = Bans::new(TERMS);
        one(&bans, 1, 1000);
        let kept = bans.book();
        let bans = Bans::new(TERMS);
        bans.restore(kept, 1010);
        assert!(bans.is_banned(ip(1)));
        assert_eq!(bans.list(1010)[0].1.until_unix_s, 1060);
    }
}
