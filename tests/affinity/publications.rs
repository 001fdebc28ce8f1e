//! SPEC 6.1 to 6.3, 6.5: where a refresh goes, and what is answered here instead.

use std::{collections::BTreeMap, time::Duration};

use super::Publisher;
use crate::rig::{
    Party,
    compositor::{Compositor, Kind},
    message::Request,
    scene::{Layout, Scene, pool, rule, via_address},
    text, wait_for,
};

const ASTERISK: Kind = Kind::Asterisk(0);
const OPEN: &str = "match = {}\nroute = \"presence\"\n";

/// Everything to a pool of these PBXs of the network.
fn table(net: u8, pbxs: &[u8]) -> String {
    format!("{}[[rule]]\nname = \"all\"\n{OPEN}", pool("presence", net, pbxs))
}

fn pbxs(scene: &Scene, kind: Kind, count: u8) -> Vec<Compositor> {
    (1..=count).map(|n| Compositor::start(scene.at(10 + n), kind)).collect()
}

/// Which of the PBXs took this publication's last PUBLISH.
fn holder(pbxs: &[Compositor], uri: &str) -> usize {
    let took = |pbx: &Compositor| pbx.taken().iter().any(|taken| taken.uri == uri);
    pbxs.iter().position(took).expect("one of them took it")
}

#[track_caller]
fn put(scene: &Scene, table: &str) {
    let (status, text) = scene.router.put_table(table);
    assert_eq!(status, 200, "{text}");
}

/// Asterisks count their tags from 0 each: without the router's token a refresh on another one would take over whatever
/// has that number there, and be told 200.
#[test]
fn a_publication_stays_with_its_asterisk_whatever_the_table_says_now() {
    let scene = Scene::start(170, &table(170, &[1, 2, 3]));
    let pbxs = pbxs(&scene, ASTERISK, 3);
    let phone =
        |n: u32| Publisher { uri: format!("sip:10{n:02}@example.com"), ..Publisher::phone(&scene, 31, "") };
    let mut tags = BTreeMap::new();
    for n in 0..24 {
        let phone = phone(n);
        let tag = phone.begin();
        let home = holder(&pbxs, &phone.uri);
        let original = pbxs[home].last().tag;
        assert_eq!(tag.strip_suffix(&original).map(str::len), Some(24), "{tag} around {original}");
        tags.insert(n, (tag, original, home));
    }
    assert!((0..3).all(|home| tags.values().any(|(_, _, h)| *h == home)), "all three are in use: {tags:?}");

    let weights = table(170, &[1, 2, 3]).replacen("transport=udp\"", "transport=udp\"\nweight = 1000", 1);
    let moved = pool("other", 170, &[3]) + &table(170, &[1, 2]);
    let drained = table(170, &[3, 2, 1]).replace("transport=udp\"", "transport=udp\"\nstate = \"drain\"");
    for (step, table) in [weights, moved, drained].iter().enumerate() {
        put(&scene, table);
        for n in 0..24 {
            let (tag, original, home) = tags.remove(&n).expect("published above");
            let answer = if n % 3 == 1 {
                phone(n).publish(Some(&tag), Some(600), "busy")
            } else {
                phone(n).refresh(&tag)
            };
            assert_eq!(answer.code, 200, "step {step}, {n}: {answer:?}");
            let taken = pbxs[home].last();
            assert_eq!(taken.if_match.as_deref(), Some(&*original), "digit for digit");
            assert_eq!(taken.uri, phone(n).uri);
            tags.insert(n, (answer.tag.expect("a new tag"), taken.tag, home));
        }
    }
    for (n, (tag, ..)) in &tags {
        assert_eq!(phone(*n).publish(Some(tag), Some(0), "").code, 200, "removed");
    }
    assert!(pbxs.iter().flat_map(Compositor::taken).all(|taken| taken.code == 200));
    assert_eq!(scene.refused("etag_gone") + scene.refused("etag_down"), 0.0);
    assert_eq!(scene.router.metrics().sum("tidings_etags_wrapped_total", &[]), 120.0);
}

