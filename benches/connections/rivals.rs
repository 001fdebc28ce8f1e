//! Tidings and Kamailio over TCP, each a process of its own on core 0: what they use of memory and CPU, by /proc.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tidings::net::sys;

use crate::relay::{children, cpu_ns};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kamailio,
    Tidings,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Kamailio, Kind::Tidings];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Kamailio => "kamailio",
            Kind::Tidings => "tidings",
        }
    }

    pub fn address(self) -> SocketAddr {
        let last = if self == Kind::Kamailio { 11 } else { 12 };
        SocketAddr::from(([127, 6, 1, last], 15060))
    }

    /// The PBX behind it; kamailio.cfg names it too.
    pub fn pbx(self) -> SocketAddr {
        let last = if self == Kind::Kamailio { 2 } else { 3 };
        SocketAddr::from(([127, 6, 1, last], 15062))
    }

    fn command(self, dir: &Path, tidings: &Path) -> io::Result<Command> {
        fs::create_dir_all(dir)?;
        Ok(match self {
            Kind::Kamailio => {
                let mut command = Command::new("/usr/sbin/kamailio");
                command.args(["-DD", "-E", "-x", "fm", "-X", "fm", "-m", "256", "-M", "8", "-f"]);
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/connections/kamailio.cfg"));
                command.arg("-Y").arg(dir);
                command
            }
            Kind::Tidings => {
                fs::write(dir.join("tidings.toml"), tidings_toml(dir))?;
                fs::write(dir.join("table.toml"), TABLE)?;
                let mut command = Command::new(tidings);
                command.args(["run", "--config"]).arg(dir.join("tidings.toml"));
                command
            }
        })
    }

    pub fn installed(self) -> bool {
        self != Kind::Kamailio || Path::new("/usr/sbin/kamailio").exists()
    }
}

/// A router that runs. It ends with this.
pub struct Rival {
    pub kind: Kind,
    child: Child,
    dir: PathBuf,
}

impl Rival {
    /// Starts it on core 0, as a batch process. `tidings` is the binary of that name.
    pub fn start(kind: Kind, tidings: &Path) -> io::Result<Rival> {
        let name = format!("tidings-connections-{}-{}", std::process::id(), kind.name());
        let dir = std::env::temp_dir().join(name);
        let plain = kind.command(&dir, tidings)?;
        let mut command = Command::new("chrt");
        command.args(["--batch", "0"]).arg(plain.get_program()).args(plain.get_args());
        let log = fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child keeps to the core of the thread that starts it.
        let child = std::thread::spawn(move || sys::pin(0).and_then(|()| command.spawn()));
        let child = child.join().expect("starting a process does not panic")?;
        Ok(Rival { kind, child, dir })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut at = 0;
        while at < all.len() {
            all.extend(children(all[at]));
            at += 1;
        }
        all
    }

    /// CPU nanoseconds (user and system) of all its processes: what comes over TCP goes through several of Kamailio's.
    pub fn cpu(&self) -> u64 {
        self.processes().into_iter().map(cpu_ns).sum()
    }

    /// Bytes of user memory: anonymous and shared, of all its processes, each page counted once.
    pub fn memory(&self) -> u64 {
        let of = |pid: u32| -> u64 {
            let map = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let lines = map.lines().filter(|l| l.starts_with("Pss_Anon:") || l.starts_with("Pss_Shmem:"));
            lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>() * 1024
        };
        self.processes().into_iter().map(of).sum()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // SIGTERM, so that Kamailio ends its children.
        let _ = Command::new("sh").args(["-c", &format!("kill {}", self.child.id())]).status();
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn tidings_toml(dir: &Path) -> String {
    format!(
        "table = \"table.toml\"\nstate_dir = {:?}\n\n[workers]\ncount = 1\npin = true\n\n[[listen]]\nname = \"bench\"\n\
         transport = \"tcp\"\naddress = \"{}\"\nside = \"both\"\n\n[connections]\nexempt = [\"127.0.0.0/8\"]\n\n\
         [admin]\naddress = \"127.6.1.12:15090\"\n\n[protection] # counted, and never reached\n\
         new_dialogs = 1000000\nnew_dialogs_burst = 1000000\n",
        dir.display().to_string(),
        Kind::Tidings.address()
    )
}

const TABLE: &str = r#"[[pool]]
name = "presence"
balance = "resource"
probe = "off"

[[pool.backend]]
name = "pbx1"
uri = "sip:127.6.1.3:15062;transport=tcp"

[[rule]]
name = "presence and lamps"
match = { method = ["SUBSCRIBE", "PUBLISH"], event = ["presence", "dialog", "message-summary"], ruri = "^sip:1[0-9]{3}@" }
route = "presence"

[[rule]]
name = "packages that nobody serves"
match = { method = ["SUBSCRIBE", "PUBLISH", "NOTIFY"] }
reply = { code = 489, reason = "Bad Event" }
"#;
