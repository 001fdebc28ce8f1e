//! Who was on a connection that ended (SPEC 9.9), to a webhook that is away now and then, by NOTIFY and by REGISTER with
//! Expires 0; keep-alives toward phones over UDP (9.10). That a dead flow has grace and a phone keeps its lamps (3.5, 7.2)
//! stands in `streams`.

#[path = "rig/mod.rs"]
mod rig;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use rig::{
    Kamailio, Party, Process, http,
    message::{Request, unique},
    pki::authority,
    scene::{Layout, Scene, one_pbx},
    text, wait_for,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);

/// A phone's connection.
struct Phone {
    stream: TcpStream,
    address: SocketAddr,
}

impl Phone {
    #[track_caller]
    fn call(scene: &Scene) -> Phone {
        let stream = TcpStream::connect_timeout(&scene.phones(), PATIENCE).expect("the router listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
        let address = stream.local_addr().expect("it is connected");
        Phone { stream, address }
    }

    /// A request of `user`; `pbx` answers 200 with `answer` (whole lines), and this phone gets that.
    #[track_caller]
    fn ask(&mut self, scene: &Scene, pbx: &Party, method: &str, user: &str, lines: &str, answer: &str) {
        self.send(method, user, lines);
        let got = pbx.expect(&format!("{method} "));
        pbx.answer(scene.pbxs(), &got, "200 OK", &unique(), answer);
        self.ok();
    }

    /// Sends a request of `user` with these lines.
    #[track_caller]
    fn send(&mut self, method: &str, user: &str, lines: &str) {
        let (word, address) = (unique(), self.address);
        let to = if method == "REGISTER" { user } else { "lamp" };
        let uri = if method == "REGISTER" { "sip:example.com" } else { "sip:lamp@example.com" };
        let request = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/TCP {address};rport;branch=z9hG4bK{word}\r\nMax-Forwards: 70\r\n\
             From: \"{user}\" <sip:{user}@example.com>;tag={word}\r\nTo: <sip:{to}@example.com>\r\n\
             CSeq: 1 {method}\r\n{lines}Content-Length: 0\r\n\r\n"
        );
        let request = if lines.contains("Call-ID:") {
            request
        } else {
            request.replace("CSeq:", &format!("Call-ID: {word}\r\nCSeq:"))
        };
        self.stream.write_all(request.as_bytes()).expect("sent");
    }

    /// The 200 that comes next.
    #[track_caller]
    fn ok(&mut self) -> String {
        let mut got = String::new();
        let mut buffer = [0; 4096];
        while !got.contains("\r\n\r\n") {
            let n = self.stream.read(&mut buffer).expect("an answer");
            assert!(n > 0, "closed after:\n{got}");
            got += std::str::from_utf8(&buffer[..n]).expect("text");
        }
        assert!(got.starts_with("SIP/2.0 200"), "{got}");
        got
    }

    fn contact(&self, user: &str) -> String {
        format!("sip:{user}@{};transport=tcp", self.address)
    }

    #[track_caller]
    fn register(&mut self, scene: &Scene, pbx: &Party, user: &str) {
        let contact = self.contact(user);
        let lines = format!("Contact: <{contact}>\r\nExpires: 600\r\n");
        self.ask(scene, pbx, "REGISTER", user, &lines, &format!("Contact: <{contact}>;expires=600\r\n"));
    }

    /// Ends with RST.
    fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }
}

/// Has a phone heard.
fn ping(phone: &mut Phone) {
    phone.stream.write_all(b"\r\n\r\n").expect("sent");
    phone.stream.read_exact(&mut [0; 2]).expect("a pong");
}

