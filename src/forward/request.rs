//! A request's way (SPEC 4.4): checks, OPTIONS to us, Routes, loops; then token, foreign Route, pin, table; then its edits.

use super::{
    Proxy, Turn, hash,
    hop::{Hop, Hops, Refused},
    io::Outbox,
    routes::{Routes, Tokens},
    setup::Setup,
    write::{self, Plan},
};
use crate::{
    config::table::Balance,
    live::{Pin, PinTarget, Registration},
    route::{Action, BackendRef, Facts, Pick, Recorder, Rule, Source, Table},
    stats::{Counter, Kind},
    wire::{
        Essentials, Event, HeaderId, Method, NameAddr, Reason, Start, Uri, View,
        inspect::{inspect, request_uri},
        token::{Flow, ViaToken},
    },
};

/// How long an INVITE's pin and another's hold, in seconds (SPEC 7.1).
const INVITE_PIN_S: u32 = 300;
const PIN_S: u32 = 32;
/// More Vias of ours than this are a loop, whatever their hashes (SPEC 4.5).
const MAX_OWN_VIAS: usize = 6;
/// Retry-After where no backend can take a request, in seconds.
const NO_BACKEND_RETRY_S: u32 = 5;

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

    fn flow(&self) -> Flow {
        self.setup.listener(self.arrival.listener).flow(self.arrival.local, self.arrival.peer)
    }

    /// Names of header fields that no rule may see in this request (SPEC 1.2).
    pub fn hidden(&self) -> &'a [Box<[u8]>] {
        if self.source.is_backend() { &[] } else { &self.table.rules.strip }
    }

    fn is_cancel_or_ack(&self) -> bool {
        matches!(self.method, Method::Cancel | Method::Ack)
    }
}

/// What was decided.
enum Outcome<'t> {
    Forward(Plan<'t>),
    Refuse(Refused),
    /// A rule's `reply` or `redirect`.
    Answer(&'t Rule),
    Drop,
}

impl From<Refused> for Outcome<'_> {
    fn from(refused: Refused) -> Self {
        Outcome::Refuse(refused)
    }
}

impl From<Reason> for Outcome<'_> {
    fn from(reason: Reason) -> Self {
        Outcome::Refuse(reason.into())
    }
}

