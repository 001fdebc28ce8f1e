//! Real peers through the real router, on loopback: Kamailio presence servers behind it, SIPp as phones, publishers and
//! PBXs in front of it and behind it.
//!
//! Scenarios and Kamailio's configuration stand in tests/peers. Every peer is bounded in calls and in time; its exit code
//! and its own statistics are what is asserted, beside the router's counters. A peer that is not installed fails the test.

mod rig;

use std::time::Duration;

use rig::{Kamailio, Party, Router, Scenario, process::wait_udp_free, registrar::Registrar};

const MINUTE: Duration = Duration::from_secs(60);

/// Two listeners, one for each side, in 127.`net`.0/24.
fn two_sides(net: &str) -> String {
    format!(
        "[workers]\ncount = 2\npin = false\n\
         [[listen]]\nname = \"phones\"\ntransport = \"udp\"\naddress = \"127.{net}.1:5060\"\nside = \"clients\"\n\
         [[listen]]\nname = \"pbxs\"\ntransport = \"udp\"\naddress = \"127.{net}.2:5060\"\nside = \"backends\"\n\
         [admin]\naddress = \"127.{net}.1:9060\"\n"
    )
}

/// One listener for both sides, in 127.`net`.0/24.
fn both_sides(net: &str) -> String {
    format!(
        "[workers]\ncount = 2\npin = false\n\
         [[listen]]\ntransport = \"udp\"\naddress = \"127.{net}.1:5060\"\n\
         [admin]\naddress = \"127.{net}.1:9060\"\n"
    )
}

fn pool(name: &str, balance: &str, backends: &[&str]) -> String {
    let mut text = format!("[[pool]]\nname = \"{name}\"\nbalance = \"{balance}\"\nprobe = \"off\"\n");
    for (index, address) in backends.iter().enumerate() {
        text += &format!("[[pool.backend]]\nname = \"{name}{}\"\nuri = \"sip:{address}\"\n", index + 1);
    }
    text
}

