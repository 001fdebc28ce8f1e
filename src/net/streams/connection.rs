//! One connection: its pipe, what has come of a message that is not complete, what waits to leave (SPEC 9.7, 9.8).
//!
//! It owns bytes only while a message is partly here or partly sent. How they come and go is `pipe`'s. What waits to leave begins where a message begins, so
//! that what a connection takes to its grave can be told message by message. `Streams` decides when it ends.

use std::{io, net::SocketAddr, sync::Arc};

use super::{Limits, Reason, pipe::Pipe, tls, websocket::Session};
use crate::{
    stats::Counter,
    wire::{
        Frame, Framer, Index, Limits as WireLimits,
        proxy::{self, Broken, Header, Proxied},
        upgrade::Rules,
        websocket,
    },
};

/// What was sent of the output is taken away once it is so much.
const COMPACT: usize = 64 * 1024;
/// How long a connection that we end may take to read what we said last, in milliseconds.
const FAREWELL_MS: u64 = 2_000;
const PULSE_MS: u64 = 1_000;

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// We have called, the peer has not answered.
    Connecting,
    /// A proxy has yet to say for whom it calls.
    Introduction,
    /// TLS is not there yet.
    Handshake,
    /// It is no WebSocket yet.
    Upgrade,
    Open,
    /// To be ended: what waits is sent, nothing is taken any more.
    Ending(Reason),
}

pub struct Connection {
    pub pipe: Pipe,
    pub stage: Stage,
    pub listener: u8,
    /// We made it, to a backend.
    pub dialed: bool,
    /// May have bytes: polls are edge-triggered.
    pub ready: bool,
    /// The peer has closed its side: bytes may be left, then comes the end.
    pub hung_up: bool,
    /// That end was read.
    pub ended: bool,
    /// A whole message has come.
    pub spoken: bool,
    /// A proxy's, which counts for no address yet.
    pub unnamed: bool,
    /// Its first bytes were no header that nobody may say.
    looked: bool,
    websocket: Option<Box<Session>>,
    /// Our side is shut.
    shut: bool,
    /// What came is being dealt with. Found so by the next read it did not end well, and where the next message begins is lost.
    pub broken: bool,
    pulse: Pulse,
    pub generation: u16,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    framer: Framer,
    /// What came of a message that is not complete; no memory where there is none.
    partial: Vec<u8>,
    /// What is to leave, from the beginning of a message on; of it `sent` bytes have left.
    output: Vec<u8>,
    sent: usize,
    pub opened_ms: u64,
    pub heard_ms: u64,
    /// When we last had something for the peer: an answer to that may come as late as idle connections may stay.
    said_ms: u64,
    /// When what is incomplete began (of a message its first byte or frame, or the TLS record of that), or the handshake.
    partial_ms: u64,
    /// When the peer last took anything, while output waits; when the end began.
    stuck_ms: u64,
    /// The second at which the wheel names it.
    pub armed_s: u64,
}

/// Keep-alives that came within a second and without a message among them: CRLFs (RFC 5626 3.5.1), and Pings and Pongs of a
/// WebSocket. What comes with messages is nothing (RFC 3261 7.5), since these have limits of their own.
#[derive(Default)]
pub struct Pulse {
    most: u32,
    beats: u32,
    since_ms: u64,
}

impl Pulse {
    fn begin(&mut self, most: u32, now_ms: u64) {
        self.most = most;
        if now_ms >= self.since_ms + PULSE_MS {
            (self.beats, self.since_ms) = (0, now_ms);
        }
    }

    /// One more; false where it is one too many.
    pub fn beat(&mut self) -> bool {
        self.beats = self.beats.saturating_add(1);
        self.beats <= self.most
    }

    /// A message has come.
    pub fn rest(&mut self) {
        self.beats = 0;
    }
}

/// What one read brought.
pub struct Brought {
    /// Pings to be answered.
    pub pings: usize,
    /// A WebSocket's message became complete.
    pub complete: bool,
    /// It cannot go on.
    pub end: Option<Reason>,
    /// For whom a proxy calls.
    pub introduced: Option<Proxied>,
    /// What is to be sent at once, as it stands.
    pub say: Vec<u8>,
    /// What is to be counted.
    pub counter: Option<Counter>,
}

impl Brought {
    fn nothing() -> Brought {
        Brought { pings: 0, complete: false, end: None, introduced: None, say: Vec::new(), counter: None }
    }
}

