//! Backends that live and die (SPEC 8): the real router in front of real Kamailio presence servers that are killed,
//! stopped and started again, and of small peers that answer as no Kamailio would (503 with Retry-After).

mod rig;

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rig::{
    Kamailio, Party, Router, http,
    message::{Request, unique},
    process::wait_udp_free,
    scene::Dialog,
    text, wait_for,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// Network N is 127.71.N.0/24: .1 phones' listener, .2 the PBXs', .11 and above PBXs, .31 and above phones.
fn settings(net: u8, more: &str) -> String {
    format!(
        "[workers]\ncount = 2\npin = false\n\
         [[listen]]\nname = \"phones\"\naddress = \"127.71.{net}.1:5060\"\nside = \"clients\"\n\
         [[listen]]\nname = \"pbxs\"\naddress = \"127.71.{net}.2:5060\"\nside = \"backends\"\n\
         [admin]\naddress = \"127.71.{net}.1:9060\"\n{more}"
    )
}

fn at(net: u8, host: u8) -> SocketAddr {
    SocketAddr::from(([127, 71, net, host], 5060))
}

/// A pool of `count` PBXs, pbx1 at .11; phones to it, it to phones.
fn table(net: u8, count: u8, pool: &str) -> String {
    let mut table = format!("[[pool]]\nname = \"presence\"\n{pool}\n");
    for n in 1..=count {
        table += &format!("[[pool.backend]]\nname = \"pbx{n}\"\nuri = \"sip:{}\"\n", at(net, 10 + n));
    }
    table
        + "[[rule]]\nname = \"to phones\"\nmatch = { source = \"backends\" }\nroute = \"flow\"\n\
           [[rule]]\nname = \"to pbxs\"\nmatch = { source = \"clients\" }\nroute = \"presence\"\n"
}

/// A phone that answers every NOTIFY.
struct Phone {
    party: Party,
    router: SocketAddr,
}

impl Phone {
    fn new(net: u8, host: u8) -> Phone {
        Phone { party: Party::bind(at(net, host)), router: at(net, 1) }
    }

    fn subscribe(&self, user: &str) -> Request {
        Request::new("SUBSCRIBE", &format!("sip:{user}@example.com"), &self.party)
            .with("Expires", "600")
            .with("Accept", "application/pidf+xml")
    }

    /// The final answer to this request, within `limit`.
    fn try_ask(&self, request: &Request, limit: Duration) -> Option<String> {
        self.party.send(self.router, request.text());
        let call_id = request.value("Call-ID");
        let end = Instant::now() + limit;
        loop {
            let (bytes, from) = self.party.poll(end.saturating_duration_since(Instant::now()))?;
            let message = String::from_utf8_lossy(&bytes).into_owned();
            if message.starts_with("NOTIFY ") {
                self.party.answer(from, &message, "200 OK", &unique(), "");
            } else if !message.starts_with("SIP/2.0 1") && text::header(&message, "Call-ID") == call_id {
                return Some(message);
            }
        }
    }

    #[track_caller]
    fn ask(&self, request: &Request) -> String {
        self.try_ask(request, PATIENCE).unwrap_or_else(|| panic!("no answer to\n{}", request.text()))
    }

    /// Which PBX takes this user's subscription: the Contact of its 2xx.
    #[track_caller]
    fn place(&self, user: &str) -> String {
        let answer = self.ask(&self.subscribe(user));
        assert!(answer.starts_with("SIP/2.0 2"), "{user}:\n{answer}");
        text::uri(text::header(&answer, "Contact")).to_owned()
    }

    fn places(&self, users: usize) -> Vec<String> {
        (0..users).map(|n| self.place(&format!("{}", 1000 + n))).collect()
    }
}

/// What the API says of a backend.
#[track_caller]
fn backend(router: &Router, name: &str) -> Value {
    let (status, body) = http::get(router.admin, "/api/v1/backends");
    assert_eq!(status, 200, "{body}");
    let list: Vec<Value> = serde_json::from_str(&body).expect("a list of backends");
    let found = list.into_iter().find(|backend| backend["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {body}"))
}

#[track_caller]
fn wait_state(router: &Router, name: &str, state: &str, limit: Duration) {
    wait_for(&format!("{name} to be {state}"), limit, || {
        (backend(router, name)["state"] == state).then_some(())
    });
}

/// All of them have answered a probe.
#[track_caller]
fn wait_probed(router: &Router, count: u8) {
    for n in 1..=count {
        let name = format!("pbx{n}");
        wait_for(&format!("an answer of {name} to a probe"), PATIENCE, || {
            backend(router, &name)["rtt_ms"].as_f64()
        });
        assert_eq!(backend(router, &name)["state"], "up");
    }
}

#[track_caller]
fn retry_after(answer: &str) -> u32 {
    text::header(answer, "Retry-After").parse().expect("seconds")
}

/// Lines of the router's log that hold all of these words.
fn log_lines(router: &Router, words: &[&str]) -> usize {
    router.process.output().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// SPEC 8.1, 8.2, 8.6, 5.3: a node is killed. ICMP tells at once, long before a probe would; its users and only these
/// move; its dialogs are answered; and when it is back all is where it was.
#[test]
fn a_killed_node_is_noticed_at_once_and_its_users_alone_move_and_come_back() {
    const NET: u8 = 1;
    const USERS: usize = 40;
    let kamailio = |n: u8| Kamailio::start(&at(NET, 10 + n).to_string());
    let (first, mut second, third) = (kamailio(1), kamailio(2), kamailio(3));
    let probe =
        "probe = { interval = \"4s\", timeout = \"500ms\", fall = 3, rise = 2 }\nmigrate_after = \"2s\"";
    let router = Router::start(&settings(NET, ""), &table(NET, 3, probe));
    wait_probed(&router, 3);
    let phone = Phone::new(NET, 31);
    let before = phone.places(USERS);
    let gone = format!("sip:{}", at(NET, 12));
    let its: Vec<usize> = (0..USERS).filter(|n| before[*n] == gone).collect();
    assert!(its.len() > USERS / 6 && its.len() < USERS / 2, "{before:?}");
    let user = format!("{}", 1000 + its[0]);
    let request = phone.subscribe(&user);
    let answer = phone.ask(&request);
    // The request as the PBX got it does not matter here.
    let dialog = Dialog::of(request.text(), answer);

    second.process.signal_all("KILL");
    second.process.wait_end(PATIENCE);
    wait_udp_free(at(NET, 12));
    let killed = Instant::now();
    let answer = phone.ask(&phone.subscribe(&user));
    assert!(answer.starts_with("SIP/2.0 503"), "{answer}");
    assert!(retry_after(&answer) > 0);
    wait_state(&router, "pbx2", "down", Duration::from_secs(2));
    let noticed = killed.elapsed();
    assert!(noticed < Duration::from_secs(2), "ICMP was noticed after {noticed:?}");
    let down = backend(&router, "pbx2");
    assert!(down["why"].as_str().expect("text").contains("nobody listens"), "{down}");
    assert!(down["restarted_unix_s"].is_u64() && down["errors"].as_u64() > Some(0), "{down}");

    // SPEC 8.6
    let refresh = || phone.ask(&dialog.by_caller("SUBSCRIBE", &phone.party).with("CSeq", "2 SUBSCRIBE"));
    let answer = refresh();
    assert!(answer.starts_with("SIP/2.0 503") && (1..=2).contains(&retry_after(&answer)), "{answer}");
    let answer = phone.ask(&dialog.by_caller("BYE", &phone.party));
    assert!(answer.starts_with("SIP/2.0 481"), "{answer}");
    let answer = phone.ask(&dialog.by_caller("INFO", &phone.party));
    assert!(answer.starts_with("SIP/2.0 503") && retry_after(&answer) > 0, "{answer}");

    let during = phone.places(USERS);
    for (n, (was, is)) in before.iter().zip(&during).enumerate() {
        assert_ne!(*is, gone, "user {n}");
        assert!(its.contains(&n) || was == is, "user {n} moved from {was} to {is}");
    }
    // `migrate_after` counts from when it was noticed.
    std::thread::sleep((noticed + Duration::from_millis(2100)).saturating_sub(killed.elapsed()));
    let answer = refresh();
    assert!(answer.starts_with("SIP/2.0 481"), "after migrate_after:\n{answer}");
    let metrics = router.metrics();
    assert!(metrics.sum("tidings_refused_total", &[("cause", "backend_down")]) >= 2.0);
    assert!(metrics.sum("tidings_refused_total", &[("cause", "backend_gone")]) >= 2.0);

    let restarts = std::fs::read_to_string(router.dir.path().join("state/restarts")).expect("they are kept");
    assert!(restarts.ends_with(" pbx2\n") && restarts.lines().count() == 1, "{restarts:?}");

    let _second = kamailio(2);
    wait_state(&router, "pbx2", "up", PATIENCE);
    assert_eq!(phone.places(USERS), before, "the former placement");
    for words in [["backend is down", "pbx2"], ["backend is up", "pbx2"]] {
        assert_eq!(log_lines(&router, &words), 1, "{words:?} in\n{}", router.process.output());
    }
    let transitions = [("backend", "pbx2"), ("state", "down")];
    assert_eq!(router.metrics().sum("tidings_backend_transitions_total", &transitions), 1.0);
    assert!(first.count("SUBSCRIBE", "presence") > 0 && third.count("SUBSCRIBE", "presence") > 0);
}

/// SPEC 8.2: requests went there and nothing came back: it is asked at once, and again until it is sure.
#[test]
fn a_stopped_node_is_noticed_by_its_silence_and_recovers() {
    const NET: u8 = 2;
    let kamailio = |n: u8| Kamailio::start(&at(NET, 10 + n).to_string());
    let (first, second) = (kamailio(1), kamailio(2));
    let probe = "probe = { interval = \"4s\", timeout = \"200ms\", fall = 3, rise = 2 }";
    let router = Router::start(&settings(NET, "[health]\nsilence = \"400ms\"\n"), &table(NET, 2, probe));
    wait_probed(&router, 2);
    let phone = Phone::new(NET, 31);
    let before = phone.places(20);
    let gone = format!("sip:{}", at(NET, 11));
    let user = before.iter().position(|place| *place == gone).expect("someone is on pbx1");
    let user = format!("{}", 1000 + user);

    first.process.signal_all("STOP");
    assert!(phone.try_ask(&phone.subscribe(&user), Duration::from_millis(300)).is_none(), "it is stopped");
    wait_state(&router, "pbx1", "down", Duration::from_secs(4));
    let noticed = [("backend", "pbx1"), ("sign", "silence")];
    assert!(router.metrics().sum("tidings_backend_noticed_total", &noticed) >= 1.0);
    assert_ne!(phone.place(&user), gone);

    first.process.signal_all("CONT");
    wait_state(&router, "pbx1", "up", PATIENCE);
    assert_eq!(phone.places(20), before);
    assert_eq!(router.metrics().sum("tidings_backend_transitions_total", &[("backend", "pbx2")]), 0.0);
    drop(second);
}

/// SPEC 8.1: without any traffic, so many probes in a row without an answer.
#[test]
fn a_mute_node_is_down_after_fall_probes_and_the_probes_are_bounded() {
    const NET: u8 = 3;
    let mute: Vec<Party> = (1..=3).map(|n| Party::bind(at(NET, 10 + n))).collect();
    let probe = "probe = { interval = \"500ms\", timeout = \"300ms\", fall = 3, rise = 2 }";
    let router = Router::start(&settings(NET, "[health]\nprobes = 1\n"), &table(NET, 3, probe));
    let started = Instant::now();
    for n in 1..=3 {
        wait_state(&router, &format!("pbx{n}"), "down", PATIENCE);
    }
    // One at a time: nine probes of 300 ms.
    assert!(started.elapsed() > Duration::from_millis(2400), "{:?}", started.elapsed());
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_probes_limit", &[]), 1.0);
    assert!(metrics.sum("tidings_probes_delayed_total", &[]) > 0.0);
    let down = backend(&router, "pbx1");
    assert!(down["why"].as_str().expect("text").contains("does not answer OPTIONS"), "{down}");
    // What was asked of it, and that a probe is not retransmitted beyond its time.
    let mut branches = Vec::new();
    while let Some((bytes, from)) = mute[0].poll(Duration::from_millis(10)) {
        let probe = String::from_utf8_lossy(&bytes).into_owned();
        assert!(probe.starts_with(&format!("OPTIONS sip:{} SIP/2.0\r\n", at(NET, 11))), "{probe}");
        assert_eq!(from.ip(), at(NET, 2).ip(), "from the address of the PBXs' listener");
        branches.push(rig::scene::branch(&probe).to_owned());
    }
    let count = branches.len();
    branches.dedup();
    assert_eq!(branches.len(), count, "300 ms are too short for a retransmission");
    assert_eq!(http::get(router.admin, "/readyz"), (503, "not ready: no backend takes requests\n".into()));

    let phone = Phone::new(NET, 31);
    let asked = format!("/api/v1/explain?source={}", phone.party.address);
    let (status, told) = http::post(router.admin, &asked, &phone.subscribe("1000").text());
    assert_eq!((status, told.matches("down").count() >= 3), (200, true), "{told}");
    let (status, body) = router.put_table(&table(NET, 3, "probe = \"off\""));
    assert_eq!(status, 200, "{body}");
    wait_state(&router, "pbx1", "up", Duration::from_secs(2));
    assert_eq!(backend(&router, "pbx1")["why"], "not probed any more");
}

/// A PBX of the test's own: a thread that answers each request by `answer` (status and header lines), or not at all.
struct Pbx {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Pbx {
    fn start(
        address: SocketAddr,
        answer: impl Fn(&str) -> Option<(&'static str, &'static str)> + Send + 'static,
    ) -> Pbx {
        let socket: UdpSocket = Party::bind(address).udp().try_clone().expect("a socket of ours");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout above zero is accepted");
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ends, counted) = (stop.clone(), requests.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !ends.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if request.starts_with("SIP/2.0") {
                    continue;
                }
                counted.fetch_add(usize::from(!request.starts_with("OPTIONS ")), Ordering::Relaxed);
                if let Some((status, more)) = answer(&request) {
                    let more = format!("{more}Contact: <sip:{address}>\r\n");
                    let _ = socket.send_to(text::answer(&request, status, "pbx", &more).as_bytes(), from);
                }
            }
        });
        Pbx { stop, requests, thread: Some(thread) }
    }

    /// Requests that were no probes.
    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Pbx {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const OK: Option<(&str, &str)> = Some(("200 OK", "Expires: 600\r\n"));
const PROBE: &str = "probe = { interval = \"300ms\", timeout = \"200ms\", fall = 3, rise = 2 }";

/// SPEC 8.2, 8.3: a 503 with Retry-After to a probe is a pause as long as it says. Meanwhile, with no other backend: 503
/// at once, to OPTIONS and readiness too; a PUBLISH is met with silence (6.5).
#[test]
fn a_probe_answered_by_503_is_a_pause_and_all_down_is_said_at_once() {
    const NET: u8 = 4;
    let busy = Arc::new(AtomicBool::new(false));
    let is_busy = busy.clone();
    let pbx = Pbx::start(at(NET, 11), move |request| {
        let probe = request.starts_with("OPTIONS ") && is_busy.load(Ordering::Relaxed);
        if probe { Some(("503 Busy", "Retry-After: 2 (a moment)\r\n")) } else { OK }
    });
    let router = Router::start(&settings(NET, ""), &table(NET, 1, PROBE));
    wait_probed(&router, 1);
    let phone = Phone::new(NET, 31);
    let dialog_request = phone.subscribe("1000");
    let dialog = Dialog::of(dialog_request.text(), phone.ask(&dialog_request));
    assert_eq!(http::get(router.admin, "/readyz").0, 200);

    busy.store(true, Ordering::Relaxed);
    wait_state(&router, "pbx1", "degraded", PATIENCE);
    let asked = Instant::now();
    let answer = phone.ask(&phone.subscribe("1000"));
    assert!(answer.starts_with("SIP/2.0 503") && retry_after(&answer) > 0, "{answer}");
    assert!(asked.elapsed() < Duration::from_millis(200), "at once, not after {:?}", asked.elapsed());
    let answer = phone.ask(&Request::new("OPTIONS", &format!("sip:{}", at(NET, 1)), &phone.party));
    assert!(answer.starts_with("SIP/2.0 503") && retry_after(&answer) > 0, "{answer}");
    assert_eq!(http::get(router.admin, "/readyz").0, 503);
    let publish = Request::new("PUBLISH", "sip:1000@example.com", &phone.party);
    assert!(phone.try_ask(&publish, Duration::from_millis(200)).is_none(), "silence");
    let requests = pbx.requests();
    let answer = phone.ask(&dialog.by_caller("SUBSCRIBE", &phone.party));
    assert!(answer.starts_with("SIP/2.0 200"), "what it has goes on:\n{answer}");
    assert_eq!(pbx.requests(), requests + 1);

    busy.store(false, Ordering::Relaxed);
    let freed = Instant::now();
    wait_state(&router, "pbx1", "up", PATIENCE);
    assert!(freed.elapsed() < Duration::from_secs(4), "{:?}", freed.elapsed());
    assert!(phone.ask(&phone.subscribe("1000")).starts_with("SIP/2.0 200"));
    assert_eq!(http::get(router.admin, "/readyz").0, 200);
}

/// SPEC 8.3: `panic = true` routes to all instead, but to none that the operator took off.
#[test]
fn a_pool_that_panics_goes_on_with_what_is_down() {
    const NET: u8 = 5;
    // They answer no probe, but calls: a PBX whose OPTIONS somebody filters.
    let no_probes = |request: &str| if request.starts_with("OPTIONS ") { None } else { OK };
    let first = Pbx::start(at(NET, 11), no_probes);
    let second = Pbx::start(at(NET, 12), no_probes);
    let router = Router::start(&settings(NET, ""), &table(NET, 2, &format!("{PROBE}\npanic = true")));
    let phone = Phone::new(NET, 31);
    let before = phone.places(20);
    wait_state(&router, "pbx1", "down", PATIENCE);
    wait_state(&router, "pbx2", "down", PATIENCE);
    assert_eq!(phone.places(20), before, "placed as if all were up");
    assert!(first.requests() > 0 && second.requests() > 0);
    assert_eq!(http::get(router.admin, "/readyz").0, 200);
    let (status, body) = http::post(router.admin, "/api/v1/backends/pbx1/state", "");
    assert_eq!(status, 415, "JSON is wanted: {body}");
    command(&router, &["off", "pbx1"]);
    let other = format!("sip:{}", at(NET, 12));
    assert!(phone.places(20).iter().all(|place| *place == other));
}

/// SPEC 8.2: one phone that is always met with 503 turns nobody off; several sources make a pause.
#[test]
fn one_phone_provoking_503s_turns_nobody_off_and_three_sources_do() {
    const NET: u8 = 6;
    let pbx = Pbx::start(at(NET, 11), |request| {
        if request.contains("sip:dead@") { Some(("503 No Trunk", "Retry-After: 3\r\n")) } else { OK }
    });
    let router = Router::start(&settings(NET, ""), &table(NET, 1, PROBE));
    wait_probed(&router, 1);
    let phones: Vec<Phone> = (31..34).map(|host| Phone::new(NET, host)).collect();
    for n in 0..60 {
        let phone = &phones[n % 2];
        assert!(phone.ask(&phone.subscribe("dead")).starts_with("SIP/2.0 503"));
    }
    assert_eq!(pbx.requests(), 60, "each reached it");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(backend(&router, "pbx1")["state"], "up");
    assert_eq!(router.metrics().sum("tidings_backend_transitions_total", &[]), 0.0);

    phones[2].ask(&phones[2].subscribe("dead"));
    wait_state(&router, "pbx1", "degraded", Duration::from_secs(2));
    let paused = Instant::now();
    let answer = phones[0].ask(&phones[0].subscribe("1000"));
    assert!(answer.starts_with("SIP/2.0 503"), "{answer}");
    assert_eq!(pbx.requests(), 61, "the router answers for it");
    wait_state(&router, "pbx1", "up", PATIENCE);
    assert!(paused.elapsed() > Duration::from_secs(2), "{:?}", paused.elapsed());
    assert!(phones[0].ask(&phones[0].subscribe("1000")).starts_with("SIP/2.0 200"));
}

/// SPEC 8.2: ICMP errors for one backend cost no message to another.
#[test]
fn a_dead_backend_costs_its_neighbour_no_message() {
    const NET: u8 = 7;
    let pbx = Pbx::start(at(NET, 11), |_| OK);
    // Without probes the dead one stays in the balance: every second request provokes an error.
    let router = Router::start(&settings(NET, ""), &table(NET, 2, "probe = \"off\""));
    let phone = Phone::new(NET, 31);
    let mut alive = 0;
    for n in 0..200 {
        let answer = phone.ask(&phone.subscribe(&format!("{}", 1000 + n)));
        alive += usize::from(answer.starts_with("SIP/2.0 200"));
        assert!(answer.starts_with("SIP/2.0 200") || answer.starts_with("SIP/2.0 503"), "{answer}");
    }
    assert!((60..140).contains(&alive), "{alive} of 200");
    assert_eq!(pbx.requests(), alive);
    assert_eq!(backend(&router, "pbx2")["undeliverable"], 200 - alive);
    assert_eq!(backend(&router, "pbx2")["state"], "up", "nothing is known of one that is not probed");
}

/// `tidings backends …` of this router: what it printed.
#[track_caller]
fn command(router: &Router, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = run_command(router, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stdout}{stderr}");
    stdout
}

fn run_command(router: &Router, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.arg("backends").args(arguments);
    command.arg("--config").arg(router.dir.path().join("tidings.toml"));
    let output = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// SPEC 5.4, 5.6, 11.5: drain, off and activate at once, over a table swap, until the process ends.
#[test]
fn the_operator_drains_takes_off_and_activates() {
    const NET: u8 = 8;
    let first = Pbx::start(at(NET, 11), |_| OK);
    let second = Pbx::start(at(NET, 12), |_| OK);
    let text = table(NET, 2, PROBE);
    let router = Router::start(&settings(NET, ""), &text);
    wait_probed(&router, 2);
    let phone = Phone::new(NET, 31);
    let before = phone.places(20);
    let (one, two) = (format!("sip:{}", at(NET, 11)), format!("sip:{}", at(NET, 12)));
    let user = before.iter().position(|place| *place == one).expect("someone is on pbx1");
    let request = phone.subscribe(&format!("{}", 1000 + user));
    let dialog = Dialog::of(request.text(), phone.ask(&request));
    let refresh =
        || phone.ask(&dialog.by_caller("SUBSCRIBE", &phone.party).with("CSeq", format!("{} SUBSCRIBE", 7)));

    let listed = command(&router, &[]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    for word in ["NAME", "POOL", "ADDRESS", "STATE", "RTT", "REQUESTS", "RESPONSES", "ERRORS", "WHY"] {
        assert!(lines[0].contains(word), "{listed}");
    }
    assert!(lines[1].starts_with("pbx1  presence  127.71.8.11:5060/udp  up"), "{listed}");

    let drained = command(&router, &["drain", "pbx1"]);
    assert!(drained.contains("drain") && drained.contains("operator"), "{drained}");
    assert!(phone.places(20).iter().all(|place| *place == two), "nothing new goes there");
    assert!(refresh().starts_with("SIP/2.0 200"), "what is there goes on");
    let (status, body) = router.put_table(&format!("{text}\n# another version\n"));
    assert_eq!(status, 200, "{body}");
    assert_eq!(backend(&router, "pbx1")["state"], "drain", "over a table swap");
    assert!(phone.places(20).iter().all(|place| *place == two));

    command(&router, &["off", "pbx1"]);
    let had = first.requests();
    let answer = refresh();
    assert!(answer.starts_with("SIP/2.0 503") && retry_after(&answer) > 20, "{answer}");
    assert_eq!(first.requests(), had, "nothing at all goes there");

    let json: Value = serde_json::from_str(&command(&router, &["activate", "pbx1", "--json"])).expect("JSON");
    assert_eq!((&json[0]["state"], &json[0]["mark"]), (&Value::from("up"), &Value::Null));
    assert_eq!(phone.places(20), before);
    assert!(second.requests() > 0 && first.requests() > had);

    let (code, _, stderr) = run_command(&router, &["drain", "nobody"]);
    assert_eq!((code, stderr.contains("no backend \"nobody\"")), (Some(1), true), "{stderr}");
    command(&router, &["drain", "pbx2"]);
    drop(router);
    // SPEC 11.5: nobody to ask is exit code 2.
    let again = Router::start(&settings(NET, ""), &text);
    assert_eq!(backend(&again, "pbx2")["state"], "up", "a mark ends with the process");
    let config = again.dir.path().join("tidings.toml");
    let mut asked = Command::new(env!("CARGO_BIN_EXE_tidings"));
    asked.args(["backends", "--admin", "127.71.8.1:9061", "--config"]).arg(config);
    assert_eq!(asked.output().expect("the binary runs").status.code(), Some(2));
}

/// SPEC 9.6, 9.1: probes leave by the family of their backend, and from the address that the kernel would choose where the
/// listener is bound to a wildcard.
#[test]
fn probes_reach_ipv6_and_leave_wildcards_by_a_real_address() {
    let six = Pbx::start("[::1]:25971".parse().expect("an address"), |_| OK);
    let (heard, hears) = std::sync::mpsc::channel();
    let four = Pbx::start(at(9, 11), move |request| {
        let _ = heard.send(request.to_owned());
        Some(("405 Method Not Allowed", ""))
    });
    let settings = "[workers]\ncount = 1\n[[listen]]\nname = \"six\"\naddress = \"[::1]:25970\"\n\
                    [[listen]]\nname = \"four\"\naddress = \"0.0.0.0:25970\"\n\
                    [admin]\naddress = \"127.71.9.1:9060\"\n";
    let table = format!(
        "[[pool]]\nname = \"all\"\n{PROBE}\n[[pool.backend]]\nname = \"pbx1\"\nuri = \"sip:[::1]:25971\"\n\
         [[pool.backend]]\nname = \"pbx2\"\nuri = \"sip:127.71.9.11:5060\"\n\
         [[rule]]\nname = \"all\"\nmatch = {{ source = \"clients\" }}\nroute = \"all\"\n"
    );
    let router = Router::start(settings, &table);
    wait_probed(&router, 2);
    let probe = hears.recv_timeout(PATIENCE).expect("a probe");
    let from = rig::scene::via_address(&probe);
    assert_eq!(from.ip().to_string(), "127.0.0.1", "{probe}");
    assert_eq!((six.requests(), four.requests()), (0, 0));
}

/// Names beyond the limit of series count as other; whether a backend of the table is down is told all the same.
#[test]
fn the_state_of_every_backend_is_told_whatever_the_limit_of_series() {
    let table = table(39, 12, "probe = { interval = \"500ms\", timeout = \"200ms\", fall = 1, rise = 1 }");
    let router = Router::start(&settings(39, "[limits]\nseries = 8\n"), &table);
    wait_for("all to be known as down", PATIENCE, || {
        let metrics = router.metrics();
        let down = |n: u8| {
            let backend = format!("pbx{n}");
            metrics.sum("tidings_backend_state", &[("backend", backend.as_str()), ("state", "down")])
        };
        (1..=12).all(|n| down(n) == 1.0).then_some(())
    });
    // Seven of the twelve backends have a series.
    assert!(router.metrics().sum("tidings_series_beyond_limit", &[]) >= 5.0);
    assert!(router.metrics().sum("tidings_series", &[]) >= 7.0);
}
