//! A SIP party of the test's own, over UDP, TCP, TLS or a WebSocket: it sends and takes raw bytes, each wait with a deadline.

use std::{
    io::ErrorKind,
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{pki, tcp::Tcp, text};

/// How long an answer on loopback may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// One end of the wire.
pub struct Party {
    wire: Wire,
    pub address: SocketAddr,
}

enum Wire {
    Udp(UdpSocket),
    Tcp(Tcp),
    Tls(Tcp),
    Ws(Tcp),
    Wss(Tcp),
}

impl Party {
    /// Binds `address`. A socket that was closed a moment ago may live on in a process that a test beside this one is
    /// just starting, between its fork and its exec: then it is tried again.
    #[track_caller]
    pub fn bind(address: impl ToSocketAddrs + std::fmt::Debug) -> Party {
        let end = Instant::now() + Duration::from_secs(2);
        let socket = loop {
            match UdpSocket::bind(&address) {
                Ok(socket) => break socket,
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("cannot bind {address:?}: {error}"),
            }
        };
        let address = socket.local_addr().expect("a bound socket has an address");
        Party { wire: Wire::Udp(socket), address }
    }

    /// The same over TCP.
    #[track_caller]
    pub fn bind_tcp(address: impl ToSocketAddrs + std::fmt::Debug) -> Party {
        let mut addresses = address.to_socket_addrs().expect("an address of the test's");
        let address = addresses.next().expect("an address of the test's");
        let tcp = Tcp::bind(address).unwrap_or_else(|error| panic!("cannot bind {address}/tcp: {error}"));
        Party { address: tcp.address(), wire: Wire::Tcp(tcp) }
    }

    /// The same over TLS, with a certificate for its address by the tests' authority.
    #[track_caller]
    pub fn bind_tls(address: impl ToSocketAddrs + std::fmt::Debug) -> Party {
        let mut addresses = address.to_socket_addrs().expect("an address of the test's");
        let address = addresses.next().expect("an address of the test's");
        Party::bind_tls_with(address, pki::party(address.ip()))
    }

    /// The same with what the test says: as a client, as a server.
    #[track_caller]
    pub fn bind_tls_with(
        address: SocketAddr,
        credentials: (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>),
    ) -> Party {
        let tcp = Tcp::bind_with(address, Some(credentials), false)
            .unwrap_or_else(|error| panic!("cannot bind {address}/tls: {error}"));
        Party { address: tcp.address(), wire: Wire::Tls(tcp) }
    }

    /// A phone that calls as a WebSocket, over TLS where it is `secure`.
    #[track_caller]
    pub fn bind_websocket(address: impl ToSocketAddrs + std::fmt::Debug, secure: bool) -> Party {
        let mut addresses = address.to_socket_addrs().expect("an address of the test's");
        let address = addresses.next().expect("an address of the test's");
        let tcp = Tcp::bind_websocket(address, secure);
        let tcp = tcp.unwrap_or_else(|error| panic!("cannot bind {address}/ws: {error}"));
        Party { address: tcp.address(), wire: if secure { Wire::Wss(tcp) } else { Wire::Ws(tcp) } }
    }

    /// As Via names its transport.
    pub fn via(&self) -> &'static str {
        match self.wire {
            Wire::Udp(_) => "UDP",
            Wire::Tcp(_) => "TCP",
            Wire::Tls(_) => "TLS",
            Wire::Ws(_) => "WS",
            Wire::Wss(_) => "WSS",
        }
    }

    /// Its socket, where it is a UDP party.
    #[track_caller]
    pub fn udp(&self) -> &UdpSocket {
        match &self.wire {
            Wire::Udp(socket) => socket,
            _ => panic!("a TCP party has no UDP socket"),
        }
    }

    /// Its socket alone.
    #[track_caller]
    pub fn into_udp(self) -> UdpSocket {
        match self.wire {
            Wire::Udp(socket) => socket,
            _ => panic!("a TCP party has no UDP socket"),
        }
    }

    /// Its connections, where it is a TCP or TLS party.
    #[track_caller]
    pub fn tcp(&self) -> &Tcp {
        match &self.wire {
            Wire::Tcp(tcp) | Wire::Tls(tcp) | Wire::Ws(tcp) | Wire::Wss(tcp) => tcp,
            Wire::Udp(_) => panic!("a UDP party has no connections"),
        }
    }

    /// Sends these bytes.
    #[track_caller]
    pub fn send(&self, to: impl ToSocketAddrs, message: impl AsRef<[u8]>) {
        match &self.wire {
            Wire::Udp(socket) => {
                socket.send_to(message.as_ref(), to).expect("loopback takes a datagram");
            }
            Wire::Tcp(tcp) | Wire::Tls(tcp) | Wire::Ws(tcp) | Wire::Wss(tcp) => {
                let to = to.to_socket_addrs().expect("an address of the test's").next();
                tcp.send(to.expect("an address of the test's"), message.as_ref());
            }
        }
    }

    /// The next message within `limit`, and who sent it.
    pub fn poll(&self, limit: Duration) -> Option<(Vec<u8>, SocketAddr)> {
        let socket = match &self.wire {
            Wire::Tcp(tcp) | Wire::Tls(tcp) | Wire::Ws(tcp) | Wire::Wss(tcp) => return tcp.poll(limit),
            Wire::Udp(socket) => socket,
        };
        let mut buffer = vec![0; 65_536];
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            socket.set_read_timeout(Some(left)).expect("a timeout above zero is accepted");
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    buffer.truncate(length);
                    return Some((buffer, from));
                }
                Err(_) if Instant::now() >= end => return None,
                // An ICMP error of an earlier datagram, or a signal.
                Err(_) => {}
            }
        }
    }

    /// The next message as text; panics with `what` when none comes.
    #[track_caller]
    pub fn receive(&self, what: &str) -> String {
        match self.poll(PATIENCE) {
            Some((bytes, _)) => String::from_utf8_lossy(&bytes).into_owned(),
            None => panic!("{} waited {PATIENCE:?} in vain for {what}", self.address),
        }
    }

    /// The next message, which must begin with `start` (`SIP/2.0 200`, `NOTIFY `).
    #[track_caller]
    pub fn expect(&self, start: &str) -> String {
        let message = self.receive(start);
        assert!(message.starts_with(start), "{} expected {start:?}, got:\n{message}", self.address);
        message
    }

    /// Nothing may come within `limit`.
    #[track_caller]
    pub fn expect_nothing(&self, limit: Duration) {
        if let Some((bytes, from)) = self.poll(limit) {
            let text = String::from_utf8_lossy(&bytes);
            panic!("{} expected nothing, got from {from}:\n{text}", self.address);
        }
    }

    /// Answers a request the way it came: see `text::answer`.
    #[track_caller]
    pub fn answer(&self, to: impl ToSocketAddrs, request: &str, status: &str, tag: &str, more: &str) {
        self.send(to, text::answer(request, status, tag, more));
    }
}
