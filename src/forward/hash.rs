//! The hashes of a stateless proxy: transaction, branch and loop (SPEC 3.6, 4.5; RFC 3261 16.11, RFC 5393 4.2.2).
//!
//! What a peer must not be able to collide with another's is keyed, by SipHash-1-3 under the signing key: the request, and
//! transaction, branch and passage through it.

use std::net::IpAddr;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::wire::{Essentials, HeaderId, View, token::Ring};

/// A request by its Call-ID, From tag and source address: what the hashes of its transaction and its passage begin with.
///
/// Keyed is a hash of three words, since what has just been copied together from parts is slow to read. That two Call-IDs of
/// one xxh3 can be made gives nobody anything: who wants the hash of another's request may take its Call-ID and tag as they
/// are, but not its source.
pub fn request(ring: &Ring, essentials: &Essentials<'_>, source: IpAddr) -> u64 {
    let (call_id, tag) = (xxh3_64(essentials.call_id), xxh3_64(essentials.from_tag));
    let hash = |words: &[u64]| ring.hash(bytemuck::cast_slice(words));
    match source {
        IpAddr::V4(ip) => hash(&[call_id, tag, ip.to_bits().into()].map(u64::to_le)),
        IpAddr::V6(ip) => {
            let (high, low) = ((ip.to_bits() >> 64) as u64, ip.to_bits() as u64);
            hash(&[call_id, tag, high, low].map(u64::to_le))
        }
    }
}

/// The hash of a transaction, the key of pins, and what a branch begins with: that of the request and its source's port, which
/// tells those of one address apart.
///
/// Both halves of a product by the secret hash: what another port makes of it cannot be foretold. A sum could be, and who
/// chooses CSeq and sent-by would meet the branch of another behind his NAT.
pub fn transaction(request: u64, port: u16) -> u64 {
    const ODD: u128 = 0x9e37_79b9_7f4a_7c15;
    let product = u128::from(request).wrapping_mul(ODD + 2 * u128::from(port));
    product as u64 ^ (product >> 64) as u64
}

/// The hash of a loop: what makes a second pass a loop and not a spiral, nothing that an ACK or a CANCEL adds or lacks.
/// Each part is hashed under the hash of those before it. Not the source's port: a connection to us has another each time.
pub fn passage(request: u64, essentials: &Essentials<'_>, view: &View<'_>) -> u32 {
    let mut hash = xxh3_64_with_seed(view.ruri(), request ^ u64::from(essentials.cseq));
    // Asked first: most have none, and the search is longer to make than to find that out.
    if view.first(HeaderId::Route).is_some() {
        for (_, route) in view.all(HeaderId::Route) {
            hash = xxh3_64_with_seed(view.value_of(route), hash);
        }
    }
    hash as u32
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Index, Limits, inspect::inspect};

    /// Each address, of either family and in each of its halves, makes another request of one Call-ID and From tag.
    #[test]
    fn the_source_address_is_in_it() {
        let bytes =
            b"MESSAGE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP a\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\n\
              Call-ID: 1\r\nCSeq: 1 MESSAGE\r\n\r\n";
        let mut index = Index::new();
        let view = index.scan(bytes, &Limits::default()).ok().expect("a sound message");
        let essentials = inspect(&view).expect("a sound message");
        let ring = Ring::new(&[(1, [7; 16])]);
        let sources = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db9::1", "::192.0.2.1"];
        let hashes: std::collections::BTreeSet<u64> =
            sources.iter().map(|ip| request(&ring, &essentials, ip.parse().expect("an address"))).collect();
        assert_eq!(hashes.len(), sources.len());
        let other =
            request(&Ring::new(&[(1, [8; 16])]), &essentials, "192.0.2.1".parse().expect("an address"));
        assert!(!hashes.contains(&other), "nor without the key");
    }

    /// Who knows two ports does not know how their hashes differ.
    #[test]
    fn the_step_from_port_to_port_hangs_on_the_secret() {
        let requests = (1..1000u64).map(|n| n.wrapping_mul(0xd134_2543_de82_ef95));
        let steps: std::collections::BTreeSet<u64> =
            requests.map(|request| transaction(request, 5060) ^ transaction(request, 5061)).collect();
        assert_eq!(steps.len(), 999);
        assert!(!steps.contains(&0));
    }
}
