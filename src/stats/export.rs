//! `/metrics`: sums the cores and renders the text format of Prometheus.
//!
//! Each scrape fills a recorder of its own, so what is not set any more is not there any more: a series ends when its name
//! has left the registry, and nothing grows between scrapes. Histograms are written here from the cores' buckets: the
//! recorder would keep every single sample until the next scrape (`record_many` is a loop), and has no exact sum.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use parking_lot::Mutex;

use super::{
    CoreStats, Counter, Direction, Gauge, Kind, Process, ProcessCounter, ProcessGauge, SeriesKind,
    SeriesRegistry,
    core::{BUCKETS, Histogram},
    names::{self, Metric, MetricKind},
};
use crate::wire::{Method, Reason, Transport};

const METADATA: Metadata<'static> = Metadata::new("tidings", Level::INFO, None);

/// One series that is counted elsewhere.
pub struct Sample {
    pub metric: &'static Metric,
    /// In the order of the metric's.
    pub labels: Vec<Arc<str>>,
    pub value: f64,
}

/// Renders the numbers of all cores and of the process.
pub struct Exporter {
    cores: Vec<Arc<CoreStats>>,
    registry: Arc<SeriesRegistry>,
    process: Arc<Process>,
    /// What the counters of re-used numbers stood at when they were freed.
    spent: Mutex<Spent>,
}

/// Counts that belong to names which have ended.
#[derive(Default)]
struct Spent {
    rules: BTreeMap<u32, u64>,
    packages: BTreeMap<(u32, usize), u64>,
    responses: BTreeMap<(u32, u8), u64>,
    requests: BTreeMap<(u32, u32), u64>,
}

impl Exporter {
    pub fn new(cores: Vec<Arc<CoreStats>>, registry: Arc<SeriesRegistry>, process: Arc<Process>) -> Exporter {
        Exporter { cores, registry, process, spent: Mutex::default() }
    }

    /// Ends the series whose names left their table ten minutes ago; called now and then by control.
    pub fn sweep(&self, unix_s: u64) {
        let ended = self.registry.expire(unix_s);
        if ended.is_empty() {
            return;
        }
        let mut spent = self.spent.lock();
        let requests = self.backend_requests();
        for &(kind, number) in &ended {
            match kind {
                SeriesKind::Rule => {
                    spent.rules.insert(number, self.sum(|core| core.rule_hits(number)));
                }
                SeriesKind::Package => {
                    for method in Method::ALL {
                        let count = self.sum(|core| core.package_requests(number, method));
                        spent.packages.insert((number, method as usize), count);
                    }
                }
                SeriesKind::Backend => {
                    for class in 1..=6 {
                        let count = self.sum(|core| core.backend_responses(number, class));
                        spent.responses.insert((number, class), count);
                    }
                    let its = requests.iter().filter(|((_, backend), _)| *backend == number);
                    spent.requests.extend(its.map(|(&pair, &count)| (pair, count)));
                }
                SeriesKind::Pool => {
                    let its = requests.iter().filter(|((pool, _), _)| *pool == number);
                    spent.requests.extend(its.map(|(&pair, &count)| (pair, count)));
                }
            }
            self.registry.release(kind, number);
        }
    }

    /// When a request last left for a backend and when a response last came, by the latest of the cores.
    pub fn backend_times(&self, series: u32) -> (u64, u64) {
        let times = self.cores.iter().map(|core| core.backend_times(series));
        times.fold((0, 0), |(asked, heard), (a, h)| (asked.max(a), heard.max(h)))
    }

