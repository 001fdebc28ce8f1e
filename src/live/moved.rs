//! Flows that moved within a dialog (SPEC 7.2): (old flow, hash of From tag) -> new flow. Never followed in a chain.
//!
//! `forward` puts a record when the 2xx of a moved in-dialog request passes, and asks whenever a token names a client's
//! flow: nearly always there is no record at all, and the answer is one load.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{
    Now,
    aged::{Aged, Replaced, shards},
};
use crate::wire::token::Flow;

/// Shared by the cores; an atomic count lets the path skip the lock while it is empty. Bounded; drops its oldest.
pub struct Moved {
    shards: Box<[Mutex<Shard>]>,
    seeds: ahash::RandomState,
    count: AtomicUsize,
}

struct Shard {
    records: Aged<(Flow, u32), Record>,
    /// No record ends before this: spares the sweep a walk.
    soonest: u64,
}

#[derive(Clone, Copy)]
struct Record {
    new: Flow,
    /// In `mono_ms`.
    ends: u64,
}

impl Moved {
    pub fn new(capacity: usize) -> Moved {
        let (count, each) = shards(capacity);
        let shard = || Mutex::new(Shard { records: Aged::new(each), soonest: u64::MAX });
        Moved {
            shards: (0..count).map(|_| shard()).collect(),
            seeds: ahash::RandomState::new(),
            count: AtomicUsize::new(0),
        }
    }

    fn shard(&self, key: &(Flow, u32)) -> &Mutex<Shard> {
        let hash = self.seeds.hash_one(key);
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }

    /// Records a move for `seconds`. True where an older record had to go.
    pub fn put(&self, old: Flow, tag: u32, new: Flow, seconds: u32, now: Now) -> bool {
        let key = (old, tag);
        let ends = now.mono_ms.saturating_add(u64::from(seconds) * 1000);
        let mut shard = self.shard(&key).lock();
        shard.soonest = shard.soonest.min(ends);
        match shard.records.insert(key, Record { new, ends }) {
            Replaced::None => {
                self.count.fetch_add(1, Ordering::Release);
                false
            }
            Replaced::Same(_) => false,
            Replaced::Oldest(record) => record.ends > now.mono_ms,
        }
    }

    pub fn find(&self, old: Flow, tag: u32, now: Now) -> Option<Flow> {
        if self.is_empty() {
            return None;
        }
        let key = (old, tag);
        let shard = self.shard(&key).lock();
        shard.records.find(&key).filter(|record| record.ends > now.mono_ms).map(|record| record.new)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that are held (gauge); expired ones until the next sweep.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Ends what has expired; called every second by control, not by the path.
    pub fn sweep(&self, now: Now) {
        if self.is_empty() {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            if shard.soonest > now.mono_ms {
                continue;
            }
            let mut soonest = u64::MAX;
            let ended = shard.records.retain(|record| {
                let live = record.ends > now.mono_ms;
                if live {
                    soonest = soonest.min(record.ends);
                }
                live
            });
            shard.soonest = soonest;
            self.count.fetch_sub(ended, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1000, unix_s: seconds }
    }

    fn flow(port: u16) -> Flow {
        Flow::Datagram { listener: 1, local: None, peer: ([192, 0, 2, 1], port).into() }
    }

    #[test]
    fn a_move_counts_for_its_tag_and_its_time_only() {
        let moved = Moved::new(8);
        assert_eq!(moved.find(flow(1), 7, at(0)), None);
        assert!(!moved.put(flow(1), 7, flow(2), 60, at(0)));
        assert_eq!(moved.find(flow(1), 7, at(59)), Some(flow(2)));
        assert_eq!(moved.find(flow(1), 8, at(59)), None);
        assert_eq!(moved.find(flow(1), 7, at(60)), None);
        assert_eq!(moved.len(), 1);
        moved.sweep(at(60));
        assert!(moved.is_empty());
    }

    #[test]
    fn a_move_is_never_followed_in_a_chain() {
        let moved = Moved::new(8);
        moved.put(flow(1), 7, flow(2), 60, at(0));
        moved.put(flow(2), 7, flow(3), 60, at(0));
        assert_eq!(moved.find(flow(1), 7, at(1)), Some(flow(2)));
        moved.put(flow(1), 7, flow(3), 60, at(1));
        assert_eq!(moved.find(flow(1), 7, at(1)), Some(flow(3)));
        assert_eq!(moved.len(), 2);
    }

    #[test]
    fn the_longest_expires_does_not_overflow() {
        let moved = Moved::new(8);
        moved.put(flow(1), 7, flow(2), u32::MAX, Now { mono_ms: u64::MAX - 1, unix_s: 0 });
        assert_eq!(moved.find(flow(1), 7, Now { mono_ms: u64::MAX - 1, unix_s: 0 }), Some(flow(2)));
    }

    proptest! {
        #[test]
        fn never_more_than_its_capacity(
            capacity in 1usize..2000,
            moves in proptest::collection::vec((any::<u16>(), 0u32..4, 1u32..100, 0u64..3), 1..4000),
        ) {
            let moved = Moved::new(capacity);
            let mut clock = 0;
            for (port, tag, seconds, step) in moves {
                clock += step;
                moved.put(flow(port), tag, flow(port ^ 1), seconds, at(clock));
                prop_assert!(moved.len() <= capacity);
                prop_assert_eq!(moved.find(flow(port), tag, at(clock)), Some(flow(port ^ 1)));
                if step == 2 {
                    moved.sweep(at(clock));
                }
            }
            moved.sweep(at(clock + 100));
            prop_assert_eq!(moved.len(), 0);
        }
    }
}
