use super::*;

const LIMITS: Limits = Limits { message: 2000, header_lines: 20, start_line: 200 };

/// Everything that a stream says, its bytes coming in pieces of `chunk`; what is left, and the end that it came to.
fn frames(stream: &[u8], chunk: usize) -> (Vec<Frame>, usize) {
    let (mut framer, mut index, mut all) = (Framer::new(), Index::new(), Vec::new());
    let (mut taken, mut came) = (0, 0);
    while came < stream.len() {
        came = (came + chunk).min(stream.len());
        loop {
            let frame = framer.next(&stream[taken..came], &mut index, &LIMITS);
            taken += match frame {
                Frame::More => break,
                Frame::Keepalive { len, .. } | Frame::Message { len } => len,
                Frame::Refused { .. } => {
                    all.push(frame);
                    return (all, stream.len() - taken);
                }
            };
            all.push(frame);
        }
    }
    (all, stream.len() - taken)
}

/// As `frames`, for pieces of every size.
#[track_caller]
fn say(stream: &[u8], expected: &[Frame], left: usize) {
    for chunk in 1..=stream.len().max(1) {
        assert_eq!(
            frames(stream, chunk),
            (expected.to_vec(), left),
            "pieces of {chunk}: {}",
            stream.escape_ascii()
        );
    }
}

fn message(len: usize) -> Frame {
    Frame::Message { len }
}

const SKIPPED: Frame = Frame::Keepalive { len: 2, ping: false };
const PING: Frame = Frame::Keepalive { len: 2, ping: true };

fn request(headers: &str, body: &str) -> Vec<u8> {
    format!("OPTIONS sip:b@h SIP/2.0\r\n{headers}\r\n{body}").into_bytes()
}

/// Refused with the whole head for an answer.
#[track_caller]
fn refused_with(headers: &str, reason: Reason) {
    let bytes = request(headers, "0123456789");
    say(&bytes, &[Frame::Refused { reason, head: bytes.len() - 10 }], bytes.len());
}

#[test]
fn rfc_3261_18_3_messages_end_where_content_length_says() {
    let (one, two) = (request("Content-Length: 3\r\n", "abc"), request("l:0\r\n", ""));
    let stream = [&one[..], &two, &one].concat();
    say(&stream, &[message(one.len()), message(two.len()), message(one.len())], 0);
    say(&one[..one.len() - 1], &[], one.len() - 1);
    let response = b"SIP/2.0 200 OK\r\nl: 4\r\n\r\n\r\n\r\n";
    say(response, &[message(response.len())], 0);
}

#[test]
fn rfc_5626_4_4_1_two_crlfs_are_a_ping_and_one_is_skipped() {
    let one = request("l: 0\r\n", "");
    let len = one.len();
    say(b"\r\n", &[SKIPPED], 0);
    say(b"\r\n\r\n", &[SKIPPED, PING], 0);
    say(b"\r\n\r\n\r\n\r\n\r\n", &[SKIPPED, PING, SKIPPED, PING, SKIPPED], 0);
    say(&[b"\r\n\r\n", &one[..], b"\r\n"].concat(), &[SKIPPED, PING, message(len), SKIPPED], 0);
    // A CRLF before a message and one behind it are no ping (RFC 3261 7.5).
    say(&[b"\r\n", &one[..], b"\r\n", &one].concat(), &[SKIPPED, message(len), SKIPPED, message(len)], 0);
    say(b"\r\n\r", &[SKIPPED], 1);
}

#[test]
fn content_length_in_all_its_forms() {
    for headers in [
        "Content-Length: 10\r\n",
        "content-length:10\r\n",
        "l: 10\r\n",
        "L \t: 10 \t\r\n",
        "Content-Length:\r\n 10\r\n",
        "Content-Length\t:\r\n\t0010\r\nTo: <sip:b@h>\r\n",
        "To: x\r\nl: 10\r\nContent-Length: 010\r\n",
        // In a value that is folded it is no header field.
        "Subject: a\r\n Content-Length: 3\r\nl: 10\r\n",
        "X-Content-Length: 3\r\nl: 10\r\nContent-Lengths: 4\r\n",
    ] {
        let bytes = request(headers, "0123456789");
        say(&bytes, &[message(bytes.len())], 0);
    }
}

#[test]
fn a_content_length_that_is_missing_or_in_doubt_ends_the_stream() {
    refused_with("To: <sip:b@h>\r\n", Reason::MissingContentLength);
    refused_with("", Reason::MissingContentLength);
    for value in
        ["-1", "+1", "", " ", "0x10", "1 0", "10,10", "10;", "1e1", "\u{661}", "4294967296", "\"10\""]
    {
        refused_with(&format!("Content-Length: {value}\r\n"), Reason::BadContentLength);
    }
    refused_with(
        "l: 99999999999999999999999999999999999999999999999999999999999999999999\r\n",
        Reason::BadContentLength,
    );
    refused_with("l: 10\r\nContent-Length: 11\r\n", Reason::TwoContentLength);
    refused_with("Content-Length: 10\r\nVia: x\r\ncontent-length : 1\r\n", Reason::TwoContentLength);
    refused_with("l: 1\r\n 0\r\n", Reason::BadContentLength);
    // What another reader may take for a Content-Length.
    refused_with("Content-Length\u{b}: 3\r\nl: 10\r\n", Reason::BadHeaderLine);
    refused_with("Content-Length 3\r\nl: 10\r\n", Reason::BadHeaderLine);
    refused_with(" Content-Length: 3\r\nl: 10\r\n", Reason::BadStartLine);
}

