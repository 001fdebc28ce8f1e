//! The sockets and the loop of a worker, on real sockets, with a step of a few lines in the place of `forward::Core`
//! (SPEC 9.1, ARCHITECTURE "The worker"). Addresses: 127.0.5.0/24 and [::1], ports 25061-25099.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tidings::{
    forward::{Fault, Input, Outbox, Target},
    live::Now,
    net::udp::{self, BATCH, Datagram, Inbound, Outbound},
    stats::{CoreStats, Counter, Gauge},
    worker::{Launch, Step, Worker, spawn},
};

/// Does what the datagram says, so that a test writes its own script.
///
/// `echo X`: X to the sender; `to ADDRESS X`: X to that address (`any`: from the source that the kernel picks); `big N`: N bytes to the sender; `version`: the table's;
/// `panic`. What cannot be sent is told to `report`.
struct Script {
    report: SocketAddr,
}

impl Step for Script {
    type Table = u64;

    fn step(&mut self, _now: Now, table: &u64, input: Input<'_>, out: &mut Outbox) {
        match input {
            Input::Tick | Input::Behind(_) => {}
            Input::Undeliverable { target: Target::Datagram { listener, to, .. }, sent, why } => {
                let text = format!(
                    "{why:?} {to} {} {}",
                    sent.len(),
                    String::from_utf8_lossy(&sent[..sent.len().min(9)])
                );
                push(out, Target::Datagram { listener, from: None, to: self.report }, text.as_bytes());
            }
            Input::Refused(..)
            | Input::Keepalive
            | Input::Closed(_)
            | Input::Lost { .. }
            | Input::Undeliverable { .. } => {
                panic!("this worker has no streams")
            }
            Input::Message(arrival, bytes) => {
                let text = std::str::from_utf8(bytes).expect("tests write text");
                let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
                let from = Some(arrival.local.ip());
                let back = Target::Datagram { listener: arrival.listener, from, to: arrival.peer };
                match verb {
                    "echo" => push(out, back, rest.as_bytes()),
                    "local" => push(out, back, arrival.local.to_string().as_bytes()),
                    "big" => push(out, back, &vec![b'b'; rest.parse().expect("a length")]),
                    "version" => push(out, back, table.to_string().as_bytes()),
                    "to" | "any" => {
                        let from = if verb == "to" { from } else { None };
                        let (to, payload) = rest.split_once(' ').expect("an address and a text");
                        let to = to.parse().expect("an address");
                        push(
                            out,
                            Target::Datagram { listener: arrival.listener, from, to },
                            payload.as_bytes(),
                        );
                    }
                    "panic" => panic!("asked to"),
                    other => panic!("unknown verb {other}"),
                }
            }
        }
    }
}

fn push(out: &mut Outbox, target: Target, bytes: &[u8]) {
    let start = out.bytes.len();
    out.bytes.extend_from_slice(bytes);
    out.messages.push((target, start..out.bytes.len()));
}

/// A worker with one listener, a client's socket, and the socket that hears of what could not be sent.
struct Rig {
    worker: Worker,
    stats: Arc<CoreStats>,
    table: Arc<ArcSwap<u64>>,
    at: SocketAddr,
    client: UdpSocket,
    report: UdpSocket,
}

fn rig(listen: &str, client: &str, report: &str) -> Rig {
    rig_with(listen, client, report, &[], 1 << 20)
}

/// The same, with datagrams that wait in the socket before the worker starts, and a send buffer of some bytes.
fn rig_with(listen: &str, client: &str, report: &str, waiting: &[String], send_buffer: usize) -> Rig {
    let at: SocketAddr = listen.parse().expect("an address");
    let socket = udp::bind(at, 1, 1 << 20, send_buffer).expect("free").pop().expect("one");
    let (client, report) = (peer(client), peer(report));
    for text in waiting {
        client.send_to(text.as_bytes(), at).expect("sent");
    }
    let stats = Arc::new(CoreStats::new());
    let table = Arc::new(ArcSwap::from_pointee(1));
    let launch = Launch {
        index: 0,
        pin: false,
        sockets: vec![(3, socket)],
        links: None,
        inboxes: Arc::new([]),
        patience: None,
        core: Script { report: report.local_addr().expect("bound") },
        table: table.clone(),
        stats: stats.clone(),
    };
    Rig { worker: spawn(launch).expect("a thread"), stats, table, at, client, report }
}

