//! What a rule may look at: borrowed facts of one message and where it came from, and the fields that patterns inspect.
//!
//! Fields are found and JSON members decoded once for each message, and only when a rule asks: `Scratch` remembers them
//! until the next message. Each worker owns one `Scratch`; nothing in it is worth keeping, and nothing in it allocates
//! once it has seen the table's patterns and the traffic's sizes.

use std::{cmp::Reverse, collections::BinaryHeap, net::SocketAddr};

use regex_automata::PatternSet;

use super::{caches::Caches, pool::BackendRef};
use crate::{
    config::table::Subject,
    wire::{Essentials, Field, HeaderId, Method, Transport, Uri, View, body, name::same_name},
};

/// Who sent it (SPEC 1.1), decided before any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Client,
    /// `[trust] prefixes`, or a backend that left the table within a day.
    Trusted,
    /// A backend of this table (its first pool; `Pools::is_member` answers for others).
    Backend(BackendRef),
}

impl Source {
    /// `source = "backends"` of a table.
    pub fn is_backend(self) -> bool {
        !matches!(self, Source::Client)
    }
}

/// One request, as rules see it. `ruri` and `view` are as received (after strict-route repair: the repaired R-URI).
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub view: &'a View<'a>,
    pub essentials: &'a Essentials<'a>,
    /// CANCEL and ACK are decided as INVITE (SPEC 7.1): the caller says so here.
    pub method: Method,
    /// The method token's bytes (for unknown methods).
    pub method_token: &'a [u8],
    pub ruri: &'a [u8],
    pub uri: &'a Uri<'a>,
    /// The event package with its templates, without parameters (RFC 6665 8.4: compared exactly); of any method.
    pub package: Option<&'a [u8]>,
    pub source: Source,
    pub peer: SocketAddr,
    /// Index of the listener in the settings' order.
    pub listener: u8,
    pub transport: Transport,
    /// Names of header fields that no rule may see: what is stripped from a client's request before all else (SPEC 1.2).
    /// Empty for backends. Lower case, compact forms resolved.
    pub hidden: &'a [Box<[u8]>],
}

impl Facts<'_> {
    /// May rules and balances see this field?
    pub(super) fn shows(&self, field: &Field) -> bool {
        self.hidden.is_empty() || {
            let name = self.view.of(field.name());
            !self.hidden.iter().any(|hidden| same_name(name, hidden))
        }
    }
}

/// `body.raw` sees so much.
const RAW: u32 = 8 * 1024;

/// Where the values of a `Subject` stand, resolved when the table is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Ruri,
    /// The first field of that name.
    First(HeaderId),
    /// Every field of that name.
    Every(HeaderId),
    /// Every field of a name that the router does not know; lower case.
    Named(Box<[u8]>),
    /// A JSON member.
    Member(Box<str>),
    Raw,
}

impl Place {
    pub fn of(subject: &Subject) -> Place {
        match subject {
            Subject::Ruri => Place::Ruri,
            Subject::From => Place::First(HeaderId::From),
            Subject::To => Place::First(HeaderId::To),
            Subject::Contact => Place::First(HeaderId::Contact),
            Subject::UserAgent => Place::Every(HeaderId::UserAgent),
            Subject::ContentType => Place::Every(HeaderId::ContentType),
            Subject::Header(name) => match HeaderId::of(name.as_bytes()) {
                HeaderId::Other => Place::Named(name.to_ascii_lowercase().into_bytes().into()),
                known => Place::Every(known),
            },
            Subject::Body(name) => Place::Member(name.clone()),
            Subject::BodyRaw => Place::Raw,
        }
    }
}

/// What matching needs to write to: kept by each worker, never shared.
#[derive(Default)]
pub struct Scratch {
    /// Which message this is: what bears another number is stale, whatever table it belonged to.
    generation: u32,
    pub(super) values: Values,
    /// For each pattern: generation and whether it held.
    verdicts: Vec<u32>,
    /// For each list of candidates: the generation that opened it.
    opened: Vec<u32>,
    /// Heads of the open lists: position of the rule, then place in the postings.
    pub(super) heads: BinaryHeap<Reverse<u64>>,
    pub(super) folded: Vec<u8>,
    pub(super) found: Option<PatternSet>,
    pub(super) caches: Caches,
}

