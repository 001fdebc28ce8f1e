//! tidings.toml: listeners, limits, trust, tokens, admin (SPEC 12, Appendix A). Every setting has a default.
//!
//! `read` walks the file and collects every fault, with rooms for the larger sections (`listen`, `limits` and so on);
//! `units` knows durations, sizes and addresses, `keys` the ring of token keys. What comes out is valid: nobody behind this
//! room checks it again.

mod dns;
mod flow_events;
mod keys;
mod limits;
mod listen;
mod protection;
mod read;
mod streams;
pub mod tls;
mod units;
mod warn;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::document::Place;
use crate::wire::{Limits as WireLimits, Transport, upgrade};

pub(super) use read::{network, time};
pub(super) use units::host_port;

pub use dns::Dns;
pub use flow_events::{FlowEvents, Keepalive, KeepaliveMethod, NotifyTo, Webhook};
pub use keys::parse_ring;
pub use protection::{NftSets, Protection};
pub use read::SECTIONS;
pub use tls::Tls;
pub use warn::warnings;

/// The table that serves where no file is named: no pool, no rule.
pub const DEFAULT_TABLE: &str = include_str!("../../../routing/default.toml");
/// Its name in diagnostics.
pub const DEFAULT_TABLE_NAME: &str = "routing/default.toml";

/// Which side a listener serves (SPEC 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Clients,
    Backends,
    #[default]
    Both,
}

/// One `[[listen]]`.
#[derive(Clone, Debug)]
pub struct ListenSpec {
    pub name: String,
    pub transport: Transport,
    pub address: SocketAddr,
    pub side: Side,
    /// Host (no brackets) and port that Via, Record-Route and Path name toward clients.
    pub advertise: Option<(String, u16)>,
    /// xxh3 of the name, folded to 16 bits: how tokens name the listener (two listeners with one id are refused).
    pub id: u16,
    /// Where the transport has TLS.
    pub tls: Option<tls::ServerTls>,
    /// What is asked of those who come, where the transport is a WebSocket.
    pub websocket: Option<Arc<upgrade::Rules>>,
    /// Who says by the PROXY protocol for whom he calls; all others must not.
    pub proxies: Arc<[IpNet]>,
}

/// The whole of tidings.toml, valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Absolute, or relative to the working directory. `None`: the embedded default table.
    pub table: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub aliases: Vec<String>,
    pub workers: Workers,
    pub listen: Vec<ListenSpec>,
    pub trust: Trust,
    pub tokens: Tokens,
    pub limits: Limits,
    pub timers: Timers,
    pub health: Health,
    pub udp: Udp,
    pub dns: Dns,
    pub connections: ConnectionLimits,
    pub tls: Tls,
    pub flow_events: FlowEvents,
    pub keepalive: Keepalive,
    pub protection: Protection,
    pub admin: Admin,
    pub log: Log,
    pub origin: Origin,
}

/// Where the settings come from, for later complaints about them.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Empty where there is no file.
    pub file: String,
    /// The place of each listener, in the order of `Settings::listen`.
    pub listen: Vec<Place>,
}

/// `[workers]`
#[derive(Clone, Debug)]
pub struct Workers {
    /// Default: one per core.
    pub count: usize,
    /// Each worker stays on its own core. Default: no, since two routers on one machine would share the first cores.
    pub pin: bool,
}

/// `[trust]`
#[derive(Clone, Debug, Default)]
pub struct Trust {
    pub prefixes: Vec<IpNet>,
    /// Header names, as written, removed from every request that is not from a backend (SPEC 1.2).
    pub strip: Vec<String>,
}

/// `[tokens]`: `router_id` (0-255, default 0), `keys = [{ id = 3, key = "32 hex digits" }]` (the first signs), or
/// `key_file` (mode 0600, lines of `id hex`, the first signs).
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub router_id: u8,
    pub keys: Vec<(u8, [u8; 16])>,
    pub key_file: Option<PathBuf>,
}

/// `[limits]`: each has a gauge and a counter.
#[derive(Clone, Debug)]
pub struct Limits {
    pub wire: WireLimits,
    /// Pins per core (32 bytes each).
    pub pins: usize,
    /// Call records per process (32 bytes each).
    pub calls: usize,
    pub flows: usize,
    pub moved_flows: usize,
    /// Flows that an ICMP error has closed.
    pub unreachable: usize,
    /// Users of stream connections that are remembered (SPEC 9.9): in all, of one connection.
    pub users: usize,
    pub users_per_connection: usize,
    /// Ended connections, and answers to requests of our own, that wait for control.
    pub news: usize,
    /// Requests of our own that wait for their answer.
    pub own_requests: usize,
    /// Addresses of backends that left the table or their name, still believed (SPEC 1.1).
    pub departed: usize,
    /// Metric series each of rules, backends and packages, beyond which all is `other`.
    pub series: usize,
}

/// `[timers]`
#[derive(Clone, Debug)]
pub struct Timers {
    /// Grace of a dead route (SPEC 3.5); default 30 s.
    pub grace: Duration,
}

/// `[health]`: what holds for the backends of all pools (SPEC 8); `probe` of a pool says how often and by what.
#[derive(Clone, Debug)]
pub struct Health {
    /// Probes under way at one time, at most; those beyond wait for room. Default 64.
    pub probes: usize,
    /// A backend that answers nothing for so long, though requests went there, is probed at once; default 2 s.
    pub silence: Duration,
    /// Of so many different sources requests must have been met with 503 and Retry-After, within `busy_window`, before
    /// they make a pause for all; default 3 within 10 s.
    pub busy_sources: usize,
    pub busy_window: Duration,
    /// Longest pause that a backend gets, whatever its Retry-After says; default 5 min.
    pub longest_pause: Duration,
}

