//! TCP sockets (SPEC 9.2): listeners, one SO_REUSEPORT socket per worker and address, and connections to backends from the
//! listener's own port.
//!
//! As with UDP the group of listeners is made once and for life. Nothing here keeps state: `streams` holds the connections.

use std::{io, net::SocketAddr, time::Duration};

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::udp::explained;

/// Connections that the kernel holds for us until we accept them (bounded by net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// When the kernel first asks a silent peer whether it is there, how often then, and how many times.
const KEEPALIVE: Duration = Duration::from_secs(120);
const KEEPALIVE_EACH: Duration = Duration::from_secs(15);
const KEEPALIVES: u32 = 4;

/// Binds `n` listeners to `address`, one for each worker, which share its connections by 4-tuple. With port 0 the kernel
/// picks one port for all. Fails where the port is taken, by a process of this user with SO_REUSEPORT too.
pub fn bind(address: SocketAddr, n: usize) -> io::Result<Vec<(TcpListener, SocketAddr)>> {
    let fault = |error: io::Error| explained(address, "tcp", &error);
    // Without SO_REUSEPORT the kernel refuses an address on which anybody listens; see `udp::bind`.
    socket(address).and_then(|alone| alone.bind(&address.into())).map_err(fault)?;
    let mut listeners = Vec::with_capacity(n);
    let mut bound = address;
    for _ in 0..n {
        let listener = listener(bound).map_err(fault)?;
        bound = listener.local_addr().map_err(fault)?;
        listeners.push((listener, bound));
    }
    Ok(listeners)
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a process before us may be in TIME_WAIT on this port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Begins a connection to a backend from `local`, a listener's address and port: who believes the packet's source
/// (`rewrite_contact`) then believes what is true. Where the kernel has no room for that pair of addresses (a former
/// connection in TIME_WAIT) it leaves from another port of that address.
pub fn dial(local: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    match dial_from(local, to, patience) {
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse) => {
            dial_from(SocketAddr::new(local.ip(), 0), to, patience)
        }
        other => other,
    }
}

fn dial_from(local: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = socket(local)?;
    if local.port() != 0 {
        socket.set_reuse_port(true)?;
    }
    // A reset instead of TIME_WAIT on our side, which would keep this pair of addresses from us for a minute. What the
    // kernel holds for the backend is lost with it: `Streams::part` takes this back where the process ends.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&local.into())?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let stream = TcpStream::from_std(socket.into());
    tune(&stream, patience)?;
    Ok(stream)
}

/// What holds for every connection: no delay, a dead peer is noticed. `patience`: how long sent bytes may stay without
/// acknowledgement.
pub fn tune(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_EACH).with_retries(KEEPALIVES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(patience))
}
