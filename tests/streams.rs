//! Streams, with real connections: framing, dead and moved flows, backends that are called, handed over, and attacked by
//! (SPEC 2.3, 2.4, 2.6, 3.5, 3.6, 4.2, 9.2, 9.7, 11.5). What tokens must hold stands in `matrix`.

#[path = "rig/mod.rs"]
mod rig;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use rig::{
    Kamailio, Party,
    message::{Request, unique},
    scene::{Dialog, Layout, Scene, first_route, one_pbx, pool, rule},
    text, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(5);

fn layout(net: u8, clients: &'static str, backends: &'static str) -> Layout {
    let mut layout = Layout::new(net);
    layout.column = (clients, backends);
    layout
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("the router listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream
}

/// What comes until the router closes the connection.
fn until_closed(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("not closed within {PATIENCE:?}: {error}"),
    }
    String::from_utf8(all).expect("answers of ours are text")
}

fn closed(scene: &Scene, reason: &str) -> f64 {
    scene.router.metrics().sum("tidings_connections_closed_total", &[("reason", reason)])
}

/// An OPTIONS to the router itself over a stream, of nobody in particular.
fn options(scene: &Scene) -> String {
    let word = unique();
    format!(
        "OPTIONS sip:{} SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;rport;branch=z9hG4bK{word}\r\nMax-Forwards: 70\r\n\
         From: <sip:a@b>;tag={word}\r\nTo: <sip:c@d>\r\nCall-ID: {word}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
        scene.phones()
    )
}

fn expect_answers(stream: &mut TcpStream, count: usize) {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    while all.matches("SIP/2.0 200 OK\r\n").count() < count {
        let n = stream.read(&mut buffer).expect("an answer");
        assert!(n > 0, "closed after:\n{all}");
        all += std::str::from_utf8(&buffer[..n]).expect("text");
    }
}

#[test]
fn messages_may_come_together_in_pieces_and_byte_by_byte() {
    let scene = layout(200, "tcp", "udp").start(&one_pbx(200));
    let mut stream = connect(scene.phones());
    let three = [options(&scene), options(&scene), options(&scene)].concat();
    stream.write_all(three.as_bytes()).expect("sent");
    expect_answers(&mut stream, 3);
    for piece in three.as_bytes().chunks(100) {
        stream.write_all(piece).expect("sent");
        std::thread::sleep(Duration::from_millis(1));
    }
    expect_answers(&mut stream, 3);
    stream.set_nodelay(true).expect("a TCP socket");
    for byte in options(&scene).as_bytes().chunks(1) {
        stream.write_all(byte).expect("sent");
    }
    expect_answers(&mut stream, 1);
    assert_eq!(scene.router.metrics().sum("tidings_connections", &[("role", "accepted")]), 1.0);
}

/// Who sends requests and the end of what he says at once has their answers yet.
#[test]
fn requests_are_answered_whose_sender_says_no_more() {
    for (net, clients) in [(167, "tcp"), (169, "tls")] {
        let scene = layout(net, clients, "udp").start(&one_pbx(net));
        let mut socket = connect(scene.phones());
        let all = (0..60).map(|_| options(&scene)).collect::<String>();
        let got = if clients == "tcp" {
            socket.write_all(all.as_bytes()).expect("sent");
            socket.shutdown(Shutdown::Write).expect("connected");
            until_closed(socket)
        } else {
            let config = rig::pki::authority().client(None);
            let name = scene.phones().ip().into();
            let mut tls = rustls::ClientConnection::new(config, name).expect("a client");
            tls.complete_io(&mut socket).expect("a handshake");
            tls.writer().write_all(all.as_bytes()).expect("room");
            tls.send_close_notify();
            let mut records = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut records).expect("memory");
            }
            socket.write_all(&records).expect("sent");
            socket.shutdown(Shutdown::Write).expect("connected");
            let mut got = String::new();
            rustls::Stream::new(&mut tls, &mut socket).read_to_string(&mut got).expect("until close_notify");
            got
        };
        assert_eq!(got.matches("SIP/2.0 200 OK\r\n").count(), 60, "{clients}\n{got}");
        wait_for("the close", PATIENCE, || (closed(&scene, "peer") == 1.0).then_some(()));
    }
}

