//! Pins of SPEC 7.1, per core: hash(Call-ID, From tag, source) -> target, 32 bytes each, for 32 s or 5 min.
//!
//! A retransmission, a CANCEL, an ACK and the retry after 401/407 look here first, so that a table swap or a health change
//! does not send them elsewhere than their request. Bounded, set-associative, no allocation after `new`; a full set drops
//! its oldest pin.

use std::net::{IpAddr, SocketAddr};

use super::Now;
use crate::wire::Transport;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinTarget {
    /// A backend by address and transport.
    Backend { addr: SocketAddr, transport: Transport },
    /// A UDP client flow; `listener` is the index of the listener, `local` set for wildcard listeners.
    Datagram { local: Option<IpAddr>, peer: SocketAddr },
}

/// `listener`: index of the listener by which it left. `key_id`: the token key that signed its Via (0-15), so that a
/// CANCEL after a rotation takes the same branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    pub target: PinTarget,
    pub listener: u8,
    pub key_id: u8,
}

pub struct Pins {}

impl Pins {
    /// Room for `capacity` pins (rounded up to a power of two).
    pub fn new(_capacity: usize) -> Pins {
        todo!()
    }

    /// Records or renews. True where a live pin had to go.
    pub fn put(&mut self, _key: u64, _pin: Pin, _seconds: u32, _now: Now) -> bool {
        todo!()
    }

    pub fn find(&self, _key: u64, _now: Now) -> Option<Pin> {
        todo!()
    }

    /// Pins in use, counted as they come and go (expired ones are noticed when their place is looked at or swept).
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Looks at `sets` further sets for expired pins: called on each tick, so that the gauge is true within a minute.
    pub fn sweep(&mut self, _sets: usize, _now: Now) {
        todo!()
    }
}
