//! What every core of a router shares and never changes (listeners, names, keys, trust), and the light state they share.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::Arrival;
use crate::{
    config::{Names, Settings, Side, settings::Protection},
    live::{
        Alive, BackOff, Bans, Calls, Connections, Flows, Moved, News, Now, Prefixes, Unreachable, Users,
        bans::Terms,
    },
    wire::{
        Limits, Transport, put,
        token::{self, Flow, FlowId, Ring},
    },
};

/// One listener, with what is written about it on the wire ready as bytes.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    /// How tokens name it.
    pub id: u16,
    pub transport: Transport,
    pub address: SocketAddr,
    pub side: Side,
    pub wildcard: bool,
    /// Where it differs from the socket's address.
    toward_clients: Option<Naming>,
    /// None for a wildcard: the socket's host is known with each message only.
    toward_backends: Option<Naming>,
}

/// How one side knows a listener, as it stands in what we write.
#[derive(Debug)]
struct Naming {
    /// Before the token of a Via of ours.
    via: Box<[u8]>,
    /// Behind the token of a Record-Route or Path of ours, from its `@` to the `>`.
    route_end: Box<[u8]>,
}

impl Naming {
    fn new(host_port: &[u8], transport: Transport) -> Naming {
        let mut via = Vec::new();
        write_via(transport, |out| out.extend_from_slice(host_port), &mut via);
        let mut route_end = Vec::new();
        write_route_end(transport, |out| out.extend_from_slice(host_port), &mut route_end);
        Naming { via: via.into(), route_end: route_end.into() }
    }
}

fn write_via(transport: Transport, host_port: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    out.extend_from_slice(b"Via: SIP/2.0/");
    out.extend_from_slice(transport.via().as_bytes());
    out.push(b' ');
    host_port(out);
    out.extend_from_slice(b";branch=z9hG4bK");
}

fn write_route_end(transport: Transport, host_port: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    out.push(b'@');
    host_port(out);
    out.extend_from_slice(route_params(transport));
    out.push(b'>');
}

/// Who reads what we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Client,
    Backend,
}

impl Listener {
    /// How a reader knows it, where that does not hang on the message: `advertise` counts toward clients only.
    fn naming(&self, reader: Reader) -> Option<&Naming> {
        let advertised = self.toward_clients.as_ref().filter(|_| reader == Reader::Client);
        advertised.or(self.toward_backends.as_ref())
    }

    /// Appends `host:port` of a wildcard's socket: its host is `local` (0.0.0.0 is never put on the wire, SPEC 9.1).
    fn write_host_port(&self, local: Option<IpAddr>, out: &mut Vec<u8>) {
        let ip = local.unwrap_or(self.address.ip());
        put::host_port(SocketAddr::new(ip, self.address.port()), out);
    }

    /// Appends our Via as far as its token.
    pub fn write_via(&self, reader: Reader, local: Option<IpAddr>, out: &mut Vec<u8>) {
        match self.naming(reader) {
            Some(naming) => out.extend_from_slice(&naming.via),
            None => write_via(self.transport, |out| self.write_host_port(local, out), out),
        }
    }

    /// The value of our Via as far as its token, where that does not hang on the message.
    pub fn via_value(&self, reader: Reader) -> Option<&[u8]> {
        self.naming(reader)?.via.strip_prefix(b"Via: ")
    }

    /// A Record-Route or Path of ours from its `@` to its `>`, where that does not hang on the message.
    pub fn route_end(&self, reader: Reader) -> Option<&[u8]> {
        self.naming(reader).map(|naming| &*naming.route_end)
    }

    /// Appends a Record-Route or Path of ours from its `@` to its `>`.
    pub fn write_route_end(&self, reader: Reader, local: Option<IpAddr>, out: &mut Vec<u8>) {
        match self.naming(reader) {
            Some(naming) => out.extend_from_slice(&naming.route_end),
            None => write_route_end(self.transport, |out| self.write_host_port(local, out), out),
        }
    }

