//! Balance keys (SPEC 5.3): what of a message places it, and the hashes that place it.
//!
//! Placement must be the same on every router with the same table, on any machine and in any version: the seeds are
//! fixed, pinned by test vectors, and the score is integer arithmetic only. (`f64::ln` is whatever the platform's libm
//! makes of it, and two routers that differ in the last bit send one presentity to two PBXs.)

use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::facts::Facts;
use crate::{
    config::{Names, table::Balance},
    wire::{HeaderId, Method, Uri},
};

/// Seeds, one for each thing that is hashed, so that a key which happens to be a backend's name is not its hash. The
/// digits are those of the square roots of 2, 3 and 5: numbers with nothing up their sleeve. Changing one moves every
/// presentity of every cluster to another PBX.
const NAME_SEED: u64 = 0x6a09_e667_f3bc_c908;
const KEY_SEED: u64 = 0xbb67_ae85_84ca_a73b;
const PLACE_SEED: u64 = 0x3c6e_f372_fe94_f82b;

/// The hash of a backend's name.
pub fn name_hash(name: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), NAME_SEED)
}

/// The hash of a balance key.
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, KEY_SEED)
}

/// The draw of one backend for one key: uniform over all 64-bit numbers.
pub fn draw(key_hash: u64, name_hash: u64) -> u64 {
    let mut both = [0; 16];
    both[..8].copy_from_slice(&key_hash.to_le_bytes());
    both[8..].copy_from_slice(&name_hash.to_le_bytes());
    xxh3_64_with_seed(&both, PLACE_SEED)
}

/// What a backend lost in its draw: -log2(draw / 2^64), in 2^-32, by a table and linear interpolation (3e-6 off at most). Weighted
/// rendezvous takes the least loss by weight, which is the greatest -w / ln(u).
pub fn loss(draw: u64) -> u64 {
    // The draw as 1.f times a power of two. Its last bit is set, since 0 has no logarithm.
    let draw = draw | 1;
    let zeros = draw.leading_zeros();
    let fraction = (draw << zeros) << 1;
    let at = (fraction >> 56) as usize;
    let (low, high) = (LOG2[at], LOG2[at + 1]);
    let within = fraction << 8 >> 40;
    let log2 = low + (((high - low) * within) >> 24);
    (((u64::from(zeros) + 1) << 40) - log2) >> 8
}

/// At most `loss`, and without a logarithm: -log2(u) is at least (1 - u) / ln 2, here 1.4375 (1 - u). Below 2^33.
pub fn least_loss(draw: u64) -> u64 {
    let lacking = !draw >> 32;
    // The last bits are for what `loss` rounds off.
    (lacking + (lacking >> 1) - (lacking >> 4)).saturating_sub(4)
}

/// log2(1 + i/256) in 2^-40, by repeated squaring of the mantissa in integers.
static LOG2: [u64; 257] = {
    let mut table = [1 << 40; 257];
    let mut i = 0;
    while i < 256 {
        let mut x = (256 + i as u128) << 54;
        let mut bits = 0u64;
        let mut n = 0;
        while n < 40 {
            x = (x * x) >> 62;
            bits <<= 1;
            if x >> 63 != 0 {
                bits |= 1;
                x >>= 1;
            }
            n += 1;
        }
        table[i] = bits;
        i += 1;
    }
    table
};

/// The name of a balance, as a table writes it.
pub fn label(balance: &Balance) -> &'static str {
    match balance {
        Balance::Resource => "resource",
        Balance::ResourceEvent => "resource+event",
        Balance::User => "user",
        Balance::Domain => "domain",
        Balance::FromDomain => "from-domain",
        Balance::CallId => "call-id",
        Balance::From => "from",
        Balance::To => "to",
        Balance::Source => "source",
        Balance::Header(_) => "header",
        Balance::LeastCalls => "least-calls",
        Balance::LeastLatency => "least-latency",
        Balance::Priority => "priority",
    }
}

/// Writes the key of a message to `out`, whose content is lost. A message without the key is placed by its Call-ID.
pub fn key(balance: &Balance, facts: &Facts<'_>, names: &Names, out: &mut Vec<u8>) {
    out.clear();
    let written = match balance {
        Balance::CallId | Balance::LeastCalls | Balance::LeastLatency => false,
        Balance::Resource | Balance::Priority => resource(facts, names, out),
        Balance::ResourceEvent => {
            let written = resource(facts, names, out);
            if let Some(package) = facts.package.filter(|_| written) {
                // No user or host holds a blank.
                out.push(b' ');
                out.extend_from_slice(package);
            }
            written
        }
        Balance::User => resource(facts, names, out) && keep_user(out),
        Balance::Domain => match to(facts) {
            Some(to) => domain(&to, names, out),
            None => domain(facts.uri, names, out),
        },
        Balance::FromDomain => {
            Uri::parse(facts.essentials.from_uri).is_some_and(|uri| domain(&uri, names, out))
        }
        Balance::From => whole(facts.essentials.from_uri, names, out),
        Balance::To => whole(facts.essentials.to_uri, names, out),
        Balance::Source => {
            match facts.peer.ip().to_canonical() {
                IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
            }
            true
        }
        Balance::Header(name) => header(name, facts, out),
    };
    if !written {
        out.clear();
        out.extend_from_slice(facts.essentials.call_id);
    }
}

