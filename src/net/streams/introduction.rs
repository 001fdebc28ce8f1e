//! Connections that a proxy makes for others (SPEC 9.5, PROXY protocol version 2): who really called is known before
//! anything else is, and counts from then on in limits, lists, logs and trust.
//!
//! From a proxy that the listener names the header is required; from all others it is refused, lest anybody calls himself
//! anybody. Until it is there such a connection counts in all, and has the time of a first message. Driven by `Streams`.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::{Connection, Now, Reason, Streams, TooMany};
use crate::{
    stats::Counter,
    wire::proxy::{Proxied, SIGNATURE},
};

/// Is this one of the proxies?
pub fn is_proxy(proxies: &[IpNet], peer: SocketAddr) -> bool {
    let ip = peer.ip().to_canonical();
    proxies.iter().any(|net| net.contains(&ip))
}

impl Connection {
    /// Does it begin with a header that nobody may say here? Asked at the first bytes: `first` where they are plain.
    pub(super) fn begins_with_header(&mut self, first: Option<&[u8]>) -> bool {
        match first {
            Some(first) => first.starts_with(&SIGNATURE),
            None => {
                let mut first = [0; SIGNATURE.len()];
                self.pipe.socket().peek(&mut first).is_ok_and(|n| first[..n] == SIGNATURE)
            }
        }
    }
}

impl Streams {
    /// Counts one that was accepted; false where it is one too many.
    pub(super) fn count(&mut self, peer: SocketAddr, proxied: bool, now: Now) -> bool {
        let sources = &self.ground.sources;
        let taken = if proxied { sources.take_unnamed() } else { sources.take(peer.ip(), now) };
        taken.map_err(|too_many| self.ground.stats.add(refused(too_many), 1)).is_ok()
    }

    /// One that was counted is no more.
    pub(super) fn uncount(&self, peer: SocketAddr, proxied: bool) {
        match proxied {
            true => self.ground.sources.give_unnamed(),
            false => self.ground.sources.give(peer.ip()),
        }
    }

    /// The proxy has said for whom it calls: what the listener speaks begins.
    pub(super) fn introduce(&mut self, slot: u32, said: Proxied, now: Now) {
        let Some(connection) = self.held(slot) else { return };
        let (listener, proxy) = (connection.listener, connection.peer);
        let peer = match said {
            Proxied::Local => proxy,
            Proxied::Client(client) => client,
        };
        if let Err(too_many) = self.ground.sources.name(peer.ip(), now) {
            self.ground.stats.add(refused(too_many), 1);
            return self.close(slot, Reason::Limit, now);
        }
        let session = self.session(listener);
        let Some(connection) = self.held(slot) else { return };
        connection.unnamed = false;
        connection.peer = peer;
        match session {
            Ok(session) => connection.pipe.wrap(session),
            Err(_) => return self.close(slot, Reason::Lost, now),
        }
        connection.connected(now.mono_ms);
        if said != Proxied::Local {
            self.ground.all.introduce(self.ground.core.into(), slot, peer);
            self.ground.stats.add(Counter::Proxied, 1);
        }
        self.named.push(slot);
        self.greet(slot, now);
    }
}

fn refused(too_many: TooMany) -> Counter {
    match too_many {
        TooMany::All => Counter::RefusedAll,
        TooMany::Address => Counter::RefusedAddress,
        TooMany::Prefix => Counter::RefusedPrefix,
        TooMany::Rate => Counter::RefusedRate,
    }
}
