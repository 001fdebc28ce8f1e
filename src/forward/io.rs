//! What goes into a core and what comes out of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use crate::wire::{Reason, token::FlowId};

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
    /// What came on a stream that cannot go on: the cause, and so much of the message as an answer may be written from
    /// (perhaps nothing). The connection is closed behind the answer.
    Refused(Arrival, Reason, &'a [u8]),
    /// CRLFs on a stream (RFC 5626 4.4.1), dealt with already.
    Keepalive,
    /// Something that we sent could not go: no retry will help. `sent` are its bytes as far as they are known (an ICMP
    /// error gives at most the first 512 or so; empty where unknown). Of a datagram it is believed by our token in them only.
    Undeliverable {
        target: Target,
        sent: &'a [u8],
        why: Fault,
    },
    /// A connection from this listener to a backend could not be made, or was reset.
    Lost {
        listener: u8,
        to: SocketAddr,
        why: Fault,
    },
    /// A connection has ended.
    Closed(Closed),
    /// The core has fallen behind what comes in, or has caught up again (SPEC 10).
    Behind(bool),
    /// Once a second, and when the table changed.
    Tick,
}

/// A connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    pub id: FlowId,
    /// Index of its listener.
    pub listener: u8,
    pub peer: SocketAddr,
    /// When it was opened and when bytes last came, in `mono_ms`.
    pub opened_ms: u64,
    pub heard_ms: u64,
    /// As `tidings_connections_closed_total` labels it.
    pub reason: &'static str,
}

/// Why something could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ICMP port unreachable: nobody listens there.
    Refused,
    /// ICMP host or network unreachable, or the kernel knows no way.
    Unreachable,
    /// EMSGSIZE.
    TooLarge,
    /// The connection has ended, or its peer reads too slowly.
    Closed,
    /// Another core takes no more.
    Full,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// By this worker's socket of listener `listener`; `from` is the source address to name on a wildcard socket.
    Datagram { listener: u8, from: Option<IpAddr>, to: SocketAddr },
    /// By this connection, of whatever core.
    Stream { listener: u8, id: FlowId },
    /// By the connection from a stream listener to this address, which is made where there is none; `from` is the source
    /// address to name on a wildcard listener.
    Connect { listener: u8, from: Option<IpAddr>, to: SocketAddr },
}

impl Target {
    /// Index of the listener by which it leaves.
    pub fn listener(&self) -> u8 {
        let (Target::Datagram { listener, .. }
        | Target::Stream { listener, .. }
        | Target::Connect { listener, .. }) = self;
        *listener
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Datagram { to, .. } | Target::Connect { to, .. } => write!(f, "{to}"),
            Target::Stream { id, .. } => write!(f, "connection {id}"),
        }
    }
}

/// What a step wants sent: one byte buffer, ranges of it with their targets. Cleared by the worker after sending.
#[derive(Default)]
pub struct Outbox {
    pub bytes: Vec<u8>,
    pub messages: Vec<(Target, Range<usize>)>,
}

impl Outbox {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
    }

    /// Ends a message that was written from `start` on.
    #[inline]
    pub fn finish(&mut self, target: Target, start: usize) {
        self.messages.push((target, start..self.bytes.len()));
    }
}
