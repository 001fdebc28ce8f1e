//! Health of the backends (SPEC 8): one task that probes them, takes the signs that cores left, and gives the verdicts.
//!
//! It looks around every 50 ms: what is due is probed (at most `probes` of `[health]` at a time, spread by jitter), a sign
//! makes a backend due at once. `watch` is one backend, `judge` turns outcomes into verdicts, `probe` is one probe.
//! Verdicts go into the backend's `live::BackendState`, which workers read: no message, table or lock is between. One log
//! line for each change.

mod judge;
mod probe;
mod watch;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use self::{judge::Outcome, watch::Watch};
use super::Router;
use crate::{
    live::{Health, Now},
    net,
    route::Pools,
    stats::{ProcessCounter, ProcessGauge},
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// All backends of the table, watched.
struct Watcher {
    router: Arc<Router>,
    watches: HashMap<Arc<str>, Watch>,
    /// Those that `watches` were made from.
    pools: Option<Arc<Pools>>,
    probes: JoinSet<(Arc<str>, Outcome)>,
    /// Of this process, and the number of its last probe: what makes a probe's branch and tag its own.
    seed: u64,
    count: u64,
}

/// Never returns; ends with the runtime. `seed`: random.
pub async fn watch(router: Arc<Router>, seed: u64) {
    let mut watcher =
        Watcher { router, watches: HashMap::new(), pools: None, probes: JoinSet::new(), seed, count: 0 };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => watcher.look(net::now()),
            Some(done) = watcher.probes.join_next() => {
                // A panic in a probe is a bug; its backend is probed again in time.
                if let Ok((name, outcome)) = done {
                    watcher.probed(&name, outcome, net::now());
                }
            }
        }
        watcher.router.process.set(ProcessGauge::ProbesUnderWay, watcher.probes.len() as u64);
    }
}

impl Watcher {
    fn look(&mut self, now: Now) {
        self.sync(now);
        let health = &self.router.settings.health;
        let silence_ms = health.silence.as_millis() as u64;
        let mut due: Vec<(u64, Arc<str>)> = Vec::new();
        for (name, watch) in &mut self.watches {
            watch.notice(self.router.exporter.backend_times(watch.series), silence_ms, now);
            if watch.is_due(now) {
                due.push((watch.due_ms, name.clone()));
            }
        }
        // Who has waited longest goes first.
        due.sort_unstable();
        let room = health.probes.saturating_sub(self.probes.len());
        for (n, (_, name)) in due.into_iter().enumerate() {
            let Some(watch) = self.watches.get_mut(&name) else { continue };
            if n < room {
                self.count += 1;
                let id = format!("{:016x}{:08x}", self.seed, self.count);
                if let Some(target) = watch.start(now) {
                    let credentials = self.router.certificates().current().load_full();
                    self.probes.spawn(async move { (name, probe::run(&target, &credentials, &id).await) });
                }
            } else if watch.delay() {
                self.router.process.add(ProcessCounter::ProbesDelayed, 1);
            }
        }
    }

    fn probed(&mut self, name: &Arc<str>, outcome: Outcome, now: Now) {
        let longest_s = self.router.settings.health.longest_pause.as_secs() as u32;
        // Gone where its backend left the table meanwhile.
        if let Some(watch) = self.watches.get_mut(name) {
            watch.probed(outcome, longest_s, self.seed ^ self.count, now);
        }
    }

    /// Watches what the table in force names, and goes on with those that it has.
    fn sync(&mut self, now: Now) {
        let current = self.router.tables.current().load();
        if self.pools.as_ref().is_some_and(|pools| Arc::ptr_eq(pools, &current.pools)) {
            return;
        }
        let pools = current.pools.clone();
        drop(current);
        let mut watches: HashMap<Arc<str>, Watch> = HashMap::new();
        for (at, backend) in pools.backends() {
            let probe = pools.pool(at.pool).probe.as_ref();
            match watches.get_mut(&backend.name) {
                // In several pools: probed as the first of them that has probes says. Or another address of it.
                Some(watch) => watch.also(backend, probe),
                None => {
                    let watch = Watch::new(backend, probe, self.seed, now);
                    watches.insert(backend.name.clone(), watch);
                }
            }
        }
        for (name, watch) in &mut watches {
            if let Some(before) = self.watches.remove(name) {
                watch.go_on(before, now);
            }
            if !watch.is_probed() && watch.state.health() == Health::Down {
                watch.settle((Health::Up, "not probed any more".to_owned()), now);
            }
        }
        self.watches = watches;
        self.pools = Some(pools);
    }
}
