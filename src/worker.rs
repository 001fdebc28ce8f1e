//! One core: its sockets, its `forward::Core`, its view of the table, its counters, and the loop that turns them.
//!
//! A thread with one `mio::Poll`; nothing here is async, and nothing is allocated, locked, logged or formatted for a
//! message. The way of a message: **receive** a batch into buffers of ours, **step** each of its messages (inspect,
//! decide, rewrite: `forward`), **send** what they left in the outbox, one sendmmsg per socket. What cannot be sent goes
//! back into the step as `Undeliverable`. Reading stops while a tail is unsent: the kernel buffers, nothing is lost. What is
//! particular to streams is in `link`; whether the core keeps up says `pace`.
//!
//! Not for: deciding anything about SIP (`forward`), making sockets (`net::udp`), starting and stopping the program (`cli`).

mod link;
mod pace;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use self::{
    link::{LISTENERS, Link},
    pace::Pace,
};
pub use self::{
    link::{Links, owner},
    pace::Patience,
};

use arc_swap::{ArcSwap, Cache};
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};

use crate::{
    forward::{Arrival, Core, Fault, Input, Outbox, Target},
    live::Now,
    net::{
        inbox::{self, Inbox},
        sys,
        udp::{BATCH, Datagram, Inbound, Outbound, Socket, is_unreachable},
    },
    route::Table,
    stats::{CoreStats, Counter, Gauge},
    wire::{Reason, Transport},
};

/// Batches that one socket may bring in one turn, before the others have theirs.
const BATCHES: usize = 2;
/// Entries of an error queue that are looked at in one go.
const ERRORS: usize = 64;
/// Sends of one datagram that may fail for ICMP errors about others, before it is taken for its own.
const OTHERS: u32 = 8;
const TICK_MS: u64 = 1_000;
/// Of so many seconds the datagrams of one are stamped by the kernel, for the loop lag.
const STAMPED_IN: u64 = 16;
/// How soon an unsent tail is tried again where the kernel does not tell (ENOBUFS).
const HELD_MS: u64 = 5;
/// How long a worker that is to stop goes on reading what is queued, and waits for backends to take what they were sent.
const STOP_MS: u64 = 500;
/// How often it looks meanwhile whether all is done, of which there is no event.
const STOPPING_MS: u64 = 10;
const WAKE: Token = Token(usize::MAX);
const NO_PORT: u8 = u8::MAX;

/// What a worker drives: `forward::Core`, or a stand-in in tests and benches.
pub trait Step: Send + 'static {
    type Table: Send + Sync + 'static;

    fn step(&mut self, now: Now, table: &Self::Table, input: Input<'_>, out: &mut Outbox);

    /// The host that the certificate of the backend at this address must name, where the table knows one (RFC 5922).
    fn host_of(_table: &Self::Table, _to: SocketAddr) -> Option<&str> {
        None
    }

    /// Why nothing is taken from this peer, where that is so.
    fn bars(&self, _now: Now, _table: &Self::Table, _arrival: &Arrival) -> Option<Reason> {
        None
    }

    /// Another one whenever somebody who is connected already may have been barred.
    fn bars_version(&self) -> u64 {
        0
    }
}

impl Step for Core {
    type Table = Table;

    fn step(&mut self, now: Now, table: &Table, input: Input<'_>, out: &mut Outbox) {
        Core::step(self, now, table, input, out);
    }

    fn host_of(table: &Table, to: SocketAddr) -> Option<&str> {
        let at = table.pools.by_address(to, Transport::Tls)?;
        std::str::from_utf8(&table.pools.backend(at).host).ok()
    }

    fn bars(&self, now: Now, table: &Table, arrival: &Arrival) -> Option<Reason> {
        Core::bars(self, now, table, arrival)
    }

    fn bars_version(&self) -> u64 {
        Core::bars_version(self)
    }
}

/// What a worker is made of.
pub struct Launch<S: Step = Core> {
    pub index: usize,
    /// Stay on the core of this index, of those that the process may use.
    pub pin: bool,
    /// Listener index and this worker's socket of it.
    pub sockets: Vec<(u8, Socket)>,
    /// Streams, where there are stream listeners.
    pub links: Option<Links>,
    /// By core: what each is to send that others have for it. None where nobody has anything.
    pub inboxes: Arc<[Inbox]>,
    /// When the core is told that it is behind; `None`: never.
    pub patience: Option<Patience>,
    pub core: S,
    pub table: Arc<ArcSwap<S::Table>>,
    pub stats: Arc<CoreStats>,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    thread: thread::JoinHandle<()>,
    waker: Arc<Waker>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    turned_ms: AtomicU64,
}

