//! A response's way: the via token of its topmost Via says where it goes and from whom it may come (SPEC 3.6), our
//! Record-Route is rewritten for the receiver's side (3.3), our Path is taken out (3.7), registrations are confirmed.

use super::{
    Proxy, Turn,
    io::{Outbox, Target},
    setup::{Listener, Reader, Setup, behind_scheme},
    signs, users,
    write::{by_flow, state_length},
};
use crate::{
    live::{Outcome, Stay},
    route::{Recorder, Source},
    stats::{Counter, Kind},
    wire::{
        HeaderId, Item, Method, NameAddr, Reason, Response, Span, Start, Uri, Via, View,
        inspect::inspect_response,
        ip, same,
        token::{Bound, Fault, Flow, PathToken, RouteToken, ViaToken, is_text},
    },
};

/// Expires that a 2xx without one grants (RFC 3261 10.2.1.1, RFC 6665 4.1.2.1).
const DEFAULT_EXPIRES_S: u32 = 3600;
/// A moved flow is remembered for so long at most: a subscription is refreshed more often.
const LONGEST_MOVE_S: u32 = 86_400;

impl Proxy {
    pub(super) fn response<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let Start::Response { code, .. } = view.start() else { return };
        match self.take(turn, view, code, out, rec) {
            Ok(()) => {}
            Err(reason) => {
                let reason = if self.bears(turn, reason) { reason } else { Reason::MalformedRate };
                self.stats.refused(reason);
                if R::ON {
                    rec.step("drop", format_args!("{}", reason.label()));
                }
            }
        }
    }

    fn take<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        code: u16,
        out: &mut Outbox,
        rec: &mut R,
    ) -> Result<(), Reason> {
        let setup = turn.setup;
        let arrived = setup.listener(turn.arrival.listener);
        let from = turn.source;
        let sender = if from.is_backend() { Reader::Backend } else { Reader::Client };
        let response = &inspect_response(view);
        let response = response.as_ref().map_err(|reason| *reason)?;
        response.parties()?;
        let method = response.method;
        let via = view.value(HeaderId::Via).ok_or(Reason::BrokenResponse)?;
        // Nearly all: as we wrote it, alone in its line. Decoded to its place: a token is long to move.
        let mut own_len = via.len();
        let mut decoded = match arrived.via_value(sender).and_then(|ours| behind(via, ours)) {
            Some(text) => ViaToken::decode(text, &setup.ring),
            None => Err(Fault::Foreign),
        };
        if let Err(Fault::Foreign) = decoded {
            let top = Via::first(via).ok_or(Reason::BrokenResponse)?;
            own_len = top.whole.len();
            if let Some(text) = top.branch.strip_prefix(super::COOKIE) {
                decoded = ViaToken::decode(text, &setup.ring);
            }
        }
        self.stats.received(Kind::Response(method), arrived.transport);
        let (token, key_id) = self.verified(&decoded, setup)?;
        let flow = arrived.flow(turn.arrival);
        let hash_of = |flow: &Flow| setup.ring.flow_hash(key_id, flow);
        let expected = match token.bound {
            Bound::Backend => from.is_backend(),
            // Whom we called by a connection answers by it.
            Bound::Client(hash) if token.own => {
                [flow, arrived.datagram(turn.arrival.local, turn.arrival.peer)]
                    .iter()
                    .any(|flow| hash_of(flow) == hash)
            }
            Bound::Client(hash) => hash == hash_of(&flow),
        };
        if !expected {
            return Err(Reason::ResponseSource);
        }
        if token.own {
            if R::ON {
                rec.step("response", format_args!("to a request of our own"));
            } else {
                self.own_answered(turn, from, token, code);
            }
            return Ok(());
        }
        let target = &way_back(turn, token);
        let target = target.as_ref().map_err(|reason| *reason)?;
        let leaving = setup.listener(target.listener());

        self.edits.clear();
        self.cut_our_via(view, own_len)?;
        if view.first(HeaderId::RecordRoute).is_some() && !stands_right(view, token, leaving) {
            self.rewrite_record_route(turn, view, response, token, leaving, setup);
        }
        let success = (200..300).contains(&code);
        if method == Method::Register && success {
            self.take_path_out(turn, view, setup);
        }
        if let Some(publication) = token.publication.as_ref().filter(|_| method == Method::Publish) {
            self.publication_answered(turn, view, publication, key_id, code, R::ON);
        }
        if !leaving.transport.is_datagram() {
            state_length(view, &mut self.edits);
        }
        let start = out.bytes.len();
        self.edits.write(&view.bytes[..view.end_of_message() as usize], &mut out.bytes);
        out.finish(*target, start);
        if R::ON {
            rec.step("response", format_args!("by the via token to {target}"));
            return Ok(());
        }
        self.stats.sent(Kind::Response(method), leaving.transport);
        if let Source::Backend(at) = from {
            let backend = turn.table.pools.backend(at);
            self.stats.backend_response(backend.series, (code / 100) as u8, turn.now.mono_ms);
            if code == 503 {
                signs::unavailable(&backend.state, turn, view, &token.back);
            }
        }
        if method == Method::Invite && code >= 200 {
            self.call_answered(turn, response, token, from, code);
        }
        if success {
            self.learn(turn, view, token, response, from);
        }
        Ok(())
    }

    /// The token of the topmost Via where it is ours and genuine, and the id of its key.
    fn verified<'t>(
        &self,
        decoded: &'t Result<(ViaToken, u8), Fault>,
        setup: &Setup,
    ) -> Result<(&'t ViaToken, u8), Reason> {
        match decoded {
            Ok((token, key_id)) => {
                self.stats.key_used(*key_id);
                if token.router == setup.router { Ok((token, *key_id)) } else { Err(Reason::ForeignResponse) }
            }
            Err(Fault::Foreign) => Err(Reason::ForeignResponse),
            Err(Fault::UnknownKey) => {
                self.stats.add(Counter::UnknownKey, 1);
                Err(Reason::ForeignResponse)
            }
            Err(Fault::Forged) => {
                self.stats.add(Counter::ForgedVia, 1);
                Err(Reason::ForgedVia)
            }
        }
    }

    /// Takes our Via off, which is so long. A response without another one was ours to receive: none of ours asks for one yet.
    fn cut_our_via(&mut self, view: &View<'_>, own_len: usize) -> Result<(), Reason> {
        let first = view.first(HeaderId::Via).ok_or(Reason::BrokenResponse)?;
        if view.is_repeated(HeaderId::Via) && view.value_of(first).len() == own_len {
            // Nearly all: alone in its line.
            self.edits.cut(first.line());
            return Ok(());
        }
        let mut vias = view.items(HeaderId::Via);
        let ours = vias.next().ok_or(Reason::BrokenResponse)?;
        let below = vias.next().ok_or(Reason::ForeignResponse)?;
        self.edits.cut(without(view, &ours, Some(&below)));
        Ok(())
    }

    /// The Record-Route that left with this request, in the form for the receiver's side (SPEC 3.3; RFC 5658).
    #[inline(never)]
    fn rewrite_record_route(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        response: &Response<'_>,
        token: &ViaToken,
        leaving: &Listener,
        setup: &Setup,
    ) {
        let local = turn.shared.local(leaving, &token.back);
        self.text.clear();
        leaving.write_route_end(receiver(token), local, &mut self.text);
        for item in view.items(HeaderId::RecordRoute) {
            // Ours begin so, whoever wrote them anew; what is not, is not parsed.
            let exact = setup.own_route(item.value);
            let user = || {
                let start = behind_scheme(item.value)?;
                memchr::memchr(b'@', start).map(|at| &start[..at])
            };
            let Some(user) = exact.or_else(user) else { continue };
            let Ok((rr, _)) = RouteToken::decode(user, &setup.ring, response.call_id) else { continue };
            if rr.bits != token.branch as u16 {
                continue;
            }
            if exact.is_some() && item.value.ends_with(&self.text) {
                return;
            }
            let uri = match exact {
                Some(_) => &item.value[1..item.value.len() - 1],
                None => {
                    let Some(route) = NameAddr::parse(item.value) else { continue };
                    let Some(uri) = Uri::parse(route.uri) else { continue };
                    if !setup.names.is_our_domain(uri.host.host) && !is_local(turn, &uri) {
                        continue;
                    }
                    route.uri
                }
            };
            // What was asked for by sips stays so, unless its receiver cannot come back that way.
            let scheme: &[u8] = match item.value.starts_with(b"<sips:") && leaving.transport.is_secure() {
                true => b"sips:",
                false => b"sip:",
            };
            let end = &self.text[..self.text.len() - 1];
            self.edits.replace_with(view.span_of(uri), |t| {
                t.extend_from_slice(scheme);
                t.extend_from_slice(user);
                t.extend_from_slice(end);
            });
            return;
        }
    }

    /// Our Path is not the phone's business (SPEC 3.7).
    #[inline(never)]
    fn take_path_out(&mut self, turn: &Turn<'_>, view: &View<'_>, setup: &Setup) {
        let mut previous: Option<Item<'_>> = None;
        let mut items = view.items(HeaderId::Path).peekable();
        while let Some(item) = items.next() {
            let uri = NameAddr::parse(item.value).and_then(|path| Uri::parse(path.uri));
            let ours = uri.is_some_and(|uri| {
                (setup.names.is_our_domain(uri.host.host) || is_local(turn, &uri))
                    && uri.user.is_some_and(|user| PathToken::decode(user, &setup.ring).is_ok())
            });
            if !ours {
                previous = Some(item);
                continue;
            }
            let next = items.peek().filter(|next| next.field == item.field);
            let before = previous.as_ref().filter(|previous| previous.field == item.field);
            match (next, before) {
                (None, Some(before)) => {
                    let end = view.span_of(item.value).end;
                    self.edits.cut(Span { start: view.span_of(before.value).end, end });
                }
                (next, _) => self.edits.cut(without(view, &item, next)),
            }
        }
    }

    /// What a 2xx teaches: registered flows, who is on a connection, moved flows.
    fn learn(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        token: &ViaToken,
        response: &Response<'_>,
        from: Source,
    ) {
        match response.method {
            Method::Register if !token.from_backend => self.registered(turn, view, token, response, from),
            Method::Subscribe | Method::Publish => {
                let granted = header_seconds(view).unwrap_or(DEFAULT_EXPIRES_S);
                self.user_confirmed(turn, response, token, granted);
            }
            _ => {}
        }
        if let Some((old, tag)) = token.moved {
            let seconds = header_seconds(view).filter(|s| *s > 0).unwrap_or(DEFAULT_EXPIRES_S);
            let seconds = seconds.min(LONGEST_MOVE_S);
            let dropped = turn.shared.moved.put(old, tag, token.back, seconds, turn.now);
            self.stats.add(Counter::FlowsMoved, 1);
            self.stats.add(Counter::MovedDropped, u64::from(dropped));
        }
    }

    /// A 2xx to a client's REGISTER.
    #[inline(never)]
    fn registered(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        token: &ViaToken,
        response: &Response<'_>,
        from: Source,
    ) {
        let Some(on) = self.registered_on(turn, response, token) else { return };
        let (shared, aor, mut longest) = (turn.shared, &self.text, 0);
        let confirmed = shared.flows.confirm(token.branch, aor, turn.now, &mut |contact| {
            let granted = granted(view, contact, turn, turn.setup);
            match granted.unwrap_or(0) {
                0 => shared.users.depart(aor, Some(contact)),
                seconds => longest = longest.max(seconds),
            }
            granted
        });
        match on {
            _ if confirmed.all => shared.users.depart(aor, None),
            Some(id) if longest > 0 => {
                let owner = match from {
                    Source::Backend(at) => Some(turn.table.pools.backend(at)),
                    _ => None,
                };
                let owner = owner.map(|backend| (backend.addr, backend.transport));
                shared.users.confirm(id, aor, (Stay::Registration, longest), owner, turn.now);
            }
            _ => {}
        }
        self.stats.add(Counter::FlowsConfirmed, u64::from(confirmed.added + confirmed.refreshed));
        self.stats.add(Counter::FlowConflicts, u64::from(confirmed.conflicts));
        self.stats.add(Counter::FlowsDropped, u64::from(confirmed.dropped_oldest));
    }

    /// A response to a request of our own: control waits for it.
    #[inline(never)]
    fn own_answered(&self, turn: &Turn<'_>, from: Source, token: &ViaToken, code: u16) {
        if let Source::Backend(at) = from {
            let backend = turn.table.pools.backend(at);
            self.stats.backend_response(backend.series, (code / 100) as u8, turn.now.mono_ms);
        }
        users::answered(turn.shared, &self.stats, token.branch, Outcome::Answered(code));
    }
}

