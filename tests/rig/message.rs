//! Requests as templates of text, and the comparison of a message as sent with what was forwarded.
//!
//! A `Request` is complete as it is made (Via with rport, unique branch, tag and Call-ID, Content-Length); a test changes
//! the one field that it is about. `beyond_edits` reads both messages by itself, with none of the router's code, and
//! says what differs beyond the edits of SPEC 4.1.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use super::Party;

/// A word that no other message of this test run has.
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    format!("{:x}x{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A request to be sent.
#[derive(Clone)]
pub struct Request {
    pub method: String,
    pub uri: String,
    fields: Vec<(String, String)>,
    body: String,
}

impl Request {
    /// An initial request of `from`.
    pub fn new(method: &str, uri: &str, from: &Party) -> Request {
        let mut request =
            Request { method: method.into(), uri: uri.into(), fields: Vec::new(), body: String::new() };
        let word = unique();
        request.push("Via", format!("SIP/2.0/{} {};rport;branch=z9hG4bK{word}", from.via(), from.address));
        request.push("Max-Forwards", "70".into());
        request.push("From", format!("<sip:alice@example.com>;tag=f{word}"));
        request.push("To", format!("<{uri}>"));
        request.push("Call-ID", format!("c{word}@example.com"));
        request.push("CSeq", format!("1 {method}"));
        request.push("Contact", format!("<sip:alice@{}>", from.address));
        if matches!(method, "SUBSCRIBE" | "NOTIFY" | "PUBLISH") {
            request.push("Event", "presence".into());
        }
        if method == "NOTIFY" {
            request.push("Subscription-State", "active;expires=600".into());
        }
        request
    }

    fn push(&mut self, name: &str, value: String) {
        self.fields.push((name.to_owned(), value));
    }

    fn is(name: &str) -> impl Fn(&(String, String)) -> bool + '_ {
        move |(field, _)| field.trim_end().eq_ignore_ascii_case(name)
    }

    /// One field of this name with this value, where the first stood (else last). Other names stay as they are, so that
    /// a test may write any form of a name.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Request {
        let place = self.fields.iter().position(Request::is(name)).unwrap_or(self.fields.len());
        self.fields.retain(|field| !Request::is(name)(field));
        self.fields.insert(place.min(self.fields.len()), (name.to_owned(), value.into()));
        self
    }

    /// One more field, below all others.
    pub fn and(mut self, name: &str, value: impl Into<String>) -> Request {
        self.push(name, value.into());
        self
    }

    /// One more field, above all others.
    pub fn above(mut self, name: &str, value: impl Into<String>) -> Request {
        self.fields.insert(0, (name.to_owned(), value.into()));
        self
    }

    /// The same with another R-URI.
    pub fn to(mut self, uri: &str) -> Request {
        self.uri = uri.to_owned();
        self
    }

    /// The same with another method and CSeq.
    pub fn into_method(mut self, method: &str, cseq: u32) -> Request {
        self.method = method.to_owned();
        self.with("CSeq", format!("{cseq} {method}"))
    }

    pub fn without(mut self, name: &str) -> Request {
        self.fields.retain(|field| !Request::is(name)(field));
        self
    }

    /// One Route field each.
    pub fn routes<'a>(mut self, routes: impl IntoIterator<Item = &'a String>) -> Request {
        for route in routes {
            self.push("Route", route.clone());
        }
        self
    }

    pub fn body(mut self, kind: &str, body: &str) -> Request {
        self.body = body.to_owned();
        self.with("Content-Type", kind)
    }

    /// The value of the first field of this name.
    #[track_caller]
    pub fn value(&self, name: &str) -> &str {
        let field = self.fields.iter().find(|field| Request::is(name)(field));
        &field.unwrap_or_else(|| panic!("the test's request has no {name}")).1
    }

    /// As it goes over the wire; Content-Length is the body's where the test set none.
    pub fn text(&self) -> String {
        let mut text = format!("{} {} SIP/2.0\r\n", self.method, self.uri);
        for (name, value) in &self.fields {
            text += &format!("{name}: {value}\r\n");
        }
        let length = |field: &_| Request::is("Content-Length")(field) || Request::is("l")(field);
        if !self.fields.iter().any(length) {
            text += &format!("Content-Length: {}\r\n", self.body.len());
        }
        text + "\r\n" + &self.body
    }
}

/// How a message was forwarded.
pub struct Passage<'a> {
    /// Who sent it to the router.
    pub source: SocketAddr,
    /// The listener by which it left.
    pub left_by: SocketAddr,
    /// The request line as it must leave, where it is cleaned.
    pub line: Option<&'a str>,
}

