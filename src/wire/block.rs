//! Sixteen bytes at a time: which of them are of a kind. What scan and the parsers spend most of their instructions on.

use wide::u8x16;

/// Sixteen bytes, or for each of sixteen bytes whether it is of a kind.
#[derive(Clone, Copy)]
pub struct Block(u8x16);

impl Block {
    #[inline(always)]
    pub fn of(bytes: &[u8; 16]) -> Block {
        Block(u8x16::new(*bytes))
    }

    /// Those that are at most `limit`.
    #[inline(always)]
    pub fn at_most(self, limit: u8) -> Block {
        Block(self.0.min(u8x16::splat(limit)).simd_eq(self.0))
    }

    /// Those that are `b`.
    #[inline(always)]
    pub fn is(self, b: u8) -> Block {
        Block(self.0.simd_eq(u8x16::splat(b)))
    }

    /// Those that are the other's at their place.
    #[inline(always)]
    pub fn same(self, other: Block) -> Block {
        Block(self.0.simd_eq(other.0))
    }

    /// Letters without case, and digits.
    #[inline(always)]
    pub fn alphanumeric(self) -> Block {
        let letters = (self.0 | u8x16::splat(0x20)) - u8x16::splat(b'a');
        let digits = self.0 - u8x16::splat(b'0');
        Block(letters).at_most(25).or(Block(digits).at_most(9))
    }

    #[inline(always)]
    pub fn all(b: u8) -> Block {
        Block(u8x16::splat(b))
    }

    #[inline(always)]
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_array()
    }

    /// In lower case (ASCII).
    #[inline(always)]
    pub fn lower(self) -> Block {
        let capitals = Block(self.0 - u8x16::splat(b'A')).at_most(25);
        self.or(capitals.and(Block::all(0x20)))
    }

    /// Byte by byte, modulo 256.
    #[inline(always)]
    pub fn plus(self, other: Block) -> Block {
        Block(self.0 + other.0)
    }

    #[inline(always)]
    pub fn and(self, other: Block) -> Block {
        Block(self.0 & other.0)
    }

    #[inline(always)]
    pub fn not(self) -> Block {
        Block(!self.0)
    }

    #[inline(always)]
    pub fn or(self, other: Block) -> Block {
        Block(self.0 | other.0)
    }

    /// A bit for each, the first byte's lowest.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0.to_bitmask()
    }
}

/// The first place from `at` on whose byte `kind` names, or the length. `kind` must name the byte 0.
#[inline(always)]
pub fn find(bytes: &[u8], mut at: usize, kind: impl Fn(Block) -> Block) -> usize {
    while let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>()) {
        let bits = kind(Block::of(block)).bits();
        if bits != 0 {
            return at + bits.trailing_zeros() as usize;
        }
        at += 16;
    }
    let len = bytes.len();
    if at >= len {
        return len;
    }
    if let Some(last) = bytes.last_chunk::<16>() {
        // The last sixteen once more, but for those already seen.
        let seen = at - (len - 16);
        let bits = kind(Block::of(last)).bits() >> seen;
        return if bits == 0 { len } else { at + bits.trailing_zeros() as usize };
    }
    at + kind(Block::of(&padded(&bytes[at..]))).bits().trailing_zeros() as usize
}

/// A bit for each of 64 bytes that is below 14: CR, LF, NUL, tab and their like.
#[inline(always)]
pub fn controls(bytes: &[u8; 64]) -> u64 {
    let (blocks, _) = bytes.as_chunks::<16>();
    blocks.iter().rev().fold(0, |bits, block| bits << 16 | u64::from(Block::of(block).at_most(13).bits()))
}

/// Whether two texts are one, in line: for the few dozen bytes of a name or a prefix a call costs as much again.
#[inline(always)]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    if let (Some(a_end), Some(b_end)) = (a.last_chunk::<16>(), b.last_chunk::<16>()) {
        let ((a, _), (b, _)) = (a.as_chunks(), b.as_chunks());
        let equal = |(a, b)| Block::of(a).same(Block::of(b)).bits() == 0xffff;
        a.iter().zip(b).all(equal) && equal((a_end, b_end))
    } else {
        words(a) == words(b)
    }
}

/// Fewer than sixteen bytes, and zeros behind them.
#[inline(always)]
pub fn padded(bytes: &[u8]) -> [u8; 16] {
    let [low, high] = words(bytes);
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// The same as two numbers, the first byte lowest. By whole words that overlap: a copy of a length that the compiler does
/// not know is a call.
#[inline(always)]
pub fn words(bytes: &[u8]) -> [u64; 2] {
    let len = bytes.len();
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        let low = u64::from_le_bytes(*first);
        // At eight bytes the shift is by a whole word, at fifteen by one byte.
        let high = (u64::from_le_bytes(*last) >> 1) >> (127 - 8 * len);
        [low, high]
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let last = u64::from(u32::from_le_bytes(*last)) << (8 * (len - 4));
        [last | u64::from(u32::from_le_bytes(*first)), 0]
    } else if let [first, .., last] = bytes {
        let low = u32::from(*first) | u32::from(bytes[1]) << 8 | u32::from(*last) << (8 * (len - 1));
        [low.into(), 0]
    } else {
        [bytes.first().copied().unwrap_or(0).into(), 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_is_a_search_byte_by_byte() {
        let kind = |block: Block| block.at_most(0).or(block.is(b';'));
        for len in 0..70 {
            for at in 0..=len {
                for place in at..=len {
                    let mut bytes = vec![b'a'; len];
                    // What stands before is not looked at.
                    bytes[..at].fill(b';');
                    bytes[place..].fill(b';');
                    assert_eq!(find(&bytes, at, kind), place, "{len} {at} {place}");
                }
            }
        }
    }

    #[test]
    fn controls_are_the_bytes_below_14() {
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * 5 % 64) as u8);
        let bits = controls(&bytes);
        for (i, b) in bytes.iter().enumerate() {
            assert_eq!(bits >> i & 1 == 1, *b < 14);
        }
    }

    #[test]
    fn fewer_than_sixteen_bytes_have_zeros_behind_them() {
        let bytes: [u8; 15] = std::array::from_fn(|i| 0xf1 + i as u8);
        for len in 0..=15 {
            let mut expected = [0; 16];
            expected[..len].copy_from_slice(&bytes[..len]);
            assert_eq!(padded(&bytes[..len]), expected, "{len}");
        }
    }

    #[test]
    fn same_is_equality() {
        let bytes: [u8; 70] = std::array::from_fn(|i| i as u8);
        for len in 0..70 {
            assert!(same(&bytes[..len], &bytes[..len]));
            assert!(!same(&bytes[..len], &bytes[..len + 1]));
            for at in 0..len {
                let mut other = bytes;
                other[at] ^= 0x80;
                assert!(!same(&bytes[..len], &other[..len]), "{len} {at}");
            }
        }
    }

    #[test]
    fn lower_case_is_that_of_ascii() {
        for first in (0..=240).step_by(16) {
            let mut bytes: [u8; 16] = std::array::from_fn(|i| first + i as u8);
            let lower = Block::of(&bytes).lower().bytes();
            bytes.make_ascii_lowercase();
            assert_eq!(lower, bytes);
        }
    }
}
