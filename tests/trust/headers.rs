//! Headers that only the router may write (SPEC 1.2).

use crate::rig::{
    message::Request,
    scene::{Dialog, Layout, first_route, pool, rule},
};

const STRIP: &str = "[trust]\nstrip = [\"X-Secret\", \"Subject\", \"Referred-By\"]\n";

/// pbx1 for phones, with X-Node set on one rule; another rule sets X-Other, and never matches.
fn table(net: u8) -> String {
    pool("one", net, &[1])
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule(
            "never",
            "method = [\"NEVERUSED\"]",
            "route = \"one\"\nset.X-Other = \"1\"\nset.User-Class = \"1\"",
        )
        + &rule("subscribe", "source = \"clients\", method = [\"SUBSCRIBE\"]", "route = \"one\"")
        + &rule("to the pbx", "source = \"clients\"", "route = \"one\"\nset.X-Node = \"{source.ip} {rule}\"")
}

/// Every way to write each name that RFC 3261 7.3 allows. The value has a character that no token of ours can have.
fn forms() -> Vec<(&'static str, &'static str)> {
    vec![
        ("X-Secret", "ev!l"),
        ("x-secret", "ev!l"),
        ("X-SECRET ", "ev!l"),
        ("x-SeCrEt\t \t", "ev!l"),
        ("X-Secret", "\r\n ev!l"),
        ("X-Secret  ", "\r\n\t\r\n ev!l"),
        ("X-Secret", "a,\r\n  ev!l"),
        ("X-Secret", ""),
        ("X-Node", "ev!l"),
        ("x-node ", "ev!l"),
        ("X-Other", "ev!l"),
        ("x-OTHER", "\r\n\tev!l"),
        ("User-Class", "ev!l"),
        ("Subject", "ev!l"),
        ("s", "ev!l"),
        ("S ", "ev!l"),
        ("Referred-By", "<sip:ev!l@example.com>"),
        ("b", "<sip:ev!l@example.com>"),
        ("B\t", "\r\n <sip:ev!l@example.com>"),
    ]
}

/// None of the names is left, in any form, nor their values.
#[track_caller]
fn assert_clean(got: &str, form: (&str, &str)) {
    assert!(!got.to_lowercase().contains("ev!l"), "{form:?} came through:\n{got}");
    let names = ["x-secret", "x-other", "user-class", "subject", "s", "referred-by", "b"];
    for line in got.split("\r\n").skip(1).take_while(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or_default().trim().to_lowercase();
        assert!(!names.contains(&name.as_str()), "{form:?} left {line:?}:\n{got}");
    }
}

#[test]
fn what_the_table_sets_and_what_trust_strips_never_comes_from_a_client() {
    let scene = Layout::new(20).more(STRIP).start(&table(20));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for form in forms() {
        let (name, value) = form;
        let placed = [
            Request::new("MESSAGE", "sip:1000@example.com", &phone).and(name, value),
            Request::new("MESSAGE", "sip:1000@example.com", &phone).above(name, value),
            Request::new("MESSAGE", "sip:1000@example.com", &phone).above(name, value).and(name, value),
            Request::new("REGISTER", "sip:example.com", &phone).and(name, value).and("X-Kept", "yes"),
        ];
        for request in placed {
            phone.send(scene.phones(), request.text());
            let got = pbx.expect(&request.method);
            assert_clean(&got, form);
            assert_eq!(got.matches("X-Node: 127.40.20.31 to the pbx\r\n").count(), 1, "{got}");
            assert_eq!(got.contains("X-Kept: yes\r\n"), request.method == "REGISTER", "{got}");
            assert!(got.ends_with("\r\n\r\n") && got.matches("\r\n\r\n").count() == 1, "{got}");
        }
    }
    assert!(scene.router.metrics().sum("tidings_headers_stripped_total", &[]) >= 19.0 * 5.0);
}

/// A rule without `set` strips too: the names count for the whole table.
#[test]
fn a_rule_that_sets_nothing_strips_what_others_set() {
    let scene = Layout::new(21).more(STRIP).start(&table(21));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for form in forms() {
        let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).and(form.0, form.1);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect("SUBSCRIBE ");
        assert_clean(&got, form);
        assert!(!got.contains("X-Node"), "{got}");
    }
}

