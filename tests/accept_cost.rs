//! The cost of an accept does not depend on how many connections there are (SPEC 9.7: O(1)): what `live::Sources` and the
//! judgement at the door take, in instructions by callgrind, among 100 and among 15,000 connections.
//!
//! The test runs itself under valgrind. Instructions do not swing as time does.

use std::{net::IpAddr, process::Command};

use tidings::live::{Bans, Cause, Now, Prefixes, SourceLimits, Sources, bans::Terms};

const UNDER: &str = "TIDINGS_ACCEPT_COST";
const ROUNDS: u32 = 2_000;

/// Ten connections of each address, 2,500 of each prefix.
fn address(n: u32) -> IpAddr {
    std::net::Ipv4Addr::from_bits(0x0a00_0000 + n / 10).into()
}

/// What the door does for one connection that comes and goes; kept apart so that callgrind may count it alone.
#[inline(never)]
fn accept_and_close(sources: &Sources, bans: &Bans, denied: &Prefixes, ip: IpAddr, now: Now) {
    assert!(!denied.contains(ip) && !bans.is_banned(ip));
    assert_eq!(sources.take(ip, now), Ok(()));
    sources.give(ip);
}

/// `connections` that stay, then some that come and go.
fn work(connections: u32) {
    let net = |n: u32| format!("192.{}.{}.0/24", n / 256, n % 256).parse().expect("a prefix");
    let nets: Vec<ipnet::IpNet> = (0..100).map(net).collect();
    let (denied, limits) = (
        Prefixes::new(&nets),
        SourceLimits {
            most: 100_000,
            per_address: 1_000,
            per_prefix: 10_000,
            accepts_per_second: 1_000_000,
            exempt: nets.clone(),
        },
    );
    let sources = Sources::new(limits);
    let bans = Bans::new(Terms { most: 20_000, seconds: 60, doubles: false, longest_s: 60 });
    bans.begin((0..connections).map(|n| (address(0x100_0000 + 10 * n), Cause::Excess, None)), 1_000);
    let now = Now { mono_ms: 1_000_000, unix_s: 1_000 };
    for n in 0..connections {
        assert_eq!(sources.take(address(n), now), Ok(()));
    }
    for n in 0..ROUNDS {
        // Of the same addresses, whatever the number of others.
        accept_and_close(&sources, &bans, &denied, address(n % 100), now);
    }
}

fn instructions(connections: u32) -> u64 {
    let out = std::env::temp_dir().join(format!("tidings-accept-{}-{connections}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*accept_and_close*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "an_accept_costs_the_same_at_100_and_at_15000_connections", "--test-threads=1"])
        .env(UNDER, connections.to_string())
        .output()
        .expect("valgrind is installed: apt-get install -y valgrind");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let counted = std::fs::read_to_string(&out).expect("callgrind writes it");
    let _ = std::fs::remove_file(&out);
    let total = counted.lines().find_map(|line| {
        line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: "))?.trim().parse().ok()
    });
    total.unwrap_or_else(|| panic!("no total:\n{said}"))
}

#[test]
fn an_accept_costs_the_same_at_100_and_at_15000_connections() {
    if let Ok(connections) = std::env::var(UNDER) {
        return work(connections.parse().expect("a number"));
    }
    let (few, many) = (instructions(100), instructions(15_000));
    let each = few / u64::from(ROUNDS);
    assert!((100..10_000).contains(&each), "{each} instructions each");
    let ratio = many as f64 / few as f64;
    assert!((0.8..1.2).contains(&ratio), "{few} instructions among 100, {many} among 15,000");
    eprintln!("{each} and {} instructions each", many / u64::from(ROUNDS));
}
