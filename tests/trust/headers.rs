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

/// Every way to write each name that RFC 3261 7.3 allows.
fn forms() -> Vec<(&'static str, &'static str)> {
    vec![
        ("X-Secret", "evil"),
        ("x-secret", "evil"),
        ("X-SECRET ", "evil"),
        ("x-SeCrEt\t \t", "evil"),
        ("X-Secret", "\r\n evil"),
        ("X-Secret  ", "\r\n\t\r\n evil"),
        ("X-Secret", "a,\r\n  evil"),
        ("X-Secret", ""),
        ("X-Node", "evil"),
        ("x-node ", "evil"),
        ("X-Other", "evil"),
        ("x-OTHER", "\r\n\tevil"),
        ("User-Class", "evil"),
        ("Subject", "evil"),
        ("s", "evil"),
        ("S ", "evil"),
        ("Referred-By", "<sip:evil@example.com>"),
        ("b", "<sip:evil@example.com>"),
        ("B\t", "\r\n <sip:evil@example.com>"),
    ]
}

/// None of the names is left, in any form, nor their values.
#[track_caller]
fn assert_clean(got: &str, form: (&str, &str)) {
    assert!(!got.to_lowercase().contains("evil"), "{form:?} came through:\n{got}");
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

/// A backend's address on a listener for clients is a client: its headers go.
#[test]
fn a_backends_address_on_a_clients_listener_is_stripped() {
    let table = pool("others", 25, &[1])
        + &pool("one", 25, &[2])
        + &rule("all", "source = \"clients\"", "route = \"one\"");
    let scene = Layout::new(25).more(STRIP).start(&table);
    let (pbx1, pbx2) = (scene.pbx(1), scene.pbx(2));
    let request = Request::new("MESSAGE", "sip:1000@example.com", &pbx1).and("X-Secret", "evil");
    pbx1.send(scene.phones(), request.text());
    assert_clean(&pbx2.expect("MESSAGE "), ("X-Secret", "evil"));
}
