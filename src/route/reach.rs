//! Builds the index: chooses for every rule the key by which it is reached. Off the workers.
//!
//! A census says how many rules share each key; a rule takes the rarest of its own. An exact key costs nothing to look
//! up, so it is taken as soon as few share it. A pattern without a literal goes into its field's multi-pattern search
//! when everything else is crowded; those searches are bounded in size, since their cost grows with the patterns.

use std::sync::Arc;

use ahash::HashMap;
use aho_corasick::{MatchKind, nfa::contiguous};

use super::{
    index::{END, Engine, Index, List, NO_LIST, Nets, Search, Set, net_key},
    literal::Need,
    matcher::{Conditions, Matcher, Origin},
    pattern,
};
use crate::wire::Method;

/// An exact key that no more rules share is taken without looking further.
const FEW: u32 = 4;
/// A key that more rules share is worse than a multi-pattern search.
const CROWD: u32 = 32;
/// Patterns of one multi-pattern search, and of all of a table.
const SET: usize = 512;
const SETS: usize = 4096;
/// Size of the automaton of one such search, before its states.
const SET_NFA: usize = 16 * 1024 * 1024;

#[derive(Clone, Copy)]
enum Key<'m> {
    /// Event, else method, else none.
    Exact,
    Nets,
    Literal(u32, &'m Need),
    Pattern(u32),
}

/// How many rules share each key.
#[derive(Default)]
struct Census<'m> {
    rules: u32,
    events: Vec<u32>,
    methods: [u32; Method::COUNT],
    nets: HashMap<(bool, u8, u128), u32>,
    literals: HashMap<(u32, &'m [u8]), u32>,
    patterns: Vec<u32>,
}

impl<'m> Census<'m> {
    fn of(matcher: &'m Matcher) -> Census<'m> {
        let mut census = Census {
            events: vec![0; matcher.events.len()],
            patterns: vec![0; matcher.patterns.len()],
            ..Census::default()
        };
        for asks in &matcher.conditions {
            census.rules += 1;
            asks.events.iter().for_each(|&e| census.events[e as usize] += 1);
            methods(asks.methods).for_each(|m| census.methods[m] += 1);
            nets(asks).for_each(|net| *census.nets.entry(net).or_default() += 1);
            for &p in &asks.patterns {
                let pattern = &matcher.patterns[p as usize];
                census.patterns[p as usize] += 1;
                for literal in pattern.compiled.needs.iter().flatten() {
                    *census.literals.entry((pattern.subject, literal)).or_default() += 1;
                }
            }
        }
        census
    }

    /// The rarest key of a rule and how many share it.
    fn best(&self, asks: &Conditions, matcher: &'m Matcher) -> (u32, Key<'m>) {
        let exact = if !asks.events.is_empty() {
            asks.events.iter().map(|&e| self.events[e as usize]).sum()
        } else if asks.methods != 0 {
            methods(asks.methods).map(|m| self.methods[m]).sum()
        } else {
            self.rules
        };
        let mut best = (exact, Key::Exact);
        if exact <= FEW {
            return best;
        }
        if !asks.sources.is_empty() && asks.sources.iter().all(|o| matches!(o, Origin::Net(_))) {
            let shared: u32 = nets(asks).map(|net| self.nets[&net]).sum();
            if shared < best.0 {
                best = (shared, Key::Nets);
            }
        }
        // Of literals that equally many share the longest is the rarest on the wire.
        let mut longest = 0;
        for &p in &asks.patterns {
            let pattern = &matcher.patterns[p as usize];
            for need in &pattern.compiled.needs {
                let shared = need.iter().map(|l| self.literals[&(pattern.subject, &**l)]).sum();
                let length = need.iter().map(|l| l.len()).min().unwrap_or(0);
                if shared < best.0 || shared == best.0 && length > longest && longest > 0 {
                    best = (shared, Key::Literal(p, need));
                    longest = length;
                }
            }
        }
        best
    }
}

fn methods(mask: u16) -> impl Iterator<Item = usize> {
    (0..Method::COUNT).filter(move |m| mask & 1 << m != 0)
}

fn nets(asks: &Conditions) -> impl Iterator<Item = (bool, u8, u128)> {
    asks.sources.iter().filter_map(|origin| match origin {
        Origin::Net(net) => {
            Some((net.addr().is_ipv4(), net.prefix_len(), net_key(net.addr(), net.prefix_len())))
        }
        _ => None,
    })
}

/// Builds the index, and says in `matcher` how many lists it has.
pub(super) fn build(matcher: &mut Matcher, previous: Option<&Index>) -> Index {
    let mut draft = Draft { events: vec![NO_LIST; matcher.events.len()], ..Draft::default() };
    let census = Census::of(matcher);
    let mut keys: Vec<_> = matcher.conditions.iter().map(|asks| census.best(asks, matcher)).collect();
    let mut wanted: Vec<u32> = Vec::new();
    let mut chosen = vec![false; matcher.patterns.len()];
    for (asks, key) in matcher.conditions.iter().zip(&mut keys).filter(|(_, key)| key.0 > CROWD) {
        let rarest = asks.patterns.iter().copied().min_by_key(|&p| census.patterns[p as usize]);
        let Some(p) = rarest.filter(|&p| census.patterns[p as usize] < key.0) else { continue };
        if !chosen[p as usize] && wanted.len() < SETS {
            chosen[p as usize] = true;
            wanted.push(p);
        }
    }
    draft.sets(matcher, &wanted, previous);
    for (asks, key) in matcher.conditions.iter().zip(&mut keys).filter(|(_, key)| key.0 > CROWD) {
        let in_set = asks.patterns.iter().copied().filter(|p| draft.slots.contains_key(p));
        if let Some(p) = in_set.min_by_key(|&p| census.patterns[p as usize]) {
            *key = (census.patterns[p as usize], Key::Pattern(p));
        }
    }
    for (position, (_, key)) in keys.into_iter().enumerate() {
        draft.place(position as u32, key, matcher);
    }
    let index = draft.finish();
    matcher.lists = index.lists.len();
    index
}

#[derive(Default)]
struct Draft {
    lists: Vec<Vec<u32>>,
    always: Option<List>,
    methods: [Option<List>; Method::COUNT],
    events: Vec<List>,
    nets: Vec<Nets>,
    searches: Vec<(Search, Vec<Box<[u8]>>)>,
    /// The literal search of each subject, and the list of each literal.
    literal_search: HashMap<u32, usize>,
    literal_list: HashMap<(u32, Box<[u8]>), List>,
    /// The search and the list of each pattern that is in a set.
    slots: HashMap<u32, (usize, List)>,
}

impl Draft {
    fn list(&mut self) -> List {
        self.lists.push(Vec::new());
        self.lists.len() as List - 1
    }

