//! SIP, SIPS, TEL and other URIs by their parts (RFC 3261 19.1), borrowed, never repaired.
//!
//! Strict where two readers could disagree about the host (a second `@`, an address without brackets, a port that is
//! none), liberal elsewhere. Comparison and the canonical resource key need no allocation.

use std::net::Ipv6Addr;

use super::{Transport, lex};

/// Host and port. `host` keeps the brackets of an IPv6 reference off: `2001:db8::1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort<'a> {
    pub host: &'a [u8],
    pub port: Option<u16>,
}

/// A URI. For schemes other than sip and sips everything behind the colon is `rest`, and `host` is empty.
#[derive(Clone, Copy, Debug)]
pub struct Uri<'a> {
    pub scheme: &'a [u8],
    /// Escaped as received; without the password.
    pub user: Option<&'a [u8]>,
    pub password: Option<&'a [u8]>,
    pub host: HostPort<'a>,
    /// Everything between the first `;` behind the host (in a tel URI: behind the number) and the `?`, without the
    /// leading `;`.
    pub params: &'a [u8],
    /// Behind the `?`.
    pub headers: &'a [u8],
    pub rest: &'a [u8],
}

impl<'a> HostPort<'a> {
    /// The host at the start of `bytes`, without brackets, and what follows it.
    pub(super) fn split_host(bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        if let [b'[', inner @ ..] = bytes {
            let end = memchr::memchr(b']', inner)?;
            let host = &inner[..end];
            // Not more than the characters is checked: RFC 5118 4.10 asks to bear with `2001:db8:::192.0.2.1`.
            let sound = host.iter().all(|&b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
            return (sound && host.contains(&b':')).then(|| (host, &inner[end + 1..]));
        }
        let end = lex::host_len(bytes);
        (end > 0).then(|| bytes.split_at(end))
    }

    /// 1 to 65535.
    pub(super) fn port(digits: &[u8]) -> Option<u16> {
        lex::number(digits, 65_535).filter(|&n| n > 0).map(|n| n as u16)
    }

    /// Host and port of a URI, and what follows them.
    fn split(bytes: &'a [u8]) -> Option<(HostPort<'a>, &'a [u8])> {
        let (host, after) = HostPort::split_host(bytes)?;
        let [b':', digits @ ..] = after else { return Some((HostPort { host, port: None }, after)) };
        let end = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
        let (digits, after) = digits.split_at(end);
        Some((HostPort { host, port: Some(HostPort::port(digits)?) }, after))
    }

    /// Hosts without case, IPv6 addresses by value; ports as written (RFC 3261 19.1.4: absent is not 5060).
    pub fn same(&self, other: &HostPort<'_>) -> bool {
        self.port == other.port && same_host(self.host, other.host)
    }
}

/// Whether two hosts (without brackets) are one: without case, IPv6 addresses by value.
pub fn same_host(a: &[u8], b: &[u8]) -> bool {
    let ipv6 = |host: &[u8]| -> Option<Ipv6Addr> { std::str::from_utf8(host).ok()?.parse().ok() };
    a.eq_ignore_ascii_case(b) || (a.contains(&b':') && ipv6(a).is_some_and(|a| ipv6(b) == Some(a)))
}

impl<'a> Uri<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Uri<'a>> {
        if lex::is_uri(bytes) { Uri::of_sound(bytes) } else { None }
    }

