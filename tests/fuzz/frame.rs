//! Any stream in pieces: they change nothing, and `Framer` and `Index::scan` agree where each message ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::wire::{Frame, Framer, Index, Limits, Reason};

const LIMITS: Limits = Limits { message: 1500, header_lines: 20, start_line: 200 };

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, stream)) = bytes.split_first() else { return };
    let whole = frames(stream, stream.len().max(1));
    assert_eq!(frames(stream, usize::from(piece).max(1)), whole);
    assert_eq!(frames(stream, 1), whole);
    let mut index = Index::new();
    for (at, frame) in whole {
        let rest = &stream[at..];
        match frame {
            Frame::Message { len } => match index.scan(&rest[..rest.len().min(LIMITS.message)], &LIMITS) {
                Ok(view) => assert_eq!(view.bytes, &rest[..len]),
                Err(refused) => assert!(matches!(
                    refused.reason,
                    Reason::BadStartLine | Reason::BadRequestUri | Reason::Version | Reason::BrokenResponse
                )),
            },
            Frame::Keepalive { len, .. } => assert_eq!(&rest[..len], b"\r\n"),
            Frame::Refused { head, .. } => assert!(head <= rest.len()),
            Frame::More => unreachable!("it is not kept"),
        }
    }
});

fn frames(stream: &[u8], piece: usize) -> Vec<(usize, Frame)> {
    let (mut framer, mut index, mut all) = (Framer::new(), Index::new(), Vec::new());
    let (mut taken, mut came) = (0, 0);
    while came < stream.len() {
        came = (came + piece).min(stream.len());
        loop {
            let frame = framer.next(&stream[taken..came], &mut index, &LIMITS);
            let at = taken;
            taken += match frame {
                Frame::More => break,
                Frame::Keepalive { len, .. } | Frame::Message { len } => len,
                Frame::Refused { .. } => {
                    all.push((at, frame));
                    return all;
                }
            };
            all.push((at, frame));
        }
    }
    all
}
