//! What one phone may do to another: nothing (SPEC 1.3, 3.6, 5.2, 7.2).

use crate::rig::{
    Party,
    message::{Request, unique},
    scene::{Dialog, Scene, branch, first_route, one_pbx},
    text,
};

fn two_phones(net: u8) -> (Scene, Party, Party, Party) {
    let scene = Scene::start(net, &one_pbx(net));
    let (victim, hostile, pbx) = (scene.phone(), scene.party(66), scene.pbx(1));
    (scene, victim, hostile, pbx)
}

/// RFC 3261 9.2: a PBX matches a CANCEL by branch and sent-by. The source is in the branch, so a copy of all that the
/// victim sent does not become its transaction.
#[test]
fn another_phones_cancel_does_not_take_the_invites_branch() {
    let (scene, victim, hostile, pbx) = two_phones(43);
    let invite = Request::new("INVITE", "sip:1000@example.com", &victim);
    victim.send(scene.phones(), invite.text());
    let got = pbx.expect("INVITE ");
    for method in ["CANCEL", "ACK"] {
        let mut copy = invite.clone().with("CSeq", format!("1 {method}"));
        copy.method = method.into();
        hostile.send(scene.phones(), copy.text());
        assert_ne!(branch(&pbx.expect(method)), branch(&got));
        let neighbour = Party::bind("127.40.43.31:5061");
        neighbour.send(scene.phones(), copy.text());
        assert_ne!(branch(&pbx.expect(method)), branch(&got), "behind one NAT: the port counts");
    }
    // The victim's own answer still comes to it.
    pbx.answer(scene.pbxs(), &got, "200 OK", "t", "");
    victim.expect("SIP/2.0 200");
    scene.quiet(&[&hostile]);
}

/// A phone that registers its own AOR with another's user in Contact does not draw that user's calls to itself.
#[test]
fn a_contact_with_another_users_name_does_not_take_its_calls() {
    let (scene, victim, hostile, pbx) = two_phones(44);
    scene.register(&victim, &pbx, "victim", "<sip:line1@127.40.44.31:5060>");
    scene.register(&hostile, &pbx, "hostile", "<sip:victim@127.40.44.66:5060>");
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:victim@127.40.44.2:5060", &pbx).text());
    victim.expect("INVITE ");
    scene.quiet(&[&hostile]);
    // Its own Contact, as registered, leads to it as before.
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:victim@127.40.44.66:5060", &pbx).text());
    hostile.expect("INVITE ");
}

/// An ended or expired registration frees the Contact; a live one cannot be ended by another AOR's `*` or 0.
#[test]
fn a_registration_is_not_ended_by_another_user() {
    let (scene, victim, hostile, pbx) = two_phones(45);
    let contact = "<sip:victim@127.40.45.31:5060>";
    scene.register(&victim, &pbx, "victim", contact);
    for (value, expires) in [("*", "0"), (contact, "0")] {
        let request = Request::new("REGISTER", "sip:example.com", &hostile)
            .with("To", "<sip:hostile@example.com>")
            .with("Contact", value)
            .with("Expires", expires);
        hostile.send(scene.phones(), request.text());
        let got = pbx.expect("REGISTER ");
        pbx.answer(scene.pbxs(), &got, "200 OK", &unique(), "");
        hostile.expect("SIP/2.0 200");
        pbx.send(scene.pbxs(), Request::new("INVITE", "sip:victim@127.40.45.31:5060", &pbx).text());
        victim.expect("INVITE ");
    }
    scene.quiet(&[&hostile]);
}