    /// The same of bytes that may all stand in a URI (`lex::is_uri`).
    // In line: as it is returned it is slow to move.
    #[inline(always)]
    pub(super) fn of_sound(bytes: &'a [u8]) -> Option<Uri<'a>> {
        let (scheme, rest) = split_scheme(bytes)?;
        if rest.is_empty() {
            return None;
        }
        let none = &bytes[..0];
        if !scheme.eq_ignore_ascii_case(b"sip") && !scheme.eq_ignore_ascii_case(b"sips") {
            let params = match split_at(b';', rest) {
                Some((_, params)) if scheme.eq_ignore_ascii_case(b"tel") => params,
                _ => none,
            };
            let host = HostPort { host: none, port: None };
            return Some(Uri { scheme, user: None, password: None, host, params, headers: none, rest });
        }
        let (user, password, behind) = split_user(rest)?;
        let (host, behind) = HostPort::split(behind)?;
        let (params, headers) = match behind {
            [] => (none, none),
            [b';', params @ ..] => split_at(b'?', params).unwrap_or((params, none)),
            [b'?', headers @ ..] => (none, headers),
            _ => return None,
        };
        // An `@` here would be the host's for a reader that looks for the last one.
        if lex::place(b'@', params).is_some() {
            return None;
        }
        Some(Uri { scheme, user, password, host, params, headers, rest })
    }

    /// sip or sips.
    #[inline]
    pub fn is_sip(&self) -> bool {
        self.scheme == b"sip" || self.scheme.eq_ignore_ascii_case(b"sip") || self.is_sips()
    }

    #[inline]
    pub fn is_sips(&self) -> bool {
        self.scheme.len() == 4 && self.scheme.eq_ignore_ascii_case(b"sips")
    }

    pub fn is_tel(&self) -> bool {
        self.scheme.eq_ignore_ascii_case(b"tel")
    }

    /// The URI parameter `name`, in any case; `Some(None)` where it has no value.
    pub fn param(&self, name: &[u8]) -> Option<Option<&'a [u8]>> {
        pairs(self.params, b';').find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The port as written, else the default of scheme and transport (RFC 3261 19.1.2, RFC 7118).
    pub fn port(&self) -> u16 {
        self.host.port.unwrap_or_else(|| {
            let transport = self.param(b"transport").flatten().and_then(Transport::named);
            match (transport, self.is_sips()) {
                (None | Some(Transport::Udp | Transport::Tcp), true) => Transport::Tls,
                (Some(Transport::Ws), true) => Transport::Wss,
                (transport, _) => transport.unwrap_or(Transport::Udp),
            }
            .default_port()
        })
    }

    /// Whether two URIs are one by RFC 3261 19.1.4 (RFC 3966 4 for tel; others byte for byte). With more than `MOST_PAIRS`
    /// parameters or headers byte for byte as well: each is compared with each, and strangers write them.
    pub fn same(&self, other: &Uri<'_>) -> bool {
        let many = |uri: &Uri<'_>| {
            let separators = [uri.params, uri.headers]
                .map(|list| list.iter().filter(|b| matches!(b, b';' | b'&')).count());
            separators.into_iter().any(|count| count >= MOST_PAIRS)
        };
        if many(self) || many(other) {
            return self.scheme == other.scheme && self.rest == other.rest;
        }
        if !self.scheme.eq_ignore_ascii_case(other.scheme) {
            return false;
        }
        if self.is_tel() {
            return number(self.rest).eq(number(other.rest))
                && every_pair(self.params, other.params, b';', |_| true)
                && every_pair(other.params, self.params, b';', |_| true);
        }
        if !self.is_sip() {
            return self.rest == other.rest;
        }
        same_part(self.user, other.user)
            && same_part(self.password, other.password)
            && self.host.same(&other.host)
            && every_pair(self.params, other.params, b';', decides)
            && every_pair(other.params, self.params, b';', decides)
            && every_pair(self.headers, other.headers, b'&', |_| true)
            && every_pair(other.headers, self.headers, b'&', |_| true)
    }

    /// Appends the canonical key of the resource, `user@domain` (SPEC 5.3): the user with its unreserved escapes
    /// decoded, the host in lower case, no port, no parameters. `is_us`: the host is one of our names, which all count
    /// as one, so the domain is left empty. A tel URI gives its number without visual separators.
    pub fn canonical(&self, is_us: bool, out: &mut Vec<u8>) {
        if self.is_tel() {
            out.extend(number(self.rest));
        } else if self.is_sip() {
            let user = self.user.unwrap_or_default();
            match lex::place(b'%', user) {
                None => out.extend_from_slice(user),
                Some(_) => out.extend(Units(user).flat_map(Unit::bytes)),
            }
        } else {
            out.extend(self.scheme.iter().map(u8::to_ascii_lowercase));
            out.push(b':');
            out.extend_from_slice(self.rest);
            return;
        }
        if self.is_sip() || is_us {
            out.push(b'@');
        }
        if !is_us {
            lex::push_lower(self.host.host, out);
        }
    }
}

