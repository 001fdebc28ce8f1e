//! The fast way to the first matching rule (SPEC 5.5): which rules may match a message at all.
//!
//! Every rule is reached by exactly one of its keys, the one that it shares with the fewest others: an event package, a
//! method, a source prefix, a literal that one of its patterns needs (one aho-corasick search per inspected field), or,
//! where there is no literal, the pattern itself (one multi-pattern search per field). What a message reaches are lists
//! of rules in the file's order; they are merged, and each rule in turn is asked in full by `Matcher::failing`. A field
//! is searched only when a rule behind that search could still come first.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use aho_corasick::{
    Anchored,
    automaton::{Automaton, OverlappingState},
    nfa::contiguous,
};
use regex_automata::{Input, MatchKind, PatternSet, hybrid, nfa::thompson::NFA};

use super::matcher::{Matcher, Question};

/// Ends each list in `postings`.
pub(super) const END: u32 = u32::MAX;

/// A list of candidates by its number.
pub(super) type List = u32;
pub(super) const NO_LIST: List = u32::MAX;

#[derive(Default)]
pub(super) struct Index {
    /// Positions of rules, ascending, each list closed by `END`.
    pub postings: Vec<u32>,
    /// Where each list begins.
    pub lists: Vec<u32>,
    /// Rules without a key.
    pub always: Option<List>,
    pub methods: [Option<List>; crate::wire::Method::COUNT],
    /// By number of the event.
    pub events: Vec<List>,
    pub nets: Vec<Nets>,
    /// The earliest rule first.
    pub searches: Vec<Search>,
}

/// Source prefixes of one length and family.
pub(super) struct Nets {
    pub v4: bool,
    pub length: u8,
    pub lists: ahash::HashMap<u128, List>,
}

/// One search of one subject.
pub(super) struct Search {
    pub subject: u32,
    /// The earliest rule that is reached by it.
    pub earliest: u32,
    /// Methods of the rules that are reached by it.
    pub methods: u16,
    /// Rules whose pattern holds where the subject is absent.
    pub absent: Option<List>,
    /// By literal or pattern.
    pub lists: Vec<List>,
    pub engine: Engine,
}

pub(super) enum Engine {
    Literals(Box<contiguous::NFA>),
    Patterns(Arc<Set>),
}

/// Many patterns without a literal, searched at once. Shared by tables that have the same ones.
pub(super) struct Set {
    pub dfa: hybrid::dfa::DFA,
    pub id: u64,
    /// Numbers of the patterns in the table's order of first use, by text.
    pub texts: Vec<Box<str>>,
}

/// Lazily made states of one set may take so much of a worker's memory.
const SET_CACHE: usize = 2 * 1024 * 1024;

impl Set {
    pub fn new(nfa: NFA, texts: Vec<Box<str>>) -> Option<Set> {
        let config = hybrid::dfa::Config::new()
            .match_kind(MatchKind::All)
            .cache_capacity(SET_CACHE)
            .skip_cache_capacity_check(true);
        let dfa = hybrid::dfa::Builder::new().configure(config).build_from_nfa(nfa).ok()?;
        Some(Set { dfa, id: super::pattern::engine_id(), texts })
    }
}

pub(super) fn net_key(ip: IpAddr, length: u8) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u64::from(ip.to_bits()) >> (32 - u32::from(length.min(32)))),
        IpAddr::V6(ip) => ip.to_bits().checked_shr(128 - u32::from(length)).unwrap_or(0),
    }
}

impl Index {
    /// The first rule that matches.
    pub fn first(&self, matcher: &Matcher, question: &mut Question<'_, '_>) -> Option<usize> {
        self.open_exact(question);
        let mut searches = self.searches.iter();
        let mut next = searches.next();
        loop {
            let head = question.scratch.heads.peek().map_or(END, |head| (head.0 >> 32) as u32);
            match next {
                Some(search) if search.earliest < head => {
                    if search.methods & question.method != 0 {
                        self.open_search(search, matcher, question);
                    }
                    next = searches.next();
                }
                _ if head == END => return None,
                _ => {
                    self.advance(head, question);
                    if matcher.failing(head as usize, question).is_none() {
                        return Some(head as usize);
                    }
                }
            }
        }
    }

