//! tidings.toml: listeners, limits, trust, tokens, admin (SPEC 12, Appendix A). Every setting has a default.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

use crate::wire::{Limits as WireLimits, Transport};

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
    pub udp: Udp,
    pub admin: Admin,
    pub log: Log,
}

/// `[workers]`
#[derive(Clone, Debug)]
pub struct Workers {
    /// Default: one per core.
    pub count: usize,
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
    /// Call records per process (32 bytes each; issue on backends).
    pub flows: usize,
    pub moved_flows: usize,
    /// Flows that an ICMP error has closed.
    pub unreachable: usize,
    /// Metric series each of rules, backends and packages, beyond which all is `other`.
    pub series: usize,
}

/// `[timers]`
#[derive(Clone, Debug)]
pub struct Timers {
    /// Grace of a dead route (SPEC 3.5); default 30 s.
    pub grace: Duration,
}

/// `[udp]`
#[derive(Clone, Debug)]
pub struct Udp {
    /// SO_RCVBUF asked for, in bytes; default 8 MiB. What the kernel gave is logged and exported.
    pub receive_buffer: usize,
    pub send_buffer: usize,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Default 127.0.0.1:9060; `off` in the file for none.
    pub address: Option<SocketAddr>,
    /// Bearer token, required where the address is not loopback.
    pub token: Option<String>,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    pub json: bool,
    pub level: String,
}
