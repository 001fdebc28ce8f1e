//! Where a request goes: token, foreign Route of a backend, pin, table, in this order (SPEC 3.4, 4.4, 7.1).
//!
//! A pin goes before the table for CANCEL and ACK only, which are nothing by themselves. For all else the table says what
//! becomes of it, and a pin which backend or flow it is: rules look at more than a pin's key holds.

use super::{
    Proxy,
    hop::{Hop, Hops, Refused},
    publication::Mark,
    request::Request,
    routes::Tokens,
    write::Plan,
};
use crate::{
    live::{Pin, PinTarget},
    route::{Action, BackendRef, Facts, Pick, Recorder, Rule, Source, Table},
    stats::Counter,
    wire::{Method, Reason, Uri, token::Flow},
};

/// Retry-After where no backend can take a request, in seconds.
pub const NO_BACKEND_RETRY_S: u32 = 5;

/// What was decided.
pub enum Outcome<'t> {
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
    /// Token, foreign Route of a backend, pin, table (SPEC 4.4).
    pub(super) fn decide<'t, R: Recorder>(&mut self, request: &Request<'t>, rec: &mut R) -> Outcome<'t> {
        let hops = request.hops();
        if let Some(hop) = &hops.by_token(request.routes) {
            let hop = approved(hop, |hop| hops.carried(hop));
            if R::ON {
                rec.step("token", format_args!("{}", outcome_text(hop)));
            }
            let token = match &request.routes.tokens {
                Tokens::Route(list) => list.first().map(|(token, _)| token),
                _ => None,
            };
            let plan = |hop: &Hop| Outcome::Forward(Plan { hop: *hop, rule: None, token, unwrap: false });
            return hop.map_or_else(Outcome::from, plan);
        }
        if let (true, Some(route)) = (request.source.is_backend(), request.routes.next) {
            let by_route = || {
                let uri = Uri::parse(route).ok_or(Reason::BadRoute)?;
                let hop = hops.by_uri(&uri)?;
                hops.carried(&hop).map_err(|refused| silenced(request, &hop, refused))?;
                Ok(hop)
            };
            let mark = self.mark(request);
            let hop = &hops.by_mark(&mark, None).unwrap_or_else(by_route);
            let hop = approved(hop, |hop| hops.admits(&mark, hop));
            if R::ON {
                rec.step("route", format_args!("{}: {}", String::from_utf8_lossy(route), outcome_text(hop)));
            }
            let unwrap = matches!(mark, Mark::Ours(_));
            let plan = |hop: &Hop| Outcome::Forward(Plan { hop: *hop, rule: None, token: None, unwrap });
            return hop.map_or_else(Outcome::from, plan);
        }
        let mark = self.mark(request);
        // A token that counts goes before a pin (SPEC 3.4).
        let pinned = if let Mark::None | Mark::Foreign = mark { self.pinned(request) } else { None };
        self.by_table(request, &hops, pinned, &mark, rec)
    }

    /// The pin's hop, where there is one that still serves: a CANCEL or an ACK follows its INVITE anywhere, anything
    /// else only to what the table still uses.
    fn pinned(&self, request: &Request<'_>) -> Option<Pinned> {
        // Its key is made of two hashes.
        if self.pins.is_empty() {
            return None;
        }
        let now = request.turn.now;
        let pin = self.pins.find(request.pin_key(), now).or_else(|| match request.method {
            // The ACK of a 2xx names the Contact of who answered, not the INVITE's Request-URI.
            Method::Ack => self.pins.newest(request.who(), now),
            _ => None,
        })?;
        let hop = match pin.target {
            PinTarget::Backend { addr, transport } => request.hops().address(addr, transport).ok()?,
            PinTarget::Datagram { local, peer } => {
                let listener = request.setup.listener(pin.listener).id;
                let flow = Flow::Datagram { listener, local, peer };
                Hop::Client { flow, listener: pin.listener, local }
            }
            PinTarget::Stream(id) => {
                let listener = request.setup.listener(pin.listener);
                let flow = Flow::Stream { listener: listener.id, id };
                request.turn.shared.stream(request.setup, id).ok()?;
                Hop::Client {
                    flow,
                    listener: pin.listener,
                    local: request.turn.shared.local(listener, &flow),
                }
            }
        };
        let serves = match &hop {
            Hop::Backend { at, .. } => at.is_some_and(|at| request.table.pools.carries(at)),
            Hop::Client { .. } => true,
        };
        let swapped = pin.table != request.table.version as u8 & 15;
        (serves || request.is_cancel_or_ack()).then_some(Pinned { hop, pin, swapped })
    }

    /// A pin decides.
    fn pin_hit<R: Recorder>(&self, hop: &Hop, rec: &mut R) {
        self.stats.add(Counter::PinHits, 1);
        if R::ON {
            rec.step("pin", format_args!("{}", hop_text(hop)));
        }
    }

    fn by_table<'t, R: Recorder>(
        &mut self,
        request: &Request<'t>,
        hops: &Hops<'t>,
        pinned: Option<Pinned>,
        mark: &Mark,
        rec: &mut R,
    ) -> Outcome<'t> {
        let table = request.table;
        let facts = request.facts();
        let rule = table.rules.decide(&facts, &table.pools, &mut self.scratch, rec);
        if let Some(Pinned { hop, .. }) = pinned.filter(|_| request.is_cancel_or_ack()) {
            self.pin_hit(&hop, rec);
            let rule = rule.filter(|rule| routes(rule));
            return Outcome::Forward(Plan { hop, rule, token: None, unwrap: false });
        }
        let Some(rule) = rule else {
            let uri = request.routes.uri();
            let ours =
                uri.is_sip() && request.setup.names.is_us(uri.host.host, uri.port(), request.arrival.local);
            return self.unmatched(request, if ours { Reason::NoRule } else { Reason::NotOurs });
        };
        self.stats.rule(rule.series);
        let pinned = pinned.filter(|pinned| pinned.stands_for(rule, table));
        let free = request.is_cancel_or_ack() || pinned.is_some_and(|pinned| pinned.is_of(request));
        if let Some(limit) = rule.limit.as_ref().filter(|_| !free && !R::ON)
            && !limit.take(request.turn.now)
        {
            self.stats.add(Counter::RuleLimited, 1);
            return Refused { reason: Reason::Limited, retry: Some(1) }.into();
        }
        let pool = match rule.action {
            Action::Route(pool) => Some(pool),
            _ => None,
        };
        let by_mark = || hops.by_mark(mark, pool);
        let hop = &match (pinned, &rule.action) {
            (Some(Pinned { hop, .. }), _) => {
                self.pin_hit(&hop, rec);
                Ok(hop)
            }
            (None, Action::Route(pool)) => {
                by_mark().unwrap_or_else(|| self.balance(request, &facts, hops, *pool, rec))
            }
            (None, Action::Flow) => by_mark().unwrap_or_else(|| hops.by_flow(request.routes.uri())),
            (None, Action::RequestUri) => by_mark().unwrap_or_else(|| {
                let hop = hops.by_uri(request.routes.uri())?;
                hops.carried(&hop).map_err(|refused| silenced(request, &hop, refused))?;
                Ok(hop)
            }),
            (None, Action::Reply { .. } | Action::RedirectUri(_) | Action::RedirectPool(_)) => {
                return Outcome::Answer(rule);
            }
            (None, Action::Drop) => return Outcome::Drop,
        };
        let unwrap = matches!(mark, Mark::Ours(_));
        if R::ON && *mark != Mark::None {
            rec.step("etag", format_args!("{}", mark_text(mark, hop, request)));
        }
        match approved(hop, |hop| hops.admits(mark, hop)) {
            Ok(hop) => Outcome::Forward(Plan { hop: *hop, rule: Some(rule), token: None, unwrap }),
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
                let refused = Refused { reason: Reason::NoBackend, retry: Some(NO_BACKEND_RETRY_S) };
                Err(if is_silent(request, pool) { Reason::Silence.into() } else { refused })
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
}