#[test]
fn a_lone_cr_lf_or_nul_in_a_head_ends_the_stream() {
    for bad in ["X: a\rl: 3\r\n", "X: a\nl: 3\r\n", "X: a\n\r\n", "X: a\r\r\n", "X: a\0\r\n"] {
        refused_with(&format!("l: 10\r\n{bad}"), Reason::BadLineEnd);
    }
    let quoted = request("l: 0\r\nSubject: \"a\\\0b\"\r\n", "");
    say(&quoted, &[message(quoted.len())], 0);
    // In a body they are bytes as others.
    let body = request("l: 10\r\n", "\r\n\r\n\0\n\r\r\r\n");
    say(&body, &[message(body.len())], 0);
}

#[test]
fn what_is_not_sip_is_closed_without_an_answer_as_soon_as_it_is_seen() {
    let not_sip = |bytes: &[u8], reason: Reason| {
        for chunk in 1..=bytes.len() {
            let (all, _) = frames(bytes, chunk);
            assert_eq!(all, [Frame::Refused { reason, head: 0 }], "{}", bytes.escape_ascii());
        }
    };
    not_sip(b"GET / HTTP/1.1\r\n", Reason::NotSip);
    not_sip(b"\x16\x03\x01", Reason::NotSip);
    not_sip(b"\n", Reason::NotSip);
    not_sip(b"\rO", Reason::NotSip);
    not_sip(b" OPTIONS", Reason::NotSip);
    not_sip(b"OPTIONS sip:b@h SIP/2.0\nl: 0\r\n", Reason::BadLineEnd);
    not_sip(b"SIP/2.0 200 OK\n", Reason::BrokenResponse);
}

#[test]
fn responses_are_refused_without_an_answer_and_a_broken_one_that_ends_is_a_message() {
    let broken = b"SIP/2.0 4294967301 better not\r\nl: 1\r\n\r\nx";
    say(broken, &[message(broken.len())], 0);
    for headers in ["", "l: x\r\n", "l: 1\r\nl: 2\r\n"] {
        let bytes = format!("SIP/2.0 200 OK\r\n{headers}\r\n");
        let reason = Reason::BrokenResponse;
        say(bytes.as_bytes(), &[Frame::Refused { reason, head: 0 }], bytes.len());
    }
    let large = b"SIP/2.0 200 OK\r\nl: 2000\r\n\r\n";
    say(large, &[Frame::Refused { reason: Reason::TooLarge, head: 0 }], large.len());
}

#[test]
fn spec_2_4_limits() {
    let head = request("l: 0000\r\n", "").len();
    let most = request(&format!("l: {}\r\n", LIMITS.message - head), &"x".repeat(LIMITS.message - head));
    assert_eq!(frames(&most, 700), (vec![message(LIMITS.message)], 0));
    let beyond = request(&format!("l: {}\r\n", LIMITS.message - head + 1), "");
    say(&beyond, &[Frame::Refused { reason: Reason::TooLarge, head }], beyond.len());
    refused_with("l: 4294967295\r\n", Reason::TooLarge);
    // A head without end is refused when the limit is passed; what came of it is there for an answer.
    let endless = request(&"X: y\r\n".repeat(1000), "");
    for chunk in [1, 7, 3000] {
        let (all, _) = frames(&endless, chunk);
        assert_eq!(all, [Frame::Refused { reason: Reason::TooLarge, head: LIMITS.message }], "{chunk}");
    }
    assert_eq!(
        frames(&[b'A'; 3000], 1).0,
        [Frame::Refused { reason: Reason::TooLarge, head: 0 }],
        "no line at all"
    );
    refused_with(&"X: y\r\n".repeat(21), Reason::TooManyHeaders);
    let long = format!("OPTIONS sip:{}@h SIP/2.0\r\nl: 0\r\n\r\n", "b".repeat(200));
    say(
        long.as_bytes(),
        &[Frame::Refused { reason: Reason::StartLineTooLong, head: long.len() }],
        long.len(),
    );
}

/// A head of 60 KB, byte by byte: a search that began anew each time would look at two gigabytes.
#[test]
fn the_work_is_linear_in_pieces_of_one_byte() {
    let limits = Limits::default();
    for bytes in [vec![b'A'; 60_000], request(&"X: y\r\n".repeat(10_000), "")] {
        let (mut framer, mut index) = (Framer::new(), Index::new());
        for came in 1..bytes.len() {
            assert_eq!(framer.next(&bytes[..came], &mut index, &limits), Frame::More);
            assert!(framer.searched as usize == came, "looked at the same bytes again");
        }
    }
    assert!(size_of::<Framer>() <= 12);
}