impl Rig {
    fn say(&self, text: &str) {
        self.client.send_to(text.as_bytes(), self.at).expect("sent");
    }

    fn hear(&self) -> String {
        hear(&self.client)
    }
}

fn peer(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    // A burst of answers must not overflow the test's own socket.
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer");
    socket
}

fn hear(socket: &UdpSocket) -> String {
    hear_from(socket).0
}

fn hear_from(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = vec![0; 65536];
    let (n, from) = socket.recv_from(&mut buffer).expect("something within five seconds");
    (String::from_utf8_lossy(&buffer[..n]).into_owned(), from)
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "not within five seconds: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_wildcard_socket_answers_from_the_address_that_was_asked() {
    let rig = rig("0.0.0.0:25061", "127.0.5.2:25062", "127.0.5.3:25062");
    for asked in ["127.0.5.4:25061", "127.0.5.5:25061"] {
        let asked: SocketAddr = asked.parse().expect("an address");
        rig.client.send_to(b"local", asked).expect("sent");
        assert_eq!(hear_from(&rig.client), (asked.to_string(), asked));
    }
    rig.worker.stop();
}

#[test]
fn a_bound_socket_names_its_own_address() {
    let rig = rig("127.0.5.1:25063", "127.0.5.2:25063", "127.0.5.3:25063");
    rig.say("local");
    assert_eq!(hear_from(&rig.client), ("127.0.5.1:25063".to_owned(), rig.at));
    rig.worker.stop();
}

#[test]
fn ipv6_bound_and_wildcard() {
    let bound = rig("[::1]:25064", "[::1]:25065", "[::1]:25066");
    bound.say("local");
    assert_eq!(hear_from(&bound.client), ("[::1]:25064".to_owned(), bound.at));
    bound.worker.stop();

    let any = rig("[::]:25067", "[::1]:25068", "[::1]:25069");
    let asked: SocketAddr = "[::1]:25067".parse().expect("an address");
    any.client.send_to(b"local", asked).expect("sent");
    assert_eq!(hear_from(&any.client), ("[::1]:25067".to_owned(), asked));
    any.worker.stop();
}

#[test]
fn ipv4_stays_free_beside_an_ipv6_wildcard() {
    let six = udp::bind("[::]:25070".parse().expect("an address"), 1, 1 << 16, 1 << 16).expect("free");
    let four = udp::bind("0.0.0.0:25070".parse().expect("an address"), 1, 1 << 16, 1 << 16).expect("free");
    assert!(six[0].is_wildcard() && four[0].is_wildcard());
}

#[test]
fn one_batch_goes_to_many_destinations_each_from_its_own_source() {
    let socket = udp::bind("0.0.0.0:25071".parse().expect("an address"), 1, 1 << 20, 1 << 20).expect("free");
    let peers: Vec<UdpSocket> = (0..BATCH).map(|i| peer(&format!("127.0.5.{}:25072", 100 + i))).collect();
    let texts: Vec<String> = (0..BATCH).map(|i| format!("message {i}")).collect();
    let datagrams = texts.iter().zip(&peers).enumerate().map(|(i, (text, peer))| Datagram {
        bytes: text.as_bytes(),
        to: peer.local_addr().expect("bound"),
        from: (i % 3 != 0).then(|| Ipv4Addr::new(127, 0, 5, 200 + (i % 3) as u8).into()),
    });
    let sent = Outbound::new().send(socket[0].as_fd(), datagrams).expect("sent");
    assert_eq!(sent, BATCH);
    for (i, peer) in peers.iter().enumerate() {
        let (text, from) = hear_from(peer);
        assert_eq!(text, texts[i]);
        if i % 3 != 0 {
            assert_eq!(from.ip(), IpAddr::from([127, 0, 5, 200 + (i % 3) as u8]));
        }
    }
}