/// RFC 5626 3.5.1: a double CRLF is answered by one; single ones between messages are nothing.
#[test]
fn pings_are_answered() {
    let scene = layout(218, "tcp", "udp").start(&one_pbx(218));
    let mut stream = connect(scene.phones());
    stream.write_all(b"\r\n\r\n").expect("sent");
    let mut pong = [0; 2];
    stream.read_exact(&mut pong).expect("a pong");
    assert_eq!(&pong, b"\r\n");
    stream.write_all(format!("\r\n{}", options(&scene)).as_bytes()).expect("sent");
    let mut first = [0; 7];
    stream.read_exact(&mut first).expect("an answer, and no pong before it");
    assert_eq!(&first, b"SIP/2.0");
    assert_eq!(scene.router.metrics().sum("tidings_pongs_total", &[]), 1.0);
}

/// RFC 5626 4.4.1 has clients ping once in tens of seconds: who sends CRLFs in bulk is closed, and counted as who writes
/// rubbish. Among messages they are nothing (RFC 3261 7.5), whole reads of them neither.
#[test]
fn keepalives_beyond_what_anybody_needs_close_the_connection() {
    let limits = "[connections]\nkeepalives_per_second = 8\n";
    let scene = layout(109, "tcp", "udp").more(limits).start(&one_pbx(109));
    let mut padded = connect(scene.phones());
    for _ in 0..4 {
        padded.write_all(format!("{}{}", "\r\n".repeat(7), options(&scene)).as_bytes()).expect("sent");
    }
    let mut all = String::new();
    while all.matches("SIP/2.0 200 OK\r\n").count() < 4 {
        let mut buffer = [0; 4096];
        let n = padded.read(&mut buffer).expect("an answer");
        assert!(n > 0, "closed after:\n{all}");
        all += std::str::from_utf8(&buffer[..n]).expect("text");
    }
    for bytes in ["\r\n".repeat(9), "\r\n".repeat(100_000)] {
        let mut hostile = connect(scene.phones());
        // It may be closed in the middle of this.
        let _ = hostile.write_all(bytes.as_bytes());
        assert_eq!(until_closed(hostile).trim(), "");
    }
    let mut steady = connect(scene.phones());
    steady.set_nodelay(true).expect("a TCP socket");
    while closed(&scene, "keepalives") < 3.0 {
        assert!(closed(&scene, "peer") == 0.0);
        std::thread::sleep(Duration::from_millis(20));
        let _ = steady.write_all(b"\r\n");
    }
    assert_eq!(scene.refused("keepalive_flood"), 3.0);
    padded.write_all(options(&scene).as_bytes()).expect("sent");
    expect_answers(&mut padded, 1);
}

#[test]
fn what_cannot_be_framed_is_answered_where_it_can_be_and_closed() {
    let scene = layout(202, "tcp", "udp").start(&one_pbx(202));
    let length = |value: &str| options(&scene).replace("Content-Length: 0", value);
    for (message, answer) in [
        ("rubbish\r\n\r\n".to_owned(), ""),
        ("\x16\x03\x01\x02".to_owned(), ""),
        (length("Content-Length: -1"), "SIP/2.0 400 "),
        (length("Content-Length: 0\r\nContent-Length: 5"), "SIP/2.0 400 "),
        (length("Content-Length: 100000"), "SIP/2.0 513 "),
        (length("X-Nothing: here"), "SIP/2.0 400 "),
    ] {
        let mut stream = connect(scene.phones());
        // What follows a fault is never looked at.
        stream.write_all(format!("{message}{}", options(&scene)).as_bytes()).expect("sent");
        let got = until_closed(stream);
        assert!(got.starts_with(answer), "{message}\n{got}");
        assert_eq!(got.matches("SIP/2.0 ").count(), usize::from(!answer.is_empty()), "{message}\n{got}");
    }
    wait_for("the closes to be counted", PATIENCE, || (closed(&scene, "framing") == 6.0).then_some(()));
}