/// One that is refused by the PBX does not move the other's flow, whatever it knows of the dialog, and neither does a
/// provisional response.
#[test]
fn a_flow_moves_by_a_2xx_of_the_backend_alone() {
    let (scene, victim, hostile, pbx) = two_phones(46);
    let dialog = Dialog::subscribe(&scene, &victim, &pbx);
    for status in [
        "100 Trying",
        "183 Progress",
        "302 Moved",
        "401 Unauthorized",
        "481 Gone",
        "500 Lower CSeq",
        "603 No",
    ] {
        let request = dialog.by_caller("SUBSCRIBE", &hostile);
        hostile.send(first_route(&request), request.text());
        let got = pbx.expect("SUBSCRIBE ");
        pbx.answer(scene.pbxs(), &got, status, "", "");
        hostile.expect(&format!("SIP/2.0 {status}"));
        // A 2xx that the hostile phone sends itself, with the Via of a request that it has seen.
        hostile.send(scene.phones(), text::answer(&got, "200 OK", "", "Expires: 600\r\n"));
        scene.settle();
    }
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    victim.expect("NOTIFY ");
    scene.quiet(&[&hostile]);
}

/// A phone's ICMP errors close its own flow only; a request of another phone from the same address is another flow.
#[test]
fn one_phones_closed_port_closes_no_other_flow() {
    let (scene, victim, _hostile, pbx) = two_phones(47);
    let beside = Party::bind("127.40.47.31:5061");
    let (kept, closed) = (Dialog::subscribe(&scene, &victim, &pbx), Dialog::subscribe(&scene, &beside, &pbx));
    drop(beside);
    for n in 2..6 {
        let notify = closed.by_callee("NOTIFY", &pbx).with("CSeq", format!("{n} NOTIFY"));
        pbx.send(first_route(&notify), notify.text());
        let notify = kept.by_callee("NOTIFY", &pbx).with("CSeq", format!("{n} NOTIFY"));
        pbx.send(first_route(&notify), notify.text());
        victim.expect("NOTIFY ");
    }
}

/// A 2xx confirms its own REGISTER only: one branch, chosen by its sender, may carry two.
#[test]
fn a_second_register_under_one_branch_takes_no_other_users_place() {
    let (scene, victim, hostile, pbx) = two_phones(27);
    let contact = "<sip:victim@127.40.27.31:5060>";
    scene.register(&victim, &pbx, "victim", contact);
    let own = Request::new("REGISTER", "sip:example.com", &hostile)
        .with("To", "<sip:hostile@example.com>")
        .with("Contact", contact)
        .with("Expires", "600");
    for contacts in [contact, "*"] {
        hostile.send(scene.phones(), own.text());
        let got = pbx.expect("REGISTER ");
        let other = own.clone().with("To", "<sip:victim@example.com>").with("Contact", contacts);
        hostile.send(scene.phones(), other.text());
        pbx.expect("REGISTER ");
        pbx.answer(scene.pbxs(), &got, "200 OK", &unique(), &format!("Contact: {contact};expires=600\r\n"));
        hostile.expect("SIP/2.0 200");
        for uri in ["sip:victim@127.40.27.2:5060", "sip:victim@127.40.27.31:5060"] {
            pbx.send(scene.pbxs(), Request::new("MESSAGE", uri, &pbx).text());
            victim.expect("MESSAGE ");
        }
    }
    scene.quiet(&[&hostile]);
}

/// SPEC 3.5: from a client only ever toward the backend side, however often its token stands there.
#[test]
fn a_token_twice_leads_to_no_other_phone() {
    let (scene, victim, hostile, pbx) = two_phones(28);
    let dialog = Dialog::subscribe(&scene, &victim, &pbx);
    let own = Request::new("SUBSCRIBE", "sip:1000@example.com", &hostile).with("Call-ID", &dialog.call_id);
    let own = Dialog::open(&hostile, scene.phones(), &pbx, &own);
    let (theirs, his) = (&dialog.caller_routes[0], &own.caller_routes[0]);
    for routes in
        [vec![theirs, theirs], vec![theirs, theirs, theirs], vec![his, theirs], vec![his, his, theirs]]
    {
        for method in ["NOTIFY", "BYE", "INVITE"] {
            let request =
                dialog.inside(method, &hostile, &dialog.caller_uri, (&dialog.callee_tag, &dialog.caller_tag));
            hostile.send(scene.phones(), request.routes(routes.iter().copied()).text());
            hostile.expect("SIP/2.0 403");
        }
    }
    // Once it leads to the PBX, who knows the victim's dialogs.
    let request =
        dialog.inside("NOTIFY", &hostile, &dialog.caller_uri, (&dialog.callee_tag, &dialog.caller_tag));
    hostile.send(scene.phones(), request.routes([theirs]).text());
    pbx.expect("NOTIFY ");
    scene.quiet(&[&victim, &pbx]);
}

