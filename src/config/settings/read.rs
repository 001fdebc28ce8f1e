//! From the text of tidings.toml to `Settings`: every fault collected. One function per section, the larger ones in rooms of
//! their own (`listen`, `limits`, `tls` and so on).

use std::{path::Path, time::Duration};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    super::{
        diagnostic::Diagnostic,
        document::{self, Faults, Value, in_order, quoted},
        headers,
    },
    Admin, Log, Settings, Tokens, Trust, Workers, default_listener, dns, flow_events, keys, limits, listen,
    protection, tls, units,
};

/// Keys of a tidings.toml.
pub const SECTIONS: [&str; 20] = [
    "table",
    "state_dir",
    "aliases",
    "workers",
    "listen",
    "trust",
    "tokens",
    "limits",
    "timers",
    "health",
    "udp",
    "dns",
    "connections",
    "tls",
    "flow_events",
    "keepalive",
    "protection",
    "admin",
    "log",
    "cluster",
];

pub(super) const ADMIN: [&str; 5] = ["address", "token", "hosts", "connections", "request_time"];

impl Settings {
    /// Reads tidings.toml. `file` names it in diagnostics; relative paths in it start at `base_dir`.
    pub fn parse(file: &str, text: &str, base_dir: &Path) -> Result<Settings, Vec<Diagnostic>> {
        let (root, mut faults) = document::open(file, text);
        let mut settings = Settings::default();
        settings.origin.file = file.to_owned();
        let (mut secured, mut general, mut notify) = (Vec::new(), tls::Written::default(), None);
        for (key, value) in in_order(&root) {
            match key.get_ref().as_ref() {
                "table" => settings.table = path(&mut faults, "table", value, base_dir),
                "state_dir" => settings.state_dir = path(&mut faults, "state_dir", value, base_dir),
                "aliases" => settings.aliases = aliases(&mut faults, value),
                "workers" => workers(&mut faults, value, &mut settings.workers),
                "listen" => secured = listen::listeners(&mut faults, value, base_dir, &mut settings),
                "trust" => trust(&mut faults, value, &mut settings.trust),
                "tokens" => tokens(&mut faults, value, base_dir, &mut settings.tokens),
                "limits" => limits::limits(&mut faults, value, &mut settings.limits),
                "timers" => limits::timers(&mut faults, value, &mut settings.timers),
                "health" => limits::health(&mut faults, value, &mut settings.health),
                "udp" => limits::udp(&mut faults, value, &mut settings.udp),
                "dns" => dns::dns(&mut faults, value, &mut settings.dns),
                "connections" => limits::connections(&mut faults, value, &mut settings.connections),
                "tls" => general = tls::tls(&mut faults, value, base_dir, &mut settings.tls),
                "flow_events" => {
                    notify = flow_events::flow_events(&mut faults, value, &mut settings.flow_events);
                }
                "keepalive" => flow_events::keepalive(&mut faults, value, &mut settings.keepalive),
                "protection" => protection::protection(&mut faults, value, &mut settings.protection),
                "admin" => admin(&mut faults, value, &mut settings.admin),
                "log" => log(&mut faults, value, &mut settings.log),
                "cluster" => faults.not_yet(key, "routers do not know each other so far; leave the section out"),
                "pool" | "rule" | "packages" => faults.error(
                    key.span(),
                    format!(
                        "{} belongs into the routing table, another file: name it here by table = \"table.toml\"",
                        quoted(key.get_ref())
                    ),
                ),
                _ => faults.unknown_key(key, "tidings.toml", SECTIONS),
            }
        }
        let servers = tls::complete(&mut faults, general, secured);
        let listeners = settings.listen.iter_mut().filter(|listen| listen.transport.is_secure());
        listeners.zip(servers).for_each(|(listen, tls)| listen.tls = Some(tls));
        if settings.listen.is_empty() {
            settings.listen.push(default_listener());
            settings.origin.listen.clear();
        }
        if let Some(place) = notify {
            flow_events::leaves(&mut faults, place, &settings);
        }
        if faults.has_errors() { Err(faults.finish()) } else { Ok(settings) }
    }
}

fn path(faults: &mut Faults<'_>, key: &str, value: &Value<'_>, base: &Path) -> Option<std::path::PathBuf> {
    let text = faults.string(key, value)?;
    if text.value.is_empty() || text.value.contains('\0') {
        faults.error(text.span, format!("{key} is no path"));
        return None;
    }
    Some(base.join(text.value))
}

fn aliases(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let Some(items) = faults.array("aliases", value) else { return out };
    for item in items.iter() {
        let Some(text) = faults.string("aliases", item) else { continue };
        if units::host_port(text.value).is_none() {
            let message = format!(
                "{} is neither a host name nor an address, with or without a port",
                quoted(text.value)
            );
            faults.error(text.span, message);
        } else if out.iter().any(|known| known.eq_ignore_ascii_case(text.value)) {
            faults.error(text.span, format!("alias {} stands here twice", quoted(text.value)));
        } else {
            out.push(text.value.to_owned());
        }
    }
    out
}

