//! Host names of backends, kept resolved (SPEC 5.4): looked up before a table comes into force, again when their records
//! expire, and again and again, ever more slowly, where that fails.
//!
//! One task on control's runtime drives it; `locate` is one resolution. A change of an answer is told to whoever waits
//! for `changed`, who compiles the pools anew (`Tables::repool`). Nothing here is near the path, and nothing waits for DNS
//! but the load of a table that brings new names, and that for `[dns] wait` at most. The last good answer stays in force
//! while the name cannot be resolved, or says that it has no record, for as long as a table has the name.

mod locate;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use self::locate::{Fault, Located, Locator};
use super::tasks;
use crate::{
    config::{Settings, Side, TableSpec, settings::Dns as DnsSettings, table::DnsName},
    live::{self, Resolved},
    net,
    stats::{Process, ProcessCounter, ProcessGauge},
};

/// Resolutions under way at one time.
const AT_ONCE: usize = 16;
/// First pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Refreshes are spread over this part of the time to live, up to `MOST_JITTER`.
const JITTER_PART: u32 = 10;
const MOST_JITTER: Duration = Duration::from_secs(5);
const FAR: Duration = Duration::from_secs(86_400);

/// The names of the tables, and what is known of each.
pub struct Names {
    settings: DnsSettings,
    listeners: Vec<SocketAddr>,
    v4: bool,
    v6: bool,
    data: Arc<live::Dns>,
    process: Arc<Process>,
    runtime: Handle,
    book: Mutex<Book>,
    /// Made anew with each table, so that a reload reads /etc/resolv.conf and /etc/hosts again.
    locator: Mutex<Result<Arc<Locator>, String>>,
    /// There is a new name.
    wake: Notify,
    /// A name has its first outcome.
    settled: Notify,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    names: BTreeMap<DnsName, Entry>,
    /// By the moment at which it is looked up next.
    queue: BTreeSet<(Instant, DnsName)>,
}

struct Entry {
    due: Instant,
    failures: u32,
    /// Has any outcome.
    settled: bool,
    answered_unix_s: Option<u64>,
    error: Option<String>,
}

/// One name, for the status.
#[derive(Clone, Debug, serde::Serialize)]
pub struct NameStatus {
    pub name: String,
    /// By the last good answer, the most wanted first.
    pub addresses: Vec<AddressStatus>,
    /// When that answer came.
    pub answered_unix_s: Option<u64>,
    /// Why the last resolution failed; none where it did not.
    pub error: Option<String>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct AddressStatus {
    pub address: SocketAddr,
    pub priority: u16,
    pub weight: u32,
    /// It refused a request a moment ago and is passed over.
    pub refuses: bool,
}

impl Names {
    /// Starts the task that keeps names resolved. `settings` with the addresses that were bound.
    pub fn start(
        settings: &Settings,
        data: Arc<live::Dns>,
        process: Arc<Process>,
        runtime: Handle,
    ) -> Arc<Names> {
        let outward: Vec<_> = settings.listen.iter().filter(|listen| listen.side != Side::Clients).collect();
        let names = Arc::new(Names {
            settings: settings.dns.clone(),
            listeners: settings.listen.iter().map(|listen| listen.address).collect(),
            v4: outward.iter().any(|listen| listen.address.is_ipv4()),
            v6: outward.iter().any(|listen| listen.address.is_ipv6()),
            data,
            process,
            runtime: runtime.clone(),
            book: Mutex::default(),
            locator: Mutex::new(Err("no table has asked yet".to_owned())),
            wake: Notify::new(),
            settled: Notify::new(),
            changed: Notify::new(),
        });
        tasks::keep(&runtime, &names.process, "names", &names, drive);
        names
    }

    /// Takes up the names of a table that is about to be compiled, and waits until each has been resolved or has failed
    /// once, for `[dns] wait` at most. Blocks: for threads that may.
    pub fn settle(&self, spec: &TableSpec) {
        let wanted = spec.names();
        if wanted.is_empty() {
            return;
        }
        *self.locator.lock() = self.locator().map(Arc::new);
        let now = Instant::now();
        {
            let mut book = self.book.lock();
            for &name in &wanted {
                book.take_up(name, now);
            }
        }
        self.wake.notify_one();
        let end = now + self.settings.wait;
        self.runtime.block_on(async {
            loop {
                let settled = self.settled.notified();
                tokio::pin!(settled);
                settled.as_mut().enable();
                if self.book.lock().is_settled(&wanted) || timeout_at(end, settled).await.is_err() {
                    return;
                }
            }
        });
        let missing: Vec<String> = wanted
            .iter()
            .filter(|name| self.data.answer(name).is_empty())
            .map(|name| name.to_string())
            .collect();
        if !missing.is_empty() {
            tracing::warn!(names = %missing.join(", "), "backends without an address: their names are not resolved yet");
        }
    }

