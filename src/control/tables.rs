//! The table in force and how it is replaced (SPEC 5.6): compile first, then one pointer swap; a bad table changes nothing.
//!
//! Compiling and freeing happen here, on threads that may block, never on a worker: every table that was published is
//! kept until this is its last holder. One table is compiled at a time; of those that wait, the latest wins. What a
//! rollback needs is the table before as it was written, which is compiled again, since backends and series may have
//! changed under it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::names::{NameStatus, Names};
use crate::{
    config::{
        self, Diagnostic, Settings, TableSpec,
        settings::{DEFAULT_TABLE, DEFAULT_TABLE_NAME},
    },
    live::Registry,
    net,
    route::{self, Table},
    stats::{Process, ProcessCounter, ProcessGauge, SeriesRegistry},
};

/// Where the table comes from at start and at each reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableSource {
    /// `routing/default.toml`, compiled in.
    Embedded,
    /// Read again on SIGHUP and when it changes.
    File(PathBuf),
    Text {
        name: String,
        text: String,
    },
}

impl TableSource {
    /// The file of the settings, else the embedded table.
    pub fn of(settings: &Settings) -> TableSource {
        settings.table.clone().map_or(TableSource::Embedded, TableSource::File)
    }

    fn name(&self) -> String {
        match self {
            TableSource::Embedded => DEFAULT_TABLE_NAME.to_owned(),
            TableSource::File(path) => path.display().to_string(),
            TableSource::Text { name, .. } => name.clone(),
        }
    }
}

/// A table that came into force.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Loaded {
    pub version: u64,
    pub source: String,
    pub loaded_unix_s: u64,
    pub rules: usize,
    pub pools: usize,
    /// Each counted once for each of its pools.
    pub backends: usize,
    pub warnings: Vec<Diagnostic>,
}

/// Why a table did not come into force.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Failure {
    pub source: String,
    pub unix_s: u64,
    /// One line.
    pub message: String,
    pub diagnostics: Vec<Diagnostic>,
}

impl Failure {
    /// A file with these faults.
    pub fn of(source: &str, unix_s: u64, diagnostics: Vec<Diagnostic>) -> Failure {
        let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
        let s = if errors == 1 { "" } else { "s" };
        let message = format!("{source}: {errors} error{s}");
        Failure { source: source.to_owned(), unix_s, message, diagnostics }
    }
}

impl fmt::Display for Failure {
    /// The faults, then the one line.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(out, "{diagnostic}")?;
        }
        write!(out, "{}", self.message)
    }
}

/// Why `apply` gave no new table.
#[derive(Clone, Debug)]
pub enum Refusal {
    Failed(Arc<Failure>),
    /// A later one was asked for while this one waited.
    Superseded,
    /// Nothing to roll back to.
    NoPrevious,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Failed(failure) => failure.fmt(out),
            Refusal::Superseded => out.write_str("another table was asked for while this one waited"),
            Refusal::NoPrevious => out.write_str("there is no previous table to roll back to"),
        }
    }
}

/// What the API and the status page show.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    #[serde(flatten)]
    pub present: Loaded,
    /// Where a rollback would lead.
    pub previous: Option<Loaded>,
    /// Of the last attempt; none where it succeeded.
    pub last_error: Option<Failure>,
    /// Host names of backends, and what they resolve to.
    pub names: Vec<NameStatus>,
}

/// What compiling needs for the router's whole life.
pub struct Ground {
    /// With the addresses that were really bound.
    pub settings: Settings,
    pub registry: Registry,
    pub series: Arc<SeriesRegistry>,
    pub process: Arc<Process>,
    pub names: Arc<Names>,
}

/// The table in force, the one before, and those that workers may still hold.
pub struct Tables {
    ground: Ground,
    source: TableSource,
    current: Arc<ArcSwap<Table>>,
    state: Mutex<State>,
    /// One compile at a time; `Arc`, so that the thread that compiles holds it whatever becomes of who asked.
    turn: Arc<tokio::sync::Mutex<()>>,
    asked: AtomicU64,
}

