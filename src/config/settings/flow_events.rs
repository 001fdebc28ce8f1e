//! `[flow_events]`: where it is told who was on a connection that ended (SPEC 9.9); `[keepalive]`: datagrams that keep NAT
//! bindings of registered phones open (SPEC 9.10).

use std::{net::SocketAddr, ops::Range, time::Duration};

use super::{
    super::document::{Faults, Text, Value, in_order, quoted},
    ListenSpec, Settings,
    read::{as_usize, bytes, set, time},
    units,
};
use crate::wire::{Transport, Uri};

pub(super) const KEYS: [&str; 9] = [
    "delay",
    "log",
    "webhook",
    "webhook_token",
    "webhook_timeout",
    "retry_max",
    "spool",
    "notify",
    "deregister",
];
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// `[flow_events]`. Without a sink no event is sent, but counted.
#[derive(Clone, Debug)]
pub struct FlowEvents {
    /// Who is back on a newer connection within this time makes no event; default 2 s.
    pub delay: Duration,
    /// A line in the log; default no.
    pub log: bool,
    pub webhook: Option<Webhook>,
    pub notify: Option<NotifyTo>,
    /// REGISTER with Expires 0 for who was registered, to the backend that took the registration; default no.
    pub deregister: bool,
}

/// Where and how events are posted.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// `http` or `https`.
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<String>,
    /// For one POST; default 10 s.
    pub timeout: Duration,
    /// After a failure it is tried again after 1 s, 2 s, 4 s, … up to this; default 1 min.
    pub retry_max: Duration,
    /// Bytes of events that may wait; default 16 MiB.
    pub spool: usize,
}

/// Who gets a NOTIFY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotifyTo {
    Uri {
        uri: String,
        address: SocketAddr,
        transport: Transport,
    },
    /// `pool:NAME`: its first backend that takes new requests.
    Pool(String),
}

impl Default for FlowEvents {
    fn default() -> FlowEvents {
        FlowEvents {
            delay: Duration::from_secs(2),
            log: false,
            webhook: None,
            notify: None,
            deregister: false,
        }
    }
}

/// Gives the place of `notify`, where it names an address: see `leaves`.
pub(super) fn flow_events(
    faults: &mut Faults<'_>,
    value: &Value<'_>,
    out: &mut FlowEvents,
) -> Option<Range<usize>> {
    let table = faults.table("flow_events", value)?;
    let mut place = None;
    let mut hook = Webhook {
        url: String::new(),
        token: None,
        timeout: Duration::from_secs(10),
        retry_max: MINUTE,
        spool: 16 << 20,
    };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        match name {
            "delay" => set(&mut out.delay, time(faults, name, value, MINUTE)),
            "log" => set(&mut out.log, faults.boolean(name, value)),
            "webhook" => set(&mut hook.url, faults.string(name, value).and_then(|text| url(faults, &text))),
            "webhook_token" => match faults.string(name, value) {
                // Not quoted: a token does not belong on a screen.
                Some(text) if text.value.is_empty() || !text.value.bytes().all(|b| b.is_ascii_graphic()) => {
                    faults.error(text.span, "webhook_token: one word of printable ASCII (RFC 6750 2.1)");
                }
                Some(text) => hook.token = Some(text.value.to_owned()),
                None => {}
            },
            "webhook_timeout" => match time(faults, name, value, MINUTE) {
                Some(timeout) if timeout < Duration::from_millis(100) => {
                    faults.error(value.span(), "webhook_timeout: less than 100 ms");
                }
                timeout => set(&mut hook.timeout, timeout),
            },
            "retry_max" => match time(faults, name, value, DAY) {
                Some(most) if most < Duration::from_secs(1) => {
                    faults.error(value.span(), "retry_max: less than 1 s");
                }
                most => set(&mut hook.retry_max, most),
            },
            "spool" => set(&mut hook.spool, bytes(faults, name, value, 4 << 10..=1 << 30)),
            "notify" => {
                out.notify = faults.string(name, value).and_then(|text| notify_to(faults, &text));
                place = matches!(out.notify, Some(NotifyTo::Uri { .. })).then(|| value.span());
            }
            "deregister" => set(&mut out.deregister, faults.boolean(name, value)),
            _ => faults.unknown_key(key, "[flow_events]", KEYS),
        }
    }
    out.webhook = (!hook.url.is_empty()).then_some(hook);
    place
}