/// The scheme and what follows its colon.
pub(super) fn split_scheme(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if let Some(rest) = bytes.strip_prefix(b"sip:") {
        return Some((&bytes[..3], rest));
    }
    let end = bytes.iter().position(|&b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')))?;
    let (scheme, rest) = bytes.split_at(end);
    match (scheme, rest) {
        ([first, ..], [b':', rest @ ..]) if first.is_ascii_alphabetic() => Some((scheme, rest)),
        _ => None,
    }
}

/// Parameters of a URI, or headers in it, that are compared one by one.
const MOST_PAIRS: usize = 12;

/// What stands before the first `b`, and behind it.
#[inline]
fn split_at(b: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = lex::place(b, bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// User, password, and what follows the `@`. The user may hold `;`, `?`, `/` and more (RFC 3261 25.1).
#[allow(clippy::type_complexity)]
fn split_user(rest: &[u8]) -> Option<(Option<&[u8]>, Option<&[u8]>, &[u8])> {
    let Some((info, behind)) = split_at(b'@', rest) else { return Some((None, None, rest)) };
    let (user, password) = match split_at(b':', info) {
        Some((user, password)) => (user, Some(password)),
        None => (info, None),
    };
    (!user.is_empty()).then_some((Some(user), password, behind))
}

/// `name[=value]` pairs; empty ones (a trailing `;`) are passed over.
fn pairs(list: &[u8], separator: u8) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let pairs = list.split(move |&b| b == separator).filter(|pair| !pair.is_empty());
    pairs.map(|pair| match split_at(b'=', pair) {
        Some((name, value)) => (name, Some(value)),
        None => (pair, None),
    })
}

/// Every pair of `a` whose name `b` has too stands in `b` with its value, and those that `must` be in both are.
fn every_pair(a: &[u8], b: &[u8], separator: u8, must: fn(&[u8]) -> bool) -> bool {
    let same_value = |a: Option<&[u8]>, b: Option<&[u8]>| match (a, b) {
        (Some(a), Some(b)) => same_escaped(a, b, true),
        (a, b) => a.is_none() && b.is_none(),
    };
    pairs(a, separator).all(|(name, value)| {
        // A name may stand twice, against the RFC; then each of its values must be met.
        let mut named = pairs(b, separator).filter(|(other, _)| same_escaped(name, other, true)).peekable();
        match named.peek() {
            Some(_) => named.any(|(_, other)| same_value(value, other)),
            None => !must(name),
        }
    })
}

/// URI parameters that make two URIs differ where only one has them. The text of RFC 3261 19.1.4 names user, ttl,
/// method and maddr; its examples add transport.
fn decides(name: &[u8]) -> bool {
    [&b"user"[..], b"ttl", b"method", b"maddr", b"transport"].iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn same_part(a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same_escaped(a, b, false),
        (a, b) => a.is_none() && b.is_none(),
    }
}

fn same_escaped(a: &[u8], b: &[u8], fold_case: bool) -> bool {
    let fold = |unit: Unit| if fold_case { unit.lower() } else { unit };
    a == b || Units(a).map(fold).eq(Units(b).map(fold))
}

/// The number of a tel URI, without visual separators (RFC 3966 5.1.1), in lower case.
fn number(rest: &[u8]) -> impl Iterator<Item = u8> {
    let digits = rest.split(|&b| b == b';').next().unwrap_or_default();
    digits.iter().filter(|b| !matches!(b, b'-' | b'.' | b'(' | b')')).map(u8::to_ascii_lowercase)
}

/// One character of a URI, as RFC 3261 19.1.4 compares them: an escaped character is itself, unless it is a reserved
/// one, which stays apart from its escape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Plain(u8),
    Escaped(u8),
}

impl Unit {
    fn lower(self) -> Unit {
        match self {
            Unit::Plain(b) => Unit::Plain(b.to_ascii_lowercase()),
            escaped => escaped,
        }
    }

    /// As written in canonical form.
    fn bytes(self) -> impl Iterator<Item = u8> {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let (bytes, len) = match self {
            Unit::Plain(b) => ([b, 0, 0], 1),
            Unit::Escaped(b) => ([b'%', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]], 3),
        };
        bytes.into_iter().take(len)
    }
}

struct Units<'a>(&'a [u8]);

