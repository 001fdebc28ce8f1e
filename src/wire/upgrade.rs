//! How a connection becomes a WebSocket: the HTTP request of RFC 6455 4.2, with the subprotocol `sip` of RFC 7118 4, and our
//! answer to it.
//!
//! Whose pages may call is the listener's `origins`: a browser always says Origin and its pages cannot change it, which
//! keeps other sites from using a visitor's phone; other programs need not say it, and may say what they like. What is no
//! upgrade gets the status that says why. Nothing here is kept.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Bytes of a request, at most: browsers send their cookies along.
const MOST: usize = 16 * 1024;
const HEADERS: usize = 64;
/// RFC 6455 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a listener asks of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Without its query; absent: any.
    pub path: Option<String>,
    /// `scheme://host[:port]`, in lower case; absent: any.
    pub origins: Option<Vec<String>>,
}

/// Why a request is refused (the label of a counter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP/1.1, or not as it must be.
    Request,
    TooLong,
    Method,
    Path,
    /// HTTP, but not for a WebSocket.
    NoUpgrade,
    Version,
    /// It does not offer `sip`.
    Protocol,
    Origin,
}

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Not the whole request yet.
    More,
    /// A good one of so many bytes; `Accepted::put` answers it.
    Good(usize, Accepted),
    Refused(Refusal),
}

/// What Sec-WebSocket-Accept must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted([u8; 20]);

impl Accepted {
    /// Appends the answer by which the connection is a WebSocket.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Protocol: sip\r\nSec-WebSocket-Accept: ",
        );
        out.extend_from_slice(STANDARD.encode(self.0).as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
    }
}

impl Refusal {
    /// Appends the answer after which the connection is closed.
    pub fn put(self, out: &mut Vec<u8>) {
        let (status, more, text) = match self {
            Refusal::Request => ("400 Bad Request", "", "this is no HTTP/1.1 request for a WebSocket"),
            Refusal::TooLong => ("431 Request Header Fields Too Large", "", "too long a request"),
            Refusal::Method => ("405 Method Not Allowed", "Allow: GET\r\n", "a WebSocket begins with GET"),
            Refusal::Path => ("404 Not Found", "", "no WebSocket is here"),
            Refusal::NoUpgrade => (
                "426 Upgrade Required",
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
                "this is for SIP over WebSocket (RFC 7118)",
            ),
            Refusal::Version => {
                ("426 Upgrade Required", "Sec-WebSocket-Version: 13\r\n", "only version 13 is spoken")
            }
            Refusal::Protocol => ("400 Bad Request", "", "the subprotocol sip must be offered (RFC 7118)"),
            Refusal::Origin => ("403 Forbidden", "", "pages of this origin may not call here"),
        };
        let answer = [
            "HTTP/1.1 ",
            status,
            "\r\n",
            more,
            "Connection: close\r\nContent-Type: text/plain\r\nContent-Length: ",
            &(text.len() + 1).to_string(),
            "\r\n\r\n",
            text,
            "\n",
        ];
        answer.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    }
}

/// Reads all that has come. `searched`: so many bytes of it were there when it was asked before.
pub fn read(received: &[u8], searched: usize, rules: &Rules) -> Asked {
    let from = searched.saturating_sub(3);
    let end = memchr::memmem::find(received.get(from..).unwrap_or_default(), b"\r\n\r\n");
    let Some(len) = end.map(|at| from + at + 4).filter(|len| *len <= MOST) else {
        // TLS or SIP by mistake need not be waited for.
        let letter = received.first().is_none_or(u8::is_ascii_uppercase);
        return match (letter, received.len() > MOST) {
            (true, false) => Asked::More,
            (true, true) => Asked::Refused(Refusal::TooLong),
            (false, _) => Asked::Refused(Refusal::Request),
        };
    };
    match request(&received[..len], rules) {
        Ok(accepted) => Asked::Good(len, accepted),
        Err(refusal) => Asked::Refused(refusal),
    }
}

fn request(head: &[u8], rules: &Rules) -> Result<Accepted, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
        _ => return Err(Refusal::Request),
    }
    let (Some(method), Some(path), Some(1)) = (request.method, request.path, request.version) else {
        return Err(Refusal::Request);
    };
    if method != "GET" {
        return Err(Refusal::Method);
    }
    let path = path.split('?').next().unwrap_or_default();
    if rules.path.as_ref().is_some_and(|wanted| wanted != path) {
        return Err(Refusal::Path);
    }
    let said = Said(request.headers);
    if !said.has(b"Upgrade", b"websocket") || !said.has(b"Connection", b"upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if said.one(b"Sec-WebSocket-Version")? != Some(b"13") {
        return Err(Refusal::Version);
    }
    let key = said.one(b"Sec-WebSocket-Key")?.ok_or(Refusal::Request)?;
    if said.one(b"Host")?.is_none() || !STANDARD.decode(key).is_ok_and(|key| key.len() == 16) {
        return Err(Refusal::Request);
    }
    if let (Some(origins), Some(origin)) = (&rules.origins, said.one(b"Origin")?)
        && !origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin))
    {
        return Err(Refusal::Origin);
    }
    // Of a subprotocol the case counts (RFC 6455 4.1).
    if !said.values(b"Sec-WebSocket-Protocol").any(|protocol| protocol == b"sip") {
        return Err(Refusal::Protocol);
    }
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    hash.finish().as_ref().try_into().map(Accepted).map_err(|_| Refusal::Request)
}

