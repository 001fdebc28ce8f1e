//! An ICMP error is anybody's to write: the kernel takes one from any address that quotes our port and the victim's (SPEC
//! 3.5, 8.2). It is believed where it quotes a request that we sent there.

use std::net::SocketAddr;

use tidings::{
    forward::{Arrival, Core, Fault, Input, Outbox, Target},
    live::{Now, Sign},
    route::Table,
};

#[path = "../rig/core.rs"]
mod core;

#[allow(dead_code)] // the bench reads more of them
#[path = "../../benches/relay/messages.rs"]
mod messages;

use messages::{Ask, Script, id, learn_route};

const ROUTER: &str = "192.0.2.1:5060";
const PHONE: &str = "192.0.2.31:5060";
const OTHER: &str = "192.0.2.66:5060";
const PBX: &str = "192.0.2.11:5060";

const SETTINGS: &str = "[[listen]]\nname = \"all\"\ntransport = \"udp\"\naddress = \"192.0.2.1:5060\"\n";
const TABLE: &str = "[[pool]]\nname = \"pbxs\"\n[[pool.backend]]\nname = \"pbx1\"\nuri = \"sip:192.0.2.11:5060\"\n\
     [[rule]]\nname = \"all\"\nmatch = { source = \"clients\" }\nroute = \"pbxs\"\n";

struct Rig {
    core: Core,
    table: Table,
    now: Now,
    out: Outbox,
}

impl Rig {
    fn new() -> Rig {
        let (core, table, now) = core::core(SETTINGS, TABLE);
        Rig { core, table, now, out: Outbox::default() }
    }

    fn step(&mut self, input: Input<'_>) {
        self.out.clear();
        self.core.step(self.now, &self.table, input, &mut self.out);
    }

    /// One message; where it went and as what.
    fn pass(&mut self, from: &str, message: &[u8]) -> (SocketAddr, Vec<u8>) {
        let arrival = Arrival { listener: 0, local: address(ROUTER), peer: address(from), flow: None };
        self.step(Input::Message(arrival, message));
        let [(Target::Datagram { to, .. }, range)] = &self.out.messages[..] else {
            panic!("one datagram for {}", String::from_utf8_lossy(message))
        };
        (*to, self.out.bytes[range.clone()].to_vec())
    }

    /// An ICMP error about what was sent to `to`, quoting this.
    fn refused(&mut self, to: &str, quoted: &[u8]) {
        let target = Target::Datagram { listener: 0, from: None, to: address(to) };
        self.step(Input::Undeliverable { target, sent: quoted, why: Fault::Refused });
    }

    /// A subscription of the phone at `from`: the SUBSCRIBE as it went to the PBX, and its NOTIFY.
    fn subscribed(&mut self, from: &str, slot: usize) -> (Vec<u8>, Vec<u8>) {
        let script = Script::new(from, PBX);
        let (mut ask, mut notify, mut route) = (Vec::new(), Vec::new(), Vec::new());
        script.ask(Ask::Subscribe, &id(slot, 1), b"", &mut ask);
        let (to, left) = self.pass(from, &ask);
        assert_eq!(to, address(PBX));
        learn_route(&left, &mut route);
        script.ask(Ask::Notify, &id(slot, 1), &route, &mut notify);
        (left, notify)
    }

    fn restarted(&self) -> u64 {
        let pools = &self.table.pools;
        let at = pools.at_address(address(PBX), tidings::wire::Transport::Udp)[0];
        pools.backend(at).state.restarted_at()
    }

    fn signs(&self) -> u8 {
        let pools = &self.table.pools;
        let at = pools.at_address(address(PBX), tidings::wire::Transport::Udp)[0];
        pools.backend(at).state.signs.take()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

#[test]
fn a_forged_one_closes_no_phones_flow() {
    let mut rig = Rig::new();
    let (_, notify) = rig.subscribed(PHONE, 1);
    let (_, others) = rig.subscribed(OTHER, 2);
    let (to, left) = rig.pass(PBX, &notify);
    assert_eq!(to, address(PHONE));
    let (_, others) = rig.pass(PBX, &others);
    // Nothing quoted but the ports, what a stranger may know of a message, and a token of the hostile phone's own.
    let answer =
        [&b"SIP/2.0 200 OK\r\n"[..], notify.split_inclusive(|b| *b == b'\n').nth(1).expect("a line")]
            .concat();
    for quoted in [&b""[..], b"NOTIFY sip:a@b SIP/2.0\r\n", &notify, &answer, &others] {
        rig.refused(PHONE, quoted);
        assert!(rig.out.messages.is_empty(), "nobody is told");
        assert_eq!(rig.pass(PBX, &notify).0, address(PHONE));
    }
    // The one that quotes the beginning of what we sent.
    rig.refused(PHONE, &left[..left.len().min(548)]);
    let (to, answered) = rig.pass(PBX, &notify);
    assert_eq!(to, address(PBX));
    assert!(answered.starts_with(b"SIP/2.0 503 "), "{}", String::from_utf8_lossy(&answered));
    // Until it speaks.
    rig.step(Input::Message(
        Arrival { listener: 0, local: address(ROUTER), peer: address(PHONE), flow: None },
        b"\r\n\r\n",
    ));
    assert_eq!(rig.pass(PBX, &notify).0, address(PHONE));
}

#[test]
fn a_forged_one_only_makes_a_backends_probe_due() {
    let mut rig = Rig::new();
    let (left, notify) = rig.subscribed(PHONE, 1);
    let (_, toward_phone) = rig.pass(PBX, &notify);
    for quoted in [&b""[..], &notify, &toward_phone] {
        rig.refused(PBX, quoted);
        assert_eq!((rig.restarted(), rig.signs()), (0, Sign::Refused as u8));
    }
    rig.refused(PBX, &left[..left.len().min(548)]);
    assert_eq!((rig.restarted(), rig.signs()), (rig.now.unix_s, Sign::Refused as u8));
}
