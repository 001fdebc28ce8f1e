//! The admin side under those who mean it ill: connections that say nothing, requests that never end, answers that nobody
//! takes, pages that take their own name for ours. SIP's open files are no business of theirs.

mod rig;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rig::{Router, http, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

fn settings(net: u8, admin: &str) -> String {
    format!(
        "[workers]\ncount = 1\n[[listen]]\nname = \"stream\"\ntransport = \"tcp\"\naddress = \"127.67.{net}.1:5060\"\n\
         [admin]\naddress = \"127.67.{net}.1:9060\"\n{admin}"
    )
}

fn start(net: u8, admin: &str) -> Router {
    Router::start(&settings(net, admin), "")
}

fn connect(admin: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&admin, Duration::from_secs(5)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream
}

/// What comes until it is closed; a reset is an end as well.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("not closed: {error}"),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn open_files(router: &Router) -> usize {
    let dir = format!("/proc/{}/fd", router.process.pid());
    std::fs::read_dir(dir).expect("the router lives").count()
}

#[test]
fn connections_that_say_nothing_are_few_and_end() {
    let router = start(1, "connections = 4\nrequest_time = \"2s\"\n");
    let before = open_files(&router);
    let silent: Vec<_> = (0..300).map(|_| connect(router.admin)).collect();
    assert!(open_files(&router) <= before + 4, "{} open files, {before} before", open_files(&router));
    // Once their time is over there is room again.
    let began = Instant::now();
    silent.into_iter().for_each(|stream| assert_eq!(rest(stream), ""));
    assert!(began.elapsed() < Duration::from_secs(10), "they were open for {:?}", began.elapsed());
    let metrics = router.metrics();
    assert_eq!(metrics.find("tidings_admin_connections", &[]), Some(1.0), "the one that asks");
    assert_eq!(metrics.find("tidings_admin_connections_limit", &[]), Some(4.0));
    assert_eq!(metrics.find("tidings_admin_connections_refused_total", &[]), Some(296.0));
}

#[test]
fn a_request_has_its_time_for_head_body_and_answer() {
    let router = start(2, "request_time = \"1s\"\n");
    let begun = |bytes: &[u8]| {
        let mut stream = connect(router.admin);
        stream.write_all(bytes).expect("sent");
        stream
    };
    let host = router.admin;
    let half_a_head = begun(b"GET /healthz HTTP/1.1\r\nHost: ");
    let half_a_body = begun(
        format!("PUT /api/v1/table HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99\r\n\r\n[[").as_bytes(),
    );
    let unread_body =
        begun(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99\r\n\r\n[[").as_bytes());
    let idle = begun(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
    // More answers than the kernel keeps for one who takes none.
    let deaf = connect(router.admin);
    let asking = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(200);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout above zero is accepted");
    while (&deaf).write_all(asking.as_bytes()).is_ok() {}
    assert_eq!(rest(half_a_head), "");
    let answer = rest(half_a_body);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("in time"), "{answer}");
    for served in [unread_body, idle] {
        let answer = rest(served);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok\n"), "{answer}");
    }
    router.wait_metrics("the end of all but the one that asks", PATIENCE, |metrics| {
        (metrics.find("tidings_admin_connections", &[]) == Some(1.0)).then_some(())
    });
    drop(deaf);
}

/// What takes longer than a request's time is the router's work, not the peer's.
#[test]
fn a_connection_serves_one_request_after_the_other() {
    let router = start(3, "request_time = \"1s\"\n");
    let mut stream = connect(router.admin);
    for _ in 0..4 {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", router.admin);
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        wait_for("an answer", PATIENCE, || {
            let mut some = [0; 4096];
            let len = stream.read(&mut some).expect("open yet");
            assert_ne!(len, 0, "closed");
            answer.extend_from_slice(&some[..len]);
            answer.ends_with(b"ok\n").then_some(())
        });
        std::thread::sleep(Duration::from_millis(500));
    }
    let rules: String = (0..20_000)
        .map(|n| {
            format!(
                "[[rule]]\nname = \"{n}\"\nmatch = {{ ruri = \"^sip:user{n}@\" }}\nreply = {{ code = 404 }}\n"
            )
        })
        .collect();
    let (status, body) = http::put(router.admin, "/api/v1/table", &rules);
    assert_eq!(status, 200, "{body}");
}

/// A page of evil.example, which resolves to loopback by now: Host and Origin agree.
#[test]
fn dns_rebinding_reaches_no_api() {
    let ask = |router: &Router, method: &str, path: &str, more: &str| {
        let mut stream = connect(router.admin);
        let body = r#"{"address": "192.0.2.7"}"#;
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{more}Content-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let answer = rest(stream);
        (answer.split(' ').nth(1).unwrap_or_default().to_owned(), answer)
    };
    let rebound = "Host: evil.example:9060\r\nOrigin: http://evil.example:9060\r\n";
    let router = start(4, "hosts = [\"edge.example.com\"]\n");
    for (method, path) in [("POST", "/api/v1/bans"), ("GET", "/api/v1/bans"), ("GET", "/api/v1/table")] {
        let (status, answer) = ask(&router, method, path, rebound);
        assert!(status == "403" && answer.contains("hosts in [admin]"), "{method} {path}: {answer}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(&router, "GET", path, "Host: tidings.monitoring.svc:9060\r\n").0, "200", "{path}");
    }
    for host in ["127.67.4.1:9060", "localhost:9060", "edge.example.com"] {
        let own = format!("Host: {host}\r\nOrigin: http://{host}\r\n");
        assert_eq!(ask(&router, "POST", "/api/v1/bans", &own).0, "200", "{host}");
    }
    let router = start(5, "token = \"0123456789abcdef\"\n");
    let token = "Host: edge.example.com\r\nAuthorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(ask(&router, "GET", "/api/v1/bans", token).0, "200", "the token is enough");
}