fn workers(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Workers) {
    let Some(table) = faults.table("workers", value) else { return };
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "count" => set(&mut out.count, faults.integer("count", value, 1..=1024).map(as_usize)),
            "pin" => set(&mut out.pin, faults.boolean("pin", value)),
            _ => faults.unknown_key(key, "[workers]", ["count", "pin"]),
        }
    }
}

fn trust(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Trust) {
    let Some(table) = faults.table("trust", value) else { return };
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "prefixes" => {
                let items = faults.array("prefixes", value).into_iter().flat_map(|items| items.iter());
                for item in items {
                    let Some(text) = faults.string("prefixes", item) else { continue };
                    match network(text.value) {
                        Some(net) if net.prefix_len() == 0 => {
                            let message =
                                "this trusts every sender, and no header would be stripped from anybody";
                            faults.error(text.span, message);
                        }
                        Some(net) => out.prefixes.push(net),
                        None => faults.error(
                            text.span,
                            format!(
                                "{} is not an address or prefix such as \"192.0.2.0/24\"",
                                quoted(text.value)
                            ),
                        ),
                    }
                }
            }
            "strip" => {
                let items = faults.array("strip", value).into_iter().flat_map(|items| items.iter());
                for item in items {
                    let Some(text) = faults.string("strip", item) else { continue };
                    match headers::strippable(text.value) {
                        Ok(()) => out.strip.push(text.value.to_owned()),
                        Err(why) => faults.error(text.span, why),
                    }
                }
            }
            _ => faults.unknown_key(key, "[trust]", ["prefixes", "strip"]),
        }
    }
}

/// An address, or a prefix.
pub(crate) fn network(written: &str) -> Option<IpNet> {
    let address = written.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    address.or_else(|| written.parse().ok())
}

fn tokens<'i>(faults: &mut Faults<'i>, value: &Value<'i>, base: &Path, out: &mut Tokens) {
    let Some(table) = faults.table("tokens", value) else { return };
    let mut ring_at = None;
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "router_id" => {
                let id = faults.integer("router_id", value, 0..=255).and_then(|id| u8::try_from(id).ok());
                set(&mut out.router_id, id);
            }
            "keys" => {
                ring_at = Some(key.span());
                ring(faults, value, out);
            }
            "key_file" => out.key_file = path(faults, "key_file", value, base),
            _ => faults.unknown_key(key, "[tokens]", ["router_id", "keys", "key_file"]),
        }
    }
    if let (Some(span), Some(_)) = (ring_at, &out.key_file) {
        faults.error(span, "give either keys or key_file, not both: only one key can sign");
    }
}

fn ring<'i>(faults: &mut Faults<'i>, value: &Value<'i>, out: &mut Tokens) {
    let Some(items) = faults.array("keys", value) else { return };
    if items.is_empty() || items.len() > keys::MOST_KEYS {
        faults.error(value.span(), format!("keys: a ring holds 1 to {} keys", keys::MOST_KEYS));
        return;
    }
    for item in items.iter() {
        let Some(table) = faults.table("keys", item) else { continue };
        let (mut id, mut secret) = (None, None);
        let mut sound = true;
        for (key, value) in in_order(table) {
            match key.get_ref().as_ref() {
                "id" => {
                    id = faults.integer("id", value, 0..=15).and_then(|id| u8::try_from(id).ok());
                    sound &= id.is_some();
                }
                "key" => match faults.string("key", value) {
                    // Not quoted: a key does not belong on a screen.
                    Some(text) => match keys::key(text.value) {
                        Some(bytes) => secret = Some(bytes),
                        None => {
                            sound = false;
                            faults.error(text.span, "key: expected 32 hexadecimal digits (128 bits)");
                        }
                    },
                    None => sound = false,
                },
                _ => faults.unknown_key(key, "a token key", ["id", "key"]),
            }
        }
        match (id, secret) {
            (Some(id), Some(_)) if out.keys.iter().any(|(known, _)| *known == id) => {
                faults.error(item.span(), format!("key id {id} stands here twice"));
            }
            (Some(id), Some(secret)) => out.keys.push((id, secret)),
            _ if sound => {
                faults.missing(item.span(), "a token key is { id = 0, key = \"32 hexadecimal digits\" }")
            }
            _ => {}
        }
    }
}

/// Times of connections are kept by the second.
pub(super) fn at_least_a_second(
    faults: &mut Faults<'_>,
    key: &str,
    value: &Value<'_>,
    most: Duration,
) -> Option<Duration> {
    let time = time(faults, key, value, most)?;
    if time < Duration::from_secs(1) {
        faults.error(value.span(), format!("{key}: less than 1 s"));
        return None;
    }
    Some(time)
}

/// Addresses and prefixes.
pub(super) fn networks(faults: &mut Faults<'_>, key: &str, value: &Value<'_>) -> Vec<IpNet> {
    let mut out = Vec::new();
    for item in faults.array(key, value).into_iter().flat_map(|items| items.iter()) {
        let Some(text) = faults.string(key, item) else { continue };
        match network(text.value) {
            Some(net) => out.push(net),
            None => faults.error(
                text.span,
                format!("{} is not an address or prefix such as \"192.0.2.0/24\"", quoted(text.value)),
            ),
        }
    }
    out
}

