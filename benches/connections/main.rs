//! Connections, side by side: what an idle one costs of memory, what it takes to accept one, and CPU per message over TCP,
//! Tidings beside Kamailio in the same run (SPEC 9.8, 14).
//!
//! `cargo bench --bench connections [-- --idle N --rounds R --seconds S --phones P --each E --only tidings]`. Routers run on
//! core 0 with one worker. While messages are counted, phones and PBX share that core and nobody preempts anybody, as in
//! benches/relay; while connections are opened, they come from core 1. Rounds take turns, and medians count. Memory is
//! anonymous and shared memory of all of a router's processes, each page once (smaps_rollup), between 1,000 connections and
//! all. CPU is what the kernel accounts to all of its threads. Never a test: it judges nothing but that traffic flows.

mod hold;
mod load;
mod rivals;

#[allow(dead_code)] // those of UDP
#[path = "../relay/messages.rs"]
mod messages;
#[allow(dead_code)] // its routers
#[path = "../relay/rivals.rs"]
mod relay;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use load::Load;
use rivals::{Kind, Rival};
use tidings::net::sys;

/// Connections before those that are counted: tables have had their first growth.
const WARM: usize = 1_000;

/// Memory of idle connections, cost of accepting them, CPU per message over TCP: Kamailio, Tidings.
#[derive(Parser)]
struct Options {
    /// Idle connections
    #[arg(long, default_value_t = 15_000)]
    idle: usize,
    /// Connections that are opened in one round
    #[arg(long, default_value_t = 3_000)]
    accepts: usize,
    /// Seconds of one round of messages
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds; their median counts
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Phones, a connection each, and messages under way on each
    #[arg(long, default_value_t = 64)]
    phones: usize,
    #[arg(long, default_value_t = 2)]
    each: usize,
    /// Of kamailio, tidings: which ones, with commas
    #[arg(long, default_value = "kamailio,tidings")]
    only: String,
    /// Another binary of Tidings
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tidings"))]
    binary: PathBuf,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One router's numbers.
#[derive(Default)]
struct Numbers {
    /// Bytes of an idle connection.
    idle: f64,
    /// By round: connections a second, CPU nanoseconds of each; CPU nanoseconds of a message, messages a second.
    accepts: Vec<f64>,
    accept_ns: Vec<f64>,
    message_ns: Vec<f64>,
    messages: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let files = sys::raise_open_files()?;
    anyhow::ensure!(
        files > options.idle as u64 + 1_000,
        "{files} open files are too few for {} connections: ulimit -n, or --idle",
        options.idle
    );
    let mut rivals = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| options.only.split(',').any(|n| n.trim() == kind.name()))
    {
        if kind.installed() {
            rivals.push(Rival::start(kind, &options.binary)?);
        } else {
            println!("{} is not installed: left out", kind.name());
        }
    }
    let mut numbers: Vec<Numbers> = rivals.iter().map(|_| Numbers::default()).collect();
    on_core(1, || {
        for (rival, numbers) in rivals.iter().zip(&mut numbers) {
            numbers.idle = idle(rival, &options)?;
        }
        in_turn(options.rounds, rivals.len(), |i| accept(&rivals[i], &options, &mut numbers[i]))
    })?;
    as_batch()?;
    on_core(0, || {
        let each = |rival: &Rival| new_load(rival, &options);
        let mut loads = rivals.iter().map(each).collect::<anyhow::Result<Vec<_>>>()?;
        let time = Duration::from_secs_f64(options.seconds);
        in_turn(options.rounds, rivals.len(), |i| talk(&rivals[i], &mut loads[i], time, &mut numbers[i]))
    })?;
    report(&rivals, &numbers, &options);
    Ok(())
}

/// Each of `count` once in each round, beginning with another each time.
fn in_turn(
    rounds: usize,
    count: usize,
    mut each: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for round in 0..rounds {
        for turn in 0..count {
            each((turn + round) % count)?;
        }
    }
    Ok(())
}

