//! The hashes of a stateless proxy: transaction, branch and loop (SPEC 3.6, 4.5; RFC 3261 16.11, RFC 5393 4.2.2).
//!
//! What a peer must not be able to collide with another's is keyed: the transaction by SipHash-1-3 under the signing key, and
//! the branch through it. The loop hash only has to notice our own messages and is plain.

use std::net::{IpAddr, SocketAddr};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::wire::{Essentials, token::Ring};

/// The hash of a transaction: Call-ID, From tag and source, the key of pins, and what a branch begins with. `text` is
/// scratch.
pub fn transaction(ring: &Ring, essentials: &Essentials<'_>, peer: SocketAddr, text: &mut Vec<u8>) -> u64 {
    text.clear();
    part(text, essentials.call_id);
    part(text, essentials.from_tag);
    match peer.ip() {
        IpAddr::V4(ip) => text.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => text.extend_from_slice(&ip.octets()),
    }
    text.extend_from_slice(&peer.port().to_be_bytes());
    ring.hash(text)
}

/// The hash of a loop: what makes a second pass a loop and not a spiral, nothing that an ACK or a CANCEL adds or lacks.
/// Each part is hashed under the hash of those before it.
pub fn passage<'a>(
    essentials: &Essentials<'_>,
    source: IpAddr,
    ruri: &[u8],
    routes: impl Iterator<Item = &'a [u8]>,
) -> u32 {
    let source = match source {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits() as u64 ^ ((ip.to_bits() >> 64) as u64).rotate_left(32),
    };
    let mut hash = xxh3_64_with_seed(essentials.call_id, 0x7469_6469_6e67_7303 ^ source);
    hash = xxh3_64_with_seed(essentials.from_tag, hash ^ u64::from(essentials.cseq));
    hash = xxh3_64_with_seed(ruri, hash);
    routes.fold(hash, |hash, route| xxh3_64_with_seed(route, hash)) as u32
}

/// The hash part of our branch. The method is not in it: CANCEL and ACK for a non-2xx take their INVITE's branch. Who does
/// not know the transaction's hash, which is keyed and holds the source, can meet nobody else's branch.
pub fn branch(transaction: u64, essentials: &Essentials<'_>) -> u64 {
    let sent_by = &essentials.via.sent_by;
    let numbers = u64::from(essentials.cseq) << 32 | u64::from(sent_by.port.unwrap_or(0));
    xxh3_64_with_seed(sent_by.host, xxh3_64_with_seed(essentials.via.branch, transaction ^ numbers))
}

/// Length before bytes, so that no two lists of fields give one input.
pub(super) fn part(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    text.extend_from_slice(bytes);
}
