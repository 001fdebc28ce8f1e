//! Bounded names of series: rules, pools, backends, packages.
//!
//! Compiling a table asks for a number by name; the path then counts by number and never sees a string. A name keeps its
//! number while it is in a table. Ten minutes after it left, its series ends (`Exporter::sweep`), and only when the
//! exporter has noted what the counters stood at may the number serve another name, which then starts at zero. One
//! table is compiled at a time; `commit` and `abandon` say what became of it.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

/// The series that stands for everything beyond the bound.
pub const OTHER: u32 = 0;

/// How long a series lives on after its name left the table, in seconds.
pub const LINGER: u64 = 600;

/// What a series is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SeriesKind {
    Rule,
    Pool,
    Backend,
    Package,
}

impl SeriesKind {
    pub const ALL: [SeriesKind; 4] =
        [SeriesKind::Rule, SeriesKind::Pool, SeriesKind::Backend, SeriesKind::Package];
}

/// The names, by kind. Beside the path: its lock is taken by compiling and by scrapes only.
pub struct SeriesRegistry {
    bound: usize,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    kinds: [Kind; 4],
    /// Grows by one with each compilation that ended: what was touched in the present one has this number.
    epoch: u64,
}

#[derive(Default)]
struct Kind {
    by_name: ahash::HashMap<Arc<str>, u32>,
    /// By number, from 1 (the first is at 0 here).
    entries: Vec<Option<Entry>>,
    free: VecDeque<u32>,
    /// Names for which there was no room: of the table being compiled, and of the one in force.
    refused: ahash::HashSet<Box<str>>,
    beyond: usize,
}

struct Entry {
    name: Arc<str>,
    tag: Option<Arc<str>>,
    /// The tag that the table being compiled gives it.
    next_tag: Option<Arc<str>>,
    touched: u64,
    live: bool,
    left: u64,
}

impl SeriesRegistry {
    /// Room for `bound` numbers of each kind, that of `OTHER` included.
    pub fn new(bound: usize) -> SeriesRegistry {
        SeriesRegistry { bound: bound.clamp(1, u32::MAX as usize), names: Mutex::default() }
    }

    pub fn bound(&self) -> usize {
        self.bound
    }

    /// The number of `name`, given at first sight; `OTHER` when full.
    pub fn series(&self, kind: SeriesKind, name: &str, tag: Option<&str>) -> u32 {
        let mut names = self.names.lock();
        let epoch = names.epoch;
        let kind = &mut names.kinds[kind as usize];
        let next_tag = tag.map(Arc::from);
        if let Some(&number) = kind.by_name.get(name) {
            if let Some(entry) = kind.entry(number) {
                entry.touched = epoch;
                entry.next_tag = next_tag;
            }
            return number;
        }
        let number = match kind.free.pop_front() {
            Some(number) => number,
            None if kind.entries.len() + 1 < self.bound => {
                kind.entries.push(None);
                kind.entries.len() as u32
            }
            None => {
                kind.refused.insert(name.into());
                return OTHER;
            }
        };
        let name: Arc<str> = Arc::from(name);
        kind.by_name.insert(name.clone(), number);
        kind.entries[number as usize - 1] =
            Some(Entry { name, tag: next_tag.clone(), next_tag, touched: epoch, live: false, left: 0 });
        number
    }

    /// The table for which `series` was asked since the last call of this or of `abandon` is in force: what it does not
    /// name has left.
    pub fn commit(&self, unix_s: u64) {
        let mut names = self.names.lock();
        let epoch = names.epoch;
        for entry in names.entries_mut() {
            let live = entry.touched == epoch;
            if entry.live && !live {
                entry.left = unix_s;
            }
            if live {
                entry.tag = entry.next_tag.clone();
            }
            entry.live = live;
        }
        for kind in &mut names.kinds {
            kind.beyond = std::mem::take(&mut kind.refused).len();
        }
        names.epoch += 1;
    }

    /// The table was refused: what only it names has left.
    pub fn abandon(&self, unix_s: u64) {
        let mut names = self.names.lock();
        let epoch = names.epoch;
        for entry in names.entries_mut() {
            if !entry.live && entry.touched == epoch {
                entry.left = unix_s;
            }
        }
        names.kinds.iter_mut().for_each(|kind| kind.refused.clear());
        names.epoch += 1;
    }

    /// Names that have a series, and names of the table in force that have none and count as other.
    pub fn used(&self) -> (usize, usize) {
        let names = self.names.lock();
        let kinds = names.kinds.iter();
        kinds.fold((0, 0), |(used, beyond), kind| (used + kind.by_name.len(), beyond + kind.beyond))
    }

    /// Ends the series whose names left ten minutes ago. Their numbers are not given out again before `release`.
    pub(super) fn expire(&self, unix_s: u64) -> Vec<(SeriesKind, u32)> {
        let mut names = self.names.lock();
        let epoch = names.epoch;
        let mut ended = Vec::new();
        for kind in SeriesKind::ALL {
            let Kind { by_name, entries, .. } = &mut names.kinds[kind as usize];
            for (slot, number) in entries.iter_mut().zip(1..) {
                let over = slot.as_ref().is_some_and(|entry| {
                    !entry.live && entry.touched != epoch && unix_s >= entry.left.saturating_add(LINGER)
                });
                if let (true, Some(entry)) = (over, slot.as_ref()) {
                    by_name.remove(&entry.name);
                    *slot = None;
                    ended.push((kind, number));
                }
            }
        }
        ended
    }

