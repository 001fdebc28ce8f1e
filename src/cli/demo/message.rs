//! A SIP message as the demo's peers hold it: owned text, header fields in order.
//!
//! The router never does this; it edits received bytes in place. These peers are few and slow, and want to build, read
//! and answer messages in as few lines as possible. Reading goes through the router's own scan.

use std::{net::SocketAddr, sync::OnceLock};

use crate::wire::{HeaderId, Index, Limits, Start};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Request { method: String, uri: String },
    Response { code: u16, phrase: String },
}

#[derive(Clone, Debug)]
pub struct Message {
    pub line: Line,
    /// Full names, also where a compact form was received.
    fields: Vec<(String, String)>,
    pub body: String,
}

impl Message {
    pub fn request(method: &str, uri: &str) -> Message {
        let line = Line::Request { method: method.to_owned(), uri: uri.to_owned() };
        Message { line, fields: Vec::new(), body: String::new() }.with("Max-Forwards", "70")
    }

    /// The response to a request: what RFC 3261 8.2.6.2 says is copied, and Record-Route for those that make a dialog.
    /// `tag` is put on a To that has none.
    pub fn reply(&self, code: u16, phrase: &str, tag: &str) -> Message {
        let line = Line::Response { code, phrase: phrase.to_owned() };
        let mut reply = Message { line, fields: Vec::new(), body: String::new() };
        for (name, value) in &self.fields {
            match name.to_ascii_lowercase().as_str() {
                "via" | "from" | "call-id" | "cseq" => reply = reply.with(name, value),
                "record-route" if (101..300).contains(&code) => reply = reply.with(name, value),
                "to" if code > 100 && param(value, "tag").is_none() => {
                    reply = reply.with(name, &format!("{value};tag={tag}"));
                }
                "to" => reply = reply.with(name, value),
                _ => {}
            }
        }
        reply
    }

    pub fn with(mut self, name: &str, value: &str) -> Message {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn with_body(self, content_type: &str, body: String) -> Message {
        Message { body, ..self.with("Content-Type", content_type) }
    }

    /// Puts a field before all others of its name.
    pub fn put_first(&mut self, name: &str, value: &str) {
        self.fields.insert(0, (name.to_owned(), value.to_owned()));
    }

    /// Takes all fields of this name out.
    pub fn without(mut self, name: &str) -> Message {
        self.fields.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    /// Replaces the first field of this name, or adds it.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.fields.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            Some((_, old)) => value.clone_into(old),
            None => self.fields.push((name.to_owned(), value.to_owned())),
        }
    }

    /// What a datagram says; `None` where it is no SIP message.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let mut index = Index::new();
        let view = index.scan(bytes, &Limits::default()).ok()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = match view.start() {
            Start::Request { token, uri, .. } => {
                Line::Request { method: text(view.of(token)), uri: text(view.of(uri)) }
            }
            Start::Response { code, phrase } => Line::Response { code, phrase: text(view.of(phrase)) },
        };
        let fields = view.fields().iter().map(|field| {
            let name = match view.of(field.name()) {
                [_] if field.id() != HeaderId::Other => field.id().canonical().to_owned(),
                name => text(name),
            };
            (name, text(view.value_of(field)).replace("\r\n", ""))
        });
        Some(Message { line, fields: fields.collect(), body: text(view.body()) })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = match &self.line {
            Line::Request { method, uri } => format!("{method} {uri} SIP/2.0\r\n"),
            Line::Response { code, phrase } => format!("SIP/2.0 {code} {phrase}\r\n"),
        };
        for (name, value) in
            self.fields.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Content-Length"))
        {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str(&format!("Content-Length: {}\r\n\r\n{}", self.body.len(), self.body));
        out.into_bytes()
    }

    /// The method; of a response, that of its CSeq.
    pub fn method(&self) -> &str {
        match &self.line {
            Line::Request { method, .. } => method,
            Line::Response { .. } => self.cseq().map_or("", |(_, method)| method),
        }
    }

    /// The status code; 0 of a request.
    pub fn code(&self) -> u16 {
        match self.line {
            Line::Request { .. } => 0,
            Line::Response { code, .. } => code,
        }
    }

    /// The reason phrase; empty of a request.
    pub fn phrase(&self) -> &str {
        match &self.line {
            Line::Request { .. } => "",
            Line::Response { phrase, .. } => phrase,
        }
    }