/// A webhook's receiver, which answers what it is told to.
struct Receiver {
    got: Arc<Mutex<Vec<(String, Value)>>>,
    status: Arc<AtomicU16>,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Receiver {
    #[track_caller]
    fn start(address: &str, status: u16) -> Receiver {
        let listener = TcpListener::bind(address).expect("free");
        listener.set_nonblocking(true).expect("a socket of ours");
        let receiver = Receiver {
            got: Arc::default(),
            status: Arc::new(AtomicU16::new(status)),
            ended: Arc::default(),
            thread: None,
        };
        let (got, status, ended) = (receiver.got.clone(), receiver.status.clone(), receiver.ended.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => take(stream, &got, &status),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Receiver { thread: Some(thread), ..receiver }
    }

    /// What was taken with a 200, each with its head.
    fn taken(&self) -> Vec<(String, Value)> {
        self.got.lock().expect("no panic").clone()
    }

    #[track_caller]
    fn wait(&self, count: usize) -> Vec<Value> {
        wait_for(&format!("{count} events"), Duration::from_secs(10), || {
            let taken = self.taken();
            (taken.len() >= count).then_some(())
        });
        self.taken().into_iter().map(|(_, event)| event).collect()
    }

    fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn take(mut stream: TcpStream, got: &Mutex<Vec<(String, Value)>>, status: &AtomicU16) {
    stream.set_nonblocking(false).expect("a socket of ours");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    let (head, body) = loop {
        let Ok(n @ 1..) = stream.read(&mut buffer) else { return };
        all.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
        let length: usize = length.expect("a length").trim().parse().expect("a number");
        if body.len() >= length {
            break (head.to_owned(), body[..length].to_owned());
        }
    };
    let status = status.load(Ordering::Relaxed);
    if status == 200 {
        got.lock().expect("no panic").push((head, serde_json::from_str(&body).expect("JSON")));
    }
    let answer = format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes());
}

fn layout(net: u8, events: &str) -> Layout {
    let mut layout = Layout::new(net);
    layout.column = ("tcp", "udp");
    layout.more(&format!(
        "[flow_events]\ndelay = \"400ms\"\nwebhook = \"http://127.40.{net}.90:8090/flows?x=1\"\n\
         webhook_token = \"secret-word\"\nretry_max = \"1s\"\nwebhook_timeout = \"1s\"\n{events}"
    ))
}

fn receiver(net: u8) -> Receiver {
    Receiver::start(&format!("127.40.{net}.90:8090"), 200)
}

fn total(scene: &Scene, metric: &str, outcome: &str) -> f64 {
    scene.router.metrics().sum(metric, &[("outcome", outcome)])
}

#[track_caller]
fn until(scene: &Scene, metric: &str, outcome: &str, count: f64) {
    wait_for(&format!("{metric} {outcome} to be {count}"), Duration::from_secs(10), || {
        (total(scene, metric, outcome) >= count).then_some(())
    });
    assert_eq!(total(scene, metric, outcome), count, "{metric} {outcome}");
}

/// FIN, RST, a message that never ends, a peer that is heard no more: each one event, with reason and user.
#[test]
fn each_end_of_a_connection_is_one_event_for_each_user() {
    let more = "log = true\n[connections]\nidle = \"4s\"\nmessage_time = \"1s\"\n[limits]\nusers_per_connection = 2\n";
    let scene = layout(120, more).start(&one_pbx(120));
    let (pbx, receiver) = (scene.pbx(1), receiver(120));
    let mut phones: Vec<Phone> = (0..6).map(|_| Phone::call(&scene)).collect();
    let names = ["fin", "rst", "slow", "idle", "sub", "pub"];
    for (phone, name) in phones.iter_mut().zip(names) {
        match name {
            "sub" => {
                let lines = format!("Event: dialog\r\nContact: <{}>\r\nExpires: 60\r\n", phone.contact(name));
                phone.ask(
                    &scene,
                    &pbx,
                    "SUBSCRIBE",
                    name,
                    &lines,
                    "Expires: 60\r\nContact: <sip:lamp@pbx>\r\n",
                );
            }
            "pub" => {
                let lines = "Event: presence\r\nExpires: 60\r\n";
                phone.ask(&scene, &pbx, "PUBLISH", name, lines, "Expires: 60\r\nSIP-ETag: 7\r\n");
            }
            name => phone.register(&scene, &pbx, name),
        }
    }
    phones[0].register(&scene, &pbx, "second");
    phones[0].register(&scene, &pbx, "third");
    let dropped = scene.router.metrics().sum("tidings_connection_users_dropped_total", &[]);
    assert_eq!(dropped, 1.0, "two of one connection");
    let (_, listed) = http::get(scene.router.admin, "/api/v1/connections");
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let first = phones[0].address.to_string();
    let listed =
        listed["connections"].as_array().expect("a list").iter().find(|c| c["peer"] == first.as_str());
    let users = &listed.expect("it is open")["users"];
    assert_eq!(*users, serde_json::json!(["sip:fin@example.com", "sip:second@example.com"]));

    let addresses: Vec<SocketAddr> = phones.iter().map(|phone| phone.address).collect();
    let contacts: Vec<String> = phones.iter().zip(names).map(|(phone, name)| phone.contact(name)).collect();
    phones[2].stream.write_all(b"OPTIONS sip:a SIP/2.0\r\n").expect("sent");
    let (publisher, subscriber) = (phones.pop(), phones.pop());
    let (idle, slow) = (phones.pop(), phones.pop());
    phones.pop().expect("a phone").reset();
    drop((phones, publisher, subscriber));
    let events = receiver.wait(7);
    drop((idle, slow));
    until(&scene, "tidings_flow_events_total", "told", 7.0);
    until(&scene, "tidings_webhook_posts_total", "delivered", 7.0);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!((receiver.taken().len(), total(&scene, "tidings_flow_events_total", "returned")), (7, 0.0));

    let reasons = ["peer", "reset", "message_time", "idle", "peer", "peer"];
    for (at, (name, reason)) in names.iter().zip(reasons).enumerate() {
        let aor = format!("sip:{name}@example.com");
        let event = events.iter().find(|event| event["aor"] == aor.as_str());
        let event = event.unwrap_or_else(|| panic!("no event of {name}: {events:?}"));
        assert_eq!(event["reason"], reason, "{event}");
        assert_eq!(event["peer"], addresses[at].to_string().as_str(), "{event}");
        assert_eq!((&event["listener"], &event["transport"]), (&"phones".into(), &"tcp".into()));
        let contact = if *name == "pub" { "" } else { &contacts[at] };
        assert_eq!(event["contact"], contact, "{event}");
        assert!((0.0..30.0).contains(&event["duration"].as_f64().expect("seconds")), "{event}");
        assert!(event["time"].as_u64().is_some_and(|time| time > 1_700_000_000) && event["router"] == 0);
    }
    let ids: BTreeSet<&str> = events.iter().filter_map(|event| event["id"].as_str()).collect();
    assert_eq!(ids.len(), 7);
    for (head, _) in receiver.taken() {
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("post /flows?x=1 http/1.1\r\n"), "{head}");
        assert!(head.contains("authorization: bearer secret-word"), "{head}");
        assert!(head.contains("content-type: application/json"), "{head}");
    }
    assert!(scene.router.process.output().contains("a user's connection ended without a goodbye"));
    receiver.end();
}

/// None for who said goodbye, by whichever connection, nor for who is back, before or after the end.
#[test]
fn a_goodbye_or_a_return_makes_no_event() {
    let datagrams = "[[listen]]\nname = \"datagrams\"\ntransport = \"udp\"\naddress = \"127.40.121.1:5060\"\nside = \"clients\"\n";
    let scene = layout(121, datagrams).start(&one_pbx(121));
    let (pbx, receiver) = (scene.pbx(1), receiver(121));
    let ended = "Contact: <sip:nobody@example.com>;expires=60\r\n";

    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "bye");
    let lines = format!("Contact: <{}>\r\nExpires: 0\r\n", phone.contact("bye"));
    phone.ask(&scene, &pbx, "REGISTER", "bye", &lines, "");
    phone.register(&scene, &pbx, "star");
    phone.ask(&scene, &pbx, "REGISTER", "star", "Contact: *\r\nExpires: 0\r\n", "");
    let contact = phone.contact("sub");
    for expires in [60, 0] {
        let lines =
            format!("Call-ID: one\r\nEvent: dialog\r\nContact: <{contact}>\r\nExpires: {expires}\r\n");
        let answer = format!("Expires: {expires}\r\nContact: <sip:lamp@pbx>\r\n");
        phone.ask(&scene, &pbx, "SUBSCRIBE", "sub", &lines, &answer);
    }
    drop(phone);

