//! Properties of the wire room on hostile bytes: nothing panics, every range lies where it says, and what the scan
//! accepts is what a slow and simple reading of the same bytes finds.

use proptest::prelude::*;
use tidings::wire::*;

const SEEDS: [&[u8]; 5] = [
    include_bytes!("fuzz/seeds/scan/subscribe.sip"),
    include_bytes!("fuzz/seeds/scan/publish-devicestate.sip"),
    include_bytes!("fuzz/seeds/scan/invite-compact.sip"),
    include_bytes!("fuzz/seeds/scan/odd-but-valid.sip"),
    include_bytes!("fuzz/seeds/scan/ok.sip"),
];

/// What messages and their parts are made of, the dangerous bits most of all.
const BITS: [&[u8]; 44] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"\\",
    b"<",
    b">",
    b"@",
    b"[",
    b"]",
    b"?",
    b"&",
    b"%",
    b"%41",
    b"/",
    b"SIP/2.0",
    b"INVITE",
    b"sip:",
    b"sips:",
    b"tel:",
    b"Via: SIP/2.0/UDP a;branch=z9hG4bK",
    b"From: ",
    b"f:",
    b"To: <sip:a@b>",
    b"Call-ID: x",
    b"CSeq: 1 INVITE",
    b"Content-Length: ",
    b"l: 3",
    b"Max-Forwards: 70",
    b"tag=",
    b"received=",
    b"rport",
    b"5060",
    b"2001:db8::1",
    b"\xc3\xa9",
    b"\xff",
];

fn soup(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let bit = prop_oneof![
        4 => prop::sample::select(BITS.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..6),
    ];
    prop::collection::vec(bit, 0..most).prop_map(|bits| bits.concat())
}

/// A seed with some bytes changed, put in or taken out.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edit = (
        any::<prop::sample::Index>(),
        0..3usize,
        0..4usize,
        prop::sample::select(BITS.to_vec()),
        any::<u8>(),
    );
    (prop::sample::select(SEEDS.to_vec()), prop::collection::vec(edit, 0..6)).prop_map(|(seed, edits)| {
        let mut bytes = seed.to_vec();
        for (place, kind, len, bit, byte) in edits {
            let at = place.index(bytes.len() + 1);
            let end = (at + len).min(bytes.len());
            match kind {
                0 => drop(bytes.splice(at..end, [byte])),
                1 => drop(bytes.splice(at..at, bit.iter().copied())),
                _ => drop(bytes.splice(at..end, [])),
            }
        }
        bytes
    })
}

fn is_blank(b: u8) -> bool {
    b == b' ' || b == b'\t'
}

fn trim(mut bytes: &[u8], blank: fn(u8) -> bool) -> &[u8] {
    while bytes.first().is_some_and(|b| blank(*b)) {
        bytes = &bytes[1..];
    }
    while bytes.last().is_some_and(|b| blank(*b)) {
        bytes = &bytes[..bytes.len() - 1];
    }
    bytes
}

/// The fields of a head, read line by line: name and value, folds kept.
fn slow_fields(head: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let text: Vec<&[u8]> = {
        let mut lines = Vec::new();
        let mut rest = head;
        while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
            lines.push(&rest[..end]);
            rest = &rest[end + 2..];
        }
        assert!(rest.is_empty());
        lines
    };
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for line in &text[1..text.len() - 1] {
        if is_blank(line[0]) {
            let value = &mut fields.last_mut().expect("a field to continue").1;
            value.extend_from_slice(b"\r\n");
            value.extend_from_slice(line);
        } else {
            let colon = line.iter().position(|b| *b == b':').expect("a colon");
            fields.push((trim(&line[..colon], is_blank).to_vec(), line[colon + 1..].to_vec()));
        }
    }
    let any_blank = |b| is_blank(b) || b == b'\r' || b == b'\n';
    fields.into_iter().map(|(name, value)| (name, trim(&value, any_blank).to_vec())).collect()
}

