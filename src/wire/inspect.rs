//! What every proxy must know of a message, parsed once and checked (SPEC 2.5): the second step after `scan`.
//!
//! The forms of RFC 2543 pass: no branch, no From tag, no Max-Forwards. What only some requests need (Event, Routes,
//! Contact) is parsed where it is needed.

use super::addr::NameAddr;
use super::block;
use super::lex::{self, Cursor};
use super::name::{HeaderId, Method};
use super::reason::Reason;
use super::scan::{Start, View};
use super::uri::{Uri, split_scheme};
use super::via::Via;

/// The mandatory header fields of a request or response.
#[derive(Clone, Copy, Debug)]
pub struct Essentials<'a> {
    /// The topmost Via.
    pub via: Via<'a>,
    /// Empty where From has no tag (RFC 2543).
    pub from_tag: &'a [u8],
    pub to_tag: Option<&'a [u8]>,
    pub from_uri: &'a [u8],
    pub to_uri: &'a [u8],
    pub call_id: &'a [u8],
    pub cseq: u32,
    /// The request's method; of a response that of its CSeq.
    pub method: Method,
    pub max_forwards: Option<u8>,
}

/// What a proxy must know of a response that comes by a Via token (SPEC 3.6): the token says where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// That of its CSeq.
    pub method: Method,
    pub call_id: &'a [u8],
    from: &'a [u8],
    to: &'a [u8],
}

impl<'a> Response<'a> {
    /// From and To, parsed and checked.
    pub fn parties(&self) -> Result<(NameAddr<'a>, NameAddr<'a>), Reason> {
        let parties = NameAddr::parse(self.from).zip(NameAddr::parse(self.to));
        parties.ok_or(Reason::BrokenResponse)
    }
}

/// Checks the mandatory fields. For a response every fault is `Reason::BrokenResponse`.
pub fn inspect<'a>(view: &View<'a>) -> Result<Essentials<'a>, Reason> {
    match view.start() {
        Start::Request { token, .. } => essentials(*view, Some(view.of(token))),
        Start::Response { .. } => essentials(*view, None).map_err(|_| Reason::BrokenResponse),
    }
}

/// Checks the mandatory fields of a response but its Vias, and of From and To that they are there, once: `parties` checks
/// their form. Any fault is `Reason::BrokenResponse`.
pub fn inspect_response<'a>(view: &View<'a>) -> Result<Response<'a>, Reason> {
    let only = |id| only(*view, id, Reason::BrokenResponse, Reason::BrokenResponse);
    let (from, to, call_id) = (only(HeaderId::From)?, only(HeaderId::To)?, only(HeaderId::CallId)?);
    let (_, method) = cseq_parts(only(HeaderId::CSeq)?).ok_or(Reason::BrokenResponse)?;
    let known = Method::of(method);
    let sound = !call_id.is_empty()
        && lex::is_printable(call_id)
        && (known != Method::Other || lex::is_token(method));
    sound.then_some(Response { method: known, call_id, from, to }).ok_or(Reason::BrokenResponse)
}

/// The Request-URI: sip and sips parsed, tel and urn passed, other schemes 416. Header fields in it are refused (RFC
/// 4475 3.1.2.11).
pub fn request_uri<'a>(view: &View<'a>) -> Result<Uri<'a>, Reason> {
    let text = view.ruri();
    let (scheme, _) = split_scheme(text).ok_or(Reason::BadRequestUri)?;
    if !is_known(scheme) {
        return Err(Reason::UriScheme);
    }
    // The scan has looked at its characters.
    Uri::of_sound(text).filter(|uri| uri.headers.is_empty()).ok_or(Reason::BadRequestUri)
}

/// The same of a URI that becomes the Request-URI.
pub fn check_request_uri(uri: &Uri<'_>) -> Result<(), Reason> {
    match is_known(uri.scheme) {
        false => Err(Reason::UriScheme),
        true if !uri.headers.is_empty() => Err(Reason::BadRequestUri),
        true => Ok(()),
    }
}

#[inline]
fn is_known(scheme: &[u8]) -> bool {
    scheme == b"sip" || [&b"sip"[..], b"sips", b"tel", b"urn"].iter().any(|s| scheme.eq_ignore_ascii_case(s))
}