    fn open_exact(&self, question: &mut Question<'_, '_>) {
        let method = self.methods[question.facts.method as usize];
        let event = self.events.get(question.event as usize).copied().filter(|&l| l != NO_LIST);
        for list in [self.always, method, event].into_iter().flatten() {
            self.open(list, question);
        }
        let ip = question.ip;
        for nets in self.nets.iter().filter(|nets| nets.v4 == ip.is_ipv4()) {
            if let Some(&list) = nets.lists.get(&net_key(ip, nets.length)) {
                self.open(list, question);
            }
        }
    }

    /// Adds a list to the merge, once.
    fn open(&self, list: List, question: &mut Question<'_, '_>) {
        if question.scratch.open(list as usize) {
            let place = self.lists[list as usize];
            let head = self.postings[place as usize];
            question.scratch.heads.push(Reverse(u64::from(head) << 32 | u64::from(place)));
        }
    }

    /// Moves every list that stands at `position` to its next rule.
    fn advance(&self, position: u32, question: &mut Question<'_, '_>) {
        let heads = &mut question.scratch.heads;
        while let Some(mut head) = heads.peek_mut() {
            if (head.0 >> 32) as u32 != position {
                return;
            }
            let place = head.0 as u32 + 1;
            let next = self.postings[place as usize];
            if next == END {
                std::collections::binary_heap::PeekMut::pop(head);
            } else {
                *head = Reverse(u64::from(next) << 32 | u64::from(place));
            }
        }
    }

    fn open_search(&self, search: &Search, matcher: &Matcher, question: &mut Question<'_, '_>) {
        let (at, facts) = (search.subject as usize, question.facts);
        let place = &matcher.subjects[at];
        let values = question.scratch.values.find(at, place, facts);
        if values == 0 {
            search.absent.into_iter().for_each(|absent| self.open(absent, question));
        }
        for n in 0..values {
            match &search.engine {
                Engine::Literals(automaton) => {
                    let mut folded = std::mem::take(&mut question.scratch.folded);
                    folded.clear();
                    folded.extend_from_slice(question.scratch.values.value(at, n, place, facts));
                    folded.make_ascii_lowercase();
                    self.open_literals(automaton, &folded, search, question);
                    question.scratch.folded = folded;
                }
                Engine::Patterns(set) => self.open_patterns(set, n, search, matcher, question),
            }
        }
    }

    fn open_literals(
        &self,
        automaton: &contiguous::NFA,
        text: &[u8],
        search: &Search,
        question: &mut Question<'_, '_>,
    ) {
        let input = aho_corasick::Input::new(text).anchored(Anchored::No);
        let mut state = OverlappingState::start();
        loop {
            let searched = automaton.try_find_overlapping(&input, &mut state);
            debug_assert!(searched.is_ok(), "an unanchored search of a standard automaton cannot fail");
            let Some(found) = state.get_match() else { return };
            self.open(search.lists[found.pattern().as_usize()], question);
        }
    }

    fn open_patterns(
        &self,
        set: &Set,
        n: usize,
        search: &Search,
        matcher: &Matcher,
        question: &mut Question<'_, '_>,
    ) {
        let mut found = match question.scratch.found.take() {
            Some(found) if found.capacity() >= search.lists.len() => found,
            _ => PatternSet::new(search.lists.len()),
        };
        found.clear();
        let (at, facts) = (search.subject as usize, question.facts);
        let scratch = &mut *question.scratch;
        let value = scratch.values.value(at, n, &matcher.subjects[at], facts);
        let cache = scratch.caches.lazy(set.id, || set.dfa.create_cache());
        let searched = set.dfa.try_which_overlapping_matches(cache, &Input::new(value), &mut found);
        if searched.is_ok() {
            for pattern in found.iter() {
                self.open(search.lists[pattern.as_usize()], question);
            }
        } else {
            // The engine gives up on no input that its configuration allows; were it to, asking all of them is right.
            debug_assert!(false, "a lazy DFA without quit bytes gave up");
            search.lists.iter().for_each(|&list| self.open(list, question));
        }
        question.scratch.found = Some(found);
    }
}