/// All that holds of an accepted message.
fn check(bytes: &[u8], view: View<'_>) {
    assert!(
        bytes.windows(view.bytes.len().max(1)).any(|w| w == view.bytes),
        "the message stands in the datagram"
    );
    assert_eq!(view.end_of_message() as usize, view.bytes.len());
    assert_eq!(view.body(), &view.bytes[view.header_end() as usize..]);
    let head = &view.bytes[..view.header_end() as usize];
    assert!(head.ends_with(b"\r\n\r\n") || view.fields().is_empty());
    // Start line, field lines, empty line: side by side, nothing between them.
    let mut at = view.header_start();
    assert!(at >= 2 && view.bytes[..at as usize].ends_with(b"\r\n"));
    for f in view.fields() {
        let (name, line, value) = (f.name(), f.line(), view.value_span(f));
        assert_eq!((line.start, name.start), (at, at));
        assert!(name.start < name.end && name.end < value.start);
        assert!(value.start <= value.end && value.end <= line.end - 2);
        at = line.end;
    }
    if !view.fields().is_empty() {
        assert_eq!(at + 2, view.header_end());
    }
    let slow = slow_fields(head);
    assert_eq!(slow.len(), view.fields().len());
    for (f, (name, value)) in view.fields().iter().zip(&slow) {
        assert_eq!(view.of(f.name()), name);
        assert_eq!(view.value_of(f), value);
        assert_eq!(f.id(), HeaderId::of(name), "{}", name.escape_ascii());
    }
    // No lone CR, no lone LF, whatever the way here.
    for (i, b) in head.iter().enumerate() {
        match b {
            b'\r' => assert_eq!(head.get(i + 1), Some(&b'\n')),
            b'\n' => assert!(i > 0 && head[i - 1] == b'\r'),
            0 => assert!(i > 0 && head[i - 1] == b'\\', "only a quoted NUL"),
            _ => {}
        }
    }
    if let Some(length) = view.value(HeaderId::ContentLength) {
        let length: usize = std::str::from_utf8(length).expect("digits").parse().expect("a number");
        assert_eq!(view.body().len(), length);
    }
}

/// What any view, of a refused message too, must bear.
fn read_all(view: View<'_>) {
    for (i, f) in view.fields().iter().enumerate() {
        let value = view.value_of(f);
        inside(value, view.of(f.line()));
        parts(value);
        assert!(f.id() == HeaderId::Other || view.all(f.id()).any(|(at, _)| at == i));
        for item in view.items(f.id()) {
            inside(item.value, view.bytes);
        }
    }
    let _ = inspect(&view);
    if view.method().is_some() {
        let _ = request_uri(&view);
    }
    let mut out = Vec::new();
    let _ = body::json_member(view.body(), "device", &mut out);
}

fn scan(bytes: &[u8]) -> Option<Reason> {
    let mut index = Index::new();
    match index.scan(bytes, &Limits { message: 2000, header_lines: 20, start_line: 200 }) {
        Ok(view) => {
            check(bytes, view);
            read_all(view);
            None
        }
        Err(refused) => {
            if let Some(view) = refused.view {
                assert!(view.method().is_some());
                read_all(view);
            }
            Some(refused.reason)
        }
    }
}

/// `part` lies within `whole`: by address, not by content.
#[track_caller]
fn inside(part: &[u8], whole: &[u8]) {
    let (a, b) = (part.as_ptr_range(), whole.as_ptr_range());
    assert!(b.start <= a.start && a.end <= b.end, "{} of {}", part.escape_ascii(), whole.escape_ascii());
}

