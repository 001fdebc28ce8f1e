//! One request with all that is known of it, and who sent it (SPEC 1.1).

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Turn, hop::Hops, routes::Routes, setup::Setup};
use crate::{
    live::Pins,
    route::{Facts, Source, Table},
    wire::{Essentials, Method, Start, View, token::Flow},
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
            local: self.arrival.local,
        }
    }

    /// The client's flow, as it arrived.
    pub fn flow(&self) -> Flow {
        self.setup.listener(self.arrival.listener).flow(self.arrival.local, self.arrival.peer)
    }

    /// Who asks, for its pin: transaction and method, CANCEL and ACK as their INVITE.
    pub fn who(&self) -> u64 {
        let token = if self.is_cancel_or_ack() { b"INVITE" } else { self.token() };
        self.transaction ^ xxh3_64_with_seed(token, self.transaction)
    }

    /// The key of its pin. The Request-URI is in it: what a pin is for has it equal, and nothing else of the same Call-ID and
    /// From tag gets past the table by it.
    pub fn pin_key(&self) -> u64 {
        Pins::key(self.who(), xxh3_64_with_seed(self.routes.ruri, self.transaction))
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
            uri: &self.routes.uri,
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

/// Who sent it (SPEC 1.1): the listener must allow backends, the address must be one's.
pub fn source(turn: &Turn<'_>) -> Source {
    let setup = turn.setup;
    let listener = setup.listener(turn.arrival.listener);
    if !listener.allows_backends() {
        return Source::Client;
    }
    let peer = turn.arrival.peer;
    match turn.table.pools.peer(listener.transport, peer, turn.now.unix_s) {
        Some(crate::route::Peer::Backend(at)) => Source::Backend(at),
        Some(crate::route::Peer::Departed) => Source::Trusted,
        None if setup.trusts(peer.ip()) => Source::Trusted,
        None => Source::Client,
    }
}
