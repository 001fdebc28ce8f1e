//! Properties of the framing of streams: the pieces in which bytes come change nothing, and `Framer` and `Index::scan`
//! agree where a message ends; and the torture messages of RFC 4475 and RFC 5118 on a stream.

use std::{fs, path::Path};

use proptest::prelude::*;
use tidings::wire::*;

const LIMITS: Limits = Limits { message: 3000, header_lines: 40, start_line: 400 };

/// A request that is sound, to see whether a stream goes on.
const SOUND: &[u8] =
    b"OPTIONS sip:b@h SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=z9hG4bKa\r\nFrom: <sip:a@h>;tag=1\r\n\
    To: <sip:b@h>\r\nCall-ID: x@h\r\nCSeq: 1 OPTIONS\r\nl: 0\r\n\r\n";

/// Everything that a stream says, with the offset at which it says it. `pieces` are the sizes in which it comes, again
/// and again.
fn frames(stream: &[u8], pieces: &[usize], limits: &Limits) -> Vec<(usize, Frame)> {
    let (mut framer, mut index, mut all) = (Framer::new(), Index::new(), Vec::new());
    let (mut taken, mut came) = (0, 0);
    for piece in pieces.iter().cycle() {
        if came == stream.len() {
            break;
        }
        came = (came + piece).min(stream.len());
        loop {
            let frame = framer.next(&stream[taken..came], &mut index, limits);
            let len = match frame {
                Frame::More => break,
                Frame::Keepalive { len, .. } | Frame::Message { len } => len,
                Frame::Refused { .. } => {
                    all.push((taken, frame));
                    return all;
                }
            };
            all.push((taken, frame));
            taken += len;
        }
    }
    all
}

/// Reasons for which a message may be refused whose end is certain.
fn is_framed(reason: Reason) -> bool {
    matches!(reason, Reason::BadStartLine | Reason::BadRequestUri | Reason::Version | Reason::BrokenResponse)
}

/// All that holds of a stream.
fn check(stream: &[u8], pieces: &[usize]) {
    let whole = frames(stream, &[stream.len().max(1)], &LIMITS);
    assert_eq!(frames(stream, pieces, &LIMITS), whole, "in pieces of {pieces:?}: {}", stream.escape_ascii());
    let mut index = Index::new();
    for (at, frame) in whole {
        let rest = &stream[at..];
        match frame {
            Frame::Message { len } => {
                // Taken for a datagram, with all that comes behind it or without.
                for bytes in [&rest[..len], &rest[..rest.len().min(LIMITS.message)]] {
                    match index.scan(bytes, &LIMITS) {
                        Ok(view) => assert_eq!(view.bytes, &rest[..len]),
                        Err(refused) => assert!(is_framed(refused.reason), "{:?}", refused.reason),
                    }
                }
                assert_eq!(len, slow_length(rest), "{}", rest.escape_ascii());
            }
            Frame::Refused { reason, head } if head > 0 => {
                assert!(reason.code() >= 400 && head <= LIMITS.message);
                let refused = index.scan(&rest[..head], &LIMITS);
                let view = refused.map_or_else(|refused| refused.view, Some);
                assert!(view.is_some_and(|view| view.method().is_some()), "no request to answer");
            }
            Frame::Keepalive { len, .. } => assert_eq!(&rest[..len], b"\r\n"),
            Frame::Refused { .. } | Frame::More => {}
        }
    }
}

/// The length of a message whose head is sound, read line by line: no fold, compact form or blank is forgotten.
fn slow_length(message: &[u8]) -> usize {
    let head = message.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let text = String::from_utf8_lossy(&message[..head]).replace("\r\n ", "  ").replace("\r\n\t", "  ");
    let mut lengths = text.split("\r\n").skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let name = name.trim_end_matches([' ', '\t']);
        let is_length = name.eq_ignore_ascii_case("l") || name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim_matches([' ', '\t']).parse::<usize>().expect("digits only"))
    });
    let length = lengths.next().expect("a Content-Length");
    assert!(lengths.all(|other| other == length));
    head + length
}

