//! Compiled rules and their matcher: exact maps first, then one multi-pattern search per inspected field (SPEC 5.5).

use std::sync::Arc;

use super::{
    facts::{Facts, Scratch},
    pool::Pools,
    record::Recorder,
};
use crate::config::table::Template;

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
    /// New requests a second (for the whole router).
    pub limit: Option<u32>,
}

/// All rules of a table.
pub struct Rules {
    pub rules: Vec<Rule>,
    /// Names of headers removed from what is not from a backend: every `set` of every rule, and `[trust] strip`
    /// (SPEC 1.2). Lower case, compact forms resolved.
    pub strip: Box<[Box<[u8]>]>,
    /// `Allow-Events` of this table: `presence, dialog, …`.
    pub allow_events: Box<str>,
}

impl Rules {
    /// The first rule that matches. With `R::ON` every rule is tried in turn and recorded; the answer is the same.
    pub fn decide<R: Recorder>(
        &self,
        _facts: &Facts<'_>,
        _pools: &Pools,
        _scratch: &mut Scratch,
        _recorder: &mut R,
    ) -> Option<&Rule> {
        todo!()
    }

    /// Metric series of an event package: known ones have their own, the rest share `stats::OTHER`.
    pub fn package_series(&self, _package: &[u8]) -> u32 {
        todo!()
    }
}
