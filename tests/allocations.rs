//! The path of a message allocates nothing once it is warm (SPEC 2.1, 4.1; ARCHITECTURE "The worker"): counted, with the
//! traffic of benches/relay and the ways of a message that it lacks, by an allocator that counts for this thread.
//!
//! REGISTER is left out: what it says is kept (the index behind `route = "flow"`).

// A global allocator cannot be had without; it only counts.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::SocketAddr,
};

use tidings::{
    forward::{Arrival, Core, Fault, Input, Outbox, Target},
    live::{Now, Seen, Stay, Users},
    route::Table,
    wire::token::FlowId,
};

#[path = "rig/core.rs"]
mod core;

#[allow(dead_code)] // the bench reads more of them
#[path = "../benches/relay/messages.rs"]
mod messages;

use messages::{Ask, Script, id, learn_route};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the count is a thread-local without destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the callee's needs; so below.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUTER: &str = "127.6.1.12:15060";
const PHONES: &str = "127.6.1.1:15061";
const PBX: &str = "127.6.1.2:15062";

const SETTINGS: &str = r#"
[[listen]]
name = "all"
transport = "udp"
address = "127.6.1.12:15060"

# As much as one party here sends: what counts it is to be counted too.
[protection]
new_dialogs_burst = 1000000
malformed_burst = 1000000
"#;

/// Every kind of look-up that a rule can ask for.
const TABLE: &str = r#"
[[pool]]
name = "presence"
balance = "resource"
probe = "off"

[[pool.backend]]
name = "pbx1"
uri = "sip:127.6.1.2:15062;transport=udp"

[[rule]]
name = "never"
match = { method = ["PUBLISH"], body = { device = "^PJSIP/9" }, user-agent = "^Nobody" }
route = "presence"

[[rule]]
name = "presence and lamps"
match = { method = ["SUBSCRIBE", "PUBLISH"], event = ["presence", "dialog"], ruri = "^sip:1[0-9]{3}@", header.x-site = "floor|^$" }
route = "presence"
set.X-Node = "{rule}"

[[rule]]
name = "presence"
match = { method = ["PUBLISH"], event = ["presence"] }
route = "presence"

[[rule]]
name = "calls"
match = { method = ["INVITE", "BYE"] }
route = "presence"

[[rule]]
name = "rest"
match = {}
reply = { code = 489, reason = "Bad Event" }
"#;

struct Rig {
    core: Core,
    table: Table,
    out: Outbox,
    now: Now,
    allocations: u64,
    steps: u64,
}

impl Rig {
    fn new() -> Rig {
        let (core, table, now) = core::core(SETTINGS, TABLE);
        Rig { core, table, out: Outbox::default(), now, allocations: 0, steps: 0 }
    }

    /// One input; what it allocates is counted.
    fn step(&mut self, input: Input<'_>) {
        self.out.clear();
        let before = ALLOCATIONS.get();
        self.core.step(self.now, &self.table, input, &mut self.out);
        self.allocations += ALLOCATIONS.get() - before;
        self.steps += 1;
    }

    /// A message from `peer`; returns whether exactly one left, for `to`, and copies it.
    fn passes(&mut self, peer: &str, message: &[u8], to: &str, left: &mut Vec<u8>) -> bool {
        let peer: SocketAddr = peer.parse().expect("an address");
        let local = ROUTER.parse().expect("an address");
        self.step(Input::Message(Arrival { listener: 0, local, peer, flow: None }, message));
        left.clear();
        let [(Target::Datagram { to: target, .. }, range)] = &self.out.messages[..] else { return false };
        left.extend_from_slice(&self.out.bytes[range.clone()]);
        *target == to.parse().expect("an address")
    }

    /// Forgets the counts: what came before was warm-up.
    fn warm(&mut self) {
        (self.allocations, self.steps) = (0, 0);
    }
}

