//! `[[pool]]`: backends that share the work, and how it is shared (SPEC 5.3, 5.4).

use std::{collections::HashMap, ops::Range, time::Duration};

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        document::{Faults, Text, Value, in_order, quoted},
        headers,
        settings::{network, time},
    },
    Balance, ListenerUse, ListenerUser, PoolSpec, TableSpec,
    backend::{self, Known},
    lint::Places,
    probe::{self, MIGRATE_AFTER, ProbeSpec},
};

const KEYS: [&str; 11] = [
    "name",
    "balance",
    "any_port",
    "listener",
    "unavailable",
    "panic",
    "probe",
    "migrate_after",
    "publish_expires_margin",
    "foreign_etag",
    "backend",
];
const RESERVED: [&str; 4] = ["backends", "clients", "flow", "request-uri"];
const BALANCES: [&str; 13] = [
    "resource",
    "resource+event",
    "user",
    "domain",
    "from-domain",
    "call-id",
    "from",
    "to",
    "source",
    "header:NAME",
    "least-calls",
    "least-latency",
    "priority",
];

/// A via token has 15 bits for its seconds.
const LONGEST_MARGIN: Duration = Duration::from_secs(3600);

/// A pool's index is 16 bits on the path.
const MOST_POOLS: usize = 65_535;

/// Reads all pools, in the order of the file.
pub(super) fn pools<'i>(
    faults: &mut Faults<'i>,
    value: &Value<'i>,
    spec: &mut TableSpec,
    lints: &mut Places,
) {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut known = Known::default();
    for (table, span) in faults.tables("pool", value) {
        let index = spec.pools.len();
        let Some(pool) = pool(faults, table, &span, index, &mut spec.listener_uses, &mut known) else {
            continue;
        };
        if let Some(line) = names.insert(pool.name.clone(), pool.line) {
            let at = name_span(table).unwrap_or(span.clone());
            faults.error(at, format!("pool {} is already there, in line {line}", quoted(&pool.name)));
        }
        lints.pools.push(span.start);
        spec.pools.push(pool);
    }
    if spec.pools.len() > MOST_POOLS {
        faults.error(value.span(), format!("there are more than {MOST_POOLS} pools"));
    }
}

fn name_span(table: &DeTable<'_>) -> Option<Range<usize>> {
    table.get("name").map(|name| name.span())
}

fn pool<'i>(
    faults: &mut Faults<'i>,
    table: &DeTable<'i>,
    span: &Range<usize>,
    index: usize,
    uses: &mut Vec<ListenerUse>,
    known: &mut Known,
) -> Option<PoolSpec> {
    let mut name = None;
    let mut pool = PoolSpec {
        name: String::new(),
        balance: Balance::Resource,
        any_port: false,
        listener: None,
        silence: true,
        panic: false,
        probe: Some(ProbeSpec::default()),
        migrate_after: MIGRATE_AFTER,
        publish_expires_margin: None,
        foreign_etag: false,
        backends: Vec::new(),
        line: faults.line_of(span.start),
    };
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "name" => name = faults.name("name", value).and_then(|text| pool_name(faults, text)),
            "balance" => pool.balance = balance(faults, value).unwrap_or_default(),
            "any_port" => pool.any_port = faults.boolean("any_port", value).unwrap_or_default(),
            "listener" => {
                if let Some(text) = faults.name("listener", value) {
                    let place = faults.place(text.span.start);
                    let listener = text.value.to_owned();
                    uses.push(ListenerUse {
                        listener: listener.clone(),
                        by: ListenerUser::Pool(index),
                        place,
                    });
                    pool.listener = Some(listener);
                }
            }
            "unavailable" => match faults.string("unavailable", value) {
                Some(text) if matches!(text.value, "silence" | "503") => {
                    pool.silence = text.value == "silence"
                }
                Some(text) => {
                    let message =
                        format!("unavailable: {} is neither \"silence\" nor \"503\"", quoted(text.value));
                    faults.error(text.span, message);
                }
                None => {}
            },
            "probe" => pool.probe = probe::read(faults, value),
            "panic" => pool.panic = faults.boolean("panic", value).unwrap_or_default(),
            "migrate_after" => {
                let after = time(faults, "migrate_after", value, probe::LONGEST);
                pool.migrate_after = after.unwrap_or(MIGRATE_AFTER);
            }
            "publish_expires_margin" => pool.publish_expires_margin = margin(faults, value),
            "foreign_etag" => match faults.string("foreign_etag", value) {
                Some(text) if matches!(text.value, "412" | "pass") => {
                    pool.foreign_etag = text.value == "pass"
                }
                Some(text) => {
                    let message =
                        format!("foreign_etag: {} is neither \"412\" nor \"pass\"", quoted(text.value));
                    faults.error(text.span, message);
                }
                None => {}
            },
            "migrate" => faults.not_yet(key, "migration comes with subscriptions; leave it out"),
            "backend" => {
                backend::backends(faults, value, &mut pool.backends, known);
            }
            "backends" => {
                faults.error(
                    key.span(),
                    "unknown key \"backends\" in [[pool]]: each backend is a [[pool.backend]]",
                );
            }
            _ => faults.unknown_key(key, "[[pool]]", KEYS),
        }
    }
    if !table.contains_key("name") {
        faults.missing(span.clone(), "this pool has no name");
    }
    // A pool without a sound name still counts, so that rules are not blamed for it.
    pool.name = name.or_else(|| match table.get("name")?.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        _ => None,
    })?;
    Some(pool)
}