    /// The text of a scrape: metrics by name, series by their labels. `samples`: what others count.
    pub fn render(&self, samples: &[Sample]) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        for metric in names::ALL {
            let help = SharedString::const_str(metric.help);
            match metric.kind {
                MetricKind::Counter => recorder.describe_counter(metric.name.into(), None, help),
                MetricKind::Gauge => recorder.describe_gauge(metric.name.into(), None, help),
                MetricKind::Histogram => {}
            }
        }
        self.messages(&recorder);
        self.series(&recorder);
        self.scalars(&recorder);
        for Sample { metric, labels, value } in samples {
            let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
            let key = key(metric, &labels);
            match metric.kind {
                MetricKind::Counter => recorder.register_counter(&key, &METADATA).absolute(*value as u64),
                MetricKind::Gauge => recorder.register_gauge(&key, &METADATA).set(*value),
                MetricKind::Histogram => {}
            }
        }
        let mut text = sorted(&recorder.handle().render());
        self.histogram(&mut text, &names::FORWARD, CoreStats::latency_histogram);
        self.histogram(&mut text, &names::LOOP_LAG, CoreStats::lag_histogram);
        text
    }

    /// Messages, answers, refusals.
    fn messages(&self, recorder: &PrometheusRecorder) {
        for direction in Direction::ALL {
            for method in Method::ALL {
                for transport in Transport::ALL {
                    for kind in [Kind::Request(method), Kind::Response(method)] {
                        let count = self.sum(|core| core.messages(direction, kind, transport));
                        if count > 0 {
                            let labels =
                                [direction.label(), kind.label(), kind.method().label(), transport.label()];
                            counter(recorder, &names::MESSAGES, &labels, count);
                        }
                    }
                }
            }
        }
        for &reason in Reason::ALL {
            let count = self.sum(|core| core.refusals(reason));
            counter(recorder, &names::REFUSED, &[reason.label()], count);
        }
        for code in 100..700 {
            let count = self.sum(|core| core.answers(code));
            if count > 0 {
                counter(recorder, &names::ANSWERS, &[&code.to_string()], count);
            }
        }
        for key in 0..16 {
            let count = self.sum(|core| core.key_uses(key));
            if count > 0 {
                counter(recorder, &names::TOKEN_KEY_USED, &[&key.to_string()], count);
            }
        }
    }

    /// What has names of the table.
    fn series(&self, recorder: &PrometheusRecorder) {
        let spent = self.spent.lock();
        for (number, name, tag) in self.registry.list(SeriesKind::Rule) {
            let before = spent.rules.get(&number).copied().unwrap_or(0);
            let count = self.sum(|core| core.rule_hits(number)).wrapping_sub(before);
            counter(recorder, &names::RULE_HITS, &[&name, tag.as_deref().unwrap_or("")], count);
        }
        for (number, name, _) in self.registry.list(SeriesKind::Package) {
            for method in Method::ALL {
                let before = spent.packages.get(&(number, method as usize)).copied().unwrap_or(0);
                let count = self.sum(|core| core.package_requests(number, method)).wrapping_sub(before);
                if count > 0 {
                    counter(recorder, &names::PACKAGE_REQUESTS, &[&name, method.label()], count);
                }
            }
        }
        let backends: BTreeMap<u32, Arc<str>> = self.named(SeriesKind::Backend);
        for (&number, name) in &backends {
            for class in 1..=6u8 {
                let before = spent.responses.get(&(number, class)).copied().unwrap_or(0);
                let count = self.sum(|core| core.backend_responses(number, class)).wrapping_sub(before);
                if count > 0 {
                    counter(recorder, &names::BACKEND_RESPONSES, &[name, &format!("{class}xx")], count);
                }
            }
        }
        let pools = self.named(SeriesKind::Pool);
        for (pair, count) in self.backend_requests() {
            let count = count.wrapping_sub(spent.requests.get(&pair).copied().unwrap_or(0));
            if let (Some(pool), Some(backend), true) = (pools.get(&pair.0), backends.get(&pair.1), count > 0)
            {
                counter(recorder, &names::BACKEND_REQUESTS, &[pool, backend], count);
            }
        }
    }

    /// Counters and gauges with at most one label.
    fn scalars(&self, recorder: &PrometheusRecorder) {
        for &of in Counter::ALL {
            let labels: Vec<&str> = of.label().into_iter().collect();
            counter(recorder, of.metric(), &labels, self.sum(|core| core.counter(of)));
        }
        for &of in ProcessCounter::ALL {
            let labels: Vec<&str> = of.label().into_iter().collect();
            counter(recorder, of.metric(), &labels, self.process.counter(of));
        }
        for &of in ProcessGauge::ALL {
            gauge(recorder, of.metric(), &[], self.process.gauge(of));
        }
        for named in self.process.named() {
            gauge(recorder, &names::BACKEND_ADDRESSES, &[&named.backend], named.addresses);
            if let Some(age) = named.age_s {
                gauge(recorder, &names::BACKEND_NAME_AGE, &[&named.backend], age);
            }
        }
        gauge(recorder, &names::PINS, &[], self.sum(|core| core.gauge(Gauge::Pins)));
        gauge(recorder, &names::HANDSHAKES, &[], self.sum(|core| core.gauge(Gauge::Handshakes)));
        gauge(recorder, &names::PINS_LIMIT, &[], self.sum(|core| core.gauge(Gauge::PinsMax)));
        gauge(recorder, &names::GUARDED_SOURCES, &[], self.sum(|core| core.gauge(Gauge::Guarded)));
        gauge(recorder, &names::GUARDED_SOURCES_LIMIT, &[], self.sum(|core| core.gauge(Gauge::GuardedMax)));
        for (worker, core) in self.cores.iter().enumerate() {
            let worker = worker.to_string();
            gauge(recorder, &names::OVERLOADED, &[&worker], core.gauge(Gauge::Overloaded));
            gauge(recorder, &names::WORKER_TABLE_VERSION, &[&worker], core.gauge(Gauge::TableVersion));
            gauge(recorder, &names::RECEIVE_BUFFER, &[&worker], core.gauge(Gauge::ReceiveBuffer));
        }
        gauge(recorder, &names::TABLE_INFO, &[&self.process.table_source()], 1);
        gauge(recorder, &names::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
    }

    fn histogram(&self, text: &mut String, metric: &Metric, of: fn(&CoreStats) -> &Histogram) {
        let mut counts = [0u64; BUCKETS.len() + 1];
        let mut nanos = 0u64;
        for core in &self.cores {
            let (its, sum) = of(core).read();
            counts.iter_mut().zip(its).for_each(|(total, count)| *total = total.wrapping_add(count));
            nanos = nanos.wrapping_add(sum);
        }
        let name = metric.name;
        let mut total = 0u64;
        let mut lines = format!("\n# HELP {name} {}\n# TYPE {name} {}\n", metric.help, metric.kind.label());
        for (at, count) in counts.iter().enumerate() {
            total = total.wrapping_add(*count);
            let bound = BUCKETS.get(at).map_or("+Inf".to_owned(), |&nanos| seconds(nanos).to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let _ = write!(lines, "{name}_sum {}\n{name}_count {total}\n", seconds(nanos));
        text.push_str(&lines);
    }

    fn sum(&self, of: impl Fn(&CoreStats) -> u64) -> u64 {
        self.cores.iter().fold(0, |total, core| total.wrapping_add(of(core)))
    }

    /// Requests by (pool, backend), as `tidings_backend_requests_total` has them.
    pub fn backend_requests_now(&self) -> BTreeMap<(u32, u32), u64> {
        let spent = self.spent.lock();
        let mut requests = self.backend_requests();
        for (pair, count) in &mut requests {
            *count = count.wrapping_sub(spent.requests.get(pair).copied().unwrap_or(0));
        }
        requests
    }

    /// Responses of a backend, by class from 1xx on.
    pub fn backend_responses_now(&self, series: u32) -> [u64; 6] {
        let spent = self.spent.lock();
        std::array::from_fn(|at| {
            let class = at as u8 + 1;
            let before = spent.responses.get(&(series, class)).copied().unwrap_or(0);
            self.sum(|core| core.backend_responses(series, class)).wrapping_sub(before)
        })
    }

    fn named(&self, kind: SeriesKind) -> BTreeMap<u32, Arc<str>> {
        self.registry.list(kind).into_iter().map(|(number, name, _)| (number, name)).collect()
    }

    fn backend_requests(&self) -> BTreeMap<(u32, u32), u64> {
        let mut sums = BTreeMap::new();
        for (pair, count) in self.cores.iter().flat_map(|core| core.backend_requests()) {
            *sums.entry(pair).or_insert(0u64) += count;
        }
        sums
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn counter(recorder: &PrometheusRecorder, metric: &Metric, values: &[&str], count: u64) {
    recorder.register_counter(&key(metric, values), &METADATA).absolute(count);
}

fn gauge(recorder: &PrometheusRecorder, metric: &Metric, values: &[&str], value: u64) {
    recorder.register_gauge(&key(metric, values), &METADATA).set(value as f64);
}

/// The recorder takes a lone backslash for one that escapes what follows, and drops it: doubled ones it escapes rightly.
fn key(metric: &Metric, values: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let label = |(&name, value): (&&'static str, &&str)| Label::new(name, value.replace('\\', r"\\"));
    Key::from_parts(metric.name, metric.labels.iter().zip(values).map(label).collect::<Vec<_>>())
}

/// The recorder's maps have no order: blocks by name, series within them by label, so that two scrapes can be compared.
fn sorted(text: &str) -> String {
    let mut blocks: Vec<Vec<&str>> = text
        .split("\n\n")
        .map(|block| block.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>())
        .filter(|block| !block.is_empty())
        .collect();
    for block in &mut blocks {
        // `#` sorts before letters: HELP, TYPE, then the series.
        block.sort_unstable();
    }
    blocks.sort_unstable_by_key(|block| block.last().copied());
    let blocks: Vec<String> = blocks.iter().map(|block| block.join("\n") + "\n").collect();
    blocks.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::LINGER;

    fn exporter(cores: usize) -> (Exporter, Vec<Arc<CoreStats>>, Arc<SeriesRegistry>) {
        let cores: Vec<_> = (0..cores).map(|_| Arc::new(CoreStats::with_bound(8))).collect();
        let registry = Arc::new(SeriesRegistry::new(8));
        (Exporter::new(cores.clone(), registry.clone(), Arc::default()), cores, registry)
    }

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn cores_are_summed() {
        let (exporter, cores, _) = exporter(2);
        cores[0].received(Kind::Request(Method::Notify), Transport::Udp);
        cores[1].received(Kind::Request(Method::Notify), Transport::Udp);
        cores[0].set(Gauge::Pins, 3);
        cores[1].set(Gauge::Pins, 4);
        cores[1].latency(2_000, 5);
        let text = exporter.render(&[]);
        let messages =
            r#"tidings_messages_total{direction="in",kind="request",method="NOTIFY",transport="udp"}"#;
        assert_eq!(value(&text, messages), Some(2.0));
        assert_eq!(value(&text, "tidings_pins"), Some(7.0));
        assert_eq!(value(&text, r#"tidings_forward_seconds_bucket{le="0.000001"}"#), Some(0.0));
        assert_eq!(value(&text, r#"tidings_forward_seconds_bucket{le="0.0000025"}"#), Some(5.0));
        assert_eq!(value(&text, r#"tidings_forward_seconds_bucket{le="+Inf"}"#), Some(5.0));
        assert_eq!(value(&text, "tidings_forward_seconds_sum"), Some(0.00001));
        assert_eq!(value(&text, "tidings_forward_seconds_count"), Some(5.0));
        assert_eq!(text, exporter.render(&[]), "two scrapes of the same numbers are the same text");
    }

    #[test]
    fn a_number_that_serves_another_name_starts_at_zero() {
        let (exporter, cores, registry) = exporter(2);
        for kind in SeriesKind::ALL {
            assert_eq!(registry.series(kind, "old", None), 1);
        }
        registry.commit(0);
        let count = |core: &CoreStats| {
            core.rule(1);
            core.package(1, Method::Subscribe);
            core.backend_request(1, 1);
            core.backend_response(1, 2, 0);
        };
        for core in cores.iter().chain(&cores) {
            count(core);
        }
        assert_eq!(value(&exporter.render(&[]), r#"tidings_rule_hits_total{rule="old",tag=""}"#), Some(4.0));

        registry.commit(100);
        exporter.sweep(100 + LINGER - 1);
        assert!(exporter.render(&[]).contains(r#""old""#), "ten minutes have not passed");
        exporter.sweep(100 + LINGER);
        assert!(!exporter.render(&[]).contains(r#""old""#));

        for kind in SeriesKind::ALL {
            assert_eq!(registry.series(kind, "new", None), 1);
        }
        registry.commit(1000);
        count(&cores[1]);
        let text = exporter.render(&[]);
        assert_eq!(value(&text, r#"tidings_rule_hits_total{rule="new",tag=""}"#), Some(1.0));
        let series = [
            r#"tidings_package_requests_total{package="new",method="SUBSCRIBE"}"#,
            r#"tidings_backend_requests_total{pool="new",backend="new"}"#,
            r#"tidings_backend_responses_total{backend="new",class="2xx"}"#,
        ];
        for series in series {
            assert_eq!(value(&text, series), Some(1.0), "{series} in\n{text}");
        }
    }

    #[test]
    fn names_from_the_table_are_escaped() {
        let (exporter, _, registry) = exporter(1);
        registry.series(SeriesKind::Rule, "a \"quoted\\\" name\nof two lines", None);
        let text = exporter.render(&[]);
        assert!(text.contains(r#"rule="a \"quoted\\\" name\nof two lines""#), "{text}");
    }
}