    // Its registration is ended by another connection.
    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "elsewhere");
    let mut other = Phone::call(&scene);
    let lines = format!("Contact: <{}>;expires=0\r\n", phone.contact("elsewhere"));
    other.ask(&scene, &pbx, "REGISTER", "elsewhere", &lines, ended);
    drop((phone, other));

    // Back before the end of the old one is seen, and back soon after it.
    let mut before = Phone::call(&scene);
    before.register(&scene, &pbx, "early");
    std::thread::sleep(Duration::from_millis(20));
    let mut early = Phone::call(&scene);
    early.register(&scene, &pbx, "early");
    drop(before);
    let mut before = Phone::call(&scene);
    before.register(&scene, &pbx, "late");
    drop(before);
    let mut late = Phone::call(&scene);
    late.register(&scene, &pbx, "late");
    // Opens the new one before the old one ends, and is heard on that once more: the same Contact is the same binding.
    let (mut before, mut swap) = (Phone::call(&scene), Phone::call(&scene));
    let contact = "Contact: <sip:swap@192.0.2.1:5062;transport=tcp>\r\n";
    for phone in [&mut before, &mut swap] {
        phone.ask(&scene, &pbx, "REGISTER", "swap", &format!("{contact}Expires: 600\r\n"), contact);
        std::thread::sleep(Duration::from_millis(20));
    }
    ping(&mut before);
    drop(before);
    // Comes back over UDP.
    let mut before = Phone::call(&scene);
    before.register(&scene, &pbx, "plain");
    drop(before);
    let party = Party::bind("127.40.121.31:5060");
    let lines = format!("Contact: <sip:plain@{}>\r\n", party.address);
    let register = Request::new("REGISTER", "sip:example.com", &party)
        .with("To", "<sip:plain@example.com>")
        .with("Contact", format!("<sip:plain@{}>", party.address));
    party.send(scene.phones(), register.text());
    let got = pbx.expect("REGISTER ");
    pbx.answer(scene.pbxs(), &got, "200 OK", &unique(), &lines);
    party.expect("SIP/2.0 200");
    until(&scene, "tidings_flow_events_total", "returned", 4.0);

    // Two phones of one user: the other one is no return.
    let mut one = Phone::call(&scene);
    one.register(&scene, &pbx, "two");
    let mut two = Phone::call(&scene);
    two.register(&scene, &pbx, "two");
    std::thread::sleep(Duration::from_millis(20));
    ping(&mut one);
    drop(one);
    let events = receiver.wait(1);
    assert_eq!(events[0]["aor"], "sip:two@example.com");
    drop((early, late, swap));
    let events = receiver.wait(4);
    let aors: BTreeSet<&str> = events.iter().filter_map(|event| event["aor"].as_str()).collect();
    let all = ["early", "late", "swap", "two"].map(|name| format!("sip:{name}@example.com"));
    assert_eq!(aors, all.iter().map(String::as_str).collect());
    assert_eq!((receiver.taken().len(), total(&scene, "tidings_flow_events_total", "told")), (4, 4.0));
    receiver.end();
}