/// Is there a listener by which a NOTIFY to this address can leave?
pub(super) fn leaves(faults: &mut Faults<'_>, place: Range<usize>, settings: &Settings) {
    let Some(NotifyTo::Uri { address, transport, .. }) = settings.flow_events.notify else { return };
    let fits = |l: &ListenSpec| l.transport == transport && l.address.is_ipv4() == address.is_ipv4();
    if settings.listen.iter().any(fits) {
        return;
    }
    let message = format!(
        "notify: a NOTIFY leaves by a listener, and none has transport {} and an IPv{} address",
        transport.label(),
        if address.is_ipv4() { 4 } else { 6 }
    );
    faults.error(place, message);
}

fn url(faults: &mut Faults<'_>, text: &Text<'_>) -> Option<String> {
    let rest = text.value.strip_prefix("http://").or_else(|| text.value.strip_prefix("https://"));
    let plain = |rest: &str| rest.bytes().all(|b| b.is_ascii_graphic()) && !rest.contains(['@', '#']);
    let host = rest.filter(|rest| plain(rest)).and_then(|rest| rest.split(['/', '?']).next());
    if host.and_then(units::host_port).is_some() {
        return Some(text.value.to_owned());
    }
    let message = format!(
        "webhook: {} is no URL such as \"https://events.example.com/flows\" (credentials: webhook_token)",
        quoted(text.value)
    );
    faults.error(text.span.clone(), message);
    None
}

fn notify_to(faults: &mut Faults<'_>, text: &Text<'_>) -> Option<NotifyTo> {
    if let Some(pool) = text.value.strip_prefix("pool:").filter(|pool| !pool.is_empty()) {
        return Some(NotifyTo::Pool(pool.to_owned()));
    }
    if let Some(to) = uri(text.value) {
        return Some(to);
    }
    let message = format!(
        "notify: {} is neither \"pool:NAME\" nor a URI with an IP address, such as \
         \"sip:events@192.0.2.1:5060;transport=udp\" (udp, tcp, tls)",
        quoted(text.value)
    );
    faults.error(text.span.clone(), message);
    None
}

fn uri(written: &str) -> Option<NotifyTo> {
    let uri = Uri::parse(written.as_bytes()).filter(Uri::is_sip)?;
    let named = match uri.param(b"transport") {
        None => None,
        Some(named) => Some(named?.to_ascii_lowercase()),
    };
    // sips goes by TLS, whose transport is tcp (RFC 3261 26.2.2); transport=tls is what everybody writes.
    let transport = match (uri.is_sips(), named.as_deref()) {
        (false, None | Some(b"udp")) => Transport::Udp,
        (false, Some(b"tcp")) => Transport::Tcp,
        (false, Some(b"tls")) | (true, None | Some(b"tls" | b"tcp")) => Transport::Tls,
        _ => return None,
    };
    let ip = crate::wire::ip::parse(uri.host.host)?;
    let address = SocketAddr::new(ip, uri.host.port.unwrap_or(transport.default_port()));
    Some(NotifyTo::Uri { uri: written.to_owned(), address, transport })
}

/// `[keepalive]`
#[derive(Clone, Debug)]
pub struct Keepalive {
    /// Default off.
    pub method: KeepaliveMethod,
    /// How often each phone's flow gets one; default 25 s.
    pub interval: Duration,
    /// In a second, at most; default 1,000.
    pub rate: usize,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepaliveMethod {
    Off,
    /// Nothing comes back.
    Crlf,
    /// A phone that neither answers nor says anything else for 32 s is taken for gone until it speaks.
    Options,
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { method: KeepaliveMethod::Off, interval: Duration::from_secs(25), rate: 1_000 }
    }
}

pub(super) fn keepalive(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Keepalive) {
    let Some(table) = faults.table("keepalive", value) else { return };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        match name {
            "method" => set(&mut out.method, keepalive_method(faults, value)),
            "interval" => match time(faults, name, value, DAY) {
                Some(interval) if interval < Duration::from_secs(1) => {
                    faults.error(value.span(), "interval: less than 1 s");
                }
                interval => set(&mut out.interval, interval),
            },
            "rate" => set(&mut out.rate, faults.integer(name, value, 1..=1_000_000).map(as_usize)),
            _ => faults.unknown_key(key, "[keepalive]", ["method", "interval", "rate"]),
        }
    }
}

