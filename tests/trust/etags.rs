//! An entity-tag is good for the publication that it was given for, and for nobody else (SPEC 6.1): a phone that has
//! learnt another's, or makes one up, is told 412 and reaches nothing.

use crate::rig::{
    Party,
    compositor::{Compositor, Kind},
    message::Request,
    scene::{Dialog, Scene, pool, rule, user},
    text,
};

struct House {
    scene: Scene,
    pbx: Compositor,
    /// An Asterisk: it would take any number for the publication that has it.
    other: Compositor,
    alice: Party,
    mallory: Party,
    tag: String,
}

fn publish(from: &Party, who: &str, resource: &str, package: &str, tag: Option<&str>) -> Request {
    let request = Request::new("PUBLISH", &format!("sip:{resource}@example.com"), from)
        .with("From", format!("<sip:{who}@example.com>;tag=x"))
        .with("Event", package)
        .with("Expires", "600")
        .body("application/pidf+xml", "open");
    match tag {
        Some(tag) => request.with("SIP-If-Match", tag),
        None => request,
    }
}

impl House {
    fn start(net: u8) -> House {
        let table = pool("presence", net, &[1, 2])
            + &rule("pbxs", "source = \"backends\", method = \"PUBLISH\"", "route = \"presence\"")
            + &rule("phones", "source = \"backends\"", "route = \"flow\"")
            + &rule("all", "source = \"clients\"", "route = \"presence\"");
        let scene = Scene::start(net, &table);
        let pbx = Compositor::start(scene.at(11), Kind::Asterisk(0));
        let other = Compositor::start(scene.at(12), Kind::Asterisk(0));
        let (alice, mallory) = (scene.party(31), scene.party(32));
        let mut house = House { scene, pbx, other, alice, mallory, tag: String::new() };
        let given = house.ask(&house.alice, &publish(&house.alice, "alice", "alice", "presence", None));
        house.tag = text::header(&given, "SIP-ETag").to_owned();
        house
    }

    #[track_caller]
    fn ask(&self, from: &Party, request: &Request) -> String {
        from.send(self.scene.phones(), request.text());
        from.receive("an answer to a PUBLISH")
    }

    fn taken(&self) -> usize {
        self.pbx.count() + self.other.count()
    }

    /// Refused, and no PBX was asked.
    #[track_caller]
    fn useless(&self, from: &Party, request: &Request, code: u16) {
        let before = self.taken();
        let answer = self.ask(from, request);
        assert_eq!(text::status(&answer), Some(code), "{answer}");
        assert_eq!(self.taken(), before, "a PBX was asked");
    }
}

#[test]
fn a_tag_of_another_phone_is_of_no_use() {
    let house = House::start(200);
    let tag = Some(house.tag.as_str());
    house.useless(&house.mallory, &publish(&house.mallory, "mallory", "alice", "presence", tag), 412);
    house.useless(&house.mallory, &publish(&house.mallory, "mallory", "mallory", "presence", tag), 412);
    assert_eq!(house.scene.refused("etag_forged"), 2.0);
    let forged = house.scene.router.metrics().sum("tidings_tokens_forged_total", &[("type", "etag")]);
    assert_eq!(forged, 2.0);
    // Its owner may come from anywhere: a phone behind another NAT is still Alice's.
    let owner = publish(&house.mallory, "alice", "alice", "presence", tag);
    assert_eq!(text::status(&house.ask(&house.mallory, &owner)), Some(200));
}

#[test]
fn a_tag_of_another_resource_or_package_is_of_no_use() {
    let house = House::start(201);
    let tag = Some(house.tag.as_str());
    for (resource, package) in [("bob", "presence"), ("alice", "dialog"), ("alice2", "presence")] {
        house.useless(&house.alice, &publish(&house.alice, "alice", resource, package, tag), 412);
    }
    let domain = publish(&house.alice, "alice", "alice", "presence", tag).to("sip:alice@example.org");
    house.useless(&house.alice, &domain, 412);
    // Another spelling of the same resource is the same.
    let same =
        publish(&house.alice, "alice", "alice", "presence;id=1", tag).to("sip:%61lice@EXAMPLE.com:5062;x=y");
    assert_eq!(text::status(&house.ask(&house.alice, &same)), Some(200));
}

#[test]
fn a_tag_that_was_changed_is_of_no_use() {
    let house = House::start(202);
    let (token, original) = house.tag.split_at(24);
    let other = |at: usize| {
        let mut bytes = house.tag.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).expect("base64url is ASCII")
    };
    let mut tags: Vec<String> = (0..24).map(other).collect();
    // The number of another publication behind a token that is genuine, and what `%d` would read as the same number.
    tags.extend([format!("{token}{original}1"), format!("{token}7"), format!("{token}0{original}")]);
    tags.extend([format!("{token}{original};x"), format!("{token}{original}abc"), token.to_owned()]);
    tags.extend([format!("{token}{}", house.tag), original.to_owned(), "-1".to_owned()]);
    for tag in &tags {
        house.useless(&house.alice, &publish(&house.alice, "alice", "alice", "presence", Some(tag)), 412);
    }
    let twice =
        publish(&house.alice, "alice", "alice", "presence", Some(&house.tag)).and("SIP-If-Match", "0");
    house.useless(&house.alice, &twice, 400);
    assert_eq!(
        text::status(
            &house.ask(&house.alice, &publish(&house.alice, "alice", "alice", "presence", Some(&house.tag)))
        ),
        Some(200),
        "as it was given it is good"
    );
}

/// A client with the tag of a backend's own publication, and tokens of other types as tags.
#[test]
fn tokens_of_the_other_side_and_of_other_types_are_of_no_use() {
    let house = House::start(203);
    let phone = house.scene.party(33);
    let net = house.scene.net;
    let table = pool("presence", net, &[1, 2])
        + &pool("nodes", net, &[3])
        + &rule("nodes", "source = \"nodes\"", "route = \"presence\"")
        + &rule("all", "source = \"clients\"", "route = \"presence\"");
    assert_eq!(house.scene.router.put_table(&table).0, 200);
    let node = house.scene.pbx(3);
    node.send(house.scene.pbxs(), publish(&node, "alice", "alice", "presence", None).text());
    let tag = text::header(&node.expect("SIP/2.0 200"), "SIP-ETag").to_owned();
    house.useless(&phone, &publish(&phone, "alice", "alice", "presence", Some(&tag)), 412);

    let Compositor { address, .. } = house.pbx;
    let House { scene, pbx, .. } = house;
    drop(pbx);
    let pbx = Party::bind(address);
    let dialog = Dialog::open(
        &phone,
        scene.phones(),
        &pbx,
        &Request::new("SUBSCRIBE", &owned_by(&scene, &phone, &pbx), &phone),
    );
    for token in [user(&dialog.caller_routes[0]), &crate::rig::scene::branch(&dialog.request)[7..]] {
        for tag in [token.to_owned(), format!("{token}0")] {
            phone.send(scene.phones(), publish(&phone, "alice", "alice", "presence", Some(&tag)).text());
            phone.expect("SIP/2.0 412");
        }
    }
    scene.quiet(&[&pbx]);
}

/// A resource whose home is this PBX.
fn owned_by(scene: &Scene, phone: &Party, pbx: &Party) -> String {
    for n in 0..64 {
        let uri = format!("sip:r{n}@example.com");
        phone.send(scene.phones(), Request::new("MESSAGE", &uri, phone).text());
        scene.settle();
        if pbx.poll(std::time::Duration::from_millis(1)).is_some() {
            return uri;
        }
    }
    panic!("64 resources, and none of them at home there");
}