/// Names that would mean something else in `route`, `redirect` or `source`.
fn pool_name(faults: &mut Faults<'_>, text: Text<'_>) -> Option<String> {
    let lower = text.value.to_ascii_lowercase();
    let scheme = ["sip:", "sips:", "tel:"].iter().any(|scheme| lower.starts_with(scheme));
    if RESERVED.contains(&text.value) {
        let message = format!(
            "no pool can be named {}: the word has a meaning of its own in rules",
            quoted(text.value)
        );
        faults.error(text.span, message);
    } else if scheme || network(text.value).is_some() {
        let message = format!("no pool can be named {}: it would read as an address", quoted(text.value));
        faults.error(text.span, message);
    }
    Some(text.value.to_owned())
}

/// `30`, `"30s"`, `"1m"`: whole seconds.
fn margin(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<u16> {
    let key = "publish_expires_margin";
    if let DeValue::Integer(_) = value.get_ref() {
        let seconds = faults.integer(key, value, 0..=LONGEST_MARGIN.as_secs())?;
        return u16::try_from(seconds).ok();
    }
    let margin = time(faults, key, value, LONGEST_MARGIN)?;
    if margin.subsec_millis() != 0 {
        faults.error(value.span(), format!("{key}: Expires counts whole seconds"));
    }
    u16::try_from(margin.as_secs()).ok()
}

fn balance(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<Balance> {
    let text = faults.string("balance", value)?;
    let fault = match text.value {
        "resource" => return Some(Balance::Resource),
        "resource+event" => return Some(Balance::ResourceEvent),
        "user" => return Some(Balance::User),
        "domain" => return Some(Balance::Domain),
        "from-domain" => return Some(Balance::FromDomain),
        "call-id" => return Some(Balance::CallId),
        "from" => return Some(Balance::From),
        "to" => return Some(Balance::To),
        "source" => return Some(Balance::Source),
        "least-calls" => return Some(Balance::LeastCalls),
        "least-latency" => return Some(Balance::LeastLatency),
        "priority" => return Some(Balance::Priority),
        "least-subscriptions" => {
            format!(
                "balance {} is not in this version yet: use one by hash, such as \"resource\"",
                quoted(text.value)
            )
        }
        other => match other.strip_prefix("header:") {
            Some(name) if headers::is_token(name) => {
                return Some(Balance::Header(headers::canonical(name).into()));
            }
            Some(name) => format!("balance: {} is no header name", quoted(name)),
            None => {
                let near = faults.suggestion(other, BALANCES);
                format!("unknown balance {}{near} ({})", quoted(other), BALANCES.join(", "))
            }
        },
    };
    faults.error(text.span, fault);
    None
}
