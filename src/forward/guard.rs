//! Who may go on (SPEC 10): the barred are not listened to, who begins too much or writes rubbish is answered for a while
//! and then not, and a core that is behind sheds what is new. Whoever calls for help passes.
//!
//! The counts are `live::Buckets`'s and `live::Bans`'s; what stands of a peer is found once and remembered by
//! `request::Sources`. When a core is behind is for `worker` to say.

use super::{Proxy, Turn, hop::Refused, request::Request, routes::Tokens};
use crate::{
    live::{Cause, Verdict},
    stats::Counter,
    wire::{HeaderId, Method, Reason, Uri, View, name::same_name},
};

/// What stands against a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing, whatever it does: a backend, trusted, exempt.
    Exempt,
    /// It has its limits.
    Limited,
    /// Nothing is taken from it.
    Barred(Reason),
}

impl Proxy {
    /// A message that is malformed, or refused before `may_begin` was asked: false where its sender has had answers enough.
    /// Not counted as what it begins: whoever forges a phone's address takes no calls from it by these.
    pub(super) fn bears(&mut self, turn: &Turn<'_>, reason: Reason) -> bool {
        if turn.guard != Guard::Limited || !(reason.is_malformed() || reason.is_hopeless()) {
            return true;
        }
        match self.buckets.malformed(turn.arrival.peer.ip(), turn.now) {
            Verdict::Taken | Verdict::Refused => true,
            Verdict::Dropped { ban } => {
                self.ask_for_ban(turn, ban, Cause::Malformed);
                false
            }
        }
    }

    /// Takes one from what a client may begin. What a token of ours or a pin proves to belong to something is free; a To
    /// tag proves nothing.
    pub(super) fn may_begin(&mut self, request: &Request<'_>) -> Result<(), Refused> {
        if matches!(request.routes.tokens, Tokens::Route(_)) {
            return Ok(());
        }
        let limited = request.turn.guard == Guard::Limited;
        let asks_pin = self.shedding || limited && request.is_cancel_or_ack();
        let pinned = asks_pin && self.pins.find(request.pin_key(), request.turn.now).is_some();
        if self.shedding && !pinned && self.sheds(request) {
            return Err(match request.method {
                Method::Ack => Reason::OverloadSilence.into(),
                method => later(request.turn, method, Reason::Overload, Reason::OverloadSilence),
            });
        }
        if pinned && request.is_cancel_or_ack() {
            return Ok(());
        }
        self.may_ask(request.turn, request.routes.uri(), request.method)
    }

    /// While the core is behind: what is new, and of a client's what only says that it belongs to something, for a flood would
    /// write To tags, too (SPEC 10). A retransmitted INVITE has its pin; a refresh of a publication is nothing new.
    fn sheds(&mut self, request: &Request<'_>) -> bool {
        let claims = request.essentials.to_tag.is_some() || request.is_cancel_or_ack();
        let refreshes =
            request.method == Method::Publish && request.view.first(HeaderId::SipIfMatch).is_some();
        // Whoever keeps the route set (RFC 3261 12.1) has a token. Who does not, or was given none by the table, loses most
        // where a BYE is lost, and of calls there is a record. A subscription of his begins anew; an ACK without a pin is
        // that of a 503 of ours, and would burden a backend.
        let goes_on = refreshes || claims && (request.turn.guard != Guard::Limited || self.has_call(request));
        !goes_on && !self.is_urgent(request.turn, request.view, request.routes.uri(), request.method)
    }

    /// For an OPTIONS to ourselves.
    pub(super) fn may_ask_us(&mut self, turn: &Turn<'_>, uri: &Uri<'_>) -> Result<(), Refused> {
        if self.shedding {
            return Err(later(turn, Method::Options, Reason::Overload, Reason::OverloadSilence));
        }
        self.may_ask(turn, uri, Method::Options)
    }

