//! `[dns]`: how host names of backends are resolved (SPEC 5.4).

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;

use super::{
    super::document::{Faults, Value, in_order, quoted},
    read::{as_usize, network, set, time},
    units,
};

pub(super) const KEYS: [&str; 9] =
    ["servers", "timeout", "wait", "ttl_min", "ttl_max", "retry_max", "avoid", "addresses", "prefixes"];
const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

/// `[dns]`
#[derive(Clone, Debug)]
pub struct Dns {
    /// Empty: those of /etc/resolv.conf, with its search domains.
    pub servers: Vec<SocketAddr>,
    /// For one name, with all its records and every retry; default 5 s.
    pub timeout: Duration,
    /// How long a new table waits for names that were never resolved, before it comes into force without them; default 3 s.
    pub wait: Duration,
    /// Bounds of the time to live of an answer, whatever its records say; default 5 s and 1 h.
    pub ttl_min: Duration,
    pub ttl_max: Duration,
    /// After a failure the name is tried again after 1 s, 2 s, 4 s, … up to this; default 30 s.
    pub retry_max: Duration,
    /// For so long an address that refused a request is passed over, where its backend has others; default 30 s.
    pub avoid: Duration,
    /// Most addresses of one name; default 32.
    pub addresses: usize,
    /// What an answer may hold: addresses elsewhere are ignored. Empty: any address that can be one host's.
    pub prefixes: Vec<IpNet>,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            wait: Duration::from_secs(3),
            ttl_min: Duration::from_secs(5),
            ttl_max: Duration::from_secs(3_600),
            retry_max: Duration::from_secs(30),
            avoid: Duration::from_secs(30),
            addresses: 32,
            prefixes: Vec::new(),
        }
    }
}

pub(super) fn dns(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Dns) {
    let Some(table) = faults.table("dns", value) else { return };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        let (place, most) = match name {
            "timeout" => (&mut out.timeout, MINUTE),
            "wait" => (&mut out.wait, MINUTE),
            "ttl_min" => (&mut out.ttl_min, DAY),
            "ttl_max" => (&mut out.ttl_max, DAY),
            "retry_max" => (&mut out.retry_max, DAY),
            "avoid" => (&mut out.avoid, DAY),
            "servers" => {
                out.servers = servers(faults, value);
                continue;
            }
            "addresses" => {
                set(&mut out.addresses, faults.integer(name, value, 1..=256).map(as_usize));
                continue;
            }
            "prefixes" => {
                out.prefixes = prefixes(faults, value);
                continue;
            }
            _ => {
                faults.unknown_key(key, "[dns]", KEYS);
                continue;
            }
        };
        set(place, time(faults, name, value, most));
    }
    if out.timeout < Duration::from_millis(100) {
        faults.error(value.span(), "timeout: less than 100 ms is too short for any answer");
    }
    if out.ttl_min < Duration::from_secs(1) || out.ttl_max < out.ttl_min {
        faults.error(value.span(), "ttl_min is at least 1 s, and ttl_max no less than it");
    }
    out.retry_max = out.retry_max.max(Duration::from_secs(1));
}

fn servers(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<SocketAddr> {
    let mut out = Vec::new();
    let items = faults.array("servers", value).into_iter().flat_map(|items| items.iter());
    for item in items {
        let Some(text) = faults.string("servers", item) else { continue };
        match units::socket_address(text.value, 53) {
            Some(server) => out.push(server),
            None => {
                let message = format!(
                    "{} is not the address of a DNS server, such as \"192.0.2.53\" or \"127.0.0.1:5353\"",
                    quoted(text.value)
                );
                faults.error(text.span, message);
            }
        }
    }
    out
}

fn prefixes(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<IpNet> {
    let mut out = Vec::new();
    let items = faults.array("prefixes", value).into_iter().flat_map(|items| items.iter());
    for item in items {
        let Some(text) = faults.string("prefixes", item) else { continue };
        match network(text.value) {
            Some(net) => out.push(net),
            None => {
                let message =
                    format!("{} is not an address or prefix such as \"192.0.2.0/24\"", quoted(text.value));
                faults.error(text.span, message);
            }
        }
    }
    out
}
