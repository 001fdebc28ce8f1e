//! CPU per forwarded message, side by side: a relay with no parsing, Kamailio's `forward()`, and Tidings (SPEC 14).
//!
//! `cargo bench --bench relay [-- --seconds S --rounds R --window N --rate M --only raw,tidings]`. All routers run on core
//! 0, one at a time under load. In the closed loop phones and PBX share that core, and nobody preempts anybody
//! (SCHED_BATCH): so a router finds its queue as full as at the limit of what it can carry, which a load of one other core
//! could not bring about for a router cheaper than itself. Paced, they have core 1. Short rounds take turns, and medians
//! count: the wall clock of a virtual machine swings, the ratios within one run do not. CPU time is what the kernel accounts
//! to the router's threads (/proc/PID/task/*/schedstat), in user and system mode. Never a test: it judges nothing but that
//! traffic flows.

mod load;
#[allow(dead_code)] // benches/connections speaks over TCP
mod messages;
mod rivals;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use load::{Load, Outcome, Until};
use rivals::{Kind, PBX, PHONES, Rival, used};
use tidings::net::sys;

/// CPU per forwarded message: raw relay, Kamailio, Tidings.
#[derive(Parser)]
struct Options {
    /// Seconds of one round of one router
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds; their median counts
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Messages under way in the closed loop
    #[arg(long, default_value_t = 128)]
    window: usize,
    /// Forwarded messages a second of the paced rounds; 0 leaves them out
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Of raw, loop, kamailio, tidings: which ones, with commas
    #[arg(long, default_value = "raw,kamailio,tidings")]
    only: String,
    /// Another binary of Tidings
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tidings"))]
    binary: PathBuf,
    /// Drive the router of --only, which runs already, with this many messages at --rate (benches/instructions)
    #[arg(long)]
    drive: Option<u64>,
    /// Print the command that starts the router of --only, a word per line, with its files in this directory
    #[arg(long)]
    command: Option<PathBuf>,
    /// Be a router: raw or loop
    #[arg(long, hide = true)]
    serve: Option<String>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One router's rounds of one kind of load.
#[derive(Default)]
struct Rounds {
    /// CPU nanoseconds per forwarded message, share of the core, messages a second; by round.
    cpu: Vec<f64>,
    busy: Vec<f64>,
    throughput: Vec<f64>,
    sum: Outcome,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    match options.serve.as_deref() {
        Some("raw") => return Ok(rivals::serve_raw()?),
        Some("loop") => return Ok(rivals::serve_loop()?),
        Some(other) => anyhow::bail!("no router is called {other}"),
        None => {}
    }
    let chosen: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| options.only.split(',').any(|name| name.trim() == kind.name()))
        .collect();
    if let (Some(dir), Some(kind)) = (&options.command, chosen.first()) {
        let command = kind.command(dir, &options.binary)?;
        for word in std::iter::once(command.get_program()).chain(command.get_args()) {
            println!("{}", word.display());
        }
        return Ok(());
    }
    if let (Some(messages), Some(kind)) = (options.drive, chosen.first()) {
        sys::pin(1)?;
        return drive(kind.address(), &options, messages);
    }
    let mut rivals = Vec::new();
    for kind in chosen {
        if !kind.installed() {
            println!("{} is not installed: left out", kind.name());
            continue;
        }
        rivals.push(Rival::start(kind, &options.binary)?);
    }
    conditions(&options);
    as_batch()?;
    measure_on_core(0, &mut rivals, &options, None)?;
    if options.rate > 0.0 {
        measure_on_core(1, &mut rivals, &options, Some(options.rate))?;
    }
    Ok(())
}

fn new_load(options: &Options) -> anyhow::Result<Load> {
    Ok(Load::new(PHONES.parse()?, PBX.parse()?, options.window)?)
}

/// Measures with the load in a thread on that core.
fn measure_on_core(
    core: usize,
    rivals: &mut [Rival],
    options: &Options,
    rate: Option<f64>,
) -> anyhow::Result<()> {
    let work = || {
        sys::pin(core)?;
        let mut load = new_load(options)?;
        for rival in rivals.iter_mut() {
            await_router(rival, &mut load)?;
        }
        measure(rivals, &mut load, options, rate)
    };
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes this process a batch process, as the routers are: none preempts another on its core.
fn as_batch() -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    let status = Command::new("chrt").args(["--all-tasks", "--batch", "--pid", "0", &pid]).status()?;
    anyhow::ensure!(status.success(), "chrt: {status}");
    Ok(())
}

