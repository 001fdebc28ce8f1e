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
}

/// Transport of a listener, a flow or a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
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
