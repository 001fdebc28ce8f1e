//! Client flows that an ICMP error has closed, until they speak again (SPEC 3.5).
//!
//! `forward` puts a flow when the kernel reports the error and clears it with whatever arrives by it: while there is none
//! that is one load for each message.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{
    Now,
    aged::{Aged, Replaced, shards},
};
use crate::wire::token::Flow;

/// Shared by the cores; an atomic count lets the path skip the lock while it is empty. Bounded; drops its oldest.
pub struct Unreachable {
    shards: Box<[Mutex<Aged<Flow, u64>>]>,
    seeds: ahash::RandomState,
    count: AtomicUsize,
}

impl Unreachable {
    pub fn new(capacity: usize) -> Unreachable {
        let (count, each) = shards(capacity);
        Unreachable {
            shards: (0..count).map(|_| Mutex::new(Aged::new(each))).collect(),
            seeds: ahash::RandomState::new(),
            count: AtomicUsize::new(0),
        }
    }

    fn shard(&self, flow: &Flow) -> &Mutex<Aged<Flow, u64>> {
        let hash = self.seeds.hash_one(flow);
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }

    /// Records the error. True where an older record had to go. A further error for the same flow keeps the first time:
    /// grace counts from the close, not from the last attempt.
    pub fn put(&self, flow: Flow, now: Now) -> bool {
        let mut shard = self.shard(&flow).lock();
        if shard.find(&flow).is_some() {
            return false;
        }
        match shard.insert(flow, now.mono_ms) {
            Replaced::None => {
                self.count.fetch_add(1, Ordering::Release);
                false
            }
            Replaced::Same(_) => false,
            Replaced::Oldest(_) => true,
        }
    }

    /// The flow spoke again.
    pub fn clear(&self, flow: &Flow) {
        if self.is_empty() {
            return;
        }
        if self.shard(flow).lock().remove(flow).is_some() {
            self.count.fetch_sub(1, Ordering::Release);
        }
    }

    /// When it was closed, in `mono_ms`.
    pub fn since(&self, flow: &Flow) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        self.shard(flow).lock().find(flow).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
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
        assert_eq!(closed.len(), 1);
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
        assert_eq!((closed.since(&flow(1)), closed.since(&flow(2)), closed.len()), (None, Some(2), 2));
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
                prop_assert!(closed.len() <= capacity);
            }
        }
    }
}