/// Who reads the response.
fn receiver(token: &ViaToken) -> Reader {
    if token.from_backend { Reader::Backend } else { Reader::Client }
}

/// Nearly all: both sides know us by one name, so that the only Record-Route stands as it should, whatever its token says.
fn stands_right(view: &View<'_>, token: &ViaToken, leaving: &Listener) -> bool {
    let alone = view.value(HeaderId::RecordRoute).filter(|_| !view.is_repeated(HeaderId::RecordRoute));
    let user = alone.zip(leaving.route_end(receiver(token)));
    user.and_then(|(value, end)| behind_scheme(before(value, end)?)).is_some_and(is_text)
}

/// `value` behind `prefix`, if it begins so.
fn behind<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    let (begin, behind) = value.split_at_checked(prefix.len())?;
    same(begin, prefix).then_some(behind)
}

/// `value` before `suffix`, if it ends so.
fn before<'v>(value: &'v [u8], suffix: &[u8]) -> Option<&'v [u8]> {
    let (before, end) = value.split_at_checked(value.len().checked_sub(suffix.len())?)?;
    same(end, suffix).then_some(before)
}

/// Where a response goes (SPEC 3.6): the datagram's source, or the connection by which the request came. A client's that is
/// closed is not reopened; a backend is called at its sent-by port.
pub(super) fn way_back(turn: &Turn<'_>, token: &ViaToken) -> Result<Target, Reason> {
    let (Flow::Datagram { listener, .. } | Flow::Stream { listener, .. }) = token.back;
    let listener = turn.setup.by_id(listener).ok_or(Reason::ForeignResponse)?;
    match (token.back, token.reopen) {
        (Flow::Stream { id, .. }, reopen) if turn.shared.stream(turn.setup, id).is_err() => {
            let to = reopen.ok_or(Reason::ConnectionGone)?;
            Ok(Target::Connect { listener, from: None, to })
        }
        (back, _) => Ok(by_flow(back, listener)),
    }
}

