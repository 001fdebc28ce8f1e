//! Strict routing undone (SPEC 4.1, 4.4, RFC 3261 16.4), and Routes that name us.

use crate::rig::{
    message::Request,
    scene::{Dialog, Scene, one_pbx, pool, rule, user, via_address},
    text,
};

/// Asterisk's `outbound_proxy` without `;lr` (ASTERISK.md 17): the R-URI is us, the real one is the last Route.
#[test]
fn asterisks_outbound_proxy_without_lr() {
    let table = pool("one", 160, &[1])
        + &pool("two", 160, &[2])
        + &rule(
            "between",
            "source = \"one\", method = [\"PUBLISH\"], ruri = \"^sip:ast2@\"",
            "route = \"two\"",
        )
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"");
    let scene = Scene::start(160, &table);
    let (pbx1, pbx2) = (scene.pbx(1), scene.pbx(2));
    for us in ["sip:127.40.160.2", "sip:127.40.160.2:5060", "sip:127.40.160.2:5060;transport=udp"] {
        let publish = Request::new("PUBLISH", us, &pbx1).and("Route", "<sip:ast2@10.0.0.2:5060>");
        pbx1.send(scene.pbxs(), publish.text());
        let got = pbx2.expect("PUBLISH ");
        assert_eq!(text::request_uri(&got), "sip:ast2@10.0.0.2:5060");
        assert!(text::headers(&got, "Route").is_empty(), "{got}");
        pbx2.answer(via_address(&got), &got, "200 OK", "t", "");
        pbx1.expect("SIP/2.0 200");
    }
    // Ours above it goes as well; display names and parameters are the Route's, not the URI's.
    let publish = Request::new("PUBLISH", "sip:127.40.160.2:5060", &pbx1)
        .and("Route", "<sip:127.40.160.2:5060;lr>,\r\n \"x, y\" <sip:ast2@10.0.0.2;user=phone>;p=1");
    pbx1.send(scene.pbxs(), publish.text());
    let got = pbx2.expect("PUBLISH ");
    assert_eq!(text::request_uri(&got), "sip:ast2@10.0.0.2;user=phone");
    assert!(text::headers(&got, "Route").is_empty(), "{got}");
}

/// No repair where the last Route is a loose router, or where the R-URI has a user of its own, or is not us.
#[test]
fn what_is_not_strict_is_not_repaired() {
    let scene = Scene::start(161, &one_pbx(161));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for (uri, route) in [
        ("sip:1000@127.40.161.1:5060", "<sip:x@10.0.0.2>"),
        ("sip:1000@example.com", "<sip:x@10.0.0.2>"),
        ("sip:127.40.161.1:5060", "<sip:x@10.0.0.2;lr>"),
        ("sip:127.40.161.1:5060", "<sip:a@10.0.0.1>, <sip:x@10.0.0.2;lr=on>"),
    ] {
        let request = Request::new("MESSAGE", uri, &phone).and("Route", route);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect("MESSAGE ");
        assert_eq!(text::request_uri(&got), uri);
        assert_eq!(text::headers(&got, "Route"), [route], "{got}");
    }
}

/// In a dialog: a strict router below us puts our token into the R-URI and the target last.
#[test]
fn our_token_in_the_request_uri_counts_as_our_route() {
    let scene = Scene::start(162, &one_pbx(162));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let notify = dialog
        .by_callee("NOTIFY", &pbx)
        .to(text::uri(&dialog.callee_routes[0]))
        .with("Route", format!("<{}>", dialog.caller_uri));
    pbx.send(scene.pbxs(), notify.text());
    let got = phone.expect("NOTIFY ");
    assert_eq!(text::request_uri(&got), dialog.caller_uri);
    assert!(text::headers(&got, "Route").is_empty(), "{got}");
    let refresh = dialog
        .by_caller("SUBSCRIBE", &phone)
        .to(text::uri(&dialog.caller_routes[0]))
        .with("Route", format!("<{}>", dialog.callee_uri));
    phone.send(scene.phones(), refresh.text());
    let got = pbx.expect("SUBSCRIBE ");
    assert_eq!(text::request_uri(&got), dialog.callee_uri);
    // A forged one is no better there than in a Route.
    let token = user(&dialog.caller_routes[0]);
    let forged =
        text::uri(&dialog.caller_routes[0]).replacen(token, &token.chars().rev().collect::<String>(), 1);
    let refresh =
        dialog.by_caller("SUBSCRIBE", &phone).to(&forged).without("Route").with("CSeq", "9 SUBSCRIBE");
    phone.send(scene.phones(), refresh.text());
    scene.settle();
    if let Some((got, _)) = pbx.poll(std::time::Duration::from_millis(5)) {
        assert!(got.starts_with(format!("SUBSCRIBE {forged} ").as_bytes()), "by the table, as it came");
    }
}

