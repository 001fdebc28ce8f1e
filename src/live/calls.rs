//! Call records (SPEC 7.1): how many calls each backend carries, for `least-calls`, `max_calls` and whoever waits for a
//! drain to end.
//!
//! An INVITE that left counts until its final answer, so that a burst is not sent to whoever was the least busy before
//! it; its 2xx leaves the record of the dialog, until a BYE or for 12 h. Whose 2xx does is for `forward::calls` to say. A
//! record that ended stays a while as a mark: what is retransmitted late must not begin it anew. Shared by the cores, since
//! a BYE may come by another than its INVITE; bounded, made whole at the start; a full set of eight drops its oldest.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::{BackendState, Now};

/// An INVITE without an answer: Timer C (RFC 3261 16.6) and a little more, in seconds.
pub const RINGING_S: u32 = 200;
/// A call without a BYE.
pub const CALL_S: u32 = 12 * 3600;
/// Retransmissions of an INVITE's 2xx end before that (RFC 3261 13.3.1.4).
const ENDED_S: u32 = 64;

const WAYS: usize = 8;
const SHARDS: usize = 64;
/// All sets are swept within so many calls of `sweep`.
const SWEEPS: usize = 60;

/// `backend` is `None` in one that ended; a slot is empty where `ends_s` is 0.
#[derive(Clone, Default)]
struct Slot {
    key: u64,
    /// Seconds of `mono_ms`, plus one.
    ends_s: u32,
    backend: Option<Arc<BackendState>>,
}

const _: () = assert!(size_of::<Slot>() <= 32);

#[derive(Clone, Default)]
struct Set([Slot; WAYS]);

struct Shard {
    sets: Box<[Set]>,
    /// The next set to sweep.
    hand: usize,
}

pub struct Calls {
    shards: Box<[Mutex<Shard>]>,
    count: AtomicUsize,
    capacity: usize,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    New,
    /// It was there already, or has ended.
    Known,
    /// Another call that goes on had to make room, and is counted no more.
    Dropped,
}

impl Calls {
    /// Room for `capacity` records (rounded up to a power of two).
    pub fn new(capacity: usize) -> Calls {
        let sets = capacity.div_ceil(WAYS).max(1).next_power_of_two();
        let shards = sets.min(SHARDS);
        let shard = || Mutex::new(Shard { sets: vec![Set::default(); sets / shards].into(), hand: 0 });
        Calls {
            shards: (0..shards).map(|_| shard()).collect(),
            count: AtomicUsize::new(0),
            capacity: sets * WAYS,
        }
    }

    /// Records a call of `backend` for `seconds`, or renews it.
    pub fn put(&self, key: u64, backend: &Arc<BackendState>, seconds: u32, now: Now) -> Recorded {
        let second = second(now);
        let mut shard = self.shard(key).lock();
        let set = shard.set(key);
        if let Some(slot) = set.find(key, second) {
            if slot.backend.is_some() {
                slot.ends_s = second.saturating_add(seconds);
            }
            return Recorded::Known;
        }
        // A free one, else one that has ended, else the one that ends first.
        let value = |slot: &Slot| match (slot.ends_s > second, &slot.backend) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => 1 + u64::from(slot.ends_s),
        };
        let slot = set.0.iter_mut().min_by_key(|slot| value(slot)).expect("a set has slots");
        let dropped = slot.ends_s > second && slot.backend.is_some();
        self.release(slot);
        backend.calls.fetch_add(1, Relaxed);
        self.count.fetch_add(1, Relaxed);
        *slot = Slot { key, ends_s: second.saturating_add(seconds), backend: Some(backend.clone()) };
        if dropped { Recorded::Dropped } else { Recorded::New }
    }

    /// The call is over. True where it went on until now.
    pub fn end(&self, key: u64, now: Now) -> bool {
        let second = second(now);
        let mut shard = self.shard(key).lock();
        let slot = shard.set(key).find(key, second).filter(|slot| slot.backend.is_some());
        let Some(slot) = slot else { return false };
        self.release(slot);
        *slot = Slot { key, ends_s: second + ENDED_S, backend: None };
        true
    }

    /// Is there a record, if only of the end?
    pub fn knows(&self, key: u64, now: Now) -> bool {
        self.shard(key).lock().set(key).find(key, second(now)).is_some()
    }

    /// Ends what has expired; called every second by control, sees everything within a minute.
    pub fn sweep(&self, now: Now) {
        let second = second(now);
        for shard in &self.shards {
            let mut shard = shard.lock();
            for _ in 0..shard.sets.len().div_ceil(SWEEPS) {
                let hand = shard.hand;
                shard.hand = (hand + 1) % shard.sets.len();
                for slot in &mut shard.sets[hand].0 {
                    if slot.ends_s <= second {
                        self.release(slot);
                    }
                }
            }
        }
    }

    /// Calls that are counted (gauge); expired ones until the next sweep.
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that there is room for (gauge).
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[key as usize & (self.shards.len() - 1)]
    }

    /// A slot is about to be written over: its call is counted no more.
    fn release(&self, slot: &mut Slot) {
        if let Some(backend) = slot.backend.take() {
            backend.calls.fetch_sub(1, Relaxed);
            self.count.fetch_sub(1, Relaxed);
        }
        slot.ends_s = 0;
    }
}

