//! Pools: who is a backend by address, how requests are balanced over them (SPEC 1.1, 5.3), and what compiling a table
//! resolves or refuses (SPEC 4.6).

mod route;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use route::*;
use tidings::{
    config::{
        Diagnostic, Names, Severity, Side, TableSpec,
        table::{
            ActionSpec, AdminState, BackendSpec, Balance, DnsName, Host, MatchSpec, Piece, PoolSpec, Template,
        },
    },
    live::{Dns, Health, Now, Registry, Resolved},
    route::{Action, BackendRef, Candidate, Context, Peer, Pick, Pools, Recorder, Table, balance, compile},
    stats::SeriesRegistry,
    wire::Transport,
};

const UDP: Transport = Transport::Udp;
const TCP: Transport = Transport::Tcp;

fn of(pools: Vec<PoolSpec>) -> Arc<Pools> {
    build(&TableSpec { pools, ..table(Vec::new()) }).1
}

fn at(pool: u16, index: u16) -> BackendRef {
    BackendRef { pool, index }
}

fn is(pool: u16, index: u16) -> Option<Peer> {
    Some(Peer::Backend(at(pool, index)))
}

/// SPEC 1.1: over UDP the port too, unless the pool says `any_port`.
#[test]
fn a_udp_source_is_a_backends_by_address_and_port() {
    let mut loose = pool("loose", &["10.0.0.31:5060"]);
    loose.any_port = true;
    let mut streams = pool("streams", &["10.0.0.41:5060"]);
    streams.backends[0].transport = TCP;
    let pools = of(vec![pool("strict", &["10.0.0.11:5060", "10.0.0.12:5070"]), loose, streams]);
    let peer = |transport, text| pools.peer(transport, address(text), 0);
    assert_eq!(peer(UDP, "10.0.0.11:5060"), is(0, 0));
    assert_eq!(peer(UDP, "[::ffff:10.0.0.12]:5070"), is(0, 1), "IPv4-mapped");
    assert_eq!(peer(UDP, "10.0.0.12:5060"), None);
    assert_eq!(peer(UDP, "10.0.0.11:0"), None);
    assert_eq!(peer(UDP, "10.0.0.31:40000"), is(1, 0));
    assert_eq!(peer(TCP, "10.0.0.12:40000"), is(0, 1), "a stream by its address");
    assert_eq!(peer(UDP, "10.0.0.41:5060"), None, "listed with TCP: its UDP source may be forged");
    assert_eq!(peer(TCP, "10.0.0.41:40000"), is(2, 0));
    assert_eq!(peer(TCP, "10.0.0.99:5060"), None);
}

#[test]
fn members_are_told_by_pool() {
    let mut loose = pool("loose", &["10.0.0.11:5060"]);
    loose.any_port = true;
    let pools = of(vec![pool("strict", &["10.0.0.11:5060"]), loose, pool("other", &["10.0.0.12:5060"])]);
    let members = |transport, text| -> Vec<u16> {
        (0..3).filter(|&p| pools.is_member(p, transport, address(text))).collect()
    };
    assert_eq!(members(UDP, "10.0.0.11:5060"), [0, 1]);
    assert_eq!(members(UDP, "10.0.0.11:6000"), [1]);
    assert_eq!(members(TCP, "10.0.0.11:6000"), [0, 1]);
    assert_eq!(members(UDP, "[::ffff:10.0.0.12]:5060"), [2]);
    assert_eq!(members(UDP, "10.0.0.13:5060"), [0; 0]);
}

