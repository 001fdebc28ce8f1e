//! What a bad message gets, and what is not a message (SPEC 2.3 to 2.6).

use std::time::Duration;

use crate::rig::{
    Party,
    message::Request,
    scene::{Scene, one_pbx, pool, rule, via_address},
    text,
};

/// A phone that sends what it likes, and its router.
struct Line {
    scene: Scene,
    phone: Party,
    pbx: Party,
}

impl Line {
    fn start(net: u8) -> Line {
        let scene = Scene::start(net, &one_pbx(net));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        Line { scene, phone, pbx }
    }

    fn message(&self) -> Request {
        Request::new("MESSAGE", "sip:1000@example.com", &self.phone)
    }

    /// These bytes are answered with `code`, and reach nobody.
    #[track_caller]
    fn refused(&self, what: &str, bytes: &str, code: u16) -> String {
        self.phone.send(self.scene.phones(), bytes);
        let answer = self.phone.receive(what);
        assert_eq!(text::status(&answer), Some(code), "{what}: {answer}");
        self.scene.quiet(&[&self.pbx, &self.phone]);
        answer
    }

    /// These bytes reach the PBX.
    #[track_caller]
    fn passed(&self, what: &str, bytes: &str) -> String {
        self.phone.send(self.scene.phones(), bytes);
        let got = self.pbx.receive(what);
        self.scene.quiet(&[&self.phone]);
        got
    }

    /// These bytes reach nobody, and nobody hears of it.
    #[track_caller]
    fn dropped(&self, bytes: &[u8]) {
        self.phone.send(self.scene.phones(), bytes);
        self.scene.quiet(&[&self.pbx, &self.phone]);
    }
}

/// PJSIP ends a line at a lone CR or LF: one header for us would be two for Asterisk.
#[test]
fn a_lone_cr_lf_or_nul_that_hides_a_header_is_400() {
    let line = Line::start(80);
    let hidden = [
        "a\rX-Node: evil",
        "a\nX-Node: evil",
        "a\n\rX-Node: evil",
        "a\r\rX-Node: evil",
        "\"q\rX-Node: evil\"",
        "a\r",
        "a\0b",
        "\"a\0b\"",
        "a\n X-Node: evil",
    ];
    for value in hidden {
        for request in [line.message().and("X-Note", value), line.message().above("X-Note", value)] {
            line.refused(&format!("{value:?}"), &request.text(), 400);
        }
    }
    let sound = line.message().text();
    for (what, bytes) in [
        ("a lone LF behind the request line", sound.replacen("\r\n", "\n", 1)),
        ("a lone CR in the request line", sound.replacen("example.com ", "example.com\r ", 1)),
        ("a NUL in the R-URI", sound.replacen("sip:1000@", "sip:10\x0000@", 1)),
        ("all lines ended by LF", sound.replace("\r\n", "\n")),
        ("all lines ended by CR", sound.replace("\r\n", "\r")),
        ("the empty line a lone LF", sound.replacen("\r\n\r\n", "\r\n\n", 1)),
        ("a name with a CR", sound.replacen("Contact:", "Con\rtact:", 1)),
    ] {
        line.phone.send(line.scene.phones(), bytes);
        line.scene.settle();
        let quick = Duration::from_millis(5);
        // Where no header can be told from another there may be nobody to answer.
        if let Some((answer, _)) = line.phone.poll(quick) {
            assert!(answer.starts_with(b"SIP/2.0 400"), "{what}: {}", answer.escape_ascii());
        }
        line.scene.quiet(&[&line.pbx]);
    }
    assert!(line.scene.refused("bad_line_end") >= 14.0);
}

/// SPEC 2.3: `\NUL` in a quoted string is RFC 3261's quoted-pair, and a body may hold anything.
#[test]
fn an_escaped_nul_in_a_quoted_string_and_any_byte_in_a_body_pass() {
    let line = Line::start(81);
    let body = "\0\r\n\n\r\0X-Node: evil\rX";
    let request = line.message().and("X-Note", "\"a\\\0b\"").body("text/plain", body);
    let got = line.passed("NULs where they may be", &request.text());
    assert!(got.contains("X-Note: \"a\\\0b\"\r\n"), "{got:?}");
    assert!(got.ends_with(&format!("\r\n\r\n{body}")), "{got:?}");
}

