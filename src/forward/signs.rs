//! What the path notices of a backend's health (SPEC 8.2) and leaves in its `live::Signs`: ICMP errors, and 503s with
//! Retry-After. That it was asked and that it answered stands in the core's counters. `control::health` acts on all of it.

use std::net::IpAddr;

use super::{Turn, io::Fault};
use crate::{
    live::{BackendState, Now, Sign},
    wire::{HeaderId, View, token::Flow},
};

/// An ICMP error came back for something that was sent to this backend, or a connection to it failed. `proven`: it is no
/// stranger's word.
pub(super) fn unreachable(backend: &BackendState, why: Fault, proven: bool, now: Now) {
    let sign = match why {
        Fault::Refused => Sign::Refused,
        Fault::Unreachable => Sign::Unreachable,
        Fault::TooLarge | Fault::Closed | Fault::Full => return,
    };
    if !proven {
        return backend.signs.raise(sign);
    }
    if sign == Sign::Refused {
        backend.note_restart(now.unix_s);
    }
    backend.signs.unreachable(sign);
}

/// This backend answered 503 to whoever is behind `back`.
pub(super) fn unavailable(backend: &BackendState, turn: &Turn<'_>, view: &View<'_>, back: &Flow) {
    let Some(seconds) = retry_after(view) else { return };
    let source: Option<IpAddr> = match back {
        Flow::Datagram { peer, .. } => Some(peer.ip()),
        Flow::Stream { id, .. } => turn.shared.connections.about(*id).map(|about| about.peer.ip()),
    };
    if let Some(source) = source {
        backend.signs.busy(source, seconds, turn.now, &turn.setup.busy);
    }
}

/// The seconds of a Retry-After (RFC 3261 20.33: a comment and parameters may follow).
fn retry_after(view: &View<'_>) -> Option<u32> {
    let value = view.value(HeaderId::RetryAfter)?;
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
}
