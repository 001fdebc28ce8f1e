//! Connections, side by side: what an idle one costs of memory, what it takes to accept one, and CPU per message over TCP and
//! TLS, Tidings beside Kamailio in the same run; memory of WebSockets, of Tidings alone (SPEC 9.8, 14).
//!
//! `cargo bench --bench connections [-- --idle N --rounds R --seconds S --phones P --each E --only tidings --over tcp,tls]`.
//! Routers run on core 0 with one worker, and anew for each transport, so that none has memory left of another. While
//! messages are counted, phones and PBX share that core and nobody preempts anybody, as in benches/relay; while connections
//! are opened, they come from core 1. Rounds take turns, and medians count. Memory is anonymous and shared memory of all of
//! a router's processes, each page once (smaps_rollup), between the first connections and all; each has made one exchange of
//! OPTIONS. CPU is what the kernel accounts to all of its threads. Handshakes are of TLS 1.3 with ECDSA P-256, whole ones.
//! Never a test: it judges nothing but that traffic flows.

mod hold;
mod line;
mod load;
mod rivals;

#[allow(dead_code)] // those of UDP
#[path = "../relay/messages.rs"]
mod messages;
#[allow(dead_code)] // its routers
#[path = "../relay/rivals.rs"]
mod relay;
#[allow(dead_code)] // what is not of this client
#[path = "../../tests/rig/websocket.rs"]
mod websocket;

