//! The branch of a stateless proxy (SPEC 3.6, RFC 3261 16.11) and pins (SPEC 7.1).

use crate::rig::{
    message::Request,
    scene::{Dialog, Scene, branch, one_pbx, pool, rule, via_address},
    text,
};

#[test]
fn a_retransmission_takes_the_same_branch_and_a_new_request_another() {
    let scene = Scene::start(130, &one_pbx(130));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let mut seen = Vec::new();
    for method in ["INVITE", "SUBSCRIBE", "REGISTER", "MESSAGE"] {
        let request = Request::new(method, "sip:1000@example.com", &phone);
        phone.send(scene.phones(), request.text());
        phone.send(scene.phones(), request.text());
        let (first, again) = (pbx.expect(method), pbx.expect(method));
        assert_eq!(first, again, "byte for byte: it is the same message");
        let next = request.with("CSeq", format!("2 {method}"));
        phone.send(scene.phones(), next.text());
        seen.extend([branch(&first).to_owned(), branch(&pbx.expect(method)).to_owned()]);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 8);
}

/// RFC 3261 9.1, 17.1.1.3: or the PBX cannot match them.
#[test]
fn cancel_and_the_ack_of_a_non_2xx_take_their_invites_branch() {
    let table = pool("many", 131, &[1, 2, 3, 4])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("in", "source = \"clients\"", "route = \"many\"");
    let scene = Scene::start(131, &table);
    let (phone, pbxs) = (scene.phone(), [1, 2, 3, 4].map(|n| scene.pbx(n)));
    for n in 0..8 {
        let invite = Request::new("INVITE", &format!("sip:{n}@example.com"), &phone);
        phone.send(scene.phones(), invite.text());
        scene.settle();
        let brief = std::time::Duration::from_millis(5);
        let (pbx, got) = pbxs
            .iter()
            .find_map(|pbx| {
                pbx.poll(brief).map(|(bytes, _)| (pbx, String::from_utf8_lossy(&bytes).into_owned()))
            })
            .expect("one of them has it");
        let mut cancel = invite.clone().with("CSeq", "1 CANCEL").without("Contact");
        cancel.method = "CANCEL".into();
        phone.send(scene.phones(), cancel.text());
        let cancelled = pbx.expect("CANCEL ");
        assert_eq!(branch(&cancelled), branch(&got));
        pbx.answer(scene.pbxs(), &cancelled, "200 OK", "t", "");
        phone.expect("SIP/2.0 200");
        pbx.answer(scene.pbxs(), &got, "487 Request Terminated", "t", "");
        let refused = phone.expect("SIP/2.0 487");
        let mut ack = invite.with("CSeq", "1 ACK").with("To", text::header(&refused, "To"));
        ack.method = "ACK".into();
        phone.send(scene.phones(), ack.text());
        assert_eq!(branch(&pbx.expect("ACK ")), branch(&got));
    }
}

/// Some phones use one branch for all they send, and clones of one image use the same.
#[test]
fn two_phones_with_one_constant_branch_do_not_collide() {
    let scene = Scene::start(132, &one_pbx(132));
    let (one, two, pbx) = (scene.party(31), scene.party(32), scene.pbx(1));
    let template = Request::new("INVITE", "sip:1000@example.com", &one)
        .with("Via", "SIP/2.0/UDP 192.168.1.2:5060;rport;branch=z9hG4bKconstant");
    one.send(scene.phones(), template.text());
    let of_one = pbx.expect("INVITE ");
    two.send(scene.phones(), template.text());
    let of_two = pbx.expect("INVITE ");
    assert_ne!(branch(&of_one), branch(&of_two), "Call-ID, tags and branch are alike, the source is not");
    pbx.answer(scene.pbxs(), &of_two, "486 Busy", "b", "");
    two.expect("SIP/2.0 486");
    pbx.answer(scene.pbxs(), &of_one, "480 Away", "a", "");
    one.expect("SIP/2.0 480");
    scene.quiet(&[&one, &two]);
}

