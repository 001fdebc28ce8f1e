//! What `/metrics` emits is what `stats::names` declares, and each method of a core's counters moves its own series.

use std::{collections::BTreeSet, sync::Arc};

use tidings::{
    stats::{
        CoreStats, Counter, Exporter, Gauge, Kind, NamedBackend, Process, ProcessCounter, ProcessGauge,
        Sample, SeriesKind, SeriesRegistry,
        names::{self, Metric, MetricKind},
    },
    wire::{Method, Reason, Transport},
};

/// Series that the exporter is given by control (tests/metrics_live.rs sees control drive them).
const SAMPLED: [&str; 10] = [
    names::OVERLOAD_BEHIND_LIMIT.name,
    names::BACKEND_CALLS.name,
    names::CONNECTIONS.name,
    names::BACKEND_STATE.name,
    names::BACKEND_TRANSITIONS.name,
    names::BACKEND_RTT.name,
    names::BACKEND_LAST_RTT.name,
    names::BACKEND_PROBES.name,
    names::BACKEND_NOTICED.name,
    names::BACKEND_UNDELIVERABLE.name,
];

struct House {
    core: Arc<CoreStats>,
    process: Arc<Process>,
    exporter: Exporter,
}

fn house() -> House {
    let core = Arc::new(CoreStats::with_bound(8));
    let process = Arc::new(Process::default());
    let registry = Arc::new(SeriesRegistry::new(8));
    registry.series(SeriesKind::Rule, "lamps", Some("blf"));
    registry.series(SeriesKind::Pool, "presence", None);
    registry.series(SeriesKind::Backend, "pbx1", None);
    registry.series(SeriesKind::Package, "dialog", None);
    registry.commit(0);
    let exporter = Exporter::new(vec![core.clone()], registry, process.clone());
    House { core, process, exporter }
}

impl House {
    /// Drives everything once.
    fn drive(&self) {
        let core = &self.core;
        core.received(Kind::Request(Method::Subscribe), Transport::Udp);
        core.sent(Kind::Response(Method::Subscribe), Transport::Udp);
        core.refused(Reason::NoRule);
        core.rule(1);
        core.package(1, Method::Subscribe);
        core.backend_request(1, 1);
        core.backend_response(1, 2, 0);
        core.answered(404);
        core.key_used(3);
        core.latency(1_500, 2);
        core.loop_lag(40_000);
        for &counter in Counter::ALL {
            core.add(counter, 1);
        }
        for gauge in Gauge::ALL {
            core.set(gauge, 1);
        }
        for &gauge in ProcessGauge::ALL {
            self.process.set(gauge, 1);
        }
        for &counter in ProcessCounter::ALL {
            self.process.add(counter, 1);
        }
        self.process.set_table_source("table.toml");
        self.process.set_named(vec![NamedBackend { backend: "pbx1".into(), addresses: 2, age_s: Some(7) }]);
    }

    /// What control counts of backends and connections, each at 1.
    fn samples() -> Vec<Sample> {
        let sampled = names::ALL.iter().filter(|metric| SAMPLED.contains(&metric.name));
        let labels = |metric: &Metric| metric.labels.iter().map(|_| "pbx1".into()).collect();
        sampled.map(|metric| Sample { metric, labels: labels(metric), value: 1.0 }).collect()
    }

    fn value(&self, series: &str) -> Option<f64> {
        let text = self.exporter.render(&[]);
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }
}

/// The name and label names of a line, without what histograms add.
fn shape(line: &str) -> (String, BTreeSet<String>) {
    let name_end = line.find(['{', ' ']).expect("a series has a value");
    let mut name = line[..name_end].to_owned();
    for suffix in ["_bucket", "_sum", "_count"] {
        let base = name.strip_suffix(suffix).unwrap_or(&name);
        if names::ALL.iter().any(|m| m.name == base && m.kind == MetricKind::Histogram) {
            name = base.to_owned();
        }
    }
    let labels = match line[name_end..].strip_prefix('{') {
        Some(rest) => {
            let labels = &rest[..rest.rfind('}').expect("braces are closed")];
            labels.split("\",").filter_map(|label| label.split_once('=')).map(|(l, _)| l.to_owned()).collect()
        }
        None => BTreeSet::new(),
    };
    (name, labels.into_iter().filter(|label| label != "le").collect())
}

fn declared(name: &str) -> &'static Metric {
    names::ALL.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{name} is not declared"))
}

#[test]
fn the_list_of_names_is_what_is_emitted() {
    let house = house();
    house.drive();
    let text = house.exporter.render(&House::samples());
    let mut emitted = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, labels) = shape(line);
        let metric = declared(&name);
        let expected: BTreeSet<String> = metric.labels.iter().map(|label| label.to_string()).collect();
        assert_eq!(labels, expected, "labels of {name}");
        emitted.insert(metric.name);
    }
    let listed: BTreeSet<&str> = names::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(emitted, listed);
    for metric in names::ALL {
        let (name, kind, help) = (metric.name, metric.kind.label(), metric.help);
        assert_eq!(text.matches(&format!("# TYPE {name} {kind}\n")).count(), 1, "type of {name}");
        assert_eq!(text.matches(&format!("# HELP {name} {help}\n")).count(), 1, "help of {name}");
    }
}

