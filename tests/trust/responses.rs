//! Responses: only to whom the Via token says, only from whom the request went to (SPEC 3.6).

use crate::rig::{
    Party,
    message::Request,
    scene::{Dialog, Scene, branch, first_route, one_pbx, pool, rule, via_address},
    text,
};

/// A phone's request as its PBX got it.
struct Asked {
    scene: Scene,
    phone: Party,
    pbx: Party,
    hostile: Party,
    got: String,
}

impl Asked {
    fn start(net: u8) -> Asked {
        let scene = Scene::start(net, &one_pbx(net));
        let (phone, pbx, hostile) = (scene.phone(), scene.pbx(1), scene.party(66));
        phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
        let got = pbx.expect("INVITE ");
        assert_eq!(via_address(&got), scene.pbxs());
        Asked { scene, phone, pbx, hostile, got }
    }

    fn answer(&self) -> String {
        text::answer(&self.got, "200 OK", "t", "")
    }
}

/// Exchanges one character of the top branch, counted from its end.
fn forged(response: &str, from_end: usize) -> String {
    let old = branch(response).to_owned();
    let mut bytes = old.clone().into_bytes();
    let at = bytes.len() - 1 - from_end;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    response.replacen(&old, &String::from_utf8(bytes).expect("base64url is ASCII"), 1)
}

#[test]
fn a_response_of_a_third_party_to_a_backend_bound_request_is_dropped() {
    let a = Asked::start(70);
    for listener in [a.scene.phones(), a.scene.pbxs()] {
        a.hostile.send(listener, a.answer());
        a.phone.send(listener, a.answer());
    }
    // The backend's address does not help on the clients' side.
    a.pbx.send(a.scene.phones(), a.answer());
    a.scene.quiet(&[&a.phone, &a.hostile]);
    assert_eq!(a.scene.refused("response_source"), 5.0);
    a.pbx.send(a.scene.pbxs(), a.answer());
    a.phone.expect("SIP/2.0 200");
}

#[test]
fn a_response_of_a_third_party_to_a_client_bound_request_is_dropped() {
    let scene = Scene::start(71, &one_pbx(71));
    let (phone, pbx, hostile) = (scene.phone(), scene.pbx(1), scene.party(66));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    let got = phone.expect("NOTIFY ");
    let answer = text::answer(&got, "481 Gone", "", "");
    for listener in [scene.phones(), scene.pbxs()] {
        hostile.send(listener, &answer);
    }
    pbx.send(scene.pbxs(), &answer);
    scene.quiet(&[&pbx, &hostile, &phone]);
    assert_eq!(scene.refused("response_source"), 3.0);
    phone.answer(scene.phones(), &got, "200 OK", "", "");
    pbx.expect("SIP/2.0 200");
}

/// Any backend may answer: a PBX forks to its neighbours, and fails over.
#[test]
fn a_backend_may_answer_for_another_backend() {
    let table = pool("one", 72, &[1]) + &pool("two", 72, &[2]) + &rule("all", "", "route = \"one\"");
    let scene = Scene::start(72, &table);
    let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
    let got = pbx1.expect("INVITE ");
    pbx2.answer(scene.pbxs(), &got, "200 OK", "t", "");
    phone.expect("SIP/2.0 200");
}

#[test]
fn a_response_with_a_forged_via_is_dropped() {
    let a = Asked::start(73);
    for from_end in [1, 2, 5, 9, 12, 20, 30] {
        a.pbx.send(a.scene.pbxs(), forged(&a.answer(), from_end));
    }
    a.scene.quiet(&[&a.phone, &a.pbx]);
    assert_eq!(a.scene.refused("forged_via"), 7.0);
    assert_eq!(a.scene.router.metrics().sum("tidings_tokens_forged_total", &[("type", "via")]), 7.0);
}

/// The target of the response is in the token: what stands below our Via is not resolved.
#[test]
fn the_via_below_ours_chooses_no_address() {
    let a = Asked::start(74);
    let third = a.scene.party(99);
    let below = text::headers(&a.got, "Via")[1].to_owned();
    let foreign = [
        "SIP/2.0/UDP 127.40.74.99:5060;rport=5060;received=127.40.74.99;branch=z9hG4bKx",
        "SIP/2.0/UDP 127.40.74.99;maddr=127.40.74.99;branch=z9hG4bKx",
        "SIP/2.0/UDP 255.255.255.255;branch=z9hG4bKx",
    ];
    for via in foreign {
        a.pbx.send(a.scene.pbxs(), a.answer().replacen(&below, via, 1));
        let back = a.phone.expect("SIP/2.0 200");
        assert_eq!(text::header(&back, "Via"), via, "and it stays as the backend wrote it");
    }
    a.scene.quiet(&[&third, &a.phone]);
}

