//! Backends that fail under load and behind a network that fails (SPEC 8): SIPp's publishers while a node is killed, and a
//! node whose network is cut off.

mod rig;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use rig::{
    Kamailio, Party, Router, http,
    message::Request,
    process::wait_udp_free,
    sipp::{Scenario, Sipp},
    text, wait_for,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

#[track_caller]
fn backend(router: &Router, name: &str) -> Value {
    let (status, body) = http::get(router.admin, "/api/v1/backends");
    assert_eq!(status, 200, "{body}");
    let list: Vec<Value> = serde_json::from_str(&body).expect("a list of backends");
    list.into_iter().find(|backend| backend["name"] == name).unwrap_or_else(|| panic!("no {name} in {body}"))
}

#[track_caller]
fn wait_state(router: &Router, name: &str, state: &str) {
    wait_for(&format!("{name} to be {state}"), PATIENCE, || {
        let backend = backend(router, name);
        (backend["state"] == state && backend["rtt_ms"].is_f64()).then_some(())
    });
}

fn pool(backends: &[&str]) -> String {
    let mut table = "[[pool]]\nname = \"presence\"\n\
         probe = { interval = \"500ms\", timeout = \"200ms\", fall = 2, rise = 2 }\n"
        .to_owned();
    for (n, address) in backends.iter().enumerate() {
        table += &format!("[[pool.backend]]\nname = \"pbx{}\"\nuri = \"sip:{address}\"\n", n + 1);
    }
    table + "[[rule]]\nname = \"all\"\nmatch = { source = \"clients\" }\nroute = \"presence\"\n"
}

/// SPEC 5.3, 8.2: three nodes under the load of SIPp's publishers, one killed. Once it is noticed no publication fails and
/// none goes there; once it is back it has its share.
#[test]
fn sipp_publishes_on_while_a_node_is_killed_and_comes_back() {
    const CALLS: u32 = 200;
    let address = |n: u8| format!("127.72.1.{n}:5060");
    let nodes: Vec<String> = (11..=13).map(address).collect();
    let kamailio = |n: usize| Kamailio::start(&nodes[n]);
    let (first, mut second, third) = (kamailio(0), kamailio(1), kamailio(2));
    let settings = "[workers]\ncount = 2\npin = false\n\
         [[listen]]\nname = \"phones\"\naddress = \"127.72.1.1:5060\"\nside = \"clients\"\n\
         [[listen]]\nname = \"pbxs\"\naddress = \"127.72.1.2:5060\"\nside = \"backends\"\n\
         [admin]\naddress = \"127.72.1.1:9060\"\n";
    let router = Router::start(settings, &pool(&nodes.iter().map(String::as_str).collect::<Vec<_>>()));
    for n in 1..=3 {
        wait_state(&router, &format!("pbx{n}"), "up");
    }
    // Each load has users of its own.
    let publishers = |load: u8| -> Sipp {
        let body = "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><tuple id=\"t\"><status><basic>open</basic></status>\
             </tuple></presence>";
        let scenario =
            Scenario::ours("publisher").fill("EVENT", "presence").fill("TYPE", "application/pidf+xml");
        let scenario = scenario.fill("BODY", body).fill("CHANGED_BODY", body);
        let scenario = scenario.with(&["-s", &format!("{load}0")]).calls(CALLS, 100);
        scenario.call(&address(40 + load), &address(1))
    };
    let requests = |name: &str| backend(&router, name)["requests"].as_u64().expect("a number");
    publishers(1).finish();
    let before = ["pbx1", "pbx2", "pbx3"].map(requests);
    assert!(before.iter().all(|n| *n > u64::from(CALLS) / 4), "all three have a share: {before:?}");

    // This load sees it die: what is under way there fails, nothing else does.
    let mut dying = publishers(2);
    std::thread::sleep(Duration::from_millis(700));
    second.process.signal_all("KILL");
    let killed = Instant::now();
    second.process.wait_end(PATIENCE);
    wait_for("pbx2 to be down", PATIENCE, || (backend(&router, "pbx2")["state"] == "down").then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(3), "noticed after {:?}", killed.elapsed());
    dying.process.wait_end(Duration::from_secs(65));
    let calls = dying.counted();
    assert_eq!(calls.successful + calls.failed, u64::from(CALLS), "{calls:?}\n{}", dying.errors());
    assert!(calls.failed < u64::from(CALLS) / 4, "{calls:?}\n{}", dying.errors());

    let dead = requests("pbx2");
    publishers(3).finish();
    assert_eq!(requests("pbx2"), dead, "nothing goes to it");

    wait_udp_free(nodes[1].parse().expect("an address"));
    let second = kamailio(1);
    wait_state(&router, "pbx2", "up");
    publishers(4).finish();
    assert!(requests("pbx2") > dead + u64::from(CALLS) / 4, "it has its share again");
    assert!([&first, &second, &third].iter().all(|node| node.count("PUBLISH", "presence") > 0));
}

/// What runs a node in an empty network until the test gives it one.
const IN_ITS_OWN_NETWORK: &str = "ip link set lo up; until ip link show there >/dev/null 2>&1; do sleep 0.05; done; \
     ip addr add 10.98.0.2/24 dev there; ip link set there up; exec \"$@\"";

/// SPEC 8.1, 8.2: a node's network is cut off: no ICMP error, no answer. It is down after `fall` probes, its users are
/// served by the other, and they are back when it is.
#[test]
fn a_node_that_is_cut_off_is_down_until_its_network_is_back() {
    const NAME: &str = "a_node_that_is_cut_off_is_down_until_its_network_is_back";
    if std::env::var_os("TIDINGS_TEST_NAMESPACE").is_none() {
        let status = Command::new("unshare")
            .args(["--map-root-user", "--net", "--"])
            .arg(std::env::current_exe().expect("this test has a path"))
            .args(["--exact", NAME, "--nocapture"])
            .env("TIDINGS_TEST_NAMESPACE", "1")
            .status()
            .expect("unshare of util-linux");
        assert!(status.success(), "the run in a network namespace failed (it needs ip of iproute2)");
        return;
    }
    run("ip link set lo up");
    run("ip link add here type veth peer name there");
    run("ip addr add 10.98.0.1/24 dev here");
    run("ip link set here up");
    let far = Kamailio::start_by(
        &["unshare", "--net", "--", "sh", "-c", IN_ITS_OWN_NETWORK, "sh"],
        "udp",
        "10.98.0.2:5060",
    );
    let pid = far.process.pid();
    let network =
        |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("a process has a network");
    wait_for("its own network", PATIENCE, || (network(&pid.to_string()) != network("self")).then_some(()));
    run(&format!("ip link set there netns {pid}"));
    let near = Kamailio::start("10.98.0.1:5070");
    let settings = "[workers]\ncount = 1\npin = false\n\
         [[listen]]\nname = \"all\"\naddress = \"10.98.0.1:5060\"\n[admin]\naddress = \"127.0.0.1:9060\"\n";
    let router = Router::start(settings, &pool(&["10.98.0.1:5070", "10.98.0.2:5060"]));
    wait_state(&router, "pbx1", "up");
    wait_state(&router, "pbx2", "up");

    let phone = Party::bind("10.98.0.1:5081");
    let place = |user: u32| -> String {
        let request =
            Request::new("SUBSCRIBE", &format!("sip:{user}@example.com"), &phone).with("Expires", "60");
        phone.send("10.98.0.1:5060", request.text());
        let call_id = request.value("Call-ID");
        let answer = wait_for("an answer", PATIENCE, || {
            let (bytes, from) = phone.poll(Duration::from_millis(200))?;
            let message = String::from_utf8_lossy(&bytes).into_owned();
            if message.starts_with("NOTIFY ") {
                phone.answer(from, &message, "200 OK", "n", "");
                return None;
            }
            (text::header(&message, "Call-ID") == call_id).then_some(message)
        });
        assert!(answer.starts_with("SIP/2.0 2"), "{user}:\n{answer}");
        text::uri(text::header(&answer, "Contact")).to_owned()
    };
    let places = || (1000..1012).map(place).collect::<Vec<_>>();
    let before = places();
    assert!(before.iter().any(|at| at.contains("10.98.0.2")), "{before:?}");

    let there = |word: &str| run(&format!("nsenter --target {pid} --net ip link set there {word}"));
    there("down");
    let cut = Instant::now();
    wait_for("pbx2 to be down", PATIENCE, || (backend(&router, "pbx2")["state"] == "down").then_some(()));
    assert!(cut.elapsed() < Duration::from_secs(4), "noticed after {:?}", cut.elapsed());
    assert!(places().iter().all(|at| at.contains("10.98.0.1")), "the other serves them all");
    there("up");
    wait_state(&router, "pbx2", "up");
    assert_eq!(places(), before);
    assert!(near.count("SUBSCRIBE", "presence") > 0 && far.count("SUBSCRIBE", "presence") > 0);
}

fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let status =
        Command::new(words[0]).args(&words[1..]).status().expect("ip of iproute2, nsenter of util-linux");
    assert!(status.success(), "{line}");
}
