//! Where messages end on a byte stream (RFC 3261 7.5 and 18.3, RFC 5626 3.5.1 and 4.4.1, SPEC 2.3 to 2.6).
//!
//! A `Framer` is what a connection remembers between two reads: twelve bytes, no buffer. It is asked over all that has
//! been received and not yet taken, and the work stays linear however small the pieces are: the search for the empty line
//! goes on where it ended, and a head is read once. Length and lines of a head are read by the code of `Index::scan`, so
//! that the two cannot disagree.
//!
//! What cannot be framed for certain ends the connection: nobody looks for the next message behind a fault (no request
//! is smuggled). A message whose end is certain is `Frame::Message`, whatever else is wrong with it: `scan` and `inspect`
//! refuse it, and the connection goes on. On a WebSocket, which has ends of its own, `whole` is asked instead.

use memchr::{memchr, memmem};

use super::lex;
use super::reason::Reason;
use super::scan::{Index, Limits, Start, no_line, start_line};

/// What stands at the beginning of the bytes received. Those counted are to be taken away before the next question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// No end yet: read more, and ask again over the same bytes and those behind them.
    More,
    /// CRLF. Where it is the second in a row it was a ping, and one CRLF is due as pong (RFC 5626 4.4.1).
    Keepalive { len: usize, ping: bool },
    /// One message, to the end of its body.
    Message { len: usize },
    /// To be closed. Of the first `head` bytes an answer of `reason` may be written before; 0: of none.
    Refused { reason: Reason, head: usize },
}

/// What one connection remembers of a message that is not complete. A new one for each connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Framer {
    /// No empty line ends before this offset.
    searched: u32,
    /// Length of the message, once its head has been read; before that 0.
    whole: u32,
    /// The start line has been looked at.
    started: bool,
    /// A CRLF has been taken, and nothing since: the first half of a ping.
    half_ping: bool,
}

const LINE: &[u8] = b"\r\n";
const EMPTY_LINE: &[u8] = b"\r\n\r\n";

impl Framer {
    pub fn new() -> Framer {
        Framer::default()
    }

    /// `received`: all that came and was not taken, at most a few reads beyond `limits.message`. `index` is for scratch and
    /// may be shared by all connections of a worker. After `Refused` there is nothing more to ask.
    pub fn next(&mut self, received: &[u8], index: &mut Index, limits: &Limits) -> Frame {
        if self.whole == 0 {
            if received.starts_with(LINE) {
                self.half_ping = !self.half_ping;
                return Frame::Keepalive { len: LINE.len(), ping: !self.half_ping };
            }
            if let Err(frame) = self.read_head(received, index, limits) {
                return frame;
            }
        }
        let len = self.whole as usize;
        if received.len() < len {
            return Frame::More;
        }
        *self = Framer::new();
        Frame::Message { len }
    }

    /// Learns the length of the message, or what is to be said instead.
    fn read_head(&mut self, received: &[u8], index: &mut Index, limits: &Limits) -> Result<(), Frame> {
        if !self.started {
            let started = starts(received, self.searched as usize);
            self.started = started.map_err(|reason| Frame::Refused { reason, head: 0 })?;
        }
        let most = received.len().min(limits.message);
        let from = (self.searched as usize).saturating_sub(EMPTY_LINE.len() - 1);
        let Some(at) = memmem::find(received.get(from..most).unwrap_or_default(), EMPTY_LINE) else {
            self.searched = most as u32;
            let too_large = received.len() > limits.message;
            return Err(if too_large { refused(received, Reason::TooLarge, most) } else { Frame::More });
        };
        let head = from + at + EMPTY_LINE.len();
        self.whole =
            index.length(&received[..head], limits).map_err(|reason| refused(received, reason, head))?;
        Ok(())
    }
}

/// What the one message of a WebSocket message is (RFC 7118 5): its ends are known, so Content-Length need not be there, but
/// must be true where it is. CRLFs alone are a keep-alive, a ping where there are two; before a message they are nothing.
pub fn whole<'a>(received: &'a [u8], index: &mut Index, limits: &Limits) -> (Frame, &'a [u8]) {
    let mut message = received;
    while let Some(rest) = message.strip_prefix(LINE) {
        message = rest;
    }
    if message.is_empty() {
        return (Frame::Keepalive { len: received.len(), ping: received.len() >= EMPTY_LINE.len() }, message);
    }
    let length = match (starts(message, 0), memmem::find(message, EMPTY_LINE)) {
        (Err(reason), _) => return (Frame::Refused { reason, head: 0 }, message),
        (Ok(_), None) => Err((Reason::BadLineEnd, message.len())),
        (Ok(_), Some(at)) => {
            let head = at + EMPTY_LINE.len();
            match index.length_if_said(&message[..head], limits) {
                Ok(Some(len)) if len as usize != message.len() => Err((Reason::BadContentLength, head)),
                Ok(_) => Ok(message.len()),
                Err(reason) => Err((reason, head)),
            }
        }
    };
    match length {
        Ok(len) => (Frame::Message { len }, message),
        Err((reason, head)) => (refused(message, reason, head), message),
    }
}

/// A request may be answered before the connection is closed.
#[cold]
fn refused(received: &[u8], reason: Reason, head: usize) -> Frame {
    let line = memchr(b'\n', received).and_then(|lf| received[..lf].strip_suffix(b"\r"));
    let mut start = Start::NONE;
    let recognised = line.is_some_and(|line| start_line(line, &mut start).is_ok());
    let request = recognised && matches!(start, Start::Request { .. });
    Frame::Refused { reason, head: if request { head } else { 0 } }
}

/// Is the start line there, and SIP's? `searched`: no LF stands before. Neither a request nor a response begins with
/// anything but a token character; TLS and other binary protocols do, and need not be waited for.
fn starts(received: &[u8], searched: usize) -> Result<bool, Reason> {
    match received {
        [] | [b'\r'] => return Ok(false),
        [first, ..] if !lex::is_token(&[*first]) => return Err(Reason::NotSip),
        _ => {}
    }
    let behind = received.get(searched..).unwrap_or_default();
    let Some(lf) = memchr(b'\n', behind).map(|lf| searched + lf) else { return Ok(false) };
    match received[..lf].strip_suffix(b"\r").map(|line| start_line(line, &mut { Start::NONE })) {
        None => Err(no_line(received)),
        // Of a response that is broken the end may be certain all the same.
        Some(Ok(_) | Err(Reason::BrokenResponse)) => Ok(true),
        Some(Err(reason)) => Err(reason),
    }
}

#[cfg(test)]
mod tests;
