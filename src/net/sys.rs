//! The system calls that no library gives us in the form we need, and the only unsafe code of the crate.
//!
//! recvmmsg into buffers that the caller keeps, sendmmsg to a different destination (and from a different source
//! address) per message, the error queue of a socket, a few socket options, the clock, a thread's core. Nothing here
//! knows SIP, decides anything or keeps state beyond its buffers. Driven by `net::udp` and `worker`; the benches use
//! it for their raw relay.
//!
//! Why not a library: quinn-udp sends a batch to one destination only, sets DF and swallows EMSGSIZE; nix shares the
//! control messages of a batch; rustix has no recvmmsg.

#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use libc::c_int;

/// Raises this process's limit of open files as far as the system lets it; gives what it is now.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours and outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above; it is only read.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

fn check(outcome: c_int) -> io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams in one batch. Each system call puts the kernel's code and data in the place of ours in the first caches: beside
/// a raw relay with the same batch, the step from 16 to 32 took 0.04 off the ratio of a message's cost, that to 64 as much,
/// that to 128 0.02 at most.
pub const BATCH: usize = 64;

/// Room for one datagram: UDP can carry no more.
pub const DATAGRAM: usize = 64 * 1024;

/// Distance of two receive buffers. At a plain 64 KiB all of them would meet in the same few sets of the caches.
const STRIDE: usize = DATAGRAM + 17 * 64;

/// Room for the control messages of one datagram: packet information (40) and a receive time (32) are 72.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 96]);

/// A socket address as the kernel reads and writes it.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// The headers of one batch and what they point at. The vectors never grow, so the pointers stay good.
struct Frame {
    headers: Vec<libc::mmsghdr>,
    iovecs: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

impl Frame {
    fn new() -> Frame {
        // SAFETY: all of these are plain C structures, for which all zeroes is a valid value.
        let mut frame = unsafe {
            Frame {
                headers: vec![mem::zeroed(); BATCH],
                iovecs: vec![mem::zeroed(); BATCH],
                names: vec![mem::zeroed(); BATCH],
                controls: vec![mem::zeroed(); BATCH],
            }
        };
        let (iovecs, names) = (frame.iovecs.as_mut_ptr(), frame.names.as_mut_ptr());
        let controls = frame.controls.as_mut_ptr();
        for (i, header) in frame.headers.iter_mut().enumerate() {
            // SAFETY: i < BATCH, the length of all three.
            unsafe {
                header.msg_hdr.msg_iov = iovecs.add(i);
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_name = names.add(i).cast();
                header.msg_hdr.msg_control = controls.add(i).cast();
            }
        }
        frame
    }
}

/// A batch of received datagrams, in buffers that are kept. Only touched pages cost memory.
pub struct Inbound {
    frame: Frame,
    bytes: Vec<u8>,
    len: usize,
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub bytes: &'a [u8],
    pub peer: SocketAddr,
    /// The address that the sender spoke to: on sockets with packet information only.
    pub local: Option<IpAddr>,
    /// When the kernel had it, in nanoseconds since 1970: on sockets with receive times only.
    pub stamp: Option<u64>,
}

impl Default for Inbound {
    fn default() -> Self {
        Inbound::new()
    }
}

impl Inbound {
    pub fn new() -> Inbound {
        let mut frame = Frame::new();
        // Zeroed by the kernel page by page as they are touched, so the 2 MiB are not paid for at once.
        let mut bytes = vec![0u8; STRIDE * BATCH];
        for (i, iovec) in frame.iovecs.iter_mut().enumerate() {
            iovec.iov_base = bytes[i * STRIDE..][..DATAGRAM].as_mut_ptr().cast();
            iovec.iov_len = DATAGRAM;
        }
        let mut batch = Inbound { frame, bytes, len: BATCH };
        batch.rearm();
        batch
    }

    /// Gives the headers that the last batch used their lengths back.
    fn rearm(&mut self) {
        for header in &mut self.frame.headers[..self.len] {
            header.msg_hdr.msg_namelen = mem::size_of::<Name>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = mem::size_of::<Control>() as _;
        }
        self.len = 0;
    }

    /// Takes what is waiting, at most `BATCH`; never blocks. Fewer than `BATCH` means that no more was waiting, or that
    /// an error cut it short (which the next call reports).
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.rearm();
        // SAFETY: BATCH headers, each with one buffer of DATAGRAM bytes of `self.bytes`, a name and a control buffer of
        // the lengths that it states; all are ours and outlive the call.
        let n = unsafe {
            batch_call(libc::SYS_recvmmsg, socket, &mut self.frame.headers[..BATCH], libc::MSG_DONTWAIT)
        };
        self.len = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        Ok(self.len)
    }