#[test]
fn backends_are_found_by_address_and_by_host() {
    let mut named = pool("named", &["10.0.0.21:5060", "10.0.0.22:5060", "10.0.0.22:5080"]);
    named.backends[0].host = "PBX.example.com".into();
    named.backends[1].host = "pbx.example.com".into();
    named.backends[2].host = "pbx.example.com".into();
    let pools = of(vec![
        pool("first", &["10.0.0.11:5060", "10.0.0.11:5070"]),
        named,
        pool("third", &["10.0.0.11:5070", "[2001:db8::5]:5060"]),
    ]);
    assert_eq!(pools.by_address(address("10.0.0.11:5070"), UDP), Some(at(0, 1)));
    assert_eq!(pools.by_address(address("[::ffff:10.0.0.11]:5070"), UDP), Some(at(0, 1)));
    assert_eq!(pools.by_address(address("10.0.0.11:5070"), TCP), None);
    let host = |host: &str, port, pool_of| pools.by_host(host.as_bytes(), port, pool_of);
    assert_eq!(host("10.0.0.11", Some(5070), None), Some(at(0, 1)));
    assert_eq!(host("10.0.0.11", None, None), Some(at(0, 0)), "no port: the first");
    assert_eq!(host("10.0.0.11", Some(9), None), Some(at(0, 0)), "a port of none: the first");
    assert_eq!(host("pbx.EXAMPLE.com", Some(5080), None), Some(at(1, 2)));
    assert_eq!(host("pbx.example.com", None, None), Some(at(1, 0)));
    assert_eq!(host("2001:DB8:0::5", None, None), Some(at(2, 1)), "by value");
    assert_eq!(host("[2001:db8::5]", Some(5060), None), Some(at(2, 1)));
    assert_eq!(host("example.com", None, None), None);
    assert_eq!(host("", None, None), None);
    assert_eq!(host(&"x".repeat(5000), None, None), None);
    // Only what shares a pool: 10.0.0.11:5070 is in the first and in the third.
    assert_eq!(host("10.0.0.11", Some(5070), Some(at(2, 1))), Some(at(2, 0)));
    assert_eq!(host("10.0.0.11", Some(5060), Some(at(0, 1))), Some(at(0, 0)));
    assert_eq!(host("10.0.0.11", None, Some(at(1, 0))), None);
    assert_eq!(host("2001:db8::5", None, Some(at(0, 1))), Some(at(2, 1)));
    assert_eq!(host("pbx.example.com", None, Some(at(0, 1))), None);
}

/// SPEC 1.1: a backend that left the table is believed for a day.
#[test]
fn a_backend_that_left_is_believed_for_a_day() {
    let spec = |addresses: &[&str]| TableSpec { pools: vec![pool("p", addresses)], ..table(Vec::new()) };
    let version = |(rules, pools)| Table { rules, pools, version: 1 };
    let day = 1_000_000 + 86_400;
    let first = version(build(&spec(&["10.0.0.11:5060", "10.0.0.12:5060"])));
    let second = version(try_build(&spec(&["10.0.0.12:5060"]), Some(&first)).expect("valid"));
    let third = version(try_build(&spec(&["10.0.0.13:5060"]), Some(&second)).expect("valid"));
    let back = version(try_build(&spec(&["10.0.0.11:5060"]), Some(&third)).expect("valid"));
    let left = address("10.0.0.11:5060");
    assert_eq!(first.pools.peer(UDP, left, day - 1), is(0, 0));
    for table in [&second, &third] {
        assert_eq!(table.pools.peer(UDP, left, day - 1), Some(Peer::Departed));
        assert_eq!(table.pools.peer(UDP, left, day), None);
        assert_eq!(table.pools.peer(UDP, address("10.0.0.11:5061"), 0), None, "over UDP the port too");
        assert_eq!(table.pools.peer(TCP, address("10.0.0.11:5061"), 0), Some(Peer::Departed));
    }
    assert_eq!(second.pools.peer(UDP, address("10.0.0.12:5060"), 0), is(0, 0));
    assert_eq!(third.pools.peer(UDP, address("10.0.0.12:5060"), 0), Some(Peer::Departed));
    assert_eq!(back.pools.peer(UDP, left, 0), is(0, 0));
    assert!(back.pools.departed().iter().all(|d| d.0 != left.ip()));
}

// ---------------------------------------------------------------------------------------------------------------------
// Placement.

/// A pool of backends with these names and weights.
fn weighted(backends: &[(&str, u32)]) -> PoolSpec {
    let mut spec = pool("p", &[]);
    for (n, (name, weight)) in backends.iter().enumerate() {
        let mut one = backend(name, &format!("10.0.{n}.1:5060"));
        one.weight = *weight;
        spec.backends.push(one);
    }
    spec
}

/// Where 100,000 users go, by name of the backend.
fn places(spec: PoolSpec) -> Vec<String> {
    let pools = of(vec![spec]);
    let pool = pools.pool(0);
    let place = |n: u32| {
        let key = balance::key_hash(format!("{n}@example.com").as_bytes());
        pools.rendezvous(0, key).map_or(String::new(), |i| pool.backends[usize::from(i)].name.to_string())
    };
    (0..100_000).map(place).collect()
}

fn shares(places: &[String]) -> HashMap<&str, f64> {
    let mut shares = HashMap::new();
    for place in places {
        *shares.entry(&**place).or_insert(0.0) += 1.0 / places.len() as f64;
    }
    shares
}

