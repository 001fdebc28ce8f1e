//! The PROXY protocol (SPEC 9.5): by hand, and with a real HAProxy in front.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::{
    PATIENCE, closed, connect, layout, options,
    rig::{
        Process, TempDir, http,
        scene::{Scene, certificates, one_pbx, rule},
        text, wait_for,
    },
    wait_closed,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header for a client over IPv4.
fn header(client: &str) -> Vec<u8> {
    let SocketAddr::V4(client) = client.parse().expect("an address") else { panic!("IPv4 only") };
    let (ip, port) = (client.ip().octets(), client.port().to_be_bytes());
    [SIGNATURE, &[0x21, 0x11, 0, 15], &ip, &[192, 0, 2, 1], &port, &[0x13, 0xc4], &[4, 0, 0]].concat()
}

/// An answer of one request.
fn answer(stream: &mut TcpStream) -> String {
    crate::head(stream)
}

/// From the phones' proxy at .9.
fn from_proxy(scene: &Scene) -> TcpStream {
    from(scene, 9)
}

fn from(scene: &Scene, host: u8) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 43, scene.net, host], 0)).into()).expect("a free port");
    socket.connect(&scene.phones().into()).expect("the router listens");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}

/// Peers as `tidings connections` lists them.
fn listed(scene: &Scene) -> Vec<String> {
    let (status, body) = http::get(scene.router.admin, "/api/v1/connections");
    assert_eq!(status, 200, "{body}");
    let listed: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let of = |c: &serde_json::Value| c["peer"].as_str().expect("a peer").to_owned();
    listed["connections"].as_array().expect("a list").iter().map(of).collect()
}

#[test]
fn the_header_says_who_the_client_is() {
    let mut layout = layout(129, "tcp", "udp");
    layout.listener = "proxy_protocol = [\"127.43.129.9\"]\n".into();
    layout.more = "[connections]\nper_address = 2\nfirst_message = \"2s\"\n".into();
    let scene = layout.start(&one_pbx(129));
    let refused =
        |cause| scene.router.metrics().sum("tidings_connections_refused_total", &[("cause", cause)]);

    let mut held = Vec::new();
    for step in [1, 1_000] {
        let mut stream = from_proxy(&scene);
        let bytes =
            [header("198.51.100.7:4000"), options(&scene).replace("/WS", "/TCP").into_bytes()].concat();
        bytes.chunks(step).for_each(|piece| stream.write_all(piece).expect("sent"));
        let answer = answer(&mut stream);
        assert!(answer.starts_with("SIP/2.0 200 "), "{answer}");
        assert!(text::header(&answer, "Via").contains(";received=198.51.100.7"), "{answer}");
        held.push(stream);
    }
    assert_eq!(listed(&scene), ["198.51.100.7:4000"; 2]);
    // The third of this client is one too many, whoever brings it; another client's is not.
    let mut third = from_proxy(&scene);
    third.write_all(&header("198.51.100.7:4001")).expect("sent");
    assert_eq!(third.read(&mut [0; 64]).expect("the end"), 0);
    assert_eq!((refused("address"), closed(&scene, "limit")), (1.0, 1.0));
    for client in 8..12 {
        let mut stream = from_proxy(&scene);
        stream.write_all(&header(&format!("198.51.100.{client}:4000"))).expect("sent");
        stream.write_all(options(&scene).as_bytes()).expect("sent");
        answer(&mut stream);
        held.push(stream);
    }
    assert_eq!(listed(&scene).len(), 6);
    drop(held);
    wait_closed(&scene, "peer", 6.0);
    let mut again = from_proxy(&scene);
    again.write_all(&[header("198.51.100.7:4000"), options(&scene).into_bytes()].concat()).expect("sent");
    assert!(answer(&mut again).starts_with("SIP/2.0 200 "), "what has ended is not counted any more");

    // The proxy's own health check says nobody's name.
    let mut local = from_proxy(&scene);
    local.write_all(&[SIGNATURE, &[0x20, 0, 0, 0], options(&scene).as_bytes()].concat()).expect("sent");
    assert!(text::header(&answer(&mut local), "Via").contains(";received=127.43.129.9"));
    assert_eq!(scene.router.metrics().sum("tidings_proxy_headers_total", &[]), 8.0 - 1.0);
}