/// What phones watch and what is published: event, content type, two bodies, and a regex for what each leads to.
struct Package {
    event: &'static str,
    accept: &'static str,
    bodies: [&'static str; 2],
    seen: [&'static str; 2],
    /// Last octets of the watching and of the publishing address, and the first digits of its users.
    hosts: [u8; 2],
    users: &'static str,
}

const PACKAGES: [Package; 3] = [
    Package {
        event: "presence",
        accept: "application/pidf+xml",
        bodies: [
            "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><tuple id=\"t\"><status><basic>open</basic></status>\
             </tuple></presence>",
            "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><tuple id=\"t\"><status><basic>closed</basic></status>\
             </tuple></presence>",
        ],
        seen: ["basic.open", "basic.closed"],
        hosts: [31, 41],
        users: "10",
    },
    Package {
        event: "dialog",
        accept: "application/dialog-info+xml",
        bodies: [
            "<?xml version=\"1.0\"?><dialog-info xmlns=\"urn:ietf:params:xml:ns:dialog-info\" version=\"1\" state=\"full\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><dialog id=\"d\"><state>early</state></dialog>\
             </dialog-info>",
            "<?xml version=\"1.0\"?><dialog-info xmlns=\"urn:ietf:params:xml:ns:dialog-info\" version=\"2\" state=\"full\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><dialog id=\"d\"><state>confirmed</state></dialog>\
             </dialog-info>",
        ],
        seen: ["state.early", "state.confirmed"],
        hosts: [32, 42],
        users: "20",
    },
    Package {
        event: "message-summary",
        accept: "application/simple-message-summary",
        bodies: ["Messages-Waiting: yes\nVoice-Message: 2/8", "Messages-Waiting: yes\nVoice-Message: 3/8"],
        seen: ["Voice-Message: 2/8", "Voice-Message: 3/8"],
        hosts: [33, 43],
        users: "30",
    },
];

/// SPEC 5.1, 3.2, 3.3: SUBSCRIBE, 2xx and NOTIFY, PUBLISH and the NOTIFY that it causes, refresh and unsubscribe, each
/// package at its own pool, all by real peers.
#[test]
fn packages_meet_at_their_own_kamailio_and_its_notifies_come_back() {
    const PHONES: u32 = 30;
    let all = PHONES as usize;
    let first = Kamailio::start("127.61.1.11:5060");
    let second = Kamailio::start("127.61.1.12:5060");
    let table = format!(
        "{}{}\
         [[rule]]\nname = \"presence\"\nmatch = {{ method = [\"SUBSCRIBE\", \"PUBLISH\"], event = \"presence\" }}\n\
         route = \"first\"\n\
         [[rule]]\nname = \"lamps and mailboxes\"\n\
         match = {{ method = [\"SUBSCRIBE\", \"PUBLISH\"], event = [\"dialog\", \"message-summary\"] }}\n\
         route = \"second\"\n\
         [[rule]]\nname = \"nobody serves it\"\nmatch = {{ method = [\"SUBSCRIBE\", \"PUBLISH\", \"NOTIFY\"] }}\n\
         reply = {{ code = 489, reason = \"Bad Event\" }}\n",
        pool("first", "resource", &["127.61.1.11:5060"]),
        pool("second", "resource", &["127.61.1.12:5060"]),
    );
    let router = Router::start(&two_sides("61.1"), &table);

    let watch = |package: &Package| {
        let scenario = Scenario::ours("watcher").fill("EVENT", package.event).fill("ACCEPT", package.accept);
        let scenario = scenario.fill("CONTENT", package.seen[0]).fill("CHANGED", package.seen[1]);
        let scenario = scenario.fill("ROUTER", "127.61.1.1:5060").with(&["-s", package.users]);
        scenario.calls(PHONES, 30).call(&format!("127.61.1.{}:5060", package.hosts[0]), "127.61.1.1:5060")
    };
    let mut watchers: Vec<_> = PACKAGES.iter().map(watch).collect();
    first.wait_count("SUBSCRIBE", "presence", all, MINUTE);
    second.wait_count("SUBSCRIBE", "dialog", all, MINUTE);
    second.wait_count("SUBSCRIBE", "message-summary", all, MINUTE);

    let publish = |package: &Package| {
        let scenario = Scenario::ours("publisher").fill("EVENT", package.event).fill("TYPE", package.accept);
        let scenario = scenario.fill("BODY", package.bodies[0]).fill("CHANGED_BODY", package.bodies[1]);
        let scenario = scenario.with(&["-s", package.users]).calls(PHONES, 30);
        scenario.call(&format!("127.61.1.{}:5060", package.hosts[1]), "127.61.1.1:5060")
    };
    let mut publishers: Vec<_> = PACKAGES.iter().map(publish).collect();
    for sipp in publishers.iter_mut().chain(&mut watchers) {
        assert_eq!(sipp.finish().successful, u64::from(PHONES));
    }

    // Which pool took what: initial SUBSCRIBE, refresh and unsubscribe, two PUBLISHes, for each phone.
    for (kamailio, events) in [(&first, &PACKAGES[..1]), (&second, &PACKAGES[1..])] {
        for package in events {
            assert_eq!(kamailio.count("SUBSCRIBE", package.event), 3 * all, "{}", package.event);
            assert_eq!(kamailio.count("PUBLISH", package.event), 2 * all, "{}", package.event);
        }
        assert_eq!(kamailio.taken().len(), 5 * all * events.len(), "nothing but its own packages");
        assert!(kamailio.taken().iter().all(|taken| taken.code == 200));
    }

    // A package that nobody serves stays here.
    let phone = Party::bind("127.61.1.51:5060");
    phone.send("127.61.1.1:5060", subscribe("conference", "127.61.1.51:5060"));
    phone.expect("SIP/2.0 489 Bad Event");

    let metrics = router.metrics();
    let rule = |name: &str| metrics.sum("tidings_rule_hits_total", &[("rule", name)]);
    // Refresh and unsubscribe go by their token, past the rules.
    assert_eq!(rule("presence"), f64::from(3 * PHONES));
    assert_eq!(rule("lamps and mailboxes"), f64::from(2 * 3 * PHONES));
    assert_eq!(rule("nobody serves it"), 1.0);
    assert_eq!(metrics.sum("tidings_backend_requests_total", &[("pool", "first")]), f64::from(5 * PHONES));
    assert_eq!(
        metrics.sum("tidings_backend_requests_total", &[("pool", "second")]),
        f64::from(2 * 5 * PHONES)
    );
    let notified = metrics
        .sum("tidings_messages_total", &[("direction", "out"), ("kind", "request"), ("method", "NOTIFY")]);
    assert!(notified >= f64::from(3 * 5 * PHONES), "{notified} NOTIFYs");
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 1.0);
}

fn subscribe(event: &str, from: &str) -> String {
    format!(
        "SUBSCRIBE sip:1000@pbx.example.org SIP/2.0\r\nVia: SIP/2.0/UDP {from};rport;branch=z9hG4bKs-{event}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:alice@pbx.example.org>;tag=a1\r\nTo: <sip:1000@pbx.example.org>\r\n\
         Call-ID: {event}@{from}\r\nCSeq: 1 SUBSCRIBE\r\nContact: <sip:alice@{from}>\r\nEvent: {event}\r\n\
         Expires: 60\r\nContent-Length: 0\r\n\r\n"
    )
}

fn device(name: &str, state: &str) -> String {
    format!(
        "{{\"type\":\"devicestate\",\"device\":\"{name}\",\"state\":\"{state}\",\"cachable\":1,\
         \"eid\":\"02:00:00:00:00:03\"}}"
    )
}

fn mailbox(name: &str, old: u32, new: u32) -> String {
    format!(
        "{{\"type\":\"mailboxstate\",\"uniqueid\":\"{name}\",\"old\":{old},\"new\":{new},\
         \"eid\":\"02:00:00:00:00:03\"}}"
    )
}

/// SPEC 5.1: the filters of an Asterisk configuration carry over; what they stop never reaches the other node.
#[test]
fn asterisk_filters_accept_and_stop_publications_of_devices_and_mailboxes() {
    let receiver = Kamailio::start("127.61.2.11:5060");
    let table = format!(
        "{}\
         [[rule]]\nname = \"devices\"\nroute = \"request-uri\"\n\
         match = {{ method = [\"PUBLISH\"], event = [\"asterisk-devicestate\"], source = \"backends\", \
         device_state_filter = \"^PJSIP/1[[:digit:]]{{3}}$\" }}\n\
         [[rule]]\nname = \"mailboxes\"\nroute = \"request-uri\"\n\
         match = {{ method = [\"PUBLISH\"], event = [\"asterisk-mwi\"], source = \"backends\", \
         mailbox_state_filter = \"^(1000|1001)@\" }}\n\
         [[rule]]\nname = \"other devices\"\nmatch = {{ event = [\"asterisk-devicestate\"], source = \"backends\" }}\n\
         reply = {{ code = 403, reason = \"Filtered\" }}\n\
         [[rule]]\nname = \"other mailboxes\"\nmatch = {{ event = [\"asterisk-mwi\"], source = \"backends\" }}\n\
         drop = true\n",
        pool("asterisk", "resource", &["127.61.2.11:5060", "127.61.2.12:5060", "127.61.2.13:5060"]),
    );
    let router = Router::start(&two_sides("61.2"), &table);
    let publish = |last: u8, status: &str, event: &str, bodies: &[String]| {
        let lines: Vec<String> = bodies.iter().map(|body| format!("{event};{body}")).collect();
        let count = u32::try_from(lines.len()).expect("a handful");
        let scenario = Scenario::ours("asterisk").fill("TO", "127.61.2.11:5060").fill("STATUS", status);
        let scenario = scenario.inject(&lines).with(&["-s", "ast1"]).calls(count, 20);
        scenario
            .limit(Duration::from_secs(20))
            .call(&format!("127.61.2.{last}:5060"), "127.61.2.2:5060")
            .finish()
    };

    let accepted = [
        device("PJSIP/1000", "INUSE"),
        device("PJSIP/1999", "NOT_INUSE"),
        // Their regexes ignore case, as in Asterisk.
        device("pjsip/1001", "RINGING"),
        // No device: a request for everything must reach the other node.
        "{\"type\":\"refresh\",\"eid\":\"02:00:00:00:00:03\"}".to_owned(),
        // The last member of a name counts, in whatever order they come.
        "{\"device\":\"Custom:x\",\"eid\":\"02\",\"state\":\"BUSY\",\"device\":\"PJSIP/1002\"}".to_owned(),
    ];
    publish(12, "200", "asterisk-devicestate", &accepted);
    let stopped = [
        device("PJSIP/2000", "INUSE"),
        device("PJSIP/10000", "INUSE"),
        device("Custom:lamp", "INUSE"),
        device("SIP/1000", "INUSE"),
        device("Local/PJSIP/1000", "INUSE"),
    ];
    publish(13, "403", "asterisk-devicestate", &stopped);
    wait_udp_free("127.61.2.12:5060".parse().expect("an address"));
    let heard = [mailbox("1000@default", 0, 1), mailbox("1001@default", 2, 0)];
    publish(12, "200", "asterisk-mwi", &heard);

    // Dropped means silence. This node sends by its own socket, so that nothing retransmits.
    wait_udp_free("127.61.2.13:5060".parse().expect("an address"));
    let node = Party::bind("127.61.2.13:5060");
    for (id, name) in [("a", "2000@default"), ("b", "10000@default"), ("c", "x1000@default")] {
        node.send(
            "127.61.2.2:5060",
            publication("asterisk-mwi", &mailbox(name, 0, 1), "127.61.2.11:5060", id),
        );
    }
    node.expect_nothing(Duration::from_millis(500));
    // A remove has no body: it passes the filter, and its entity-tag reaches the node as the node gave it.
    let last = mailbox("1000@default", 1, 0);
    node.send("127.61.2.2:5060", publication("asterisk-mwi", &last, "127.61.2.11:5060", "last"));
    let given = node.expect("SIP/2.0 200");
    let tag = rig::text::header(&given, "SIP-ETag");
    let remove = publication("asterisk-mwi", "", "127.61.2.11:5060", "remove");
    let matched = format!("Expires: 0\r\nSIP-If-Match: {tag}\r\n");
    node.send("127.61.2.2:5060", remove.replace("Expires: 20\r\n", &matched));
    node.expect("SIP/2.0 200");

    let taken = receiver.taken();
    let bodies: Vec<&str> =
        taken.iter().filter_map(|taken| Some(taken.line.split_once("body=")?.1)).collect();
    let mut wanted: Vec<&str> = accepted.iter().chain(&heard).map(String::as_str).collect();
    wanted.extend([last.as_str(), ""]);
    assert_eq!(bodies, wanted, "what the node took");
    assert!(taken.iter().all(|taken| taken.code == 200));
    let metrics = router.metrics();
    let rule = |name: &str| metrics.sum("tidings_rule_hits_total", &[("rule", name)]);
    assert_eq!(
        [rule("devices"), rule("other devices"), rule("mailboxes"), rule("other mailboxes")],
        [5.0, 5.0, 4.0, 3.0]
    );
}

fn publication(event: &str, body: &str, to: &str, id: &str) -> String {
    let content = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!(
        "PUBLISH sip:ast1@{to} SIP/2.0\r\nVia: SIP/2.0/UDP 127.61.2.13:5060;rport;branch=z9hG4bKp{id}\r\n\
         From: <sip:ast1@{to}>;tag=n{id}\r\nTo: <sip:ast1@{to}>\r\nCall-ID: {id}\r\nCSeq: 7 PUBLISH\r\n\
         Event: {event}\r\nExpires: 20\r\nMax-Forwards: 70\r\nUser-Agent: Asterisk\r\n{content}\
         Content-Length:   {}\r\n\r\n{body}",
        body.len()
    )
}

/// SPEC 4, 7.1: SIPp's stock UAC and UAS know no Route, so their ACK and BYE go by pin and table.
#[test]
fn stock_sipp_makes_a_thousand_calls() {
    let table = format!(
        "{}[[rule]]\nname = \"calls\"\nmatch = {{ source = \"clients\" }}\nroute = \"pbx\"\n",
        pool("pbx", "call-id", &["127.61.3.11:5060", "127.61.3.12:5060"])
    );
    let router = Router::start(&both_sides("61.3"), &table);
    let answering = |last: u8| Scenario::stock("uas").limit(MINUTE).listen(&format!("127.61.3.{last}:5060"));
    let mut pbxs = [answering(11), answering(12)];
    let mut phones = Scenario::stock("uac").with(&["-s", "1000", "-d", "100"]).calls(1000, 100);
    phones = phones.limit(MINUTE);
    let calls = phones.call("127.61.3.21:5060", "127.61.3.1:5060").finish();
    assert_eq!(calls.successful, 1000);
    let taken: Vec<u64> = pbxs.iter_mut().map(|pbx| pbx.dismiss().successful).collect();
    assert_eq!(taken.iter().sum::<u64>(), 1000);
    assert!(taken.iter().all(|calls| *calls > 300), "call-id spreads them: {taken:?}");
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
    assert_eq!(metrics.sum("tidings_refused_total", &[]), 0.0);
}

/// SPEC 3.3: our scenarios follow the route set, from both ends: 1,000 calls with a re-INVITE that the caller ends, 200
/// that the callee ends. The phones and the PBXs have listeners of their own.
#[test]
fn calls_along_the_route_set_a_thousand_and_more() {
    let table = format!(
        "{}{}\
         [[rule]]\nname = \"calls\"\nmatch = {{ method = [\"INVITE\"], ruri = \"^sip:2\" }}\nroute = \"ending\"\n\
         [[rule]]\nname = \"others\"\nmatch = {{ method = [\"INVITE\"] }}\nroute = \"pbx\"\n",
        pool("ending", "call-id", &["127.61.4.13:5060"]),
        pool("pbx", "call-id", &["127.61.4.11:5060", "127.61.4.12:5060"])
    );
    let router = Router::start(&two_sides("61.4"), &table);
    let answering = |name: &str, last: u8| Scenario::ours(name).listen(&format!("127.61.4.{last}:5060"));
    let mut pbxs = [answering("callee", 11), answering("callee", 12), answering("ending-callee", 13)];
    let calling = |name: &str, user: &str, count: u32, last: u8| {
        let scenario = Scenario::ours(name).with(&["-s", user]).calls(count, 100);
        scenario.call(&format!("127.61.4.{last}:5060"), "127.61.4.1:5060")
    };
    let mut phones = [calling("caller", "1000", 1000, 21), calling("waiting-caller", "2000", 200, 22)];
    assert_eq!(phones[0].finish().successful, 1000);
    assert_eq!(phones[1].finish().successful, 200);
    let taken: Vec<u64> = pbxs.iter_mut().map(|pbx| pbx.dismiss().successful).collect();
    assert_eq!([taken[0] + taken[1], taken[2]], [1000, 200]);
    assert!(taken.iter().all(|calls| *calls > 0), "{taken:?}");
    let metrics = router.metrics();
    let hits = metrics.sum("tidings_rule_hits_total", &[]);
    let pinned = metrics.sum("tidings_pin_hits_total", &[]);
    assert_eq!(hits + pinned, 1200.0 + pinned, "only the first INVITE of each call asks the table");
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
    assert_eq!(metrics.sum("tidings_refused_total", &[]), 0.0);
    assert_eq!(metrics.sum("tidings_tokens_forged_total", &[]), 0.0);
}

/// SPEC 7.1, RFC 3261 9.1 and 17.1.1.3: CANCEL and the ACK of the 487 reach the INVITE's backend under its branch.
#[test]
fn a_hundred_calls_are_cancelled() {
    let table = format!(
        "{}[[rule]]\nname = \"calls\"\nmatch = {{ source = \"clients\", method = [\"INVITE\"] }}\nroute = \"pbx\"\n",
        pool("pbx", "call-id", &["127.61.5.11:5060", "127.61.5.12:5060"])
    );
    let router = Router::start(&two_sides("61.5"), &table);
    let ringing = |last: u8| Scenario::ours("ringing-callee").listen(&format!("127.61.5.{last}:5060"));
    let mut pbxs = [ringing(11), ringing(12)];
    let phones = Scenario::ours("cancelling-caller").with(&["-s", "1000"]).calls(100, 50);
    assert_eq!(phones.call("127.61.5.21:5060", "127.61.5.1:5060").finish().successful, 100);
    let taken: Vec<u64> = pbxs.iter_mut().map(|pbx| pbx.dismiss().successful).collect();
    assert_eq!(taken.iter().sum::<u64>(), 100);
    assert!(taken.iter().all(|calls| *calls > 10), "call-id spreads them: {taken:?}");
    assert_eq!(router.metrics().sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
}

/// SPEC 3.7: the registrar gets a Path, the phone does not see it, and a call along it reaches the phone's socket although
/// its Contact names an address that nobody can reach.
#[test]
fn registered_phones_are_called_back_along_their_path() {
    let table = format!(
        "{}[[rule]]\nname = \"registrations\"\nmatch = {{ method = [\"REGISTER\"] }}\nroute = \"pbx\"\npath = true\n",
        pool("pbx", "resource", &["127.61.6.11:5060"])
    );
    let router = Router::start(&two_sides("61.6"), &table);
    let registrar = Registrar::start("127.61.6.11:5060", "127.61.6.2:5060", 100, Duration::from_secs(40));
    // -t un: a socket, so a flow, for each phone.
    let phones = Scenario::ours("registering-phone")
        .with(&["-s", "60", "-t", "un", "-max_socket", "1000"])
        .calls(100, 50);
    let calls = phones.call("127.61.6.21:5060", "127.61.6.1:5060").finish();
    let outcome = registrar.finish();
    assert_eq!(calls.successful, 100, "{outcome:?}");
    assert!(outcome.refused.is_empty(), "{}", outcome.refused[0]);
    let counts = [outcome.registered, outcome.with_path, outcome.answered, outcome.ended];
    assert_eq!(counts, [100, 100, 100, 100]);
    assert_eq!(router.metrics().sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
}

/// SPEC 5.2: without Path the router learns the flow from the REGISTER and its 2xx, and `route = "flow"` finds it.
#[test]
fn registered_phones_are_called_back_by_their_flow() {
    let table = format!(
        "{}[[rule]]\nname = \"toward phones\"\nmatch = {{ source = \"backends\" }}\nroute = \"flow\"\n\
         [[rule]]\nname = \"registrations\"\nmatch = {{ method = [\"REGISTER\"] }}\nroute = \"pbx\"\n",
        pool("pbx", "resource", &["127.61.7.11:5060"])
    );
    let router = Router::start(&two_sides("61.7"), &table);
    let registrar = Registrar::start("127.61.7.11:5060", "127.61.7.2:5060", 100, Duration::from_secs(40));
    let phones = Scenario::ours("registering-phone")
        .with(&["-s", "70", "-t", "un", "-max_socket", "1000"])
        .calls(100, 50);
    let calls = phones.call("127.61.7.21:5060", "127.61.7.1:5060").finish();
    let outcome = registrar.finish();
    assert_eq!(calls.successful, 100, "{outcome:?}");
    assert!(outcome.refused.is_empty(), "{}", outcome.refused[0]);
    let counts = [outcome.registered, outcome.with_path, outcome.answered, outcome.ended];
    assert_eq!(counts, [100, 0, 100, 100]);
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_flows", &[]), 100.0);
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
}
