//! The command line: one file for each command. Faults are one clear line on stderr, `tidings: …`, and an exit code that
//! is not 0; diagnostics of files stand before it, all at once.

mod api;
mod backends;
mod bans;
mod check;
mod columns;
mod connections;
pub mod demo;
mod doctor;
mod explain;
mod reload;
mod run;

use std::{fmt, path::Path, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::{
    config::{Diagnostic, Settings},
    control::Failure,
};

#[derive(Parser)]
#[command(
    name = "tidings",
    version,
    about = "A SIP event router: takes SUBSCRIBE, PUBLISH and NOTIFY, and everything else that SIP has, and sends each \
             to the right PBX by a routing table that can be swapped at any time",
    after_help = "Documentation of the two files: routing/tidings.toml, routing/examples, README.md. Logs go to stderr; \
                  TIDINGS_LOG or RUST_LOG set their level (info, debug, tidings::control=debug).",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the router until SIGTERM or Ctrl-C; SIGHUP reads the table again
    Run(run::Args),
    /// Check tables without running them; all faults at once
    Check(check::Args),
    /// Say what a table would do with one message, and why
    Explain(explain::Args),
    /// Make the running router read its table again
    Reload(reload::Args),
    /// List the running router's backends; drain one, activate it, take it off
    Backends(backends::Args),
    /// Check this machine against the configuration, and say how to mend it
    Doctor(doctor::Args),
    /// List the running router's TCP connections: who, since when, idle for how long, what waits
    Connections(connections::Args),
    /// List whom the running router has banned; ban an address, lift a ban
    Bans(bans::Args),
    /// Show it all on this machine: router, three small PBXs, phones, a publisher
    Demo(demo::Args),
}

/// What goes wrong in a command.
#[derive(Debug)]
pub struct Fault {
    /// For stderr; the last line begins with `tidings: `.
    message: String,
    code: u8,
}

/// Exit code of faults of use and of files.
const FAILED: u8 = 1;

impl Fault {
    /// The last line of `message` is the one that counts; before it may stand diagnostics.
    pub fn new(message: impl fmt::Display) -> Fault {
        let text = message.to_string();
        let message = match text.rsplit_once('\n') {
            Some((before, last)) => format!("{before}\ntidings: {last}"),
            None => format!("tidings: {text}"),
        };
        Fault { message, code: FAILED }
    }

    /// A file with these faults.
    pub fn diagnostics(file: &str, diagnostics: &[Diagnostic]) -> Fault {
        Fault::new(Failure::of(file, 0, diagnostics.to_vec()))
    }

    pub fn code(self, code: u8) -> Fault {
        Fault { code, ..self }
    }
}

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error),
    };
    let outcome = match command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Backends(args) => backends::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Connections(args) => connections::run(&args),
        Command::Bans(args) => bans::run(&args),
        Command::Demo(args) => return demo::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{}", fault.message);
            ExitCode::from(fault.code)
        }
    }
}

/// Help and version as clap prints them, a fault as one line.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nobody reads it if this fails.
        let _ = error.print();
        return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let text = error.to_string();
    let what: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let what = what.join(" ");
    eprintln!("tidings: {} (see tidings --help)", what.strip_prefix("error: ").unwrap_or(&what));
    ExitCode::from(2)
}

/// The settings of a file; the defaults where there is none.
fn settings(config: Option<&Path>) -> Result<Settings, Fault> {
    let Some(path) = config else {
        return Ok(Settings::default());
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Fault::new(format_args!("cannot read the configuration {name}: {error}")))?;
    let base = path.parent().unwrap_or(Path::new(""));
    Settings::parse(&name, &text, base).map_err(|diagnostics| Fault::diagnostics(&name, &diagnostics))
}
