//! Tidings and Kamailio with phones over one transport, each a process of its own on core 0: what they use of memory and CPU,
//! by /proc.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tidings::net::sys;

use crate::relay::{children, cpu_ns};

/// How the phones come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    Tls,
    Ws,
    Wss,
}

impl Over {
    pub const ALL: [Over; 4] = [Over::Tcp, Over::Tls, Over::Ws, Over::Wss];

    pub fn name(self) -> &'static str {
        match self {
            Over::Tcp => "tcp",
            Over::Tls => "tls",
            Over::Ws => "ws",
            Over::Wss => "wss",
        }
    }

    pub fn is_secure(self) -> bool {
        matches!(self, Over::Tls | Over::Wss)
    }

    pub fn is_websocket(self) -> bool {
        matches!(self, Over::Ws | Over::Wss)
    }
}

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

    fn ip(self) -> [u8; 4] {
        [127, 6, 1, if self == Kind::Kamailio { 11 } else { 12 }]
    }

    /// Where phones call it; kamailio.cfg names it too. The PBX always meets it over TCP.
    pub fn address(self, over: Over) -> SocketAddr {
        SocketAddr::from((self.ip(), if over == Over::Tcp { 15060 } else { 15061 }))
    }

    /// The PBX behind it; kamailio.cfg names it too.
    pub fn pbx(self) -> SocketAddr {
        let last = if self == Kind::Kamailio { 2 } else { 3 };
        SocketAddr::from(([127, 6, 1, last], 15062))
    }

    fn command(self, over: Over, dir: &Path, tidings: &Path) -> io::Result<Command> {
        fs::create_dir_all(dir)?;
        if over.is_secure() {
            certify(self.ip(), dir)?;
        }
        Ok(match self {
            Kind::Kamailio => {
                let mut command = Command::new("/usr/sbin/kamailio");
                command.args(["-DD", "-E", "-x", "fm", "-X", "fm", "-m", "1024", "-M", "8", "-f"]);
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/connections/kamailio.cfg"));
                command.arg("-Y").arg(dir);
                if over.is_secure() {
                    let define = |name: &str, file: &str| format!("{name}=\"{}\"", dir.join(file).display());
                    command.args(["-A", "WITH_TLS", "-A", &define("CERTIFICATE", "own.pem")]);
                    command.args(["-A", &define("PRIVATE_KEY", "own.key")]);
                }
                command
            }
            Kind::Tidings => {
                fs::write(dir.join("tidings.toml"), tidings_toml(over, dir))?;
                fs::write(dir.join("table.toml"), TABLE)?;
                let mut command = Command::new(tidings);
                command.args(["run", "--config"]).arg(dir.join("tidings.toml"));
                command
            }
        })
    }

    /// What of Debian's is missing for it; `None`: nothing.
    pub fn lacks(self, over: Over) -> Option<&'static str> {
        let tls = "/usr/lib/x86_64-linux-gnu/kamailio/modules/tls.so";
        match self {
            Kind::Kamailio if !Path::new("/usr/sbin/kamailio").exists() => Some("kamailio"),
            Kind::Kamailio if over.is_secure() && !Path::new(tls).exists() => Some("kamailio-tls-modules"),
            _ => None,
        }
    }
}

/// A router that runs. It ends with this.
pub struct Rival {
    pub kind: Kind,
    pub over: Over,
    child: Child,
    dir: PathBuf,
}

impl Rival {
    /// Starts it on core 0, as a batch process. `tidings` is the binary of that name.
    pub fn start(kind: Kind, over: Over, tidings: &Path) -> io::Result<Rival> {
        let name = format!("tidings-connections-{}-{}-{}", std::process::id(), kind.name(), over.name());
        let dir = std::env::temp_dir().join(name);
        let plain = kind.command(over, &dir, tidings)?;
        let mut command = Command::new("chrt");
        command.args(["--batch", "0"]).arg(plain.get_program()).args(plain.get_args());
        let log = fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child keeps to the core of the thread that starts it.
        let child = std::thread::spawn(move || sys::pin(0).and_then(|()| command.spawn()));
        let child = child.join().expect("starting a process does not panic")?;
        Ok(Rival { kind, over, child, dir })
    }

    pub fn address(&self) -> SocketAddr {
        self.kind.address(self.over)
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

/// Writes `own.pem` and `own.key`: a certificate of ECDSA P-256 for this address, signed by itself.
fn certify(ip: [u8; 4], dir: &Path) -> io::Result<()> {
    let names = vec![std::net::Ipv4Addr::from(ip).to_string()];
    let own = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    fs::write(dir.join("own.pem"), own.cert.pem())?;
    let mut key = fs::OpenOptions::new();
    let mut key = key.write(true).create(true).truncate(true).mode(0o600).open(dir.join("own.key"))?;
    key.write_all(own.signing_key.serialize_pem().as_bytes())
}

fn tidings_toml(over: Over, dir: &Path) -> String {
    let listen = |over: Over| {
        let address = Kind::Tidings.address(over);
        let name = over.name();
        let side = if over.is_websocket() { "clients" } else { "both" };
        format!(
            "[[listen]]\nname = \"{name}\"\ntransport = \"{name}\"\naddress = \"{address}\"\nside = \"{side}\"\n\n"
        )
    };
    let mut text = format!(
        "table = \"table.toml\"\nstate_dir = {:?}\n\n[workers]\ncount = 1\npin = true\n\n{}",
        dir.display().to_string(),
        listen(Over::Tcp)
    );
    if over != Over::Tcp {
        text += &listen(over);
    }
    if over.is_secure() {
        text += "[tls]\ncertificate = \"own.pem\"\nprivate_key = \"own.key\"\n\n";
    }
    text + "[connections]\nexempt = [\"127.0.0.0/8\"]\n\n[admin]\naddress = \"127.6.1.12:15090\"\n\n\
            [protection] # counted, and never reached\nnew_dialogs = 1000000\nnew_dialogs_burst = 1000000\n"
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