#[test]
fn content_lengths_that_differ_or_are_no_plain_number_are_400() {
    let line = Line::start(82);
    let body = "smuggled";
    for (one, two) in [("8", "4"), ("0", "8"), ("8", "08x"), ("8", "")] {
        for name in ["Content-Length", "l", "CONTENT-LENGTH "] {
            let request = line.message().body("text/plain", body).with("Content-Length", one).and(name, two);
            // `with` and `and` of one name: two fields.
            assert_eq!(
                request.text().to_lowercase().matches("\r\ncontent-length").count(),
                1 + usize::from(name != "l")
            );
            line.refused(&format!("{one} and {name}: {two}"), &request.text(), 400);
        }
    }
    for value in
        ["-1", "+8", "8 8", "0x8", "8.0", "", "eight", "8,8", "99999999999999999999", "9", "4294967304"]
    {
        let request = line.message().body("text/plain", body).with("Content-Length", value);
        line.refused(&format!("Content-Length {value:?}"), &request.text(), 400);
    }
}

/// Short of the datagram: what is beyond is not the message's, and is not forwarded.
#[test]
fn content_length_short_of_the_datagram_trims_it() {
    let line = Line::start(83);
    for name in ["Content-Length", "l", "L "] {
        let request = line.message().body("text/plain", "12345INVITE").with(name, "5");
        let got = line.passed("trimmed", &request.text());
        assert!(got.ends_with("\r\n\r\n12345"), "{got}");
    }
    let bare = line.message().text().replace("Content-Length: 0\r\n", "") + "the rest is the body";
    assert!(line.passed("no length", &bare).ends_with("\r\n\r\nthe rest is the body"));
}

/// The header at fault is named in the reason phrase.
#[test]
fn a_mandatory_header_that_is_missing_double_or_malformed_is_400_by_name() {
    let line = Line::start(84);
    for name in ["Via", "To", "From", "Call-ID", "CSeq"] {
        let missing = line.message().without(name).text();
        if name == "Via" {
            // Nobody to answer by a Via, but the source is known.
            line.phone.send(line.scene.phones(), missing);
            line.scene.quiet(&[&line.pbx]);
            while line.phone.poll(Duration::from_millis(5)).is_some() {}
            continue;
        }
        let answer = line.refused(&format!("no {name}"), &missing, 400);
        assert!(answer.lines().next().expect("a status line").contains(name), "{answer}");
    }
    for name in ["To", "From", "Call-ID", "CSeq", "Max-Forwards"] {
        let request = line.message();
        let again = request.value(name).to_owned();
        for spelling in [name.to_owned(), name.to_uppercase() + " "] {
            let double = request.clone().and(&spelling, again.as_str());
            let answer = line.refused(&format!("two {name}"), &double.text(), 400);
            assert!(answer.lines().next().expect("a status line").contains(name), "{answer}");
        }
    }
    let malformed = [
        ("To", ""),
        ("To", "<sip:x@example.com"),
        ("To", "\"open <sip:x@example.com>"),
        ("From", "<sip:x@example.com>>;tag=1"),
        ("From", "a, b <sip:x@example.com>;tag=1"),
        ("Call-ID", ""),
        ("Call-ID", "two words"),
        ("CSeq", "1"),
        ("CSeq", "MESSAGE"),
        ("CSeq", "-1 MESSAGE"),
        ("CSeq", "4294967296 MESSAGE"),
        ("CSeq", "1 INVITE"),
        ("CSeq", "1 message"),
        ("Max-Forwards", "x"),
        ("Max-Forwards", "-1"),
        ("Max-Forwards", ""),
    ];
    for (name, value) in malformed {
        let request = line.message().with(name, value);
        let answer = line.refused(&format!("{name}: {value:?}"), &request.text(), 400);
        assert!(answer.lines().next().expect("a status line").contains(name), "{answer}");
    }
}

#[test]
fn the_codes_of_rfc_3261_16_3() {
    let line = Line::start(85);
    let answer = line.refused("Max-Forwards 0", &line.message().with("Max-Forwards", "0").text(), 483);
    assert!(text::tag(text::header(&answer, "To")).is_some(), "an answer of ours has a To tag:\n{answer}");

    let extended = line.message().with("Proxy-Require", "foo, bar").and("proxy-require", "baz");
    let answer = line.refused("Proxy-Require", &extended.text(), 420);
    let listed = text::headers(&answer, "Unsupported").join(",");
    for option in ["foo", "bar", "baz"] {
        assert!(listed.split(',').any(|word| word.trim() == option), "{option} is not listed:\n{answer}");
    }
    for uri in ["http://example.com/", "ldap:x", "mailto:a@example.com", "im:a@example.com"] {
        line.refused(uri, &line.message().to(uri).text(), 416);
    }
    for uri in ["tel:+15550100", "urn:service:sos"] {
        line.passed(uri, &line.message().to(uri).text());
    }
    let version = line.message().text().replacen("SIP/2.0", "SIP/4.2", 1);
    line.refused("version", &version, 505);
}