const BITS: [&[u8]; 34] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n ",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"0",
    b"1",
    b"7",
    b"20",
    b"-",
    b"+",
    b"\"",
    b"\\",
    b"Content-Length",
    b"content-LENGTH: 5\r\n",
    b"Content-Length: ",
    b"Content-Length : 4\r\n",
    b"Content-Length:\r\n 3\r\n",
    b"l: 0\r\n\r\n",
    b"l: 3\r\n\r\nabc",
    b"L:2\r\n",
    b"Subject: a\r\n b\r\n",
    b"SIP/2.0 200 OK\r\n",
    b"SIP/2.0 999 No\r\n",
    b"INVITE sip:a@b SIP/2.0\r\n",
    b"INVITE sip:a@b SIP/3.0\r\n",
    b"OPTIONS sip:a@b SIP/2.0\r\nl: 2\r\n\r\n",
    b"\xff",
    SOUND,
];

fn bit() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::sample::select(BITS.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..5),
    ]
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(bit(), 0..30).prop_map(|bits| bits.concat())
}

/// Requests that are sound but for header lines of soup, one behind the other.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let one =
        (prop::collection::vec(bit(), 0..5), 0..30usize, any::<bool>()).prop_map(|(soup, len, named)| {
            let name = if named { "Content-Length" } else { "l" };
            let line = format!("{name}: {len}\r\n");
            let parts: [&[u8]; 5] =
                [b"INVITE sip:a@b SIP/2.0\r\n", &soup.concat(), line.as_bytes(), b"\r\n", &vec![b'x'; len]];
            parts.concat()
        });
    prop::collection::vec(one, 1..4).prop_map(|all| all.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn framing_bears_soup_and_agrees_with_scan(bytes in soup(), pieces in prop::collection::vec(1..50usize, 1..6)) {
        check(&bytes, &pieces);
    }

    #[test]
    fn framing_bears_what_is_nearly_sound(bytes in requests(), pieces in prop::collection::vec(1..90usize, 1..6)) {
        check(&bytes, &pieces);
    }

    #[test]
    fn every_sound_message_of_a_stream_comes_out_as_it_went_in(
        parts in prop::collection::vec((0..40usize, 0..3usize), 1..8),
        pieces in prop::collection::vec(1..200usize, 1..6),
    ) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for (body, crlfs) in parts {
            stream.extend(b"\r\n".repeat(crlfs));
            let body = b"\r\n\0x".repeat(body);
            let head = format!("SIP/2.0 200 OK\r\nVia: x\r\nContent-Length: {}\r\n\r\n", body.len());
            expected.push((stream.len(), Frame::Message { len: head.len() + body.len() }));
            stream.extend([head.as_bytes(), &body].concat());
        }
        let mut all = frames(&stream, &pieces, &LIMITS);
        all.retain(|(_, frame)| matches!(frame, Frame::Message { .. }));
        prop_assert_eq!(all, expected);
    }
}

/// Torture messages that fare otherwise on a stream than to be framed whole, with a sound request behind them that is
/// framed too: the reason for which they end the stream, or what else becomes of them.
const OTHERWISE: [(&str, &str); 6] = [
    ("baddn", "bad_header_line"),
    ("clerr", "waits for more"),
    ("dblreq", "two messages"),
    ("inv2543", "missing_content_length"),
    ("mcl01", "two_content_length"),
    ("ncl", "bad_content_length"),
];

#[test]
fn rfc_4475_and_5118_on_a_stream() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture");
    let (mut count, mut otherwise) = (0, Vec::new());
    for rfc in ["rfc4475", "rfc5118"] {
        let entries = fs::read_dir(folder.join(rfc)).expect("the folder is there");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
        paths.sort();
        for path in paths {
            count += 1;
            let bytes = fs::read(&path).expect("a message");
            let stream = [&bytes[..], SOUND].concat();
            let limits = Limits::default();
            let all = frames(&stream, &[stream.len()], &limits);
            assert_eq!(frames(&stream, &[1], &limits), all, "{}", path.display());
            let messages: Vec<_> =
                all.into_iter().filter(|(_, f)| !matches!(f, Frame::Keepalive { .. })).collect();
            let becomes = match messages[..] {
                [(0, Frame::Message { .. }), (at, Frame::Message { .. })] if at == bytes.len() => continue,
                [.., (0, Frame::Refused { reason, .. })] => reason.label(),
                [(_, Frame::Message { .. }), (_, Frame::Message { .. }), (_, Frame::Message { .. })] => {
                    "two messages"
                }
                [] => "waits for more",
                _ => panic!("{}: {messages:?}", path.display()),
            };
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
            otherwise.push((name.to_owned(), becomes));
        }
    }
    assert_eq!(count, 62);
    let expected: Vec<_> = OTHERWISE.iter().map(|(name, becomes)| ((*name).to_owned(), *becomes)).collect();
    assert_eq!(otherwise, expected);
}