    /// Takes one from what its source may begin. A call for help is never refused; a Resource-Priority, which anybody can write,
    /// spares nobody his own limit.
    fn may_ask(&mut self, turn: &Turn<'_>, uri: &Uri<'_>, method: Method) -> Result<(), Refused> {
        if turn.guard != Guard::Limited {
            return Ok(());
        }
        let verdict = self.buckets.new_dialog(turn.arrival.peer.ip(), turn.now);
        if verdict == Verdict::Taken || self.counted(calls_for_help(turn, uri, method)) {
            return Ok(());
        }
        if let Verdict::Dropped { ban } = verdict {
            self.ask_for_ban(turn, ban, Cause::Excess);
            return Err(Reason::SourceFlood.into());
        }
        Err(later(turn, method, Reason::SourceRate, Reason::SourceFlood))
    }

    /// A call for help, or what has a priority which nobody takes away (`strip` in `[trust]`).
    fn is_urgent(&self, turn: &Turn<'_>, view: &View<'_>, uri: &Uri<'_>, method: Method) -> bool {
        const PRIORITY: &[u8] = b"resource-priority";
        let hidden = || {
            !turn.source.is_backend() && turn.table.rules.strip.iter().any(|name| same_name(PRIORITY, name))
        };
        let has_priority =
            || view.fields().iter().any(|field| same_name(view.of(field.name()), PRIORITY)) && !hidden();
        self.counted(calls_for_help(turn, uri, method) || has_priority())
    }

    fn counted(&self, urgent: bool) -> bool {
        self.stats.add(Counter::Urgent, urgent.into());
        urgent
    }

    fn ask_for_ban(&self, turn: &Turn<'_>, wanted: bool, cause: Cause) {
        let forgeable = turn.arrival.flow.is_none() && !turn.setup.ban_datagrams;
        if wanted && !forgeable && !turn.table.pools.has_host(turn.arrival.peer.ip()) {
            turn.shared.bans.ask(turn.arrival.peer.ip(), cause);
        }
    }
}

/// A publisher drops its event on any final error, but over UDP goes on retransmitting (SPEC 6.5).
fn later(turn: &Turn<'_>, method: Method, reason: Reason, silence: Reason) -> Refused {
    if method == Method::Publish && turn.arrival.flow.is_none() {
        return silence.into();
    }
    Refused { reason, retry: Some(turn.setup.retry_after_s) }
}

/// A call, or what belongs to one, for help.
fn calls_for_help(turn: &Turn<'_>, uri: &Uri<'_>, method: Method) -> bool {
    let calls = matches!(method, Method::Invite | Method::Ack | Method::Cancel | Method::Prack)
        || matches!(method, Method::Update | Method::Bye | Method::Info);
    calls && is_emergency(uri, &turn.setup.emergency)
}

/// `urn:service:sos` and what is below it (RFC 5031), or one of these numbers.
fn is_emergency(uri: &Uri<'_>, numbers: &[Box<[u8]>]) -> bool {
    const SOS: &[u8] = b"service:sos";
    if uri.scheme.eq_ignore_ascii_case(b"urn") {
        return uri.rest.get(..SOS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(SOS))
            && matches!(uri.rest.get(SOS.len()), None | Some(b'.'));
    }
    let number = if uri.is_tel() { uri.rest.split(|&b| b == b';').next() } else { uri.user };
    number.is_some_and(|number| numbers.iter().any(|known| **known == *number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_for_help_are_known_by_urn_and_number() {
        let numbers: [Box<[u8]>; 2] = [(*b"112").into(), (*b"911").into()];
        let is = |text: &str| is_emergency(&Uri::parse(text.as_bytes()).expect("a URI"), &numbers);
        for text in [
            "urn:service:sos",
            "URN:Service:SOS.fire",
            "sip:112@example.com",
            "sips:911@x;user=phone",
            "tel:112",
        ] {
            assert!(is(text), "{text}");
        }
        for text in [
            "urn:service:sosa",
            "urn:service:counseling",
            "sip:1120@x",
            "sip:112x@x",
            "sip:x@112",
            "tel:1121",
        ] {
            assert!(!is(text), "{text}");
        }
    }
}