impl Proxy {
    pub(super) fn request<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let method = match view.start() {
            Start::Request { method, .. } => method,
            Start::Response { .. } => return,
        };
        let listener = turn.setup.listener(turn.arrival.listener);
        self.stats.received(Kind::Request(method), listener.transport);
        let source = source(turn);
        if R::ON {
            rec.step("source", format_args!("{}", describe(source, turn.table)));
        }
        match self.checked(turn, view, method, source, out, rec) {
            Ok(()) => {}
            Err(refused) => self.refuse(turn, view, refused, out, rec),
        }
    }

    fn checked<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        method: Method,
        source: Source,
        out: &mut Outbox,
        rec: &mut R,
    ) -> Result<(), Refused> {
        let setup = turn.setup;
        let side = setup.listener(turn.arrival.listener).side;
        if source == Source::Client && side == crate::config::Side::Backends {
            return Err(Reason::Side.into());
        }
        let essentials = inspect(view)?;
        let uri = request_uri(view)?;
        if view.first(HeaderId::ProxyRequire).is_some() {
            return Err(Reason::ProxyRequire.into());
        }
        let package = event(view, method)?;
        let local = turn.arrival.local;
        let to_us =
            || uri.is_sip() && uri.user.is_none() && setup.names.is_us(uri.host.host, uri.host.port, local);
        let routes = Routes::read(view, &essentials, method, uri, setup, local, source.is_backend())?;
        if method == Method::Options && !routes.repaired && routes.next.is_none() && to_us() {
            self.options(turn, view, out, rec);
            return Ok(());
        }
        if essentials.max_forwards == Some(0) {
            return Err(Reason::MaxForwards.into());
        }
        if routes.uri.is_sips() || routes.next.is_some_and(|route| route.starts_with(b"sips:")) {
            return Err(Reason::Sips.into());
        }
        let peer = turn.arrival.peer;
        let route_values = view.items(HeaderId::Route).map(|item| item.value);
        let loop_hash = hash::looped(peer.ip(), view.ruri(), route_values, &essentials, &mut self.text);
        self.check_loop(view, setup, loop_hash)?;
        let transaction = hash::transaction(&setup.ring, &essentials, peer);
        let request = Request {
            turn,
            setup,
            table: turn.table,
            arrival: turn.arrival,
            view,
            essentials: &essentials,
            routes: &routes,
            method,
            source,
            transaction,
            loop_hash,
        };
        if let Some(package) = package {
            self.stats.package(turn.table.rules.package_series(package), method);
        }
        self.count_tokens(&routes);
        match self.decide(&request, rec) {
            Outcome::Forward(plan) => self.forward(&request, &plan, out, rec),
            Outcome::Refuse(refused) => return Err(refused),
            Outcome::Answer(rule) => self.rule_answer(&request, rule, out, rec),
            Outcome::Drop => self.stats.refused(Reason::TableDrop),
        }
        Ok(())
    }

    /// RFC 5393: our own Via with the same hash, or too many of ours.
    fn check_loop(&self, view: &View<'_>, setup: &Setup, loop_hash: u32) -> Result<(), Refused> {
        let mut own = 0;
        for item in view.items(HeaderId::Via) {
            let Some(text) = super::own_branch(item.value) else { continue };
            if let Ok((token, _)) = ViaToken::decode(text, &setup.ring) {
                own += 1;
                if token.loop_hash == loop_hash || own > MAX_OWN_VIAS {
                    return Err(Reason::Loop.into());
                }
            }
        }
        Ok(())
    }

    fn count_tokens(&self, routes: &Routes<'_>) {
        match &routes.tokens {
            Tokens::None => {}
            Tokens::Route(list) => list.iter().for_each(|(_, key_id)| self.stats.key_used(*key_id)),
            Tokens::Path { key_id, .. } => self.stats.key_used(*key_id),
            Tokens::Unknown { .. } => self.stats.add(Counter::UnknownKey, 1),
            Tokens::Forged { path: true } => self.stats.add(Counter::ForgedPath, 1),
            Tokens::Forged { path: false } => self.stats.add(Counter::ForgedRoute, 1),
        }
    }

    /// Token, foreign Route of a backend, pin, table (SPEC 4.4).
    fn decide<'t, R: Recorder>(&mut self, request: &Request<'t>, rec: &mut R) -> Outcome<'t> {
        let hops = request.hops();
        if let Some(hop) = hops.by_token(request.routes) {
            if R::ON {
                rec.step("token", format_args!("{}", outcome_text(&hop)));
            }
            let token = match &request.routes.tokens {
                Tokens::Route(list) => Some(list[0].0),
                _ => None,
            };
            return hop.map_or_else(Outcome::from, |hop| Outcome::Forward(Plan { hop, rule: None, token }));
        }
        if let (true, Some(route)) = (request.source.is_backend(), request.routes.next) {
            let hop = Uri::parse(route).ok_or(Reason::BadRoute.into()).and_then(|uri| hops.by_uri(&uri));
            if R::ON {
                rec.step("route", format_args!("{}: {}", String::from_utf8_lossy(route), outcome_text(&hop)));
            }
            return hop
                .map_or_else(Outcome::from, |hop| Outcome::Forward(Plan { hop, rule: None, token: None }));
        }
        let pinned = self.pinned(request);
        if R::ON
            && let Some(hop) = &pinned
        {
            rec.step("pin", format_args!("{}", hop_text(hop)));
        }
        self.by_table(request, &hops, pinned, rec)
    }

    /// The pin's hop, where there is one that still serves: a CANCEL or an ACK follows its INVITE anywhere, anything
    /// else only to what the table still uses.
    fn pinned(&self, request: &Request<'_>) -> Option<Hop> {
        let pin = self.pins.find(request.transaction, request.turn.now)?;
        let hop = match pin.target {
            PinTarget::Backend { addr, transport } => request.hops().address(addr, transport).ok()?,
            PinTarget::Datagram { local, peer } => {
                let listener = request.setup.listener(pin.listener).id;
                Hop::Client { flow: Flow::Datagram { listener, local, peer }, listener: pin.listener }
            }
        };
        let serves = match &hop {
            Hop::Backend { at, .. } => at.is_some_and(|at| request.table.pools.is_active(at)),
            Hop::Client { .. } => true,
        };
        (serves || request.is_cancel_or_ack()).then_some(hop)
    }

    fn by_table<'t, R: Recorder>(
        &mut self,
        request: &Request<'t>,
        hops: &Hops<'t>,
        pinned: Option<Hop>,
        rec: &mut R,
    ) -> Outcome<'t> {
        let table = request.table;
        // A CANCEL and an ACK are decided as their INVITE (SPEC 7.1).
        let (method, token): (_, &[u8]) = match (request.method, request.view.start()) {
            (Method::Cancel | Method::Ack, _) => (Method::Invite, b"INVITE"),
            (method, Start::Request { token, .. }) => (method, request.view.of(token)),
            (method, Start::Response { .. }) => (method, b""),
        };
        let facts = Facts {
            view: request.view,
            essentials: request.essentials,
            method,
            method_token: token,
            ruri: request.routes.ruri,
            uri: &request.routes.uri,
            source: request.source,
            peer: request.arrival.peer,
            listener: request.arrival.listener,
            transport: request.setup.listener(request.arrival.listener).transport,
            hidden: request.hidden(),
        };
        let rule = table.rules.decide(&facts, &table.pools, &mut self.scratch, rec);
        let routes_it =
            |rule: &&Rule| matches!(rule.action, Action::Route(_) | Action::Flow | Action::RequestUri);
        if let Some(hop) = pinned {
            self.stats.add(Counter::PinHits, 1);
            return Outcome::Forward(Plan { hop, rule: rule.filter(routes_it), token: None });
        }
        let Some(rule) = rule else {
            let uri = &request.routes.uri;
            let ours = uri.is_sip()
                && request.setup.names.is_us(uri.host.host, uri.host.port, request.arrival.local);
            return self.unmatched(request, if ours { Reason::NoRule } else { Reason::NotOurs });
        };
        self.stats.rule(rule.series);
        if let Some(limit) = rule.limit.filter(|_| !request.is_cancel_or_ack() && !R::ON)
            && !self.limits.take(table.version, rule.position, limit, self.cores, request.turn.now)
        {
            self.stats.add(Counter::RuleLimited, 1);
            return Refused { reason: Reason::Limited, retry: Some(1) }.into();
        }
        let hop = match rule.action {
            Action::Route(pool) => self.balance(request, &facts, hops, pool, rec),
            Action::Flow => hops.by_flow(&request.routes.uri),
            Action::RequestUri => hops.by_uri(&request.routes.uri),
            Action::Reply { .. } | Action::RedirectUri(_) | Action::RedirectPool(_) => {
                return Outcome::Answer(rule);
            }
            Action::Drop => return Outcome::Drop,
        };
        match hop {
            Ok(hop) => Outcome::Forward(Plan { hop, rule: Some(rule), token: None }),
            Err(refused) => self.unmatched(request, refused),
        }
    }

    /// A CANCEL that cannot be decided is 481 (SPEC 7.1).
    fn unmatched<'t>(&self, request: &Request<'_>, refused: impl Into<Refused>) -> Outcome<'t> {
        match request.method {
            Method::Cancel => Reason::CancelUnmatched.into(),
            _ => refused.into().into(),
        }
    }

    fn balance<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        facts: &Facts<'_>,
        hops: &Hops<'_>,
        pool: u16,
        rec: &mut R,
    ) -> Result<Hop, Refused> {
        let sender = match request.source {
            Source::Backend(at) => Some(at),
            Source::Client | Source::Trusted => None,
        };
        match self.pick(request, facts, pool, sender, rec) {
            Pick::Backend(at) => Ok(hops.backend(at)),
            Pick::Sender => Err(Reason::Ourselves.into()),
            Pick::None => {
                let silent = request.method == Method::Publish
                    && facts.transport.is_datagram()
                    && request.table.pools.pool(pool).silence;
                let retry = Some(NO_BACKEND_RETRY_S);
                Err(if silent {
                    Reason::Silence.into()
                } else {
                    Refused { reason: Reason::NoBackend, retry }
                })
            }
        }
    }

    pub(super) fn pick<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        facts: &Facts<'_>,
        pool: u16,
        sender: Option<BackendRef>,
        rec: &mut R,
    ) -> Pick {
        request.table.pools.pick(pool, facts, &request.setup.names, sender, &mut self.text, rec)
    }

    fn forward<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        plan: &Plan<'_>,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let (branch, stripped) = write::request(request, plan, &mut self.edits, out);
        if R::ON {
            if stripped > 0 {
                rec.step("strip", format_args!("{stripped} header fields that are not a client's to write"));
            }
            rec.step("forward", format_args!("{}", hop_text(&plan.hop)));
            return;
        }
        self.stats.add(Counter::Stripped, stripped);
        let (Hop::Backend { listener, .. } | Hop::Client { listener, .. }) = plan.hop;
        self.stats.sent(Kind::Request(request.method), request.setup.listener(listener).transport);
        if let Hop::Backend { at: Some(at), .. } = plan.hop {
            let backend = request.table.pools.backend(at);
            self.stats.backend_request(request.table.pools.pool(at.pool).series, backend.series);
        }
        self.pin(request, plan);
        if request.method == Method::Register && request.source == Source::Client {
            self.note_registration(request, branch);
        }
    }

    /// Leaves a pin where a later CANCEL, ACK or retransmission could be decided otherwise (SPEC 7.1).
    fn pin(&mut self, request: &Request<'_>, plan: &Plan<'_>) {
        let stateful = plan.rule.is_some_and(|rule| match rule.action {
            Action::Flow => true,
            Action::Route(pool) => matches!(request.table.pools.pool(pool).balance, Balance::Header(_)),
            _ => false,
        });
        let seconds = match request.method {
            Method::Invite => INVITE_PIN_S,
            Method::Cancel | Method::Ack => return,
            _ if stateful => PIN_S,
            _ => return,
        };
        let (target, listener) = match plan.hop {
            Hop::Backend { addr, transport, listener, .. } => {
                (PinTarget::Backend { addr, transport }, listener)
            }
            Hop::Client { flow: Flow::Datagram { local, peer, .. }, listener } => {
                (PinTarget::Datagram { local, peer }, listener)
            }
            Hop::Client { flow: Flow::Stream { .. }, .. } => return,
        };
        if self.pins.put(request.transaction, Pin { target, listener }, seconds, request.turn.now) {
            self.stats.add(Counter::PinsDropped, 1);
        }
    }

    /// Notes a client's REGISTER under its branch; the 2xx confirms it (SPEC 5.2).
    fn note_registration(&mut self, request: &Request<'_>, branch: u64) {
        let view = request.view;
        let Some(to) = Uri::parse(request.essentials.to_uri) else { return };
        self.text.clear();
        to.canonical(to.is_sip() && request.setup.names.is_our_domain(to.host.host), &mut self.text);
        let mut contacts = smallvec::SmallVec::<[&[u8]; 4]>::new();
        let mut all = false;
        for item in view.items(HeaderId::Contact) {
            if item.value == b"*" {
                all = true;
            } else if let Some(contact) = NameAddr::parse(item.value) {
                contacts.push(contact.uri);
            }
        }
        if contacts.is_empty() && !all {
            return;
        }
        let registration = Registration { aor: &self.text, contacts: &contacts, all, flow: request.flow() };
        let noted = request.turn.shared.flows.note(branch, request.turn.now, &registration);
        self.stats.add(Counter::FlowsNoted, u64::from(noted.noted));
        self.stats.add(Counter::FlowConflicts, u64::from(noted.conflicts));
        self.stats.add(Counter::FlowsDropped, u64::from(noted.dropped_oldest));
    }
}

