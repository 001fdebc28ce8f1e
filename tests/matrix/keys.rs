//! Keys that rotate, routers that share them (SPEC 3.1).

use crate::{
    goes_on, passes,
    rig::{
        Party,
        scene::{Dialog, KEY, Layout, Scene, first_route, one_pbx, user},
        text,
    },
};

const NEWER: &str = "{ id = 2, key = \"a0a1a2a3a4a5a6a7a8a9aaabacadaeaf\" }";

fn router(net: u8, keys: &str, router_id: u8) -> Scene {
    let mut layout = Layout::new(net);
    layout.keys = keys.into();
    layout.router_id = router_id;
    layout.start(&one_pbx(net))
}

/// A dialog that was opened while the router ran with these keys.
fn opened(net: u8, keys: &str, router_id: u8) -> (Party, Party, Dialog) {
    let scene = router(net, keys, router_id);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    (phone, pbx, dialog)
}

/// The key id in a token: the low four bits of its first byte.
fn key_id(token: &str) -> u8 {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = |at: usize| {
        let place = alphabet.iter().position(|b| *b == token.as_bytes()[at]);
        u8::try_from(place.expect("base64url")).expect("below 64")
    };
    ((bits(0) << 2) | (bits(1) >> 4)) & 15
}

#[test]
fn a_dialog_lives_through_a_restart() {
    let (phone, pbx, dialog) = opened(120, KEY, 0);
    let scene = router(120, KEY, 0);
    goes_on(&scene, &dialog, &phone, &pbx);
}

/// The old key verifies, the new one signs: a route set never changes in a dialog, so old keys live long.
#[test]
fn a_rotated_key_still_verifies_and_the_newest_signs() {
    let (phone, pbx, dialog) = opened(121, KEY, 0);
    assert_eq!(key_id(user(&dialog.caller_routes[0])), 1);
    let scene = router(121, &format!("{NEWER}, {KEY}"), 0);
    goes_on(&scene, &dialog, &phone, &pbx);
    let got = passes(&phone, &dialog.by_caller("SUBSCRIBE", &phone), &pbx, scene.pbxs());
    assert_eq!(key_id(user(text::header(&got, "Record-Route"))), 2);
    let used = |key: &str| scene.router.metrics().sum("tidings_token_key_used_total", &[("key", key)]);
    assert!(used("1") >= 7.0, "the old key is still in use: {}", used("1"));
    assert!(used("2") >= 1.0, "responses came by the new one: {}", used("2"));
}

#[test]
fn a_removed_key_is_a_dead_route_on_both_sides() {
    let (phone, pbx, dialog) = opened(122, KEY, 0);
    let scene = router(122, NEWER, 0);
    dead(&scene, &phone, &pbx, &dialog);
    // Peers heal: the phone subscribes afresh.
    let fresh = Dialog::subscribe(&scene, &phone, &pbx);
    goes_on(&scene, &fresh, &phone, &pbx);
}

/// Until routers know each other, what another one signed is a dead route, shared keys or not.
#[test]
fn a_token_of_another_router_is_a_dead_route() {
    let (phone, pbx, dialog) = opened(123, KEY, 7);
    let scene = router(123, KEY, 3);
    dead(&scene, &phone, &pbx, &dialog);
}

/// A response to what left before the restart still finds its way: all is in the Via.
#[test]
fn a_response_finds_its_way_after_a_restart() {
    let (phone, pbx, got, notify) = {
        let scene = router(124, KEY, 0);
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let dialog = Dialog::subscribe(&scene, &phone, &pbx);
        let notify = passes(&pbx, &dialog.by_callee("NOTIFY", &pbx), &phone, scene.phones());
        let request = crate::rig::message::Request::new("MESSAGE", "sip:1000@example.com", &phone);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect("MESSAGE ");
        (phone, pbx, got, notify)
    };
    let scene = router(124, &format!("{NEWER}, {KEY}"), 0);
    pbx.answer(scene.pbxs(), &got, "200 OK", "t", "");
    phone.expect("SIP/2.0 200");
    // Only who was asked may answer, by the key that signed.
    scene.party(66).answer(scene.phones(), &notify, "481 Gone", "", "");
    scene.quiet(&[&pbx]);
    phone.answer(scene.phones(), &notify, "200 OK", "", "");
    pbx.expect("SIP/2.0 200");
}

#[track_caller]
fn dead(scene: &Scene, phone: &Party, pbx: &Party, dialog: &Dialog) {
    for method in ["SUBSCRIBE", "INFO", "BYE"] {
        let request = dialog.by_caller(method, phone);
        phone.send(first_route(&request), request.text());
        phone.expect("SIP/2.0 481");
    }
    for method in ["NOTIFY", "INFO", "BYE"] {
        let request = dialog.by_callee(method, pbx);
        pbx.send(first_route(&request), request.text());
        let answer = pbx.expect("SIP/2.0 481");
        assert!(text::headers(&answer, "Retry-After").is_empty(), "grace is over at once:\n{answer}");
    }
    let ack = dialog.by_callee("ACK", pbx);
    pbx.send(first_route(&ack), ack.text());
    scene.quiet(&[phone, pbx]);
}
