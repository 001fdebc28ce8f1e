//! `[[listen]]`: where the router is spoken to.

use std::{collections::HashMap, net::SocketAddr, ops::Range, path::Path};

use toml::de::DeTable;

use super::{
    super::document::{Faults, Text, Value, in_order, quoted},
    ListenSpec, Settings, Side, listener_id,
    read::set,
    streams, tls, units,
};
use crate::wire::Transport;

pub(super) const LISTEN: [&str; 13] = [
    "name",
    "transport",
    "address",
    "side",
    "advertise",
    "certificate",
    "private_key",
    "certificates",
    "client_certificates",
    "client_ca",
    "path",
    "origins",
    "proxy_protocol",
];

/// A listener's index in a message's facts is one byte.
const MOST_LISTENERS: usize = 255;

/// Gives for each listener with TLS its place and what it says about it.
pub(super) fn listeners<'i>(
    faults: &mut Faults<'i>,
    value: &Value<'i>,
    base: &Path,
    settings: &mut Settings,
) -> Vec<(Range<usize>, tls::Written)> {
    settings.listen.clear();
    let mut secured = Vec::new();
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut ids: HashMap<u16, String> = HashMap::new();
    let mut addresses: HashMap<(bool, SocketAddr), usize> = HashMap::new();
    for (table, span) in faults.tables("listen", value) {
        let line = faults.line_of(span.start);
        let Some((listen, written)) = listener(faults, table, &span, base) else { continue };
        if listen.transport.is_secure() {
            secured.push((span.clone(), written));
        } else if let Some(first) = written.first {
            let label = listen.transport.label();
            faults.error(first, format!("transport {label} has no certificates, only tls and wss have"));
        }
        if let Some(other) = names.insert(listen.name.clone(), line) {
            let message = format!(
                "listener {} is already there, in line {other}; name them apart",
                quoted(&listen.name)
            );
            faults.error(span.clone(), message);
        } else if let Some(other) = ids.insert(listen.id, listen.name.clone()) {
            let message = format!(
                "the names {} and {} give one listener id, by which tokens know them: rename one",
                quoted(&other),
                quoted(&listen.name)
            );
            faults.error(span.clone(), message);
        }
        if let Some(other) = addresses.insert((listen.transport.is_datagram(), listen.address), line) {
            let message =
                format!("{} is already listened on, by the listener of line {other}", listen.address);
            faults.error(span.clone(), message);
        }
        settings.origin.listen.push(faults.place(span.start));
        settings.listen.push(listen);
        if settings.listen.len() == MOST_LISTENERS + 1 {
            faults.error(span, format!("there are more than {MOST_LISTENERS} listeners"));
        }
    }
    secured
}

fn listener<'i>(
    faults: &mut Faults<'i>,
    table: &DeTable<'i>,
    span: &Range<usize>,
    base: &Path,
) -> Option<(ListenSpec, tls::Written)> {
    let (mut name, mut transport, mut address, mut advertise) = (None, Some(Transport::Udp), None, None);
    let mut side = Side::Both;
    let mut sound = true;
    let (mut written, mut begins) = (tls::Written::default(), streams::Written::default());
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            name if tls::LISTENER_KEYS.contains(&name) => written.take(faults, key, value, base),
            "name" => {
                name = faults.name("name", value);
                sound &= name.is_some();
            }
            "transport" => transport = listener_transport(faults, value),
            "address" => {
                address = faults.string("address", value);
                sound &= address.is_some();
            }
            "side" => set(&mut side, listener_side(faults, value)),
            "advertise" => advertise = faults.string("advertise", value),
            "backend_ports" => {
                faults.not_yet(key, "all traffic to backends leaves by the listener's own port")
            }
            name if streams::LISTENER_KEYS.contains(&name) => begins.take(faults, key, value),
            _ => faults.unknown_key(key, "[[listen]]", LISTEN),
        }
    }
    let Some(text) = address else {
        if sound {
            faults.missing(span.clone(), "this listener has no address: address = \"192.0.2.1:5060\"");
        }
        return None;
    };
    let transport = transport?;
    let address = listen_address(faults, &text, transport)?;
    let advertise = advertise.and_then(|text| advertised(faults, &text, address.port()));
    let name = name
        .map_or_else(|| format!("{}-{}", transport.label(), address.port()), |text| text.value.to_owned());
    let id = listener_id(&name);
    let (websocket, proxies) = begins.complete(faults, transport);
    let listen = ListenSpec { name, transport, address, side, advertise, id, tls: None, websocket, proxies };
    sound.then_some((listen, written))
}

fn listener_transport(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<Transport> {
    let text = faults.string("transport", value)?;
    match Transport::ALL.into_iter().find(|transport| transport.label() == text.value) {
        Some(known) => return Some(known),
        None => {
            let near = faults.suggestion(text.value, Transport::ALL.map(Transport::label));
            faults.error(text.span, format!("unknown transport {}{near}", quoted(text.value)));
        }
    }
    None
}

fn listener_side(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<Side> {
    let sides = [("clients", Side::Clients), ("backends", Side::Backends), ("both", Side::Both)];
    faults.choice("side", value, sides)
}

fn listen_address(faults: &mut Faults<'_>, text: &Text<'_>, transport: Transport) -> Option<SocketAddr> {
    let fault = match units::socket_address(text.value, transport.default_port()) {
        Some(address) if address.port() == 0 => "port 0 is no port to listen on".to_owned(),
        Some(address) if address.ip().is_multicast() => format!("{} is a multicast address", address.ip()),
        Some(address) => return Some(address),
        None => format!(
            "{} is not an IP address with a port, such as \"192.0.2.1:5060\" or \"[2001:db8::1]:5060\"",
            quoted(text.value)
        ),
    };
    faults.error(text.span.clone(), fault);
    None
}

fn advertised(faults: &mut Faults<'_>, text: &Text<'_>, port: u16) -> Option<(String, u16)> {
    match units::host_port(text.value) {
        Some((host, _)) if matches!(host.as_str(), "0.0.0.0" | "::") => {
            faults.error(text.span.clone(), format!("advertise: {host} cannot be reached by anybody"));
            None
        }
        Some((host, advertised)) => Some((host, advertised.unwrap_or(port))),
        None => {
            let message =
                format!("advertise: {} is not a host name or address with a port", quoted(text.value));
            faults.error(text.span.clone(), message);
            None
        }
    }
}
