//! The routing table as written, valid: pools, rules, packages (SPEC 5.1-5.4). `route` compiles it.
//!
//! `parse` collects every fault of the file, each with its place: `pool` and `backend` read the pools, `rule` the rules
//! with their `action` and `matches`, `pattern` the regexes, `lint` looks at a sound table for what makes no sense.
//! `check_listeners` needs the settings too and comes after.

mod action;
mod backend;
mod lint;
mod listeners;
mod matches;
mod pattern;
mod pool;
mod probe;
mod read;
mod rule;
mod template;

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use ipnet::IpNet;

use super::document::Place;
use crate::wire::{Method, Transport};

pub use listeners::check_listeners;
pub use pattern::hir;
pub use probe::{MIGRATE_AFTER, ProbeSpec};
pub use read::parse;

/// A valid table. Order of rules is the order of the file.
#[derive(Clone, Debug, Default)]
pub struct TableSpec {
    /// For diagnostics: the file's name as given.
    pub file: String,
    pub pools: Vec<PoolSpec>,
    pub rules: Vec<RuleSpec>,
    /// `[packages]`: names for Allow-Events.
    pub packages: Vec<String>,
    /// Every mention of a listener, for `check_listeners`.
    pub listener_uses: Vec<ListenerUse>,
}

/// A listener that a pool or a rule names, and where.
#[derive(Clone, Debug)]
pub struct ListenerUse {
    pub listener: String,
    pub by: ListenerUser,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerUser {
    /// Index into `TableSpec::pools`.
    Pool(usize),
    Rule(String),
}

/// Balance of a pool (SPEC 5.3).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Balance {
    #[default]
    Resource,
    ResourceEvent,
    User,
    Domain,
    FromDomain,
    CallId,
    From,
    To,
    Source,
    /// Header name, lower case.
    Header(Box<str>),
    /// Fewest calls by weight.
    LeastCalls,
    /// Of two by hash the one with the shorter round trip of its probes.
    LeastLatency,
    /// Those with the lowest number first; among them as `Resource`.
    Priority,
}

impl Balance {
    /// Something other than a hash has a say.
    pub fn is_measured(&self) -> bool {
        matches!(self, Balance::LeastCalls | Balance::LeastLatency | Balance::Priority)
    }

    /// The choice depends on state, or on a header that a CANCEL lacks: it leaves a pin (SPEC 7.1).
    pub fn is_stateful(&self) -> bool {
        self.is_measured() || matches!(self, Balance::Header(_))
    }
}

#[derive(Clone, Debug)]
pub struct PoolSpec {
    pub name: String,
    pub balance: Balance,
    pub any_port: bool,
    /// Name of the listener by which requests to this pool leave.
    pub listener: Option<String>,
    /// `unavailable = "silence"` (default, PUBLISH over UDP) or "503".
    pub silence: bool,
    /// With no backend up, requests go to all (SPEC 8.3).
    pub panic: bool,
    /// `None`: `probe = "off"`.
    pub probe: Option<ProbeSpec>,
    /// SPEC 8.6; default 30 s.
    pub migrate_after: Duration,
    /// Seconds by which Expires of every PUBLISH is raised (SPEC 6.4); `None`: 30 for packages that begin with
    /// `asterisk-`, else 0.
    pub publish_expires_margin: Option<u16>,
    /// `foreign_etag`: "pass", default "412" (SPEC 6.2).
    pub foreign_etag: bool,
    pub backends: Vec<BackendSpec>,
    pub line: usize,
}

/// Administrative state (SPEC 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    #[default]
    Active,
    /// Takes nothing new; what is there goes on.
    Drain,
    Off,
}

#[derive(Clone, Debug)]
pub struct BackendSpec {
    pub name: String,
    /// As written.
    pub uri: String,
    /// The host of the URI as written, lower case, without brackets or port.
    pub host: String,
    pub addr: Host,
    pub transport: Transport,
    /// At least 1; default 1.
    pub weight: u32,
    pub state: AdminState,
    /// The lowest goes first where the balance is `priority`; `None` counts as 0.
    pub priority: Option<u16>,
    pub max_calls: Option<u32>,
    pub line: usize,
}

