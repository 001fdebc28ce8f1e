//! The compiled table: immutable rules and pools, and the decision over them (SPEC 5). Compiled off the workers.

pub mod balance;
mod caches;
mod chain;
mod choice;
pub mod compile;
pub mod facts;
mod index;
mod literal;
mod matcher;
mod pattern;
pub mod pool;
mod reach;
pub mod record;
pub mod rules;
pub mod spread;

use std::sync::Arc;

pub use compile::{Context, compile, compile_pools};
pub use facts::{Facts, Scratch, Source};
pub use pool::{Backend, BackendRef, Peer, Pick, Pool, Pools, Unresolved};
pub use record::{Candidate, MatchKey, Recorder};
pub use rules::{Action, Rule, Rules, SetHeader};
pub use spread::Spread;

/// What one swap replaces: rules and pools apart, so that a DNS change does not compile a regex again.
#[derive(Clone)]
pub struct Table {
    pub rules: Arc<Rules>,
    pub pools: Arc<Pools>,
    pub version: u64,
}