fn admin(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Admin) {
    let Some(table) = faults.table("admin", value) else { return };
    let mut at = value.span();
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "address" => {
                at = value.span();
                let Some(text) = faults.string("address", value) else { continue };
                if text.value == "off" {
                    out.address = None;
                } else if let Some(address) = units::socket_address(text.value, 9060) {
                    out.address = Some(address);
                } else {
                    let message =
                        format!("{} is not \"off\" nor an IP address with a port", quoted(text.value));
                    faults.error(text.span, message);
                }
            }
            "token" => match faults.string("token", value) {
                // A bearer token is one word (RFC 6750 2.1); a short one can be guessed.
                Some(text) if text.value.len() < 16 || !text.value.bytes().all(|b| b.is_ascii_graphic()) => {
                    faults
                        .error(text.span, "token: at least 16 characters of printable ASCII without blanks");
                }
                Some(text) => out.token = Some(text.value.to_owned()),
                None => {}
            },
            "hosts" => {
                for item in faults.array("hosts", value).into_iter().flat_map(|items| items.iter()) {
                    let Some(text) = faults.string("hosts", item) else { continue };
                    match units::host_port(text.value) {
                        Some((_, None)) => out.hosts.push(text.value.to_owned()),
                        _ => faults.error(
                            text.span,
                            format!("{} is no host name without a port", quoted(text.value)),
                        ),
                    }
                }
            }
            // They are among the open files that are kept from SIP's connections.
            "connections" => {
                set(&mut out.connections, faults.integer("connections", value, 1..=512).map(as_usize));
            }
            "request_time" => {
                let hour = Duration::from_secs(3600);
                set(&mut out.request_time, at_least_a_second(faults, "request_time", value, hour));
            }
            _ => faults.unknown_key(key, "[admin]", ADMIN),
        }
    }
    if let (Some(address), None) = (out.address, &out.token)
        && !address.ip().to_canonical().is_loopback()
        && !table.contains_key("token")
    {
        let message =
            format!("the admin address {} is not loopback: it needs a token (token = \"…\")", address.ip());
        faults.error(at, message);
    }
}

fn log(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Log) {
    let Some(table) = faults.table("log", value) else { return };
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "format" => match faults.string("format", value) {
                Some(text) if matches!(text.value, "text" | "json") => out.json = text.value == "json",
                Some(text) => {
                    faults
                        .error(text.span, format!("unknown log format {} (text, json)", quoted(text.value)));
                }
                None => {}
            },
            "level" => match faults.string("level", value) {
                Some(text) if is_level(text.value) => out.level = text.value.to_owned(),
                Some(text) => faults.error(
                    text.span,
                    format!(
                        "unknown log level {} (error, warn, info, debug, trace, off; or directives such as \
                         \"info,tidings::net=debug\")",
                        quoted(text.value)
                    ),
                ),
                None => {}
            },
            _ => faults.unknown_key(key, "[log]", ["format", "level"]),
        }
    }
}

fn is_level(written: &str) -> bool {
    let level = |word: &str| matches!(word, "error" | "warn" | "info" | "debug" | "trace" | "off");
    let target = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-'))
    };
    written.split(',').all(|directive| match directive.split_once('=') {
        Some((module, word)) => target(module) && level(word),
        None => level(directive),
    })
}

/// A duration of at most `most`.
pub(crate) fn time(
    faults: &mut Faults<'_>,
    key: &str,
    value: &Value<'_>,
    most: Duration,
) -> Option<Duration> {
    let text = match value.get_ref() {
        DeValue::String(_) => faults.string(key, value)?,
        _ => {
            faults.wrong_type(key, value, "a time such as \"30s\", \"500ms\" or \"5m\"");
            return None;
        }
    };
    match units::duration(text.value) {
        Some(duration) if duration <= most => Some(duration),
        Some(_) => {
            faults
                .error(text.span, format!("{key}: {} is more than {} s", quoted(text.value), most.as_secs()));
            None
        }
        None => {
            faults.error(
                text.span,
                format!("{key}: {} is not a time such as \"30s\", \"500ms\" or \"5m\"", quoted(text.value)),
            );
            None
        }
    }
}

pub(super) fn bytes(
    faults: &mut Faults<'_>,
    key: &str,
    value: &Value<'_>,
    range: std::ops::RangeInclusive<u64>,
) -> Option<usize> {
    let DeValue::String(written) = value.get_ref() else {
        return faults.integer(key, value, range).map(as_usize);
    };
    match units::size(written) {
        Some(size) if range.contains(&size) => Some(as_usize(size)),
        Some(_) => {
            let (low, high) = (range.start(), range.end());
            faults.error(
                value.span(),
                format!("{key}: {} is not between {low} and {high} bytes", quoted(written)),
            );
            None
        }
        None => {
            let message =
                format!("{key}: {} is not a size such as \"64KiB\", \"8MiB\" or 65536", quoted(written));
            faults.error(value.span(), message);
            None
        }
    }
}

pub(super) fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// All ranges above fit into 32 bits.
pub(super) fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
