//! Client flows that an ICMP error or their silence has closed, until they speak again (SPEC 3.5, 9.10).
//!
//! `forward` puts a flow when the kernel reports the error and clears it with whatever arrives by it; `control::keepalive`
//! asks one and closes it where nothing came meanwhile. While nothing is known that is one load for each message, and else a
//! hash and a load for nearly all.

use std::sync::atomic::{
    AtomicU32, AtomicUsize,
    Ordering::{Acquire, Release},
};

use parking_lot::Mutex;

use super::{
    Now,
    aged::{Aged, Replaced, shards},
};
use crate::wire::token::Flow;

/// How long a flow is known to be closed, in milliseconds: a registration's usual time. Whoever sends to it later finds out
/// anew.
const KEPT_MS: u64 = 3_600_000;
/// In the place of the time of its close: it is asked, and has not answered yet.
const ASKED: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Record {
    /// `mono_ms` of its close, or `ASKED`.
    since: u64,
    mark: u32,
}

/// Shared by the cores. Bounded; drops its oldest.
pub struct Unreachable {
    shards: Box<[Mutex<Aged<Flow, Record>>]>,
    seeds: ahash::RandomState,
    /// How many flows have a record, by their hash: of nearly all others it says without a lock that they have none.
    marks: Box<[AtomicU32]>,
    count: AtomicUsize,
    closed: AtomicUsize,
}

impl Unreachable {
    pub fn new(capacity: usize) -> Unreachable {
        let (count, each) = shards(capacity);
        let marks = (4 * capacity).clamp(64, 1 << 20).next_power_of_two();
        Unreachable {
            shards: (0..count).map(|_| Mutex::new(Aged::new(each))).collect(),
            seeds: ahash::RandomState::new(),
            marks: (0..marks).map(|_| AtomicU32::new(0)).collect(),
            count: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
        }
    }

    /// The flow's shard and its mark.
    fn places(&self, flow: &Flow) -> (&Mutex<Aged<Flow, Record>>, u32) {
        let hash = self.seeds.hash_one(flow);
        let mark = (hash >> 32) as usize & (self.marks.len() - 1);
        (&self.shards[hash as usize & (self.shards.len() - 1)], mark as u32)
    }

    fn has_mark(&self, mark: u32) -> bool {
        self.marks[mark as usize].load(Acquire) != 0
    }

    /// Under the shard's lock. True where an older record had to go.
    fn insert(&self, shard: &mut Aged<Flow, Record>, flow: Flow, record: Record) -> bool {
        self.marks[record.mark as usize].fetch_add(1, Release);
        self.count.fetch_add(1, Release);
        self.closed.fetch_add(usize::from(record.since != ASKED), Release);
        match shard.insert(flow, record) {
            Replaced::None => false,
            Replaced::Same(old) => {
                self.went(old);
                false
            }
            Replaced::Oldest(old) => {
                self.went(old);
                true
            }
        }
    }

    /// A record is no more.
    fn went(&self, record: Record) {
        self.marks[record.mark as usize].fetch_sub(1, Release);
        self.count.fetch_sub(1, Release);
        self.closed.fetch_sub(usize::from(record.since != ASKED), Release);
    }

    /// Records the error. True where an older record had to go. A further error for the same flow keeps the first time:
    /// grace counts from the close, not from the last attempt.
    pub fn put(&self, flow: Flow, now: Now) -> bool {
        let (shard, mark) = self.places(&flow);
        let mut shard = shard.lock();
        if shard.find(&flow).is_some_and(|record| record.since != ASKED) {
            return false;
        }
        self.insert(&mut shard, flow, Record { since: now.mono_ms, mark })
    }

    /// The flow is asked whether it is alive. Where there is no room its silence will say nothing.
    pub fn ask(&self, flow: Flow) {
        let (shard, mark) = self.places(&flow);
        let mut shard = shard.lock();
        if shard.find(&flow).is_none() && !shard.is_full() {
            self.insert(&mut shard, flow, Record { since: ASKED, mark });
        }
    }

    /// The time to answer is over: the flow is closed, unless it spoke meanwhile. True where it is.
    pub fn unanswered(&self, flow: Flow, now: Now) -> bool {
        let (shard, mark) = self.places(&flow);
        let mut shard = shard.lock();
        let asked = shard.find(&flow).is_some_and(|record| record.since == ASKED);
        if asked {
            self.insert(&mut shard, flow, Record { since: now.mono_ms, mark });
        }
        asked
    }

    /// It could not be asked after all.
    pub fn unasked(&self, flow: Flow) {
        let mut shard = self.places(&flow).0.lock();
        if let Some(record) = shard.find(&flow).copied().filter(|record| record.since == ASKED) {
            shard.remove(&flow);
            self.went(record);
        }
    }

