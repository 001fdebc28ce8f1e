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