#[test]
fn a_tag_of_a_backend_that_is_off_or_gone_is_412_and_the_publisher_begins_afresh_elsewhere() {
    let scene = Scene::start(171, &table(171, &[1, 2]));
    let pbxs = pbxs(&scene, ASTERISK, 2);
    let phone = Publisher::phone(&scene, 31, "1000");
    let tag = phone.begin();
    let home = holder(&pbxs, &phone.uri);
    let (line, other) = (format!("{}:5060;transport=udp\"", scene.at(11 + home as u8).ip()), 1 - home);
    put(&scene, &table(171, &[1, 2]).replace(&line, &format!("{line}\nstate = \"off\"")));
    assert_eq!(phone.refresh(&tag).code, 412);
    assert_eq!(scene.refused("etag_down"), 1.0);
    let again = phone.begin();
    assert_eq!(pbxs[other].last().uri, phone.uri);
    put(&scene, &table(171, &[1 + home as u8]));
    assert_eq!(phone.refresh(&again).code, 412);
    assert_eq!(scene.refused("etag_gone"), 1.0);
    // The one that is back, by its name.
    assert_eq!(phone.refresh(&tag).code, 200);
    assert_eq!(pbxs[home].count(), 2);
}

#[test]
fn a_backend_that_restarted_has_forgotten_and_asterisk_and_freeswitch_would_not_say_so() {
    for (net, kind) in [(172, ASTERISK), (173, Kind::FreeSwitch)] {
        let scene = Scene::start(net, &table(net, &[1]));
        let first = Compositor::start(scene.at(11), kind);
        let (phone, other) = (Publisher::phone(&scene, 31, "1000"), Publisher::phone(&scene, 32, "1001"));
        let tag = phone.begin();
        assert_eq!(phone.refresh(&tag).code, 200);
        let tag = phone.begin();
        drop(first);
        // Nobody listens: ICMP says so. The publisher hears nothing, and goes on retransmitting.
        let lost = other.request(None, Some(600), "open");
        other.party.send(scene.phones(), lost.text());
        scene.router.wait_metrics("the ICMP error", Duration::from_secs(5), |m| {
            (m.sum("tidings_undeliverable_total", &[]) > 0.0).then_some(())
        });
        let second = Compositor::start(scene.at(11), kind);
        assert_eq!(phone.refresh(&tag).code, 412, "{kind:?}");
        assert_eq!(second.count(), 0, "it was not asked");
        assert_eq!(scene.refused("etag_restarted"), 1.0);
        other.party.send(scene.phones(), lost.text());
        let tag = other.answer().tag.expect("the retransmission came through");
        assert_eq!(other.refresh(&tag).code, 200, "issued after the restart");
        let fresh = phone.begin();
        assert_eq!(phone.refresh(&fresh).code, 200);
    }
}

/// Without an ICMP error and without a probe: the counter itself tells.
#[test]
fn a_counter_that_begins_anew_is_a_restart() {
    let scene = Scene::start(174, &table(174, &[1]));
    let first = Compositor::start(scene.at(11), Kind::Asterisk(7_000_000));
    let (phone, other) = (Publisher::phone(&scene, 31, "1000"), Publisher::phone(&scene, 32, "1001"));
    let tag = phone.begin();
    drop(first);
    let _second = Compositor::start(scene.at(11), ASTERISK);
    let theirs = other.begin();
    assert!(theirs.ends_with('0'));
    assert_eq!(phone.refresh(&tag).code, 412);
    assert_eq!(other.refresh(&theirs).code, 200, "given after the restart");
    let metrics = scene.router.metrics();
    assert_eq!(metrics.sum("tidings_backend_restarts_by_tag_total", &[]), 1.0);
    assert_eq!(scene.refused("etag_restarted"), 1.0);
}

#[test]
fn a_foreign_tag_is_412_where_there_are_several_backends_unless_the_pool_lets_it_pass() {
    let scene = Scene::start(175, &table(175, &[1, 2]));
    let pbxs = pbxs(&scene, ASTERISK, 2);
    let phone = Publisher::phone(&scene, 31, "1000");
    for tag in ["0", "a.1700000000.12.3.0", "c0ffee00-c0ff-4e00-8000-c0ffee00c0ff"] {
        assert_eq!(phone.refresh(tag).code, 412, "{tag}");
    }
    assert_eq!((scene.refused("etag_foreign"), pbxs[0].count() + pbxs[1].count()), (3.0, 0));
    put(&scene, &table(175, &[1, 2]).replace("probe =", "foreign_etag = \"pass\"\nprobe ="));
    assert_eq!(phone.refresh("77").code, 412, "the backend's own");
    let asked: Vec<_> = pbxs.iter().flat_map(Compositor::taken).collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].if_match.as_deref(), Some("77"));
    put(&scene, &table(175, &[1]));
    phone.refresh("78");
    assert_eq!(pbxs[0].last().if_match.as_deref(), Some("78"), "one backend: whose else could it be");
}

