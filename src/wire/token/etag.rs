//! The entity-tag token (SPEC 6.1): which backend gave a publication its tag, and when, before the tag itself.
//!
//! The original tag follows the token digit for digit (Asterisk reads it with `%d`), whatever its length: a wrapped tag is
//! 24 characters longer, and the size of a message bounds it. The text is a `token` of RFC 3261 where the original is one.

use siphasher::sip::SipHasher13;

use super::{Fault, MAC, Opened, ROOM, Reader, Ring, Writer, first};

const ETAG: u8 = 3;
const PAYLOAD: usize = 10;

/// What the via token of a PUBLISH carries to its answer (SPEC 6.1, 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Keyed hash of what the publication is (`forward::publication`), by the key that signed the via token.
    pub key: u64,
    /// As `EtagToken::backend`: to whom the PUBLISH went.
    pub backend: u32,
    /// Seconds by which its Expires was raised; below 2^15.
    pub margin: u16,
    /// Its package begins with `asterisk-`.
    pub asterisk: bool,
}

const ASTERISK: u16 = 1 << 15;

impl Publication {
    /// Bytes in a via token.
    pub(super) fn write(&self, w: &mut Writer) {
        w.put(&self.key.to_be_bytes());
        w.put(&self.backend.to_be_bytes());
        let margin = self.margin & !ASTERISK | if self.asterisk { ASTERISK } else { 0 };
        w.put(&margin.to_be_bytes());
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Publication {
        let (key, backend, margin) = (u64::from_be_bytes(r.take()), r.u32(), r.u16());
        Publication { key, backend, margin: margin & !ASTERISK, asterisk: margin & ASTERISK != 0 }
    }
}

/// What an entity-tag of ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtagToken {
    /// Low 32 bits of the hash of the backend's name: it outlives tables and moves of its address.
    pub backend: u32,
    /// Seconds since 1970.
    pub issued: u32,
}

impl EtagToken {
    /// Characters before the original tag.
    pub const LEN: usize = (PAYLOAD + MAC) / 3 * 4;

    /// Appends the token and the original tag. `key_id` is that of the key by which the publication's key was made; false,
    /// and nothing written, where the ring does not hold it.
    pub fn encode(
        &self,
        ring: &Ring,
        key_id: u8,
        publication: u64,
        original: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        if !ring.holds(key_id) {
            return false;
        }
        let mut w = Writer::new();
        w.put(&[first(ETAG, key_id), 0]);
        w.put(&self.backend.to_be_bytes());
        w.put(&self.issued.to_be_bytes());
        // Payload and key have fixed lengths: no two bindings give one input.
        ring.seal(key_id, &mut w, &[&publication.to_be_bytes(), original], out);
        out.extend_from_slice(original);
        true
    }

    /// The token of a tag, the original behind it, and the id of its key. `publication` makes the publication's key by the
    /// key of this id; it is asked for keys that the ring holds only.
    pub fn decode<'a>(
        tag: &'a [u8],
        ring: &Ring,
        publication: impl FnOnce(u8) -> u64,
    ) -> Result<(EtagToken, &'a [u8], u8), Fault> {
        let (text, original) = tag.split_at_checked(EtagToken::LEN).ok_or(Fault::Foreign)?;
        if original.is_empty() {
            return Err(Fault::Foreign);
        }
        let mut room = [0; ROOM];
        let opened = Opened::read(ETAG, text, &mut room)?;
        let mut r = opened.reader(&room);
        let (backend, issued) = (r.u32(), r.u32());
        // The zero byte tells ours from tags of others that begin alike (one UUID in four would).
        if opened.router != 0 || !r.is_used_up() {
            return Err(Fault::Foreign);
        }
        if !ring.holds(opened.key_id) {
            return Err(Fault::UnknownKey);
        }
        let key = publication(opened.key_id).to_be_bytes();
        ring.check(&opened, &mut room, &[&key, original])?;
        Ok((EtagToken { backend, issued }, original, opened.key_id))
    }
}

impl Ring {
    /// Is there a key of this id?
    pub fn holds(&self, key_id: u8) -> bool {
        self.keys[usize::from(key_id & 15)].is_some()
    }

