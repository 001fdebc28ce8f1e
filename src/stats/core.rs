//! One core's counters. Its worker is the only writer, so an increment is a relaxed load and a relaxed store (about a
//! nanosecond, no locked instruction); a scrape on another thread reads them as they stand.
//!
//! Everything has its place by number: no string, no look-up, no allocation after `new`. Numbers of series beyond the
//! bound count as `OTHER`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Counter, Gauge, Kind, OTHER};
use crate::wire::{Method, Reason, Transport};

/// Series that a core has room for where nobody says.
pub const DEFAULT_BOUND: usize = 1024;

/// Upper bounds of the latency buckets, in nanoseconds: 1 µs to 1 s.
pub const BUCKETS: [u64; 19] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
];

const TRANSPORTS: usize = Transport::ALL.len();
/// direction, kind, method, transport
const MESSAGES: usize = 2 * 2 * Method::COUNT * TRANSPORTS;
/// Status codes 100 to 699.
const CODES: usize = 600;
/// Classes of responses, 1 to 6.
const CLASSES: usize = 6;
/// Unused words on both ends of a slice, so that no other core's data share its cache lines (128 bytes: the prefetcher
/// takes lines by two).
const MARGIN: usize = 16;

/// A histogram with fixed buckets.
pub struct Histogram {
    /// Not cumulative; the last is beyond all bounds.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

/// One core's counters.
#[repr(align(128))]
pub struct CoreStats {
    bound: usize,
    counters: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    messages: [AtomicU64; MESSAGES],
    refused: [AtomicU64; Reason::ALL.len()],
    answers: [AtomicU64; CODES],
    keys: [AtomicU64; 16],
    latency: Histogram,
    lag: Histogram,
    rules: Cells,
    packages: Cells,
    responses: Cells,
    /// When a request last left for a backend, and when it last answered, in `Now::mono_ms`.
    asked: Cells,
    heard: Cells,
    pairs: Pairs,
}

impl Default for CoreStats {
    fn default() -> Self {
        CoreStats::new()
    }
}

impl CoreStats {
    /// Room for `DEFAULT_BOUND` series of each kind.
    pub fn new() -> CoreStats {
        CoreStats::with_bound(DEFAULT_BOUND)
    }

    /// Room for `bound` series of each kind: the registry's bound.
    pub fn with_bound(bound: usize) -> CoreStats {
        let bound = bound.max(1);
        CoreStats {
            bound,
            counters: zeros(),
            gauges: zeros(),
            messages: zeros(),
            refused: zeros(),
            answers: zeros(),
            keys: zeros(),
            latency: Histogram::new(),
            lag: Histogram::new(),
            rules: Cells::new(bound),
            packages: Cells::new(bound * Method::COUNT),
            responses: Cells::new(bound * CLASSES),
            asked: Cells::new(bound),
            heard: Cells::new(bound),
            pairs: Pairs::new(bound),
        }
    }

    #[inline]
    pub fn received(&self, kind: Kind, transport: Transport) {
        bump(&self.messages[message_cell(Direction::In, kind, transport)], 1);
    }

    #[inline]
    pub fn sent(&self, kind: Kind, transport: Transport) {
        bump(&self.messages[message_cell(Direction::Out, kind, transport)], 1);
    }

    /// A message that was refused or dropped.
    #[inline]
    pub fn refused(&self, reason: Reason) {
        bump(&self.refused[reason as usize], 1);
    }

    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        bump(&self.counters[counter as usize], n);
    }

    #[inline]
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Relaxed);
    }

    /// A request decided by this rule.
    #[inline]
    pub fn rule(&self, series: u32) {
        bump(self.rules.cell(self.within(series)), 1);
    }

    /// A request decided by the table, of this package.
    #[inline]
    pub fn package(&self, series: u32, method: Method) {
        bump(self.packages.cell(self.within(series) * Method::COUNT + method as usize), 1);
    }

    /// A request that left for this backend, by this pool.
    #[inline]
    pub fn backend_request(&self, pool: u32, backend: u32) {
        self.pairs.bump(self.within(pool) as u32, self.within(backend) as u32);
    }

    /// A request that wants an answer left for this backend at this time.
    #[inline]
    pub fn backend_asked(&self, backend: u32, mono_ms: u64) {
        self.asked.cell(self.within(backend)).store(mono_ms, Relaxed);
    }

    /// A response of class 1 to 6 from this backend, at this time.
    #[inline]
    pub fn backend_response(&self, backend: u32, class: u8, mono_ms: u64) {
        let class = usize::from(class.clamp(1, CLASSES as u8)) - 1;
        self.heard.cell(self.within(backend)).store(mono_ms, Relaxed);
        bump(self.responses.cell(self.within(backend) * CLASSES + class), 1);
    }

    /// A response of ours of this status code.
    #[inline]
    pub fn answered(&self, code: u16) {
        let at = usize::from(code.clamp(100, 699)) - 100;
        bump(&self.answers[at], 1);
    }

    /// A token verified under this key id (0-15).
    #[inline]
    pub fn key_used(&self, key_id: u8) {
        bump(&self.keys[usize::from(key_id & 15)], 1);
    }

    /// From the end of recvmmsg to the start of sendmmsg, for a batch of `n` messages.
    #[inline]
    pub fn latency(&self, nanos: u64, n: u64) {
        self.latency.record(nanos, n);
    }

    /// From the kernel's receive timestamp to our read.
    #[inline]
    pub fn loop_lag(&self, nanos: u64) {
        self.lag.record(nanos, 1);
    }

    fn within(&self, series: u32) -> usize {
        let series = series as usize;
        if series < self.bound { series } else { OTHER as usize }
    }
}