    /// The counters of this number are noted: it may serve another name.
    pub(super) fn release(&self, kind: SeriesKind, number: u32) {
        self.names.lock().kinds[kind as usize].free.push_back(number);
    }

    /// All series of a kind, with `other`: number, name, tag.
    pub fn list(&self, kind: SeriesKind) -> Vec<(u32, Arc<str>, Option<Arc<str>>)> {
        let names = self.names.lock();
        let named = names.kinds[kind as usize].entries.iter().zip(1..).filter_map(|(slot, number)| {
            slot.as_ref().map(|entry| (number, entry.name.clone(), entry.tag.clone()))
        });
        std::iter::once((OTHER, Arc::from("other"), None)).chain(named).collect()
    }
}

impl Names {
    fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.kinds.iter_mut().flat_map(|kind| kind.entries.iter_mut().flatten())
    }
}

impl Kind {
    fn entry(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(number as usize - 1)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(registry: &SeriesRegistry, kind: SeriesKind) -> Vec<String> {
        registry.list(kind).into_iter().map(|(_, name, _)| name.to_string()).collect()
    }

    #[test]
    fn a_name_keeps_its_number_and_kinds_are_apart() {
        let registry = SeriesRegistry::new(8);
        let rule = registry.series(SeriesKind::Rule, "lamps", None);
        let backend = registry.series(SeriesKind::Backend, "pbx1", None);
        registry.commit(0);
        assert_ne!(rule, OTHER);
        assert_eq!(registry.series(SeriesKind::Rule, "lamps", Some("blf")), rule);
        assert_eq!(registry.series(SeriesKind::Backend, "pbx1", None), backend);
        assert_ne!(registry.series(SeriesKind::Rule, "calls", None), rule);
        assert_eq!(registry.list(SeriesKind::Rule)[1].2, None, "a tag counts from the commit");
        registry.commit(1);
        assert_eq!(registry.list(SeriesKind::Rule)[1].2.as_deref(), Some("blf"));
    }

    #[test]
    fn beyond_the_bound_all_is_other() {
        let registry = SeriesRegistry::new(3);
        assert_eq!(registry.series(SeriesKind::Rule, "a", None), 1);
        assert_eq!(registry.series(SeriesKind::Rule, "b", None), 2);
        assert_eq!(registry.series(SeriesKind::Rule, "c", None), OTHER);
        assert_eq!(registry.series(SeriesKind::Rule, "b", None), 2);
        assert_eq!(names(&registry, SeriesKind::Rule), ["other", "a", "b"]);
        assert_eq!(registry.series(SeriesKind::Rule, "c", None), OTHER);
        registry.commit(0);
        assert_eq!(registry.used(), (2, 1), "c was asked for twice");
        registry.series(SeriesKind::Rule, "d", None);
        registry.abandon(0);
        assert_eq!(registry.used(), (2, 1), "a table that was refused says nothing");
        registry.series(SeriesKind::Rule, "a", None);
        registry.commit(0);
        assert_eq!(registry.used(), (2, 0));
    }

    #[test]
    fn a_series_ends_ten_minutes_after_its_name_left_and_not_before() {
        let registry = SeriesRegistry::new(3);
        registry.series(SeriesKind::Rule, "old", None);
        registry.commit(0);
        let new = registry.series(SeriesKind::Rule, "new", None);
        registry.commit(1000);
        assert_eq!(registry.expire(1000 + LINGER - 1), []);
        assert_eq!(registry.expire(1000 + LINGER), [(SeriesKind::Rule, 1)]);
        assert_eq!(names(&registry, SeriesKind::Rule), ["other", "new"]);
        assert_eq!(registry.series(SeriesKind::Rule, "third", None), OTHER, "not before its release");
        registry.release(SeriesKind::Rule, 1);
        assert_eq!(registry.series(SeriesKind::Rule, "third", None), 1);
        assert_eq!(registry.series(SeriesKind::Rule, "new", None), new);
    }

    #[test]
    fn a_name_that_comes_back_in_time_goes_on() {
        let registry = SeriesRegistry::new(4);
        let number = registry.series(SeriesKind::Pool, "presence", None);
        registry.commit(0);
        registry.commit(10);
        assert_eq!(registry.series(SeriesKind::Pool, "presence", None), number);
        assert_eq!(registry.expire(5000), [], "the table that names it is being compiled");
        registry.commit(5000);
        assert_eq!(registry.expire(50_000), []);
    }

    #[test]
    fn a_refused_table_leaves_no_series_and_ends_none() {
        let registry = SeriesRegistry::new(4);
        registry.series(SeriesKind::Rule, "kept", None);
        registry.commit(0);
        registry.series(SeriesKind::Rule, "refused", None);
        registry.abandon(100);
        assert_eq!(registry.expire(100 + LINGER), [(SeriesKind::Rule, 2)]);
        assert_eq!(names(&registry, SeriesKind::Rule), ["other", "kept"]);
    }
}
