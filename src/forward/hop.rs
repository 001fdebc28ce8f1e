//! Next hops: where a request goes by a token (SPEC 3.5), by a foreign Route, by its Request-URI, by its flow.

use std::net::{IpAddr, SocketAddr};

use super::{
    decide::NO_BACKEND_RETRY_S,
    io::Arrival,
    routes::{Routes, Tokens},
    setup::{Setup, Shared},
};
use crate::{
    live::Now,
    route::{BackendRef, Pools, Source, Table, balance},
    wire::{
        Essentials, Method, Reason, Transport, Uri, ip,
        token::{Flow, RouteToken, Side, tag_hash},
    },
};

/// Where a request goes, and by which listener it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// `local`: the source address to name, on wildcard listeners.
    Backend {
        addr: SocketAddr,
        transport: Transport,
        listener: u8,
        local: Option<IpAddr>,
        at: Option<BackendRef>,
    },
    Client {
        flow: Flow,
        listener: u8,
        /// The address of ours that the flow leads to, on wildcard listeners.
        local: Option<IpAddr>,
    },
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    /// Retry-After, in seconds.
    pub retry: Option<u32>,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Refused {
        Refused { reason, retry: None }
    }
}

/// What next hops are found with.
#[derive(Clone, Copy)]
pub struct Hops<'a> {
    pub now: Now,
    pub setup: &'a Setup,
    pub shared: &'a Shared,
    pub table: &'a Table,
    pub source: Source,
    pub method: Method,
    pub essentials: &'a Essentials<'a>,
    /// How the request came.
    pub arrival: &'a Arrival,
}

