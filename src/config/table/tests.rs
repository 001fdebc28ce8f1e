//! Tables: Appendix A as it stands, what is read into which field, and bounds on hostile text. Faults and their places
//! are in routing/invalid, driven by tests/tables.rs.

use super::*;
use crate::config::{
    Diagnostic,
    settings::{ListenSpec, Side},
};

fn good(text: &str) -> (TableSpec, Vec<Diagnostic>) {
    parse("t.toml", text).unwrap_or_else(|faults| {
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        panic!("{}", shown.join("\n"))
    })
}

/// SPEC, Appendix A, to the letter.
const APPENDIX_A: &str = r#"# table.toml
[[pool]]
name = "presence"
balance = "resource"
probe = "off"   # or { method = "OPTIONS", interval = "5s", timeout = "1s", fall = 3, rise = 2 }; absent: off until health exists, then OPTIONS

[[pool.backend]]
name = "pbx1"
uri = "sip:127.0.0.11:5060;transport=udp"
weight = 10

[[rule]]
name = "presence and lamps"
match = { method = ["SUBSCRIBE", "PUBLISH"], event = ["presence", "dialog", "message-summary"], ruri = "^sip:1[0-9]{3}@" }
route = "presence"

[[rule]]
name = "device state between Asterisks"
match = { method = ["PUBLISH"], event = ["asterisk-devicestate"], source = "backends", device_state_filter = "^PJSIP/" }
route = "request-uri"                # fork = "presence" where the hub is wanted

[[rule]]
name = "calls, lamps and mailboxes toward phones"
match = { source = "backends" }
route = "flow"

[[rule]]
name = "packages that nobody serves"
match = { method = ["SUBSCRIBE", "PUBLISH", "NOTIFY"] }
reply = { code = 489, reason = "Bad Event" }

[[rule]]
name = "calls and registrations"
match = { source = "clients" }
route = "presence"
path = true
"#;

#[test]
fn appendix_a_parses_as_it_stands() {
    let (spec, warnings) = good(APPENDIX_A);
    assert!(warnings.is_empty(), "{warnings:?}");
    let [pool] = &spec.pools[..] else { panic!("one pool") };
    assert_eq!((pool.name.as_str(), &pool.balance, pool.silence), ("presence", &Balance::Resource, true));
    let backend = &pool.backends[0];
    assert_eq!(backend.addr, SocketAddr::from(([127, 0, 0, 11], 5060)).into());
    assert_eq!(
        (backend.weight, backend.state, backend.host.as_str()),
        (10, AdminState::Active, "127.0.0.11")
    );
    let actions: Vec<&ActionSpec> = spec.rules.iter().map(|rule| &rule.action).collect();
    let reply = ActionSpec::Reply { code: 489, reason: "Bad Event".into(), headers: Vec::new() };
    let presence = ActionSpec::Route("presence".into());
    assert_eq!(actions, [&presence, &ActionSpec::RequestUri, &ActionSpec::Flow, &reply, &presence]);
    let filter = &spec.rules[1].matches.patterns[0];
    assert_eq!(filter.subject, Subject::Body("device".into()));
    assert_eq!((&*filter.written, &*filter.regex, filter.absent_holds), ("^PJSIP/", "(?is-u)^PJSIP/", true));
    assert!(spec.rules[4].path && spec.rules[4].record_route);
    assert_eq!(spec.rules[4].line, 32);
}

#[test]
fn every_key_has_its_field() {
    let (spec, _) = good(
        r#"
        [[pool]]
        name = "p"
        balance = "header:X-Tenant"
        any_port = true
        listener = "inside"
        unavailable = "503"
        backend = [{ name = "b", uri = "sip:[2001:DB8::1];transport=UDP", state = "drain" }, { name = "c", uri = "sip:10.0.0.1" }]
        [[rule]]
        name = "r"
        route = "p"
        record_route = false
        set.X-Node = "{source.backend}/{rule}"
        remove.X-Old = true
        strip_prefix = "00"
        limit = "100/s"
        tag = "t"
        [rule.match]
        method = ["FOO", "INVITE"]
        event = "presence.winfo"
        source = ["10.0.0.0/8", "2001:db8::1", "p"]
        transport = "udp"
        listener = ["inside", "outside"]
        user-agent = "a"
        "header.S" = "b"
        header.X-Foo = "c"
        body.device = "d"
        "body.raw" = "e"
        mailbox_state_filter = "f"
        [packages]
        known = ["presence", "dialog"]
        reg = {}
        "#,
    );
    let pool = &spec.pools[0];
    assert_eq!(
        (&pool.balance, pool.any_port, pool.silence),
        (&Balance::Header("x-tenant".into()), true, false)
    );
    assert_eq!((pool.backends[0].host.as_str(), pool.backends[0].state), ("2001:db8::1", AdminState::Drain));
    let rule = &spec.rules[0];
    assert!(!rule.record_route);
    let template = Template(vec![Piece::SourceBackend, Piece::Text("/".into()), Piece::Rule]);
    assert_eq!(rule.set, [("X-Node".to_owned(), template)]);
    assert_eq!((&rule.remove[..], rule.strip_prefix.as_deref()), (&["X-Old".to_owned()][..], Some("00")));
    assert_eq!((rule.limit, rule.tag.as_deref()), (Some(100), Some("t")));
    let matches = &rule.matches;
    assert_eq!(matches.method, [(Method::Other, "FOO".into()), (Method::Invite, "INVITE".into())]);
    assert_eq!(matches.source.len(), 3);
    assert_eq!(matches.source[2], SourceSpec::Pool("p".into()));
    let subjects: Vec<&Subject> = matches.patterns.iter().map(|pattern| &pattern.subject).collect();
    let expected = [
        Subject::UserAgent,
        Subject::Header("subject".into()),
        Subject::Header("x-foo".into()),
        Subject::Body("device".into()),
        Subject::BodyRaw,
        Subject::Body("uniqueid".into()),
    ];
    assert_eq!(subjects, expected.iter().collect::<Vec<_>>());
    assert_eq!(spec.packages, ["presence", "dialog", "reg"]);
    assert_eq!(spec.listener_uses.len(), 3);
}

