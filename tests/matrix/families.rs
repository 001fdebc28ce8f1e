//! IPv6, and wildcard listeners (SPEC 9.1, 9.6).

use std::{net::SocketAddr, time::Duration};

use crate::rig::{
    Party, Router,
    message::{Request, unique},
    scene::{Dialog, first_route, parameter, uri_address, user, via_address},
    text,
};

const TOKENS: &str = "[tokens]\nkeys = [{ id = 1, key = \"00112233445566778899aabbccddeeff\" }]\n";

fn listener(name: &str, address: &str, side: &str) -> String {
    format!(
        "[[listen]]\nname = \"{name}\"\ntransport = \"udp\"\naddress = \"{address}\"\nside = \"{side}\"\n"
    )
}

fn table(uri: &str) -> String {
    format!(
        "[[pool]]\nname = \"one\"\nprobe = \"off\"\n[[pool.backend]]\nname = \"pbx1\"\nuri = \"{uri}\"\n\
         [[rule]]\nname = \"to phones\"\nmatch = {{ source = \"backends\" }}\nroute = \"flow\"\n\
         [[rule]]\nname = \"in\"\nmatch = {{ source = \"clients\" }}\nroute = \"one\"\npath = true\n"
    )
}

fn both_ways(dialog: &Dialog, phone: &Party, pbx: &Party) {
    for (from, to, request) in
        [(pbx, phone, dialog.by_callee("NOTIFY", pbx)), (phone, pbx, dialog.by_caller("SUBSCRIBE", phone))]
    {
        from.send(first_route(&request), request.text());
        let got = to.expect(&request.method);
        assert!(text::headers(&got, "Route").is_empty(), "{got}");
        to.answer(via_address(&got), &got, "200 OK", "", "");
        from.expect("SIP/2.0 200");
    }
}

#[test]
fn ipv6_on_both_sides() {
    let settings = "[workers]\ncount = 1\npin = false\n".to_owned()
        + &listener("phones", "[::1]:20401", "clients")
        + &listener("pbxs", "[::1]:20402", "backends")
        + "[admin]\naddress = \"127.40.170.1:9060\"\n"
        + TOKENS;
    let _router = Router::start(&settings, &table("sip:[::1]:20411;transport=udp"));
    let (phone, pbx) = (Party::bind("[::1]:20431"), Party::bind("[::1]:20411"));
    let entry: SocketAddr = "[::1]:20401".parse().expect("an address");
    let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone);
    let dialog = Dialog::open(&phone, entry, &pbx, &request);
    assert!(
        text::header(&dialog.request, "Via").starts_with("SIP/2.0/UDP [::1]:20402;"),
        "{}",
        dialog.request
    );
    assert_eq!(uri_address(&dialog.callee_routes[0]), "[::1]:20402".parse().expect("an address"));
    assert_eq!(uri_address(&dialog.caller_routes[0]), entry);
    let below = text::headers(&dialog.request, "Via")[1];
    assert_eq!(parameter(below, "rport"), Some("20431"));
    assert!(matches!(parameter(below, "received"), Some("::1" | "[::1]")), "{below}");
    both_ways(&dialog, &phone, &pbx);

    phone.send(entry, Request::new("OPTIONS", "sip:[::1]:20401", &phone).text());
    phone.expect("SIP/2.0 200");
    phone.send(entry, Request::new("MESSAGE", "sip:x@example.com", &phone).with("Max-Forwards", "0").text());
    phone.expect("SIP/2.0 483");

    // Path there and back.
    let register =
        Request::new("REGISTER", "sip:example.com", &phone).with("Contact", "<sip:alice@[2001:db8::7]>");
    phone.send(entry, register.text());
    let got = pbx.expect("REGISTER ");
    let path = text::header(&got, "Path").to_owned();
    pbx.answer(
        via_address(&got),
        &got,
        "200 OK",
        &unique(),
        "Contact: <sip:alice@[2001:db8::7]>;expires=60\r\n",
    );
    phone.expect("SIP/2.0 200");
    let invite = Request::new("INVITE", "sip:alice@[2001:db8::7]", &pbx);
    pbx.send(uri_address(&path), invite.clone().and("Route", path).text());
    phone.expect("INVITE ");
    pbx.send("[::1]:20402", invite.with("Call-ID", unique()).text());
    phone.expect("INVITE ");
}

