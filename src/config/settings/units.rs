//! Durations (`30s`), sizes (`8MiB`), hosts and socket addresses as the configuration writes them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// `500ms`, `30s`, `5m`, `12h`, `1d`.
pub(crate) fn duration(written: &str) -> Option<Duration> {
    let split = written.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = written.split_at(split);
    let number: u64 = digits.parse().ok()?;
    let milliseconds = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}

/// `65536`, `64KiB`, `8MiB`, `1GiB`, `64kB`, `8MB`.
pub(crate) fn size(written: &str) -> Option<u64> {
    let split = written.find(|c: char| !c.is_ascii_digit()).unwrap_or(written.len());
    let (digits, unit) = written.split_at(split);
    let number: u64 = digits.parse().ok()?;
    let bytes = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// `192.0.2.1:5060`, `[2001:db8::1]:5060`, or without the port.
pub(crate) fn socket_address(written: &str, default_port: u16) -> Option<SocketAddr> {
    if let Ok(address) = written.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(written);
    Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, default_port))
}

/// `sip.example.com:5060`, `192.0.2.1`, `[2001:db8::1]:5060`: the host in lower case, no brackets, and the port.
pub(crate) fn host_port(written: &str) -> Option<(String, Option<u16>)> {
    if let Ok(address) = written.parse::<IpAddr>() {
        return Some((address.to_string(), None));
    }
    if let Ok(address) = written.parse::<SocketAddr>() {
        return (address.port() != 0).then(|| (address.ip().to_string(), Some(address.port())));
    }
    if let Some(inner) = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Some((inner.parse::<Ipv6Addr>().ok()?.to_string(), None));
    }
    let (host, port) = match written.split_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host, Some(port.parse::<u16>().ok().filter(|port| *port != 0)?))
        }
        Some(_) => return None,
        None => (written, None),
    };
    // A host name ends in a label that begins with a letter (RFC 3261 25.1): 300.1.2.3 is no name.
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let top = name.rsplit('.').next().and_then(|label| label.bytes().next());
    let valid =
        name.len() <= 253 && name.split('.').all(label) && top.is_some_and(|c| c.is_ascii_alphabetic());
    valid.then(|| (name.to_ascii_lowercase(), port))
}