/// SPEC 5.3: the weights are kept within 2 % of the whole over 100,000 keys; here within half of that.
#[test]
fn weights_are_kept() {
    for weights in [
        vec![1, 1, 1, 1, 1, 1, 1, 1],
        vec![10, 20, 30, 40],
        vec![1, 1000],
        vec![3, 5],
        vec![u32::MAX, 1 << 31],
    ] {
        let names: Vec<_> = (0..weights.len()).map(|n| format!("pbx{n}")).collect();
        let backends: Vec<_> = names.iter().map(|n| &**n).zip(weights.iter().copied()).collect();
        let places = places(weighted(&backends));
        let shares = shares(&places);
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for (name, weight) in &backends {
            let (share, wanted) = (shares.get(name).copied().unwrap_or(0.0), f64::from(*weight) / total);
            assert!((share - wanted).abs() < 0.01, "{name} of {weights:?}: {share} for {wanted}");
        }
    }
}

#[test]
fn a_backend_that_leaves_moves_its_own_share_and_nothing_else() {
    let all = [("a", 10), ("b", 20), ("c", 30), ("d", 40)];
    let before = places(weighted(&all));
    for gone in 0..4 {
        let mut fewer = all.to_vec();
        let (name, _) = fewer.remove(gone);
        let mut off = weighted(&all);
        off.backends[gone].state = AdminState::Drain;
        let after = places(weighted(&fewer));
        assert_eq!(after, places(off), "drained is as gone");
        for (before, after) in before.iter().zip(&after) {
            assert!(before == name || before == after, "{before} moved to {after} though {name} left");
        }
    }
}

#[test]
fn a_heavier_backend_only_gains() {
    let before = places(weighted(&[("a", 10), ("b", 10), ("c", 10)]));
    let after = places(weighted(&[("a", 10), ("b", 15), ("c", 10)]));
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || after == "b", "{before} moved to {after}");
    }
}

#[test]
fn order_in_the_file_and_addresses_decide_nothing() {
    let mut turned = weighted(&[("c", 30), ("a", 10), ("b", 20)]);
    turned.backends[0].addr = address("172.16.0.1:7000").into();
    assert_eq!(places(weighted(&[("a", 10), ("b", 20), ("c", 30)])), places(turned));
}

/// The fleet's contract: every router with this table, on any machine and in any version, places so.
#[test]
fn placement_is_pinned() {
    let places = places(weighted(&[("pbx1", 10), ("pbx2", 20), ("pbx3", 70)]));
    let first: Vec<_> = places[..24].iter().map(|place| &place[3..]).collect();
    let hash = places
        .iter()
        .fold(0u64, |hash, place| hash.wrapping_mul(31).wrapping_add(u64::from(place.as_bytes()[3])));
    assert_eq!((&*first.concat(), hash), ("333133333322333323133332", 7_168_348_263_284_479_815));
}

#[derive(Default)]
struct Told {
    key: Option<(String, Vec<u8>)>,
    candidates: Vec<(String, Option<&'static str>, f64)>,
}

impl Recorder for Told {
    const ON: bool = true;

    fn key(&mut self, balance: &str, key: &[u8]) {
        self.key = Some((balance.into(), key.into()));
    }

    fn candidate(&mut self, candidate: Candidate<'_>) {
        self.candidates.push((candidate.name.into(), candidate.excluded, candidate.score));
    }
}

fn pick(pools: &Pools, pool: u16, sent: &Sent, sender: Option<BackendRef>) -> (Pick, Told) {
    let mut told = Told::default();
    let names = Names::default();
    sent.facts(pools, |facts| {
        let loud = pools.pick(pool, facts, &names, sender, &mut Vec::new(), &mut told);
        let quiet = pools.pick(pool, facts, &names, sender, &mut Vec::new(), &mut ());
        assert_eq!(loud, quiet, "who watches changes nothing");
        (loud, told)
    })
}

#[test]
fn drained_and_off_backends_take_nothing_new() {
    let mut spec = weighted(&[("a", 1), ("b", 1), ("c", 1)]);
    spec.backends[0].state = AdminState::Drain;
    spec.backends[2].state = AdminState::Off;
    let pools = of(vec![spec.clone()]);
    for n in 0..50 {
        let (picked, told) = pick(&pools, 0, &Sent::default().ruri(&format!("sip:{n}@example.com")), None);
        assert_eq!(picked, Pick::Backend(at(0, 1)));
        let excluded: Vec<_> = told.candidates.iter().map(|c| (&*c.0, c.1)).collect();
        assert_eq!(excluded, [("a", Some("drain")), ("b", None), ("c", Some("off"))]);
    }
    spec.backends[1].state = AdminState::Off;
    assert_eq!(pick(&of(vec![spec]), 0, &Sent::default(), None).0, Pick::None);
}

/// Where 100,000 users go in the pools as they are now.
fn places_now(pools: &Pools) -> Vec<Option<u16>> {
    let place = |n: u32| pools.rendezvous(0, balance::key_hash(format!("{n}@example.com").as_bytes()));
    (0..100_000).map(place).collect()
}

fn set(pools: &Pools, index: u16, health: Health) {
    pools.backend(at(0, index)).state.set_health(health, "a test", Now { mono_ms: 1, unix_s: 1 });
}

/// SPEC 5.3, 8: what is down or degraded is as one that left; it moves its own share (and at most 2 % more), and once it
/// is back all is where it was. Two routers with one table agree at each moment.
#[test]
fn a_backend_that_dies_moves_its_own_share_and_its_recovery_brings_it_back() {
    let spec = weighted(&[("a", 10), ("b", 20), ("c", 30), ("d", 40)]);
    let (pools, other) = (of(vec![spec.clone()]), of(vec![spec]));
    let before = places_now(&pools);
    assert_eq!(before, places_now(&other));
    for (gone, share) in [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)] {
        for health in [Health::Down, Health::Degraded] {
            set(&pools, gone, health);
            set(&other, gone, health);
            let after = places_now(&pools);
            assert_eq!(after, places_now(&other));
            let moved = before.iter().zip(&after).filter(|(was, is)| was != is).count();
            assert!(before.iter().zip(&after).all(|(was, is)| was == is || *was == Some(gone)));
            assert!(!after.contains(&Some(gone)) && (moved as f64) < (share + 0.02) * before.len() as f64);
            set(&pools, gone, Health::Up);
            set(&other, gone, Health::Up);
            assert_eq!(places_now(&pools), before);
        }
    }
    assert!(!pools.all_down());
    (0..4).for_each(|index| set(&pools, index, Health::Down));
    assert!(pools.all_down() && places_now(&pools).iter().all(Option::is_none));
}

