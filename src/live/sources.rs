//! How many connections a source address and its prefix have, and how fast they come (SPEC 9.7): one look-up for each
//! connection that opens or closes, none for a message.
//!
//! Shared by the cores, since SO_REUSEPORT spreads the connections of one address over all of them. An address is IPv4 or
//! a whole IPv6; its prefix is the /24 or the /64. How fast they come is counted of an IPv4 address or of a /64, since one
//! subscriber has all addresses of that. Exempt prefixes (a backend's, a NAT's of one's own) count only in all.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicUsize, Ordering},
};

use ahash::HashMap;
use ipnet::IpNet;
use parking_lot::Mutex;

use super::{Now, Prefixes, aged::shards};

/// One accept, in what is counted of them.
const ACCEPT: u64 = 1000;

/// What a source may have.
#[derive(Clone, Debug)]
pub struct SourceLimits {
    /// Accepted connections in all.
    pub most: usize,
    pub per_address: u32,
    pub per_prefix: u32,
    /// New ones of one IPv4 address, or of the /64 of an IPv6 one, in a second; as many at once.
    pub accepts_per_second: u32,
    pub exempt: Vec<IpNet>,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    All,
    Address,
    Prefix,
    Rate,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Prefix(IpAddr),
}

#[derive(Clone, Copy, Default)]
struct Count {
    open: u32,
    /// Accepts left, in thousandths.
    tokens: u64,
    /// When `tokens` was right, in `mono_ms`.
    at_ms: u64,
}

/// The counts. Entries without an open connection go after some seconds, so there are hardly more than connections.
pub struct Sources {
    limits: SourceLimits,
    exempt: Prefixes,
    shards: Box<[Mutex<HashMap<Key, Count>>]>,
    /// Entries in one shard beyond which no new source is taken until the sweep has made room.
    capacity: usize,
    seeds: ahash::RandomState,
    accepted: AtomicUsize,
}

impl Sources {
    pub fn new(limits: SourceLimits) -> Sources {
        // An address and its prefix for each connection, and those that came and went within the last seconds.
        let (count, each) = shards(limits.most.saturating_mul(4).max(4096));
        Sources {
            exempt: Prefixes::new(&limits.exempt),
            limits,
            shards: (0..count).map(|_| Mutex::default()).collect(),
            capacity: each,
            seeds: ahash::RandomState::new(),
            accepted: AtomicUsize::new(0),
        }
    }

    pub fn limits(&self) -> &SourceLimits {
        &self.limits
    }

    /// A connection of this address was accepted; refused where it is one too many, and then it is not counted.
    pub fn take(&self, ip: IpAddr, now: Now) -> Result<(), TooMany> {
        self.take_unnamed()?;
        let taken = self.name(ip, now);
        if taken.is_err() {
            self.give_unnamed();
        }
        taken
    }

    /// One was accepted of a proxy that has yet to say for whom it calls: it counts in all only.
    pub fn take_unnamed(&self) -> Result<(), TooMany> {
        if self.accepted.fetch_add(1, Ordering::Relaxed) >= self.limits.most {
            self.give_unnamed();
            return Err(TooMany::All);
        }
        Ok(())
    }

    /// One that was never named has ended.
    pub fn give_unnamed(&self) {
        self.accepted.fetch_sub(1, Ordering::Relaxed);
    }

    /// One that was taken unnamed is this address's; refused where it is one too many, and then it is unnamed still.
    pub fn name(&self, ip: IpAddr, now: Now) -> Result<(), TooMany> {
        let ip = ip.to_canonical();
        if self.is_exempt(ip) {
            return Ok(());
        }
        let limits = &self.limits;
        let (address, prefix) = (Key::Address(ip), Key::Prefix(prefix(ip)));
        let paced = if ip.is_ipv4() { address } else { prefix };
        let pace = |key: Key, count: &mut Count| if key == paced { count.pace(limits, now) } else { Ok(()) };
        self.count(prefix, |count| {
            if count.open >= limits.per_prefix {
                return Err(TooMany::Prefix);
            }
            pace(prefix, count)?;
            count.open += 1;
            Ok(())
        })?;
        let taken = self.count(address, |count| {
            if count.open >= limits.per_address {
                return Err(TooMany::Address);
            }
            pace(address, count)?;
            count.open += 1;
            Ok(())
        });
        if taken.is_err() {
            let refund = if paced == prefix { ACCEPT } else { 0 };
            self.release(prefix, refund);
        }
        taken
    }

    /// An accepted connection of this address has ended.
    pub fn give(&self, ip: IpAddr) {
        self.give_unnamed();
        let ip = ip.to_canonical();
        if !self.is_exempt(ip) {
            self.release(Key::Address(ip), 0);
            self.release(Key::Prefix(prefix(ip)), 0);
        }
    }

    /// Accepted connections (gauge).
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Addresses and prefixes that are counted (gauge).
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets sources without connections whose second is over; called every second by control.
    pub fn sweep(&self, now: Now) {
        for shard in &self.shards {
            shard.lock().retain(|_, count| count.open > 0 || now.mono_ms < count.at_ms + 2_000);
        }
    }

    fn is_exempt(&self, ip: IpAddr) -> bool {
        self.exempt.contains(ip)
    }

    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, Count>> {
        &self.shards[self.seeds.hash_one(key) as usize & (self.shards.len() - 1)]
    }

    fn count(&self, key: Key, take: impl FnOnce(&mut Count) -> Result<(), TooMany>) -> Result<(), TooMany> {
        let mut shard = self.shard(key).lock();
        if shard.len() >= self.capacity && !shard.contains_key(&key) {
            return Err(TooMany::All);
        }
        take(shard.entry(key).or_default())
    }

