//! Loops and spirals (SPEC 4.5, RFC 5393).

use crate::rig::{
    message::Request,
    scene::{Scene, one_pbx, pool, rule, via_address},
    text,
};

/// What came out, sent in again by the same source: the Via that stands in it is ours, and says the same.
#[test]
fn a_request_that_returns_unchanged_from_its_source_is_482() {
    let scene = Scene::start(95, &one_pbx(95));
    let (phone, pbx, elsewhere) = (scene.phone(), scene.pbx(1), scene.party(40));
    for method in ["INVITE", "SUBSCRIBE", "MESSAGE", "UNHEARDOF"] {
        phone.send(scene.phones(), Request::new(method, "sip:1000@example.com", &phone).text());
        let got = pbx.expect(method);
        phone.send(scene.phones(), &got);
        phone.expect("SIP/2.0 482");
        // From another source, and for another target: legal spirals.
        elsewhere.send(scene.phones(), &got);
        pbx.expect(method);
        phone.send(scene.phones(), got.replacen("sip:1000@", "sip:1001@", 1));
        pbx.expect(method);
    }
    scene.quiet(&[&pbx]);
    assert_eq!(scene.refused("loop"), 4.0);
}

/// Two PBXs that hand a call to each other through us: the third pass has a Via of ours with the same hash.
#[test]
fn two_pbxs_that_send_a_call_back_and_forth_are_stopped() {
    let table = pool("one", 96, &[1])
        + &pool("two", 96, &[2])
        + &rule("onwards", "source = \"one\"", "route = \"two\"")
        + &rule("and back", "source = \"two\"", "route = \"one\"")
        + &rule("in", "source = \"clients\"", "route = \"one\"");
    let scene = Scene::start(96, &table);
    let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
    let mut at = (&pbx1, &pbx2);
    for hop in 0..3 {
        let got = at.0.expect("INVITE ");
        let via = format!(
            "INVITE sip:1000@example.com SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bKhop{hop}",
            at.0.address
        );
        at.0.send(via_address(&got), got.replacen("INVITE sip:1000@example.com SIP/2.0", &via, 1));
        at = (at.1, at.0);
    }
    // pbx1, pbx2, and pbx1 again: its request is the one that it sent before.
    pbx1.expect("SIP/2.0 482");
    scene.quiet(&[&pbx1, &pbx2]);
}

/// More than 6 Vias of ours are too many, however much the request changed on its way.
#[test]
fn more_than_six_vias_of_ours_are_482() {
    let scene = Scene::start(97, &one_pbx(97));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let mut request = Request::new("MESSAGE", "sip:0@example.com", &phone).text();
    for pass in 1..=7 {
        phone.send(scene.phones(), &request);
        let got = pbx.expect("MESSAGE ");
        assert_eq!(text::headers(&got, "Via").len(), pass + 1);
        request = got.replacen(text::request_uri(&got), &format!("sip:{pass}@example.com"), 1);
    }
    phone.send(scene.phones(), &request);
    phone.expect("SIP/2.0 482");
    scene.quiet(&[&pbx]);
}

/// Vias that only look like ours do not count: a hostile phone cannot make its neighbour's call a loop.
#[test]
fn forged_vias_of_ours_are_no_loop() {
    let scene = Scene::start(98, &one_pbx(98));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let mut request = Request::new("MESSAGE", "sip:1000@example.com", &phone);
    let own = request.value("Via").to_owned();
    for n in 0..9 {
        let via = format!("SIP/2.0/UDP {};branch=z9hG4bK{}{n}", scene.pbxs(), "QUJD".repeat(10));
        request = request.and("Via", via);
    }
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("MESSAGE ");
    assert_eq!(text::headers(&got, "Via").len(), 11);
    assert!(text::headers(&got, "Via")[1].starts_with(own.split(";rport").next().expect("it begins so")));
}
