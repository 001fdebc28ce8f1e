//! A Kamailio presence server (Debian's kamailio and kamailio-presence-modules) by tests/peers/kamailio.cfg.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use super::{Process, TempDir, wait_for};

/// One that runs, with its tables in a directory of its own.
pub struct Kamailio {
    pub process: Process,
    _dir: TempDir,
}

/// One request that it took: a line of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub method: String,
    pub event: String,
    pub code: u16,
    pub line: String,
}

impl Kamailio {
    /// Starts it on this UDP address and waits until the address is bound.
    #[track_caller]
    pub fn start(address: &str) -> Kamailio {
        Kamailio::start_over("udp", address)
    }

    /// The same over TCP.
    #[track_caller]
    pub fn start_tcp(address: &str) -> Kamailio {
        Kamailio::start_over("tcp", address)
    }

    /// The same over TLS, with this certificate and key; whom it calls must be signed by `ca`.
    #[track_caller]
    pub fn start_tls(address: &str, certificate: &Path, key: &Path, ca: &Path) -> Kamailio {
        let define = |name: &str, file: &Path| format!("{name}=\"{}\"", file.display());
        let (certificate, key, ca) =
            (define("CERTIFICATE", certificate), define("PRIVATE_KEY", key), define("CA", ca));
        let more = ["-A", "WITH_TLS", "-A", &certificate, "-A", &key, "-A", &ca];
        Kamailio::wait(Kamailio::start_with(&[], "tls", address, &more), "tls", address)
    }

    #[track_caller]
    fn start_over(transport: &str, address: &str) -> Kamailio {
        Kamailio::wait(Kamailio::start_by(&[], transport, address), transport, address)
    }

    #[track_caller]
    fn wait(mut kamailio: Kamailio, transport: &str, address: &str) -> Kamailio {
        let bound: SocketAddr = address.parse().expect("an address of the test's");
        kamailio.process.wait_bound(transport, bound, Duration::from_secs(10));
        kamailio
    }

    /// Starts it by a command that runs its arguments, such as `unshare --net`, and does not wait.
    #[track_caller]
    pub fn start_by(runner: &[&str], transport: &str, address: &str) -> Kamailio {
        Kamailio::start_with(runner, transport, address, &[])
    }

    #[track_caller]
    fn start_with(runner: &[&str], transport: &str, address: &str, more: &[&str]) -> Kamailio {
        let dir = TempDir::new("kamailio");
        // The empty tables that Debian's package brings.
        for table in ["version", "presentity", "active_watchers", "watchers", "xcap", "pua"] {
            let from = Path::new("/usr/share/kamailio/dbtext/kamailio").join(table);
            if let Err(error) = std::fs::copy(&from, dir.path().join(table)) {
                panic!("{}: {error}: apt-get install -y kamailio kamailio-presence-modules", from.display());
            }
        }
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/kamailio.cfg");
        let words = [runner, &["kamailio"]].concat();
        let mut command = Command::new(words[0]);
        let param = if transport == "udp" { String::new() } else { format!(";transport={transport}") };
        command.args(&words[1..]).arg("-f").arg(config);
        command.args(["-A", &format!("ADDRESS=\"sip:{address}{param}\"")]);
        command.args(["-A", &format!("DB_URL=\"text://{}\"", dir.path().display())]);
        if transport != "udp" {
            command.args(["-A", "WITH_TCP"]);
        }
        command.args(more);
        command.args(["-l", &format!("{transport}:{address}"), "-DD", "-E", "-m", "64", "-M", "8"]);
        command.arg("-Y").arg(dir.path()).arg("-w").arg(dir.path());
        let process =
            Process::start(&format!("kamailio {address}"), &mut command, &dir.path().join("kamailio.log"));
        Kamailio { process, _dir: dir }
    }

    /// What it has taken so far.
    pub fn taken(&self) -> Vec<Taken> {
        let output = self.process.output();
        output.lines().filter_map(|line| line.split_once("took ")).map(|(_, line)| taken(line)).collect()
    }

    /// How many requests of this method and package it has taken.
    pub fn count(&self, method: &str, event: &str) -> usize {
        self.taken().iter().filter(|taken| taken.method == method && taken.event == event).count()
    }

    /// Waits until it has taken that many.
    #[track_caller]
    pub fn wait_count(&self, method: &str, event: &str, count: usize, limit: Duration) {
        wait_for(&format!("{count} {method} of {event} at a Kamailio"), limit, || {
            (self.count(method, event) >= count).then_some(())
        });
    }
}

fn taken(line: &str) -> Taken {
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap_or_default();
    Taken {
        method: line.split(' ').next().unwrap_or_default().to_owned(),
        event: field("event=").to_owned(),
        code: field("code=").parse().unwrap_or(0),
        line: line.to_owned(),
    }
}
