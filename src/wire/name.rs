//! Known methods, header names (with their compact forms) and transports. Unknown ones stay bytes.

use super::block::Block;

/// A method known by name; `Other` covers every other token (RFC 3261 7.1), whose bytes stand in the start line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Method {
    Invite,
    Ack,
    Bye,
    Cancel,
    Register,
    Options,
    Subscribe,
    Notify,
    Publish,
    Message,
    Refer,
    Info,
    Update,
    Prack,
    Other,
}

impl Method {
    pub const COUNT: usize = 15;
    pub const ALL: [Method; 15] = [
        Method::Invite,
        Method::Ack,
        Method::Bye,
        Method::Cancel,
        Method::Register,
        Method::Options,
        Method::Subscribe,
        Method::Notify,
        Method::Publish,
        Method::Message,
        Method::Refer,
        Method::Info,
        Method::Update,
        Method::Prack,
        Method::Other,
    ];

    /// Methods are case-sensitive (RFC 3261 7.1).
    pub fn of(token: &[u8]) -> Method {
        match token {
            b"INVITE" => Method::Invite,
            b"ACK" => Method::Ack,
            b"BYE" => Method::Bye,
            b"CANCEL" => Method::Cancel,
            b"REGISTER" => Method::Register,
            b"OPTIONS" => Method::Options,
            b"SUBSCRIBE" => Method::Subscribe,
            b"NOTIFY" => Method::Notify,
            b"PUBLISH" => Method::Publish,
            b"MESSAGE" => Method::Message,
            b"REFER" => Method::Refer,
            b"INFO" => Method::Info,
            b"UPDATE" => Method::Update,
            b"PRACK" => Method::Prack,
            _ => Method::Other,
        }
    }

    /// The metric label; `other` for unknown methods.
    pub const fn label(self) -> &'static str {
        match self {
            Method::Invite => "INVITE",
            Method::Ack => "ACK",
            Method::Bye => "BYE",
            Method::Cancel => "CANCEL",
            Method::Register => "REGISTER",
            Method::Options => "OPTIONS",
            Method::Subscribe => "SUBSCRIBE",
            Method::Notify => "NOTIFY",
            Method::Publish => "PUBLISH",
            Method::Message => "MESSAGE",
            Method::Refer => "REFER",
            Method::Info => "INFO",
            Method::Update => "UPDATE",
            Method::Prack => "PRACK",
            Method::Other => "other",
        }
    }
}

/// Header fields that the router reads. Everything else is `Other` and passes by its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HeaderId {
    Via,
    From,
    To,
    CallId,
    CSeq,
    Contact,
    MaxForwards,
    Route,
    RecordRoute,
    Path,
    Event,
    Expires,
    ContentLength,
    ContentType,
    ContentEncoding,
    Supported,
    Require,
    ProxyRequire,
    SubscriptionState,
    SipEtag,
    SipIfMatch,
    AllowEvents,
    UserAgent,
    RetryAfter,
    MinExpires,
    ReferTo,
    ReferredBy,
    Subject,
    SessionExpires,
    RejectContact,
    RequestDisposition,
    AcceptContact,
    Identity,
    IdentityInfo,
    Authorization,
    ProxyAuthorization,
    Other,
}

impl HeaderId {
    pub const COUNT: usize = 37;

    /// The id of a name, in any case, long or compact (RFC 3261 7.3.3).
    pub fn of(name: &[u8]) -> HeaderId {
        NAMES
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
            .map_or(HeaderId::Other, |(_, id)| *id)
    }

    /// The same of a name that `known_at` does not know.
    pub(super) fn of_rare(name: &[u8]) -> HeaderId {
        let is = |id: &HeaderId| name.eq_ignore_ascii_case(id.canonical().as_bytes());
        RARE.into_iter().find(is).unwrap_or(HeaderId::Other)
    }

    /// The long name in lower case; empty for `Other`.
    pub fn canonical(self) -> &'static str {
        // The ids stand in the order of the list's head, which a test holds.
        NAMES.get(self as usize).filter(|_| self != HeaderId::Other).map_or("", |(name, _)| name)
    }
}

/// Transport of a listener, a flow or a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
    Ws,
    Wss,
}

impl Transport {
    pub const ALL: [Transport; 5] =
        [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];

