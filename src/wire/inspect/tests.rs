use super::super::scan::{Index, Limits};
use super::*;

const GOOD: [&str; 6] = [
    "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa",
    "From: \"A\" <sip:a@h>;tag=f1",
    "To: <sip:b@h>;tag=t1",
    "Call-ID: word@h",
    "CSeq: 0009 OPTIONS",
    "Max-Forwards: 0068",
];

fn text(start: &str, lines: &[&str]) -> Vec<u8> {
    format!("{start}\r\n{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

fn check(bytes: &[u8]) -> Result<(), Reason> {
    let mut index = Index::new();
    let view = index.scan(bytes, &Limits::default()).unwrap_or_else(|r| panic!("scan: {:?}", r.reason));
    inspect(&view).map(|_| ())
}

/// GOOD with line `i` replaced (by nothing, where `with` is empty).
fn with(i: usize, with: &str) -> Vec<&str> {
    let mut lines = GOOD.to_vec();
    lines[i] = with;
    lines.retain(|line| !line.is_empty());
    lines
}

#[test]
fn the_essentials() {
    let bytes = text("OPTIONS sip:b@h SIP/2.0", &GOOD);
    let mut index = Index::new();
    let view = index.scan(&bytes, &Limits::default()).ok().expect("scans");
    let e = inspect(&view).expect("sound");
    assert_eq!((e.from_tag, e.to_tag, e.call_id), (&b"f1"[..], Some(&b"t1"[..]), &b"word@h"[..]));
    assert_eq!((e.from_uri, e.to_uri), (&b"sip:a@h"[..], &b"sip:b@h"[..]));
    assert_eq!((e.cseq, e.method, e.max_forwards), (9, Method::Options, Some(68)));
    assert_eq!(e.via.branch, b"z9hG4bKa");
}

#[test]
fn spec_2_5_what_is_missing_twice_or_malformed() {
    use Reason::*;
    for (i, line, reason) in [
        (0, "", MissingVia),
        (0, "Via: SIP/2.0/UDP 192.0.2.15;;,;,,", BadVia),
        (0, "Via:", BadVia),
        (1, "", MissingFrom),
        (1, "From: \"open <sip:a@h>", BadFrom),
        (1, "f: <sip:a@h>;tag=1\r\nFrom: <sip:a@h>;tag=1", TwoFrom),
        (2, "", MissingTo),
        (2, "To: \"W, T\" < sip:b@h >", BadTo),
        (2, "To: <sip:b@h>, <sip:c@h>", BadTo),
        (2, "To: <sip:b@h>\r\nt: <sip:b@h>", TwoTo),
        (3, "", MissingCallId),
        (3, "Call-ID:", BadCallId),
        (3, "Call-ID: two words", BadCallId),
        (3, "i: a\r\nCall-ID: a", TwoCallId),
        (4, "", MissingCSeq),
        (4, "CSeq: 36893488147419103232 OPTIONS", BadCSeq),
        (4, "CSeq: 2147483648 OPTIONS", BadCSeq),
        (4, "CSeq: -1 OPTIONS", BadCSeq),
        (4, "CSeq: 1OPTIONS", BadCSeq),
        (4, "CSeq: 1", BadCSeq),
        (4, "CSeq: 1 OPTIONS x", BadCSeq),
        (4, "CSeq: 1 INVITE", CSeqMethod),
        (4, "CSeq: 1 options", CSeqMethod),
        (4, "CSeq: 1 OPTIONS\r\nCSeq: 1 OPTIONS", TwoCSeq),
        (5, "Max-Forwards: 5\r\nMax-Forwards: 5", TwoMaxForwards),
        (5, "Max-Forwards: 256", BadMaxForwards),
        (5, "Max-Forwards: x", BadMaxForwards),
        (5, "Max-Forwards:", BadMaxForwards),
        (5, "Max-Forwards: 300000000000000000000", BadMaxForwards),
    ] {
        let lines = with(i, line);
        assert_eq!(check(&text("OPTIONS sip:b@h SIP/2.0", &lines)), Err(reason), "{line}");
        let response = match reason {
            // Of no concern in a response, or its own method.
            CSeqMethod | TwoMaxForwards | BadMaxForwards => Ok(()),
            _ => Err(BrokenResponse),
        };
        assert_eq!(check(&text("SIP/2.0 200 OK", &lines)), response, "{line}");
        // Of one that comes by a token the Vias are seen elsewhere.
        let told = match reason {
            MissingVia | BadVia => Ok(()),
            _ => response,
        };
        let bytes = text("SIP/2.0 200 OK", &lines);
        let mut index = Index::new();
        let view = index.scan(&bytes, &Limits::default()).ok().expect("scans");
        let inspected = inspect_response(&view);
        assert_eq!(inspected.is_ok(), told.is_ok() || matches!(reason, BadFrom | BadTo), "{line}");
        assert_eq!(inspected.and_then(|response| response.parties()).map(|_| ()), told, "{line}");
    }
}

#[test]
fn what_is_odd_but_valid() {
    for (i, line) in [
        (0, "Via: SIP/2.0/UDP 192.0.2.1"),
        (0, "v: SIP / 2.0 / UDP 192.0.2.1;branch=z9hG4bK"),
        (0, "Via: SIP/2.0/UDP a;branch=x, garbage for others to judge"),
        (1, "f: sip:a@h"),
        (1, "From: <http://www.example.com>;tag=x"),
        (2, "To : \r\n sip:b@h\r\n ; tag = 1"),
        (3, "Call-ID: w%ZK-!.*_+'@w`~)(><:\\/\"][?}{"),
        (4, "CSeq: 2147483647\r\n OPTIONS"),
        (5, ""),
        (5, "Max-Forwards: 0"),
        (5, "Max-Forwards: 255"),
    ] {
        assert_eq!(check(&text("OPTIONS sip:b@h SIP/2.0", &with(i, line))), Ok(()), "{line}");
    }
}

#[test]
fn unknown_methods_agree_with_their_cseq_byte_for_byte() {
    assert_eq!(check(&text("NEW sip:b@h SIP/2.0", &with(4, "CSeq: 1 NEW"))), Ok(()));
    assert_eq!(check(&text("NEW sip:b@h SIP/2.0", &with(4, "CSeq: 1 NEWER"))), Err(Reason::CSeqMethod));
}

#[test]
fn request_uris() {
    for (uri, expected) in [
        ("sip:b@h", Ok(())),
        ("sips:b@[2001:db8::10:5070]", Ok(())),
        ("tel:+12015550123", Ok(())),
        ("urn:service:sos", Ok(())),
        ("sip:b@h?", Ok(())),
        ("nobodyKnowsThisScheme:totallyopaque", Err(Reason::UriScheme)),
        ("soap.beep://192.0.2.103:3002", Err(Reason::UriScheme)),
        ("sip:b@h?Route=%3Csip:example.com%3E", Err(Reason::BadRequestUri)),
        ("sip:2001:db8::10", Err(Reason::BadRequestUri)),
        ("sip:b@h:99999", Err(Reason::BadRequestUri)),
        ("example.com", Err(Reason::BadRequestUri)),
        ("*", Err(Reason::BadRequestUri)),
        ("sip:", Err(Reason::BadRequestUri)),
    ] {
        let bytes = text(&format!("OPTIONS {uri} SIP/2.0"), &GOOD);
        let mut index = Index::new();
        let view = index.scan(&bytes, &Limits::default()).ok().expect("scans");
        assert_eq!(request_uri(&view).map(|_| ()), expected, "{uri}");
    }
}