    /// Forgets the names that the table in force does not have.
    pub fn keep(&self, spec: &TableSpec) {
        let wanted = spec.names();
        let mut book = self.book.lock();
        book.names.retain(|name, _| wanted.contains(name));
        book.queue.retain(|(_, name)| wanted.contains(name));
        drop(book);
        self.data.keep(&wanted);
    }

    /// Until an answer is another than before.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What was told by `changed` could not be acted on: tells it again.
    pub fn remind(&self) {
        self.changed.notify_one();
    }

    pub fn data(&self) -> &live::Dns {
        &self.data
    }

    /// Seconds since the last good answer; `None` where there was none yet.
    pub fn age_s(&self, name: &DnsName, unix_s: u64) -> Option<u64> {
        let answered = self.book.lock().names.get(name)?.answered_unix_s?;
        Some(unix_s.saturating_sub(answered))
    }

    /// All names, in order.
    pub fn status(&self) -> Vec<NameStatus> {
        let book = self.book.lock();
        let address = |resolved: &Resolved, transport| AddressStatus {
            address: resolved.addr,
            priority: resolved.priority,
            weight: resolved.weight,
            refuses: self.data.state(resolved.addr, transport).is_down(),
        };
        book.names
            .iter()
            .map(|(name, entry)| NameStatus {
                name: name.to_string(),
                addresses: self
                    .data
                    .answer(name)
                    .iter()
                    .map(|resolved| address(resolved, name.transport))
                    .collect(),
                answered_unix_s: entry.answered_unix_s,
                error: entry.error.clone(),
            })
            .collect()
    }

    /// Sets the gauges, for a scrape.
    pub fn publish(&self) {
        let book = self.book.lock();
        let without = book.names.keys().filter(|name| self.data.answer(name).is_empty()).count();
        self.process.set(ProcessGauge::DnsNames, book.names.len() as u64);
        self.process.set(ProcessGauge::DnsUnresolved, without as u64);
        self.process.set(ProcessGauge::AddressesRefusing, self.data.refusing() as u64);
    }

