//! Affinity of publications without state (SPEC 6): the tag of a 2xx to PUBLISH is wrapped in a token that names its
//! backend, and SIP-If-Match is unwrapped and goes there; Expires is raised on the way in and lowered on the way back.
//!
//! A tag chooses among backends only once a rule of the table lets the PUBLISH pass: what is to be answered, dropped or
//! limited is, tag or not. A tag that is of no use is 412, so that the publisher publishes afresh; for Asterisk's own
//! packages a refresh and a remove of it are answered here (6.3).

use std::{io::Write, sync::atomic::Ordering};

use super::{
    Proxy, Turn, hash,
    hop::{Hop, Hops, Refused},
    request::Request,
    setup::Setup,
    write::Plan,
};
use crate::{
    route::BackendRef,
    stats::Counter,
    wire::{
        self, Edits, Essentials, HeaderId, Method, Reason, Span, Uri, View,
        token::{EtagToken, Fault, Publication},
    },
};

/// Seconds by which a pool without `publish_expires_margin` raises Expires for packages that begin with `asterisk-`.
const ASTERISK_MARGIN_S: u16 = 30;
/// Expires of the answer to a refresh that names none (what Asterisk's server grants).
const DEFAULT_EXPIRES_S: u32 = 3600;

/// What SIP-If-Match says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// None there, or no PUBLISH.
    None,
    /// A tag that is not ours.
    Foreign,
    Ours(EtagToken),
    /// One of ours that does not verify.
    Dead(Reason),
}

impl Proxy {
    /// Reads SIP-If-Match of a PUBLISH.
    pub(super) fn mark(&mut self, request: &Request<'_>) -> Mark {
        let view = request.view;
        if request.method != Method::Publish || view.first(HeaderId::SipIfMatch).is_none() {
            return Mark::None;
        }
        if view.is_repeated(HeaderId::SipIfMatch) {
            return Mark::Dead(Reason::TwoIfMatch);
        }
        let tag = view.value(HeaderId::SipIfMatch).unwrap_or_default();
        let text = &mut self.text;
        match EtagToken::decode(tag, &request.setup.ring, |key_id| key(request, key_id, text)) {
            Ok((token, _, key_id)) => {
                self.stats.key_used(key_id);
                Mark::Ours(token)
            }
            Err(Fault::Foreign) => Mark::Foreign,
            Err(Fault::UnknownKey) => {
                self.stats.add(Counter::UnknownKey, 1);
                Mark::Dead(Reason::EtagUnknownKey)
            }
            Err(Fault::Forged) => {
                self.stats.add(Counter::ForgedEtag, 1);
                Mark::Dead(Reason::EtagForged)
            }
        }
    }

    /// The answer to a PUBLISH whose tag is of no use, where it is not 412 (SPEC 6.3): Asterisk would take that for a
    /// reason to publish the empty body of its refresh.
    pub(super) fn spares(&self, request: &Request<'_>, reason: Reason) -> Option<Spared> {
        let asterisk = request.package.is_some_and(is_asterisk);
        if !asterisk || reason.code() != Reason::EtagForged.code() {
            return None;
        }
        match expires(request.view) {
            Some(0) => Some(Spared { refresh: false, expires: 0 }),
            asked if request.view.body().is_empty() => {
                Some(Spared { refresh: true, expires: asked.unwrap_or(DEFAULT_EXPIRES_S) })
            }
            _ => None,
        }
    }

    /// Edits the answer to a PUBLISH. `key_id`: of the via token that `publication` stood in. `dry`: nothing is learnt from
    /// it (`explain`).
    pub(super) fn publication_answered(
        &mut self,
        turn: &Turn<'_>,
        view: &View<'_>,
        publication: &Publication,
        key_id: u8,
        code: u16,
        dry: bool,
    ) {
        let pools = &turn.table.pools;
        let backend = pools.by_name_hash(publication.backend, None).map(|at| pools.backend(at));
        if !(200..300).contains(&code) {
            let stops = match code {
                401 | 407 => Counter::PublisherChallenged,
                423 if view.first(HeaderId::MinExpires).is_none() => Counter::PublisherTooBrief,
                _ => return,
            };
            if publication.asterisk {
                self.stats.add(stops, 1);
                if let Some(backend) = backend.filter(|_| !dry) {
                    backend.state.stops.fetch_add(1, Ordering::Relaxed);
                }
            }
            return;
        }
        let mut restarted = 0;
        if let (Some(backend), Some(tag)) = (backend, view.value(HeaderId::SipEtag))
            && !dry
        {
            // Several processes behind one name have several counters.
            if backend.spread.count == 1 && backend.state.tags.saw(tag, turn.now) {
                backend.state.note_restart(turn.now.unix_s);
                self.stats.add(Counter::RestartsByTag, 1);
            }
            restarted = backend.state.restarted_at();
        }
        // Later than a restart that is known: tags of its second are those of the process before.
        let issued = turn.now.unix_s.max(restarted.saturating_add(1));
        let token = EtagToken { backend: publication.backend, issued: issued as u32 };
        for (_, field) in view.all(HeaderId::SipEtag) {
            let tag = view.value_of(field);
            if tag.is_empty() {
                continue;
            }
            self.stats.add(Counter::EtagsWrapped, 1);
            self.edits.replace_with(view.value_span(field), |t| {
                // The key that verified the via token is there.
                token.encode(&turn.setup.ring, key_id, publication.key, tag, t);
            });
        }
        lower_expires(view, publication.margin, &mut self.edits);
    }
}

/// A PUBLISH that is answered here with 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spared {
    /// Else a remove.
    pub refresh: bool,
    pub expires: u32,
}

