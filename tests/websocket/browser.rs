//! A real browser: Chromium, without a window, with SIP.js in a page of tests/browser. It registers
//! over ws and wss, subscribes to presence at a real Kamailio, and shows the NOTIFY that a PUBLISH over UDP caused.
//!
//! chromedriver is asked over HTTP as WebDriver says; what `tests/run` installs is Debian's chromium and chromium-driver, and
//! by `npm ci` SIP.js.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::rig::{
    Kamailio, Party, Process, Router, TempDir,
    message::Request,
    scene::{certificates, rule},
    text, wait_for,
};

/// How long a browser may take to start, and to do anything.
const LONG: Duration = Duration::from_secs(60);

/// Debian's Chromium, driven by its chromedriver. Both end with this.
struct Browser {
    driver: SocketAddr,
    /// Empty while there is none.
    session: String,
    process: Process,
    _dir: TempDir,
}

impl Browser {
    fn start(driver: &str) -> Browser {
        let dir = TempDir::new("browser");
        let driver: SocketAddr = driver.parse().expect("an address of the test's");
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={}", driver.port())).env("HOME", dir.path()).env("TMPDIR", dir.path());
        let mut process = Process::start("chromedriver", &mut command, &dir.path().join("driver.log"));
        process.wait_bound("tcp", driver, LONG);
        let profile = dir.path().join("profile");
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // The certificate is by the tests' own authority, which a browser cannot know.
            "--ignore-certificate-errors",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
        // From here on what is started ends with it, whatever comes.
        let mut browser = Browser { driver, session: String::new(), process, _dir: dir };
        let (status, answer) = drive(driver, "POST", "/session", &wanted.to_string());
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(status, 200, "Chromium does not start: {answer:#}");
        browser.session = answer["value"]["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    fn ask(&self, what: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{what}", self.session);
        let (status, answer) = drive(self.driver, "POST", &path, &body.to_string());
        assert_eq!(status, 200, "{what}: {answer}");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["value"].take()
    }

    fn visit(&self, url: &str) {
        self.ask("url", &json!({ "url": url }));
    }

    /// What the page shows at each of its places.
    fn shown(&self) -> Value {
        let script =
            "return Object.fromEntries([...document.querySelectorAll('dd')].map(e => [e.id, e.textContent]))";
        self.ask("execute/sync", &json!({ "script": script, "args": [] }))
    }

    #[track_caller]
    fn wait_shown(&self, place: &str, wanted: &str) {
        let end = Instant::now() + LONG;
        loop {
            let shown = self.shown();
            if shown[place] == wanted {
                return;
            }
            assert!(Instant::now() < end, "waited in vain for {place} {wanted}: {shown:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its session, else by its pid; the driver by its guard.
        if !self.session.is_empty() {
            let _ = std::panic::catch_unwind(|| {
                drive(self.driver, "DELETE", &format!("/session/{}", self.session), "")
            });
        }
        self.process.kill_children();
    }
}

/// Asks chromedriver, which keeps its connections open whatever it is told: status and body.
fn drive(driver: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream =
        TcpStream::connect(driver).unwrap_or_else(|error| panic!("chromedriver is gone: {error}"));
    stream.set_read_timeout(Some(LONG)).expect("a timeout above zero is accepted");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {driver}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).expect("chromedriver reads");
    let head = crate::head(&mut stream);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().expect("a number"))
    });
    let mut body = vec![0; length.unwrap_or_else(|| panic!("no Content-Length: {head}"))];
    stream.read_exact(&mut body).expect("a whole answer");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, String::from_utf8(body).expect("text"))
}

/// Serves tests/browser from this address until the process ends.
fn serve(address: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let needed = root.join("node_modules/sip.js/lib/index.js");
    assert!(needed.exists(), "{} is missing: npm ci --prefix tests/browser", needed.display());
    let listener = TcpListener::bind(address).expect("an address of the test's");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            std::thread::spawn(move || drop(answer(&stream, &root)));
        }
    });
}

fn answer(mut stream: &TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path =
        first.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or_default().trim_start_matches('/');
    let file: PathBuf = root.join(if path.is_empty() { "index.html" } else { path });
    let kind = if path.ends_with(".js") { "text/javascript" } else { "text/html" };
    let (status, body) = match std::fs::read(&file) {
        Ok(body) if !path.contains("..") => ("200 OK", body),
        _ => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.into_bytes(), body].concat())
}

fn pidf(state: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" entity=\"sip:bob@example.com\">\
         <tuple id=\"t\"><status><basic>{state}</basic></status></tuple></presence>"
    )
}

