//! A worker's streams: accept, read, step, send, and what goes to the connections of other cores.
//!
//! As with datagrams what a message means is `forward`'s, how a connection works is `net::streams`'s. A connection to a
//! backend is owned by the core that its address names, so that there is one for each listener (SPEC 9.2).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mio::{Interest, Registry, Token, event::Event, net::TcpListener};
use xxhash_rust::xxh3::xxh3_64;

use super::{Lane, Step};
use crate::{
    forward::{Arrival, Fault, Input, Target},
    live::Now,
    net::{
        inbox::Inbox,
        streams::{Bars, Ground, Heard, HostOf, Streams, messages},
        sys,
    },
    stats::Counter,
    wire::Index,
};

/// Tokens of listeners and of connections begin here; those of datagram sockets at 0.
pub(super) const LISTENERS: usize = 1 << 16;
const CONNECTIONS: usize = 1 << 20;
/// Bytes in the outbox with which reading pauses, so that they leave while they are warm.
const ENOUGH: usize = 256 * 1024;

/// What a worker's streams are made of.
pub struct Links {
    /// Listener index and this worker's socket of it.
    pub listeners: Vec<(u8, TcpListener)>,
    /// What each listener is bound to, by index: connections to backends leave from there.
    pub addresses: Vec<SocketAddr>,
    pub ground: Ground,
}

/// The same at work.
pub(super) struct Link {
    core: u8,
    pub streams: Streams,
    listeners: Vec<Door>,
    addresses: Vec<SocketAddr>,
    inboxes: Arc<[Inbox]>,
    /// Scratch.
    index: Index,
}

struct Door {
    listener: u8,
    socket: TcpListener,
    /// May have connections that wait: polls are edge-triggered.
    ready: bool,
}

impl Link {
    pub fn new(links: Links, inboxes: Arc<[Inbox]>, registry: &Registry, now: Now) -> std::io::Result<Link> {
        let Links { listeners, addresses, ground } = links;
        let mut doors = Vec::with_capacity(listeners.len());
        for (at, (listener, mut socket)) in listeners.into_iter().enumerate() {
            registry.register(&mut socket, Token(LISTENERS + at), Interest::READABLE)?;
            doors.push(Door { listener, socket, ready: true });
        }
        Ok(Link {
            core: ground.core,
            streams: Streams::new(ground, registry.try_clone()?, CONNECTIONS, now),
            listeners: doors,
            addresses,
            inboxes,
            index: Index::new(),
        })
    }

    pub fn event(&mut self, event: &Event, now: Now) {
        match event.token().0 {
            CONNECTIONS.. => self.streams.event(event, now),
            at => self.listeners.iter_mut().skip(at - LISTENERS).take(1).for_each(|door| door.ready = true),
        }
    }

    /// There is something to be done at once.
    pub fn is_ready(&self) -> bool {
        self.streams.is_ready() || self.listeners.iter().any(|door| door.ready)
    }

    /// Those who wait although there was no event: the kernel had no file for them.
    pub fn tick(&mut self, now: Now) {
        self.listeners.iter_mut().for_each(|door| door.ready = true);
        self.streams.tick(now);
    }

    fn accept(&mut self, now: Now, bars: Bars<'_>) {
        for door in &mut self.listeners {
            if door.ready {
                door.ready = self.streams.accept(door.listener, &door.socket, now, bars);
            }
        }
    }

    /// Sends by a connection of this core's, or hands over to the core that has it.
    pub fn send(&mut self, target: Target, bytes: &[u8], host: HostOf<'_>, now: Now) -> Sent {
        let core = match target {
            Target::Stream { id, .. } => usize::from(id.core),
            Target::Connect { to, .. } => owner(to, self.inboxes.len()),
            Target::Datagram { .. } => return Sent::Refused,
        };
        if core == usize::from(self.core) {
            self.send_here(target, bytes, host, now);
            return Sent::Here;
        }
        match self.inboxes.get(core) {
            Some(inbox) if inbox.put(target, bytes) => Sent::Handed,
            _ => Sent::Refused,
        }
    }

    fn send_here(&mut self, target: Target, bytes: &[u8], host: HostOf<'_>, now: Now) {
        match target {
            Target::Stream { id, .. } => self.streams.send(target, id, bytes, now),
            Target::Connect { listener, from, .. } => {
                let Some(mut local) = self.addresses.get(usize::from(listener)).copied() else { return };
                if let Some(ip) = from {
                    local.set_ip(ip);
                }
                self.streams.send_to(target, local, bytes, host, now);
            }
            Target::Datagram { .. } => {}
        }
    }
}

/// What became of a message for a stream.
pub(super) enum Sent {
    Here,
    Handed,
    Refused,
}