    /// How many datagrams the last `receive` brought.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `i`th datagram of the last batch.
    #[inline]
    pub fn datagram(&self, i: usize) -> Option<Received<'_>> {
        let header = self.frame.headers[..self.len].get(i)?;
        let length = (header.msg_len as usize).min(DATAGRAM);
        let mut received = Received {
            bytes: &self.bytes[i * STRIDE..][..length],
            peer: address(&self.frame.names[i])?,
            local: None,
            stamp: None,
        };
        if header.msg_hdr.msg_controllen != 0 {
            received.read_controls(&header.msg_hdr);
        }
        Some(received)
    }
}

impl Received<'_> {
    #[inline(never)]
    fn read_controls(&mut self, header: &libc::msghdr) {
        each_control(header, |level, kind, data| match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                self.local = read::<libc::in_pktinfo>(data).map(|i| IpAddr::V4(v4(i.ipi_spec_dst)));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.local = read::<libc::in6_pktinfo>(data).map(|i| IpAddr::V6(v6(i.ipi6_addr)));
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                self.stamp = read::<libc::timespec>(data).map(nanos);
            }
            _ => {}
        });
    }
}

/// One datagram to send. `from` names the source address on a wildcard socket.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub bytes: &'a [u8],
    pub to: SocketAddr,
    pub from: Option<IpAddr>,
}

/// The headers of a batch to send, kept between batches.
pub struct Outbound {
    frame: Frame,
}

impl Default for Outbound {
    fn default() -> Self {
        Outbound::new()
    }
}

impl Outbound {
    pub fn new() -> Outbound {
        Outbound { frame: Frame::new() }
    }

