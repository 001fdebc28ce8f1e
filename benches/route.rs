//! What routing costs (SPEC 14): the decision over tables of 10 to 10,000 rules, a pick over 8 backends, compiling a
//! table, and following a swap. `cargo bench --bench route`; the goal for 10,000 rules is 1 µs, for a pick 50 ns.
//!
//! What is counted is CPU time of this thread, by the kernel's books: the wall clock of a shared machine says little.
//!
//! `spread` sends to a thousand rules in turn (the message stays, its Request-URI changes), so that little of the table is
//! warm for the next; `none` matches no rule at all, after every search that the table needs.

use std::{hint::black_box, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Cache};
use criterion::{
    Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter},
};
use tidings::{
    config::{
        Names,
        table::{MatchSpec, RuleSpec, Subject},
    },
    route::{Facts, Pools, Rules, Scratch, Source, Table, balance},
    wire::{Event, HeaderId, Index, Limits, Start, Transport, Uri, inspect},
};

#[path = "../tests/route/mod.rs"]
mod desk;
use desk::*;

/// Nanoseconds that this thread has run (`/proc/thread-self/schedstat`).
struct Cpu;

impl Measurement for Cpu {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        // The kernel brings its books up to date when a thread yields.
        std::thread::yield_now();
        let books = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
        books.split(' ').next().and_then(|ran| ran.parse().ok()).expect("a number of nanoseconds")
    }

    fn end(&self, start: u64) -> u64 {
        self.start() - start
    }

    fn add(&self, one: &u64, other: &u64) -> u64 {
        one + other
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Nanoseconds
    }
}

struct Nanoseconds;

impl ValueFormatter for Nanoseconds {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (unit, factor) = if typical < 1e6 { ("ns", 1.0) } else { ("ms", 1e-6) };
        values.iter_mut().for_each(|value| *value *= factor);
        unit
    }

    fn scale_throughputs(&self, typical: f64, _: &Throughput, values: &mut [f64]) -> &'static str {
        self.scale_values(typical, values)
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "ns"
    }
}

/// A table's rule number `n`, and a message that only this rule takes.
type Shape = (&'static str, fn(usize) -> MatchSpec, fn(usize) -> Sent);

const SHAPES: &[Shape] = &[
    ("ruri_prefix", prefix, to_prefix),
    ("ruri_tenant", tenant, to_tenant),
    ("from_company", company, to_company),
    ("mixed", mixed, to_mixed),
];

fn events(pattern: tidings::config::table::PatternSpec) -> MatchSpec {
    MatchSpec {
        method: methods(&["SUBSCRIBE", "PUBLISH"]),
        event: words(&["presence", "dialog", "message-summary"]),
        patterns: vec![pattern],
        ..MatchSpec::default()
    }
}

fn phone() -> Sent {
    Sent::default()
        .ruri("sip:1000@example.com")
        .header("From", "\"Alice\" <sip:alice@example.com>;tag=1928301774")
        .header("To", "<sip:1000@example.com>")
        .header("Contact", "<sip:alice@192.0.2.7:5060;transport=udp>")
        .header("Event", "presence")
        .header("Accept", "application/pidf+xml")
        .header("Expires", "3600")
        .header("User-Agent", "Phone/1.0")
        .header("Allow", "INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO, SUBSCRIBE")
}

fn prefix(n: usize) -> MatchSpec {
    events(pattern(Subject::Ruri, &format!("^sip:{n:05}[0-9]@")))
}

fn to_prefix(n: usize) -> Sent {
    phone().ruri(&format!("sip:{n:05}7@example.com"))
}

fn tenant(n: usize) -> MatchSpec {
    events(pattern(Subject::Ruri, &format!("^sip:[^@]+@tenant{n}\\.example\\.com")))
}

fn to_tenant(n: usize) -> Sent {
    phone().ruri(&format!("sip:1000@tenant{n}.example.com;user=phone"))
}

fn company(n: usize) -> MatchSpec {
    events(pattern(Subject::From, &format!("(?i)<sips?:[^@>]+@company{n}\\.example\\.org")))
}

fn to_company(n: usize) -> Sent {
    let mut sent = phone();
    sent.headers[0].1 = format!("\"Alice\" <sip:alice@Company{n}.example.org>;tag=1928301774");
    sent
}

fn mixed(n: usize) -> MatchSpec {
    match n % 4 {
        0 => prefix(n),
        1 => tenant(n),
        2 => company(n),
        _ => MatchSpec { event: words(&[&format!("x-package-{n}")]), ..MatchSpec::default() },
    }
}

fn to_mixed(n: usize) -> Sent {
    match n % 4 {
        0 => to_prefix(n),
        1 => to_tenant(n),
        2 => to_company(n),
        _ => {
            let mut sent = phone();
            sent.headers[3].1 = format!("x-package-{n}");
            sent
        }
    }
}

fn rules_of(shape: &Shape, count: usize) -> Vec<RuleSpec> {
    (0..count).map(|n| rule(&format!("rule {n}"), shape.1(n))).collect()
}

/// A scanned message that lives as long as the bench.
fn ready(sent: &Sent) -> Facts<'static> {
    let bytes: &'static [u8] = sent.bytes().leak();
    let view = Box::leak(Box::new(Index::new())).scan(bytes, &Limits::default());
    let view = Box::leak(Box::new(view.unwrap_or_else(|_| panic!("refused: {sent:?}"))));
    let essentials = Box::leak(Box::new(inspect(view).expect("a valid message")));
    let Start::Request { method, token, uri } = view.start() else { panic!("a response") };
    Facts {
        view,
        essentials,
        method,
        method_token: view.of(token),
        ruri: view.of(uri),
        uri: Box::leak(Box::new(Uri::parse(view.of(uri)).expect("a valid URI"))),
        package: view.value(HeaderId::Event).and_then(Event::parse).map(|event| event.package),
        source: Source::Client,
        peer: sent.peer,
        listener: 0,
        transport: Transport::Udp,
        hidden: &[],
    }
}

