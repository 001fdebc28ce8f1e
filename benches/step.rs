//! What one message costs in `forward::Core::step`, without sockets: the mix of benches/relay, stepped over and over.
//!
//! `benches/step-instructions` runs it under callgrind, twice, and takes the slope; alone it prints nanoseconds, which on a
//! shared machine only compare with those of the same run. `--only` takes one kind of the six.

use std::{net::SocketAddr, time::Instant};

use tidings::{
    forward::{Arrival, Core, Input, Outbox, Target},
    live::Now,
    route::Table,
};

#[path = "../tests/rig/core.rs"]
mod core;

#[allow(dead_code)] // the relay bench reads more of them
#[path = "relay/messages.rs"]
mod messages;

use messages::{Ask, Script, id, learn_route};

// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUTER: &str = "127.6.0.12:15060";
const PHONES: &str = "127.6.0.1:15061";
const PBX: &str = "127.6.0.2:15062";

const SETTINGS: &str = "[[listen]]\nname = \"bench\"\ntransport = \"udp\"\naddress = \"127.6.0.12:15060\"\nside = \"both\"\n\
     [protection]\nnew_dialogs = 1000000\nnew_dialogs_burst = 1000000\n";

/// That of the relay bench.
const TABLE: &str = r#"
[[pool]]
name = "presence"
balance = "resource"
probe = "off"

[[pool.backend]]
name = "pbx1"
uri = "sip:127.6.0.2:15062;transport=udp"

[[rule]]
name = "presence and lamps"
match = { method = ["SUBSCRIBE", "PUBLISH"], event = ["presence", "dialog", "message-summary"], ruri = "^sip:1[0-9]{3}@" }
route = "presence"

[[rule]]
name = "packages that nobody serves"
match = { method = ["SUBSCRIBE", "PUBLISH", "NOTIFY"] }
reply = { code = 489, reason = "Bad Event" }
"#;

/// The names of the six kinds, in the order of a round.
const KINDS: [&str; 6] = ["subscribe", "200-subscribe", "publish", "200-publish", "notify", "200-notify"];
/// Rounds with different identifiers.
const ROUNDS: u32 = 16;

struct Rig {
    local: SocketAddr,
    core: Core,
    table: Table,
    out: Outbox,
    now: Now,
}

impl Rig {
    fn new() -> Rig {
        let (core, table, now) = core::core(SETTINGS, TABLE);
        Rig { local: address(ROUTER), core, table, out: Outbox::default(), now }
    }

    /// One message; the length of what left.
    fn step(&mut self, message: &Message) -> usize {
        self.out.clear();
        let arrival = Arrival { listener: 0, local: self.local, peer: message.from, flow: None };
        self.core.step(self.now, &self.table, Input::Message(arrival, &message.bytes), &mut self.out);
        self.out.bytes.len()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

struct Message {
    kind: usize,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// The rounds' messages as they arrive at the router.
fn messages(rig: &mut Rig) -> Vec<Message> {
    let script = Script::new(PHONES, PBX);
    let (mut all, mut route) = (Vec::new(), Vec::new());
    for cycle in 0..ROUNDS {
        let id = id(7, cycle);
        for (n, ask) in [Ask::Subscribe, Ask::Publish, Ask::Notify].into_iter().enumerate() {
            let (from, to) = if ask == Ask::Notify { (PBX, PHONES) } else { (PHONES, PBX) };
            let mut request = Message { kind: 2 * n, from: address(from), bytes: Vec::new() };
            script.ask(ask, &id, &route, &mut request.bytes);
            rig.step(&request);
            assert_eq!(rig.out.messages.len(), 1, "{ask:?} passes");
            assert!(matches!(rig.out.messages[0].0, Target::Datagram { to: t, .. } if t == address(to)));
            let left = rig.out.bytes.clone();
            if ask == Ask::Subscribe {
                learn_route(&left, &mut route);
            }
            let mut answer = Message { kind: 2 * n + 1, from: address(to), bytes: Vec::new() };
            script.answer(ask, &id, &left, &mut answer.bytes);
            rig.step(&answer);
            assert_eq!(rig.out.messages.len(), 1, "the answer to {ask:?} passes");
            all.push(request);
            all.push(answer);
        }
    }
    all
}

fn main() {
    let (mut count, mut only) = (600_000, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--count" => {
                count = arguments.next().and_then(|n| n.parse().ok()).expect("--count takes a number")
            }
            "--only" => {
                let kind = arguments.next().expect("--only takes a kind");
                only =
                    Some(KINDS.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("one of {KINDS:?}")));
            }
            // Cargo's own.
            _ => {}
        }
    }
    let mut rig = Rig::new();
    let all = messages(&mut rig);
    let kinds = only.map_or(0..KINDS.len(), |kind| kind..kind + 1);
    let chosen: Vec<_> = all.iter().filter(|m| kinds.contains(&m.kind)).collect();
    let started = Instant::now();
    let mut bytes = 0;
    for message in chosen.iter().cycle().take(count) {
        bytes += rig.step(message);
    }
    let each = started.elapsed().as_nanos() as f64 / count as f64;
    println!("{} messages, {} bytes each on average, {each:.0} ns each", count, bytes / count.max(1));
}