    pub fn allows_backends(&self) -> bool {
        self.side != Side::Clients
    }

    /// The flow of what came by this listener.
    pub fn flow(&self, arrival: &Arrival) -> Flow {
        match arrival.flow {
            Some(id) => Flow::Stream { listener: self.id, id },
            None => self.datagram(arrival.local, arrival.peer),
        }
    }

    /// The flow of datagrams between this listener and `peer`.
    pub fn datagram(&self, local: SocketAddr, peer: SocketAddr) -> Flow {
        Flow::Datagram { listener: self.id, local: self.wildcard.then(|| local.ip()), peer }
    }
}

/// Listeners, names, keys, trust.
#[derive(Debug)]
pub struct Setup {
    pub router: u8,
    pub boot: u16,
    pub start: Now,
    pub listeners: Vec<Listener>,
    pub names: Names,
    pub ring: Ring,
    pub trust: Prefixes,
    /// Of `[protection]`; those of `trust` are exempt too.
    pub exempt: Prefixes,
    pub deny: Prefixes,
    pub allow: Prefixes,
    pub protection: Protection,
    pub ban_datagrams: bool,
    pub retry_after_s: u32,
    pub emergency: Box<[Box<[u8]>]>,
    pub limits: Limits,
    /// How long an address that refused is passed over.
    pub avoid_ms: u64,
    pub grace_s: u64,
    /// When 503s of a backend make a pause (SPEC 8.2).
    pub busy: BackOff,
    pub pins: usize,
    /// How our own Route values end, from their `@` on.
    route_ends: Vec<Box<[u8]>>,
}

impl Setup {
    /// `boot` is the boot id of the state directory; `start` when this process started.
    pub fn new(settings: &Settings, ring: Ring, boot: u16, start: Now) -> Setup {
        let listeners = settings.listen.iter().map(|l| Listener {
            name: l.name.clone(),
            id: l.id,
            transport: l.transport,
            address: l.address,
            side: l.side,
            wildcard: l.address.ip().is_unspecified(),
            toward_clients: l.advertise.as_ref().map(|(host, port)| {
                let host =
                    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
                Naming::new(host.as_bytes(), l.transport)
            }),
            toward_backends: (!l.address.ip().is_unspecified())
                .then(|| Naming::new(l.address.to_string().as_bytes(), l.transport)),
        });
        let listeners: Vec<Listener> = listeners.collect();
        let namings = listeners.iter().flat_map(|l| [&l.toward_clients, &l.toward_backends]).flatten();
        let route_ends = namings.map(|naming| naming.route_end.clone()).collect();
        let protection = &settings.protection;
        Setup {
            router: settings.tokens.router_id,
            boot,
            start,
            listeners,
            route_ends,
            names: Names::new(settings),
            ring,
            trust: Prefixes::new(&settings.trust.prefixes),
            exempt: Prefixes::new(protection.exempt.iter().chain(&settings.trust.prefixes)),
            deny: Prefixes::new(&protection.deny),
            allow: Prefixes::new(&protection.allow),
            ban_datagrams: protection.ban_datagrams,
            retry_after_s: protection.retry_after.as_secs() as u32,
            emergency: protection.emergency.iter().map(|user| user.as_bytes().into()).collect(),
            protection: protection.clone(),
            limits: settings.limits.wire,
            avoid_ms: settings.dns.avoid.as_millis() as u64,
            grace_s: settings.timers.grace.as_secs(),
            busy: BackOff {
                sources: settings.health.busy_sources,
                window_s: settings.health.busy_window.as_secs() as u32,
                most_s: settings.health.longest_pause.as_secs() as u32,
            },
            pins: settings.limits.pins,
        }
    }

    pub fn listener(&self, index: u8) -> &Listener {
        &self.listeners[usize::from(index)]
    }

