//! Beside the path, on tokio: start and stop of the router, its tables, its state directory, the once-a-second chores.
//!
//! `start` makes everything in the order in which it can fail: keys and boot id, sockets, the table, then the workers.
//! `cli::run` and `cli::demo` drive it; `admin` serves what `Router` shows. Nothing here touches a message.

pub mod backends;
pub mod bans;
mod certificates;
pub mod connections;
mod flow_events;
mod health;
mod keepalive;
pub mod names;
pub mod own;
mod publishers;
pub mod state_dir;
pub mod tables;
mod tasks;
mod watch;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mio::net::TcpListener;
use parking_lot::Mutex;
use tokio::runtime::Handle;

pub use self::tables::{Failure, Loaded, Refusal, Status, TableSource, Tables};
use self::{
    certificates::Certificates,
    names::Names,
    state_dir::{Kept, StateDir},
    tables::Ground,
};
use crate::{
    config::{ListenSpec, Settings, table::DnsName},
    forward::{Core, Setup, Shared},
    live::{Dns, Now, Registry, SourceLimits, Sources},
    net::{self, inbox::Inbox, streams, tcp, udp},
    stats::{CoreStats, Exporter, NamedBackend, Process, ProcessGauge, SeriesRegistry},
    wire::token::Ring,
    worker::{self, Launch, Links, Patience, Worker},
};

/// A worker that has not turned for so long is stuck (a healthy one does each second).
const STUCK_MS: u64 = 10_000;

/// Why the router did not start, for the person who starts it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("state directory: {}: {error}", path.display())]
    State { path: PathBuf, error: io::Error },
    #[error("key file {}: {error}", path.display())]
    KeyFile { path: PathBuf, error: io::Error },
    #[error("key file {} has mode {mode:04o}: others could read it; chmod 600 it", path.display())]
    KeyMode { path: PathBuf, mode: u32 },
    /// A table or a key file with all its faults.
    #[error("{0}")]
    Refused(Failure),
    #[error("no random numbers from the system: {0}")]
    Random(String),
    #[error("listener \"{name}\": {error}")]
    Listen { name: String, error: io::Error },
    #[error(
        "[connections] most = {wanted} needs {needed} open files, the system grants {granted}: raise the hard limit \
         (LimitNOFILE= in the unit, ulimit -Hn) or lower most"
    )]
    Files { wanted: usize, needed: u64, granted: u64 },
    #[error("flow events that wait in the state directory cannot be read: {error}")]
    Spool { error: io::Error },
    #[error("worker {index} cannot start: {error}")]
    Worker { index: usize, error: io::Error },
    #[error("control cannot start: {0}")]
    Runtime(io::Error),
}

/// A router at work, as control and admin see it.
pub struct Router {
    settings: Settings,
    setup: Arc<Setup>,
    shared: Arc<Shared>,
    sources: Arc<Sources>,
    tables: Arc<Tables>,
    certificates: Arc<Certificates>,
    exporter: Exporter,
    process: Arc<Process>,
    /// Requests of our own.
    own: own::Own,
    flow_events: flow_events::FlowEvents,
    workers: Mutex<Vec<Worker>>,
    ready: AtomicBool,
}

/// A router that was started; ends with `stop`.
pub struct Running {
    router: Arc<Router>,
    runtime: tokio::runtime::Runtime,
}

