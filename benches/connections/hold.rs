//! Connections that do nothing: opened, seen to be served by a keep-alive (RFC 5626 4.4.1) and its answer, held.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

/// Connections that are being opened at one time.
const UNDER_WAY: usize = 256;
/// They come from so many addresses, since one has too few ports.
const ADDRESSES: u8 = 20;

/// Opens `count` connections, each from one of twenty addresses; gives them once all are served.
pub fn open(to: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut all: Vec<TcpStream> = Vec::with_capacity(count);
    let (mut served, mut asked) = (0, vec![false; count]);
    let end = Instant::now() + Duration::from_secs(60);
    while served < count {
        while all.len() < count && all.len() - served < UNDER_WAY {
            let mut stream = connect(to, (all.len() % usize::from(ADDRESSES)) as u8)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(all.len()), interest)?;
            all.push(stream);
        }
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        for event in &events {
            let at = event.token().0;
            let stream = &mut all[at];
            if event.is_writable() && !asked[at] {
                stream.write_all(b"\r\n\r\n")?;
                asked[at] = true;
            }
            if event.is_readable() {
                let n = stream.read(&mut [0; 64])?;
                anyhow::ensure!(n == 2, "{n} bytes for a keep-alive");
                served += 1;
            }
        }
        anyhow::ensure!(Instant::now() < end, "{served} of {count} connections were served");
    }
    for stream in &mut all {
        poll.registry().deregister(stream)?;
    }
    Ok(all)
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