/// Starts a worker. Its death by anything but `stop` ends the process: a router that lost a core would drop the share of
/// its traffic that the kernel goes on steering there.
pub fn spawn<S: Step>(launch: Launch<S>) -> io::Result<Worker> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    if let Some(inbox) = launch.inboxes.get(launch.index) {
        inbox.set_waker(waker.clone());
    }
    let shared = Arc::new(Shared::default());
    for (i, (_, socket)) in launch.sockets.iter().enumerate() {
        poll.registry().register(&mut SourceFd(&raw(socket)), Token(i), Interest::READABLE)?;
    }
    let theirs = shared.clone();
    let index = launch.index;
    let run = move || {
        let end = catch_unwind(AssertUnwindSafe(|| {
            if launch.pin
                && let Err(error) = sys::pin(index)
            {
                tracing::warn!(worker = index, %error, "cannot stay on one core");
            }
            Lane::new(launch, poll, theirs)?.run()
        }));
        let why = match end {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "panic".to_owned(),
        };
        tracing::error!(worker = index, %why, "a worker died; the process ends");
        std::process::abort();
    };
    let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(run)?;
    Ok(Worker { thread, waker, shared })
}

impl Worker {
    /// Lets it finish what is queued in its sockets (bounded), then ends it. Its sockets are closed.
    pub fn stop(self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        // A panic of the thread has aborted the process.
        let _ = self.thread.join();
    }

    /// Makes it turn now, so that it sees a new table even when idle.
    pub fn wake(&self) {
        // An eventfd can only fail to count beyond 2^64 - 2 wakes.
        let _ = self.waker.wake();
    }

    /// When it last turned, in `Now::mono_ms`; a healthy one does at least once a second.
    pub fn turned_ms(&self) -> u64 {
        self.shared.turned_ms.load(Ordering::Relaxed)
    }
}

/// One socket of the worker's.
struct Port {
    listener: u8,
    socket: Socket,
    wildcard: bool,
    /// May have datagrams: polls are edge-triggered, so this holds until a batch comes back short.
    ready: bool,
    /// May have entries in its error queue.
    errors: bool,
    /// WRITABLE is registered.
    watched: bool,
    /// Places in the outbox of what is to leave here, in order; those before `sent` have left.
    queue: Vec<u32>,
    sent: usize,
    drops: u32,
}

/// The batch that is being stepped. It outlives a turn that panicked, so that only one message is lost.
#[derive(Default)]
struct Batch {
    port: usize,
    at: usize,
    received_ns: u64,
}

/// The loop and all that it owns.
struct Lane<S: Step> {
    poll: Poll,
    shared: Arc<Shared>,
    ports: Vec<Port>,
    link: Option<Link>,
    index: usize,
    inboxes: Arc<[Inbox]>,
    /// What was taken from our inbox, and scratch.
    handed: inbox::Batch,
    pace: Option<Pace>,
    /// `Step::bars_version` by which those who are connected were last looked at.
    barred: u64,
    /// Place in `ports` by listener index.
    by_listener: [u8; 256],
    core: S,
    cache: Cache<Arc<ArcSwap<S::Table>>, Arc<S::Table>>,
    table: Arc<S::Table>,
    stats: Arc<CoreStats>,
    inbound: Inbound,
    outbound: Outbound,
    batch: Batch,
    outbox: Outbox,
    /// Messages of the outbox that stand in a port's queue or have left.
    assigned: usize,
    /// First message of the outbox that answers an `Undeliverable`: what fails from there on is not fed back again.
    answers: Option<usize>,
    /// Copy of what could not be sent, and what an error queue returned.
    failed: Vec<u8>,
    returned: Vec<u8>,
    now: Now,
    next_tick_ms: u64,
    /// Whether the sockets have datagrams stamped at present.
    stamped: bool,
}