/// SPEC 2.3: what comes without Content-Length over UDP has one on a stream. And a body of 60 KiB passes both ways.
#[test]
fn lengths_are_stated_and_large_bodies_pass() {
    for (column, net) in [(("udp", "tcp"), 203), (("tcp", "udp"), 204), (("tcp", "tcp"), 205)] {
        let scene = layout(net, column.0, column.1).start(&one_pbx(net));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let dialog = Dialog::subscribe(&scene, &phone, &pbx);
        let body = "0123456789abcdef".repeat(3840);
        let notify = dialog.by_callee("NOTIFY", &pbx).body("text/plain", &body);
        pbx.send(first_route(&notify), notify.text());
        let got = phone.expect("NOTIFY ");
        assert_eq!(text::body(&got), body, "{column:?}");
        phone.answer(scene.phones(), &got, "200 OK", "", "");
        pbx.expect("SIP/2.0 200");
    }
    let scene = layout(206, "udp", "tcp").start(&one_pbx(206));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let request = Request::new("MESSAGE", "sip:1@example.com", &phone).body("text/plain", "twelve bytes");
    phone.send(scene.phones(), request.text().replace("Content-Length: 12\r\n", ""));
    let got = pbx.expect("MESSAGE ");
    assert_eq!((text::header(&got, "Content-Length"), text::body(&got)), ("12", "twelve bytes"));
}

/// SPEC 3.5, 7.2: grace counts from the close; a phone that connects anew keeps its dialogs, by the notifier's old routes.
#[test]
fn a_closed_connection_is_a_dead_flow_until_the_phone_comes_back() {
    let scene = layout(207, "tcp", "udp").more("[timers]\ngrace = \"3s\"\n").start(&one_pbx(207));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let (first, second) = (Dialog::subscribe(&scene, &phone, &pbx), Dialog::subscribe(&scene, &phone, &pbx));
    phone.tcp().hang_up();
    wait_for("the close to be seen", PATIENCE, || (closed(&scene, "peer") >= 1.0).then_some(()));
    let ask = |dialog: &Dialog, method: &str, cseq: u32| {
        let request = dialog.by_callee(method, &pbx).with("CSeq", format!("{cseq} {method}"));
        pbx.send(first_route(&request), request.text());
        pbx.receive("an answer")
    };
    let answer = ask(&first, "NOTIFY", 3);
    assert_eq!(text::status(&answer), Some(503));
    let after: u32 = text::header(&answer, "Retry-After").parse().expect("seconds");
    assert!((1..=3).contains(&after), "what is left of the grace: {after}");
    assert_eq!(text::status(&ask(&first, "INFO", 4)), Some(481));

    let refresh = first.by_caller("SUBSCRIBE", &phone);
    phone.send(scene.phones(), refresh.text());
    let got = pbx.expect("SUBSCRIBE ");
    pbx.answer(scene.pbxs(), &got, "200 OK", "", "Expires: 600\r\n");
    phone.expect("SIP/2.0 200");
    let notify = first.by_callee("NOTIFY", &pbx).with("CSeq", "5 NOTIFY");
    pbx.send(first_route(&notify), notify.text());
    let got = phone.expect("NOTIFY ");
    phone.answer(scene.phones(), &got, "200 OK", "", "");
    pbx.expect("SIP/2.0 200");
    wait_for("the other dialog's grace to be over", Duration::from_secs(8), || {
        (text::status(&ask(&second, "NOTIFY", 6)) == Some(481)).then_some(())
    });
}

/// SPEC 5.2: the newest live flow; a closed one stands back behind one that lives.
#[test]
fn route_flow_prefers_connections_that_live() {
    let scene = layout(208, "tcp", "tcp").start(&one_pbx(208));
    let (old, new, pbx) = (scene.phone(), scene.party(32), scene.pbx(1));
    scene.register(&old, &pbx, "alice", "<sip:line1@10.0.0.1>");
    scene.register(&new, &pbx, "alice", "<sip:line2@10.0.0.2>");
    let call = || {
        pbx.send(scene.pbxs(), Request::new("INVITE", &format!("sip:alice@{}", scene.phones()), &pbx).text())
    };
    call();
    new.expect("INVITE ");
    new.tcp().hang_up();
    wait_for("the close to be seen", PATIENCE, || (closed(&scene, "peer") >= 1.0).then_some(()));
    call();
    old.expect("INVITE ");
    // Nobody else holds a Contact for ever whose connection is gone.
    let other = scene.party(33);
    scene.register(&other, &pbx, "bob", "<sip:line2@10.0.0.2>");
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:line2@10.0.0.2", &pbx).text());
    other.expect("INVITE ");
    old.tcp().hang_up();
    wait_for("the close to be seen", PATIENCE, || (closed(&scene, "peer") >= 2.0).then_some(()));
    pbx.send(scene.pbxs(), Request::new("MESSAGE", "sip:line1@10.0.0.1", &pbx).text());
    pbx.expect("SIP/2.0 480");
}

