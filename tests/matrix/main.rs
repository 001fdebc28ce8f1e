//! The matrix of SPEC 3.8 for UDP, TCP and TLS on both sides and WebSockets of phones, raw bytes in and out, and what must
//! hold in each cell of it.
//!
//! Every message of ours must name a listener of its receiver's side in Via, Record-Route and Path; the scenes have one
//! listener for each side, on addresses of their own, so that each test sees it. What each row means stands in
//! `src/wire/tokens.md`.

#[path = "../rig/mod.rs"]
mod rig;

mod branches;
mod dialogs;
mod families;
mod flows;
mod keys;
mod paths;
mod record_route;
mod strict;

use rig::{
    Party,
    message::Request,
    scene::{Scene, first_route, in_each_column, via_address},
    text,
};

/// Sends a request by its first Route and expects it at `to` by the listener `by`; the answer must come back.
#[track_caller]
fn passes(from: &Party, request: &Request, to: &Party, by: std::net::SocketAddr) -> String {
    from.send(first_route(request), request.text());
    let got = to.expect(&format!("{} ", request.method));
    assert_eq!(via_address(&got), by, "our Via names another listener:\n{got}");
    assert_eq!(text::headers(&got, "Route").len(), 0, "a Route is left:\n{got}");
    if request.method != "ACK" {
        to.answer(by, &got, "200 OK", "", "Expires: 600\r\n");
        from.expect("SIP/2.0 200");
    }
    got
}

/// As `passes`, for both directions of a phone's dialog with a PBX, again and again: each time by the newest route set.
#[track_caller]
fn goes_on(scene: &Scene, dialog: &rig::scene::Dialog, phone: &Party, pbx: &Party) {
    for cseq in 2..5 {
        let number = |request: Request| {
            let method = request.method.clone();
            request.with("CSeq", format!("{cseq} {method}"))
        };
        passes(pbx, &number(dialog.by_callee("NOTIFY", pbx)), phone, scene.phones());
        passes(phone, &number(dialog.by_caller("SUBSCRIBE", phone)), pbx, scene.pbxs());
    }
}
