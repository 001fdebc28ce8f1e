//! `tidings run`: the router in the foreground, as systemd or a person runs it.
//!
//! Starts everything or says in one line why not; then waits for signals: SIGHUP reads the table again (the
//! configuration is not: a restart applies it), SIGTERM and SIGINT stop cleanly with exit code 0.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::Directive};

use super::Fault;
use crate::{
    admin,
    config::settings::Log,
    control::{self, Running, TableSource},
};

#[derive(clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default (UDP on port 5060, admin on 127.0.0.1:9060)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Routing table, instead of the one that the configuration names
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let mut settings = super::settings(args.config.as_deref())?;
    if args.table.is_some() {
        settings.table = args.table.clone();
    }
    start_logs(&settings.log)?;
    for warning in crate::config::settings::warnings(&settings) {
        tracing::warn!("{warning}");
    }
    let configuration = Configuration::new(args.config.clone(), settings.tokens.key_file.clone());
    let source = TableSource::of(&settings);
    let running = control::start(settings, source).map_err(Fault::new)?;
    let admin = admin::start(&running).map_err(Fault::new)?;
    let signals = running.runtime().block_on(async { Signals::new() });
    let signals = signals.map_err(|error| Fault::new(format_args!("signals: {error}")))?;
    say_ready(&running, admin);
    let until_stopped = signals.serve(&running, configuration);
    let signal = running.runtime().block_on(until_stopped);
    tracing::info!("{signal}: stopping");
    running.stop();
    tracing::info!("stopped");
    Ok(())
}

/// Logs go to stderr; TIDINGS_LOG, then RUST_LOG, then the settings say how much.
fn start_logs(log: &Log) -> Result<(), Fault> {
    let from_environment = ["TIDINGS_LOG", "RUST_LOG"].into_iter().find_map(|name| {
        std::env::var(name).ok().filter(|level| !level.is_empty()).map(|level| (name, level))
    });
    let (name, level) = from_environment.unwrap_or(("level in [log]", log.level.clone()));
    // Whoever starts us waits for this line, at whatever level.
    let ready: Directive = "tidings::ready=info".parse().expect("a constant directive");
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| Fault::new(format_args!("{name}: {level:?} is no log level: {error}")))?
        .add_directive(ready);
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = if log.json { logs.json().try_init() } else { logs.try_init() };
    started.map_err(|error| Fault::new(format_args!("logs: {error}")))
}

fn say_ready(running: &Running, admin: Option<SocketAddr>) {
    let router = running.router();
    let listeners: Vec<String> = (router.settings().listen.iter())
        .map(|listen| format!("{} {}/{}", listen.name, listen.address, listen.transport.label()))
        .collect();
    let table = router.tables().status().present;
    tracing::info!(
        target: "tidings::ready",
        listeners = %listeners.join(", "),
        workers = router.settings().workers.count,
        table = %table.source,
        table_version = table.version,
        admin = %admin.map_or("off".to_owned(), |address| address.to_string()),
        "ready"
    );
}

/// The file of the settings and that of the token keys, where they are, as they were at start: a reload takes neither up.
struct Configuration {
    /// What it is called in the log, where it is, what it held.
    files: Vec<(&'static str, PathBuf, Option<Vec<u8>>)>,
}

impl Configuration {
    fn new(settings: Option<PathBuf>, keys: Option<PathBuf>) -> Configuration {
        let named = [("configuration", settings), ("key file", keys)].into_iter();
        let read = |(name, path): (_, Option<PathBuf>)| {
            let path = path?;
            let held = std::fs::read(&path).ok();
            Some((name, path, held))
        };
        Configuration { files: named.filter_map(read).collect() }
    }

    /// The names of those that hold something else now.
    fn changed(&self) -> impl Iterator<Item = &'static str> + '_ {
        let other = self.files.iter().filter(|(_, path, held)| std::fs::read(path).ok() != *held);
        other.map(|(name, ..)| *name)
    }
}

struct Signals {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Until one asks to stop; gives its name.
    async fn serve(mut self, running: &Running, configuration: Configuration) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => {
                    tracing::info!("SIGHUP: reading the table again");
                    for name in configuration.changed() {
                        tracing::warn!("the {name} has changed too: a restart applies it, SIGHUP does not");
                    }
                    let router = running.router().clone();
                    // Compiling may take seconds; a SIGTERM meanwhile must not wait. What is wrong is logged.
                    running.runtime().spawn(async move { drop(router.reload().await) });
                }
            }
        }
    }
}
