//! TLS, with real handshakes: certificates and their reload, what a handshake may cost, backends that must prove who they
//! are, sips, and peers that are not ours (SPEC 3.3, 9.3, 9.7, 9.8). What tokens must hold over TLS stands in `matrix`.

#[path = "../rig/mod.rs"]
mod rig;

mod backends;
mod certificates;
mod handshakes;
mod peers;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use rig::{
    Party,
    message::{Request, unique},
    pki::authority,
    scene::{Layout, Scene},
};

const PATIENCE: Duration = Duration::from_secs(5);

type Secure = StreamOwned<ClientConnection, TcpStream>;

fn layout(net: u8, clients: &'static str, backends: &'static str) -> Layout {
    let mut layout = Layout::new(net);
    layout.column = (clients, backends);
    layout
}

fn tcp(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("the router listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

/// A connection to the router as its own address, by whoever trusts the tests' authority.
fn connect(to: SocketAddr) -> Secure {
    connect_as(to, authority().client(None), to.ip().into())
}

/// The handshake is done as far as this side sees.
fn connect_as(to: SocketAddr, config: Arc<ClientConfig>, name: ServerName<'static>) -> Secure {
    let mut socket = tcp(to);
    let mut tls = ClientConnection::new(config, name).expect("a client");
    // What is wrong is seen by who reads.
    while tls.is_handshaking() && tls.complete_io(&mut socket).is_ok() {}
    StreamOwned::new(tls, socket)
}

/// An OPTIONS to the router itself, of nobody in particular.
fn options(scene: &Scene) -> String {
    let word = unique();
    format!(
        "OPTIONS sip:{} SIP/2.0\r\nVia: SIP/2.0/TLS 192.0.2.1;rport;branch=z9hG4bK{word}\r\nMax-Forwards: 70\r\n\
         From: <sip:a@b>;tag={word}\r\nTo: <sip:c@d>\r\nCall-ID: {word}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
        scene.phones()
    )
}

/// Asks the router something; what TLS or the socket had against it.
fn ask(stream: &mut Secure, scene: &Scene) -> Result<(), String> {
    stream.write_all(options(scene).as_bytes()).map_err(|error| error.to_string())?;
    let (mut all, mut buffer) = (String::new(), [0; 4096]);
    while !all.contains("\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(format!("closed after {all:?}")),
            Ok(n) => all += std::str::from_utf8(&buffer[..n]).expect("text"),
            Err(error) => return Err(error.to_string()),
        }
    }
    assert!(all.starts_with("SIP/2.0 200 OK\r\n"), "{all}");
    Ok(())
}

fn failed(scene: &Scene, cause: &str) -> f64 {
    scene.router.metrics().sum("tidings_tls_errors_total", &[("cause", cause)])
}

fn closed(scene: &Scene, reason: &str) -> f64 {
    scene.router.metrics().sum("tidings_connections_closed_total", &[("reason", reason)])
}

/// What honest phones do while something else goes on.
fn honest(phone: &Party, scene: &Scene, pbx: &Party) {
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", phone).text());
    let got = pbx.expect("MESSAGE ");
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
    phone.expect("SIP/2.0 200");
}
