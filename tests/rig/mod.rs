//! What integration tests share: the real binary and real peers as processes on loopback, raw UDP parties, and a plain
//! reading of messages and metrics.
//!
//! Everything is bounded: a wait has a deadline, and what it waited for is in the panic. Processes end by their own pid
//! when their guard is dropped, also when the test panics. Each test takes its own 127.x.y.0/24 and fixed ports below
//! 32768, so that tests may run side by side.

// Each test binary compiles this module for itself and uses its own part of it.
#![allow(dead_code)]

pub mod compositor;
pub mod dns;
pub mod http;
pub mod kamailio;
pub mod load;
pub mod message;
pub mod metrics;
pub mod party;
pub mod pki;
pub mod process;
pub mod registrar;
pub mod router;
pub mod scene;
pub mod sipp;
pub mod tcp;
pub mod text;
pub mod websocket;

#[allow(unused_imports)]
pub use self::{
    compositor::Compositor, kamailio::Kamailio, metrics::Metrics, party::Party, process::Process,
    router::Router, sipp::Scenario,
};

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// A directory of its own under the system's, removed when dropped unless the test panics.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(what: &str) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidings-{what}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("the temporary directory can be written");
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Asks `found` again and again until it gives something; panics with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
