//! WebSocket frames as a server reads and writes them (RFC 6455 5): pieces of a message put together, masks taken off in
//! place, control frames told apart.
//!
//! A `Reader` is what a connection remembers between two reads; it owns bytes only while a message in several frames is
//! not complete. A message is bounded by the caller's limit, by what a frame's head announces as by the sum. What a message
//! must hold is `frame::whole`'s; how a connection becomes a WebSocket, `upgrade`'s. That text is UTF-8 is not checked: SIP
//! takes other bytes too, and whoever minds will say so.

/// What a frame is (RFC 6455 11.8).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Payload of a control frame, at most (RFC 6455 5.5).
const CONTROL: usize = 125;

/// Codes of a Close (RFC 6455 7.4.1).
pub const GOING_AWAY: u16 = 1001;
pub const PROTOCOL_ERROR: u16 = 1002;
pub const REFUSED: u16 = 1008;
pub const TOO_BIG: u16 = 1009;

/// Why nothing more can be read. The connection is to be closed with `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A frame of a client's without a mask (5.1).
    Unmasked,
    /// Reserved bits or an opcode that nobody agreed on (5.2).
    Reserved,
    /// A control frame in pieces or too long, a Close without a whole code (5.5).
    Control,
    /// A continuation of nothing, or a new message within one (5.4).
    Continuation,
    TooLarge,
}

impl Fault {
    pub const fn code(self) -> u16 {
        match self {
            Fault::TooLarge => TOO_BIG,
            _ => PROTOCOL_ERROR,
        }
    }
}

/// What stands at the beginning of the bytes received.
#[derive(Debug, PartialEq, Eq)]
pub enum Unit<'a> {
    /// No end yet: read more, and ask again over the same bytes and those behind them.
    More,
    /// A frame of a message that is not complete.
    Piece,
    Message(&'a [u8]),
    /// To be answered by a Pong of the same payload.
    Ping(&'a [u8]),
    /// Answers a Ping, or nothing.
    Pong,
    /// To be answered by one of the same code, which may be missing.
    Close(Option<u16>),
}

/// What one connection remembers.
#[derive(Debug, Default)]
pub struct Reader {
    /// Payload of the frames of a message that is not complete.
    message: Vec<u8>,
    /// There is such a message, if of empty frames so far.
    under_way: bool,
}

/// The head of a frame.
struct Head {
    last: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Bytes of the head, and of the payload behind it.
    len: usize,
    payload: usize,
}

impl Reader {
    /// A message has begun in an earlier frame.
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Takes one frame: how many bytes it has, and what it says. `most`: bytes of a message. The mask is taken off within
    /// `received`, of a whole frame only.
    pub fn next<'a>(&'a mut self, received: &'a mut [u8], most: usize) -> Result<(usize, Unit<'a>), Fault> {
        if !self.under_way {
            // The memory of a message that was handed on.
            self.message = Vec::new();
        }
        let Some(head) = head(received)? else { return Ok((0, Unit::More)) };
        let whole = head.len.saturating_add(head.payload);
        if head.opcode < CLOSE {
            if head.payload > most {
                return Err(Fault::TooLarge);
            }
            if (head.opcode == CONTINUATION) != self.under_way {
                return Err(Fault::Continuation);
            }
            if head.payload > most.saturating_sub(self.message.len()) {
                return Err(Fault::TooLarge);
            }
        }
        let Some(payload) = received.get_mut(head.len..whole) else { return Ok((0, Unit::More)) };
        unmask(payload, head.mask);
        let unit = match head.opcode {
            PING => Unit::Ping(payload),
            PONG => Unit::Pong,
            CLOSE => Unit::Close(close_code(payload)?),
            _ if head.last && !self.under_way => Unit::Message(payload),
            _ => {
                self.under_way = !head.last;
                self.message.extend_from_slice(payload);
                if head.last { Unit::Message(&self.message) } else { Unit::Piece }
            }
        };
        Ok((whole, unit))
    }

    /// The message that was handed on last is not needed any more.
    pub fn forget(&mut self) {
        if !self.under_way {
            self.message = Vec::new();
        }
    }
}

