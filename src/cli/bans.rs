//! `tidings bans`: who is banned by the running router; `add` and `lift` change it, at once.
//!
//! Exit code 0: done; 1: refused, such as an address that is a backend's; 2: there is nobody to ask.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

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
    /// Take nothing from this address any more; of IPv6: from its /64
    Add {
        address: IpAddr,
        /// For so long; default: as an automatic ban
        #[arg(long, value_name = "N")]
        seconds: Option<u64>,
    },
    /// Listen to it again
    Lift { address: String },
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let (status, answer) = match args.what.as_ref().unwrap_or(&What::List) {
        What::List => api::ask(&args.which, "GET", "/api/v1/bans", None)?,
        What::Add { address, seconds } => {
            let body = json!({ "address": address, "seconds": seconds });
            api::ask(&args.which, "POST", "/api/v1/bans", Some(&body))?
        }
        What::Lift { address } => {
            let path = format!("/api/v1/bans/{}", api::segment(address));
            api::ask(&args.which, "DELETE", &path, None)?
        }
    };
    let Some(bans) = answer["bans"].as_array().filter(|_| status == 200) else {
        return Err(Fault::new(answer["text"].as_str().unwrap_or("no reason given")));
    };
    if args.json {
        println!("{answer:#}");
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    print!("{}", columns::table(HEADS, NUMBERS, &bans.iter().map(|ban| row(ban, now)).collect::<Vec<_>>()));
    println!("{} of at most {}", bans.len(), answer["limit"]);
    Ok(())
}

const HEADS: [&str; 5] = ["SOURCE", "CAUSE", "FOR", "LEFT", "TIMES"];
/// Columns of numbers stand to the right.
const NUMBERS: std::ops::Range<usize> = 2..5;

fn row(ban: &Value, now: u64) -> [String; HEADS.len()] {
    let text = |key: &str| ban[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| ban[key].as_u64().unwrap_or(0);
    [
        text("source"),
        text("cause"),
        span(now.saturating_sub(number("since_unix_s"))),
        span(number("until_unix_s").saturating_sub(now)),
        number("times").to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_why_and_how_long_yet() {
        let listed = json!({
            "source": "2001:db8:1:2::/64", "cause": "malformed", "since_unix_s": 1000, "until_unix_s": 1300, "times": 2,
        });
        let expected = "\
SOURCE             CAUSE      FOR   LEFT  TIMES
2001:db8:1:2::/64  malformed  10s  4m50s      2
";
        assert_eq!(columns::table(HEADS, NUMBERS, &[row(&listed, 1010)]), expected);
    }
}