/// Starts the router: when this returns it takes messages.
pub fn start(mut settings: Settings, source: TableSource) -> Result<Running, StartError> {
    let now = net::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let state_dir = StateDir::of(&settings)?;
    let ring = Ring::new(&keys(&settings, state_dir.as_ref())?);
    let boot = match &state_dir {
        Some(dir) => dir.next_boot()?,
        None => u16::from_le_bytes(state_dir::random()?),
    };
    let count = settings.workers.count.max(1);
    let mut bound = bind(&mut settings, count)?;
    let (files, most) = open_files(&settings)?;
    let series = Arc::new(SeriesRegistry::new(settings.limits.series));
    let process = Arc::new(Process::default());
    let certificates = Certificates::start(&settings, process.clone()).map_err(StartError::Refused)?;
    let certificates = Arc::new(certificates);
    let flow_events = flow_events::FlowEvents::new(&settings, &process, state_dir.as_ref())?;
    let registry = Registry::default();
    if let Some(dir) = &state_dir {
        registry.remember(dir.restarts()?);
    }
    let ground = Ground {
        settings: settings.clone(),
        registry,
        series: series.clone(),
        process: process.clone(),
        names: Names::start(&settings, Arc::new(Dns::default()), process.clone(), runtime.handle().clone()),
    };
    let tables = Arc::new(Tables::new(ground, source).map_err(StartError::Refused)?);
    let setup = Arc::new(Setup::new(&settings, ring, boot, now));
    let shared = Arc::new(Shared::new(&settings));
    if let Some(dir) = &state_dir {
        shared.bans.restore(dir.bans()?, now.unix_s);
    }
    let stats: Vec<_> = (0..count).map(|_| Arc::new(CoreStats::with_bound(series.bound()))).collect();
    let sources = Arc::new(Sources::new(source_limits(&settings, most)));
    let inboxes: Arc<[Inbox]> = (0..count).map(|_| Inbox::default()).collect();
    let secure: Arc<[bool]> = settings.listen.iter().map(|listen| listen.transport.is_secure()).collect();
    let entrance = |listen: &ListenSpec| streams::Entrance {
        websocket: listen.websocket.clone(),
        proxies: listen.proxies.clone(),
    };
    let entrances: Arc<[streams::Entrance]> = settings.listen.iter().map(entrance).collect();
    let addresses: Vec<_> = settings.listen.iter().map(|listen| listen.address).collect();
    let mut workers = Vec::with_capacity(count);
    for (index, stats) in stats.iter().enumerate() {
        let launch = Launch {
            index,
            pin: settings.workers.pin,
            sockets: take_each(&mut bound.datagrams),
            links: (!bound.streams.is_empty()).then(|| Links {
                listeners: take_each(&mut bound.streams),
                addresses: addresses.clone(),
                ground: streams::Ground {
                    router: setup.router,
                    boot,
                    core: index as u8,
                    limits: stream_limits(&settings, count),
                    wire: settings.limits.wire,
                    all: shared.connections.clone(),
                    sources: sources.clone(),
                    stats: stats.clone(),
                    secure: secure.clone(),
                    entrances: entrances.clone(),
                    credentials: certificates.current().clone(),
                },
            }),
            inboxes: inboxes.clone(),
            patience: patience(&settings),
            core: Core::new(setup.clone(), shared.clone(), stats.clone()),
            table: tables.current().clone(),
            stats: stats.clone(),
        };
        workers.push(worker::spawn(launch).map_err(|error| StartError::Worker { index, error })?);
    }
    let exporter = Exporter::new(stats, series, process.clone());
    let seed = u64::from_le_bytes(state_dir::random()?);
    let own = own::Own::new(&settings, setup.clone(), inboxes, process.clone(), seed);
    let router = Router {
        settings,
        setup,
        shared,
        sources,
        tables,
        certificates,
        exporter,
        process,
        own,
        flow_events,
        workers: Mutex::new(workers),
        ready: AtomicBool::new(true),
    };
    router.publish_limits(now, files);
    let router = Arc::new(router);
    let seed = u64::from_le_bytes(state_dir::random()?);
    keep_tasks(&router, runtime.handle(), state_dir, seed);
    Ok(Running { router, runtime })
}

/// Starts what runs as long as the router.
fn keep_tasks(router: &Arc<Router>, runtime: &Handle, state_dir: Option<StateDir>, mut seed: u64) {
    let process = &router.process;
    let dir = state_dir.clone();
    tasks::keep(runtime, process, "bans", router, move |router| bans::watch(router, dir.clone()));
    tasks::keep(runtime, process, "nftables", router, bans::mirror::watch);
    tasks::keep(runtime, process, "chores", router, move |router| chores(router, state_dir.clone()));
    tasks::keep(runtime, process, "flow events", router, flow_events::watch);
    tasks::keep(runtime, process, "webhook", router, flow_events::deliver);
    tasks::keep(runtime, process, "keep-alives", router, keepalive::watch);
    tasks::keep(runtime, process, "the table's file", router, watch::watch);
    tasks::keep(runtime, process, "certificates", router, certificates::watch);
    tasks::keep(runtime, process, "health", router, move |router| {
        // Probes of another life have other tags.
        seed = seed.wrapping_add(1);
        health::watch(router, seed)
    });
    tasks::keep(runtime, process, "new addresses", router, follow_names);
}

