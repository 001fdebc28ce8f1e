//! WebSockets (RFC 6455, RFC 7118, SPEC 9.4), the PROXY protocol (SPEC 9.5), and those who use them: raw bytes, HAProxy, and a
//! real browser. What tokens must hold stands in `matrix`.

#[path = "../rig/mod.rs"]
mod rig;

mod browser;
mod proxy;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use rig::{
    message::{Request, unique},
    scene::{Dialog, Layout, Scene, first_route, one_pbx},
    text, wait_for,
    websocket::{self, Frame},
};

const PATIENCE: Duration = Duration::from_secs(5);
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

fn layout(net: u8, clients: &'static str, backends: &'static str) -> Layout {
    let mut layout = Layout::new(net);
    layout.column = (clients, backends);
    layout
}

/// With lines for the phones' listener.
fn listening(net: u8, lines: &str) -> Scene {
    let mut layout = layout(net, "ws", "udp");
    layout.listener = lines.into();
    layout.start(&one_pbx(net))
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("the router listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

/// A WebSocket with the router.
struct Socket {
    stream: TcpStream,
    held: Vec<u8>,
}

impl Socket {
    fn open(to: SocketAddr) -> Socket {
        let mut stream = connect(to);
        stream.write_all(websocket::request("/", "").as_bytes()).expect("sent");
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains(websocket::ACCEPT), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: sip\r\n"), "{answer}");
        Socket { stream, held: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// The next frame; `None` at the end.
    fn take(&mut self) -> Option<Frame> {
        let mut buffer = [0; 65_536];
        loop {
            if let Some(frame) = websocket::take(&mut self.held) {
                return Some(frame);
            }
            match self.stream.read(&mut buffer).expect("a frame or the end") {
                0 => return None,
                n => self.held.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// The next frame, which must be a SIP message that begins so.
    fn expect(&mut self, start: &str) -> String {
        let frame = self.take().expect("a message");
        let message = String::from_utf8(frame.payload).expect("text");
        assert!(frame.first == TEXT && message.starts_with(start), "{:x}: {message}", frame.first);
        message
    }

    /// A Close with this code comes next, then the end.
    fn expect_close(&mut self, code: u16) {
        let expected = Frame { first: CLOSE, payload: code.to_be_bytes().to_vec() };
        assert_eq!((self.take(), self.take()), (Some(expected), None));
    }
}

/// What comes until an empty line.
fn head(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).expect("an answer"), 1, "closed: {}", answer.escape_ascii());
        answer.push(byte[0]);
    }
    String::from_utf8(answer).expect("text")
}

fn closed(scene: &Scene, reason: &str) -> f64 {
    scene.router.metrics().sum("tidings_connections_closed_total", &[("reason", reason)])
}

#[track_caller]
fn wait_closed(scene: &Scene, reason: &str, count: f64) {
    wait_for(&format!("{count} closed for {reason}"), PATIENCE, || {
        (closed(scene, reason) == count).then_some(())
    });
}

/// An OPTIONS to the router itself, as a browser's phone writes it.
fn options(scene: &Scene) -> String {
    let word = unique();
    format!(
        "OPTIONS sip:{} SIP/2.0\r\nVia: SIP/2.0/WS {word}.invalid;branch=z9hG4bK{word}\r\nMax-Forwards: 70\r\n\
         From: <sip:a@b>;tag={word}\r\nTo: <sip:c@d>\r\nCall-ID: {word}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
        scene.phones()
    )
}

/// RFC 6455 4.2.2 and 10.2: what is not for us gets the status that says so, and the connection ends.
#[test]
fn requests_that_are_refused_get_their_status_and_are_closed() {
    let scene = listening(120, "path = \"/ws\"\norigins = [\"https://phone.example.com\"]\n");
    let good = websocket::request("/ws?user=1", "Origin: https://phone.example.com\r\n");
    let without = good.replace("Origin: https://phone.example.com\r\n", "");
    for request in [&good, &without] {
        let mut stream = connect(scene.phones());
        stream.write_all(request.as_bytes()).expect("sent");
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    }
    let cases = [
        (good.replace("/ws?", "/other?"), "404", "path"),
        (good.replace("GET", "POST"), "405", "method"),
        (good.replace("Version: 13", "Version: 8"), "426", "version"),
        (good.replace("Upgrade: websocket\r\n", ""), "426", "no_upgrade"),
        (good.replace(": sip\r\n", ": chat\r\n"), "400", "protocol"),
        (good.replace("phone.example.com", "evil.example"), "403", "origin"),
        (options(&scene), "400", "request"),
        (format!("GET /ws HTTP/1.1\r\nCookie: {}", "x".repeat(17_000)), "431", "too_long"),
    ];
    for (request, status, cause) in &cases {
        let mut stream = connect(scene.phones());
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and the end");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{cause}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        let refused = scene.router.metrics().sum("tidings_websocket_refused_total", &[("cause", cause)]);
        assert_eq!(refused, 1.0, "{cause}");
    }
    wait_closed(&scene, "upgrade", cases.len() as f64);
    assert_eq!(scene.router.metrics().sum("tidings_websocket_upgrades_total", &[]), 2.0);
}

/// RFC 6455 5: in one frame, in several, byte by byte; of text and binary; with control frames between.
#[test]
fn messages_come_in_any_frames_and_pieces() {
    let scene = layout(121, "ws", "udp").start(&one_pbx(121));
    let mut socket = Socket::open(scene.phones());
    for first in [0x81, 0x82] {
        socket.send(&websocket::frame(first, options(&scene).as_bytes()));
        socket.expect("SIP/2.0 200");
    }
    let three = [0; 3].map(|_| websocket::message(options(&scene).as_bytes())).concat();
    socket.send(&three);
    (0..3).for_each(|_| drop(socket.expect("SIP/2.0 200")));
    for byte in websocket::message(options(&scene).as_bytes()).chunks(1) {
        socket.send(byte);
    }
    socket.expect("SIP/2.0 200");
    let whole = options(&scene);
    let (begin, rest) = whole.split_at(100);
    let (middle, end) = rest.split_at(100);
    socket.send(&websocket::frame(0x01, begin.as_bytes()));
    socket.send(&websocket::frame(0x89, b"are you there"));
    assert_eq!(socket.take(), Some(Frame { first: 0x8a, payload: b"are you there".to_vec() }));
    socket.send(&websocket::frame(0x8a, b"nobody asked"));
    socket.send(&websocket::frame(0x00, middle.as_bytes()));
    socket.send(&websocket::frame(0x80, end.as_bytes()));
    socket.expect("SIP/2.0 200");
    // RFC 7118 5: nothing need say where it ends; RFC 5626 3.5.1: keep-alives.
    socket.send(&websocket::message(options(&scene).replace("Content-Length: 0\r\n", "").as_bytes()));
    socket.expect("SIP/2.0 200");
    socket.send(&websocket::message(b"\r\n"));
    socket.send(&websocket::message(b"\r\n\r\n"));
    assert_eq!(socket.take(), Some(Frame { first: TEXT, payload: b"\r\n".to_vec() }));
    socket.send(&websocket::frame(CLOSE, &1000_u16.to_be_bytes()));
    socket.expect_close(1000);
    wait_closed(&scene, "peer", 1.0);
    assert_eq!(scene.router.metrics().sum("tidings_messages_total", &[("transport", "ws")]), 16.0);
}

/// RFC 6455 7.1.7, RFC 7118 5, SPEC 2.3, 2.5: one SIP message each, whole; else an answer where there can be one, and the end.
#[test]
fn what_is_no_message_or_more_than_one_closes_the_connection() {
    let scene = layout(122, "ws", "udp").start(&one_pbx(122));
    let one = options(&scene);
    let length = |value: &str| one.replace("Content-Length: 0", value);
    let sip = |payload: &str| websocket::message(payload.as_bytes());
    for (bytes, answer, code) in [
        (sip(&format!("{one}{one}")), "SIP/2.0 400 ", 1008),
        (sip(&length("Content-Length: 5")), "SIP/2.0 400 ", 1008),
        (sip(&length("l: 0\r\nContent-Length: 1")), "SIP/2.0 400 ", 1008),
        (sip(&one[..one.len() - 2]), "SIP/2.0 400 ", 1008),
        (sip("rubbish\r\n\r\n"), "", 1008),
        (sip("SIP/2.0 200 OK\r\n"), "", 1008),
        (sip(""), "", 0),
        (one.clone().into_bytes(), "", 1002),
        (websocket::frame(0xc1, b"x"), "", 1002),
        (websocket::frame(0x80, b"x"), "", 1002),
        (websocket::frame(0x89, &[0; 126]), "", 1002),
        ([0x82, 0xff].iter().copied().chain([0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]).collect(), "", 1009),
    ] {
        let mut socket = Socket::open(scene.phones());
        socket.send(&bytes);
        if code == 0 {
            // An empty one says nothing, as CRLF says nothing.
            socket.send(&sip(&options(&scene)));
            socket.expect("SIP/2.0 200");
            continue;
        }
        // What follows a fault is never looked at.
        socket.send(&sip(&options(&scene)));
        if !answer.is_empty() {
            socket.expect(answer);
        }
        socket.expect_close(code);
    }
    wait_closed(&scene, "framing", 6.0);
    wait_closed(&scene, "websocket", 5.0);
    assert_eq!(scene.refused("too_large"), 1.0);
}

/// SPEC 2.3: what had no Content-Length on the WebSocket has one on a stream; 60 KiB pass both ways.
#[test]
fn lengths_are_stated_and_large_bodies_pass() {
    let scene = layout(123, "ws", "tcp").start(&one_pbx(123));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let request = Request::new("MESSAGE", "sip:1@example.com", &phone).body("text/plain", "twelve bytes");
    phone.send(scene.phones(), request.text().replace("Content-Length: 12\r\n", ""));
    let got = pbx.expect("MESSAGE ");
    assert_eq!((text::header(&got, "Content-Length"), text::body(&got)), ("12", "twelve bytes"));
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
    phone.expect("SIP/2.0 200");

    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let body = "0123456789abcdef".repeat(3840);
    let notify = dialog.by_callee("NOTIFY", &pbx).body("text/plain", &body);
    pbx.send(first_route(&notify), notify.text());
    let got = phone.expect("NOTIFY ");
    assert_eq!(text::body(&got), body);
    phone.answer(scene.phones(), &got, "200 OK", "", "");
    pbx.expect("SIP/2.0 200");
    phone.send(
        scene.phones(),
        Request::new("MESSAGE", "sip:1@example.com", &phone).body("text/plain", &body).text(),
    );
    assert_eq!(text::body(&pbx.expect("MESSAGE ")), body);
}

/// RFC 7118 5.2, Appendix B: hosts of a browser's are nobody's (`.invalid`), and nobody looks for them.
#[test]
fn hosts_of_browsers_are_never_looked_for() {
    for (net, transport, via) in [(124, "ws", "WS"), (125, "wss", "WSS")] {
        let scene = layout(net, transport, "udp").start(&one_pbx(net));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let host = format!("{}.invalid", unique());
        let contact = format!("<sip:alice@{host};transport=ws>");
        let request = Request::new("REGISTER", "sip:example.com", &phone)
            .with("Via", format!("SIP/2.0/{via} {host};branch=z9hG4bK{}", unique()))
            .with("To", "<sip:alice@example.com>")
            .with("Contact", &contact);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect("REGISTER ");
        let path = format!("Path: {}\r\n", text::header(&got, "Path"));
        let below = text::headers(&got, "Via")[1].to_owned();
        let address = phone.address.ip();
        assert!(below.starts_with(&format!("SIP/2.0/{via} {host};")), "{below}");
        assert!(below.contains(&format!(";received={address}")), "{below}");
        pbx.answer(scene.pbxs(), &got, "200 OK", "x", &format!("{path}Contact: {contact};expires=600\r\n"));
        phone.expect("SIP/2.0 200");

        let target = format!("sip:alice@{host};transport=ws");
        for request in [
            Request::new("INVITE", &target, &pbx),
            Request::new("SUBSCRIBE", &target, &pbx).and("Route", text::header(&got, "Path")),
        ] {
            pbx.send(scene.pbxs(), request.text());
            let got = phone.expect(&format!("{} {target} ", request.method));
            let top = text::header(&got, "Via");
            assert!(top.starts_with(&format!("SIP/2.0/{via} {};", scene.phones())), "{top}");
            let route = text::header(&got, "Record-Route");
            assert!(route.contains(";transport=ws;lr>"), "RFC 7118 5.2.4, of wss too: {route}");
            phone.answer(scene.phones(), &got, "200 OK", &unique(), &format!("Contact: {contact}\r\n"));
            pbx.expect("SIP/2.0 200");
        }
        assert_eq!(scene.router.metrics().sum("tidings_dns_lookups_total", &[]), 0.0);
    }
}

/// Pings and Pongs are keep-alives as CRLFs are.
#[test]
fn pings_beyond_what_anybody_needs_close_the_connection() {
    let limits = "[connections]\nkeepalives_per_second = 8\n";
    let scene = layout(228, "ws", "udp").more(limits).start(&one_pbx(228));
    for (count, opcode) in [(1.0, 0x89), (2.0, 0x8a)] {
        let mut hostile = Socket::open(scene.phones());
        hostile.send(&websocket::frame(opcode, b"").repeat(9));
        while hostile.take().is_some() {}
        wait_closed(&scene, "keepalives", count);
    }
    let mut text = Socket::open(scene.phones());
    text.send(&websocket::frame(0x81, b"\r\n\r\n").repeat(9));
    while text.take().is_some() {}
    wait_closed(&scene, "keepalives", 3.0);
}

/// SPEC 9.7: the time of a first message holds for the upgrade, that of a message for each thing that was begun: an
/// upgrade, a frame, a message in several.
#[test]
fn slow_ones_are_closed() {
    let times = "[connections]\nfirst_message = \"2s\"\nmessage_time = \"1s\"\n";
    let scene = layout(126, "ws", "udp").more(times).start(&one_pbx(126));
    let mut silent = connect(scene.phones());
    let mut slow = connect(scene.phones());
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").expect("sent");
    // It pings, which is no message.
    let mut pinging = Socket::open(scene.phones());
    pinging.send(&websocket::frame(0x89, b""));
    for stream in [&mut slow, &mut silent] {
        assert_eq!(stream.read(&mut [0; 64]).expect("the end"), 0);
    }
    assert_eq!(pinging.take().map(|frame| frame.first), Some(0x8a));
    pinging.expect_close(1001);
    wait_closed(&scene, "first_message", 2.0);
    wait_closed(&scene, "message_time", 1.0);

    let mut part = Socket::open(scene.phones());
    part.send(&websocket::frame(0x89, b"ping"));
    assert_eq!(part.take().map(|frame| frame.first), Some(0x8a));
    part.send(&websocket::frame(0x89, b"ping")[..3]);
    part.expect_close(1001);
    wait_closed(&scene, "message_time", 2.0);

    let mut socket = Socket::open(scene.phones());
    socket.send(&websocket::message(options(&scene).as_bytes()));
    socket.expect("SIP/2.0 200");
    socket.send(&websocket::frame(0x01, b"OPTIONS "));
    // Frames that bring it no nearer to its end are no excuse.
    let mut more = socket.stream.try_clone().expect("a socket");
    let dripping = std::thread::spawn(move || {
        while more.write_all(&websocket::frame(0x00, b"x")).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    socket.expect_close(1001);
    wait_closed(&scene, "message_time", 3.0);
    drop(socket.stream.shutdown(Shutdown::Both));
    dripping.join().expect("no panic");
}

/// SPEC 9.7: who does not read is closed, and what was for him is told to those who sent it, message by message.
#[test]
fn what_a_deaf_browser_did_not_take_is_told() {
    let scene = layout(127, "ws", "udp").more("[connections]\noutput = \"64KiB\"\n").start(&one_pbx(127));
    let (pbx, mut socket) = (scene.pbx(1), Socket::open(scene.phones()));
    let contact = "<sip:alice@deaf.invalid;transport=ws>";
    let word = unique();
    let register = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/WS deaf.invalid;branch=z9hG4bK{word}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag={word}\r\nTo: <sip:alice@example.com>\r\n\
         Call-ID: {word}\r\nCSeq: 1 REGISTER\r\nContact: {contact}\r\nExpires: 600\r\n\r\n"
    );
    socket.send(&websocket::message(register.as_bytes()));
    let got = pbx.expect("REGISTER ");
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", &format!("Contact: {contact};expires=600\r\n"));
    socket.expect("SIP/2.0 200");
    let body = "z".repeat(30_000);
    let mut refused = 0;
    for _ in 0..2_000 {
        let request = Request::new("MESSAGE", "sip:alice@deaf.invalid;transport=ws", &pbx);
        pbx.send(scene.pbxs(), request.body("text/plain", &body).text());
        while let Some((answer, _)) = pbx.poll(Duration::from_millis(2)) {
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(matches!(text::status(&answer), Some(480 | 503)), "{answer}");
            refused += 1;
        }
        if refused >= 3 {
            break;
        }
    }
    assert!(refused >= 3, "those that waited are told one by one, and those that came after: {refused}");
    wait_closed(&scene, "output", 1.0);
}

/// The codec against another implementation: tungstenite as client, with messages of all sizes, over a real connection.
#[test]
fn tungstenite_and_we_understand_each_other() {
    use tungstenite::{Message, client::IntoClientRequest};
    let scene = layout(128, "ws", "udp").start(&one_pbx(128));
    let mut request = format!("ws://{}/", scene.phones()).into_client_request().expect("a request");
    request.headers_mut().insert("Sec-WebSocket-Protocol", "sip".parse().expect("a value"));
    let (mut socket, answer) = tungstenite::client(request, connect(scene.phones())).expect("an upgrade");
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "sip");
    for size in [0, 1, 100, 125, 126, 127, 1_000, 60_000] {
        let body = "b".repeat(size);
        let request = options(&scene)
            .replace("Content-Length: 0", &format!("Subject: {}\r\nContent-Length: {size}", size));
        let message = if size % 2 == 0 {
            Message::text(format!("{request}{body}"))
        } else {
            Message::binary(format!("{request}{body}").into_bytes())
        };
        socket.send(message).expect("sent");
        let answer = socket.read().expect("an answer");
        assert!(answer.to_text().expect("text").starts_with("SIP/2.0 200 "), "{answer}");
    }
    socket.send(Message::Ping(b"12345".to_vec().into())).expect("sent");
    assert_eq!(socket.read().expect("a pong"), Message::Pong(b"12345".to_vec().into()));
    socket.close(None).expect("sent");
    assert!(matches!(socket.read(), Ok(Message::Close(_))));
    wait_closed(&scene, "peer", 1.0);
}
