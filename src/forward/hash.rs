//! The hashes of a stateless proxy: transaction, branch and loop (SPEC 3.6, 4.5; RFC 3261 16.11, RFC 5393 4.2.2).
//!
//! What a peer must not be able to collide with another's is keyed (SipHash-1-3 under the signing key); the loop hash only
//! has to notice our own messages and is plain.

use std::{
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use crate::wire::{Essentials, token::Ring};

/// Call-ID, From tag and source: the key of pins, and the first half of a branch.
pub fn transaction(ring: &Ring, essentials: &Essentials<'_>, peer: SocketAddr) -> u64 {
    let mut hasher = ring.hasher();
    part(&mut hasher, essentials.call_id);
    part(&mut hasher, essentials.from_tag);
    match peer.ip() {
        IpAddr::V4(ip) => hasher.write_u32(u32::from(ip)),
        IpAddr::V6(ip) => hasher.write_u128(u128::from(ip)),
    }
    hasher.write_u16(peer.port());
    hasher.finish()
}

/// The hash part of our branch. The method is not in it: CANCEL and ACK for a non-2xx take their INVITE's branch.
pub fn branch(ring: &Ring, transaction: u64, essentials: &Essentials<'_>) -> u64 {
    let mut hasher = ring.hasher();
    hasher.write_u64(transaction);
    part(&mut hasher, essentials.via.branch);
    part(&mut hasher, essentials.via.sent_by.host);
    hasher.write_u32(u32::from(essentials.via.sent_by.port.unwrap_or(0)));
    hasher.write_u32(essentials.cseq);
    hasher.finish()
}

/// What makes a second pass a loop and not a spiral: nothing that an ACK or a CANCEL adds or lacks. `text` is scratch.
pub fn looped<'a>(
    peer: IpAddr,
    ruri: &'a [u8],
    routes: impl Iterator<Item = &'a [u8]>,
    essentials: &Essentials<'a>,
    text: &mut Vec<u8>,
) -> u32 {
    text.clear();
    match peer {
        IpAddr::V4(ip) => text.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => text.extend_from_slice(&ip.octets()),
    }
    text.extend_from_slice(&essentials.cseq.to_be_bytes());
    for field in [ruri, essentials.from_tag, essentials.call_id].into_iter().chain(routes) {
        text.extend_from_slice(&(field.len() as u32).to_be_bytes());
        text.extend_from_slice(field);
    }
    xxhash_rust::xxh3::xxh3_64_with_seed(text, 0x7469_6469_6e67_7303) as u32
}

/// Length before bytes, so that no two lists of fields give one input.
fn part(hasher: &mut impl Hasher, bytes: &[u8]) {
    hasher.write_u32(bytes.len() as u32);
    hasher.write(bytes);
}