/// SPEC 6.3: an Asterisk that is told 412 publishes the empty body of its refresh, is told 400, and so on.
#[test]
fn an_asterisk_is_spared_the_412_of_a_refresh_and_of_a_remove() {
    let scene = Scene::start(176, &table(176, &[1, 2]));
    let pbxs = pbxs(&scene, ASTERISK, 2);
    let publisher = Publisher { package: "asterisk-devicestate", ..Publisher::phone(&scene, 31, "devices") };
    let tag = publisher.begin();
    let taken = pbxs[0].count() + pbxs[1].count();
    put(&scene, &table(176, &[1, 2]).replace("transport=udp\"", "transport=udp\"\nstate = \"off\""));
    let answer = publisher.refresh(&tag);
    assert_eq!((answer.code, answer.expires, answer.tag.as_deref()), (200, Some(600), Some(&*tag)));
    let answer = publisher.publish(Some(&tag), None, "");
    assert_eq!((answer.code, answer.expires), (200, Some(3600)));
    let answer = publisher.publish(Some(&tag), Some(0), "");
    assert_eq!((answer.code, answer.expires), (200, Some(0)));
    let answer = publisher.publish(Some(&tag), Some(600), "{\"state\":\"INUSE\"}");
    assert_eq!(answer.code, 412, "what has a body is published afresh");
    assert_eq!(pbxs[0].count() + pbxs[1].count(), taken);
    put(&scene, &table(176, &[1, 2]));
    assert_eq!(publisher.refresh("17").code, 200, "a foreign one too");
    assert_eq!(Publisher::phone(&scene, 32, "devices").refresh("17").code, 412, "no Asterisk's");
    assert_eq!(pbxs[0].count() + pbxs[1].count(), taken);
    let metrics = scene.router.metrics();
    let spared = |kind| metrics.sum("tidings_publish_spared_total", &[("kind", kind)]);
    assert_eq!((spared("refresh"), spared("remove")), (3.0, 1.0));
}

/// Security first: a tag chooses among backends, it opens nothing.
#[test]
fn a_tag_passes_no_rule_that_would_stop_its_publish() {
    let net = 177;
    let open = table(net, &[1, 2]);
    let scene = Scene::start(net, &open);
    let pbxs = pbxs(&scene, ASTERISK, 2);
    let publisher = Publisher { package: "asterisk-mwi", ..Publisher::phone(&scene, 31, "box") };
    let tag = publisher.publish(None, Some(60), "{\"uniqueid\":\"1000@default\"}").tag.expect("a tag");
    let taken = || pbxs[0].count() + pbxs[1].count();
    assert_eq!(taken(), 1);
    let modify = |body: &str| publisher.request(Some(&tag), Some(60), body);
    let pools = pool("presence", net, &[1, 2]);
    put(&scene, &(pools.clone() + &rule("no", "event = \"asterisk-mwi\"", "reply = { code = 403 }")));
    assert_eq!(publisher.send(&modify("x")).code, 403);
    put(&scene, &(pools.clone() + &rule("no", "", "drop = true")));
    publisher.party.send(scene.phones(), modify("x").text());
    scene.settle();
    publisher.party.expect_nothing(Duration::from_millis(20));
    put(
        &scene,
        &(pools.clone() + &rule("filter", "mailbox_state_filter = \"^2000\"", "route = \"presence\"")),
    );
    assert_eq!(publisher.send(&modify("{\"uniqueid\":\"1000@default\"}")).code, 403, "no rule: not ours");
    put(&scene, &(pools + &rule("slow", "", "route = \"presence\"\nlimit = \"1/s\"")));
    let codes: Vec<u16> =
        (0..3).map(|_| publisher.send(&publisher.request(Some(&tag), Some(60), "")).code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 503).count(), 2, "{codes:?}");
    assert_eq!(taken(), 2);
}