/// Every parser of values on one text.
fn parts(text: &[u8]) {
    if let Some(uri) = Uri::parse(text) {
        for part in [uri.scheme, uri.host.host, uri.params, uri.headers, uri.rest] {
            inside(part, text);
        }
        uri.user.iter().chain(&uri.password).for_each(|part| inside(part, text));
        assert!(uri.same(&uri), "{}", text.escape_ascii());
        assert_eq!(uri.is_sip(), !uri.host.host.is_empty());
        uri.canonical(false, &mut Vec::new());
        let _ = uri.param(b"transport");
    }
    if let Some(addr) = NameAddr::parse(text) {
        for part in [addr.display, addr.uri, addr.params] {
            inside(part, text);
        }
        assert!(!addr.uri.is_empty() && !addr.uri.iter().any(|b| b.is_ascii_whitespace()));
        if let Some(tag) = addr.tag() {
            inside(tag, addr.params);
            assert!(!tag.is_empty());
        }
    }
    if let Some(via) = Via::parse(text) {
        for part in [via.transport, via.sent_by.host, via.branch] {
            inside(part, via.whole);
        }
        via.received.iter().for_each(|part| inside(part, via.whole));
        assert!(via.sent_by.port != Some(0) && !via.transport.is_empty() && !via.sent_by.host.is_empty());
    }
    if let Some(event) = Event::parse(text) {
        inside(event.package, text);
        event.id.iter().for_each(|part| inside(part, text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scan_bears_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        scan(&bytes);
    }

    #[test]
    fn scan_bears_what_looks_like_sip(start in prop::bool::ANY, rest in soup(40)) {
        let start: &[u8] = if start { b"INVITE sip:a@b SIP/2.0\r\n" } else { b"" };
        scan(&[start, &rest].concat());
    }

    #[test]
    fn scan_bears_mutated_messages(bytes in mutated()) {
        scan(&bytes);
    }

    #[test]
    fn parsers_of_values_bear_anything_and_give_parts_of_it(text in soup(12)) {
        parts(&text);
    }

    #[test]
    fn values_that_begin_well_are_borne_too(kind in 0..4usize, rest in soup(8)) {
        let start: &[u8] = [&b"sip:a@b"[..], b"\"A\" <sip:a@b>;tag=x", b"SIP/2.0/UDP h;branch=b", b"presence;id=1"][kind];
        parts(&[start, &rest].concat());
    }

    #[test]
    fn rfc_3261_19_1_4_equality_is_symmetric_and_keeps_the_canonical_key(a in soup(6), b in soup(6), same in any::<bool>()) {
        let a = [b"sip:a%41b@h".to_vec(), a].concat();
        let b = if same { a.to_ascii_lowercase() } else { [b"sip:aAb@H".to_vec(), b].concat() };
        if let (Some(a), Some(b)) = (Uri::parse(&a), Uri::parse(&b)) {
            prop_assert_eq!(a.same(&b), b.same(&a));
            if a.same(&b) && !a.host.host.contains(&b':') {
                let (mut key_a, mut key_b) = (Vec::new(), Vec::new());
                a.canonical(false, &mut key_a);
                b.canonical(false, &mut key_b);
                prop_assert_eq!(key_a, key_b);
            }
        }
    }

    #[test]
    fn json_member_agrees_with_serde_json(text in json_text(), name in "[a-c]") {
        let mut out = Vec::new();
        let ours = body::json_member(text.as_bytes(), &name, &mut out).map(<[u8]>::to_vec);
        let theirs = serde_json::from_str::<serde_json::Value>(&text).ok();
        let theirs = theirs.as_ref().and_then(|v| v.as_object()).and_then(|o| o.get(&name));
        match (ours, theirs) {
            (Some(ours), Some(serde_json::Value::String(text))) => prop_assert_eq!(ours, text.as_bytes()),
            (Some(ours), Some(value)) => prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&ours).ok(), Some(value.clone())),
            (ours, theirs) => prop_assert_eq!(ours.is_some(), theirs.is_some(), "{}", text),
        }
    }
}

/// JSON objects, whole or with one character changed into one that breaks any JSON.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1".to_owned()),
        Just("-2.5e+3".to_owned()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        "[ -~é☃]{0,6}".prop_map(|s| serde_json::to_string(&s).expect("a string")),
        "(\\\\u00[4-7][0-9a-f]|\\\\n|\\\\/|x){0,4}".prop_map(|s| format!("\"{s}\"")),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[ {} ]", v.join(" ,"))),
            prop::collection::vec(("[a-c]", inner), 0..4).prop_map(|v| {
                format!(
                    "{{{}}}",
                    v.iter().map(|(k, v)| format!("\"{k}\" : {v}")).collect::<Vec<_>>().join(", ")
                )
            }),
        ]
    });
    let members = prop::collection::vec(("[a-d]|\\\\u006[1-4]", value), 0..5);
    (members, prop::option::of(any::<prop::sample::Index>())).prop_map(|(members, broken)| {
        let members: Vec<_> = members.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        let mut text = format!(" {{ {} }}\r\n", members.join(","));
        if let Some(at) = broken {
            let places: Vec<_> = text.char_indices().map(|(i, c)| (i, c.len_utf8())).collect();
            let (at, len) = places[at.index(places.len())];
            text.replace_range(at..at + len, "\u{1}");
        }
        text
    })
}

#[test]
fn every_seed_but_the_broken_one_passes() {
    for seed in SEEDS {
        let mut index = Index::new();
        let view = index.scan(seed, &Limits::default()).unwrap_or_else(|r| panic!("{:?}", r.reason));
        check(seed, view);
        inspect(&view).unwrap_or_else(|r| panic!("{r:?}"));
    }
    let broken = include_bytes!("fuzz/seeds/scan/bad-length.sip");
    assert_eq!(scan(broken), Some(Reason::TwoContentLength));
}
