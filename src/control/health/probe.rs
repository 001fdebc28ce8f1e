//! One probe: a request of ours to one backend, a non-INVITE client transaction (RFC 3261 17.1.2) that ends with its answer
//! or its time.
//!
//! It leaves from a port of its own at the address by which requests leave for that backend (so who lets only the
//! router's address in, answers), and the socket is connected: the kernel takes answers from the backend alone and tells
//! its ICMP errors to nobody else. Late answers find the socket closed. Over TCP and TLS each probe has a connection of its own:
//! that a backend still takes new ones is part of the question.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
};

use tokio_rustls::TlsConnector;

use super::judge::Outcome;
use crate::{
    config::{
        table::ProbeSpec,
        tls::{Credentials, name_of},
    },
    net::{streams::tls_fault_of, udp::is_unreachable},
    wire::{Frame, Framer, HeaderId, Index, Limits, Start, Transport, inspect::inspect},
};

/// RFC 3261 17.1.1.1.
const T1: Duration = Duration::from_millis(500);
const T2: Duration = Duration::from_secs(4);
const LARGEST: usize = 65_535;

/// Whom to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As the table writes it.
    pub uri: Box<str>,
    /// Of the URI: what its certificate must name.
    pub host: Box<str>,
    pub address: SocketAddr,
    pub local: IpAddr,
    pub transport: Transport,
    pub rules: ProbeSpec,
}

/// Asks; `id` is of this probe alone.
pub async fn run(target: &Target, credentials: &Credentials, id: &str) -> Outcome {
    let asked = async {
        if target.transport.is_datagram() {
            ask(target, id).await
        } else {
            ask_by_stream(target, credentials, id).await
        }
    };
    match tokio::time::timeout(target.rules.timeout, asked).await {
        Err(_) => Outcome::Silent,
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) if let Some(fault) = tls_fault_of(&error) => Outcome::Insecure(fault),
        Ok(Err(error)) => match error.raw_os_error().unwrap_or(0) {
            libc::ECONNREFUSED | libc::ECONNRESET => Outcome::Refused,
            // It took the connection and closed it without a word.
            _ if !target.transport.is_datagram() && error.raw_os_error().is_none() => Outcome::Silent,
            errno if is_unreachable(errno) => Outcome::Unreachable,
            _ => {
                tracing::debug!(backend = %target.address, local = %target.local, %error, "a probe could not be sent");
                Outcome::Unsent
            }
        },
    }
}

async fn ask(target: &Target, id: &str) -> io::Result<Outcome> {
    let socket = UdpSocket::bind(SocketAddr::new(target.local, 0)).await?;
    socket.connect(target.address).await?;
    let request = request(target, socket.local_addr()?, id);
    let started = Instant::now();
    let mut wait = T1;
    loop {
        socket.send(request.as_bytes()).await?;
        if let Ok(answer) = tokio::time::timeout(wait, answer(&socket, id)).await {
            let (code, retry_s) = answer?;
            return Ok(Outcome::Answered { code, retry_s, rtt: started.elapsed() });
        }
        wait = (wait * 2).min(T2);
    }
}

