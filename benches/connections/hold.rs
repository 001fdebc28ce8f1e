//! Connections that do nothing: opened, with TLS and upgraded where they are to be, seen to be served by one exchange, held.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use rustls::ClientConfig;
use socket2::{Domain, Socket, Type};

use crate::{line::Line, rivals::Over, websocket};

/// Connections that are being opened at one time.
const UNDER_WAY: usize = 256;
/// They come from so many addresses, since one has too few ports.
const ADDRESSES: u8 = 20;
/// For all of them.
const PATIENCE: Duration = Duration::from_secs(120);

/// What each says, and is answered, once it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A keep-alive (RFC 5626 4.4.1).
    Ping,
    /// A request to the router itself.
    Options,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// TCP, then TLS.
    Greeting,
    Upgrading,
    Asked,
    Served,
}

/// One that is not served yet; `line` is gone once it is.
struct Comer {
    line: Option<Line>,
    stage: Stage,
    came: Vec<u8>,
}

/// Opens `count` connections, each from one of twenty addresses; gives them once all are served.
pub fn open(
    over: Over,
    to: SocketAddr,
    count: usize,
    word: Word,
    config: &Arc<ClientConfig>,
) -> anyhow::Result<Vec<TcpStream>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut all: Vec<Comer> = Vec::with_capacity(count);
    let mut held = Vec::with_capacity(count);
    let mut buffer = vec![0; 1 << 16];
    let end = Instant::now() + PATIENCE;
    while held.len() < count {
        while all.len() < count && all.len() - held.len() < UNDER_WAY {
            let mut socket = connect(to, (all.len() % usize::from(ADDRESSES)) as u8)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(all.len()), interest)?;
            let line = Line::new(socket, over.is_secure().then_some((config, to)))?;
            all.push(Comer { line: Some(line), stage: Stage::Greeting, came: Vec::new() });
        }
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        for event in &events {
            let comer = &mut all[event.token().0];
            comer.go_on(over, to, word, &mut buffer)?;
            if comer.stage == Stage::Served
                && let Some(line) = comer.line.take()
            {
                let mut socket = line.into_socket();
                poll.registry().deregister(&mut socket)?;
                held.push(socket);
            }
        }
        anyhow::ensure!(Instant::now() < end, "{} of {count} connections were served", held.len());
    }
    Ok(held)
}

impl Comer {
    /// As far as it gets without waiting.
    fn go_on(&mut self, over: Over, to: SocketAddr, word: Word, buffer: &mut [u8]) -> anyhow::Result<()> {
        let Some(line) = &mut self.line else { return Ok(()) };
        // A hello, where there is one.
        line.write(&mut Vec::new())?;
        let alive = line.read(buffer, &mut self.came)?;
        if self.stage == Stage::Greeting && line.is_open() {
            let (stage, mut said) = match over.is_websocket() {
                true => (Stage::Upgrading, websocket::request("/", "").into_bytes()),
                false => (Stage::Asked, text(over, to, word)),
            };
            line.write(&mut said)?;
            self.stage = stage;
        }
        if self.stage == Stage::Upgrading && self.came.ends_with(b"\r\n\r\n") {
            anyhow::ensure!(self.came.starts_with(b"HTTP/1.1 101 "), "{}", self.came.escape_ascii());
            self.came.clear();
            line.write(&mut websocket::message(&text(over, to, word)))?;
            self.stage = Stage::Asked;
        }
        if self.stage == Stage::Asked {
            let came = match over.is_websocket() {
                true => websocket::take(&mut self.came).map(|frame| frame.payload),
                false => Some(std::mem::take(&mut self.came)),
            };
            let came = came.unwrap_or_default();
            let whole = match word {
                Word::Ping => came == b"\r\n",
                Word::Options => came.ends_with(b"\r\n\r\n"),
            };
            let good = word == Word::Ping || came.starts_with(b"SIP/2.0 200 ");
            anyhow::ensure!(came.is_empty() || whole && good, "{word:?} is answered {}", came.escape_ascii());
            if whole {
                self.stage = Stage::Served;
                return Ok(());
            }
        }
        anyhow::ensure!(alive, "the router closed a connection");
        Ok(())
    }
}

fn text(over: Over, to: SocketAddr, word: Word) -> Vec<u8> {
    match word {
        Word::Ping => b"\r\n\r\n".to_vec(),
        Word::Options => format!(
            "OPTIONS sip:{to} SIP/2.0\r\nVia: SIP/2.0/{} idle.invalid;rport;branch=z9hG4bKidle\r\nMax-Forwards: 70\r\n\
             From: <sip:idle@example.com>;tag=idle\r\nTo: <sip:{to}>\r\nCall-ID: idle\r\nCSeq: 1 OPTIONS\r\n\
             Content-Length: 0\r\n\r\n",
            over.name().to_ascii_uppercase()
        )
        .into_bytes(),
    }
}

fn connect(to: SocketAddr, host: u8) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Gone at once when it is closed: no TIME_WAIT, which would use up the ports.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from(([127, 6, 1, 100 + host], 0)).into())?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(TcpStream::from_std(socket.into()))
}
