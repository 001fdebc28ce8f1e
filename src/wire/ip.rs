//! Hosts that are IP addresses.

use std::net::{IpAddr, Ipv4Addr};

/// The address that `host` (without brackets) is, if it is one. IPv4 as strictly as the standard library reads it: four
/// numbers without leading zeros.
pub fn parse(host: &[u8]) -> Option<IpAddr> {
    match host {
        // Most hosts are asked no further.
        [first, ..] if first.is_ascii_digit() && host.len() <= 15 => {
            ipv4(host).map(IpAddr::V4).or_else(|| ipv6(host))
        }
        [b':' | b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..] => ipv6(host),
        _ => None,
    }
}

fn ipv4(host: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let (mut at, mut digits) = (0, 0);
    let mut value = 0u32;
    for &b in host {
        let digit = b.wrapping_sub(b'0');
        if digit <= 9 {
            if digits > 0 && value == 0 {
                return None;
            }
            value = value * 10 + u32::from(digit);
            digits += 1;
            if value > 255 {
                return None;
            }
        } else {
            if b != b'.' || digits == 0 || at == 3 {
                return None;
            }
            octets[at] = value as u8;
            (at, digits, value) = (at + 1, 0, 0);
        }
    }
    if at != 3 || digits == 0 {
        return None;
    }
    octets[3] = value as u8;
    Some(octets.into())
}

fn ipv6(host: &[u8]) -> Option<IpAddr> {
    if !host.contains(&b':') {
        return None;
    }
    std::str::from_utf8(host).ok()?.parse().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_the_standard_library(host in "[0-9.]{0,16}|([0-9]{1,3}\\.){3}[0-9]{1,3}|[0-9a-f:]{2,20}|::ffff:1\\.2\\.3\\.[0-9]{1,3}") {
            prop_assert_eq!(parse(host.as_bytes()), host.parse().ok());
        }
    }

    #[test]
    fn what_is_no_address() {
        for host in [
            "",
            "1.2.3",
            "1.2.3.4.",
            ".1.2.3",
            "1..2.3",
            "01.2.3.4",
            "1.2.3.256",
            "1.2.3.4.5",
            "a.b.c.d",
            "1.2.3.4x",
        ] {
            assert_eq!(parse(host.as_bytes()), None, "{host}");
        }
        assert_eq!(parse(b"0.0.0.0"), Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    }
}
