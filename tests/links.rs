//! What one core hands to another (SPEC 4.2): workers with a stand-in for the decisions, which sends what it is told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tidings::{
    forward::{Fault, Input, Outbox, Target},
    live::{Connections, Now, SourceLimits, Sources},
    net::{inbox::Inbox, streams, udp},
    stats::{CoreStats, Counter},
    wire::token::FlowId,
    worker::{Launch, Links, Step, spawn},
};

const AT: &str = "127.66.1.1:5060";
const BUSY_AT: &str = "127.66.1.2:5060";
/// What an inbox holds.
const ROOM: u64 = 4096;

/// Sends what it hears, so many times, to a connection of core 1; counts what comes back.
struct Script {
    stats: Arc<CoreStats>,
    times: usize,
}

impl Step for Script {
    type Table = u64;

    fn step(&mut self, _now: Now, _table: &u64, input: Input<'_>, out: &mut Outbox) {
        match input {
            Input::Message(_, bytes) => {
                let id = FlowId { router: 0, boot: 1, core: 1, slot: 0, generation: 1 };
                for _ in 0..self.times {
                    let start = out.bytes.len();
                    out.bytes.extend_from_slice(bytes);
                    out.finish(Target::Stream { listener: 0, id }, start);
                }
            }
            Input::Undeliverable { why: Fault::Full | Fault::Closed, .. } => {
                self.stats.add(Counter::Undeliverable, 1);
            }
            _ => {}
        }
    }
}

fn launch<S: Step<Table = u64>>(
    index: usize,
    at: &str,
    inboxes: &Arc<[Inbox]>,
    all: &Arc<Connections>,
    core: impl FnOnce(Arc<CoreStats>) -> S,
) -> (Launch<S>, Arc<CoreStats>) {
    let stats = Arc::new(CoreStats::new());
    let address: SocketAddr = at.parse().expect("an address");
    let sockets = match index {
        0 => udp::bind(address, 1, 1 << 20, 1 << 20).expect("free").into_iter().map(|s| (0, s)).collect(),
        _ => Vec::new(),
    };
    let limits = SourceLimits {
        most: 10,
        per_address: 10,
        per_prefix: 10,
        accepts_per_second: 10,
        exempt: Vec::new(),
    };
    let ground = streams::Ground {
        secure: [false].into(),
        entrances: [].into(),
        credentials: Default::default(),
        router: 0,
        boot: 1,
        core: index as u8,
        limits: streams::Limits {
            output: 1 << 16,
            idle_ms: 60_000,
            keepalives: 64,
            first_message_ms: 60_000,
            message_ms: 60_000,
            output_ms: 60_000,
            handshake_ms: 10_000,
            handshakes: 100,
            connect_ms: 60_000,
        },
        wire: tidings::wire::Limits::default(),
        all: all.clone(),
        sources: Arc::new(Sources::new(limits)),
        stats: stats.clone(),
    };
    let links = Links { listeners: Vec::new(), addresses: vec![address], ground };
    let launch = Launch {
        index,
        pin: false,
        sockets,
        links: Some(links),
        inboxes: inboxes.clone(),
        patience: None,
        core: core(stats.clone()),
        table: Arc::new(ArcSwap::from_pointee(1)),
        stats: stats.clone(),
    };
    (launch, stats)
}

#[track_caller]
fn until(what: &str, done: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An inbox that is full costs its sender those messages that it has no room for, each of which is told; what it holds
/// reaches its core, which tells of a connection that is none.
#[test]
fn a_full_inbox_refuses_and_what_it_holds_is_dealt_with() {
    let inboxes: Arc<[Inbox]> = (0..2).map(|_| Inbox::default()).collect();
    let all = Arc::new(Connections::new(2));
    let (first, stats) = launch(0, AT, &inboxes, &all, |stats| Script { stats, times: 5000 });
    let first = spawn(first).expect("a thread");
    let phone = std::net::UdpSocket::bind("127.66.1.21:0").expect("a socket");
    let message = "MESSAGE sip:a@b SIP/2.0\r\nContent-Length: 0\r\n\r\n";
    phone.send_to(message.as_bytes(), AT).expect("sent");
    until("all to be dealt with", || {
        stats.counter(Counter::HandedOver) + stats.counter(Counter::HandOverFull) == 5000
    });
    assert_eq!(
        (stats.counter(Counter::HandedOver), stats.counter(Counter::HandOverFull)),
        (ROOM, 5000 - ROOM)
    );
    until("them to be told", || stats.counter(Counter::Undeliverable) == 5000 - ROOM);

    let (second, theirs) = launch(1, AT, &inboxes, &all, |stats| Script { stats, times: 0 });
    let second = spawn(second).expect("a thread");
    until("the other core to have them", || theirs.counter(Counter::Undeliverable) == ROOM);
    first.stop();
    second.stop();
}

/// Waits where it is told that `first` cannot be delivered, and panics at any datagram. Tells of both and of all others, with
/// the ticks that it has had.
struct Busy {
    ticks: usize,
    told: Sender<(String, usize)>,
    go_on: Receiver<()>,
}

impl Step for Busy {
    type Table = u64;

    fn step(&mut self, _now: Now, _table: &u64, input: Input<'_>, _out: &mut Outbox) {
        let tell = |what: &[u8]| {
            let what = String::from_utf8_lossy(what).into_owned();
            self.told.send((what, self.ticks)).expect("the test listens");
        };
        match input {
            Input::Undeliverable { sent, .. } => {
                tell(sent);
                if sent.starts_with(b"MESSAGE sip:first") {
                    self.go_on.recv().expect("the test goes on");
                }
            }
            Input::Message(_, bytes) => {
                tell(bytes);
                panic!("as the test wants it");
            }
            Input::Tick => self.ticks += 1,
            _ => {}
        }
    }
}

/// A turn that did not come to its inbox, although it was woken for that, is followed by another at once.
#[test]
fn an_inbox_that_was_passed_by_does_not_wait_for_the_next_tick() {
    let inboxes: Arc<[Inbox]> = [Inbox::default()].into();
    let all = Arc::new(Connections::new(1));
    let ((told, hear), (go, go_on)) = (channel(), channel());
    let (busy, stats) = launch(0, BUSY_AT, &inboxes, &all, |_| Busy { ticks: 0, told, go_on });
    let busy = spawn(busy).expect("a thread");
    let phone = std::net::UdpSocket::bind("127.66.1.22:0").expect("a socket");
    let nobody = FlowId { router: 0, boot: 1, core: 0, slot: 0, generation: 1 };
    let put = |name: &str| {
        let message = format!("MESSAGE sip:{name}@b SIP/2.0\r\nContent-Length: 0\r\n\r\n");
        assert!(inboxes[0].put(Target::Stream { listener: 0, id: nobody }, message.as_bytes()));
    };
    let next = || hear.recv_timeout(Duration::from_secs(10)).expect("the worker goes on");
    // A tick may come just then, if not three times.
    let at_once = (1..=3).any(|panics| {
        put("first");
        assert!(next().0.starts_with("MESSAGE sip:first"));
        put("second");
        phone.send_to(b"panic", BUSY_AT).expect("sent");
        go.send(()).expect("the worker waits");
        let (panic, before) = next();
        let (second, after) = next();
        assert_eq!((panic.as_str(), second.starts_with("MESSAGE sip:second")), ("panic", true));
        assert_eq!(stats.counter(Counter::TurnPanics), panics);
        before == after
    });
    assert!(at_once, "it waited for the next tick");
    busy.stop();
}
