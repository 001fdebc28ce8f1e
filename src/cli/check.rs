//! `tidings check`: reads tables (and settings) as `run` would, tells every fault, changes nothing.
//!
//! Diagnostics go to stderr, one line per sound file to stdout; with `--json` everything is one object on stdout.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    config::{Diagnostic, Settings, Severity, settings, table, tls},
    control::{StartError, state_dir},
};

#[derive(clap::Args)]
pub struct Args {
    /// Routing tables; a tidings.toml is checked as one, with its table
    #[arg(value_name = "FILE", required_unless_present = "config")]
    files: Vec<PathBuf>,
    /// Configuration whose listeners the tables may name
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> ExitCode {
    ExitCode::from(check(&args.files, args.config.as_deref(), args.json) as u8)
}

/// Exit codes: the worst file decides.
const SOUND: i32 = 0;
const FAULTY: i32 = 1;
const UNREADABLE: i32 = 2;

/// What was found out about one file.
#[derive(serde::Serialize)]
struct Report {
    file: String,
    ok: bool,
    /// `table` or `settings`.
    kind: &'static str,
    /// `2 pools, 12 rules`; empty where there are errors.
    summary: String,
    diagnostics: Vec<Diagnostic>,
    #[serde(skip)]
    code: i32,
}

/// Checks each file. `config` is tidings.toml: it is checked too, its listeners are those that tables may name, and its
/// table is checked where no file is given. A file that is itself a tidings.toml is checked as one, with its table. The
/// result is the exit code: 0 sound (warnings or not), 1 faults, 2 a file that cannot be read.
pub fn check(files: &[PathBuf], config: Option<&Path>, json: bool) -> i32 {
    check_to(files, config, json, &mut io::stdout().lock(), &mut io::stderr().lock())
}

fn check_to(
    files: &[PathBuf],
    config: Option<&Path>,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> i32 {
    let mut reports = Vec::new();
    let mut known: Option<Settings> = None;
    let mut queue: VecDeque<PathBuf> = files.iter().cloned().collect();
    if let Some(config) = config {
        let (report, settings) = match read(config) {
            Ok(text) => check_settings(config, &text),
            Err(report) => (report, None),
        };
        reports.push(report);
        if queue.is_empty() {
            queue.extend(settings.as_ref().and_then(|settings| settings.table.clone()));
        }
        known = settings;
    }
    while let Some(file) = queue.pop_front() {
        let text = match read(&file) {
            Ok(text) => text,
            Err(report) => {
                reports.push(report);
                continue;
            }
        };
        if !is_settings(&text) {
            reports.push(check_table(&file, &text, known.as_ref()));
            continue;
        }
        let (report, settings) = check_settings(&file, &text);
        reports.push(report);
        let named = settings.as_ref().and_then(|settings| settings.table.clone());
        queue.extend(named.filter(|table| !files.contains(table)));
        known = known.or(settings);
    }
    // A closed pipe is no fault of the files.
    let _ = if json { print_json(&reports, out) } else { print_text(&reports, out, err) };
    reports.iter().map(|report| report.code).max().unwrap_or(SOUND)
}

fn read(file: &Path) -> Result<String, Report> {
    let fault = |message: String, code: i32| Report {
        file: file.display().to_string(),
        ok: false,
        kind: "table",
        summary: String::new(),
        diagnostics: vec![Diagnostic {
            severity: Severity::Error,
            file: file.display().to_string(),
            line: 0,
            column: 0,
            message,
            text: String::new(),
        }],
        code,
    };
    let bytes = std::fs::read(file).map_err(|error| fault(format!("cannot be read: {error}"), UNREADABLE))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = memchr::memchr_iter(b'\n', &error.as_bytes()[..at]).count() + 1;
        fault(format!("is not UTF-8 text: byte {} of the file, in line {line}", at + 1), FAULTY)
    })
}