fn on_core<T: Send>(core: usize, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let pinned = || {
        sys::pin(core)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes this process a batch process, as the routers are: none preempts another on its core.
fn as_batch() -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    let status = Command::new("chrt").args(["--all-tasks", "--batch", "--pid", "0", &pid]).status()?;
    anyhow::ensure!(status.success(), "chrt: {status}");
    Ok(())
}

/// Bytes of user memory of an idle connection.
fn idle(rival: &Rival, options: &Options) -> anyhow::Result<f64> {
    let to = rival.kind.address();
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = hold::open(to, 1) {
        anyhow::ensure!(
            Instant::now() < end,
            "{} does not answer: {error}\n{}",
            rival.kind.name(),
            rival.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let _warm = hold::open(to, WARM)?;
    let before = rival.memory();
    let held = hold::open(to, options.idle.saturating_sub(WARM).max(1))?;
    let bytes = rival.memory().saturating_sub(before) as f64 / held.len() as f64;
    drop(held);
    Ok(bytes)
}

fn accept(rival: &Rival, options: &Options, numbers: &mut Numbers) -> anyhow::Result<()> {
    // Those of before are closed by the router in its own time.
    std::thread::sleep(Duration::from_millis(300));
    let (begin, before) = (Instant::now(), rival.cpu());
    let held = hold::open(rival.kind.address(), options.accepts)?;
    numbers.accepts.push(held.len() as f64 / begin.elapsed().as_secs_f64());
    numbers.accept_ns.push(rival.cpu().saturating_sub(before) as f64 / held.len() as f64);
    Ok(())
}

/// Its phones and its PBX, with something under way.
fn new_load(rival: &Rival, options: &Options) -> anyhow::Result<Load> {
    let mut load = Load::new(rival.kind.address(), rival.kind.pbx(), options.phones, options.each)?;
    load.begin()?;
    Ok(load)
}

fn talk(rival: &Rival, load: &mut Load, time: Duration, numbers: &mut Numbers) -> anyhow::Result<()> {
    let fault = |error: anyhow::Error| error.context(format!("{}:\n{}", rival.kind.name(), rival.log()));
    // Caches and branch predictors are its own again before it counts.
    load.run(time / 5).map_err(fault)?;
    let before = rival.cpu();
    let outcome = load.run(time).map_err(fault)?;
    anyhow::ensure!(outcome.forwarded > 0, "{} forwards nothing:\n{}", rival.kind.name(), rival.log());
    numbers.message_ns.push(rival.cpu().saturating_sub(before) as f64 / outcome.forwarded as f64);
    numbers.messages.push(outcome.forwarded as f64 / outcome.wall.as_secs_f64());
    Ok(())
}

fn report(rivals: &[Rival], numbers: &[Numbers], options: &Options) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "{}, Linux {}; routers on core 0 with one worker; TCP over loopback.\n\
         {} idle connections; {} opened in a round; {} phones with {} messages under way each, one connection to the\n\
         PBX: SUBSCRIBE, PUBLISH, NOTIFY and their 200s; {} rounds, interleaved; medians.\n",
        model.unwrap_or("unknown CPU"),
        kernel.trim(),
        options.idle,
        options.accepts,
        options.phones,
        options.each,
        options.rounds
    );
    println!(
        "{:<12}{:>14}{:>12}{:>18}{:>12}{:>12}{:>10}",
        "", "bytes, idle", "accepts/s", "CPU µs an accept", "CPU µs/msg", "messages/s", "/kamailio"
    );
    let kamailio = rivals.iter().position(|rival| rival.kind == Kind::Kamailio).map(|at| &numbers[at]);
    for (rival, of) in rivals.iter().zip(numbers) {
        let ratio = kamailio.map_or("-".to_owned(), |kamailio| {
            let by_round = of.message_ns.iter().zip(&kamailio.message_ns).map(|(a, b)| a / b);
            format!("{:.2}", median(&by_round.collect::<Vec<_>>()))
        });
        println!(
            "{:<12}{:>14.0}{:>12.0}{:>18.1}{:>12.2}{:>12.0}{:>10}",
            rival.kind.name(),
            of.idle,
            median(&of.accepts),
            median(&of.accept_ns) / 1e3,
            median(&of.message_ns) / 1e3,
            median(&of.messages),
            ratio
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
