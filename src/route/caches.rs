//! Caches of the engines that need one, kept by each worker: bounded, and found by the engine's id, so that two tables
//! that are swapped to and fro find theirs again. An engine that nobody asks for any more gives way to a newer one.

use regex_automata::{hybrid, meta};

/// Room for this many engines. Tables have a few: one per inspected field, and patterns with a very large DFA.
const ROOM: usize = 64;

#[derive(Default)]
pub struct Caches {
    meta: Kept<meta::Cache>,
    lazy: Kept<hybrid::dfa::Cache>,
}

struct Kept<C> {
    /// Engine, when it was last asked for, its cache.
    entries: Vec<(u64, u64, C)>,
    asked: u64,
}

impl<C> Default for Kept<C> {
    fn default() -> Self {
        Kept { entries: Vec::new(), asked: 0 }
    }
}

impl Caches {
    pub fn meta(&mut self, id: u64, make: impl FnOnce() -> meta::Cache) -> &mut meta::Cache {
        self.meta.of(id, make)
    }

    pub fn lazy(&mut self, id: u64, make: impl FnOnce() -> hybrid::dfa::Cache) -> &mut hybrid::dfa::Cache {
        self.lazy.of(id, make)
    }
}

impl<C> Kept<C> {
    fn of(&mut self, id: u64, make: impl FnOnce() -> C) -> &mut C {
        self.asked += 1;
        let place = match self.entries.iter().position(|e| e.0 == id) {
            Some(place) => place,
            None => self.admit(id, make()),
        };
        let entry = &mut self.entries[place];
        entry.1 = self.asked;
        &mut entry.2
    }

    fn admit(&mut self, id: u64, cache: C) -> usize {
        if self.entries.len() < ROOM {
            self.entries.push((id, 0, cache));
            return self.entries.len() - 1;
        }
        let oldest = (0..ROOM).min_by_key(|&i| self.entries[i].1).unwrap_or(0);
        self.entries[oldest] = (id, 0, cache);
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_keep_their_cache_and_the_longest_unused_gives_way() {
        let mut kept = Kept::<u64>::default();
        for id in 0..ROOM as u64 {
            *kept.of(id, || 0) = id + 1000;
        }
        assert_eq!(*kept.of(0, || 7), 1000);
        assert_eq!(*kept.of(999, || 5), 5);
        assert_eq!(kept.entries.len(), ROOM);
        assert_eq!(*kept.of(0, || 7), 1000, "asked for a moment ago");
        assert_eq!(*kept.of(1, || 7), 7, "the longest unused");
    }
}
