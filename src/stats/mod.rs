//! Names declared once, counters per core, export summed at scrape (SPEC 11.1).
//!
//! Each core owns one `CoreStats` and is its only writer: an increment is a relaxed load and store. A scrape sums the
//! cores. Series of rules, pools, backends and packages come from the bounded `SeriesRegistry`.

use crate::wire::{Method, Reason, Transport};

/// The series that stands for everything beyond the bound.
pub const OTHER: u32 = 0;

/// Scalar counters, one per core each. The metric's name and help stand beside each in `names`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Counter {
    /// Header fields stripped from what is not from a backend (SPEC 1.2).
    Stripped,
    /// Bad MAC under a known key, by token type: via, rr, path, etag.
    ForgedVia,
    ForgedRoute,
    ForgedPath,
    /// Tokens with an unknown key id.
    UnknownKey,
    PinHits,
    PinsDropped,
    FlowsNoted,
    FlowsConfirmed,
    FlowConflicts,
    FlowsDropped,
    FlowsMoved,
    MovedDropped,
    UnreachableDropped,
    Undeliverable,
    RuleLimited,
    KernelDrops,
    SendErrors,
    SendBlocked,
    TurnPanics,
    Swaps,
}

/// Gauges that a core sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gauge {
    Pins,
    PinsMax,
    TableVersion,
    ReceiveBuffer,
}

/// One core's counters.
pub struct CoreStats {}

/// Request or response, for `tidings_messages_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request(Method),
    /// The method of its CSeq.
    Response(Method),
}

impl CoreStats {
    pub fn received(&self, _kind: Kind, _transport: Transport) {}
    pub fn sent(&self, _kind: Kind, _transport: Transport) {}
    /// A message that was refused or dropped.
    pub fn refused(&self, _reason: Reason) {}
    pub fn add(&self, _counter: Counter, _n: u64) {}
    pub fn set(&self, _gauge: Gauge, _value: u64) {}
    /// A request decided by this rule.
    pub fn rule(&self, _series: u32) {}
    pub fn package(&self, _series: u32, _method: Method) {}
    /// A request that left for this backend, by this pool.
    pub fn backend_request(&self, _pool: u32, _backend: u32) {}
    /// A response of class 1 to 6 from this backend.
    pub fn backend_response(&self, _backend: u32, _class: u8) {}
    /// A response of ours of this status code.
    pub fn answered(&self, _code: u16) {}
    /// A token verified under this key id (0-15).
    pub fn key_used(&self, _key_id: u8) {}
    /// From the end of recvmmsg to the start of sendmmsg, for a batch of `n` messages.
    pub fn latency(&self, _nanos: u64, _n: u64) {}
    /// From the kernel's receive timestamp to our read.
    pub fn loop_lag(&self, _nanos: u64) {}
}

/// Bounded names of series: rule, pool, backend, package. A name keeps its number while it is in a table; ten minutes
/// after it left its series ends.
pub struct SeriesRegistry {}

/// What a series is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SeriesKind {
    Rule,
    Pool,
    Backend,
    Package,
}

impl SeriesRegistry {
    /// The number of `name`, given at first sight; `OTHER` when full.
    pub fn series(&self, _kind: SeriesKind, _name: &str, _tag: Option<&str>) -> u32 {
        todo!()
    }
}