/// SPEC 8.3: a pool that panics goes on as if all were up, without what is drained or off.
#[test]
fn a_pool_that_panics_places_by_marks_alone() {
    let mut spec = weighted(&[("a", 10), ("b", 20), ("c", 30)]);
    spec.panic = true;
    let pools = of(vec![spec.clone()]);
    let before = places_now(&pools);
    set(&pools, 0, Health::Down);
    assert!(!places_now(&pools).contains(&Some(0)), "no panic while others are up");
    assert!(!pools.carries(at(0, 0)) && pools.carries(at(0, 1)));
    set(&pools, 1, Health::Down);
    set(&pools, 2, Health::Degraded);
    assert_eq!(places_now(&pools), before);
    assert!(pools.carries(at(0, 0)) && !pools.all_down());
    spec.backends[1].state = AdminState::Drain;
    let drained = of(vec![spec]);
    set(&drained, 0, Health::Down);
    set(&drained, 2, Health::Down);
    let places = places_now(&drained);
    assert!(places.contains(&Some(0)) && places.contains(&Some(2)) && !places.contains(&Some(1)));
}

#[test]
fn the_operators_mark_goes_before_the_table() {
    let mut spec = weighted(&[("a", 1), ("b", 1)]);
    spec.backends[1].state = AdminState::Off;
    let pools = of(vec![spec]);
    let mark = |index, mark| pools.backend(at(0, index)).state.set_mark(mark, "", Now::default());
    assert!(places_now(&pools).iter().all(|place| *place == Some(0)));
    mark(0, Some(AdminState::Drain));
    mark(1, Some(AdminState::Active));
    assert!(places_now(&pools).iter().all(|place| *place == Some(1)));
    assert!(pools.carries(at(0, 0)));
    mark(1, None);
    assert!(pools.all_down() && !pools.carries(at(0, 1)));
}

#[test]
fn the_candidate_with_the_highest_score_wins() {
    let pools = of(vec![weighted(&[("a", 10), ("b", 20), ("c", 30)])]);
    for n in 0..200 {
        let (picked, told) = pick(&pools, 0, &Sent::default().ruri(&format!("sip:{n}@example.com")), None);
        let best = (0..3).max_by(|&a, &b| told.candidates[a].2.total_cmp(&told.candidates[b].2));
        assert_eq!(picked, Pick::Backend(at(0, best.expect("three candidates") as u16)));
    }
}

/// SPEC 1.5: never the target of its own request, and what the hash names it for goes nowhere else.
#[test]
fn a_backend_is_never_the_target_of_its_own_request() {
    let pools = of(vec![pool("p", &["10.0.0.11:5060", "10.0.0.12:5060"]), pool("q", &["10.0.0.11:5060"])]);
    let mut own = 0;
    for n in 0..200 {
        let sent = Sent::default().ruri(&format!("sip:{n}@example.com"));
        let stranger = pick(&pools, 0, &sent, None).0;
        // By its place in another pool too: it is the same backend.
        for sender in [at(0, 0), at(1, 0)] {
            let wanted = if stranger == Pick::Backend(at(0, 0)) { Pick::Sender } else { stranger };
            assert_eq!(pick(&pools, 0, &sent, Some(sender)).0, wanted);
        }
        own += u32::from(stranger == Pick::Backend(at(0, 0)));
        assert_eq!(pick(&pools, 1, &sent, Some(at(0, 0))).0, Pick::Sender, "the only one");
    }
    assert!((50..150).contains(&own));
}

