//! Client flows over UDP: learnt, moved, dead (SPEC 3.5, 5.2, 7.2).

use std::time::Duration;

use crate::{
    goes_on, in_each_column, passes,
    rig::{
        Party,
        message::{Request, unique},
        scene::{Dialog, Layout, Scene, first_route, one_pbx, pool, rule, uri_address, via_address},
        text, wait_for,
    },
};

/// SPEC 7.2: the phone's NAT gave it another port; the notifier's route set still names the old one.
#[test]
fn a_phone_that_moved_gets_the_notifies_of_its_old_route_set() {
    in_each_column(|| {
        let scene = Scene::start(110, &one_pbx(110));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let dialog = Dialog::subscribe(&scene, &phone, &pbx);
        let moved = scene.bind("127.40.110.31:5999");

        // A refresh that the PBX refuses moves nothing.
        let refresh = dialog.by_caller("SUBSCRIBE", &moved);
        moved.send(first_route(&refresh), refresh.text());
        let got = pbx.expect("SUBSCRIBE ");
        pbx.answer(scene.pbxs(), &got, "401 Unauthorized", "", "");
        moved.expect("SIP/2.0 401");
        passes(&pbx, &dialog.by_callee("NOTIFY", &pbx), &phone, scene.phones());

        passes(
            &moved,
            &dialog.by_caller("SUBSCRIBE", &moved).with("CSeq", "3 SUBSCRIBE"),
            &pbx,
            scene.pbxs(),
        );
        let notify = dialog.by_callee("NOTIFY", &pbx).with("CSeq", "4 NOTIFY");
        passes(&pbx, &notify, &moved, scene.phones());
        passes(&pbx, &dialog.by_callee("BYE", &pbx), &moved, scene.phones());
        scene.quiet(&[&phone]);
        assert_eq!(scene.router.metrics().sum("tidings_flows_moved_total", &[]), 1.0);
    });
}

/// Another dialog of the same phone did not move.
#[test]
fn a_move_is_of_one_dialog_only() {
    in_each_column(|| {
        let scene = Scene::start(111, &one_pbx(111));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let (first, second) =
            (Dialog::subscribe(&scene, &phone, &pbx), Dialog::subscribe(&scene, &phone, &pbx));
        let moved = scene.bind("127.40.111.31:5999");
        passes(&moved, &first.by_caller("SUBSCRIBE", &moved), &pbx, scene.pbxs());
        passes(&pbx, &first.by_callee("NOTIFY", &pbx), &moved, scene.phones());
        passes(&pbx, &second.by_callee("NOTIFY", &pbx), &phone, scene.phones());
    });
}

#[test]
fn a_closed_flow_is_dead_until_it_speaks_again() {
    let scene = Scene::start(112, &one_pbx(112));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let address = phone.address;
    drop(phone);
    // The kernel answers for the closed port: ICMP port unreachable.
    let notify = dialog.by_callee("NOTIFY", &pbx);
    wait_for("the flow to be known as dead", Duration::from_secs(5), || {
        pbx.send(first_route(&notify), notify.clone().with("CSeq", "9 NOTIFY").text());
        let answer = pbx.poll(Duration::from_millis(100)).map(|(bytes, _)| bytes)?;
        answer.starts_with(b"SIP/2.0 503").then_some(())
    });
    while pbx.poll(Duration::from_millis(50)).is_some() {}
    pbx.send(first_route(&notify), notify.text());
    let answer = pbx.expect("SIP/2.0 503");
    let after: u32 = text::header(&answer, "Retry-After").parse().expect("seconds");
    assert!((1..=30).contains(&after), "what is left of the grace: {after}");
    let bye = dialog.by_callee("BYE", &pbx);
    pbx.send(first_route(&bye), bye.text());
    pbx.expect("SIP/2.0 481");
    pbx.send(scene.pbxs(), dialog.by_callee("ACK", &pbx).text());
    scene.quiet(&[&pbx]);

    let phone = scene.bind(address);
    passes(&phone, &dialog.by_caller("SUBSCRIBE", &phone), &pbx, scene.pbxs());
    goes_on(&scene, &dialog, &phone, &pbx);
}

