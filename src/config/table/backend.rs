//! `[[pool.backend]]`: a PBX by name and URI (SPEC 5.4). The URI's host is an address or a host name; in this version the
//! transport is UDP, TCP or TLS.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        document::{Faults, Text, Value, in_order, quoted},
        settings,
    },
    AdminState, BackendSpec, DnsName, Host,
};
use crate::wire::Transport;

const KEYS: [&str; 6] = ["name", "uri", "weight", "state", "priority", "max_calls"];

/// A backend's index in its pool is 16 bits on the path.
const MOST_BACKENDS: usize = 65_535;

/// Backends of the pools before, by name: a name means one URI's host and port in the whole table.
#[derive(Default)]
pub(super) struct Known {
    by_name: HashMap<String, (Host, Transport, String, usize)>,
    by_address: HashMap<(Host, Transport), String>,
}

/// Reads the backends of one pool.
pub(super) fn backends<'i>(
    faults: &mut Faults<'i>,
    value: &Value<'i>,
    out: &mut Vec<BackendSpec>,
    known: &mut Known,
) {
    let mut here: HashMap<String, usize> = HashMap::new();
    for (table, span) in faults.tables("pool.backend", value) {
        let Some((backend, name_at, uri_at)) = backend(faults, table, &span) else { continue };
        if let Some(line) = here.insert(backend.name.clone(), backend.line) {
            let name = quoted(&backend.name);
            faults.error(name_at, format!("backend {name} is already in this pool, in line {line}"));
        } else {
            compare(faults, &backend, uri_at, known);
        }
        out.push(backend);
    }
    if out.len() > MOST_BACKENDS {
        faults.error(value.span(), format!("there are more than {MOST_BACKENDS} backends in one pool"));
    }
}

fn compare(faults: &mut Faults<'_>, backend: &BackendSpec, uri_at: Range<usize>, known: &mut Known) {
    let address = (backend.addr.clone(), backend.transport);
    match known.by_name.get(&backend.name) {
        Some((addr, transport, uri, line)) if (addr, transport) != (&address.0, &address.1) => {
            let message = format!(
                "backend {} has the URI {} in line {line}: one name means one address",
                quoted(&backend.name),
                quoted(uri)
            );
            faults.error(uri_at, message);
            return;
        }
        Some(_) => return,
        None => {
            let entry = (backend.addr.clone(), backend.transport, backend.uri.clone(), backend.line);
            known.by_name.insert(backend.name.clone(), entry);
        }
    }
    let Some(other) = known.by_address.get(&address) else {
        known.by_address.insert(address, backend.name.clone());
        return;
    };
    let message = format!(
        "backends {} and {} have one address, {}: what comes from there is taken for the first",
        quoted(other),
        quoted(&backend.name),
        backend.addr
    );
    faults.warning(uri_at, message);
}

/// The backend and the places of its name and URI.
fn backend<'i>(
    faults: &mut Faults<'i>,
    table: &DeTable<'i>,
    span: &Range<usize>,
) -> Option<(BackendSpec, Range<usize>, Range<usize>)> {
    let (mut name, mut uri, mut weight, mut state) = (None, None, 1, AdminState::Active);
    let (mut priority, mut max_calls) = (None, None);
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "name" => name = faults.name("name", value),
            "uri" => uri = faults.string("uri", value),
            "weight" => {
                let number = faults.integer("weight", value, 1..=1_000_000);
                weight = number.and_then(|number| u32::try_from(number).ok()).unwrap_or(1);
            }
            "state" => state = admin_state(faults, value).unwrap_or_default(),
            "priority" => {
                let number = faults.integer("priority", value, 0..=65_535);
                priority = number.and_then(|number| u16::try_from(number).ok());
            }
            "max_calls" => {
                let number = faults.integer("max_calls", value, 1..=1_000_000);
                max_calls = number.and_then(|number| u32::try_from(number).ok());
            }
            "max_subscriptions" => faults.not_yet(key, "subscriptions are not counted so far; leave it out"),
            "accept" => faults.not_yet(key, "it filters what a fork of a PUBLISH sends; leave it out"),
            _ => faults.unknown_key(key, "[[pool.backend]]", KEYS),
        }
    }
    for (key, example) in [("name", "name = \"pbx1\""), ("uri", "uri = \"sip:192.0.2.11:5060\"")] {
        if !table.contains_key(key) {
            faults.missing(span.clone(), format!("this backend has no {key}: {example}"));
        }
    }
    let uri = uri?;
    let parts = parse_uri(faults, &uri);
    let (name, (host, addr, transport)) = (name?, parts?);
    let backend = BackendSpec {
        name: name.value.to_owned(),
        uri: uri.value.to_owned(),
        host,
        addr,
        transport,
        weight,
        state,
        priority,
        max_calls,
        line: faults.line_of(span.start),
    };
    Some((backend, name.span, uri.span))
}