/// The key of a message by a balance.
fn key(balance: Balance, sent: &Sent) -> String {
    let mut spec = pool("p", &["10.0.0.11:5060"]);
    spec.balance = balance;
    let pools = of(vec![spec]);
    let names = Names {
        aliases: vec![((*b"example.com").into(), None), ((*b"sip.example.com").into(), None)],
        ..Names::default()
    };
    sent.facts(&pools, |facts| {
        let mut told = Told::default();
        pools.pick(0, facts, &names, None, &mut b"stale".to_vec(), &mut told);
        let (_, key) = told.key.expect("a key was told");
        String::from_utf8(key).expect("test keys are text")
    })
}

const CALL_ID: &str = "a84b4c76e66710@192.0.2.7";

/// SPEC 5.3: PUBLISH, SUBSCRIBE and REGISTER for one user meet on one PBX, under whichever of our names.
#[test]
fn resource_is_the_canonical_user_and_domain() {
    let one = key(Balance::Resource, &Sent::default().ruri("sip:bob@example.com"));
    for ruri in
        ["sip:bob@EXAMPLE.com:5060;transport=udp", "sips:b%6fb@sip.example.com", "sip:bob:secret@example.com"]
    {
        assert_eq!(key(Balance::Resource, &Sent::method("PUBLISH").ruri(ruri)), one, "{ruri}");
    }
    let register = Sent::method("REGISTER").ruri("sip:example.com").header("To", "Bob <sip:bob@example.com>");
    assert_eq!(key(Balance::Resource, &register), one);
    for other in ["sip:Bob@example.com", "sip:bob@example.org", "sip:alice@example.com"] {
        assert_ne!(key(Balance::Resource, &Sent::default().ruri(other)), one, "{other}");
    }
    assert_eq!(key(Balance::Resource, &Sent::default().ruri("sip:bob@Example.ORG:7000")), "bob@example.org");
}

#[test]
fn a_message_without_the_key_is_balanced_by_call_id() {
    let bare = || Sent::default().ruri("sip:example.com");
    for balance in
        [Balance::Resource, Balance::ResourceEvent, Balance::User, Balance::Header("x-tenant".into())]
    {
        assert_eq!(key(balance, &bare().header("Event", "presence")), CALL_ID);
    }
    assert_eq!(key(Balance::CallId, &bare()), CALL_ID);
}

#[test]
fn every_balance_has_its_key() {
    let sent = || {
        Sent::default()
            .ruri("sip:1000@PBX.example.org:5070;user=phone")
            .header("From", "\"A\" <sip:alice@Tenant.example.net:5060>;tag=1")
            .header("To", "<sip:bob@there.example.net>")
            .header("Event", "dialog;sla")
            .header("X-Tenant", "blue")
    };
    assert_eq!(key(Balance::Resource, &sent()), "1000@pbx.example.org");
    assert_eq!(key(Balance::ResourceEvent, &sent()), "1000@pbx.example.org dialog");
    assert_eq!(key(Balance::User, &sent()), "1000");
    assert_eq!(key(Balance::Domain, &sent()), "pbx.example.org");
    assert_eq!(key(Balance::FromDomain, &sent()), "tenant.example.net");
    assert_eq!(key(Balance::From, &sent()), "alice@tenant.example.net");
    assert_eq!(key(Balance::To, &sent()), "bob@there.example.net");
    assert_eq!(key(Balance::Header("x-tenant".into()), &sent()), "blue");
    assert_eq!(key(Balance::Header("subject".into()), &sent().header("s", "lamps")), "lamps");
    let peer = Sent { peer: address("[::ffff:65.66.67.68]:5060"), ..sent() };
    assert_eq!(key(Balance::Source, &peer), "ABCD", "the bytes of its IPv4 address");
    assert_eq!(key(Balance::Domain, &sent().ruri("sip:example.com")), "", "our own names are one domain");
    let tel = key(Balance::Resource, &sent().ruri("tel:+1-201-555-0123"));
    assert_eq!(tel, key(Balance::Resource, &sent().ruri("tel:+12015550123")));
}

// ---------------------------------------------------------------------------------------------------------------------
// Compiling.