/// What is heard: a whole message, or why there is none and what an answer may be written from (perhaps nothing).
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    Message(&'a [u8]),
    Keepalive,
    Refused(crate::wire::Reason, &'a [u8]),
}

impl Connection {
    pub fn new(pipe: Pipe, listener: u8, dialed: bool, ends: (SocketAddr, SocketAddr), now_ms: u64) -> Self {
        let ready = if pipe.is_open() { Stage::Open } else { Stage::Handshake };
        Connection {
            pipe,
            stage: if dialed { Stage::Connecting } else { ready },
            listener,
            dialed,
            ready: false,
            hung_up: false,
            ended: false,
            spoken: false,
            unnamed: false,
            looked: dialed,
            websocket: None,
            shut: false,
            broken: false,
            pulse: Pulse::default(),
            generation: 0,
            local: ends.0,
            peer: ends.1,
            framer: Framer::new(),
            partial: Vec::new(),
            output: Vec::new(),
            sent: 0,
            opened_ms: now_ms,
            heard_ms: now_ms,
            said_ms: now_ms,
            partial_ms: now_ms,
            stuck_ms: now_ms,
            armed_s: 0,
        }
    }

    /// How one that was accepted begins: with a proxy's word, as a WebSocket.
    pub fn begin(&mut self, proxied: bool, websocket: Option<Arc<Rules>>) {
        self.unnamed = proxied;
        self.websocket = websocket.map(|rules| Box::new(Session::new(rules)));
        self.connected(self.opened_ms);
        if proxied {
            self.stage = Stage::Introduction;
        }
    }

    /// Reads once, at most `buffer.len()` bytes, and hands on what is complete.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        index: &mut Index,
        limits: (&WireLimits, &Limits),
        now_ms: u64,
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> Brought {
        let (wire, most) = (limits.0, limits.1.keepalives);
        let mut brought = Brought::nothing();
        if self.broken {
            brought.end = Some(Reason::Framing);
            return brought;
        }
        if self.stage == Stage::Introduction {
            return self.read_introduction(buffer, now_ms);
        }
        if !self.looked && self.stage == Stage::Handshake {
            self.looked = true;
            if self.begins_with_header(None) {
                brought.end = Some(Reason::ProxyUntrusted);
                return brought;
            }
        }
        let was_incomplete = self.is_incomplete();
        let outcome = self.pipe.read(buffer);
        // The records of a handshake buy it no time.
        if !was_incomplete && self.stage != Stage::Handshake && self.pipe.is_mid_record() {
            self.partial_ms = now_ms;
        }
        let (n, more) = match outcome {
            Ok(taken) if taken.bytes == 0 => {
                // TLS took what came, or it is the end.
                self.ready = taken.more;
                self.ended = !taken.more;
                brought.end = (!taken.more).then_some(Reason::Peer);
                return brought;
            }
            Ok(taken) => (taken.bytes, taken.more),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ready = false;
                return brought;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return brought,
            Err(error) => {
                brought.end = Some(reason_of(&error));
                return brought;
            }
        };
        self.ready = more || self.hung_up;
        self.heard_ms = now_ms;
        if matches!(self.stage, Stage::Ending(_)) {
            return brought;
        }
        if !std::mem::replace(&mut self.looked, true) && self.begins_with_header(Some(&buffer[..n])) {
            brought.end = Some(Reason::ProxyUntrusted);
            return brought;
        }
        self.broken = true;
        let mut held = std::mem::take(&mut self.partial);
        let whole = held.is_empty();
        if !whole {
            held.extend_from_slice(&buffer[..n]);
        }
        let bytes = if whole { &mut buffer[..n] } else { &mut held[..] };
        let was_under_way = self.is_under_way();
        self.pulse.begin(if self.dialed { u32::MAX } else { most }, now_ms);
        let taken = match self.websocket {
            None => self.take(bytes, index, wire, &mut brought, hear),
            Some(_) => self.take_frames(bytes, index, wire, &mut brought, hear),
        };
        self.broken = false;
        let all = taken == bytes.len();
        let same = was_under_way && self.is_under_way() && !brought.complete;
        if (taken > 0 || !was_incomplete) && !same {
            self.partial_ms = now_ms;
        }
        if brought.end.is_some() || all {
            return brought;
        }
        if whole {
            held.extend_from_slice(&buffer[taken..n]);
        } else {
            held.drain(..taken);
        }
        self.partial = held;
        brought
    }

    /// Reads what a proxy says, and not a byte beyond it: TLS may begin there.
    fn read_introduction(&mut self, buffer: &mut [u8], now_ms: u64) -> Brought {
        let mut brought = Brought::nothing();
        loop {
            let missing = match proxy::read(&self.partial) {
                Ok(Header::More(missing)) => missing.min(buffer.len()),
                Ok(Header::Whole(said)) => {
                    self.partial = Vec::new();
                    brought.introduced = Some(said);
                    self.ready = true;
                    return brought;
                }
                Err(Broken) => {
                    brought.end = Some(Reason::ProxyHeader);
                    return brought;
                }
            };
            match self.pipe.read(&mut buffer[..missing]) {
                Ok(taken) if taken.bytes == 0 => {
                    brought.end = Some(Reason::Peer);
                    return brought;
                }
                Ok(taken) => {
                    if self.partial.is_empty() {
                        self.partial_ms = now_ms;
                    }
                    self.partial.extend_from_slice(&buffer[..taken.bytes]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return brought;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    brought.end = Some(reason_of(&error));
                    return brought;
                }
            }
        }
    }

    /// A message in several frames is not complete.
    fn is_under_way(&self) -> bool {
        self.websocket.as_ref().is_some_and(|session| session.is_under_way())
    }

    /// The peer has begun something that it has to end in time: a message, and what comes before one or around it.
    fn is_incomplete(&self) -> bool {
        !self.partial.is_empty() || self.is_under_way() || self.pipe.is_mid_record()
    }

    /// The same of a WebSocket, or of one that is to become one.
    fn take_frames(
        &mut self,
        bytes: &mut [u8],
        index: &mut Index,
        limits: &WireLimits,
        brought: &mut Brought,
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> usize {
        let Some(session) = self.websocket.as_deref_mut() else { return 0 };
        let mut taken = 0;
        if !session.is_open() {
            taken = session.greet(bytes, brought);
            if !session.is_open() {
                return taken;
            }
            // Where the last step of a TLS handshake came in the same read, `Streams` ends the greeting.
            if self.stage == Stage::Upgrade {
                self.stage = Stage::Open;
            }
        }
        let more = session.take(&mut bytes[taken..], index, limits, &mut self.pulse, brought, hear);
        self.spoken |= brought.complete;
        taken + more
    }

    /// Hands on what is complete; gives how many bytes that were.
    fn take(
        &mut self,
        bytes: &[u8],
        index: &mut Index,
        limits: &WireLimits,
        brought: &mut Brought,
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            match self.framer.next(rest, index, limits) {
                Frame::More => break,
                Frame::Keepalive { len, ping } => {
                    taken += len;
                    if !self.pulse.beat() {
                        hear(Heard::Refused(crate::wire::Reason::KeepaliveFlood, &[]));
                        brought.end = Some(Reason::Keepalives);
                        break;
                    }
                    brought.pings += usize::from(ping);
                    self.spoken = true;
                    hear(Heard::Keepalive);
                }
                Frame::Message { len } => {
                    taken += len;
                    self.spoken = true;
                    self.pulse.rest();
                    hear(Heard::Message(&rest[..len]));
                }
                Frame::Refused { reason, head } => {
                    hear(Heard::Refused(reason, &rest[..head]));
                    brought.end = Some(Reason::Framing);
                    break;
                }
            }
        }
        taken
    }

    /// A whole message as it leaves here.
    pub fn framed<'b>(&self, message: &'b [u8], framed: &'b mut Vec<u8>) -> &'b [u8] {
        if self.websocket.is_none() {
            return message;
        }
        framed.clear();
        websocket::put_message(message, framed);
        framed
    }

    /// Sends whole messages, or keeps them until the peer takes more. `Err`: it cannot go on; they are kept all the same, to
    /// be told.
    pub fn send(&mut self, bytes: &[u8], limits: &Limits, now_ms: u64) -> Result<(), Reason> {
        self.said_ms = now_ms;
        if !self.output.is_empty() || matches!(self.stage, Stage::Connecting | Stage::Handshake) {
            if self.output.is_empty() {
                self.stuck_ms = now_ms;
            }
            self.output.extend_from_slice(bytes);
            return if self.output.len() - self.sent > limits.output { Err(Reason::Output) } else { Ok(()) };
        }
        let mut sent = 0;
        while sent < bytes.len() {
            match self.pipe.write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.output.extend_from_slice(bytes);
                    self.sent = sent;
                    self.stuck_ms = now_ms;
                    return match error.kind() {
                        io::ErrorKind::WouldBlock if bytes.len() - sent <= limits.output => Ok(()),
                        io::ErrorKind::WouldBlock => Err(Reason::Output),
                        _ => Err(reason_of(&error)),
                    };
                }
            }
        }
        Ok(())
    }

    /// The handshake can begin, or messages can pass.
    pub fn connected(&mut self, now_ms: u64) {
        self.stage = match &self.websocket {
            _ if !self.pipe.is_open() => Stage::Handshake,
            Some(session) if !session.is_open() => Stage::Upgrade,
            _ => Stage::Open,
        };
        (self.partial_ms, self.stuck_ms) = (now_ms, now_ms);
    }

    /// The peer takes more: sends what waits.
    pub fn flush(&mut self, index: &mut Index, now_ms: u64) -> Result<(), Reason> {
        match self.pipe.flush() {
            Ok(true) if self.pipe.is_open() => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(reason_of(&error)),
        }
        while self.sent < self.output.len() {
            match self.pipe.write(&self.output[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.stuck_ms = now_ms;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.sent > COMPACT {
                        self.compact(index);
                    }
                    return Ok(());
                }
                Err(error) => return Err(reason_of(&error)),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Takes the messages away that have left.
    fn compact(&mut self, index: &mut Index) {
        let mut boundary = 0;
        if self.websocket.is_some() {
            boundary = super::websocket::boundary(&self.output, self.sent);
        } else {
            messages(&self.output, index, |range| {
                if range.end <= self.sent {
                    boundary = range.end;
                }
            });
        }
        self.output.drain(..boundary);
        self.sent -= boundary;
    }

    /// What has not left, message by message; the first may have left in part. Empties it.
    pub fn unsent(&mut self) -> (Vec<u8>, usize) {
        let (output, sent) = (std::mem::take(&mut self.output), std::mem::take(&mut self.sent));
        match self.websocket {
            Some(_) => (super::websocket::unsent(&output, sent), 0),
            None => (output, sent),
        }
    }

    /// Anything waits for the peer, if only TLS's own.
    pub fn has_output(&self) -> bool {
        self.queued() > 0 || self.pipe.wants_write()
    }

    /// Bytes of messages that wait for the peer.
    pub fn queued(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Nothing more will be sent: the peer sees the end, and what it still says is read and dropped, lest the kernel
    /// answers it by a reset that would overtake our last word. False where that cannot be.
    pub fn shut(&mut self, now_ms: u64) -> bool {
        if !self.shut {
            self.shut = true;
            self.stuck_ms = now_ms;
            self.say_farewell();
            return self.pipe.shut().is_ok();
        }
        true
    }

    /// Says goodbye where the transport has words for it; the socket stays as it is.
    pub fn take_leave(&mut self) {
        self.say_farewell();
        self.pipe.take_leave();
    }

    /// A WebSocket's Close, unless it would stand within a message that left in part.
    fn say_farewell(&mut self) {
        if let Some(session) = self.websocket.as_deref_mut().filter(|_| self.output.is_empty()) {
            let close = session.farewell();
            if !close.is_empty() {
                // Who does not hear it sees the end.
                let _ = self.pipe.write(&close);
            }
        }
    }

    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// When it is too late (`mono_ms`), and for what.
    pub fn due(&self, limits: &Limits) -> (u64, Reason) {
        match self.stage {
            Stage::Connecting => return (self.opened_ms + limits.connect_ms, Reason::ConnectTime),
            Stage::Ending(reason) => return (self.stuck_ms + FAREWELL_MS, reason),
            Stage::Handshake => return (self.partial_ms + limits.handshake_ms, Reason::HandshakeTime),
            Stage::Introduction | Stage::Upgrade | Stage::Open => {}
        }
        let mut due = if self.spoken || self.dialed {
            (self.heard_ms.max(self.said_ms) + limits.idle_ms, Reason::Idle)
        } else {
            (self.opened_ms + limits.first_message_ms, Reason::FirstMessage)
        };
        if self.is_incomplete() {
            due = due.min((self.partial_ms + limits.message_ms, Reason::MessageTime));
        }
        if !self.output.is_empty() {
            due = due.min((self.stuck_ms + limits.output_ms, Reason::OutputTime));
        }
        due
    }
}

/// The messages of an output, in order.
pub fn messages(output: &[u8], index: &mut Index, mut each: impl FnMut(std::ops::Range<usize>)) {
    // What we wrote is framed by what we wrote; it may be longer than what we take.
    let limits = WireLimits { message: 1 << 30, header_lines: usize::MAX, start_line: usize::MAX };
    let mut at = 0;
    while at < output.len() {
        match Framer::new().next(&output[at..], index, &limits) {
            Frame::Keepalive { len, .. } => at += len,
            Frame::Message { len } => {
                each(at..at + len);
                at += len;
            }
            Frame::More | Frame::Refused { .. } => return,
        }
    }
}

fn reason_of(error: &io::Error) -> Reason {
    if let Some(fault) = tls::fault_of(error) {
        return Reason::Tls(fault);
    }
    match error.kind() {
        io::ErrorKind::TimedOut => Reason::Lost,
        _ => Reason::Reset,
    }
}