/// `None`: not whole yet.
fn head(received: &[u8]) -> Result<Option<Head>, Fault> {
    let &[first, second, ref rest @ ..] = received else {
        return match received {
            [first] if first & 0x70 != 0 => Err(Fault::Reserved),
            _ => Ok(None),
        };
    };
    let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
    if first & 0x70 != 0 || !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(Fault::Reserved);
    }
    if second & 0x80 == 0 {
        return Err(Fault::Unmasked);
    }
    let short = usize::from(second & 0x7f);
    if opcode >= CLOSE && (!last || short > CONTROL) {
        return Err(Fault::Control);
    }
    let length = match short {
        126 => rest.first_chunk().map(|n| (2, usize::from(u16::from_be_bytes(*n)))),
        127 => rest.first_chunk().map(|n| (8, usize::try_from(u64::from_be_bytes(*n)).unwrap_or(usize::MAX))),
        n => Some((0, n)),
    };
    let Some((more, payload)) = length else { return Ok(None) };
    let Some(&mask) = rest.get(more..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
    Ok(Some(Head { last, opcode, mask, len: 2 + more + mask.len(), payload }))
}

/// Eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

/// RFC 6455 5.5.1, 7.4: a code that may stand in a Close, or none.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Fault> {
    if payload.is_empty() {
        return Ok(None);
    }
    let code = u16::from_be_bytes(*payload.first_chunk().ok_or(Fault::Control)?);
    let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if allowed { Ok(Some(code)) } else { Err(Fault::Control) }
}

/// Appends a whole message as one frame: of text, as browsers like it, where it is UTF-8 (RFC 7118 5).
pub fn put_message(message: &[u8], out: &mut Vec<u8>) {
    put(if std::str::from_utf8(message).is_ok() { TEXT } else { BINARY }, message, out);
}

/// Appends the answer to a Ping.
pub fn put_pong(payload: &[u8], out: &mut Vec<u8>) {
    put(PONG, payload, out);
}

/// Appends a Close.
pub fn put_close(code: Option<u16>, out: &mut Vec<u8>) {
    match code {
        Some(code) => put(CLOSE, &code.to_be_bytes(), out),
        None => put(CLOSE, &[], out),
    }
}