/// SPEC 3.5: after the grace a NOTIFY is 481, so that the notifier forgets the phone.
#[test]
fn after_the_grace_a_notify_on_a_dead_flow_is_481() {
    let scene = Layout::new(113).more("[timers]\ngrace = \"1s\"\n").start(&one_pbx(113));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    drop(phone);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    let mut seen = Vec::new();
    wait_for("481", Duration::from_secs(8), || {
        pbx.send(first_route(&notify), notify.text());
        let (bytes, _) = pbx.poll(Duration::from_millis(100))?;
        let answer = String::from_utf8(bytes).expect("an answer of ours is text");
        let code = text::status(&answer).expect("a response");
        assert_eq!(text::headers(&answer, "Retry-After").len(), usize::from(code == 503), "{answer}");
        seen.push(code);
        (code == 481).then_some(())
    });
    assert!(seen.contains(&503), "first the grace: {seen:?}");
}

/// A listener that is gone: the flow is dead; grace counts from our start.
#[test]
fn a_flow_of_a_listener_that_is_gone_is_dead() {
    let (phone, pbx, dialog) = {
        let before = Scene::start(114, &one_pbx(114));
        let (phone, pbx) = (before.phone(), before.pbx(1));
        let dialog = Dialog::subscribe(&before, &phone, &pbx);
        (phone, pbx, dialog)
    };
    let mut layout = Layout::new(114);
    layout.phones = "renamed";
    let scene = layout.start(&one_pbx(114));
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    let answer = pbx.expect("SIP/2.0 503");
    let after: u32 = text::header(&answer, "Retry-After").parse().expect("seconds");
    assert!((1..=30).contains(&after), "{answer}");
    let info = dialog.by_callee("INFO", &pbx);
    pbx.send(first_route(&info), info.text());
    pbx.expect("SIP/2.0 481");
    // Toward the backend the token leads on, and the phone's refresh makes the new flow known.
    passes(&phone, &dialog.by_caller("SUBSCRIBE", &phone), &pbx, scene.pbxs());
    scene.quiet(&[&phone, &pbx]);
}

/// SPEC 5.2: by the registered Contact; by the user where the R-URI names us; newest first; ended by 0.
#[test]
fn route_flow_finds_a_registered_phone() {
    in_each_column(|| {
        let scene = Scene::start(115, &one_pbx(115));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        scene.register(&phone, &pbx, "alice", "<sip:line7@10.1.2.3:5062;transport=udp>");
        let reaches = |uri: &str, reached: Option<&Party>| {
            for method in ["INVITE", "NOTIFY", "MESSAGE", "OPTIONS"] {
                let request = Request::new(method, uri, &pbx);
                pbx.send(scene.pbxs(), request.text());
                match reached {
                    Some(phone) => {
                        let got = phone.expect(method);
                        assert_eq!(text::request_uri(&got), uri, "the R-URI stays");
                        assert_eq!(via_address(&got), scene.phones());
                    }
                    None => drop(pbx.expect("SIP/2.0 480")),
                }
            }
        };
        // RFC 3261 19.1.4: parameters' order, escapes, case of the host.
        reaches("sip:line7@10.1.2.3:5062;transport=udp", Some(&phone));
        reaches("sip:%6cine7@10.1.2.3:5062;transport=UDP", Some(&phone));
        reaches("sip:line7@127.40.115.2:5060", Some(&phone));
        reaches("sip:alice@127.40.115.1", Some(&phone));
        reaches("sip:LINE7@10.1.2.3:5062;transport=udp", None);
        reaches("sip:line7@10.1.2.3", None);
        reaches("sip:line7@10.1.2.4:5062;transport=udp", None);
        reaches("sip:alice@example.org", None);

        let newer = scene.party(32);
        scene.register(&newer, &pbx, "alice", "<sip:line8@10.1.2.4:5062>");
        reaches("sip:alice@127.40.115.2:5060", Some(&newer));
        reaches("sip:line7@127.40.115.2:5060", Some(&phone));

        // The same phone from another port: its Contact's newest flow.
        let moved = scene.bind("127.40.115.32:5998");
        scene.register(&moved, &pbx, "alice", "<sip:line8@10.1.2.4:5062>");
        reaches("sip:line8@10.1.2.4:5062", Some(&moved));

        let ended = Request::new("REGISTER", "sip:example.com", &moved)
            .with("To", "<sip:alice@example.com>")
            .with("Contact", "*")
            .with("Expires", "0");
        moved.send(scene.phones(), ended.text());
        let got = pbx.expect("REGISTER ");
        pbx.answer(scene.pbxs(), &got, "200 OK", &unique(), "");
        moved.expect("SIP/2.0 200");
        reaches("sip:line8@10.1.2.4:5062", None);
        reaches("sip:line7@10.1.2.3:5062;transport=udp", None);
        scene.quiet(&[&phone, &newer, &moved]);
    });
}

