//! Numbers and addresses as text, without the formatting machinery: some are written into every message.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

/// Appends `n` in decimal.
pub fn number(n: u16, out: &mut Vec<u8>) {
    let mut digits = [0; 5];
    let (mut n, mut at) = (n, digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The digits of each octet, from the left, and how many there are.
static OCTETS: [[u8; 4]; 256] = {
    let mut octets = [[0; 4]; 256];
    let mut octet = 0;
    while octet < 256 {
        let (mut digits, mut left) = (0, octet);
        while digits == 0 || left > 0 {
            (digits, left) = (digits + 1, left / 10);
        }
        let (mut at, mut left) = (digits, octet);
        while at > 0 {
            at -= 1;
            octets[octet][at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        octets[octet][3] = digits as u8;
        octet += 1;
    }
    octets
};

/// Appends the address as a Via's `received` has it: IPv6 without brackets (RFC 5118 4.5), IPv4-mapped as IPv4.
pub fn ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let mut text = [0; 17];
            let mut len = 0;
            for octet in ip.octets() {
                let [digits @ .., more] = OCTETS[usize::from(octet)];
                text[len..len + 4].copy_from_slice(&[digits[0], digits[1], digits[2], b'.']);
                // The dot stands behind the digits, however many.
                len += usize::from(more);
                text[len] = b'.';
                len += 1;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        // A Vec takes all that is written.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

/// Appends `host:port`, IPv6 in brackets.
pub fn host_port(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr {
        SocketAddr::V4(v4) => {
            ip(IpAddr::V4(*v4.ip()), out);
            out.push(b':');
            number(addr.port(), out);
        }
        SocketAddr::V6(_) => drop(write!(out, "{addr}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_what_display_says() {
        for n in [0, 9, 10, 255, 5060, 65535] {
            let mut out = Vec::new();
            number(n, &mut out);
            assert_eq!(out, n.to_string().into_bytes());
        }
        for text in ["0.0.0.0", "203.0.113.255", "2001:db8::1"] {
            let addr: IpAddr = text.parse().expect("an address");
            let mut out = Vec::new();
            ip(addr, &mut out);
            assert_eq!(out, text.as_bytes());
            let addr = SocketAddr::new(addr, 5060);
            out.clear();
            host_port(addr, &mut out);
            assert_eq!(out, addr.to_string().into_bytes());
        }
        let mut out = Vec::new();
        ip("::ffff:10.0.0.1".parse().expect("an address"), &mut out);
        assert_eq!(out, b"10.0.0.1", "mapped IPv4 is IPv4");
    }
}