use std::{
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use hold::Word;
use load::Load;
use rivals::{Kind, Over, Rival};
use rustls::ClientConfig;
use tidings::net::sys;

/// Connections before those that are counted: tables have had their first growth.
const WARM: usize = 1_000;

/// Memory of idle connections, cost of accepting them, CPU per message over TCP and TLS: Kamailio, Tidings.
#[derive(Parser)]
struct Options {
    /// Idle connections
    #[arg(long, default_value_t = 15_000)]
    idle: usize,
    /// Idle connections over TLS of Kamailio, which takes some 55 kB for each
    #[arg(long, default_value_t = 4_000)]
    idle_kamailio: usize,
    /// Connections that are opened in one round
    #[arg(long, default_value_t = 3_000)]
    accepts: usize,
    /// Connections over TLS that are opened in one round
    #[arg(long, default_value_t = 1_000)]
    handshakes: usize,
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
    /// Of tcp, tls, ws, wss: which ones, with commas
    #[arg(long, default_value = "tcp,tls,ws,wss")]
    over: String,
    /// Another binary of Tidings
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tidings"))]
    binary: PathBuf,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One router's numbers over one transport.
struct Numbers {
    kind: Kind,
    over: Over,
    /// How many idle connections there were, and bytes of each.
    held: usize,
    idle: f64,
    /// By round: connections a second, CPU nanoseconds of each; CPU nanoseconds of a message, messages a second.
    accepts: Vec<f64>,
    accept_ns: Vec<f64>,
    message_ns: Vec<f64>,
    messages: Vec<f64>,
}

impl Numbers {
    fn new(kind: Kind, over: Over) -> Numbers {
        let (accepts, accept_ns, message_ns, messages) = Default::default();
        Numbers { kind, over, held: 0, idle: 0.0, accepts, accept_ns, message_ns, messages }
    }
}

/// What all of it needs.
struct Bench {
    options: Options,
    tls: Arc<ClientConfig>,
    begin: Instant,
}

fn main() -> anyhow::Result<()> {
    let bench = Bench { options: Options::parse(), tls: line::client()?, begin: Instant::now() };
    let options = &bench.options;
    let files = sys::raise_open_files()?;
    anyhow::ensure!(
        files > options.idle as u64 + 1_000,
        "{files} open files are too few for {} connections: ulimit -n, or --idle",
        options.idle
    );
    let mut numbers = Vec::new();
    for over in Over::ALL.into_iter().filter(|over| listed(&options.over, over.name())) {
        numbers.extend(bench.measure(over)?);
    }
    report(&numbers, options);
    Ok(())
}

fn listed(list: &str, name: &str) -> bool {
    list.split(',').any(|listed| listed.trim() == name)
}

impl Bench {
    fn say(&self, over: Over, what: &str) {
        eprintln!("{:>4.0} s  {}: {what}", self.begin.elapsed().as_secs_f64(), over.name());
    }

    /// Everything that is measured over one transport.
    fn measure(&self, over: Over) -> anyhow::Result<Vec<Numbers>> {
        let options = &self.options;
        let mut rivals = Vec::new();
        let mut numbers = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| listed(&options.only, kind.name())) {
            if over.is_websocket() && kind == Kind::Kamailio {
                continue;
            }
            if let Some(package) = kind.lacks(over) {
                self.say(over, &format!("{} is left out: apt-get install -y {package}", kind.name()));
                continue;
            }
            rivals.push(Rival::start(kind, over, &options.binary)?);
            numbers.push(Numbers::new(kind, over));
        }
        on_core(1, || {
            for (rival, numbers) in rivals.iter().zip(&mut numbers) {
                self.idle(rival, numbers)?;
            }
            if over.is_websocket() {
                return Ok(());
            }
            self.say(over, &format!("{} rounds of connections", options.rounds));
            in_turn(options.rounds, rivals.len(), |i| self.accept(&rivals[i], &mut numbers[i]))
        })?;
        if over.is_websocket() {
            return Ok(numbers);
        }
        self.say(over, &format!("{} rounds of messages", options.rounds));
        schedule("--batch")?;
        on_core(0, || {
            let each = |rival: &Rival| self.new_load(rival);
            let mut loads = rivals.iter().map(each).collect::<anyhow::Result<Vec<_>>>()?;
            let time = Duration::from_secs_f64(options.seconds);
            in_turn(options.rounds, rivals.len(), |i| talk(&rivals[i], &mut loads[i], time, &mut numbers[i]))
        })?;
        schedule("--other")?;
        Ok(numbers)
    }

    fn open(&self, rival: &Rival, count: usize, word: Word) -> anyhow::Result<Vec<mio::net::TcpStream>> {
        hold::open(rival.over, rival.address(), count, word, &self.tls)
    }

    /// Bytes of user memory of an idle connection.
    fn idle(&self, rival: &Rival, numbers: &mut Numbers) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = self.open(rival, 1, Word::Options) {
            anyhow::ensure!(
                Instant::now() < end,
                "{} does not answer: {error}\n{}",
                rival.kind.name(),
                rival.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let costly = rival.kind == Kind::Kamailio && rival.over.is_secure();
        let count =
            if costly { self.options.idle_kamailio.min(self.options.idle) } else { self.options.idle };
        self.say(rival.over, &format!("{count} idle connections, {}", rival.kind.name()));
        let fault = |error: anyhow::Error| error.context(format!("{}:\n{}", rival.kind.name(), rival.log()));
        let _warm = self.open(rival, WARM.min(count / 2), Word::Options).map_err(fault)?;
        let before = settled(rival);
        let held = self
            .open(rival, count.saturating_sub(WARM.min(count / 2)).max(1), Word::Options)
            .map_err(fault)?;
        let bytes = settled(rival).saturating_sub(before);
        numbers.held = count;
        numbers.idle = bytes as f64 / held.len() as f64;
        Ok(())
    }

    fn accept(&self, rival: &Rival, numbers: &mut Numbers) -> anyhow::Result<()> {
        // Those of before are closed by the router in its own time.
        std::thread::sleep(Duration::from_millis(300));
        let secure = rival.over.is_secure();
        let count = if secure { self.options.handshakes } else { self.options.accepts };
        let (begin, before) = (Instant::now(), rival.cpu());
        let held = self.open(rival, count, Word::Ping)?;
        numbers.accepts.push(held.len() as f64 / begin.elapsed().as_secs_f64());
        numbers.accept_ns.push(rival.cpu().saturating_sub(before) as f64 / held.len() as f64);
        Ok(())
    }

    /// Its phones and its PBX, with something under way.
    fn new_load(&self, rival: &Rival) -> anyhow::Result<Load> {
        let size = (self.options.phones, self.options.each);
        let secure = rival.over.is_secure().then_some(&self.tls);
        let mut load = Load::new(rival.address(), rival.kind.pbx(), secure, size)?;
        load.begin()?;
        Ok(load)
    }
}

/// What a router has once the allocator has given back what opening connections took: the first reading that is no less than
/// the one before it, or that of 3 s later.
fn settled(rival: &Rival) -> u64 {
    let mut last = u64::MAX;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(300));
        let now = rival.memory();
        if now >= last {
            break;
        }
        last = now;
    }
    last
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

/// Makes this process a batch process, as the routers are, so that none preempts another on its core; or again an other.
fn schedule(policy: &str) -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    let status = Command::new("chrt").args(["--all-tasks", policy, "--pid", "0", &pid]).status()?;
    anyhow::ensure!(status.success(), "chrt: {status}");
    Ok(())
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

fn report(numbers: &[Numbers], options: &Options) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "{}, Linux {}; routers on core 0 with one worker; loopback.\n\
         {} opened in a round over TCP, {} over TLS with a whole handshake each; {} phones with {} messages under way each,\n\
         one connection over TCP to the PBX: SUBSCRIBE, PUBLISH, NOTIFY and their 200s; {} rounds, interleaved; medians.\n\
         Targets: 1024 bytes for an idle connection over TCP, 20480 over TLS; half of Kamailio's CPU for a message.\n",
        model.unwrap_or("unknown CPU"),
        kernel.trim(),
        options.accepts,
        options.handshakes,
        options.phones,
        options.each,
        options.rounds
    );
    println!(
        "{:<5}{:<10}{:>8}{:>14}{:>12}{:>18}{:>12}{:>12}{:>10}",
        "",
        "",
        "idle",
        "bytes of each",
        "accepts/s",
        "CPU µs an accept",
        "CPU µs/msg",
        "messages/s",
        "/kamailio"
    );
    for of in numbers {
        let kamailio = numbers.iter().find(|n| n.over == of.over && n.kind == Kind::Kamailio);
        let ratio = kamailio.map_or("-".to_owned(), |kamailio| {
            let by_round = of.message_ns.iter().zip(&kamailio.message_ns).map(|(a, b)| a / b);
            format!("{:.2}", median(&by_round.collect::<Vec<_>>()))
        });
        // What was not measured over this transport has no number.
        let or_dash = |values: &[f64], by: f64, places: usize| match values {
            [] => "-".to_owned(),
            values => format!("{:.places$}", median(values) / by),
        };
        println!(
            "{:<5}{:<10}{:>8}{:>14.0}{:>12}{:>18}{:>12}{:>12}{:>10}",
            of.over.name(),
            of.kind.name(),
            of.held,
            of.idle,
            or_dash(&of.accepts, 1.0, 0),
            or_dash(&of.accept_ns, 1e3, 1),
            or_dash(&of.message_ns, 1e3, 2),
            or_dash(&of.messages, 1.0, 0),
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