/// No flow: 480; a NOTIFY with a To tag 481, for there is nobody left to tell.
#[test]
fn route_flow_without_a_flow() {
    in_each_column(|| {
        let scene = Scene::start(116, &one_pbx(116));
        let pbx = scene.pbx(1);
        let request = |method: &str| Request::new(method, "sip:nobody@10.1.2.3", &pbx);
        pbx.send(scene.pbxs(), request("NOTIFY").text());
        pbx.expect("SIP/2.0 480");
        pbx.send(scene.pbxs(), request("NOTIFY").with("To", "<sip:nobody@10.1.2.3>;tag=x").text());
        let answer = pbx.receive("481, or 503 in grace");
        match text::status(&answer) {
            Some(481) => {}
            Some(503) => drop(text::header(&answer, "Retry-After")),
            _ => panic!("{answer}"),
        }
        pbx.send(scene.pbxs(), request("ACK").text());
        scene.quiet(&[&pbx]);
    });
}

/// A registration's flow is of who registered; the REGISTER itself stays untouched without `path`.
#[test]
fn a_registration_without_path_is_found_by_its_flow() {
    in_each_column(|| {
        let scene = Scene::start(117, &one_pbx(117).replace("path = true", ""));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let (got, _) = scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.9>");
        assert!(
            text::headers(&got, "Path").is_empty() && text::headers(&got, "Supported").is_empty(),
            "{got}"
        );
        assert!(text::headers(&got, "Record-Route").is_empty(), "{got}");
        let request = Request::new("INVITE", "sip:alice@10.0.0.9", &pbx);
        let dialog = Dialog::open(&pbx, scene.pbxs(), &phone, &request);
        passes(&pbx, &dialog.by_caller("ACK", &pbx), &phone, scene.phones());
        passes(&phone, &dialog.by_callee("BYE", &phone), &pbx, scene.pbxs());
    });
}

/// SPEC 5.2: the backend that the host names, else an IP literal, never ourselves.
#[test]
fn route_request_uri() {
    let table =
        pool("one", 118, &[1, 2]) + &rule("by uri", "source = \"backends\"", "route = \"request-uri\"");
    let scene = Scene::start(118, &table);
    let (pbx1, pbx2, elsewhere) = (scene.pbx(1), scene.pbx(2), scene.bind("127.40.118.77:5077"));
    let send = |uri: &str| pbx1.send(scene.pbxs(), Request::new("MESSAGE", uri, &pbx1).text());
    send("sip:x@127.40.118.12");
    let got = pbx2.expect("MESSAGE ");
    assert_eq!(via_address(&got), scene.pbxs());
    send("sip:127.40.118.12:9999");
    pbx2.expect("MESSAGE ");
    send("sip:x@127.40.118.77:5077");
    assert_eq!(text::request_uri(&elsewhere.expect("MESSAGE ")), "sip:x@127.40.118.77:5077");
    for (uri, codes) in [
        ("sip:x@pbx.example.org", [404, 404]),
        ("sip:x@127.40.118.2:5060", [404, 482]),
        ("sip:x@127.40.118.1:5060", [404, 482]),
        // SPEC 1.5: nor the sender.
        ("sip:x@127.40.118.11", [482, 404]),
    ] {
        send(uri);
        let answer = pbx1.receive("an answer");
        assert!(text::status(&answer).is_some_and(|code| codes.contains(&code)), "{uri}: {answer}");
    }
    scene.quiet(&[&pbx1, &pbx2, &elsewhere]);
}

/// SPEC 1.1, 3.5: whatever NAT did to Contact, the flow is where the packets came from.
#[test]
fn a_contact_behind_nat_does_not_matter() {
    let scene = Scene::start(119, &one_pbx(119));
    let (phone, pbx) = (scene.bind("127.40.119.31:31999"), scene.pbx(1));
    let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone)
        .with("Via", format!("SIP/2.0/UDP 192.168.1.5:5060;rport;branch=z9hG4bK{}", unique()))
        .with("Contact", "<sip:alice@192.168.1.5:5060>");
    let dialog = Dialog::open(&phone, scene.phones(), &pbx, &request);
    assert_eq!(uri_address(&dialog.caller_uri).port(), 5060);
    goes_on(&scene, &dialog, &phone, &pbx);
}
