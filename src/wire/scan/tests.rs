use super::*;

const HEAD: &str = "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa\r\nFrom: <sip:a@h>;tag=1\r\nTo: <sip:b@h>\r\n\
                    Call-ID: x@h\r\nCSeq: 1 OPTIONS\r\n";

/// A request of the usual fields and `more` (lines with their CRLF), then the empty line and `body`.
fn request(more: &str, body: &str) -> Vec<u8> {
    format!("OPTIONS sip:b@h SIP/2.0\r\n{HEAD}{more}\r\n{body}").into_bytes()
}

fn refusal(bytes: &[u8]) -> Option<(Reason, bool)> {
    let mut index = Index::new();
    index.scan(bytes, &Limits::default()).err().map(|r| (r.reason, r.view.is_some()))
}

#[track_caller]
fn accepted<R>(bytes: &[u8], look: impl FnOnce(View<'_>) -> R) -> R {
    let mut index = Index::new();
    match index.scan(bytes, &Limits::default()) {
        Ok(view) => look(view),
        Err(refused) => panic!("refused: {:?}", refused.reason),
    }
}

#[track_caller]
fn refused(bytes: &[u8], reason: Reason) {
    assert_eq!(refusal(bytes), Some((reason, true)), "{}", bytes.escape_ascii());
}

#[track_caller]
fn dropped(bytes: &[u8], reason: Reason) {
    assert_eq!(refusal(bytes), Some((reason, false)), "{}", bytes.escape_ascii());
}

#[test]
fn a_request_and_its_ranges() {
    let bytes = request("Content-Length: 3\r\n", "abc");
    accepted(&bytes, |v| {
        let Start::Request { method, token, uri } = v.start() else { panic!("a request") };
        assert_eq!((method, v.of(token), v.of(uri)), (Method::Options, &b"OPTIONS"[..], &b"sip:b@h"[..]));
        assert_eq!((v.ruri(), v.method(), v.body()), (&b"sip:b@h"[..], Some(Method::Options), &b"abc"[..]));
        let ids: Vec<_> = v.fields().iter().map(|f| f.id()).collect();
        use HeaderId::*;
        assert_eq!(ids, [Via, From, To, CallId, CSeq, ContentLength]);
        assert_eq!(v.value(To), Some(&b"<sip:b@h>"[..]));
        let to = v.first(To).expect("To");
        assert_eq!((v.of(to.name()), v.of(to.line())), (&b"To"[..], &b"To: <sip:b@h>\r\n"[..]));
        assert_eq!(v.value_span(to), Span { start: to.line().start + 4, end: to.line().end - 2 });
        assert_eq!(v.header_start(), 25);
        assert_eq!(v.header_end() + 3, v.end_of_message());
        assert_eq!(v.first(Route).map(|_| ()), None);
    });
}

#[test]
fn a_response_with_or_without_a_phrase() {
    for (line, expected, text) in [
        ("SIP/2.0 200 OK", 200, "OK"),
        ("sip/2.0 100 ", 100, ""),
        ("SIP/2.0 180", 180, ""),
        ("SIP/2.0 699 = 2**3 * 5 \u{43d}\u{43e}", 699, "= 2**3 * 5 \u{43d}\u{43e}"),
    ] {
        accepted(format!("{line}\r\n{HEAD}\r\n").as_bytes(), |v| {
            let Start::Response { code, phrase } = v.start() else { panic!("a response") };
            assert_eq!((code, v.of(phrase)), (expected, text.as_bytes()));
            assert_eq!((v.method(), v.ruri()), (None, &b""[..]));
        });
    }
}

#[test]
fn rfc_4475_3_1_2_19_broken_responses_are_never_answered() {
    for line in [
        "SIP/2.0 4294967301 better not",
        "SIP/2.0 99 x",
        "SIP/2.0 700 x",
        "SIP/2.0 20 x",
        "SIP/2.0 2000",
        "SIP/2.0 +20 x",
        "SIP/2.0  200 OK",
        "SIP/3.0 200 OK",
        "SIP/2.0",
        "SIP/2.0 20\t OK",
    ] {
        dropped(format!("{line}\r\n{HEAD}\r\n").as_bytes(), Reason::BrokenResponse);
    }
    dropped(format!("SIP/2.0 200 OK\r\n{HEAD}l: 9\r\n\r\n").as_bytes(), Reason::BrokenResponse);
    dropped(format!("SIP/2.0 200 OK\r\n{HEAD}").as_bytes(), Reason::BrokenResponse);
    dropped(format!("SIP/2.0 200 O\rK\r\n{HEAD}\r\n").as_bytes(), Reason::BrokenResponse);
    dropped(b"SIP/2.0 200 OK", Reason::BrokenResponse);
}

#[test]
fn rfc_3261_7_5_crlfs_before_the_message_are_no_part_of_it() {
    let mut bytes = b"\r\n\r\n".to_vec();
    bytes.extend(request("l: 1\r\n", "ab"));
    accepted(&bytes, |v| {
        assert_eq!(v.bytes, &bytes[4..bytes.len() - 1]);
        assert_eq!(v.body(), b"a");
    });
}

#[test]
fn rfc_5626_3_5_1_keep_alives() {
    for bytes in [&b""[..], b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\0\0\0\0", b" \r\n\r\n"] {
        dropped(bytes, Reason::Keepalive);
    }
}

#[test]
fn what_is_no_sip() {
    for bytes in [
        &b"hello"[..],
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\0\0\x01abc\r\n\r\n",
        b"INVITE sip:a@b\r\n\r\n",
        b"REGISTER sip:a SIP/2.0x",
        b"OPTIONS\r\n\r\n",
    ] {
        let (reason, view) = refusal(bytes).expect("refused");
        assert!(!view && matches!(reason, Reason::NotSip | Reason::BadLineEnd), "{}", bytes.escape_ascii());
    }
    dropped(b"hello\r\n\r\n", Reason::NotSip);
    dropped(b" OPTIONS sip:a SIP/2.0\r\n\r\n", Reason::BadStartLine);
    dropped(b"OPT(ONS sip:a SIP/2.0\r\n\r\n", Reason::BadStartLine);
}

#[test]
fn rfc_4475_3_1_2_request_lines_that_are_refused() {
    for (line, reason) in [
        ("OPTIONS  sip:b@h SIP/2.0", Reason::BadStartLine),
        ("OPTIONS sip:b@h  SIP/2.0", Reason::BadStartLine),
        ("OPTIONS sip:b@h SIP/2.0 ", Reason::BadStartLine),
        ("OPTIONS sip:b@h SIP/2.0\t", Reason::BadStartLine),
        ("OPTIONS\tsip:b@h SIP/2.0", Reason::BadStartLine),
        ("OPTIONS sip:b@h\tSIP/2.0", Reason::BadStartLine),
        ("OPTIONS SIP/2.0", Reason::BadStartLine),
        ("OPTIONS  SIP/2.0", Reason::BadStartLine),
        ("OPTIONS sip:b@h\r\n SIP/2.0", Reason::NotSip),
        ("OPTIONS sip:b@h SIP/2.0\r\n x", Reason::BadStartLine),
        ("OPTIONS sip:b@h; lr SIP/2.0", Reason::BadRequestUri),
        ("OPTIONS <sip:b@h> SIP/2.0", Reason::BadRequestUri),
        ("OPTIONS sip:b@h\rx SIP/2.0", Reason::BadRequestUri),
        ("OPTIONS sip:b\0@h SIP/2.0", Reason::BadRequestUri),
        ("OPTIONS sip:b@h SIP/7.0", Reason::Version),
        ("OPTIONS sip:b@h SIP/2.00", Reason::Version),
    ] {
        let bytes = format!("{line}\r\n{HEAD}\r\n");
        assert_eq!(refusal(bytes.as_bytes()), Some((reason, reason != Reason::NotSip)), "{line:?}");
    }
}

#[test]
fn rfc_3261_7_1_version_without_case_and_methods_of_any_token() {
    for line in
        ["OPTIONS sip:b@h sip/2.0", "!x-Y0_*+`.%'~ sip:b@h SIP/2.0", "options urn:service:sos SIP/2.0"]
    {
        accepted(format!("{line}\r\n{HEAD}\r\n").as_bytes(), |v| {
            assert_eq!(v.method() == Some(Method::Options), line.starts_with("OPTIONS"));
        });
    }
}

#[test]
fn rfc_3261_7_3_1_folds_and_blanks_before_the_colon() {
    let bytes =
        request("Subject  :\r\n\t one\r\n  two \r\n \r\nEVENT\t: \t presence \t\r\nl :0\r\nX-Empty:\r\n", "");
    accepted(&bytes, |v| {
        assert_eq!(v.value(HeaderId::Subject), Some(&b"one\r\n  two"[..]));
        let subject = v.first(HeaderId::Subject).expect("Subject");
        assert!(v.of(subject.line()).ends_with(b" \r\n \r\n") && v.of(subject.name()) == b"Subject");
        assert_eq!(v.value(HeaderId::Event), Some(&b"presence"[..]));
        assert_eq!(v.value(HeaderId::ContentLength), Some(&b"0"[..]));
        let empty = v.fields().last().expect("fields");
        assert_eq!((v.of(empty.name()), v.value_of(empty)), (&b"X-Empty"[..], &b""[..]));
    });
}

#[test]
fn names_at_the_very_end_of_the_datagram_are_known_too() {
    accepted(b"OPTIONS sip:b@h SIP/2.0\r\nl:0\r\n\r\n", |v| {
        assert_eq!(v.fields()[0].id(), HeaderId::ContentLength)
    });
    accepted(b"OPTIONS sip:b@h SIP/2.0\r\nMax-Forwards:0\r\n\r\n", |v| {
        assert_eq!(v.fields()[0].id(), HeaderId::MaxForwards);
    });
    accepted(b"OPTIONS sip:b@h SIP/2.0\r\nX-Unknown-Name:0\r\nVia:\r\n\r\n", |v| {
        assert_eq!((v.fields()[0].id(), v.fields()[1].id()), (HeaderId::Other, HeaderId::Via));
    });
}

#[test]
fn header_lines_without_a_name_or_a_colon() {
    for line in ["no colon", ": empty", "b@d: x", "a b: x", "\u{e9}: x", " : fold at the head of nothing"] {
        let bytes = format!("OPTIONS sip:b@h SIP/2.0\r\n{HEAD}{line}\r\n\r\n");
        match line.starts_with(' ') {
            true => accepted(bytes.as_bytes(), |v| {
                assert_eq!(v.value(HeaderId::CSeq), Some(format!("1 OPTIONS\r\n{line}").as_bytes()));
            }),
            false => refused(bytes.as_bytes(), Reason::BadHeaderLine),
        }
    }
    // The fold of a line that is no field must not become part of the field before it.
    let mut index = Index::new();
    let bytes = request("no colon\r\n  tail\r\n", "");
    let view = index.scan(&bytes, &Limits::default()).err().and_then(|r| r.view).expect("a request");
    assert_eq!(view.value(HeaderId::CSeq), Some(&b"1 OPTIONS"[..]));
}

#[test]
fn spec_2_3_lone_cr_lone_lf_and_nul_are_refused_and_their_lines_not_answered_from() {
    for odd in ["a\rb", "a\nb", "a\nVia: x", "a\0b", "\"\0\"", "\\\0", "a\r\r\n b", "a\n\r\n b"] {
        for (i, name) in ["Via", "From", "X-Any"].iter().enumerate() {
            let bytes = format!(
                "OPTIONS sip:b@h SIP/2.0\r\nTo: <sip:b@h>\r\n{name}: {odd}\r\nCSeq: 1 OPTIONS\r\n\r\n"
            );
            let mut index = Index::new();
            let refused = index.scan(bytes.as_bytes(), &Limits::default()).err().expect("refused");
            assert_eq!(refused.reason, Reason::BadLineEnd, "{bytes:?}");
            let view = refused.view.expect("a request");
            assert!(i > 1 || view.fields().iter().all(|f| view.of(f.name()) != name.as_bytes()), "{bytes:?}");
            assert_eq!(view.value(HeaderId::To), Some(&b"<sip:b@h>"[..]));
            for f in view.fields() {
                let line = &view.of(f.line())[..f.line().len() - 2];
                assert!(!line.contains(&b'\n') && !line.contains(&b'\r') && !line.contains(&0), "{bytes:?}");
            }
        }
    }
    dropped(b"OPTIONS sip:b@h SIP/2.0\nTo: x\n\n", Reason::BadLineEnd);
    refused(b"OPTIONS sip:b@h SIP/2.0\r\n\nTo: x\r\n\r\n", Reason::BadLineEnd);
}

#[test]
fn rfc_4475_3_1_1_2_an_escaped_nul_in_a_quoted_string_passes() {
    accepted(&request("Subject: \"NUL:\\\0 BEL:\\\x07\"\r\n", "\0\r\n\n\r"), |v| {
        assert_eq!(v.body(), b"\0\r\n\n\r")
    });
}

#[test]
fn a_head_without_its_empty_line_is_refused() {
    refused(format!("OPTIONS sip:b@h SIP/2.0\r\n{HEAD}").as_bytes(), Reason::BadLineEnd);
    refused(format!("OPTIONS sip:b@h SIP/2.0\r\n{HEAD}Subj").as_bytes(), Reason::BadLineEnd);
    refused(b"OPTIONS sip:b@h SIP/2.0\r\n", Reason::BadLineEnd);
    dropped(b"OPTIONS sip:b@h SIP/2.0", Reason::BadLineEnd);
}

#[test]
fn spec_2_5_content_length() {
    for (lines, body, kept) in [
        ("", "abc", "abc"),
        ("Content-Length: 2\r\n", "abc", "ab"),
        ("Content-Length: 0\r\n", "abc", ""),
        ("l:\r\n  0003\r\n", "abc", "abc"),
        ("Content-Length: 1\r\nX: y\r\nl: 1\r\n", "abc", "a"),
    ] {
        let bytes = request(lines, body);
        accepted(&bytes, |v| {
            assert_eq!((v.body(), v.bytes.len()), (kept.as_bytes(), bytes.len() - body.len() + kept.len()));
        });
    }
    for (value, reason) in [
        ("4", Reason::BadContentLength),
        ("-1", Reason::BadContentLength),
        ("+1", Reason::BadContentLength),
        ("1 1", Reason::BadContentLength),
        ("1\r\n 1", Reason::BadContentLength),
        ("1, 1", Reason::BadContentLength),
        ("0x1", Reason::BadContentLength),
        ("", Reason::BadContentLength),
        ("4294967296", Reason::BadContentLength),
        ("18446744073709551617", Reason::BadContentLength),
        ("1\r\nContent-Length: 2", Reason::TwoContentLength),
        ("1\r\nl: x", Reason::BadContentLength),
    ] {
        refused(&request(&format!("Content-Length: {value}\r\n"), "abc"), reason);
    }
}

#[test]
fn spec_2_4_limits() {
    let limits = Limits { message: 300, header_lines: 7, start_line: 40 };
    let scan = |bytes: &[u8]| {
        let mut index = Index::new();
        index
            .scan(bytes, &limits)
            .err()
            .map(|r| (r.reason, r.view.map(|v| v.value(HeaderId::CSeq).is_some())))
    };
    assert_eq!(scan(&request("A: 1\r\nB: 2\r\n", "")), None);
    assert_eq!(scan(&request("A: 1\r\nB: 2\r\nC: 3\r\n", "")), Some((Reason::TooManyHeaders, Some(true))));
    assert_eq!(scan(&request("A: 1\r\n 2\r\n 3\r\n", "")), Some((Reason::TooManyHeaders, Some(true))));
    assert_eq!(scan(&request("", &"x".repeat(200))), Some((Reason::TooLarge, Some(true))));
    let long = format!("OPTIONS sip:{}@h SIP/2.0\r\n{HEAD}\r\n", "b".repeat(30));
    assert_eq!(scan(long.as_bytes()), Some((Reason::StartLineTooLong, Some(true))));
    let response = format!("SIP/2.0 200 OK\r\n{HEAD}A: 1\r\nB: 2\r\nC: 3\r\n\r\n");
    assert_eq!(scan(response.as_bytes()), Some((Reason::TooManyHeaders, None)));
}

#[test]
fn lists_are_split_outside_quotes_and_brackets() {
    let bytes = request(
        "v: SIP/2.0/UDP a;x=\"q,\\\",\" , SIP/2.0/UDP b\r\nContact: \"a, b\" <sip:c,d@h>,<sip:e@h>;q=1\r\n\
         m: sip:f@h,, sip:g@h,\r\n",
        "",
    );
    accepted(&bytes, |v| {
        let list = |id| v.items(id).map(|i| (i.field, i.value, i.first, i.last)).collect::<Vec<_>>();
        assert_eq!(
            list(HeaderId::Via),
            [
                (0, &b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKa"[..], true, true),
                (5, b"SIP/2.0/UDP a;x=\"q,\\\",\"", true, false),
                (5, b"SIP/2.0/UDP b", false, true),
            ]
        );
        assert_eq!(
            list(HeaderId::Contact),
            [
                (6, &b"\"a, b\" <sip:c,d@h>"[..], true, false),
                (6, b"<sip:e@h>;q=1", false, true),
                (7, b"sip:f@h", true, false),
                (7, b"", false, false),
                (7, b"sip:g@h", false, false),
                (7, b"", false, true),
            ]
        );
        assert_eq!(list(HeaderId::Route), []);
        assert!(
            v.is_repeated(HeaderId::Via) && v.is_repeated(HeaderId::Contact) && !v.is_repeated(HeaderId::To)
        );
        assert_eq!(v.all(HeaderId::Via).map(|(i, _)| i).collect::<Vec<_>>(), [0, 5]);
        assert_eq!(v.named(b"contact").map(|(i, _)| i).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(v.named(b"x-none").count(), 0);
    });
}

#[test]
#[should_panic(expected = "no part of the message")]
fn a_span_of_foreign_bytes_is_a_bug() {
    accepted(&request("", ""), |v| _ = v.span_of(b"elsewhere"));
}
