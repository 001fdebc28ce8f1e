//! A bounded map that knows the age of its entries: a full one drops its oldest (SPEC 7).
//!
//! The store behind `moved`, `unreachable` and the notes of `flows`, one for each shard, under the shard's lock. It knows
//! no time: what has expired is for its owner to say. Writing an entry again makes it the newest.

use std::{collections::BTreeMap, hash::Hash};

use ahash::HashMap;

pub(super) struct Aged<K, V> {
    entries: HashMap<K, (u64, V)>,
    /// Ages, oldest first; a number is never given twice.
    order: BTreeMap<u64, K>,
    next: u64,
    capacity: usize,
}

impl<K: Copy + Eq + Hash, V> Aged<K, V> {
    /// Grows as it fills, up to `capacity` (at least one).
    pub(super) fn new(capacity: usize) -> Self {
        Aged { entries: HashMap::default(), order: BTreeMap::new(), next: 0, capacity: capacity.max(1) }
    }

    /// Writes an entry as the newest. Gives back what had to go: the entry of that key, or the oldest.
    pub(super) fn insert(&mut self, key: K, value: V) -> Replaced<V> {
        let age = self.next;
        self.next += 1;
        let replaced = match self.entries.insert(key, (age, value)) {
            Some((old, value)) => {
                self.order.remove(&old);
                Replaced::Same(value)
            }
            None if self.entries.len() > self.capacity => match self.pop_oldest() {
                Some((_, value)) => Replaced::Oldest(value),
                None => Replaced::None,
            },
            None => Replaced::None,
        };
        self.order.insert(age, key);
        replaced
    }

    /// A new entry would push the oldest out.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (age, value) = self.entries.remove(key)?;
        self.order.remove(&age);
        Some(value)
    }

    pub(super) fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.order.pop_first()?;
        self.entries.remove(&key).map(|(_, value)| (key, value))
    }

    /// Drops what `keep` refuses; gives how many went.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) -> usize {
        let before = self.entries.len();
        let order = &mut self.order;
        self.entries.retain(|_, (age, value)| {
            let kept = keep(value);
            if !kept {
                order.remove(age);
            }
            kept
        });
        before - self.entries.len()
    }

    pub(super) fn find(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub(super) fn oldest(&self) -> Option<&V> {
        self.order.first_key_value().and_then(|(_, key)| self.find(key))
    }
}

/// What an insertion displaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Replaced<V> {
    None,
    /// The former value of the same key.
    Same(V),
    /// The oldest entry, of another key.
    Oldest(V),
}

/// How many shards a store of `capacity` has, and the capacity of each: small stores are not split, so that their bound
/// is exact and their oldest is the oldest of all.
pub(super) fn shards(capacity: usize) -> (usize, usize) {
    const MOST: usize = 64;
    const ROOM: usize = 256;
    let count = (capacity / ROOM).clamp(1, MOST);
    let count = 1 << count.ilog2();
    (count, (capacity / count).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_and_a_renewed_one_is_young() {
        let mut aged = Aged::new(2);
        assert_eq!(aged.insert(1, 'a'), Replaced::None);
        assert_eq!(aged.insert(2, 'b'), Replaced::None);
        assert_eq!(aged.insert(1, 'c'), Replaced::Same('a'));
        assert_eq!(aged.insert(3, 'd'), Replaced::Oldest('b'));
        assert_eq!((aged.find(&1), aged.find(&2), aged.find(&3)), (Some(&'c'), None, Some(&'d')));
        assert!(aged.is_full());
        assert_eq!(aged.oldest(), Some(&'c'));
        assert_eq!(aged.retain(|v| *v != 'c'), 1);
        assert_eq!(aged.oldest(), Some(&'d'));
        assert_eq!(aged.remove(&3), Some('d'));
        assert_eq!(aged.pop_oldest(), None);
        assert!(aged.entries.is_empty() && aged.order.is_empty());
    }

    #[test]
    fn shards_never_hold_more_than_the_whole() {
        for capacity in [1, 2, 255, 256, 511, 512, 1000, 100_000, 1_000_003] {
            let (count, each) = shards(capacity);
            assert!(count.is_power_of_two() && count * each <= capacity, "{capacity}: {count} of {each}");
        }
    }
}