/// Where a pin leads.
#[derive(Clone, Copy)]
struct Pinned {
    hop: Hop,
    pin: Pin,
    /// Another table has decided than is in force.
    swapped: bool,
}

impl Pinned {
    /// Is it one of those among which the rule chooses? A backend of another pool is where the table has moved since, not
    /// where another header led the request.
    fn stands_for(&self, rule: &Rule, table: &Table) -> bool {
        match (&rule.action, &self.hop) {
            (Action::Route(pool), &Hop::Backend { addr, transport, .. }) => {
                let places = table.pools.at_address(addr, transport);
                self.swapped || places.iter().any(|at| at.pool == *pool)
            }
            (Action::Flow, Hop::Client { .. }) | (Action::RequestUri, _) => true,
            _ => false,
        }
    }

    /// Is the request a retransmission of what left the pin?
    fn is_of(&self, request: &Request<'_>) -> bool {
        self.pin.transaction == request.pin_transaction()
    }
}

fn routes(rule: &Rule) -> bool {
    matches!(rule.action, Action::Route(_) | Action::Flow | Action::RequestUri)
}

/// A PUBLISH over UDP that no backend of the pool can take is met with silence, unless the pool says 503: an Asterisk
/// drops its event on any final error, but retransmits for 32 s (SPEC 6.5).
fn is_silent(request: &Request<'_>, pool: u16) -> bool {
    let transport = request.setup.listener(request.arrival.listener).transport;
    request.method == Method::Publish && transport.is_datagram() && request.table.pools.pool(pool).silence
}