    /// The flow spoke again.
    pub fn clear(&self, flow: &Flow) {
        if self.is_empty() {
            return;
        }
        let (shard, mark) = self.places(flow);
        if self.has_mark(mark)
            && let Some(record) = shard.lock().remove(flow)
        {
            self.went(record);
        }
    }

    /// When it was closed, in `mono_ms`.
    pub fn since(&self, flow: &Flow) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let (shard, mark) = self.places(flow);
        if !self.has_mark(mark) {
            return None;
        }
        shard.lock().find(flow).map(|record| record.since).filter(|since| *since != ASKED)
    }

    /// Forgets those that were closed long ago.
    pub fn sweep(&self, now: Now) {
        if self.is_empty() {
            return;
        }
        for shard in &self.shards {
            shard.lock().retain(|record| {
                let kept = record.since == ASKED || record.since + KEPT_MS > now.mono_ms;
                if !kept {
                    self.went(*record);
                }
                kept
            });
        }
    }

    /// Nothing is known of any flow, whether closed or asked.
    pub fn is_empty(&self) -> bool {
        self.count.load(Acquire) == 0
    }

    /// How many are closed.
    pub fn closed(&self) -> usize {
        self.closed.load(Acquire)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: 0 }
    }

    fn flow(port: u16) -> Flow {
        Flow::Datagram { listener: 1, local: None, peer: ([192, 0, 2, 1], port).into() }
    }

    #[test]
    fn closed_from_the_first_error_until_it_speaks() {
        let closed = Unreachable::new(8);
        assert!(!closed.put(flow(1), at(100)));
        assert!(!closed.put(flow(1), at(900)));
        assert_eq!((closed.since(&flow(1)), closed.since(&flow(2))), (Some(100), None));
        closed.clear(&flow(2));
        assert_eq!(closed.closed(), 1);
        closed.clear(&flow(1));
        assert!(closed.is_empty() && closed.since(&flow(1)).is_none());
        closed.put(flow(1), at(2000));
        assert_eq!(closed.since(&flow(1)), Some(2000));
    }

    #[test]
    fn a_full_one_drops_its_oldest_and_says_so() {
        let closed = Unreachable::new(2);
        assert!(!closed.put(flow(1), at(1)));
        assert!(!closed.put(flow(2), at(2)));
        assert!(closed.put(flow(3), at(3)));
        assert_eq!((closed.since(&flow(1)), closed.since(&flow(2)), closed.closed()), (None, Some(2), 2));
    }

    #[test]
    fn an_asked_one_is_closed_by_its_silence_alone() {
        let closed = Unreachable::new(8);
        closed.ask(flow(1));
        assert_eq!((closed.since(&flow(1)), closed.closed(), closed.is_empty()), (None, 0, false));
        closed.clear(&flow(1));
        assert!(!closed.unanswered(flow(1), at(32_000)) && closed.is_empty());
        closed.ask(flow(1));
        assert!(closed.unanswered(flow(1), at(64_000)));
        assert_eq!((closed.since(&flow(1)), closed.closed()), (Some(64_000), 1));
        // An error meanwhile says more, and one that could not be asked says nothing.
        closed.ask(flow(2));
        closed.put(flow(2), at(70_000));
        closed.unasked(flow(2));
        assert!(!closed.unanswered(flow(2), at(80_000)));
        assert_eq!(closed.since(&flow(2)), Some(70_000));
        closed.ask(flow(3));
        closed.unasked(flow(3));
        assert_eq!(closed.closed(), 2);
    }

    #[test]
    fn forgotten_after_an_hour() {
        let closed = Unreachable::new(8);
        closed.put(flow(1), at(1));
        closed.put(flow(2), at(2));
        closed.ask(flow(3));
        closed.sweep(at(KEPT_MS + 1));
        assert_eq!((closed.since(&flow(1)), closed.since(&flow(2)), closed.closed()), (None, Some(2), 1));
        closed.sweep(at(KEPT_MS + 2));
        assert!(closed.closed() == 0 && !closed.is_empty());
        closed.clear(&flow(3));
        assert!(closed.is_empty() && closed.marks.iter().all(|mark| mark.load(Acquire) == 0));
    }

    proptest! {
        #[test]
        fn never_more_than_its_capacity(
            capacity in 1usize..1500,
            steps in proptest::collection::vec((any::<bool>(), 0u16..3000), 1..4000),
        ) {
            let closed = Unreachable::new(capacity);
            for (put, port) in steps {
                if put {
                    closed.put(flow(port), at(u64::from(port)));
                    prop_assert_eq!(closed.since(&flow(port)), Some(u64::from(port)));
                } else {
                    closed.clear(&flow(port));
                    prop_assert_eq!(closed.since(&flow(port)), None);
                }
                prop_assert!(closed.closed() <= capacity);
            }
        }
    }
}
