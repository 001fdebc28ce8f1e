//! What a core that is behind goes on with, and what it sheds (SPEC 10). A real overload stands in `protection`.

use std::net::SocketAddr;

use tidings::{
    forward::{Arrival, Core, Input, Outbox, Target},
    live::Now,
    route::Table,
};

#[path = "rig/core.rs"]
mod core;

const ROUTER: &str = "127.6.2.12:5060";
const PHONE: &str = "127.6.2.31:5060";
const PBX: &str = "127.6.2.11:5060";

const SETTINGS: &str = r#"
[[listen]]
name = "all"
transport = "udp"
address = "127.6.2.12:5060"
"#;

const TABLE: &str = r#"
[[pool]]
name = "one"
probe = "off"

[[pool.backend]]
name = "pbx1"
uri = "sip:127.6.2.11:5060;transport=udp"

[[rule]]
name = "to phones"
match = { source = "backends" }
route = "request-uri"

[[rule]]
name = "to the pbx"
match = {}
route = "one"
"#;

struct Rig {
    core: Core,
    table: Table,
    now: Now,
    /// Of requests that are no dialog's.
    others: u32,
}

/// Where the one message that left went, and what it was.
type Left = Option<(String, String)>;

impl Rig {
    fn new() -> Rig {
        let (core, table, now) = core::core(SETTINGS, TABLE);
        Rig { core, table, now, others: 0 }
    }

    fn behind(&mut self, behind: bool) {
        self.core.step(self.now, &self.table, Input::Behind(behind), &mut Outbox::default());
    }

    fn hear(&mut self, peer: &str, message: &str) -> Left {
        let peer: SocketAddr = peer.parse().expect("an address");
        let local = ROUTER.parse().expect("an address");
        let mut out = Outbox::default();
        let arrival = Arrival { listener: 0, local, peer, flow: None };
        self.core.step(self.now, &self.table, Input::Message(arrival, message.as_bytes()), &mut out);
        assert!(out.messages.len() < 2);
        let (target, range) = out.messages.first()?;
        let Target::Datagram { to, .. } = target else { panic!("there is only UDP") };
        Some((to.to_string(), String::from_utf8(out.bytes[range.clone()].to_vec()).expect("text")))
    }

    /// A request of the phone's in a dialog, with these lines more.
    fn ask(&mut self, method: &str, uri: &str, (call, to_tag): (&str, &str), more: &str) -> Left {
        self.ask_as(PHONE, method, uri, (call, to_tag), more)
    }

    fn ask_as(
        &mut self,
        peer: &str,
        method: &str,
        uri: &str,
        (call, to_tag): (&str, &str),
        more: &str,
    ) -> Left {
        self.others += 1;
        let (n, tag) =
            (self.others, if to_tag.is_empty() { String::new() } else { format!(";tag={to_tag}") });
        let request = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {peer};rport;branch=z9hG4bK{n}\r\nMax-Forwards: 70\r\n\
             From: <sip:here@example.org>;tag=here\r\nTo: <sip:there@example.org>{tag}\r\nCall-ID: {call}\r\n\
             CSeq: {n} {method}\r\nContact: <sip:{peer}>\r\n{more}Content-Length: 0\r\n\r\n"
        );
        self.hear(peer, &request)
    }

    /// Has the PBX take what it was sent; gives the Route of the caller's further requests.
    fn take(&mut self, left: Left) -> String {
        let (to, request) = left.expect("it goes on");
        assert_eq!(to, PBX);
        let lines = |name: &str| -> String {
            request.lines().filter(|line| line.starts_with(name)).map(|line| format!("{line}\r\n")).collect()
        };
        let answer = format!(
            "SIP/2.0 200 OK\r\n{}{}{}{}{}{}Contact: <sip:{PBX}>\r\nContent-Length: 0\r\n\r\n",
            lines("Via:"),
            lines("Record-Route:"),
            lines("From:"),
            lines("To:").replace("\r\n", ";tag=there\r\n"),
            lines("Call-ID:"),
            lines("CSeq:"),
        );
        let (to, answer) = self.hear(PBX, &answer).expect("it goes back");
        assert_eq!(to, PHONE);
        let line = answer.lines().find(|line| line.starts_with("Record-Route: ")).expect("ours");
        format!("{}\r\n", line.trim_start_matches("Record-"))
    }
}

