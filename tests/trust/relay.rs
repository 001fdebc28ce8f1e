//! Nothing that a client writes chooses an address that we send to: no open relay (SPEC 1.3, 3.5, 3.6, 4.4).

use crate::rig::{
    Party,
    message::{Request, unique},
    scene::{Dialog, Scene, first_route, one_pbx, parameter, pool, rule, split, via_address},
    text,
};

/// A scene, its phone, its PBX and the host that nobody may be made to send to.
fn bystander(net: u8) -> (Scene, Party, Party, Party) {
    let scene = Scene::start(net, &one_pbx(net));
    let (phone, pbx, third) = (scene.phone(), scene.pbx(1), scene.party(99));
    (scene, phone, pbx, third)
}

#[test]
fn a_clients_route_to_a_third_host_is_not_followed_and_stays() {
    let (scene, phone, pbx, third) = bystander(30);
    let routes = [
        "<sip:127.40.30.99:5060;lr>",
        "<sip:127.40.30.99:5060>",
        "<sip:127.40.30.99>, <sip:127.40.30.98;lr>",
        "\"x\" <sip:user@127.40.30.99;transport=udp;lr;maddr=127.40.30.99>;p=1",
    ];
    for route in routes {
        for method in ["INVITE", "SUBSCRIBE", "REGISTER", "MESSAGE", "UNHEARDOF"] {
            let request = Request::new(method, "sip:1000@example.com", &phone).and("Route", route);
            phone.send(scene.phones(), request.text());
            let got = pbx.expect(method);
            assert_eq!(text::headers(&got, "Route"), [route], "the Route stays as it came:\n{got}");
            assert_eq!(text::request_uri(&got), "sip:1000@example.com");
        }
    }
    scene.quiet(&[&third, &phone]);
}

#[test]
fn a_route_of_ours_above_a_third_host_does_not_lead_there() {
    let (scene, phone, pbx, third) = bystander(31);
    let stacks = [
        "<sip:127.40.31.1:5060;lr>, <sip:127.40.31.99:5060;lr>",
        "<sip:127.40.31.1:5060;lr>, <sip:127.40.31.2:5060;lr>, <sip:127.40.31.99:5060;lr>",
    ];
    for stack in stacks {
        let request = Request::new("INVITE", "sip:1000@example.com", &phone).and("Route", stack);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect("INVITE ");
        assert_eq!(text::headers(&got, "Route"), ["<sip:127.40.31.99:5060;lr>"], "{got}");
    }
    scene.quiet(&[&third, &phone]);
}

#[test]
fn the_host_of_the_request_uri_is_no_address_for_a_clients_request() {
    let (scene, phone, pbx, third) = bystander(32);
    let uris = [
        "sip:1000@127.40.32.99",
        "sip:1000@127.40.32.99:5060;transport=udp",
        "sip:127.40.32.99:5060;maddr=127.40.32.99",
        "sip:1000@example.com;maddr=127.40.32.99;lr",
        "sips:1000@127.40.32.99",
        "tel:+15550100",
    ];
    for uri in uris.iter().filter(|uri| !uri.starts_with("sips")) {
        for method in ["INVITE", "MESSAGE", "OPTIONS", "NOTIFY"] {
            phone.send(scene.phones(), Request::new(method, uri, &phone).text());
            assert_eq!(text::request_uri(&pbx.expect(method)), *uri);
        }
    }
    scene.quiet(&[&third, &phone]);
    // A secure URI needs a TLS next hop (SPEC 3.3): there is none.
    phone.send(scene.phones(), Request::new("INVITE", uris[4], &phone).text());
    phone.expect("SIP/2.0 480");
    scene.quiet(&[&third, &pbx]);
}

/// `request-uri` is for backends; a client's request meets the next rule.
#[test]
fn a_client_gets_no_route_by_request_uri_and_none_by_flow() {
    let table = pool("one", 33, &[1])
        + &rule("by uri", "source = \"backends\", ruri = \"^sip:uri\"", "route = \"request-uri\"")
        + &rule("by flow", "source = \"backends\"", "route = \"flow\"")
        + &rule("clients", "source = \"clients\", method = [\"REGISTER\"]", "route = \"one\"");
    let scene = Scene::start(33, &table);
    let (victim, hostile, pbx, third) = (scene.phone(), scene.party(66), scene.pbx(1), scene.party(99));
    scene.register(&victim, &pbx, "victim", "<sip:victim@127.40.33.31:5060>");
    for uri in ["sip:uri@127.40.33.99", "sip:victim@127.40.33.31:5060", "sip:victim@example.com"] {
        hostile.send(scene.phones(), Request::new("INVITE", uri, &hostile).text());
        hostile.expect("SIP/2.0 403");
    }
    hostile.send(scene.phones(), Request::new("INVITE", "sip:victim@127.40.33.1:5060", &hostile).text());
    hostile.expect("SIP/2.0 404");
    scene.quiet(&[&third, &victim, &pbx]);
}

