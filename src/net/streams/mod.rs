//! The stream connections of one core: accepted ones and those to backends, in a slab (SPEC 9.2, 9.7, 9.8).
//!
//! A connection belongs to one core for life; others know it by its FlowId (`live::Connections`). Reading goes through one
//! buffer that all connections of the core share. What cannot be sent, for whatever reason and however late, becomes a
//! `Casualty`, which the worker feeds back to the core's decisions. Nothing here knows what a message means. Driven by
//! `worker`.

mod connection;
mod handshakes;
mod introduction;
mod pipe;
mod reading;
mod rest;
mod tls;
mod websocket;
mod wheel;

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use ahash::HashMap;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use mio::{Interest, Registry, Token, event::Event, net::TcpListener};

use self::{
    connection::{Connection, Stage},
    handshakes::Handshakes,
    pipe::Pipe,
    rest::Rest,
    tls::Session,
    wheel::Wheel,
};
pub use self::{
    connection::{Heard, messages},
    tls::{Fault as TlsFault, fault_of as tls_fault_of},
};
use super::tcp;
use crate::{
    config::tls::{Credentials, name_of},
    forward::{Closed, Fault, Target},
    live::{About, Connections, Now, Sources, TooMany, connections::MOST_SLOTS},
    stats::{CoreStats, Counter},
    wire::{Index, Limits as WireLimits, token::FlowId, upgrade::Rules},
};

/// Connections accepted from one listener in one turn.
const ACCEPTS: usize = 64;
/// Reads of one turn, over all connections.
const READS: usize = 64;
const READ: usize = 64 * 1024;
/// After a connection to a backend failed, how long messages to it fail at once, in milliseconds.
const PAUSE_MS: u64 = 1_000;
/// Slots of a core beyond twice its share of the connections that may be accepted.
const MORE_SLOTS: usize = 1_024;

/// Limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that may wait for a slow reader.
    pub output: usize,
    pub idle_ms: u64,
    /// Keep-alives that may come in a second without a message among them.
    pub keepalives: u32,
    /// For the first message of a new connection; for a message from its first byte to its last; without progress while
    /// output waits; to connect.
    pub first_message_ms: u64,
    pub message_ms: u64,
    pub output_ms: u64,
    pub connect_ms: u64,
    /// For a TLS handshake, and how many this core may have under way.
    pub handshake_ms: u64,
    pub handshakes: usize,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The peer closed it.
    Peer,
    Reset,
    /// The kernel gave the peer up.
    Lost,
    Idle,
    FirstMessage,
    MessageTime,
    /// More waited for the peer than is allowed.
    Output,
    OutputTime,
    /// What came cannot be framed.
    Framing,
    /// More keep-alives than anybody needs.
    Keepalives,
    ConnectFailed,
    ConnectTime,
    HandshakeTime,
    /// Its handshake was the oldest of too many.
    Handshakes,
    Tls(tls::Fault),
    /// What it asked for was no WebSocket that we have.
    Upgrade,
    /// Frames that no client may send, or more than is taken.
    Websocket,
    /// A proxy did not say for whom it calls.
    ProxyHeader,
    /// Somebody said so who may not.
    ProxyUntrusted,
    /// The client that a proxy calls for has too many.
    Limit,
    /// Nothing is taken from its peer any more.
    Barred,
}

impl Reason {
    /// The peer is to read why.
    fn is_told(self, dialed: bool) -> bool {
        match self {
            Reason::Framing | Reason::Upgrade | Reason::Websocket => true,
            Reason::Tls(_) => !dialed,
            _ => false,
        }
    }

