//! The load over TCP or TLS: phones, each on a connection of its own, and a PBX to which the router keeps its connections over
//! TCP, in one thread. A slot is a conversation as in benches/relay: SUBSCRIBE, PUBLISH, NOTIFY and their 200s, one message under way.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use memchr::memmem;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

use rustls::ClientConfig;

use crate::{
    line::Line,
    messages::{Ask, Script, id, learn_route, slot_of},
};

const STEPS: [(Ask, bool); 6] = [
    (Ask::Subscribe, false),
    (Ask::Subscribe, true),
    (Ask::Publish, false),
    (Ask::Publish, true),
    (Ask::Notify, false),
    (Ask::Notify, true),
];
const LISTENER: Token = Token(1 << 20);
/// Connections of the router's to the PBX have numbers from here on.
const PBX: usize = 1 << 16;

/// One connection: what came of a message that is not whole, and what waits to leave.
struct Wire {
    line: Line,
    partial: Vec<u8>,
    output: Vec<u8>,
}

impl Wire {
    fn new(line: Line) -> Wire {
        Wire { line, partial: Vec::new(), output: Vec::new() }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.line.write(&mut self.output)
    }
}

#[derive(Default)]
struct Slot {
    cycle: u32,
    step: usize,
    route: Vec<u8>,
    /// The PBX's connection by which the phone's SUBSCRIBE came: its NOTIFY leaves there.
    by: usize,
}

/// What one run gave.
#[derive(Default)]
pub struct Outcome {
    pub forwarded: u64,
    pub wall: Duration,
}

pub struct Load {
    poll: Poll,
    listener: TcpListener,
    phones: Vec<Wire>,
    scripts: Vec<Script>,
    backends: Vec<Wire>,
    slots: Vec<Slot>,
    ready: Vec<usize>,
    buffer: Vec<u8>,
}

impl Load {
    /// Phones on `connections` connections to `router`, over TLS where it is `secure`, with `each` slots on each.
    pub fn new(
        router: SocketAddr,
        pbx: SocketAddr,
        secure: Option<&Arc<ClientConfig>>,
        (connections, each): (usize, usize),
    ) -> anyhow::Result<Load> {
        let poll = Poll::new()?;
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.set_nonblocking(true)?;
        listener.bind(&pbx.into())?;
        listener.listen(64)?;
        let mut listener = TcpListener::from_std(listener.into());
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (mut phones, mut scripts) = (Vec::new(), Vec::new());
        for at in 0..connections {
            let stream = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            stream.bind(&SocketAddr::from(([127, 6, 1, 1], 0)).into())?;
            stream.connect(&router.into())?;
            stream.set_nonblocking(true)?;
            stream.set_tcp_nodelay(true)?;
            stream.set_linger(Some(Duration::ZERO))?;
            let mut stream = TcpStream::from_std(stream.into());
            let local = stream.local_addr()?;
            poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
            phones.push(Wire::new(Line::new(stream, secure.map(|config| (config, router)))?));
            let transport = if secure.is_some() { "tls" } else { "tcp" };
            scripts.push(Script::over(transport, &local.to_string(), &pbx.to_string()));
        }
        let slots = (0..connections * each).map(|_| Slot::default()).collect();
        let backends = Vec::new();
        Ok(Load {
            poll,
            listener,
            phones,
            scripts,
            backends,
            slots,
            ready: Vec::new(),
            buffer: vec![0; 1 << 16],
        })
    }

