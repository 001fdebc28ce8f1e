//! The bytes of one connection: its socket, and what lies over it. `Connection` has the messages above it.
//!
//! A read gives what the peer said, a write takes what it is to be told; what a layer needs for itself goes by the way.
//! Nothing here knows where a message begins, what waits, or when it is too late.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
};

use mio::net::TcpStream;

pub struct Pipe {
    socket: TcpStream,
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
        Pipe { socket }
    }

    /// For the poll.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Reads at most `buffer.len()` bytes. Nothing at the peer's end; `WouldBlock` where nothing has come.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Taken> {
        let bytes = self.socket.read(buffer)?;
        // A short read has emptied the socket; of the peer's end behind it there will be an event, or there was.
        Ok(Taken { bytes, more: bytes == buffer.len() })
    }

    /// Gives how many of these bytes have left. `WouldBlock`: none, and who tries again does so with the same bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    /// Nothing more will be written.
    pub fn shut(&mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }
}
