//! Token buckets of sources: new dialogs and malformed messages, counted apart.

use super::*;
use rig::scene::{Dialog, one_pbx, pool, rule};

const FEW: &str = "[protection]\nnew_dialogs = 1\nnew_dialogs_burst = 10\nanswers = 3\nmalformed = 1\nmalformed_burst = 4\n\
                   retry_after = \"7s\"\nemergency = [\"112\"]\n";

/// What came to this party so far: answers by their code, and requests as 0.
fn codes(party: &Party) -> Vec<u16> {
    let mut codes = Vec::new();
    while let Some((bytes, _)) = party.poll(Duration::from_millis(100)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        codes.push(rig::text::status(&text).unwrap_or(0));
        if codes.last() == Some(&503) {
            assert_eq!(rig::text::header(&text, "Retry-After"), "7", "{text}");
        }
    }
    codes
}

/// The rate is one a second: a slow machine lets a few more through than the burst.
#[track_caller]
fn about(count: usize, expected: usize) {
    assert!((expected..expected + 8).contains(&count), "{count}, not about {expected}");
}

/// SPEC 10: what one source may begin; what is in a dialog, and others, do not notice.
#[test]
fn new_dialogs_beyond_the_burst_are_told_to_come_later_and_then_dropped() {
    let scene = layout(240, "udp", FEW).start(&one_pbx(240));
    let (phone, other, pbx) = (scene.phone(), scene.party(32), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    for _ in 0..60 {
        phone.send(scene.phones(), message(&phone).text());
    }
    let answered = codes(&phone);
    about(codes(&pbx).len(), 9);
    about(answered.iter().filter(|code| **code == 503).count(), 3);
    let (told, dropped) = (scene.refused("source_rate"), scene.refused("source_flood"));
    assert_eq!(told as usize, answered.len());
    assert!(dropped >= 30.0, "{dropped}");
    assert!(metric(&scene, "tidings_guarded_sources", &[]) >= 0.0);
    assert_eq!(metric(&scene, "tidings_new_dialogs_per_second_limit", &[]), 1.0);

    // In its dialog all is well, and everywhere else.
    for cseq in 2..32 {
        let refresh = dialog.by_caller("SUBSCRIBE", &phone).with("CSeq", format!("{cseq} SUBSCRIBE"));
        phone.send(scene.phones(), refresh.text());
        let got = pbx.expect("SUBSCRIBE ");
        pbx.answer(scene.pbxs(), &got, "200 OK", "", "Expires: 600\r\n");
        phone.expect("SIP/2.0 200");
    }
    honest(&other, &scene, &pbx);
}

/// A To tag that no token of ours proves buys nothing, and neither do ACK, CANCEL, OPTIONS or a tag of a publication.
#[test]
fn what_proves_nothing_is_counted_whatever_it_says() {
    let scene = layout(241, "udp", FEW).start(&one_pbx(241));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let kinds = [
        message(&phone).with("To", "<sip:1@example.com>;tag=guessed"),
        Request::new("CANCEL", "sip:1@example.com", &phone),
        Request::new("PUBLISH", "sip:1@example.com", &phone).with("SIP-If-Match", "guessed"),
        Request::new("OPTIONS", &format!("sip:{}", scene.phones()), &phone),
    ];
    for request in kinds.iter().cycle().take(80) {
        let fresh = request.text().replace("Call-ID: ", &format!("Call-ID: {}", rig::message::unique()));
        phone.send(scene.phones(), fresh);
    }
    let taken = codes(&pbx).len() + codes(&phone).iter().filter(|code| **code == 200).count();
    about(taken, 10);
    // A publisher drops its event on any final error (SPEC 6.5).
    assert!(scene.refused("source_flood") >= 17.0);
}

/// SPEC 10: calls for help are never limited. Resource-Priority is never shed (tests/protection/overload.rs), but anybody can
/// write it: his own limit counts.
#[test]
fn calls_for_help_pass_whatever_else_their_source_does() {
    let scene = layout(242, "udp", FEW).start(&one_pbx(242));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for _ in 0..40 {
        phone.send(scene.phones(), message(&phone).text());
    }
    codes(&pbx);
    codes(&phone);
    let urgent = [
        Request::new("INVITE", "urn:service:sos.fire", &phone),
        Request::new("INVITE", "sip:112@example.com", &phone),
    ];
    for request in &urgent {
        for _ in 0..5 {
            let fresh = request.text().replace("Call-ID: ", &format!("Call-ID: {}", rig::message::unique()));
            phone.send(scene.phones(), fresh);
            pbx.expect(&format!("{} ", request.method));
        }
    }
    assert!(metric(&scene, "tidings_urgent_requests_total", &[]) >= 10.0);
    // Not every method to that number is a call.
    for _ in 0..10 {
        phone.send(scene.phones(), Request::new("MESSAGE", "sip:112@example.com", &phone).text());
    }
    about(codes(&pbx).len(), 0);
    for _ in 0..10 {
        phone.send(scene.phones(), message(&phone).with("Resource-Priority", "esnet.1").text());
    }
    about(codes(&pbx).len(), 0);
}

/// SPEC 10: malformed messages have a bucket of their own; what is beyond it is dropped without an answer.
#[test]
fn malformed_messages_are_answered_for_a_while() {
    let scene = layout(243, "udp", FEW).start(&one_pbx(243));
    let (phone, other, pbx) = (scene.phone(), scene.party(32), scene.pbx(1));
    let broken = message(&phone).without("Call-ID").text();
    for _ in 0..30 {
        phone.send(scene.phones(), &broken);
        phone.send(scene.phones(), "rubbish");
        phone.send(scene.phones(), "SIP/2.0 200 OK\r\nVia: none\r\n\r\n");
    }
    let answered = codes(&phone);
    assert!(answered.iter().all(|code| *code == 400) && answered.len() < 8, "{answered:?}");
    assert!(scene.refused("malformed_rate") >= 78.0);
    honest(&phone, &scene, &pbx);
    other.send(scene.phones(), message(&other).without("Call-ID").text());
    other.expect("SIP/2.0 400");
}

/// SPEC 10: an answer that costs its sender nothing is one that is sent to whomever he names as the source. What is refused
/// before the table is asked has its limit, and takes nothing from what the source may begin.
#[test]
fn what_can_go_nowhere_is_answered_for_a_while() {
    let scene = layout(235, "udp", FEW).start(&one_pbx(235));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    // Its own Via twice is a loop: as it leaves, sent by the phone again.
    let fresh = || Request::new("SUBSCRIBE", "sip:1@example.com", &phone);
    let looping = {
        let request = message(&phone);
        phone.send(scene.phones(), request.text());
        let via = rig::text::header(&pbx.expect("MESSAGE "), "Via").to_owned();
        move || request.clone().and("Via", via.clone())
    };
    let kinds: [(u16, &dyn Fn() -> Request); 6] = [
        (489, &|| fresh().without("Event")),
        (483, &|| fresh().with("Max-Forwards", "0")),
        (420, &|| fresh().and("Proxy-Require", "foo")),
        (416, &|| fresh().to("http://example.com/")),
        (482, &looping),
        (403, &fresh),
    ];
    for (host, (code, request)) in (32..).zip(kinds) {
        let other = scene.party(host);
        let entry = if code == 403 { scene.pbxs() } else { scene.phones() };
        for _ in 0..30 {
            phone.send(entry, request().text());
            if code != 482 {
                // The Via names another; rport brings the answer to who sent it.
                other.send(entry, request().text());
            }
        }
        let answered = codes(&other);
        assert!(answered.iter().all(|got| *got == code) && answered.len() < 8, "{code}: {answered:?}");
        assert_eq!(answered.is_empty(), code == 482, "{code}");
    }
    let answered = codes(&phone);
    assert!(answered.len() < 12, "one limit for all of them: {answered:?}");
    assert!(scene.refused("malformed_rate") >= 250.0);
    assert_eq!(scene.refused("source_rate") + scene.refused("source_flood"), 0.0);
    honest(&phone, &scene, &pbx);
    let refresh = dialog.by_caller("SUBSCRIBE", &phone);
    phone.send(scene.phones(), refresh.text());
    pbx.expect("SUBSCRIBE ");
}

/// Never against backends, trusted and exempt prefixes.
#[test]
fn backends_trusted_and_exempt_sources_have_no_limits() {
    let more = format!("{FEW}exempt = [\"127.45.244.32\"]\n[trust]\nprefixes = [\"127.45.244.33\"]\n");
    let table = pool("one", 244, &[1, 2])
        + &rule("between", "source = \"backends\"", "reply = { code = 488, reason = \"No\" }")
        + &rule("to the pbx", "source = \"clients\"", "reply = { code = 486, reason = \"Busy\" }");
    let scene = layout(244, "udp", &more).start(&table);
    for (who, entry, code) in [
        (scene.pbx(1), scene.pbxs(), "SIP/2.0 488"),
        (scene.party(32), scene.phones(), "SIP/2.0 486"),
        (scene.party(33), scene.phones(), "SIP/2.0 486"),
    ] {
        for _ in 0..60 {
            who.send(entry, message(&who).text());
            who.expect(code);
            who.send(entry, message(&who).without("To").text());
            who.expect("SIP/2.0 400");
        }
    }
    assert_eq!(scene.refused("source_rate") + scene.refused("malformed_rate"), 0.0);
}

/// SPEC 10: CIDR allow and deny, over UDP and at the door; not against backends.
#[test]
fn denied_prefixes_are_not_listened_to_and_with_allowed_ones_nobody_else_is() {
    let more =
        "[protection]\nallow = [\"127.45.245.0/26\"]\ndeny = [\"127.45.245.40/29\", \"127.45.245.11\"]\n";
    let udp = "[[listen]]\nname = \"udp\"\ntransport = \"udp\"\naddress = \"127.45.245.1:5062\"\nside = \"clients\"\n";
    let scene = layout(245, "tcp", &format!("{more}{udp}")).start(&one_pbx(245));
    let (allowed, pbx) = (scene.party(39), scene.pbx(1));
    honest(&allowed, &scene, &pbx);
    for host in [40, 47, 64] {
        let at = format!("127.45.245.{host}:5061");
        let party = Party::bind(at.as_str());
        party.send("127.45.245.1:5062", message(&party).text());
        party.send("127.45.245.1:5062", b"\x00\x01\x00\x00\x21\x12\xa4\x42abcdefghijkl");
        party.expect_nothing(Duration::from_millis(100));
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&std::net::SocketAddr::from(([127, 45, 245, host], 0)).into()).expect("a free port");
        socket.connect(&scene.phones().into()).expect("the kernel takes it");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
        let mut stream: std::net::TcpStream = socket.into();
        let end = std::io::Read::read(&mut stream, &mut [0; 16]);
        assert!(matches!(end, Ok(0) | Err(_)), "closed at once: {end:?}");
    }
    assert_eq!(scene.refused("denied"), 6.0);
    assert_eq!(metric(&scene, "tidings_connections_refused_total", &[("cause", "denied")]), 3.0);
    assert_eq!(metric(&scene, "tidings_denied_prefixes", &[]), 2.0);
    honest(&allowed, &scene, &pbx);
}