/// The receiver is away, then ill; the router is killed meanwhile: all are delivered, in order, each by its own id.
#[test]
fn events_wait_for_their_receiver_over_a_kill() {
    let mut scene = layout(122, "").start(&one_pbx(122));
    let pbx = scene.pbx(1);
    for name in ["one", "two"] {
        let mut phone = Phone::call(&scene);
        phone.register(&scene, &pbx, name);
        drop(phone);
        wait_for("it to be told", PATIENCE, || {
            let told = total(&scene, "tidings_flow_events_total", "told");
            (told == if name == "one" { 1.0 } else { 2.0 }).then_some(())
        });
    }
    let metrics = scene.router.metrics();
    assert!(metrics.sum("tidings_webhook_spool_bytes", &[]) > 100.0);
    assert!(total(&scene, "tidings_webhook_posts_total", "failed") >= 1.0);
    scene.router.kill_and_start();
    let receiver = Receiver::start("127.40.122.90:8090", 503);
    wait_for("a refusal", PATIENCE, || {
        (total(&scene, "tidings_webhook_posts_total", "failed") >= 2.0).then_some(())
    });
    assert!(receiver.taken().is_empty());
    receiver.status.store(200, Ordering::Relaxed);
    let events = receiver.wait(2);
    let aors: Vec<&str> = events.iter().filter_map(|event| event["aor"].as_str()).collect();
    assert_eq!(aors, ["sip:one@example.com", "sip:two@example.com"]);
    assert_ne!(events[0]["id"], events[1]["id"]);
    wait_for("the spool to be empty", PATIENCE, || {
        (scene.router.metrics().sum("tidings_webhook_spool_bytes", &[]) == 0.0).then_some(())
    });
    // Who has not had his time to come back when the router is told to end is in the spool all the same.
    receiver.status.store(503, Ordering::Relaxed);
    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "end");
    drop(phone);
    wait_for("the end of it", PATIENCE, || {
        let closed = scene.router.metrics().sum("tidings_connections_closed_total", &[("reason", "peer")]);
        (closed >= 1.0).then_some(())
    });
    scene.router.stop();
    scene.router.kill_and_start();
    receiver.status.store(200, Ordering::Relaxed);
    assert_eq!(receiver.wait(3)[2]["aor"], "sip:end@example.com");
    wait_for("the spool to be empty", PATIENCE, || {
        (scene.router.metrics().sum("tidings_webhook_spool_bytes", &[]) == 0.0).then_some(())
    });
    // What was delivered is not again; one that the receiver will never have does not hold the others up.
    scene.router.kill_and_start();
    receiver.status.store(422, Ordering::Relaxed);
    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "three");
    drop(phone);
    until(&scene, "tidings_webhook_posts_total", "refused", 1.0);
    receiver.status.store(200, Ordering::Relaxed);
    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "four");
    drop(phone);
    let events = receiver.wait(4);
    assert_eq!((events.len(), &events[3]["aor"]), (4, &"sip:four@example.com".into()));
    receiver.end();
}

/// A spool has room for so much: what is beyond it is counted.
#[test]
fn a_full_spool_drops_and_counts() {
    let scene = layout(123, "spool = \"4KiB\"\nlog = true\n").start(&one_pbx(123));
    let pbx = scene.pbx(1);
    let mut phone = Phone::call(&scene);
    for n in 0..16 {
        phone.register(&scene, &pbx, &format!("{n}-{}", "x".repeat(100)));
    }
    drop(phone);
    until(&scene, "tidings_flow_events_total", "told", 16.0);
    // The spool is written behind that.
    wait_for("a full spool", Duration::from_secs(10), || {
        (scene.router.metrics().sum("tidings_webhook_dropped_total", &[]) >= 1.0).then_some(())
    });
    let metrics = scene.router.metrics();
    let (bytes, limit) = (
        metrics.sum("tidings_webhook_spool_bytes", &[]),
        metrics.sum("tidings_webhook_spool_limit_bytes", &[]),
    );
    assert!(bytes > 3000.0 && bytes <= limit && limit == 4096.0, "{bytes} of {limit}");
    assert!(metrics.sum("tidings_webhook_dropped_total", &[]) >= 1.0);
    assert!(metrics.sum("tidings_flow_event_lines_suppressed_total", &[]) >= 1.0, "16 lines, 10 in a second");
}

