//! From a valid `TableSpec` to an immutable `Table`. Off the workers; a table of 10,000 rules may take a second.
//!
//! Everything that only the running router knows is resolved here: listeners to their positions, pools to theirs, our
//! address toward each backend, metric series. All faults are told at once.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ahash::HashMap;

use super::{
    Table, balance,
    facts::Place,
    index::Index,
    matcher::{Conditions, Matcher, Origin, Pattern},
    pattern::Compiled,
    pool::{Backend, Departed, Pool, Pools, Unresolved},
    reach,
    rules::{Action, Rule, Rules, SetHeader},
    spread::Spread,
};
use crate::{
    config::{
        Diagnostic, ListenSpec, Severity, Side, TableSpec,
        table::{ActionSpec, BackendSpec, DnsName, Host, PoolSpec, RuleSpec, SourceSpec, Subject},
    },
    live::{Dns, Rate, Registry},
    stats::{SeriesKind, SeriesRegistry},
    wire::{Method, Transport, name},
};

/// What compiling needs beside the table.
pub struct Context<'a> {
    pub listeners: &'a [ListenSpec],
    /// `[trust] strip`.
    pub strip: &'a [String],
    pub registry: &'a Registry,
    /// What host names of backends resolve to.
    pub dns: &'a Dns,
    pub unix_s: u64,
    /// Gives the metric series of a rule, pool, backend or package by name.
    pub series: &'a SeriesRegistry,
    /// Departed backends to go on believing.
    pub departed: Departed,
    /// The most of them, those of the table before included.
    pub departed_most: usize,
    /// The address that the kernel would send from toward a backend (for wildcard listeners); passed in, since this room
    /// knows no sockets.
    pub source_for: &'a dyn Fn(SocketAddr) -> Option<IpAddr>,
    /// The table before: what it compiled from equal text is used again, and its backends that are gone are believed for
    /// another day (SPEC 1.1).
    pub previous: Option<&'a Table>,
}

/// A backend that left the table is believed for so many seconds (SPEC 1.1).
const DAY: u64 = 86_400;

/// Compiles. Errors: a pool with no listener for its transport, patterns too large, …
pub fn compile(spec: &TableSpec, context: &Context<'_>) -> Result<(Arc<Rules>, Arc<Pools>), Vec<Diagnostic>> {
    let mut work = Work { spec, context, faults: Vec::new(), pools: HashMap::default() };
    let pools = work.pools();
    let rules = work.rules();
    if work.faults.is_empty() { Ok((Arc::new(rules), Arc::new(pools))) } else { Err(work.faults) }
}

/// Compiles the pools alone, by what names resolve to now: their positions are those of the rules compiled from this spec.
/// Errors as `compile`.
pub fn compile_pools(spec: &TableSpec, context: &Context<'_>) -> Result<Arc<Pools>, Vec<Diagnostic>> {
    let mut work = Work { spec, context, faults: Vec::new(), pools: HashMap::default() };
    let pools = work.pools();
    if work.faults.is_empty() { Ok(Arc::new(pools)) } else { Err(work.faults) }
}

struct Work<'a> {
    spec: &'a TableSpec,
    context: &'a Context<'a>,
    faults: Vec<Diagnostic>,
    /// Positions of pools by name.
    pools: HashMap<&'a str, u16>,
}

impl<'a> Work<'a> {
    fn fault(&mut self, line: usize, message: String) {
        self.faults.push(Diagnostic {
            severity: Severity::Error,
            file: self.spec.file.clone(),
            line,
            column: 1,
            message,
            text: String::new(),
        });
    }

    fn pools(&mut self) -> Pools {
        let spec = self.spec;
        if spec.pools.len() > usize::from(u16::MAX) {
            self.fault(0, format!("the table is refused: {} pools, at most 65535 can be", spec.pools.len()));
        }
        let pools = spec.pools.iter().enumerate().map(|(at, pool)| {
            self.pools.insert(&pool.name, at as u16);
            self.pool(pool)
        });
        let pools: Vec<Pool> = pools.collect();
        self.tell_apart(&pools);
        Pools::new(pools, self.departed(), self.context.departed_most)
    }