const USER: &str = "sip:there@example.org";

#[track_caller]
fn goes_on(left: &Left) {
    let (to, message) = left.as_ref().expect("it goes on");
    assert_eq!(to, PBX, "{message}");
}

#[track_caller]
fn is_shed(left: &Left) {
    let (to, message) = left.as_ref().expect("an answer");
    assert_eq!(to, PHONE, "{message}");
    assert!(message.starts_with("SIP/2.0 503 ") && message.contains("\r\nRetry-After: 5\r\n"), "{message}");
}

#[test]
fn a_to_tag_proves_nothing_to_a_core_that_is_behind() {
    let mut rig = Rig::new();
    let event = "Event: presence\r\nExpires: 60\r\n";
    let subscribed = rig.ask("SUBSCRIBE", USER, ("lamp", ""), event);
    let route = rig.take(subscribed);
    goes_on(&rig.ask("SUBSCRIBE", USER, ("nobodys", "any"), event));
    rig.behind(true);
    is_shed(&rig.ask("SUBSCRIBE", USER, ("new", ""), event));
    is_shed(&rig.ask("SUBSCRIBE", USER, ("nobodys", "any"), event));
    is_shed(&rig.ask("MESSAGE", USER, ("nobodys", "any"), ""));
    is_shed(&rig.ask("SUBSCRIBE", USER, ("nobodys", "any"), &format!("{route}{event}")));
    goes_on(&rig.ask("SUBSCRIBE", USER, ("lamp", "there"), &format!("{route}{event}")));

    // Who is trusted need not prove it, and who calls for help neither.
    let notify = "Event: presence\r\nSubscription-State: active\r\n";
    let (to, _) =
        rig.ask_as(PBX, "NOTIFY", &format!("sip:{PHONE}"), ("lamp", "here"), notify).expect("it goes on");
    assert_eq!(to, PHONE);
    goes_on(&rig.ask("INVITE", "urn:service:sos", ("help", "any"), ""));
    goes_on(&rig.ask("MESSAGE", USER, ("prior", "any"), "Resource-Priority: esnet.1\r\n"));
    rig.behind(false);
    goes_on(&rig.ask("MESSAGE", USER, ("nobodys", "any"), ""));
}

/// Whoever makes no Route of our Record-Route (SIPp's stock scenarios) ends his calls all the same.
#[test]
fn a_call_is_known_without_a_token() {
    let mut rig = Rig::new();
    let called = rig.ask("INVITE", USER, ("call", ""), "");
    rig.take(called);
    goes_on(&rig.ask("INVITE", USER, ("rings", ""), ""));
    rig.behind(true);
    goes_on(&rig.ask("ACK", USER, ("call", "there"), ""));
    goes_on(&rig.ask("INFO", USER, ("call", "there"), ""));
    goes_on(&rig.ask("CANCEL", USER, ("rings", ""), ""));
    goes_on(&rig.ask("BYE", USER, ("call", "there"), ""));
    goes_on(&rig.ask("BYE", USER, ("call", "there"), ""));
    for (call, tag) in [("call", "other"), ("other", "there")] {
        is_shed(&rig.ask("BYE", USER, (call, tag), ""));
    }
    is_shed(&rig.ask("CANCEL", USER, ("never", ""), ""));
    assert_eq!(rig.ask("ACK", USER, ("never", "x"), ""), None);
    rig.now.mono_ms += 100_000;
    is_shed(&rig.ask("BYE", USER, ("call", "there"), ""));
}

/// An INVITE that was let through is not refused when it comes again: it rings there.
#[test]
fn a_retransmitted_invite_is_nothing_new() {
    let mut rig = Rig::new();
    goes_on(&rig.ask("INVITE", USER, ("call", ""), ""));
    rig.behind(true);
    goes_on(&rig.ask("INVITE", USER, ("call", ""), ""));
    is_shed(&rig.ask("INVITE", "sip:another@example.org", ("call", ""), ""));
    is_shed(&rig.ask("OPTIONS", &format!("sip:{ROUTER}"), ("us", ""), ""));
    rig.now.mono_ms += 400_000;
    is_shed(&rig.ask("INVITE", USER, ("call", ""), ""));
}
