//! One request with all that is known of it, and who sent it (SPEC 1.1).

use std::net::{IpAddr, SocketAddr};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    Arrival, Turn,
    guard::Guard,
    hash,
    hop::Hops,
    routes::Routes,
    setup::{Setup, Shared},
};
use crate::{
    live::{Now, Pins},
    route::{Facts, Source, Table},
    wire::{Essentials, Event, HeaderId, Method, Reason, Start, View, reply::Stamp, token::Flow},
};

/// One request with all that is known of it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub turn: &'a Turn<'a>,
    pub setup: &'a Setup,
    pub table: &'a Table,
    pub arrival: &'a super::Arrival,
    pub view: &'a View<'a>,
    pub essentials: &'a Essentials<'a>,
    pub routes: &'a Routes<'a>,
    pub method: Method,
    /// The event package, where the method has one.
    pub package: Option<&'a [u8]>,
    pub source: Source,
    pub transaction: u64,
    pub loop_hash: u32,
}

impl<'a> Request<'a> {
    pub fn hops(&self) -> Hops<'a> {
        Hops {
            now: self.turn.now,
            setup: self.setup,
            shared: self.turn.shared,
            table: self.table,
            source: self.source,
            method: self.method,
            essentials: self.essentials,
            arrival: self.arrival,
        }
    }

    /// The client's flow, as it arrived.
    pub fn flow(&self) -> Flow {
        self.setup.listener(self.arrival.listener).flow(self.arrival)
    }

    /// Who asks, for its pin: transaction and method, CANCEL and ACK as their INVITE.
    pub fn who(&self) -> u64 {
        let token = if self.is_cancel_or_ack() { b"INVITE" } else { self.token() };
        self.transaction ^ xxh3_64_with_seed(token, self.transaction)
    }

    /// The key of its pin. The Request-URI is in it: what a pin is for has it equal.
    pub fn pin_key(&self) -> u64 {
        Pins::key(self.who(), xxh3_64_with_seed(self.routes.ruri, self.transaction))
    }

    /// How its pin knows its retransmissions: by bits of its branch that no Record-Route tells. The hash is keyed, so that
    /// nobody finds another transaction that has them.
    pub fn pin_transaction(&self) -> u8 {
        (hash::branch(self.transaction, self.essentials) >> 56) as u8
    }

    /// What rules may look at. A CANCEL and an ACK are decided as their INVITE (SPEC 7.1); what is stripped from a client's
    /// request no rule may see (1.2).
    pub fn facts(&self) -> Facts<'_> {
        let (method, method_token) = match self.method {
            Method::Cancel | Method::Ack => (Method::Invite, &b"INVITE"[..]),
            method => (method, self.token()),
        };
        Facts {
            view: self.view,
            essentials: self.essentials,
            method,
            method_token,
            ruri: self.routes.ruri,
            uri: self.routes.uri(),
            package: self
                .package
                .or_else(|| Event::parse(self.view.value(HeaderId::Event)?).map(|event| event.package)),
            source: self.source,
            peer: self.arrival.peer,
            listener: self.arrival.listener,
            transport: self.setup.listener(self.arrival.listener).transport,
            hidden: if self.source.is_backend() { &[] } else { &self.table.rules.strip },
        }
    }

    /// The method's token as received.
    fn token(&self) -> &'a [u8] {
        match self.view.start() {
            Start::Request { token, .. } => self.view.of(token),
            Start::Response { .. } => b"",
        }
    }

    pub fn is_cancel_or_ack(&self) -> bool {
        matches!(self.method, Method::Cancel | Method::Ack)
    }
}