/// Takes a REGISTER as a registrar does: Contact and Path come back.
fn register(registrar: &Party, router: &str) -> String {
    let got = wait_for("the browser to register", LONG, || registrar.poll(Duration::from_millis(100)));
    let got = String::from_utf8_lossy(&got.0).into_owned();
    assert!(got.starts_with("REGISTER "), "{got}");
    let contact = text::header(&got, "Contact").split(";expires").next().unwrap_or_default();
    let path = text::header(&got, "Path");
    let more = format!("Path: {path}\r\nContact: {contact};expires=600\r\n");
    registrar.answer(router, &got, "200 OK", "r", &more);
    got
}

#[test]
fn a_browser_registers_and_shows_what_was_published_over_udp() {
    const NET: &str = "127.64.3";
    let dir = TempDir::new("pki");
    let origin = format!("http://{NET}.8:8080");
    let phones = |transport: &str, port: u16| {
        format!(
            "[[listen]]\nname = \"{transport}\"\ntransport = \"{transport}\"\naddress = \"{NET}.1:{port}\"\n\
             side = \"clients\"\npath = \"/ws\"\norigins = [\"{origin}\"]\n"
        )
    };
    let settings = format!(
        "[workers]\ncount = 2\n{}{}[[listen]]\nname = \"phones\"\naddress = \"{NET}.1:5060\"\nside = \"clients\"\n\
         [[listen]]\nname = \"pbxs\"\naddress = \"{NET}.2:5060\"\nside = \"backends\"\n[admin]\naddress = \"{NET}.1:9060\"\n{}",
        phones("ws", 5080),
        phones("wss", 5443),
        certificates(&dir, &[&format!("{NET}.1")])
    );
    let pool = |name: &str, host: u8| {
        format!(
            "[[pool]]\nname = \"{name}\"\nprobe = \"off\"\n[[pool.backend]]\nname = \"{name}1\"\nuri = \"sip:{NET}.{host}:5060\"\n"
        )
    };
    let table = pool("presence", 11)
        + &pool("registrar", 12)
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("presence", "method = [\"SUBSCRIBE\", \"PUBLISH\"]", "route = \"presence\"")
        + &rule("registrations", "method = [\"REGISTER\"]", "route = \"registrar\"\npath = true");
    let router = Router::start(&settings, &table);
    let kamailio = Kamailio::start(&format!("{NET}.11:5060"));
    let registrar = Party::bind(format!("{NET}.12:5060"));
    let publisher = Party::bind(format!("{NET}.31:5060"));
    serve(&format!("{NET}.8:8080"));
    let browser = Browser::start("127.0.0.1:31064");

    for (round, (transport, port)) in [("ws", 5080), ("wss", 5443)].into_iter().enumerate() {
        let server = format!("{transport}://{NET}.1:{port}/ws");
        browser.visit(&format!("{origin}/?server={server}&user=alice&watch=bob{round}&domain=example.com"));
        let got = register(&registrar, &format!("{NET}.2:5060"));
        assert!(text::header(&got, "Contact").contains(".invalid"), "{got}");
        browser.wait_shown("registration", "Registered");
        browser.wait_shown("subscription", "Subscribed");
        kamailio.wait_count("SUBSCRIBE", "presence", round + 1, LONG);
        let mut tag = String::new();
        for state in ["open", "closed"] {
            let mut request = Request::new("PUBLISH", &format!("sip:bob{round}@example.com"), &publisher)
                .with("To", format!("<sip:bob{round}@example.com>"))
                .with("Event", "presence")
                .with("Expires", "600");
            if !tag.is_empty() {
                request = request.and("SIP-If-Match", tag.as_str());
            }
            publisher
                .send(format!("{NET}.1:5060"), request.body("application/pidf+xml", &pidf(state)).text());
            tag = text::header(&publisher.expect("SIP/2.0 200"), "SIP-ETag").to_owned();
            browser.wait_shown("presence", state);
        }
        let sent =
            [("direction", "out"), ("transport", transport), ("method", "NOTIFY"), ("kind", "request")];
        assert!(router.metrics().sum("tidings_messages_total", &sent) >= 3.0);
        assert_eq!(browser.shown()["fault"], "", "{:#}", browser.shown());
    }
    assert_eq!(router.metrics().sum("tidings_websocket_refused_total", &[]), 0.0);
    // RFC 6455 10.2: a page of another origin cannot use alice's browser.
    serve(&format!("{NET}.7:8080"));
    browser.visit(&format!(
        "http://{NET}.7:8080/?server=ws://{NET}.1:5080/ws&user=alice&watch=bob&domain=example.com"
    ));
    router.wait_metrics("the foreign page to be refused", LONG, |metrics| {
        (metrics.sum("tidings_websocket_refused_total", &[("cause", "origin")]) >= 1.0).then_some(())
    });
    assert_eq!(browser.shown()["registration"], "none");
}
