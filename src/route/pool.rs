//! Pools and backends as the path sees them, the weighted rendezvous over them, and who is a backend by address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{facts::Facts, record::Recorder};
use crate::{
    config::{
        Names,
        table::{AdminState, Balance},
    },
    live::BackendState,
    wire::Transport,
};

/// A backend by pool and position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendRef {
    pub pool: u16,
    pub index: u16,
}

#[derive(Debug)]
pub struct Backend {
    pub name: Arc<str>,
    /// Metric series; `stats::OTHER` beyond the bound.
    pub series: u32,
    pub addr: SocketAddr,
    pub transport: Transport,
    /// Host of its URI as written, lower case, no brackets (a Route or R-URI host may name it so).
    pub host: Box<[u8]>,
    pub weight: u32,
    pub admin: AdminState,
    /// xxh3 of the name with the fixed seed: placement and entity-tags.
    pub hash: u64,
    pub state: Arc<BackendState>,
    /// Index of the listener by which requests to it leave (SPEC 4.6).
    pub listener: u8,
    /// The address that Via and Record-Route name toward it: the listener's own, for a wildcard the kernel's choice.
    pub local: SocketAddr,
    /// True where `local`'s listener is a wildcard, so that sends must name their source (IP_PKTINFO).
    pub wildcard: bool,
}

#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub series: u32,
    pub balance: Balance,
    pub any_port: bool,
    /// PUBLISH over UDP with no backend for it is met with silence (SPEC 6.5).
    pub silence: bool,
    pub backends: Vec<Backend>,
}

/// Who an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Backend(BackendRef),
    /// One that left the table within a day.
    Departed,
}

/// The outcome of a balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    Backend(BackendRef),
    /// The hash names the sender itself: 482 (SPEC 1.5).
    Sender,
    /// No backend takes new requests.
    None,
}

pub struct Pools {
    pub pools: Vec<Pool>,
}

impl Pools {
    pub fn backend(&self, at: BackendRef) -> &Backend {
        &self.pools[at.pool as usize].backends[at.index as usize]
    }

    pub fn pool(&self, index: u16) -> &Pool {
        &self.pools[index as usize]
    }

    /// Who sent from `peer` over `transport` (SPEC 1.1): over UDP address and port, unless the pool says `any_port`; over
    /// streams the address. `unix_s` ends the day of departed ones.
    pub fn peer(&self, _transport: Transport, _peer: SocketAddr, _unix_s: u64) -> Option<Peer> {
        todo!()
    }

    /// Is this address a backend's of that pool?
    pub fn is_member(&self, _pool: u16, _transport: Transport, _peer: SocketAddr) -> bool {
        todo!()
    }

    /// The backend listed with this address and transport.
    pub fn by_address(&self, _addr: SocketAddr, _transport: Transport) -> Option<BackendRef> {
        todo!()
    }

    /// The backend that a URI's host (a name as written in the table, or an IP literal) and port mean; where the port is
    /// absent or no backend's, the first with that host. `pool_of`: only backends that share a pool with this one.
    pub fn by_host(
        &self,
        _host: &[u8],
        _port: Option<u16>,
        _pool_of: Option<BackendRef>,
    ) -> Option<BackendRef> {
        todo!()
    }

    /// Balances over a pool: `key_buf` is scratch for the key. `sender` is never the target.
    pub fn pick<R: Recorder>(
        &self,
        _pool: u16,
        _facts: &Facts<'_>,
        _names: &Names,
        _sender: Option<BackendRef>,
        _key_buf: &mut Vec<u8>,
        _recorder: &mut R,
    ) -> Pick {
        todo!()
    }
}

/// Addresses of backends that left the table, with the second until which they are still believed (a day).
pub type Departed = Vec<(IpAddr, Option<u16>, Transport, u64)>;
