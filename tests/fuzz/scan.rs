//! Any datagram through everything that reads one: scan, inspection, URIs, lists, Event, JSON bodies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::wire::{body::json_member, *};

fuzz_target!(|bytes: &[u8]| {
    let mut index = Index::new();
    match index.scan(bytes, &Limits::default()) {
        Ok(view) => {
            assert_eq!(view.end_of_message() as usize, view.bytes.len());
            let mut at = view.header_start();
            for f in view.fields() {
                let (line, name, value) = (f.line(), f.name(), view.span_of(view.value_of(f)));
                assert!(line.start == at && name.start == at && name.end < value.start.max(line.end));
                assert!(value.start <= value.end && value.end + 2 <= line.end);
                at = line.end;
            }
            let head = &view.bytes[..view.header_end() as usize];
            assert!(head.windows(2).all(|w| (w[0] == b'\r') == (w[1] == b'\n')), "a lone CR or LF passed");
            read(view);
        }
        Err(refused) => {
            if let Some(view) = refused.view {
                assert!(view.method().is_some());
                read(view);
            }
        }
    }
});

fn read(view: View<'_>) {
    if let Ok(e) = inspect(&view) {
        for part in [e.from_tag, e.from_uri, e.to_uri, e.call_id, e.via.branch, e.via.whole] {
            let _ = view.span_of(part);
        }
    }
    let _ = request_uri(&view);
    uri(view.ruri(), view.ruri());
    for f in view.fields() {
        let value = view.value_of(f);
        for item in view.items(f.id()) {
            let _ = view.span_of(item.value);
            let _ = Via::parse(item.value);
            if let Some(addr) = NameAddr::parse(item.value) {
                let _ = (addr.tag(), addr.param(b"expires"), view.span_of(addr.params));
                uri(addr.uri, view.ruri());
            }
        }
        let _ = Event::parse(value);
    }
    let mut out = Vec::new();
    let _ = json_member(view.body(), "device", &mut out);
}

fn uri(text: &[u8], other: &[u8]) {
    let Some(uri) = Uri::parse(text) else { return };
    assert!(uri.same(&uri));
    if let Some(other) = Uri::parse(other) {
        assert_eq!(uri.same(&other), other.same(&uri));
    }
    let _ = uri.param(b"lr");
    uri.canonical(false, &mut Vec::new());
}
