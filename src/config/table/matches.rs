//! `match` of a rule (SPEC 5.1): plain keys, and regexes on headers and body fields. All keys that are there must hold.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        document::{Faults, Key, Text, Value, in_order, quoted},
        headers,
        settings::network,
    },
    ListenerUse, ListenerUser, MatchSpec, SourceSpec, Subject, pattern,
};
use crate::wire::{Method, Transport};

const KEYS: [&str; 15] = [
    "method",
    "event",
    "source",
    "transport",
    "listener",
    "ruri",
    "from",
    "to",
    "contact",
    "user-agent",
    "content-type",
    "header",
    "body",
    "device_state_filter",
    "mailbox_state_filter",
];

/// What a match is read into, beside what it needs from the rest of the table.
pub(super) struct Context<'c> {
    pub rule: &'c str,
    pub pools: &'c BTreeSet<String>,
    pub uses: &'c mut Vec<ListenerUse>,
}

pub(super) fn matches<'i>(
    faults: &mut Faults<'i>,
    table: &DeTable<'i>,
    context: &mut Context<'_>,
) -> MatchSpec {
    let mut out = MatchSpec::default();
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        match name {
            "method" => out.method = methods(faults, value),
            "event" => out.event = events(faults, value),
            "source" => out.source = sources(faults, value, context.pools),
            "transport" => out.transport = transports(faults, value),
            "listener" => out.listener = listeners(faults, value, context),
            "ruri" => regex(faults, name, value, Subject::Ruri, &mut out),
            "from" => regex(faults, name, value, Subject::From, &mut out),
            "to" => regex(faults, name, value, Subject::To, &mut out),
            "contact" => regex(faults, name, value, Subject::Contact, &mut out),
            "user-agent" => regex(faults, name, value, Subject::UserAgent, &mut out),
            "content-type" => regex(faults, name, value, Subject::ContentType, &mut out),
            "device_state_filter" => filter(faults, name, value, "device", &mut out),
            "mailbox_state_filter" => filter(faults, name, value, "uniqueid", &mut out),
            "header" | "body" => match value.get_ref() {
                DeValue::Table(fields) => {
                    for (field, value) in in_order(fields) {
                        dotted(faults, name, field.get_ref(), field, value, &mut out);
                    }
                }
                _ => {
                    let message = format!("{name}: say which one, {name}.NAME = \"regex\"");
                    faults.error(value.span(), message);
                }
            },
            _ => match name.split_once('.') {
                Some((room @ ("header" | "body"), field)) => {
                    dotted(faults, room, field, key, value, &mut out)
                }
                _ => faults.unknown_key(key, "match", KEYS),
            },
        }
    }
    out
}

/// `header.NAME` or `body.NAME`.
fn dotted<'i>(
    faults: &mut Faults<'i>,
    room: &str,
    field: &str,
    key: &Key<'i>,
    value: &Value<'i>,
    out: &mut MatchSpec,
) {
    let name = format!("{room}.{field}");
    if room == "header" {
        if !headers::is_token(field) {
            faults.error(key.span(), format!("{} is no header name", quoted(field)));
            return;
        }
        // By two of its names (header.f, header.From) one header would have two patterns that both must hold: a slip.
        let subject = Subject::Header(headers::canonical(field).into());
        if out.patterns.iter().any(|pattern| pattern.subject == subject) {
            faults.error(key.span(), format!("{name}: this match looks at that header already"));
        }
        regex(faults, &name, value, subject, out);
    } else if field.is_empty() || field.len() > 256 {
        faults.error(key.span(), format!("{} is no name of a body field", quoted(field)));
    } else if field == "raw" {
        regex(faults, &name, value, Subject::BodyRaw, out);
    } else {
        regex(faults, &name, value, Subject::Body(field.into()), out);
    }
}

fn regex(faults: &mut Faults<'_>, key: &str, value: &Value<'_>, subject: Subject, out: &mut MatchSpec) {
    let Some(text) = faults.string(key, value) else { return };
    out.patterns.extend(pattern::pattern(faults, key, &text, subject));
}

fn filter(faults: &mut Faults<'_>, key: &str, value: &Value<'_>, member: &str, out: &mut MatchSpec) {
    let Some(text) = faults.string(key, value) else { return };
    out.patterns.extend(pattern::filter(faults, key, &text, member));
}