/// Two phones whose PBX sent the call back through us and does not record-route use both tokens; nobody else does.
#[test]
fn two_tokens_are_the_callers_and_the_callees() {
    let (scene, caller, hostile, pbx) = two_phones(29);
    let callee = scene.party(32);
    scene.register(&callee, &pbx, "callee", "<sip:callee@127.40.29.32:5060>");
    caller.send(scene.phones(), Request::new("INVITE", "sip:callee@example.com", &caller).text());
    let first = pbx.expect("INVITE ");
    let line = "INVITE sip:callee@example.com SIP/2.0\r\n";
    let own = format!("Via: SIP/2.0/UDP {};branch=z9hG4bK{}\r\n", pbx.address, unique());
    let onward = format!("INVITE sip:callee@127.40.29.32:5060 SIP/2.0\r\n{own}");
    pbx.send(scene.pbxs(), first.replacen(line, &onward, 1));
    let second = callee.expect("INVITE ");
    let contact = format!("Contact: <sip:callee@{}>\r\n", callee.address);
    callee.answer(scene.phones(), &second, "200 OK", &unique(), &contact);
    let back = pbx.expect("SIP/2.0 200");
    let top = format!("Via: {}\r\n", text::header(&back, "Via"));
    pbx.send(scene.pbxs(), back.replacen(&top, "", 1));
    let dialog = Dialog::of(second, caller.expect("SIP/2.0 200"));
    assert_eq!((dialog.caller_routes.len(), dialog.callee_routes.len()), (2, 2));

    for (request, from, to) in [
        (dialog.by_caller("ACK", &caller), &caller, &callee),
        (dialog.by_caller("INFO", &caller), &caller, &callee),
        (dialog.by_callee("INFO", &callee), &callee, &caller),
    ] {
        from.send(first_route(&request), request.text());
        to.expect(&format!("{} ", request.method));
    }
    for request in [dialog.by_caller("BYE", &hostile), dialog.by_callee("BYE", &hostile)] {
        hostile.send(first_route(&request), request.text());
        hostile.expect("SIP/2.0 403");
    }
    scene.quiet(&[&caller, &callee, &pbx]);
}

/// SPEC 7.2: what one has seen of a phone's dialog moves no other dialog of that phone, and no call to it.
#[test]
fn a_token_moves_its_own_dialog_only() {
    let (scene, victim, hostile, pbx) = two_phones(30);
    let contact = "<sip:victim@127.40.30.31:5060>";
    scene.register(&victim, &pbx, "victim", contact);
    let (seen, other) = (Dialog::subscribe(&scene, &victim, &pbx), Dialog::subscribe(&scene, &victim, &pbx));
    let froms = ["<sip:x@example.com>".to_owned(), format!("<sip:x@example.com>;tag={}", other.caller_tag)];
    for from in froms {
        let request = seen.by_caller("OPTIONS", &hostile).with("From", from);
        hostile.send(first_route(&request), request.text());
        let got = pbx.expect("OPTIONS ");
        pbx.answer(scene.pbxs(), &got, "200 OK", "", "Expires: 4294967295\r\n");
        hostile.expect("SIP/2.0 200");
    }
    assert_eq!(scene.router.metrics().sum("tidings_flows_moved_total", &[]), 0.0);
    pbx.send(scene.pbxs(), Request::new("INVITE", "sip:victim@127.40.30.2:5060", &pbx).text());
    victim.expect("INVITE ");
    for dialog in [&seen, &other] {
        let notify = dialog.by_callee("NOTIFY", &pbx);
        pbx.send(first_route(&notify), notify.text());
        victim.expect("NOTIFY ");
    }
    scene.quiet(&[&hostile]);
}
