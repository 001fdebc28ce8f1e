//! Who watches a decision: nobody on the path (`()`), `explain`, a shadow table.

use super::rules::Rule;

/// The match key of a rule that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchKey<'a> {
    Method,
    Event,
    Source,
    Transport,
    Listener,
    /// A regex key as the user wrote it (`device_state_filter`), and its pattern.
    Pattern {
        key: &'a str,
        written: &'a str,
    },
}

/// A backend that the balance looked at.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub name: &'a str,
    /// Why it is none: `drain`, `off`, `max_calls`, `no address`; `None` where it takes part.
    pub excluded: Option<&'static str>,
    /// Its rendezvous score; the highest wins.
    pub score: f64,
    /// Where its URI names a host: the address that takes the request, and of how many.
    pub address: Option<(std::net::SocketAddr, u16)>,
    /// What goes before the score: calls, round trip, priority.
    pub measured: Option<String>,
}

/// Sees each step of a decision. With `ON` false every call compiles to nothing.
pub trait Recorder {
    const ON: bool;
    /// A rule was tried: `failed` is the first key that did not hold, `None` where it matched.
    fn rule(&mut self, _rule: &Rule, _failed: Option<MatchKey<'_>>) {}
    /// The balance key, as text, before hashing.
    fn key(&mut self, _balance: &str, _key: &[u8]) {}
    fn candidate(&mut self, _candidate: Candidate<'_>) {}
    /// Any other step, in words: `strip`, `token`, `pin`, `flow`, …
    fn step(&mut self, _step: &'static str, _detail: std::fmt::Arguments<'_>) {}
}

impl Recorder for () {
    const ON: bool = false;
}
