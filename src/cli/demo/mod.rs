//! `tidings demo`: everything on this machine, with nothing else installed. The router on loopback, three small PBXs
//! behind it, phones that subscribe, a publisher; one line for each event, rates each second, a summary at the end.
//!
//! The router is the real one, started as `tidings run` does with a table that is printed first. The peers are SIP user
//! agents of their own over real sockets (`pbx`, `phone`, `publisher`; `endpoint`, `dialog`, `message` and `document` are
//! what they have in common), of use to tests too. `scenario` says who does what, `journal` tells and counts.

mod dialog;
mod document;
mod endpoint;
mod journal;
mod message;
mod pbx;
mod phone;
mod publisher;
mod scenario;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

pub use self::{
    dialog::Dialog,
    document::{PACKAGES, State, content_type},
    endpoint::{Endpoint, Incoming},
    journal::{Count, Journal},
    message::{Line, Message},
    pbx::{Behaviour, Pbx},
    phone::{Account, Failure, Notification, Phone, Watch},
    publisher::{Publication, Publisher},
};
use super::Fault;
use crate::{
    admin,
    config::Settings,
    control::{self, Running, TableSource},
};

/// The domain of all users of the demo.
const DOMAIN: &str = "pbx.example";

#[derive(clap::Args)]
pub struct Args {
    /// Stop after this many seconds; without it on Ctrl-C
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

pub fn run(args: &Args) -> ExitCode {
    match play(args.seconds.map(Duration::from_secs)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("{}", fault.message);
            ExitCode::from(fault.code)
        }
    }
}

/// True where everything happened that should.
fn play(length: Option<Duration>) -> Result<bool, Fault> {
    let runtime = tokio::runtime::Runtime::new().map_err(Fault::new)?;
    let journal = Arc::new(Journal::new(true));
    let pbxs = runtime.block_on(start_pbxs(&journal))?;
    let table = table(&pbxs);
    let running = start_router(&table)?;
    let admin = admin::start(&running).map_err(Fault::new)?;
    let proxy =
        running.router().listeners().next().ok_or_else(|| Fault::new("the router has no listener"))?;
    introduce(&table, &pbxs, proxy, admin);
    let kept = runtime.block_on(scenario::play(&journal, &running, &pbxs, proxy, length));
    running.stop();
    kept.map_err(Fault::new)
}

/// Three PBXs at addresses of their own, as in a cluster; with port 5060 where it is free.
async fn start_pbxs(journal: &Arc<Journal>) -> Result<Vec<Pbx>, Fault> {
    let mut pbxs = Vec::new();
    for n in 1..=3u8 {
        let ip = Ipv4Addr::new(127, 0, 0, 10 + n);
        let address = free_udp(SocketAddr::from((ip, 5060)));
        let behaviour = Behaviour { shortest: scenario::SHORTEST, ..Behaviour::default() };
        let pbx = Pbx::start(address, &format!("pbx{n}"), behaviour, journal.clone()).await;
        pbxs.push(
            pbx.map_err(|error| Fault::new(format_args!("pbx{n} cannot listen on {address}: {error}")))?,
        );
    }
    Ok(pbxs)
}

fn start_router(table: &str) -> Result<Running, Fault> {
    let sip = free_udp(SocketAddr::from((Ipv4Addr::LOCALHOST, 5060)));
    let http = free_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9060)));
    let text = format!(
        "aliases = [\"{DOMAIN}\"]\n[[listen]]\nname = \"sip\"\ntransport = \"udp\"\naddress = \"{sip}\"\n\n\
         [admin]\naddress = \"{http}\"\n"
    );
    let settings = Settings::parse("demo.toml", &text, Path::new(""));
    let settings = settings.map_err(|diagnostics| Fault::diagnostics("demo.toml", &diagnostics))?;
    let source = TableSource::Text { name: "demo table".to_owned(), text: table.to_owned() };
    control::start(settings, source).map_err(Fault::new)
}

/// The demo's table: PUBLISH and SUBSCRIBE for one user meet on one PBX.
fn table(pbxs: &[Pbx]) -> String {
    let backends: String = (pbxs.iter())
        .map(|pbx| {
            let (name, address) = (pbx.name(), pbx.address());
            format!("[[pool.backend]]\nname = \"{name}\"\nuri = \"sip:{address};transport=udp\"\n\n")
        })
        .collect();
    format!(
        r#"[[pool]]
name = "presence"
balance = "resource"       # all that concerns one user meets on one PBX
probe = "off"

{backends}[[rule]]
name = "presence, lamps and mailboxes"
match = {{ method = ["SUBSCRIBE", "PUBLISH"], event = ["presence", "dialog", "message-summary"], source = "clients" }}
route = "presence"

[[rule]]
name = "packages that no PBX should see"
match = {{ method = ["SUBSCRIBE", "PUBLISH"], event = ["{refused}"] }}
reply = {{ code = 489, reason = "Bad Event" }}

[[rule]]
name = "all else from phones"
match = {{ source = "clients" }}
route = "presence"
"#,
        refused = scenario::REFUSED_PACKAGE,
    )
}

fn introduce(table: &str, pbxs: &[Pbx], proxy: SocketAddr, admin: Option<SocketAddr>) {
    println!("Tidings demo: a router, three PBXs, phones and a publisher, all on this machine.\n");
    println!("The table:\n");
    table.lines().for_each(|line| println!("    {line}"));
    println!("\n  router   sip:{proxy} (UDP)");
    if let Some(admin) = admin {
        println!("  status   http://{admin}/");
        println!("  metrics  http://{admin}/metrics");
    }
    for pbx in pbxs {
        println!("  {}     sip:{}", pbx.name(), pbx.address());
    }
    println!("\nTimes are UTC. Ctrl-C ends it.\n");
}

/// The address with its port where nobody listens there, else with port 0. Asked with a plain bind: the router's own
/// sockets would share a port with another router of the same user.
fn free_udp(address: SocketAddr) -> SocketAddr {
    match UdpSocket::bind(address) {
        Ok(_) => address,
        Err(_) => SocketAddr::new(address.ip(), 0),
    }
}

fn free_tcp(address: SocketAddr) -> SocketAddr {
    match TcpListener::bind(address) {
        Ok(_) => address,
        Err(_) => SocketAddr::new(address.ip(), 0),
    }
}
