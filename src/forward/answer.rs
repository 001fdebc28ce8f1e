//! Answers of our own: refusals, OPTIONS, a rule's `reply` and `redirect`, and what could not be delivered.

use std::io::Write;

use super::{
    Proxy, Turn,
    hop::Refused,
    io::{Fault, Outbox, Target},
    publication::Spared,
    request::Request,
    response::way_back,
    users,
};
use crate::{
    live::Outcome,
    route::{Action, Pick, Recorder, Rule},
    stats::{Counter, Kind},
    wire::{
        HeaderId, Method, Reason, Start, Via, View,
        inspect::inspect,
        reply::{self, Reply, return_address},
        token::{Flow, Ring, ViaToken},
    },
};

/// Retry-After of an answer to what could not be delivered, in seconds.
const UNDELIVERABLE_RETRY_S: u32 = 5;

/// One answer: code, phrase, and whole header lines.
struct Answer<'a> {
    code: u16,
    phrase: &'a str,
    headers: &'a [u8],
}

impl Proxy {
    /// The answer that SPEC 2.5 names for a reason, or silence; counted either way. Never answers an ACK.
    pub(super) fn refuse<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        refused: Refused,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let Refused { mut reason, retry } = refused;
        if !self.bears(turn, reason) {
            reason = Reason::MalformedRate;
        }
        self.stats.refused(reason);
        if R::ON {
            rec.step("refuse", format_args!("{} {} ({})", reason.code(), reason.phrase(), reason.label()));
        }
        if reason.code() == 0 {
            return;
        }
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        if let Some(seconds) = retry {
            let _ = write!(headers, "Retry-After: {seconds}\r\n");
        }
        match reason {
            Reason::NoEvent => {
                let packages = &turn.table.rules.allow_events;
                if !packages.is_empty() {
                    let _ = write!(headers, "Allow-Events: {packages}\r\n");
                }
            }
            Reason::ProxyRequire => {
                for (_, field) in view.all(HeaderId::ProxyRequire) {
                    headers.extend_from_slice(b"Unsupported: ");
                    headers.extend_from_slice(view.value_of(field));
                    headers.extend_from_slice(b"\r\n");
                }
            }
            _ => {}
        }
        let answer = Answer { code: reason.code(), phrase: reason.phrase(), headers: &headers };
        self.answer(turn, view, &answer, out, rec);
        self.headers = headers;
    }

    /// 200 to a refresh or a remove of an Asterisk's publication that is gone (SPEC 6.3).
    pub(super) fn spare<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        reason: Reason,
        spared: Spared,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        self.stats.refused(reason);
        let counter = if spared.refresh { Counter::SparedRefreshes } else { Counter::SparedRemoves };
        self.stats.add(counter, 1);
        if R::ON {
            rec.step("spare", format_args!("200 instead of {} ({})", reason.code(), reason.label()));
        }
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        spared.headers(request.view, &mut headers);
        let answer = Answer { code: 200, phrase: "OK", headers: &headers };
        self.answer(request.turn, request.view, &answer, out, rec);
        self.headers = headers;
    }

    /// OPTIONS to us (SPEC 4.4): what this router takes.
    pub(super) fn options<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        if R::ON {
            rec.step("options", format_args!("to this router itself"));
        }
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        headers.extend_from_slice(b"Accept: */*\r\nSupported: path\r\n");
        let packages = &turn.table.rules.allow_events;
        if !packages.is_empty() {
            let _ = write!(headers, "Allow-Events: {packages}\r\n");
        }
        self.answer(turn, view, &Answer { code: 200, phrase: "OK", headers: &headers }, out, rec);
        self.headers = headers;
    }

    /// A rule's `reply` or `redirect`.
    pub(super) fn rule_answer<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        rule: &Rule,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let turn = request.turn;
        match &rule.action {
            Action::Reply { code, reason, headers } => {
                self.stats.refused(Reason::TableReply);
                self.answer(turn, request.view, &Answer { code: *code, phrase: reason, headers }, out, rec);
            }
            Action::RedirectUri(uri) => self.redirect(turn, request.view, out, rec, |t| write!(t, "<{uri}>")),
            Action::RedirectPool(pool) => match self.redirect_target(request, *pool, rec) {
                Some((addr, transport)) => {
                    let user = request.routes.uri().user.unwrap_or_default().to_owned();
                    self.redirect(turn, request.view, out, rec, |t| {
                        t.write_all(b"<sip:")?;
                        if !user.is_empty() {
                            t.write_all(&user)?;
                            t.write_all(b"@")?;
                        }
                        write!(t, "{addr};transport={transport}>")
                    });
                }
                None => {
                    let refused = Refused { reason: Reason::NoBackend, retry: Some(UNDELIVERABLE_RETRY_S) };
                    self.refuse(turn, request.view, refused, out, rec);
                }
            },
            Action::Route(_) | Action::Flow | Action::RequestUri | Action::Drop => {}
        }
    }

    fn redirect_target<R: Recorder>(
        &mut self,
        request: &Request<'_>,
        pool: u16,
        rec: &mut R,
    ) -> Option<(std::net::SocketAddr, &'static str)> {
        match self.pick(request, &request.facts(), pool, None, rec) {
            Pick::Backend(at) => {
                let backend = request.table.pools.backend(at);
                Some((backend.addr, backend.transport.label()))
            }
            Pick::Sender | Pick::None => None,
        }
    }

    fn redirect<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        out: &mut Outbox,
        rec: &mut R,
        contact: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>,
    ) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        headers.extend_from_slice(b"Contact: ");
        // A Vec takes all that is written.
        let _ = contact(&mut headers);
        headers.extend_from_slice(b"\r\n");
        let reason = Reason::RedirectTo;
        self.stats.refused(reason);
        let answer = Answer { code: reason.code(), phrase: reason.phrase(), headers: &headers };
        self.answer(turn, view, &answer, out, rec);
        self.headers = headers;
    }

    /// Writes a response to the sender. Never to an ACK (RFC 3261 17.1.1.3).
    fn answer<R: Recorder>(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        answer: &Answer<'_>,
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let Start::Request { method, .. } = view.start() else { return };
        if method == Method::Ack {
            self.stats.refused(Reason::AckRefused);
            return;
        }
        let peer = turn.arrival.peer;
        let via = view.items(HeaderId::Via).next().and_then(|item| Via::parse(item.value));
        let to = via.map_or(peer, |via| return_address(&via, peer));
        let listener = turn.arrival.listener;
        let target = match turn.arrival.flow {
            Some(id) => Target::Stream { listener, id },
            None => {
                let from = turn.setup.listener(listener).wildcard.then(|| turn.arrival.local.ip());
                Target::Datagram { listener, from, to }
            }
        };
        self.write_answer(turn, view, answer, Some(peer), target, out);
        if R::ON {
            rec.step("answer", format_args!("{} {} to {target}", answer.code, answer.phrase));
        }
    }

    /// `peer`: who sent the request; `None` where it is our own, as sent.
    fn write_answer(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        answer: &Answer<'_>,
        peer: Option<std::net::SocketAddr>,
        target: Target,
        out: &mut Outbox,
    ) {
        let start = out.bytes.len();
        // Equal for a retransmission, so that a stateless answer has one To tag (RFC 3261 8.2.7).
        let call_id = view.value(HeaderId::CallId).unwrap_or_default();
        let cseq = view.value(HeaderId::CSeq).unwrap_or_default();
        let tag = xxhash_rust::xxh3::xxh3_64_with_seed(call_id, xxhash_rust::xxh3::xxh3_64(cseq));
        let Answer { code, phrase, headers } = *answer;
        reply::write(view, &Reply { code, phrase, headers, tag, peer }, &mut self.edits, &mut out.bytes);
        out.finish(target, start);
        self.stats.answered(code);
        let method = match view.start() {
            Start::Request { method, .. } => method,
            Start::Response { .. } => return,
        };
        self.stats.sent(Kind::Response(method), turn.setup.listener(target.listener()).transport);
    }

    /// A request that we sent could not go: whoever sent it to us is told, by the sent bytes without our Via.
    pub(super) fn undeliverable(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        token: &ViaToken,
        why: Fault,
        out: &mut Outbox,
    ) {
        let Start::Request { method, .. } = view.start() else { return };
        if token.own {
            return users::answered(turn.shared, &self.stats, token.branch, Outcome::Undeliverable);
        }
        if method == Method::Ack || inspect(view).is_err() {
            return;
        }
        let Ok(target) = way_back(turn, token) else { return };
        let reason = match why {
            Fault::TooLarge => Reason::NextHopTooLarge,
            // A publisher drops its event on any final error, but over UDP goes on retransmitting (SPEC 6.5).
            _ if method == Method::Publish && matches!(token.back, Flow::Datagram { .. }) => return,
            _ => Reason::Unreachable,
        };
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        if reason == Reason::Unreachable {
            let _ = write!(headers, "Retry-After: {UNDELIVERABLE_RETRY_S}\r\n");
        }
        self.stats.refused(reason);
        let answer = Answer { code: reason.code(), phrase: reason.phrase(), headers: &headers };
        // Without our Via: what is below is the sender's own, stamped already.
        self.write_answer(turn, view, &answer, None, target, out);
        self.headers = headers;
    }
}

/// The token in our Via on a request that we sent (SPEC 3.6), and the id of its key.
pub(super) fn sent_token(view: &View<'_>, ring: &Ring) -> Option<(ViaToken, u8)> {
    let Start::Request { .. } = view.start() else { return None };
    let via = Via::parse(view.items(HeaderId::Via).next()?.value)?;
    ViaToken::decode(via.branch.strip_prefix(super::COOKIE)?, ring).ok()
}
