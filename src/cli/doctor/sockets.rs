//! What is tried: the listeners' addresses, SO_REUSEPORT, the buffers that the kernel grants.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use super::{Check, Verdict, kernel};
use crate::{
    config::Settings,
    net::{tcp, udp},
};

const OURSELVES: &str = "tidings";

pub fn checks(settings: &Settings) -> Vec<Check> {
    let mut checks = vec![reuse_port()];
    checks.extend(buffers(settings));
    for listen in &settings.listen {
        let (name, at) = (format!("listener {}", listen.name), listen.address);
        checks.push(if listen.transport.is_datagram() {
            address(&name, at, "udp", udp::bind(at, 1, 4_096, 4_096).map(drop))
        } else {
            address(&name, at, "tcp", tcp::bind(at, 1).map(drop))
        });
    }
    if let Some(at) = settings.admin.address {
        checks.push(address("admin", at, "tcp", TcpListener::bind(at).map(drop)));
    }
    checks
}

fn reuse_port() -> Check {
    let tried = udp::bind((Ipv4Addr::LOCALHOST, 0).into(), 2, 4_096, 4_096);
    let value = tried.as_ref().map_or_else(ToString::to_string, |_| "works".to_owned());
    let why = "each worker has a socket of its own on each address";
    Check::new("SO_REUSEPORT", value, "two sockets on one port", why).unless(
        tried.is_ok(),
        Verdict::Fail,
        "",
        "a kernel since 3.9, and a sandbox that lets it through",
    )
}

/// The buffers as the kernel grants them to who calls.
fn buffers(settings: &Settings) -> Vec<Check> {
    let (receive, send) = (settings.udp.receive_buffer, settings.udp.send_buffer);
    let granted = udp::bind((Ipv4Addr::LOCALHOST, 0).into(), 1, receive, send).ok();
    let granted = granted.as_ref().and_then(|sockets| sockets.first());
    let of = [
        ("net.core.rmem_max", "receive_buffer", receive, granted.map(|socket| socket.receive_buffer)),
        ("net.core.wmem_max", "send_buffer", send, granted.map(|socket| socket.send_buffer)),
    ];
    of.into_iter()
        .map(|(name, key, asked, granted)| {
            let most = kernel::sysctl(name).unwrap_or_else(|| "?".to_owned());
            let (mend, keep) = kernel::set(name, asked);
            let needs = format!("at least {asked}: {key} in [udp]");
            let why = "with a smaller buffer than asked for, bursts of datagrams are dropped";
            let Some(granted) = granted else { return Check::new(name, most, needs, why).unknown() };
            // CAP_NET_ADMIN goes beyond the maximum; whoever runs the router may not have it.
            let within = most.parse().is_ok_and(|most: usize| most >= asked);
            let verdict = if granted >= asked { Verdict::Warn } else { Verdict::Fail };
            Check::new(name, format!("{most}, granted {granted}"), needs, why).unless(
                within && granted >= asked,
                verdict,
                mend,
                keep,
            )
        })
        .collect()
}

/// Can this address be bound, or is it a router of ours that has it?
fn address(name: &str, at: SocketAddr, protocol: &str, tried: io::Result<()>) -> Check {
    let needs = format!("{at}/{protocol} free, or a running {OURSELVES}");
    let why = "the router does not start where a listener's address cannot be bound";
    let Err(error) = tried else { return Check::new(name, "free", needs, why) };
    match error.kind() {
        io::ErrorKind::AddrInUse => match owner(at, protocol) {
            Some((pid, program)) if program == OURSELVES => {
                Check::new(name, format!("{OURSELVES}, process {pid}"), needs, why)
            }
            Some((pid, program)) => Check::new(name, format!("{program}, process {pid}"), needs, why).unless(
                false,
                Verdict::Fail,
                format!("kill {pid}"),
                "another address in tidings.toml",
            ),
            None => Check::new(name, "in use", needs, "run doctor as root to see by whom").unless(
                false,
                Verdict::Fail,
                format!("ss -lnp 'sport = :{}'", at.port()),
                "another address in tidings.toml",
            ),
        },
        io::ErrorKind::AddrNotAvailable => Check::new(name, "no such address here", needs, why).unless(
            false,
            Verdict::Fail,
            format!("ip address add {} dev eth0", at.ip()),
            "an address that this machine has, or sysctl net.ipv4.ip_nonlocal_bind=1 where it comes later (keepalived)",
        ),
        io::ErrorKind::PermissionDenied => Check::new(name, "not permitted", needs, why).unless(
            false,
            Verdict::Fail,
            "",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit",
        ),
        _ => Check::new(name, error.to_string(), needs, why).unless(false, Verdict::Fail, "", ""),
    }
}

/// The process that has this address or its wildcard: by the inode of its socket. Other users' are seen by root only.
fn owner(at: SocketAddr, protocol: &str) -> Option<(u32, String)> {
    let mut inodes = Vec::new();
    for family in ["", "6"] {
        let table = fs::read_to_string(format!("/proc/net/{protocol}{family}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(inode)) = (words.get(1).and_then(|word| parse(word)), words.get(9)) else {
                continue;
            };
            let listens = protocol == "udp" || words.get(3) == Some(&"0A");
            let same = local.ip() == at.ip() || local.ip().is_unspecified() || at.ip().is_unspecified();
            if listens && same && local.port() == at.port() {
                inodes.push(format!("socket:[{inode}]"));
            }
        }
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok()).find_map(|pid| {
        let opened = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let has = opened.flatten().any(|file| {
            fs::read_link(file.path())
                .is_ok_and(|target| inodes.iter().any(|inode| target == Path::new(inode)))
        });
        let name = has.then(|| fs::read_to_string(format!("/proc/{pid}/comm")).ok())??;
        Some((pid, name.trim().to_owned()))
    })
}

/// `0100007F:13C4`, and the same of IPv6: words of the machine's byte order.
fn parse(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok()?.into(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_socket_is_found_by_its_process() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let at = socket.local_addr().expect("an address");
        let (pid, _) = owner(at, "udp").expect("our own socket is seen");
        assert_eq!(pid, std::process::id());
        let listener = TcpListener::bind("[::1]:0").expect("a port");
        let at = listener.local_addr().expect("an address");
        assert_eq!(owner(at, "tcp").map(|(pid, _)| pid), Some(std::process::id()));
    }
}