/// Without its word a proxy is not heard; and nobody else is believed, not even behind a proxy.
#[test]
fn who_must_say_it_must_and_who_may_not_may_not() {
    let mut layout = layout(139, "tcp", "udp");
    layout.listener = "proxy_protocol = [\"127.43.139.9\"]\n".into();
    layout.more = "[connections]\nfirst_message = \"3s\"\nmessage_time = \"1s\"\n".into();
    // One that calls himself a backend would be taken for it.
    let scene = layout.start(&(one_pbx(139) + &rule("no", "", "reply = { code = 488, reason = \"No\" }")));
    let mut stranger = from(&scene, 8);
    stranger.write_all(&[header("127.43.139.11:5060"), options(&scene).into_bytes()].concat()).expect("sent");
    let mut got = Vec::new();
    let _ = stranger.read_to_end(&mut got);
    assert!(got.is_empty(), "{}", got.escape_ascii());
    wait_closed(&scene, "proxy_untrusted", 1.0);

    let mut twice = from_proxy(&scene);
    let both = [header("198.51.100.7:4000"), header("127.43.139.11:5060"), options(&scene).into_bytes()];
    twice.write_all(&both.concat()).expect("sent");
    assert!(!matches!(twice.read(&mut [0; 64]), Ok(1..)));
    wait_closed(&scene, "proxy_untrusted", 2.0);

    let broken = [SIGNATURE, &[0x21, 0x11, 0, 3, 1, 2, 3]].concat();
    for (number, bytes) in
        [options(&scene).as_bytes(), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", &broken].iter().enumerate()
    {
        let mut proxy = from_proxy(&scene);
        proxy.write_all(bytes).expect("sent");
        assert!(!matches!(proxy.read(&mut [0; 64]), Ok(1..)));
        wait_closed(&scene, "proxy_header", number as f64 + 1.0);
    }
    let (mut silent, mut slow) = (from_proxy(&scene), from_proxy(&scene));
    slow.write_all(&SIGNATURE[..5]).expect("sent");
    assert_eq!(slow.read(&mut [0; 64]).expect("the end"), 0);
    wait_closed(&scene, "message_time", 1.0);
    assert_eq!(silent.read(&mut [0; 64]).expect("the end"), 0);
    wait_closed(&scene, "first_message", 1.0);
    // Who comes directly and says nothing is served.
    let mut direct = connect(scene.phones());
    direct.write_all(options(&scene).as_bytes()).expect("sent");
    assert!(answer(&mut direct).starts_with("SIP/2.0 200 "));
    assert_eq!(scene.router.metrics().sum("tidings_messages_total", &[("direction", "in")]), 1.0);
}

/// Debian's HAProxy with `send-proxy-v2` and its health checks, before TCP, TLS (which it does not touch), ws and wss.
#[test]
fn clients_of_a_haproxy_are_known_by_their_own_addresses() {
    const NET: &str = "127.64.2";
    let dir = TempDir::new("haproxy");
    let mut settings = String::from("[workers]\ncount = 1\n");
    let mut config = String::from(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n timeout check 2s\n",
    );
    let transports = ["tcp", "tls", "ws", "wss"];
    for (at, transport) in transports.iter().enumerate() {
        let port = 5060 + at;
        settings += &format!(
            "[[listen]]\nname = \"{transport}\"\ntransport = \"{transport}\"\naddress = \"{NET}.1:{port}\"\n\
             proxy_protocol = [\"{NET}.9\"]\n"
        );
        config += &format!(
            "listen {transport}\n bind {NET}.9:{port}\n server router {NET}.1:{port} source {NET}.9 send-proxy-v2 \
             check inter 200ms\n"
        );
    }
    settings += &format!("[admin]\naddress = \"{NET}.1:9060\"\n[connections]\nper_address = 5\n");
    settings += &certificates(&dir, &[&format!("{NET}.9")]);
    let table = rule("all", "", "reply = { code = 488, reason = \"Seen\" }");
    let router = crate::rig::Router::start(&settings, &table);
    let config = dir.write("haproxy.cfg", &config);
    let _haproxy = haproxy(&config, &dir, format!("{NET}.9:5063").parse().expect("an address"));

    let mut phones = Vec::new();
    for (at, transport) in transports.iter().enumerate() {
        let phone = format!("{NET}.{}:5060", 31 + at);
        let phone = match *transport {
            "tcp" => crate::rig::Party::bind_tcp(phone),
            "tls" => crate::rig::Party::bind_tls(phone),
            secure => crate::rig::Party::bind_websocket(phone, secure == "wss"),
        };
        let entry = format!("{NET}.9:{}", 5060 + at);
        let request = crate::Request::new("MESSAGE", "sip:1000@example.com", &phone);
        phone.send(&entry, request.text());
        let answer = phone.expect("SIP/2.0 488");
        let received = format!(";received={}", phone.address.ip());
        assert!(text::header(&answer, "Via").contains(&received), "{transport}: {answer}");
        phones.push(phone);
    }
    let (_, body) = http::get(router.admin, "/api/v1/connections");
    for phone in &phones {
        assert!(body.contains(&format!("\"peer\":\"{}:", phone.address.ip())), "{}: {body}", phone.address);
    }
    assert!(body.contains(&format!("\"proxy\":\"{NET}.9:")), "{body}");
    // Of one client five at a time, while the others of the same proxy go on.
    let greedy: Vec<_> = (0..8).map(|_| greedy(&format!("{NET}.41"), &format!("{NET}.9:5060"))).collect();
    wait_for("those beyond the limit to be refused", PATIENCE, || {
        let metrics = router.metrics();
        (metrics.sum("tidings_connections_refused_total", &[("cause", "address")]) >= 3.0).then_some(())
    });
    let tcp = &phones[0];
    tcp.send(format!("{NET}.9:5060"), crate::Request::new("MESSAGE", "sip:1000@example.com", tcp).text());
    tcp.expect("SIP/2.0 488");
    drop(greedy);
    // Its health checks are taken for what they are.
    wait_for("health checks", PATIENCE, || {
        let closed = router.metrics().sum("tidings_connections_closed_total", &[("reason", "peer")]);
        (closed >= 4.0).then_some(())
    });
    assert_eq!(router.metrics().sum("tidings_connections_closed_total", &[("reason", "proxy_header")]), 0.0);
}

fn greedy(from: &str, to: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let from: SocketAddr = format!("{from}:0").parse().expect("an address");
    socket.bind(&from.into()).expect("a free port");
    let to: SocketAddr = to.parse().expect("an address");
    socket.connect(&to.into()).expect("HAProxy listens");
    socket.into()
}

fn haproxy(config: &Path, dir: &TempDir, bound: SocketAddr) -> Process {
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(config);
    let mut process = Process::start("haproxy", &mut command, &dir.path().join("haproxy.log"));
    process.wait_bound("tcp", bound, Duration::from_secs(10));
    process
}
