//! A token never widens what a client may do (SPEC 3.1, 3.4, 3.5).

use crate::rig::{
    Party,
    message::Request,
    scene::{Dialog, Layout, Scene, branch, first_route, one_pbx, pool, rule, split, uri_address, user},
    text,
};

/// Subscriptions to pbx1, the rest to pbx2; and a phone's subscription, whose token leads to pbx1.
struct Split {
    scene: Scene,
    phone: Party,
    pbx1: Party,
    pbx2: Party,
    dialog: Dialog,
}

impl Split {
    fn start(net: u8) -> Split {
        let scene = Scene::start(net, &split(net));
        let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
        let dialog = Dialog::subscribe(&scene, &phone, &pbx1);
        Split { scene, phone, pbx1, pbx2, dialog }
    }

    /// The token as the phone knows it.
    fn token(&self) -> &str {
        user(&self.dialog.caller_routes[0])
    }

    fn route(&self, token: &str) -> String {
        format!("<sip:{token}@{};lr>", self.scene.phones())
    }

    /// What answers the phone's request; it may reach nobody.
    #[track_caller]
    fn refused(&self, from: &Party, request: &Request) -> u16 {
        from.send(self.scene.phones(), request.text());
        let answer = from.receive("an answer");
        self.scene.quiet(&[&self.pbx1, &self.pbx2]);
        text::status(&answer).expect("a response")
    }
}

/// The token with the character at `at` (from the end where negative) exchanged for another one.
fn forged(token: &str, at: isize) -> String {
    let at = if at < 0 { token.len().checked_add_signed(at).expect("within the token") } else { at as usize };
    let mut bytes = token.as_bytes().to_vec();
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).expect("base64url is ASCII")
}

/// A toll fraud of old: an INVITE that carries a Record-Route of a cheap dialog.
#[test]
fn its_own_token_on_an_invite_without_a_to_tag_is_popped_unread() {
    let s = Split::start(50);
    for method in ["INVITE", "SUBSCRIBE", "MESSAGE", "REFER", "BYE", "OPTIONS"] {
        let request = Request::new(method, "sip:900@example.com", &s.phone)
            .with("Call-ID", s.dialog.call_id.as_str())
            .routes(&s.dialog.caller_routes);
        s.phone.send(s.scene.phones(), request.text());
        let by_table = if method == "SUBSCRIBE" { &s.pbx1 } else { &s.pbx2 };
        let got = by_table.expect(method);
        assert!(text::headers(&got, "Route").is_empty(), "our Route is popped:\n{got}");
    }
    s.scene.quiet(&[&s.pbx1, &s.pbx2, &s.phone]);
}

/// PJSIP takes an INVITE with an empty To tag for a new one: what only looks like a tag must not let a token count.
#[test]
fn what_only_looks_like_a_to_tag_is_none() {
    let s = Split::start(49);
    let looks = [
        "<sip:900@example.com>;tag=",
        "<sip:900@example.com>;tag",
        "<sip:900@example.com;tag=abc>",
        "\";tag=abc\" <sip:900@example.com>",
        "<sip:900@example.com>;x=\";tag=abc\"",
        "<sip:900@example.com?tag=abc>",
        "<sip:900@example.com>;xtag=abc",
        "<sip:900@example.com>;tag =",
        "<sip:900@example.com>;tag= ;x",
    ];
    for to in looks {
        let request = s.dialog.by_caller("INVITE", &s.phone).with("To", to);
        s.phone.send(s.scene.phones(), request.text());
        s.scene.settle();
        // By the table, or refused as malformed; not by the token.
        match s.pbx2.poll(std::time::Duration::from_millis(5)) {
            Some((got, _)) => assert!(!String::from_utf8_lossy(&got).contains("\r\nRoute"), "{to}"),
            None => drop(s.phone.expect("SIP/2.0 400")),
        }
        s.scene.quiet(&[&s.pbx1, &s.pbx2]);
    }
    for to in [
        "sip:900@example.com;tag=abc",
        "<sip:900@example.com>;x;TAG=abc",
        "<sip:900@example.com> ; tag\r\n = abc",
    ] {
        let request = s.dialog.by_caller("INFO", &s.phone).with("To", to);
        s.phone.send(s.scene.phones(), request.text());
        s.pbx1.expect("INFO ");
    }
}