    fn counter(self) -> Counter {
        match self {
            Reason::Peer => Counter::ClosedPeer,
            Reason::Reset => Counter::ClosedReset,
            Reason::Lost => Counter::ClosedLost,
            Reason::Idle => Counter::ClosedIdle,
            Reason::FirstMessage => Counter::ClosedFirstMessage,
            Reason::MessageTime => Counter::ClosedMessageTime,
            Reason::Output => Counter::ClosedOutput,
            Reason::OutputTime => Counter::ClosedOutputTime,
            Reason::Framing => Counter::ClosedFraming,
            Reason::Keepalives => Counter::ClosedKeepalives,
            Reason::ConnectFailed => Counter::ClosedConnectFailed,
            Reason::ConnectTime => Counter::ClosedConnectTime,
            Reason::HandshakeTime => Counter::ClosedHandshakeTime,
            Reason::Handshakes => Counter::ClosedHandshakes,
            Reason::Tls(_) => Counter::ClosedTls,
            Reason::Upgrade => Counter::ClosedUpgrade,
            Reason::Websocket => Counter::ClosedWebsocket,
            Reason::ProxyHeader => Counter::ClosedProxyHeader,
            Reason::ProxyUntrusted => Counter::ClosedProxyUntrusted,
            Reason::Limit => Counter::ClosedLimit,
            Reason::Barred => Counter::ClosedBarred,
        }
    }
}

/// Why nothing is taken from who is at a listener's other end, where that is so.
pub type Bars<'a> = &'a dyn Fn(u8, SocketAddr) -> Option<crate::wire::Reason>;

/// Whole messages that could not be sent, the first of them perhaps in part.
pub struct Casualty {
    pub target: Target,
    /// Empty where only a connection to a backend failed.
    pub output: Vec<u8>,
    /// So much of it has left.
    pub sent: usize,
    pub why: Fault,
}

/// A place for a connection.
#[derive(Default)]
struct Slot {
    generation: u16,
    held: Option<Box<Connection>>,
}

/// How connections of a listener begin.
#[derive(Clone, Debug, Default)]
pub struct Entrance {
    /// What is asked of those who come, where they are to be WebSockets.
    pub websocket: Option<Arc<Rules>>,
    /// Who says by the PROXY protocol for whom he calls.
    pub proxies: Arc<[IpNet]>,
}

/// What the connections of one core are made with.
pub struct Ground {
    pub router: u8,
    pub boot: u16,
    pub core: u8,
    pub limits: Limits,
    pub wire: WireLimits,
    pub all: Arc<Connections>,
    pub sources: Arc<Sources>,
    pub stats: Arc<CoreStats>,
    /// By listener: has it TLS?
    pub secure: Arc<[bool]>,
    /// By listener.
    pub entrances: Arc<[Entrance]>,
    pub credentials: Arc<ArcSwap<Credentials>>,
}

/// The host that a backend's certificate must name, by its address, where the table knows one.
pub type HostOf<'a> = &'a dyn Fn(SocketAddr) -> Option<&'a str>;

pub struct Streams {
    ground: Ground,
    registry: Registry,
    /// The token of slot 0.
    first_token: usize,
    slots: Vec<Slot>,
    /// With so many slots none is made while one can be given again.
    most_slots: usize,
    rest: Rest,
    /// By listener and address.
    dialed: HashMap<(u8, SocketAddr), u32>,
    /// Until when these are not called again, and what they failed for.
    failed: HashMap<(u8, SocketAddr), (u64, Fault)>,
    /// Slots that may have bytes.
    ready: VecDeque<u32>,
    handshakes: Handshakes,
    /// Slots that are to end once what waits is sent.
    ending: Vec<u32>,
    casualties: VecDeque<Casualty>,
    /// Those that have ended and are to be told of.
    closed: Vec<Closed>,
    /// Those whose client a proxy has named in this turn.
    named: Vec<u32>,
    wheel: Wheel,
    due: Vec<(u32, u16)>,
    buffer: Vec<u8>,
    /// A message on its way to a WebSocket.
    framed: Vec<u8>,
    index: Index,
}

