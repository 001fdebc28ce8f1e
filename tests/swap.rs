//! Hot swap under load (SPEC 5.6): no message lost, none decided by two tables, counters kept, memory flat, and what
//! began under one table ends where it began.
//!
//! Tables are numbered; table n sets `X-Table: n` and routes to backend n modulo 2, by pools whose order in the file
//! changes from table to table: a message decided by the rules of one and the pools of another comes to the wrong one.

mod rig;

use std::{
    collections::HashMap,
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

use rig::{Metrics, Party, Router, Scenario, load::Load, process::resident_kib, text};
use tidings::{
    config::Settings,
    control::{self, TableSource},
};

const RULES: u32 = 10_000;

/// Table `n`: a rule for each of 10,000 users, and one for calls.
fn table(n: u64, rules: u32, first: &str, second: &str) -> String {
    let pool = |name: &str, address: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\nprobe = \"off\"\n\
             [[pool.backend]]\nname = \"{name}1\"\nuri = \"sip:{address}\"\n"
        )
    };
    let (first, second) = (pool("first", first), pool("second", second));
    let target = if n.is_multiple_of(2) { "first" } else { "second" };
    let mut text = if n.is_multiple_of(2) { first + &second } else { second + &first };
    for user in 0..rules {
        let _ = write!(
            text,
            "[[rule]]\nname = \"user {user}\"\nroute = \"{target}\"\nset.X-Table = \"{n}\"\n\
             match = {{ method = [\"SUBSCRIBE\", \"PUBLISH\", \"NOTIFY\"], ruri = \"^sip:user{user}(v{n})?@\" }}\n"
        );
    }
    let _ = write!(
        text,
        "[[rule]]\nname = \"calls\"\nroute = \"{target}\"\nset.X-Table = \"{n}\"\nmatch = {{ method = [\"INVITE\"] }}\n"
    );
    text
}

fn settings(net: &str) -> String {
    format!(
        "[workers]\ncount = 2\npin = false\n\
         [[listen]]\nname = \"phones\"\ntransport = \"udp\"\naddress = \"127.{net}.1:5060\"\nside = \"clients\"\n\
         [[listen]]\nname = \"pbxs\"\ntransport = \"udp\"\naddress = \"127.{net}.2:5060\"\nside = \"backends\"\n\
         [admin]\naddress = \"127.{net}.1:9060\"\n\
         [protection]\nexempt = [\"127.0.0.0/8\"]\n"
    )
}

#[track_caller]
fn put(router: &Router, table: &str) {
    let (status, body) = router.put_table(table);
    assert!((200..300).contains(&status), "PUT of a table answers {status}: {body}");
}

/// Holds every counter of the router against the scrape before.
#[derive(Default)]
struct Watch(HashMap<String, f64>);

impl Watch {
    #[track_caller]
    fn hold(&mut self, metrics: &Metrics) {
        let now: HashMap<String, f64> = metrics.counters().collect();
        for (name, before) in &self.0 {
            let after = now.get(name).unwrap_or_else(|| panic!("{name} is gone after a swap"));
            assert!(after >= before, "{name} fell from {before} to {after}");
        }
        self.0 = now;
    }
}

