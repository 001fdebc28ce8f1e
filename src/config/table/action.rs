//! The action of a rule (SPEC 5.2): `route`, `reply`, `redirect` or `drop`, exactly one.

use std::{collections::BTreeSet, ops::Range};

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        document::{Faults, Key, Text, Value, in_order, quoted},
        headers,
    },
    ActionSpec,
};

/// Keys that are actions, also of later versions.
pub(super) const KEYS: [&str; 6] = ["route", "reply", "redirect", "drop", "fork", "try"];

/// Reads the one action, and gives the place of its key. `None`: none that is sound (the fault is told).
pub(super) fn action<'i>(
    faults: &mut Faults<'i>,
    table: &DeTable<'i>,
    header: &Range<usize>,
    pools: &BTreeSet<String>,
) -> Option<(ActionSpec, Range<usize>)> {
    let mut found: Option<&Key<'i>> = None;
    let mut out = None;
    for (key, value) in in_order(table).into_iter().filter(|(key, _)| KEYS.contains(&key.get_ref().as_ref()))
    {
        if let Some(first) = found {
            let (first, second) = (first.get_ref(), key.get_ref());
            faults.error(key.span(), format!("a rule has one action, this one has {first} and {second}"));
        }
        let read = one(faults, key, value, pools);
        if found.is_none() {
            found = Some(key);
            out = read.map(|action| (action, value.span()));
        }
    }
    if found.is_none() {
        let message = "this rule has no action: route, reply, redirect or drop";
        faults.missing(header.clone(), message);
    }
    out
}

fn one<'i>(
    faults: &mut Faults<'i>,
    key: &Key<'i>,
    value: &Value<'i>,
    pools: &BTreeSet<String>,
) -> Option<ActionSpec> {
    match key.get_ref().as_ref() {
        "route" => {
            let text = faults.string("route", value)?;
            match text.value {
                "flow" => Some(ActionSpec::Flow),
                "request-uri" => Some(ActionSpec::RequestUri),
                pool if pools.contains(pool) => Some(ActionSpec::Route(pool.to_owned())),
                pool => {
                    let words = ["flow", "request-uri"].into_iter().chain(pools.iter().map(String::as_str));
                    faults.error(
                        text.span,
                        format!("unknown pool {}{}", quoted(pool), faults.suggestion(pool, words)),
                    );
                    None
                }
            }
        }
        "redirect" => redirect(faults, value, pools),
        "drop" => match value.get_ref() {
            DeValue::Boolean(true) => Some(ActionSpec::Drop),
            DeValue::Boolean(false) => {
                faults.error(value.span(), "drop = false is no action: leave it out");
                None
            }
            _ => {
                faults.wrong_type("drop", value, "true");
                None
            }
        },
        "reply" => reply(faults, value),
        "fork" => {
            faults.not_yet(key, "forks of SUBSCRIBE and the hub of PUBLISH come later; use route");
            None
        }
        _ => {
            faults.not_yet(key, "serial forking comes later; use route");
            None
        }
    }
}

fn redirect(faults: &mut Faults<'_>, value: &Value<'_>, pools: &BTreeSet<String>) -> Option<ActionSpec> {
    let text = faults.string("redirect", value)?;
    if pools.contains(text.value) {
        return Some(ActionSpec::RedirectPool(text.value.to_owned()));
    }
    let scheme = text.value.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    let message = match scheme.as_deref() {
        Some("sip" | "sips" | "tel") => match uri_fault(text.value) {
            None => return Some(ActionSpec::RedirectUri(text.value.to_owned())),
            Some(fault) => format!("redirect: {} {fault}", quoted(text.value)),
        },
        _ => {
            let near = faults.suggestion(text.value, pools.iter().map(String::as_str));
            format!("redirect: {} is neither a pool nor a SIP URI{near}", quoted(text.value))
        }
    };
    faults.error(text.span, message);
    None
}

/// What keeps this URI from standing between `<` and `>` in a Contact.
fn uri_fault(uri: &str) -> Option<&'static str> {
    let rest = uri.split_once(':').map_or("", |(_, rest)| rest);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if uri.len() > 512 {
        Some("is longer than 512 bytes")
    } else if uri.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'<' | b'>' | b'"')) {
        Some("holds a character that no URI holds")
    } else if host.is_empty() || host.starts_with([';', '?', ':']) {
        Some("names no host")
    } else {
        None
    }
}

fn reply<'i>(faults: &mut Faults<'i>, value: &Value<'i>) -> Option<ActionSpec> {
    let table = faults.table("reply", value)?;
    let (mut code, mut reason, mut extra) = (None, None, Vec::new());
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "code" => {
                code = faults.integer("code", value, 200..=699).and_then(|code| u16::try_from(code).ok());
            }
            "reason" => reason = faults.string("reason", value).and_then(|text| reason_phrase(faults, &text)),
            "headers" => extra = reply_headers(faults, value),
            _ => faults.unknown_key(key, "reply", ["code", "reason", "headers"]),
        }
    }
    if !table.contains_key("code") {
        faults
            .missing(value.span(), "this reply has no code: reply = { code = 403, reason = \"Forbidden\" }");
    }
    let code = code?;
    let reason = reason.unwrap_or_else(|| phrase(code).to_owned());
    Some(ActionSpec::Reply { code, reason, headers: extra })
}

fn reason_phrase(faults: &mut Faults<'_>, text: &Text<'_>) -> Option<String> {
    if text.value.len() > 128 || text.value.chars().any(char::is_control) {
        faults
            .error(text.span.clone(), "a reason is one line of at most 128 bytes without control characters");
        return None;
    }
    Some(text.value.to_owned())
}

fn reply_headers(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let Some(table) = faults.table("headers", value) else { return out };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        if let Err(why) = headers::repliable(name) {
            faults.error(key.span(), why);
            continue;
        }
        if let DeValue::Integer(number) = value.get_ref() {
            // Retry-After = 30
            if number.radix() == 10 {
                out.push((name.to_owned(), number.as_str().to_owned()));
                continue;
            }
        }
        for text in faults.strings(name, value) {
            if headers::is_value(text.value) {
                out.push((name.to_owned(), text.value.to_owned()));
            } else {
                let message = "a header's value is one line of at most 1024 bytes without control characters";
                faults.error(text.span, message);
            }
        }
    }
    out
}

/// The phrase of a code (RFC 3261 21 and the RFCs that added to it); that of its class for others.
#[allow(clippy::match_overlapping_arm)] // a code that has a phrase of its own stands before its class
fn phrase(code: u16) -> &'static str {
    match code {
        200 => "OK",
        202 => "Accepted",
        204 => "No Notification",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        305 => "Use Proxy",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Conditional Request Failed",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        421 => "Extension Required",
        423 => "Interval Too Brief",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        484 => "Address Incomplete",
        486 => "Busy Here",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        600 => "Busy Everywhere",
        603 => "Decline",
        604 => "Does Not Exist Anywhere",
        606 => "Not Acceptable",
        200..=299 => "OK",
        300..=399 => "Redirected",
        400..=499 => "Refused",
        500..=599 => "Server Failure",
        _ => "Declined",
    }
}
