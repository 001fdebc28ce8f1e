//! base64url without padding (RFC 4648 5), for tokens: each message has one to three of them.
//!
//! Own code because it is a fifth of the instructions of the general engine; a test holds it to the `base64` crate.

use wide::u32x4;

use super::block::{self, Block};

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
/// has, bits set behind the last byte (so that one value has one text), or less than `SLACK` of room behind what is decoded.
pub fn decode(text: &[u8], out: &mut [u8]) -> Option<usize> {
    let len = decoded_len(text.len())?;
    out.get(..len + SLACK)?;
    let value = |a: u8, b: u8, c: u8, d: u8| {
        let [first, second, third, fourth] = &VALUES;
        first[usize::from(a)] | second[usize::from(b)] | third[usize::from(c)] | fourth[usize::from(d)]
    };
    let (mut bad, mut at) = (0, 0);
    // Six bytes, and two of zero behind them.
    let mut put = |[a, b, c, d, e, f, g, h]: [u8; 8]| {
        let (high, low) = (value(a, b, c, d), value(e, f, g, h));
        bad |= high | low;
        let bytes = u64::from(high) << 40 | u64::from(low & !BAD) << 16;
        if let Some(room) = out.get_mut(at..).and_then(|room| room.first_chunk_mut()) {
            *room = bytes.to_be_bytes();
        }
        at += 6;
    };
    let (eights, rest) = text.as_chunks();
    eights.iter().for_each(|eight| put(*eight));
    if !rest.is_empty() {
        // What is not there counts as zero bits.
        let missing = u64::from_le_bytes([b'A'; 8]) << (8 * rest.len());
        let [word, _] = block::words(rest);
        put((word | missing).to_le_bytes());
    }
    (bad & BAD == 0 && out[len] == 0).then_some(len)
}

/// How much room `encode` needs behind what it reads, and `decode` behind what it writes.
pub const SLACK: usize = 16;

/// Appends the first `len` of `bytes` as text. `bytes` goes on for `SLACK` bytes at least, of which the first two are zero:
/// the bits that fill up the last character.
pub fn encode(bytes: &[u8], len: usize, out: &mut Vec<u8>) {
    let end = out.len() + (len as u32 * 4).div_ceil(3) as usize;
    let mut at = 0;
    while let Some(twelve) = bytes.get(at..).and_then(|rest| rest.first_chunk()).filter(|_| at < len) {
        out.extend_from_slice(&letters(sixes(twelve)));
        at += 12;
    }
    out.truncate(end);
}

/// The first twelve bytes as sixteen times six bits.
#[inline(always)]
fn sixes(bytes: &[u8; 16]) -> [u8; 16] {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let words = u32x4::new([word(0), word(3), word(6), word(9)]);
    let six = |words: u32x4, mask: u32| words & u32x4::splat(mask);
    let sixes: u32x4 =
        words >> 26 | six(words >> 12, 0x3f00) | six(words << 2, 0x3f_0000) | six(words << 16, 0x3f00_0000);
    // The first of each four is the lowest.
    bytemuck::cast(sixes.to_array().map(u32::to_le))
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
            room.extend([0, 0]);
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
        assert_eq!(decode(b"QUJD", &mut [0; 18]), None);
        assert_eq!(decode(b"QUJD", &mut [0; 19]), Some(3));
    }

    /// A NUL is no character of the alphabet, nor any other, wherever it stands.
    #[test]
    fn each_character_counts_in_each_place() {
        for len in [4, 16, 18, 19, 20, 43] {
            for at in 0..len {
                for b in 0..=255u8 {
                    let mut text = vec![b'A'; len];
                    text[at] = b;
                    let mut out = [0; 64];
                    let ours = decode(&text, &mut out).map(|n| out[..n].to_vec());
                    assert_eq!(ours, URL_SAFE_NO_PAD.decode(&text).ok(), "{len} {at} {b}");
                }
            }
        }
    }
}