/// Device state between two Asterisks through the router: the R-URI names the receiver.
#[test]
fn publications_between_asterisks_by_their_request_uri_keep_their_node_and_their_tag() {
    let net = 178;
    let rules = pool("asterisk", net, &[1, 2])
        + &rule(
            "devices",
            "event = \"asterisk-devicestate\", source = \"backends\"",
            "route = \"request-uri\"",
        );
    let scene = Scene::start(net, &rules);
    let receiver = Compositor::start(scene.at(12), ASTERISK);
    let publisher = Publisher {
        party: scene.pbx(1),
        entry: scene.pbxs(),
        uri: format!("sip:ast2@{}", scene.at(12)),
        package: "asterisk-devicestate",
    };
    let answer = publisher.publish(None, Some(20), "{\"device\":\"PJSIP/1000\"}");
    assert_eq!((answer.code, answer.expires), (200, Some(20)));
    assert_eq!(receiver.last().expires, Some(50), "30 s of margin by default");
    let tag = answer.tag.expect("a tag");
    let answer = publisher.publish(Some(&tag), Some(20), "{\"device\":\"PJSIP/1001\"}");
    assert_eq!(answer.code, 200);
    assert_eq!(receiver.last().if_match.as_deref(), Some("0"));
    let tag = answer.tag.expect("a tag");
    assert_eq!(publisher.refresh(&tag).code, 200);
    // Its last body, whose tag is not ours, is published afresh.
    assert_eq!(publisher.publish(Some("1"), Some(20), "{}").code, 412);
    // By a Route of its own (outbound_proxy), past the table: the tag goes with it.
    let tag = publisher.begin();
    let routed =
        publisher.request(Some(&tag), Some(600), "").with("Route", format!("<sip:{};lr>", scene.at(12)));
    assert_eq!(publisher.send(&routed).code, 200);
    drop(receiver);
    // A receiver that is off: silence, since a final error would cost the event.
    put(
        &scene,
        &rules.replace(
            "127.40.178.12:5060;transport=udp\"",
            "127.40.178.12:5060;transport=udp\"\nstate = \"off\"",
        ),
    );
    publisher.party.send(scene.pbxs(), publisher.request(None, Some(20), "{}").text());
    scene.settle();
    publisher.party.expect_nothing(Duration::from_millis(20));
    assert_eq!(scene.refused("silence"), 1.0);
}

