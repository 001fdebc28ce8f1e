//! What the kernel is set to: sysctls under /proc/sys, of this network namespace where they are its own.

use std::fs;

use super::{Check, Verdict};
use crate::config::Settings;

const KEEP: &str = "/etc/sysctl.d/90-tidings.conf";

/// A datagram of ours in a receive buffer, with the kernel's own bookkeeping.
const DATAGRAM: usize = 2_048;
/// tokio's backlog.
const BACKLOG: u64 = 1_024;
/// For admin and DNS over TCP.
const TCP_BYTES: u64 = 16 << 20;
/// Look-ups and admin's clients of this machine; each takes a port for a moment.
const LEAST_PORTS: u64 = 1_000;

pub fn checks(settings: &Settings) -> Vec<Check> {
    let udp = &settings.udp;
    let mut checks = vec![
        least(
            "net.core.somaxconn",
            BACKLOG,
            Verdict::Warn,
            "connections to admin that wait to be taken; beyond it they are refused",
        ),
        least(
            "net.core.netdev_max_backlog",
            ((udp.receive_buffer / DATAGRAM) as u64).clamp(1_000, 16_384),
            Verdict::Warn,
            "packets that wait for a core; a queue shorter than a receive buffer loses bursts before it fills",
        ),
        memory(
            "net.ipv4.udp_mem",
            (settings.workers.count * settings.listen.len() * udp.receive_buffer) as u64,
            "all receive buffers of all workers, full at one time; beyond it datagrams are dropped",
        ),
        memory("net.ipv4.tcp_mem", TCP_BYTES, "connections to admin and to DNS servers"),
        files(),
    ];
    checks.extend(ports(settings));
    checks.push(conntrack(settings));
    checks
}

/// The value of a sysctl by its dotted name.
pub fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn number(name: &str) -> Option<u64> {
    sysctl(name)?.parse().ok()
}

/// The commands that set a sysctl, now and for good.
pub fn set(name: &str, value: impl std::fmt::Display) -> (String, String) {
    (format!("sysctl -w {name}=\"{value}\""), format!("echo '{name} = {value}' >> {KEEP}"))
}

fn least(name: &str, need: u64, verdict: Verdict, why: &str) -> Check {
    let needs = format!("at least {need}");
    let Some(value) = number(name) else { return Check::new(name, "not visible here", needs, why).unknown() };
    let (mend, keep) = set(name, need);
    Check::new(name, value, needs, why).unless(value >= need, verdict, mend, keep)
}

/// One of the memory limits, which are three numbers of pages: the last is the limit.
fn memory(name: &str, bytes: u64, why: &str) -> Check {
    let page = 4_096;
    let need = bytes.div_ceil(page);
    let needs = format!("at least {need} pages at the end ({} MiB)", bytes.div_ceil(1 << 20));
    let value = sysctl(name);
    let numbers: Option<Vec<u64>> =
        value.as_ref().and_then(|text| text.split(' ').map(|word| word.parse().ok()).collect());
    match (value, numbers.as_deref()) {
        (Some(value), Some(&[low, pressure, most])) => {
            let (mend, keep) = set(name, format!("{low} {} {need}", pressure.max(need * 3 / 4)));
            Check::new(name, value, needs, why).unless(most >= need, Verdict::Warn, mend, keep)
        }
        _ => Check::new(name, "not visible here", needs, why).unknown(),
    }
}

/// fs.file-max against what is open already, and what we shall open.
fn files() -> Check {
    const OURS: u64 = 10_000;
    let name = "fs.file-max";
    let why = "open files of the whole machine; at the limit nobody can open one more";
    let opened = sysctl("fs.file-nr").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let (Some(most), Some(opened)) = (number(name), opened) else {
        return Check::new(name, "not visible here", "more than are open", why).unknown();
    };
    let need = opened.saturating_add(OURS);
    let (mend, keep) = set(name, need * 2);
    Check::new(name, most, format!("at least {need} ({opened} are open)"), why).unless(
        most >= need,
        Verdict::Fail,
        mend,
        keep,
    )
}

/// The range of ephemeral ports: wide enough, and none of ours in it.
fn ports(settings: &Settings) -> Vec<Check> {
    let name = "net.ipv4.ip_local_port_range";
    let why = "DNS look-ups and local clients of admin take their ports from it";
    let needs = format!("at least {LEAST_PORTS} ports");
    let range = sysctl(name);
    let ends = range.as_ref().and_then(|text| {
        let (low, high) = text.split_once(' ')?;
        Some((low.parse::<u64>().ok()?, high.parse::<u64>().ok()?))
    });
    let (Some(range), Some((low, high))) = (range, ends) else {
        return vec![Check::new(name, "not visible here", needs, why).unknown()];
    };
    let (mend, keep) = set(name, "32768 60999");
    let wide = (high + 1).saturating_sub(low) >= LEAST_PORTS;
    let mut checks = vec![Check::new(name, range, needs, why).unless(wide, Verdict::Fail, mend, keep)];
    let reserved = sysctl("net.ipv4.ip_local_reserved_ports").unwrap_or_default();
    let is_reserved = |port: u64| {
        reserved.split(',').filter(|part| !part.is_empty()).any(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse().unwrap_or(0);
            (number(from)..=number(to)).contains(&port)
        })
    };
    let ours = settings.listen.iter().map(|listen| listen.address).chain(settings.admin.address);
    let mut inside: Vec<u64> = ours
        .map(|address| u64::from(address.port()))
        .filter(|port| (low..=high).contains(port) && !is_reserved(*port))
        .collect();
    inside.sort_unstable();
    inside.dedup();
    let list: Vec<String> = inside.iter().map(ToString::to_string).collect();
    let joined = if reserved.is_empty() { list.join(",") } else { format!("{reserved},{}", list.join(",")) };
    let (mend, keep) = set("net.ipv4.ip_local_reserved_ports", joined);
    let value = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    let why = "any program may be given such a port for an outgoing connection, and the next start of the router fails";
    checks.push(Check::new("ports of ours in that range", value, "none", why).unless(
        inside.is_empty(),
        Verdict::Warn,
        mend,
        keep,
    ));
    checks
}

/// Connection tracking: absent is best; where it is there, every phone is an entry.
fn conntrack(settings: &Settings) -> Check {
    let name = "net.netfilter.nf_conntrack_max";
    let why =
        "every phone is an entry in the connection tracking table; when it is full the kernel drops packets";
    let Some(most) = number(name) else {
        return Check::new("conntrack", "not loaded", "nothing", why);
    };
    let need = settings.limits.flows as u64 + 10_000;
    let used = number("net.netfilter.nf_conntrack_count").unwrap_or(0);
    let full = used.saturating_mul(10) >= most.saturating_mul(9);
    let (mend, keep) = set(name, need.max(used * 2));
    let keep =
        format!("{keep}; or leave SIP untracked: nft add rule inet raw prerouting udp dport 5060 notrack");
    let verdict = if full { Verdict::Fail } else { Verdict::Warn };
    Check::new(
        name,
        format!("{most} ({used} in use)"),
        format!("at least {need}: [limits] flows and others"),
        why,
    )
    .unless(most >= need && !full, verdict, mend, keep)
}