/// SPEC 3.6: a backend whose connection is gone is called at its sent-by port; a client never is.
#[test]
fn responses_follow_a_backend_and_wait_for_no_client() {
    let scene = layout(209, "tcp", "tcp").start(&one_pbx(209));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.1>");
    pbx.tcp().hang_up();
    wait_for("the close to be seen", PATIENCE, || (closed(&scene, "peer") >= 1.0).then_some(()));
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:alice@10.0.0.1", &pbx).text());
    let got = phone.expect("INVITE ");
    pbx.tcp().hang_up();
    wait_for("the close to be seen", PATIENCE, || (closed(&scene, "peer") >= 2.0).then_some(()));
    phone.answer(scene.phones(), &got, "180 Ringing", "x", "");
    pbx.expect("SIP/2.0 180");

    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
    let got = pbx.expect("MESSAGE ");
    let before = closed(&scene, "peer");
    phone.tcp().hang_up();
    wait_for("the close to be seen", PATIENCE, || (closed(&scene, "peer") > before).then_some(()));
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
    wait_for("the response to be dropped", PATIENCE, || {
        (scene.refused("connection_gone") == 1.0).then_some(())
    });
}

/// SPEC 9.2: one connection for each backend, from the listener's own port; 8.2: one that cannot be made is a sign, and
/// those who wait for it are told.
#[test]
fn a_backend_that_cannot_be_reached_is_answered_for_and_called_again() {
    let scene = layout(210, "tcp", "tcp").start(&one_pbx(210));
    let phone = scene.phone();
    for method in ["SUBSCRIBE", "PUBLISH", "INVITE"] {
        phone.send(scene.phones(), Request::new(method, "sip:1000@example.com", &phone).text());
        let answer = phone.expect("SIP/2.0 503");
        assert!(!text::header(&answer, "Retry-After").is_empty(), "{answer}");
    }
    let metrics = scene.router.metrics();
    assert!(metrics.sum("tidings_backend_undeliverable_total", &[("backend", "pbx1")]) >= 1.0);
    assert!(closed(&scene, "connect_failed") >= 1.0);
    let pbx = scene.pbx(1);
    wait_for("the backend to be called again", PATIENCE, || {
        phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
        let (got, from) = match pbx.poll(Duration::from_millis(300)) {
            Some(got) => got,
            None => {
                phone.expect("SIP/2.0 503");
                return None;
            }
        };
        assert_eq!(from, scene.pbxs(), "by the listener's own port");
        let got = String::from_utf8(got).expect("text");
        pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
        Some(phone.expect("SIP/2.0 200"))
    });
    for _ in 0..20 {
        phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
        pbx.expect("MESSAGE ");
    }
    let metrics = scene.router.metrics();
    assert_eq!(metrics.sum("tidings_connections_opened_total", &[("role", "dialed")]), 1.0);
}

/// A connection whose framing is lost is read no more, and nothing new is sent by it.
#[test]
fn a_backend_that_cannot_be_framed_is_called_anew() {
    let scene = layout(166, "udp", "tcp").start(&one_pbx(166));
    let phone = scene.phone();
    let pbx = std::net::TcpListener::bind(scene.at(11)).expect("free");
    pbx.set_nonblocking(true).expect("a socket");
    let called = || wait_for("a call", PATIENCE, || pbx.accept().ok()).0;
    let serve = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).expect("a request");
        let got = std::str::from_utf8(&buffer[..n]).expect("text");
        assert!(got.starts_with("MESSAGE ") && got.ends_with("\r\n\r\n"), "{got}");
        stream.write_all(text::answer(got, "200 OK", "x", "").as_bytes()).expect("sent");
    };
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
    let mut broken = called();
    serve(&mut broken);
    phone.expect("SIP/2.0 200");
    broken.write_all(b"rubbish\r\n\r\n").expect("sent");
    assert_eq!(broken.read(&mut [0; 64]).expect("the end"), 0);
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
    let mut anew = called();
    serve(&mut anew);
    phone.expect("SIP/2.0 200");
    drop(broken);
    wait_for("the first to end", PATIENCE, || (closed(&scene, "framing") == 1.0).then_some(()));
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
    serve(&mut anew);
    phone.expect("SIP/2.0 200");
}