/// Where a backend's URI leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Address(SocketAddr),
    Name(DnsName),
}

/// A host name that DNS resolves (RFC 3263): with a port by A and AAAA, without by SRV first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName {
    /// Lower case, as written otherwise.
    pub host: String,
    pub port: Option<u16>,
    /// What its SRV records are asked for.
    pub transport: Transport,
}

impl Host {
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Host::Address(addr) => Some(*addr),
            Host::Name(_) => None,
        }
    }

    pub fn name(&self) -> Option<&DnsName> {
        match self {
            Host::Address(_) => None,
            Host::Name(name) => Some(name),
        }
    }
}

impl From<SocketAddr> for Host {
    fn from(addr: SocketAddr) -> Host {
        Host::Address(addr)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(addr) => addr.fmt(out),
            Host::Name(name) => name.fmt(out),
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(out, "{}:{port}", self.host),
            None => out.write_str(&self.host),
        }
    }
}

impl TableSpec {
    /// The host names of its backends, each once.
    pub fn names(&self) -> BTreeSet<&DnsName> {
        let backends = self.pools.iter().flat_map(|pool| &pool.backends);
        backends.filter_map(|backend| backend.addr.name()).collect()
    }
}

#[derive(Clone, Debug)]
pub struct RuleSpec {
    pub name: String,
    pub matches: MatchSpec,
    pub action: ActionSpec,
    pub path: bool,
    pub record_route: bool,
    /// Header name as written, template.
    pub set: Vec<(String, Template)>,
    pub remove: Vec<String>,
    /// Taken from the front of the R-URI's user.
    pub strip_prefix: Option<String>,
    /// New requests a second through this rule; beyond: 503 with Retry-After.
    pub limit: Option<u32>,
    /// Metric label beside the rule's name.
    pub tag: Option<String>,
    pub line: usize,
}

/// The value of `set.HEADER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(pub Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(Box<str>),
    /// `{source.backend}`: name of the backend that sent it, empty for clients.
    SourceBackend,
    /// `{source.ip}`
    SourceIp,
    /// `{rule}`
    Rule,
}

/// All keys that are there must hold.
#[derive(Clone, Debug, Default)]
pub struct MatchSpec {
    /// Known method, or `Other` with the token.
    pub method: Vec<(Method, Box<str>)>,
    pub event: Vec<Box<str>>,
    pub source: Vec<SourceSpec>,
    pub transport: Vec<Transport>,
    /// Names of listeners.
    pub listener: Vec<Box<str>>,
    pub patterns: Vec<PatternSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    Net(IpNet),
    Backends,
    Clients,
    Pool(Box<str>),
}

/// What a regex looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    Ruri,
    From,
    To,
    Contact,
    UserAgent,
    ContentType,
    /// `header.NAME`, lower case.
    Header(Box<str>),
    /// `body.NAME`: a JSON member.
    Body(Box<str>),
    /// `body.raw`: the first 8 KiB.
    BodyRaw,
}

/// A regex over bytes, as `hir` reads it (POSIX filters are translated before).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternSpec {
    pub subject: Subject,
    /// As it goes to the compiler.
    pub regex: Box<str>,
    /// As the user wrote it.
    pub written: Box<str>,
    /// Key as the user wrote it: `device_state_filter`.
    pub key: Box<str>,
    /// True for the two Asterisk filters: they hold where the field is absent.
    pub absent_holds: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionSpec {
    Route(String),
    Flow,
    RequestUri,
    /// `reason` is the code's own phrase where the user gave none.
    Reply {
        code: u16,
        reason: String,
        headers: Vec<(String, String)>,
    },
    RedirectUri(String),
    RedirectPool(String),
    Drop,
}

#[cfg(test)]
mod tests;
