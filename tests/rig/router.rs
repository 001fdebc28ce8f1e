//! The real binary, started with settings and a table of the test's.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use super::{Metrics, Process, TempDir, http, wait_for};

/// A running router. Its directory holds tidings.toml, table.toml and its state.
pub struct Router {
    pub process: Process,
    pub admin: SocketAddr,
    pub dir: TempDir,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
}

impl Router {
    /// Starts the router. `settings` is tidings.toml without `table` and `state_dir`, which are set here; it must name an
    /// admin address, so that tests do not meet on the default one. `{name}.toml` are written beside it.
    #[track_caller]
    pub fn start(settings: &str, table: &str) -> Router {
        let dir = TempDir::new("router");
        let admin = admin_address(settings);
        std::fs::create_dir_all(dir.path().join("state")).expect("the temporary directory can be written");
        let state = dir.path().join("state");
        let settings = format!("table = \"table.toml\"\nstate_dir = \"{}\"\n{settings}", state.display());
        let config = dir.write("tidings.toml", &settings);
        dir.write("table.toml", table);
        let process = run(&config, &dir.path().join("tidings.log"), &[]);
        Router { process, admin, dir, env: Vec::new() }
    }

    /// Kills it at once, and starts it again with the same files.
    #[track_caller]
    pub fn kill_and_start(&mut self) {
        self.process.signal("KILL");
        self.process.wait_end(Duration::from_secs(5));
        let dir = self.dir.path();
        self.process = run(&dir.join("tidings.toml"), &dir.join("again.log"), &self.env);
    }

    /// Path of table.toml.
    pub fn table_path(&self) -> PathBuf {
        self.dir.path().join("table.toml")
    }

    /// What `/metrics` says now.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let (status, body) = http::get(self.admin, "/metrics");
        assert_eq!(status, 200, "/metrics answers {status}: {body}");
        Metrics::read(&body)
    }

    /// `PUT /api/v1/table`: status and body.
    #[track_caller]
    pub fn put_table(&self, table: &str) -> (u16, String) {
        http::put(self.admin, "/api/v1/table", table)
    }

    /// Waits until `/metrics` satisfies `found`.
    #[track_caller]
    pub fn wait_metrics<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&Metrics) -> Option<T>,
    ) -> T {
        wait_for(what, limit, || found(&self.metrics()))
    }

    /// Asks it to end and waits.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.process.wait_end(Duration::from_secs(20))
    }
}

#[track_caller]
fn run(config: &Path, log: &Path, env: &[(String, String)]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["run", "--config"]).arg(config).envs(env.iter().cloned());
    // Whoever counts memory wants to see it by pages of 4 KiB, not of 2 MiB.
    command.env("MIMALLOC_ALLOW_THP", "0");
    let mut process = Process::start("tidings", &mut command, log);
    process.wait_line("ready", Duration::from_secs(20));
    process
}

#[track_caller]
fn admin_address(settings: &str) -> SocketAddr {
    let settings: toml::Table = settings.parse().expect("the test's settings are TOML");
    let address = settings.get("admin").and_then(|admin| admin.get("address")).and_then(toml::Value::as_str);
    address.expect("the test's settings name [admin] address").parse().expect("it is an address")
}
