//! Kamailio's presence server behind the router: it gives tags of its own form, and says 412 to those that it does not
//! know, so that a refresh which came to the wrong one would be seen.

use std::time::Duration;

use super::Publisher;
use crate::rig::{
    Kamailio,
    scene::{Scene, pool, rule},
    wait_for,
};

const PIDF: &str = "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" \
                    entity=\"sip:1000@example.com\"><tuple id=\"t\"><status><basic>open</basic></status></tuple></presence>";

fn table(net: u8, weights: [u32; 2], states: [&str; 2]) -> String {
    let mut text = pool("presence", net, &[]);
    for (n, (weight, state)) in (1..).zip(weights.iter().zip(states)) {
        text += &format!(
            "[[pool.backend]]\nname = \"kamailio{n}\"\nuri = \"sip:127.40.{net}.1{n}\"\nweight = {weight}\n\
             state = \"{state}\"\n"
        );
    }
    text + &rule("all", "source = \"clients\"", "route = \"presence\"")
}

#[test]
fn kamailio_keeps_its_publications_through_swaps_weights_drain_and_restart() {
    let net = 197;
    let scene = Scene::start(net, &table(net, [1, 1], ["active", "active"]));
    let mut servers = vec![Kamailio::start("127.40.197.11:5060"), Kamailio::start("127.40.197.12:5060")];
    let publisher = |n: u8| Publisher::phone(&scene, 31 + n, &format!("10{n:02}"));
    let publishers: Vec<Publisher> = (0..8).map(publisher).collect();
    let mut tags: Vec<String> = publishers
        .iter()
        .map(|p| {
            let answer = p.publish(None, Some(600), PIDF);
            assert_eq!(answer.code, 200, "{answer:?}");
            answer.tag.expect("a tag")
        })
        .collect();
    let put = |table: &str| assert_eq!(scene.router.put_table(table).0, 200);
    let tables = [
        table(net, [1000, 1], ["active", "active"]),
        table(net, [1, 1000], ["active", "active"]),
        table(net, [1, 1], ["drain", "active"]),
        table(net, [1, 1], ["active", "drain"]),
    ];
    for (step, table) in tables.iter().enumerate() {
        put(table);
        for (n, publisher) in publishers.iter().enumerate() {
            let body = if step % 2 == 0 { "" } else { PIDF };
            let answer = publisher.publish(Some(&tags[n]), Some(600), body);
            assert_eq!(answer.code, 200, "step {step}, publisher {n}: {answer:?}");
            tags[n] = answer.tag.expect("a tag");
        }
    }
    // It writes its line behind its answer: the last one may be on its way still.
    let counts = wait_for("five PUBLISHes of each at its own", Duration::from_secs(5), || {
        let counts = [0, 1].map(|n: usize| servers[n].count("PUBLISH", "presence"));
        (counts[0] + counts[1] == 40).then_some(counts)
    });
    assert_eq!(counts.map(|count| count % 5), [0, 0], "{counts:?}");
    let counts = counts.map(|count| count / 5);
    assert!(counts.iter().all(|count| *count > 0), "both are in use: {counts:?}");
    assert!(servers.iter().flat_map(Kamailio::taken).all(|taken| taken.code == 200));

    // The second one dies and is started anew: its publications are gone, ours say so before it is asked.
    servers.pop();
    put(&table(net, [1, 1], ["off", "active"]));
    let lost = publishers[0].request(None, Some(600), PIDF);
    publishers[0].party.send(scene.phones(), lost.text());
    scene.router.wait_metrics("the ICMP error", Duration::from_secs(5), |m| {
        (m.sum("tidings_undeliverable_total", &[]) > 0.0).then_some(())
    });
    put(&table(net, [1, 1], ["active", "active"]));
    servers.push(Kamailio::start("127.40.197.12:5060"));
    let codes: Vec<u16> = publishers.iter().zip(&tags).map(|(p, tag)| p.refresh(tag).code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 412).count(), counts[1], "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 200).count(), counts[0], "{codes:?}");
    assert_eq!(servers[1].count("PUBLISH", "presence"), 0, "it was not asked");
    assert_eq!(scene.refused("etag_restarted"), counts[1] as f64);
    for (publisher, code) in publishers.iter().zip(codes) {
        if code == 412 {
            let again = publisher.publish(None, Some(600), PIDF);
            let tag = again.tag.expect("published afresh");
            let removed = publisher.publish(Some(&tag), Some(0), "");
            assert_eq!(removed.code, 200, "removed: {removed:?}");
        }
    }
}
