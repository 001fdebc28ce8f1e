//! `tidings explain`: what a table would do with one message, decided by the code that runs on the path, without a router.
//!
//! So that the answer is the same everywhere and always: where no configuration says otherwise a zero key and the listener
//! 127.0.0.1:5060; all backends up, no pins, no learnt flows, full limits, one fixed time.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Fault;
use crate::{
    config::{self, ListenSpec, Settings, Side},
    control::state_dir,
    forward::{self, Arrival, Explanation, Setup, Shared},
    live::{Dns, Now, Registry, Resolved},
    net,
    route::{self, Table},
    stats::SeriesRegistry,
    wire::token::Ring,
};

/// A phone that is nobody's backend (RFC 5737).
const SOME_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 5060);
const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5060);
/// 2001-09-09, and a monotonic clock past zero.
const FIXED: Now = Now { mono_ms: 1_000_000, unix_s: 1_000_000_000 };

#[derive(clap::Args)]
pub struct Args {
    /// Message as it stands on the wire; `-` reads standard input
    #[arg(value_name = "MESSAGE.sip")]
    message: PathBuf,
    /// Routing table; default: the one that the configuration names
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Address and port that it came from [default: 192.0.2.1:5060, a client]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = source)]
    source: Option<SocketAddr>,
    /// Name of the listener that received it [default: the first]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Configuration with the listeners, aliases, trust and token keys; default: one listener on 127.0.0.1:5060
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What a backend's host name resolves to, since no DNS is asked here; again for further addresses
    #[arg(long, value_name = "HOST=ADDRESS[:PORT]", value_parser = resolved)]
    resolve: Vec<(String, SocketAddr)>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let mut settings = super::settings(args.config.as_deref())?;
    if args.config.is_none() {
        settings.listen = vec![ListenSpec::udp("udp-5060", LISTENER, Side::Both)];
    }
    let file = args.table.as_deref().or(settings.table.as_deref());
    let file =
        file.ok_or_else(|| Fault::new("no table: name one with --table, or a configuration with --config"))?;
    let table = compile(&settings, file, &args.resolve)?;
    let (listener, local) = listener(&settings, args.listener.as_deref())?;
    let bytes = on_the_wire(read(&args.message)?);
    let arrival = Arrival { listener, local, peer: args.source.unwrap_or(SOME_CLIENT), flow: None };
    let told = explain(&settings, ring(&settings), &table, arrival, &bytes);
    if args.json {
        let json = serde_json::to_string_pretty(&told).map_err(Fault::new)?;
        println!("{json}");
    } else {
        print!("{told}");
    }
    Ok(())
}

/// The router's keys. Where its configuration names none, always the same, so that the same is printed; where they cannot be
/// read, all tokens count as those of an unknown key, which is told.
fn ring(settings: &Settings) -> Ring {
    let tokens = &settings.tokens;
    if tokens.keys.is_empty() && tokens.key_file.is_none() && settings.state_dir.is_none() {
        return Ring::new(&[(0, [0; 16])]);
    }
    let why = match state_dir::known_keys(settings) {
        Ok(Some(keys)) => return Ring::new(&keys),
        Ok(None) => "the router has made none yet".to_owned(),
        Err(error) => error.to_string(),
    };
    eprintln!("tidings: no token keys: {why}; tokens and entity-tags count as those of an unknown key");
    Ring::new(&[])
}

fn explain(settings: &Settings, ring: Ring, table: &Table, arrival: Arrival, bytes: &[u8]) -> Explanation {
    let setup = Arc::new(Setup::new(settings, ring, 0, FIXED));
    let shared = Arc::new(Shared::new(settings));
    forward::explain(&setup, &shared, table, arrival, bytes, FIXED)
}

/// An address with or without a port.
fn source(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>();
    let bare = || text.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 5060));
    with_port.or_else(|_| bare()).map_err(|_| "no IP address with or without a port".to_owned())
}