/// A tidings.toml given for a table: it has sections of one, and none of a table.
fn is_settings(text: &str) -> bool {
    let (root, _) = toml::de::DeTable::parse_recoverable(text);
    let root = root.get_ref();
    let table = ["pool", "rule", "packages"];
    settings::SECTIONS.iter().any(|key| root.contains_key(*key))
        && !table.iter().any(|key| root.contains_key(*key))
}

fn check_settings(file: &Path, text: &str) -> (Report, Option<Settings>) {
    let name = file.display().to_string();
    let base = file.parent().unwrap_or(Path::new(""));
    match Settings::parse(&name, text, base) {
        Ok(settings) => {
            let summary = counted(settings.listen.len(), "listener");
            let mut diagnostics = settings::warnings(&settings);
            let now = crate::net::now().unix_s;
            diagnostics
                .extend(tls::load(&settings, now).map_or_else(|faults| faults, |loaded| loaded.warnings));
            diagnostics.extend(key_file(&settings));
            diagnostics.sort_by_key(|fault| (fault.line, fault.column));
            (report(name, "settings", summary, diagnostics), Some(settings))
        }
        Err(faults) => (report(name, "settings", String::new(), faults), None),
    }
}

/// Why `run` would not take the file of token keys.
fn key_file(settings: &Settings) -> Vec<Diagnostic> {
    let Some(path) = &settings.tokens.key_file else { return Vec::new() };
    match state_dir::read_keys(path) {
        Ok(_) => Vec::new(),
        Err(StartError::Refused(failure)) => failure.diagnostics,
        Err(error) => vec![Diagnostic {
            severity: Severity::Error,
            file: settings.origin.file.clone(),
            line: 0,
            column: 0,
            message: error.to_string(),
            text: String::new(),
        }],
    }
}

fn check_table(file: &Path, text: &str, settings: Option<&Settings>) -> Report {
    let name = file.display().to_string();
    match table::parse(&name, text) {
        Ok((spec, mut diagnostics)) => {
            if let Some(settings) = settings {
                diagnostics.extend(table::check_listeners(&spec, &settings.listen));
                diagnostics.sort_by_key(|fault| (fault.line, fault.column));
            }
            let (pools, rules) = (counted(spec.pools.len(), "pool"), counted(spec.rules.len(), "rule"));
            report(name, "table", format!("{pools}, {rules}"), diagnostics)
        }
        Err(faults) => report(name, "table", String::new(), faults),
    }
}

