//! The routers under load, each a process of its own on core 0, and what they cost by /proc.

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use tidings::{
    forward::{Input, Outbox, Target},
    live::Now,
    net::{
        sys,
        udp::{self, BATCH, Datagram, Inbound, Outbound},
    },
    stats::CoreStats,
    worker::{Launch, Step, spawn},
};

/// The phones, the PBX, and the routers; kamailio.cfg names some of them too.
pub const PHONES: &str = "127.6.0.1:15061";
pub const PBX: &str = "127.6.0.2:15062";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// recvmmsg and sendmmsg, no parsing: the floor.
    Raw,
    /// Our worker's loop with a step that parses nothing: what the loop itself adds.
    Loop,
    Kamailio,
    Tidings,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Raw, Kind::Loop, Kind::Kamailio, Kind::Tidings];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Raw => "raw",
            Kind::Loop => "loop",
            Kind::Kamailio => "kamailio",
            Kind::Tidings => "tidings",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Kind::Raw => "raw relay",
            Kind::Loop => "worker, no SIP",
            Kind::Kamailio => "Kamailio forward()",
            Kind::Tidings => "Tidings",
        }
    }

    pub fn address(self) -> SocketAddr {
        let last = match self {
            Kind::Raw => 10,
            Kind::Kamailio => 11,
            Kind::Tidings => 12,
            Kind::Loop => 13,
        };
        SocketAddr::from(([127, 6, 0, last], 15060))
    }

    /// The command that starts it, with its files in `dir`.
    pub fn command(self, dir: &Path, tidings: &Path) -> io::Result<Command> {
        fs::create_dir_all(dir)?;
        Ok(match self {
            Kind::Raw | Kind::Loop => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["--serve", self.name()]);
                command
            }
            Kind::Kamailio => {
                let mut command = Command::new("/usr/sbin/kamailio");
                command.args(["-DD", "-E", "-x", "fm", "-X", "fm", "-m", "64", "-M", "8", "-f"]);
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/kamailio.cfg")).arg("-Y").arg(dir);
                command
            }
            Kind::Tidings => {
                fs::write(dir.join("tidings.toml"), tidings_toml(dir))?;
                fs::write(dir.join("table.toml"), table_toml())?;
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
    /// Starts it on core 0, as a batch process (see `main`). `tidings` is the binary of that name.
    pub fn start(kind: Kind, tidings: &Path) -> io::Result<Rival> {
        let dir = std::env::temp_dir().join(format!("tidings-bench-{}-{}", std::process::id(), kind.name()));
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

    /// What it wrote, for the one who wonders why it does not answer.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU nanoseconds (user and system) that it has used, by process: its own and its children's.
    pub fn cpu(&self) -> Vec<(u32, u64)> {
        let mut processes = vec![self.child.id()];
        processes.extend(children(self.child.id()));
        processes.into_iter().map(|pid| (pid, cpu_ns(pid))).collect()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // SIGTERM, so that Kamailio ends its children.
        let _ = Command::new("sh").args(["-c", &format!("kill {}", self.child.id())]).status();
        for _ in 0..100 {
            if self.has_ended() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What a router used between two readings, and the share of its busiest process.
pub fn used(before: &[(u32, u64)], after: &[(u32, u64)]) -> u64 {
    let spent = |(pid, ns): &(u32, u64)| {
        let was = before.iter().find(|(p, _)| p == pid).map_or(0, |(_, ns)| *ns);
        ns.saturating_sub(was)
    };
    // Only the busiest counts: Kamailio's timer processes are left out, in its favour. The others are one process each.
    after.iter().map(spent).max().unwrap_or(0)
}

pub fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn tidings_toml(dir: &Path) -> String {
    format!(
        "table = \"table.toml\"\nstate_dir = {:?}\n\n[workers]\ncount = 1\npin = true\n\n[[listen]]\nname = \"bench\"\n\
         transport = \"udp\"\naddress = \"{}\"\nside = \"both\"\n\n[admin]\naddress = \"127.6.0.12:15090\"\n\n\
         [protection] # counted, and never reached\nnew_dialogs = 1000000\nnew_dialogs_burst = 1000000\n",
        dir.display().to_string(),
        Kind::Tidings.address()
    )
}

fn table_toml() -> String {
    format!(
        r#"[[pool]]
name = "presence"
balance = "resource"
probe = "off"

[[pool.backend]]
name = "pbx1"
uri = "sip:{PBX};transport=udp"

[[rule]]
name = "presence and lamps"
match = {{ method = ["SUBSCRIBE", "PUBLISH"], event = ["presence", "dialog", "message-summary"], ruri = "^sip:1[0-9]{{3}}@" }}
route = "presence"

[[rule]]
name = "packages that nobody serves"
match = {{ method = ["SUBSCRIBE", "PUBLISH", "NOTIFY"] }}
reply = {{ code = 489, reason = "Bad Event" }}
"#
    )
}

/// The raw relay, in this process, for ever: what comes from the PBX goes to the phones, the rest to the PBX.
pub fn serve_raw() -> io::Result<()> {
    let (phones, pbx): (SocketAddr, SocketAddr) =
        (PHONES.parse().expect("an address"), PBX.parse().expect("an address"));
    let socket = udp::bind(Kind::Raw.address(), 1, 8 << 20, 8 << 20)?.pop().expect("one was asked for");
    let fd = socket.as_fd().as_raw_fd();
    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
    let (mut inbound, mut outbound) = (Inbound::new(), Outbound::new());
    let mut events = Events::with_capacity(8);
    loop {
        poll.poll(&mut events, None)?;
        loop {
            let n = inbound.receive(socket.as_fd()).unwrap_or(0);
            let datagrams = (0..n).filter_map(|i| inbound.datagram(i)).map(|received| Datagram {
                bytes: received.bytes,
                to: if received.peer == pbx { phones } else { pbx },
                from: None,
            });
            let mut done = 0;
            while done < n {
                // Only an ICMP error can fail here, and it is cleared by being told.
                done += outbound.send(socket.as_fd(), datagrams.clone().skip(done)).unwrap_or(0);
            }
            if n < BATCH {
                break;
            }
        }
    }
}

/// The same by our worker.
struct Relay {
    phones: SocketAddr,
    pbx: SocketAddr,
}

impl Step for Relay {
    type Table = ();

    fn step(&mut self, _now: Now, _table: &(), input: Input<'_>, out: &mut Outbox) {
        if let Input::Message(arrival, bytes) = input {
            let to = if arrival.peer == self.pbx { self.phones } else { self.pbx };
            let start = out.bytes.len();
            out.bytes.extend_from_slice(bytes);
            let target = Target::Datagram { listener: arrival.listener, from: None, to };
            out.messages.push((target, start..out.bytes.len()));
        }
    }
}

pub fn serve_loop() -> io::Result<()> {
    let socket = udp::bind(Kind::Loop.address(), 1, 8 << 20, 8 << 20)?.pop().expect("one was asked for");
    let _worker = spawn(Launch {
        index: 0,
        pin: true,
        sockets: vec![(0, socket)],
        links: None,
        inboxes: Arc::new([]),
        patience: None,
        core: Relay { phones: PHONES.parse().expect("an address"), pbx: PBX.parse().expect("an address") },
        table: Arc::new(ArcSwap::from_pointee(())),
        stats: Arc::new(CoreStats::new()),
    })?;
    loop {
        std::thread::park();
    }
}