#[test]
fn a_token_counts_in_every_method_of_dialogs_and_in_no_other() {
    let s = Split::start(51);
    let dialogs = [
        "SUBSCRIBE",
        "NOTIFY",
        "INVITE",
        "ACK",
        "BYE",
        "CANCEL",
        "UPDATE",
        "INFO",
        "PRACK",
        "REFER",
        "MESSAGE",
        "OPTIONS",
    ];
    for method in dialogs {
        let request = s.dialog.by_caller(method, &s.phone).with("CSeq", format!("7 {method}"));
        s.phone.send(first_route(&request), request.text());
        let got = s.pbx1.expect(method);
        assert!(text::headers(&got, "Route").is_empty(), "our Route is popped:\n{got}");
    }
    for method in ["REGISTER", "PUBLISH", "UNHEARDOF", "subscribe"] {
        let request = s.dialog.by_caller(method, &s.phone);
        s.phone.send(first_route(&request), request.text());
        let got = s.pbx2.expect(method);
        assert!(text::headers(&got, "Route").is_empty(), "popped unread:\n{got}");
    }
    s.scene.quiet(&[&s.pbx1, &s.pbx2, &s.phone]);
}

/// The MAC covers the Call-ID: a token is good in its own dialog only.
#[test]
fn a_token_from_another_call_id_is_403() {
    let s = Split::start(52);
    let other = Dialog::subscribe(&s.scene, &s.phone, &s.pbx1);
    let crossed = s.dialog.by_caller("SUBSCRIBE", &s.phone).without("Route").routes(&other.caller_routes);
    assert_eq!(s.refused(&s.phone, &crossed), 403);
    let renamed = s.dialog.by_caller("BYE", &s.phone).with("Call-ID", s.dialog.call_id.to_uppercase());
    assert_eq!(s.refused(&s.phone, &renamed), 403);
    let forged = s.scene.router.metrics().sum("tidings_tokens_forged_total", &[("type", "rr")]);
    assert_eq!((forged, s.scene.refused("forged_token")), (2.0, 2.0));
}

#[test]
fn another_phones_token_in_ones_own_dialog_is_403() {
    let s = Split::start(53);
    let hostile = s.scene.party(66);
    let own = Dialog::subscribe(&s.scene, &hostile, &s.pbx1);
    let stolen = own.by_caller("SUBSCRIBE", &hostile).without("Route").routes(&s.dialog.caller_routes);
    assert_eq!(s.refused(&hostile, &stolen), 403);
    let stacked = own.by_caller("SUBSCRIBE", &hostile).routes(&s.dialog.caller_routes);
    assert_eq!(s.refused(&hostile, &stacked), 403, "also behind one that is good");
}

#[test]
fn a_forged_mac_is_403() {
    let s = Split::start(54);
    let token = s.token().to_owned();
    // Each place is in the MAC or in the addresses; the first three characters hold version, type, key and router.
    for at in [4, 5, 10, 17, 20, 25, -9, -8, -6, -4, -3] {
        let request = s.dialog.by_caller("SUBSCRIBE", &s.phone).with("Route", s.route(&forged(&token, at)));
        assert_eq!(s.refused(&s.phone, &request), 403, "character {at} of {token}");
    }
    let ack = s.dialog.by_caller("ACK", &s.phone).with("Route", s.route(&forged(&token, -5)));
    s.phone.send(s.scene.phones(), ack.text());
    s.scene.quiet(&[&s.phone, &s.pbx1, &s.pbx2]);
}