/// What was sent to a backend that reads slowly is the kernel's to deliver when we are gone.
#[test]
fn a_backend_reads_all_that_it_was_sent_before_we_stopped() {
    const COUNT: usize = 30;
    let mut scene = layout(188, "udp", "tcp").start(&one_pbx(188));
    let phone = scene.phone();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("a socket");
    socket.set_recv_buffer_size(2_304).expect("the least there is");
    socket.bind(&scene.at(11).into()).expect("free");
    socket.listen(1).expect("bound");
    let pbx = std::net::TcpListener::from(socket);
    for _ in 0..COUNT {
        let request = Request::new("MESSAGE", "sip:1@example.com", &phone);
        phone.send(scene.phones(), request.body("text/plain", &"x".repeat(1_000)).text());
    }
    let (mut slow, _) = pbx.accept().expect("it calls");
    wait_for("all to have left", PATIENCE, || {
        let metrics = scene.router.metrics();
        let sent = metrics.sum("tidings_backend_requests_total", &[("backend", "pbx1")]);
        (sent == COUNT as f64 && metrics.sum("tidings_connection_queued_bytes", &[]) == 0.0).then_some(())
    });
    assert!(scene.router.stop().success());
    let mut all = String::new();
    slow.read_to_string(&mut all).expect("the end, not a reset");
    assert_eq!(all.matches("\r\n\r\nxxxx").count(), COUNT, "{} bytes", all.len());
}

/// SPEC 4.2: a connection has one core; what others have for it is handed over, in order.
#[test]
fn phones_of_all_cores_reach_the_one_connection_of_a_backend_and_back() {
    let mut layout = layout(211, "tcp", "tcp");
    layout.workers = 4;
    let scene = layout.start(&one_pbx(211));
    let pbx = scene.pbx(1);
    let phones: Vec<Party> = (40..60).map(|host| scene.party(host)).collect();
    for phone in &phones {
        let dialog = Dialog::subscribe(&scene, phone, &pbx);
        for cseq in 2..8 {
            let notify = dialog.by_callee("NOTIFY", &pbx).with("CSeq", format!("{cseq} NOTIFY"));
            pbx.send(first_route(&notify), notify.text());
        }
        for cseq in 2..8 {
            let got = phone.expect("NOTIFY ");
            assert_eq!(text::header(&got, "CSeq"), format!("{cseq} NOTIFY"), "the order is kept");
            phone.answer(scene.phones(), &got, "200 OK", "", "");
            pbx.expect("SIP/2.0 200");
        }
    }
    let metrics = scene.router.metrics();
    assert!(metrics.sum("tidings_handed_over_total", &[]) > 20.0);
    assert_eq!(metrics.sum("tidings_hand_over_full_total", &[]), 0.0);
}

/// SPEC 9.1, 3.3: a wildcard listener names the address that the phone spoke to, never 0.0.0.0.
#[test]
fn a_wildcard_listener_names_the_address_of_the_connection() {
    let settings = "[workers]\ncount = 1\n\
         [[listen]]\nname = \"phones\"\ntransport = \"tcp\"\naddress = \"0.0.0.0:15212\"\nside = \"clients\"\n\
         [[listen]]\nname = \"pbxs\"\ntransport = \"udp\"\naddress = \"127.40.212.2:5060\"\nside = \"backends\"\n\
         [admin]\naddress = \"127.40.212.1:9060\"\n";
    let router = rig::Router::start(settings, &one_pbx(212));
    let scene = Scene { router, net: 212, column: ("tcp", "udp"), pki: crate::rig::TempDir::new("pki") };
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let entry: SocketAddr = "127.40.212.7:15212".parse().expect("an address");
    let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone);
    let dialog = Dialog::open(&phone, entry, &pbx, &request);
    assert!(
        dialog.caller_routes[0].contains("@127.40.212.7:15212;transport=tcp;lr>"),
        "{:?}",
        dialog.caller_routes
    );
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    let got = phone.expect("NOTIFY ");
    assert!(text::header(&got, "Via").starts_with("SIP/2.0/TCP 127.40.212.7:15212;"), "{got}");
    assert!(text::header(&got, "Record-Route").contains("@127.40.212.7:15212;transport=tcp;lr>"), "{got}");
}

