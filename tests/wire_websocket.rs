//! The frame codec beside tungstenite's: of any stream of frames, sound or not, both tell the same messages and stop at the
//! same place; and however the stream is cut into pieces, ours tells the same.

#[path = "rig/websocket.rs"]
#[allow(dead_code)]
mod websocket;

use std::io::{Cursor, Read, Write};

use proptest::prelude::*;
use tidings::wire::websocket::{Reader, Unit};
use tungstenite::{
    Error, Message, WebSocket,
    protocol::{Role, WebSocketConfig},
};

/// Bytes of a message, at most.
const MOST: usize = 300;

/// What is told of a stream, each item as text.
fn ours(stream: &[u8], step: usize) -> Vec<String> {
    let (mut reader, mut held, mut all) = (Reader::default(), Vec::new(), Vec::new());
    for piece in stream.chunks(step) {
        held.extend_from_slice(piece);
        loop {
            let (taken, told) = match reader.next(&mut held, MOST) {
                Ok((_, Unit::More)) => break,
                Ok((taken, Unit::Piece | Unit::Pong)) => (taken, None),
                Ok((taken, Unit::Message(bytes))) => {
                    (taken, Some(format!("message {}", bytes.escape_ascii())))
                }
                Ok((taken, Unit::Ping(bytes))) => (taken, Some(format!("ping {}", bytes.escape_ascii()))),
                Ok((_, Unit::Close(_))) => {
                    all.push("close".to_owned());
                    return all;
                }
                // Of a frame with several faults each names another one.
                Err(_) => {
                    all.push("fault".to_owned());
                    return all;
                }
            };
            reader.forget();
            held.drain(..taken);
            all.extend(told);
        }
    }
    all
}

/// Reads a stream and drops what is written.
struct Wire(Cursor<Vec<u8>>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn theirs(stream: &[u8]) -> Vec<String> {
    let limits = WebSocketConfig::default().max_message_size(Some(MOST)).max_frame_size(Some(MOST));
    let wire = Wire(Cursor::new(stream.to_vec()));
    let mut socket = WebSocket::from_raw_socket(wire, Role::Server, Some(limits));
    let mut all = Vec::new();
    loop {
        all.push(match socket.read() {
            Ok(Message::Text(text)) => format!("message {}", text.as_bytes().escape_ascii()),
            Ok(Message::Binary(bytes)) => format!("message {}", bytes.escape_ascii()),
            Ok(Message::Ping(bytes)) => format!("ping {}", bytes.escape_ascii()),
            Ok(Message::Pong(_) | Message::Frame(_)) => continue,
            Ok(Message::Close(_)) => "close".to_owned(),
            Err(Error::Io(_)) => return all,
            Err(_) => "fault".to_owned(),
        });
        if matches!(all.last().map(String::as_str), Some("close" | "fault")) {
            return all;
        }
    }
}

/// Frames as clients send them, most of them sound, of ASCII: that text is UTF-8 only tungstenite checks.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => prop::sample::select(vec![0x81_u8, 0x82]),
        4 => prop::sample::select(vec![0x01_u8, 0x02, 0x00, 0x00, 0x80, 0x80]),
        3 => prop::sample::select(vec![0x89_u8, 0x8a]),
        1 => prop::sample::select(vec![0x88_u8, 0x83, 0x8b, 0xc1, 0x09, 0x91]),
    ];
    let payload = prop_oneof![
        8 => prop::collection::vec(0x20_u8..0x7f, 0..20),
        1 => prop::collection::vec(0x20_u8..0x7f, 120..130),
        1 => prop::collection::vec(0x20_u8..0x7f, 290..310),
    ];
    (first, payload, 0_u8..40).prop_map(|(first, payload, odd)| {
        // A Close of two bytes has a code, of which most make no sense.
        let payload = if first == 0x88 {
            [&1000_u16.to_be_bytes()[..], &payload[..payload.len().min(20)]].concat()
        } else {
            payload
        };
        let mut frame = websocket::frame(first, &payload);
        if odd == 0 {
            frame[1] &= 0x7f; // no mask
        }
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn tungstenite_tells_the_same(frames in prop::collection::vec(frame(), 1..12), step in 1_usize..40) {
        let stream = frames.concat();
        let told = ours(&stream, stream.len());
        prop_assert_eq!(&ours(&stream, step), &told);
        prop_assert_eq!(theirs(&stream), told);
    }
}