    /// `refund`: what is given back of its accepts, in thousandths.
    fn release(&self, key: Key, refund: u64) {
        let mut shard = self.shard(key).lock();
        if let Some(count) = shard.get_mut(&key) {
            count.open = count.open.saturating_sub(1);
            count.tokens += refund;
        }
    }
}

impl Count {
    /// Takes one from the accepts, with those that have come since.
    fn pace(&mut self, limits: &SourceLimits, now: Now) -> Result<(), TooMany> {
        let rate = u64::from(limits.accepts_per_second);
        let full = rate * ACCEPT;
        let gained = now.mono_ms.saturating_sub(self.at_ms).saturating_mul(rate);
        self.tokens = if self.at_ms == 0 { full } else { (self.tokens + gained).min(full) };
        self.at_ms = now.mono_ms.max(1);
        self.tokens = self.tokens.checked_sub(ACCEPT).ok_or(TooMany::Rate)?;
        Ok(())
    }
}

fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !0xff).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: 0 }
    }

    fn sources() -> Sources {
        Sources::new(SourceLimits {
            most: 10,
            per_address: 3,
            per_prefix: 5,
            accepts_per_second: 4,
            exempt: vec!["192.0.2.0/24".parse().expect("a prefix")],
        })
    }

    fn ip(last: u8) -> IpAddr {
        [198, 51, 100, last].into()
    }

    #[test]
    fn addresses_and_prefixes_have_their_limits_and_get_them_back() {
        let all = sources();
        for _ in 0..3 {
            assert_eq!(all.take(ip(1), at(5_000)), Ok(()));
        }
        assert_eq!(all.take(ip(1), at(5_000)), Err(TooMany::Address));
        assert_eq!((all.take(ip(2), at(5_000)), all.take(ip(3), at(5_000))), (Ok(()), Ok(())));
        assert_eq!(all.take(ip(4), at(5_000)), Err(TooMany::Prefix));
        all.give(ip(1));
        assert_eq!(all.take(ip(4), at(5_000)), Ok(()));
        for _ in 0..5 {
            assert_eq!(all.take([192, 0, 2, 9].into(), at(5_000)), Ok(()), "exempt");
        }
        assert_eq!(all.take([203, 0, 113, 1].into(), at(5_000)), Err(TooMany::All));
        assert_eq!(all.accepted(), 10);
    }

    #[test]
    fn accepts_of_one_address_are_paced() {
        let all = sources();
        for _ in 0..4 {
            assert_eq!(all.take(ip(1), at(5_000)), Ok(()));
            all.give(ip(1));
        }
        assert_eq!(all.take(ip(1), at(5_100)), Err(TooMany::Rate));
        assert_eq!(all.take(ip(2), at(5_100)), Ok(()), "another one is not its concern");
        all.give(ip(2));
        assert_eq!(all.take(ip(1), at(5_250)), Ok(()));
        all.give(ip(1));
        assert_eq!(all.accepted(), 0);
        assert!(!all.is_empty());
        all.sweep(at(8_000));
        assert!(all.is_empty(), "nothing is kept of who is gone");
    }

    /// Who has a /64 has 2^64 addresses.
    #[test]
    fn accepts_of_six_are_paced_by_their_prefix() {
        let all = sources();
        let of = |net: u16, host: u16| IpAddr::from([0x2001, 0xdb8, 0, net, 0, 0, 0, host]);
        for host in 0..4 {
            assert_eq!(all.take(of(1, host), at(5_000)), Ok(()));
            all.give(of(1, host));
        }
        assert_eq!(all.take(of(1, 9), at(5_100)), Err(TooMany::Rate), "another address of the same prefix");
        assert_eq!(all.take(of(2, 9), at(5_100)), Ok(()), "another prefix is not its concern");
        assert_eq!(all.take(of(1, 9), at(5_250)), Ok(()));
        for _ in 0..2 {
            assert_eq!(all.take(of(1, 9), at(6_000)), Ok(()));
        }
        for _ in 0..9 {
            assert_eq!(all.take(of(1, 9), at(6_000)), Err(TooMany::Address));
        }
        assert_eq!(
            all.take(of(1, 8), at(6_000)),
            Ok(()),
            "what was refused for another cause took no accept"
        );
    }

    /// SPEC 9.5: behind a proxy the client is counted, not the proxy.
    #[test]
    fn who_is_named_later_counts_from_then_on() {
        let all = sources();
        for _ in 0..10 {
            assert_eq!(all.take_unnamed(), Ok(()));
        }
        assert_eq!(all.take_unnamed(), Err(TooMany::All));
        assert_eq!((all.accepted(), all.len()), (10, 0));
        for _ in 0..3 {
            assert_eq!(all.name(ip(1), at(5_000)), Ok(()));
        }
        assert_eq!(all.name(ip(1), at(5_000)), Err(TooMany::Address));
        (0..3).for_each(|_| all.give(ip(1)));
        (0..7).for_each(|_| all.give_unnamed());
        all.sweep(at(9_000));
        assert_eq!((all.accepted(), all.len()), (0, 0));
    }

    #[test]
    fn six_and_mapped_addresses() {
        assert_eq!(
            prefix("2001:db8:1:2:3::4".parse().expect("an address")),
            "2001:db8:1:2::".parse::<IpAddr>().expect("one")
        );
        let all = sources();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
        for _ in 0..6 {
            assert_eq!(all.take(mapped, at(1)), Ok(()), "exempt as IPv4");
        }
    }
}