    /// Entity-tags name a backend by half of its name's hash (SPEC 3.1): no two names may have one half.
    fn tell_apart(&mut self, pools: &[Pool]) {
        let mut named: HashMap<u32, &str> = HashMap::default();
        for (pool, spec) in pools.iter().zip(&self.spec.pools) {
            for backend in &pool.backends {
                let other = *named.entry(backend.tag()).or_insert(&backend.name);
                if *other != *backend.name {
                    let line =
                        spec.backends.iter().find(|b| *b.name == *backend.name).map_or(spec.line, |b| b.line);
                    let name = &backend.name;
                    self.fault(
                        line,
                        format!(
                            "the table is refused: the names of backends \"{other}\" and \"{name}\" have one hash in \
                             entity-tags: rename one of them"
                        ),
                    );
                }
            }
        }
    }

    /// Those that the context believes, those that the table before believed, and those that it had. `Pools::new` drops
    /// what is back.
    fn departed(&self) -> Departed {
        let mut departed = self.context.departed.clone();
        if let Some(previous) = self.context.previous {
            let until = self.context.unix_s + DAY;
            departed.extend(previous.pools.departed());
            departed.extend(previous.pools.backends().map(|(at, backend)| {
                let port = (!previous.pools.pool(at.pool).any_port).then(|| backend.addr.port());
                (backend.addr.ip().to_canonical(), port, backend.transport, until)
            }));
        }
        departed.retain(|d| d.3 > self.context.unix_s);
        // The latest day of each; order decides nothing.
        departed.sort_unstable_by_key(|d| (d.0, d.1, d.2 as u8, std::cmp::Reverse(d.3)));
        departed.dedup_by_key(|d| (d.0, d.1, d.2));
        departed
    }

    fn pool(&mut self, spec: &'a PoolSpec) -> Pool {
        if spec.backends.len() > usize::from(u16::MAX) {
            let message = format!("pool \"{}\": more than 65535 backends", spec.name);
            self.fault(spec.line, format!("the table is refused: {message}"));
        }
        let mut pool = Pool {
            name: spec.name.as_str().into(),
            series: self.context.series.series(SeriesKind::Pool, &spec.name, None),
            balance: spec.balance.clone(),
            any_port: spec.any_port,
            silence: spec.silence,
            panic: spec.panic,
            probe: spec.probe.clone(),
            migrate_after_ms: spec.migrate_after.as_millis() as u64,
            limits_calls: spec.backends.iter().any(|backend| backend.max_calls.is_some()),
            publish_expires_margin: spec.publish_expires_margin,
            foreign_etag: spec.foreign_etag,
            backends: Vec::with_capacity(spec.backends.len()),
            unresolved: Vec::new(),
        };
        for (position, backend) in spec.backends.iter().enumerate() {
            let entered = match &backend.addr {
                Host::Address(addr) => self.entry(spec, backend, *addr, 1).map(|entry| vec![entry]),
                Host::Name(name) => self.named(spec, backend, name),
            };
            // A position is 16 bits; each backend that follows has room for one.
            let room = usize::from(u16::MAX)
                .saturating_sub(pool.backends.len() + spec.backends.len() - position - 1);
            let entered = entered.map(|entries| self.enter(backend, entries, room, &mut pool));
            if let Err(why) = entered {
                let (pool, name) = (&spec.name, &backend.name);
                let message = format!("the table is refused: pool \"{pool}\", backend \"{name}\": {why}");
                self.fault(backend.line, message);
            }
        }
        pool
    }

    /// An entry for each address of a name that a listener of ours can reach, the most wanted first.
    fn named(&self, pool: &PoolSpec, spec: &BackendSpec, name: &DnsName) -> Result<Vec<Backend>, String> {
        let preferred = self.listener(pool, spec.transport, None)?;
        let prefers_v4 = self.context.listeners[usize::from(preferred)].address.is_ipv4();
        let mut entries: Vec<Backend> = Vec::new();
        for resolved in &*self.context.dns.answer(name) {
            // What no listener can reach is nobody's fault in the table.
            let Ok(mut entry) = self.entry(pool, spec, resolved.addr, resolved.weight) else { continue };
            let less_wanted = resolved.addr.is_ipv4() != prefers_v4;
            entry.spread.by_name = true;
            entry.spread.priority = u32::from(resolved.priority) * 2 + u32::from(less_wanted);
            entries.push(entry);
        }
        entries.sort_by_key(|entry| (entry.spread.priority, entry.addr));
        Ok(entries)
    }