/// The bytes: only the token is cut from SIP-If-Match and put before SIP-ETag; an odd tag stays as odd as it was.
#[test]
fn a_tag_comes_back_to_its_backend_byte_for_byte() {
    let scene = Scene::start(179, &table(179, &[1]));
    let (phone, pbx) = (Publisher::phone(&scene, 31, "1000"), scene.pbx(1));
    let long = "k".repeat(2000);
    for original in ["0", "004", "8abc", "9;node=x", "a.1700000000.12.3.0", "-._!%*+`'~", long.as_str()] {
        let request = phone.request(None, Some(60), "open");
        phone.party.send(scene.phones(), request.text());
        let got = pbx.expect("PUBLISH ");
        assert!(text::headers(&got, "SIP-If-Match").is_empty());
        let back = via_address(&got);
        let answer = text::answer(&got, "200 OK", "t", &format!("SIP-ETag:   {original}\r\nExpires: 60\r\n"));
        pbx.send(back, &answer);
        let tag = phone.answer().tag.expect("a tag");
        assert_eq!(&tag[24..], original);
        assert!(tag[..24].bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        // Answered twice, as to a retransmission: both tags are good.
        pbx.send(back, &answer);
        let twin = phone.answer().tag.expect("a tag");
        for tag in [tag, twin] {
            let refresh = phone.request(Some(&tag), Some(60), "");
            phone.party.send(scene.phones(), refresh.text());
            let got = pbx.expect("PUBLISH ");
            assert_eq!(text::header(&got, "SIP-If-Match"), original);
            pbx.answer(back, &got, "412 Conditional Request Failed", "t", "");
            assert_eq!(phone.answer().code, 412);
        }
    }
    // Nothing to wrap.
    phone.party.send(scene.phones(), phone.request(None, Some(60), "open").text());
    let got = pbx.expect("PUBLISH ");
    pbx.answer(via_address(&got), &got, "200 OK", "t", "SIP-ETag: \r\nExpires: 60\r\n");
    assert_eq!(phone.answer().tag.as_deref(), Some(""));
}

#[test]
fn two_if_match_fields_are_refused_and_no_backend_reads_the_other_one() {
    let scene = Scene::start(180, &table(180, &[1]));
    let pbxs = pbxs(&scene, ASTERISK, 1);
    let phone = Publisher::phone(&scene, 31, "1000");
    let tag = phone.begin();
    let two = phone.request(Some(&tag), Some(60), "").and("sip-if-match", "0");
    assert_eq!(phone.send(&two).code, 400);
    assert_eq!((scene.refused("two_if_match"), pbxs[0].count()), (1.0, 1));
}

/// A rotation: tags of the old key are good while the ring holds it, and lead to a publication afresh behind that.
#[test]
fn an_old_key_verifies_and_a_removed_one_is_412() {
    const OLD: &str = "{ id = 1, key = \"00112233445566778899aabbccddeeff\" }";
    const NEW: &str = "{ id = 2, key = \"ffeeddccbbaa99887766554433221100\" }";
    let net = 181;
    let with = |keys: String| {
        let mut layout = Layout::new(net);
        layout.keys = keys;
        layout.start(&table(net, &[1]))
    };
    let scene = with(OLD.into());
    let _pbx = Compositor::start(scene.at(11), ASTERISK);
    let phone = Publisher::phone(&scene, 31, "1000");
    let tag = phone.begin();
    drop(scene);
    let scene = with(format!("{NEW}, {OLD}"));
    let tag = phone.refresh(&tag).tag.expect("good under the old key");
    assert_eq!(scene.router.metrics().sum("tidings_token_key_used_total", &[("key", "1")]), 1.0);
    let old = phone.refresh(&tag);
    assert_eq!(old.code, 200, "signed by the new one");
    drop(scene);
    let scene = with(OLD.into());
    assert_eq!(phone.refresh(&old.tag.expect("a tag")).code, 412);
    assert_eq!((scene.refused("etag_unknown_key"), scene.refused("etag_forged")), (1.0, 0.0));
}

/// SPEC 6.5: 401, and 423 without Min-Expires, end an Asterisk's publication for good.
#[test]
fn answers_that_stop_an_asterisk_for_good_are_counted_and_logged() {
    let scene = Scene::start(182, &table(182, &[1]));
    let pbx = scene.pbx(1);
    let phone = Publisher::phone(&scene, 31, "1000");
    let asterisk = Publisher { package: "asterisk-mwi", ..Publisher::phone(&scene, 32, "box") };
    let answers = [
        ("401 Unauthorized", ""),
        ("423 Interval Too Brief", ""),
        ("423 Interval Too Brief", "Min-Expires: 60\r\n"),
    ];
    for publisher in [&phone, &asterisk] {
        for (status, more) in answers {
            publisher.party.send(scene.phones(), publisher.request(None, Some(20), "x").text());
            let got = pbx.expect("PUBLISH ");
            pbx.answer(via_address(&got), &got, status, "t", more);
            assert_eq!(publisher.answer().code.to_string(), status[..3]);
        }
    }
    let metrics = scene.router.metrics();
    let stops = |cause| metrics.sum("tidings_publisher_stops_total", &[("cause", cause)]);
    assert_eq!((stops("challenge"), stops("min_expires")), (1.0, 1.0), "a phone's are its own business");
    wait_for("a line in the log", Duration::from_secs(5), || {
        scene.router.process.output().contains("for good").then_some(())
    });
    assert!(scene.router.process.output().contains("pbx1"));
}

/// A party that only looks like a publisher cannot make one: what is not PUBLISH is not looked at.
#[test]
fn other_methods_carry_tags_untouched() {
    let scene = Scene::start(183, &table(183, &[1]));
    let (phone, pbx) = (scene.phone(), Party::bind(scene.at(11)));
    let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).with("SIP-If-Match", "5");
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("SUBSCRIBE ");
    assert_eq!(text::header(&got, "SIP-If-Match"), "5");
    pbx.answer(via_address(&got), &got, "200 OK", "t", "SIP-ETag: 6\r\nExpires: 60\r\n");
    assert_eq!(text::header(&phone.expect("SIP/2.0 200"), "SIP-ETag"), "6");
}