    /// `udp`: metric label and URI parameter.
    pub const fn label(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        }
    }

    /// By its label, in any case.
    pub fn named(label: &[u8]) -> Option<Transport> {
        Transport::ALL.into_iter().find(|transport| label.eq_ignore_ascii_case(transport.label().as_bytes()))
    }

    /// `UDP`: as a Via names it (RFC 3261 20.42, RFC 7118 5.2.1).
    pub const fn via(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    pub const fn is_datagram(self) -> bool {
        matches!(self, Transport::Udp)
    }

    /// With TLS below it: `tls` and `wss`.
    pub const fn is_secure(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// RFC 7118.
    pub const fn is_websocket(self) -> bool {
        matches!(self, Transport::Ws | Transport::Wss)
    }

    /// 5061 for TLS, 80 and 443 for WebSocket, else 5060 (RFC 3261 19.1.2, RFC 7118).
    pub const fn default_port(self) -> u16 {
        match self {
            Transport::Udp | Transport::Tcp => 5060,
            Transport::Tls => 5061,
            Transport::Ws => 80,
            Transport::Wss => 443,
        }
    }
}

/// Names that the scan knows by heart, lower case. Those with `Other` are here only so that common lines need no
/// search for their colon.
const NAMES: [(&str, HeaderId); 63] = [
    ("via", HeaderId::Via),
    ("from", HeaderId::From),
    ("to", HeaderId::To),
    ("call-id", HeaderId::CallId),
    ("cseq", HeaderId::CSeq),
    ("contact", HeaderId::Contact),
    ("max-forwards", HeaderId::MaxForwards),
    ("route", HeaderId::Route),
    ("record-route", HeaderId::RecordRoute),
    ("path", HeaderId::Path),
    ("event", HeaderId::Event),
    ("expires", HeaderId::Expires),
    ("content-length", HeaderId::ContentLength),
    ("content-type", HeaderId::ContentType),
    ("content-encoding", HeaderId::ContentEncoding),
    ("supported", HeaderId::Supported),
    ("require", HeaderId::Require),
    ("proxy-require", HeaderId::ProxyRequire),
    ("subscription-state", HeaderId::SubscriptionState),
    ("sip-etag", HeaderId::SipEtag),
    ("sip-if-match", HeaderId::SipIfMatch),
    ("allow-events", HeaderId::AllowEvents),
    ("user-agent", HeaderId::UserAgent),
    ("retry-after", HeaderId::RetryAfter),
    ("min-expires", HeaderId::MinExpires),
    ("refer-to", HeaderId::ReferTo),
    ("referred-by", HeaderId::ReferredBy),
    ("subject", HeaderId::Subject),
    ("session-expires", HeaderId::SessionExpires),
    ("reject-contact", HeaderId::RejectContact),
    ("request-disposition", HeaderId::RequestDisposition),
    ("accept-contact", HeaderId::AcceptContact),
    ("identity", HeaderId::Identity),
    ("identity-info", HeaderId::IdentityInfo),
    ("authorization", HeaderId::Authorization),
    ("proxy-authorization", HeaderId::ProxyAuthorization),
    ("v", HeaderId::Via),
    ("f", HeaderId::From),
    ("t", HeaderId::To),
    ("i", HeaderId::CallId),
    ("m", HeaderId::Contact),
    ("l", HeaderId::ContentLength),
    ("c", HeaderId::ContentType),
    ("o", HeaderId::Event),
    ("u", HeaderId::AllowEvents),
    ("k", HeaderId::Supported),
    ("e", HeaderId::ContentEncoding),
    ("s", HeaderId::Subject),
    ("x", HeaderId::SessionExpires),
    ("r", HeaderId::ReferTo),
    ("b", HeaderId::ReferredBy),
    ("j", HeaderId::RejectContact),
    ("d", HeaderId::RequestDisposition),
    ("a", HeaderId::AcceptContact),
    ("n", HeaderId::IdentityInfo),
    ("y", HeaderId::Identity),
    ("allow", HeaderId::Other),
    ("accept", HeaderId::Other),
    ("date", HeaderId::Other),
    ("server", HeaderId::Other),
    ("organization", HeaderId::Other),
    ("mime-version", HeaderId::Other),
    ("accept-language", HeaderId::Other),
];

/// Those of them that are no match for `known_at`: too long, or too like another.
const RARE: [HeaderId; 5] = [
    HeaderId::SubscriptionState,
    HeaderId::RetryAfter,
    HeaderId::ContentEncoding,
    HeaderId::ProxyAuthorization,
    HeaderId::RequestDisposition,
];

const fn is_rare(id: HeaderId) -> bool {
    let mut i = 0;
    while i < RARE.len() {
        if RARE[i] as u8 == id as u8 {
            return true;
        }
        i += 1;
    }
    false
}

/// What stands before the value of a header field: by its places in the line, and its id. One word, so that the scan moves
/// it at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Name(u64);

impl Name {
    /// A line without a name.
    pub const NONE: Name = Name::new(0, 0, HeaderId::Other);

    pub const fn new(colon: u32, len: u16, id: HeaderId) -> Name {
        Name(colon as u64 | (len as u64) << 32 | (id as u64) << 48)
    }

    /// Where the colon stands, from the line's start; 0 where there is none.
    #[inline]
    pub const fn colon(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub const fn len(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Below 64.
    #[inline]
    pub const fn place(self) -> usize {
        (self.0 >> 48 & 63) as usize
    }

    #[inline]
    pub const fn is(self, id: HeaderId) -> bool {
        self.place() == id as usize
    }

    pub fn id(self) -> HeaderId {
        // The ids stand in the order of the list's head, which a test holds.
        NAMES.get(self.place()).filter(|_| !self.is(HeaderId::Other)).map_or(HeaderId::Other, |(_, id)| *id)
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} bytes, colon at {}", self.id(), self.len(), self.colon())
    }
}

/// A name as the scan compares it: in lower case, and zeros behind it.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Known {
    text: [u8; 16],
    name: Name,
    /// A bit for each byte from the colon on, where anything may stand.
    behind: u32,
}

/// Where no name has its place: no line's colon stands there.
const NOBODY: Known = Known { text: [0; 16], name: Name::new(u32::MAX, 0, HeaderId::Other), behind: 0 };

/// Multiplier by which no two names meet in one place; checked when it is compiled.
const SPREAD: u32 = 0xec7e_97b9;
const LOWER: u8 = 0x20;

/// By a name's first two letters (of one letter: that and its colon), in lower case, and its length, which no two names have
/// alike.
#[inline(always)]
const fn place(first: u8, second: u8, len: usize) -> usize {
    let letters = u16::from_le_bytes([first, second]);
    ((letters as u32 | (len as u32) << 16).wrapping_mul(SPREAD) >> 24) as usize
}

const fn build() -> [Known; 256] {
    let mut known = [NOBODY; 256];
    let mut i = 0;
    while i < NAMES.len() {
        let (name, id) = (NAMES[i].0.as_bytes(), NAMES[i].1);
        let len = name.len();
        if len == 1 || !is_rare(id) {
            assert!(len < 16, "too long");
            let known = &mut known[place(name[0], if len > 1 { name[1] } else { b':' }, len)];
            assert!(known.name.len() == 0, "choose another SPREAD");
            known.name = Name::new(len as u32, len as u16, id);
            known.behind = u32::MAX << len;
            let mut at = 0;
            while at < len {
                known.text[at] = name[at];
                at += 1;
            }
        }
        i += 1;
    }
    known
}

static KNOWN: [Known; 256] = build();

/// The known name with which these sixteen bytes begin, directly followed by its colon, unless it is a rare one. The line may
/// end among them.
///
/// Compares under `| 0x20`, which is exact for letters; a CR would pass for a hyphen, and the scan refuses that message
/// for its lone CR.
#[inline(always)]
pub(super) fn known_at(begin: &[u8; 16]) -> Option<Name> {
    let block = Block::of(begin);
    let lower = block.or(Block::all(LOWER));
    let colon = block.is(b':').bits().trailing_zeros();
    let [first, second, ..] = lower.bytes();
    let known = &KNOWN[place(first, second, colon as usize)];
    let same = lower.same(Block::of(&known.text)).bits() | known.behind;
    (known.name.colon() == colon && same == u32::MAX).then_some(known.name)
}

/// Whether header name `a`, as received, is the name `canonical_lower` (long form, lower case): compact forms of `a` are
/// resolved. For names that a table mentions.
pub fn same_name(a: &[u8], canonical_lower: &[u8]) -> bool {
    match a {
        [letter] => match long_form(*letter) {
            Some(long) => long == canonical_lower,
            None => canonical_lower.len() == 1 && canonical_lower[0] == letter.to_ascii_lowercase(),
        },
        _ => a.eq_ignore_ascii_case(canonical_lower),
    }
}

/// The long name, in lower case, of a compact form.
pub fn long_form(letter: u8) -> Option<&'static [u8]> {
    let id = HeaderId::of(&[letter]);
    (id != HeaderId::Other).then(|| id.canonical().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_in_any_case_and_only_whole() {
        let found = |line: &str| {
            let name = line.as_bytes().first_chunk().and_then(known_at);
            name.map(|name| (name.id(), usize::from(name.len())))
        };
        let is_rare = |name: &str, id: HeaderId| name.len() > 1 && is_rare(id);
        for (name, id) in NAMES.into_iter().filter(|(name, id)| is_rare(name, *id)) {
            assert_eq!(HeaderId::of_rare(name.to_uppercase().as_bytes()), id, "{name}");
            assert_eq!(found(&format!("{name}: value of this line")), None);
        }
        assert_eq!(HeaderId::of_rare(b"subscription-status"), HeaderId::Other);
        for (name, id) in NAMES.into_iter().filter(|(name, id)| !is_rare(name, *id)) {
            let text = format!("{name}: value of this line\r\n");
            assert_eq!(found(&text), Some((id, name.len())), "{name}");
            assert_eq!(found(&text.to_uppercase()), Some((id, name.len())), "{name}");
            assert_eq!(HeaderId::of(name.to_uppercase().as_bytes()), id, "{name}");
            for wrong in
                [format!("x{name}: v......."), format!("{name}x: v......"), format!("{name}\u{1a} v......")]
            {
                let found = found(&wrong);
                assert!(
                    found.is_none() || NAMES.iter().any(|n| wrong[..found.unwrap().1] == *n.0),
                    "{wrong}"
                );
            }
        }
    }

    #[test]
    fn rfc_3261_7_3_3_compact_forms_resolve() {
        for (letters, id) in [
            ("vV", HeaderId::Via),
            ("fF", HeaderId::From),
            ("tT", HeaderId::To),
            ("iI", HeaderId::CallId),
            ("mM", HeaderId::Contact),
            ("lL", HeaderId::ContentLength),
            ("cC", HeaderId::ContentType),
            ("oO", HeaderId::Event),
            ("uU", HeaderId::AllowEvents),
            ("kK", HeaderId::Supported),
            ("eE", HeaderId::ContentEncoding),
            ("sS", HeaderId::Subject),
            ("xX", HeaderId::SessionExpires),
            ("rR", HeaderId::ReferTo),
            ("bB", HeaderId::ReferredBy),
            ("jJ", HeaderId::RejectContact),
            ("dD", HeaderId::RequestDisposition),
            ("aA", HeaderId::AcceptContact),
            ("nN", HeaderId::IdentityInfo),
            ("yY", HeaderId::Identity),
        ] {
            for letter in letters.bytes() {
                assert_eq!(HeaderId::of(&[letter]), id);
                assert!(same_name(&[letter], id.canonical().as_bytes()));
            }
        }
        for letter in b"ghpqwz" {
            assert_eq!(HeaderId::of(&[*letter]), HeaderId::Other);
        }
        assert!(!same_name(b"v", b"from"));
        assert!(same_name(b"X-Node", b"x-node"));
        assert!(!same_name(b"X-Nod", b"x-node"));
        assert!(same_name(b"Q", b"q"));
    }

    #[test]
    fn canonical_names_are_those_of_the_list() {
        for (name, id) in NAMES.iter().filter(|(name, id)| name.len() > 1 && *id != HeaderId::Other) {
            assert_eq!(id.canonical(), *name);
        }
        assert_eq!(HeaderId::Other as usize + 1, HeaderId::COUNT);
        for (place, (_, id)) in NAMES.iter().enumerate().take(HeaderId::COUNT - 1) {
            assert_eq!((*id as usize, Name::new(1, 1, *id).id()), (place, *id));
        }
        assert_eq!(Name::NONE.id(), HeaderId::Other);
    }
}