/// RFC 6665 4.1.2 by a NOTIFY of our own, RFC 3261 17.1.2 by its transaction: to a URI over UDP and TCP, and to a backend
/// over all.
#[test]
fn a_notify_tells_and_its_answer_is_counted() {
    let to = |host: u8, transport| format!("sip:events@127.40.124.{host}:5060;transport={transport}");
    for (column, notify, host) in [
        (("tcp", "udp"), to(64, "udp"), 64),
        (("tcp", "tcp"), to(65, "tcp"), 65),
        (("tcp", "udp"), "pool:one".to_owned(), 11),
        (("tcp", "tcp"), "pool:one".to_owned(), 11),
        (("tcp", "tls"), "pool:one".to_owned(), 11),
    ] {
        eprintln!("{column:?} {notify}");
        let mut layout = Layout::new(124)
            .more(&format!("[flow_events]\ndelay = \"0s\"\nlog = true\nnotify = \"{notify}\"\n"));
        layout.column = column;
        let scene = layout.start(&one_pbx(124));
        let pbx = scene.pbx(1);
        let other = (host != 11).then(|| scene.party(host));
        let sink = other.as_ref().unwrap_or(&pbx);
        let mut phone = Phone::call(&scene);
        phone.register(&scene, &pbx, "alice");
        drop(phone);
        let first = sink.expect("NOTIFY ");
        if column.1 == "udp" {
            assert_eq!(sink.expect("NOTIFY "), first, "Timer E");
        }
        assert_eq!(text::header(&first, "Event"), "tidings-flow");
        assert_eq!(text::header(&first, "Content-Type"), "application/json");
        assert_eq!(text::header(&first, "Subscription-State"), "active");
        let event: Value = serde_json::from_str(text::body(&first)).expect("JSON");
        assert_eq!((&event["aor"], &event["reason"]), (&"sip:alice@example.com".into(), &"peer".into()));
        sink.answer(scene.pbxs(), &first, "200 OK", "x", "");
        until(&scene, "tidings_flow_notifies_total", "success", 1.0);
        let mut phone = Phone::call(&scene);
        phone.register(&scene, &pbx, "bob");
        drop(phone);
        let second = loop {
            // A copy of the first may be on its way.
            let got = sink.expect("NOTIFY ");
            if got.contains("sip:bob@") {
                break got;
            }
        };
        sink.answer(scene.pbxs(), &second, "489 Bad Event", "x", "");
        until(&scene, "tidings_flow_notifies_total", "failed", 1.0);
        assert_eq!(total(&scene, "tidings_own_requests_total", "success"), 1.0);
        assert_eq!(total(&scene, "tidings_own_requests_total", "refused"), 1.0);
        wait_for("none to wait", PATIENCE, || {
            (scene.router.metrics().sum("tidings_own_requests", &[]) == 0.0).then_some(())
        });
        // Nobody but who was asked may answer, and a late answer is nobody's.
        let before = scene.refused("response_source");
        let stranger = if column.1 == "udp" { Some(scene.party(66)) } else { None };
        if let (Some(stranger), 64) = (&stranger, host) {
            stranger.answer(scene.pbxs(), &second, "200 OK", "x", "");
            wait_for("it to be refused", PATIENCE, || {
                (scene.refused("response_source") == before + 1.0).then_some(())
            });
        }
        sink.answer(scene.pbxs(), &second, "200 OK", "x", "");
        scene.settle();
        assert_eq!(total(&scene, "tidings_own_requests_total", "success"), 1.0);
    }
}

/// As many as there are at once: they wait their turn, and what there is no room for is counted.
#[test]
fn those_of_a_crowd_wait_their_turn() {
    // Over TCP none is lost on its way.
    let notify = "notify = \"sip:events@127.40.101.64:5060;transport=tcp\"";
    let start = |limits: &str| {
        let mut layout = Layout::new(101).more(&format!(
            "[flow_events]\ndelay = \"0s\"\n{notify}\n[limits]\nusers_per_connection = 1000\n{limits}"
        ));
        layout.column = ("tcp", "tcp");
        layout.start(&one_pbx(101))
    };
    let crowd = |scene: &Scene, count: usize| {
        let pbx = scene.pbx(1);
        let mut phone = Phone::call(scene);
        for n in 0..count {
            phone.register(scene, &pbx, &format!("user{n}"));
        }
    };
    let scene = start("");
    let sink = scene.party(64);
    crowd(&scene, 300);
    // Nobody is answered until as many wait as may.
    let first: Vec<String> = (0..256).map(|_| sink.expect("NOTIFY ")).collect();
    assert!(sink.poll(Duration::from_millis(300)).is_none(), "the others wait");
    first.iter().for_each(|got| sink.answer(scene.pbxs(), got, "200 OK", "x", ""));
    for _ in 256..300 {
        let got = sink.expect("NOTIFY ");
        sink.answer(scene.pbxs(), &got, "200 OK", "x", "");
    }
    until(&scene, "tidings_flow_notifies_total", "success", 300.0);
    assert_eq!(total(&scene, "tidings_own_requests_total", "full"), 0.0);
    drop((scene, sink));

    let scene = start("news = 16\nown_requests = 2\n");
    let sink = scene.party(64);
    crowd(&scene, 40);
    // One is under way, one is next, the others wait.
    wait_for("no room", Duration::from_secs(10), || {
        (total(&scene, "tidings_flow_events_total", "told") == 40.0
            && (22.0..=24.0).contains(&total(&scene, "tidings_flow_notifies_total", "full")))
        .then_some(())
    });
    let first = sink.expect("NOTIFY ");
    assert!(sink.poll(Duration::from_millis(300)).is_none(), "one at a time");
    sink.answer(scene.pbxs(), &first, "200 OK", "x", "");
    sink.expect("NOTIFY ");
}

