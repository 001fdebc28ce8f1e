//! `explain`: the decision over one message by the code that runs on the path, told step by step (SPEC 5.8).

use std::{fmt, net::SocketAddr, sync::Arc};

use serde::Serialize;

use super::{Arrival, Core, Outbox, Setup, Shared};
use crate::{
    live::{Buckets, Now, Pins},
    route::{Candidate, MatchKey, Recorder, Rule, Table},
    stats::CoreStats,
    wire::token::FlowId,
};

/// What was found out about one message. Its `Display` is for people, its JSON for scripts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explanation {
    pub table_version: u64,
    pub steps: Vec<Step>,
    pub rules: Vec<Tried>,
    pub balance: Option<Balance>,
    /// What would be sent, in order.
    pub sent: Vec<Sent>,
}

/// One step of the decision: `source`, `token`, `pin`, `forward`, `refuse`, …
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub what: String,
    pub detail: String,
}

/// A rule that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    pub rule: String,
    pub matched: bool,
    /// The first key that did not hold.
    pub failed: Option<String>,
    /// Requests a second that a rule which matches lets through; what is explained takes none of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// How the backend was chosen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Balance {
    pub by: String,
    pub key: String,
    pub candidates: Vec<Choice>,
}

/// A backend that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    pub backend: String,
    /// Why it is no candidate.
    pub excluded: Option<String>,
    pub score: f64,
    /// Of a backend by host name: the address that takes the request, and of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<(SocketAddr, u16)>,
    /// What goes before the score: calls, round trip, priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
}

/// A message as it would be sent.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    pub to: String,
    pub by: String,
    pub message: String,
}

/// Decides `bytes` as if it arrived by `arrival` now, without any effect: fresh counters and pins, shared state only read.
pub fn explain(
    setup: &Arc<Setup>,
    shared: &Arc<Shared>,
    table: &Table,
    arrival: Arrival,
    bytes: &[u8],
    now: Now,
) -> Explanation {
    let (stats, pins) = (Arc::new(CoreStats::with_bound(1)), Pins::new(1));
    let buckets = Buckets::with_room(&setup.protection, 1);
    let mut core = Core::with(setup.clone(), shared.clone(), stats, pins, buckets);
    let mut told = Explanation { table_version: table.version, ..Explanation::default() };
    let mut out = Outbox::default();
    // On a stream it came by some connection, whose number says nothing.
    let stream = !setup.listener(arrival.listener).transport.is_datagram();
    let some = FlowId { router: setup.router, boot: setup.boot, core: 0, slot: 0, generation: 0 };
    let arrival = Arrival { flow: arrival.flow.or(stream.then_some(some)), ..arrival };
    core.message(now, table, &arrival, bytes, &mut out, &mut told);
    for (target, range) in &out.messages {
        let by = setup.listener(target.listener());
        told.sent.push(Sent {
            to: format!("{}:{target}", by.transport.label()),
            by: by.name.clone(),
            message: String::from_utf8_lossy(&out.bytes[range.clone()]).into_owned(),
        });
    }
    told
}

impl Recorder for Explanation {
    const ON: bool = true;

    fn rule(&mut self, rule: &Rule, failed: Option<MatchKey<'_>>) {
        let failed = failed.map(|key| match key {
            MatchKey::Method => "method".to_owned(),
            MatchKey::Event => "event".to_owned(),
            MatchKey::Source => "source".to_owned(),
            MatchKey::Transport => "transport".to_owned(),
            MatchKey::Listener => "listener".to_owned(),
            MatchKey::Pattern { key, written } => format!("{key} = {written:?}"),
        });
        let limit = rule.limit.as_ref().filter(|_| failed.is_none()).map(|limit| limit.per_second());
        self.rules.push(Tried { rule: rule.name.to_string(), matched: failed.is_none(), failed, limit });
    }

    fn key(&mut self, balance: &str, key: &[u8]) {
        let text = String::from_utf8_lossy(key).into_owned();
        self.balance = Some(Balance { by: balance.to_owned(), key: text, candidates: Vec::new() });
    }

    fn candidate(&mut self, candidate: Candidate<'_>) {
        let choice = Choice {
            backend: candidate.name.to_owned(),
            excluded: candidate.excluded.map(str::to_owned),
            score: candidate.score,
            address: candidate.address,
            measured: candidate.measured,
        };
        self.balance.get_or_insert_default().candidates.push(choice);
    }

    fn step(&mut self, step: &'static str, detail: fmt::Arguments<'_>) {
        self.steps.push(Step { what: step.to_owned(), detail: detail.to_string() });
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            writeln!(f, "nothing to decide: no SIP message")?;
        }
        // Rules and balance are part of the decision that the last step tells.
        let last =
            self.steps.iter().rposition(|s| matches!(s.what.as_str(), "forward" | "refuse" | "answer"));
        for (i, step) in self.steps.iter().enumerate() {
            if Some(i) == last {
                self.write_rules(f)?;
            }
            writeln!(f, "{:<9} {}", step.what, step.detail)?;
        }
        if last.is_none() {
            self.write_rules(f)?;
        }
        for sent in &self.sent {
            writeln!(f, "\nsent to {} by listener {}:\n", sent.to, sent.by)?;
            for line in sent.message.split_inclusive("\r\n") {
                // What a peer wrote must not drive the terminal.
                let line = line
                    .trim_end_matches(['\r', '\n'])
                    .replace(|c: char| c.is_control() && c != '\t', "\u{fffd}");
                writeln!(f, "{}", format!("    {line}").trim_end())?;
            }
        }
        Ok(())
    }
}

impl Explanation {
    fn write_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tried in &self.rules {
            match &tried.failed {
                Some(key) => writeln!(f, "rule      {:?}: no, by {key}", tried.rule)?,
                None => match tried.limit {
                    Some(limit) => {
                        writeln!(f, "rule      {:?}: matches, up to {limit} a second", tried.rule)?
                    }
                    None => writeln!(f, "rule      {:?}: matches", tried.rule)?,
                },
            }
        }
        let Some(balance) = &self.balance else { return Ok(()) };
        writeln!(f, "balance   by {}: {:?}", balance.by, balance.key)?;
        for choice in &balance.candidates {
            match &choice.excluded {
                Some(why) => writeln!(f, "          {}: no candidate, {why}", choice.backend)?,
                None => {
                    let measured = choice.measured.as_ref().map_or(String::new(), |m| format!("{m}, "));
                    write!(f, "          {}: {measured}{:.4}", choice.backend, choice.score)?;
                    if let Some((addr, count)) = choice.address {
                        write!(
                            f,
                            ", at {addr} ({})",
                            if count == 1 {
                                "its one address".into()
                            } else {
                                format!("one of {count} addresses")
                            }
                        )?;
                    }
                    writeln!(f)?;
                }
            }
        }
        Ok(())
    }
}