/// `rewrite_contact` of a PBX writes the packet's source into our Record-Route: the address that it answered.
fn is_local(turn: &Turn<'_>, uri: &Uri<'_>) -> bool {
    ip::parse(uri.host.host) == Some(turn.arrival.local.ip())
}

/// The span that takes one comma-separated value out: its whole line where it is alone in it, else up to the next value.
fn without(view: &View<'_>, item: &Item<'_>, next: Option<&Item<'_>>) -> Span {
    let value = view.span_of(item.value);
    match next.filter(|next| next.field == item.field) {
        Some(next) => Span { start: value.start, end: view.span_of(next.value).start },
        None => view.fields()[item.field].line(),
    }
}

/// The seconds that a 2xx to REGISTER grants to `contact` (RFC 3261 10.3); `None` where it is not bound. A PBX that
/// rewrote the Contact to our address still means this user.
fn granted(view: &View<'_>, contact: &[u8], turn: &Turn<'_>, setup: &Setup) -> Option<u32> {
    let noted = Uri::parse(contact)?;
    let bound =
        view.items(HeaderId::Contact).filter_map(|item| NameAddr::parse(item.value)).find(|bound| {
            Uri::parse(bound.uri).is_some_and(|uri| {
                let ours = setup.names.is_us(uri.host.host, uri.port(), turn.arrival.local);
                uri.same(&noted) || (ours && uri.user == noted.user)
            })
        })?;
    let expires = bound.param(b"expires").flatten().and_then(number);
    Some(expires.or_else(|| header_seconds(view)).unwrap_or(DEFAULT_EXPIRES_S))
}

fn header_seconds(view: &View<'_>) -> Option<u32> {
    view.value(HeaderId::Expires).and_then(number)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
