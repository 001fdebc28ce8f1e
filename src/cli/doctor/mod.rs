//! `tidings doctor`: checks this machine against the configuration (SPEC 11.6), and says how to mend what does not do.
//!
//! Nothing is changed; sockets are bound for a moment where the router would bind them. `kernel` reads sysctls, `process`
//! the limits of whoever calls, `sockets` tries, `certificates`
//! reads what TLS listeners show. Exit code 0 where no check failed, 1 otherwise, 2 for a configuration
//! that cannot be read.

mod certificates;
mod kernel;
mod process;
mod sockets;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use crate::config::{Settings, settings};

#[derive(clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default, as for `run`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It will work, but not well under load, or not after a crash.
    Warn,
    /// It will not work as configured.
    Fail,
    /// It cannot be seen from here.
    Unknown,
}

/// One check.
#[derive(Clone, Debug, serde::Serialize)]
struct Check {
    name: String,
    verdict: Verdict,
    /// What the machine has.
    value: String,
    /// What the configuration needs.
    needs: String,
    why: String,
    /// The command that mends it, until the next boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
    /// What makes that last.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, value: impl ToString, needs: impl Into<String>, why: &str) -> Check {
        Check {
            name: name.into(),
            verdict: Verdict::Ok,
            value: value.to_string(),
            needs: needs.into(),
            why: why.to_owned(),
            mend: None,
            keep: None,
        }
    }

    /// The verdict where it does not hold, and how to mend that.
    fn unless(
        mut self,
        holds: bool,
        verdict: Verdict,
        mend: impl Into<String>,
        keep: impl Into<String>,
    ) -> Check {
        if !holds {
            let some = |text: String| (!text.is_empty()).then_some(text);
            (self.verdict, self.mend, self.keep) = (verdict, some(mend.into()), some(keep.into()));
        }
        self
    }

    fn unknown(mut self) -> Check {
        self.verdict = Verdict::Unknown;
        self
    }
}

pub fn run(args: &Args) -> ExitCode {
    let settings = match super::settings(args.config.as_deref()) {
        Ok(settings) => settings,
        Err(fault) => {
            eprintln!("{}", fault.message);
            return ExitCode::from(2);
        }
    };
    let checks = all(&settings);
    let ok = !checks.iter().any(|check| check.verdict == Verdict::Fail);
    let out = &mut io::stdout().lock();
    // A closed pipe is no fault of the machine.
    let _ = if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "ok": ok, "checks": checks }))
    } else {
        table(&checks, out)
    };
    ExitCode::from(u8::from(!ok))
}

fn all(settings: &Settings) -> Vec<Check> {
    let mut checks = process::checks(settings);
    checks.extend(kernel::checks(settings));
    checks.extend(sockets::checks(settings));
    checks.extend(certificates::checks(settings));
    for warning in settings::warnings(settings) {
        let needs = "UDP sources that cannot be forged";
        let place = match warning.line {
            0 => warning.file,
            line => format!("{}:{line}", warning.file),
        };
        checks.push(Check::new("trust", place, needs, &warning.message).unless(false, Verdict::Warn, "", ""));
    }
    checks
}

fn table(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let width = |of: fn(&Check) -> &str, most: usize| {
        checks.iter().map(|check| of(check).chars().count()).max().unwrap_or(0).min(most)
    };
    let (name, value) = (width(|check| &check.name, 34), width(|check| &check.value, 44));
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
            Verdict::Unknown => "?",
        };
        writeln!(out, "{verdict:<5} {:<name$}  {:<value$}  {}", check.name, check.value, check.needs)?;
        if check.verdict == Verdict::Ok {
            continue;
        }
        writeln!(out, "      why:  {}", check.why)?;
        for (what, text) in [("mend:", &check.mend), ("keep:", &check.keep)] {
            if let Some(text) = text {
                writeln!(out, "      {what} {text}")?;
            }
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
    let s = if warned == 1 { "" } else { "s" };
    writeln!(out, "\n{} checks: {failed} failed, {warned} warning{s}", checks.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_how_to_mend_it() {
        let good = Check::new("a", 5, "at least 4", "because").unless(true, Verdict::Fail, "x", "y");
        let bad =
            Check::new("b", 3, "at least 4", "because").unless(false, Verdict::Fail, "sysctl -w b=4", "");
        let mut out = Vec::new();
        table(&[good, bad], &mut out).expect("memory takes it");
        let expected = "ok    a  5  at least 4\nFAIL  b  3  at least 4\n      why:  because\n      \
                        mend: sysctl -w b=4\n\n2 checks: 1 failed, 0 warnings\n";
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }
}
