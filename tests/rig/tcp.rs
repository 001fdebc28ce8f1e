//! A SIP party over TCP, TLS or a WebSocket: a listener, and connections that it accepted or made, all of whose messages come in one queue.
//!
//! It speaks to an address by the connection that it has with it, whoever made it, and calls where it has none: from its
//! own port, so that it is known by its address as over UDP. Framing is its own, with none of the router's code.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::{Domain, Socket, Type};

use super::websocket;

type Open = Arc<Mutex<BTreeMap<SocketAddr, Line>>>;
/// What it shows and trusts, where it speaks TLS.
pub type Credentials = Option<(Arc<ClientConfig>, Arc<ServerConfig>)>;

/// One connection, for whoever writes and for the one who reads.
#[derive(Clone)]
pub struct Line {
    pub socket: Arc<TcpStream>,
    tls: Option<Arc<Mutex<Connection>>>,
    /// Its messages are in frames.
    websocket: bool,
}

impl Line {
    pub fn plain(socket: TcpStream) -> Line {
        Line { socket: Arc::new(socket), tls: None, websocket: false }
    }

    /// Over TLS; the handshake goes on as `read` is driven, or by the first write.
    pub fn secure(socket: TcpStream, tls: Connection) -> Line {
        Line { socket: Arc::new(socket), tls: Some(Arc::new(Mutex::new(tls))), websocket: false }
    }

