//! Whatever comes to a WebSocket listener: cut into pieces it says the same, no message is larger than the limit, and what we
//! write is told apart again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::wire::{
    Frame, Index, Limits,
    frame::whole,
    upgrade::{self, Asked, Rules},
    websocket::{Reader, Unit, parts, put_message},
};

const LIMITS: Limits = Limits { message: 1500, header_lines: 20, start_line: 200 };

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, stream)) = bytes.split_first() else { return };
    let rules = Rules { path: None, origins: Some(vec!["https://a.example".into()]) };
    let asked = upgrade::read(stream, 0, &rules);
    if let Asked::Good(len, accepted) = asked {
        assert!(stream[..len].ends_with(b"\r\n\r\n"));
        let mut answer = Vec::new();
        accepted.put(&mut answer);
        put_message(&stream[len..], &mut answer);
        let mut messages = 0;
        parts(&answer, |end, message| {
            assert!(end <= answer.len());
            messages += usize::from(message == Some(&stream[len..]));
        });
        assert_eq!(messages, 1);
    }
    let told = messages(stream, stream.len().max(1));
    assert_eq!(messages(stream, usize::from(piece).max(1)), told);
    assert_eq!(messages(stream, 1), told);
    let mut index = Index::new();
    for message in told {
        assert!(message.len() <= LIMITS.message);
        let (frame, rest) = whole(&message, &mut index, &LIMITS);
        match frame {
            Frame::Message { len } => assert_eq!(len, rest.len()),
            Frame::Keepalive { len, .. } => assert_eq!(len, message.len()),
            Frame::Refused { head, .. } => assert!(head <= rest.len()),
            Frame::More => unreachable!("its end is known"),
        }
    }
});

fn messages(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let (mut reader, mut held, mut all) = (Reader::default(), Vec::new(), Vec::new());
    for piece in stream.chunks(piece) {
        held.extend_from_slice(piece);
        loop {
            let taken = match reader.next(&mut held, LIMITS.message) {
                Ok((_, Unit::More)) => break,
                Ok((taken, unit)) => {
                    if let Unit::Message(bytes) = unit {
                        all.push(bytes.to_vec());
                    }
                    taken
                }
                Err(_) => return all,
            };
            reader.forget();
            held.drain(..taken);
        }
    }
    all
}
