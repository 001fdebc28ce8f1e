//! Real peers over TCP, and mixed with UDP: SIPp as phones and PBXs, Kamailio as a presence server (SPEC 3.8, 9.2).
//!
//! The scenarios are those of `peers`; each transport of the phones meets each of the PBXs.

#[path = "rig/mod.rs"]
mod rig;

use rig::{Kamailio, Router, Scenario};

/// Phones by both transports on 127.`net`.1, PBXs by both on .2.
fn settings(net: &str) -> String {
    let listen = |name: &str, transport: &str, host: u8, side: &str| {
        format!(
            "[[listen]]\nname = \"{name}-{transport}\"\ntransport = \"{transport}\"\n\
             address = \"127.{net}.{host}:5060\"\nside = \"{side}\"\n"
        )
    };
    let phones = listen("phones", "udp", 1, "clients") + &listen("phones", "tcp", 1, "clients");
    let pbxs = listen("pbxs", "udp", 2, "backends") + &listen("pbxs", "tcp", 2, "backends");
    format!("[workers]\ncount = 2\n{phones}{pbxs}[admin]\naddress = \"127.{net}.1:9060\"\n")
}

fn pool(backends: &[(&str, &str)]) -> String {
    let mut text = "[[pool]]\nname = \"pbx\"\nbalance = \"call-id\"\nprobe = \"off\"\n".to_owned();
    for (index, (address, transport)) in backends.iter().enumerate() {
        text += &format!(
            "[[pool.backend]]\nname = \"pbx{}\"\nuri = \"sip:{address};transport={transport}\"\n",
            index + 1
        );
    }
    text
}

/// INVITE, 180, 200, ACK, re-INVITE, BYE: phones over UDP and TCP, each to PBXs over UDP and TCP, none lost.
#[test]
fn calls_pass_whatever_the_transports_are() {
    let table = pool(&[("127.63.1.11:5060", "udp"), ("127.63.1.12:5060", "tcp")])
        + "[[rule]]\nname = \"calls\"\nmatch = { source = \"clients\" }\nroute = \"pbx\"\n";
    let router = Router::start(&settings("63.1"), &table);
    let mut pbxs = [
        Scenario::ours("callee").listen("127.63.1.11:5060"),
        Scenario::ours("callee").tcp(false).listen("127.63.1.12:5060"),
    ];
    let calling = || Scenario::ours("caller").with(&["-s", "1000"]).calls(200, 100);
    let mut phones = [
        calling().call("127.63.1.21:5060", "127.63.1.1:5060"),
        calling().tcp(true).call("127.63.1.22:5060", "127.63.1.1:5060"),
        calling().tcp(false).call("127.63.1.23:5060", "127.63.1.1:5060"),
    ];
    for phones in &mut phones {
        assert_eq!(phones.finish().successful, 200);
    }
    let taken: Vec<u64> = pbxs.iter_mut().map(|pbx| pbx.dismiss().successful).collect();
    assert_eq!(taken.iter().sum::<u64>(), 600);
    assert!(taken.iter().all(|calls| *calls > 100), "call-id spreads them: {taken:?}");
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
    assert_eq!(metrics.sum("tidings_refused_total", &[]), 0.0);
    assert_eq!(
        metrics.sum("tidings_connections_opened_total", &[("role", "dialed")]),
        1.0,
        "one for the PBX"
    );
    for (direction, transport) in [("in", "udp"), ("in", "tcp"), ("out", "udp"), ("out", "tcp")] {
        let labels = [("direction", direction), ("transport", transport), ("method", "INVITE")];
        assert!(metrics.sum("tidings_messages_total", &labels) > 500.0, "{direction} {transport}");
    }
}

/// SUBSCRIBE, 2xx, NOTIFY, PUBLISH and the NOTIFY that it causes, refresh, unsubscribe: phones over TCP and UDP with a
/// real Kamailio over TCP, which sends its NOTIFYs along our Record-Route.
#[test]
fn akamailio_over_tcp_serves_watchers_over_both() {
    const PHONES: u32 = 20;
    let kamailio = Kamailio::start_tcp("127.63.2.11:5060");
    let table = pool(&[("127.63.2.11:5060", "tcp")])
        + "[[rule]]\nname = \"all\"\nmatch = { source = \"clients\" }\nroute = \"pbx\"\n";
    let router = Router::start(&settings("63.2"), &table);
    let body = |state: &str| {
        format!(
            "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><tuple id=\"t\"><status><basic>{state}</basic></status>\
             </tuple></presence>"
        )
    };
    let watch = |users: &str, host: u8, tcp: bool| {
        let scenario =
            Scenario::ours("watcher").fill("EVENT", "presence").fill("ACCEPT", "application/pidf+xml");
        let scenario = scenario.fill("CONTENT", "basic.open").fill("CHANGED", "basic.closed");
        let scenario = scenario.fill("ROUTER", "127.63.2.1:5060").with(&["-s", users]).calls(PHONES, 30);
        let scenario = if tcp { scenario.tcp(true) } else { scenario };
        scenario.call(&format!("127.63.2.{host}:5060"), "127.63.2.1:5060")
    };
    let publish = |users: &str, host: u8, tcp: bool| {
        let scenario =
            Scenario::ours("publisher").fill("EVENT", "presence").fill("TYPE", "application/pidf+xml");
        let scenario = scenario.fill("BODY", &body("open")).fill("CHANGED_BODY", &body("closed"));
        let scenario = scenario.with(&["-s", users]).calls(PHONES, 30);
        let scenario = if tcp { scenario.tcp(false) } else { scenario };
        scenario.call(&format!("127.63.2.{host}:5060"), "127.63.2.1:5060")
    };
    let mut watchers = [watch("10", 31, true), watch("20", 32, false)];
    kamailio.wait_count("SUBSCRIBE", "presence", 2 * PHONES as usize, std::time::Duration::from_secs(60));
    let mut publishers = [publish("10", 41, false), publish("20", 42, true)];
    for sipp in publishers.iter_mut().chain(&mut watchers) {
        assert_eq!(sipp.finish().successful, u64::from(PHONES));
    }
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
    assert!(metrics.sum("tidings_connections_opened_total", &[("role", "dialed")]) <= 1.0);
}