/// Routes that name us, by address or alias, with or without lr, are popped, tokens or not; others stay in order.
#[test]
fn routes_that_name_us_are_popped() {
    let scene = Scene::start(163, &one_pbx(163));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for (routes, left) in [
        (vec!["<sip:127.40.163.1:5060;lr>"], vec![]),
        (vec!["<sip:127.40.163.1;lr>"], vec![]),
        (vec!["<sip:anyuser@127.40.163.1:5060;lr>"], vec![]),
        (vec!["<sip:127.40.163.1:5060;lr>, <sip:10.0.0.1;lr>"], vec!["<sip:10.0.0.1;lr>"]),
        (vec!["<sip:127.40.163.1:5060;lr>", "<sip:10.0.0.1;lr>"], vec!["<sip:10.0.0.1;lr>"]),
        (
            vec!["<sip:127.40.163.1:5060;lr>,\r\n <sip:127.40.163.2;lr> , <sip:10.0.0.1;lr>"],
            vec!["<sip:10.0.0.1;lr>"],
        ),
        (
            vec!["<sip:10.0.0.1;lr>", "<sip:127.40.163.1:5060;lr>"],
            vec!["<sip:10.0.0.1;lr>", "<sip:127.40.163.1:5060;lr>"],
        ),
    ] {
        let mut request = Request::new("MESSAGE", "sip:1000@example.com", &phone);
        for route in &routes {
            request = request.and("Route", *route);
        }
        phone.send(scene.phones(), request.and("X-Last", "1").text());
        let got = pbx.expect("MESSAGE ");
        assert_eq!(text::headers(&got, "Route"), left, "of {routes:?}:\n{got}");
        assert!(got.contains("\r\nX-Last: 1\r\n"));
    }
}

/// SPEC 4.4: a backend's top Route that is not ours is followed.
#[test]
fn a_backends_foreign_route_is_followed_and_stays() {
    let scene = Scene::start(164, &one_pbx(164));
    let (pbx, elsewhere) = (scene.pbx(1), scene.party(77));
    for routes in ["<sip:127.40.164.77:5060;lr>", "<sip:127.40.164.2:5060;lr>, <sip:x@127.40.164.77;lr>"] {
        let request = Request::new("MESSAGE", "sip:1000@example.org", &pbx).and("Route", routes);
        pbx.send(scene.pbxs(), request.text());
        let got = elsewhere.expect("MESSAGE ");
        let kept = text::headers(&got, "Route");
        assert_eq!(kept.len(), 1, "it is for that hop to pop:\n{got}");
        assert!(kept[0].contains("127.40.164.77"), "{got}");
        elsewhere.answer(via_address(&got), &got, "200 OK", "t", "");
        scene.settle();
    }
}

/// What becomes the Request-URI must be one that would have been taken (SPEC 2.5).
#[test]
fn the_repaired_uri_is_checked_as_a_request_uri() {
    let scene = Scene::start(165, &one_pbx(165));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for (route, code) in [("<http://example.com>", "416"), ("<sip:1000@example.com?Subject=x>", "400")] {
        let request = Request::new("MESSAGE", "sip:127.40.165.1:5060", &phone).and("Route", route);
        phone.send(scene.phones(), request.text());
        phone.expect(&format!("SIP/2.0 {code} "));
    }
    scene.quiet(&[&pbx]);
}

/// A number that is the prefix and nothing else keeps it: a URI with an empty user is none.
#[test]
fn strip_prefix_leaves_a_user() {
    let table = pool("one", 168, &[1])
        + &rule("out", "source = \"clients\"", "route = \"one\"\nstrip_prefix = \"9\"");
    let scene = Scene::start(168, &table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for (sent, forwarded) in [
        ("sip:9@example.com", "sip:9@example.com"),
        ("sip:9:x@example.com", "sip:9:x@example.com"),
        ("sip:91000@example.com", "sip:1000@example.com"),
    ] {
        phone.send(scene.phones(), Request::new("MESSAGE", sent, &phone).text());
        assert_eq!(text::request_uri(&pbx.expect("MESSAGE ")), forwarded);
    }
}