/// Whatever is no whole token of ours leads nowhere: it is popped unread, refused, or a dead route, and the request
/// never goes where a token would take it.
#[test]
fn what_is_cut_stretched_or_of_another_version_leads_nowhere() {
    let s = Split::start(55);
    let token = s.token().to_owned();
    let mut words = vec![
        forged(&token, 0),
        forged(&token, 1),
        forged(&token, 2),
        token[..token.len() - 1].to_owned(),
        token[..token.len() - 4].to_owned(),
        token[..8].to_owned(),
        token[..1].to_owned(),
        format!("{token}A"),
        format!("{token}AAAA"),
        format!("{token}="),
        format!("{token}%41"),
        token.replacen(&token[5..6], "+", 1),
        "A".repeat(48),
        "A".repeat(400),
    ];
    words.push(token.chars().rev().collect());
    for word in words {
        let request = s.dialog.by_caller("MESSAGE", &s.phone).with("Route", s.route(&word));
        s.phone.send(s.scene.phones(), request.text());
        s.scene.settle();
        let brief = std::time::Duration::from_millis(5);
        if s.pbx2.poll(brief).is_none() {
            let answer = s.phone.receive("an answer");
            assert!(matches!(text::status(&answer), Some(403 | 481)), "{word}: {answer}");
        }
        s.scene.quiet(&[&s.pbx1, &s.phone]);
    }
}

/// Types are never interchangeable: a Via branch, a Path and a Record-Route are one alphabet, not one thing.
#[test]
fn a_token_of_another_type_does_not_count() {
    let s = Split::start(56);
    let victim = s.scene.party(40);
    let (register, _) = s.scene.register(&victim, &s.pbx2, "victim", "<sip:victim@127.40.56.40:5060>");
    let path = user(text::header(&register, "Path")).to_owned();
    let notify = s.dialog.by_callee("NOTIFY", &s.pbx1);
    s.pbx1.send(first_route(&notify), notify.text());
    let via = branch(&s.phone.expect("NOTIFY ")).trim_start_matches("z9hG4bK").to_owned();
    for token in [&path, &via] {
        let request = s.dialog.by_caller("MESSAGE", &s.phone).with("Route", s.route(token));
        s.phone.send(s.scene.phones(), request.text());
        let got = s.pbx2.expect("MESSAGE ");
        assert!(text::headers(&got, "Route").is_empty(), "popped unread, and by the table:\n{got}");
    }
    s.scene.quiet(&[&victim, &s.phone, &s.pbx1]);
}

/// A path token is for backends; a phone that knows one reaches nobody with it.
#[test]
fn a_path_token_from_a_client_is_popped_unread() {
    let s = Split::start(57);
    let victim = s.scene.party(40);
    let (register, answer) = s.scene.register(&victim, &s.pbx2, "victim", "<sip:victim@127.40.57.40:5060>");
    assert!(text::headers(&answer, "Path").is_empty(), "the phone is not told:\n{answer}");
    let path = text::header(&register, "Path").to_owned();
    for named in [path.clone(), s.route(user(&path))] {
        for method in ["INVITE", "MESSAGE", "NOTIFY", "REGISTER", "OPTIONS"] {
            let request =
                Request::new(method, "sip:victim@127.40.57.40:5060", &s.phone).with("Route", &named);
            s.phone.send(s.scene.phones(), request.text());
            let got = s.pbx2.expect(method);
            assert!(text::headers(&got, "Route").is_empty(), "{got}");
        }
    }
    let request = Request::new("INVITE", "sip:victim@127.40.57.40:5060", &s.phone).with("Route", &path);
    s.phone.send(s.scene.pbxs(), request.text());
    s.phone.expect("SIP/2.0 403");
    s.scene.quiet(&[&victim, &s.pbx1, &s.phone]);
}