    /// As `hash`, by the key of this id; by a key of zeros where the ring does not hold it.
    pub fn hash_by(&self, key_id: u8, text: &[u8]) -> u64 {
        SipHasher13::new_with_key(&self.keys[usize::from(key_id & 15)].unwrap_or_default()).hash(text)
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    fn ring() -> Ring {
        Ring::new(&[(3, *b"0123456789abcdef"), (1, *b"fedcba9876543210")])
    }

    fn text(token: &EtagToken, key_id: u8, publication: u64, original: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(token.encode(&ring(), key_id, publication, original, &mut out));
        out
    }

    fn token() -> impl Strategy<Value = EtagToken> {
        any::<(u32, u32)>().prop_map(|(backend, issued)| EtagToken { backend, issued })
    }

    proptest! {
        /// Whatever a backend calls its publications comes back byte for byte.
        #[test]
        fn what_is_wrapped_is_unwrapped(
            t in token(), key in any::<u64>(), original in "[-.!%*_+`'~a-zA-Z0-9]{1,300}", old in any::<bool>(),
        ) {
            let id = if old { 1 } else { 3 };
            let tag = text(&t, id, key, original.as_bytes());
            prop_assert_eq!(tag.len(), EtagToken::LEN + original.len());
            prop_assert!(tag.iter().all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(b)));
            let opened = EtagToken::decode(&tag, &ring(), |asked| { assert_eq!(asked, id); key });
            prop_assert_eq!(opened, Ok((t, original.as_bytes(), id)));
        }

        #[test]
        fn spec_6_1_any_changed_character_is_refused(
            t in token(), key in any::<u64>(), original in "[0-9]{1,9}", at in any::<prop::sample::Index>(), to in 0usize..64,
        ) {
            let mut tag = text(&t, 3, key, original.as_bytes());
            let at = at.index(tag.len());
            if tag[at] != ALPHABET[to] {
                tag[at] = ALPHABET[to];
                prop_assert!(EtagToken::decode(&tag, &ring(), |_| key).is_err());
            }
        }

        /// `0` and `00`, `8` and `8abc` are one publication for Asterisk: not for us.
        #[test]
        fn nothing_can_be_added_to_a_tag_or_taken_from_it(t in token(), key in any::<u64>(), more in "[0-9a-z;=]{1,5}") {
            let mut tag = text(&t, 3, key, b"80");
            prop_assert_eq!(EtagToken::decode(&tag[..tag.len() - 1], &ring(), |_| key), Err(Fault::Forged));
            tag.extend_from_slice(more.as_bytes());
            prop_assert_eq!(EtagToken::decode(&tag, &ring(), |_| key), Err(Fault::Forged));
        }

        #[test]
        fn a_tag_is_of_no_use_to_another_publication(t in token(), key in any::<u64>(), other in any::<u64>()) {
            prop_assume!(key != other);
            let tag = text(&t, 3, key, b"7");
            prop_assert_eq!(EtagToken::decode(&tag, &ring(), |_| other), Err(Fault::Forged));
        }

        #[test]
        fn arbitrary_text_is_no_tag_of_ours_and_no_panic(tag in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(EtagToken::decode(&tag, &ring(), |_| 0).is_err());
        }
    }

    #[test]
    fn tags_of_other_servers_are_foreign() {
        for tag in [
            "",
            "0",
            "123456789",
            "a.1700000000.1234.12.0",
            "c0ffee00-c0ff-4e00-8000-c0ffee00c0ff",
            "dA_aaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "kx7f2m0a",
            "fAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(EtagToken::decode(tag.as_bytes(), &ring(), |_| 0), Err(Fault::Foreign), "{tag}");
        }
    }

    #[test]
    fn spec_3_1_an_unknown_key_is_told_apart_from_a_forgery() {
        let old = Ring::new(&[(1, *b"fedcba9876543210")]);
        let token = EtagToken { backend: 1, issued: 2 };
        assert_eq!(EtagToken::decode(&text(&token, 1, 9, b"5"), &old, |_| 9), Ok((token, &b"5"[..], 1)));
        assert_eq!(EtagToken::decode(&text(&token, 3, 9, b"5"), &old, |_| 9), Err(Fault::UnknownKey));
        let other = Ring::new(&[(3, *b"ffffffffffffffff")]);
        assert_eq!(EtagToken::decode(&text(&token, 3, 9, b"5"), &other, |_| 9), Err(Fault::Forged));
        assert!(!token.encode(&old, 3, 9, b"5", &mut Vec::new()));
    }

    #[test]
    fn the_bytes_of_tokens_md_are_what_is_written() {
        let ring = Ring::new(&[(5, [0; 16])]);
        let mut out = Vec::new();
        EtagToken { backend: 0x0102_0304, issued: 0x0506_0708 }.encode(&ring, 5, 0, b"17", &mut out);
        assert_eq!((out.len(), &out[24..]), (26, &b"17"[..]));
        let bytes = URL_SAFE_NO_PAD.decode(&out[..24]).expect("base64url");
        assert_eq!(&bytes[..10], &[0x75, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