fn decide(criterion: &mut Criterion<Cpu>) {
    for count in [10, 1000, 10_000] {
        let mut group = criterion.benchmark_group(format!("decide/{count}"));
        for shape in SHAPES {
            let (rules, pools) = build(&table(rules_of(shape, count)));
            let hits = |facts: &[Facts<'static>]| {
                let mut scratch = Scratch::default();
                let found = |f| rules.decide(f, &pools, &mut scratch, &mut ()).is_some();
                facts.iter().map(found).filter(|&found| found).count()
            };
            let first = [ready(&shape.2(0))];
            let last = [ready(&shape.2(count - 1))];
            let none = [ready(&phone())];
            let spread: Vec<_> = (0..1000)
                .map(|n| Facts { ruri: shape.2(n * 7919 % count).ruri.leak().as_bytes(), ..none[0] })
                .collect();
            assert_eq!((hits(&first), hits(&last), hits(&none)), (1, 1, 0));
            let mut cases = vec![("first", &first[..]), ("last", &last), ("none", &none)];
            if hits(&spread) == spread.len() {
                cases.push(("spread", &spread));
            }
            for (name, facts) in cases {
                group.bench_function(format!("{}/{name}", shape.0), |bencher| {
                    let (mut scratch, mut n) = (Scratch::default(), 0);
                    bencher.iter(|| {
                        n = if n + 1 == facts.len() { 0 } else { n + 1 };
                        one(&rules, &pools, &facts[n], &mut scratch)
                    });
                });
            }
        }
    }
}

fn one(rules: &Rules, pools: &Pools, facts: &Facts<'_>, scratch: &mut Scratch) -> Option<u32> {
    rules.decide(black_box(facts), pools, scratch, &mut ()).map(|rule| rule.position)
}

fn pick(criterion: &mut Criterion<Cpu>) {
    let mut group = criterion.benchmark_group("pick");
    let addresses: Vec<_> = (0..8).map(|n| format!("10.0.0.{}:5060", n + 11)).collect();
    let mut spec = pool("p", &addresses.iter().map(|a| &**a).collect::<Vec<_>>());
    for (name, weights) in [("8_equal", [1; 8]), ("8_weighted", [10, 20, 30, 40, 50, 60, 70, 80])] {
        spec.backends.iter_mut().zip(weights).for_each(|(backend, weight)| backend.weight = weight);
        let (_, pools) =
            build(&tidings::config::TableSpec { pools: vec![spec.clone()], ..table(Vec::new()) });
        let keys: Vec<_> =
            (0..1000).map(|n| balance::key_hash(format!("{n}@example.com").as_bytes())).collect();
        let mut n = 0;
        group.bench_function(format!("{name}/balance"), |bencher| {
            bencher.iter(|| {
                n = (n + 1) % keys.len();
                pools.rendezvous(0, black_box(keys[n]))
            });
        });
        let facts = ready(&phone());
        let (names, mut key) = (Names::default(), Vec::new());
        group.bench_function(format!("{name}/with_key"), |bencher| {
            bencher.iter(|| pools.pick(0, black_box(&facts), &names, None, &mut key, &mut ()));
        });
    }
}

fn compile(criterion: &mut Criterion<Cpu>) {
    let mut group = criterion.benchmark_group("compile/10000");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    for shape in SHAPES {
        let spec = table(rules_of(shape, 10_000));
        group.bench_function(format!("{}/fresh", shape.0), |bencher| {
            bencher.iter_with_large_drop(|| build(&spec));
        });
        let (rules, pools) = build(&spec);
        let version = Table { rules, pools, version: 1 };
        group.bench_function(format!("{}/again", shape.0), |bencher| {
            bencher.iter_with_large_drop(|| try_build(&spec, Some(&version)).is_ok());
        });
    }
}

/// What a worker pays to follow swaps: once per turn while nothing changes, and at each change.
fn swap(criterion: &mut Criterion<Cpu>) {
    let mut group = criterion.benchmark_group("swap");
    let tables: Vec<_> = (0..2)
        .map(|n| {
            let (rules, pools) = build(&table(rules_of(&SHAPES[n], 10_000)));
            Arc::new(Table { rules, pools, version: n as u64 })
        })
        .collect();
    let live = ArcSwap::from(tables[0].clone());
    let mut cache = Cache::new(&live);
    group.bench_function("unchanged", |bencher| bencher.iter(|| cache.load().version));
    let facts = [ready(&to_prefix(77)), ready(&to_tenant(77))];
    let mut scratch = Scratch::default();
    let mut n = 0;
    group.bench_function("swap_and_decide", |bencher| {
        bencher.iter(|| {
            n = 1 - n;
            live.store(tables[n].clone());
            let table = cache.load();
            one(&table.rules, &table.pools, &facts[n], &mut scratch)
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(Cpu).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = decide, pick, compile, swap
}
criterion_main!(benches);
