//! SPEC 6.4: `publish_expires_margin`. Asterisk refreshes a publication in the very moment in which it expires.

use std::time::{Duration, Instant};

use super::Publisher;
use crate::rig::{
    compositor::{Compositor, Kind},
    scene::{Scene, pool, rule, via_address},
    text,
};

fn table(net: u8, margin: &str) -> String {
    pool("asterisk", net, &[1]).replace("probe =", &format!("{margin}\nprobe ="))
        + &rule("all", "", "route = \"asterisk\"")
}

/// Publishes for two seconds, and refreshes as Asterisk does: that long after the last answer, whatever it granted.
fn refreshed_at_expiry(net: u8, margin: &str) -> Vec<u16> {
    let scene = Scene::start(net, &table(net, margin));
    let asterisk = Compositor::start(scene.at(11), Kind::Asterisk(0));
    let publisher = Publisher { package: "asterisk-devicestate", ..Publisher::phone(&scene, 31, "devices") };
    let first = publisher.publish(None, Some(2), "{\"device\":\"PJSIP/1000\"}");
    assert_eq!((first.code, first.expires), (200, Some(2)), "as long as was asked for");
    let mut answered = Instant::now();
    let mut tag = first.tag.expect("a tag");
    for _ in 0..2 {
        std::thread::sleep((answered + Duration::from_secs(2)).saturating_duration_since(Instant::now()));
        let answer = publisher.publish(Some(&tag), Some(2), "");
        answered = Instant::now();
        tag = answer.tag.unwrap_or(tag);
    }
    asterisk.taken().iter().map(|taken| taken.code).collect()
}

#[test]
fn an_asterisk_that_refreshes_at_expiry_succeeds_by_default() {
    assert_eq!(refreshed_at_expiry(184, ""), [200, 200, 200]);
}

/// What the margin is for: without it the publication is over when its refresh comes.
#[test]
fn without_the_margin_every_refresh_comes_too_late() {
    assert_eq!(refreshed_at_expiry(185, "publish_expires_margin = 0"), [200, 412, 412]);
}

#[test]
fn expires_is_raised_on_the_way_in_and_lowered_on_the_way_back() {
    let scene = Scene::start(186, &table(186, "publish_expires_margin = \"1m\""));
    let (phone, pbx) = (Publisher::phone(&scene, 31, "1000"), scene.pbx(1));
    // Asked for, as the PBX sees it, what it grants, what the phone is told.
    let cases = [
        (Some("600"), Some("660"), Some("660"), Some("600")),
        (Some("600"), Some("660"), Some("300"), Some("240")),
        (Some("1"), Some("61"), Some("60"), Some("1")),
        (Some("1"), Some("61"), Some("1"), Some("1")),
        (Some("600"), Some("660"), Some("0"), Some("0")),
        (Some("600"), Some("660"), None, None),
        (Some("0"), Some("0"), Some("0"), Some("0")),
        (None, None, Some("3600"), Some("3600")),
        (Some("4294967295"), Some("4294967295"), Some("3600"), Some("3540")),
        (Some("4294967296"), Some("4294967296"), Some("3600"), Some("3600")),
        (Some("+5"), Some("+5"), Some("5"), Some("5")),
        (Some("soon"), Some("soon"), Some("3600"), Some("3600")),
    ];
    for (asked, seen, granted, told) in cases {
        let request = phone.request(None, None, "open");
        let request = match asked {
            Some(value) => request.with("Expires", value),
            None => request,
        };
        phone.party.send(scene.phones(), request.text());
        let got = pbx.expect("PUBLISH ");
        assert_eq!(text::headers(&got, "Expires").first().copied(), seen, "asked for {asked:?}");
        let more = granted.map_or(String::new(), |value| format!("Expires: {value}\r\n"));
        pbx.answer(via_address(&got), &got, "200 OK", "t", &format!("SIP-ETag: 7\r\n{more}"));
        let answer = phone.party.expect("SIP/2.0 200");
        assert_eq!(text::headers(&answer, "Expires").first().copied(), told, "asked for {asked:?}");
    }
}

/// A pool without a number: 30 s for Asterisk's own packages, nothing for others.
#[test]
fn the_default_margin_is_for_asterisks_packages_only() {
    let scene = Scene::start(187, &table(187, ""));
    let pbx = Compositor::start(scene.at(11), Kind::Asterisk(0));
    for (package, seen) in
        [("presence", 600), ("asterisk-mwi", 630), ("asterisk-devicestate;x=y", 630), ("asteris", 600)]
    {
        let publisher = Publisher { package, ..Publisher::phone(&scene, 31, "1000") };
        assert_eq!(publisher.publish(None, Some(600), "x").expires, Some(600));
        assert_eq!(pbx.last().expires, Some(seen), "{package}");
    }
}
