//! `tidings backends`: the backends of the running router and their state; `drain`, `activate`, `off` say what one is to be.
//!
//! Exit code 0: done; 1: refused, such as an unknown name; 2: there is nobody to ask.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Fault,
    api::{self, Which},
    columns::{self, span},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// List them (what is done without a word)
    List,
    /// Send nothing new to this one; what it has goes on
    Drain { name: String },
    /// Send new requests to it again
    Activate { name: String },
    /// Send nothing at all to it
    Off { name: String },
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let (name, state) = match args.what.as_ref().unwrap_or(&What::List) {
        What::List => {
            let (status, list) = api::ask(&args.which, "GET", "/api/v1/backends", None)?;
            return show(args, status, &list);
        }
        What::Drain { name } => (name, "drain"),
        What::Activate { name } => (name, "active"),
        What::Off { name } => (name, "off"),
    };
    let path = format!("/api/v1/backends/{}/state", api::segment(name));
    let (status, list) = api::ask(&args.which, "POST", &path, Some(&json!({ "state": state })))?;
    show(args, status, &list)
}

fn show(args: &Args, status: u16, list: &Value) -> Result<(), Fault> {
    let Some(backends) = list.as_array().filter(|_| status == 200) else {
        return Err(Fault::new(list["text"].as_str().unwrap_or("no reason given")));
    };
    if args.json {
        println!("{list:#}");
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let rows = backends.iter().map(|backend| row(backend, now));
    print!("{}", columns::table(HEADS, NUMBERS, &rows.collect::<Vec<_>>()));
    Ok(())
}

const HEADS: [&str; 11] =
    ["NAME", "POOL", "ADDRESS", "STATE", "FOR", "RTT ms", "CALLS", "REQUESTS", "RESPONSES", "ERRORS", "WHY"];
/// Columns of numbers stand to the right.
const NUMBERS: std::ops::Range<usize> = 4..10;

fn row(backend: &Value, now: u64) -> [String; HEADS.len()] {
    let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| backend[key].as_u64().unwrap_or(0);
    let rtt = |key: &str| backend[key].as_f64().map(|ms| format!("{ms:.1}"));
    let rtt = match (rtt("rtt_ms"), rtt("last_rtt_ms")) {
        (Some(smoothed), Some(last)) => format!("{smoothed} ({last})"),
        _ => "-".to_owned(),
    };
    let responses = backend["responses"].as_object();
    let responses: u64 = responses.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    let mut why = text("why");
    if why.is_empty() && backend["probed"] == false {
        why = "not probed".to_owned();
    }
    [
        text("name"),
        text("pool"),
        addresses(&backend["addresses"], &text("transport")),
        text("state"),
        span(now.saturating_sub(number("since_unix_s"))),
        rtt,
        number("calls").to_string(),
        number("requests").to_string(),
        responses.to_string(),
        number("errors").to_string(),
        why,
    ]
}

/// The first address, and how many more there are.
fn addresses(addresses: &Value, transport: &str) -> String {
    match addresses.as_array().map_or(&[][..], Vec::as_slice) {
        [] => "-".to_owned(),
        [first, more @ ..] => {
            let more = if more.is_empty() { String::new() } else { format!(" +{}", more.len()) };
            format!("{}/{transport}{more}", first.as_str().unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest() {
        let listed = json!({
            "name": "pbx1", "pool": "presence", "addresses": ["127.0.0.11:5060", "[::1]:5060"], "transport": "udp", "state": "down",
            "since_unix_s": 1000, "why": "silent", "probed": true, "rtt_ms": 0.71,
            "last_rtt_ms": 1.25, "calls": 31, "requests": 12345, "responses": {"2xx": 12000, "5xx": 5}, "errors": 7,
        });
        let other = json!({ "name": "ü", "pool": "p", "state": "up", "since_unix_s": 1090, "probed": false });
        let text = columns::table(HEADS, NUMBERS, &[row(&listed, 1100), row(&other, 1100)]);
        let expected = "\
NAME  POOL      ADDRESS                 STATE    FOR     RTT ms  CALLS  REQUESTS  RESPONSES  ERRORS  WHY
pbx1  presence  127.0.0.11:5060/udp +1  down   1m40s  0.7 (1.2)     31     12345      12005       7  silent
ü     p         -                       up       10s          -      0         0          0       0  not probed
";
        assert_eq!(text, expected);
    }
}