fn silenced(request: &Request<'_>, hop: &Hop, refused: Refused) -> Refused {
    match hop {
        Hop::Backend { at: Some(at), .. } if is_silent(request, at.pool) => Reason::Silence.into(),
        _ => refused,
    }
}

pub(super) fn hop_text(hop: &Hop) -> String {
    match hop {
        Hop::Backend { addr, transport, .. } => {
            format!("to backend address {addr} over {}", transport.label())
        }
        Hop::Client { flow: Flow::Datagram { peer, .. }, .. } => format!("to client flow {peer} over udp"),
        Hop::Client { flow: Flow::Stream { id, .. }, .. } => format!("to client connection {id}"),
    }
}

/// What `explain` says of SIP-If-Match.
fn mark_text(mark: &Mark, hop: &Result<Hop, Refused>, request: &Request<'_>) -> String {
    match (mark, hop) {
        (Mark::Ours(token), Ok(Hop::Backend { at: Some(at), .. })) => {
            let name = &request.table.pools.backend(*at).name;
            format!("of backend {name}, issued at {}: goes there, whatever the balance says", token.issued)
        }
        (Mark::Foreign, _) => "not one of ours".to_owned(),
        (_, Err(refused)) => format!("of no use ({})", refused.reason.label()),
        _ => "leads to no backend".to_owned(),
    }
}

/// A hop that passes one more check. By reference: a hop is slow to move.
fn approved(
    hop: &Result<Hop, Refused>,
    check: impl FnOnce(&Hop) -> Result<(), Refused>,
) -> Result<&Hop, Refused> {
    let hop = hop.as_ref().map_err(|refused| *refused)?;
    check(hop)?;
    Ok(hop)
}

fn outcome_text(hop: Result<&Hop, Refused>) -> String {
    match hop {
        Ok(hop) => hop_text(hop),
        Err(refused) => {
            format!("{} {} ({})", refused.reason.code(), refused.reason.phrase(), refused.reason.label())
        }
    }
}
