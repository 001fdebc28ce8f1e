//! Any text as a token of each type: nothing panics, and what is taken for ours is ours, byte for byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::wire::token::{EtagToken, PathToken, Ring, RouteToken, ViaToken};

fuzz_target!(|bytes: &[u8]| {
    // Two keys, so that the first byte can name one that signs, one that only verifies, or none.
    let ring = Ring::new(&[(1, *b"sixteen byte key"), (2, *b"another 16 bytes")]);
    let (call_id, text) = bytes.split_at(bytes.len().min(4));
    let mut again = Vec::new();
    let key = if let Ok((token, key)) = ViaToken::decode(text, &ring) {
        token.encode(&ring, &mut again);
        key
    } else if let Ok((token, key)) = RouteToken::decode(text, &ring, call_id) {
        token.encode(&ring, call_id, &mut again);
        key
    } else if let Ok((token, key)) = PathToken::decode(text, &ring) {
        token.encode(&ring, &mut again);
        key
    } else if let Ok((token, original, key)) = EtagToken::decode(text, &ring, |key| key.into()) {
        assert!(token.encode(&ring, key, key.into(), original, &mut again));
        key
    } else {
        return;
    };
    assert!(key != ring.signing() || again == text, "one token, two texts");
});
