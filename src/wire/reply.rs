//! Responses of our own, written from the request's bytes (RFC 3261 8.2.6), and the stamp on its topmost Via (RFC 3581).

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use super::{
    edit::Edits,
    name::HeaderId,
    put,
    scan::{Span, View},
    via::Via,
};

/// One response of ours.
pub struct Reply<'a> {
    pub code: u16,
    pub phrase: &'a str,
    /// Whole lines with CRLF.
    pub headers: &'a [u8],
    /// Becomes the To tag where there is none; the same for a retransmission.
    pub tag: u64,
    /// Where the request came from; `None` where it is one that we sent: then our own Via, the first line, is left out.
    pub peer: Option<SocketAddr>,
}

/// Appends the response to `view`'s request to `out`. Header fields that the request lacks are left out: a reply to a
/// broken message is as good as the message. `edits` is scratch.
pub fn write(view: &View<'_>, reply: &Reply<'_>, edits: &mut Edits, out: &mut Vec<u8>) {
    // A Vec takes all that is written: the results below cannot be errors.
    let _ = write!(out, "SIP/2.0 {} {}\r\n", reply.code, reply.phrase);
    edits.clear();
    let top = view.items(HeaderId::Via).next().and_then(|item| Via::parse(item.value));
    if let (Some(via), Some(peer)) = (top, reply.peer) {
        stamp(view, &via, peer, &Stamp::NONE, edits);
    }
    for (_, field) in view.all(HeaderId::Via).skip(usize::from(reply.peer.is_none())) {
        edits.write_range(view.bytes, field.line(), out);
    }
    for id in [HeaderId::From, HeaderId::To, HeaderId::CallId, HeaderId::CSeq] {
        let Some(field) = view.first(id) else { continue };
        let line = view.of(field.line());
        let tagless = id == HeaderId::To
            && super::NameAddr::parse(view.value_of(field)).is_none_or(|to| to.tag().is_none());
        if tagless {
            out.extend_from_slice(super::lex::trim_end(line));
            let _ = write!(out, ";tag={:016x}\r\n", reply.tag);
        } else {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(reply.headers);
    out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
}

/// `received=…;rport=…` of a peer, to be written again and again.
#[derive(Clone, Copy)]
pub struct Stamp {
    text: [u8; 63],
    len: u8,
}

impl Stamp {
    /// Of nobody: what is stamped by it is written afresh.
    pub const NONE: Stamp = Stamp { text: [0; 63], len: 0 };

    /// `scratch` is kept by the caller: this is done for each peer that was not heard lately.
    #[inline(never)]
    pub fn of(peer: SocketAddr, scratch: &mut Vec<u8>) -> Stamp {
        let mut stamp = Stamp::NONE;
        scratch.clear();
        write_stamp(peer, scratch);
        if let Some(text) = stamp.text.get_mut(..scratch.len()) {
            text.copy_from_slice(scratch);
            stamp.len = scratch.len() as u8;
        }
        stamp
    }
}

fn write_stamp(peer: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(b"received=");
    put::ip(peer.ip().to_canonical(), out);
    out.extend_from_slice(b";rport=");
    put::number(peer.port(), out);
}

/// Edits that write `received` and `rport` on the request's topmost Via (RFC 3581 4, RFC 3261 18.2.1): `rport` where the
/// sender asked for it, `received` where it asked or its sent-by is not where the packet came from. A `received` that
/// the sender wrote itself is replaced by the truth. `known`: the peer's.
pub fn stamp(view: &View<'_>, via: &Via<'_>, peer: SocketAddr, known: &Stamp, edits: &mut Edits) {
    let ip = || peer.ip().to_canonical();
    if let Some((name, value)) = via.rport {
        let span = Span { start: view.span_of(name).start, end: view.span_of(value.unwrap_or(name)).end };
        edits.replace_with(span, |t| match via.received {
            None if known.len > 0 => t.extend_from_slice(&known.text[..usize::from(known.len)]),
            None => write_stamp(peer, t),
            Some(_) => {
                t.extend_from_slice(b"rport=");
                put::number(peer.port(), t);
            }
        });
    }
    if let Some(old) = via.received {
        edits.replace_with(view.span_of(old), |t| put::ip(ip(), t));
    } else if via.rport.is_none() && !names(via.sent_by.host, ip()) {
        let end = view.span_of(via.whole).end;
        edits.replace_with(Span { start: end, end }, |t| {
            t.extend_from_slice(b";received=");
            put::ip(ip(), t);
        });
    }
}

/// Where a response to a request with this topmost Via goes over UDP (RFC 3581 4, RFC 3261 18.2.2): always to the address
/// that it came from; to the port that it came from where it asked by `rport`, else to the sent-by port. `maddr` and the
/// sent-by host choose nothing (SPEC 1.3).
pub fn return_address(via: &Via<'_>, peer: SocketAddr) -> SocketAddr {
    let mut back = peer;
    if via.rport.is_none() {
        back.set_port(via.sent_by.port.unwrap_or(5060));
    }
    back
}

/// Does `host` (without brackets) name this address?
fn names(host: &[u8], ip: IpAddr) -> bool {
    super::ip::parse(host).is_some_and(|h| h.to_canonical() == ip)
}