impl Hops<'_> {
    fn pools(&self) -> &Pools {
        &self.table.pools
    }

    /// Is this backend the one that sent the request? It is never its target (SPEC 1.5).
    pub fn is_sender(&self, at: BackendRef) -> bool {
        let Source::Backend(sender) = self.source else { return false };
        let (sender, target) = (self.pools().backend(sender), self.pools().backend(at));
        sender.addr == target.addr && sender.transport == target.transport
    }

    /// A listed backend.
    pub fn backend(&self, at: BackendRef) -> Hop {
        let b = self.pools().backend(at);
        let local = b.wildcard.then_some(b.local.ip());
        Hop::Backend { addr: b.addr, transport: b.transport, listener: b.listener, local, at: Some(at) }
    }

    /// Of a backend that a host name in the message means, the address for this Call-ID; an IP literal means itself.
    fn spread(&self, at: BackendRef, named_by: &Uri<'_>) -> BackendRef {
        match ip_literal(named_by) {
            Some(_) => at,
            None => self.pools().spread(at, balance::key_hash(self.essentials.call_id)),
        }
    }

    /// A backend's address from a token of ours: by the table where it is listed, else as it was.
    pub fn address(&self, addr: SocketAddr, transport: Transport) -> Result<Hop, Refused> {
        if let Some(at) = self.pools().by_address(addr, transport) {
            return Ok(self.backend(at));
        }
        let listener = self.setup.toward(transport, addr).ok_or(Reason::DeadRoute)?;
        let local = self.setup.listener(listener).wildcard.then_some(self.arrival.local.ip());
        Ok(Hop::Backend { addr, transport, listener, local, at: None })
    }

    /// A client's flow, or the flow to which it has moved, never in a chain (SPEC 7.2). `None`: dead, with the moment
    /// (`mono_ms`) from which grace counts.
    fn flow(&self, flow: &Flow) -> Result<Hop, u64> {
        let (moved, unreachable) = (&self.shared.moved, &self.shared.unreachable);
        // Nearly always both are empty: no tag is hashed and no key is made for nothing.
        let moved = match moved.is_empty() {
            true => None,
            // Moves are of dialogs: what has no To tag is of none.
            false => self.essentials.to_tag.and_then(|tag| moved.find(*flow, tag_hash(tag), self.now)),
        };
        let flow = moved.as_ref().unwrap_or(flow);
        let (Flow::Datagram { listener, .. } | Flow::Stream { listener, .. }) = flow;
        let listener = self.setup.by_id(*listener).ok_or(self.setup.start.mono_ms)?;
        match flow {
            Flow::Datagram { .. } if unreachable.is_empty() => {}
            Flow::Datagram { .. } => unreachable.since(&flow.without_local()).map_or(Ok(()), Err)?,
            Flow::Stream { id, .. } => self.shared.stream(self.setup, *id)?,
        }
        let local = self.shared.local(self.setup.listener(listener), flow);
        Ok(Hop::Client { flow: *flow, listener, local })
    }

    /// The answer to a request whose route is dead (SPEC 3.5): `since` is when, `None` where grace is over at once.
    pub fn dead(&self, since: Option<u64>, path: Option<bool>) -> Refused {
        match path {
            Some(true) => return Reason::FlowFailed.into(),
            Some(false) => return Reason::NoFlow.into(),
            None => {}
        }
        let gone_s = since.map(|s| self.now.mono_ms.saturating_sub(s) / 1000);
        match gone_s.filter(|_| self.method == Method::Notify && self.essentials.to_tag.is_some()) {
            Some(gone) if gone < self.setup.grace_s => {
                Refused { reason: Reason::Grace, retry: Some((self.setup.grace_s - gone).max(1) as u32) }
            }
            _ => Reason::DeadRoute.into(),
        }
    }

    /// By the tokens that count; `None` where there are none.
    pub fn by_token(&self, routes: &Routes<'_>) -> Option<Result<Hop, Refused>> {
        match &routes.tokens {
            Tokens::None => None,
            Tokens::Unknown { path } => Some(Err(self.dead(None, *path))),
            Tokens::Forged { .. } => Some(Err(Reason::ForgedToken.into())),
            Tokens::Path { token, ob, .. } if token.router != self.setup.router => {
                Some(Err(self.dead(None, Some(*ob))))
            }
            Tokens::Path { token, ob, .. } => {
                Some(self.flow(&token.flow).map_err(|s| self.dead(Some(s), Some(*ob))))
            }
            Tokens::Route(list) => Some(self.by_route_tokens(list, routes)),
        }
    }

    /// `tokens`: with the ids of their keys.
    fn by_route_tokens(&self, tokens: &[(RouteToken, u8)], routes: &Routes<'_>) -> Result<Hop, Refused> {
        let mut from_backend = self.source.is_backend();
        let mut decided = Err(Reason::DeadRoute.into());
        let mut first = None;
        for keyed @ (token, _) in tokens {
            if from_backend && first.is_none() {
                from_backend = !self.is_client_of(token);
            }
            if token.router != self.setup.router {
                return Err(self.dead(None, None));
            }
            decided = match self.receiver(token, from_backend)? {
                Side::Client(flow) => {
                    if !self.source.is_backend() && !first.is_some_and(|first| self.is_callers(first, keyed))
                    {
                        return Err(Reason::TokenSide.into());
                    }
                    self.flow(flow).map_err(|since| self.dead(Some(since), None))
                }
                Side::Backend { addr, transport } => self.toward_backend(*addr, *transport, routes),
            };
            // A PBX between two tokens did not record-route: the next is applied as from its side.
            from_backend = true;
            first = first.or(Some(keyed));
        }
        decided
    }

    /// Is the sender the client of this token? A trusted source may be, which a backend called by its address, and a client
    /// that has become a backend.
    pub fn is_client_of(&self, token: &RouteToken) -> bool {
        token.client().is_some_and(|(_, flow)| flow.without_local() == self.sender())
    }

    /// The flow by which the request came.
    fn sender(&self) -> Flow {
        self.setup.listener(self.arrival.listener).flow(self.arrival).without_local()
    }

    /// May a client use these two tokens at once, past the PBX between them? Who holds a token may send to a backend by it; to
    /// another client only the one whose flow the first names, in the dialog of these two: the later token was written with
    /// the earlier one's client in it.
    fn is_callers(&self, (first, first_key): &(RouteToken, u8), (last, last_key): &(RouteToken, u8)) -> bool {
        let (Some((_, own)), Some((_, other))) = (first.client(), last.client()) else { return false };
        let moved = || self.shared.moved.find(*own, tag_hash(self.essentials.from_tag), self.now);
        (self.is_client_of(first) || moved().is_some_and(|flow| flow.without_local() == self.sender()))
            && (last.caller() == Some(self.setup.ring.flow_hash(*last_key, own))
                || first.caller() == Some(self.setup.ring.flow_hash(*first_key, other)))
    }

    /// The side of a token to which its sender's request goes.
    fn receiver<'t>(&self, token: &'t RouteToken, from_backend: bool) -> Result<&'t Side, Refused> {
        let [a, b] = &token.sides;
        match (from_backend, a, b) {
            (false, Side::Client(_), Side::Backend { .. }) => Ok(b),
            (false, Side::Backend { .. }, Side::Client(_)) => Ok(a),
            (false, ..) => Err(Reason::TokenSide.into()),
            (true, Side::Client(_), Side::Backend { .. }) => Ok(a),
            (true, Side::Backend { .. }, Side::Client(_)) => Ok(b),
            (true, ..) => match self.sender_side(token) {
                Some(side) => Ok(&token.sides[1 - side]),
                None => Err(self.dead(None, None)),
            },
        }
    }

    /// Which side of a token between two backends the sender is on: by the tags of the request.
    pub fn sender_side(&self, token: &RouteToken) -> Option<usize> {
        let owner = usize::from(token.owner & 1);
        if tag_hash(self.essentials.from_tag) == token.tag {
            return Some(owner);
        }
        self.essentials.to_tag.filter(|tag| tag_hash(tag) == token.tag).map(|_| 1 - owner)
    }

    /// Toward a backend by a token: the next Route, else the Request-URI, where its host is a backend's that this sender
    /// may reach; else the token's own address.
    fn toward_backend(
        &self,
        addr: SocketAddr,
        transport: Transport,
        routes: &Routes<'_>,
    ) -> Result<Hop, Refused> {
        let parsed = routes.next.and_then(Uri::parse);
        let next = parsed.as_ref().unwrap_or(routes.uri());
        let listed = self.pools().by_address(addr, transport);
        let from_backend = self.source.is_backend();
        // From a client only a backend in a pool with the token's: without one in the table there is no such pool.
        if next.is_sip() && (from_backend || listed.is_some()) {
            let pool_of = if from_backend { None } else { listed };
            let named = self.pools().by_host(next.host.host, next.host.port, pool_of);
            if let Some(at) = named.filter(|at| !self.is_sender(*at)) {
                // A name of several addresses: the dialog stays at its own.
                let its_own =
                    listed.filter(|listed| ip_literal(next).is_none() && self.pools().is_same(*listed, at));
                return Ok(self.backend(its_own.unwrap_or_else(|| self.spread(at, next))));
            }
        }
        if from_backend && let Some(ip) = ip_literal(next).filter(|ip| self.setup.trusts(*ip)) {
            return self
                .address(SocketAddr::new(ip, next.host.port.unwrap_or(transport.default_port())), transport);
        }
        self.address(addr, transport)
    }

    /// A hop toward a backend that is down or off is none (SPEC 8.6): a refresh is asked to come again until the backend
    /// is given up, so that its subscriber makes a new subscription elsewhere; a BYE ends a dialog that is gone. An ACK
    /// cannot be answered, and a CANCEL harms nobody: both go.
    pub fn carried(&self, hop: &Hop) -> Result<(), Refused> {
        let &Hop::Backend { at: Some(at), .. } = hop else { return Ok(()) };
        if matches!(self.method, Method::Ack | Method::Cancel) || self.pools().carries(at) {
            return Ok(());
        }
        let given_up = self.pools().backend(at).state.gone_ms() + self.pools().pool(at.pool).migrate_after_ms;
        let left_s = given_up.saturating_sub(self.now.mono_ms).div_ceil(1000) as u32;
        let refused = |reason, seconds| Err(Refused { reason, retry: Some(seconds) });
        match self.method {
            Method::Subscribe if self.essentials.to_tag.is_none() => {
                refused(Reason::BackendDown, NO_BACKEND_RETRY_S)
            }
            Method::Subscribe if left_s > 0 => refused(Reason::BackendDown, left_s),
            Method::Subscribe | Method::Bye => Err(Reason::BackendGone.into()),
            _ => refused(Reason::BackendDown, NO_BACKEND_RETRY_S),
        }
    }

    /// The host of a URI that a backend or a trusted source wrote (a foreign Route, `route = "request-uri"`): a backend,
    /// else an IP literal; other names 404, never ourselves.
    pub fn by_uri(&self, uri: &Uri<'_>) -> Result<Hop, Refused> {
        if !uri.is_sip() {
            return Err(Reason::NoRule.into());
        }
        if let Some(at) = self.pools().by_host(uri.host.host, uri.host.port, None) {
            let at = self.spread(at, uri);
            return if self.is_sender(at) { Err(Reason::Ourselves.into()) } else { Ok(self.backend(at)) };
        }
        let ip = ip_literal(uri).filter(|ip| !is_of_nobody(*ip)).ok_or(Reason::NoRule)?;
        if self.setup.names.is_us(uri.host.host, uri.port(), self.arrival.local) {
            return Err(Reason::NoRule.into());
        }
        let peer = SocketAddr::new(ip, uri.host.port.unwrap_or(5060));
        let listener = self.setup.toward(Transport::Udp, peer).ok_or(Reason::NoRule)?;
        let out = self.setup.listener(listener);
        let flow = out.datagram(self.arrival.local, peer);
        Ok(Hop::Client { flow, listener, local: self.shared.local(out, &flow) })
    }

    /// `route = "flow"` (SPEC 5.2).
    pub fn by_flow(&self, uri: &Uri<'_>) -> Result<Hop, Refused> {
        let us = self.setup.names.is_us(uri.host.host, uri.port(), self.arrival.local);
        let by_user = || uri.user.filter(|_| us).and_then(|user| self.shared.flows.by_user(user, self.now));
        let flow = self.shared.flows.by_contact(uri, self.now).or_else(by_user);
        match flow.map(|flow| self.flow(&flow)) {
            Some(Ok(hop)) => Ok(hop),
            // Flows are learnt anew after a start: an early NOTIFY is asked to come again.
            Some(Err(since)) => Err(self.no_flow(since)),
            None => Err(self.no_flow(self.setup.start.mono_ms)),
        }
    }

    fn no_flow(&self, since: u64) -> Refused {
        if self.method == Method::Notify && self.essentials.to_tag.is_some() {
            self.dead(Some(since), None)
        } else {
            Reason::NoFlow.into()
        }
    }
}

/// An address that is no one host's.
fn is_of_nobody(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
    }
}

fn ip_literal(uri: &Uri<'_>) -> Option<IpAddr> {
    ip::parse(uri.host.host)
}
