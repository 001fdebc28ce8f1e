//! TLS over a connection's socket (SPEC 9.3): rustls fed by reads that the poll announced, and nothing of its own while idle.
//!
//! A write counts as done once its records have left: until then its bytes stay with the caller, so that what a dead peer
//! has not taken can be told message by message, and at most one chunk is kept twice. Which credentials are used, and how
//! long a handshake may take, is decided by `Streams`.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use mio::net::TcpStream;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, Error, ServerConfig,
    ServerConnection, pki_types::ServerName,
};

use super::pipe::Taken;
use crate::stats::Counter;

/// Plaintext that is encrypted at a time.
const CHUNK: usize = 16 * 1024;
/// Reads of the socket for one read of plaintext, at most; each brings 4 KiB or the rest of a record.
const FILLS: usize = 16;

pub struct Session {
    tls: Connection,
    /// Plaintext whose records have not all left.
    under_way: usize,
    /// The handshake is done.
    open: bool,
    /// Nothing can be read or written any more; what the peer still says is dropped unread.
    failed: bool,
    /// What ended a read that had brought something: told by the next.
    pending: Option<io::Error>,
    records: Records,
}

/// Where in a record what has come ends (RFC 8446 5.1): rustls does not tell.
#[derive(Default)]
struct Records {
    /// Bytes of a header that is not whole: type, version, length.
    header: u8,
    /// Bytes of the body that are to come; while the header is not whole, what of the length has.
    missing: u16,
}

/// The socket, as rustls reads it.
struct Tap<'a> {
    socket: &'a mut TcpStream,
    records: &'a mut Records,
}

/// Why TLS failed (the label of a counter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Not TLS, a record that cannot be decrypted, a message out of order.
    BadRecord,
    /// No common version, cipher suite or group.
    NothingShared,
    /// A certificate that must be shown was not.
    NoCertificate,
    UnknownCa,
    /// Expired, not valid yet, revoked, badly signed.
    BadCertificate,
    /// The certificate is another host's.
    WrongName,
    /// The peer refused ours.
    Refused,
    /// The peer gave up by an alert.
    Alert,
    Other,
}

impl Session {
    pub fn server(config: Arc<ServerConfig>) -> Result<Session, Error> {
        ServerConnection::new(config).map(|tls| Session::of(Connection::Server(tls)))
    }

    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Session, Error> {
        ClientConnection::new(config, name).map(|tls| Session::of(Connection::Client(tls)))
    }