impl Streams {
    pub fn new(ground: Ground, registry: Registry, first_token: usize, now: Now) -> Streams {
        let share = ground.sources.limits().most.div_ceil(ground.all.cores());
        Streams {
            most_slots: (2 * share).saturating_add(MORE_SLOTS),
            ground,
            registry,
            first_token,
            slots: Vec::new(),
            rest: Rest::default(),
            dialed: HashMap::default(),
            failed: HashMap::default(),
            ready: VecDeque::new(),
            handshakes: Handshakes::default(),
            ending: Vec::new(),
            casualties: VecDeque::new(),
            closed: Vec::new(),
            named: Vec::new(),
            wheel: Wheel::new(now.mono_ms),
            due: Vec::new(),
            buffer: Vec::new(),
            framed: Vec::new(),
            index: Index::new(),
        }
    }

    /// Accepts what waits, up to its share of a turn. True where more may wait.
    pub fn accept(&mut self, listener: u8, socket: &TcpListener, now: Now, bars: Bars<'_>) -> bool {
        for _ in 0..ACCEPTS {
            let (stream, peer) = match socket.accept() {
                Ok(accepted) => accepted,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return false,
                    // No more files or memory: those who wait are taken with the next tick.
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.ground.stats.add(Counter::RefusedFiles, 1);
                        return false;
                    }
                    // A connection that ended before it was taken.
                    _ => continue,
                },
            };
            let entrance = self.ground.entrances.get(usize::from(listener)).cloned().unwrap_or_default();
            let proxied = introduction::is_proxy(&entrance.proxies, peer);
            // Of a proxy's connection its client is judged, once he is named.
            if let Some(reason) = bars(listener, peer).filter(|_| !proxied) {
                let banned = reason == crate::wire::Reason::Banned;
                let counter = if banned { Counter::RefusedBanned } else { Counter::RefusedDenied };
                self.ground.stats.add(counter, 1);
                continue;
            }
            if !self.count(peer, proxied, now) {
                continue;
            }
            let patience = Duration::from_millis(self.ground.limits.output_ms);
            let opened = tcp::tune(&stream, patience).and_then(|()| stream.local_addr()).and_then(|local| {
                let mut pipe = Pipe::plain(stream);
                if !proxied {
                    pipe.wrap(self.session(listener)?);
                }
                let mut connection = Connection::new(pipe, listener, false, (local, peer), now.mono_ms);
                connection.begin(proxied, entrance.websocket);
                self.open(connection, now)
            });
            match opened {
                Ok(slot) => {
                    self.ground.stats.add(Counter::Accepted, 1);
                    self.greet(slot, now);
                }
                // It has ended already.
                Err(_) => self.uncount(peer, proxied),
            }
        }
        true
    }

    /// Ends the accepted connections of those from whom nothing is taken any more.
    pub fn bar(&mut self, now: Now, bars: Bars<'_>) {
        for slot in 0..self.slots.len() as u32 {
            let barred = self
                .held(slot)
                .is_some_and(|c| !c.dialed && !c.unnamed && bars(c.listener, c.peer).is_some());
            if barred {
                self.close(slot, Reason::Barred, now);
            }
        }
    }

    /// Ends those from whose true clients nothing is taken: of a turn's that a proxy has named.
    pub fn bar_named(&mut self, now: Now, bars: Bars<'_>) {
        while let Some(slot) = self.named.pop() {
            if self.held(slot).is_some_and(|c| !c.unnamed && bars(c.listener, c.peer).is_some()) {
                self.close(slot, Reason::Barred, now);
            }
        }
    }

    /// Gives a connection its slot.
    fn open(&mut self, mut connection: Connection, now: Now) -> io::Result<u32> {
        let full = self.slots.len() >= self.most_slots;
        let slot = match self.rest.take(full, now.mono_ms) {
            Some(slot) => slot,
            None if self.slots.len() >= MOST_SLOTS => return Err(io::ErrorKind::OutOfMemory.into()),
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        connection.generation = place.generation;
        let token = Token(self.first_token + slot as usize);
        let registered =
            self.registry.register(connection.pipe.socket(), token, Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = registered {
            self.rest.put(slot, connection.generation, now.mono_ms);
            return Err(error);
        }
        let about = About {
            listener: connection.listener,
            dialed: connection.dialed,
            local: connection.local,
            peer: connection.peer,
            proxied: false,
            opened_ms: now.mono_ms,
        };
        self.ground.all.open(self.ground.core.into(), slot, connection.generation, about);
        place.held = Some(Box::new(connection));
        self.rearm(slot);
        Ok(slot)
    }

    /// What the poll says about one of them.
    pub fn event(&mut self, event: &Event, now: Now) {
        let slot = (event.token().0 - self.first_token) as u32;
        let Some(connection) = self.held(slot) else { return };
        if connection.stage == Stage::Connecting {
            match connection.pipe.socket().take_error() {
                Ok(None) if event.is_writable() && !event.is_error() && !event.is_write_closed() => {
                    if connection.pipe.socket().peer_addr().is_err() {
                        return;
                    }
                    connection.connected(now.mono_ms);
                    self.ground.stats.add(Counter::Dialed, 1);
                    self.rearm(slot);
                }
                Ok(None) if !event.is_error() && !event.is_write_closed() => return,
                outcome => {
                    let fault = match outcome {
                        Ok(Some(error)) | Err(error) => fault_of(&error),
                        Ok(None) => Fault::Refused,
                    };
                    return self.close_with(slot, Reason::ConnectFailed, Some(fault), now);
                }
            }
        }
        let Some(connection) = self.held(slot) else { return };
        connection.hung_up |= event.is_read_closed();
        if (event.is_readable() || event.is_read_closed() || event.is_error())
            && (!connection.ready || connection.broken)
        {
            connection.ready = true;
            self.queue(slot);
        }
        if event.is_writable() {
            self.flush(slot, now);
        }
    }

    fn flush(&mut self, slot: u32, now: Now) {
        let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { return };
        if !connection.has_output() {
            return;
        }
        let outcome = connection.flush(&mut self.index, now.mono_ms);
        self.ground.all.note_queued(self.ground.core.into(), slot, connection.queued());
        if matches!(connection.stage, Stage::Ending(_)) && connection.queued() == 0 {
            self.ending.push(slot);
        }
        match outcome {
            Ok(()) => self.rearm(slot),
            Err(reason) => self.close(slot, reason, now),
        }
    }

    /// May any have bytes?
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty() || !self.handshakes.ready.is_empty()
    }

    /// Do more of them wait to be read than a turn reads?
    pub fn is_crowded(&self) -> bool {
        self.ready.len() > READS
    }

    /// Sends whole messages by an open connection of this core. What fails becomes a casualty.
    pub fn send(&mut self, target: Target, id: FlowId, bytes: &[u8], now: Now) {
        let place = self.slots.get_mut(id.slot as usize).filter(|place| place.generation == id.generation);
        let Some(connection) = place.and_then(|place| place.held.as_deref_mut()) else {
            self.casualties.push_back(Casualty {
                target,
                output: bytes.to_vec(),
                sent: 0,
                why: Fault::Closed,
            });
            return;
        };
        let bytes = connection.framed(bytes, &mut self.framed);
        let outcome = connection.send(bytes, &self.ground.limits, now.mono_ms);
        self.after_send(id.slot, outcome, now);
    }

    /// Sends whole messages to a backend by its connection, which is made where there is none.
    pub fn send_to(&mut self, target: Target, local: SocketAddr, bytes: &[u8], host: HostOf<'_>, now: Now) {
        let Target::Connect { listener, to, .. } = target else { return };
        let slot = match self.dialed.get(&(listener, to)) {
            Some(&slot) => Ok(slot),
            None => self.dial(listener, local, to, host, now),
        };
        let lost = |why| Casualty { target, output: bytes.to_vec(), sent: 0, why };
        match slot {
            Ok(slot) => {
                let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { return };
                let outcome = connection.send(bytes, &self.ground.limits, now.mono_ms);
                self.after_send(slot, outcome, now);
            }
            Err(why) => self.casualties.push_back(lost(why)),
        }
    }

    fn after_send(&mut self, slot: u32, outcome: Result<(), Reason>, now: Now) {
        let Some(connection) = self.held(slot) else { return };
        match outcome {
            Ok(()) if connection.queued() == 0 => {}
            Ok(()) => {
                let queued = connection.queued();
                self.ground.all.note_queued(self.ground.core.into(), slot, queued);
                self.rearm(slot);
            }
            Err(reason) => self.close(slot, reason, now),
        }
    }

    fn dial(
        &mut self,
        listener: u8,
        local: SocketAddr,
        to: SocketAddr,
        host: HostOf<'_>,
        now: Now,
    ) -> Result<u32, Fault> {
        if let Some((_, why)) = self.failed.get(&(listener, to)).filter(|(until, _)| now.mono_ms < *until) {
            return Err(*why);
        }
        let patience = Duration::from_millis(self.ground.limits.output_ms);
        let made = tcp::dial(local, to, patience).and_then(|socket| {
            let local = socket.local_addr().unwrap_or(local);
            let pipe = self.calling(socket, listener, to, host)?;
            self.open(Connection::new(pipe, listener, true, (local, to), now.mono_ms), now)
        });
        match made {
            Ok(slot) => {
                self.dialed.insert((listener, to), slot);
                Ok(slot)
            }
            Err(error) => {
                let why = fault_of(&error);
                self.ground.stats.add(Reason::ConnectFailed.counter(), 1);
                self.failed.insert((listener, to), (now.mono_ms + PAUSE_MS, why));
                Err(why)
            }
        }
    }

    /// What comes for this backend goes by another connection.
    fn call_no_more(&mut self, slot: u32, listener: u8, to: SocketAddr) {
        if self.dialed.get(&(listener, to)) == Some(&slot) {
            self.dialed.remove(&(listener, to));
        }
    }

    /// Ends those that are to end and have nothing left to say.
    pub fn settle(&mut self, now: Now) {
        while let Some(slot) = self.ending.pop() {
            let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { continue };
            let Stage::Ending(reason) = connection.stage else { continue };
            let said = connection.queued() == 0;
            // Who has ended has nothing to say that we would wait for.
            if said && (connection.ended || !connection.is_shut() && !connection.shut(now.mono_ms)) {
                self.close(slot, reason, now);
            } else {
                self.rearm(slot);
            }
        }
    }

    /// The process is to end. Backends have what they were sent: our side of their connections is shut, the kernel delivers what
    /// it holds, and what they say meanwhile is heard as before. To be called again for those by which something waits.
    pub fn part(&mut self, now: Now) {
        for slot in 0..self.slots.len() as u32 {
            let Some(connection) = self.held(slot) else { continue };
            if !connection.dialed || connection.stage != Stage::Open || connection.is_shut() {
                continue;
            }
            // Without it the kernel drops what it holds.
            let _ = connection.pipe.linger();
            if connection.queued() > 0 {
                continue;
            }
            let (listener, to) = (connection.listener, connection.peer);
            if connection.shut(now.mono_ms) {
                self.call_no_more(slot, listener, to);
            } else {
                self.close(slot, Reason::Reset, now);
            }
        }
    }

    /// Backends have not taken all from which we have parted.
    pub fn is_parting(&self) -> bool {
        let mut held = self.slots.iter().filter_map(|slot| slot.held.as_deref());
        held.any(|c| c.dialed && c.is_shut() && c.pipe.is_under_way())
    }

    /// Ends what is too late; called once a second.
    pub fn tick(&mut self, now: Now) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.take(now.mono_ms, &mut due);
        for (slot, generation) in due.drain(..) {
            let place = &mut self.slots[slot as usize];
            let Some(connection) = place.held.as_deref_mut().filter(|c| c.generation == generation) else {
                continue;
            };
            if connection.armed_s > now.mono_ms / 1000 {
                continue; // armed again for later
            }
            let (at, reason) = connection.due(&self.ground.limits);
            if at <= now.mono_ms {
                self.close(slot, reason, now);
            } else {
                connection.armed_s = self.wheel.arm(slot, generation, at);
            }
        }
        self.due = due;
        self.failed.retain(|_, (until, _)| now.mono_ms < *until);
    }

    /// The next of what could not be sent.
    pub fn casualty(&mut self) -> Option<Casualty> {
        self.casualties.pop_front()
    }

    /// The next of those that have ended.
    pub fn closed(&mut self) -> Option<Closed> {
        self.closed.pop()
    }

    /// Output waits for any peer.
    pub fn is_busy(&self) -> bool {
        self.slots.iter().filter_map(|slot| slot.held.as_deref()).any(|c| c.queued() > 0)
    }

    fn held(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.held.as_deref_mut()
    }

    fn id(&self, slot: u32) -> FlowId {
        let Ground { router, boot, core, .. } = self.ground;
        FlowId { router, boot, core, slot, generation: self.slots[slot as usize].generation }
    }

    /// Has the wheel name it in time.
    fn rearm(&mut self, slot: u32) {
        let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { return };
        let (due, _) = connection.due(&self.ground.limits);
        if connection.armed_s == 0 || due.div_ceil(1000) < connection.armed_s {
            connection.armed_s = self.wheel.arm(slot, connection.generation, due);
        }
    }

    fn close(&mut self, slot: u32, reason: Reason, now: Now) {
        self.close_with(slot, reason, None, now);
    }

    /// `fault`: what whoever waits for what was not sent is told; by the reason where nothing is known.
    fn close_with(&mut self, slot: u32, reason: Reason, fault: Option<Fault>, now: Now) {
        let id = self.id(slot);
        self.leave_greeting(slot);
        let Some(mut connection) = self.slots[slot as usize].held.take() else { return };
        let reason = if let Stage::Ending(why) = connection.stage { why } else { reason };
        self.ground.all.close(id.core.into(), slot, id.generation, now);
        self.ground.stats.add(reason.counter(), 1);
        if let Reason::Tls(fault) = reason {
            self.ground.stats.add(fault.counter(), 1);
        }
        connection.take_leave();
        self.closed.push(Closed {
            id,
            listener: connection.listener,
            peer: connection.peer,
            opened_ms: connection.opened_ms,
            heard_ms: connection.heard_ms,
            reason: reason.counter().label().unwrap_or_default(),
        });
        self.rest.put(slot, id.generation, now.mono_ms);
        let listener = connection.listener;
        let target = if connection.dialed {
            self.call_no_more(slot, listener, connection.peer);
            Target::Connect { listener, from: None, to: connection.peer }
        } else {
            self.uncount(connection.peer, connection.unnamed);
            Target::Stream { listener, id }
        };
        let why = fault.unwrap_or(match reason {
            Reason::ConnectTime | Reason::Lost => Fault::Unreachable,
            Reason::HandshakeTime | Reason::Tls(_) if connection.dialed => Fault::Unreachable,
            Reason::ConnectFailed | Reason::Reset if connection.dialed => Fault::Refused,
            _ => Fault::Closed,
        });
        // In TLS 1.3 a backend refuses our certificate once we take the handshake for done.
        let unheard = matches!(reason, Reason::Tls(_)) && !connection.spoken;
        if connection.dialed && (unheard || matches!(connection.stage, Stage::Connecting | Stage::Handshake))
        {
            self.failed.insert((listener, connection.peer), (now.mono_ms + PAUSE_MS, why));
        }
        let (output, sent) = connection.unsent();
        // A backend that resets or cannot be reached is a sign, whether or not anything was lost.
        if sent < output.len() || (connection.dialed && why != Fault::Closed) {
            self.casualties.push_back(Casualty { target, output, sent, why });
        }
        // Closing the socket takes it out of the poll.
    }
}

/// The two ends of a connection, and what it is known by.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub listener: u8,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub id: FlowId,
}

fn fault_of(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Fault::Refused,
        _ => Fault::Unreachable,
    }
}
