//! Tables and messages for the tests and benches of `route`: small builders, no parser of tables between.
#![allow(dead_code)] // each of its users takes what it needs

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tidings::{
    config::{
        Diagnostic, ListenSpec, Side, TableSpec,
        table::{
            ActionSpec, AdminState, BackendSpec, Balance, MIGRATE_AFTER, MatchSpec, PatternSpec, PoolSpec,
            RuleSpec, SourceSpec, Subject,
        },
    },
    live::{Dns, Registry},
    route::{self, Context, Facts, Pools, Rules, Source, Table, compile},
    stats::SeriesRegistry,
    wire::{Event, HeaderId, Index, Limits, Method, Start, Transport, Uri, inspect},
};

/// A request as it stands before the rules.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: String,
    pub ruri: String,
    /// Beside Via, Max-Forwards, Call-ID and CSeq, which every request has.
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub from_backend: bool,
    pub peer: SocketAddr,
    pub listener: u8,
    pub transport: Transport,
}

impl Default for Sent {
    fn default() -> Sent {
        Sent {
            method: "SUBSCRIBE".into(),
            ruri: "sip:1000@example.com".into(),
            headers: Vec::new(),
            body: String::new(),
            from_backend: false,
            peer: address("192.0.2.7:5060"),
            listener: 0,
            transport: Transport::Udp,
        }
    }
}