impl Running {
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Where control's tasks run, and admin's.
    pub fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Readiness off first; then each worker finishes what its sockets have queued, and ends.
    pub fn stop(self) {
        self.router.ready.store(false, Ordering::Release);
        let workers = std::mem::take(&mut *self.router.workers.lock());
        std::thread::scope(|scope| {
            for worker in workers {
                scope.spawn(move || worker.stop());
            }
        });
        self.router.flow_events.finish(&self.router);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Router {
    /// With the addresses that were really bound.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn setup(&self) -> &Arc<Setup> {
        &self.setup
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The addresses of the listeners, in the settings' order.
    pub fn listeners(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.settings.listen.iter().map(|listen| listen.address)
    }

    fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Reads the table's file again, and the certificates. A fault of one does not hold the other up.
    pub async fn reload(&self) -> Result<Loaded, Refusal> {
        let certificates = self.reload_certificates().await;
        let table = self.take_up(self.tables.reload().await);
        certificates.and(table)
    }

    /// Takes a table that came from `name`, and reads the certificates again.
    pub async fn put(&self, name: &str, text: String) -> Result<Loaded, Refusal> {
        // What is wrong with them is logged: it is no fault of this table.
        let _ = self.reload_certificates().await;
        self.take_up(self.tables.put(name, text).await)
    }

    async fn reload_certificates(&self) -> Result<(), Refusal> {
        let of = self.certificates.clone();
        // A panic in it is a bug, and leaves them as they are.
        tokio::task::spawn_blocking(move || of.reload()).await.unwrap_or(Ok(())).map_err(Refusal::Failed)
    }

    pub async fn rollback(&self) -> Result<Loaded, Refusal> {
        self.take_up(self.tables.rollback().await)
    }

    /// Idle workers would see a new table with their next tick only.
    fn take_up(&self, outcome: Result<Loaded, Refusal>) -> Result<Loaded, Refusal> {
        if outcome.is_ok() {
            self.workers.lock().iter().for_each(Worker::wake);
        }
        outcome
    }

    /// Why it is not ready for traffic; `None` from the first turn of the workers until the stop begins, while all of
    /// them turn and any backend takes requests (SPEC 8.3).
    pub fn unready(&self) -> Option<&'static str> {
        if !self.ready.load(Ordering::Acquire) {
            Some("it stops")
        } else if self.stuck(net::now()).is_some() {
            Some("a worker does not turn")
        } else if self.tables.current().load().pools.all_down() {
            Some("no backend takes requests")
        } else {
            None
        }
    }

    pub fn is_ready(&self) -> bool {
        self.unready().is_none()
    }

    /// A worker that has not turned for ten seconds.
    pub fn stuck(&self, now: Now) -> Option<usize> {
        let workers = self.workers.lock();
        workers.iter().position(|worker| {
            let turned = worker.turned_ms();
            turned > 0 && now.mono_ms > turned + STUCK_MS
        })
    }

    /// The text of a scrape.
    pub fn metrics(&self) -> String {
        let process = &self.process;
        process.set(ProcessGauge::Flows, self.shared.flows.len() as u64);
        process.set(ProcessGauge::MovedFlows, self.shared.moved.len() as u64);
        process.set(ProcessGauge::UnreachableFlows, self.shared.unreachable.closed() as u64);
        let (series, beyond) = self.tables.series().used();
        process.set(ProcessGauge::Series, series as u64);
        process.set(ProcessGauge::SeriesBeyond, beyond as u64);
        process.set(ProcessGauge::Users, self.shared.users.len() as u64);
        process.set(ProcessGauge::Calls, self.shared.calls.len() as u64);
        process.set(ProcessGauge::Ready, self.is_ready().into());
        self.tables.names().publish();
        process.set_named(self.named_backends());
        process.set(ProcessGauge::Bans, self.shared.bans.len() as u64);
        process.set(ProcessGauge::ConnectionSources, self.sources.len() as u64);
        let mut samples = self.backend_samples();
        samples.append(&mut self.connection_samples());
        samples.push(self.patience_sample());
        self.exporter.render(&samples)
    }

    /// Backends by host name, as metrics show them: each once, and no more than there are series.
    fn named_backends(&self) -> Vec<NamedBackend> {
        let names = self.tables.names();
        let now = net::now().unix_s;
        let spec = self.tables.spec();
        let table = self.tables.current().load_full();
        let entries = table.pools.backends();
        let counts: BTreeMap<&str, u64> =
            entries.map(|(_, backend)| (&*backend.name, backend.spread.count.into())).collect();
        let backends = spec.pools.iter().flat_map(|pool| &pool.backends);
        let named: BTreeMap<&str, &DnsName> =
            backends.filter_map(|backend| Some((backend.name.as_str(), backend.addr.name()?))).collect();
        named
            .into_iter()
            .take(self.settings.limits.series)
            .map(|(backend, name)| NamedBackend {
                backend: backend.into(),
                addresses: counts.get(backend).copied().unwrap_or(0),
                age_s: names.age_s(name, now),
            })
            .collect()
    }

    fn publish_limits(&self, start: Now, files: u64) {
        let limits = &self.settings.limits;
        let gauges = [
            (ProcessGauge::FlowsLimit, limits.flows),
            (ProcessGauge::MovedFlowsLimit, limits.moved_flows),
            (ProcessGauge::UnreachableFlowsLimit, limits.unreachable),
            (ProcessGauge::UsersLimit, limits.users),
            (ProcessGauge::UsersEachLimit, limits.users_per_connection),
            (ProcessGauge::NewsLimit, limits.news),
            (ProcessGauge::CallsLimit, self.shared.calls.capacity()),
            (ProcessGauge::ConnectionsLimit, self.sources.limits().most),
            (ProcessGauge::PerAddressLimit, self.sources.limits().per_address as usize),
            (ProcessGauge::PerPrefixLimit, self.sources.limits().per_prefix as usize),
            (
                ProcessGauge::ConnectionKeepalivesLimit,
                self.settings.connections.keepalives_per_second as usize,
            ),
            (ProcessGauge::AcceptsLimit, self.sources.limits().accepts_per_second as usize),
            (ProcessGauge::HandshakesLimit, self.settings.connections.handshakes),
            (ProcessGauge::DeniedPrefixes, self.settings.protection.deny.len()),
            (ProcessGauge::BansLimit, self.settings.protection.bans),
            (ProcessGauge::NewDialogsLimit, self.settings.protection.new_dialogs as usize),
            (ProcessGauge::MalformedLimit, self.settings.protection.malformed as usize),
            (ProcessGauge::OutputLimit, self.settings.connections.output),
            (ProcessGauge::OpenFilesLimit, usize::try_from(files).unwrap_or(usize::MAX)),
            (ProcessGauge::LimitMessage, limits.wire.message),
            (ProcessGauge::LimitHeaderLines, limits.wire.header_lines),
            (ProcessGauge::LimitStartLine, limits.wire.start_line),
            (ProcessGauge::DepartedLimit, limits.departed),
            (ProcessGauge::DnsAddressesLimit, self.settings.dns.addresses),
            (ProcessGauge::SeriesLimit, limits.series),
            (ProcessGauge::Workers, self.settings.workers.count),
            (ProcessGauge::ProbesLimit, self.settings.health.probes),
            (ProcessGauge::AdminConnectionsLimit, self.settings.admin.connections),
        ];
        for (gauge, value) in gauges {
            self.process.set(gauge, value as u64);
        }
        self.process.set(ProcessGauge::StartTime, start.unix_s);
    }
}

/// The ring of the settings, of the key file, or of the state directory; without any, one that ends with the process.
fn keys(settings: &Settings, state_dir: Option<&StateDir>) -> Result<state_dir::Keys, StartError> {
    if !settings.tokens.keys.is_empty() {
        return Ok(settings.tokens.keys.clone());
    }
    if let Some(path) = &settings.tokens.key_file {
        return state_dir::read_keys(path);
    }
    match state_dir {
        Some(dir) => dir.own_keys(),
        None => {
            tracing::warn!(
                "no state_dir and no token keys: dialogs do not outlive a restart of this router (state_dir in tidings.toml)"
            );
            Ok(vec![(0, state_dir::random()?)])
        }
    }
}

/// Sockets by listener index, one for each worker.
#[derive(Default)]
struct Bound {
    datagrams: Vec<(u8, Vec<udp::Socket>)>,
    streams: Vec<(u8, Vec<TcpListener>)>,
}

/// The next worker's share.
fn take_each<T>(bound: &mut [(u8, Vec<T>)]) -> Vec<(u8, T)> {
    bound.iter_mut().filter_map(|(at, left)| Some((*at, left.pop()?))).collect()
}

/// Binds every listener once for each worker, and notes in the settings what port 0 became.
fn bind(settings: &mut Settings, workers: usize) -> Result<Bound, StartError> {
    let (receive, send) = (settings.udp.receive_buffer, settings.udp.send_buffer);
    let mut bound = Bound::default();
    for (index, listen) in (0u8..).zip(&mut settings.listen) {
        let fault = |error| StartError::Listen { name: listen.name.clone(), error };
        if !listen.transport.is_datagram() {
            let sockets = tcp::bind(listen.address, workers).map_err(fault)?;
            if let Some((_, address)) = sockets.first() {
                listen.address = *address;
            }
            bound.streams.push((index, sockets.into_iter().map(|(socket, _)| socket).collect()));
            continue;
        }
        let sockets = udp::bind(listen.address, workers, receive, send).map_err(fault)?;
        if let Some(first) = sockets.first() {
            listen.address = first.local;
            if first.receive_buffer < receive {
                tracing::warn!(
                    listener = %listen.name,
                    asked = receive,
                    granted = first.receive_buffer,
                    "the kernel granted a smaller receive buffer: raise net.core.rmem_max, or bursts are dropped"
                );
            }
        }
        bound.datagrams.push((index, sockets));
    }
    Ok(bound)
}

/// Puts what names resolve to into force, whenever that changes; not more often than a few times a second.
async fn follow_names(router: Arc<Router>) {
    loop {
        router.tables.names().changed().await;
        let mut pause = Duration::from_millis(250);
        match router.tables.repool().await {
            Ok(true) => router.workers.lock().iter().for_each(Worker::wake),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "new addresses of backends cannot come into force; tried again");
                router.tables.names().remind();
                pause = Duration::from_secs(5);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Open files beside those of connections: listeners, connections to backends, admin (512 at most), logs.
const OTHER_FILES: u64 = 1_024;
const MOST_CONNECTIONS: u64 = 100_000;

/// Raises the limit of open files to what the system grants: that, and how many connections may be accepted (SPEC 9.7).
fn open_files(settings: &Settings) -> Result<(u64, usize), StartError> {
    let granted = crate::net::sys::raise_open_files().unwrap_or(OTHER_FILES);
    let room = granted.saturating_sub(OTHER_FILES).max(granted / 2);
    match settings.connections.most {
        Some(wanted) if wanted as u64 > room => {
            Err(StartError::Files { wanted, needed: wanted as u64 + OTHER_FILES, granted })
        }
        Some(wanted) => Ok((granted, wanted)),
        None => Ok((granted, room.min(MOST_CONNECTIONS) as usize)),
    }
}

fn source_limits(settings: &Settings, most: usize) -> SourceLimits {
    let of = &settings.connections;
    SourceLimits {
        most,
        per_address: of.per_address,
        per_prefix: of.per_prefix,
        accepts_per_second: of.accepts_per_second,
        exempt: of.exempt.iter().chain(&settings.trust.prefixes).copied().collect(),
    }
}

fn patience(settings: &Settings) -> Option<Patience> {
    let of = &settings.protection;
    let ms = |time: Duration| time.as_millis() as u64;
    of.shed.then(|| Patience { behind_ms: ms(of.behind), calm_ms: ms(of.calm) })
}

fn stream_limits(settings: &Settings, cores: usize) -> streams::Limits {
    let of = &settings.connections;
    let ms = |time: Duration| time.as_millis() as u64;
    streams::Limits {
        output: of.output,
        idle_ms: ms(of.idle),
        keepalives: of.keepalives_per_second,
        first_message_ms: ms(of.first_message),
        message_ms: ms(of.message_time),
        output_ms: ms(of.output_time),
        connect_ms: ms(of.connect_time),
        handshake_ms: ms(of.handshake_time),
        handshakes: of.handshakes.div_ceil(cores),
    }
}

/// Once a second: what has expired ends, what nobody holds is freed.
async fn chores(router: Arc<Router>, state_dir: Option<StateDir>) {
    let kept = Arc::new(Mutex::new(Kept::new(router.tables.registry().restarts())));
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let said = Arc::new(Mutex::new(publishers::Said::default()));
    loop {
        second.tick().await;
        let process = router.process.clone();
        let (router, state_dir) = (router.clone(), state_dir.clone());
        let (kept, said) = (kept.clone(), said.clone());
        let chores = tokio::task::spawn_blocking(move || {
            let now = net::now();
            router.shared.flows.sweep(now);
            router.shared.moved.sweep(now);
            router.shared.unreachable.sweep(now);
            router.shared.calls.sweep(now);
            router.shared.users.sweep(now);
            said.lock().look(&router.tables.current().load().pools, now);
            router.sources.sweep(now);
            router.exporter.sweep(now.unix_s);
            router.tables.names().data().sweep(now.mono_ms);
            router.tables.free();
            router.tables.registry().sweep(now.unix_s);
            if let Some(dir) = &state_dir {
                let seen = router.tables.registry().restarts();
                kept.lock().keep("restarts of backends", seen, now, |seen| dir.write_restarts(seen));
            }
        });
        // The next second they are tried again.
        if let Err(error) = chores.await {
            tasks::tell(&process, "chores", &error);
        }
    }
}