fn keepalive_method(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<KeepaliveMethod> {
    use KeepaliveMethod::{Crlf, Off, Options};
    faults.choice("method", value, [("off", Off), ("crlf", Crlf), ("options", Options)])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::Settings, *};

    fn read(text: &str) -> Result<Settings, String> {
        let told = |faults: Vec<crate::config::Diagnostic>| {
            faults.iter().map(|fault| format!("{fault}\n")).collect::<String>()
        };
        Settings::parse("tidings.toml", text, Path::new("/")).map_err(told)
    }

    #[test]
    fn every_key_is_read() {
        let settings = read(
            "[[listen]]\ntransport = \"tcp\"\naddress = \"192.0.2.9:5060\"\n[flow_events]\ndelay = \"1s\"\nlog = true\nwebhook = \"https://events.example.com:8443/flows?x=1\"\n\
             webhook_token = \"secret\"\nwebhook_timeout = \"3s\"\nretry_max = \"5m\"\nspool = \"1MiB\"\n\
             notify = \"sip:events@192.0.2.1;transport=tcp\"\nderegister = true\n\
             [keepalive]\nmethod = \"options\"\ninterval = \"20s\"\nrate = 50\n",
        );
        let settings = settings.expect("valid");
        let events = settings.flow_events;
        let hook = events.webhook.expect("a webhook");
        assert_eq!((events.delay.as_secs(), events.log, events.deregister), (1, true, true));
        assert_eq!((hook.timeout.as_secs(), hook.retry_max.as_secs(), hook.spool), (3, 300, 1 << 20));
        assert_eq!(hook.token.as_deref(), Some("secret"));
        let Some(NotifyTo::Uri { address, transport, .. }) = events.notify else { panic!("a URI") };
        assert_eq!((address.to_string().as_str(), transport), ("192.0.2.1:5060", Transport::Tcp));
        let keepalive = settings.keepalive;
        assert_eq!((keepalive.method, keepalive.interval.as_secs()), (KeepaliveMethod::Options, 20));
        assert_eq!(keepalive.rate, 50);
        let pool = read("[flow_events]\nnotify = \"pool:presence\"\n").expect("valid").flow_events.notify;
        assert_eq!(pool, Some(NotifyTo::Pool("presence".into())));
    }

    #[test]
    fn a_notify_goes_by_what_its_uri_says() {
        for (uri, port, transport) in [
            ("sip:192.0.2.1", 5060, Transport::Udp),
            ("sip:192.0.2.1;transport=TCP", 5060, Transport::Tcp),
            ("sip:192.0.2.1;transport=tls", 5061, Transport::Tls),
            ("sips:192.0.2.1", 5061, Transport::Tls),
            ("sips:192.0.2.1:5071;transport=tcp", 5071, Transport::Tls),
        ] {
            let label = transport.label();
            let listen = format!("[[listen]]\ntransport = \"{label}\"\naddress = \"192.0.2.9:5060\"\n");
            let tls = "[tls]\ncertificate = \"a.pem\"\nprivate_key = \"a.key\"\n";
            let tls = if transport == Transport::Tls { tls } else { "" };
            let text = format!("{listen}{tls}[flow_events]\nnotify = \"{uri}\"\n");
            let settings = read(&text).unwrap_or_else(|told| panic!("{uri}: {told}"));
            let Some(NotifyTo::Uri { address, transport: by, .. }) = settings.flow_events.notify else {
                panic!("a URI")
            };
            assert_eq!((address.port(), by), (port, transport), "{uri}");
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (line, said) in [
            ("webhook = \"ftp://x/y\"", "ftp://x/y"),
            ("webhook = \"http://user:secret@x/y\"", "webhook_token"),
            ("webhook_token = \"two words\"", "one word"),
            ("notify = \"sip:events@example.com\"", "IP address"),
            ("notify = \"sips:events@example.com\"", "IP address"),
            ("notify = \"sips:192.0.2.1;transport=udp\"", "udp, tcp, tls"),
            ("notify = \"sip:192.0.2.1;transport=sctp\"", "udp, tcp, tls"),
            ("notify = \"sip:192.0.2.1;transport=tcp\"", "none has transport tcp and an IPv4 address"),
            ("notify = \"sip:[2001:db8::1]\"", "none has transport udp and an IPv6 address"),
            ("spool = 1", "spool"),
            ("dealy = \"1s\"", "delay"),
            ("retry_max = \"1ms\"", "1 s"),
        ] {
            let told = read(&format!("[flow_events]\n{line}\n")).expect_err(line);
            assert!(told.contains(said) && told.contains("tidings.toml:2:"), "{line}: {told}");
        }
        let told = read("[keepalive]\nmethod = \"optoins\"\n").expect_err("no method");
        assert!(told.contains("\"options\""), "{told}");
    }
}