    fn of(mut tls: Connection) -> Session {
        tls.set_buffer_limit(Some(2 * CHUNK));
        Session { tls, under_way: 0, open: false, failed: false, pending: None, records: Records::default() }
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Reads and decrypts, as `Pipe::read`. While the handshake lasts one read of the socket is one step of it.
    pub fn read(&mut self, socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Taken> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        if self.failed {
            let more = socket.read(buffer)? > 0;
            return Ok(Taken { bytes: 0, more });
        }
        let mut bytes = 0;
        for _ in 0..FILLS {
            bytes += self.plaintext(&mut buffer[bytes..])?;
            if bytes == buffer.len() {
                return Ok(Taken { bytes, more: true });
            }
            match self.tls.read_tls(&mut Tap { socket, records: &mut self.records }) {
                Ok(0) if bytes > 0 => return Ok(Taken { bytes, more: true }),
                Ok(0) => return Ok(Taken { bytes, more: false }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && bytes > 0 => {
                    return Ok(Taken { bytes, more: false });
                }
                Err(error) => return self.told_later(bytes, error),
            }
            let greeting = !self.open;
            if let Err(error) = self.tls.process_new_packets() {
                self.failed = true;
                // The alert that says why; that it cannot be sent changes nothing.
                let _ = self.flush(socket);
                bytes += self.plaintext(&mut buffer[bytes..]).unwrap_or(0);
                return self.told_later(bytes, io::Error::new(io::ErrorKind::InvalidData, error));
            }
            self.open = !self.tls.is_handshaking();
            if let Err(error) = self.flush(socket) {
                bytes += self.plaintext(&mut buffer[bytes..]).unwrap_or(0);
                return self.told_later(bytes, error);
            }
            if greeting {
                bytes += self.plaintext(&mut buffer[bytes..])?;
                return Ok(Taken { bytes, more: true });
            }
        }
        Ok(Taken { bytes, more: true })
    }

    /// What came before an error is not lost with it: a goodbye may be followed by a reset.
    fn told_later(&mut self, bytes: usize, error: io::Error) -> io::Result<Taken> {
        if bytes == 0 {
            return Err(error);
        }
        self.pending = Some(error);
        Ok(Taken { bytes, more: true })
    }

    /// What is decrypted.
    fn plaintext(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = 0;
        while bytes < buffer.len() {
            match self.tls.reader().read(&mut buffer[bytes..]) {
                Ok(0) => break,
                Ok(n) => bytes += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The peer's end without close_notify: whoever reads next sees the end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// As `Pipe::write`: of the same bytes, again and again, until their records have left.
    pub fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.open {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.under_way == 0 {
            if !self.flush(socket)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.under_way = self.tls.writer().write(&bytes[..bytes.len().min(CHUNK)])?;
            if self.under_way == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        if !self.flush(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(std::mem::take(&mut self.under_way))
    }

    /// Sends records that wait. True where none is left.
    pub fn flush(&mut self, socket: &mut TcpStream) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// A part of a record has come, and its end has not.
    pub fn is_mid_record(&self) -> bool {
        self.records.is_inside()
    }

    pub fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// Tells the peer that nothing more comes (close_notify), unless it was told why by an alert.
    pub fn shut(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        if !self.failed {
            self.tls.send_close_notify();
        }
        self.flush(socket).map(drop)
    }
}

impl Records {
    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            if self.header == 0 && self.missing > 0 {
                let body = bytes.len().min(self.missing.into());
                self.missing -= body as u16;
                bytes = &bytes[body..];
                continue;
            }
            match self.header {
                3 => self.missing = u16::from(first) << 8,
                4 => self.missing |= u16::from(first),
                _ => {}
            }
            self.header = (self.header + 1) % 5;
            bytes = &bytes[1..];
        }
    }

    fn is_inside(&self) -> bool {
        self.header > 0 || self.missing > 0
    }
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.socket.read(buffer)?;
        self.records.pass(&buffer[..bytes]);
        Ok(bytes)
    }
}

impl Fault {
    /// For people.
    pub const fn explained(self) -> &'static str {
        match self {
            Fault::BadRecord => "what it says is not TLS, or broken",
            Fault::NothingShared => "no version or cipher suite in common",
            Fault::NoCertificate => "it shows no certificate",
            Fault::UnknownCa => "nobody whom we trust signed its certificate",
            Fault::BadCertificate => "its certificate is expired or broken",
            Fault::WrongName => "its certificate is another host's",
            Fault::Refused => "it refuses our certificate",
            Fault::Alert => "it gave up",
            Fault::Other => "an error within",
        }
    }

    pub fn counter(self) -> Counter {
        match self {
            Fault::BadRecord => Counter::TlsBadRecord,
            Fault::NothingShared => Counter::TlsNothingShared,
            Fault::NoCertificate => Counter::TlsNoCertificate,
            Fault::UnknownCa => Counter::TlsUnknownCa,
            Fault::BadCertificate => Counter::TlsBadCertificate,
            Fault::WrongName => Counter::TlsWrongName,
            Fault::Refused => Counter::TlsRefused,
            Fault::Alert => Counter::TlsAlert,
            Fault::Other => Counter::TlsOther,
        }
    }
}

/// What an error of a read or write says about TLS; `None` where it is the socket's.
pub fn fault_of(error: &io::Error) -> Option<Fault> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidMessage(_)
        | Error::DecryptError
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord
        | Error::PeerMisbehaved(_) => Fault::BadRecord,
        Error::PeerIncompatible(_) => Fault::NothingShared,
        Error::NoCertificatesPresented => Fault::NoCertificate,
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => Fault::UnknownCa,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Fault::WrongName,
        Error::InvalidCertificate(_) => Fault::BadCertificate,
        Error::AlertReceived(alert) => match alert {
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateRequired
            | AlertDescription::AccessDenied => Fault::Refused,
            AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion => Fault::NothingShared,
            _ => Fault::Alert,
        },
        _ => Fault::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8446 5.1, however the bytes are cut.
    #[test]
    fn a_record_is_seen_to_begin_and_to_end() {
        let records = [&[23, 3, 3, 1, 2][..], &[7; 258], &[23, 3, 3, 0, 0], &[21, 3, 3, 0, 2, 1, 0]];
        let (bytes, ends) = (records.concat(), [263, 268, 275]);
        for cut in 1..bytes.len() {
            let mut seen = Records::default();
            for (at, part) in bytes.chunks(cut).enumerate() {
                seen.pass(part);
                let so_far = at * cut + part.len();
                assert_eq!(seen.is_inside(), !ends.contains(&so_far), "{so_far} bytes, {cut} at a time");
            }
        }
    }
}