/// One frame of a server's: whole, and without a mask.
fn put(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..=125), _) => out.push(short),
        (_, Ok(middle)) => {
            out.push(126);
            out.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// What stands in an output of ours, in order: where each part of it ends, and the message in it, if it has one. The answer
/// to an upgrade, which is no frame, may stand first.
pub fn parts(output: &[u8], mut each: impl FnMut(usize, Option<&[u8]>)) {
    let mut at = 0;
    if output.starts_with(b"HTTP/") {
        at = memchr::memmem::find(output, b"\r\n\r\n").map_or(output.len(), |end| end + 4);
        each(at, None);
    }
    while let Some(&[first, short, ref rest @ ..]) = output.get(at..) {
        let length = match short {
            126 => rest.first_chunk().map(|n| (2, usize::from(u16::from_be_bytes(*n)))),
            127 => rest.first_chunk().map(|n| (8, u64::from_be_bytes(*n) as usize)),
            n => Some((0, usize::from(n))),
        };
        let Some((more, len)) = length else { return };
        let Some(payload) = rest.get(more..more + len) else { return };
        at += 2 + more + len;
        each(at, matches!(first & 0x0f, TEXT | BINARY).then_some(payload));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a client's.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0xa2, 0x03, 0x5c];
        let mut out = Vec::new();
        put(0, payload, &mut out);
        out[0] = first;
        out[1] |= 0x80;
        let head = out.len() - payload.len();
        out.splice(head..head, mask);
        for (at, byte) in out[head + 4..].iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
        out
    }

    /// What is told of a stream that comes `step` bytes at a time, as text.
    fn told(stream: &[u8], step: usize, most: usize) -> Vec<String> {
        let (mut reader, mut held, mut all) = (Reader::default(), Vec::new(), Vec::new());
        for piece in stream.chunks(step.max(1)) {
            held.extend_from_slice(piece);
            loop {
                let taken = match reader.next(&mut held, most) {
                    Ok((_, Unit::More)) => break,
                    Ok((taken, unit)) => {
                        match unit {
                            Unit::Message(bytes) => all.push(String::from_utf8_lossy(bytes).into_owned()),
                            Unit::Piece | Unit::Pong | Unit::More => {}
                            other => all.push(format!("{other:?}")),
                        }
                        taken
                    }
                    Err(fault) => {
                        all.push(format!("{fault:?}"));
                        return all;
                    }
                };
                held.drain(..taken);
            }
        }
        all
    }

    #[test]
    fn messages_in_one_frame_and_in_several_with_control_frames_between() {
        let long = "x".repeat(70_000);
        let stream = [
            frame(0x81, b"one"),
            frame(0x02, b"tw"),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x80, b"o"),
            frame(0x8a, b"nobody asked"),
            frame(0x82, long.as_bytes()),
            frame(0x81, b""),
            frame(0x88, &1000_u16.to_be_bytes()),
        ]
        .concat();
        let expected = ["Ping([112, 105, 110, 103])", "two", &long, "", "Close(Some(1000))"];
        for step in [1, 2, 3, 1000, stream.len()] {
            let all = told(&stream, step, 70_000);
            assert_eq!(all[0], "one");
            assert!(all[1..] == expected, "by {step}: {:?}", &all[..3]);
        }
    }

    #[test]
    fn what_a_client_must_not_say() {
        let plain = |first| vec![first, 3, 1, 2, 3];
        let huge = [&[0x81, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
        for (stream, fault) in [
            (plain(0x81), "Unmasked"),
            (frame(0xc1, b"x"), "Reserved"),
            (frame(0x83, b"x"), "Reserved"),
            (frame(0x8b, b"x"), "Reserved"),
            (frame(0x09, b"x"), "Control"),
            (frame(0x89, &[0; 126]), "Control"),
            (frame(0x88, &[3]), "Control"),
            (frame(0x88, &1005_u16.to_be_bytes()), "Control"),
            (frame(0x80, b"x"), "Continuation"),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), "Continuation"),
            (frame(0x81, &[0; 101]), "TooLarge"),
            ([frame(0x01, &[0; 60]), frame(0x80, &[0; 41])].concat(), "TooLarge"),
            (huge, "TooLarge"),
        ] {
            assert_eq!(told(&stream, 1, 100).last().map(String::as_str), Some(fault), "{stream:?}");
        }
        let (head, most) = (frame(0x82, &[0; 101]), 100);
        assert_eq!(told(&head[..6], 6, most), ["TooLarge"], "refused by what its head says");
    }

    #[test]
    fn nothing_is_kept_between_messages() {
        let mut reader = Reader::default();
        let mut bytes = [frame(0x01, b"on"), frame(0x80, b"e")].concat();
        let (taken, _) = reader.next(&mut bytes, 100).expect("sound");
        assert!(reader.is_under_way());
        assert_eq!(reader.next(&mut bytes[taken..], 100).expect("sound").1, Unit::Message(b"one"));
        reader.forget();
        assert_eq!((reader.is_under_way(), reader.message.capacity()), (false, 0));
    }

    #[test]
    fn an_output_is_told_part_by_part() {
        let mut output = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        let mut ends = vec![output.len()];
        let long = "y".repeat(70_000);
        for message in ["short", &"x".repeat(300), &long] {
            put_message(message.as_bytes(), &mut output);
            ends.push(output.len());
        }
        put_pong(b"z", &mut output);
        ends.push(output.len());
        put_message(b"\xff", &mut output);
        ends.push(output.len());
        let mut seen = Vec::new();
        parts(&output, |end, message| seen.push((end, message.map(<[u8]>::len))));
        let lengths = [None, Some(5), Some(300), Some(70_000), None, Some(1)];
        assert_eq!(seen, ends.into_iter().zip(lengths).collect::<Vec<_>>());
        parts(&output[..output.len() - 1], |end, _| assert!(end < output.len()));
    }
}