impl Sent {
    pub fn method(method: &str) -> Sent {
        Sent { method: method.into(), ..Sent::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Sent {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn ruri(mut self, ruri: &str) -> Sent {
        self.ruri = ruri.into();
        self
    }

    pub fn body(mut self, body: &str) -> Sent {
        self.body = body.into();
        self
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "{} {} SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK776\r\nMax-Forwards: 70\r\n\
             Call-ID: a84b4c76e66710@192.0.2.7\r\nCSeq: 1 {}\r\n",
            self.method, self.ruri, self.method
        );
        let has = |name: &str| self.values(name).next().is_some();
        if !has("From") && !has("f") {
            text.push_str("From: <sip:alice@example.com>;tag=1928301774\r\n");
        }
        if !has("To") && !has("t") {
            text.push_str("To: <sip:bob@example.com>\r\n");
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{}", self.body.len(), self.body));
        text.into_bytes()
    }

    /// Shows the message to `look` as the rules see it.
    pub fn facts<T>(&self, pools: &Pools, look: impl FnOnce(&Facts<'_>) -> T) -> T {
        let bytes = self.bytes();
        let mut index = Index::new();
        let view = index.scan(&bytes, &Limits::default()).unwrap_or_else(|_| panic!("refused: {self:?}"));
        let essentials = inspect(&view).unwrap_or_else(|r| panic!("{}: {self:?}", r.label()));
        let Start::Request { method, token, uri } = view.start() else { panic!("a response") };
        let source = match pools.peer(self.transport, self.peer, 0) {
            Some(route::Peer::Backend(at)) => Source::Backend(at),
            _ if self.from_backend => Source::Trusted,
            _ => Source::Client,
        };
        look(&Facts {
            view: &view,
            essentials: &essentials,
            method: if method == Method::Cancel { Method::Invite } else { method },
            method_token: view.of(token),
            ruri: view.of(uri),
            uri: &Uri::parse(view.of(uri)).unwrap_or_else(|| panic!("no URI: {}", self.ruri)),
            package: view.value(HeaderId::Event).and_then(Event::parse).map(|event| event.package),
            source,
            peer: self.peer,
            listener: self.listener,
            transport: self.transport,
            hidden: &[],
        })
    }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("no address: {text}"))
}

pub fn listener(name: &str, transport: Transport, addr: &str, side: Side) -> ListenSpec {
    ListenSpec {
        name: name.into(),
        transport,
        address: address(addr),
        side,
        advertise: None,
        id: 0,
        tls: None,
        websocket: None,
        proxies: [].into(),
    }
}

/// Two listeners of each side, as a router between phones and PBXs has.
pub fn listeners() -> Vec<ListenSpec> {
    vec![
        listener("phones", Transport::Udp, "198.51.100.1:5060", Side::Clients),
        listener("pbxs", Transport::Udp, "10.0.0.1:5060", Side::Backends),
        listener("streams", Transport::Tcp, "10.0.0.1:5060", Side::Both),
        listener("six", Transport::Udp, "[::]:5060", Side::Both),
    ]
}

/// A pool over UDP with backends at these addresses.
pub fn pool(name: &str, backends: &[&str]) -> PoolSpec {
    PoolSpec {
        name: name.into(),
        balance: Balance::Resource,
        any_port: false,
        listener: None,
        silence: true,
        publish_expires_margin: None,
        foreign_etag: false,
        panic: false,
        probe: None,
        migrate_after: MIGRATE_AFTER,
        backends: backends.iter().enumerate().map(|(i, a)| backend(&format!("{name}{i}"), a)).collect(),
        line: 1,
    }
}

pub fn backend(name: &str, addr: &str) -> BackendSpec {
    let addr = address(addr);
    BackendSpec {
        name: name.into(),
        uri: format!("sip:{addr}"),
        host: addr.ip().to_string(),
        addr: addr.into(),
        transport: Transport::Udp,
        weight: 1,
        state: AdminState::Active,
        priority: None,
        max_calls: None,
        line: 2,
    }
}

pub fn rule(name: &str, matches: MatchSpec) -> RuleSpec {
    RuleSpec {
        name: name.into(),
        matches,
        action: ActionSpec::Drop,
        path: false,
        record_route: true,
        set: Vec::new(),
        remove: Vec::new(),
        strip_prefix: None,
        limit: None,
        tag: None,
        line: 3,
    }
}

pub fn methods(names: &[&str]) -> Vec<(Method, Box<str>)> {
    names.iter().map(|name| (Method::of(name.as_bytes()), (*name).into())).collect()
}

pub fn words(names: &[&str]) -> Vec<Box<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

pub fn pattern(subject: Subject, regex: &str) -> PatternSpec {
    let key = format!("{subject:?}").to_lowercase();
    PatternSpec { subject, regex: regex.into(), written: regex.into(), key: key.into(), absent_holds: false }
}

pub fn net(text: &str) -> SourceSpec {
    SourceSpec::Net(text.parse().unwrap_or_else(|_| panic!("no prefix: {text}")))
}

/// A table of rules and two pools: `pbx` at 10.0.0.11-13:5060, `voicemail` at 10.0.0.21:5070.
pub fn table(rules: Vec<RuleSpec>) -> TableSpec {
    TableSpec {
        file: "table.toml".into(),
        pools: vec![
            pool("pbx", &["10.0.0.11:5060", "10.0.0.12:5060", "10.0.0.13:5060"]),
            pool("voicemail", &["10.0.0.21:5070"]),
        ],
        rules,
        packages: Vec::new(),
        listener_uses: Vec::new(),
    }
}

pub type Compiled = (Arc<Rules>, Arc<Pools>);

pub fn try_build(spec: &TableSpec, previous: Option<&Table>) -> Result<Compiled, Vec<Diagnostic>> {
    let source_for = |_: SocketAddr| -> Option<IpAddr> { Some(address("[2001:db8::1]:0").ip()) };
    compile(
        spec,
        &Context {
            listeners: &listeners(),
            strip: &["X-Trusted".to_owned()],
            registry: &Registry::default(),
            dns: &Dns::default(),
            unix_s: 1_000_000,
            series: &SeriesRegistry::new(1000),
            departed: Vec::new(),
            departed_most: 1000,
            source_for: &source_for,
            previous,
        },
    )
}

pub fn build(spec: &TableSpec) -> Compiled {
    try_build(spec, None).unwrap_or_else(|faults| panic!("refused: {faults:?}"))
}