#[test]
fn a_good_token_does_not_save_a_header_from_being_stripped() {
    let scene = Layout::new(22).more(STRIP).start(&table(22));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    for form in forms() {
        let request = dialog.by_caller("SUBSCRIBE", &phone).and(form.0, form.1);
        phone.send(first_route(&request), request.text());
        assert_clean(&pbx.expect("SUBSCRIBE "), form);
    }
}

/// What is no header of that name stays: a name that only begins alike, the same word in a body or a value.
#[test]
fn stripping_takes_whole_names_and_headers_only() {
    let scene = Layout::new(23).more(STRIP).start(&table(23));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let request = Request::new("MESSAGE", "sip:1000@example.com", &phone)
        .and("X-Secrets", "1")
        .and("X-Secre", "2")
        .and("Subjects", "3")
        .and("X-Note", "a\r\n X-Secret: 4")
        .body("text/plain", "X-Secret: 5\r\nSubject: 6\r\n");
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("MESSAGE ");
    for kept in ["X-Secrets: 1", "X-Secre: 2", "Subjects: 3", "X-Note: a\r\n X-Secret: 4"] {
        assert!(got.contains(&format!("\r\n{kept}\r\n")), "{kept:?} is gone:\n{got}");
    }
    assert!(got.ends_with("\r\n\r\nX-Secret: 5\r\nSubject: 6\r\n"), "{got}");
}

#[test]
fn headers_of_backends_and_of_trusted_sources_are_kept() {
    let more = STRIP.to_owned() + "prefixes = [\"127.40.24.64/28\"]\n";
    let scene = Layout::new(24).more(&more).start(&table(24));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    scene.register(&phone, &pbx, "alice", &format!("<sip:alice@{}>", phone.address));
    let trusted = scene.party(66);
    for from in [&pbx, &trusted] {
        let request = Request::new("MESSAGE", "sip:alice@127.40.24.31:5060", from)
            .and("X-Secret ", "from inside")
            .and("s", "also");
        from.send(scene.pbxs(), request.text());
        let got = phone.expect("MESSAGE ");
        assert!(got.contains("\r\nX-Secret : from inside\r\ns: also\r\n"), "{got}");
    }
}

/// "Before all else": no rule sees what is stripped.
#[test]
fn a_stripped_header_matches_no_rule() {
    let table = pool("one", 26, &[1])
        + &rule("secret", "header.X-Secret = \"ev!l\"", "reply = { code = 488, reason = \"Seen\" }")
        + &rule("subject", "header.Subject = \"ev!l\"", "reply = { code = 488, reason = \"Seen\" }")
        + &rule("kept", "header.X-Kept = \"ev!l\"", "reply = { code = 486, reason = \"Kept\" }")
        + &rule("all", "", "route = \"one\"");
    let scene = Layout::new(26).more(STRIP).start(&table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for form in forms() {
        let request = Request::new("MESSAGE", "sip:1000@example.com", &phone).and(form.0, form.1);
        phone.send(scene.phones(), request.text());
        if matches!(form.0.trim().to_lowercase().as_str(), "x-node" | "x-other" | "user-class") {
            pbx.expect("MESSAGE ");
        } else {
            assert_clean(&pbx.expect("MESSAGE "), form);
        }
    }
    let kept = Request::new("MESSAGE", "sip:1000@example.com", &phone).and("x-kept ", "ev!l");
    phone.send(scene.phones(), kept.text());
    phone.expect("SIP/2.0 486");
    pbx.send(scene.pbxs(), Request::new("MESSAGE", "sip:1@example.com", &pbx).and("x-SECRET", "ev!l").text());
    pbx.expect("SIP/2.0 488");
    scene.quiet(&[&phone, &pbx]);
}

/// A backend's address on a listener for clients is a client: its headers go.
#[test]
fn a_backends_address_on_a_clients_listener_is_stripped() {
    let table = pool("others", 25, &[1])
        + &pool("one", 25, &[2])
        + &rule("all", "source = \"clients\"", "route = \"one\"");
    let scene = Layout::new(25).more(STRIP).start(&table);
    let (pbx1, pbx2) = (scene.pbx(1), scene.pbx(2));
    let request = Request::new("MESSAGE", "sip:1000@example.com", &pbx1).and("X-Secret", "ev!l");
    pbx1.send(scene.phones(), request.text());
    assert_clean(&pbx2.expect("MESSAGE "), ("X-Secret", "ev!l"));
}