fn faults(spec: &TableSpec) -> Vec<(usize, String)> {
    let Err(faults) = try_build(spec, None) else { panic!("the table is not refused") };
    let place = |d: Diagnostic| {
        assert_eq!((d.file.as_str(), d.severity), ("table.toml", Severity::Error));
        (d.line, d.message)
    };
    faults.into_iter().map(place).collect()
}

/// SPEC 4.6: the pool's listener, else the first with side `backends`, then `both`.
#[test]
fn requests_leave_by_the_pools_listener_or_the_first_that_fits() {
    let mut six = pool("six", &["[2001:db8::11]:5060"]);
    six.backends[0].weight = 0;
    let mut tcp = pool("tcp", &["10.0.0.11:5060"]);
    tcp.backends[0].transport = TCP;
    let mut wanted = pool("wanted", &["10.0.0.12:5060"]);
    wanted.listener = Some("pbxs".into());
    let pools = of(vec![pool("udp", &["10.0.0.11:5060"]), six, tcp, wanted]);
    let leaves = |pool: u16| {
        let backend = pools.backend(at(pool, 0));
        (backend.listener, backend.local.to_string(), backend.wildcard)
    };
    assert_eq!(leaves(0), (1, "10.0.0.1:5060".into(), false));
    assert_eq!(leaves(1), (3, "[2001:db8::1]:5060".into(), true), "the kernel's choice for a wildcard");
    assert_eq!(leaves(2), (2, "10.0.0.1:5060".into(), false));
    assert_eq!(leaves(3), (1, "10.0.0.1:5060".into(), false));
    assert_eq!(pools.backend(at(1, 0)).weight, 1, "no weight is none");
}

#[test]
fn side_backends_goes_before_both_and_a_wildcard_needs_a_source() {
    let listeners = [
        listener("any", UDP, "0.0.0.0:5060", Side::Both),
        listener("pbx", UDP, "0.0.0.0:5062", Side::Backends),
        listener("pbx2", UDP, "10.0.0.1:5064", Side::Backends),
    ];
    let spec = TableSpec { pools: vec![pool("p", &["10.0.0.11:5060"])], ..table(Vec::new()) };
    let compiled = |known: Option<IpAddr>| {
        compile(
            &spec,
            &Context {
                listeners: &listeners,
                strip: &[],
                registry: &Registry::default(),
                dns: &Dns::default(),
                unix_s: 0,
                series: &SeriesRegistry::new(10),
                departed: Vec::new(),
                departed_most: 1000,
                source_for: &|_| known,
                previous: None,
            },
        )
    };
    let (_, pools) = compiled(Some(address("10.0.0.7:0").ip())).expect("valid");
    let backend = pools.backend(at(0, 0));
    assert_eq!((backend.listener, backend.local), (1, address("10.0.0.7:5062")));
    let Err(faults) = compiled(None) else { panic!("0.0.0.0 must never be put on the wire") };
    assert!(faults[0].message.contains("no address from which to reach 10.0.0.11:5060"), "{faults:?}");
}

#[test]
fn what_cannot_be_resolved_is_refused_all_at_once() {
    let mut spec = table(vec![
        rule("r1", MatchSpec { listener: words(&["nowhere"]), ..MatchSpec::default() }),
        rule("r2", MatchSpec::default()),
        rule(
            "r3",
            MatchSpec {
                patterns: vec![pattern(tidings::config::table::Subject::Ruri, "(")],
                ..MatchSpec::default()
            },
        ),
    ]);
    spec.rules[1].action = ActionSpec::Route("presance".into());
    spec.pools[1].listener = Some("phones".into());
    let mut tls = pool("tls", &["10.0.0.31:5061"]);
    tls.backends[0].transport = Transport::Tls;
    tls.backends[0].line = 17;
    let mut odd = pool("odd", &["10.0.0.32:5060"]);
    odd.listener = Some("streams".into());
    let mut unknown = pool("unknown", &["10.0.0.33:5060"]);
    unknown.listener = Some("nobody".into());
    spec.pools.extend([tls, odd, unknown]);
    let refused = |pool: &str, fault: &str| {
        format!("the table is refused: pool \"{pool}\", backend \"{pool}0\": {fault}")
    };
    assert_eq!(
        faults(&spec),
        [
            (2, refused("voicemail", "listener \"phones\" has side \"clients\"")),
            (17, refused("tls", "no listener for tls over IPv4 with side \"backends\" or \"both\"")),
            (2, refused("odd", "listener \"streams\" is not for udp over IPv4")),
            (2, refused("unknown", "unknown listener \"nobody\"")),
            (3, "rule \"r1\": unknown listener \"nowhere\"".into()),
            (3, "rule \"r2\": unknown pool \"presance\"".into()),
            (3, "rule \"r3\": ruri = \"(\": unclosed group".into()),
        ]
    );
}