    /// Becomes a WebSocket.
    pub fn upgrade(mut self) -> Line {
        self.write(websocket::request("/", "").as_bytes()).expect("loopback takes it");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(self.read(&mut byte).expect("an answer"), 1, "closed: {}", answer.escape_ascii());
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).expect("text");
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains(websocket::ACCEPT), "{answer}");
        self.websocket = true;
        self
    }

    /// Sends one message.
    pub fn send(&self, message: &[u8]) -> std::io::Result<()> {
        if self.websocket { self.write(&websocket::message(message)) } else { self.write(message) }
    }

    pub fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(tls) = &self.tls else { return (&*self.socket).write_all(bytes) };
        let mut tls = tls.lock().expect("no panic");
        for chunk in bytes.chunks(16_384) {
            // Before the handshake is done they wait within.
            tls.writer().write_all(chunk)?;
            flush(&mut tls, &self.socket)?;
        }
        Ok(())
    }

    /// The next bytes; 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(tls) = &self.tls else { return (&*self.socket).read(buffer) };
        let mut sealed = [0; 16_384];
        loop {
            {
                let mut tls = tls.lock().expect("no panic");
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
                flush(&mut tls, &self.socket)?;
            }
            let n = (&*self.socket).read(&mut sealed)?;
            let mut tls = tls.lock().expect("no panic");
            let mut rest = &sealed[..n];
            if n == 0 {
                tls.read_tls(&mut rest)?;
                tls.process_new_packets().map_err(std::io::Error::other)?;
            }
            while !rest.is_empty() {
                tls.read_tls(&mut rest)?;
                let processed = tls.process_new_packets();
                flush(&mut tls, &self.socket)?;
                processed.map_err(std::io::Error::other)?;
            }
        }
    }

    pub fn hang_up(&self) {
        // It may have ended already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn flush(tls: &mut Connection, mut socket: &TcpStream) -> std::io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}

pub struct Tcp {
    address: SocketAddr,
    open: Open,
    credentials: Credentials,
    websocket: bool,
    ended: Arc<AtomicBool>,
    arrived: Receiver<(Vec<u8>, SocketAddr)>,
    arrive: Sender<(Vec<u8>, SocketAddr)>,
}

fn socket(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

impl Tcp {
    pub fn bind(address: SocketAddr) -> std::io::Result<Tcp> {
        Tcp::bind_with(address, None, false)
    }

    /// It calls as a WebSocket, over TLS where it is `secure`.
    pub fn bind_websocket(address: SocketAddr, secure: bool) -> std::io::Result<Tcp> {
        Tcp::bind_with(address, secure.then(|| super::pki::party(address.ip())), true)
    }

    pub fn bind_with(address: SocketAddr, credentials: Credentials, websocket: bool) -> std::io::Result<Tcp> {
        let listener = socket(address)?;
        listener.listen(64)?;
        let address = listener.local_addr()?.as_socket().expect("an IP address");
        listener.set_nonblocking(true)?;
        let listener: std::net::TcpListener = listener.into();
        let (arrive, arrived) = channel();
        let (open, ended) = (Open::default(), Arc::default());
        let tcp = Tcp { address, credentials, websocket, open, ended, arrived, arrive };
        let (open, ended, arrive) = (tcp.open.clone(), tcp.ended.clone(), tcp.arrive.clone());
        let server = tcp.credentials.as_ref().map(|(_, server)| server.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        stream.set_nonblocking(false).expect("a socket of ours");
                        let line = match &server {
                            None => Line::plain(stream),
                            Some(server) => {
                                let tls = ServerConnection::new(server.clone()).expect("a server");
                                Line::secure(stream, tls.into())
                            }
                        };
                        take(line, peer, &open, &arrive);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(tcp)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection with `to`; made where there is none.
    pub fn connection(&self, to: SocketAddr) -> Line {
        if let Some(line) = self.open.lock().expect("no panic").get(&to) {
            return line.clone();
        }
        // A former connection from this port may be in TIME_WAIT.
        let own = socket(self.address).and_then(|s| s.connect(&to.into()).map(|()| s));
        let stream: TcpStream = match own {
            Ok(socket) => socket.into(),
            Err(_) => {
                let any = socket(SocketAddr::new(self.address.ip(), 0)).expect("a free port");
                any.connect(&to.into()).unwrap_or_else(|error| panic!("cannot connect to {to}: {error}"));
                any.into()
            }
        };
        let line = match &self.credentials {
            None => Line::plain(stream),
            Some((client, _)) => {
                let tls = ClientConnection::new(client.clone(), to.ip().into()).expect("a client");
                Line::secure(stream, tls.into())
            }
        };
        let line = if self.websocket { line.upgrade() } else { line };
        take(line.clone(), to, &self.open, &self.arrive);
        line
    }

    pub fn send(&self, to: SocketAddr, message: &[u8]) {
        self.connection(to).send(message).expect("loopback takes it");
    }

    /// The next message, or CRLF, and whose.
    pub fn poll(&self, limit: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        self.arrived.recv_timeout(limit).ok()
    }

    /// Ends all its connections and goes on listening.
    pub fn hang_up(&self) {
        let open = std::mem::take(&mut *self.open.lock().expect("no panic"));
        open.values().for_each(Line::hang_up);
    }

    /// Has it a connection with `peer`?
    pub fn is_open(&self, peer: SocketAddr) -> bool {
        self.open.lock().expect("no panic").contains_key(&peer)
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.hang_up();
        // The acceptor looks each 2 ms; its address is to be free for the next.
        let end = Instant::now() + Duration::from_secs(2);
        while Arc::strong_count(&self.ended) > 1 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Reads one connection to its end.
fn take(line: Line, peer: SocketAddr, open: &Open, arrive: &Sender<(Vec<u8>, SocketAddr)>) {
    open.lock().expect("no panic").insert(peer, line.clone());
    let (open, arrive) = (open.clone(), arrive.clone());
    std::thread::spawn(move || {
        read_line(&line, |message| drop(arrive.send((message, peer))));
        open.lock().expect("no panic").remove(&peer);
    });
}

/// Hands on each message of a stream, and each CRLF between them, until it ends.
pub fn read(stream: TcpStream, each: impl FnMut(Vec<u8>)) {
    read_line(&Line::plain(stream), each);
}

/// The same of any connection.
pub fn read_line(line: &Line, mut each: impl FnMut(Vec<u8>)) {
    let mut held = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok(n @ 1..) = line.read(&mut buffer) {
        held.extend_from_slice(&buffer[..n]);
        if line.websocket {
            while let Some(frame) = websocket::take(&mut held) {
                // All else is about the connection.
                if matches!(frame.first, 0x81 | 0x82) {
                    each(frame.payload);
                }
            }
            continue;
        }
        while let Some(len) = whole(&held) {
            each(held.drain(..len).collect());
        }
    }
}

/// The length of the first message, once it is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"\r\n") {
        return Some(2);
    }
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length:").or(line.strip_prefix("l:")));
    let length = length.unwrap_or_else(|| panic!("no Content-Length on a stream:\n{text}"));
    let body: usize = length.trim().parse().expect("a number");
    (bytes.len() >= head + body).then_some(head + body)
}