/// SPEC 3.6, RFC 3581: the response goes to the packet's source, whatever the Via says.
#[test]
fn a_via_with_maddr_alias_and_a_foreign_sent_by_leads_back_to_its_sender() {
    let (scene, phone, pbx, third) = bystander(34);
    let vias = [
        "SIP/2.0/UDP 127.40.34.99:5060;maddr=127.40.34.99;rport;branch=z9hG4bK",
        "SIP/2.0/UDP 127.40.34.99;rport;alias;maddr=127.40.34.99;ttl=5;branch=z9hG4bK",
        "SIP/2.0/UDP 127.40.34.99:5060;received=127.40.34.99;rport=5060;branch=z9hG4bK",
        "SIP/2.0/TCP 127.40.34.99:5060;alias;rport;branch=z9hG4bK",
        "SIP/2.0/UDP 127.40.34.99:5060;received=127.40.34.99;branch=z9hG4bK",
        "SIP/2.0/UDP 127.40.34.99:5060;branch=z9hG4bK",
    ];
    for via in vias {
        for method in ["INVITE", "MESSAGE", "REGISTER"] {
            let value = format!("{via}{}", unique());
            let request = Request::new(method, "sip:1000@example.com", &phone).with("Via", value.as_str());
            phone.send(scene.phones(), request.text());
            let got = pbx.expect(method);
            pbx.answer(via_address(&got), &got, "200 OK", "t", "");
            let back = phone.expect("SIP/2.0 200");
            let top = text::header(&back, "Via");
            assert_eq!(parameter(top, "received"), Some("127.40.34.31"), "{top}");
            assert!(!top.contains("received=127.40.34.99") && !top.contains("rport=5061"), "{top}");
        }
    }
    scene.quiet(&[&third, &phone]);
}

/// The router's own answers too.
#[test]
fn an_answer_of_ours_goes_to_the_source_and_not_to_maddr() {
    let (scene, phone, _pbx, third) = bystander(35);
    let via = "SIP/2.0/UDP 127.40.35.99:5060;maddr=127.40.35.99;received=127.40.35.99;rport;branch=z9hG4bKx";
    let refused = [
        Request::new("MESSAGE", "sip:1000@example.com", &phone).with("Max-Forwards", "0"),
        Request::new("MESSAGE", "ldap:1000", &phone),
        Request::new("OPTIONS", "sip:127.40.35.1:5060", &phone),
        Request::new("MESSAGE", "sip:1000@example.com", &phone).with("Content-Length", "999"),
    ];
    for request in refused {
        phone.send(scene.phones(), request.with("Via", via).text());
        phone.receive("an answer");
    }
    scene.quiet(&[&third, &phone]);
}

/// RFC 3261 18.2.2: without rport it is the source's address, and the port of sent-by.
#[test]
fn without_rport_the_response_goes_to_the_sent_by_port_of_the_source_address() {
    let (scene, phone, pbx, third) = bystander(36);
    let other_port = Party::bind("127.40.36.31:5099");
    let request = Request::new("MESSAGE", "sip:1000@example.com", &phone)
        .with("Via", "SIP/2.0/UDP 127.40.36.99:5099;branch=z9hG4bKnoport");
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("MESSAGE ");
    pbx.answer(via_address(&got), &got, "200 OK", "t", "");
    other_port.expect("SIP/2.0 200");
    scene.quiet(&[&third, &phone]);
}

/// In a dialog: neither the next Route, nor the R-URI, nor a Contact takes a client's request to a third host.
#[test]
fn in_a_dialog_a_client_reaches_the_tokens_backend_and_no_third_host() {
    let (scene, phone, pbx, third) = bystander(37);
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let tampered = [
        dialog.by_caller("SUBSCRIBE", &phone).and("Route", "<sip:127.40.37.99:5060;lr>"),
        dialog.by_caller("SUBSCRIBE", &phone).and("Route", "<sip:127.40.37.99:5060>"),
        dialog.by_caller("SUBSCRIBE", &phone).to("sip:127.40.37.99:5060"),
        dialog.by_caller("BYE", &phone).to("sip:x@127.40.37.99;maddr=127.40.37.99"),
        dialog.by_caller("SUBSCRIBE", &phone).with("Contact", "<sip:x@127.40.37.99:5060>"),
    ];
    for request in tampered {
        phone.send(first_route(&request), request.text());
        let got = pbx.expect(&request.method);
        assert!(!text::headers(&got, "Route").iter().any(|route| route.contains("127.40.37.1:")), "{got}");
    }
    scene.quiet(&[&third, &phone]);
}