    /// Puts the entries of one backend into its pool, side by side, as many as there is room for; without any it is
    /// unresolved.
    fn enter(&self, spec: &BackendSpec, mut entries: Vec<Backend>, room: usize, out: &mut Pool) {
        entries.truncate(room);
        if entries.is_empty() {
            out.unresolved.push(Unresolved {
                name: spec.name.as_str().into(),
                uri: spec.uri.as_str().into(),
                transport: spec.transport,
                weight: spec.weight,
                series: self.context.series.series(SeriesKind::Backend, &spec.name, None),
                admin: spec.state,
                state: self.context.registry.state(&spec.name, self.context.unix_s),
            });
        }
        let (first, count) = (out.backends.len() as u16, entries.len() as u16);
        for entry in &mut entries {
            (entry.spread.first, entry.spread.count) = (first, count);
        }
        out.backends.append(&mut entries);
    }

    /// A backend at this address.
    fn entry(
        &self,
        pool: &PoolSpec,
        spec: &BackendSpec,
        addr: SocketAddr,
        weight: u32,
    ) -> Result<Backend, String> {
        let listener = self.listener(pool, spec.transport, Some(addr))?;
        let mut local = self.context.listeners[usize::from(listener)].address;
        let wildcard = local.ip().is_unspecified();
        if wildcard {
            let name = &self.context.listeners[usize::from(listener)].name;
            let ip = (self.context.source_for)(addr).ok_or_else(|| {
                format!(
                    "this machine has no address from which to reach {addr} (listener \"{name}\" is bound to a wildcard)"
                )
            })?;
            local.set_ip(ip);
        }
        Ok(Backend {
            name: spec.name.as_str().into(),
            series: self.context.series.series(SeriesKind::Backend, &spec.name, None),
            addr,
            transport: spec.transport,
            host: spec.host.to_ascii_lowercase().into_bytes().into(),
            weight: spec.weight.max(1),
            priority: spec.priority.unwrap_or_default(),
            max_calls: spec.max_calls,
            admin: spec.state,
            uri: spec.uri.as_str().into(),
            hash: balance::name_hash(&spec.name),
            state: self.context.registry.state(&spec.name, self.context.unix_s),
            listener,
            local,
            wildcard,
            spread: Spread::new(addr, weight, self.context.dns.state(addr, spec.transport)),
        })
    }

    /// The listener by which requests leave to this address, or to any of this transport (SPEC 4.6).
    fn listener(&self, pool: &PoolSpec, transport: Transport, to: Option<SocketAddr>) -> Result<u8, String> {
        let listeners = self.context.listeners;
        let fits = |l: &ListenSpec| {
            l.transport == transport && to.is_none_or(|to| l.address.is_ipv4() == to.is_ipv4())
        };
        let first = |side: Side| listeners.iter().position(|l| fits(l) && l.side == side);
        let family = |to: SocketAddr| if to.is_ipv4() { " over IPv4" } else { " over IPv6" };
        let wanted = format!("{}{}", transport.label(), to.map_or("", family));
        let at = match &pool.listener {
            None => first(Side::Backends)
                .or_else(|| first(Side::Both))
                .ok_or_else(|| format!("no listener for {wanted} with side \"backends\" or \"both\""))?,
            Some(name) => match listeners.iter().position(|l| l.name == *name) {
                None => return Err(format!("unknown listener \"{name}\"")),
                Some(at) if !fits(&listeners[at]) => {
                    return Err(format!("listener \"{name}\" is not for {wanted}"));
                }
                Some(at) if listeners[at].side == Side::Clients => {
                    return Err(format!("listener \"{name}\" has side \"clients\""));
                }
                Some(at) => at,
            },
        };
        u8::try_from(at).map_err(|_| "more than 256 listeners".to_owned())
    }

