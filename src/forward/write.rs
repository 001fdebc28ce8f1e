//! A request as it leaves: the short list of edits of SPEC 4.1 over the received bytes, written once into the outbox.
//!
//! What few requests need is out of line: in line it would take registers from those that do not.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use super::{
    hash,
    hop::Hop,
    io::{Outbox, Target},
    publication,
    request::Request,
    setup::{Listener, Reader, Setup},
};
use crate::{
    config::table::{Piece, Template},
    route::{Rule, Source},
    wire::{
        Edits, HeaderId, Method, Span, Transport, View,
        name::same_name,
        put,
        reply::{return_address, stamp},
        token::{Bound, CALLED, Flow, PathToken, Publication, RouteToken, Side, ViaToken, tag_hash},
    },
};

/// What was decided about one request.
#[derive(Clone, Copy)]
pub struct Plan<'t> {
    pub hop: Hop,
    /// The rule whose edits apply; `None` for what went by a token or a foreign Route.
    pub rule: Option<&'t Rule>,
    /// The first rr token that it came by.
    pub token: Option<&'t RouteToken>,
    /// SIP-If-Match is a tag of ours.
    pub unwrap: bool,
}

/// Appends the request as it leaves to `out`. Gives the hash part of its branch and how many header fields were stripped.
pub fn request(
    request: &Request<'_>,
    plan: &Plan<'_>,
    edits: &mut Edits,
    text: &mut Vec<u8>,
    out: &mut Outbox,
) -> (u64, u64) {
    let Request { setup, view, essentials, .. } = *request;
    let branch = hash::branch(request.transaction, essentials);
    let publication = publication::carried(request, plan, text);
    edits.clear();
    stamp(view, &essentials.via, request.arrival.peer, request.turn.stamp, edits);
    if let (Some(field), Some(hops)) = (view.first(HeaderId::MaxForwards), essentials.max_forwards) {
        edits.replace_with(view.value_span(field), |t| put::number(hops.saturating_sub(1).into(), t));
    }
    if request.routes.edited() {
        request.routes.cuts(view, |span| edits.cut(span));
    }
    if request.routes.repaired() || plan.rule.is_some_and(|rule| rule.strip_prefix.is_some()) {
        edit_request_uri(request, plan, edits);
    }
    if let Some(publication) = &publication {
        publication::edit(view, publication, plan.unwrap, edits);
    }
    if wants_path(request, plan) {
        support_path(request, plan, edits);
    }
    let strips = &request.table.rules.strip;
    let stripped =
        if request.source.is_backend() || strips.is_empty() { 0 } else { strip(view, strips, edits) };
    if let Some(rule) = plan.rule.filter(|rule| !rule.set.is_empty() || !rule.remove.is_empty()) {
        apply_rule(request, rule, edits);
    }
    if !out_transport(setup, &plan.hop).is_datagram() {
        state_length(view, edits);
    }
    let start = out.bytes.len();
    // Above all header fields: a Record-Route or a Path may stand before the first Via, and ours comes before it (RFC 3261
    // 16.6, RFC 3327 5.2).
    let top = view.fields().first().map_or(0, |first| first.line().start);
    edits.write_with(&view.bytes[..view.end_of_message() as usize], top, &mut out.bytes, |t| {
        write_via(request, plan, branch, publication, t);
        if wants_record_route(request.method) && plan.rule.is_none_or(|rule| rule.record_route) {
            write_record_route(request, plan, branch, t);
        }
        if wants_path(request, plan) {
            write_path(request, plan, t);
        }
        if essentials.max_forwards.is_none() {
            t.extend_from_slice(b"Max-Forwards: 70\r\n");
        }
    });
    // Not one target for all ways: it would be put together in memory first.
    match plan.hop {
        Hop::Backend { addr, transport, listener, local, .. } if transport.is_datagram() => {
            out.finish(Target::Datagram { listener, from: local, to: addr }, start);
        }
        Hop::Backend { addr, listener, local, .. } => {
            out.finish(Target::Connect { listener, from: local, to: addr }, start);
        }
        Hop::Client { flow, listener, .. } => out.finish(by_flow(flow, listener), start),
    }
    (branch, stripped)
}

/// Where a flow's messages go.
pub fn by_flow(flow: Flow, listener: u8) -> Target {
    match flow {
        Flow::Datagram { local, peer, .. } => Target::Datagram { listener, from: local, to: peer },
        Flow::Stream { id, .. } => Target::Stream { listener, id },
    }
}