#[test]
fn the_mix_of_the_bench_allocates_nothing() {
    let mut rig = Rig::new();
    let script = Script::new(PHONES, PBX);
    let (mut message, mut left, mut route) = (Vec::new(), Vec::new(), Vec::new());
    for cycle in 0..600 {
        if cycle == 100 {
            rig.warm();
        }
        let id = id(7, cycle);
        for ask in [Ask::Subscribe, Ask::Publish, Ask::Notify] {
            let (from, to) = if ask == Ask::Notify { (PBX, PHONES) } else { (PHONES, PBX) };
            message.clear();
            script.ask(ask, &id, &route, &mut message);
            assert!((650..=1100).contains(&message.len()), "{ask:?} has {} bytes", message.len());
            assert!(rig.passes(from, &message, to, &mut left), "{ask:?} does not pass");
            if ask == Ask::Subscribe {
                learn_route(&left, &mut route);
                assert!(!route.is_empty());
            }
            message.clear();
            script.answer(ask, &id, &left, &mut message);
            assert!((650..=1100).contains(&message.len()), "200 to {ask:?} has {} bytes", message.len());
            assert!(rig.passes(to, &message, from, &mut left), "the 200 to {ask:?} does not pass");
        }
        rig.now.mono_ms += 1;
    }
    assert_eq!(rig.steps, 3000);
    assert_eq!(rig.allocations, 0, "allocations in {} messages", rig.steps);
}

#[test]
fn calls_refusals_and_our_own_answers_allocate_nothing() {
    let mut rig = Rig::new();
    let mut left = Vec::new();
    let head = |method: &str, uri: &str, n: u32, more: &str| {
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {PHONES};rport;branch=z9hG4bK{n}\r\nMax-Forwards: 70\r\n\
             From: <sip:1001@pbx.example.org>;tag=f{n}\r\nTo: <sip:1002@pbx.example.org>\r\nCall-ID: c{n}\r\n\
             CSeq: 1 {method}\r\n{more}Content-Length: 0\r\n\r\n"
        )
    };
    for round in 0..300 {
        if round == 100 {
            rig.warm();
        }
        let user = "sip:1002@pbx.example.org";
        let ours = format!("sip:{ROUTER}");
        // What passes (an INVITE leaves a pin), then what we answer, then what is dropped.
        for (method, uri) in [("INVITE", user), ("CANCEL", user), ("ACK", user), ("BYE", user)] {
            assert!(rig.passes(PHONES, head(method, uri, round, "").as_bytes(), PBX, &mut left), "{method}");
        }
        // Of other dialogs: those of the INVITE would follow its pin.
        let other = round + 1_000_000;
        for message in [
            head("OPTIONS", &ours, other, ""),
            head("MESSAGE", user, other, ""),
            head("SUBSCRIBE", user, other, "Event: nobodys\r\n"),
            head("SUBSCRIBE", user, other, ""),
            head("SUBSCRIBE", user, other, "Event: presence\r\nProxy-Require: magic\r\n"),
            head("BYE", "mailto:somebody@example.org", other, ""),
            head("INFO", user, other, "CSeq: 2 INFO\r\n"),
        ] {
            assert!(rig.passes(PHONES, message.as_bytes(), PHONES, &mut left), "{message}");
            assert!(left.starts_with(b"SIP/2.0 "));
        }
        for junk in
            ["\r\n\r\n", "not SIP at all", "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP a;branch=z9hG4bKx\r\n\r\n"]
        {
            assert!(!rig.passes(PHONES, junk.as_bytes(), PBX, &mut left));
        }
    }
    assert_eq!(rig.steps, 200 * 14);
    assert_eq!(rig.allocations, 0, "allocations in {} messages", rig.steps);
}

