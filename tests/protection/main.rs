//! Who may go on (SPEC 10): limits of sources, bans, prefixes that are denied or allowed, and what a core that is behind
//! sheds. Raw messages and the real binary; networks 127.45.157 to 127.45.159 and 127.45.231 to 127.45.249.

#[path = "../rig/mod.rs"]
mod rig;

mod attacks;
mod bans;
mod crowd;
mod limits;
mod overload;

use std::time::Duration;

use rig::{
    Party,
    message::Request,
    scene::{Layout, Scene},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A scene with phones over this transport, PBXs over UDP, and these sections.
fn layout(net: u8, phones: &'static str, more: &str) -> Layout {
    let mut layout = Layout::new(net).more(more);
    layout.column = (phones, "udp");
    layout
}

/// What an honest phone does while something else goes on: a request to the PBX, answered.
#[track_caller]
fn honest(phone: &Party, scene: &Scene, pbx: &Party) {
    phone.send(scene.phones(), message(phone).text());
    let got = pbx.expect("MESSAGE ");
    pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
    phone.expect("SIP/2.0 200");
}

fn message(from: &Party) -> Request {
    Request::new("MESSAGE", "sip:1@example.com", from)
}

/// A value of `/metrics`.
#[track_caller]
fn metric(scene: &Scene, name: &str, labels: &[(&str, &str)]) -> f64 {
    scene.router.metrics().sum(name, labels)
}