impl Iterator for Units<'_> {
    type Item = Unit;

    fn next(&mut self) -> Option<Unit> {
        if let [b'%', high, low, rest @ ..] = self.0
            && let (Some(high), Some(low)) = (lex::hex(*high), lex::hex(*low))
        {
            self.0 = rest;
            let b = high << 4 | low;
            return Some(if is_unreserved(b) { Unit::Plain(b) } else { Unit::Escaped(b) });
        }
        let (&b, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(Unit::Plain(b))
    }
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri<'_> {
        Uri::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text} parses"))
    }

    fn key(text: &str, is_us: bool) -> String {
        let mut out = Vec::new();
        uri(text).canonical(is_us, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn rfc_3261_19_1_1_parts() {
        let u = uri("sip:alice:secret@Atlanta.com:5070;transport=TCP;lr?subject=x&priority=urgent");
        assert_eq!((u.scheme, u.user, u.password), (&b"sip"[..], Some(&b"alice"[..]), Some(&b"secret"[..])));
        assert_eq!(u.host, HostPort { host: b"Atlanta.com", port: Some(5070) });
        assert_eq!(u.params, b"transport=TCP;lr");
        assert_eq!(u.headers, b"subject=x&priority=urgent");
        assert_eq!(u.param(b"TRANSPORT"), Some(Some(&b"TCP"[..])));
        assert_eq!(u.param(b"lr"), Some(None));
        assert_eq!(u.param(b"maddr"), None);
        assert!(!u.is_sips() && uri("SIPS:a@b").is_sips() && uri("SIPS:a@b").is_sip());
        let u = uri("sip:10.0.0.1?a=b");
        assert_eq!((u.user, u.host.host, u.headers), (None, &b"10.0.0.1"[..], &b"a=b"[..]));
        assert_eq!(uri("sip:a@b;").param(b"x"), None);
    }

    #[test]
    fn rfc_3261_19_1_2_the_port_of_scheme_and_transport() {
        for (text, port) in [
            ("sip:a", 5060),
            ("sip:a;transport=TCP", 5060),
            ("sip:a;transport=tls", 5061),
            ("sips:a", 5061),
            ("sips:a;transport=tcp", 5061),
            ("sip:a;transport=ws", 80),
            ("sips:a;transport=ws", 443),
            ("sip:a;transport=sctp", 5060),
            ("sips:a:5070;transport=tls", 5070),
        ] {
            assert_eq!(uri(text).port(), port, "{text}");
        }
    }

    /// Strangers write them, and each would be compared with each.
    #[test]
    fn uris_with_many_parameters_are_the_same_byte_for_byte() {
        let many = |name: &str| (0..=MOST_PAIRS).map(|n| format!(";{name}{n}")).collect::<String>();
        let (few, many) = (format!("sip:a@b{}", &many("x")[..6]), format!("sip:a@b{}", many("x")));
        assert!(uri(&few).same(&uri("sip:a@B;x1;x0")));
        assert!(uri(&many).same(&uri(&many)) && !uri(&many).same(&uri(&many.replace("@b", "@B"))));
        assert!(!uri(&many).same(&uri("sip:a@b")) && !uri("sip:a@b").same(&uri(&many)));
    }

    #[test]
    fn rfc_3261_25_1_the_user_may_hold_reserved_characters() {
        let u = uri("sip:odd.User~(may-be!so)&so'it+is$/mad?,/;;*:&p+w=1,d!x$y@example.net;p=1");
        assert_eq!(u.user, Some(&b"odd.User~(may-be!so)&so'it+is$/mad?,/;;*"[..]));
        assert_eq!(u.password, Some(&b"&p+w=1,d!x$y"[..]));
        assert_eq!((u.host.host, u.params), (&b"example.net"[..], &b"p=1"[..]));
        assert_eq!(uri("sip:us;par=val%40x@example.com").user, Some(&b"us;par=val%40x"[..]));
        assert_eq!(uri("sip:nil%00nil@h").user, Some(&b"nil%00nil"[..]));
        assert_eq!(uri("sip:*21%23@h").user, Some(&b"*21%23"[..]));
    }

    #[test]
    fn rfc_5118_ipv6_hosts() {
        let u = uri("sip:[2001:DB8::10]:5070;x");
        assert_eq!(u.host, HostPort { host: b"2001:DB8::10", port: Some(5070) });
        assert_eq!(uri("sip:[2001:db8::10:5070]").host, HostPort { host: b"2001:db8::10:5070", port: None });
        assert_eq!(uri("sip:u@[2001:db8:::192.0.2.1]").host.host, b"2001:db8:::192.0.2.1");
        assert_eq!(uri("sip:u@[::ffff:192.0.2.10]").host.host, b"::ffff:192.0.2.10");
        for bad in
            ["sip:2001:db8::10", "sip:u@2001:db8::10", "sip:[2001:db8::10", "sip:[x]", "sip:[1]", "sip:[]"]
        {
            assert!(Uri::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_two_readers_could_take_apart_differently_is_refused() {
        for bad in [
            "",
            "sip",
            ":",
            "sip:",
            "1sip:a@b",
            "sip:@host",
            "sip:a@",
            "sip:a@b:",
            "sip:a@b:0",
            "sip:a@b:65536",
            "sip:a@b:5x",
            "sip:a@b@c",
            "sip:a@b;p=x@c",
            "sip:a b@c",
            "sip:a@b\r\n c",
            "sip:a@b/c",
            "sip:a@<b>",
            "sip:a@b\0",
            "sip:a@h\u{e9}",
        ] {
            assert!(Uri::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn other_schemes_keep_their_rest() {
        let u = uri("tel:+1-201-555-0123;phone-context=example.com");
        assert_eq!(u.rest, b"+1-201-555-0123;phone-context=example.com");
        assert_eq!(u.param(b"phone-context"), Some(Some(&b"example.com"[..])));
        assert!(u.user.is_none() && u.host.host.is_empty() && u.is_tel());
        assert_eq!(uri("urn:service:sos").rest, b"service:sos");
        assert_eq!(uri("soap.beep://192.0.2.103:3002").scheme, b"soap.beep");
    }

    #[test]
    fn rfc_3261_19_1_4_equal_uris() {
        for (a, b) in [
            ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
            (
                "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
                "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
            ),
            ("sip:alice@h?a=1&b=2", "sip:alice@h?b=2&a=1"),
            ("sip:a@[2001:db8::1]", "sip:a@[2001:DB8:0:0::1]"),
            ("sip:a@h;lr", "sip:a@h;lr"),
            ("sip:a%3bb@h", "sip:a%3Bb@h"),
            ("tel:+1-201-555-0123", "tel:+1(201)5550123"),
            ("sip:a@h;x=1;x=2", "sip:a@h;x=2;x=1"),
        ] {
            assert!(uri(a).same(&uri(b)) && uri(b).same(&uri(a)), "{a} {b}");
        }
    }

    #[test]
    fn rfc_3261_19_1_4_unequal_uris() {
        for (a, b) in [
            ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
            ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
            ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
            ("sip:a@h", "sips:a@h"),
            ("sip:a@h", "sip:h"),
            ("sip:a:x@h", "sip:a@h"),
            ("sip:a%3Bb@h", "sip:a;b@h"),
            ("sip:a@h;user=phone", "sip:a@h"),
            ("sip:a@h;maddr=10.0.0.1", "sip:a@h"),
            ("sip:a@h;lr=1", "sip:a@h;lr=2"),
            ("sip:a@[2001:db8::1]", "sip:a@[2001:db8::2]"),
            ("sip:a@h;x=1;x=2", "sip:a@h;x=1"),
            ("tel:+12015550123", "tel:12015550123"),
            ("tel:123;phone-context=a", "tel:123;phone-context=b"),
            ("urn:a", "urn:b"),
        ] {
            assert!(!uri(a).same(&uri(b)) && !uri(b).same(&uri(a)), "{a} {b}");
        }
    }

    #[test]
    fn spec_5_3_canonical_key() {
        assert_eq!(key("sip:%31000@PBX.Example.org:5070;user=phone?a=b", false), "1000@pbx.example.org");
        assert_eq!(key("sip:a%3bb@h", false), "a%3Bb@h");
        assert_eq!(key("sips:1000@pbx.example.org", true), "1000@");
        assert_eq!(key("sip:Pbx:5060", false), "@pbx");
        assert_eq!(key("sip:1%zz@h", false), "1%zz@h");
        assert_eq!(key("tel:+1-201-(555).01;x=y", false), "+120155501");
        assert_eq!(key("URN:service:SOS", false), "urn:service:SOS");
    }
}