/// Who sent it (SPEC 1.1): the listener must allow backends, the address must be one's.
pub(super) fn source(turn: &Turn<'_>) -> Source {
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

/// The package of an event request; without Event 489 (RFC 6665 8.2.1, RFC 3903 6).
fn event<'a>(view: &View<'a>, method: Method) -> Result<Option<&'a [u8]>, Refused> {
    let value = view.value(HeaderId::Event);
    match (method, value) {
        (Method::Subscribe | Method::Notify | Method::Publish, None) => Err(Reason::NoEvent.into()),
        (Method::Subscribe | Method::Notify | Method::Publish, Some(value)) => {
            Ok(Some(Event::parse(value).ok_or(Reason::BadEvent)?.package))
        }
        _ => Ok(None),
    }
}

fn describe(source: Source, table: &Table) -> String {
    match source {
        Source::Client => "a client".into(),
        Source::Trusted => "a trusted source".into(),
        Source::Backend(at) => format!("backend {}", table.pools.backend(at).name),
    }
}

pub(super) fn hop_text(hop: &Hop) -> String {
    match hop {
        Hop::Backend { addr, transport, .. } => {
            format!("to backend address {addr} over {}", transport.label())
        }
        Hop::Client { flow: Flow::Datagram { peer, .. }, .. } => format!("to client flow {peer} over udp"),
        Hop::Client { flow: Flow::Stream { id, .. }, .. } => format!("to client connection {id:?}"),
    }
}

fn outcome_text(hop: &Result<Hop, Refused>) -> String {
    match hop {
        Ok(hop) => hop_text(hop),
        Err(refused) => {
            format!("{} {} ({})", refused.reason.code(), refused.reason.phrase(), refused.reason.label())
        }
    }
}
