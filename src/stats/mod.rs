//! Names declared once, counters per core, export summed at scrape (SPEC 11.1).
//!
//! Each core owns one `CoreStats` and is its only writer: an increment is a relaxed load and store. A scrape
//! (`Exporter::render`) sums the cores. Series of rules, pools, backends and packages come from the bounded
//! `SeriesRegistry`; what belongs to the process as a whole is in `Process`, set by control.

mod core;
mod export;
pub mod names;
mod process;
mod series;

pub use self::{
    core::{BUCKETS, CoreStats, DEFAULT_BOUND, Direction},
    export::{Exporter, Sample},
    process::{NamedBackend, Process, ProcessCounter, ProcessGauge},
    series::{LINGER, OTHER, SeriesKind, SeriesRegistry},
};
use crate::wire::Method;

/// An enum whose variants each belong to a metric of `names`, some with a label's value.
macro_rules! numbers {
    ($(#[$doc:meta])* $id:ident { $($(#[$of:meta])* $variant:ident => $metric:ident $($label:literal)?;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $id { $($(#[$of])* $variant,)* }

        impl $id {
            pub const ALL: &'static [$id] = &[$($id::$variant,)*];

            /// Its metric.
            pub const fn metric(self) -> &'static $crate::stats::names::Metric {
                match self { $($id::$variant => &$crate::stats::names::$metric,)* }
            }

            /// The value of its metric's one label, where it has one.
            pub const fn label(self) -> Option<&'static str> {
                #[allow(unused_variables)]
                match self { $($id::$variant => { let label: Option<&'static str> = None; $(let label = Some($label);)? label })* }
            }
        }
    };
}
use numbers;

numbers! {
    /// Scalar counters, one per core each.
    Counter {
        /// Header fields stripped from what is not from a backend (SPEC 1.2).
        Stripped => STRIPPED;
        /// Bad MAC under a known key, by token type.
        ForgedVia => TOKENS_FORGED "via";
        ForgedRoute => TOKENS_FORGED "rr";
        ForgedPath => TOKENS_FORGED "path";
        ForgedEtag => TOKENS_FORGED "etag";
        /// Tokens with an unknown key id.
        UnknownKey => TOKEN_UNKNOWN_KEY;
        PinHits => PIN_HITS;
        PinsDropped => PINS_DROPPED;
        FlowsNoted => FLOWS_NOTED;
        FlowsConfirmed => FLOWS_CONFIRMED;
        FlowConflicts => FLOW_CONFLICTS;
        FlowsDropped => FLOWS_DROPPED;
        FlowsMoved => FLOWS_MOVED;
        MovedDropped => MOVED_FLOWS_DROPPED;
        UsersDropped => CONNECTION_USERS_DROPPED;
        NewsDropped => NEWS_DROPPED;
        UnreachableDropped => UNREACHABLE_FLOWS_DROPPED;
        Undeliverable => UNDELIVERABLE;
        UndeliverableUnproven => UNDELIVERABLE_UNPROVEN;
        EtagsWrapped => ETAGS_WRAPPED;
        SparedRefreshes => PUBLISH_SPARED "refresh";
        SparedRemoves => PUBLISH_SPARED "remove";
        PublisherChallenged => PUBLISHER_STOPS "challenge";
        PublisherTooBrief => PUBLISHER_STOPS "min_expires";
        RestartsByTag => RESTARTS_BY_TAG;
        CallsRecorded => CALLS_RECORDED;
        CallsDropped => CALLS_DROPPED;
        RuleLimited => RULE_LIMITED;
        KernelDrops => KERNEL_DROPS;
        SendErrors => SEND_ERRORS;
        SendBlocked => SEND_BLOCKED;
        TurnPanics => TURN_PANICS;
        Accepted => CONNECTIONS_OPENED "accepted";
        Dialed => CONNECTIONS_OPENED "dialed";
        /// The kernel had no file for it.
        RefusedFiles => CONNECTIONS_REFUSED "files";
        RefusedAll => CONNECTIONS_REFUSED "all";
        RefusedAddress => CONNECTIONS_REFUSED "address";
        RefusedPrefix => CONNECTIONS_REFUSED "prefix";
        RefusedRate => CONNECTIONS_REFUSED "rate";
        ClosedPeer => CONNECTIONS_CLOSED "peer";
        ClosedReset => CONNECTIONS_CLOSED "reset";
        ClosedLost => CONNECTIONS_CLOSED "lost";
        ClosedIdle => CONNECTIONS_CLOSED "idle";
        ClosedFirstMessage => CONNECTIONS_CLOSED "first_message";
        ClosedMessageTime => CONNECTIONS_CLOSED "message_time";
        ClosedOutput => CONNECTIONS_CLOSED "output";
        ClosedOutputTime => CONNECTIONS_CLOSED "output_time";
        ClosedFraming => CONNECTIONS_CLOSED "framing";
        /// CRLFs, and Pings and Pongs of a WebSocket.
        ClosedKeepalives => CONNECTIONS_CLOSED "keepalives";
        ClosedConnectFailed => CONNECTIONS_CLOSED "connect_failed";
        ClosedConnectTime => CONNECTIONS_CLOSED "connect_time";
        ClosedHandshakeTime => CONNECTIONS_CLOSED "handshake_time";
        /// It had to make room for other handshakes.
        ClosedHandshakes => CONNECTIONS_CLOSED "handshakes";
        ClosedTls => CONNECTIONS_CLOSED "tls";
        ClosedUpgrade => CONNECTIONS_CLOSED "upgrade";
        ClosedWebsocket => CONNECTIONS_CLOSED "websocket";
        ClosedProxyHeader => CONNECTIONS_CLOSED "proxy_header";
        ClosedProxyUntrusted => CONNECTIONS_CLOSED "proxy_untrusted";
        /// The client that the proxy named has too many.
        ClosedLimit => CONNECTIONS_CLOSED "limit";
        Websockets => WEBSOCKETS;
        UpgradeRequest => WEBSOCKETS_REFUSED "request";
        UpgradeTooLong => WEBSOCKETS_REFUSED "too_long";
        UpgradeMethod => WEBSOCKETS_REFUSED "method";
        UpgradePath => WEBSOCKETS_REFUSED "path";
        UpgradeNone => WEBSOCKETS_REFUSED "no_upgrade";
        UpgradeVersion => WEBSOCKETS_REFUSED "version";
        UpgradeProtocol => WEBSOCKETS_REFUSED "protocol";
        UpgradeOrigin => WEBSOCKETS_REFUSED "origin";
        Proxied => PROXIED;
        Handshakes => TLS_HANDSHAKES "accepted";
        HandshakesDialed => TLS_HANDSHAKES "dialed";
        TlsBadRecord => TLS_ERRORS "bad_record";
        TlsNothingShared => TLS_ERRORS "nothing_shared";
        TlsNoCertificate => TLS_ERRORS "no_certificate";
        TlsUnknownCa => TLS_ERRORS "unknown_ca";
        TlsBadCertificate => TLS_ERRORS "bad_certificate";
        TlsWrongName => TLS_ERRORS "wrong_name";
        TlsRefused => TLS_ERRORS "refused";
        TlsAlert => TLS_ERRORS "alert";
        TlsOther => TLS_ERRORS "other";
        /// Who is denied or banned.
        RefusedDenied => CONNECTIONS_REFUSED "denied";
        RefusedBanned => CONNECTIONS_REFUSED "banned";
        ClosedBarred => CONNECTIONS_CLOSED "barred";
        GuardedDropped => GUARDED_SOURCES_DROPPED;
        Overloads => OVERLOADS;
        Urgent => URGENT;
        Pongs => PONGS;
        HandedOver => HANDED_OVER;
        HandOverFull => HAND_OVER_FULL;
        /// Tables that this worker has taken up.
        Swaps => WORKER_TABLE_SWAPS;
    }
}

/// Gauges that a core sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gauge {
    Pins,
    PinsMax,
    /// Version of the table by which this worker decides.
    TableVersion,
    /// SO_RCVBUF as the kernel granted it.
    ReceiveBuffer,
    /// TLS handshakes under way with those who called.
    Handshakes,
    /// Sources that are counted, and room for them.
    Guarded,
    GuardedMax,
    /// 1 while it sheds new requests.
    Overloaded,
}

impl Gauge {
    pub const ALL: [Gauge; 8] = [
        Gauge::Pins,
        Gauge::PinsMax,
        Gauge::TableVersion,
        Gauge::ReceiveBuffer,
        Gauge::Handshakes,
        Gauge::Guarded,
        Gauge::GuardedMax,
        Gauge::Overloaded,
    ];
}

/// Request or response, for `tidings_messages_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request(Method),
    /// The method of its CSeq.
    Response(Method),
}

impl Kind {
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Request(_) => "request",
            Kind::Response(_) => "response",
        }
    }

    pub const fn method(self) -> Method {
        match self {
            Kind::Request(method) | Kind::Response(method) => method,
        }
    }
}
