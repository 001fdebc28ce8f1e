//! What the demo tells: one line for each event as it happens, counts, and the time from PUBLISH to NOTIFY.

use std::{
    collections::VecDeque,
    fmt,
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Changes whose PUBLISH time is remembered.
const CHANGES: usize = 512;

/// What the peers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Subscriptions,
    Refreshes,
    Unsubscriptions,
    Timeouts,
    Notifies,
    Publications,
    PublishRefreshes,
    /// 412: published afresh.
    StaleTags,
    /// 423: asked again for longer.
    TooBrief,
    /// 489.
    BadEvents,
    /// What should not have happened.
    Failures,
}

pub struct Journal {
    /// Whether lines are printed; tests keep quiet.
    loud: bool,
    counts: [AtomicU64; Count::Failures as usize + 1],
    delays: Mutex<Delays>,
}

struct Delays {
    /// When each change was published.
    sent: VecDeque<(u64, Instant)>,
    /// Microseconds.
    histogram: Histogram<u64>,
}

impl Journal {
    pub fn new(loud: bool) -> Journal {
        // One microsecond to one minute, three digits.
        let histogram = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        Journal {
            loud,
            counts: Default::default(),
            delays: Mutex::new(Delays { sent: VecDeque::new(), histogram }),
        }
    }

    /// One line: `12:00:01.123  phone 2001   <- NOTIFY presence of 1001: open (via pbx2)`.
    pub fn say(&self, who: &str, what: fmt::Arguments<'_>) {
        if self.loud {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (s, ms) = (now.as_secs() % 86_400, now.subsec_millis());
            let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
            // A closed pipe (`tidings demo | head`) is no reason to stop.
            let _ = writeln!(std::io::stdout().lock(), "{h:02}:{m:02}:{s:02}.{ms:03}  {who:<11} {what}");
        }
    }

    /// As `say`, for what should not have happened.
    pub fn fail(&self, who: &str, what: fmt::Arguments<'_>) {
        self.count(Count::Failures);
        self.say(who, format_args!("FAILED: {what}"));
    }

    pub fn count(&self, what: Count) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn total(&self, what: Count) -> u64 {
        self.counts[what as usize].load(Ordering::Relaxed)
    }

    /// A PUBLISH with this change is about to be sent.
    pub fn published(&self, change: u64) {
        let mut delays = self.delays.lock();
        delays.sent.push_back((change, Instant::now()));
        if delays.sent.len() > CHANGES {
            delays.sent.pop_front();
        }
    }

    /// A NOTIFY caused by this change has arrived.
    pub fn notified(&self, change: u64) {
        let mut delays = self.delays.lock();
        if let Some((_, sent)) = delays.sent.iter().find(|(sent, _)| *sent == change) {
            let micros = sent.elapsed().as_micros() as u64;
            delays.histogram.saturating_record(micros);
        }
    }

    /// How many NOTIFYs were timed, and their delays at these quantiles in microseconds.
    pub fn delays<const N: usize>(&self, quantiles: [f64; N]) -> (u64, [u64; N]) {
        let delays = self.delays.lock();
        (delays.histogram.len(), quantiles.map(|q| delays.histogram.value_at_quantile(q)))
    }
}