/// A fresh table of 10,000 rules is compiled and swapped in again and again by PUT, while clients send and SIPp calls.
#[test]
fn fresh_tables_by_api_under_load() {
    const SWAPS: u64 = 16;
    /// By then the allocator has what it needs; after it, so many looks at memory at each end are compared.
    const WARM: u64 = 6;
    const LOOKS: usize = 4;
    let fresh = |n| table(n, RULES, "127.62.1.11:5060", "127.62.1.12:5060");
    let mut router = Router::start(&settings("62.1"), &fresh(0));
    let clients: Vec<String> = (0..4).map(|i| format!("127.62.1.{}:5060", 101 + i)).collect();
    let backends = ["127.62.1.11:5060".to_owned(), "127.62.1.12:5060".to_owned()];
    let load = Load::start("127.62.1.1:5060", &clients, &backends, RULES);
    let (mut watch, mut resident) = (Watch::default(), Vec::new());
    for n in 1..=SWAPS {
        let began = Instant::now();
        let before = load.sent();
        put(&router, &fresh(n));
        while began.elapsed() < Duration::from_secs(3) {
            watch.hold(&router.metrics());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(
            load.sent() > before + 200,
            "the load went on: {} requests in {:?}",
            load.sent() - before,
            began.elapsed()
        );
        if n >= WARM {
            resident.push(router.process.resident_kib());
        }
    }
    let (tally, served) = load.finish();
    assert_eq!([tally.lost, tally.duplicated, tally.refused], [0, 0, 0], "{tally:?}");
    assert_eq!(tally.sent, tally.answered);
    assert!(served.iter().all(|count| *count > 500), "both tables decided: {served:?}");
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_table_swaps_total", &[]), (SWAPS + 1) as f64);
    assert_eq!(
        metrics.sum("tidings_backend_requests_total", &[]),
        tally.sent as f64,
        "counters outlive swaps"
    );
    assert_eq!(metrics.sum("tidings_turn_panics_total", &[]), 0.0);
    // A table or two may be on their way out when memory is looked at, hence the least of several looks. A table of this
    // size takes some 50 MiB: had the swaps between kept theirs, that would be 300 MiB.
    let least = |looks: &[u64]| looks.iter().copied().min().expect("some looks");
    let (first, last) = (least(&resident[..LOOKS]), least(&resident[resident.len() - LOOKS..]));
    assert!(last <= first + first / 5, "memory grows with swaps (KiB): {resident:?}");
    assert!(router.stop().success());
}

/// Two compiled tables of 10,000 rules alternate ten times a second in this process, without a compile in between: what
/// is left is the swap itself.
#[test]
fn two_compiled_tables_alternate_ten_times_a_second_under_load() {
    const SWAPS: u64 = 200;
    let fresh = |n| table(n, RULES, "127.62.4.11:5060", "127.62.4.12:5060");
    let settings = Settings::parse("tidings.toml", &settings("62.4"), Path::new("")).expect("valid settings");
    let source = TableSource::Text { name: "even".to_owned(), text: fresh(0) };
    let running = control::start(settings, source).expect("the router starts");
    let router = running.router().clone();
    let even = router.tables().current().load_full();
    running.runtime().block_on(router.put("odd", fresh(1))).expect("a valid table");
    let odd = router.tables().current().load_full();

    let clients: Vec<String> = (0..4).map(|i| format!("127.62.4.{}:5060", 101 + i)).collect();
    let backends = ["127.62.4.11:5060".to_owned(), "127.62.4.12:5060".to_owned()];
    let load = Load::start("127.62.4.1:5060", &clients, &backends, RULES);
    let mut watch = Watch::default();
    let mut warm = 0;
    for swap in 0..SWAPS {
        let next = if swap % 2 == 0 { &even } else { &odd };
        router.tables().current().store(next.clone());
        if swap % 5 == 0 {
            watch.hold(&Metrics::read(&router.metrics()));
        }
        if swap == SWAPS / 4 {
            warm = resident_kib("self");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let end = resident_kib("self");
    let (tally, served) = load.finish();
    assert_eq!([tally.lost, tally.duplicated, tally.refused], [0, 0, 0], "{tally:?}");
    assert_eq!(tally.sent, tally.answered);
    assert!(served.iter().all(|count| *count > 1_000), "both tables decided: {served:?}");
    let metrics = Metrics::read(&router.metrics());
    assert_eq!(
        metrics.sum("tidings_backend_requests_total", &[]),
        tally.sent as f64,
        "counters outlive swaps"
    );
    assert_eq!(metrics.sum("tidings_rule_hits_total", &[]), tally.sent as f64);
    assert_eq!(metrics.sum("tidings_turn_panics_total", &[]), 0.0);
    assert_eq!(metrics.sum("tidings_udp_kernel_drops_total", &[]), 0.0);
    assert!(end <= warm + 8_192, "memory grows with swaps: {warm} KiB after a quarter, {end} KiB at the end");
    running.stop();
}

/// SIPp's calls, along route sets and cancelled, go on and end at the backend where they began.
#[test]
fn calls_end_where_they_began_whatever_the_table_says_since() {
    let fresh = |n| table(n, 100, "127.62.2.11:5060", "127.62.2.12:5060");
    let router = Router::start(&settings("62.2"), &fresh(0));
    let answering = |name: &str, last: u8| Scenario::ours(name).listen(&format!("127.62.2.{last}:5060"));
    let calling = |caller: &str, callee: &str, count: u32, first: u64| {
        let mut pbxs = [answering(callee, 11), answering(callee, 12)];
        let phones = Scenario::ours(caller).with(&["-s", "1000"]).calls(count, 100);
        let mut phones = phones.call("127.62.2.21:5060", "127.62.2.1:5060");
        let mut n = first;
        while phones.process.alive() {
            put(&router, &fresh(n));
            n += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(phones.finish().successful, u64::from(count));
        let taken = pbxs.iter_mut().map(|pbx| pbx.dismiss().successful).collect::<Vec<_>>();
        assert_eq!(taken.iter().sum::<u64>(), u64::from(count));
        assert!(
            n > first + 10 && taken.iter().all(|calls| *calls > 20),
            "{taken:?} calls over {} swaps",
            n - first
        );
        n
    };
    let n = calling("caller", "callee", 500, 1);
    calling("cancelling-caller", "ringing-callee", 200, n);
    assert_eq!(router.metrics().sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
}

/// SPEC 7.1: the pin of an INVITE holds its retransmission, its CANCEL and the ACK of its 487 to one backend and one
/// branch after a swap that sends new calls elsewhere.
#[test]
fn a_cancel_finds_its_invites_backend_after_a_swap_that_moves_it() {
    let fresh = |n| table(n, 100, "127.62.3.11:5060", "127.62.3.12:5060");
    let router = Router::start(&settings("62.3"), &fresh(0));
    let first = Party::bind("127.62.3.11:5060");
    let second = Party::bind("127.62.3.12:5060");
    let phone = Party::bind("127.62.3.21:5060");
    let request = |method: &str, call: &str| {
        format!(
            "{method} sip:1000@pbx.example.org SIP/2.0\r\n\
             Via: SIP/2.0/UDP 127.62.3.21:5060;rport;branch=z9hG4bK{call}\r\nMax-Forwards: 70\r\n\
             From: <sip:a@pbx.example.org>;tag=a{call}\r\nTo: <sip:1000@pbx.example.org>\r\nCall-ID: {call}\r\n\
             CSeq: 1 {method}\r\nContact: <sip:a@127.62.3.21:5060>\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let branch = |message: &str| text::header(message, "Via").to_owned();
    phone.send("127.62.3.1:5060", request("INVITE", "one"));
    let invite = first.expect("INVITE ");
    first.answer("127.62.3.2:5060", &invite, "180 Ringing", "b1", "");
    phone.expect("SIP/2.0 180");

    put(&router, &fresh(1));
    phone.send("127.62.3.1:5060", request("INVITE", "two"));
    let moved = second.expect("INVITE ");
    assert_eq!(text::headers(&moved, "X-Table"), ["1"]);

    for _ in 0..3 {
        phone.send("127.62.3.1:5060", request("INVITE", "one"));
        let again = first.expect("INVITE ");
        assert_eq!(branch(&again), branch(&invite), "a retransmission keeps its branch");
    }
    phone.send("127.62.3.1:5060", request("CANCEL", "one"));
    let cancel = first.expect("CANCEL ");
    assert_eq!(branch(&cancel), branch(&invite), "a CANCEL has its INVITE's branch");
    first.answer("127.62.3.2:5060", &cancel, "200 OK", "b1", "");
    phone.expect("SIP/2.0 200");
    first.answer("127.62.3.2:5060", &invite, "487 Request Terminated", "b1", "");
    let terminated = phone.expect("SIP/2.0 487");
    let ack = request("ACK", "one");
    let to = text::header(&terminated, "To");
    phone.send("127.62.3.1:5060", ack.replace("To: <sip:1000@pbx.example.org>", &format!("To: {to}")));
    let ack = first.expect("ACK ");
    assert_eq!(branch(&ack), branch(&invite), "the ACK of a 487 has its INVITE's branch");
    second.expect_nothing(Duration::from_millis(200));
    assert!(router.metrics().sum("tidings_pin_hits_total", &[]) >= 3.0);
}