/// `request`: the method's token in a request, `None` in a response.
fn essentials<'a>(view: View<'a>, request: Option<&[u8]>) -> Result<Essentials<'a>, Reason> {
    let via = view.value(HeaderId::Via).ok_or(Reason::MissingVia)?;
    // By reference: what has just been parsed is slow to move.
    let Some(via) = &Via::first(via) else { return Err(Reason::BadVia) };
    let from = only(view, HeaderId::From, Reason::MissingFrom, Reason::TwoFrom)?;
    let Some(from) = &NameAddr::parse(from) else { return Err(Reason::BadFrom) };
    let to = only(view, HeaderId::To, Reason::MissingTo, Reason::TwoTo)?;
    let Some(to) = &NameAddr::parse(to) else { return Err(Reason::BadTo) };
    let call_id = only(view, HeaderId::CallId, Reason::MissingCallId, Reason::TwoCallId)?;
    if call_id.is_empty() || !lex::is_printable(call_id) {
        return Err(Reason::BadCallId);
    }
    let cseq = only(view, HeaderId::CSeq, Reason::MissingCSeq, Reason::TwoCSeq)?;
    let (cseq, method) = cseq_parts(cseq).ok_or(Reason::BadCSeq)?;
    // A request's is known already.
    let known = view.method().unwrap_or_else(|| Method::of(method));
    let same = request.is_none_or(|token| block::same(token, method));
    if (!same || known == Method::Other) && !lex::is_token(method) {
        return Err(Reason::BadCSeq);
    }
    if !same {
        return Err(Reason::CSeqMethod);
    }
    let max_forwards = match request {
        Some(_) => max_forwards(view)?,
        None => None,
    };
    Ok(Essentials {
        via: *via,
        from_tag: from.tag().unwrap_or(&from.uri[..0]),
        to_tag: to.tag(),
        from_uri: from.uri,
        to_uri: to.uri,
        call_id,
        cseq,
        method: known,
        max_forwards,
    })
}

/// The value of a field that must be there, once.
#[inline(always)]
fn only<'a>(view: View<'a>, id: HeaderId, missing: Reason, twice: Reason) -> Result<&'a [u8], Reason> {
    if view.is_repeated(id) {
        return Err(twice);
    }
    view.value(id).ok_or(missing)
}

/// `1*DIGIT LWS Method`, the number below 2^31 (RFC 3261 8.1.1.5); the method may be anything.
#[inline]
fn cseq_parts(value: &[u8]) -> Option<(u32, &[u8])> {
    let (mut number, mut rest) = (0, value);
    // Nearly all: a number that is far from the limit, and one blank.
    for _ in 0..9 {
        match rest {
            [digit @ b'0'..=b'9', behind @ ..] => {
                (number, rest) = (10 * number + u32::from(digit - b'0'), behind);
            }
            [b' ', method @ ..] if rest.len() < value.len() && method.first().is_some_and(|b| *b > b' ') => {
                return Some((number, method));
            }
            _ => break,
        }
    }
    odd_cseq_parts(value)
}

#[inline(never)]
fn odd_cseq_parts(value: &[u8]) -> Option<(u32, &[u8])> {
    let mut cursor = Cursor::new(value);
    let number = cursor.number((1 << 31) - 1)?;
    if !cursor.skip_lws() {
        return None;
    }
    Some((number as u32, cursor.rest()))
}

/// 0 to 255 (RFC 3261 20.22); beyond it is malformed (RFC 4475 3.1.2.4).
fn max_forwards(view: View<'_>) -> Result<Option<u8>, Reason> {
    let Some(value) = view.value(HeaderId::MaxForwards) else { return Ok(None) };
    if view.is_repeated(HeaderId::MaxForwards) {
        return Err(Reason::TwoMaxForwards);
    }
    if let [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = value {
        return Ok(Some(10 * (tens - b'0') + (ones - b'0')));
    }
    lex::number(value, 255).map(|n| Some(n as u8)).ok_or(Reason::BadMaxForwards)
}

#[cfg(test)]
mod tests;