#[test]
fn listeners_are_checked_against_the_settings() {
    let (spec, _) = good(
        "[[pool]]\nname = \"p\"\nlistener = \"phones\"\nbackend = [{ name = \"b\", uri = \"sip:[::1]\" }]\n\
         [[rule]]\nname = \"r\"\nmatch = { listener = [\"phone\", \"inside\"] }\nroute = \"p\"\n\
         [[pool]]\nname = \"q\"\nlistener = \"inside\"\nbackend = [{ name = \"c\", uri = \"sip:[::2]\" }]\n",
    );
    let address = SocketAddr::from(([10, 0, 0, 1], 5060));
    let listeners = [
        ListenSpec::udp("phones", address, Side::Clients),
        ListenSpec::udp("inside", address, Side::Backends),
    ];
    let shown: Vec<String> = check_listeners(&spec, &listeners)
        .iter()
        .map(|fault| format!("{}:{}: {}", fault.line, fault.column, fault.message))
        .collect();
    assert_eq!(
        shown,
        [
            "3:12: listener \"phones\" has side = \"clients\": nothing leaves by it toward a backend",
            "7:23: unknown listener \"phone\", did you mean \"phones\"?",
            "11:12: listener \"inside\" cannot reach backend \"c\": one is IPv4, the other IPv6",
        ]
    );
}

#[test]
fn ten_thousand_rules_are_read_and_linted() {
    let mut text =
        String::from("[[pool]]\nname = \"p\"\nbackend = [{ name = \"b\", uri = \"sip:10.0.0.1\" }]\n");
    for rule in 0..10_000 {
        text += &format!(
            "[[rule]]\nname = \"r{rule}\"\nmatch = {{ ruri = \"^sip:{rule}@\", event = \"presence\" }}\nroute = \"p\"\n"
        );
    }
    text += "[[rule]]\nname = \"late\"\nmatch = { ruri = \"^sip:9999@\", event = \"presence\", method = \"PUBLISH\" }\nroute = \"p\"\n";
    let (spec, warnings) = good(&text);
    assert_eq!((spec.rules.len(), warnings.len()), (10_001, 1));
    assert!(warnings[0].message.contains("\"r9999\""), "{}", warnings[0]);
}

#[test]
fn rubbish_gives_a_bounded_number_of_bounded_faults() {
    let hostile = [
        "x = 1\n".repeat(20_000),
        "[[rule]]\n".repeat(20_000),
        format!("a = {}", "[".repeat(50_000)),
        format!("a{} = 1", ".b".repeat(50_000)),
        "\"".repeat(50_000),
        format!("[[rule]]\nname = \"{}\"\n", "ä\u{1}".repeat(50_000)),
        format!("x = 1, {}", "y = 2, ".repeat(20_000)),
        format!("[[rule]]\nname=\"r\"\ndrop=true\nmatch={{ruri=\"{}\"}}", "(".repeat(8_000)),
        format!("[[rule]]\nname=\"r\"\ndrop=true\nmatch={{device_state_filter=\"x{}\"}}", "*".repeat(8_000)),
        format!(
            "[[rule]]\nname=\"r\"\ndrop=true\nmatch={{device_state_filter=\"{}\"}}",
            "((a{9}){9})".repeat(700)
        ),
        "\r\n\u{feff}\u{2028}\0".repeat(100),
    ];
    for text in &hostile {
        let faults = match parse("t.toml", text) {
            Ok((_, warnings)) => warnings,
            Err(faults) => faults,
        };
        assert!(faults.len() <= 1001, "{}", faults.len());
        for fault in &faults {
            let shown = fault.to_string();
            assert!(shown.len() < 4096, "{} bytes", shown.len());
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::default()
    })]

    /// Any slip in a good table: a fault with a place inside the text, or a table; never a panic.
    #[test]
    fn a_mutilated_table_never_panics(
        cut in 0..APPENDIX_A.len(),
        length in 0..40_usize,
        put in "[\\[\\]{}=\"'\\.a-z0-9\n#,äé\\\\ -]{0,12}",
    ) {
        let mut text: Vec<char> = APPENDIX_A.chars().collect();
        let cut = cut.min(text.len());
        let end = (cut + length).min(text.len());
        text.splice(cut..end, put.chars());
        let text: String = text.into_iter().collect();
        if let Err(faults) = parse("t.toml", &text) {
            let lines = text.lines().count() + 1;
            assert!(faults.iter().any(Diagnostic::is_error));
            assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line) && fault.column >= 1));
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "([\\[\\]{}=\"'\\. \n#,a-c\\\\]|rule|pool|match|name|\\[\\[rule\\]\\]\n|\\PC){0,60}") {
        let _ = parse("t.toml", &text);
    }
}