    fn rules(&mut self) -> Rules {
        let spec = self.spec;
        let mut conditions = Compiling::default();
        let mut rules = Vec::with_capacity(spec.rules.len());
        for (position, rule) in spec.rules.iter().enumerate() {
            self.conditions(rule, &mut conditions);
            let compiled = self.rule(position as u32, rule);
            rules.extend(compiled);
        }
        let Compiling { mut matcher, compiled, .. } = conditions;
        let previous = self.context.previous.map(|table| &table.rules.index);
        // Without a rule for each condition the index would name the wrong ones; such a table is refused anyway.
        let index =
            if self.faults.is_empty() { reach::build(&mut matcher, previous) } else { Index::default() };
        let (allow_events, packages) = self.packages();
        rules.iter_mut().for_each(|rule| rule.action.say_allowed(&allow_events));
        Rules { strip: self.strip(), allow_events, rules, matcher, index, compiled, packages }
    }

    fn rule(&mut self, position: u32, spec: &RuleSpec) -> Option<Rule> {
        let action = self.action(spec)?;
        let set = spec.set.iter().map(|(name, value)| SetHeader {
            name: name.as_str().into(),
            canonical: canonical_name(name),
            value: value.clone(),
        });
        Some(Rule {
            name: spec.name.as_str().into(),
            position,
            series: self.context.series.series(SeriesKind::Rule, &spec.name, spec.tag.as_deref()),
            action,
            path: spec.path,
            record_route: spec.record_route,
            set: set.collect(),
            remove: spec.remove.iter().map(|name| canonical_name(name)).collect(),
            strip_prefix: spec.strip_prefix.as_ref().map(|prefix| prefix.as_bytes().into()),
            limit: spec.limit.map(|per_second| Arc::new(Rate::new(per_second))),
        })
    }

    fn action(&mut self, spec: &RuleSpec) -> Option<Action> {
        Some(match &spec.action {
            ActionSpec::Route(pool) => Action::Route(self.pool_named(pool, spec)?),
            ActionSpec::Flow => Action::Flow,
            ActionSpec::RequestUri => Action::RequestUri,
            ActionSpec::Reply { code, reason, headers } => {
                Action::Reply { code: *code, reason: reason.as_str().into(), headers: lines(headers) }
            }
            ActionSpec::RedirectUri(uri) => Action::RedirectUri(uri.as_str().into()),
            ActionSpec::RedirectPool(pool) => Action::RedirectPool(self.pool_named(pool, spec)?),
            ActionSpec::Drop => Action::Drop,
        })
    }

    fn pool_named(&mut self, name: &str, rule: &RuleSpec) -> Option<u16> {
        let found = self.pools.get(name).copied();
        if found.is_none() {
            self.fault(rule.line, format!("rule \"{}\": unknown pool \"{name}\"", rule.name));
        }
        found
    }

    fn conditions(&mut self, rule: &RuleSpec, to: &mut Compiling) {
        let matches = &rule.matches;
        let mut asks = Conditions::default();
        for (method, token) in &matches.method {
            asks.methods |= 1 << *method as u16;
            if *method == Method::Other {
                asks.others.push(number(&mut to.matcher.others, token.as_bytes()));
            }
        }
        asks.events = matches.event.iter().map(|e| number(&mut to.matcher.events, e.as_bytes())).collect();
        asks.events.sort_unstable();
        asks.events.dedup();
        asks.sources = matches.source.iter().filter_map(|s| self.origin(s, rule)).collect();
        asks.transports = matches.transport.iter().fold(0, |mask, t| mask | 1 << *t as u8);
        asks.listeners = matches.listener.iter().flat_map(|name| self.listeners_named(name, rule)).collect();
        for pattern in &matches.patterns {
            match to.pattern(pattern, self.context.previous) {
                Ok(number) => asks.patterns.push(number),
                Err(fault) => self.fault(
                    rule.line,
                    format!("rule \"{}\": {} = \"{}\": {fault}", rule.name, pattern.key, pattern.written),
                ),
            }
        }
        asks.written = matches.patterns.iter().map(|p| (p.key.clone(), p.written.clone())).collect();
        to.matcher.conditions.push(asks);
    }

    fn origin(&mut self, spec: &SourceSpec, rule: &RuleSpec) -> Option<Origin> {
        Some(match spec {
            SourceSpec::Net(net) => Origin::Net(net.trunc()),
            SourceSpec::Backends => Origin::Backends,
            SourceSpec::Clients => Origin::Clients,
            SourceSpec::Pool(name) => Origin::Pool(self.pool_named(name, rule)?),
        })
    }