    /// Sends the first `BATCH` of `datagrams`, in order, and says how many the kernel took. An error is the first
    /// datagram's: after a partial success the next call, with the rest, reports it.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Datagram<'a>>,
    ) -> io::Result<usize> {
        let mut n = 0;
        for datagram in datagrams.take(BATCH) {
            let iovec = &mut self.frame.iovecs[n];
            iovec.iov_base = datagram.bytes.as_ptr().cast_mut().cast();
            iovec.iov_len = datagram.bytes.len();
            let header = &mut self.frame.headers[n].msg_hdr;
            header.msg_namelen = put_address(&mut self.frame.names[n], &datagram.to);
            header.msg_controllen = match datagram.from {
                None => 0,
                Some(from) => put_source(&mut self.frame.controls[n], from) as _,
            };
            n += 1;
        }
        if n == 0 {
            return Ok(0);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the first n headers point at bytes that live for 'a, beyond this call, and at names and control
        // buffers of ours with the lengths that they state. The kernel only reads them (and writes msg_len).
        let sent = unsafe { batch_call(libc::SYS_sendmmsg, socket, &mut self.frame.headers[..n], flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// recvmmsg or sendmmsg, without a timeout; gives what they give. Not by the C library's functions of these names: in a
/// program of several threads those are cancellation points, which costs two more calls and two locked instructions each.
///
/// # Safety
/// What the headers point at must be as the call wants it, and outlive it.
unsafe fn batch_call(
    number: libc::c_long,
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
    flags: c_int,
) -> libc::c_long {
    let (fd, flags) = (libc::c_long::from(socket.as_raw_fd()), libc::c_long::from(flags));
    let no_timeout = ptr::null_mut::<libc::timespec>();
    // SAFETY: by the caller; each argument is a whole register, as the kernel takes it.
    unsafe { libc::syscall(number, fd, headers.as_mut_ptr(), headers.len(), flags, no_timeout) }
}

/// One entry of a socket's error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Where the datagram was going.
    pub to: SocketAddr,
    /// The address that it was sent from: on sockets with packet information only.
    pub from: Option<IpAddr>,
    pub errno: i32,
    /// False where this machine itself made the error (a send has reported it already).
    pub icmp: bool,
    /// Bytes of the datagram that came back, at the start of the caller's buffer.
    pub len: usize,
}

/// Takes one entry of the error queue (IP_RECVERR). `None`: it is empty.
pub fn take_error(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Returned>> {
    // SAFETY: plain C structures, for which all zeroes is a valid value.
    let (mut name, mut header): (Name, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = [Control([0; 96]); 3];
    let mut iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = mem::size_of::<Name>() as _;
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of_val(&control) as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points at locals and at the caller's buffer, with their lengths.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let Ok(n) = usize::try_from(n) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    let (mut returned, mut from) = (None, None);
    each_control(&header, |level, kind, data| match (level, kind) {
        (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR) => {
            returned = read::<libc::sock_extended_err>(data);
        }
        // The destination of the ICMP message; ipi_spec_dst means nothing here.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            from = read::<libc::in_pktinfo>(data).map(|i| IpAddr::V4(v4(i.ipi_addr)));
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            from = read::<libc::in6_pktinfo>(data).map(|i| IpAddr::V6(v6(i.ipi6_addr)));
        }
        _ => {}
    });
    let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Ok(Some(Returned {
        to: if header.msg_namelen == 0 { unknown } else { address(&name).unwrap_or(unknown) },
        from,
        errno: returned.map_or(0, |e| e.ee_errno as i32),
        icmp: returned
            .is_some_and(|e| matches!(e.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6)),
        len: n.min(buffer.len()),
    }))
}

/// Sets a socket option that is an int.
pub fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let size = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the value is a local int and its size is stated.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes of a stream, its end among them, that the peer's kernel has not acknowledged.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: TIOCOUTQ writes one int, and that is what it is given.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams that the kernel dropped at this socket since it was made (it wraps at 32 bits).
pub fn drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_MEMINFO: c_int = 55;
    let mut info = [0u32; 16];
    let mut size = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to the array.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(info[libc::SK_MEMINFO_DROPS as usize]) } else { Err(io::Error::last_os_error()) }
}

/// Binds the calling thread to the `index`th of the cores that it may use, counted round.
pub fn pin(index: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is a plain bit mask, the calls get its true size, and CPU_* stay below CPU_SETSIZE.
    unsafe {
        let mut allowed: libc::cpu_set_t = mem::zeroed();
        if libc::sched_getaffinity(0, mem::size_of_val(&allowed), &raw mut allowed) != 0 {
            return Err(io::Error::last_os_error());
        }
        let cores = libc::CPU_COUNT(&allowed).max(1) as usize;
        let mut usable = (0..libc::CPU_SETSIZE as usize).filter(|&i| libc::CPU_ISSET(i, &allowed));
        let Some(core) = usable.nth(index % cores) else { return Ok(()) };
        let mut chosen: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut chosen);
        if libc::sched_setaffinity(0, mem::size_of_val(&chosen), &raw const chosen) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Nanoseconds of the monotonic clock, one for all threads of the machine.
pub fn monotonic_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; it cannot fail for these clocks.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    nanos(time)
}

fn nanos(time: libc::timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Calls `f` with level, type and data of each control message.
fn each_control(header: &libc::msghdr, mut f: impl FnMut(c_int, c_int, &[u8])) {
    // SAFETY: the header's control buffer is aligned for cmsghdr and was filled by the kernel for msg_controllen bytes;
    // CMSG_FIRSTHDR and CMSG_NXTHDR stay inside it, and cmsg_len covers header and data.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(control) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            let before = data as usize - at as usize;
            // The type of cmsg_len differs between C libraries.
            #[allow(clippy::unnecessary_cast)]
            let length = (control.cmsg_len as usize).saturating_sub(before);
            f(control.cmsg_level, control.cmsg_type, std::slice::from_raw_parts(data, length));
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
}

/// Plain data that the kernel writes, readable from any bytes.
trait Plain: Copy {}
impl Plain for libc::in_pktinfo {}
impl Plain for libc::in6_pktinfo {}
impl Plain for libc::timespec {}
impl Plain for libc::sock_extended_err {}

fn read<T: Plain>(data: &[u8]) -> Option<T> {
    // SAFETY: there are enough bytes, T is plain data of integers, and the read needs no alignment.
    (data.len() >= mem::size_of::<T>()).then(|| unsafe { ptr::read_unaligned(data.as_ptr().cast()) })
}

/// Writes the control message that names the source address; returns its length.
fn put_source(control: &mut Control, from: IpAddr) -> usize {
    match from {
        IpAddr::V4(from) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            put_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        IpAddr::V6(from) => {
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            put_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

fn put_control<T: Plain>(control: &mut Control, level: c_int, kind: c_int, value: T) -> usize {
    let size = mem::size_of::<T>() as u32;
    // SAFETY: a header and the largest T (in6_pktinfo, 20 bytes) take 40 of the 96 bytes, which are aligned for cmsghdr;
    // the value is written without need of alignment.
    unsafe {
        let header = control.0.as_mut_ptr().cast::<libc::cmsghdr>();
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast(), value);
        libc::CMSG_SPACE(size) as usize
    }
}

fn put_address(name: &mut Name, address: &SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(a) => {
            name.v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: a.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                sin_zero: [0; 8],
            };
            mem::size_of::<libc::sockaddr_in>() as _
        }
        SocketAddr::V6(a) => {
            name.v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: a.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                sin6_scope_id: a.scope_id(),
            };
            mem::size_of::<libc::sockaddr_in6>() as _
        }
    }
}

fn address(name: &Name) -> Option<SocketAddr> {
    // SAFETY: both members begin with the family, were zeroed when made, and hold integers only: any bytes are valid.
    unsafe {
        match c_int::from(name.v4.sin_family) {
            libc::AF_INET => {
                let a = &name.v4;
                Some(SocketAddr::V4(SocketAddrV4::new(v4(a.sin_addr), u16::from_be(a.sin_port))))
            }
            libc::AF_INET6 => {
                let a = &name.v6;
                let (ip, port) = (v6(a.sin6_addr), u16::from_be(a.sin6_port));
                // The flow label of a packet is no part of where it came from.
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, a.sin6_scope_id)))
            }
            _ => None,
        }
    }
}

fn v4(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(address.s_addr.to_ne_bytes())
}

fn v6(address: libc::in6_addr) -> Ipv6Addr {
    Ipv6Addr::from(address.s6_addr)
}