    /// Begins every slot.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        for at in 0..self.slots.len() {
            self.ask(at);
        }
        self.send()
    }

    /// Lets the conversations go on for so long; counts what came out of the router.
    pub fn run(&mut self, time: Duration) -> anyhow::Result<Outcome> {
        let mut events = Events::with_capacity(1024);
        let mut outcome = Outcome::default();
        let (begin, mut progress) = (Instant::now(), Instant::now());
        while begin.elapsed() < time {
            self.poll.poll(&mut events, Some(Duration::from_millis(20)))?;
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(at) if !self.ready.contains(&at) => self.ready.push(at),
                    _ => {}
                }
            }
            let before = outcome.forwarded;
            for at in std::mem::take(&mut self.ready) {
                self.read(at, &mut outcome)?;
            }
            self.send()?;
            if outcome.forwarded > before {
                progress = Instant::now();
            }
            anyhow::ensure!(progress.elapsed() < Duration::from_secs(5), "nothing comes any more");
        }
        outcome.wall = begin.elapsed();
        Ok(outcome)
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let token = Token(PBX + self.backends.len());
                    stream.set_nodelay(true)?;
                    // No TIME_WAIT, so that the next PBX here can be called from the same port.
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    self.poll.registry().register(&mut stream, token, interest)?;
                    self.backends.push(Wire::new(Line::new(stream, None)?));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wire(&mut self, at: usize) -> &mut Wire {
        if at >= PBX { &mut self.backends[at - PBX] } else { &mut self.phones[at] }
    }

    fn read(&mut self, at: usize, outcome: &mut Outcome) -> anyhow::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut bytes = std::mem::take(&mut self.wire(at).partial);
        let alive = self.wire(at).line.read(&mut buffer, &mut bytes)?;
        anyhow::ensure!(alive, "the router closed a connection");
        let mut taken = 0;
        while let Some(len) = whole(&bytes[taken..]) {
            self.hear(at, &bytes[taken..taken + len])?;
            outcome.forwarded += 1;
            taken += len;
        }
        bytes.drain(..taken);
        self.wire(at).partial = bytes;
        self.buffer = buffer;
        self.wire(at).flush()?;
        Ok(())
    }

    /// A message that the router forwarded: what follows from it is queued.
    fn hear(&mut self, at: usize, message: &[u8]) -> anyhow::Result<()> {
        let wrong = || anyhow::anyhow!("not expected:\n{}", String::from_utf8_lossy(message));
        let (slot, cycle) = slot_of(message).ok_or_else(wrong)?;
        let (ask, answer) = STEPS[self.slots[slot].step];
        let begins = match ask {
            _ if answer => &b"SIP/2.0 200"[..],
            Ask::Subscribe => b"SUBSCRIBE ",
            Ask::Publish => b"PUBLISH ",
            Ask::Notify => b"NOTIFY ",
        };
        anyhow::ensure!(message.starts_with(begins) && self.slots[slot].cycle == cycle, wrong());
        self.slots[slot].step = (self.slots[slot].step + 1) % STEPS.len();
        if answer {
            self.ask(slot);
            return Ok(());
        }
        if ask == Ask::Subscribe {
            learn_route(message, &mut self.slots[slot].route);
            self.slots[slot].by = at;
        }
        let script = &self.scripts[slot % self.phones.len()];
        let wire = if at >= PBX { &mut self.backends[at - PBX] } else { &mut self.phones[at] };
        script.answer(ask, &id(slot, cycle), message, &mut wire.output);
        Ok(())
    }

    /// Queues the next request of a slot.
    fn ask(&mut self, at: usize) {
        let phone = at % self.phones.len();
        let slot = &mut self.slots[at];
        let (ask, _) = STEPS[slot.step];
        if slot.step == 0 {
            slot.cycle = slot.cycle.wrapping_add(1);
        }
        let wire = match ask {
            Ask::Notify => &mut self.backends[slot.by - PBX],
            Ask::Subscribe | Ask::Publish => &mut self.phones[phone],
        };
        self.scripts[phone].ask(ask, &id(at, slot.cycle), &slot.route, &mut wire.output);
    }

    fn send(&mut self) -> anyhow::Result<()> {
        for wire in self.phones.iter_mut().chain(&mut self.backends).filter(|wire| !wire.output.is_empty()) {
            wire.flush()?;
        }
        Ok(())
    }
}

/// The length of the first message, where it is whole.
fn whole(bytes: &[u8]) -> Option<usize> {
    let head = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let at = memmem::find(&bytes[..head], b"Content-Length: ")? + 16;
    let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit());
    let body = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    (bytes.len() >= head + body).then_some(head + body)
}