    /// The user of a Route or Record-Route value that stands byte for byte as we write them: most of ours come back so, and
    /// need not be parsed.
    pub fn own_route<'v>(&self, value: &'v [u8]) -> Option<&'v [u8]> {
        let start = behind_scheme(value)?;
        let (user, end) = start.split_at(memchr::memchr(b'@', start)?);
        (self.route_ends.iter().any(|own| **own == *end) && token::is_text(user)).then_some(user)
    }

    /// The listener that a token names.
    pub fn by_id(&self, id: u16) -> Option<u8> {
        self.listeners.iter().position(|l| l.id == id).map(|i| i as u8)
    }

    /// The listener by which a request leaves toward an address that is no backend's and no flow's: the first of that
    /// transport and family with side clients, then both, then any.
    pub fn toward(&self, transport: Transport, addr: SocketAddr) -> Option<u8> {
        let fits = |l: &&Listener| l.transport == transport && l.address.is_ipv4() == addr.is_ipv4();
        let rank = |l: &Listener| match l.side {
            Side::Clients => 0,
            Side::Both => 1,
            Side::Backends => 2,
        };
        let best = self.listeners.iter().filter(fits).min_by_key(|l| rank(l))?;
        self.by_id(best.id)
    }

    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.trust.contains(ip)
    }
}

/// Of a Route or Record-Route value as we begin ours: what stands behind `<sip:` or `<sips:`.
pub fn behind_scheme(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"<sip:").or_else(|| value.strip_prefix(b"<sips:"))
}

/// The parameters of a Route that names a listener of this transport: it must lead the receiver to that one (RFC 5658).
fn route_params(transport: Transport) -> &'static [u8] {
    match transport {
        Transport::Udp => b";lr",
        Transport::Tcp => b";transport=tcp;lr",
        Transport::Tls => b";transport=tls;lr",
        // RFC 7118 5.2: wss is the transport of a sips URI or of the connection; the parameter is ws.
        Transport::Ws | Transport::Wss => b";transport=ws;lr",
    }
}

/// The light state that cores share.
pub struct Shared {
    pub flows: Flows,
    pub moved: Moved,
    pub unreachable: Unreachable,
    pub calls: Calls,
    /// Who is on which connection.
    pub users: Users,
    /// What control is told.
    pub news: News,
    pub bans: Bans,
    /// Stream connections of all cores.
    pub connections: Arc<Connections>,
}

impl Shared {
    pub fn new(settings: &Settings) -> Shared {
        let connections = Arc::new(Connections::new(settings.workers.count));
        Shared {
            flows: Flows::new(settings.limits.flows, connections.clone()),
            moved: Moved::new(settings.limits.moved_flows),
            unreachable: Unreachable::new(settings.limits.unreachable),
            calls: Calls::new(settings.limits.calls),
            users: Users::new(settings.limits.users, settings.limits.users_per_connection),
            news: News::new(settings.limits.news),
            bans: Bans::new(Terms {
                most: settings.protection.bans,
                seconds: settings.protection.ban_time.as_secs(),
                doubles: settings.protection.ban_doubles,
                longest_s: settings.protection.ban_longest.as_secs(),
            }),
            connections,
        }
    }

    /// Is this connection open? Else since when it is not (`mono_ms`): for another boot, and where it was so long ago that
    /// nobody knows, our start (SPEC 3.5).
    pub fn stream(&self, setup: &Setup, id: FlowId) -> Result<(), u64> {
        let ours = (id.router, id.boot) == (setup.router, setup.boot);
        match self.connections.find(id) {
            Alive::Open if ours => Ok(()),
            Alive::Closed(since) if ours => Err(since),
            _ => Err(setup.start.mono_ms),
        }
    }

    /// The address of ours that a flow leads to, where its listener is bound to a wildcard.
    pub fn local(&self, listener: &Listener, flow: &Flow) -> Option<IpAddr> {
        match flow {
            Flow::Datagram { local, .. } => *local,
            Flow::Stream { id, .. } => listener.wildcard.then(|| self.connections.local(*id)).flatten(),
        }
    }
}
