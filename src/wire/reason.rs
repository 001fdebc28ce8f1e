//! Every way to refuse or drop a message, in one small enum: metric label, log field and what `explain` prints.

macro_rules! reasons {
    ($($variant:ident $label:literal $code:literal $phrase:literal;)*) => {
        /// Why a message was not forwarded. `code()` 0 means: dropped without an answer (SPEC 2.5).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($variant,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The value of the metric label `cause`.
            pub const fn label(self) -> &'static str { match self { $(Reason::$variant => $label,)* } }

            /// The status code of the answer, or 0 where there is none.
            pub const fn code(self) -> u16 { match self { $(Reason::$variant => $code,)* } }

            /// The reason phrase of the answer; it names the header at fault.
            pub const fn phrase(self) -> &'static str { match self { $(Reason::$variant => $phrase,)* } }
        }
    };
}

reasons! {
    NotSip              "not_sip"              0   "";
    Keepalive           "keepalive"            0   "";
    Stun                "stun"                 0   "";
    TooLarge            "too_large"            513 "Message Too Large";
    TooManyHeaders      "too_many_headers"     400 "Too Many Header Fields";
    StartLineTooLong    "start_line_too_long"  400 "Start Line Too Long";
    BadStartLine        "bad_start_line"       400 "Bad Request Line";
    BadRequestUri       "bad_request_uri"      400 "Bad Request-URI";
    BadLineEnd          "bad_line_end"         400 "Bad Line End";
    BadHeaderLine       "bad_header_line"      400 "Bad Header Line";
    BadVia              "bad_via"              400 "Bad Via";
    BadTo               "bad_to"               400 "Bad To";
    BadFrom             "bad_from"             400 "Bad From";
    BadCallId           "bad_call_id"          400 "Bad Call-ID";
    BadCSeq             "bad_cseq"             400 "Bad CSeq";
    BadRoute            "bad_route"            400 "Bad Route";
    BadMaxForwards      "bad_max_forwards"     400 "Bad Max-Forwards";
    BadContentLength    "bad_content_length"   400 "Bad Content-Length";
    BadEvent            "bad_event"            400 "Bad Event";
    MissingVia          "missing_via"          400 "Missing Via";
    MissingTo           "missing_to"           400 "Missing To";
    MissingFrom         "missing_from"         400 "Missing From";
    MissingCallId       "missing_call_id"      400 "Missing Call-ID";
    MissingCSeq         "missing_cseq"         400 "Missing CSeq";
    MissingContentLength "missing_content_length" 400 "Missing Content-Length";
    TwoTo               "two_to"               400 "More Than One To";
    TwoFrom             "two_from"             400 "More Than One From";
    TwoCallId           "two_call_id"          400 "More Than One Call-ID";
    TwoCSeq             "two_cseq"             400 "More Than One CSeq";
    TwoMaxForwards      "two_max_forwards"     400 "More Than One Max-Forwards";
    TwoContentLength    "two_content_length"   400 "More Than One Content-Length";
    TwoIfMatch          "two_if_match"         400 "More Than One SIP-If-Match";
    CSeqMethod          "cseq_method"          400 "CSeq Method Mismatch";
    UriScheme           "uri_scheme"           416 "Unsupported URI Scheme";
    Version             "version"              505 "Version Not Supported";
    MaxForwards         "max_forwards"         483 "Too Many Hops";
    ProxyRequire        "proxy_require"        420 "Bad Extension";
    NoEvent             "no_event"             489 "Bad Event";
    Loop                "loop"                 482 "Loop Detected";
    BrokenResponse      "broken_response"      0   "";
    ForeignResponse     "foreign_response"     0   "";
    ForgedVia           "forged_via"           0   "";
    ResponseSource      "response_source"      0   "";
    ConnectionGone      "connection_gone"      0   "";
    AckRefused          "ack_refused"          0   "";
    TableDrop           "table_drop"           0   "";
    TableReply          "table_reply"          0   "";
    Side                "side"                 403 "Forbidden";
    ForgedToken         "forged_token"         403 "Forbidden";
    TokenSide           "token_side"           403 "Forbidden";
    NoRule              "no_rule"              404 "Not Found";
    NotOurs             "not_ours"             403 "Forbidden";
    NoBackend           "no_backend"           503 "Service Unavailable";
    BackendDown         "backend_down"         503 "Service Unavailable";
    BackendGone         "backend_gone"         481 "Call/Transaction Does Not Exist";
    Silence             "silence"              0   "";
    Denied              "denied"               0   "";
    Banned              "banned"               0   "";
    KeepaliveFlood      "keepalive_flood"      0   "";
    MalformedRate       "malformed_rate"       0   "";
    SourceRate          "source_rate"          503 "Service Unavailable";
    SourceFlood         "source_flood"         0   "";
    Overload            "overload"             503 "Service Unavailable";
    OverloadSilence     "overload_silence"     0   "";
    NoFlow              "no_flow"              480 "Temporarily Unavailable";
    FlowFailed          "flow_failed"          430 "Flow Failed";
    DeadRoute           "dead_route"           481 "Call/Transaction Does Not Exist";
    Grace               "grace"                503 "Service Unavailable";
    Ourselves           "ourselves"            482 "Loop Detected";
    Sips                "sips"                 480 "Temporarily Unavailable";
    EtagForged          "etag_forged"          412 "Conditional Request Failed";
    EtagUnknownKey      "etag_unknown_key"     412 "Conditional Request Failed";
    EtagForeign         "etag_foreign"         412 "Conditional Request Failed";
    EtagGone            "etag_gone"            412 "Conditional Request Failed";
    EtagDown            "etag_down"            412 "Conditional Request Failed";
    EtagRestarted       "etag_restarted"       412 "Conditional Request Failed";
    Limited             "limited"              503 "Service Unavailable";
    CancelUnmatched     "cancel_unmatched"     481 "Call/Transaction Does Not Exist";
    Unreachable         "unreachable"          503 "Service Unavailable";
    RedirectTo          "redirect"             302 "Moved Temporarily";
    NextHopTooLarge     "next_hop_too_large"   513 "Message Too Large";
}

impl Reason {
    /// The message is no SIP, or such as no sound program writes: its sender has only so many of them (SPEC 10).
    pub const fn is_malformed(self) -> bool {
        let at = self as usize;
        let broken = Reason::TooLarge as usize <= at && at <= Reason::CSeqMethod as usize;
        let silent = matches!(self, Reason::NotSip | Reason::BrokenResponse | Reason::KeepaliveFlood);
        broken || silent || matches!(self, Reason::Version)
    }

    /// The message can be read, but goes nowhere whatever the table says: it is refused before it is counted as something
    /// that its sender begins, and must be counted all the same (SPEC 10).
    pub const fn is_hopeless(self) -> bool {
        matches!(
            self,
            Reason::UriScheme
                | Reason::MaxForwards
                | Reason::ProxyRequire
                | Reason::NoEvent
                | Reason::Loop
                | Reason::Side
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_is_what_cannot_be_read_and_nothing_else() {
        for &reason in Reason::ALL {
            let code = reason.code();
            let expected = code == 400
                || matches!(
                    reason,
                    Reason::TooLarge
                        | Reason::NotSip
                        | Reason::Version
                        | Reason::BrokenResponse
                        | Reason::KeepaliveFlood
                );
            assert_eq!(reason.is_malformed(), expected, "{}", reason.label());
            assert!(!(reason.is_malformed() && reason.is_hopeless()), "{}", reason.label());
        }
    }
}