/// RFC 6665 8.2.1, RFC 3903 6.
#[test]
fn an_event_method_without_event_is_489_with_allow_events() {
    let table = pool("one", 86, &[1])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("known", "event = [\"presence\", \"dialog\"]", "route = \"one\"");
    let scene = Scene::start(86, &table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for method in ["SUBSCRIBE", "NOTIFY", "PUBLISH"] {
        phone.send(
            scene.phones(),
            Request::new(method, "sip:1000@example.com", &phone).without("Event").text(),
        );
        let answer = phone.expect("SIP/2.0 489");
        let allowed = text::header(&answer, "Allow-Events");
        for package in ["presence", "dialog"] {
            assert!(allowed.split(',').any(|word| word.trim() == package), "{answer}");
        }
    }
    pbx.send(scene.pbxs(), Request::new("NOTIFY", "sip:1000@example.com", &pbx).without("Event").text());
    pbx.expect("SIP/2.0 489");
    scene.quiet(&[&pbx, &phone]);
}

/// RFC 3261 8.1.1.1, 17: there is no answer to an ACK, whatever is wrong with it.
#[test]
fn no_ack_is_ever_answered() {
    let line = Line::start(87);
    let ack = || Request::new("ACK", "sip:1000@example.com", &line.phone);
    let faulty = [
        ack().with("Max-Forwards", "0"),
        ack().with("Proxy-Require", "foo"),
        ack().to("ldap:x"),
        ack().to("sips:1000@example.com"),
        ack().with("Content-Length", "77"),
        ack().and("Content-Length", "0").and("l", "1"),
        ack().without("To"),
        ack().without("Call-ID"),
        ack().with("CSeq", "1 INVITE"),
        ack().and("X-Note", "a\rb"),
        ack().and("From", "<sip:x@example.com>;tag=1"),
    ];
    for request in &faulty {
        line.dropped(request.text().as_bytes());
    }
    line.dropped(ack().text().replacen("SIP/2.0", "SIP/9.0", 1).as_bytes());
    line.dropped(ack().text().replacen("ACK ", "ACK  ", 1).as_bytes());
}

/// Nothing matches: an ACK is dropped, a CANCEL 481 (SPEC 7.1), in silence and with an answer.
#[test]
fn an_ack_without_a_rule_is_dropped_and_a_cancel_is_481() {
    let table = pool("one", 88, &[1]) + &rule("none", "event = [\"presence\"]", "route = \"one\"");
    let scene = Scene::start(88, &table);
    let phone = scene.phone();
    for uri in ["sip:1000@example.com", "sip:1000@127.40.88.1:5060"] {
        phone.send(scene.phones(), Request::new("ACK", uri, &phone).text());
        scene.quiet(&[&phone]);
        phone.send(scene.phones(), Request::new("CANCEL", uri, &phone).text());
        phone.expect("SIP/2.0 481");
    }
}

#[test]
fn what_is_not_sip_is_dropped_without_a_word() {
    let line = Line::start(89);
    let junk: [&[u8]; 14] = [
        b"x",
        b"\0",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"hello\r\n\r\n",
        b"SIP/2.0\r\n\r\n",
        b"SIP/2.0 \r\n\r\n",
        b"SIP/2.0 200 OK\r\n\r\n",
        b"SIP/2.0 200 OK",
        b"\xff\xfe\xfd\xfc\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x80\x00\x00\x01\x00\x00\x00\x01",
        b": : :\r\n: :\r\n\r\n",
        &[0x55; 4000],
    ];
    for bytes in junk {
        line.dropped(bytes);
    }
    assert!(line.scene.refused("not_sip") > 0.0);
    line.passed("a sound message after all that", &line.message().text());
}

/// RFC 5626 4.4.1 on UDP: swallowed.
#[test]
fn crlf_keep_alives_are_swallowed() {
    let line = Line::start(90);
    for keep_alive in ["\r\n\r\n", "\r\n", "\0\0\0\0\r\n", ""] {
        line.dropped(keep_alive.as_bytes());
    }
    assert!(line.scene.refused("keepalive") >= 2.0);
}

/// RFC 5626 4.4.2, RFC 5389: the phone learns its address and port.
#[test]
fn a_stun_binding_request_is_answered_with_the_source() {
    let line = Line::start(91);
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend_from_slice(b"twelve bytes");
    line.phone.send(line.scene.phones(), &request);
    let (answer, from) = line.phone.poll(Duration::from_secs(5)).expect("a binding response");
    assert_eq!(from, line.scene.phones());
    assert_eq!(answer[..2], [1, 1], "a success response to Binding");
    assert_eq!(usize::from(u16::from_be_bytes([answer[2], answer[3]])), answer.len() - 20);
    assert_eq!(answer[4..20], request[4..20], "cookie and transaction id");
    let mut attributes = &answer[20..];
    let mapped = loop {
        let length = usize::from(u16::from_be_bytes([attributes[2], attributes[3]]));
        if attributes[..2] == [0, 0x20] {
            break &attributes[4..4 + length];
        }
        attributes = &attributes[4 + length.next_multiple_of(4)..];
    };
    let port = u16::from_be_bytes([mapped[2] ^ 0x21, mapped[3] ^ 0x12]);
    let address: Vec<u8> = mapped[4..8].iter().zip([0x21, 0x12, 0xa4, 0x42]).map(|(a, b)| a ^ b).collect();
    assert_eq!((mapped[1], port, &address[..]), (1, 5060, &[127, 40, 91, 31][..]));
    // What only looks alike is dropped: a cut header, a wrong length, a response, an indication.
    let with_head = |head: [u8; 4]| [&head[..], &request[4..]].concat();
    for bytes in [request[..19].to_vec(), with_head([0, 1, 0, 8]), with_head([0, 0x11, 0, 0]), answer] {
        line.dropped(&bytes);
    }
}

#[test]
fn options_to_us_is_answered_by_us_and_options_to_a_user_is_not() {
    let line = Line::start(92);
    for uri in ["sip:127.40.92.1:5060", "sip:127.40.92.1", "sip:127.40.92.1:5060;transport=udp"] {
        let options = Request::new("OPTIONS", uri, &line.phone);
        let answer = line.refused(uri, &options.text(), 200);
        assert!(text::tag(text::header(&answer, "To")).is_some(), "{answer}");
        assert_eq!(text::header(&answer, "Call-ID"), options.value("Call-ID"));
    }
    let user = Request::new("OPTIONS", "sip:1000@127.40.92.1:5060", &line.phone);
    let got = line.passed("OPTIONS to a user", &user.text());
    assert_eq!(via_address(&got), line.scene.pbxs());
    line.pbx.send(line.scene.pbxs(), Request::new("OPTIONS", "sip:127.40.92.2:5060", &line.pbx).text());
    line.pbx.expect("SIP/2.0 200");
}

/// SPEC 4.4: 503 with Retry-After where there are backends and none takes anything.
#[test]
fn options_to_us_is_503_while_all_backends_are_off() {
    let table = pool("calls", 201, &[1]).replace("uri =", "state = \"off\"\nuri =")
        + &rule("calls", "source = \"clients\"", "route = \"calls\"");
    let scene = Scene::start(201, &table);
    let phone = scene.phone();
    phone.send(scene.phones(), Request::new("OPTIONS", &format!("sip:{}", scene.phones()), &phone).text());
    let answer = phone.expect("SIP/2.0 503");
    assert!(!text::header(&answer, "Retry-After").is_empty());
}

/// SPEC 2.4.
#[test]
fn too_many_headers_and_too_long_a_start_line_are_400() {
    let line = Line::start(93);
    let mut many = line.message();
    for n in 0..240 {
        many = many.and("X-Many", n.to_string());
    }
    line.passed("240 and a few header lines", &many.text());
    for n in 0..20 {
        many = many.and("X-Many", n.to_string());
    }
    line.refused("260 and a few header lines", &many.text(), 400);
    let long = format!("sip:{}@example.com", "u".repeat(8000));
    line.passed(
        "a start line below 8 KiB",
        &line.message().with("To", "<sip:x@example.com>").to(&long).text(),
    );
    let long = format!("sip:{}@example.com", "u".repeat(8192));
    let request = line.message().with("To", "<sip:x@example.com>").to(&long);
    line.refused("a start line beyond 8 KiB", &request.text(), 400);
    assert_eq!(
        (line.scene.refused("too_many_headers"), line.scene.refused("start_line_too_long")),
        (1.0, 1.0)
    );
}

/// SPEC 2.5, 11.1: every outcome is one cause, and a counter.
#[test]
fn each_wrong_message_is_counted_by_its_cause() {
    let line = Line::start(94);
    let causes = [
        ("bad_line_end", line.message().and("X-Note", "a\rb")),
        ("two_content_length", line.message().with("Content-Length", "0").and("Content-Length", "1")),
        ("max_forwards", line.message().with("Max-Forwards", "0")),
        ("uri_scheme", line.message().to("ldap:x")),
        ("cseq_method", line.message().with("CSeq", "1 INFO")),
        ("two_call_id", line.message().and("Call-ID", "another")),
    ];
    for (times, (cause, request)) in (1..).zip(&causes) {
        for _ in 0..times {
            line.phone.send(line.scene.phones(), request.text());
            line.phone.receive(cause);
        }
        let metrics = line.scene.router.metrics();
        let refused = metrics.sum("tidings_refused_total", &[("cause", cause)]);
        assert_eq!(refused, f64::from(times), "{cause}");
    }
    let code = |code: &str| line.scene.router.metrics().sum("tidings_answers_total", &[("code", code)]);
    assert_eq!((code("400"), code("483"), code("416")), (1.0 + 2.0 + 5.0 + 6.0, 3.0, 4.0));
}