/// On a stream nothing else says where a message ends (SPEC 2.3, RFC 3261 18.3). What is there already is true: scanned.
#[inline(never)]
pub fn state_length(view: &View<'_>, edits: &mut Edits) {
    if view.first(HeaderId::ContentLength).is_some() {
        return;
    }
    let end = view.fields().last().map_or(0, |field| field.line().end);
    edits.replace_with(Span { start: end, end }, |t| {
        // A Vec takes all that is written.
        let _ = write!(t, "Content-Length: {}\r\n", view.body().len());
    });
}

/// The side on which the sender is (SPEC 3.2): a backend by its listed address.
fn sender(request: &Request<'_>) -> Side {
    let arrival = request.arrival;
    let listener = request.setup.listener(arrival.listener);
    match request.source {
        Source::Client => Side::Client(listener.flow(arrival)),
        Source::Trusted => {
            let addr = called_back(request).unwrap_or(arrival.peer);
            Side::Backend { addr, transport: listener.transport }
        }
        Source::Backend(at) => {
            let backend = request.table.pools.backend(at);
            Side::Backend { addr: backend.addr, transport: backend.transport }
        }
    }
}

/// Where the sender of a request is to be called, should the connection by which it came be gone (SPEC 3.6): its address
/// and the port of its sent-by. `None` for datagrams, and for clients, who are never called.
fn called_back(request: &Request<'_>) -> Option<SocketAddr> {
    let arrival = request.arrival;
    if arrival.flow.is_none() || !request.source.is_backend() {
        return None;
    }
    let default = request.setup.listener(arrival.listener).transport.default_port();
    Some(SocketAddr::new(arrival.peer.ip(), request.essentials.via.sent_by.port.unwrap_or(default)))
}

/// The flow that the request's token named, where it came toward a backend by another one (SPEC 7.2), and the hash of its
/// From tag. Only in the token's own dialog, by the tag that the token holds: else who has seen one token of a phone could
/// name any dialog of that phone, or none.
fn moved(request: &Request<'_>, plan: &Plan<'_>) -> Option<(Flow, u32)> {
    let essentials = request.essentials;
    if request.source != Source::Client
        || !matches!(plan.hop, Hop::Backend { .. })
        || essentials.from_tag.is_empty()
    {
        return None;
    }
    let token = plan.token.filter(|token| token.caller().is_none())?;
    let (side, named) = token.client()?;
    let named = (*named != request.flow()).then_some(*named)?;
    let from = tag_hash(essentials.from_tag);
    let owners = if usize::from(token.owner) == side { from } else { tag_hash(essentials.to_tag?) };
    (owners == token.tag).then_some((named, from))
}

fn write_via(
    request: &Request<'_>,
    plan: &Plan<'_>,
    branch: u64,
    publication: Option<Publication>,
    t: &mut Vec<u8>,
) {
    let Request { setup, arrival, essentials, .. } = *request;
    let listener = setup.listener(arrival.listener);
    let token = ViaToken {
        router: setup.router,
        back: match arrival.flow {
            Some(_) => listener.flow(arrival),
            None => listener.datagram(arrival.local, return_address(&essentials.via, arrival.peer)),
        },
        reopen: called_back(request),
        own: false,
        from_backend: request.source.is_backend(),
        bound: match &plan.hop {
            Hop::Backend { .. } => Bound::Backend,
            Hop::Client { flow, .. } => setup.ring.bound(flow),
        },
        branch,
        loop_hash: request.loop_hash,
        moved: moved(request, plan),
        publication,
    };
    let (reader, local) = reader(&plan.hop);
    out_listener(setup, &plan.hop).write_via(reader, local, t);
    token.encode(&setup.ring, t);
    t.extend_from_slice(b"\r\n");
}

/// The listener by which a request leaves.
fn out_listener<'s>(setup: &'s Setup, hop: &Hop) -> &'s Listener {
    let (Hop::Backend { listener, .. } | Hop::Client { listener, .. }) = hop;
    setup.listener(*listener)
}

fn out_transport(setup: &Setup, hop: &Hop) -> Transport {
    out_listener(setup, hop).transport
}

/// Does a request leave over TLS? One for sips must (SPEC 3.3).
pub fn is_secure(setup: &Setup, hop: &Hop) -> bool {
    out_transport(setup, hop).is_secure()
}

