//! Path on REGISTER, and requests that come back along it (SPEC 3.4, 3.5, 3.7, RFC 3327, RFC 5626).

use std::time::Duration;

use crate::{
    in_each_column, passes,
    rig::{
        message::Request,
        scene::{Dialog, Layout, Scene, one_pbx, pool, rule, uri_address, user, via_address},
        text, wait_for,
    },
};

/// Registrations with Path; backends' requests have no other way to phones than their Route.
fn only_by_path(net: u8) -> String {
    pool("one", net, &[1])
        + &rule("backends", "source = \"backends\"", "reply = { code = 488, reason = \"By Table\" }")
        + &rule("in", "source = \"clients\"", "route = \"one\"\npath = true")
}

const REG_ID: &str =
    "<sip:alice@10.0.0.7>;reg-id=1;+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000000000000>\"";

#[test]
fn a_register_gets_path_and_supported_and_its_2xx_loses_ours() {
    in_each_column(|| {
        let scene = Scene::start(150, &only_by_path(150));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let (got, answer) = scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.7>");
        let path = text::header(&got, "Path");
        assert_eq!(uri_address(path), scene.pbxs());
        assert!(text::uri(path).contains(";lr") && !path.contains(";ob"), "{path}");
        assert!(user(path).len() <= 48);
        let supported = text::headers(&got, "Supported").join(",");
        assert!(supported.split(',').any(|option| option.trim() == "path"), "{got}");
        assert!(text::headers(&answer, "Path").is_empty(), "{answer}");

        let (got, _) = scene.register(&phone, &pbx, "alice", REG_ID);
        assert!(text::header(&got, "Path").contains(";ob"), "Contact has reg-id:\n{got}");
    });
}

/// Options that stand there are kept, `path` is added once; a foreign Path stays, below ours, in the 2xx alone.
#[test]
fn supported_is_extended_once_and_a_foreign_path_stays() {
    in_each_column(|| {
        let scene = Scene::start(151, &only_by_path(151));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        for (name, value) in
            [("Supported", "outbound, gruu"), ("Supported", "path"), ("k", "gruu, path"), ("SUPPORTED", "")]
        {
            let request = Request::new("REGISTER", "sip:example.com", &phone)
                .and(name, value)
                .and("Path", "<sip:edge.example.org;lr>");
            phone.send(scene.phones(), request.text());
            let got = pbx.expect("REGISTER ");
            let options = [text::headers(&got, "Supported"), text::headers(&got, "k")].concat().join(",");
            let options: Vec<&str> = options.split(',').map(str::trim).filter(|o| !o.is_empty()).collect();
            assert_eq!(options.iter().filter(|o| **o == "path").count(), 1, "{got}");
            for option in value.split(',').map(str::trim).filter(|o| !o.is_empty()) {
                assert!(options.contains(&option), "{option} is gone:\n{got}");
            }
            let paths = text::headers(&got, "Path");
            assert_eq!(paths.len(), 2, "{got}");
            assert_eq!((uri_address(paths[0]), paths[1]), (scene.pbxs(), "<sip:edge.example.org;lr>"));
            let more =
                format!("Path: {}, {}\r\nContact: <sip:alice@10.0.0.7>;expires=60\r\n", paths[0], paths[1]);
            pbx.answer(scene.pbxs(), &got, "200 OK", "t", &more);
            let answer = phone.expect("SIP/2.0 200");
            assert_eq!(text::headers(&answer, "Path"), ["<sip:edge.example.org;lr>"], "{answer}");
        }
    });
}

/// To tag or not, any method but REGISTER and PUBLISH.
#[test]
fn a_backends_request_along_the_path_reaches_the_phones_flow() {
    in_each_column(|| {
        let scene = Scene::start(152, &only_by_path(152));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let (got, _) = scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.7>");
        let path = text::header(&got, "Path").to_owned();
        for method in ["INVITE", "NOTIFY", "MESSAGE", "OPTIONS", "SUBSCRIBE", "UNHEARDOF"] {
            let request = Request::new(method, "sip:alice@10.0.0.7", &pbx).and("Route", path.as_str());
            passes(&pbx, &request, &phone, scene.phones());
            let tagged = request.with("To", "<sip:alice@10.0.0.7>;tag=x").with("CSeq", format!("2 {method}"));
            passes(&pbx, &tagged, &phone, scene.phones());
        }
        for method in ["REGISTER", "PUBLISH"] {
            let request = Request::new(method, "sip:alice@10.0.0.7", &pbx).and("Route", path.as_str());
            pbx.send(scene.pbxs(), request.text());
            pbx.expect("SIP/2.0 488");
        }
        // A call that came so stays in its dialog by the Record-Route.
        let invite = Request::new("INVITE", "sip:alice@10.0.0.7", &pbx).and("Route", path.as_str());
        let dialog = Dialog::open(&pbx, scene.pbxs(), &phone, &invite);
        passes(&pbx, &dialog.by_caller("ACK", &pbx), &phone, scene.phones());
        passes(&phone, &dialog.by_callee("BYE", &phone), &pbx, scene.pbxs());
        scene.quiet(&[&phone, &pbx]);
    });
}

