//! A request's way (SPEC 4.4): checks, OPTIONS to us, Routes, loops; the decision (`decide`); then it leaves with its edits
//! (`write`), and what must be remembered of it is: a pin, a registration.

use super::{
    COOKIE, Proxy, Turn,
    decide::{NO_BACKEND_RETRY_S, Outcome, hop_text},
    hash,
    hop::{Hop, Refused},
    io::Outbox,
    request::Request,
    routes::{Routes, Tokens},
    setup::Setup,
    users,
    write::{self, Plan},
};
use crate::{
    live::{Pin, PinTarget, Registration},
    route::{Action, Recorder, Source, Table},
    stats::{Counter, Kind},
    wire::{
        Essentials, Event, HeaderId, Method, NameAddr, Reason, Start, Via, View,
        inspect::{inspect, request_uri},
        token::{Flow, ViaToken},
    },
};

/// How long an INVITE's pin and another's hold, in seconds (SPEC 7.1).
const INVITE_PIN_S: u32 = 300;
const PIN_S: u32 = 32;
/// More Vias of ours than this are a loop, whatever their hashes (SPEC 4.5).
const MAX_OWN_VIAS: u32 = 6;

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
        let source = turn.source;
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
        // By reference: each move of it would cost as much as parsing one of its fields.
        let essentials = &inspect(view);
        let essentials = essentials.as_ref().map_err(|reason| *reason)?;
        let uri = &request_uri(view);
        let uri = uri.as_ref().map_err(|reason| *reason)?;
        if view.first(HeaderId::ProxyRequire).is_some() {
            return Err(Reason::ProxyRequire.into());
        }
        let package = event(view, method)?;
        let local = turn.arrival.local;
        let to_us =
            || uri.is_sip() && uri.user.is_none() && setup.names.is_us(uri.host.host, uri.port(), local);
        let mut routes = Routes::none(view, uri);
        routes.read(view, essentials, method, setup, local, source.is_backend())?;
        let routes = &routes;
        if method == Method::Options && !routes.repaired() && routes.next.is_none() && to_us() {
            self.may_ask_us(turn, uri)?;
            if turn.table.pools.all_down() {
                return Err(Refused { reason: Reason::NoBackend, retry: Some(NO_BACKEND_RETRY_S) });
            }
            self.options(turn, view, out, rec);
            return Ok(());
        }
        if essentials.max_forwards == Some(0) {
            return Err(Reason::MaxForwards.into());
        }
        let peer = turn.arrival.peer;
        let hashed = hash::request(&setup.ring, essentials, peer.ip());
        let transaction = hash::transaction(hashed, peer.port());
        let loop_hash = hash::passage(hashed, essentials, view);
        self.check_loop(view, essentials, setup, loop_hash)?;
        let request = Request {
            turn,
            setup,
            table: turn.table,
            arrival: turn.arrival,
            view,
            essentials,
            routes,
            method,
            package,
            source,
            transaction,
            loop_hash,
        };
        // What was refused until here is counted by `bears`.
        self.may_begin(&request)?;
        if let Some(package) = package {
            self.stats.package(turn.table.rules.package_series(package), method);
        }
        self.count_tokens(routes);
        match self.decide(&request, rec) {
            Outcome::Forward(plan) if routes.secure && !write::is_secure(setup, &plan.hop) => {
                return Err(Reason::Sips.into());
            }
            Outcome::Forward(plan) => self.forward(&request, &plan, out, rec),
            Outcome::Refuse(refused) => match self.spares(&request, refused.reason) {
                Some(spared) => self.spare(&request, refused.reason, spared, out, rec),
                None => return Err(refused),
            },
            Outcome::Answer(rule) => self.rule_answer(&request, rule, out, rec),
            Outcome::Drop => self.stats.refused(Reason::TableDrop),
        }
        Ok(())
    }

    /// RFC 5393: our own Via with the same hash, or too many of ours.
    fn check_loop(
        &self,
        view: &View<'_>,
        essentials: &Essentials<'_>,
        setup: &Setup,
        loop_hash: u32,
    ) -> Result<(), Refused> {
        let mut own = 0;
        let mut seen = |branch: &[u8]| {
            let token = branch.strip_prefix(COOKIE).and_then(|text| ViaToken::decode(text, &setup.ring).ok());
            own += u32::from(token.is_some());
            token.is_some_and(|(token, _)| token.loop_hash == loop_hash) || own > MAX_OWN_VIAS
        };
        // The topmost is parsed already, and most requests have no other.
        let top = &essentials.via;
        let others = view.is_repeated(HeaderId::Via)
            || view.value(HeaderId::Via).is_some_and(|value| value.len() != top.whole.len());
        let below = || view.items(HeaderId::Via).skip(1).filter_map(|item| Via::parse(item.value));
        if seen(top.branch) || (others && below().any(|via| seen(via.branch))) {
            return Err(Reason::Loop.into());
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

    fn forward<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        plan: &Plan<'_>,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let (branch, stripped) = write::request(request, plan, &mut self.edits, &mut self.text, out);
        if R::ON {
            if stripped > 0 {
                rec.step("strip", format_args!("{stripped} header field(s) that no client may write"));
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
            // Nobody answers an ACK.
            if request.method != Method::Ack {
                self.stats.backend_asked(backend.series, request.turn.now.mono_ms);
            }
        }
        self.pin(request, plan);
        self.call_left(request, plan, branch);
        if request.method == Method::Register && request.source == Source::Client {
            self.note_registration(request, branch);
        }
        self.see_user(request);
    }

    /// Leaves a pin where a later CANCEL, ACK or retransmission could be decided otherwise (SPEC 7.1). What went by a
    /// token or a Route leaves none: its CANCEL has them too, and a new request without them must not follow.
    fn pin(&mut self, request: &Request<'_>, plan: &Plan<'_>) {
        let Some(rule) = plan.rule else { return };
        let stateful = match rule.action {
            Action::Flow => true,
            // While a backend takes nothing its users are elsewhere; a retransmission must not follow it back.
            Action::Route(pool) => {
                let pools = &request.table.pools;
                pools.pool(pool).balance.is_stateful() || !pools.is_whole(pool)
            }
            _ => false,
        };
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
            Hop::Client { flow: Flow::Datagram { local, peer, .. }, listener, .. } => {
                (PinTarget::Datagram { local, peer }, listener)
            }
            Hop::Client { flow: Flow::Stream { id, .. }, listener, .. } => (PinTarget::Stream(id), listener),
        };
        let (table, transaction) = (request.table.version as u8 & 15, request.pin_transaction());
        let pin = Pin { target, listener, table, transaction };
        if self.pins.put(request.pin_key(), pin, seconds, request.turn.now) {
            self.stats.add(Counter::PinsDropped, 1);
        }
    }

    /// Notes a client's REGISTER under its branch; the 2xx confirms it (SPEC 5.2).
    #[inline(never)]
    fn note_registration(&mut self, request: &Request<'_>, branch: u64) {
        let view = request.view;
        if users::write_aor(request.essentials.to_uri, request.setup, &mut self.text).is_none() {
            return;
        }
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