    pub fn uri(&self) -> &str {
        match &self.line {
            Line::Request { uri, .. } => uri,
            Line::Response { .. } => "",
        }
    }

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a header that may be a list, from the top.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        fields.flat_map(|(_, value)| split(value)).collect()
    }

    pub fn number(&self, name: &str) -> Option<u32> {
        self.field(name)?.trim().parse().ok()
    }

    pub fn cseq(&self) -> Option<(u32, &str)> {
        let (number, method) = self.field("CSeq")?.split_once(' ')?;
        Some((number.parse().ok()?, method.trim()))
    }

    pub fn call_id(&self) -> &str {
        self.field("Call-ID").unwrap_or("")
    }

    pub fn from_tag(&self) -> Option<&str> {
        param(self.field("From")?, "tag")
    }

    pub fn to_tag(&self) -> Option<&str> {
        param(self.field("To")?, "tag")
    }

    /// The URI of the first Contact.
    pub fn contact(&self) -> Option<&str> {
        self.values("Contact").first().map(|value| uri_of(value))
    }

    /// The event package and its id.
    pub fn event(&self) -> Option<(&str, Option<&str>)> {
        let value = self.field("Event")?;
        Some((value.split(';').next().unwrap_or(value).trim(), param(value, "id")))
    }
}

/// Splits at commas that stand outside of quotes and angle brackets.
fn split(value: &str) -> Vec<&str> {
    let (mut parts, mut from, mut quoted, mut angle) = (Vec::new(), 0, false, false);
    for (at, c) in value.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '<' if !quoted => angle = true,
            '>' if !quoted => angle = false,
            ',' if !quoted && !angle => {
                parts.push(value[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(value[from..].trim());
    parts
}

/// The URI of a name-addr or addr-spec.
pub fn uri_of(value: &str) -> &str {
    match value.split_once('<') {
        Some((_, rest)) => rest.split('>').next().unwrap_or(rest),
        None => value.split(';').next().unwrap_or(value).trim(),
    }
}

/// A header parameter (those behind the `>` where there is one).
pub fn param<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    let params = value.rsplit_once('>').map_or(value, |(_, params)| params);
    params.split(';').skip(1).find_map(|param| {
        let (own, value) = param.split_once('=').unwrap_or((param, ""));
        own.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The user part of a URI.
pub fn user_of(uri: &str) -> &str {
    let rest = uri.split_once(':').map_or(uri, |(_, rest)| rest);
    rest.split_once('@').map_or("", |(user, _)| user)
}

/// Where a URI with an IP address points. The demo resolves no names.
pub fn address_of(uri: &str) -> Option<SocketAddr> {
    let rest = uri.split_once(':').map_or(uri, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = rest.split([';', '?']).next().unwrap_or(rest);
    host.parse()
        .ok()
        .or_else(|| host.trim_matches(['[', ']']).parse().ok().map(|ip| SocketAddr::new(ip, 5060)))
}

/// A token that nobody else has: tags, branches, Call-IDs, entity-tags.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    static SEED: OnceLock<u64> = OnceLock::new();
    // Without randomness from the system a second demo could only be confused with the first.
    let seed = *SEED.get_or_init(|| getrandom::u64().unwrap_or(u64::from(std::process::id())));
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64_with_seed(&next.to_le_bytes(), seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_uris_and_parameters_are_taken_apart() {
        let value = "\"a, b\" <sip:x;lr>;tag=1, <sip:y,z@h>";
        assert_eq!(split(value), ["\"a, b\" <sip:x;lr>;tag=1", "<sip:y,z@h>"]);
        assert_eq!(uri_of("\"B\" <sip:b@h;lr>;tag=2"), "sip:b@h;lr");
        assert_eq!(uri_of("sip:b@h;tag=2"), "sip:b@h");
        assert_eq!((param("<sip:b@h;tag=no>;Tag=2", "tag"), param("<sip:b@h>", "tag")), (Some("2"), None));
        assert_eq!(param("SIP/2.0/UDP h;rport;branch=z", "rport"), Some(""));
        assert_eq!(address_of("sip:b@127.0.0.1:99;lr"), "127.0.0.1:99".parse().ok());
        assert_eq!(address_of("sip:127.0.0.1"), "127.0.0.1:5060".parse().ok());
        assert_eq!((address_of("sip:b@example.com"), user_of("sip:b@h"), user_of("sip:h")), (None, "b", ""));
        assert_ne!(unique(), unique());
    }
}
