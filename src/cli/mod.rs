//! The command line: one file for each command. Faults are one clear line on stderr, `tidings: …`, and an exit code that
//! is not 0; diagnostics of files stand before it, all at once.

mod check;
mod demo;
mod explain;
mod reload;
mod run;

use std::{fmt, net::SocketAddr, path::{Path, PathBuf}, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::config::{Diagnostic, Settings};

/// Where the configuration stands where nobody says.
const USUAL_CONFIG: &str = "/etc/tidings/tidings.toml";

#[derive(Parser)]
#[command(
    name = "tidings",
    version,
    about = "A SIP event router: takes SUBSCRIBE, PUBLISH and NOTIFY, and everything else that SIP has, and sends each \
             to the right PBX by a routing table that can be swapped at any time",
    after_help = "Documentation of the two files: routing/examples. Logs go to stderr; TIDINGS_LOG or RUST_LOG set \
                  their level (info, debug, tidings::control=debug).",
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
    pub fn new(message: impl fmt::Display) -> Fault {
        Fault { message: format!("tidings: {message}"), code: FAILED }
    }

    /// Diagnostics, then one line that counts their errors.
    pub fn diagnostics(file: &str, diagnostics: &[Diagnostic]) -> Fault {
        let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
        let s = if errors == 1 { "" } else { "s" };
        let list: String = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
        Fault { message: format!("{list}tidings: {file}: {errors} error{s}"), code: FAILED }
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
