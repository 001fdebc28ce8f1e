//! Compiled rules and the decision over them (SPEC 5.5). `decide` is the one entry of the path, of `explain` and of shadow
//! tables: with a recorder that is on, every rule is tried in turn and its first failing key is told; without, the index
//! finds the same answer. How a rule matches stands in `matcher`, how it is found in `index`.

use std::sync::Arc;

use super::{
    facts::{Facts, Scratch},
    index::Index,
    matcher::{Failing, Matcher},
    pattern::Compiled,
    pool::Pools,
    record::{MatchKey, Recorder},
};
use crate::{config::table::Template, live::Rate, wire::name::same_name};

/// Tables of so few rules are asked in order: that is done before the index has begun.
const FEW: usize = 8;

/// What a rule does (SPEC 5.2).
#[derive(Clone, Debug)]
pub enum Action {
    /// One backend of the pool with this index.
    Route(u16),
    Flow,
    RequestUri,
    /// `headers`: whole lines with CRLF, ready to be written.
    Reply {
        code: u16,
        reason: Box<str>,
        headers: Box<[u8]>,
    },
    RedirectUri(Box<str>),
    RedirectPool(u16),
    Drop,
}

impl Action {
    /// A 489 says which packages are served (RFC 6665 8.3.2), where the table does not say it itself.
    pub(super) fn say_allowed(&mut self, allow_events: &str) {
        let Action::Reply { code: 489, headers, .. } = self else { return };
        let named =
            |line: &[u8]| line.split(|&b| b == b':').next().is_some_and(|n| same_name(n, b"allow-events"));
        if allow_events.is_empty() || headers.split(|&b| b == b'\n').any(named) {
            return;
        }
        *headers = [headers, format!("Allow-Events: {allow_events}\r\n").as_bytes()].concat().into();
    }
}

/// `set.HEADER`: replaces all fields of that name.
#[derive(Clone, Debug)]
pub struct SetHeader {
    /// As written, for the wire.
    pub name: Box<str>,
    /// Lower case; compact forms resolved (`s` is `subject`).
    pub canonical: Box<[u8]>,
    pub value: Template,
}

/// One compiled rule.
#[derive(Clone, Debug)]
pub struct Rule {
    pub name: Arc<str>,
    /// Position in the file, from 0.
    pub position: u32,
    /// Metric series (`stats`), `stats::OTHER` beyond the bound.
    pub series: u32,
    pub action: Action,
    pub path: bool,
    pub record_route: bool,
    pub set: Box<[SetHeader]>,
    /// Lower case, compact forms resolved.
    pub remove: Box<[Box<[u8]>]>,
    pub strip_prefix: Option<Box<[u8]>>,
    /// Requests a second, for the whole router. A new table begins with a full one.
    pub limit: Option<Arc<Rate>>,
}

/// All rules of a table.
pub struct Rules {
    pub rules: Vec<Rule>,
    /// Names of headers removed from what is not from a backend: every `set` of every rule, and `[trust] strip`
    /// (SPEC 1.2). Lower case, compact forms resolved.
    pub strip: Box<[Box<[u8]>]>,
    /// `Allow-Events` of this table: `presence, dialog, …`.
    pub allow_events: Box<str>,
    pub(super) matcher: Matcher,
    pub(super) index: Index,
    /// Every regex by its text, for the next version of the table.
    pub(super) compiled: ahash::HashMap<Box<str>, Arc<Compiled>>,
    /// Series of the event packages that the table names.
    pub(super) packages: ahash::HashMap<Box<[u8]>, u32>,
}

impl Rules {
    /// The first rule that matches. With `R::ON` every rule is tried in turn and recorded; the answer is the same.
    pub fn decide<R: Recorder>(
        &self,
        facts: &Facts<'_>,
        pools: &Pools,
        scratch: &mut Scratch,
        recorder: &mut R,
    ) -> Option<&Rule> {
        let mut question = self.matcher.ask(facts, pools, scratch);
        if !R::ON {
            let first = if self.rules.len() <= FEW {
                (0..self.rules.len()).find(|rule| self.matcher.failing(*rule, &mut question).is_none())
            } else {
                self.index.first(&self.matcher, &mut question)
            };
            return first.map(|rule| &self.rules[rule]);
        }
        for (position, rule) in self.rules.iter().enumerate() {
            let failed = self.matcher.failing(position, &mut question);
            recorder.rule(rule, failed.map(|failing| self.key(position, failing)));
            if failed.is_none() {
                return Some(rule);
            }
        }
        None
    }

    /// The first key of the rule at `position` that does not hold; `None` where the rule matches.
    pub fn fails(
        &self,
        position: usize,
        facts: &Facts<'_>,
        pools: &Pools,
        scratch: &mut Scratch,
    ) -> Option<MatchKey<'_>> {
        let mut question = self.matcher.ask(facts, pools, scratch);
        self.matcher.failing(position, &mut question).map(|failing| self.key(position, failing))
    }

    /// Metric series of an event package: known ones have their own, the rest share `stats::OTHER`.
    pub fn package_series(&self, package: &[u8]) -> u32 {
        self.packages.get(package).copied().unwrap_or(crate::stats::OTHER)
    }

    fn key(&self, position: usize, failing: Failing) -> MatchKey<'_> {
        match failing {
            Failing::Method => MatchKey::Method,
            Failing::Event => MatchKey::Event,
            Failing::Source => MatchKey::Source,
            Failing::Transport => MatchKey::Transport,
            Failing::Listener => MatchKey::Listener,
            Failing::Pattern(n) => {
                let (key, written) = &self.matcher.conditions[position].written[n];
                MatchKey::Pattern { key, written }
            }
        }
    }
}