#[test]
fn each_method_moves_its_own_series() {
    let house = house();
    let core = &house.core;
    let moves = |series: &str, by: f64, drive: &dyn Fn()| {
        let before = house.value(series).unwrap_or(0.0);
        drive();
        let after = house.value(series).unwrap_or_else(|| panic!("{series} is not there"));
        assert!((after - before - by).abs() < 1e-12, "{series}: {before} to {after}, not by {by}");
    };
    moves(
        r#"tidings_messages_total{direction="in",kind="request",method="SUBSCRIBE",transport="udp"}"#,
        1.0,
        &|| core.received(Kind::Request(Method::Subscribe), Transport::Udp),
    );
    moves(
        r#"tidings_messages_total{direction="out",kind="response",method="other",transport="wss"}"#,
        1.0,
        &|| core.sent(Kind::Response(Method::Other), Transport::Wss),
    );
    moves(r#"tidings_refused_total{cause="no_rule"}"#, 1.0, &|| core.refused(Reason::NoRule));
    moves(r#"tidings_rule_hits_total{rule="lamps",tag="blf"}"#, 1.0, &|| core.rule(1));
    moves(r#"tidings_rule_hits_total{rule="other",tag=""}"#, 1.0, &|| core.rule(0));
    moves(r#"tidings_package_requests_total{package="dialog",method="NOTIFY"}"#, 1.0, &|| {
        core.package(1, Method::Notify)
    });
    moves(r#"tidings_backend_requests_total{pool="presence",backend="pbx1"}"#, 1.0, &|| {
        core.backend_request(1, 1)
    });
    moves(r#"tidings_backend_responses_total{backend="pbx1",class="4xx"}"#, 1.0, &|| {
        core.backend_response(1, 4, 0)
    });
    moves(r#"tidings_answers_total{code="489"}"#, 1.0, &|| core.answered(489));
    moves(r#"tidings_token_key_used_total{key="15"}"#, 1.0, &|| core.key_used(15));
    moves("tidings_forward_seconds_count", 32.0, &|| core.latency(80_000, 32));
    moves(r#"tidings_forward_seconds_bucket{le="0.0001"}"#, 1.0, &|| core.latency(80_000, 1));
    moves("tidings_forward_seconds_sum", 0.00016, &|| core.latency(80_000, 2));
    moves("tidings_loop_lag_seconds_count", 1.0, &|| core.loop_lag(7));
    moves(r#"tidings_tokens_forged_total{type="rr"}"#, 2.0, &|| core.add(Counter::ForgedRoute, 2));
    moves("tidings_udp_kernel_drops_total", 9.0, &|| core.add(Counter::KernelDrops, 9));
    moves(r#"tidings_worker_table_version{worker="0"}"#, 4.0, &|| core.set(Gauge::TableVersion, 4));
    moves(r#"tidings_udp_receive_buffer_bytes{worker="0"}"#, 8e6, &|| {
        core.set(Gauge::ReceiveBuffer, 8_000_000)
    });
    moves("tidings_pins", 5.0, &|| core.set(Gauge::Pins, 5));
    moves("tidings_pins_limit", 6.0, &|| core.set(Gauge::PinsMax, 6));
    moves("tidings_table_failures_total", 1.0, &|| house.process.add(ProcessCounter::TableFailures, 1));
    moves(r#"tidings_dns_lookups_total{outcome="refused"}"#, 3.0, &|| {
        house.process.add(ProcessCounter::DnsRefused, 3)
    });
    moves(r#"tidings_backend_addresses{backend="pbx2"}"#, 4.0, &|| {
        house.process.set_named(vec![NamedBackend { backend: "pbx2".into(), addresses: 4, age_s: None }])
    });
    moves(r#"tidings_tokens_forged_total{type="etag"}"#, 1.0, &|| core.add(Counter::ForgedEtag, 1));
    moves(r#"tidings_publish_spared_total{kind="refresh"}"#, 1.0, &|| core.add(Counter::SparedRefreshes, 1));
    moves(r#"tidings_publisher_stops_total{cause="challenge"}"#, 1.0, &|| {
        core.add(Counter::PublisherChallenged, 1)
    });
    moves("tidings_calls_limit", 7.0, &|| house.process.set(ProcessGauge::CallsLimit, 7));
    moves("tidings_flows_limit", 7.0, &|| house.process.set(ProcessGauge::FlowsLimit, 7));
}

#[test]
fn every_counter_and_gauge_has_a_metric_of_its_kind_and_its_labels() {
    for &counter in Counter::ALL {
        assert_eq!(counter.metric().kind, MetricKind::Counter, "{counter:?}");
        assert_eq!(counter.metric().labels.len(), usize::from(counter.label().is_some()), "{counter:?}");
    }
    for &counter in ProcessCounter::ALL {
        assert_eq!(counter.metric().kind, MetricKind::Counter, "{counter:?}");
        assert_eq!(counter.metric().labels.len(), usize::from(counter.label().is_some()), "{counter:?}");
    }
    for &gauge in ProcessGauge::ALL {
        assert_eq!(gauge.metric().kind, MetricKind::Gauge, "{gauge:?}");
    }
}
