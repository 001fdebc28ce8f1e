//! One Via value (RFC 3261 20.42, RFC 3581, RFC 5118 4.5).
//!
//! Says what is written; which of `received`, `rport` and sent-by an answer follows is decided when the request is
//! forwarded (SPEC 3.6).

use super::lex::{self, Cursor, Param};
use super::uri::HostPort;

#[derive(Clone, Copy, Debug)]
pub struct Via<'a> {
    /// `UDP`, `TCP`, … as received.
    pub transport: &'a [u8],
    pub sent_by: HostPort<'a>,
    /// Empty where there is none (RFC 2543).
    pub branch: &'a [u8],
    /// The value of `received`, where there is one, with or without brackets as written.
    pub received: Option<&'a [u8]>,
    /// The `rport` parameter's name where it is present (its place in the bytes), and its value, which may be empty, where it
    /// has a `=`.
    pub rport: Option<(&'a [u8], Option<&'a [u8]>)>,
    /// The whole value (up to the comma or the end of the line), without blanks at its ends.
    pub whole: &'a [u8],
}

impl<'a> Via<'a> {
    /// One value, as `View::items` gives them.
    pub fn parse(value: &'a [u8]) -> Option<Via<'a>> {
        let value = lex::trim(value);
        Via::first(value).filter(|via| via.whole.len() == value.len())
    }

    /// The first of the values that stand in one line, with commas between them; no blanks before the first.
    pub fn first(value: &'a [u8]) -> Option<Via<'a>> {
        match Via::plain(value) {
            Some(via) => Some(via),
            None => Via::general(value),
        }
    }

    /// As nearly all write it: one blank, a name or an IPv4 address, a port or none, `;branch=` with letters and digits, and
    /// `;rport` or nothing. `None`: in another form, if in any.
    #[inline]
    fn plain(value: &'a [u8]) -> Option<Via<'a>> {
        let head = value.first_chunk::<12>()?;
        // As whole words; a match goes byte by byte.
        if head != b"SIP/2.0/UDP " && head != b"SIP/2.0/TCP " && head != b"SIP/2.0/TLS " {
            return None;
        }
        let mut at = lex::plain_end(value, 12);
        let host = value.get(12..at).filter(|host| !host.is_empty())?;
        let mut port = None;
        if value.get(at) == Some(&b':') {
            let mut number = 0u32;
            at += 1;
            for b in value[at..].iter().take(6).take_while(|b| b.is_ascii_digit()) {
                number = number * 10 + u32::from(b - b'0');
                at += 1;
            }
            port = Some(u16::try_from(number).ok().filter(|&port| port > 0)?);
        }
        let (mut branch, mut rport) = (&value[..0], None);
        loop {
            match value.get(at..)? {
                [] => break,
                rest if branch.is_empty() && rest.starts_with(b";branch=") => {
                    let end = lex::plain_end(value, at + 8);
                    branch = value.get(at + 8..end).filter(|branch| !branch.is_empty())?;
                    at = end;
                }
                rest if rport.is_none() && rest.starts_with(b";rport") => {
                    rport = Some((&rest[1..6], None));
                    at += 6;
                    if !matches!(value.get(at), None | Some(b';')) {
                        return None;
                    }
                }
                _ => return None,
            }
        }
        let sent_by = HostPort { host, port };
        Some(Via { transport: &head[8..11], sent_by, branch, received: None, rport, whole: value })
    }

    #[inline(never)]
    fn general(value: &'a [u8]) -> Option<Via<'a>> {
        let mut cursor = Cursor::new(value);
        match cursor.skip(b"SIP/2.0/") {
            Some(()) => _ = cursor.skip_lws(),
            None => protocol(&mut cursor)?,
        }
        let transport = cursor.token()?;
        if !cursor.skip_lws() {
            return None;
        }
        let sent_by = sent_by(&mut cursor)?;
        let none = &value[..0];
        let mut via = Via { transport, sent_by, branch: none, received: None, rport: None, whole: value };
        while !cursor.at_end() {
            cursor.skip_lws();
            if cursor.peek() == Some(b',') {
                via.whole = lex::trim_end(&value[..value.len() - cursor.rest().len()]);
                break;
            }
            match cursor.next_param()? {
                Some(param) => via.take(&param)?,
                None => break,
            }
        }
        Some(via)
    }

    /// A parameter in whatever form. `None`: it may not stand there, or not twice (two readers would answer to two places).
    fn take(&mut self, param: &Param<'a>) -> Option<()> {
        if param.is(b"branch") {
            if !self.branch.is_empty() {
                return None;
            }
            self.branch = param.value?;
        } else if param.is(b"received") {
            if self.received.replace(param.value?).is_some() {
                return None;
            }
        } else if param.is(b"rport") {
            if let Some(value) = param.value.filter(|value| !value.is_empty()) {
                HostPort::port(value)?;
            }
            if self.rport.replace((param.name, param.value)).is_some() {
                return None;
            }
        }
        Some(())
    }
}

/// `SIP / 2.0 /`, with LWS wherever RFC 3261 25.1 lets it stand.
fn protocol(cursor: &mut Cursor<'_>) -> Option<()> {
    if !cursor.token()?.eq_ignore_ascii_case(b"SIP") {
        return None;
    }
    cursor.separator(b'/')?;
    if cursor.token()? != b"2.0" {
        return None;
    }
    cursor.separator(b'/')
}

/// `host [ : port ]`, with LWS round the colon.
fn sent_by<'a>(cursor: &mut Cursor<'a>) -> Option<HostPort<'a>> {
    let (host, behind) = HostPort::split_host(cursor.rest())?;
    *cursor = Cursor::new(behind);
    if cursor.separator(b':').is_none() {
        return Some(HostPort { host, port: None });
    }
    let port = cursor.number(65_535).filter(|&port| port > 0)?;
    Some(HostPort { host, port: Some(port as u16) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(value: &str) -> Via<'_> {
        Via::parse(value.as_bytes()).unwrap_or_else(|| panic!("{value} parses"))
    }

    #[test]
    fn rfc_3261_20_42_parts() {
        let v = via("SIP/2.0/UDP 192.0.2.1:5061;rport;branch=z9hG4bKx;received=192.0.2.9;hidden");
        assert_eq!(v.transport, b"UDP");
        assert_eq!(v.sent_by, HostPort { host: b"192.0.2.1", port: Some(5061) });
        assert_eq!(v.branch, b"z9hG4bKx");
        assert_eq!(v.received, Some(&b"192.0.2.9"[..]));
        assert_eq!(v.rport, Some((&b"rport"[..], None)));
        assert_eq!(via("SIP/2.0/ \tTCP h").transport, b"TCP");
        let v = via("SIP/2.0/TCP h;RPORT=5070");
        assert_eq!(v.rport, Some((&b"RPORT"[..], Some(&b"5070"[..]))));
        assert!(v.branch.is_empty() && v.received.is_none());
        assert_eq!(via("SIP/2.0/UDP h;rport=").rport, Some((&b"rport"[..], Some(&b""[..]))));
        assert_eq!(via("SIP/2.0/UDP h;branch=z9hG4bK").branch, b"z9hG4bK");
    }

    #[test]
    fn rfc_4475_3_1_1_1_blanks_wherever_they_may_stand() {
        let v = via("SIP  /\r\n   2.0\r\n /UDP\r\n    192.0.2.2 : 5090 ;\r\n  branch  =\r\n  390skd  ");
        assert_eq!((v.transport, v.sent_by.port, v.branch), (&b"UDP"[..], Some(5090), &b"390skd"[..]));
        assert!(v.whole.ends_with(b"390skd"));
    }

    #[test]
    fn rfc_4475_3_1_1_10_any_transport_and_rfc_5118_ipv6() {
        assert_eq!(via("SIP/2.0/UNKNOWN h;branch=x").transport, b"UNKNOWN");
        let v = via("SIP/2.0/UDP [2001:db8::9:1]:7;received=[2001:db8::9:255];branch=z");
        assert_eq!(v.sent_by, HostPort { host: b"2001:db8::9:1", port: Some(7) });
        assert_eq!(v.received, Some(&b"[2001:db8::9:255]"[..]));
        let v = via("SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=z");
        assert_eq!(v.received, Some(&b"2001:db8::9:255"[..]));
    }

    #[test]
    fn rfc_4475_3_1_2_1_what_is_refused() {
        for bad in [
            "",
            "SIP/2.0/UDP",
            "SIP/2.0/UDP ",
            "SIP/2.0 UDP h",
            "SIP/3.0/UDP h",
            "HTTP/2.0/UDP h",
            "SIP/2.0/ h",
            "SIP/2.0/UDP 192.0.2.15;;,;,,",
            "SIP/2.0/UDP h;",
            "SIP/2.0/UDP h:0",
            "SIP/2.0/UDP h:99999",
            "SIP/2.0/UDP h:",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP 2001:db8::1",
            "SIP/2.0/UDP h;branch=a;branch=b",
            "SIP/2.0/UDP h;received=1.1.1.1;received=2.2.2.2",
            "SIP/2.0/UDP h;rport;rport=1",
            "SIP/2.0/UDP h;rport=x",
            "SIP/2.0/UDP h;received",
            "SIP/2.0/UDP h;branch=a b",
            "SIP/2.0/UDPh",
            "SIP/2.0/UDP h;x=\"open",
            "SIP/2.0//UDP h",
        ] {
            assert!(Via::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