/// Who reads what leaves, and the address of ours that it is to name on a wildcard listener.
fn reader(hop: &Hop) -> (Reader, Option<IpAddr>) {
    match *hop {
        Hop::Backend { local, .. } => (Reader::Backend, local),
        Hop::Client { local, .. } => (Reader::Client, local),
    }
}

fn wants_record_route(method: Method) -> bool {
    matches!(method, Method::Invite | Method::Subscribe | Method::Refer | Method::Notify)
}

fn write_record_route(request: &Request<'_>, plan: &Plan<'_>, branch: u64, t: &mut Vec<u8>) {
    let Request { setup, essentials, .. } = *request;
    let (router, bits) = (setup.router, branch as u16);
    let token = match plan.token {
        Some(token) => {
            let mut sides = token.sides;
            sides[sender_index(request, token)] = sender(request);
            RouteToken { router, sides, bits, ..*token }
        }
        None => {
            let receiver = match plan.hop {
                Hop::Backend { addr, transport, .. } => Side::Backend { addr, transport },
                Hop::Client { flow, .. } => Side::Client(flow),
            };
            let (owner, tag) = match caller_below(request, plan) {
                Some(caller) => (CALLED, caller),
                None => (0, tag_hash(essentials.from_tag)),
            };
            RouteToken { router, sides: [sender(request), receiver], owner, tag, bits }
        }
    };
    t.extend_from_slice(if request.routes.secure { b"Record-Route: <sips:" } else { b"Record-Route: <sip:" });
    token.encode(&setup.ring, essentials.call_id, t);
    let (reader, local) = reader(&plan.hop);
    out_listener(setup, &plan.hop).write_route_end(reader, local, t);
    t.extend_from_slice(b"\r\n");
}

/// Of a request that a backend sends back through us toward a client, the Record-Route that we wrote on its first way, where
/// nobody's is above it: the hash of the client whose it is. That client may use both tokens at once, and no other (SPEC 3.5):
/// in the place of a tag, since a dialog with two tokens of ours in a row is between those two clients.
fn caller_below(request: &Request<'_>, plan: &Plan<'_>) -> Option<u32> {
    if !matches!(plan.hop, Hop::Client { .. }) || !request.source.is_backend() {
        return None;
    }
    let (setup, call_id) = (request.setup, request.essentials.call_id);
    let ours = request.view.items(HeaderId::RecordRoute).map_while(|item| {
        let user = setup.own_route(item.value)?;
        RouteToken::decode(user, &setup.ring, call_id).ok()
    });
    ours.filter_map(|(token, _)| token.client().map(|(_, flow)| setup.ring.client_hash(flow))).next()
}

/// Which side of the token that a request came by is its sender's.
fn sender_index(request: &Request<'_>, token: &RouteToken) -> usize {
    let client = token.sides.iter().position(|side| matches!(side, Side::Client(_)));
    match (request.source.is_backend(), client) {
        (false, Some(index)) => index,
        (true, Some(index)) if request.hops().is_client_of(token) => index,
        (true, Some(index)) => 1 - index,
        (_, None) => request.hops().sender_side(token).unwrap_or(0),
    }
}

fn wants_path(request: &Request<'_>, plan: &Plan<'_>) -> bool {
    request.method == Method::Register
        && request.source == Source::Client
        && matches!(plan.hop, Hop::Backend { .. })
        && plan.rule.is_some_and(|rule| rule.path)
}

/// `Path` with the client's flow (SPEC 3.7; RFC 3327); `;ob` where a Contact has reg-id (RFC 5626 5.1).
#[inline(never)]
fn write_path(request: &Request<'_>, plan: &Plan<'_>, t: &mut Vec<u8>) {
    let Request { setup, view, .. } = *request;
    t.extend_from_slice(if request.routes.secure { b"Path: <sips:" } else { b"Path: <sip:" });
    PathToken { router: setup.router, flow: request.flow() }.encode(&setup.ring, t);
    let (reader, local) = reader(&plan.hop);
    out_listener(setup, &plan.hop).write_route_end(reader, local, t);
    let outbound = view
        .items(HeaderId::Contact)
        .filter_map(|item| crate::wire::NameAddr::parse(item.value))
        .any(|contact| contact.param(b"reg-id").is_some());
    if outbound {
        t.pop();
        t.extend_from_slice(b";ob>");
    }
    t.extend_from_slice(b"\r\n");
}