fn admin_state(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<AdminState> {
    if !matches!(value.get_ref(), DeValue::String(_)) {
        faults.wrong_type("state", value, "\"active\", \"drain\" or \"off\"");
        return None;
    }
    let states = [("active", AdminState::Active), ("drain", AdminState::Drain), ("off", AdminState::Off)];
    faults.choice("state", value, states)
}

/// Host as written (lower case, no brackets), where it leads, and transport of a backend's URI.
fn parse_uri(faults: &mut Faults<'_>, text: &Text<'_>) -> Option<(String, Host, Transport)> {
    match uri_parts(text.value) {
        Ok(parts) => Some(parts),
        Err(message) => {
            faults.error(text.span.clone(), format!("URI {}: {message}", quoted(text.value)));
            None
        }
    }
}

fn uri_parts(uri: &str) -> Result<(String, Host, Transport), String> {
    let (scheme, rest) = uri.split_once(':').ok_or("it has no scheme, such as sip:192.0.2.11:5060")?;
    match scheme.to_ascii_lowercase().as_str() {
        "sip" | "sips" => {}
        _ if rest.parse::<u16>().is_ok() => {
            return Err("it has no scheme: write sip: before the address".to_owned());
        }
        _ => return Err(format!("unknown scheme {}, only sip and sips can be a backend's", quoted(scheme))),
    }
    let secure = scheme.eq_ignore_ascii_case("sips");
    if rest.contains('?') {
        return Err("headers behind a \"?\" have no meaning here".to_owned());
    }
    let (address, params) = rest.split_once(';').unwrap_or((rest, ""));
    if address.contains('@') {
        return Err("it has a user part; a backend is a host, so write sip:HOST:PORT".to_owned());
    }
    let transport = match (secure, transport(params)?) {
        // RFC 3261 26.2.2: the scheme says TLS, transport=tcp what lies below it.
        (true, None | Some(Transport::Tcp | Transport::Tls)) => Transport::Tls,
        (true, Some(_)) => return Err("sips is over TLS: transport=udp contradicts it".to_owned()),
        (false, transport) => transport.unwrap_or(Transport::Udp),
    };
    let (host, port) = host_and_port(address)?;
    let port = match port {
        Some(port) => {
            let number = port.parse::<u16>().ok().filter(|port| *port > 0);
            Some(number.ok_or_else(|| format!("{} is no port", quoted(port)))?)
        }
        None => None,
    };
    let Ok(ip) = host.parse::<IpAddr>() else {
        let host = host_name(host)?;
        return Ok((host.clone(), Host::Name(DnsName { host, port, transport }), transport));
    };
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255, 255, 255, 255]) {
        return Err(format!("{ip} is not the address of one host"));
    }
    let addr = SocketAddr::new(ip, port.unwrap_or(transport.default_port()));
    Ok((host.to_ascii_lowercase(), addr.into(), transport))
}

fn host_and_port(address: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(inner) = address.strip_prefix('[') {
        let (host, rest) =
            inner.split_once(']').ok_or("the bracket before the IPv6 address is never closed")?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!("{} behind the address makes no sense", quoted(rest))),
        };
    }
    if address.matches(':').count() > 1 {
        return Err("an IPv6 address stands in brackets: sip:[2001:db8::1]:5060".to_owned());
    }
    match address.split_once(':') {
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((address, None)),
    }
}

/// A host name in lower case.
fn host_name(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    match settings::host_port(host) {
        Some((name, None)) => Ok(name),
        _ if host.bytes().any(|byte| byte.is_ascii_alphabetic()) => {
            Err(format!("{} is neither a host name nor an IP address", quoted(host)))
        }
        _ => Err(format!("{} is not an IP address", quoted(host))),
    }
}