/// What a forwarded request has beyond the edits of SPEC 4.1, or lacks of them; nothing where all is well. Routes to us
/// and Path are not looked at: the messages compared have none.
pub fn beyond_edits(sent: &[u8], got: &[u8], passage: &Passage<'_>) -> Result<(), String> {
    let (sent, sent_rest) = head(sent).ok_or("sent without an empty line")?;
    let (got, got_body) = head(got).ok_or("forwarded without an empty line")?;
    let sent = lines(sent);
    let mut got = lines(got);
    let line = passage.line.map_or(sent[0], str::as_bytes);
    differ("request line", line, got[0])?;

    let length = sent.iter().find_map(|line| number(line, &["content-length", "l"]));
    let body = &sent_rest[..length.unwrap_or(sent_rest.len())];
    differ("body", body, got_body)?;

    let ours = format!("Via: SIP/2.0/UDP {}", passage.left_by);
    let top = got.iter().position(|line| is_field(line, &["via", "v"])).ok_or("no Via")?;
    if !got[top].starts_with(ours.as_bytes()) || !contains(got[top], b"branch=z9hG4bK") {
        return Err(format!("the top Via is not ours ({ours}): {}", show(got[top])));
    }
    got.remove(top);

    let method = sent[0].split(|b| *b == b' ').next().unwrap_or_default();
    if [&b"INVITE"[..], b"SUBSCRIBE", b"REFER", b"NOTIFY"].contains(&method) {
        let at = got.iter().position(|line| is_field(line, &["record-route"])).ok_or("no Record-Route")?;
        if !contains(got[at], format!("@{};", passage.left_by).as_bytes()) {
            return Err(format!("the top Record-Route is not ours: {}", show(got[at])));
        }
        got.remove(at);
    }
    if !sent.iter().any(|line| is_field(line, &["max-forwards"])) {
        let at = got.iter().position(|line| *line == b"Max-Forwards: 70").ok_or("no Max-Forwards of ours")?;
        got.remove(at);
    }
    if got.len() != sent.len() {
        return Err(format!("{} header fields came, {} are left beside ours", sent.len() - 1, got.len() - 1));
    }
    let mut top = true;
    for (was, is) in sent.iter().zip(&got).skip(1) {
        if is_field(was, &["via", "v"]) && std::mem::take(&mut top) {
            same_via(was, is, passage.source)?;
        } else if is_field(was, &["max-forwards"]) {
            let (was, is) = (number(was, &["max-forwards"]), number(is, &["max-forwards"]));
            if was.map(|n| n.saturating_sub(1)) != is {
                return Err(format!("Max-Forwards {was:?} became {is:?}"));
            }
        } else {
            differ("header field", was, is)?;
        }
    }
    Ok(())
}

/// The previous top Via: the same but for `received` and `rport`, which name the source.
fn same_via(was: &[u8], is: &[u8], source: SocketAddr) -> Result<(), String> {
    let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let (was, is) = (text(was), text(is));
    let (was_top, was_rest) = was.split_once(',').unwrap_or((&was, ""));
    let (is_top, is_rest) = is.split_once(',').unwrap_or((&is, ""));
    differ("second Via value", was_rest.as_bytes(), is_rest.as_bytes())?;
    let name = |part: &str| part.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    let bare = |top: &str| -> Vec<String> {
        let parts = top.split(';').filter(|part| !matches!(name(part).as_str(), "received" | "rport"));
        parts.map(|part| part.trim_end().to_owned()).collect()
    };
    if bare(was_top) != bare(is_top) {
        return Err(format!("the previous Via changed: {was:?} became {is:?}"));
    }
    let values = |top: &str, wanted: &str| -> Vec<String> {
        let parts = top.split(';').filter(|part| name(part) == wanted);
        parts.map(|part| part.split_once('=').map_or("", |(_, value)| value).trim().to_owned()).collect()
    };
    let rport = !values(was_top, "rport").is_empty();
    let sent_by = was_top.split(';').next().unwrap_or_default();
    if (rport || !sent_by.contains(&source.ip().to_string()))
        && values(is_top, "received") != [source.ip().to_string()]
    {
        return Err(format!("received does not name {source}: {is}"));
    }
    if rport && values(is_top, "rport") != [source.port().to_string()] {
        return Err(format!("rport does not name {source}: {is}"));
    }
    Ok(())
}

/// The header section without its empty line, and what follows.
fn head(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = message.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((&message[..end], &message[end + 4..]))
}

/// Lines, folded ones as one, without their last CRLF.
fn lines(head: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut start = 0;
    for at in 0..head.len() {
        let ends = head[at..].starts_with(b"\r\n");
        if ends && !matches!(head.get(at + 2), Some(b' ' | b'\t')) {
            lines.push(&head[start..at]);
            start = at + 2;
        }
    }
    lines.push(&head[start..]);
    lines
}

fn is_field(line: &[u8], names: &[&str]) -> bool {
    let name = line.split(|b| *b == b':').next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    line.contains(&b':') && names.iter().any(|n| name.trim_end().eq_ignore_ascii_case(n))
}

fn number(line: &[u8], names: &[&str]) -> Option<usize> {
    let at = line.iter().position(|b| *b == b':').filter(|_| is_field(line, names))?;
    String::from_utf8_lossy(&line[at + 1..]).trim().parse().ok()
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|w| w == part)
}

fn differ(what: &str, was: &[u8], is: &[u8]) -> Result<(), String> {
    if was == is { Ok(()) } else { Err(format!("{what} {} became {}", show(was), show(is))) }
}

fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