/// Who sent it (SPEC 1.1), what stands against that (SPEC 10) and how his Vias are stamped, for the peers that were heard last,
/// so that a message costs no look-up in the maps of table and bans.
pub struct Sources {
    /// By some bits of the address. An entry holds as long as pools and bans are the same.
    recent: Vec<Recent>,
    text: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Recent {
    /// Of the pools and of the bans.
    version: u64,
    listener: u8,
    peer: SocketAddr,
    source: Source,
    guard: Guard,
    stamp: Stamp,
}

const RECENT: usize = 256;

impl Default for Sources {
    fn default() -> Self {
        let blank = Recent {
            // No version comes near it.
            version: u64::MAX,
            listener: 0,
            peer: SocketAddr::from(([0, 0, 0, 0], 0)),
            source: Source::Client,
            guard: Guard::Limited,
            stamp: Stamp::NONE,
        };
        Sources { recent: vec![blank; RECENT], text: Vec::new() }
    }
}

impl Sources {
    pub fn of(
        &mut self,
        now: Now,
        setup: &Setup,
        shared: &Shared,
        table: &Table,
        arrival: &Arrival,
    ) -> (Source, Guard, &Stamp) {
        let (listener, peer) = (arrival.listener, arrival.peer);
        // Neither comes near 2^32 while the process lives.
        let version = table.pools.serial() << 32 | shared.bans.version() & u64::from(u32::MAX);
        let at = place(peer);
        let recent = &self.recent[at];
        if recent.version == version && recent.listener == listener && recent.peer == peer {
            // By its place again: what is given away stays borrowed to the end, also where it is not.
            let recent = &self.recent[at];
            return (recent.source, recent.guard, &recent.stamp);
        }
        let (source, guard, lasts) = standing_lasts(now, setup, shared, table, arrival);
        if !lasts {
            return (source, guard, &Stamp::NONE);
        }
        let stamp = Stamp::of(peer, &mut self.text);
        self.recent[at] = Recent { version, listener, peer, source, guard, stamp };
        (source, guard, &self.recent[at].stamp)
    }
}

/// Where a peer is remembered.
fn place(peer: SocketAddr) -> usize {
    let host = match peer.ip() {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => ip.to_bits() as u32,
    };
    // By a product: neighbours in address and port must not meet.
    ((host ^ u32::from(peer.port()) << 16).wrapping_mul(0x9e37_79b1) >> 24) as usize % RECENT
}

/// Who sent it, and what stands against that.
pub fn standing(
    now: Now,
    setup: &Setup,
    shared: &Shared,
    table: &Table,
    arrival: &Arrival,
) -> (Source, Guard) {
    let (source, guard, _) = standing_lasts(now, setup, shared, table, arrival);
    (source, guard)
}

// Out of line, as all that few messages need: in line it takes registers from those that do not.
#[inline(never)]
fn standing_lasts(
    now: Now,
    setup: &Setup,
    shared: &Shared,
    table: &Table,
    arrival: &Arrival,
) -> (Source, Guard, bool) {
    let (source, lasts) = source(now, setup, table, arrival);
    let ip = arrival.peer.ip();
    let guard = if source.is_backend() || setup.exempt.contains(ip) {
        Guard::Exempt
    } else if setup.deny.contains(ip) || !setup.allow.is_empty() && !setup.allow.contains(ip) {
        Guard::Barred(Reason::Denied)
    } else if shared.bans.is_banned(ip) {
        Guard::Barred(Reason::Banned)
    } else {
        Guard::Limited
    };
    (source, guard, lasts)
}

/// Who sent it: the listener must allow backends, the address must be one's. And whether that lasts as long as these pools:
/// a departed backend's day ends before.
fn source(now: Now, setup: &Setup, table: &Table, arrival: &Arrival) -> (Source, bool) {
    let listener = setup.listener(arrival.listener);
    if !listener.allows_backends() {
        return (Source::Client, true);
    }
    let peer = arrival.peer;
    match table.pools.peer(listener.transport, peer, now.unix_s) {
        Some(crate::route::Peer::Backend(at)) => (Source::Backend(at), true),
        Some(crate::route::Peer::Departed) => (Source::Trusted, false),
        None if setup.trusts(peer.ip()) => (Source::Trusted, true),
        None => (Source::Client, true),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A phone and its PBX, the phones of one office, the ports of one NAT: whoever meets another pays for each message.
    #[test]
    fn neighbours_are_remembered_side_by_side() {
        let at = |host: u8, port: u16| place(SocketAddr::from(([127, 6, 0, host], port)));
        assert_ne!(at(1, 15061), at(2, 15062));
        let all: [&dyn Fn(u8) -> usize; 3] =
            [&|n| at(n, 5060), &|n| at(7, 20_000 + u16::from(n)), &|n| at(n, 5060 + u16::from(n))];
        for neighbours in all {
            let places: BTreeSet<usize> = (0..=255).map(neighbours).collect();
            // By chance it would be 162.
            assert!(places.len() > 150, "{}", places.len());
        }
    }
}
