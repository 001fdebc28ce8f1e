//! Who is on a connection, as messages show it (SPEC 9.9), and what is told to control: connections that ended with users
//! on them, answers to requests of our own (3.6, last sentence).
//!
//! A client's REGISTER, SUBSCRIBE or PUBLISH on a stream is seen when it leaves, its 2xx confirms its user (`live::users`).
//! Of datagram flows, which have no end that could be seen, only REGISTER counts: who lost a connection is back by it.

use super::{
    Proxy, Turn,
    io::Closed,
    request::Request,
    setup::{Setup, Shared},
};
use crate::{
    live::{Gone, Now, Outcome, Seen, Stay},
    route::Source,
    stats::{CoreStats, Counter},
    wire::{
        HeaderId, Method, NameAddr, Response, Uri,
        token::{Flow, FlowId, ViaToken, tag_hash},
    },
};

/// By what the users of a client's flow are remembered.
fn place(flow: Flow, method: Method, setup: &Setup, shared: &Shared) -> Option<FlowId> {
    match flow {
        Flow::Stream { id, .. } if (id.router, id.boot) == (setup.router, setup.boot) => Some(id),
        Flow::Datagram { listener, peer, .. } if method == Method::Register => {
            Some(shared.users.datagram(listener, peer))
        }
        _ => None,
    }
}

/// Whose request it is: To of a REGISTER, From of others, canonical.
pub(super) fn write_aor(uri: &[u8], setup: &Setup, text: &mut Vec<u8>) -> Option<()> {
    let uri = Uri::parse(uri)?;
    text.clear();
    uri.canonical(uri.is_sip() && setup.names.is_our_domain(uri.host.host), text);
    Some(())
}

impl Proxy {
    /// A client's request leaves.
    pub(super) fn see_user(&mut self, request: &Request<'_>) {
        let method = request.method;
        let counts = match method {
            Method::Register => true,
            Method::Subscribe | Method::Publish => request.arrival.flow.is_some(),
            _ => false,
        };
        if !counts || request.source != Source::Client {
            return;
        }
        let Some(id) = place(request.flow(), method, request.setup, request.turn.shared) else { return };
        let registers = method == Method::Register;
        let uri = if registers { request.essentials.to_uri } else { request.essentials.from_uri };
        if write_aor(uri, request.setup, &mut self.text).is_none() {
            return;
        }
        // A Contact that ends says nothing of who stays.
        let stays = |contact: &NameAddr<'_>| contact.param(b"expires").flatten() != Some(b"0");
        let mut contacts = request.view.items(HeaderId::Contact).filter_map(|i| NameAddr::parse(i.value));
        let contact = contacts.find(stays);
        let instance = contact.as_ref().and_then(|contact| contact.param(b"+sip.instance").flatten());
        let seen = Seen {
            aor: &self.text,
            uri,
            contact: contact.as_ref().map_or(&[], |contact| contact.uri),
            instance: instance.map_or(0, |instance| xxhash_rust::xxh3::xxh3_64(instance).max(1)),
            registers,
        };
        if !request.turn.shared.users.see(id, &seen, request.turn.now) {
            self.stats.add(Counter::UsersDropped, 1);
        }
    }

    /// A 2xx to a client's request: `granted` are the seconds of a SUBSCRIBE or PUBLISH.
    pub(super) fn user_confirmed(
        &mut self,
        turn: &Turn<'_>,
        response: &Response<'_>,
        token: &ViaToken,
        granted: u32,
    ) {
        let stay = match response.method {
            Method::Subscribe => Stay::Subscription(tag_hash(response.call_id)),
            Method::Publish => {
                Stay::Publication(token.publication.map_or(0, |publication| publication.key as u32))
            }
            _ => return,
        };
        let Some(id) = place(token.back, response.method, turn.setup, turn.shared) else { return };
        if token.from_backend {
            return;
        }
        let Ok((user, _)) = response.parties() else { return };
        if write_aor(user.uri, turn.setup, &mut self.text).is_some() {
            turn.shared.users.confirm(id, &self.text, (stay, granted), None, turn.now);
        }
    }

    /// Writes the AOR of a 2xx to REGISTER into `text`, and gives by what the users of its client's flow are remembered, if at
    /// all. `None`: it cannot be read.
    pub(super) fn registered_on(
        &mut self,
        turn: &Turn<'_>,
        response: &Response<'_>,
        token: &ViaToken,
    ) -> Option<Option<FlowId>> {
        let (_, user) = response.parties().ok()?;
        write_aor(user.uri, turn.setup, &mut self.text)?;
        Some(place(token.back, Method::Register, turn.setup, turn.shared))
    }
}

/// A request of our own was answered, or could not go.
pub(super) fn answered(shared: &Shared, stats: &CoreStats, branch: u64, outcome: Outcome) {
    if !shared.news.reply(branch, outcome) {
        stats.add(Counter::NewsDropped, 1);
    }
}

/// A connection has ended.
pub(super) fn closed(shared: &Shared, stats: &CoreStats, closed: &Closed, now: Now) {
    let users = shared.users.close(closed.id, now);
    if users.is_empty() {
        return;
    }
    let Closed { id, listener, peer, opened_ms, heard_ms, reason } = *closed;
    let gone = Gone { id, listener, peer, opened_ms, heard_ms, at: now, reason, users };
    if !shared.news.gone(gone) {
        stats.add(Counter::NewsDropped, 1);
    }
}
