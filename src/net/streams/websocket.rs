//! A connection as a WebSocket (SPEC 9.4, RFC 7118): the upgrade, then messages in frames both ways.
//!
//! Bytes are `wire::upgrade`'s and `wire::websocket`'s; what one message of it must hold is `wire::frame::whole`'s. What is
//! to be answered at once (the upgrade, pongs, a Close) is collected in `Brought::say`, one pong for each read at most. A
//! message leaves as one frame, made in a buffer of the core's. Driven by `Connection`.

use std::sync::Arc;

use super::{
    Reason,
    connection::{Brought, Heard, Pulse},
};
use crate::{
    stats::Counter,
    wire::{
        self, Frame, Index, Limits as WireLimits,
        frame::whole,
        upgrade::{self, Asked, Refusal, Rules},
        websocket::{self, Reader, Unit},
    },
};

pub struct Session {
    rules: Arc<Rules>,
    reader: Reader,
    upgraded: bool,
    /// What a Close of ours is to say, once there is a reason for it.
    code: u16,
    /// A Close has left.
    closed: bool,
    /// Bytes of the request that were searched for its end.
    searched: usize,
}

impl Session {
    pub fn new(rules: Arc<Rules>) -> Session {
        let code = websocket::GOING_AWAY;
        Session { rules, reader: Reader::default(), upgraded: false, code, closed: false, searched: 0 }
    }

    pub fn is_open(&self) -> bool {
        self.upgraded
    }

    /// A message in several frames is not complete.
    pub fn is_under_way(&self) -> bool {
        self.reader.is_under_way()
    }

    /// The Close that is due before the end, if any is: once.
    pub fn farewell(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.upgraded && !self.closed {
            self.closed = true;
            websocket::put_close(Some(self.code), &mut out);
        }
        out
    }

    /// Takes the request; gives how many bytes it has.
    pub fn greet(&mut self, bytes: &[u8], brought: &mut Brought) -> usize {
        match upgrade::read(bytes, self.searched, &self.rules) {
            Asked::More => {
                self.searched = bytes.len();
                0
            }
            Asked::Good(len, accepted) => {
                self.upgraded = true;
                accepted.put(&mut brought.say);
                brought.counter = Some(Counter::Websockets);
                len
            }
            Asked::Refused(refusal) => {
                refusal.put(&mut brought.say);
                brought.counter = Some(counter(refusal));
                brought.end = Some(Reason::Upgrade);
                0
            }
        }
    }

    /// Hands on what is complete; gives how many bytes that were. Masks are taken off in place.
    pub fn take(
        &mut self,
        bytes: &mut [u8],
        index: &mut Index,
        limits: &WireLimits,
        pulse: &mut Pulse,
        brought: &mut Brought,
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> usize {
        let (mut taken, mut pong) = (0, Vec::new());
        while taken < bytes.len() && brought.end.is_none() {
            let unit = match self.reader.next(&mut bytes[taken..], limits.message) {
                Ok((_, Unit::More)) => break,
                Ok((len, unit)) => {
                    taken += len;
                    unit
                }
                Err(fault) => {
                    self.code = fault.code();
                    brought.end = Some(Reason::Websocket);
                    if fault == websocket::Fault::TooLarge {
                        hear(Heard::Refused(wire::Reason::TooLarge, &[]));
                    }
                    break;
                }
            };
            match unit {
                Unit::More | Unit::Piece => {}
                Unit::Ping(_) | Unit::Pong if !pulse.beat() => too_many(brought, hear),
                Unit::Pong => {}
                Unit::Message(message) => {
                    brought.complete = true;
                    if let Err(code) = one_message(message, index, limits, pulse, brought, hear) {
                        self.code = code;
                        brought.end = Some(Reason::Framing);
                    }
                    self.reader.forget();
                }
                // Of several the last is enough (RFC 6455 5.5.3).
                Unit::Ping(payload) => {
                    pong.clear();
                    websocket::put_pong(payload, &mut pong);
                }
                Unit::Close(code) => {
                    self.closed = true;
                    websocket::put_close(code, &mut pong);
                    brought.end = Some(Reason::Peer);
                }
            }
        }
        brought.say.append(&mut pong);
        taken
    }
}

/// Keep-alives beyond what a connection may bring in a second.
fn too_many(brought: &mut Brought, hear: &mut dyn FnMut(Heard<'_>)) {
    hear(Heard::Refused(wire::Reason::KeepaliveFlood, &[]));
    brought.end = Some(Reason::Keepalives);
}

/// `Err`: the code with which to close.
fn one_message(
    message: &[u8],
    index: &mut Index,
    limits: &WireLimits,
    pulse: &mut Pulse,
    brought: &mut Brought,
    hear: &mut dyn FnMut(Heard<'_>),
) -> Result<(), u16> {
    let (frame, message) = whole(message, index, limits);
    match frame {
        Frame::Keepalive { .. } if !pulse.beat() => too_many(brought, hear),
        Frame::Keepalive { ping, .. } => {
            brought.pings += usize::from(ping);
            hear(Heard::Keepalive);
        }
        Frame::Message { len } => {
            pulse.rest();
            hear(Heard::Message(&message[..len]));
        }
        Frame::Refused { reason, head } => {
            hear(Heard::Refused(reason, &message[..head]));
            return Err(if reason == wire::Reason::TooLarge {
                websocket::TOO_BIG
            } else {
                websocket::REFUSED
            });
        }
        Frame::More => {}
    }
    Ok(())
}

fn counter(refusal: Refusal) -> Counter {
    match refusal {
        Refusal::Request => Counter::UpgradeRequest,
        Refusal::TooLong => Counter::UpgradeTooLong,
        Refusal::Method => Counter::UpgradeMethod,
        Refusal::Path => Counter::UpgradePath,
        Refusal::NoUpgrade => Counter::UpgradeNone,
        Refusal::Version => Counter::UpgradeVersion,
        Refusal::Protocol => Counter::UpgradeProtocol,
        Refusal::Origin => Counter::UpgradeOrigin,
    }
}

/// The messages of an output that have not left whole, without their frames.
pub fn unsent(output: &[u8], sent: usize) -> Vec<u8> {
    let mut messages = Vec::new();
    websocket::parts(output, |end, message| {
        if let Some(message) = message.filter(|_| end > sent) {
            messages.extend_from_slice(message);
        }
    });
    messages
}

/// Where the last part of an output ends that has left whole.
pub fn boundary(output: &[u8], sent: usize) -> usize {
    let mut boundary = 0;
    websocket::parts(output, |end, _| {
        if end <= sent {
            boundary = end;
        }
    });
    boundary
}