async fn ask_by_stream(target: &Target, credentials: &Credentials, id: &str) -> io::Result<Outcome> {
    let socket = if target.local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(target.local, 0))?;
    let started = Instant::now();
    let stream = socket.connect(target.address).await?;
    let request = request(target, stream.local_addr()?, id);
    if !target.transport.is_secure() {
        return talk(stream, &request, id, started).await;
    }
    let config = credentials.client().ok_or(io::ErrorKind::Unsupported)?;
    let name = name_of(Some(&target.host), target.address);
    let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
    talk(stream, &request, id, started).await
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    id: &str,
    started: Instant,
) -> io::Result<Outcome> {
    stream.write_all(request.as_bytes()).await?;
    let (mut framer, mut index, limits) = (Framer::new(), Index::new(), Limits::default());
    let mut held = Vec::new();
    loop {
        match framer.next(&held, &mut index, &limits) {
            Frame::Message { len } => {
                if let Some((code, retry_s)) = read(&held[..len], id) {
                    return Ok(Outcome::Answered { code, retry_s, rtt: started.elapsed() });
                }
                held.drain(..len);
            }
            Frame::Keepalive { len, .. } => drop(held.drain(..len)),
            Frame::More => {
                if stream.read_buf(&mut held).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Frame::Refused { .. } => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Waits for the final response to this probe: its code, and its Retry-After where it is a 503. Provisional ones are
/// passed over.
async fn answer(socket: &UdpSocket, id: &str) -> io::Result<(u16, Option<u32>)> {
    let mut buffer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = read(&buffer[..length], id) {
            return Ok(answer);
        }
    }
}

fn read(bytes: &[u8], id: &str) -> Option<(u16, Option<u32>)> {
    let mut index = Index::new();
    let view = index.scan(bytes, &Limits::default()).ok()?;
    let Start::Response { code, .. } = view.start() else { return None };
    let essentials = inspect(&view).ok()?;
    if code < 200 || essentials.via.branch.strip_prefix(b"z9hG4bK") != Some(id.as_bytes()) {
        return None;
    }
    let retry_after = || {
        let value = std::str::from_utf8(view.value(HeaderId::RetryAfter)?).ok()?;
        let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
        value[..end].parse().ok()
    };
    Some((code, if code == 503 { retry_after() } else { None }))
}

fn request(target: &Target, local: SocketAddr, id: &str) -> String {
    let Target { uri, rules, transport, .. } = target;
    let (via, host_only) = (transport.via(), SocketAddr::new(local.ip(), 0).to_string());
    let method = &rules.method;
    let host = host_only.strip_suffix(":0").unwrap_or(&host_only);
    let param = if transport.is_datagram() { "" } else { &*format!(";transport={}", transport.label()) };
    format!(
        "{method} {uri} SIP/2.0\r\n\
         Via: SIP/2.0/{via} {local};rport;branch=z9hG4bK{id}\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:tidings@{host}>;tag={id}\r\n\
         To: <{uri}>\r\n\
         Call-ID: {id}@{host}\r\n\
         CSeq: 1 {method}\r\n\
         Contact: <sip:tidings@{local}{param}>\r\n\
         Accept: */*\r\n\
         User-Agent: Tidings\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            uri: "sip:[2001:db8::11]:5060;transport=udp".into(),
            host: "2001:db8::11".into(),
            address: "[2001:db8::11]:5060".parse().expect("an address"),
            local: "2001:db8::1".parse().expect("an address"),
            transport: Transport::Udp,
            rules: ProbeSpec::default(),
        }
    }

    /// SPEC 2.2: what we build ourselves must be well-formed for our own scan too.
    #[test]
    fn a_probe_is_a_request_that_the_router_itself_would_take() {
        let text = request(&target(), "[2001:db8::1]:40000".parse().expect("an address"), "x1y2");
        let mut index = Index::new();
        let view =
            index.scan(text.as_bytes(), &Limits::default()).unwrap_or_else(|_| panic!("refused: {text}"));
        let essentials = inspect(&view).unwrap_or_else(|reason| panic!("{}: {text}", reason.label()));
        assert_eq!(essentials.via.branch, b"z9hG4bKx1y2");
        assert_eq!(essentials.call_id, b"x1y2@[2001:db8::1]");
        assert!(text.starts_with("OPTIONS sip:[2001:db8::11]:5060;transport=udp SIP/2.0\r\n"), "{text}");
    }

    #[test]
    fn only_the_answer_to_this_probe_counts() {
        let answer = |line: &str, branch: &str, more: &str| {
            format!(
                "SIP/2.0 {line}\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch={branch}\r\nFrom: <sip:a@b>;tag=x\r\n\
                 To: <sip:c@d>;tag=y\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\n{more}Content-Length: 0\r\n\r\n"
            )
        };
        let read = |text: String| read(text.as_bytes(), "x1");
        assert_eq!(read(answer("200 OK", "z9hG4bKx1", "")), Some((200, None)));
        assert_eq!(read(answer("200 OK", "z9hG4bKx2", "")), None);
        assert_eq!(read(answer("100 Trying", "z9hG4bKx1", "")), None);
        assert_eq!(
            read(answer("503 Busy", "z9hG4bKx1", "Retry-After: 18 (soon);x=1\r\n")),
            Some((503, Some(18)))
        );
        assert_eq!(read(answer("503 Busy", "z9hG4bKx1", "Retry-After: soon\r\n")), Some((503, None)));
        assert_eq!(read(answer("404 No", "z9hG4bKx1", "Retry-After: 18\r\n")), Some((404, None)));
        assert_eq!(read("OPTIONS sip:a SIP/2.0\r\n\r\n".to_owned()), None);
    }
}