impl Shard {
    fn set(&mut self, key: u64) -> &mut Set {
        // The high half: the low bits chose the shard.
        let place = (key >> 32) as usize & (self.sets.len() - 1);
        &mut self.sets[place]
    }
}

impl Set {
    fn find(&mut self, key: u64, second: u32) -> Option<&mut Slot> {
        self.0.iter_mut().find(|slot| slot.key == key && slot.ends_s > second)
    }
}

/// Right for 136 years of running.
fn second(now: Now) -> u32 {
    (now.mono_ms / 1000 + 1) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1000, unix_s: seconds }
    }

    fn backend() -> Arc<BackendState> {
        Arc::new(BackendState::new("pbx1", 0))
    }

    #[test]
    fn a_call_counts_once_until_it_ends_and_never_begins_anew() {
        let (calls, pbx) = (Calls::new(64), backend());
        assert_eq!(calls.put(7, &pbx, CALL_S, at(1)), Recorded::New);
        assert_eq!(calls.put(7, &pbx, CALL_S, at(2)), Recorded::Known);
        assert_eq!((pbx.calls(), calls.len()), (1, 1));
        assert!(calls.knows(7, at(3)) && !calls.knows(8, at(3)));
        assert_eq!([7, 7, 8].map(|key| calls.end(key, at(3))), [true, false, false]);
        assert!(calls.knows(7, at(4)) && !calls.knows(7, at(90)), "a BYE may come again");
        assert_eq!((pbx.calls(), calls.len()), (0, 0));
        assert_eq!(
            calls.put(7, &pbx, CALL_S, at(34)),
            Recorded::Known,
            "a 2xx that was overtaken by its BYE"
        );
        assert_eq!(pbx.calls(), 0);
        assert_eq!(calls.put(7, &pbx, CALL_S, at(90)), Recorded::New);
    }

    #[test]
    fn a_call_without_a_bye_ends_after_its_time() {
        let (calls, pbx) = (Calls::new(8), backend());
        calls.put(1, &pbx, CALL_S, at(0));
        calls.put(2, &pbx, RINGING_S, at(0));
        calls.sweep(at(u64::from(RINGING_S)));
        assert_eq!(pbx.calls(), 1);
        calls.put(1, &pbx, CALL_S, at(3600));
        calls.sweep(at(u64::from(CALL_S)));
        assert_eq!(pbx.calls(), 1, "renewed by a re-INVITE");
        calls.sweep(at(u64::from(CALL_S) + 3600));
        assert_eq!((pbx.calls(), calls.len()), (0, 0));
    }

    #[test]
    fn a_full_set_drops_its_oldest_and_prefers_those_that_ended() {
        let (calls, pbx) = (Calls::new(8), backend());
        for key in 0..8 {
            assert_eq!(calls.put(key, &pbx, CALL_S, at(key)), Recorded::New);
        }
        calls.end(5, at(10));
        assert_eq!(calls.put(8, &pbx, CALL_S, at(10)), Recorded::New);
        assert_eq!(calls.put(9, &pbx, CALL_S, at(10)), Recorded::Dropped);
        assert_eq!((pbx.calls(), calls.len()), (8, 8));
        assert_eq!(calls.put(1, &pbx, CALL_S, at(11)), Recorded::Known);
        assert_eq!(calls.put(0, &pbx, CALL_S, at(11)), Recorded::Dropped, "it was the oldest");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64, bool),
        End(u64),
        Sweep,
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = (0u64..40).prop_map(|n| n << 31 | n);
        let step = prop_oneof![
            5 => (key.clone(), any::<bool>()).prop_map(|(key, ringing)| Step::Put(key, ringing)),
            3 => key.prop_map(Step::End),
            1 => Just(Step::Sweep),
            1 => (0u64..300).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..300)
    }

    proptest! {
        /// The backend's number is that of the records, and of a model where no call had to make room.
        #[test]
        fn calls_agree_with_a_model(steps in steps()) {
            let (calls, pbx) = (Calls::new(1024), backend());
            let mut model: HashMap<u64, (bool, u64)> = HashMap::new();
            let mut clock = 1;
            for step in steps {
                match step {
                    Step::Wait(seconds) => clock += seconds,
                    Step::Sweep => (0..SWEEPS).for_each(|_| calls.sweep(at(clock))),
                    Step::Put(key, ringing) => {
                        let seconds = if ringing { RINGING_S } else { CALL_S };
                        let known = model.get(&key).copied().filter(|(_, ends)| *ends > clock);
                        let recorded = calls.put(key, &pbx, seconds, at(clock));
                        prop_assert_eq!(recorded == Recorded::Known, known.is_some());
                        if known.is_none_or(|(live, _)| live) {
                            model.insert(key, (true, clock + u64::from(seconds)));
                        }
                    }
                    Step::End(key) => {
                        calls.end(key, at(clock));
                        if let Some(call) = model.get_mut(&key).filter(|(live, ends)| *live && *ends > clock) {
                            *call = (false, clock + u64::from(ENDED_S));
                        }
                    }
                }
                prop_assert_eq!(calls.len(), pbx.calls());
                let live = model.values().filter(|(live, ends)| *live && *ends > clock).count();
                prop_assert!(calls.len() >= live);
            }
            (0..SWEEPS).for_each(|_| calls.sweep(at(clock)));
            prop_assert_eq!(calls.len(), model.values().filter(|(live, ends)| *live && *ends > clock).count());
        }
    }
}
