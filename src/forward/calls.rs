//! Call records (SPEC 7.1): an INVITE that leaves rings at its backend, its 2xx leaves the record of the dialog, a BYE
//! ends it. What they are for stands in `live::calls`.
//!
//! The BYE itself ends the record, not its answer: whoever sends one is done (RFC 3261 15.1.1), and one to a backend that
//! died is never answered. Of two backends that call each other the one that answers has the record.
//!
//! A backend's 2xx is taken at its word. A client's counts where its INVITE rings, and once: a phone that would write any
//! number of them would fill a backend's `max_calls`. So of several phones that answer one INVITE the first has the record.

use std::sync::Arc;

use super::{Proxy, Turn, hash, hop::Hop, request::Request, setup::Setup, write::Plan};
use crate::{
    live::{BackendState, Recorded, calls},
    route::{Peer, Source, Table},
    stats::Counter,
    wire::{
        Essentials, Method, Response,
        token::{Flow, ViaToken},
    },
};

impl Proxy {
    /// A request left with this hash part of its branch.
    pub(super) fn call_left(&mut self, request: &Request<'_>, plan: &Plan<'_>, branch: u64) {
        let shared = request.turn.shared;
        match (request.method, request.essentials.to_tag) {
            (Method::Invite, None) => {
                let at = match (plan.hop, request.source) {
                    (Hop::Backend { at: Some(at), .. }, _) | (Hop::Client { .. }, Source::Backend(at)) => at,
                    _ => return,
                };
                let state = &request.table.pools.backend(at).state;
                let Essentials { call_id, from_tag, .. } = *request.essentials;
                let key = self.ringing(request.setup, call_id, from_tag, branch);
                let recorded = shared.calls.put(key, state, calls::RINGING_S, request.turn.now);
                self.count_call(recorded, false);
            }
            (Method::Bye, Some(_)) => {
                shared.calls.end(self.dialog_of(request), request.turn.now);
            }
            _ => {}
        }
    }

    /// A final response of this code to an INVITE came from `from` by this via token.
    #[inline(never)]
    pub(super) fn call_answered(
        &mut self,
        turn: &Turn<'_>,
        response: &Response<'_>,
        token: &ViaToken,
        from: Source,
        code: u16,
    ) {
        let calls = &turn.shared.calls;
        let Ok((from_party, to_party)) = response.parties() else { return };
        let (from_tag, to_tag) = (from_party.tag().unwrap_or_default(), to_party.tag().unwrap_or_default());
        let ringing = self.ringing(turn.setup, response.call_id, from_tag, token.branch);
        let rang = calls.end(ringing, turn.now);
        if code >= 300 {
            return;
        }
        let key = self.dialog(turn.setup, response.call_id, (from_tag, to_tag));
        // In a dialog nothing rings: what is known is renewed.
        if (rang || from.is_backend() || calls.knows(key, turn.now))
            && let Some(backend) = party(turn, token, from)
        {
            let recorded = calls.put(key, backend, calls::CALL_S, turn.now);
            self.count_call(recorded, true);
        }
    }

    /// Is it of a call that goes on, or ended a moment ago?
    pub(super) fn has_call(&mut self, request: &Request<'_>) -> bool {
        let key = self.dialog_of(request);
        request.turn.shared.calls.knows(key, request.turn.now)
    }

    fn count_call(&self, recorded: Recorded, answered: bool) {
        self.stats.add(Counter::CallsRecorded, u64::from(answered && recorded != Recorded::Known));
        self.stats.add(Counter::CallsDropped, u64::from(recorded == Recorded::Dropped));
    }

    fn dialog_of(&mut self, request: &Request<'_>) -> u64 {
        let Essentials { call_id, from_tag, to_tag, .. } = *request.essentials;
        self.dialog(request.setup, call_id, (from_tag, to_tag.unwrap_or_default()))
    }

    /// An INVITE that rings: its branch, bound to the Call-ID and the From tag that its answer must have.
    fn ringing(&mut self, setup: &Setup, call_id: &[u8], from_tag: &[u8], branch: u64) -> u64 {
        self.keyed(setup, &[call_id, from_tag]) ^ branch
    }

    /// Call-ID and both tags, whoever asks.
    fn dialog(&mut self, setup: &Setup, call_id: &[u8], (a, b): (&[u8], &[u8])) -> u64 {
        self.keyed(setup, &[call_id, a.min(b), a.max(b)])
    }

    fn keyed(&mut self, setup: &Setup, parts: &[&[u8]]) -> u64 {
        self.text.clear();
        for part in parts {
            hash::part(&mut self.text, part);
        }
        setup.ring.hash(&self.text)
    }
}

/// The backend in a call: who answered, else who asked.
fn party<'t>(turn: &Turn<'t>, token: &ViaToken, from: Source) -> Option<&'t Arc<BackendState>> {
    let Table { pools, .. } = turn.table;
    let at = match (from, token.back) {
        (Source::Backend(at), _) => at,
        (_, Flow::Datagram { listener, peer, .. }) if token.from_backend => {
            let transport = turn.setup.listener(turn.setup.by_id(listener)?).transport;
            match pools.peer(transport, peer, turn.now.unix_s)? {
                Peer::Backend(at) => at,
                Peer::Departed => return None,
            }
        }
        _ => return None,
    };
    Some(&pools.backend(at).state)
}