struct State {
    present: (Loaded, Arc<TableSpec>),
    previous: Option<(Loaded, Arc<TableSpec>)>,
    last_error: Option<Arc<Failure>>,
    held: Vec<Arc<Table>>,
    /// Of the file as it was when it was last read, good or bad.
    stamp: Option<Stamp>,
    /// Of the answers by which the pools in force were compiled.
    answers: u64,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
}

impl Stamp {
    /// Of what the path leads to, through links; `None` while there is nothing.
    pub fn of(path: &Path) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path).ok()?;
        let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Some(Stamp { device: meta.dev(), inode: meta.ino(), size: meta.len(), modified_ns })
    }
}

/// What to compile.
enum Job {
    Source(TableSource),
    Spec { source: String, spec: Arc<TableSpec> },
}

struct Compiled {
    table: Arc<Table>,
    spec: Arc<TableSpec>,
    loaded: Loaded,
    answers: u64,
}

impl Tables {
    /// Compiles the first table.
    pub fn new(ground: Ground, source: TableSource) -> Result<Tables, Failure> {
        let now = net::now().unix_s;
        let stamp = stamp_of(&source);
        let compiled = compile(&ground, &Job::Source(source.clone()), None, now)
            .inspect_err(|_| ground.series.abandon(now))?;
        ground.series.commit(now);
        let Compiled { table, spec, loaded, answers } = compiled;
        ground.names.keep(&spec);
        tell(&ground.process, &loaded);
        tell_departed(&ground.process, &table);
        Ok(Tables {
            ground,
            source,
            current: Arc::new(ArcSwap::new(table.clone())),
            state: Mutex::new(State {
                present: (loaded, spec),
                previous: None,
                last_error: None,
                held: vec![table],
                stamp,
                answers,
            }),
            turn: Arc::default(),
            asked: AtomicU64::new(0),
        })
    }

    /// What workers decide by.
    pub fn current(&self) -> &Arc<ArcSwap<Table>> {
        &self.current
    }

    /// Run-time state of every backend, by name.
    pub fn registry(&self) -> &Registry {
        &self.ground.registry
    }

    /// Names of series.
    pub fn series(&self) -> &SeriesRegistry {
        &self.ground.series
    }

