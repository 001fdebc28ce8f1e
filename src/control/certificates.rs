//! The certificates in use, and how they are replaced (SPEC 9.3): with each reload of the table, and when a file of theirs
//! has changed. The next handshake uses the new ones, no connection notices; a fault in any of them leaves the old in use.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    Router,
    tables::{Failure, Stamp},
};
use crate::{
    config::{
        Settings,
        tls::{self, Credentials},
    },
    net,
    stats::{Process, ProcessCounter, ProcessGauge},
};

/// Between two looks at the files.
const PERIOD: Duration = Duration::from_millis(500);

type Stamps = Vec<Option<Stamp>>;

pub struct Certificates {
    settings: Settings,
    process: Arc<Process>,
    current: Arc<ArcSwap<Credentials>>,
    files: Vec<PathBuf>,
    state: Mutex<State>,
}

struct State {
    /// Of the files as they were read last, good or bad.
    stamps: Stamps,
    /// What is wrong with them.
    fault: Option<Arc<Failure>>,
}

impl Certificates {
    /// Reads them for the first time.
    pub fn start(settings: &Settings, process: Arc<Process>) -> Result<Certificates, Failure> {
        let files = tls::files(settings);
        let certificates = Certificates {
            settings: settings.clone(),
            process,
            current: Arc::default(),
            state: Mutex::new(State { stamps: stamps(&files), fault: None }),
            files,
        };
        certificates.load()?;
        Ok(certificates)
    }

    /// What handshakes use.
    pub fn current(&self) -> &Arc<ArcSwap<Credentials>> {
        &self.current
    }

    /// Reads the files again, where any has changed since. May block.
    pub fn reload(&self) -> Result<(), Arc<Failure>> {
        // One at a time; stamps are taken before the files are read: a change in between is seen as a change.
        let mut state = self.state.lock();
        let now = stamps(&self.files);
        if now == state.stamps {
            return state.fault.clone().map_or(Ok(()), Err);
        }
        state.stamps = now;
        let outcome = self.load().map_err(Arc::new);
        state.fault = outcome.clone().err();
        if let Err(failure) = &outcome {
            self.process.add(ProcessCounter::CertificatesRefused, 1);
            for diagnostic in &failure.diagnostics {
                tracing::error!("{diagnostic}");
            }
            tracing::error!("{}", failure.message);
        }
        outcome
    }

    fn load(&self) -> Result<(), Failure> {
        if self.files.is_empty() {
            return Ok(());
        }
        let now = net::now().unix_s;
        let loaded = tls::load(&self.settings, now).map_err(|faults| {
            let mut failure = Failure::of(&self.settings.origin.file, now, faults);
            failure.message += ": certificates refused, those in use stay";
            failure
        })?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        self.current.store(Arc::new(loaded.credentials));
        self.process.add(ProcessCounter::CertificatesLoaded, 1);
        self.process.set(ProcessGauge::CertificateExpiry, loaded.until_s.unwrap_or(0));
        tracing::info!(files = self.files.len(), "certificates loaded");
        Ok(())
    }
}

fn stamps(files: &[PathBuf]) -> Stamps {
    files.iter().map(|file| Stamp::of(file)).collect()
}

/// Watches the files as `watch` does the table's. Never returns; ends with the runtime.
pub async fn watch(router: Arc<Router>) {
    let of = router.certificates().clone();
    if of.files.is_empty() {
        return;
    }
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = of.state.lock().stamps.clone();
    loop {
        period.tick().await;
        let now = stamps(&of.files);
        // A certificate and its key are written one after the other: once nothing moves they are read.
        let settled = now == last;
        last = now;
        if settled && last != of.state.lock().stamps {
            tracing::info!("files of certificates have changed");
            let of = of.clone();
            // What is wrong is logged, and the files are read again when they change again.
            let _ = tokio::task::spawn_blocking(move || of.reload()).await;
        }
    }
}