impl Scratch {
    /// A new message, by a table of so many subjects, patterns and lists.
    pub(super) fn begin(&mut self, subjects: usize, patterns: usize, lists: usize) {
        if self.generation >= u32::MAX >> 1 {
            self.values.slots.clear();
            self.verdicts.clear();
            self.opened.clear();
            self.generation = 0;
        }
        self.generation += 1;
        grow(&mut self.values.slots, subjects);
        grow(&mut self.verdicts, patterns);
        grow(&mut self.opened, lists);
        self.values.generation = self.generation;
        self.values.spans.clear();
        self.values.text.clear();
        self.heads.clear();
    }

    pub(super) fn verdict(&self, pattern: usize) -> Option<bool> {
        let verdict = self.verdicts[pattern];
        (verdict >> 1 == self.generation).then_some(verdict & 1 == 1)
    }

    pub(super) fn remember(&mut self, pattern: usize, held: bool) {
        self.verdicts[pattern] = self.generation << 1 | u32::from(held);
    }

    /// True the first time in this message.
    pub(super) fn open(&mut self, list: usize) -> bool {
        std::mem::replace(&mut self.opened[list], self.generation) != self.generation
    }
}

fn grow<T: Clone + Default>(list: &mut Vec<T>, len: usize) {
    if list.len() < len {
        list.resize(len, T::default());
    }
}

/// The values of the inspected fields of one message.
#[derive(Default)]
pub(super) struct Values {
    generation: u32,
    slots: Vec<Slot>,
    spans: Vec<(u32, u32)>,
    /// Decoded JSON members.
    text: Vec<u8>,
    member: Vec<u8>,
}

/// The values of one subject: a range of `spans`.
#[derive(Clone, Default)]
struct Slot {
    generation: u32,
    from: u32,
    to: u32,
}

impl Values {
    /// Finds the values of the subject `at`, which stands at `place`; how many there are.
    pub fn find(&mut self, at: usize, place: &Place, facts: &Facts<'_>) -> usize {
        if self.slots[at].generation != self.generation {
            let from = self.spans.len() as u32;
            self.gather(place, facts);
            let to = self.spans.len() as u32;
            self.slots[at] = Slot { generation: self.generation, from, to };
        }
        (self.slots[at].to - self.slots[at].from) as usize
    }

    /// The value `n` of a subject that was found.
    pub fn value<'v>(&'v self, at: usize, n: usize, place: &Place, facts: &Facts<'v>) -> &'v [u8] {
        let (start, end) = self.spans[self.slots[at].from as usize + n];
        let bytes = match place {
            Place::Ruri => facts.ruri,
            Place::Member(_) => &self.text,
            _ => facts.view.bytes,
        };
        &bytes[start as usize..end as usize]
    }

    fn push<'f>(&mut self, facts: &Facts<'_>, fields: impl Iterator<Item = &'f Field>) {
        let shown = fields.filter(|field| facts.shows(field));
        self.spans.extend(shown.map(|field| {
            let value = facts.view.value_span(field);
            (value.start, value.end)
        }));
    }

    fn gather(&mut self, place: &Place, facts: &Facts<'_>) {
        let view = facts.view;
        match place {
            Place::Ruri => self.spans.push((0, facts.ruri.len() as u32)),
            Place::First(id) => self.push(facts, view.first(*id).into_iter()),
            Place::Every(id) => self.push(facts, view.all(*id).map(|(_, field)| field)),
            Place::Named(name) => self.push(facts, view.named(name).map(|(_, field)| field)),
            Place::Member(name) => {
                if let Some(value) = body::json_member(view.body(), name, &mut self.member) {
                    let start = self.text.len() as u32;
                    self.text.extend_from_slice(value);
                    self.spans.push((start, self.text.len() as u32));
                }
            }
            Place::Raw => {
                let body = view.body_span();
                if body.start < body.end {
                    self.spans.push((body.start, body.end.min(body.start + RAW)));
                }
            }
        }
    }
}