/// `[udp]`
#[derive(Clone, Debug)]
pub struct Udp {
    /// SO_RCVBUF asked for, in bytes; default 8 MiB. What the kernel gave is logged and exported.
    pub receive_buffer: usize,
    pub send_buffer: usize,
}

/// `[connections]`: what stream connections may have and how long (SPEC 9.7).
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Accepted connections in all. Default: 100,000, or what the limit of open files leaves.
    pub most: Option<usize>,
    /// Of one address, of one /24 or /64; new ones of one address in a second.
    pub per_address: u32,
    pub per_prefix: u32,
    pub accepts_per_second: u32,
    /// Not counted by address and prefix. Those of `[trust] prefixes` are not either.
    pub exempt: Vec<IpNet>,
    /// Bytes that may wait for one peer.
    pub output: usize,
    pub idle: Duration,
    /// Keep-alives that one may bring in a second without a message among them.
    pub keepalives_per_second: u32,
    /// From the beginning of a connection to its first whole message, of a message from its first byte to its last
    /// (of a TLS record, a WebSocket's upgrade and a PROXY header too).
    pub first_message: Duration,
    pub message_time: Duration,
    /// Without the peer's taking anything while something waits for it.
    pub output_time: Duration,
    /// To a backend.
    pub connect_time: Duration,
    /// TLS handshakes under way, of all workers; default 2,000. Beyond it the oldest must go.
    pub handshakes: usize,
    /// For a TLS handshake; default 10 s.
    pub handshake_time: Duration,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Default 127.0.0.1:9060; `off` in the file for none.
    pub address: Option<SocketAddr>,
    /// Bearer token, required where the address is not loopback.
    pub token: Option<String>,
    /// Names by which the API may be asked where there is no token, beside `localhost` and addresses; without a port.
    pub hosts: Vec<String>,
    /// Connections at one time; beyond it new ones are closed at once. Default 64.
    pub connections: usize,
    /// Up to the end of a request's head, and from there to the end of its body; a connection may be idle for so long,
    /// and leave an answer untaken. Default 10 s.
    pub request_time: Duration,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    pub json: bool,
    /// A level, or directives such as `info,tidings::net=debug`.
    pub level: String,
}

/// How tokens name a listener: xxh3 of its name, its four 16-bit parts combined by exclusive or. Pinned by a test: it
/// stands in route sets that outlive us.
pub fn listener_id(name: &str) -> u16 {
    let hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    u16::from_le_bytes([a, b])
        ^ u16::from_le_bytes([c, d])
        ^ u16::from_le_bytes([e, f])
        ^ u16::from_le_bytes([g, h])
}

impl ListenSpec {
    /// A UDP listener without `advertise`.
    pub fn udp(name: &str, address: SocketAddr, side: Side) -> ListenSpec {
        ListenSpec {
            name: name.to_owned(),
            transport: Transport::Udp,
            address,
            side,
            advertise: None,
            id: listener_id(name),
            tls: None,
            websocket: None,
            proxies: Arc::default(),
        }
    }
}

impl Default for Settings {
    /// What `tidings run` uses without a file.
    fn default() -> Settings {
        Settings {
            table: None,
            state_dir: None,
            aliases: Vec::new(),
            workers: Workers::default(),
            listen: vec![default_listener()],
            trust: Trust::default(),
            tokens: Tokens::default(),
            limits: Limits::default(),
            timers: Timers::default(),
            health: Health::default(),
            udp: Udp::default(),
            dns: Dns::default(),
            connections: ConnectionLimits::default(),
            tls: Tls::default(),
            flow_events: FlowEvents::default(),
            keepalive: Keepalive::default(),
            protection: Protection::default(),
            admin: Admin::default(),
            log: Log::default(),
            origin: Origin::default(),
        }
    }
}

fn default_listener() -> ListenSpec {
    ListenSpec::udp("udp-5060", SocketAddr::from(([0, 0, 0, 0], 5060)), Side::Both)
}

impl Default for Workers {
    fn default() -> Workers {
        Workers { count: std::thread::available_parallelism().map_or(1, usize::from), pin: false }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            wire: WireLimits::default(),
            pins: 262_144,
            calls: 100_000,
            flows: 100_000,
            moved_flows: 100_000,
            unreachable: 10_000,
            users: 100_000,
            users_per_connection: 16,
            news: 16_384,
            own_requests: 1_000,
            departed: 10_000,
            series: 1_000,
        }
    }
}

impl Default for Timers {
    fn default() -> Timers {
        Timers { grace: Duration::from_secs(30) }
    }
}

impl Default for Health {
    fn default() -> Health {
        Health {
            probes: 64,
            silence: Duration::from_secs(2),
            busy_sources: 3,
            busy_window: Duration::from_secs(10),
            longest_pause: Duration::from_secs(300),
        }
    }
}

impl Default for Udp {
    fn default() -> Udp {
        Udp { receive_buffer: 8 << 20, send_buffer: 8 << 20 }
    }
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            most: None,
            per_address: 1_000,
            per_prefix: 10_000,
            accepts_per_second: 200,
            exempt: Vec::new(),
            output: 256 << 10,
            idle: Duration::from_secs(3600),
            keepalives_per_second: 64,
            first_message: Duration::from_secs(30),
            message_time: Duration::from_secs(10),
            output_time: Duration::from_secs(30),
            connect_time: Duration::from_secs(3),
            handshakes: 2_000,
            handshake_time: Duration::from_secs(10),
        }
    }
}

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            address: Some(SocketAddr::from(([127, 0, 0, 1], 9060))),
            token: None,
            hosts: Vec::new(),
            connections: 64,
            request_time: Duration::from_secs(10),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { json: false, level: "info".to_owned() }
    }
}

#[cfg(test)]
mod tests;