fn transport(params: &str) -> Result<Option<Transport>, String> {
    let mut transport = None;
    for param in params.split(';').filter(|param| !param.is_empty()) {
        let (name, value) = param.split_once('=').unwrap_or((param, ""));
        match name.to_ascii_lowercase().as_str() {
            "transport" if transport.is_some() => return Err("it names two transports".to_owned()),
            "transport" => {
                let lower = value.to_ascii_lowercase();
                match Transport::ALL.into_iter().find(|known| known.label() == lower) {
                    Some(known @ (Transport::Udp | Transport::Tcp | Transport::Tls)) => {
                        transport = Some(known)
                    }
                    Some(other) => {
                        let label = other.label();
                        return Err(format!("transport {label} is no backend's, only udp, tcp and tls are"));
                    }
                    None => return Err(format!("unknown transport {}", quoted(value))),
                }
            }
            // We send by loose routing anyway.
            "lr" => {}
            _ => {
                return Err(format!(
                    "the parameter {} has no meaning here, only transport has",
                    quoted(name)
                ));
            }
        }
    }
    Ok(transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_that_are_backends() {
        let parts = |uri: &str| uri_parts(uri).map(|(host, addr, _)| (host, addr.to_string()));
        let expect = |host: &str, addr: &str| Ok((host.to_owned(), addr.to_owned()));
        assert_eq!(parts("sip:127.0.0.11:5060;transport=udp"), expect("127.0.0.11", "127.0.0.11:5060"));
        assert_eq!(parts("SIP:10.0.0.1"), expect("10.0.0.1", "10.0.0.1:5060"));
        assert_eq!(
            parts("sip:[2001:DB8::1]:5070;lr;transport=UDP"),
            expect("2001:db8::1", "[2001:db8::1]:5070")
        );
        assert_eq!(parts("sip:[2001:db8::1]"), expect("2001:db8::1", "[2001:db8::1]:5060"));
        // A name keeps whether it has a port: without one SRV is asked first (RFC 3263 4.2).
        assert_eq!(parts("sip:PBX.example.com"), expect("pbx.example.com", "pbx.example.com"));
        assert_eq!(parts("sip:pbx1:5070;transport=udp"), expect("pbx1", "pbx1:5070"));
    }

    #[test]
    fn rfc_3261_19_1_2_sips_and_tls() {
        for (uri, port) in [
            ("sips:127.0.0.11", 5061),
            ("sips:127.0.0.11:5071;transport=tcp", 5071),
            ("sip:127.0.0.11;transport=tls", 5061),
            ("SIPS:127.0.0.11;transport=TLS", 5061),
        ] {
            let (_, addr, transport) = uri_parts(uri).expect(uri);
            assert_eq!(
                (addr.address().map(|addr| addr.port()), transport),
                (Some(port), Transport::Tls),
                "{uri}"
            );
        }
    }

    #[test]
    fn uris_that_are_none_say_why() {
        for (uri, why) in [
            ("127.0.0.1:5060", "no scheme"),
            ("127.0.0.1", "no scheme"),
            ("sips:127.0.0.1;transport=udp", "contradicts"),
            ("http:127.0.0.1", "scheme"),
            ("sip:pbx_.example-.com:5060x", "no port"),
            ("sip:pbx..example.com", "host name"),
            ("sip:pbx.example.7", "host name"),
            ("sip:pbx*", "host name"),
            ("sip:", "no host"),
            ("sip:;lr", "no host"),
            ("sip:1.2.3.4:", "no port"),
            ("sip:1.2.3.4:0", "no port"),
            ("sip:1.2.3.4:65536", "no port"),
            ("sip:1.2.3.400", "not an IP address"),
            ("sip:2001:db8::1", "brackets"),
            ("sip:[2001:db8::1", "never closed"),
            ("sip:[::1]x", "makes no sense"),
            ("sip:0.0.0.0", "one host"),
            ("sip:224.0.0.1", "one host"),
            ("sip:1000@1.2.3.4", "user part"),
            ("sip:1.2.3.4;transport=wss", "only udp, tcp and tls"),
            ("sip:1.2.3.4;transport=dccp", "unknown transport"),
            ("sip:1.2.3.4;transport=udp;transport=udp", "two transports"),
            ("sip:1.2.3.4;maddr=5.6.7.8", "maddr"),
            ("sip:1.2.3.4?Subject=x", "headers"),
        ] {
            let message = uri_parts(uri).expect_err(uri);
            assert!(message.contains(why), "{uri}: {message}");
        }
    }
}