#[test]
fn a_batch_is_received_with_its_addresses_stamps_and_no_more_than_its_bytes() {
    let socket =
        udp::bind("127.0.5.1:25073".parse().expect("an address"), 1, 1 << 22, 1 << 20).expect("free");
    socket[0].set_stamps(true).expect("stamps");
    let client = peer("127.0.5.2:25073");
    let long = "x".repeat(60_000);
    for text in ["first", long.as_str(), "", "fourth"] {
        client.send_to(text.as_bytes(), socket[0].local).expect("sent");
    }
    let mut inbound = Inbound::new();
    for round in 0..2 {
        // The second round finds buffers that the first has used.
        let expected: &[&str] = if round == 0 { &["first", &long, "", "fourth"] } else { &["again"] };
        if round == 1 {
            client.send_to(b"again", socket[0].local).expect("sent");
        }
        assert_eq!(inbound.receive(socket[0].as_fd()).expect("received"), expected.len());
        for (i, text) in expected.iter().enumerate() {
            let received = inbound.datagram(i).expect("there");
            assert_eq!((received.bytes, received.local), (text.as_bytes(), None));
            assert_eq!(received.peer, client.local_addr().expect("bound"));
            assert!(received.stamp.is_some());
        }
        assert!(inbound.datagram(expected.len()).is_none());
    }
    let empty = inbound.receive(socket[0].as_fd()).expect_err("nothing waits");
    assert_eq!(empty.kind(), std::io::ErrorKind::WouldBlock);
    assert!(inbound.is_empty());
}

#[test]
fn more_than_a_turns_share_of_datagrams_is_read_without_a_new_edge() {
    // Eight batches at once, then silence: nothing but the ready flag brings the worker back to them.
    let waiting: Vec<String> = (0..8 * BATCH + 5).map(|i| format!("echo {i}")).collect();
    let rig = rig_with("127.0.5.1:25074", "127.0.5.2:25074", "127.0.5.3:25074", &waiting, 1 << 20);
    for text in &waiting {
        assert_eq!(format!("echo {}", rig.hear()), *text);
    }
    rig.worker.stop();
}

#[test]
fn what_is_too_large_to_send_comes_back_and_costs_nothing_else() {
    let rig = rig("127.0.5.1:25075", "127.0.5.2:25075", "127.0.5.3:25075");
    rig.say("echo before");
    rig.say("big 65508");
    rig.say("echo after");
    assert_eq!((rig.hear(), rig.hear()), ("before".to_owned(), "after".to_owned()));
    assert_eq!(hear(&rig.report), "TooLarge 127.0.5.2:25075 65508 bbbbbbbbb");
    assert_eq!(rig.stats.counter(Counter::SendErrors), 1);
    // What fits in UDP goes, in fragments.
    rig.say("big 65507");
    assert_eq!(rig.hear().len(), 65507);
    rig.worker.stop();
}

#[test]
fn an_icmp_error_for_one_peer_costs_no_message_to_another() {
    let rig = rig("127.0.5.1:25076", "127.0.5.2:25076", "127.0.5.3:25076");
    let open = peer("127.0.5.4:25076");
    let rounds = 40;
    for i in 0..rounds {
        rig.say(&format!("to 127.0.5.5:25076 closed {i}"));
        rig.say(&format!("to 127.0.5.4:25076 open {i}"));
    }
    for i in 0..rounds {
        assert_eq!(hear(&open), format!("open {i}"));
    }
    // Loopback answers each datagram to a closed port with an ICMP error at once (the kernel limits their rate only
    // toward other machines); each comes back once, with the bytes that were sent.
    for i in 0..rounds {
        let text = format!("closed {i}");
        assert_eq!(hear(&rig.report), format!("Refused 127.0.5.5:25076 {} {:.9}", text.len(), text));
    }
    assert_eq!(rig.stats.counter(Counter::SendErrors), 0);
    rig.worker.stop();
}

#[test]
fn a_destination_that_no_send_can_reach_comes_back_after_one_retry() {
    let rig = rig("127.0.5.1:25077", "127.0.5.2:25077", "127.0.5.3:25077");
    // A socket bound to loopback has no way to another network, and an IPv4 socket none to IPv6.
    rig.say("to [::1]:25077 lost");
    rig.say("echo kept");
    assert_eq!(rig.hear(), "kept");
    assert_eq!(hear(&rig.report), "Unreachable [::1]:25077 4 lost");
    assert_eq!(rig.stats.counter(Counter::SendErrors), 1);
    rig.worker.stop();
}

#[test]
fn an_icmp_error_comes_back_on_an_ipv6_socket() {
    let rig = rig("[::1]:25078", "[::1]:25079", "[::1]:25080");
    rig.say("to [::1]:25081 closed");
    rig.say("echo kept");
    assert_eq!(rig.hear(), "kept");
    assert_eq!(hear(&rig.report), "Refused [::1]:25081 6 closed");
    rig.worker.stop();
}