impl Spared {
    /// The lines of its 200: the tag is the one that it came with.
    pub fn headers(self, view: &View<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"SIP-ETag: ");
        out.extend_from_slice(view.value(HeaderId::SipIfMatch).unwrap_or_default());
        // A Vec takes all that is written.
        let _ = write!(out, "\r\nExpires: {}\r\n", self.expires);
    }
}

impl Hops<'_> {
    /// Where a mark leads, whatever the table says (SPEC 6.1); `None` where it has nothing to say. Of several places of
    /// the backend that in `pool` is taken.
    pub fn by_mark(&self, mark: &Mark, pool: Option<u16>) -> Option<Result<Hop, Refused>> {
        match mark {
            Mark::None | Mark::Foreign => None,
            Mark::Dead(reason) => Some(Err((*reason).into())),
            Mark::Ours(token) => Some(self.by_etag(token, pool).map_err(Refused::from)),
        }
    }

    fn by_etag(&self, token: &EtagToken, pool: Option<u16>) -> Result<Hop, Reason> {
        let pools = &self.table.pools;
        let at: BackendRef = pools.by_name_hash(token.backend, pool).ok_or(Reason::EtagGone)?;
        if !pools.carries(at) {
            return Err(Reason::EtagDown);
        }
        // What was issued in the very second may be of either process.
        if u64::from(token.issued) <= pools.backend(at).state.restarted_at() {
            return Err(Reason::EtagRestarted);
        }
        if self.is_sender(at) {
            return Err(Reason::Ourselves);
        }
        Ok(self.backend(at))
    }

    /// A tag that is not ours may be of any backend of a pool: where there are several it is 412 (SPEC 6.2).
    pub fn admits(&self, mark: &Mark, hop: &Hop) -> Result<(), Refused> {
        let pool = match hop {
            Hop::Backend { at: Some(at), .. } => self.table.pools.pool(at.pool),
            _ => return Ok(()),
        };
        if *mark == Mark::Foreign && pool.backends.len() > 1 && !pool.foreign_etag {
            return Err(Reason::EtagForeign.into());
        }
        Ok(())
    }
}

/// What the via token of a PUBLISH carries; `None` where it does not go to a backend of the table.
pub fn carried(request: &Request<'_>, plan: &Plan<'_>, text: &mut Vec<u8>) -> Option<Publication> {
    let (Method::Publish, Hop::Backend { at: Some(at), .. }) = (request.method, plan.hop) else {
        return None;
    };
    let asterisk = request.package.is_some_and(is_asterisk);
    let pools = &request.table.pools;
    let margin = pools.pool(at.pool).publish_expires_margin;
    let margin = margin.unwrap_or(if asterisk { ASTERISK_MARGIN_S } else { 0 });
    let removed = plan.rule.is_some_and(|rule| rule.remove.iter().any(|name| **name == *b"expires"));
    let raised = margin > 0 && !removed && expires(request.view).is_some_and(|seconds| seconds > 0);
    Some(Publication {
        key: key(request, request.setup.ring.signing(), text),
        backend: pools.backend(at).tag(),
        margin: if raised { margin } else { 0 },
        asterisk,
    })
}

/// The edits of a PUBLISH: SIP-If-Match unwrapped, Expires raised.
pub fn edit(view: &View<'_>, publication: &Publication, unwrap: bool, edits: &mut Edits) {
    if let Some(field) = view.first(HeaderId::SipIfMatch).filter(|_| unwrap) {
        let start = view.value_span(field).start;
        edits.cut(Span { start, end: start + EtagToken::LEN as u32 });
    }
    if publication.margin > 0
        && let (Some(field), Some(seconds)) = (view.first(HeaderId::Expires), expires(view))
    {
        let raised = seconds.saturating_add(publication.margin.into());
        edits.replace_with(view.value_span(field), |t| {
            // A Vec takes all that is written.
            let _ = write!(t, "{raised}");
        });
    }
}

fn lower_expires(view: &View<'_>, margin: u16, edits: &mut Edits) {
    if margin == 0 {
        return;
    }
    let (Some(field), Some(answered @ 1..)) = (view.first(HeaderId::Expires), expires(view)) else { return };
    edits.replace_with(view.value_span(field), |t| {
        let _ = write!(t, "{}", answered.saturating_sub(margin.into()).max(1));
    });
}

/// The publication's key by the key of this id (SPEC 6.1): a tag is good for what it was given for, and for nobody else.
fn key(request: &Request<'_>, key_id: u8, text: &mut Vec<u8>) -> u64 {
    let Essentials { from_uri, .. } = *request.essentials;
    let setup = request.setup;
    text.clear();
    text.push(request.source.is_backend().into());
    hash::part(text, request.package.unwrap_or_default());
    let resource = text.len();
    canonical(request.routes.uri(), setup, text);
    let resource = resource..text.len();
    // Neither a canonical URI nor a package holds a blank.
    text.push(b' ');
    if from_uri == request.routes.ruri {
        // Nearly all publish of themselves.
        text.extend_from_within(resource);
    } else if let Some(from) = Uri::parse(from_uri) {
        canonical(&from, setup, text);
    } else {
        text.extend_from_slice(from_uri);
    }
    setup.ring.hash_by(key_id, text)
}

fn canonical(uri: &Uri<'_>, setup: &Setup, text: &mut Vec<u8>) {
    uri.canonical(uri.is_sip() && setup.names.is_our_domain(uri.host.host), text);
}

fn is_asterisk(package: &[u8]) -> bool {
    package.starts_with(b"asterisk-")
}

/// Expires where there is just one and it is a number (RFC 3261 20.19).
fn expires(view: &View<'_>) -> Option<u32> {
    let value = view.value(HeaderId::Expires).filter(|_| !view.is_repeated(HeaderId::Expires))?;
    wire::number(value, u32::MAX.into()).map(|n| n as u32)
}