/// From a client: only ever toward the backend side, also where the token is another phone's, good Call-ID and all.
#[test]
fn another_phones_whole_dialog_leads_to_its_backend_and_never_to_that_phone() {
    let s = Split::start(58);
    let hostile = s.scene.party(66);
    for method in ["MESSAGE", "NOTIFY", "BYE", "INVITE"] {
        for request in [s.dialog.by_caller(method, &hostile), s.dialog.by_callee(method, &hostile)] {
            let request = request.with("Route", s.route(s.token()));
            hostile.send(s.scene.phones(), request.text());
            let got = s.pbx1.expect(method);
            s.pbx1.answer(s.scene.pbxs(), &got, "403 Forbidden", "", "");
            hostile.expect("SIP/2.0 403");
        }
    }
    s.scene.quiet(&[&s.phone, &s.pbx2]);
    // The backend did not take it, so the flow did not move.
    let notify = s.dialog.by_callee("NOTIFY", &s.pbx1);
    s.pbx1.send(first_route(&notify), notify.text());
    s.phone.expect("NOTIFY ");
    s.scene.quiet(&[&hostile]);
}

/// The token of a dialog between two backends is not for clients, whatever they know.
#[test]
fn a_client_with_a_token_of_two_backend_sides_is_403() {
    let table = pool("one", 59, &[1])
        + &pool("two", 59, &[2])
        + &rule("between", "source = \"one\", method = [\"SUBSCRIBE\"]", "route = \"two\"")
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("phones", "source = \"clients\"", "route = \"one\"");
    let scene = Scene::start(59, &table);
    let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    let request = Request::new("SUBSCRIBE", "sip:lamp@example.com", &pbx1);
    let dialog = Dialog::open(&pbx1, scene.pbxs(), &pbx2, &request);
    for request in [dialog.by_caller("SUBSCRIBE", &phone), dialog.by_callee("NOTIFY", &phone)] {
        let token = user(request.value("Route")).to_owned();
        let request = request.with("Route", format!("<sip:{token}@{};lr>", scene.phones()));
        phone.send(scene.phones(), request.text());
        phone.expect("SIP/2.0 403");
    }
    assert_eq!(scene.refused("token_side"), 2.0);
    let ack = dialog.by_caller("ACK", &phone);
    phone.send(scene.phones(), ack.text());
    scene.quiet(&[&phone, &pbx1, &pbx2]);
}