/// Waits until a cycle of six messages passes.
fn await_router(rival: &mut Rival, load: &mut Load) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let outcome = load.run(rival.kind.address(), Some(100.0), Until::Messages(6));
        if outcome.forwarded >= 6 && outcome.lost == 0 {
            return Ok(());
        }
        if rival.has_ended() || Instant::now() > end {
            let example = outcome.example.unwrap_or_default();
            anyhow::bail!("no way through {}:\n{example}\n{}", rival.kind.name(), rival.log());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn measure(
    rivals: &mut [Rival],
    load: &mut Load,
    options: &Options,
    rate: Option<f64>,
) -> anyhow::Result<()> {
    let mut results: Vec<Rounds> = rivals.iter().map(|_| Rounds::default()).collect();
    let nanos = (options.seconds * 1e9) as u64;
    for round in 0..options.rounds {
        for turn in 0..rivals.len() {
            let i = (turn + round) % rivals.len();
            let rival = &rivals[i];
            // Caches and branch predictors are its own again before it counts.
            load.run(rival.kind.address(), rate, Until::Nanos(nanos / 10));
            let before = rival.cpu();
            let outcome = load.run(rival.kind.address(), rate, Until::Nanos(nanos));
            let cpu = used(&before, &rival.cpu()) as f64;
            anyhow::ensure!(
                outcome.forwarded > 0,
                "{} forwards nothing:\n{}",
                rival.kind.name(),
                rival.log()
            );
            let result = &mut results[i];
            result.cpu.push(cpu / outcome.forwarded as f64);
            result.busy.push(cpu / outcome.wall_ns as f64);
            result.throughput.push(outcome.forwarded as f64 * 1e9 / outcome.wall_ns as f64);
            result.sum.add(outcome);
        }
    }
    report(rivals, &results, options, rate);
    Ok(())
}

fn report(rivals: &[Rival], results: &[Rounds], options: &Options, rate: Option<f64>) {
    match rate {
        None => println!("\nClosed loop, {} messages under way:", options.window),
        Some(rate) => println!("\nPaced, {rate} messages a second:"),
    }
    println!(
        "{:<20}{:>10}{:>8}{:>8}{:>11}{:>7}{:>7}{:>7} | latency, µs{:>6}{:>8}{:>8}{:>9}",
        "",
        "CPU µs/msg",
        "/raw",
        "/kama.",
        "messages/s",
        "busy",
        "bytes",
        "lost",
        "p50",
        "p90",
        "p99",
        "p99.9"
    );
    let of = |kind: Kind| rivals.iter().position(|r| r.kind == kind).map(|i| &results[i].cpu);
    for (rival, result) in rivals.iter().zip(results) {
        let ratio = |other: Option<&Vec<f64>>| {
            let ratios = other.map(|o| result.cpu.iter().zip(o).map(|(a, b)| a / b).collect::<Vec<_>>());
            ratios.map_or("-".to_owned(), |r| format!("{:.2}", median(&r)))
        };
        let sum = &result.sum;
        let quantile = |q| sum.latency.value_at_quantile(q) as f64 / 1e3;
        println!(
            "{:<20}{:>10.2}{:>8}{:>8}{:>11.0}{:>6.0}%{:>7}{:>7} | {:>17.1}{:>8.1}{:>8.1}{:>9.1}",
            rival.kind.title(),
            median(&result.cpu) / 1e3,
            ratio(of(Kind::Raw)),
            ratio(of(Kind::Kamailio)),
            median(&result.throughput),
            median(&result.busy) * 100.0,
            sum.bytes / sum.forwarded.max(1),
            sum.lost,
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            quantile(0.999),
        );
        let (least, most) = spread(&result.cpu);
        println!(
            "{:<20}{:>10} {:.2} to {:.2} by round; {} messages",
            "",
            "",
            least / 1e3,
            most / 1e3,
            sum.forwarded
        );
        if sum.strange > 0 {
            println!(
                "  {} came that nobody waited for; the first:\n{}",
                sum.strange,
                sum.example.as_deref().unwrap_or("")
            );
        }
    }
}

fn conditions(options: &Options) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "{}, {cores} cores, Linux {}; routers on core 0 with one worker, phones and PBX there too (paced: on core 1); UDP over loopback.",
        model.unwrap_or("unknown CPU"),
        kernel.trim()
    );
    println!(
        "SUBSCRIBE, PUBLISH, NOTIFY and their 200s in turn; {} rounds of {} s each, interleaved; medians.",
        options.rounds, options.seconds
    );
}

/// For benches/instructions: so many messages at a rate, through a router that somebody else started.
fn drive(router: std::net::SocketAddr, options: &Options, messages: u64) -> anyhow::Result<()> {
    let rate = (options.rate > 0.0).then_some(options.rate);
    let outcome = new_load(options)?.run(router, rate, Until::Messages(messages));
    println!(
        "{} {} {} {}",
        outcome.forwarded,
        outcome.lost,
        outcome.strange,
        outcome.bytes / outcome.forwarded.max(1)
    );
    anyhow::ensure!(outcome.forwarded > 0, "nothing came through: {}", outcome.example.unwrap_or_default());
    Ok(())
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

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, 0.0), |(least, most), &v| (least.min(v), most.max(v)))
}