fn report(file: String, kind: &'static str, summary: String, diagnostics: Vec<Diagnostic>) -> Report {
    let ok = !diagnostics.iter().any(Diagnostic::is_error);
    let summary = if ok { summary } else { String::new() };
    Report { file, ok, kind, summary, diagnostics, code: if ok { SOUND } else { FAULTY } }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn print_text(reports: &[Report], out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    for report in reports {
        for diagnostic in &report.diagnostics {
            writeln!(err, "{diagnostic}")?;
        }
        if report.ok {
            let warnings = match report.diagnostics.len() {
                0 => String::new(),
                count => format!(", {}", counted(count, "warning")),
            };
            writeln!(out, "{}: ok, {}{warnings}", report.file, report.summary)?;
        }
    }
    Ok(())
}

fn print_json(reports: &[Report], out: &mut dyn Write) -> io::Result<()> {
    let ok = reports.iter().all(|report| report.ok);
    let whole = serde_json::json!({ "ok": ok, "files": reports });
    writeln!(out, "{whole:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own for each test; files by name and text.
    fn directory(test: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("tidings-check-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory can be written");
        for (name, text) in files {
            std::fs::write(dir.join(name), text).expect("the temporary directory can be written");
        }
        dir
    }

    fn run(dir: &Path, files: &[&str], config: Option<&str>, json: bool) -> (i32, String, String) {
        let files: Vec<PathBuf> = files.iter().map(|name| dir.join(name)).collect();
        let config = config.map(|name| dir.join(name));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = check_to(&files, config.as_deref(), json, &mut out, &mut err);
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("output is UTF-8");
            text.replace(&format!("{}/", dir.display()), "")
        };
        (code, text(out), text(err))
    }

    const TABLE: &[u8] = b"[[pool]]\nname = \"p\"\nlistener = \"inside\"\n[[pool.backend]]\nname = \"b\"\n\
        uri = \"sip:10.0.0.1\"\n[[rule]]\nname = \"r\"\nroute = \"p\"\n";

    #[test]
    fn a_sound_table_is_one_line_and_exit_code_0() {
        let dir = directory("sound", &[("t.toml", TABLE)]);
        assert_eq!(
            run(&dir, &["t.toml"], None, false),
            (0, "t.toml: ok, 1 pool, 1 rule\n".into(), "".into())
        );
    }

    #[test]
    fn every_file_is_checked_and_the_worst_decides() {
        let bad = b"[[rule]]\nname = \"r\"\nroute = \"x\"\nnmae = 1\n";
        let dir =
            directory("worst", &[("t.toml", TABLE), ("bad.toml", bad), ("latin.toml", b"# a\n# \xe9\n")]);
        let (code, out, err) = run(&dir, &["bad.toml", "t.toml", "latin.toml"], None, false);
        assert_eq!((code, out.as_str()), (1, "t.toml: ok, 1 pool, 1 rule\n"));
        let first: Vec<&str> = err.lines().filter(|line| line.contains("error: ")).collect();
        assert_eq!(
            first,
            [
                "bad.toml:3:9: error: unknown pool \"x\"",
                "bad.toml:4:1: error: unknown key \"nmae\" in [[rule]], did you mean \"name\"?",
                "latin.toml: error: is not UTF-8 text: byte 7 of the file, in line 2",
            ]
        );
        let (code, _, err) = run(&dir, &["bad.toml", "gone.toml"], None, false);
        assert_eq!(code, 2);
        assert!(err.contains("gone.toml: error: cannot be read"), "{err}");
    }

    #[test]
    fn listeners_are_those_of_the_settings_and_their_table_is_checked_by_default() {
        let settings = b"table = \"t.toml\"\n[[listen]]\nname = \"insid\"\naddress = \"10.0.0.9:5060\"\n";
        let dir = directory("listeners", &[("t.toml", TABLE), ("tidings.toml", settings)]);
        for (files, config) in [(&[][..], Some("tidings.toml")), (&["tidings.toml"][..], None)] {
            let (code, out, err) = run(&dir, files, config, false);
            assert_eq!((code, out.as_str()), (1, "tidings.toml: ok, 1 listener\n"));
            let expected = "t.toml:3:12: error: unknown listener \"inside\", did you mean \"insid\"?";
            assert!(err.starts_with(expected), "{err}");
        }
    }

    #[test]
    fn settings_are_known_by_any_of_their_sections() {
        for key in settings::SECTIONS {
            assert!(
                is_settings(&format!("{key} = 1\n")) && is_settings(&format!("[{key}]\nx = 1\n")),
                "{key}"
            );
            assert!(!is_settings(&format!("{key} = 1\n[[rule]]\n")), "{key}");
        }
        assert!(!is_settings("") && !is_settings("colour = 1\n"));
    }

    #[test]
    fn json_has_every_file_and_fault() {
        let dir = directory("json", &[("t.toml", TABLE), ("bad.toml", b"x = 1\n")]);
        let (code, out, err) = run(&dir, &["t.toml", "bad.toml"], None, true);
        assert_eq!((code, err.as_str()), (1, ""));
        let whole: serde_json::Value = serde_json::from_str(&out).expect("valid JSON");
        assert_eq!(whole["ok"], false);
        assert_eq!(whole["files"][0]["summary"], "1 pool, 1 rule");
        assert_eq!(whole["files"][1]["diagnostics"][0]["line"], 1);
        assert_eq!(whole["files"][1]["diagnostics"][0]["severity"], "error");
    }
}
