//! A set of address prefixes, asked by address: sorted ranges that do not touch, one binary search (SPEC 10).
//!
//! IPv4 addresses and IPv6 ones that are mapped from them are the same. Made once from the settings.

use std::net::IpAddr;

use ipnet::IpNet;

/// The prefixes, as ranges of IPv6 addresses, both ends included.
#[derive(Clone, Debug, Default)]
pub struct Prefixes(Box<[(u128, u128)]>);

impl Prefixes {
    pub fn new<'n>(nets: impl IntoIterator<Item = &'n IpNet>) -> Prefixes {
        let range = |net: &IpNet| (bits(net.network()), bits(net.broadcast()));
        let mut ranges: Vec<(u128, u128)> = nets.into_iter().map(range).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Prefixes(merged.into())
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = bits(ip);
        let behind = self.0.partition_point(|(first, _)| *first <= ip);
        behind > 0 && ip <= self.0[behind - 1].1
    }

    /// Is any address from `first` to `last` in it?
    pub fn intersects(&self, first: IpAddr, last: IpAddr) -> bool {
        let (first, last) = (bits(first), bits(last));
        let behind = self.0.partition_point(|(begin, _)| *begin <= last);
        behind > 0 && first <= self.0[behind - 1].1
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(written: &[&str]) -> Prefixes {
        let nets: Vec<IpNet> = written.iter().map(|net| net.parse().expect("a prefix")).collect();
        Prefixes::new(&nets)
    }

    #[test]
    fn ends_belong_to_a_prefix_and_neighbours_do_not() {
        let all = prefixes(&["10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32", "10.1.2.0/24", "10.2.0.0/16"]);
        let has = |ip: &str| all.contains(ip.parse().expect("an address"));
        for ip in ["10.1.0.0", "10.1.2.3", "10.2.255.255", "192.0.2.7", "::ffff:10.1.0.9", "2001:db8::1"] {
            assert!(has(ip), "{ip}");
        }
        for ip in ["10.0.255.255", "10.3.0.0", "192.0.2.6", "192.0.2.8", "2001:db9::", "::", "::10.1.0.0"] {
            assert!(!has(ip), "{ip}");
        }
        assert_eq!(all.0.len(), 3, "what touches is one range");
        let meets = |first: &str, last: &str| {
            all.intersects(first.parse().expect("an address"), last.parse().expect("an address"))
        };
        assert!(meets("2001:db7::", "2001:db8::") && meets("2001:db8:ffff:ffff::", "2001:dba::"));
        assert!(meets("192.0.2.0", "192.0.2.255") && !meets("192.0.2.8", "192.0.2.255"));
        assert!(!meets("2001:db9::", "2001:dba::") && !meets("::1", "::2"));
    }

    #[test]
    fn none_has_nobody_and_all_has_everybody() {
        assert!(prefixes(&[]).is_empty() && !prefixes(&[]).contains([10, 0, 0, 1].into()));
        let all = prefixes(&["::/0", "10.0.0.0/8"]);
        assert!(all.contains([10, 0, 0, 1].into()) && all.contains("ff::".parse().expect("an address")));
    }
}