    fn listeners_named(&mut self, name: &str, rule: &RuleSpec) -> Vec<u8> {
        let listeners = self.context.listeners.iter().enumerate();
        let found: Vec<u8> =
            listeners.filter(|(_, l)| l.name == name).filter_map(|(at, _)| u8::try_from(at).ok()).collect();
        if found.is_empty() {
            self.fault(rule.line, format!("rule \"{}\": unknown listener \"{name}\"", rule.name));
        }
        found
    }

    /// Every header that a rule sets, and those of `[trust] strip` (SPEC 1.2).
    fn strip(&self) -> Box<[Box<[u8]>]> {
        let set = self.spec.rules.iter().flat_map(|rule| &rule.set).map(|(name, _)| name);
        let mut strip: Vec<_> = set.chain(self.context.strip).map(|name| canonical_name(name)).collect();
        strip.sort();
        strip.dedup();
        strip.into()
    }

    /// Allow-Events: the names of `[packages]`, then those that rules route to a pool, in order; and the series of every
    /// package that the table names.
    fn packages(&self) -> (Box<str>, HashMap<Box<[u8]>, u32>) {
        let listed = self.spec.packages.iter().map(String::as_str);
        let is_routed = |rule: &&RuleSpec| matches!(rule.action, ActionSpec::Route(_));
        let routed = self.spec.rules.iter().filter(is_routed).flat_map(|rule| &rule.matches.event);
        let mut allowed: Vec<&str> = Vec::new();
        let mut seen = ahash::HashSet::default();
        allowed.extend(listed.chain(routed.map(|e| &**e)).filter(|name| seen.insert(*name)));
        let named = self.spec.rules.iter().flat_map(|rule| &rule.matches.event).map(|e| &**e);
        let series = allowed.iter().copied().chain(named).map(|name| {
            (name.as_bytes().into(), self.context.series.series(SeriesKind::Package, name, None))
        });
        (allowed.join(", ").into(), series.collect())
    }
}

/// The matcher as it grows.
#[derive(Default)]
struct Compiling {
    matcher: Matcher,
    subjects: HashMap<Subject, u32>,
    numbers: HashMap<(u32, bool, Box<str>), u32>,
    compiled: HashMap<Box<str>, Arc<Compiled>>,
}

impl Compiling {
    /// The number of a pattern.
    fn pattern(
        &mut self,
        spec: &crate::config::table::PatternSpec,
        previous: Option<&Table>,
    ) -> Result<u32, String> {
        let subject = match self.subjects.get(&spec.subject) {
            Some(&subject) => subject,
            None => {
                self.matcher.subjects.push(Place::of(&spec.subject));
                let subject = self.matcher.subjects.len() as u32 - 1;
                self.subjects.insert(spec.subject.clone(), subject);
                subject
            }
        };
        let key = (subject, spec.absent_holds, spec.regex.clone());
        if let Some(&number) = self.numbers.get(&key) {
            return Ok(number);
        }
        let known = self.compiled.get(&spec.regex);
        let known = known.or_else(|| previous.and_then(|table| table.rules.compiled.get(&spec.regex)));
        let compiled = match known {
            Some(compiled) => compiled.clone(),
            None => Compiled::new(&spec.regex)?,
        };
        self.compiled.insert(spec.regex.clone(), compiled.clone());
        self.matcher.patterns.push(Pattern { subject, absent_holds: spec.absent_holds, compiled });
        let number = self.matcher.patterns.len() as u32 - 1;
        self.numbers.insert(key, number);
        Ok(number)
    }
}

fn number(numbers: &mut HashMap<Box<[u8]>, u32>, name: &[u8]) -> u32 {
    let next = numbers.len() as u32;
    *numbers.entry(name.into()).or_insert(next)
}

/// Lower case, compact forms resolved.
fn canonical_name(name: &str) -> Box<[u8]> {
    match name.as_bytes() {
        [letter] => {
            name::long_form(*letter).map_or_else(|| name.to_ascii_lowercase().into_bytes().into(), Into::into)
        }
        _ => name.to_ascii_lowercase().into_bytes().into(),
    }
}

/// Header lines ready for the wire.
fn lines(headers: &[(String, String)]) -> Box<[u8]> {
    headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>().into_bytes().into()
}
