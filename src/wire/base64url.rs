//! base64url without padding (RFC 4648 5), for tokens: each message has one to three of them.
//!
//! Own code because it is a fifth of the instructions of the general engine; a test holds it to the `base64` crate.

use super::block::Block;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What no value of four characters has set.
const BAD: u32 = 1 << 31;

/// What each character adds to the 24 bits of its four, by its place among them.
static VALUES: [[u32; 256]; 4] = {
    let mut values = [[BAD; 256]; 4];
    let mut i = 0;
    while i < ALPHABET.len() {
        let mut place = 0;
        while place < 4 {
            values[place][ALPHABET[i] as usize] = (i as u32) << (18 - 6 * place);
            place += 1;
        }
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
    let value = |[a, b, c, d]: [u8; 4]| {
        let [first, second, third, fourth] = &VALUES;
        first[usize::from(a)] | second[usize::from(b)] | third[usize::from(c)] | fourth[usize::from(d)]
    };
    let mut bad = 0;
    // Two fours at a time: six bytes.
    let (eights, rest) = text.as_chunks::<8>();
    let (sextets, end) = out.as_chunks_mut::<6>();
    for ([a, b, c, d, e, f, g, h], sextet) in eights.iter().zip(sextets) {
        let (high, low) = (value([*a, *b, *c, *d]), value([*e, *f, *g, *h]));
        bad |= high | low;
        let bytes = (u64::from(high) << 40 | u64::from(low & !BAD) << 16).to_be_bytes();
        [sextet[0], sextet[1], sextet[2], sextet[3], sextet[4], sextet[5], ..] = bytes;
    }
    let (rest, end) = match (rest.split_first_chunk::<4>(), end.split_first_chunk_mut::<3>()) {
        (Some((four, rest)), Some((three, end))) => {
            let value = value(*four);
            bad |= value;
            [_, three[0], three[1], three[2]] = value.to_be_bytes();
            (rest, end)
        }
        _ => (rest, &mut out[len / 6 * 6..]),
    };
    // What is left of the last character must be zero.
    match (rest, end) {
        ([a, b], [x]) => {
            let value = value([*a, *b, b'A', b'A']);
            bad |= value | if value & 0xffff != 0 { BAD } else { 0 };
            *x = (value >> 16) as u8;
        }
        ([a, b, c], [x, y]) => {
            let value = value([*a, *b, *c, b'A']);
            bad |= value | if value & 0xff != 0 { BAD } else { 0 };
            (*x, *y) = ((value >> 16) as u8, (value >> 8) as u8);
        }
        _ => {}
    }
    (bad & BAD == 0).then_some(len)
}

/// How much room `encode` needs behind what it reads.
pub const SLACK: usize = 16;

/// Appends the first `len` of `bytes` as text. `bytes` goes on for `SLACK` bytes at least, whatever they are.
pub fn encode(bytes: &[u8], len: usize, out: &mut Vec<u8>) {
    let start = out.len();
    for at in (0..len).step_by(12) {
        let Some(twelve) = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>()) else { break };
        out.extend_from_slice(&letters(sixes(twelve)));
    }
    // Of what stands behind the last byte no bits may be told.
    let whole = start + len / 3 * 4;
    let letter = |six: u8| ALPHABET[usize::from(six & 63)];
    let end = match bytes[..len].as_chunks::<3>().1 {
        [a] => {
            out[whole + 1] = letter(a << 4);
            whole + 2
        }
        [_, b] => {
            out[whole + 2] = letter(b << 2);
            whole + 3
        }
        _ => whole,
    };
    out.truncate(end);
}

/// The first twelve bytes as sixteen times six bits.
#[inline(always)]
fn sixes(bytes: &[u8; 16]) -> [u8; 16] {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut sixes = [0; 16];
    for (word, four) in [word(0), word(3), word(6), word(9)].into_iter().zip(sixes.as_chunks_mut::<4>().0) {
        let six = word >> 26 | word >> 12 & 0x3f00 | word << 2 & 0x3f_0000 | word << 16 & 0x3f00_0000;
        *four = six.to_le_bytes();
    }
    sixes
}

/// The letters of sixteen times six bits.
#[inline(always)]
fn letters(sixes: [u8; 16]) -> [u8; 16] {
    let block = Block::of(&sixes);
    // From each kind of letter to the next: a step in the codes.
    let step = |beyond: u8, by: u8| block.at_most(beyond).not().and(Block::all(by));
    let from = block.plus(Block::all(b'A'));
    let from = from.plus(step(25, b'a'.wrapping_sub(b'Z' + 1))).plus(step(51, b'0'.wrapping_sub(b'z' + 1)));
    from.plus(step(61, b'-'.wrapping_sub(b'9' + 1))).plus(step(62, b'_'.wrapping_sub(b'-' + 1))).bytes()
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
            let mut room = bytes.clone();
            room.extend([0xff; SLACK]);
            encode(&room, bytes.len(), &mut encoded);
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