#[test]
fn an_icmp_error_on_a_wildcard_socket_names_the_address_that_was_used() {
    let any = udp::bind("0.0.0.0:25087".parse().expect("an address"), 1, 1 << 16, 1 << 16).expect("free");
    let six = udp::bind("[::]:25088".parse().expect("an address"), 1, 1 << 16, 1 << 16).expect("free");
    let cases: [(&udp::Socket, &str, &str); 2] =
        [(&any[0], "127.0.5.7", "127.0.5.8:25090"), (&six[0], "::1", "[::1]:25089")];
    for (socket, from, to) in cases {
        let (from, to): (IpAddr, SocketAddr) =
            (from.parse().expect("an address"), to.parse().expect("an address"));
        let datagram = Datagram { bytes: b"closed", to, from: Some(from) };
        assert_eq!(Outbound::new().send(socket.as_fd(), [datagram].into_iter()).expect("sent"), 1);
        let mut buffer = [0; 64];
        let end = Instant::now() + Duration::from_secs(5);
        let entry = loop {
            match socket.take_error(&mut buffer).expect("readable") {
                Some(entry) => break entry,
                None => assert!(Instant::now() < end, "no ICMP error"),
            }
        };
        assert_eq!((entry.to, entry.from, entry.errno), (to, Some(from), libc::ECONNREFUSED));
        assert_eq!(&buffer[..entry.len], b"closed");
    }
}

#[test]
fn kernel_drops_are_counted() {
    let at: SocketAddr = "127.0.5.1:25082".parse().expect("an address");
    let socket = udp::bind(at, 1, 4096, 1 << 16).expect("free").pop().expect("one");
    let client = peer("127.0.5.2:25082");
    for _ in 0..100 {
        client.send_to(&[b'x'; 1000], at).expect("sent");
    }
    let dropped = u64::from(socket.drops().expect("told"));
    assert!(dropped > 50, "{dropped} of 100 dropped");
    let stats = Arc::new(CoreStats::new());
    let launch = Launch {
        index: 0,
        pin: true,
        sockets: vec![(0, socket)],
        links: None,
        inboxes: Arc::new([]),
        patience: None,
        core: Sink,
        table: Arc::new(ArcSwap::from_pointee(1)),
        stats: stats.clone(),
    };
    let worker = spawn(launch).expect("a thread");
    eventually("drops counted", || stats.counter(Counter::KernelDrops) == dropped);
    assert!(stats.gauge(Gauge::ReceiveBuffer) >= 1024);
    worker.stop();
}

struct Sink;