impl<S: Step> Lane<S> {
    fn new(launch: Launch<S>, poll: Poll, shared: Arc<Shared>) -> io::Result<Lane<S>> {
        let mut by_listener = [NO_PORT; 256];
        for (place, (listener, _)) in launch.sockets.iter().enumerate() {
            by_listener[usize::from(*listener)] = place as u8;
        }
        let least = launch.sockets.iter().map(|(_, s)| s.receive_buffer).min();
        launch.stats.set(Gauge::ReceiveBuffer, least.unwrap_or(0) as u64);
        let ports = launch.sockets.into_iter().map(|(listener, socket)| Port {
            listener,
            wildcard: socket.is_wildcard(),
            socket,
            ready: true,
            errors: false,
            watched: false,
            queue: Vec::with_capacity(2 * BATCH),
            sent: 0,
            drops: 0,
        });
        let mut cache = Cache::new(launch.table);
        let table = cache.load().clone();
        let now = crate::net::now();
        let link = launch
            .links
            .map(|links| Link::new(links, launch.inboxes.clone(), poll.registry(), now))
            .transpose()?;
        Ok(Lane {
            poll,
            shared,
            ports: ports.collect(),
            link,
            index: launch.index,
            inboxes: launch.inboxes,
            handed: inbox::Batch::default(),
            pace: launch.patience.map(|patience| Pace::new(patience, now.mono_ms)),
            barred: 0,
            by_listener,
            core: launch.core,
            cache,
            table,
            stats: launch.stats,
            inbound: Inbound::new(),
            outbound: Outbound::new(),
            batch: Batch::default(),
            outbox: Outbox::default(),
            assigned: 0,
            answers: None,
            failed: Vec::new(),
            returned: vec![0; 2048],
            now,
            next_tick_ms: 0,
            stamped: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut stop_by = None;
        loop {
            let most_ms = if stop_by.is_some() { STOPPING_MS } else { TICK_MS };
            let timeout = Duration::from_millis(self.timeout_ms().min(most_ms));
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            self.now = crate::net::now();
            for event in &events {
                if let Some(port) = self.ports.get_mut(event.token().0) {
                    port.ready = true;
                    port.errors |= event.is_error();
                } else if let (Some(link), Token(LISTENERS..)) = (&mut self.link, event.token())
                    && event.token() != WAKE
                {
                    link.event(event, self.now);
                }
            }
            self.shared.turned_ms.store(self.now.mono_ms, Ordering::Relaxed);
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                self.stats.add(Counter::TurnPanics, 1);
            }
            if self.shared.stop.load(Ordering::Acquire) {
                let by = *stop_by.get_or_insert_with(|| {
                    self.ports.iter_mut().for_each(|port| port.ready = true);
                    self.now.mono_ms + STOP_MS
                });
                let busy = self.link.as_ref().is_some_and(|link| link.is_ready() || link.streams.is_busy());
                let idle = !busy && !self.is_held() && !self.ports.iter().any(|port| port.ready);
                let late = self.now.mono_ms >= by;
                if let Some(link) = self.link.as_mut().filter(|_| idle || late) {
                    link.streams.part(self.now);
                }
                let parting = self.link.as_ref().is_some_and(|link| link.streams.is_parting());
                if late || idle && !parting {
                    return Ok(());
                }
            }
        }
    }

    fn timeout_ms(&self) -> u64 {
        let tick = self.next_tick_ms.saturating_sub(self.now.mono_ms);
        if self.is_held() {
            tick.min(HELD_MS)
        } else if self.waits() {
            0
        } else {
            tick
        }
    }

    /// Something is left to be done at once, or a tail keeps us from it.
    fn waits(&self) -> bool {
        self.is_held()
            || self.is_midway()
            || self.inboxes.get(self.index).is_some_and(Inbox::is_waiting)
            || self.ports.iter().any(|p| p.ready || p.errors)
            || self.link.as_ref().is_some_and(Link::is_ready)
    }

    /// The turn could not do all that there was. Of connections a few that always have something are no arrears, since they
    /// take turns with all others; nor are those who wait at the door.
    fn is_in_arrears(&self) -> bool {
        self.is_held()
            || self.is_midway()
            || self.ports.iter().any(|port| port.ready)
            || self.link.as_ref().is_some_and(|link| link.streams.is_crowded())
    }

    /// A batch is not stepped to its end.
    fn is_midway(&self) -> bool {
        self.batch.at < self.inbound.len()
    }

    /// A tail is unsent, so nothing more is read.
    fn is_held(&self) -> bool {
        !self.outbox.messages.is_empty()
    }

    fn turn(&mut self) {
        let swapped = !Arc::ptr_eq(self.cache.load(), &self.table);
        if swapped {
            self.table = self.cache.load().clone();
            self.stats.add(Counter::Swaps, 1);
        }
        if swapped || self.now.mono_ms >= self.next_tick_ms {
            self.tick();
        }
        for p in 0..self.ports.len() {
            if self.ports[p].errors {
                self.drain_errors(p);
            }
        }
        if self.is_held() {
            self.flush();
        }
        if self.is_midway() {
            self.step_batch();
        }
        for p in 0..self.ports.len() {
            if self.ports[p].ready {
                self.read(p);
            }
        }
        self.turn_streams();
        let arrears = self.is_in_arrears();
        if let Some(behind) = self.pace.as_mut().and_then(|pace| pace.turned(self.now.mono_ms, arrears)) {
            self.core.step(self.now, &self.table, Input::Behind(behind), &mut self.outbox);
        }
    }

    fn tick(&mut self) {
        self.next_tick_ms = self.now.mono_ms + TICK_MS;
        // A stamp costs the kernel and us some 50 ns for each datagram: one second in sixteen tells the lag as well.
        let stamped = (self.now.mono_ms / TICK_MS).is_multiple_of(STAMPED_IN);
        for port in &mut self.ports {
            if stamped != self.stamped {
                // Without stamps there is no lag to see, and nothing else is lost.
                let _ = port.socket.set_stamps(stamped);
            }
            if let Ok(drops) = port.socket.drops() {
                self.stats.add(Counter::KernelDrops, drops.wrapping_sub(port.drops).into());
                port.drops = drops;
            }
        }
        self.stamped = stamped;
        if let Some(link) = &mut self.link {
            link.tick(self.now);
        }
        self.core.step(self.now, &self.table, Input::Tick, &mut self.outbox);
    }

    /// Reads, steps and sends what waits at one socket, up to its share of a turn.
    fn read(&mut self, p: usize) {
        for _ in 0..BATCHES {
            if self.is_held() {
                return;
            }
            match self.inbound.receive(self.ports[p].socket.as_fd()) {
                Ok(n) => {
                    self.ports[p].ready = n == BATCH;
                    self.batch = Batch { port: p, at: 0, received_ns: sys::monotonic_ns() };
                    self.step_batch();
                    if n < BATCH {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ports[p].ready = false;
                    return;
                }
                // An ICMP error; what waits behind it is read by the next try.
                Err(_) => {
                    self.drain_errors(p);
                    self.flush();
                }
            }
        }
    }

    /// Steps what is left of the batch, and sends.
    fn step_batch(&mut self) {
        let n = self.inbound.len();
        let port = &self.ports[self.batch.port];
        let mut local = port.socket.local;
        while self.batch.at < n {
            let received = self.inbound.datagram(self.batch.at);
            self.batch.at += 1;
            let Some(received) = received else { continue };
            // The first has waited longest.
            if let Some(stamp) = received.stamp.filter(|_| self.batch.at == 1) {
                self.stats.loop_lag(sys::unix_ns().saturating_sub(stamp));
            }
            if let Some(ip) = received.local {
                local.set_ip(ip);
            }
            let arrival = Arrival { listener: port.listener, local, peer: received.peer, flow: None };
            let input = Input::Message(arrival, received.bytes);
            self.core.step(self.now, &self.table, input, &mut self.outbox);
        }
        self.stats.latency(sys::monotonic_ns().saturating_sub(self.batch.received_ns), n as u64);
        self.flush();
    }

    /// Sends the outbox, as far as the kernel takes it. Empty afterwards, or a tail is held.
    fn flush(&mut self) {
        self.flush_outbox();
        while self.bury() {
            self.flush_outbox();
        }
    }

    fn flush_outbox(&mut self) {
        while self.is_held() {
            self.assign();
            let mut held = false;
            for p in 0..self.ports.len() {
                held |= !self.send(p);
            }
            if held {
                return;
            }
            // What came back undeliverable may have been answered meanwhile.
            if self.assigned == self.outbox.messages.len() {
                self.outbox.clear();
                self.assigned = 0;
                self.answers = None;
            }
        }
    }

    /// Gives each new message of the outbox to the port by which it leaves; what goes by a stream leaves at once.
    fn assign(&mut self) {
        let assigned = self.assigned;
        // An answer to what cannot be handed over comes behind these.
        self.assigned = self.outbox.messages.len();
        for i in assigned..self.assigned {
            let Target::Datagram { listener, .. } = self.outbox.messages[i].0 else {
                self.send_by_stream(i);
                continue;
            };
            match self.ports.get_mut(usize::from(self.by_listener[usize::from(listener)])) {
                Some(port) => port.queue.push(i as u32),
                None => self.stats.add(Counter::SendErrors, 1),
            }
        }
    }

    /// Sends what is queued at a port. False where the kernel's buffer is full and a tail is held.
    fn send(&mut self, p: usize) -> bool {
        let mut about_others = 0;
        let mut retried = false;
        loop {
            let port = &mut self.ports[p];
            let Some(&first) = port.queue.get(port.sent) else { break };
            let outbox = &self.outbox;
            let datagrams = port.queue[port.sent..].iter().filter_map(|&i| {
                let (Target::Datagram { from, to, .. }, range) = &outbox.messages[i as usize] else {
                    return None; // assigned to no port
                };
                let from = if port.wildcard { *from } else { None };
                Some(Datagram { bytes: &outbox.bytes[range.clone()], to: *to, from })
            });
            let error = match self.outbound.send(port.socket.as_fd(), datagrams) {
                Ok(n) => {
                    port.sent += n;
                    (about_others, retried) = (0, false);
                    continue;
                }
                Err(error) => error.raw_os_error().unwrap_or(0),
            };
            match error {
                libc::EINTR => continue,
                // ENOBUFS: the queue of the network device is full (told because of IP_RECVERR).
                libc::EAGAIN | libc::ENOBUFS => {
                    self.stats.add(Counter::SendBlocked, 1);
                    self.watch(p, true);
                    return false;
                }
                libc::EMSGSIZE => self.fail(p, first, Fault::TooLarge),
                // Most likely an ICMP error about another datagram, which this call only reported.
                _ if about_others < OTHERS && self.drain_errors(p) > 0 => about_others += 1,
                _ if !retried => retried = true,
                _ => {
                    self.fail(p, first, Fault::Unreachable);
                    (about_others, retried) = (0, false);
                }
            }
        }
        let port = &mut self.ports[p];
        port.queue.clear();
        port.sent = 0;
        self.watch(p, false);
        true
    }

    /// The first datagram of a port's queue cannot go: passes it by, and tells the core.
    fn fail(&mut self, p: usize, message: u32, why: Fault) {
        self.ports[p].sent += 1;
        self.stats.add(Counter::SendErrors, 1);
        self.tell(message as usize, why);
    }

    /// Tells the core that a message of the outbox cannot be delivered.
    fn tell(&mut self, message: usize, why: Fault) {
        let end = self.outbox.messages.len();
        if message >= *self.answers.get_or_insert(end) {
            return;
        }
        let (target, range) = self.outbox.messages[message].clone();
        self.failed.clear();
        self.failed.extend_from_slice(&self.outbox.bytes[range]);
        let input = Input::Undeliverable { target, sent: &self.failed, why };
        self.core.step(self.now, &self.table, input, &mut self.outbox);
    }

    /// Empties a socket's error queue, which also clears the error that its next call would report. Returns how many
    /// entries there were.
    fn drain_errors(&mut self, p: usize) -> usize {
        for n in 0..ERRORS {
            let port = &mut self.ports[p];
            let Ok(Some(entry)) = port.socket.take_error(&mut self.returned) else {
                port.errors = false;
                return n;
            };
            if entry.icmp && is_unreachable(entry.errno) {
                let target = Target::Datagram { listener: port.listener, from: entry.from, to: entry.to };
                let sent = &self.returned[..entry.len];
                let why = if entry.errno == libc::ECONNREFUSED { Fault::Refused } else { Fault::Unreachable };
                let input = Input::Undeliverable { target, sent, why };
                self.core.step(self.now, &self.table, input, &mut self.outbox);
            }
        }
        self.ports[p].errors = true;
        ERRORS
    }

    /// Registers WRITABLE while a tail is held, and only then: else each send would wake the poll again.
    fn watch(&mut self, p: usize, on: bool) {
        let port = &mut self.ports[p];
        if port.watched == on {
            return;
        }
        let interest = if on { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let mut source = SourceFd(&raw(&port.socket));
        // Should it fail, the tail is tried again by time (HELD_MS).
        if self.poll.registry().reregister(&mut source, Token(p), interest).is_ok() {
            port.watched = on;
        }
    }
}

fn raw(socket: &Socket) -> std::os::fd::RawFd {
    socket.as_fd().as_raw_fd()
}
