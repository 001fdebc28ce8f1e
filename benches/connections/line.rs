//! One connection of the load's, plain or with TLS over it; nothing here blocks. Handshakes are whole ones, never resumed, and
//! as cheap as they can be on this side: whose certificate it is, nobody asks.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::Arc,
};

use mio::net::TcpStream;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

pub struct Line {
    pub socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Line {
    /// `secure`: how, and to whom.
    pub fn new(socket: TcpStream, secure: Option<(&Arc<ClientConfig>, SocketAddr)>) -> anyhow::Result<Line> {
        let tls = match secure {
            None => None,
            Some((config, to)) => {
                let mut tls = ClientConnection::new(config.clone(), to.ip().into())?;
                tls.set_buffer_limit(None);
                Some(Box::new(tls))
            }
        };
        Ok(Line { socket, tls })
    }

    /// Can messages pass?
    pub fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Appends all that has come; false once the peer has ended it.
    pub fn read(&mut self, buffer: &mut [u8], bytes: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let read = match &mut self.tls {
                None => self.socket.read(buffer),
                Some(tls) => tls.read_tls(&mut self.socket),
            };
            let n = match read {
                Ok(0) => return Ok(false),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            match &mut self.tls {
                None => bytes.extend_from_slice(&buffer[..n]),
                Some(tls) => {
                    let state = tls.process_new_packets().map_err(io::Error::other)?;
                    let at = bytes.len();
                    bytes.resize(at + state.plaintext_bytes_to_read(), 0);
                    tls.reader().read_exact(&mut bytes[at..])?;
                }
            }
        }
        self.flush().map(|()| true)
    }

    /// Sends what the socket takes and removes it from `output`. Before the handshake is done it stays there.
    pub fn write(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            if !tls.is_handshaking() && !output.is_empty() {
                tls.writer().write_all(output)?;
                output.clear();
            }
            return self.flush();
        }
        let mut sent = 0;
        while sent < output.len() {
            match self.socket.write(&output[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        output.drain(..sent);
        Ok(())
    }

    /// What TLS itself has to say.
    fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The socket alone, for who has nothing more to say: this side's memory is not what is measured.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }
}

/// How the load calls over TLS.
pub fn client() -> anyhow::Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Believes everybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