/// RFC 2543: no branch at all, or one without the cookie.
#[test]
fn requests_without_a_branch_get_one_each_and_their_responses_return() {
    let scene = Scene::start(133, &one_pbx(133));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let mut seen = Vec::new();
    for via in [
        "SIP/2.0/UDP 192.168.1.2",
        "SIP/2.0/UDP 192.168.1.2;branch=1",
        "SIP/2.0/UDP 192.168.1.2;branch=z9hG4bK",
    ] {
        for cseq in [1, 2] {
            let request = Request::new("INVITE", "sip:1000@example.com", &phone)
                .with("Via", via)
                .with("Call-ID", "one")
                .with("From", "<sip:alice@example.com>;tag=one")
                .with("CSeq", format!("{cseq} INVITE"));
            phone.send(scene.phones(), request.text());
            let got = pbx.expect("INVITE ");
            assert!(branch(&got).starts_with("z9hG4bK"));
            seen.push(branch(&got).to_owned());
            pbx.answer(scene.pbxs(), &got, "200 OK", "t", "");
            assert_eq!(text::headers(&phone.expect("SIP/2.0 200"), "Via").len(), 1);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 6);
}

/// SPEC 7.1: what would send them elsewhere is a new table between the two; the pin holds.
#[test]
fn the_retry_after_401_the_cancel_and_the_ack_follow_their_invite_through_a_swap() {
    let table = |n: u8| {
        pool("one", 134, &[n])
            + &pool("other", 134, &[3 - n])
            + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
            + &rule("in", "source = \"clients\"", "route = \"one\"")
    };
    let scene = Scene::start(134, &table(1));
    let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    let invite = Request::new("INVITE", "sip:1000@example.com", &phone);
    let ringing = Request::new("INVITE", "sip:1001@example.com", &phone);
    phone.send(scene.phones(), invite.text());
    let got = pbx1.expect("INVITE ");
    phone.send(scene.phones(), ringing.text());
    let rings = pbx1.expect("INVITE ");
    let (status, body) = scene.router.put_table(&table(2));
    assert_eq!(status, 200, "{body}");

    pbx1.answer(scene.pbxs(), &got, "401 Unauthorized", "t", "");
    let challenge = phone.expect("SIP/2.0 401");
    let mut ack = invite.clone().with("CSeq", "1 ACK").with("To", text::header(&challenge, "To"));
    ack.method = "ACK".into();
    phone.send(scene.phones(), ack.text());
    assert_eq!(branch(&pbx1.expect("ACK ")), branch(&got));
    let retry = invite
        .with("CSeq", "2 INVITE")
        .with("Via", format!("SIP/2.0/UDP {};rport;branch=z9hG4bKretry", phone.address))
        .and("Authorization", "Digest username=\"alice\"");
    phone.send(scene.phones(), retry.text());
    assert_ne!(branch(&pbx1.expect("INVITE ")), branch(&got), "a new transaction at the same node");

    let mut cancel = ringing.clone().with("CSeq", "1 CANCEL");
    cancel.method = "CANCEL".into();
    phone.send(scene.phones(), cancel.text());
    assert_eq!(branch(&pbx1.expect("CANCEL ")), branch(&rings));
    phone.send(scene.phones(), ringing.text());
    assert_eq!(branch(&pbx1.expect("INVITE ")), branch(&rings), "a retransmission");

    // What is new goes by the new table, from the same phone too.
    phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
    pbx2.expect("INVITE ");
    scene.quiet(&[&pbx1, &pbx2]);
    assert!(scene.router.metrics().sum("tidings_pin_hits_total", &[]) >= 4.0);
}

/// SPEC 7.1: without a Route the ACK of a 2xx has another branch and another R-URI, the PBX's Contact. It is an ACK all the
/// same, and looks for its INVITE's pin first.
#[test]
fn the_ack_of_a_2xx_without_a_route_follows_its_invite() {
    let table = pool("many", 138, &[1, 2, 3, 4])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("in", "source = \"clients\"", "route = \"many\"\nrecord_route = false");
    let scene = Scene::start(138, &table);
    let (phone, pbxs) = (scene.phone(), [1, 2, 3, 4].map(|n| scene.pbx(n)));
    for n in 0..8 {
        let invite = Request::new("INVITE", &format!("sip:{n}@example.com"), &phone);
        phone.send(scene.phones(), invite.text());
        scene.settle();
        let brief = std::time::Duration::from_millis(5);
        let (pbx, got) = pbxs
            .iter()
            .find_map(|pbx| {
                pbx.poll(brief).map(|(bytes, _)| (pbx, String::from_utf8_lossy(&bytes).into_owned()))
            })
            .expect("one of them has it");
        let contact = format!("sip:pbx@{}", pbx.address);
        pbx.answer(scene.pbxs(), &got, "200 OK", "t", &format!("Contact: <{contact}>\r\n"));
        let taken = phone.expect("SIP/2.0 200");
        let mut ack = invite
            .to(&contact)
            .with("CSeq", "1 ACK")
            .with("To", text::header(&taken, "To"))
            .with("Via", format!("SIP/2.0/UDP {};rport;branch=z9hG4bKack{n}", phone.address));
        ack.method = "ACK".into();
        phone.send(scene.phones(), ack.text());
        pbx.expect("ACK ");
        scene.quiet(&pbxs.each_ref());
    }
}

/// SPEC 4.1, RFC 3581: the Via below ours says where the request came from.
#[test]
fn received_and_rport_are_written_for_those_below() {
    let scene = Scene::start(135, &one_pbx(135));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let below = [
        ("SIP/2.0/UDP 127.40.135.31:5060;branch=z9hG4bKa", None),
        ("SIP/2.0/UDP 127.40.135.31:5060;rport;branch=z9hG4bKb", Some("5060")),
        ("SIP/2.0/UDP phone.example.com;rport;branch=z9hG4bKc", Some("5060")),
        ("SIP/2.0/UDP phone.example.com;branch=z9hG4bKd", None),
        ("SIP/2.0/UDP  phone.example.com ; rport = 7 ; branch=z9hG4bKe;x", Some("5060")),
    ];
    for (via, rport) in below {
        let request = Request::new("MESSAGE", "sip:1000@example.com", &phone).with("Via", via);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect("MESSAGE ");
        let vias = text::headers(&got, "Via");
        assert_eq!(vias.len(), 2);
        let parameters: Vec<(&str, &str)> = vias[1]
            .split(';')
            .skip(1)
            .filter_map(|p| p.split_once('='))
            .map(|(n, v)| (n.trim(), v.trim()))
            .collect();
        let value = |name| parameters.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        assert_eq!(value("rport"), rport, "{}", vias[1]);
        if !via.contains("127.40.135.31") || rport.is_some() {
            assert_eq!(value("received"), Some("127.40.135.31"), "{}", vias[1]);
        }
    }
}

/// A PBX's requests toward phones have their own branches, and CANCEL follows by the Via hash and the pin as well.
#[test]
fn a_pbxs_cancel_follows_its_invite_to_the_phone() {
    let scene = Scene::start(136, &one_pbx(136));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.7>");
    let invite = Request::new("INVITE", "sip:alice@10.0.0.7", &pbx);
    pbx.send(scene.pbxs(), invite.text());
    let got = phone.expect("INVITE ");
    let mut cancel = invite.clone().with("CSeq", "1 CANCEL");
    cancel.method = "CANCEL".into();
    pbx.send(scene.pbxs(), cancel.text());
    let cancelled = phone.expect("CANCEL ");
    assert_eq!((branch(&cancelled), via_address(&cancelled)), (branch(&got), scene.phones()));
    phone.answer(scene.phones(), &cancelled, "200 OK", "t", "");
    pbx.expect("SIP/2.0 200");
    phone.answer(scene.phones(), &got, "487 Request Terminated", "t", "");
    let refused = pbx.expect("SIP/2.0 487");
    let mut ack = invite.with("CSeq", "1 ACK").with("To", text::header(&refused, "To"));
    ack.method = "ACK".into();
    pbx.send(scene.pbxs(), ack.text());
    assert_eq!(branch(&phone.expect("ACK ")), branch(&got));
}

/// A refresh in a dialog is a new transaction, its retransmission is not.
#[test]
fn in_a_dialog_too() {
    let scene = Scene::start(137, &one_pbx(137));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(scene.pbxs(), notify.text());
    pbx.send(scene.pbxs(), notify.text());
    let (first, again) = (phone.expect("NOTIFY "), phone.expect("NOTIFY "));
    assert_eq!(first, again);
    assert_ne!(branch(&first), branch(&dialog.request));
}

/// RFC 3581 4: an `rport` with an empty value gets one, and one `=`.
#[test]
fn an_empty_rport_is_filled() {
    let scene = Scene::start(139, &one_pbx(139));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let via = format!("SIP/2.0/UDP {};rport=;branch=z9hG4bKempty", phone.address);
    let request = Request::new("MESSAGE", "sip:1000@example.com", &phone).with("Via", via.as_str());
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("MESSAGE ");
    let filled = "received=127.40.139.31;rport=5060;branch=z9hG4bKempty";
    assert!(text::headers(&got, "Via")[1].ends_with(filled), "{got}");
}
