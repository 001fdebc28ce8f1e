//! What is known of a backend at run time, by name: it outlives the tables that mention it (SPEC 5.6).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// Run-time state of one backend. Health (SPEC 8) joins here.
#[derive(Debug, Default)]
pub struct BackendState {
    pub name: String,
    /// Requests sent to it since it was first seen in a table: relaxed, for the status of the API only.
    pub first_seen_unix_s: AtomicU64,
}

/// All backends ever seen in a table, by name.
#[derive(Debug, Default)]
pub struct Registry {
    states: Mutex<ahash::HashMap<String, Arc<BackendState>>>,
}

impl Registry {
    /// The state of the backend `name`; made at first sight.
    pub fn state(&self, name: &str, unix_s: u64) -> Arc<BackendState> {
        let mut states = self.states.lock();
        if let Some(state) = states.get(name) {
            return state.clone();
        }
        let state = Arc::new(BackendState { name: name.to_owned(), ..Default::default() });
        state.first_seen_unix_s.store(unix_s, Ordering::Relaxed);
        states.insert(name.to_owned(), state.clone());
        state
    }
}