fn methods(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<(Method, Box<str>)> {
    let mut out: Vec<(Method, Box<str>)> = Vec::new();
    let known = || Method::ALL.iter().filter(|method| **method != Method::Other).map(|method| method.label());
    for text in faults.strings("method", value) {
        let method = Method::of(text.value.as_bytes());
        if !headers::is_token(text.value) {
            faults.error(text.span, format!("{} is no method", quoted(text.value)));
            continue;
        }
        if matches!(method, Method::Cancel | Method::Ack) {
            let message =
                format!("{} is decided as the INVITE that it belongs to: this never matches", text.value);
            faults.warning(text.span.clone(), message);
        }
        if method == Method::Other {
            if let Some(exact) = known().find(|label| label.eq_ignore_ascii_case(text.value)) {
                let message = format!("methods are written in capitals (RFC 3261 7.1): {}", quoted(exact));
                faults.error(text.span.clone(), message);
            } else {
                let near = faults.suggestion(text.value, known());
                if !near.is_empty() {
                    faults.warning(text.span.clone(), format!("unknown method {}{near}", quoted(text.value)));
                }
            }
        }
        if out.iter().any(|(_, label)| **label == *text.value) {
            faults.error(text.span, format!("method {} stands here twice", quoted(text.value)));
        } else {
            out.push((method, text.value.into()));
        }
    }
    out
}

fn events(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<Box<str>> {
    let mut out: Vec<Box<str>> = Vec::new();
    for text in faults.strings("event", value) {
        if let Some((package, _)) = text.value.split_once(';') {
            let message = format!("event takes the package alone, without parameters: {}", quoted(package));
            faults.error(text.span, message);
        } else if !headers::is_token(text.value) {
            faults.error(text.span, format!("{} is no name of an event package", quoted(text.value)));
        } else if out.iter().any(|known| **known == *text.value) {
            faults.error(text.span, format!("event {} stands here twice", quoted(text.value)));
        } else {
            out.push(text.value.into());
        }
    }
    out
}

fn sources(faults: &mut Faults<'_>, value: &Value<'_>, pools: &BTreeSet<String>) -> Vec<SourceSpec> {
    let mut out: Vec<SourceSpec> = Vec::new();
    for text in faults.strings("source", value) {
        let Some(source) = source(faults, &text, pools) else { continue };
        if out.contains(&source) {
            faults.error(text.span, format!("source {} stands here twice", quoted(text.value)));
        } else {
            out.push(source);
        }
    }
    out
}

fn source(faults: &mut Faults<'_>, text: &Text<'_>, pools: &BTreeSet<String>) -> Option<SourceSpec> {
    match text.value {
        "backends" => return Some(SourceSpec::Backends),
        "clients" => return Some(SourceSpec::Clients),
        pool if pools.contains(pool) => return Some(SourceSpec::Pool(pool.into())),
        _ => {}
    }
    if let Some(net) = network(text.value) {
        if net != net.trunc() {
            let message =
                format!("{} has bits behind its prefix: {} is meant", quoted(text.value), net.trunc());
            faults.warning(text.span.clone(), message);
        }
        return Some(SourceSpec::Net(net.trunc()));
    }
    let numeric = text.value.contains(['/', ':']) || text.value.starts_with(|c: char| c.is_ascii_digit());
    let message = if numeric {
        format!("{} is not an address or prefix such as \"192.0.2.0/24\"", quoted(text.value))
    } else {
        let words = ["backends", "clients"].into_iter().chain(pools.iter().map(String::as_str));
        let near = faults.suggestion(text.value, words);
        format!("unknown source {}{near} (a prefix, backends, clients or a pool)", quoted(text.value))
    };
    faults.error(text.span.clone(), message);
    None
}

fn transports(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<Transport> {
    let mut out = Vec::new();
    for text in faults.strings("transport", value) {
        let Some(transport) = Transport::ALL.into_iter().find(|transport| transport.label() == text.value)
        else {
            let near = faults.suggestion(text.value, Transport::ALL.map(Transport::label));
            faults.error(text.span, format!("unknown transport {}{near}", quoted(text.value)));
            continue;
        };
        if out.contains(&transport) {
            faults.error(text.span, format!("transport {} stands here twice", quoted(text.value)));
        } else {
            out.push(transport);
        }
    }
    out
}

fn listeners(faults: &mut Faults<'_>, value: &Value<'_>, context: &mut Context<'_>) -> Vec<Box<str>> {
    let mut out: Vec<Box<str>> = Vec::new();
    for text in faults.strings("listener", value) {
        if out.iter().any(|known| **known == *text.value) {
            faults.error(text.span, format!("listener {} stands here twice", quoted(text.value)));
            continue;
        }
        let place = faults.place(text.span.start);
        let by = ListenerUser::Rule(context.rule.to_owned());
        context.uses.push(ListenerUse { listener: text.value.to_owned(), by, place });
        out.push(text.value.into());
    }
    out
}