impl Step for Sink {
    type Table = u64;
    fn step(&mut self, _: Now, _: &u64, _: Input<'_>, _: &mut Outbox) {}
}

#[test]
fn a_port_in_use_is_told_even_where_reuseport_would_share_it() {
    let at: SocketAddr = "127.0.5.1:25083".parse().expect("an address");
    let held = udp::bind(at, 2, 1 << 16, 1 << 16).expect("free");
    let error = udp::bind(at, 2, 1 << 16, 1 << 16).expect_err("taken");
    assert_eq!(error.to_string(), "127.0.5.1:25083/udp is in use by another process");
    drop(held);
    udp::bind(at, 1, 1 << 16, 1 << 16).expect("free again");
    let foreign = udp::bind("192.0.2.1:25083".parse().expect("an address"), 1, 1, 1).expect_err("not ours");
    assert_eq!(foreign.to_string(), "192.0.2.1:25083/udp cannot be bound: this machine has no such address");
}

#[test]
fn a_group_shares_one_port() {
    let sockets = udp::bind("127.0.5.1:0".parse().expect("an address"), 3, 1 << 20, 1 << 16).expect("free");
    assert_eq!(sockets.len(), 3);
    assert!(sockets.iter().all(|s| s.local == sockets[0].local && s.local.port() != 0));
    assert!(sockets.iter().all(|s| s.receive_buffer >= 1 << 18));
}

#[test]
fn the_source_toward_a_destination_is_the_kernels_choice() {
    let source = udp::source_for("127.0.5.9:5060".parse().expect("an address"));
    assert!(source.is_some_and(|ip| ip.is_loopback()));
    assert_eq!(
        udp::source_for("[::1]:5060".parse().expect("an address")),
        Some("::1".parse().expect("an address"))
    );
}

#[test]
fn a_panic_costs_one_message_and_is_counted() {
    let rig = rig("127.0.5.1:25084", "127.0.5.2:25084", "127.0.5.3:25084");
    rig.say("echo before");
    assert_eq!(rig.hear(), "before");
    for text in ["echo one", "panic", "echo two", "panic", "echo three"] {
        rig.say(text);
    }
    assert_eq!((rig.hear(), rig.hear(), rig.hear()), ("one".into(), "two".into(), "three".into()));
    assert_eq!(rig.stats.counter(Counter::TurnPanics), 2);
    rig.worker.stop();
}

#[test]
fn a_new_table_is_seen_with_the_next_message_and_when_idle() {
    let rig = rig("127.0.5.1:25085", "127.0.5.2:25085", "127.0.5.3:25085");
    rig.say("version");
    assert_eq!(rig.hear(), "1");
    let old = rig.table.swap(Arc::new(2));
    rig.say("version");
    assert_eq!(rig.hear(), "2");
    eventually("the worker let the old table go", || Arc::strong_count(&old) == 1);
    let idle = rig.table.swap(Arc::new(3));
    rig.worker.wake();
    eventually("a new one seen though idle", || Arc::strong_count(&idle) == 1);
    rig.worker.stop();
}

/// On loopback a send never waits. So this runs itself again in a network namespace with a wire whose other end does not
/// answer ARP: what is sent there stays in the send buffer until the neighbour is known.
#[test]
fn a_full_send_buffer_holds_the_tail_and_the_reading_and_loses_nothing() {
    const NAME: &str = "a_full_send_buffer_holds_the_tail_and_the_reading_and_loses_nothing";
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
    ip("link set lo up");
    ip("link add here type veth peer name there");
    ip("addr add 10.99.0.1/24 dev here");
    for end in ["here", "there"] {
        // Nothing of IPv6 may be counted among the frames.
        ip(&format!("link set {end} addrgenmode none"));
        ip(&format!("link set {end} up"));
    }

    let rig = rig_with("0.0.0.0:25091", "127.0.5.2:25092", "127.0.5.3:25092", &[], 4608);
    let at: SocketAddr = "127.0.5.1:25091".parse().expect("an address");
    let count = 40;
    for i in 0..count {
        let text = format!("any 10.99.0.2:25093 {i} {}", "x".repeat(900));
        rig.client.send_to(text.as_bytes(), at).expect("sent");
        rig.client.send_to(format!("echo {i}").as_bytes(), at).expect("sent");
    }
    eventually("the send buffer is full", || rig.stats.counter(Counter::SendBlocked) > 0);
    let before = received_by("there");
    ip("neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev here");
    for i in 0..count {
        assert_eq!(rig.hear(), i.to_string());
    }
    eventually("all datagrams are on the wire", || received_by("there") - before >= count);
    assert_eq!(rig.stats.counter(Counter::SendErrors), 0);
    rig.worker.stop();
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip of iproute2");
    assert!(status.success(), "ip {arguments}");
}

/// Frames of the test's messages that an interface received, by their bytes: 902 with 42 of headers, or one more.
fn received_by(interface: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/dev").expect("the kernel's counters");
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix(interface)).expect("the interface is there");
    let bytes = line.trim_start_matches(':').split_whitespace().next().expect("bytes come first");
    bytes.parse::<u64>().expect("a number") / 944
}

#[test]
fn stop_answers_what_is_queued() {
    let rig = rig("127.0.5.1:25086", "127.0.5.2:25086", "127.0.5.3:25086");
    let count = 200;
    for i in 0..count {
        rig.say(&format!("echo {i}"));
    }
    rig.worker.stop();
    for i in 0..count {
        assert_eq!(hear(&rig.client), i.to_string());
    }
    assert_eq!(rig.stats.counter(Counter::TurnPanics), 0);
}

#[test]
fn what_could_not_be_sent_is_named_by_its_fault() {
    assert!(udp::is_unreachable(libc::ECONNREFUSED) && !udp::is_unreachable(libc::EMSGSIZE));
    assert_ne!(Fault::TooLarge, Fault::Unreachable);
}
