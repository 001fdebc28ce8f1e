//! The backends as people see them: what the API lists, what the operator marks, what a scrape tells (SPEC 5.6, 11.5).

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::Router;
use crate::{
    config::table::AdminState,
    live::{BackendState, Health, Noticed, PROBES, Sign, State},
    net,
    route::{Backend, Pool, Pools, Unresolved},
    stats::{Sample, names},
    wire::Transport,
};

/// One backend of one pool.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Listed {
    pub name: String,
    pub pool: String,
    pub uri: String,
    /// Its addresses; more than one, or none, where its URI names a host.
    pub addresses: Vec<String>,
    pub transport: &'static str,
    pub weight: u32,
    pub state: State,
    pub health: Health,
    /// What the table says, and the operator's mark, which goes before it.
    pub table: AdminState,
    pub mark: Option<AdminState>,
    /// The last change of health or mark.
    pub since_unix_s: u64,
    pub why: String,
    pub probed: bool,
    /// Round trip of its probes in milliseconds, smoothed and of the last.
    pub rtt_ms: Option<f64>,
    pub last_rtt_ms: Option<f64>,
    /// Last sign that it restarted.
    pub restarted_unix_s: Option<u64>,
    /// Requests that left for it by this pool; responses from it, by class, and messages to it that came back, by any.
    pub requests: u64,
    pub responses: BTreeMap<String, u64>,
    pub undeliverable: u64,
    /// Calls that it carries or that ring there: a drain is done when there are none.
    pub calls: usize,
    /// Answers of it that stop Asterisk publishers for good (SPEC 6.5).
    pub publisher_stops: u64,
    /// Responses 5xx and 6xx, and what came back.
    pub errors: u64,
}

impl Router {
    /// All of the table in force, pool by pool; in each those last whose name has no address.
    pub fn backends(&self) -> Vec<Listed> {
        let pools = self.tables.current().load().pools.clone();
        let requests = self.exporter.backend_requests_now();
        let of_pool = |pool: &Pool, named: &Named<'_>| requests.get(&(pool.series, named.series)).copied();
        let mut listed = Vec::new();
        for pool in &pools.pools {
            for (at, backend) in pool.backends.iter().enumerate() {
                if usize::from(backend.spread.first) == at {
                    let entries = &pool.backends[at..at + usize::from(backend.spread.count)];
                    let addresses = entries.iter().map(|entry| entry.addr.to_string()).collect();
                    let named = Named::of(backend);
                    let requests = of_pool(pool, &named).unwrap_or(0);
                    listed.push(self.listed_backend(pool, &named, addresses, requests));
                }
            }
            for unresolved in &pool.unresolved {
                let named = Named::without(unresolved);
                let requests = of_pool(pool, &named).unwrap_or(0);
                let mut without = self.listed_backend(pool, &named, Vec::new(), requests);
                if without.state == State::Up {
                    without.state = State::Down;
                }
                without.why = "its name has no address".to_owned();
                listed.push(without);
            }
        }
        listed
    }

    fn listed_backend(
        &self,
        pool: &Pool,
        named: &Named<'_>,
        addresses: Vec<String>,
        requests: u64,
    ) -> Listed {
        let Named { state, admin, series, .. } = *named;
        let told = state.told();
        let responses = self.exporter.backend_responses_now(series);
        let undeliverable = state.signs.undeliverable();
        let millis = |rtt: Option<std::time::Duration>| rtt.map(|rtt| rtt.as_micros() as f64 / 1000.0);
        Listed {
            name: named.name.to_string(),
            pool: pool.name.to_string(),
            uri: named.uri.to_string(),
            addresses,
            transport: named.transport.label(),
            weight: named.weight,
            state: state.state(admin),
            health: state.health(),
            table: admin,
            mark: state.mark(),
            since_unix_s: told.since_unix_s,
            why: told.why,
            probed: pool.probe.is_some(),
            rtt_ms: millis(state.rtt()),
            last_rtt_ms: millis(state.last_rtt()),
            restarted_unix_s: Some(state.restarted_at()).filter(|at| *at > 0),
            requests,
            responses: (1..=6).zip(responses).map(|(class, n)| (format!("{class}xx"), n)).collect(),
            undeliverable,
            calls: state.calls(),
            publisher_stops: state.stops.load(Relaxed),
            errors: responses[4] + responses[5] + undeliverable,
        }
    }