/// A goodbye that had to wait is not said once the user is back: his binding is the new one's.
#[test]
fn who_is_back_before_his_turn_keeps_his_registration() {
    let mut layout = Layout::new(102)
        .more("[flow_events]\ndelay = \"0s\"\nderegister = true\n[limits]\nown_requests = 2\n");
    layout.column = ("tcp", "tcp");
    let scene = layout.start(&one_pbx(102));
    let pbx = scene.pbx(1);
    let contact = "Contact: <sip:bob@192.0.2.1:5062;transport=tcp>\r\n";
    let register_bob = || {
        let mut phone = Phone::call(&scene);
        phone.ask(&scene, &pbx, "REGISTER", "bob", &format!("{contact}Expires: 600\r\n"), contact);
        phone
    };
    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "alice");
    drop(phone);
    let first = pbx.expect("REGISTER ");
    assert_eq!(text::header(&first, "Expires"), "0");
    drop(register_bob());
    until(&scene, "tidings_flow_events_total", "told", 2.0);
    let _back = register_bob();
    pbx.answer(scene.pbxs(), &first, "200 OK", "x", "");
    until(&scene, "tidings_deregistrations_total", "returned", 1.0);
    until(&scene, "tidings_deregistrations_total", "success", 1.0);
    assert!(pbx.poll(Duration::from_millis(200)).is_none());
}

/// SPEC 9.9: the router says goodbye for the user, where his registration is.
#[test]
fn a_registration_is_ended_at_its_owner() {
    for backends in ["udp", "tcp"] {
        let mut layout = Layout::new(125).more("[flow_events]\ndelay = \"0s\"\nderegister = true\n");
        layout.column = ("tcp", backends);
        let scene = layout.start(&one_pbx(125));
        let pbx = scene.pbx(1);
        for (name, status, outcome) in [("alice", "200 OK", "success"), ("bob", "401 Unauthorized", "failed")]
        {
            let mut phone = Phone::call(&scene);
            phone.register(&scene, &pbx, name);
            let contact = phone.contact(name);
            drop(phone);
            let got = loop {
                let got = pbx.expect("REGISTER ");
                if got.contains(name) {
                    break got;
                }
            };
            assert!(got.starts_with("REGISTER sip:example.com SIP/2.0\r\n"), "{got}");
            let aor = format!("<sip:{name}@example.com>");
            assert_eq!(text::header(&got, "To"), aor);
            assert!(text::header(&got, "From").starts_with(&format!("{aor};tag=")), "{got}");
            assert_eq!(text::headers(&got, "Contact"), [format!("<{contact}>;expires=0")]);
            assert_eq!((text::header(&got, "Expires"), text::header(&got, "CSeq")), ("0", "1 REGISTER"));
            pbx.answer(scene.pbxs(), &got, status, "x", "");
            until(&scene, "tidings_deregistrations_total", outcome, 1.0);
        }
    }
}

/// Over TLS, by sips and by transport=tls: to who proves that it is him, and to nobody else.
#[test]
fn a_notify_over_tls_goes_to_who_proves_who_he_is() {
    for uri in ["sips:events@127.40.157.64:5060", "sip:events@127.40.157.64:5060;transport=tls"] {
        let mut layout =
            Layout::new(157).more(&format!("[flow_events]\ndelay = \"0s\"\nnotify = \"{uri}\"\n"));
        layout.column = ("tcp", "tls");
        let scene = layout.start(&one_pbx(157));
        let pbx = scene.pbx(1);
        let lose = |user: &str| Phone::call(&scene).register(&scene, &pbx, user);

        // Signed by whom the router trusts, for another's address.
        let at = scene.at(64);
        let other = authority().issue(&["127.40.157.65"]);
        let impostor =
            Party::bind_tls_with(at, (authority().client(None), authority().server(&other, false)));
        lose("alice");
        until(&scene, "tidings_flow_notifies_total", "failed", 1.0);
        let wrong = scene.router.metrics().sum("tidings_tls_errors_total", &[("cause", "wrong_name")]);
        assert!(wrong >= 1.0);
        impostor.expect_nothing(Duration::from_millis(20));
        drop(impostor);

        // A connection that failed is not tried again at once.
        let sink = scene.party(64);
        let got = wait_for("a NOTIFY", Duration::from_secs(10), || {
            lose("bob");
            sink.poll(Duration::from_millis(500))
        });
        let got = String::from_utf8(got.0).expect("text");
        assert!(
            got.starts_with(&format!("NOTIFY {uri} SIP/2.0\r\nVia: SIP/2.0/TLS 127.40.157.2:5060;")),
            "{got}"
        );
        let contact = text::uri(text::header(&got, "Contact")).to_owned();
        assert_eq!(contact.starts_with("sips:"), uri.starts_with("sips:"), "RFC 3261 8.1.1.8: {contact}");
        assert!(text::body(&got).contains("sip:bob@example.com"), "{got}");
        sink.answer(scene.pbxs(), &got, "200 OK", "x", "");
        until(&scene, "tidings_flow_notifies_total", "success", 1.0);
    }
}