/// RFC 3903: Asterisk takes a PUBLISH without looking at its To tag, so no token may carry one. A phone's PUBLISH with
/// its own token goes by the table (which may refuse it).
#[test]
fn publish_and_register_never_go_by_token() {
    let table = pool("lamps", 60, &[1])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("lamps", "source = \"clients\", method = [\"SUBSCRIBE\"]", "route = \"lamps\"")
        + &rule("else", "source = \"clients\"", "reply = { code = 488, reason = \"Not Here\" }");
    let scene = Scene::start(60, &table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    for method in ["PUBLISH", "REGISTER"] {
        let request = dialog.by_caller(method, &phone);
        phone.send(scene.phones(), request.text());
        phone.expect("SIP/2.0 488");
    }
    scene.quiet(&[&pbx]);
}

/// A rotated key: the route is dead, so that phones subscribe afresh; nothing is forwarded by it.
#[test]
fn a_token_of_a_removed_key_is_a_dead_route() {
    let mut layout = Layout::new(61);
    layout.keys = "{ id = 2, key = \"0f0e0d0c0b0a09080706050403020100\" }".into();
    let (phone, pbx, dialog) = {
        let before = Scene::start(61, &one_pbx(61));
        let (phone, pbx) = (before.phone(), before.pbx(1));
        let dialog = Dialog::subscribe(&before, &phone, &pbx);
        (phone, pbx, dialog)
    };
    let scene = layout.start(&one_pbx(61));
    for method in ["SUBSCRIBE", "BYE", "MESSAGE"] {
        let request = dialog.by_caller(method, &phone);
        phone.send(first_route(&request), request.text());
        phone.expect("SIP/2.0 481");
    }
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    let answer = pbx.expect("SIP/2.0 481");
    assert!(text::headers(&answer, "Retry-After").is_empty(), "grace is over at once:\n{answer}");
    phone.send(scene.phones(), dialog.by_caller("ACK", &phone).text());
    scene.quiet(&[&phone, &pbx]);
    assert_eq!(scene.router.metrics().sum("tidings_token_unknown_key_total", &[]), 5.0);
}

/// One random key of one's own proves nothing: the same id, another secret.
#[test]
fn a_token_signed_with_another_secret_under_a_known_id_is_403() {
    let mut layout = Layout::new(62);
    layout.keys = "{ id = 1, key = \"ffeeddccbbaa99887766554433221100\" }".into();
    let (phone, pbx, dialog) = {
        let foreign = layout.start(&one_pbx(62));
        let (phone, pbx) = (foreign.phone(), foreign.pbx(1));
        let dialog = Dialog::subscribe(&foreign, &phone, &pbx);
        (phone, pbx, dialog)
    };
    let scene = Scene::start(62, &one_pbx(62));
    for method in ["SUBSCRIBE", "MESSAGE"] {
        let request = dialog.by_caller(method, &phone);
        phone.send(first_route(&request), request.text());
        phone.expect("SIP/2.0 403");
    }
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    pbx.expect("SIP/2.0 403");
    scene.quiet(&[&phone, &pbx]);
}

/// A token names the listener by which it is used only in its host part: a phone that sends it to the PBXs' listener is
/// a client there, too.
#[test]
fn a_token_does_not_open_the_backends_listener() {
    let s = Split::start(63);
    let route = format!("<sip:{}@{};lr>", s.token(), s.scene.pbxs());
    let request = s.dialog.by_caller("SUBSCRIBE", &s.phone).with("Route", route);
    s.phone.send(s.scene.pbxs(), request.text());
    s.phone.expect("SIP/2.0 403");
    s.scene.quiet(&[&s.pbx1, &s.pbx2]);
    assert_eq!(uri_address(&s.dialog.caller_routes[0]), s.scene.phones());
}

/// SPEC 7.1: a pin is for the retransmission, the CANCEL, the ACK and the retry of its INVITE. It carries nothing else past
/// the table.
#[test]
fn a_pin_takes_no_other_request_past_the_table() {
    let table = pool("calls", 64, &[1])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &pool("tolls", 64, &[2])
        + &rule(
            "dear",
            "source = \"clients\", ruri = \"^sip:9\"",
            "reply = { code = 403, reason = \"Barred\" }",
        )
        + &rule("abroad", "source = \"clients\", ruri = \"^sip:8\"", "route = \"tolls\"")
        + &rule("calls", "source = \"clients\", method = [\"INVITE\"]", "route = \"calls\"")
        + &rule("else", "source = \"clients\"", "reply = { code = 488, reason = \"Not Here\" }");
    let scene = Scene::start(64, &table);
    let (phone, pbx, tolls) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    let invite = Request::new("INVITE", "sip:1000@example.com", &phone);
    phone.send(scene.phones(), invite.text());
    pbx.expect("INVITE ");
    for method in ["MESSAGE", "REGISTER", "PUBLISH", "SUBSCRIBE", "REFER", "UNHEARDOF"] {
        let mut other = invite.clone().with("CSeq", format!("2 {method}")).with("Event", "presence");
        other.method = method.into();
        phone.send(scene.phones(), other.text());
        phone.expect("SIP/2.0 488");
    }
    // The retry of a call is not a call to another number.
    let other = invite.clone().with("CSeq", "3 INVITE");
    phone.send(scene.phones(), other.clone().to("sip:900@example.com").text());
    phone.expect("SIP/2.0 403");
    phone.send(scene.phones(), other.to("sip:800@example.com").text());
    tolls.expect("INVITE ");
    scene.quiet(&[&pbx, &phone]);
}

/// SPEC 7.1: rules look at more than a pin's key holds. What they answer, drop, limit or send to another pool is, pin or not;
/// what they send where the pin leads goes there, with what they set.
#[test]
fn a_pin_takes_no_request_past_the_rule_that_it_meets() {
    let calls = "source = \"clients\", method = [\"INVITE\"]";
    let table = pool("calls", 66, &[1])
        + &pool("tolls", 66, &[2])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("barred", "from = \"^<sip:barred@\"", "reply = { code = 403, reason = \"Barred\" }")
        + &rule("scanner", "user-agent = \"scanner\"", "drop = true")
        + &rule("tolls", "user-agent = \"tolls\"", "route = \"tolls\"")
        + &rule("calls", calls, "route = \"calls\"\nlimit = \"3/s\"\nset.X-Rule = \"{rule}\"")
        + &rule("else", "source = \"clients\"", "route = \"tolls\"");
    let scene = Scene::start(66, &table);
    let (phone, pbx, tolls) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    let invite = Request::new("INVITE", "sip:1000@example.com", &phone);
    phone.send(scene.phones(), invite.text());
    let first = pbx.expect("INVITE ");
    // In its own transaction and in the next one.
    for cseq in ["1 INVITE", "2 INVITE"] {
        let other = invite.clone().with("CSeq", cseq);
        let from = invite.value("From").replace("alice", "barred");
        phone.send(scene.phones(), other.clone().with("From", from).text());
        phone.expect("SIP/2.0 403");
        phone.send(scene.phones(), other.clone().and("User-Agent", "scanner").text());
        scene.quiet(&[&pbx, &tolls, &phone]);
        phone.send(scene.phones(), other.and("User-Agent", "tolls").text());
        tolls.expect("INVITE ");
        // The pin leads to the last again.
        phone.send(scene.phones(), invite.text());
        assert_eq!(text::header(&pbx.expect("INVITE "), "X-Rule"), "calls");
    }
    // The limit counts every transaction, and none twice.
    let brief = std::time::Duration::from_millis(1);
    let (mut last, mut passed) = (invite.clone(), 0);
    for cseq in 3..40 {
        let next = invite.clone().with("CSeq", format!("{cseq} INVITE"));
        phone.send(scene.phones(), next.text());
        scene.settle();
        if pbx.poll(brief).is_some() {
            (last, passed) = (next, passed + 1);
        }
    }
    let limited = scene.refused("limited") as u32;
    assert!(limited >= 20 && passed + limited == 37, "{passed} passed, {limited} were refused");
    for _ in 0..9 {
        phone.send(scene.phones(), last.text());
        pbx.expect("INVITE ");
    }
    let mut cancel = invite.with("CSeq", "1 CANCEL").and("User-Agent", "scanner");
    cancel.method = "CANCEL".into();
    phone.send(scene.phones(), cancel.text());
    assert_eq!(branch(&pbx.expect("CANCEL ")), branch(&first));
}

/// A token takes an INVITE of its dialog to its backend; that leaves no pin by which an INVITE of a new dialog, or any
/// other method, would follow.
#[test]
fn a_token_leaves_no_way_for_requests_without_one() {
    let s = Split::start(65);
    let inside = s.dialog.by_caller("INVITE", &s.phone);
    s.phone.send(first_route(&inside), inside.text());
    s.pbx1.expect("INVITE ");
    for method in ["INVITE", "MESSAGE"] {
        let outside = s.dialog.by_caller(method, &s.phone).without("Route");
        let outside = outside.with("To", "<sip:1000@example.com>").with("CSeq", format!("3 {method}"));
        s.phone.send(s.scene.phones(), outside.text());
        s.pbx2.expect(method);
    }
    s.scene.quiet(&[&s.pbx1, &s.phone]);
}