/// A REGISTER is placed by To: its R-URI names the registrar only (RFC 3261 10.2).
fn to<'m>(facts: &Facts<'m>) -> Option<Uri<'m>> {
    if facts.method == Method::Register { Uri::parse(facts.essentials.to_uri) } else { None }
}

fn resource(facts: &Facts<'_>, names: &Names, out: &mut Vec<u8>) -> bool {
    match to(facts) {
        Some(to) => canonical(&to, names, out),
        None => canonical(facts.uri, names, out),
    }
}

fn whole(uri: &[u8], names: &Names, out: &mut Vec<u8>) -> bool {
    Uri::parse(uri).is_some_and(|uri| canonical(&uri, names, out))
}

/// `user@domain`; false where there is no user.
fn canonical(uri: &Uri<'_>, names: &Names, out: &mut Vec<u8>) -> bool {
    if uri.is_sip() && uri.user.is_none_or(<[u8]>::is_empty) {
        return false;
    }
    uri.canonical(names.is_our_domain(uri.host.host), out);
    !out.is_empty()
}

/// Cuts `@domain` off; a user's own `@` is escaped.
fn keep_user(out: &mut Vec<u8>) -> bool {
    if let Some(at) = memchr::memrchr(b'@', out) {
        out.truncate(at);
    }
    !out.is_empty()
}

fn domain(uri: &Uri<'_>, names: &Names, out: &mut Vec<u8>) -> bool {
    let host = uri.host.host;
    if host.is_empty() {
        return false;
    }
    // Our own names are one domain.
    if !names.is_our_domain(host) {
        out.extend_from_slice(host);
        out.make_ascii_lowercase();
    }
    true
}

fn header(name: &str, facts: &Facts<'_>, out: &mut Vec<u8>) -> bool {
    let first = match HeaderId::of(name.as_bytes()) {
        HeaderId::Other => facts.view.named(name.as_bytes()).map(|(_, field)| field).find(|f| facts.shows(f)),
        known => facts.view.all(known).map(|(_, field)| field).find(|f| facts.shows(f)),
    };
    out.extend_from_slice(first.map_or(b"", |field| facts.view.value_of(field)));
    !out.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fleet's contract: a change here moves users between PBXs on upgrade.
    #[test]
    fn placement_hashes_are_pinned() {
        let hashes = (name_hash("pbx1"), key_hash(b"1000@example.com"), draw(1, 2));
        assert_eq!(hashes, (38_544_594_146_383_430, 4_716_592_942_405_934_921, 12_476_406_651_574_450_078));
    }

    #[test]
    fn loss_is_the_logarithm() {
        for draw in
            [0, 1, 2, 3, 1000, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX / 3, u64::MAX - 1, u64::MAX]
        {
            let exact = 64.0 - ((draw | 1) as f64).log2();
            let told = loss(draw) as f64 / (1u64 << 32) as f64;
            assert!((exact - told).abs() < 4e-6, "{draw}: {exact} {told}");
        }
    }

    #[test]
    fn the_least_loss_is_no_more_than_the_loss_and_near_it() {
        let near = (0..1u64 << 20).map(|n| u64::MAX - (n << 8));
        let all = (0..1_000_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for draw in near.chain(all).chain([0, 1, u64::MAX, u64::MAX - 1]) {
            assert!(least_loss(draw) <= loss(draw), "{draw}");
        }
        let draw = u64::MAX / 10 * 9;
        assert!(least_loss(draw) as f64 > 0.94 * loss(draw) as f64);
    }

    #[test]
    fn loss_never_grows_with_the_draw() {
        let mut draws: Vec<u64> = (0..64).flat_map(|n| [1 << n, (1 << n) + 1, (1u64 << n) - 1]).collect();
        draws.extend((0..100_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        draws.sort_unstable();
        assert!(draws.windows(2).all(|pair| loss(pair[0]) >= loss(pair[1])));
        assert!(loss(u64::MAX) > 0 || loss(u64::MAX - (1 << 40)) > 0);
    }
}
