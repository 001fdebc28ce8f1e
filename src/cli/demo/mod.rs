//! `tidings demo`: everything on this machine, with nothing else installed. The router on loopback, three small PBXs
//! behind it, phones that subscribe, a publisher; one line for each event, rates each second, a summary at the end.
//!
//! The router is the real one, started as `tidings run` does with a table that is printed first. The peers are SIP user
//! agents of their own over real sockets (`pbx`, `phone`, `publisher`; `endpoint`, `dialog`, `message` and `document` are
//! what they have in common), of use to tests too. `scenario` says who does what, `journal` tells and counts.

mod account;
mod compositor;
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
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

pub use self::{
    account::{Account, Failure},
    dialog::Dialog,
    document::{PACKAGES, State, content_type},
    endpoint::{Endpoint, Incoming},
    journal::{Count, Journal},
    message::{Line, Message},
    pbx::{Behaviour, Pbx},
    phone::{Notification, Phone, Watch},
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
    let (pbxs, sip, http) = runtime.block_on(start_pbxs(&journal))?;
    let table = table(&pbxs);
    let running = start_router(sip, http, &table)?;
    let admin = admin::start(&running).map_err(Fault::new)?;
    let proxy =
        running.router().listeners().next().ok_or_else(|| Fault::new("the router has no listener"))?;
    introduce(&journal, &table, &pbxs, proxy, admin);
    let kept = runtime.block_on(scenario::play(&journal, &running, &pbxs, proxy, length));
    running.stop();
    kept.map_err(Fault::new)
}

/// Three PBXs at addresses of their own, as in a cluster, and where router and admin may listen: ports 5060 and 9060, or
/// those of both rows that are free together. The PBXs hold the row against a second demo, since the router's own sockets
/// would share a port with another router of the same user.
async fn start_pbxs(journal: &Arc<Journal>) -> Result<(Vec<Pbx>, SocketAddr, SocketAddr), Fault> {
    for port in (5060..6060).step_by(10) {
        let sip = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 4000));
        let Ok(pbxs) = pbxs_at(port, journal).await else { continue };
        if UdpSocket::bind(sip).is_ok() && TcpListener::bind(http).is_ok() {
            return Ok((pbxs, sip, http));
        }
    }
    Err(Fault::new(
        "the demo found no free port between 5060 and 6050 on 127.0.0.1 and 127.0.0.11 to 127.0.0.13",
    ))
}

async fn pbxs_at(port: u16, journal: &Arc<Journal>) -> io::Result<Vec<Pbx>> {
    let mut pbxs = Vec::new();
    for n in 1..=3u8 {
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 10 + n), port));
        let behaviour = Behaviour { shortest: scenario::SHORTEST, ..Behaviour::default() };
        pbxs.push(Pbx::start(address, &format!("pbx{n}"), behaviour, journal.clone()).await?);
    }
    Ok(pbxs)
}

fn start_router(sip: SocketAddr, http: SocketAddr, table: &str) -> Result<Running, Fault> {
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
reply = {{ code = 489, reason = "Bad Event", headers = {{ Allow-Events = "{served}" }} }}

[[rule]]
name = "all else from phones"
match = {{ source = "clients" }}
route = "presence"
"#,
        refused = scenario::REFUSED_PACKAGE,
        served = PACKAGES.join(", "),
    )
}

fn introduce(journal: &Journal, table: &str, pbxs: &[Pbx], proxy: SocketAddr, admin: Option<SocketAddr>) {
    let print = |line: fmt::Arguments<'_>| journal.print(line);
    print(format_args!("Tidings demo: a router, three PBXs, phones and a publisher, all on this machine.\n"));
    print(format_args!("The table:\n"));
    table.lines().for_each(|line| print(format_args!("    {line}")));
    print(format_args!("\n  router   sip:{proxy} (UDP)"));
    if let Some(admin) = admin {
        print(format_args!("  status   http://{admin}/"));
        print(format_args!("  metrics  http://{admin}/metrics"));
    }
    for pbx in pbxs {
        print(format_args!("  {}     sip:{}", pbx.name(), pbx.address()));
    }
    print(format_args!("\nTimes are UTC. Ctrl-C ends it.\n"));
}
