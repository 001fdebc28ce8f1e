//! The header of the PROXY protocol, version 2 (HAProxy's proxy-protocol.txt 2.2): who a connection's other end really is.
//!
//! It stands before all else on a connection, TLS included, so it is read to its exact end and nothing behind it. Version 1,
//! a line of text, is not taken: one that is cut short says something else. Who may be believed is the listener's to say
//! (SPEC 9.5), and `net::streams` asks. What a proxy adds in TLVs is skipped.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// How each header begins. Nothing of SIP, TLS or HTTP does.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The part that says how long the rest is.
const FIXED: usize = 16;
/// The longest header taken, in bytes; HAProxy's with all its TLVs but the client's certificate has some hundred.
const MOST: usize = 4096;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The proxy speaks for itself, as for its health checks: the connection's own ends count.
    Local,
    Client(SocketAddr),
}

/// What stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// So many bytes more must be read, and not one beyond, before it is asked again.
    More(usize),
    Whole(Proxied),
}

/// It is no such header, too long, or names no client that TCP brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Reads all that has come, from the connection's first byte.
pub fn read(received: &[u8]) -> Result<Header, Broken> {
    let begun = received.len().min(SIGNATURE.len());
    if received[..begun] != SIGNATURE[..begun] {
        return Err(Broken);
    }
    let Some(&[command, family, high, low]) = received.get(SIGNATURE.len()..FIXED) else {
        return Ok(Header::More(FIXED - received.len()));
    };
    let whole = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if whole > MOST || !matches!(command, 0x20 | 0x21) {
        return Err(Broken);
    }
    if received.len() < whole {
        return Ok(Header::More(whole - received.len()));
    }
    if command == 0x20 {
        return Ok(Header::Whole(Proxied::Local));
    }
    let client = client(family, &received[FIXED..whole]).ok_or(Broken)?;
    Ok(Header::Whole(Proxied::Client(client)))
}

/// The source of a TCP connection over IPv4 (0x11) or IPv6 (0x21). The destination and the TLVs stand behind it.
fn client(family: u8, rest: &[u8]) -> Option<SocketAddr> {
    let (ip, ports): (IpAddr, &[u8]) = match family {
        0x11 => (IpAddr::from(*rest.first_chunk::<4>()?), rest.get(8..12)?),
        0x21 => (Ipv6Addr::from(*rest.first_chunk::<16>()?).to_canonical(), rest.get(32..36)?),
        _ => return None,
    };
    let port = u16::from_be_bytes(*ports.first_chunk::<2>()?);
    let host = !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from([255; 4]) && port != 0;
    host.then_some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &len, rest].concat()
    }

    fn four(source: [u8; 4], port: u16, tlvs: &[u8]) -> Vec<u8> {
        [&source[..], &[192, 0, 2, 1], &port.to_be_bytes(), &5060_u16.to_be_bytes(), tlvs].concat()
    }

    /// It must never ask for a byte behind the header: that is TLS's or SIP's.
    fn by_pieces(whole: &[u8], most: usize) -> Result<Proxied, Broken> {
        let mut came = 0;
        loop {
            match read(&whole[..came])? {
                Header::More(n) => {
                    assert!(n > 0 && came + n <= whole.len().max(FIXED), "asks for {n} behind {came}");
                    came += n.min(most);
                }
                Header::Whole(said) => {
                    assert_eq!(came, whole.len());
                    return Ok(said);
                }
            }
        }
    }

    #[test]
    fn clients_of_both_families_with_and_without_tlvs_in_any_pieces() {
        let tlvs = [0x05, 0, 3, 1, 2, 3, 0xe0, 0, 0];
        let six: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        let rest = [&six.octets()[..], &[0; 16], &40_000_u16.to_be_bytes(), &[0, 80]].concat();
        for most in [1, 7, 10_000] {
            for tlvs in [&[][..], &tlvs] {
                let said = by_pieces(&header(0x21, 0x11, &four([198, 51, 100, 7], 4_000, tlvs)), most);
                assert_eq!(said, Ok(Proxied::Client(SocketAddr::from(([198, 51, 100, 7], 4_000)))));
            }
            let said = by_pieces(&header(0x21, 0x21, &rest), most);
            assert_eq!(said, Ok(Proxied::Client(SocketAddr::from((six, 40_000)))));
            assert_eq!(by_pieces(&header(0x20, 0, &[]), most), Ok(Proxied::Local));
            assert_eq!(by_pieces(&header(0x20, 0x11, &four([1, 2, 3, 4], 5, &[])), most), Ok(Proxied::Local));
        }
    }

    #[test]
    fn a_mapped_client_is_one_of_ipv4() {
        let ip = std::net::Ipv4Addr::new(198, 51, 100, 7).to_ipv6_mapped();
        let rest = [&ip.octets()[..], &[0; 16], &7_u16.to_be_bytes(), &[0, 80]].concat();
        let expected = Proxied::Client(SocketAddr::from(([198, 51, 100, 7], 7)));
        assert_eq!(by_pieces(&header(0x21, 0x21, &rest), 64), Ok(expected));
    }

    #[test]
    fn what_is_no_header_is_known_at_its_first_wrong_byte() {
        for broken in [&b"S"[..], b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"\r\n\r\n\r", b"\x16\x03\x01"] {
            assert_eq!(read(broken), Err(Broken), "{broken:?}");
        }
    }

    #[test]
    fn commands_families_and_lengths_that_say_no_client_are_refused() {
        let good = four([198, 51, 100, 7], 4_000, &[]);
        for (command, family, rest) in [
            (0x22, 0x11, &good[..]), // an unknown command
            (0x11, 0x11, &good),     // another version
            (0x21, 0x12, &good),     // over UDP
            (0x21, 0x00, &good),     // unspecified
            (0x21, 0x31, &[0; 216]), // a UNIX socket
            (0x21, 0x11, &good[..11]),
            (0x21, 0x21, &good),
            (0x21, 0x11, &four([0, 0, 0, 0], 4_000, &[])),
            (0x21, 0x11, &four([224, 0, 0, 1], 4_000, &[])),
            (0x21, 0x11, &four([198, 51, 100, 7], 0, &[])),
        ] {
            assert_eq!(read(&header(command, family, rest)), Err(Broken), "{command:x} {family:x}");
        }
        let long = four([198, 51, 100, 7], 4_000, &vec![0; MOST]);
        assert_eq!(read(&header(0x21, 0x11, &long)[..FIXED]), Err(Broken), "refused before it is read");
    }
}
