//! The addresses of one backend, where DNS gives several: which of them takes a request (RFC 3263 4, RFC 2782).
//!
//! All requests of one key go to one address, as all of them go to one backend: among the addresses of the least priority
//! the hash of the key chooses by weight, so that shares hold over many keys, and an address that comes or goes moves its
//! own share only. An address that refuses is passed over, and where a whole priority refuses the next one takes its
//! place; where all refuse they are used as if none did.

use std::{net::SocketAddr, sync::Arc};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{balance, pool::Backend};
use crate::live::AddressState;

/// As the seeds in `balance`, of the square root of 7: addresses are hashed apart from names and keys.
const ADDRESS_SEED: u64 = 0xa54f_f53a_5f1d_36f1;

/// An entry of a pool among those of its backend, which stand together, the most wanted first.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Position of the backend's first entry in its pool.
    pub first: u16,
    /// Entries of the backend; 1 where its URI names an address.
    pub count: u16,
    /// The URI's host is a name: a literal address wins where both claim one.
    pub by_name: bool,
    /// Twice the SRV priority, plus one where the address is of the family that the pool prefers less.
    pub priority: u32,
    /// 2^64 by the weight.
    pub share: u64,
    /// Fixed-seed hash of the address, so that every router chooses alike.
    pub hash: u64,
    pub state: Arc<AddressState>,
}

impl Spread {
    pub fn new(addr: SocketAddr, weight: u32, state: Arc<AddressState>) -> Spread {
        let share = u64::MAX / u64::from(weight.max(1));
        Spread { first: 0, count: 1, by_name: false, priority: 0, share, hash: hash(addr), state }
    }
}

/// The hash of an address, whatever its family.
fn hash(addr: SocketAddr) -> u64 {
    let mut bytes = [0; 18];
    let ip = match addr.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&addr.port().to_be_bytes());
    xxh3_64_with_seed(&bytes, ADDRESS_SEED)
}

/// Which of one backend's entries takes a request with this key's hash. `entries` is never empty.
pub fn choose(entries: &[Backend], key: u64) -> usize {
    let up = entries.iter().filter(|entry| !entry.spread.state.is_down());
    let priority = up.map(|entry| entry.spread.priority).min();
    let (mut winner, mut best) = (0, u128::MAX);
    for (at, entry) in entries.iter().enumerate() {
        let spread = &entry.spread;
        let takes_part = match priority {
            Some(priority) => spread.priority == priority && !spread.state.is_down(),
            None => spread.priority == entries[0].spread.priority,
        };
        if !takes_part {
            continue;
        }
        // As among backends: the least loss by weight, behind it the draw.
        let draw = balance::draw(key, spread.hash);
        let loss = u128::from(balance::loss(draw)) * u128::from(spread.share);
        let rank = loss << 24 | u128::from(!draw >> 40);
        if rank < best {
            (winner, best) = (at, rank);
        }
    }
    winner
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fleet's contract, as in `balance`.
    #[test]
    fn address_hashes_are_pinned() {
        let v4: SocketAddr = "192.0.2.1:5060".parse().expect("an address");
        let v6: SocketAddr = "[::ffff:192.0.2.1]:5060".parse().expect("an address");
        assert_eq!(hash(v4), hash(v6));
        assert_eq!(hash(v4), 17_889_364_760_623_394_528);
    }
}
