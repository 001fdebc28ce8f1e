//! How connections of a listener begin: `path` and `origins` of a WebSocket (RFC 7118), and `proxy_protocol`, the prefixes
//! of proxies that say for whom they call (SPEC 9.4, 9.5).

use std::{ops::Range, sync::Arc};

use ipnet::IpNet;

use super::{
    super::document::{Faults, Key, Value, quoted},
    read::network,
};
use crate::wire::{Transport, upgrade::Rules};

/// The keys of `[[listen]]` that are read here.
pub(super) const LISTENER_KEYS: [&str; 3] = ["path", "origins", "proxy_protocol"];

/// What a listener says about it.
#[derive(Default)]
pub(super) struct Written {
    rules: Rules,
    proxies: Vec<IpNet>,
    /// The first key that only a WebSocket has, and the one that only streams have.
    websocket_at: Option<(&'static str, Range<usize>)>,
    proxies_at: Option<Range<usize>>,
}

impl Written {
    pub(super) fn take<'i>(&mut self, faults: &mut Faults<'i>, key: &Key<'i>, value: &Value<'i>) {
        match key.get_ref().as_ref() {
            "path" => {
                self.websocket_at.get_or_insert(("path", key.span()));
                self.rules.path = path(faults, value);
            }
            "origins" => {
                self.websocket_at.get_or_insert(("origins", key.span()));
                self.rules.origins = Some(origins(faults, value));
            }
            _ => {
                self.proxies_at = Some(key.span());
                self.proxies = proxies(faults, value);
            }
        }
    }

    /// For a listener of this transport.
    pub(super) fn complete(
        self,
        faults: &mut Faults<'_>,
        transport: Transport,
    ) -> (Option<Arc<Rules>>, Arc<[IpNet]>) {
        let label = transport.label();
        if let Some((key, span)) = self.websocket_at.filter(|_| !transport.is_websocket()) {
            faults.error(span, format!("transport {label} has no {key}, only ws and wss have"));
        }
        if let Some(span) = self.proxies_at.filter(|_| transport.is_datagram()) {
            let message = format!("transport {label} has no PROXY protocol, only tcp, tls, ws and wss have");
            faults.error(span, message);
        }
        (transport.is_websocket().then(|| Arc::new(self.rules)), self.proxies.into())
    }
}

fn path(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<String> {
    let text = faults.string("path", value)?;
    let visible = text.value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
    if !text.value.starts_with('/') || !visible {
        let message = format!("{} is no path such as \"/ws\", without a query", quoted(text.value));
        faults.error(text.span, message);
        return None;
    }
    Some(text.value.to_owned())
}

fn origins(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<String> {
    let mut origins = Vec::new();
    for item in faults.array("origins", value).into_iter().flat_map(|items| items.iter()) {
        let Some(text) = faults.string("origins", item) else { continue };
        match text.value.split_once("://") {
            Some((scheme, host))
                if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                    && !scheme.is_empty()
                    && !host.is_empty()
                    && host.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'*')) =>
            {
                origins.push(text.value.to_ascii_lowercase());
            }
            _ => faults.error(
                text.span,
                format!(
                    "{} is no origin as browsers say it, such as \"https://phone.example.com\" or \
                     \"https://phone.example.com:8443\", without a path",
                    quoted(text.value)
                ),
            ),
        }
    }
    origins
}

fn proxies(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<IpNet> {
    let mut proxies = Vec::new();
    for item in faults.array("proxy_protocol", value).into_iter().flat_map(|items| items.iter()) {
        let Some(text) = faults.string("proxy_protocol", item) else { continue };
        match network(text.value) {
            Some(net) if net.prefix_len() == 0 => {
                faults.error(text.span, "with this anybody could say that he is anybody, a backend too");
            }
            Some(net) => proxies.push(net),
            None => faults.error(
                text.span,
                format!("{} is not an address or prefix such as \"192.0.2.0/24\"", quoted(text.value)),
            ),
        }
    }
    proxies
}