/// A phone on IPv6, its PBX on IPv4.
#[test]
fn ipv6_phone_and_ipv4_backend() {
    let settings = "[workers]\ncount = 1\npin = false\n".to_owned()
        + &listener("phones", "[::1]:20403", "clients")
        + &listener("pbxs", "127.40.171.2:5060", "backends")
        + "[admin]\naddress = \"127.40.171.1:9060\"\n"
        + TOKENS;
    let _router = Router::start(&settings, &table("sip:127.40.171.11"));
    let (phone, pbx) = (Party::bind("[::1]:20433"), Party::bind("127.40.171.11:5060"));
    let entry: SocketAddr = "[::1]:20403".parse().expect("an address");
    let request = Request::new("INVITE", "sip:1000@example.com", &phone);
    let dialog = Dialog::open(&phone, entry, &pbx, &request);
    assert_eq!(uri_address(&dialog.callee_routes[0]), "127.40.171.2:5060".parse().expect("an address"));
    assert_eq!(uri_address(&dialog.caller_routes[0]), entry);
    both_ways(&dialog, &phone, &pbx);
}

/// SPEC 9.1: a wildcard answers from the address that was asked, and 0.0.0.0 is never on the wire.
#[test]
fn a_wildcard_listener_answers_from_the_address_that_was_asked() {
    let settings = "[workers]\ncount = 1\npin = false\n".to_owned()
        + &listener("all", "0.0.0.0:20450", "both")
        + "[admin]\naddress = \"127.40.172.1:9060\"\n"
        + TOKENS;
    let _router = Router::start(&settings, &table("sip:127.40.172.11:5060"));
    let (phone, pbx) = (Party::bind("127.40.172.131:31998"), Party::bind("127.40.172.11:5060"));
    for asked in ["127.40.172.1:20450", "127.40.172.77:20450"] {
        let asked: SocketAddr = asked.parse().expect("an address");
        phone.send(asked, Request::new("OPTIONS", &format!("sip:{asked}"), &phone).text());
        let (answer, from) = phone.poll(Duration::from_secs(5)).expect("an answer");
        assert!(answer.starts_with(b"SIP/2.0 200") && from == asked, "from {from}");

        let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone);
        let sent = request.text();
        phone.send(asked, &sent);
        let (got, left_by) = pbx.poll(Duration::from_secs(5)).expect("it comes through");
        let got = String::from_utf8(got).expect("the test's messages are text");
        assert!(!got.contains("0.0.0.0"), "{got}");
        assert_eq!(via_address(&got), left_by, "Via names the address that the packet has");
        assert!(
            got.len() - sent.len() < 256 && user(text::header(&got, "Record-Route")).len() <= 48,
            "{got}"
        );
        pbx.answer(left_by, &got, "200 OK", &unique(), &format!("Contact: <sip:{}>\r\n", pbx.address));
        let (answer, from) = phone.poll(Duration::from_secs(5)).expect("the answer");
        assert_eq!(from, asked, "or a NAT drops it");
        let dialog = Dialog::of(got, String::from_utf8(answer).expect("the test's messages are text"));
        assert_eq!(uri_address(&dialog.caller_routes[0]), asked);
        let notify = dialog.by_callee("NOTIFY", &pbx);
        pbx.send(first_route(&notify), notify.text());
        let (got, from) = phone.poll(Duration::from_secs(5)).expect("the NOTIFY");
        let got = String::from_utf8(got).expect("the test's messages are text");
        assert!(got.starts_with("NOTIFY ") && !got.contains("0.0.0.0"), "{got}");
        assert_eq!((from, via_address(&got)), (asked, asked), "the phone's NAT knows only this address");
        phone.answer(asked, &got, "200 OK", "", "");
        pbx.expect("SIP/2.0 200");
    }
}