/// A real Kamailio takes the NOTIFY, and its registrar the REGISTER that ends the binding: over UDP, TCP and TLS.
#[test]
fn akamailio_takes_events_and_has_no_binding_left() {
    for backends in ["udp", "tcp", "tls"] {
        eprintln!("{backends}");
        let to = match backends {
            "tls" => "sips:events@127.40.158.11:5060".to_owned(),
            "tcp" => "sip:events@127.40.158.11:5060;transport=tcp".to_owned(),
            _ => "pool:one".to_owned(),
        };
        let mut layout = Layout::new(158).more(&format!(
            "[flow_events]\ndelay = \"500ms\"\nlog = true\nnotify = \"{to}\"\nderegister = true\n"
        ));
        layout.column = ("tcp", backends);
        let scene = layout.start(&one_pbx(158));
        let address = "127.40.158.11:5060";
        let kamailio = match backends {
            "udp" => Kamailio::start(address),
            "tcp" => Kamailio::start_tcp(address),
            _ => {
                let shown = authority().issue(&["127.40.158.11"]);
                let (certificate, key) = shown.write(&scene.pki, "kamailio");
                Kamailio::start_tls(address, &certificate, &key, &scene.pki.path().join("ca.pem"))
            }
        };
        let bindings = |user: &str| {
            let mut phone = Phone::call(&scene);
            phone.send("REGISTER", user, "");
            let listed = phone.ok();
            text::headers(&listed, "Contact")
                .iter()
                .map(|contact| text::uri(contact).to_owned())
                .collect::<Vec<_>>()
        };
        let (mut lost, mut stays) = (Phone::call(&scene), Phone::call(&scene));
        let contacts = [lost.contact("alice"), stays.contact("bob")];
        for (phone, user, contact) in [(&mut lost, "alice", &contacts[0]), (&mut stays, "bob", &contacts[1])]
        {
            phone.send("REGISTER", user, &format!("Contact: <{contact}>\r\nExpires: 600\r\n"));
            phone.ok();
            assert_eq!(bindings(user), std::slice::from_ref(contact));
        }
        drop(lost);
        until(&scene, "tidings_deregistrations_total", "success", 1.0);
        until(&scene, "tidings_flow_notifies_total", "success", 1.0);
        let taken = kamailio.taken();
        let notify = taken.iter().find(|taken| taken.method == "NOTIFY").expect("it was answered");
        assert_eq!((notify.event.as_str(), notify.code), ("tidings-flow", 200));
        let (_, body) = notify.line.split_once(" body=").expect("it is logged");
        let event: Value = serde_json::from_str(body.trim()).expect("JSON");
        assert_eq!(
            (&event["aor"], &event["contact"]),
            (&"sip:alice@example.com".into(), &contacts[0].clone().into())
        );
        assert_eq!(bindings("alice"), Vec::<String>::new());
        assert_eq!(bindings("bob"), [contacts[1].clone()]);
    }
}

/// SPEC 9.10: CRLF from the listener that the phone registered at, again and again; none to who is not registered.
#[test]
fn crlf_keeps_the_flows_of_registered_phones() {
    let layout = Layout::new(126).more("[keepalive]\nmethod = \"crlf\"\ninterval = \"1s\"\n");
    let scene = layout.start(&one_pbx(126));
    let (phone, idle, pbx) = (scene.phone(), scene.party(32), scene.pbx(1));
    scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.1>");
    for _ in 0..3 {
        let (bytes, from) = phone.poll(PATIENCE).expect("a keep-alive");
        assert_eq!((bytes.as_slice(), from), (&b"\r\n\r\n"[..], scene.phones()));
    }
    scene.quiet(&[&idle, &pbx]);
    let metrics = scene.router.metrics();
    assert_eq!(metrics.sum("tidings_keepalive_flows", &[]), 1.0);
    assert!(metrics.sum("tidings_keepalives_total", &[("method", "crlf")]) >= 3.0);
    assert_eq!(metrics.sum("tidings_keepalives_late_total", &[]), 0.0);

    // More phones than the rate allows for in an interval: each has its turn, late.
    let layout = Layout::new(128).more("[keepalive]\nmethod = \"crlf\"\ninterval = \"1s\"\nrate = 1\n");
    let scene = layout.start(&one_pbx(128));
    let pbx = scene.pbx(1);
    let phones: Vec<Party> = (31..34).map(|host| scene.party(host)).collect();
    for (phone, n) in phones.iter().zip(1..) {
        scene.register(phone, &pbx, &format!("u{n}"), &format!("<sip:u{n}@10.0.0.{n}>"));
    }
    for phone in phones.iter().chain(&phones) {
        assert_eq!(phone.poll(Duration::from_secs(15)).expect("a keep-alive").0, b"\r\n\r\n");
    }
    assert!(scene.router.metrics().sum("tidings_keepalives_late_total", &[]) >= 1.0);
}

