//! Well-formed messages read by us and by rsip, which must agree; rsip is the independent oracle (SPEC 2.2). It knows no
//! compact names, folds, IPv6 hosts or unknown methods, so the generator makes none of these.

use proptest::prelude::*;
use rsip::headers::{ToTypedHeader, UntypedHeader};
use rsip::message::{HasHeaders, HeadersExt};
use tidings::wire::*;

const MESSAGES: [&[u8]; 5] = [
    include_bytes!("fuzz/seeds/scan/subscribe.sip"),
    include_bytes!("fuzz/seeds/scan/publish-devicestate.sip"),
    include_bytes!("fuzz/seeds/scan/notify-dialog.sip"),
    include_bytes!("fuzz/seeds/scan/register.sip"),
    include_bytes!("fuzz/seeds/scan/ok.sip"),
];

#[test]
fn messages_of_asterisk_and_pjsip_form() {
    for bytes in MESSAGES {
        compare(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_messages(text in message()) {
        compare(text.as_bytes());
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the generator makes UTF-8")
}

fn compare(bytes: &[u8]) {
    let theirs = rsip::SipMessage::try_from(bytes).unwrap_or_else(|e| panic!("rsip: {e}\n{}", text(bytes)));
    let mut index = Index::new();
    let view =
        index.scan(bytes, &Limits::default()).unwrap_or_else(|r| panic!("{:?}\n{}", r.reason, text(bytes)));
    let ours = inspect(&view).unwrap_or_else(|r| panic!("{r:?}\n{}", text(bytes)));

    match (&theirs, view.start()) {
        (rsip::SipMessage::Request(request), Start::Request { method, token, .. }) => {
            assert_eq!(request.method.to_string().as_bytes(), view.of(token));
            assert_eq!(method.label().as_bytes(), view.of(token));
            assert_eq!(request.uri, rsip::Uri::try_from(text(view.ruri())).expect("a URI"));
            compare_uri(&request.uri, view.ruri());
        }
        (rsip::SipMessage::Response(response), Start::Response { code, .. }) => {
            assert_eq!(u16::from(response.status_code.clone()), code);
        }
        _ => panic!("request or response?\n{}", text(bytes)),
    }
    let fields: Vec<(String, String)> =
        theirs.headers().iter().map(|h| name_and_value(&h.to_string())).collect();
    assert_eq!(fields.len(), view.fields().len());
    for (f, (name, value)) in view.fields().iter().zip(&fields) {
        assert!(text(view.of(f.name())).eq_ignore_ascii_case(name), "{name}");
        assert_eq!(text(view.value_of(f)), value.trim());
    }
    assert_eq!(theirs.body(), view.body());

    let from = theirs.from_header().expect("From").typed().expect("typed From");
    assert_eq!(from.tag().map_or("", |t| t.value()), text(ours.from_tag));
    compare_uri(&from.uri, ours.from_uri);
    let to = theirs.to_header().expect("To").typed().expect("typed To");
    assert_eq!(to.tag().map(|t| t.value()), ours.to_tag.map(text));
    compare_uri(&to.uri, ours.to_uri);
    assert_eq!(theirs.call_id_header().expect("Call-ID").value(), text(ours.call_id));
    let cseq = theirs.cseq_header().expect("CSeq").typed().expect("typed CSeq");
    assert_eq!((cseq.seq, cseq.method.to_string().as_str()), (ours.cseq, ours.method.label()));
    let via = theirs.via_header().expect("Via").typed().expect("typed Via");
    assert_eq!(via.branch().map_or("", |b| b.value()), text(ours.via.branch));
    assert_eq!(via.transport.to_string().as_bytes(), ours.via.transport);
    compare_host(via.sent_by(), &ours.via.sent_by);
}

fn name_and_value(line: &str) -> (String, String) {
    let (name, value) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
    (name.to_owned(), value.to_owned())
}

fn compare_host(theirs: &rsip::Uri, ours: &HostPort<'_>) {
    assert!(theirs.host().to_string().eq_ignore_ascii_case(text(ours.host)));
    assert_eq!(theirs.port().map(|p| *p.value()), ours.port);
}

fn compare_uri(theirs: &rsip::Uri, ours: &[u8]) {
    let uri = Uri::parse(ours).unwrap_or_else(|| panic!("{}", text(ours)));
    assert_eq!(theirs.user(), uri.user.map(text));
    assert_eq!(theirs.is_sips().expect("a scheme"), uri.is_sips());
    compare_host(theirs, &uri.host);
}

fn token() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9.-]{0,12}"
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{1,5}){0,2}", "10\\.[1-9]{1,2}\\.[1-9]{1,2}\\.[1-9]{1,2}"]
}

