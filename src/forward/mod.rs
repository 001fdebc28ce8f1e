//! The decisions of a stateless proxy (RFC 3261 16.11) with tokens for memory: `Core::step`.
//!
//! No I/O, no clock, no async: what arrives and what time it is come in, what is to be sent goes into the `Outbox`.

use std::net::{IpAddr, SocketAddr};

use crate::{live::Now, wire::token::FlowId};

/// Where a message came from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Index of the listener in the settings' order.
    pub listener: u8,
    /// The address that the sender spoke to (for a wildcard listener: from IP_PKTINFO).
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The connection, on streams.
    pub flow: Option<FlowId>,
}

/// What happens to a core.
pub enum Input<'a> {
    Message(Arrival, &'a [u8]),
    /// Something that we sent could not go: no retry will help. `sent` are its bytes as far as they are known (an ICMP
    /// error gives at most the first 512 or so; empty where unknown).
    Undeliverable {
        target: Target,
        sent: &'a [u8],
        why: Fault,
    },
    /// Once a second, and when the table changed.
    Tick,
}

/// Why something could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ICMP port, host or network unreachable.
    Unreachable,
    /// EMSGSIZE.
    TooLarge,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// By this worker's socket of listener `listener`; `from` is the source address to name on a wildcard socket.
    Datagram { listener: u8, from: Option<IpAddr>, to: SocketAddr },
}

/// What a step wants sent: one byte buffer, ranges of it with their targets. Cleared by the worker after sending.
#[derive(Default)]
pub struct Outbox {
    pub bytes: Vec<u8>,
    pub messages: Vec<(Target, std::ops::Range<usize>)>,
}

impl Outbox {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
    }
}

/// One core's decisions.
pub struct Core {}

impl Core {
    /// Takes one input and writes what is to be sent to `out`.
    pub fn step(&mut self, _now: Now, _table: &crate::route::Table, _input: Input<'_>, _out: &mut Outbox) {
        todo!()
    }
}

/// What every core of this router shares and never changes: listeners, names, keys, trust.
pub struct Setup {}

impl Setup {
    /// `boot` is the boot id of the state directory; `start` when this process started.
    pub fn new(
        _settings: &crate::config::Settings,
        _keys: crate::wire::token::Ring,
        _boot: u16,
        _start: Now,
    ) -> Setup {
        todo!()
    }
}

/// The light state that cores share.
pub struct Shared {
    pub flows: crate::live::Flows,
    pub moved: crate::live::Moved,
    pub unreachable: crate::live::Unreachable,
}

impl Core {
    /// `workers`: how many cores share the router's limits.
    pub fn new(
        _setup: std::sync::Arc<Setup>,
        _shared: std::sync::Arc<Shared>,
        _stats: std::sync::Arc<crate::stats::CoreStats>,
        _workers: usize,
    ) -> Core {
        todo!()
    }
}
