//! UDP listeners (SPEC 9.1): one SO_REUSEPORT socket per worker and address, made once and for life.
//!
//! Closing a member of a reuseport group loses what it has queued, and adding one moves flows to other cores; so the
//! group is made whole, before the workers start, and ends with the process. Sockets never block, answer from the
//! address that was asked (packet information, on wildcard binds), let large datagrams be fragmented (no DF), and queue
//! ICMP errors with what they are about (IP_RECVERR). Batches in and out are `net::sys`'s; `worker` drives them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, Type};

use super::sys;

pub use sys::{BATCH, DATAGRAM, Datagram, Inbound, Outbound, Received, Returned};

/// One bound socket: a worker's share of a listener.
#[derive(Debug)]
pub struct Socket {
    socket: socket2::Socket,
    /// What it is bound to.
    pub local: SocketAddr,
    /// SO_RCVBUF and SO_SNDBUF as the kernel gave them, in the unit in which they were asked for.
    pub receive_buffer: usize,
    pub send_buffer: usize,
}

/// Binds `n` sockets to `address`, one for each worker, which share its datagrams by 4-tuple.
///
/// The buffer sizes are bytes; what the kernel gave may be less and stands in each `Socket`. With port 0 the kernel picks
/// one port for all. Fails where the port is taken, by a process of this user with SO_REUSEPORT too.
pub fn bind(
    address: SocketAddr,
    n: usize,
    receive_buffer: usize,
    send_buffer: usize,
) -> io::Result<Vec<Socket>> {
    // The kernel lets any process of one user join a reuseport group, and would then give it half of our datagrams. One
    // bind without that option tells; another process may still slip in between, which is its operator's doing.
    plain(address).and_then(|s| s.bind(&address.into())).map_err(|e| explained(address, "udp", &e))?;
    let mut sockets = Vec::with_capacity(n);
    let mut address = address;
    for _ in 0..n {
        let socket =
            listener(address, receive_buffer, send_buffer).map_err(|e| explained(address, "udp", &e))?;
        address = socket.local;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The address from which the kernel would send to `destination`; `None` where there is no route.
pub fn source_for(destination: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect(destination).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
}

impl Socket {
    /// Bound to 0.0.0.0 or [::]: datagrams name their local address, and what is sent may name its source.
    pub fn is_wildcard(&self) -> bool {
        self.local.ip().is_unspecified()
    }

    /// Datagrams that the kernel dropped here since the socket was made, mostly for a full buffer. It wraps.
    pub fn drops(&self) -> io::Result<u32> {
        sys::drops(self.as_fd())
    }

    /// Whether received datagrams carry the time at which the kernel had them.
    pub fn set_stamps(&self, on: bool) -> io::Result<()> {
        sys::set(self.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, on.into())
    }

    /// Takes one entry of the error queue; `None` where it is empty.
    pub fn take_error(&self, buffer: &mut [u8]) -> io::Result<Option<Returned>> {
        sys::take_error(self.as_fd(), buffer)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an error number means that a datagram cannot reach its destination (ICMP or a route that is missing).
pub fn is_unreachable(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EACCES
            | libc::EPERM
    )
}

fn plain(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn listener(address: SocketAddr, receive_buffer: usize, send_buffer: usize) -> io::Result<Socket> {
    let socket = plain(address)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    let fd = socket.as_fd();
    let (level, error_queue, packet_info) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_RECVPKTINFO),
    };
    sys::set(fd, level, error_queue, 1)?;
    if address.ip().is_unspecified() {
        sys::set(fd, level, packet_info, 1)?;
    }
    // The default sets DF, and the first large NOTIFY over a narrow path would vanish. (IPv6 routers never fragment:
    // there the kernel learns the path's MTU and fragments what follows.)
    if address.is_ipv4() {
        sys::set(fd, level, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    }
    size(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_buffer)?;
    size(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, send_buffer)?;
    socket.bind(&address.into())?;
    let local = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("bound to no IP address"))?;
    // The kernel reports twice what it was asked for, to account for its own overhead.
    let (receive_buffer, send_buffer) = (socket.recv_buffer_size()? / 2, socket.send_buffer_size()? / 2);
    Ok(Socket { socket, local, receive_buffer, send_buffer })
}

/// Sets a buffer size: beyond the system's maximum where we may (CAP_NET_ADMIN), else up to it.
fn size(fd: BorrowedFd<'_>, force: i32, ask: i32, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX / 2).min(i32::MAX / 2);
    sys::set(fd, libc::SOL_SOCKET, force, bytes).or_else(|_| sys::set(fd, libc::SOL_SOCKET, ask, bytes))
}

/// The error in the words of the one who has to mend it.
pub(super) fn explained(address: SocketAddr, transport: &str, error: &io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "is in use by another process".to_owned(),
        io::ErrorKind::AddrNotAvailable => "cannot be bound: this machine has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "cannot be bound: ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => format!("cannot be bound: {error}"),
    };
    io::Error::new(error.kind(), format!("{address}/{transport} {why}"))
}