/// SPEC 3.5: the R-URI may name another backend of the token's pool, never one of another pool.
#[test]
fn in_a_dialog_a_client_may_name_a_backend_of_the_tokens_pool_only() {
    let table = pool("lamps", 38, &[1, 3])
        + &pool("calls", 38, &[2])
        + &rule("lamps", "source = \"clients\", ruri = \"^sip:lamp@\"", "route = \"lamps\"")
        + &rule("calls", "source = \"clients\"", "route = \"calls\"");
    let scene = Scene::start(38, &table);
    let (phone, pbx1, pbx2, pbx3) = (scene.phone(), scene.pbx(1), scene.pbx(2), scene.pbx(3));
    let request = Request::new("INVITE", "sip:anybody@example.com", &phone);
    let dialog = Dialog::open(&phone, scene.phones(), &pbx2, &request);
    for host in ["127.40.38.11:5060", "127.40.38.13"] {
        let bye = dialog.by_caller("BYE", &phone).to(&format!("sip:x@{host}"));
        phone.send(first_route(&bye), bye.text());
        pbx2.expect("BYE ");
    }
    scene.quiet(&[&pbx1, &pbx3]);

    phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:lamp@example.com", &phone).text());
    scene.settle();
    let brief = std::time::Duration::from_millis(20);
    let (chosen, other, got) = match pbx1.poll(brief) {
        Some((bytes, _)) => (&pbx1, &pbx3, bytes),
        None => (&pbx3, &pbx1, pbx3.poll(brief).expect("one of the pool has it").0),
    };
    let got = String::from_utf8(got).expect("the test's messages are text");
    chosen.answer(
        via_address(&got),
        &got,
        "200 OK",
        &unique(),
        &format!("Contact: <sip:{}>\r\n", chosen.address),
    );
    let dialog = Dialog::of(got, phone.expect("SIP/2.0 200"));
    let refresh = dialog.by_caller("SUBSCRIBE", &phone).to(&format!("sip:{}", other.address));
    phone.send(first_route(&refresh), refresh.text());
    other.expect("SUBSCRIBE ");
    scene.quiet(&[chosen, &pbx2]);
}

/// A phone's Contact does not lead the PBX's requests elsewhere than to the phone's flow.
#[test]
fn a_contact_of_a_third_host_leads_to_the_flow_of_who_wrote_it() {
    let (scene, phone, pbx, third) = bystander(39);
    scene.register(&phone, &pbx, "alice", "<sip:alice@127.40.39.99:5060>");
    for uri in ["sip:alice@127.40.39.99:5060", "sip:alice@127.40.39.2:5060"] {
        pbx.send(scene.pbxs(), Request::new("INVITE", uri, &pbx).text());
        phone.expect("INVITE ");
    }
    let request =
        Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).with("Contact", "<sip:x@127.40.39.99>");
    let dialog = Dialog::open(&phone, scene.phones(), &pbx, &request);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    assert_eq!(notify.uri, "sip:x@127.40.39.99");
    pbx.send(first_route(&notify), notify.text());
    phone.expect("NOTIFY ");
    scene.quiet(&[&third, &pbx]);
}

/// SPEC 5.2: a Contact that a live flow of another AOR holds is not taken over.
#[test]
fn another_users_contact_is_not_taken_over() {
    let (scene, victim, pbx, third) = bystander(40);
    let hostile = scene.party(66);
    let contact = "<sip:victim@127.40.40.31:5060>";
    scene.register(&victim, &pbx, "victim", contact);
    scene.register(&hostile, &pbx, "hostile", contact);
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:victim@127.40.40.31:5060", &pbx).text());
    victim.expect("INVITE ");
    scene.quiet(&[&hostile, &third]);
    assert_eq!(scene.router.metrics().sum("tidings_flow_conflicts_total", &[]), 1.0);
}

/// A REGISTER that was refused teaches nothing.
#[test]
fn a_register_without_2xx_teaches_no_flow() {
    let (scene, phone, pbx, _third) = bystander(41);
    let register = Request::new("REGISTER", "sip:example.com", &phone)
        .with("To", "<sip:alice@example.com>")
        .with("Contact", "<sip:alice@127.40.41.31:5060>");
    for status in ["401 Unauthorized", "403 Forbidden", "100 Trying"] {
        phone.send(scene.phones(), register.clone().with("Call-ID", unique()).text());
        let got = pbx.expect("REGISTER ");
        pbx.answer(scene.pbxs(), &got, status, "t", "Contact: <sip:alice@127.40.41.31:5060>;expires=600\r\n");
        phone.expect(&format!("SIP/2.0 {status}"));
    }
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:alice@127.40.41.31:5060", &pbx).text());
    pbx.expect("SIP/2.0 480");
    scene.quiet(&[&phone]);
}

/// SPEC 4.4: without a rule it is 404 for our names, 403 for all others.
#[test]
fn without_a_rule_foreign_names_are_403_and_ours_404() {
    let table = split(42).replace("source = \"clients\"", "source = \"clients\", event = [\"presence\"]");
    let scene = Scene::start(42, &table);
    let (phone, third) = (scene.phone(), scene.party(99));
    for (uri, code) in [
        ("sip:1000@127.40.42.99", 403),
        ("sip:1000@example.org", 403),
        ("sip:1000@127.40.42.1:5060", 404),
        ("sip:1000@127.40.42.2:5060", 404),
    ] {
        phone.send(scene.phones(), Request::new("INVITE", uri, &phone).text());
        assert_eq!(text::status(&phone.receive("an answer")), Some(code), "{uri}");
    }
    scene.quiet(&[&third]);
}
