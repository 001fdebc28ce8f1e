//! Publishers that a backend stops for good, in the log (SPEC 6.5): an Asterisk that is answered 401, or 423 without
//! Min-Expires, publishes no more until it is reloaded, and nobody sees why.
//!
//! Cores count such answers with the backend; here, once a second, what is new is said, at most once a minute for each.

use std::{collections::HashMap, sync::atomic::Ordering::Relaxed};

use crate::{live::Now, route::Pools};

const QUIET_S: u64 = 60;

/// What was said of each backend, by name: how many answers, and when.
#[derive(Default)]
pub struct Said(HashMap<String, (u64, u64)>);

impl Said {
    pub fn look(&mut self, pools: &Pools, now: Now) {
        for (_, backend) in pools.backends() {
            let count = backend.state.stops.load(Relaxed);
            let (said, at) = self.0.get(&*backend.name).copied().unwrap_or_default();
            if count == said || (said > 0 && now.unix_s < at + QUIET_S) {
                continue;
            }
            tracing::warn!(
                backend = %backend.name,
                answers = count - said,
                "Asterisk publishers were answered 401, or 423 without Min-Expires: they stop for good, until they are reloaded"
            );
            self.0.insert(backend.name.to_string(), (count, now.unix_s));
        }
        // Names that left the table: their next count begins anew or goes on, either is told.
        if self.0.len() > pools.backends().count() {
            self.0.retain(|name, _| pools.backends().any(|(_, backend)| *backend.name == **name));
        }
    }
}