/// The same by OPTIONS: any answer is a sign of life; none for Timer F's time, and the flow is dead until it speaks.
#[test]
fn options_find_out_who_is_gone() {
    let layout = Layout::new(127).more("[keepalive]\nmethod = \"options\"\ninterval = \"10s\"\n");
    let scene = layout.start(&one_pbx(127));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.1>");
    let (bytes, from) = phone.poll(Duration::from_secs(15)).expect("a keep-alive");
    let options = String::from_utf8(bytes).expect("text");
    assert!(options.starts_with("OPTIONS sip:127.40.127.31:5060 SIP/2.0\r\n"), "{options}");
    assert_eq!(from, scene.phones());
    phone.answer(scene.phones(), &options, "501 No", "x", "");
    until(&scene, "tidings_own_requests_total", "refused", 1.0);
    // What comes from now on is left without an answer. Another does not know OPTIONS, but speaks.
    let bob = scene.party(32);
    scene.register(&bob, &pbx, "bob", "<sip:bob@10.0.0.2>");
    wait_for("the flow to be taken for gone", Duration::from_secs(60), || {
        bob.send(scene.phones(), "\r\n\r\n");
        (scene.router.metrics().sum("tidings_keepalive_dead_total", &[]) >= 1.0).then_some(())
    });
    assert_eq!(scene.router.metrics().sum("tidings_unreachable_flows", &[]), 1.0);
    phone.send(scene.phones(), "\r\n\r\n");
    wait_for("it to be back", PATIENCE, || {
        (scene.router.metrics().sum("tidings_unreachable_flows", &[]) == 0.0).then_some(())
    });
}

/// Ends of connections that control has no room for are counted; all others are told.
#[test]
fn a_burst_beyond_the_room_for_news_is_counted() {
    let scene = layout(129, "[limits]\nnews = 16\n").start(&one_pbx(129));
    let pbx = scene.pbx(1);
    let mut phones: Vec<Phone> = (0..80).map(|_| Phone::call(&scene)).collect();
    for (phone, n) in phones.iter_mut().zip(0..) {
        phone.register(&scene, &pbx, &format!("u{n}"));
    }
    assert_eq!(scene.router.metrics().sum("tidings_connection_users", &[]), 80.0);
    drop(phones);
    wait_for("all to be told or counted", Duration::from_secs(10), || {
        let dropped = scene.router.metrics().sum("tidings_news_dropped_total", &[]);
        let told = total(&scene, "tidings_flow_events_total", "told");
        (dropped >= 1.0 && dropped + told == 80.0).then_some(())
    });
    assert_eq!(scene.router.metrics().sum("tidings_connection_users", &[]), 0.0);
}

/// Over https the receiver's certificate counts: HAProxy ends TLS before it, with one that the router knows only once it is
/// told so. The event waits meanwhile.
#[test]
fn an_https_receiver_is_verified() {
    let mut layout = Layout::new(139).more(
        "[flow_events]\ndelay = \"0s\"\nwebhook = \"https://127.40.139.91:8443/\"\nretry_max = \"1s\"\n",
    );
    layout.column = ("tcp", "udp");
    let mut scene = layout.start(&one_pbx(139));
    let receiver = receiver(139);
    let dir = scene.router.dir.path().to_owned();
    let request = scene.router.dir.write(
        "request.cnf",
        "[req]\ndistinguished_name = name\nx509_extensions = ends\nprompt = no\n[name]\nCN = hook\n\
         [ends]\nsubjectAltName = IP:127.40.139.91\nbasicConstraints = CA:FALSE\n",
    );
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config"]).arg(request);
    openssl.arg("-keyout").arg(dir.join("hook.pem.key")).arg("-out").arg(dir.join("hook.pem"));
    let end =
        Process::start("openssl", &mut openssl, &dir.join("openssl.log")).wait_end(Duration::from_secs(30));
    assert!(end.success(), "{}", std::fs::read_to_string(dir.join("openssl.log")).unwrap_or_default());
    let haproxy = scene.router.dir.write(
        "haproxy.cfg",
        &format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\nlisten tls\n \
             bind 127.40.139.91:8443 ssl crt {}\n server receiver 127.40.139.90:8090\n",
            dir.join("hook.pem").display()
        ),
    );
    let mut command = Command::new("/usr/sbin/haproxy");
    let mut haproxy =
        Process::start("haproxy", command.arg("-db").arg("-f").arg(haproxy), &dir.join("haproxy.log"));
    haproxy.wait_bound("tcp", "127.40.139.91:8443".parse().expect("an address"), PATIENCE);

    let pbx = scene.pbx(1);
    let mut phone = Phone::call(&scene);
    phone.register(&scene, &pbx, "alice");
    drop(phone);
    wait_for("a failure", PATIENCE, || {
        (total(&scene, "tidings_webhook_posts_total", "failed") >= 1.0).then_some(())
    });
    assert!(receiver.taken().is_empty());
    scene.router.env.push(("SSL_CERT_FILE".into(), dir.join("hook.pem").display().to_string()));
    scene.router.kill_and_start();
    assert_eq!(receiver.wait(1)[0]["aor"], "sip:alice@example.com");
    receiver.end();
}