    /// The file that is read again, where there is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            TableSource::File(path) => Some(path),
            _ => None,
        }
    }

    pub fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            present: state.present.0.clone(),
            previous: state.previous.as_ref().map(|(loaded, _)| loaded.clone()),
            last_error: state.last_error.as_deref().cloned(),
            names: self.ground.names.status(),
        }
    }

    /// The table in force as it was written.
    pub fn spec(&self) -> Arc<TableSpec> {
        self.state.lock().present.1.clone()
    }

    /// The host names of backends, and what becomes of them.
    pub fn names(&self) -> &Arc<Names> {
        &self.ground.names
    }

    /// Of the file as it was last read.
    pub fn stamp(&self) -> Option<Stamp> {
        self.state.lock().stamp
    }

    /// Reads the table's file again.
    pub async fn reload(self: &Arc<Self>) -> Result<Loaded, Refusal> {
        self.apply(Job::Source(self.source.clone())).await
    }

    /// Takes a table from elsewhere; the file stays what it is.
    pub async fn put(self: &Arc<Self>, name: &str, text: String) -> Result<Loaded, Refusal> {
        self.apply(Job::Source(TableSource::Text { name: name.to_owned(), text })).await
    }

    /// Puts the table before into force again; a second time leads back.
    pub async fn rollback(self: &Arc<Self>) -> Result<Loaded, Refusal> {
        let previous = self.state.lock().previous.clone();
        let (loaded, spec) = previous.ok_or(Refusal::NoPrevious)?;
        self.apply(Job::Spec { source: loaded.source, spec }).await
    }

    async fn apply(self: &Arc<Self>, job: Job) -> Result<Loaded, Refusal> {
        let ticket = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let turn = self.turn.clone().lock_owned().await;
        if self.asked.load(Ordering::Relaxed) != ticket {
            return Err(Refusal::Superseded);
        }
        let tables = self.clone();
        let compiling = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            tables.compile_and_publish(&job)
        });
        // A panic in the compiler is a bug, but one that leaves the table in force.
        let outcome = compiling.await.unwrap_or_else(|error| {
            Err(self.failed(Failure {
                source: self.source.name(),
                unix_s: net::now().unix_s,
                message: format!("the table could not be compiled: {error}"),
                diagnostics: Vec::new(),
            }))
        });
        outcome.map_err(Refusal::Failed)
    }

    fn compile_and_publish(&self, job: &Job) -> Result<Loaded, Arc<Failure>> {
        let started = Instant::now();
        let now = net::now().unix_s;
        if let Job::Source(source) = job
            && let Some(stamp) = stamp_of(source)
        {
            // Taken before the file is read: a change in between is seen as a change.
            self.state.lock().stamp = Some(stamp);
        }
        let before = self.current.load_full();
        let Compiled { table, spec, loaded, answers } = match compile(&self.ground, job, Some(&before), now) {
            Ok(compiled) => compiled,
            Err(failure) => {
                self.ground.series.abandon(now);
                // What only the refused table names is not asked for any longer.
                self.ground.names.keep(&self.spec());
                return Err(self.failed(failure));
            }
        };
        drop(before);
        self.ground.names.keep(&spec);
        tell_departed(&self.ground.process, &table);
        let mut state = self.state.lock();
        state.answers = answers;
        state.held.push(table.clone());
        self.current.store(table);
        self.ground.series.commit(now);
        let replaced = std::mem::replace(&mut state.present, (loaded.clone(), spec));
        state.previous = Some(replaced);
        state.last_error = None;
        drop(state);
        tell(&self.ground.process, &loaded);
        let took_ms = started.elapsed().as_millis() as u64;
        let Loaded { version, ref source, rules, pools, backends, .. } = loaded;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!(version, %source, rules, pools, backends, took_ms, "new table in force");
        self.free();
        Ok(loaded)
    }

    /// Compiles the pools of the table in force by what names resolve to now, and puts them in its place: the same rules,
    /// the same version. True where there is something new for the workers.
    pub async fn repool(self: &Arc<Self>) -> Result<bool, String> {
        let turn = self.turn.clone().lock_owned().await;
        let tables = self.clone();
        let compiling = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            tables.repool_and_publish()
        });
        compiling.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn repool_and_publish(&self) -> Result<bool, String> {
        let answers = self.ground.names.data().generation();
        let spec = {
            let state = self.state.lock();
            if state.answers == answers {
                return Ok(false);
            }
            state.present.1.clone()
        };
        let now = net::now().unix_s;
        let before = self.current.load_full();
        let pools = route::compile_pools(&spec, &context(&self.ground, Some(&before), now));
        // All series that it asked for are in force: this ends the asking.
        self.ground.series.abandon(now);
        let pools = pools.map_err(|faults| faults.first().map(ToString::to_string).unwrap_or_default())?;
        let table = Arc::new(Table { rules: before.rules.clone(), pools, version: before.version });
        tell_departed(&self.ground.process, &table);
        let mut state = self.state.lock();
        state.answers = answers;
        state.held.push(table.clone());
        self.current.store(table);
        drop((state, before));
        self.free();
        Ok(true)
    }

    fn failed(&self, failure: Failure) -> Arc<Failure> {
        self.ground.process.add(ProcessCounter::TableFailures, 1);
        for diagnostic in &failure.diagnostics {
            tracing::error!("{diagnostic}");
        }
        tracing::error!("table refused, the present one stays: {}", failure.message);
        let failure = Arc::new(failure);
        self.state.lock().last_error = Some(failure.clone());
        failure
    }

    /// Frees the tables that nobody else holds any more. The one in force is held by `current`.
    pub fn free(&self) {
        let idle: Vec<Arc<Table>> = {
            let mut state = self.state.lock();
            let (held, idle) =
                std::mem::take(&mut state.held).into_iter().partition(|t| Arc::strong_count(t) > 1);
            state.held = held;
            idle
        };
        // Outside the lock: a large table takes its time.
        drop(idle);
    }

    /// Tables that are not freed yet, the one in force included.
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }
}