/// Adds `path` to Supported, else Asterisk answers 420 to a Path (ASTERISK 30).
#[inline(never)]
fn support_path(request: &Request<'_>, plan: &Plan<'_>, edits: &mut Edits) {
    let view = request.view;
    let is = |name: &[u8]| *name == *b"supported";
    // What goes out as a whole cannot be added to.
    let goes = request.table.rules.strip.iter().any(|name| is(name))
        || plan.rule.is_some_and(|rule| {
            rule.set.iter().any(|set| is(&set.canonical)) || rule.remove.iter().any(|name| is(name))
        });
    if !goes && view.items(HeaderId::Supported).any(|item| item.value.eq_ignore_ascii_case(b"path")) {
        return;
    }
    match view.first(HeaderId::Supported).filter(|_| !goes) {
        Some(field) => match view.value_of(field) {
            b"" => edits.replace(field.line(), b"Supported: path\r\n"),
            value => edits.insert(view.span_of(value).end, b", path"),
        },
        None => {
            edits.insert(view.first(HeaderId::Via).map_or(0, |via| via.line().start), b"Supported: path\r\n")
        }
    }
}

/// The Request-URI after strict-route repair, and `strip_prefix` on its user.
#[inline(never)]
fn edit_request_uri(request: &Request<'_>, plan: &Plan<'_>, edits: &mut Edits) {
    let Request { view, routes, .. } = *request;
    let span = view.span_of(view.ruri());
    let prefix = plan.rule.and_then(|rule| rule.strip_prefix.as_deref());
    // The user stands behind the scheme: where it begins with the prefix, the prefix is cut there.
    // A user that is nothing else keeps it: an empty one is no URI.
    let stripped = prefix
        .zip(routes.uri().user)
        .filter(|(prefix, user)| user.len() > prefix.len() && user.starts_with(prefix));
    let base = if routes.repaired() { view.span_of(routes.ruri).start } else { span.start };
    let cut = stripped.map(|(prefix, user)| {
        let from = (view.span_of(user).start - base) as usize;
        from..from + prefix.len()
    });
    match (routes.repaired(), cut) {
        (false, None) => {}
        (false, Some(cut)) => {
            edits.cut(Span { start: span.start + cut.start as u32, end: span.start + cut.end as u32 })
        }
        (true, None) => edits.replace(span, routes.ruri),
        (true, Some(cut)) => edits.replace_with(span, |t| {
            t.extend_from_slice(&routes.ruri[..cut.start]);
            t.extend_from_slice(&routes.ruri[cut.end..]);
        }),
    }
}

/// Takes out every field whose name is in `names` (lower case, compact forms resolved). Gives how many.
#[inline(never)]
fn strip(view: &View<'_>, names: &[Box<[u8]>], edits: &mut Edits) -> u64 {
    let mut stripped = 0;
    for field in view.fields() {
        let name = view.of(field.name());
        if names.iter().any(|n| same_name(name, n)) {
            edits.cut(field.line());
            stripped += 1;
        }
    }
    stripped
}

#[inline(never)]
fn apply_rule(request: &Request<'_>, rule: &Rule, edits: &mut Edits) {
    let view = request.view;
    // What a client wrote under a stripped name is cut already: no line is cut twice.
    let stripped = |name: &[u8]| {
        !request.source.is_backend() && request.table.rules.strip.iter().any(|n| same_name(name, n))
    };
    for field in view.fields() {
        let name = view.of(field.name());
        let named = rule.set.iter().any(|set| same_name(name, &set.canonical))
            || rule.remove.iter().any(|remove| same_name(name, remove));
        if named && !stripped(name) {
            edits.cut(field.line());
        }
    }
    let end = view.fields().last().map_or(0, |field| field.line().end);
    for set in &rule.set {
        edits.replace_with(Span { start: end, end }, |t| {
            t.extend_from_slice(set.name.as_bytes());
            t.extend_from_slice(b": ");
            write_template(request, rule, &set.value, t);
            t.extend_from_slice(b"\r\n");
        });
    }
}

fn write_template(request: &Request<'_>, rule: &Rule, template: &Template, t: &mut Vec<u8>) {
    for piece in &template.0 {
        match piece {
            Piece::Text(text) => t.extend_from_slice(text.as_bytes()),
            Piece::Rule => t.extend_from_slice(rule.name.as_bytes()),
            Piece::SourceIp => put::ip(request.arrival.peer.ip(), t),
            Piece::SourceBackend => {
                if let Source::Backend(at) = request.source {
                    t.extend_from_slice(request.table.pools.backend(at).name.as_bytes());
                }
            }
        }
    }
}