/// `pbx.example.com=192.0.2.11`, with or without the port.
fn resolved(text: &str) -> Result<(String, SocketAddr), String> {
    let (host, address) = text.split_once('=').ok_or("write HOST=ADDRESS")?;
    Ok((host.to_ascii_lowercase(), source(address)?))
}

fn compile(settings: &Settings, file: &Path, resolve: &[(String, SocketAddr)]) -> Result<Table, Fault> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Fault::new(format_args!("cannot read the table {name}: {error}")))?;
    let refused = |diagnostics: Vec<_>| Fault::diagnostics(&name, &diagnostics);
    let (spec, _) = config::table::parse(&name, &text).map_err(refused)?;
    let dns = Dns::default();
    for name in spec.names() {
        let its = resolve.iter().filter(|(host, _)| *host == name.host);
        let resolved = |&(_, mut addr): &(String, SocketAddr)| {
            addr.set_port(name.port.unwrap_or(addr.port()));
            Resolved { priority: 0, addr, weight: 1 }
        };
        dns.put(name, its.map(resolved).collect());
    }
    let faults = config::table::check_listeners(&spec, &settings.listen);
    if !faults.is_empty() {
        return Err(refused(faults));
    }
    let context = route::Context {
        listeners: &settings.listen,
        strip: &settings.trust.strip,
        registry: &Registry::default(),
        dns: &dns,
        unix_s: FIXED.unix_s,
        series: &SeriesRegistry::new(1),
        departed: Vec::new(),
        departed_most: settings.limits.departed,
        source_for: &net::udp::source_for,
        previous: None,
    };
    let (rules, pools) = route::compile(&spec, &context).map_err(refused)?;
    Ok(Table { rules, pools, version: 1 })
}

/// Index and address of the listener by name.
fn listener(settings: &Settings, name: Option<&str>) -> Result<(u8, SocketAddr), Fault> {
    let named = |listen: &&ListenSpec| name.is_none_or(|name| listen.name == name);
    let found = (0u8..).zip(&settings.listen).find(|(_, listen)| named(listen));
    let (index, listen) = found.ok_or_else(|| {
        let known: Vec<&str> = settings.listen.iter().map(|listen| listen.name.as_str()).collect();
        let name = name.unwrap_or_default();
        Fault::new(format_args!("no listener is named {name:?}; there are: {}", known.join(", ")))
    })?;
    Ok((index, listen.address))
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let fault = |error| Fault::new(format_args!("cannot read the message {}: {error}", path.display()));
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).map_err(fault)?;
        return Ok(bytes);
    }
    std::fs::read(path).map_err(fault)
}

/// A message that an editor saved without a single CR gets CRLF on its header lines; any other stays as it is.
fn on_the_wire(bytes: Vec<u8>) -> Vec<u8> {
    if memchr::memchr(b'\r', &bytes).is_some() {
        return bytes;
    }
    let head_end = memchr::memmem::find(&bytes, b"\n\n").map_or(bytes.len(), |at| at + 2);
    let mut out = Vec::with_capacity(bytes.len() + 64);
    for &byte in &bytes[..head_end] {
        if byte == b'\n' {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out.extend_from_slice(&bytes[head_end..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_may_lack_its_port() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:5060"),
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("2001:db8::1", "[2001:db8::1]:5060"),
            ("[2001:db8::1]", "[2001:db8::1]:5060"),
            ("[2001:db8::1]:7", "[2001:db8::1]:7"),
        ] {
            assert_eq!(source(text).map(|address| address.to_string()), Ok(expected.to_owned()));
        }
        assert!(source("pbx.example.com").is_err());
    }

    #[test]
    fn lines_of_an_editor_become_lines_of_the_wire_and_the_body_stays() {
        let saved = b"OPTIONS sip:a SIP/2.0\nl: 3\n\na\nb".to_vec();
        assert_eq!(on_the_wire(saved), b"OPTIONS sip:a SIP/2.0\r\nl: 3\r\n\r\na\nb");
        let odd = b"OPTIONS sip:a SIP/2.0\r\nl: 3\n\r\n".to_vec();
        assert_eq!(on_the_wire(odd.clone()), odd, "what has a CR is meant as it is");
    }
}
