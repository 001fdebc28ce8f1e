//! base64url without padding (RFC 4648 5), for tokens: each message has one to three of them.
//!
//! Own code because it is a fifth of the instructions of the general engine; a test holds it to the `base64` crate.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What no character of the alphabet has set.
const BAD: u8 = 0x80;

static VALUES: [u8; 256] = {
    let mut values = [BAD; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        values[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    values
};

/// How many bytes `len` characters make; `None` for a length that no text has.
const fn decoded_len(len: usize) -> Option<usize> {
    match len % 4 {
        1 => None,
        rest => Some(len / 4 * 3 + rest * 3 / 4),
    }
}

/// Decodes `text` to the start of `out` and gives the length. `None` for any other character, a length that no text
/// has, bits set behind the last byte (so that one value has one text), or too little room.
pub fn decode(text: &[u8], out: &mut [u8]) -> Option<usize> {
    let out = out.get_mut(..decoded_len(text.len())?)?;
    let len = out.len();
    let value = |b: u8| VALUES[usize::from(b)];
    let (quads, rest) = text.as_chunks::<4>();
    let (triples, end) = out.as_chunks_mut::<3>();
    let mut bad = 0;
    for ([a, b, c, d], triple) in quads.iter().zip(triples) {
        let (a, b, c, d) = (value(*a), value(*b), value(*c), value(*d));
        bad |= a | b | c | d;
        *triple = [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d];
    }
    match (rest, end) {
        ([a, b], [x]) => {
            let (a, b) = (value(*a), value(*b));
            // What is left of the last character must be zero.
            bad |= a | b | (b << 4 != 0).then_some(BAD).unwrap_or(0);
            *x = a << 2 | b >> 4;
        }
        ([a, b, c], [x, y]) => {
            let (a, b, c) = (value(*a), value(*b), value(*c));
            bad |= a | b | c | (c << 6 != 0).then_some(BAD).unwrap_or(0);
            (*x, *y) = (a << 2 | b >> 4, b << 4 | c >> 2);
        }
        _ => {}
    }
    (bad & BAD == 0).then_some(len)
}

/// Appends `bytes`, at most 192 of them, as text.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let letter = |v: u8| ALPHABET[usize::from(v & 63)];
    let mut text = [0; 256];
    let (quads, _) = text.as_chunks_mut::<4>();
    let (triples, rest) = bytes.as_chunks::<3>();
    for ([a, b, c], quad) in triples.iter().zip(quads.iter_mut()) {
        *quad = [letter(a >> 2), letter(a << 4 | b >> 4), letter(b << 2 | c >> 6), letter(*c)];
    }
    if let Some(quad) = quads.get_mut(triples.len()) {
        match rest {
            [a] => *quad = [letter(a >> 2), letter(a << 4), 0, 0],
            [a, b] => *quad = [letter(a >> 2), letter(a << 4 | b >> 4), letter(b << 2), 0],
            _ => {}
        }
    }
    out.extend_from_slice(&text[..triples.len() * 4 + (rest.len() * 4).div_ceil(3)]);
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_the_base64_crate(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in "[A-Za-z0-9_=+/-]{0,40}") {
            let mut encoded = Vec::new();
            encode(&bytes, &mut encoded);
            prop_assert_eq!(&encoded[..], URL_SAFE_NO_PAD.encode(&bytes).into_bytes());
            for text in [&encoded[..], text.as_bytes()] {
                let mut out = [0; 128];
                let ours = decode(text, &mut out).map(|n| out[..n].to_vec());
                prop_assert_eq!(ours, URL_SAFE_NO_PAD.decode(text).ok());
            }
        }
    }

    #[test]
    fn too_little_room_is_refused() {
        assert_eq!(decode(b"QUJD", &mut [0; 2]), None);
        assert_eq!(decode(b"QUJD", &mut [0; 3]), Some(3));
    }
}