fn stamp_of(source: &TableSource) -> Option<Stamp> {
    match source {
        TableSource::File(path) => Stamp::of(path),
        _ => None,
    }
}

fn compile(ground: &Ground, job: &Job, before: Option<&Table>, now: u64) -> Result<Compiled, Failure> {
    let (source, spec, warnings) = match job {
        Job::Spec { source, spec } => (source.clone(), spec.clone(), Vec::new()),
        Job::Source(source) => {
            let (spec, warnings) = read(source, now)?;
            (source.name(), Arc::new(spec), warnings)
        }
    };
    let listeners = &ground.settings.listen;
    let faults = config::table::check_listeners(&spec, listeners);
    if !faults.is_empty() {
        return Err(Failure::of(&source, now, faults));
    }
    // A file that a full disk or a copy under way left empty parses as well.
    if spec.rules.is_empty()
        && let (Job::Source(TableSource::File(_) | TableSource::Text { .. }), Some(before)) = (job, before)
        && !before.rules.rules.is_empty()
    {
        let rules = before.rules.rules.len();
        let message = format!(
            "{source}: has no rule, and the table in force has {rules}: this would refuse all traffic"
        );
        return Err(Failure { source, unix_s: now, message, diagnostics: Vec::new() });
    }
    ground.names.settle(&spec);
    let answers = ground.names.data().generation();
    let context = context(ground, before, now);
    let (rules, pools) =
        route::compile(&spec, &context).map_err(|diagnostics| Failure::of(&source, now, diagnostics))?;
    let loaded = Loaded {
        version: before.map_or(0, |before| before.version) + 1,
        source,
        loaded_unix_s: now,
        rules: spec.rules.len(),
        pools: spec.pools.len(),
        backends: spec.pools.iter().map(|pool| pool.backends.len()).sum(),
        warnings,
    };
    let table = Arc::new(Table { rules, pools, version: loaded.version });
    Ok(Compiled { table, spec, loaded, answers })
}

fn context<'a>(ground: &'a Ground, before: Option<&'a Table>, now: u64) -> route::Context<'a> {
    route::Context {
        listeners: &ground.settings.listen,
        strip: &ground.settings.trust.strip,
        registry: &ground.registry,
        dns: ground.names.data(),
        unix_s: now,
        series: &ground.series,
        // Those of `previous` are carried on by the compiler.
        departed: Vec::new(),
        departed_most: ground.settings.limits.departed,
        source_for: &net::udp::source_for,
        previous: before,
    }
}

fn read(source: &TableSource, now: u64) -> Result<(TableSpec, Vec<Diagnostic>), Failure> {
    let name = source.name();
    let from_file;
    let text = match source {
        TableSource::Embedded => DEFAULT_TABLE,
        TableSource::Text { text, .. } => text,
        TableSource::File(path) => {
            from_file = std::fs::read_to_string(path).map_err(|error| Failure {
                message: format!("cannot read the table {name}: {error}"),
                source: name.clone(),
                unix_s: now,
                diagnostics: Vec::new(),
            })?;
            &from_file
        }
    };
    config::table::parse(&name, text).map_err(|diagnostics| Failure::of(&name, now, diagnostics))
}

fn tell_departed(process: &Process, table: &Table) {
    process.set(ProcessGauge::Departed, table.pools.departed().len() as u64);
    process.add(ProcessCounter::DepartedDropped, table.pools.dropped());
}

fn tell(process: &Process, loaded: &Loaded) {
    process.add(ProcessCounter::TableSwaps, 1);
    process.set(ProcessGauge::TableVersion, loaded.version);
    process.set(ProcessGauge::TableLoaded, loaded.loaded_unix_s);
    process.set(ProcessGauge::TableRules, loaded.rules as u64);
    process.set(ProcessGauge::TablePools, loaded.pools as u64);
    process.set(ProcessGauge::TableBackends, loaded.backends as u64);
    process.set_table_source(&loaded.source);
}