#[test]
fn rules_are_made_ready_for_the_path() {
    let routed = |name: &str, events: &[&str]| {
        let mut routed = rule(name, MatchSpec { event: words(events), ..MatchSpec::default() });
        routed.action = ActionSpec::Route("voicemail".into());
        routed
    };
    let mut first = routed("first", &["presence", "message-summary"]);
    first.set = vec![("X-From-Backend".into(), Template(vec![Piece::SourceBackend]))];
    first.remove = vec!["S".into(), "X-Secret".into()];
    let mut reply = rule("reply", MatchSpec { event: words(&["x-refused"]), ..MatchSpec::default() });
    reply.action = ActionSpec::Reply {
        code: 489,
        reason: "Bad Event".into(),
        headers: vec![("X-Why".into(), "not here".into()), ("Retry-After".into(), "5".into())],
    };
    let mut redirect = rule("redirect", MatchSpec::default());
    redirect.action = ActionSpec::RedirectPool("pbx".into());
    let mut spec = table(vec![first, reply, routed("second", &["dialog", "presence"]), redirect]);
    spec.packages = vec!["message-summary".into(), "refer".into()];
    let (rules, _) = build(&spec);
    assert_eq!(&*rules.allow_events, "message-summary, refer, presence, dialog");
    assert_eq!(rules.strip.iter().map(|s| &**s).collect::<Vec<_>>(), [&b"x-from-backend"[..], b"x-trusted"]);
    assert_eq!(
        rules.rules[0].remove.iter().map(|r| &**r).collect::<Vec<_>>(),
        [&b"subject"[..], b"x-secret"]
    );
    assert_eq!(&*rules.rules[0].set[0].name, "X-From-Backend");
    assert_eq!(&*rules.rules[0].set[0].canonical, b"x-from-backend");
    assert!(matches!(rules.rules[0].action, Action::Route(1)));
    assert!(matches!(rules.rules[3].action, Action::RedirectPool(0)));
    let Action::Reply { code: 489, headers, .. } = &rules.rules[1].action else { panic!("a reply") };
    let allowed =
        b"X-Why: not here\r\nRetry-After: 5\r\nAllow-Events: message-summary, refer, presence, dialog\r\n";
    assert_eq!(&**headers, allowed, "a 489 says which packages are served (RFC 6665 8.3.2)");
    let series = |package: &str| rules.package_series(package.as_bytes());
    let mut known: Vec<_> =
        ["presence", "dialog", "message-summary", "refer", "x-refused"].map(series).into();
    known.sort_unstable();
    known.dedup();
    assert_eq!(known.len(), 5, "each package that the table names has its own series");
    assert!(!known.contains(&tidings::stats::OTHER));
    assert_eq!(series("nobody-knows"), tidings::stats::OTHER);
    let positions: Vec<_> = rules.rules.iter().map(|rule| rule.position).collect();
    assert_eq!(positions, [0, 1, 2, 3]);
}

/// SPEC 5.4: a backend by name has a place for each address, side by side; the balance is among backends, whatever their
/// number of addresses, then among its addresses; one that refuses moves its own share only.
#[test]
fn a_backend_of_several_addresses_is_one_backend() {
    let name = DnsName { host: "pbx.example.com".into(), port: None, transport: UDP };
    let dns = Dns::default();
    let resolved = |priority, addr: &str, weight| Resolved { priority, addr: address(addr), weight };
    dns.put(
        &name,
        vec![
            resolved(20, "10.0.1.9:5060", 1),
            resolved(10, "10.0.1.1:5060", 1),
            resolved(10, "10.0.1.2:5070", 3),
            // This house has no such listener.
            resolved(0, "[2001:db8:9::1]:5060", 1),
        ],
    );
    let mut mixed = pool("mixed", &["10.0.0.1:5060", "10.0.0.2:5060", "10.0.0.3:5060"]);
    (mixed.backends[1].addr, mixed.backends[1].host) = (Host::Name(name.clone()), name.host.clone());
    let nobody = DnsName { host: "gone.example.com".into(), port: None, transport: UDP };
    mixed.backends.push(BackendSpec { addr: Host::Name(nobody), ..backend("gone", "10.0.0.4:5060") });
    let spec = TableSpec { pools: vec![mixed], ..table(Vec::new()) };
    let listeners = [listener("in", UDP, "10.0.0.254:5060", Side::Both)];
    let context = Context {
        listeners: &listeners,
        strip: &[],
        registry: &Registry::default(),
        dns: &dns,
        unix_s: 0,
        series: &SeriesRegistry::new(10),
        departed: Vec::new(),
        departed_most: 10,
        source_for: &|_| None,
        previous: None,
    };
    let (_, pools) = compile(&spec, &context).expect("valid");
    let addresses: Vec<String> = pools.backends().map(|(_, backend)| backend.addr.to_string()).collect();
    let expected = ["10.0.0.1:5060", "10.0.1.1:5060", "10.0.1.2:5070", "10.0.1.9:5060", "10.0.0.3:5060"];
    assert_eq!(addresses, expected);
    assert_eq!(&*pools.pool(0).unresolved[0].name, "gone");
    let counts = |pools: &Pools| {
        let mut counts = [0u32; 5];
        for key in 0..30_000u64 {
            let key = balance::key_hash(&key.to_le_bytes());
            let first = pools.rendezvous(0, key).expect("there are backends");
            counts[usize::from(pools.spread(at(0, first), key).index)] += 1;
        }
        counts
    };
    let whole = counts(&pools);
    let near = |count: u32, expected: u32| assert!(count.abs_diff(expected) < 500, "{whole:?}");
    for (count, expected) in whole.iter().zip([10_000, 2_500, 7_500, 0, 10_000]) {
        near(*count, expected);
    }
    let refuses = |index: u16| pools.backend(at(0, index)).spread.state.refuse(1);
    refuses(2);
    assert_eq!(counts(&pools), [whole[0], whole[1] + whole[2], 0, 0, whole[4]]);
    refuses(1);
    assert_eq!(counts(&pools), [whole[0], 0, 0, whole[1] + whole[2], whole[4]]);
    refuses(3);
    assert_eq!(counts(&pools), whole, "where all refuse, none is passed over");
    assert_eq!(pools.peer(UDP, address("10.0.1.9:5060"), 0), is(0, 3), "each is this backend");
}