/// RFC 3261 16.7: a response whose topmost Via is not ours is not for us.
#[test]
fn a_response_whose_top_via_is_not_ours_is_dropped() {
    let a = Asked::start(75);
    let third = a.scene.party(99);
    let ours = format!("Via: {}\r\n", text::header(&a.got, "Via"));
    let sound = a.answer();
    let broken = [
        sound.replacen(&ours, "", 1),
        sound.replacen(&ours, &format!("Via: SIP/2.0/UDP 127.40.75.99:5060;branch=z9hG4bKy\r\n{ours}"), 1),
        sound.replacen("z9hG4bK", "z9hG4bX", 1),
        sound.replacen("z9hG4bK", "", 1),
        sound.replace("Via: ", "Was: "),
        sound.replacen("SIP/2.0 200", "SIP/2.0 99", 1),
        sound.replacen("SIP/2.0 200", "SIP/2.0 2000", 1),
        sound.replacen("SIP/2.0 200", "SIP/3.0 200", 1),
        sound.replacen("CSeq: 1", "CSeq: x", 1),
        sound.replacen("Call-ID", "Kall-ID", 1),
        sound.replacen("\r\n\r\n", "\r\n", 1),
        sound.replacen("Content-Length: 0", "Content-Length: 1", 1),
    ];
    for response in &broken {
        a.pbx.send(a.scene.pbxs(), response);
    }
    a.scene.quiet(&[&a.phone, &a.pbx, &third]);
    a.pbx.send(a.scene.pbxs(), sound);
    a.phone.expect("SIP/2.0 200");
}

/// A response is never answered, and never forwarded to the phone with our Via still on it.
#[test]
fn a_response_leaves_without_our_via_and_else_as_it_came() {
    let a = Asked::start(76);
    let response = a.answer().replacen(
        "Content-Length: 0",
        "X-Odd :  a,\r\n b\r\nWarning: 399 x \"y\"\r\nContent-Length:   4",
        1,
    ) + "\0\r\n\x01";
    a.pbx.send(a.scene.pbxs(), &response);
    let back = a.phone.expect("SIP/2.0 200");
    let ours = format!("Via: {}\r\n", text::header(&a.got, "Via"));
    let was = text::header(&a.got, "Record-Route").to_owned();
    let is = text::header(&back, "Record-Route").to_owned();
    assert_ne!(was, is, "the Record-Route names the phone's side");
    assert_eq!(back, response.replacen(&ours, "", 1).replacen(&was, &is, 1));
}

/// SPEC 2.5: whoever wrote it.
#[test]
fn a_response_with_a_broken_from_or_to_is_dropped() {
    let scene = Scene::start(77, &one_pbx(77));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    let answer = text::answer(&phone.expect("NOTIFY "), "200 OK", "", "");
    for broken in [
        answer.replacen("From: <", "From: \"open <", 1),
        answer.replacen("To: <", "To: <sip:x@example.com>, <", 1),
        answer.replacen("From: ", "From: <sip:x@example.com>\r\nFrom: ", 1),
    ] {
        assert_ne!(broken, answer);
        phone.send(scene.phones(), broken);
    }
    scene.quiet(&[&pbx]);
    assert_eq!(scene.refused("broken_response"), 3.0);
    phone.send(scene.phones(), &answer);
    pbx.expect("SIP/2.0 200");
    let refresh = dialog.by_caller("SUBSCRIBE", &phone);
    phone.send(first_route(&refresh), refresh.text());
    let answer = text::answer(&pbx.expect("SUBSCRIBE "), "200 OK", "", "");
    pbx.send(scene.pbxs(), answer.replacen("To: ", "To: <sip:x@example.com>\r\nTo: ", 1));
    pbx.send(scene.pbxs(), answer.replacen("From: <", "From: \"open <", 1));
    scene.quiet(&[&phone]);
    assert_eq!(scene.refused("broken_response"), 5.0);
    pbx.send(scene.pbxs(), answer);
    phone.expect("SIP/2.0 200");
}
