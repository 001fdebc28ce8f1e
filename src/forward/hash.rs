//! The hashes of a stateless proxy: transaction, branch and loop (SPEC 3.6, 4.5; RFC 3261 16.11, RFC 5393 4.2.2).
//!
//! What a peer must not be able to collide with another's is keyed (SipHash-1-3 under the signing key); the loop hash only
//! has to notice our own messages and is plain.

use std::net::{IpAddr, SocketAddr};

use crate::wire::{Essentials, token::Ring};

/// The hash of a transaction: Call-ID, From tag and source, the key of pins, and the first half of a branch; and of a loop:
/// what makes a second pass a loop and not a spiral, nothing that an ACK or a CANCEL adds or lacks. `text` is scratch, here
/// and below.
pub fn transaction<'a>(
    ring: &Ring,
    essentials: &Essentials<'_>,
    peer: SocketAddr,
    ruri: &[u8],
    routes: impl Iterator<Item = &'a [u8]>,
    text: &mut Vec<u8>,
) -> (u64, u32) {
    text.clear();
    part(text, essentials.call_id);
    part(text, essentials.from_tag);
    address(text, peer.ip());
    let both = text.len();
    text.extend_from_slice(&peer.port().to_be_bytes());
    let transaction = ring.hash(text);
    text.truncate(both);
    text.extend_from_slice(&essentials.cseq.to_be_bytes());
    part(text, ruri);
    for route in routes {
        part(text, route);
    }
    (transaction, xxhash_rust::xxh3::xxh3_64_with_seed(text, 0x7469_6469_6e67_7303) as u32)
}

/// The hash part of our branch. The method is not in it: CANCEL and ACK for a non-2xx take their INVITE's branch.
pub fn branch(ring: &Ring, transaction: u64, essentials: &Essentials<'_>, text: &mut Vec<u8>) -> u64 {
    text.clear();
    text.extend_from_slice(&transaction.to_be_bytes());
    part(text, essentials.via.branch);
    part(text, essentials.via.sent_by.host);
    text.extend_from_slice(&essentials.via.sent_by.port.unwrap_or(0).to_be_bytes());
    text.extend_from_slice(&essentials.cseq.to_be_bytes());
    ring.hash(text)
}

/// Length before bytes, so that no two lists of fields give one input.
pub(super) fn part(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    text.extend_from_slice(bytes);
}

fn address(text: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => text.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => text.extend_from_slice(&ip.octets()),
    }
}