/// What the export and tests read.
impl CoreStats {
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Relaxed)
    }

    pub fn messages(&self, direction: Direction, kind: Kind, transport: Transport) -> u64 {
        self.messages[message_cell(direction, kind, transport)].load(Relaxed)
    }

    pub fn refusals(&self, reason: Reason) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }

    pub fn answers(&self, code: u16) -> u64 {
        usize::from(code).checked_sub(100).and_then(|at| self.answers.get(at)).map_or(0, |c| c.load(Relaxed))
    }

    pub fn key_uses(&self, key_id: u8) -> u64 {
        self.keys[usize::from(key_id & 15)].load(Relaxed)
    }

    pub fn rule_hits(&self, series: u32) -> u64 {
        self.rules.value(series as usize)
    }

    pub fn package_requests(&self, series: u32, method: Method) -> u64 {
        self.packages.value(series as usize * Method::COUNT + method as usize)
    }

    pub fn backend_responses(&self, series: u32, class: u8) -> u64 {
        self.responses.value(series as usize * CLASSES + usize::from(class) - 1)
    }

    /// When a request last left for this backend and when a response last came, in `Now::mono_ms`; 0: never. All
    /// backends beyond the bound share those of `OTHER`.
    pub fn backend_times(&self, series: u32) -> (u64, u64) {
        (self.asked.value(series as usize), self.heard.value(series as usize))
    }

    /// Each (pool, backend) that was counted, with its requests.
    pub fn backend_requests(&self) -> impl Iterator<Item = ((u32, u32), u64)> + '_ {
        self.pairs.iter()
    }

    pub(super) fn latency_histogram(&self) -> &Histogram {
        &self.latency
    }

    pub(super) fn lag_histogram(&self) -> &Histogram {
        &self.lag
    }
}

/// Which way a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::In, Direction::Out];

    pub const fn label(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }
}

impl Histogram {
    const fn new() -> Histogram {
        Histogram { counts: zeros(), nanos: AtomicU64::new(0) }
    }

    fn record(&self, nanos: u64, n: u64) {
        let at = BUCKETS.partition_point(|&bound| bound < nanos);
        bump(&self.counts[at], n);
        bump(&self.nanos, nanos.wrapping_mul(n));
    }

    /// Counts by bucket (not cumulative, the last beyond all bounds) and the sum in nanoseconds.
    pub(super) fn read(&self) -> ([u64; BUCKETS.len() + 1], u64) {
        (std::array::from_fn(|at| self.counts[at].load(Relaxed)), self.nanos.load(Relaxed))
    }
}

/// Only the core's own worker writes: no read-modify-write is needed.
#[inline]
fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

const fn zeros<const N: usize>() -> [AtomicU64; N] {
    [const { AtomicU64::new(0) }; N]
}

fn message_cell(direction: Direction, kind: Kind, transport: Transport) -> usize {
    let (kind, method) = match kind {
        Kind::Request(method) => (0, method),
        Kind::Response(method) => (1, method),
    };
    ((direction as usize * 2 + kind) * Method::COUNT + method as usize) * TRANSPORTS + transport as usize
}

/// Counters by number, with a margin on both ends.
struct Cells(Box<[AtomicU64]>);

impl Cells {
    fn new(len: usize) -> Cells {
        Cells((0..len + 2 * MARGIN).map(|_| AtomicU64::new(0)).collect())
    }

    fn cell(&self, at: usize) -> &AtomicU64 {
        &self.0[at + MARGIN]
    }

    fn value(&self, at: usize) -> u64 {
        self.0.get(at + MARGIN).map_or(0, |cell| cell.load(Relaxed))
    }
}

