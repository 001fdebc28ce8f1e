//! What goes into a core and what comes out of it.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use crate::wire::token::FlowId;

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
    /// ICMP port unreachable: nobody listens there.
    Refused,
    /// ICMP host or network unreachable, or the kernel knows no way.
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
    pub messages: Vec<(Target, Range<usize>)>,
}

impl Outbox {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages.clear();
    }

    /// Ends a message that was written from `start` on.
    pub fn finish(&mut self, target: Target, start: usize) {
        self.messages.push((target, start..self.bytes.len()));
    }
}