/// Another backend, and a trusted source that is none, may use the Path too: they share one registrar's data.
#[test]
fn any_backend_and_any_trusted_source_may_use_a_path() {
    in_each_column(|| {
        let table = only_by_path(153) + &pool("two", 153, &[2]);
        let scene = Layout::new(153).more("[trust]\nprefixes = [\"127.40.153.64/28\"]\n").start(&table);
        let (phone, pbx, other, trusted) = (scene.phone(), scene.pbx(1), scene.pbx(2), scene.party(66));
        let (got, _) = scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.7>");
        let path = text::header(&got, "Path").to_owned();
        for from in [&other, &trusted] {
            let request = Request::new("INVITE", "sip:alice@10.0.0.7", from).and("Route", path.as_str());
            passes(from, &request, &phone, scene.phones());
        }
    });
}

/// RFC 5626 11.4: 430 lets the registrar try another flow; without ob it is 480.
#[test]
fn a_path_to_a_dead_flow_is_480_and_with_ob_430() {
    let scene = Scene::start(154, &only_by_path(154));
    let pbx = scene.pbx(1);
    for (contact, code) in [("<sip:alice@10.0.0.7>", 480), (REG_ID, 430)] {
        let phone = scene.bind(format!("127.40.154.31:{}", 5000 + code));
        let (got, _) = scene.register(&phone, &pbx, "alice", contact);
        let path = text::header(&got, "Path").to_owned();
        drop(phone);
        let mut seen = 0;
        wait_for("the flow to be known as dead", Duration::from_secs(5), || {
            let request = Request::new("MESSAGE", "sip:alice@10.0.0.7", &pbx).and("Route", path.as_str());
            pbx.send(scene.pbxs(), request.text());
            let (answer, _) = pbx.poll(Duration::from_millis(100))?;
            seen = text::status(&String::from_utf8_lossy(&answer)).unwrap_or_default();
            (seen == code).then_some(())
        });
        while pbx.poll(Duration::from_millis(50)).is_some() {}
        let request = Request::new("INVITE", "sip:alice@10.0.0.7", &pbx).and("Route", path.as_str());
        pbx.send(scene.pbxs(), request.text());
        let answer = pbx.receive("an answer");
        assert_eq!(text::status(&answer), Some(code), "{answer}");
    }
}

/// A Path of a key that is gone is a dead route; a forged one is 403.
#[test]
fn a_path_of_a_removed_key_is_dead_and_a_forged_one_403() {
    let (phone, pbx, path, outbound) = {
        let before = Scene::start(155, &only_by_path(155));
        let (phone, pbx) = (before.phone(), before.pbx(1));
        let path = text::header(&before.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.7>").0, "Path")
            .to_owned();
        let outbound = text::header(&before.register(&phone, &pbx, "alice", REG_ID).0, "Path").to_owned();
        let token = user(&path);
        let (at, last) = (token.len() - 4, token.as_bytes()[token.len() - 4]);
        let other = if last == b'A' { 'B' } else { 'A' };
        let forged = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        let request =
            Request::new("INVITE", "sip:alice@10.0.0.7", &pbx).and("Route", path.replacen(token, &forged, 1));
        pbx.send(before.pbxs(), request.text());
        pbx.expect("SIP/2.0 403");
        before.quiet(&[&phone]);
        (phone, pbx, path, outbound)
    };
    let mut layout = Layout::new(155);
    layout.keys = "{ id = 4, key = \"44444444444444444444444444444444\" }".into();
    let scene = layout.start(&only_by_path(155));
    for (path, code) in [(path, 480), (outbound, 430)] {
        let request = Request::new("INVITE", "sip:alice@10.0.0.7", &pbx).and("Route", path);
        pbx.send(scene.pbxs(), request.text());
        let answer = pbx.receive("an answer");
        assert_eq!(text::status(&answer), Some(code), "{answer}");
    }
    scene.quiet(&[&phone]);
}

/// Only where the rule says so, only on REGISTER.
#[test]
fn no_path_without_the_rules_word_and_on_no_other_method() {
    let scene = Scene::start(156, &one_pbx(156));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for method in ["INVITE", "SUBSCRIBE", "PUBLISH", "MESSAGE"] {
        phone.send(scene.phones(), Request::new(method, "sip:1000@example.com", &phone).text());
        let got = pbx.expect(method);
        assert!(
            text::headers(&got, "Path").is_empty() && text::headers(&got, "Supported").is_empty(),
            "{got}"
        );
        assert_eq!(via_address(&got), scene.pbxs());
    }
}

/// Where Supported goes out, by the rule or by `[trust] strip`, `path` is said in a field of its own.
#[test]
fn path_is_supported_where_the_rule_removes_supported() {
    let table = pool("one", 159, &[1])
        + &rule(
            "in",
            "source = \"clients\"",
            "route = \"one\"\npath = true\nremove = [\"Supported\", \"Expires\"]",
        );
    let scene = Scene::start(159, &table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let request = Request::new("REGISTER", "sip:example.com", &phone)
        .and("Supported", "outbound")
        .and("Expires", "60")
        .and("X-Last", "1");
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("REGISTER ");
    assert_eq!(text::headers(&got, "Supported"), ["path"], "{got}");
    assert_eq!((text::headers(&got, "Expires").len(), text::header(&got, "X-Last")), (0, "1"), "{got}");
}
