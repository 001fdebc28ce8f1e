//! The bytes of one connection: its socket, and TLS over it where the listener has it. `Connection` has the messages above.
//!
//! A read gives what the peer said, a write takes what it is to be told; what TLS needs for itself goes by the way. Nothing
//! here knows where a message begins, what waits, or when it is too late.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::fd::AsFd,
};

use mio::net::TcpStream;
use socket2::SockRef;

use super::tls::Session;
use crate::net::sys;

pub struct Pipe {
    socket: TcpStream,
    tls: Option<Box<Session>>,
}

/// What one read brought.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub bytes: usize,
    /// More may be there: polls are edge-triggered.
    pub more: bool,
}

impl Pipe {
    pub fn plain(socket: TcpStream) -> Pipe {
        Pipe { socket, tls: None }
    }

    pub fn secure(socket: TcpStream, session: Session) -> Pipe {
        Pipe { socket, tls: Some(Box::new(session)) }
    }

    /// TLS, if any is given, begins over a socket that was plain so far.
    pub fn wrap(&mut self, session: Option<Session>) {
        self.tls = session.map(Box::new);
    }

    /// For the poll.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Whether messages can pass; false while the handshake lasts.
    pub fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.is_open())
    }

    /// Reads at most `buffer.len()` bytes. No bytes and no more: the peer's end. No bytes and more: a step of the
    /// handshake was made. `WouldBlock`: nothing has come.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Taken> {
        if let Some(tls) = &mut self.tls {
            return tls.read(&mut self.socket, buffer);
        }
        let bytes = self.socket.read(buffer)?;
        // A short read has emptied the socket; of the peer's end behind it there will be an event, or there was.
        Ok(Taken { bytes, more: bytes == buffer.len() })
    }

    /// Gives how many of these bytes have left. `WouldBlock`: none, and who tries again does so with the same bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.write(&mut self.socket, bytes),
            None => self.socket.write(bytes),
        }
    }

    /// Sends what TLS has to say of its own, as far as the peer takes it. False where something is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            Some(tls) => tls.flush(&mut self.socket),
            None => Ok(true),
        }
    }

    /// TLS has something of its own to say.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// A part of a TLS record has come, which says nothing yet.
    pub fn is_mid_record(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_mid_record())
    }

    /// Says goodbye where TLS has words for it; the socket stays as it is.
    pub fn take_leave(&mut self) {
        if let Some(tls) = &mut self.tls {
            // Who does not hear it sees the end.
            let _ = tls.shut(&mut self.socket);
        }
    }

    /// Once it is closed the kernel goes on with what it has for the peer (`tcp::dial` has it drop that).
    pub fn linger(&self) -> io::Result<()> {
        SockRef::from(&self.socket).set_linger(None)
    }

    /// The peer's kernel has not acknowledged all that was written.
    pub fn is_under_way(&self) -> bool {
        sys::unacknowledged(self.socket.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// Nothing more will be written; the peer is told.
    pub fn shut(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.shut(&mut self.socket)?;
        }
        self.socket.shutdown(Shutdown::Write)
    }
}