/// What honest phones do while something else goes on.
fn honest(phone: &Party, scene: &Scene, pbx: &Party) {
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", phone).text());
    let got = pbx.expect("MESSAGE ");
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
    phone.expect("SIP/2.0 200");
}

/// SPEC 9.7: so many of one address, so many of its prefix, so many a second; who is exempt, is not counted so.
#[test]
fn a_flood_from_one_address_leaves_room_for_others() {
    let limits = "[connections]\nmost = 60\nper_address = 20\nper_prefix = 30\naccepts_per_second = 25\n\
                  exempt = [\"127.40.213.200\"]\n";
    let scene = layout(213, "tcp", "udp").more(limits).start(&one_pbx(213));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let from = |host: u8, count: usize| -> Vec<TcpStream> {
        let address = SocketAddr::from(([127, 40, 213, host], 0));
        let each = |_| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.bind(&address.into()).expect("a free port");
            socket.connect(&scene.phones().into()).expect("the kernel takes it");
            socket.into()
        };
        (0..count).map(each).collect()
    };
    let refused =
        |cause: &str| scene.router.metrics().sum("tidings_connections_refused_total", &[("cause", cause)]);
    let flood = from(50, 100);
    wait_for("the flood to be refused", PATIENCE, || {
        (refused("address") + refused("rate") == 80.0).then_some(())
    });
    honest(&phone, &scene, &pbx);
    let _neighbours = from(51, 12);
    wait_for("its prefix to be full", PATIENCE, || (refused("prefix") == 3.0).then_some(()));
    let _exempt = from(200, 40);
    wait_for("all to be full", PATIENCE, || (refused("all") == 10.0).then_some(()));
    honest(&phone, &scene, &pbx);
    assert_eq!(scene.router.metrics().sum("tidings_connections", &[("role", "accepted")]), 60.0);
    drop(flood);
    wait_for("room again", PATIENCE, || {
        (scene.router.metrics().sum("tidings_connections", &[("role", "accepted")]) == 40.0).then_some(())
    });
    honest(&scene.party(52), &scene, &pbx);
}

