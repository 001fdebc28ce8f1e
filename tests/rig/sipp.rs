//! SIPp (Debian's sip-tester), bounded in calls and in time: stock scenarios and those of tests/peers.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Process, TempDir};

/// A SIPp that runs.
pub struct Sipp {
    pub process: Process,
    name: String,
    dir: TempDir,
    limit: Duration,
}

/// What SIPp counted: the last line of its statistics file.
#[derive(Debug, PartialEq, Eq)]
pub struct Calls {
    pub successful: u64,
    pub failed: u64,
    pub retransmissions: u64,
    pub out_of_call: u64,
}

/// How to start one.
pub struct Scenario {
    name: String,
    stock: Option<&'static str>,
    file: PathBuf,
    filled: Vec<(String, String)>,
    injected: Option<String>,
    arguments: Vec<String>,
    limit: Duration,
}

impl Scenario {
    /// SIPp's own `uac` or `uas`.
    pub fn stock(name: &'static str) -> Scenario {
        Scenario {
            name: name.to_owned(),
            stock: Some(name),
            file: PathBuf::new(),
            filled: Vec::new(),
            injected: None,
            arguments: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// `tests/peers/{name}.xml`.
    pub fn ours(name: &str) -> Scenario {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(format!("{name}.xml"));
        Scenario { name: name.to_owned(), stock: None, file, ..Scenario::stock("uac") }
    }

    /// Puts `value` where the scenario says `@KEY@`.
    pub fn fill(mut self, key: &str, value: &str) -> Scenario {
        self.filled.push((format!("@{key}@"), value.to_owned()));
        self
    }

    /// One line for each call; `[field0]` and so on in the scenario.
    pub fn inject(mut self, lines: &[String]) -> Scenario {
        self.injected = Some(format!("SEQUENTIAL\n{}\n", lines.join("\n")));
        self
    }

    /// Further arguments of SIPp's.
    pub fn with(mut self, arguments: &[&str]) -> Scenario {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Calls in all, and calls a second.
    pub fn calls(self, count: u32, rate: u32) -> Scenario {
        self.with(&["-m", &count.to_string(), "-r", &rate.to_string()])
    }

    /// Over TCP: a connection for each call where it calls.
    pub fn tcp(self, each: bool) -> Scenario {
        self.with(&["-t", if each { "tn" } else { "t1" }, "-max_socket", "2000"])
    }

    /// How long it may run, instead of a minute.
    pub fn limit(mut self, limit: Duration) -> Scenario {
        self.limit = limit;
        self
    }

    /// Starts the side that waits for calls, and waits until its socket is bound.
    #[track_caller]
    pub fn listen(self, local: &str) -> Sipp {
        let address: SocketAddr = local.parse().expect("an address of the test's");
        let over_tcp = self.arguments.iter().any(|argument| matches!(argument.as_str(), "t1" | "tn"));
        let transport = if over_tcp { "tcp" } else { "udp" };
        let mut sipp = self.start(address, None);
        sipp.process.wait_bound(transport, address, Duration::from_secs(10));
        sipp
    }

    /// Starts the side that calls `remote`.
    #[track_caller]
    pub fn call(self, local: &str, remote: &str) -> Sipp {
        self.start(local.parse().expect("an address of the test's"), Some(remote))
    }

    #[track_caller]
    fn start(self, local: SocketAddr, remote: Option<&str>) -> Sipp {
        let dir = TempDir::new("sipp");
        let mut command = Command::new("sipp");
        command.current_dir(dir.path()).env("TERM", "dumb");
        match self.stock {
            Some(stock) => command.args(["-sn", stock]),
            None => command.arg("-sf").arg(self.write_scenario(&dir)),
        };
        if let Some(lines) = &self.injected {
            command.arg("-inf").arg(dir.write("lines.csv", lines));
        }
        command.args(["-i", &local.ip().to_string(), "-bind_local", "-p", &local.port().to_string()]);
        command.args([
            "-timeout",
            &format!("{}s", self.limit.as_secs()),
            "-timeout_error",
            "-nd",
            "-nostdin",
        ]);
        command.args([
            "-trace_err",
            "-error_file",
            "errors.log",
            "-trace_stat",
            "-stf",
            "calls.csv",
            "-fd",
            "1",
        ]);
        command.args(&self.arguments).args(remote);
        let output = dir.path().join("screen.log");
        Sipp {
            process: Process::start(&self.name, &mut command, &output),
            name: self.name,
            dir,
            limit: self.limit,
        }
    }

    #[track_caller]
    fn write_scenario(&self, dir: &TempDir) -> PathBuf {
        let text = std::fs::read_to_string(&self.file);
        let mut text = text.unwrap_or_else(|error| panic!("cannot read {}: {error}", self.file.display()));
        for (key, value) in &self.filled {
            assert!(text.contains(key.as_str()), "{} has no {key}", self.name);
            text = text.replace(key.as_str(), value);
        }
        dir.write("scenario.xml", &text)
    }
}

impl Sipp {
    /// Waits until it has made all its calls; it must say that none failed.
    #[track_caller]
    pub fn finish(&mut self) -> Calls {
        let status = self.process.wait_end(self.limit + Duration::from_secs(5));
        let (calls, errors) = (self.counted(), self.errors());
        assert!(status.success(), "{} ended with {status}, {calls:?}\n{errors}", self.name);
        assert_eq!(calls.failed, 0, "{}: {calls:?}\n{errors}", self.name);
        calls
    }

    /// Asks it to end once its calls are over (SIGUSR1), then as `finish`.
    #[track_caller]
    pub fn dismiss(&mut self) -> Calls {
        self.process.signal("USR1");
        self.finish()
    }

    /// What its statistics file says last.
    #[track_caller]
    pub fn counted(&self) -> Calls {
        let text = std::fs::read_to_string(self.dir.path().join("calls.csv")).unwrap_or_default();
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split(';').collect();
        let values: Vec<&str> = lines.next_back().unwrap_or_default().split(';').collect();
        let read = |name: &str| -> u64 {
            let column = names.iter().position(|have| *have == name);
            let value = column.and_then(|column| values.get(column)?.parse().ok());
            value.unwrap_or_else(|| panic!("{}: no {name} in its statistics:\n{text}", self.name))
        };
        Calls {
            successful: read("SuccessfulCall(C)"),
            failed: read("FailedCall(C)"),
            retransmissions: read("Retransmissions(C)"),
            out_of_call: read("OutOfCallMsgs(C)"),
        }
    }

    /// The first errors that it noted.
    pub fn errors(&self) -> String {
        let text = std::fs::read(self.dir.path().join("errors.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).chars().take(4000).collect()
    }
}