/// The header fields of a request.
struct Said<'a>(&'a [httparse::Header<'a>]);

impl<'a> Said<'a> {
    /// The members of all fields of this name.
    fn values(&self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.iter().filter(move |field| field.name.as_bytes().eq_ignore_ascii_case(name));
        fields.flat_map(|field| field.value.split(|b| *b == b',')).map(<[u8]>::trim_ascii)
    }

    fn has(&self, name: &'a [u8], value: &[u8]) -> bool {
        self.values(name).any(|said| said.eq_ignore_ascii_case(value))
    }

    /// The value of a field that may stand there once.
    fn one(&self, name: &[u8]) -> Result<Option<&'a [u8]>, Refusal> {
        let mut fields = self.0.iter().filter(|field| field.name.as_bytes().eq_ignore_ascii_case(name));
        match (fields.next(), fields.next()) {
            (_, Some(_)) => Err(Refusal::Request),
            (first, None) => Ok(first.map(|field| field.value.trim_ascii())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7118 4.2, with the key of RFC 6455 1.3.
    const GOOD: &str = "GET /ws?x=1 HTTP/1.1\r\nHost: sip-ws.example.com\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: http://www.example.com\r\nSec-WebSocket-Protocol: chat, sip\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn rules() -> Rules {
        let origins = Some(vec!["http://www.example.com".into(), "https://b.example".into()]);
        Rules { path: Some("/ws".into()), origins }
    }

    fn refused(request: &str) -> Refusal {
        match read(request.as_bytes(), 0, &rules()) {
            Asked::Refused(refusal) => refusal,
            other => panic!("{other:?}:\n{request}"),
        }
    }

    #[test]
    fn a_good_request_is_accepted_as_the_rfc_does() {
        let Asked::Good(len, accepted) = read(GOOD.as_bytes(), 0, &rules()) else { panic!("refused") };
        assert_eq!(len, GOOD.len());
        let mut answer = Vec::new();
        accepted.put(&mut answer);
        let answer = String::from_utf8(answer).expect("text");
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: sip\r\n"), "{answer}");
        // No browser, and a listener that asks for nothing.
        let bare = GOOD.replace("Origin: http://www.example.com\r\n", "");
        assert!(matches!(read(bare.as_bytes(), 0, &rules()), Asked::Good(..)));
        let other = GOOD.replace("/ws?x=1", "/").replace("www.example.com", "evil.example");
        assert!(matches!(read(other.as_bytes(), 0, &Rules::default()), Asked::Good(..)));
    }

    #[test]
    fn it_may_come_byte_by_byte_and_frames_may_stand_behind_it() {
        for came in 0..GOOD.len() {
            assert_eq!(read(&GOOD.as_bytes()[..came], came.saturating_sub(1), &rules()), Asked::More);
        }
        let behind = [GOOD.as_bytes(), b"\x81\x80abcd"].concat();
        assert!(matches!(read(&behind, 5, &rules()), Asked::Good(len, _) if len == GOOD.len()));
    }

    #[test]
    fn what_is_refused_and_for_what() {
        for (of, by, refusal) in [
            ("GET", "POST", Refusal::Method),
            ("HTTP/1.1", "HTTP/1.0", Refusal::Request),
            ("/ws?", "/other?", Refusal::Path),
            ("Upgrade: WebSocket\r\n", "", Refusal::NoUpgrade),
            ("keep-alive, Upgrade", "keep-alive", Refusal::NoUpgrade),
            ("Version: 13", "Version: 8", Refusal::Version),
            ("Sec-WebSocket-Version: 13\r\n", "", Refusal::Version),
            ("chat, sip", "chat, SIP, sips", Refusal::Protocol),
            ("Sec-WebSocket-Protocol: chat, sip\r\n", "", Refusal::Protocol),
            ("//www.example.com", "//www.example.com.evil", Refusal::Origin),
            ("http://www.example.com", "null", Refusal::Origin),
            ("Origin:", "Origin: https://b.example\r\nOrigin:", Refusal::Request),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhl", Refusal::Request),
            ("Host: sip-ws.example.com\r\n", "", Refusal::Request),
            ("Host:", "Host :", Refusal::Request),
            ("GET ", "get\t", Refusal::Request),
        ] {
            assert!(GOOD.contains(of), "{of}");
            assert_eq!(refused(&GOOD.replacen(of, by, 1)), refusal, "{of} -> {by}");
        }
        assert_eq!(refused("\x16\x03\x01"), Refusal::Request);
        assert_eq!(refused("OPTIONS sip:a@b SIP/2.0\r\nVia: x\r\n\r\n"), Refusal::Request);
        let long = format!("GET / HTTP/1.1\r\nCookie: {}", "x".repeat(MOST));
        assert_eq!(refused(&long), Refusal::TooLong);
        let many = GOOD.replace("Origin:", &format!("{}Origin:", "X: y\r\n".repeat(HEADERS)));
        assert_eq!(refused(&many), Refusal::TooLong);
        for refusal in [Refusal::Request, Refusal::Method, Refusal::Version, Refusal::Origin] {
            let mut answer = Vec::new();
            refusal.put(&mut answer);
            let answer = String::from_utf8(answer).expect("text");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{answer}");
        }
    }
}
