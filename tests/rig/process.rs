//! A child process that ends with its guard. Its output goes to a file, which a failing test prints.

use std::{
    fs::File,
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::wait_for;

/// Which Debian package brings a program that tests start.
fn package_of(program: &str) -> Option<&'static str> {
    match program {
        "sipp" => Some("sip-tester"),
        "kamailio" => Some("kamailio kamailio-presence-modules kamailio-tls-modules"),
        "/usr/sbin/haproxy" => Some("haproxy"),
        "openssl" => Some("openssl"),
        "/usr/sbin/dnsmasq" => Some("dnsmasq-base"),
        _ => None,
    }
}

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; stdout and stderr go to `output`. A peer that is not installed is a failure that says how to
    /// install it, never a test skipped.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command, output: &Path) -> Process {
        let file = File::create(output).expect("the temporary directory can be written");
        let again = file.try_clone().expect("a file handle can be cloned");
        command.stdin(Stdio::null()).stdout(file).stderr(again);
        let child = command.spawn().unwrap_or_else(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            match package_of(&program) {
                Some(package) if error.kind() == ErrorKind::NotFound => {
                    panic!("{program} is not installed: apt-get install -y {package}")
                }
                _ => panic!("cannot start {program}: {error}"),
            }
        });
        Process { name: name.to_owned(), child, output: output.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends what it has started, which would outlive it.
    pub fn kill_children(&self) {
        children_of(self.child.id()).iter().for_each(|pid| signal_pid(*pid, "KILL"));
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Waits until a line of its output holds `word`.
    #[track_caller]
    pub fn wait_line(&mut self, word: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.output().contains(word) {
            if let Some(status) = self.child.try_wait().expect("a child can be asked for its state") {
                panic!("{} ended with {status} before it said {word:?}:\n{}", self.name, self.output());
            }
            let name = &self.name;
            assert!(Instant::now() < end, "{name} did not say {word:?} in {limit:?}:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it (or anybody) has bound this UDP address: then datagrams sent to it are queued, not refused.
    #[track_caller]
    pub fn wait_udp(&mut self, address: SocketAddr, limit: Duration) {
        let end = Instant::now() + limit;
        while !udp_bound(address) {
            if let Some(status) = self.child.try_wait().expect("a child can be asked for its state") {
                panic!("{} ended with {status} before it bound {address}:\n{}", self.name, self.output());
            }
            let name = &self.name;
            assert!(Instant::now() < end, "{name} did not bind {address} in {limit:?}:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it (or anybody) has bound this address over `udp`, or listens on it over `tcp`.
    #[track_caller]
    pub fn wait_bound(&mut self, transport: &str, address: SocketAddr, limit: Duration) {
        if transport == "udp" {
            return self.wait_udp(address, limit);
        }
        wait_for(&format!("{} to listen on {address}", self.name), limit, || {
            is_bound("/proc/net/tcp", address, Some("0A")).then_some(())
        });
    }

    /// Waits for its end. Panics, and so kills it, when it takes longer than `limit`.
    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked for its state") {
                return status;
            }
            let name = &self.name;
            assert!(Instant::now() < end, "{name} still runs after {limit:?}:\n{}", tail(&self.output()));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// True while it runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by its name (`HUP`, `TERM`, …) to this pid alone.
    pub fn signal(&self, signal: &str) {
        signal_pid(self.child.id(), signal);
    }

    /// Sends a signal to this pid and to its children's: a program that serves by several processes stops or dies whole.
    pub fn signal_all(&self, signal: &str) {
        let pids = [vec![self.child.id()], children_of(self.child.id())].concat();
        pids.into_iter().for_each(|pid| signal_pid(pid, signal));
    }

    /// Resident memory in KiB.
    #[track_caller]
    pub fn resident_kib(&self) -> u64 {
        resident_kib(&self.pid().to_string())
    }
}

impl Process {
    /// Memory that it has written to and shares with nobody, in KiB: exact, where the counters of `resident_kib` lag.
    #[track_caller]
    pub fn private_kib(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let map = std::fs::read_to_string(path).expect("it runs");
        let line = map.lines().find(|line| line.starts_with("Private_Dirty:")).expect("the kernel counts it");
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse().expect("Private_Dirty is a number")
    }
}

/// Resident memory of a process (or of `self`) in KiB.
#[track_caller]
pub fn resident_kib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a running process has VmRSS");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("VmRSS is a number")
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let children = children_of(self.child.id());
            signal_pid(self.child.id(), "TERM");
            let end = Instant::now() + Duration::from_secs(3);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            if matches!(self.child.try_wait(), Ok(None)) {
                // Kamailio's workers would outlive a main process that is killed.
                children.iter().for_each(|pid| signal_pid(*pid, "KILL"));
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}\n---", self.name, tail(&self.output()));
        }
    }
}

/// The last 60 lines.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Of all its threads: each has the children that it started.
fn children_of(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
    };
    let direct = threads.map(of).collect::<String>();
    let direct = direct.split_whitespace().filter_map(|pid| pid.parse().ok());
    direct.flat_map(|pid| [vec![pid], children_of(pid)].concat()).collect()
}

fn signal_pid(pid: u32, signal: &str) {
    // The shell's own `kill`: a signal from here would need unsafe code.
    let _ = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).stderr(Stdio::null()).status();
}

/// True when some socket is bound to this UDP address (IPv4).
pub fn udp_bound(address: SocketAddr) -> bool {
    is_bound("/proc/net/udp", address, None)
}

/// Is there a socket with this address in this table of the kernel's, and in this state?
fn is_bound(table: &str, address: SocketAddr, state: Option<&str>) -> bool {
    let SocketAddr::V4(address) = address else { panic!("only IPv4 is looked up in {table}") };
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let table = std::fs::read_to_string(table).expect("/proc is mounted");
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.nth(1) == Some(&wanted) && state.is_none_or(|state| words.nth(1) == Some(state))
    })
}

/// Waits until nobody has this UDP address any more.
#[track_caller]
pub fn wait_udp_free(address: SocketAddr) {
    wait_for(&format!("{address} to be free"), Duration::from_secs(5), || {
        (!udp_bound(address)).then_some(())
    });
}