/// The core that has the connections to this address.
pub fn owner(to: SocketAddr, cores: usize) -> usize {
    let ip = match to.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let hash = xxh3_64(&(ip.to_bits() ^ u128::from(to.port()) << 32).to_be_bytes());
    hash as usize % cores.max(1)
}

impl<S: Step> Lane<S> {
    /// A turn's share of the streams.
    pub(super) fn turn_streams(&mut self) {
        self.empty_inbox();
        let Some(link) = &mut self.link else { return };
        let (core, table, now) = (&self.core, &*self.table, self.now);
        let bars = |listener, peer| {
            let arrival = Arrival { listener, local: peer, peer, flow: None };
            core.bars(now, table, &arrival)
        };
        if self.barred != core.bars_version() {
            self.barred = core.bars_version();
            link.streams.bar(now, &bars);
        }
        link.streams.bar_named(now, &bars);
        link.accept(now, &bars);
        self.read_streams();
        self.flush();
    }

    /// Sends what other cores and control left for us.
    fn empty_inbox(&mut self) {
        // While a tail is held the inbox fills, and then refuses.
        if self.is_held() {
            return;
        }
        let Some(inbox) = self.inboxes.get(self.index).filter(|inbox| inbox.is_waiting()) else { return };
        let mut batch = std::mem::take(&mut self.handed);
        inbox.take(&mut batch);
        for (target, range) in batch.items.drain(..) {
            let bytes = &batch.bytes[range];
            match (&mut self.link, target) {
                (_, Target::Datagram { .. }) => {
                    let start = self.outbox.bytes.len();
                    self.outbox.bytes.extend_from_slice(bytes);
                    self.outbox.finish(target, start);
                }
                (Some(link), _) => {
                    let table = &self.table;
                    link.send_here(target, bytes, &|to| S::host_of(table, to), self.now);
                }
                (None, _) => self.stats.add(Counter::SendErrors, 1),
            }
        }
        self.handed = batch;
    }

    fn read_streams(&mut self) {
        if self.is_held() {
            return;
        }
        let Some(link) = &mut self.link else { return };
        if !link.streams.is_ready() {
            return;
        }
        let (core, table, outbox, now) = (&mut self.core, &*self.table, &mut self.outbox, self.now);
        let started = sys::monotonic_ns();
        let mut heard_of = 0;
        link.streams.read(now, &mut |ends, heard| {
            let (listener, local, peer) = (ends.listener, ends.local, ends.peer);
            let arrival = Arrival { listener, local, peer, flow: Some(ends.id) };
            let input = match heard {
                Heard::Message(bytes) => Input::Message(arrival, bytes),
                Heard::Refused(reason, head) => Input::Refused(arrival, reason, head),
                Heard::Keepalive => Input::Keepalive,
            };
            heard_of += 1;
            core.step(now, table, input, outbox);
            outbox.bytes.len() >= ENOUGH
        });
        if heard_of > 0 {
            self.stats.latency(sys::monotonic_ns().saturating_sub(started), heard_of);
        }
    }

    /// Sends one message of the outbox that goes by a stream.
    pub(super) fn send_by_stream(&mut self, message: usize) {
        let (target, range) = self.outbox.messages[message].clone();
        let table = &self.table;
        let sent = match &mut self.link {
            Some(link) => link.send(target, &self.outbox.bytes[range], &|to| S::host_of(table, to), self.now),
            None => Sent::Refused,
        };
        match sent {
            Sent::Here => {}
            Sent::Handed => self.stats.add(Counter::HandedOver, 1),
            Sent::Refused => {
                self.stats.add(Counter::HandOverFull, 1);
                self.tell(message, Fault::Full);
            }
        }
    }

    /// Ends connections that are to end, and tells the core of what they and others took with them. True where there was
    /// anything, so that there may be answers to send.
    pub(super) fn bury(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        link.streams.settle(self.now);
        while let Some(closed) = link.streams.closed() {
            self.core.step(self.now, &self.table, Input::Closed(closed), &mut self.outbox);
        }
        let mut any = false;
        while let Some(casualty) = link.streams.casualty() {
            any = true;
            let (core, table, outbox, now) = (&mut self.core, &*self.table, &mut self.outbox, self.now);
            let (target, why) = (casualty.target, casualty.why);
            if let Target::Connect { listener, to, .. } = target {
                core.step(now, table, Input::Lost { listener, to, why }, outbox);
            }
            messages(&casualty.output, &mut link.index, |range| {
                if range.end > casualty.sent {
                    let sent = &casualty.output[range];
                    core.step(now, table, Input::Undeliverable { target, sent, why }, outbox);
                }
            });
        }
        any
    }
}
