//! Tokens of SPEC 3: what we sign and put into a Via branch, a Record-Route, a Path or an entity-tag.

use std::net::{IpAddr, SocketAddr};

use super::name::Transport;

/// A stream connection, by where it is held (SPEC 3.2). `slot` is below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    pub router: u8,
    pub boot: u16,
    pub core: u8,
    pub slot: u32,
    pub generation: u16,
}

/// The way to a client: the listener (by the id of its name) and the remote address, or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// `local` is set where the listener is bound to a wildcard: the address that the client spoke to.
    Datagram {
        listener: u16,
        local: Option<IpAddr>,
        peer: SocketAddr,
    },
    Stream {
        listener: u16,
        id: FlowId,
    },
}

/// One side of a dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Client(Flow),
    /// By address and transport, not by index: it outlives tables (SPEC 3.2).
    Backend {
        addr: SocketAddr,
        transport: Transport,
    },
}

/// The keys: up to 16, the first signs, all verify (SPEC 3.1).
#[derive(Clone, Debug)]
pub struct Ring {
    keys: Vec<(u8, [u8; 16])>,
}

impl Ring {
    /// `keys`: (key id 0-15, 128 bits), at least one, ids distinct.
    pub fn new(keys: Vec<(u8, [u8; 16])>) -> Ring {
        Ring { keys }
    }
}