fn uri() -> impl Strategy<Value = String> {
    let user = prop::option::of("[a-z0-9][a-z0-9+_]{0,9}");
    let port = prop::option::of(1..=65535u16);
    let tail = prop::sample::select(vec!["", ";lr", ";transport=tcp", ";user=phone", ";ob"]);
    ("(sip|sips)", user, host(), port, tail).prop_map(|(scheme, user, host, port, tail)| {
        let user = user.map_or(String::new(), |u| u + "@");
        format!("{scheme}:{user}{host}{}{tail}", port.map_or(String::new(), |p| format!(":{p}")))
    })
}

fn name_addr() -> impl Strategy<Value = String> {
    let display = prop_oneof![Just(String::new()), Just("Ann ".to_owned()), "\"[A-Za-z ]{1,10}\" "];
    (display, uri()).prop_map(|(display, uri)| format!("{display}<{uri}>"))
}

fn via() -> impl Strategy<Value = String> {
    let port = prop::option::of(1..=65535u16);
    ("(UDP|TCP|TLS)", host(), port, any::<bool>(), token()).prop_map(
        |(transport, host, port, rport, branch)| {
            let port = port.map_or(String::new(), |p| format!(":{p}"));
            format!(
                "SIP/2.0/{transport} {host}{port}{};branch=z9hG4bK{branch}",
                if rport { ";rport" } else { "" }
            )
        },
    )
}

/// A further header line, known or not.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        via().prop_map(|v| format!("Via: {v}")),
        name_addr().prop_map(|a| format!("Contact: {a}")),
        name_addr().prop_map(|a| format!("Route: {a}")),
        name_addr().prop_map(|a| format!("Record-Route: {a}")),
        (0..100_000u32).prop_map(|n| format!("Expires: {n}")),
        token().prop_map(|t| format!("Event: {t};id=4")),
        token().prop_map(|t| format!("SIP-ETag: {t}")),
        Just("Subscription-State: active;expires=60".to_owned()),
        ("X-[A-Z][a-z]{1,8}", "[!-~]([ -~é]{0,20}[!-~])?")
            .prop_map(|(name, value)| format!("{name}: {value}")),
    ]
}

fn message() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec![
        "SUBSCRIBE",
        "NOTIFY",
        "PUBLISH",
        "INVITE",
        "OPTIONS",
        "REGISTER",
        "MESSAGE",
    ]);
    let start = (method, uri(), prop::option::of(200..600u16));
    let parties = (name_addr(), prop::option::of(token()), name_addr(), prop::option::of(token()));
    let rest = (
        via(),
        token(),
        0..(1u32 << 31),
        prop::collection::vec(line(), 0..12),
        "[ -~\r\n\t]{0,80}",
        any::<u64>(),
    );
    (start, parties, rest).prop_map(
        |((method, uri, code), parties, (via, call_id, cseq, more, body, order))| {
            let tag = |tag: Option<String>| tag.map_or(String::new(), |t| format!(";tag={t}"));
            let (from, from_tag, to, to_tag) = parties;
            let mut lines = vec![
                format!("From: {from}{}", tag(from_tag)),
                format!("To: {to}{}", tag(to_tag)),
                format!("Call-ID: {call_id}"),
                format!("CSeq: {cseq} {method}"),
                "Max-Forwards: 70".to_owned(),
                format!("Content-Length: {}", body.len()),
            ];
            lines.extend(more);
            // The topmost Via stays on top; all else in any order.
            for i in (1..lines.len()).rev() {
                lines.swap(i, (order.rotate_left(i as u32) % (i as u64 + 1)) as usize);
            }
            let start = match code {
                Some(code) => format!("SIP/2.0 {code} Any Phrase"),
                None => format!("{method} {uri} SIP/2.0"),
            };
            format!("{start}\r\nVia: {via}\r\n{}\r\n\r\n{body}", lines.join("\r\n"))
        },
    )
}
