//! A SIP party over TCP: a listener, and connections that it accepted or made, all of whose messages come in one queue.
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
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

type Open = Arc<Mutex<BTreeMap<SocketAddr, TcpStream>>>;

pub struct Tcp {
    address: SocketAddr,
    open: Open,
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
        let listener = socket(address)?;
        listener.listen(64)?;
        let address = listener.local_addr()?.as_socket().expect("an IP address");
        listener.set_nonblocking(true)?;
        let listener: std::net::TcpListener = listener.into();
        let (arrive, arrived) = channel();
        let tcp = Tcp { address, open: Open::default(), ended: Arc::default(), arrived, arrive };
        let (open, ended, arrive) = (tcp.open.clone(), tcp.ended.clone(), tcp.arrive.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        stream.set_nonblocking(false).expect("a socket of ours");
                        take(stream, peer, &open, &arrive);
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
    pub fn connection(&self, to: SocketAddr) -> TcpStream {
        if let Some(stream) = self.open.lock().expect("no panic").get(&to) {
            return stream.try_clone().expect("a socket of ours");
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
        take(stream.try_clone().expect("a socket of ours"), to, &self.open, &self.arrive);
        stream
    }

    pub fn send(&self, to: SocketAddr, message: &[u8]) {
        self.connection(to).write_all(message).expect("loopback takes it");
    }

    /// The next message, or CRLF, and whose.
    pub fn poll(&self, limit: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        match self.arrived.recv_timeout(limit) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Ends all its connections and goes on listening.
    pub fn hang_up(&self) {
        let open = std::mem::take(&mut *self.open.lock().expect("no panic"));
        open.values().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
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
fn take(stream: TcpStream, peer: SocketAddr, open: &Open, arrive: &Sender<(Vec<u8>, SocketAddr)>) {
    let reader = stream.try_clone().expect("a socket of ours");
    open.lock().expect("no panic").insert(peer, stream);
    let (open, arrive) = (open.clone(), arrive.clone());
    std::thread::spawn(move || {
        read(reader, |message| drop(arrive.send((message, peer))));
        open.lock().expect("no panic").remove(&peer);
    });
}

/// Hands on each message of a stream, and each CRLF between them, until it ends.
pub fn read(mut stream: TcpStream, mut each: impl FnMut(Vec<u8>)) {
    let mut held = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        held.extend_from_slice(&buffer[..n]);
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