/// Counters by (pool, backend): few of the possible pairs exist, so they find their place by open addressing. A pair
/// keeps its place for good; what finds none counts as (`OTHER`, `OTHER`).
struct Pairs {
    keys: Cells,
    counts: Cells,
    mask: usize,
}

/// Set in every key, so that no key is zero, which means free.
const TAKEN: u64 = 1 << 63;
/// Places looked at before a pair counts as other.
const PROBES: usize = 16;

impl Pairs {
    fn new(bound: usize) -> Pairs {
        let len = (bound * 2).next_power_of_two().max(64);
        // One more, at `len`, for what finds no place.
        Pairs { keys: Cells::new(len), counts: Cells::new(len + 1), mask: len - 1 }
    }

    #[inline]
    fn bump(&self, pool: u32, backend: u32) {
        let key = TAKEN | u64::from(pool) << 32 | u64::from(backend);
        let start = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        for probe in 0..PROBES {
            let at = (start as usize + probe) & self.mask;
            let held = self.keys.cell(at).load(Relaxed);
            if held == key {
                return bump(self.counts.cell(at), 1);
            }
            if held == 0 {
                self.keys.cell(at).store(key, Relaxed);
                return bump(self.counts.cell(at), 1);
            }
        }
        bump(self.counts.cell(self.mask + 1), 1);
    }

    fn iter(&self) -> impl Iterator<Item = ((u32, u32), u64)> + '_ {
        let held = (0..=self.mask).filter_map(|at| match self.keys.value(at) {
            0 => None,
            key => {
                Some((((key & !TAKEN) >> 32) as u32, key as u32)).map(|pair| (pair, self.counts.value(at)))
            }
        });
        let rest = self.counts.value(self.mask + 1);
        held.chain((rest > 0).then_some(((OTHER, OTHER), rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_its_own_cell() {
        let mut seen = std::collections::BTreeSet::new();
        for direction in Direction::ALL {
            for method in Method::ALL {
                for transport in Transport::ALL {
                    for kind in [Kind::Request(method), Kind::Response(method)] {
                        assert!(seen.insert(message_cell(direction, kind, transport)));
                    }
                }
            }
        }
        assert_eq!(seen.len(), MESSAGES);
        assert_eq!(seen.last(), Some(&(MESSAGES - 1)));
    }

    #[test]
    fn what_is_beyond_a_bound_counts_as_other() {
        let stats = CoreStats::with_bound(4);
        stats.rule(3);
        stats.rule(4);
        stats.rule(u32::MAX);
        stats.package(9, Method::Other);
        stats.backend_response(9, 7, 5);
        stats.backend_response(3, 6, 7);
        stats.backend_asked(9, 4);
        assert_eq!((stats.backend_times(OTHER), stats.backend_times(3)), ((4, 5), (0, 7)));
        stats.backend_request(9, 2);
        stats.answered(0);
        stats.answered(1000);
        assert_eq!((stats.rule_hits(3), stats.rule_hits(OTHER)), (1, 2));
        assert_eq!(stats.package_requests(OTHER, Method::Other), 1);
        assert_eq!((stats.backend_responses(OTHER, 6), stats.backend_responses(3, 6)), (1, 1));
        assert_eq!(stats.backend_requests().collect::<Vec<_>>(), [((OTHER, 2), 1)]);
        assert_eq!((stats.answers(100), stats.answers(699)), (1, 1));
    }

    #[test]
    fn pairs_are_kept_apart_and_what_finds_no_place_is_other() {
        let stats = CoreStats::with_bound(1024);
        for _ in 0..3 {
            for backend in 1..1000 {
                stats.backend_request(backend % 7, backend);
            }
        }
        let mut seen: Vec<_> = stats.backend_requests().collect();
        seen.sort_by_key(|((_, backend), _)| *backend);
        assert_eq!(seen.len(), 999);
        assert!(seen.iter().zip(1..).all(|(&(pair, n), backend)| pair == (backend % 7, backend) && n == 3));

        let crowded = Pairs::new(1);
        for backend in 0..10_000 {
            crowded.bump(1, backend);
        }
        assert_eq!(crowded.iter().map(|(_, n)| n).sum::<u64>(), 10_000);
        assert!(crowded.iter().any(|(pair, n)| pair == (OTHER, OTHER) && n > 9000));
    }

    #[test]
    fn a_bucket_takes_its_upper_bound() {
        let stats = CoreStats::with_bound(1);
        stats.latency(1_000, 2);
        stats.latency(1_001, 3);
        stats.latency(u64::from(u32::MAX), 1);
        let (counts, nanos) = stats.latency_histogram().read();
        assert_eq!((counts[0], counts[1], counts[BUCKETS.len()]), (2, 3, 1));
        assert_eq!(nanos, 2_000 + 3_003 + u64::from(u32::MAX));
    }
}