/// A message is begun by the first byte of its TLS record, and an idle connection has begun none.
#[test]
fn a_record_that_never_ends_is_closed_as_a_message_is() {
    let limits = "[connections]\nmessage_time = \"2s\"\n";
    let scene = layout(100, "tls", "udp").more(limits).start(&one_pbx(100));
    let secure = || {
        let mut socket = connect(scene.phones());
        socket.set_nodelay(true).expect("a TCP socket");
        let config = rig::pki::authority().client(None);
        let name = scene.phones().ip().into();
        let mut tls = rustls::ClientConnection::new(config, name).expect("a client");
        tls.complete_io(&mut socket).expect("a handshake");
        tls.writer().write_all(options(&scene).as_bytes()).expect("room");
        tls.complete_io(&mut socket).expect("sent");
        let mut answer = [0; 4096];
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let n = stream.read(&mut answer).expect("an answer");
        assert!(answer[..n].starts_with(b"SIP/2.0 200"));
        (tls, socket)
    };
    let (mut idle, mut idle_socket) = secure();
    let (mut tls, mut slow) = secure();
    tls.writer().write_all(options(&scene).as_bytes()).expect("room");
    let mut record = Vec::new();
    tls.write_tls(&mut record).expect("memory");
    let mut sent = 0;
    while slow.write_all(&record[sent..=sent]).is_ok() && closed(&scene, "message_time") == 0.0 {
        sent += 1;
        assert!(sent < 200, "never closed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sent > 5, "closed after {sent} bytes");
    assert_eq!(closed(&scene, "message_time"), 1.0);
    // Its last record came whole, longer ago than that.
    let mut stream = rustls::Stream::new(&mut idle, &mut idle_socket);
    stream.write_all(options(&scene).as_bytes()).expect("sent");
    let mut answer = [0; 4096];
    let n = stream.read(&mut answer).expect("an answer");
    assert!(answer[..n].starts_with(b"SIP/2.0 200"));
}

/// SPEC 9.7: who says nothing, who never ends what he began, who is idle.
#[test]
fn slow_and_silent_connections_are_closed() {
    let limits = "[connections]\nfirst_message = \"1s\"\nmessage_time = \"2s\"\nidle = \"4s\"\n";
    let scene = layout(214, "tcp", "udp").more(limits).start(&one_pbx(214));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let silent = connect(scene.phones());
    let mut slow = connect(scene.phones());
    slow.write_all(options(&scene).as_bytes()).expect("sent");
    expect_answers(&mut slow, 1);
    let mut idle = connect(scene.phones());
    idle.write_all(options(&scene).as_bytes()).expect("sent");
    expect_answers(&mut idle, 1);
    assert_eq!(until_closed(silent), "");
    // A byte now and then does not buy time.
    let message = options(&scene);
    let mut sent = 0;
    while slow.write_all(&message.as_bytes()[sent..=sent]).is_ok() && closed(&scene, "message_time") == 0.0 {
        sent += 1;
        assert!(sent < 200, "never closed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(until_closed(idle), "");
    assert_eq!((closed(&scene, "first_message"), closed(&scene, "message_time")), (1.0, 1.0));
    assert!(closed(&scene, "idle") >= 1.0);
    honest(&phone, &scene, &pbx);
}

/// What we send is use as well: an answer to it may be on its way (RFC 3261 18).
#[test]
fn a_connection_over_which_a_request_has_left_is_not_idle() {
    let limits = "[connections]\nidle = \"4s\"\n";
    let scene = layout(165, "udp", "tcp").more(limits).start(&one_pbx(165));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    std::thread::sleep(Duration::from_secs(3));
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
    let got = pbx.expect("MESSAGE ");
    std::thread::sleep(Duration::from_secs(3));
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
    phone.expect("SIP/2.0 200");
    assert_eq!(closed(&scene, "idle"), 0.0);
    wait_for("it to be idle", 2 * PATIENCE, || (closed(&scene, "idle") == 1.0).then_some(()));
}

/// SPEC 9.7: who does not read is closed once his bytes are too many, and nobody else waits for him; whoever sent what he
/// did not read is told.
#[test]
fn a_reader_that_never_reads_is_closed_and_costs_nobody_else_anything() {
    let scene = layout(215, "tcp", "udp").more("[connections]\noutput = \"64KiB\"\n").start(&one_pbx(215));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let mut deaf = connect(scene.phones());
    let from = deaf.local_addr().expect("connected");
    let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone);
    let request = request.with("Via", format!("SIP/2.0/TCP {from};rport;branch=z9hG4bK{}", unique()));
    deaf.write_all(request.text().as_bytes()).expect("sent");
    let got = pbx.expect("SUBSCRIBE ");
    let answer = text::answer(&got, "200 OK", &unique(), &format!("Contact: <sip:{}>\r\n", pbx.address));
    let dialog = Dialog::of(got, answer);
    let body = "x".repeat(30_000);
    let mut sent = 0;
    while closed(&scene, "output") == 0.0 {
        for _ in 0..20 {
            sent += 1;
            let notify = dialog.by_callee("NOTIFY", &pbx).with("CSeq", format!("{sent} NOTIFY"));
            pbx.send(scene.pbxs(), notify.body("text/plain", &body).text());
        }
        assert!(sent < 2000, "never closed");
        while let Some((bytes, _)) = pbx.poll(Duration::from_millis(20)) {
            assert!(bytes.starts_with(b"SIP/2.0 503"), "{}", String::from_utf8_lossy(&bytes));
        }
    }
    wait_for("what was lost to be told", PATIENCE, || {
        (scene.router.metrics().sum("tidings_undeliverable_total", &[]) >= 2.0).then_some(())
    });
    while pbx.poll(Duration::from_millis(50)).is_some() {}
    honest(&phone, &scene, &pbx);
}

/// SPEC 11.5
#[test]
fn tidings_connections_lists_them() {
    let scene = layout(216, "tcp", "tcp").start(&one_pbx(216));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let ask = |more: &[&str]| {
        let admin = scene.router.admin.to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .args(["connections", "--admin", &admin])
            .args(more)
            .output()
            .expect("it starts");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, table) = ask(&[]);
    assert_eq!(code, Some(0));
    let phones = table.lines().find(|line| line.contains("127.40.216.31:")).expect("the phone's");
    assert!(phones.contains("127.40.216.1:5060/tcp  phones    accepted"), "{table}");
    let pbxs = table.lines().find(|line| line.contains("127.40.216.11:5060")).expect("the PBX's");
    assert!(pbxs.contains("127.40.216.2:5060/tcp  pbxs      dialed"), "{table}");
    assert!(table.contains("2 open; 1 of at most "), "{table}");
    let (code, json) = ask(&["--json", "--peer", "127.40.216.11/32"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, json["connections"].as_array().map(Vec::len)), (Some(0), Some(1)));
    assert_eq!(json["connections"][0]["role"], "dialed");
    assert_eq!(ask(&["--peer", "nobody"]).0, Some(1));
}

/// Calls of phones over TCP go to PBXs over UDP and TCP by one table, and a rule may ask for the transport.
#[test]
fn a_rule_may_ask_for_the_transport() {
    let table = pool("one", 217, &[1])
        + &rule("tcp", "source = \"clients\", transport = [\"tcp\"]", "route = \"one\"")
        + &rule(
            "udp",
            "source = \"clients\", transport = [\"udp\"]",
            "reply = { code = 488, reason = \"No\" }",
        );
    let more = "[[listen]]\nname = \"udp\"\ntransport = \"udp\"\naddress = \"127.40.217.1:5060\"\nside = \"clients\"\n";
    let scene = layout(217, "tcp", "udp").more(more).start(&table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let udp = Party::bind("127.40.217.32:5060");
    udp.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &udp).text());
    udp.expect("SIP/2.0 488");
}

/// SPEC 8.1: a backend that is listed with TCP is asked over TCP.
#[test]
fn a_backend_over_tcp_is_probed_over_tcp() {
    let probe = "probe = { interval = \"500ms\", timeout = \"300ms\", fall = 2, rise = 1 }";
    let table = one_pbx(219).replace("probe = \"off\"", probe);
    let kamailio = Kamailio::start_tcp("127.40.219.11:5060");
    let scene = layout(219, "tcp", "tcp").start(&table);
    let state = || {
        let (_, body) = rig::http::get(scene.router.admin, "/api/v1/backends");
        let list: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        (list[0]["state"].as_str().unwrap_or_default().to_owned(), list[0]["rtt_ms"].as_f64())
    };
    wait_for("an answer to a probe", PATIENCE, || state().1);
    assert_eq!(state().0, "up");
    drop(kamailio);
    wait_for("it to be down", PATIENCE, || (state().0 == "down").then_some(()));
    let phone = scene.phone();
    phone.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &phone).text());
    phone.expect("SIP/2.0 503");
    let _kamailio = Kamailio::start_tcp("127.40.219.11:5060");
    wait_for("it to be up", PATIENCE, || (state().0 == "up").then_some(()));
}