    /// The operator's word for a backend of the table in force, in all its pools. `Active` is the table's own word where
    /// the table says so everywhere. False where there is no such backend.
    pub fn mark(&self, name: &str, mark: AdminState) -> bool {
        let pools = self.tables.current().load().pools.clone();
        let named: Vec<Named<'_>> = everything(&pools).filter(|named| **named.name == *name).collect();
        let Some(first) = named.first() else { return false };
        let active = mark == AdminState::Active && named.iter().all(|b| b.admin == AdminState::Active);
        let word = match mark {
            AdminState::Active => "activate",
            AdminState::Drain => "drain",
            AdminState::Off => "off",
        };
        let why = format!("operator: {word}");
        if first.state.set_mark(if active { None } else { Some(mark) }, &why, net::now()) {
            let state = first.state.state(first.admin);
            tracing::info!(backend = name, %why, "backend is {}", state.label());
        }
        // Whoever activates a backend wants to know whether it lives.
        first.state.signs.raise(Sign::Asked);
        true
    }

    /// Series of the backends, for a scrape: of all that the table has, those beyond the bound of series too, since whoever
    /// wakes at night must hear of any that is down.
    pub(super) fn backend_samples(&self) -> Vec<Sample> {
        let pools = self.tables.current().load().pools.clone();
        let mut seen = HashSet::new();
        let first = everything(&pools).filter(|named| seen.insert(named.name.clone()));
        let mut samples = Vec::new();
        for named in first {
            sample(&named, &mut samples);
        }
        samples
    }
}

/// What a backend with an address and one without have in common.
#[derive(Clone, Copy)]
struct Named<'p> {
    name: &'p Arc<str>,
    uri: &'p str,
    transport: Transport,
    weight: u32,
    series: u32,
    admin: AdminState,
    state: &'p Arc<BackendState>,
}

impl<'p> Named<'p> {
    fn of(backend: &'p Backend) -> Named<'p> {
        let Backend { name, uri, transport, weight, series, admin, state, .. } = backend;
        Named { name, uri, transport: *transport, weight: *weight, series: *series, admin: *admin, state }
    }

    fn without(unresolved: &'p Unresolved) -> Named<'p> {
        let Unresolved { name, uri, transport, weight, series, admin, state } = unresolved;
        Named { name, uri, transport: *transport, weight: *weight, series: *series, admin: *admin, state }
    }
}

/// An entry for each address of each backend, and for each backend that has none.
fn everything(pools: &Pools) -> impl Iterator<Item = Named<'_>> {
    let without = pools.pools.iter().flat_map(|pool| &pool.unresolved);
    pools.backends().map(|(_, backend)| Named::of(backend)).chain(without.map(Named::without))
}

fn sample(named: &Named<'_>, out: &mut Vec<Sample>) {
    let name = named.name;
    let of: &BackendState = named.state;
    let mut push = |metric, label: Option<&str>, value: f64| {
        let labels = std::iter::once(name.clone()).chain(label.map(Arc::from)).collect();
        out.push(Sample { metric, labels, value });
    };
    let (state, told) = (of.state(named.admin), of.told());
    for (each, entered) in State::ALL.into_iter().zip(told.entered) {
        push(&names::BACKEND_STATE, Some(each.label()), f64::from(u8::from(each == state)));
        push(&names::BACKEND_TRANSITIONS, Some(each.label()), entered as f64);
    }
    for (label, count) in PROBES.iter().zip(&of.counts.probes) {
        push(&names::BACKEND_PROBES, Some(label), count.load(Relaxed) as f64);
    }
    for (sign, count) in Noticed::ALL.into_iter().zip(&of.counts.noticed) {
        push(&names::BACKEND_NOTICED, Some(sign.label()), count.load(Relaxed) as f64);
    }
    push(&names::BACKEND_CALLS, None, of.calls() as f64);
    push(&names::BACKEND_UNDELIVERABLE, None, of.signs.undeliverable() as f64);
    for (metric, rtt) in [(&names::BACKEND_RTT, of.rtt()), (&names::BACKEND_LAST_RTT, of.last_rtt())] {
        if let Some(rtt) = rtt {
            push(metric, None, rtt.as_secs_f64());
        }
    }
}
