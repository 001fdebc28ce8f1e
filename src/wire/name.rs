//! Known methods, header names (with their compact forms) and transports. Unknown ones stay bytes.

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

/// A name as the scan compares it: its first and last eight bytes.
#[derive(Clone, Copy)]
pub(super) struct Known {
    head: u64,
    tail: u64,
    /// The next name with the same first eight bytes, or `NONE`.
    next: u8,
    pub len: u8,
    pub id: HeaderId,
}

/// The entry of no name.
const NONE: u8 = NAMES.len() as u8;
const SLOTS: usize = 256;
/// Chosen so that no two heads meet in one slot; checked when it is compiled.
const SPREAD: u64 = 0xac15_3076_cdc9_8667;
const LOWER: u64 = 0x2020_2020_2020_2020;

const fn slot(head: u64) -> usize {
    (head.wrapping_mul(SPREAD) >> 56) as usize
}

/// Up to eight bytes of `name` from `from`, first byte lowest.
const fn word(name: &[u8], from: usize) -> u64 {
    let mut word = 0;
    let mut i = 0;
    while i < 8 && from + i < name.len() {
        word |= (name[from + i] as u64) << (8 * i);
        i += 1;
    }
    word
}

struct Table {
    slots: [u8; SLOTS],
    known: [Known; NAMES.len() + 1],
}

const fn build() -> Table {
    let mut slots = [NONE; SLOTS];
    // No bytes of a name give this head.
    let none = Known { head: u64::MAX, tail: 0, next: NONE, len: 0, id: HeaderId::Other };
    let mut known = [none; NAMES.len() + 1];
    let mut i = 0;
    while i < NAMES.len() {
        let name = NAMES[i].0.as_bytes();
        let head = word(name, 0);
        let tail = if name.len() > 8 { word(name, name.len() - 8) } else { head };
        let at = slot(head);
        if slots[at] != NONE {
            assert!(known[slots[at] as usize].head == head, "choose another SPREAD");
        }
        known[i] = Known { head, tail, next: slots[at], len: name.len() as u8, id: NAMES[i].1 };
        slots[at] = i as u8;
        i += 1;
    }
    Table { slots, known }
}

static TABLE: Table = build();

impl Table {
    #[inline]
    fn at(&self, place: u8) -> &Known {
        // One entry of 64 for each value, so that no bound is checked.
        const { assert!(NAMES.len() == 63) }
        &self.known[usize::from(place & 63)]
    }
}

/// The known name of the header line that begins at `start`, directly followed by its colon.
///
/// Compares under `| 0x20`, which is exact for letters; a CR would pass for a hyphen, and the scan refuses that message
/// for its lone CR.
#[inline]
pub(super) fn known_at(bytes: &[u8], start: usize) -> Option<&'static Known> {
    let line = bytes.get(start..)?;
    let raw = u64::from_le_bytes(*line.first_chunk::<8>()?);
    // The first colon among the eight bytes, if any, by the classic zero-byte test.
    let zero = raw ^ 0x3a3a_3a3a_3a3a_3a3a;
    let colon = zero.wrapping_sub(0x0101_0101_0101_0101) & !zero & 0x8080_8080_8080_8080;
    let head = raw | LOWER;
    if colon != 0 {
        // The bytes before it: as many as the name has, for none of them is zero.
        let head = head & (((colon & colon.wrapping_neg()) >> 7) - 1);
        let known = TABLE.at(TABLE.slots[slot(head)]);
        return (known.head == head).then_some(known);
    }
    let mut at = TABLE.slots[slot(head)];
    while at != NONE {
        let known = TABLE.at(at);
        let len = usize::from(known.len);
        if known.head == head && len >= 8 && line.get(len) == Some(&b':') {
            let tail = u64::from_le_bytes(*line[..len].last_chunk::<8>()?) | LOWER;
            let middle = len <= 16 || line[8..len - 8].eq_ignore_ascii_case(&name_of(at)[8..len - 8]);
            if tail == known.tail && middle {
                return Some(known);
            }
        }
        at = known.next;
    }
    None
}

fn name_of(at: u8) -> &'static [u8] {
    NAMES[usize::from(at)].0.as_bytes()
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
        let found = |line: &str| known_at(line.as_bytes(), 0).map(|known| (known.id, usize::from(known.len)));
        for (name, id) in NAMES {
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
    }
}