    fn add(&mut self, list: List, position: u32) {
        let list = &mut self.lists[list as usize];
        if list.last() != Some(&position) {
            list.push(position);
        }
    }

    fn sets(&mut self, matcher: &Matcher, wanted: &[u32], previous: Option<&Index>) {
        for subject in 0..matcher.subjects.len() as u32 {
            let of_subject: Vec<u32> =
                wanted.iter().copied().filter(|&p| matcher.patterns[p as usize].subject == subject).collect();
            for patterns in of_subject.chunks(SET) {
                self.set(subject, matcher, patterns, previous);
            }
        }
    }

    fn set(&mut self, subject: u32, matcher: &Matcher, patterns: &[u32], previous: Option<&Index>) {
        let text = |&p: &u32| &matcher.patterns[p as usize].compiled.text;
        let parsed = patterns.iter().map(|p| (*p, pattern::parse(text(p))));
        // A lazy DFA has no Unicode word boundaries.
        let (patterns, hirs): (Vec<_>, Vec<_>) = parsed
            .filter_map(|(p, hir)| Some((p, hir.ok()?)))
            .filter(|(_, hir)| !hir.properties().look_set().contains_word_unicode())
            .unzip();
        let texts: Vec<_> = patterns.iter().map(text).cloned().collect();
        let known = previous.into_iter().flat_map(|p| &p.searches).find_map(|s| match &s.engine {
            Engine::Patterns(set) if set.texts == texts => Some(set.clone()),
            _ => None,
        });
        let built =
            || Set::new(pattern::nfa(&hirs.iter().collect::<Vec<_>>(), SET_NFA).ok()?, texts).map(Arc::new);
        let Some(set) = known.or_else(built) else { return };
        let lists: Vec<List> = patterns.iter().map(|_| self.list()).collect();
        let place = self.searches.len();
        self.slots.extend(patterns.iter().zip(&lists).map(|(&p, &list)| (p, (place, list))));
        self.searches.push((search(subject, Engine::Patterns(set), lists), Vec::new()));
    }