/// Publications with their tags wrapped and unwrapped, their dead tags answered, and calls on record (SPEC 6, 7.1).
#[test]
fn tags_margins_and_call_records_allocate_nothing() {
    let mut rig = Rig::new();
    let mut left = Vec::new();
    let head = |method: &str, n: u32, more: &str| {
        format!(
            "{method} sip:1002@pbx.example.org SIP/2.0\r\nVia: SIP/2.0/UDP {PHONES};rport;branch=z9hG4bK{method}{n}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:1001@pbx.example.org>;tag=f{n}\r\nTo: <sip:1002@pbx.example.org>{more}\
             Call-ID: c{n}\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let lines = |text: &str, name: &str| -> String {
        text.lines().filter(|line| line.starts_with(name)).map(|line| format!("{line}\r\n")).collect()
    };
    let answer = |request: &[u8], status: &str, more: &str| {
        let text = String::from_utf8_lossy(request);
        let to = lines(&text, "To: ").replace("\r\n", ";tag=t\r\n");
        format!(
            "SIP/2.0 {status}\r\n{}{}{to}{}{}{more}Content-Length: 0\r\n\r\n",
            lines(&text, "Via: "),
            lines(&text, "From: "),
            lines(&text, "Call-ID: "),
            lines(&text, "CSeq: "),
        )
    };
    for round in 0..300u32 {
        if round == 100 {
            rig.warm();
        }
        let event = "\r\nEvent: presence\r\nExpires: 60\r\n";
        assert!(rig.passes(PHONES, head("PUBLISH", round, event).as_bytes(), PBX, &mut left));
        let granted = answer(&left, "200 OK", &format!("SIP-ETag: {round}\r\nExpires: 60\r\n"));
        assert!(rig.passes(PBX, granted.as_bytes(), PHONES, &mut left));
        let tag = lines(&String::from_utf8_lossy(&left), "SIP-ETag: ").replace("SIP-ETag", "SIP-If-Match");
        assert!(tag.len() > "SIP-If-Match: \r\n".len() + 24, "{tag}");
        let refresh = head("PUBLISH", round, &format!("{event}{tag}"));
        assert!(rig.passes(PHONES, refresh.as_bytes(), PBX, &mut left));
        assert!(String::from_utf8_lossy(&left).contains(&format!("SIP-If-Match: {round}\r\n")));
        let forged = refresh.replace(": <sip:1001", ": <sip:1009");
        assert!(rig.passes(PHONES, forged.as_bytes(), PHONES, &mut left));
        assert!(left.starts_with(b"SIP/2.0 412"));

        assert!(rig.passes(PHONES, head("INVITE", round, "\r\n").as_bytes(), PBX, &mut left));
        let answered = answer(&left, "200 OK", "");
        assert!(rig.passes(PBX, answered.as_bytes(), PHONES, &mut left));
        assert!(rig.passes(PHONES, head("BYE", round, ";tag=t\r\n").as_bytes(), PBX, &mut left));
    }
    assert_eq!(rig.steps, 200 * 7);
    assert_eq!(rig.allocations, 0, "allocations in {} messages", rig.steps);
}

#[test]
fn ticks_and_what_cannot_be_delivered_allocate_nothing() {
    let mut rig = Rig::new();
    let script = Script::new(PHONES, PBX);
    let (mut message, mut left) = (Vec::new(), Vec::new());
    script.ask(Ask::Subscribe, &id(1, 1), b"", &mut message);
    assert!(rig.passes(PHONES, &message, PBX, &mut left));
    for round in 0..300 {
        if round == 100 {
            rig.warm();
        }
        rig.now.mono_ms += 1000;
        rig.step(Input::Tick);
        let target = Target::Datagram { listener: 0, from: None, to: PBX.parse().expect("an address") };
        for why in [Fault::Unreachable, Fault::TooLarge] {
            rig.step(Input::Undeliverable { target, sent: &left, why });
            assert_eq!(rig.out.messages.len(), 1, "{why:?} is answered");
        }
    }
    assert_eq!(rig.allocations, 0, "allocations in {} steps", rig.steps);
}

/// SPEC 9.9: a refresh of one who is on a connection already, by whatever method.
#[test]
fn who_is_on_a_connection_already_costs_no_allocation() {
    let users = Users::new(100, 4);
    let id = FlowId { router: 0, boot: 1, core: 0, slot: 7, generation: 1 };
    let seen = Seen {
        aor: b"1000@example.com",
        uri: b"sip:1000@example.com",
        contact: b"sip:1000@10.0.0.1",
        instance: 3,
        registers: false,
    };
    let mut refresh = |mono_ms| {
        let now = Now { mono_ms, unix_s: 0 };
        assert!(users.see(id, &seen, now));
        users.confirm(id, seen.aor, (Stay::Subscription(1), 600), None, now);
        users.confirm(id, seen.aor, (Stay::Registration, 600), None, now);
    };
    refresh(1);
    let before = ALLOCATIONS.get();
    (2..1000).for_each(&mut refresh);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
