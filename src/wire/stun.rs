//! STUN binding requests on a SIP port (RFC 5389 6, RFC 5626 4.4.2): phones keep a NAT binding open and learn their address.

use std::net::{IpAddr, SocketAddr};

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Is this a STUN binding request with the magic cookie (RFC 5389)? SIP never begins with such a byte.
pub fn is_binding_request(bytes: &[u8]) -> bool {
    let length = bytes.get(2..4).map(|l| usize::from(u16::from_be_bytes([l[0], l[1]])));
    bytes.len() >= 20 && bytes[..2] == [0, 1] && bytes[4..8] == COOKIE && length == Some(bytes.len() - 20)
}

/// Appends the success response with XOR-MAPPED-ADDRESS of `peer` to a request that `is_binding_request` (RFC 5389 15.2).
pub fn answer(request: &[u8], peer: SocketAddr, out: &mut Vec<u8>) {
    let ip = peer.ip().to_canonical();
    let (family, length) = if ip.is_ipv4() { (1u8, 8u8) } else { (2, 20) };
    out.extend_from_slice(&[1, 1, 0, length + 4]);
    // Cookie and transaction id: also what an IPv6 address is masked with.
    let mask = &request[4..20];
    out.extend_from_slice(mask);
    out.extend_from_slice(&[0, 0x20, 0, length, 0, family]);
    out.extend(peer.port().to_be_bytes().iter().zip(mask).map(|(a, m)| a ^ m));
    match ip {
        IpAddr::V4(ip) => out.extend(ip.octets().iter().zip(mask).map(|(a, m)| a ^ m)),
        IpAddr::V6(ip) => out.extend(ip.octets().iter().zip(mask).map(|(a, m)| a ^ m)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 2.2: the transaction id and the address of the published sample response.
    #[test]
    fn rfc_5769_2_2_xor_mapped_address() {
        let id = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        let request = [&[0, 1, 0, 0][..], &COOKIE, &id].concat();
        assert!(is_binding_request(&request));
        let mut out = Vec::new();
        answer(&request, "192.0.2.1:32853".parse().expect("address"), &mut out);
        assert_eq!(out[..4], [1, 1, 0, 12]);
        assert_eq!(out[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
    }

    #[test]
    fn sip_and_other_stun_messages_are_no_binding_requests() {
        assert!(!is_binding_request(b"OPTIONS sip:a@b SIP/2.0\r\n\r\n"));
        assert!(!is_binding_request(&[[1, 1, 0, 0].as_slice(), &COOKIE, &[0; 12]].concat()));
        assert!(!is_binding_request(&[[0, 1, 0, 4].as_slice(), &COOKIE, &[0; 12]].concat()));
    }
}