// ---------------------------------------------------------------------------------------------------------------------
// Choices by more than the hash.

/// Of the two that the hash names the one with the shorter round trip: the slowest of three is never chosen, and the
/// fastest does not take all.
#[test]
fn least_latency_takes_the_faster_of_two() {
    let mut chosen = [0; 3];
    for n in 0..200 {
        let names = [0, 1, 2].map(|i| format!("pbx{n}-{i}"));
        let mut spec = weighted(&names.each_ref().map(|name| (name.as_str(), 1)));
        spec.balance = Balance::LeastLatency;
        let pools = of(vec![spec]);
        let by_hash = pools.rendezvous(0, balance::key_hash(CALL_ID.as_bytes())).expect("all take requests");
        let sent = Sent::method("MESSAGE");
        assert_eq!(pick(&pools, 0, &sent, None).0, Pick::Backend(at(0, by_hash)), "nothing is measured yet");
        for (index, ms) in [(0, 30), (1, 10), (2, 20)] {
            pools.backend(at(0, index)).state.measured(std::time::Duration::from_millis(ms));
        }
        let (Pick::Backend(to), told) = pick(&pools, 0, &sent, None) else { panic!("one is chosen") };
        chosen[usize::from(to.index)] += 1;
        assert_eq!(told.candidates.len(), 3);
        // Never its own target, and no 482 for it: the other takes it.
        assert!(matches!(pick(&pools, 0, &sent, Some(to)).0, Pick::Backend(other) if other != to));
    }
    assert_eq!(chosen[0], 0);
    assert!(chosen[1] > chosen[2] && chosen[2] > 30, "{chosen:?}");
}

/// SPEC 3.1: entity-tags name a backend by half of its name's hash.
#[test]
fn two_names_that_entity_tags_could_not_tell_apart_are_refused() {
    let mut seen: HashMap<u32, u32> = HashMap::new();
    let half = |n: u32| balance::name_hash(&format!("pbx{n}")) as u32;
    let (a, b) = (0..)
        .find_map(|n| seen.insert(half(n), n).map(|before| (before, n)))
        .expect("of 2^32 halves two are equal soon");
    let (a, b) = (format!("pbx{a}"), format!("pbx{b}"));
    let spec = TableSpec { pools: vec![weighted(&[(&a, 1), (&b, 1)])], ..table(Vec::new()) };
    let faults = faults(&spec);
    let told = |fault: &String| [&*a, &*b, "rename"].iter().all(|word| fault.contains(word));
    assert!(faults.iter().any(|(_, fault)| told(fault)), "{faults:?}");
    let pools = of(vec![weighted(&[(&a, 1)]), weighted(&[("other", 1), (&a, 1)])]);
    let low = balance::name_hash(&a) as u32;
    assert_eq!(pools.by_name_hash(low, None), Some(at(0, 0)));
    assert_eq!(pools.by_name_hash(low, Some(1)), Some(at(1, 1)));
    assert_eq!(pools.by_name_hash(low ^ 1, None), None);
}