    fn place(&mut self, position: u32, key: Key<'_>, matcher: &Matcher) {
        let asks = &matcher.conditions[position as usize];
        match key {
            Key::Exact => self.exact(position, asks),
            Key::Nets => {
                for (v4, length, key) in nets(asks) {
                    let list = self.net(v4, length, key);
                    self.add(list, position);
                }
            }
            Key::Literal(p, need) => {
                let pattern = &matcher.patterns[p as usize];
                let subject = pattern.subject;
                let place = self.literals(subject);
                for literal in need {
                    let list = self.literal(subject, place, literal);
                    self.add(list, position);
                }
                self.reached(place, position, asks, pattern.absent_holds);
            }
            Key::Pattern(p) => {
                let (place, list) = self.slots[&p];
                self.add(list, position);
                self.reached(place, position, asks, matcher.patterns[p as usize].absent_holds);
            }
        }
    }

    fn exact(&mut self, position: u32, asks: &Conditions) {
        if !asks.events.is_empty() {
            for &event in &asks.events {
                if self.events[event as usize] == NO_LIST {
                    self.events[event as usize] = self.list();
                }
                self.add(self.events[event as usize], position);
            }
        } else if asks.methods != 0 {
            for method in methods(asks.methods) {
                let list = self.methods[method].unwrap_or_else(|| self.list());
                self.methods[method] = Some(list);
                self.add(list, position);
            }
        } else {
            let list = self.always.unwrap_or_else(|| self.list());
            self.always = Some(list);
            self.add(list, position);
        }
    }

    fn net(&mut self, v4: bool, length: u8, key: u128) -> List {
        let fresh = self.list();
        let place = self.nets.iter().position(|n| n.v4 == v4 && n.length == length).unwrap_or_else(|| {
            self.nets.push(Nets { v4, length, lists: HashMap::default() });
            self.nets.len() - 1
        });
        let list = *self.nets[place].lists.entry(key).or_insert(fresh);
        if list != fresh {
            self.lists.pop();
        }
        list
    }

    /// The literal search of a subject.
    fn literals(&mut self, subject: u32) -> usize {
        if let Some(&place) = self.literal_search.get(&subject) {
            return place;
        }
        let place = self.searches.len();
        let nothing: [&[u8]; 0] = [];
        let empty = contiguous::NFA::new(nothing).expect("an automaton of nothing");
        self.searches.push((search(subject, Engine::Literals(Box::new(empty)), Vec::new()), Vec::new()));
        self.literal_search.insert(subject, place);
        place
    }

    fn literal(&mut self, subject: u32, place: usize, literal: &[u8]) -> List {
        if let Some(&list) = self.literal_list.get(&(subject, Box::from(literal))) {
            return list;
        }
        let list = self.list();
        self.literal_list.insert((subject, literal.into()), list);
        self.searches[place].0.lists.push(list);
        self.searches[place].1.push(literal.into());
        list
    }

    /// Notes that a search reaches a rule.
    fn reached(&mut self, place: usize, position: u32, asks: &Conditions, absent_holds: bool) {
        if absent_holds {
            let list = self.searches[place].0.absent.unwrap_or_else(|| self.list());
            self.searches[place].0.absent = Some(list);
            self.add(list, position);
        }
        let search = &mut self.searches[place].0;
        search.earliest = search.earliest.min(position);
        search.methods |= if asks.methods == 0 { u16::MAX } else { asks.methods };
    }

    fn finish(self) -> Index {
        let mut searches: Vec<Search> = self
            .searches
            .into_iter()
            .map(|(mut search, literals)| {
                if let Engine::Literals(automaton) = &mut search.engine {
                    **automaton = contiguous::NFA::builder()
                        .match_kind(MatchKind::Standard)
                        .prefilter(false)
                        .build(&literals)
                        .expect("fewer literals than an automaton can number");
                }
                search
            })
            .filter(|search| search.earliest != END)
            .collect();
        searches.sort_by_key(|search| search.earliest);
        let mut postings = Vec::with_capacity(self.lists.iter().map(|l| l.len() + 1).sum());
        let mut lists = Vec::with_capacity(self.lists.len());
        for list in &self.lists {
            lists.push(postings.len() as u32);
            postings.extend_from_slice(list);
            postings.push(END);
        }
        Index {
            postings,
            lists,
            always: self.always,
            methods: self.methods,
            events: self.events,
            nets: self.nets,
            searches,
        }
    }
}

fn search(subject: u32, engine: Engine, lists: Vec<List>) -> Search {
    Search { subject, earliest: END, methods: 0, absent: None, lists, engine }
}
