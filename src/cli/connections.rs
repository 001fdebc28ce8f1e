//! `tidings connections`: the stream connections of the running router.
//!
//! Exit code 0: listed; 1: refused, such as a prefix that is none; 2: there is nobody to ask.

use serde_json::Value;

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
    #[arg(long)]
    json: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    most: usize,
    /// Only of this address or prefix
    #[arg(long, value_name = "PREFIX")]
    peer: Option<String>,
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let peer = args.peer.as_deref().map_or(String::new(), |peer| format!("&peer={}", api::segment(peer)));
    let path = format!("/api/v1/connections?most={}{peer}", args.most);
    let (status, answer) = api::ask(&args.which, "GET", &path, None)?;
    let Some(listed) = answer["connections"].as_array().filter(|_| status == 200) else {
        return Err(Fault::new(answer["text"].as_str().unwrap_or("no reason given")));
    };
    if args.json {
        println!("{answer:#}");
        return Ok(());
    }
    print!("{}", columns::table(HEADS, NUMBERS, &listed.iter().map(row).collect::<Vec<_>>()));
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    println!("{} open; {} of at most {} accepted", number("open"), number("accepted"), number("limit"));
    Ok(())
}

const HEADS: [&str; 9] = ["ID", "PEER", "LOCAL", "LISTENER", "ROLE", "AGE", "IDLE", "QUEUED", "USERS"];
/// Columns of numbers stand to the right.
const NUMBERS: std::ops::Range<usize> = 5..8;

fn row(of: &Value) -> [String; HEADS.len()] {
    let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| of[key].as_u64().unwrap_or(0);
    let users = of["users"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let users: Vec<&str> = users.collect();
    [
        text("id"),
        text("peer"),
        format!("{}/{}", text("local"), text("transport")),
        text("listener"),
        text("role"),
        span(number("age_s")),
        span(number("idle_s")),
        number("queued_bytes").to_string(),
        users.join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_since_when_and_what_waits() {
        let listed = serde_json::json!({
            "id": "0.3.1", "peer": "192.0.2.7:40000", "local": "192.0.2.1:5060", "listener": "phones",
            "transport": "tcp", "role": "accepted", "age_s": 61, "idle_s": 5, "queued_bytes": 17,
            "users": ["sip:1000@example.com", "sip:1001@example.com"],
        });
        let expected = "\
ID     PEER             LOCAL               LISTENER  ROLE        AGE  IDLE  QUEUED  USERS
0.3.1  192.0.2.7:40000  192.0.2.1:5060/tcp  phones    accepted  1m01s    5s      17  sip:1000@example.com sip:1001@example.com
";
        assert_eq!(columns::table(HEADS, NUMBERS, &[row(&listed)]), expected);
    }
}
