//! What a rule asks of a message, compiled: exact keys as numbers and bit masks, patterns by their place in the table.
//!
//! One function, `failing`, says which key of a rule does not hold. The linear scan of `explain` asks it for every rule,
//! the index only for its candidates.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{
    facts::{Facts, Place, Scratch, Source},
    pattern::Compiled,
    pool::Pools,
};
use crate::wire::Method;

/// The number of a name that the table does not mention.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// What one rule asks. Empty lists and masks ask nothing.
#[derive(Default)]
pub(super) struct Conditions {
    /// A bit for each known method.
    pub methods: u16,
    pub transports: u8,
    /// Numbers of unknown methods by their token; the mask has the bit of `Method::Other` then.
    pub others: SmallVec<[u32; 2]>,
    pub events: SmallVec<[u32; 4]>,
    /// Numbers of patterns, as written.
    pub patterns: SmallVec<[u32; 4]>,
    pub sources: Box<[Origin]>,
    pub listeners: Box<[u8]>,
    /// Key and pattern as the user wrote them, beside `patterns`.
    pub written: Box<[(Box<str>, Box<str>)]>,
}

/// One entry of `source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Net(IpNet),
    Backends,
    Clients,
    Pool(u16),
}

/// One pattern: a regex on a subject. Equal ones of different rules are one.
pub(super) struct Pattern {
    pub subject: u32,
    pub absent_holds: bool,
    pub compiled: Arc<Compiled>,
}

/// The first key that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    Method,
    Event,
    Source,
    Transport,
    Listener,
    /// Position in the rule's patterns.
    Pattern(usize),
}

#[derive(Default)]
pub(super) struct Matcher {
    pub conditions: Vec<Conditions>,
    pub subjects: Vec<Place>,
    pub patterns: Vec<Pattern>,
    pub events: ahash::HashMap<Box<[u8]>, u32>,
    pub others: ahash::HashMap<Box<[u8]>, u32>,
    /// How many lists of candidates the index has.
    pub lists: usize,
}

/// One message in front of the rules.
pub(super) struct Question<'q, 'm> {
    pub facts: &'q Facts<'m>,
    pub pools: &'q Pools,
    pub scratch: &'q mut Scratch,
    pub method: u16,
    pub other: u32,
    pub event: u32,
    /// IPv4-mapped addresses are IPv4.
    pub ip: IpAddr,
}

impl Matcher {
    pub fn ask<'q, 'm>(
        &self,
        facts: &'q Facts<'m>,
        pools: &'q Pools,
        scratch: &'q mut Scratch,
    ) -> Question<'q, 'm> {
        scratch.begin(self.subjects.len(), self.patterns.len(), self.lists);
        let number = |map: &ahash::HashMap<Box<[u8]>, u32>, name: &[u8]| map.get(name).copied();
        let other = if facts.method == Method::Other && !self.others.is_empty() {
            number(&self.others, facts.method_token)
        } else {
            None
        };
        let event = if self.events.is_empty() {
            None
        } else {
            facts.package.and_then(|package| number(&self.events, package))
        };
        Question {
            facts,
            pools,
            scratch,
            method: 1 << facts.method as u16,
            other: other.unwrap_or(UNKNOWN),
            event: event.unwrap_or(UNKNOWN),
            ip: facts.peer.ip().to_canonical(),
        }
    }

    /// The first key of the rule that does not hold; `None`: it matches.
    pub fn failing(&self, rule: usize, question: &mut Question<'_, '_>) -> Option<Failing> {
        let asks = &self.conditions[rule];
        if asks.methods != 0 && !question.is_method(asks) {
            return Some(Failing::Method);
        }
        if !asks.events.is_empty() && !asks.events.contains(&question.event) {
            return Some(Failing::Event);
        }
        if !asks.sources.is_empty() && !asks.sources.iter().any(|o| question.is_from(*o)) {
            return Some(Failing::Source);
        }
        if asks.transports != 0 && asks.transports & 1 << question.facts.transport as u8 == 0 {
            return Some(Failing::Transport);
        }
        if !asks.listeners.is_empty() && !asks.listeners.contains(&question.facts.listener) {
            return Some(Failing::Listener);
        }
        let fails = |&p: &u32| !self.holds(p as usize, question);
        asks.patterns.iter().position(fails).map(Failing::Pattern)
    }

    fn holds(&self, number: usize, question: &mut Question<'_, '_>) -> bool {
        let scratch = &mut *question.scratch;
        if let Some(verdict) = scratch.verdict(number) {
            return verdict;
        }
        let pattern = &self.patterns[number];
        let (at, facts) = (pattern.subject as usize, question.facts);
        let place = &self.subjects[at];
        let held = match scratch.values.find(at, place, facts) {
            0 => pattern.absent_holds,
            n => (0..n).any(|i| {
                let value = scratch.values.value(at, i, place, facts);
                pattern.compiled.is_match(value, &mut scratch.caches)
            }),
        };
        scratch.remember(number, held);
        held
    }
}

impl Question<'_, '_> {
    fn is_method(&self, asks: &Conditions) -> bool {
        asks.methods & self.method != 0
            && (self.facts.method != Method::Other || asks.others.contains(&self.other))
    }

    fn is_from(&self, origin: Origin) -> bool {
        match origin {
            Origin::Net(net) => net.contains(&self.ip),
            Origin::Backends => self.facts.source.is_backend(),
            Origin::Clients => !self.facts.source.is_backend(),
            // A backend's address counts only where the listener lets it be one (SPEC 1.1).
            Origin::Pool(pool) => {
                matches!(self.facts.source, Source::Backend(_))
                    && self.pools.is_member(pool, self.facts.transport, self.facts.peer)
            }
        }
    }
}