    fn locator(&self) -> Result<Locator, String> {
        let settings = &self.settings;
        let provider = TokioRuntimeProvider::default();
        let mut builder = if settings.servers.is_empty() {
            TokioResolver::builder(provider)
                .map_err(|error| format!("/etc/resolv.conf cannot be used: {error}"))?
        } else {
            let servers = settings.servers.iter().map(|server| name_server(*server)).collect();
            TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), provider)
        };
        let options = builder.options_mut();
        // Two servers are asked at once, and each twice, within the time of the whole.
        options.timeout = settings.timeout / 3;
        options.attempts = 1;
        // Time to live is ours to watch: an answer that is asked for again is asked for afresh.
        options.cache_size = 0;
        let _in_runtime = self.runtime.enter();
        Ok(Locator {
            resolver: builder.build().map_err(|error| format!("the resolver cannot be made: {error}"))?,
            timeout: settings.timeout,
            addresses: settings.addresses,
            v4: self.v4,
            v6: self.v6,
            prefixes: settings.prefixes.clone(),
            listeners: self.listeners.clone(),
        })
    }

    /// Starts what is due, as far as there is room; the moment of what comes next.
    fn launch(&self, running: &mut JoinSet<(DnsName, Result<Located, Fault>)>) -> Instant {
        let now = Instant::now();
        let mut book = self.book.lock();
        while running.len() < AT_ONCE {
            match book.queue.first() {
                Some((due, _)) if *due <= now => {}
                Some((due, _)) => return *due,
                None => return now + FAR,
            }
            let Some((_, name)) = book.queue.pop_first() else { break };
            // Should the resolution never end, it is begun again.
            book.plan(&name, now + self.settings.timeout * 4);
            let locator = self.locator.lock().clone();
            running.spawn(async move {
                let located = match locator {
                    Ok(locator) => locator.locate(&name).await,
                    Err(why) => Err(Fault::Failed(why)),
                };
                (name, located)
            });
        }
        now + FAR
    }

    /// Notes the outcome of a resolution.
    fn note(&self, name: &DnsName, located: Result<Located, Fault>) {
        let now = Instant::now();
        let outcome = match &located {
            Ok(_) => ProcessCounter::DnsAnswered,
            Err(Fault::Nothing) => ProcessCounter::DnsNothing,
            Err(Fault::Failed(_)) => ProcessCounter::DnsFailed,
            Err(Fault::Refused(_)) => ProcessCounter::DnsRefused,
        };
        self.process.add(outcome, 1);
        let mut book = self.book.lock();
        // It left its table meanwhile.
        let Some(entry) = book.names.get_mut(name) else { return };
        entry.settled = true;
        let due = match located {
            Ok(Located { addresses, ttl, dropped }) => {
                let text = list(&addresses);
                let changed = self.data.put(name, addresses);
                self.process.add(ProcessCounter::DnsDropped, dropped as u64);
                if changed && dropped > 0 {
                    tracing::warn!(%name, dropped, "has more addresses than are taken (addresses in [dns])");
                }
                if changed {
                    self.process.add(ProcessCounter::DnsChanges, 1);
                    tracing::info!(%name, addresses = %text, "resolved anew");
                    self.changed.notify_one();
                } else if entry.failures > 0 {
                    tracing::info!(%name, addresses = %text, "resolves again, as before");
                }
                (entry.failures, entry.error) = (0, None);
                entry.answered_unix_s = Some(net::now().unix_s);
                let ttl = ttl.clamp(self.settings.ttl_min, self.settings.ttl_max);
                now + ttl + jitter((ttl / JITTER_PART).min(MOST_JITTER))
            }
            Err(fault) => {
                let error = fault.to_string();
                if entry.error.as_ref() != Some(&error) {
                    let kept = list(&self.data.answer(name));
                    tracing::warn!(%name, %error, %kept, "cannot be resolved; what was known stays in force");
                }
                entry.error = Some(error);
                entry.failures = entry.failures.saturating_add(1);
                let pause = RETRY.saturating_mul(1 << (entry.failures - 1).min(16));
                let pause = pause.min(self.settings.retry_max);
                now + pause + jitter(pause / JITTER_PART)
            }
        };
        book.plan(name, due);
        drop(book);
        self.settled.notify_waiters();
    }
}

impl Book {
    fn take_up(&mut self, name: &DnsName, now: Instant) {
        if self.names.contains_key(name) {
            return;
        }
        let entry = Entry { due: now, failures: 0, settled: false, answered_unix_s: None, error: None };
        self.names.insert(name.clone(), entry);
        self.queue.insert((now, name.clone()));
    }

    /// The name is looked up next at `due`.
    fn plan(&mut self, name: &DnsName, due: Instant) {
        if let Some(entry) = self.names.get_mut(name) {
            self.queue.remove(&(entry.due, name.clone()));
            self.queue.insert((due, name.clone()));
            entry.due = due;
        }
    }

    fn is_settled(&self, wanted: &BTreeSet<&DnsName>) -> bool {
        wanted.iter().all(|name| self.names.get(*name).is_some_and(|entry| entry.settled))
    }
}

/// As long as the router runs.
async fn drive(names: Arc<Names>) {
    let mut running = JoinSet::new();
    loop {
        let next = names.launch(&mut running);
        tokio::select! {
            Some(ended) = running.join_next(), if !running.is_empty() => match ended {
                Ok((name, located)) => names.note(&name, located),
                Err(error) => tracing::error!(%error, "a resolution ended badly; it is begun again"),
            },
            () = sleep_until(next) => {}
            () = names.wake.notified() => {}
        }
    }
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|connection| connection.port = server.port());
    NameServerConfig::new(server.ip(), true, connections)
}

fn list(addresses: &[Resolved]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    addresses.iter().map(|resolved| resolved.addr.to_string()).collect::<Vec<_>>().join(", ")
}

/// Somewhere between nothing and `most`, so that names which came together are not asked for together for ever.
fn jitter(most: Duration) -> Duration {
    let part = getrandom::u32().unwrap_or(u32::MAX / 2);
    most.mul_f64(f64::from(part) / f64::from(u32::MAX))
}