/// SPEC 9.8: an idle connection that has spoken costs at most 1 KiB of user memory.
#[test]
fn an_idle_connection_costs_less_than_1_kib() {
    const EACH: usize = 6_000;
    let more = "[connections]\nexempt = [\"127.0.0.0/8\"]\n[protection]\nexempt = [\"127.0.0.0/8\"]\n";
    let scene = layout(220, "tcp", "udp").more(more).start(&one_pbx(220));
    let message = options(&scene);
    let open = || -> Vec<TcpStream> {
        let each = |_| {
            let mut stream = connect(scene.phones());
            // Half a message first, so that it has had a buffer of its own.
            let (half, rest) = message.split_at(200);
            stream.write_all(half.as_bytes()).expect("sent");
            stream.write_all(rest.as_bytes()).expect("sent");
            expect_answers(&mut stream, 1);
            stream
        };
        (0..EACH).map(each).collect()
    };
    let before = scene.router.process.private_kib();
    let _some = open();
    let _more = open();
    // What was used on the way the allocator gives back a moment later.
    let each = || (scene.router.process.private_kib() as f64 - before as f64) / (2 * EACH) as f64;
    let cost = wait_for("1 KiB each at most", PATIENCE, || Some(each()).filter(|cost| *cost <= 1.0));
    assert_eq!(scene.router.metrics().sum("tidings_connections", &[("role", "accepted")]), 2.0 * EACH as f64);
    eprintln!("{:.0} bytes each", cost * 1024.0);
}
