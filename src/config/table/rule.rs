//! `[[rule]]`: what it matches, its one action, and what stands beside the action (SPEC 5.2).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
};

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        document::{Faults, Text, Value, in_order, quoted},
        headers,
    },
    ActionSpec, MatchSpec, RuleSpec, SourceSpec, TableSpec, Template, action,
    lint::Places,
    matches::{self, Context},
    template,
};
use crate::wire::Method;

const KEYS: [&str; 13] = [
    "name",
    "match",
    "route",
    "reply",
    "redirect",
    "drop",
    "path",
    "record_route",
    "set",
    "remove",
    "strip_prefix",
    "limit",
    "tag",
];

/// Reads all rules, in the order of the file.
pub(super) fn rules<'i>(
    faults: &mut Faults<'i>,
    value: &Value<'i>,
    spec: &mut TableSpec,
    lints: &mut Places,
) {
    let pools: BTreeSet<String> = spec.pools.iter().map(|pool| pool.name.clone()).collect();
    let mut names: HashMap<String, usize> = HashMap::new();
    for (table, span) in faults.tables("rule", value) {
        let line = faults.line_of(span.start);
        let name = name(faults, table, &span);
        if let Some(text) = &name
            && let Some(other) = names.insert(text.value.to_owned(), line)
        {
            let message = format!("rule {} is already there, in line {other}", quoted(text.value));
            faults.error(text.span.clone(), message);
        }
        let name = name.map_or("", |text| text.value);
        let mut context = Context { rule: name, pools: &pools, uses: &mut spec.listener_uses };
        let Some(rule) = rule(faults, table, &span, &mut context) else { continue };
        lints.rules.push(span.start);
        spec.rules.push(rule);
    }
}

fn name<'t>(faults: &mut Faults<'_>, table: &'t DeTable<'_>, header: &Range<usize>) -> Option<Text<'t>> {
    match table.get("name") {
        Some(value) => faults.name("name", value),
        None => {
            faults.missing(header.clone(), "this rule has no name: metrics and explain tell rules by name");
            None
        }
    }
}

fn rule<'i>(
    faults: &mut Faults<'i>,
    table: &DeTable<'i>,
    header: &Range<usize>,
    context: &mut Context<'_>,
) -> Option<RuleSpec> {
    let mut rule = RuleSpec {
        name: context.rule.to_owned(),
        matches: MatchSpec::default(),
        action: ActionSpec::Drop,
        path: false,
        record_route: true,
        set: Vec::new(),
        remove: Vec::new(),
        strip_prefix: None,
        limit: None,
        tag: None,
        line: faults.line_of(header.start),
    };
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "name" => {}
            "match" => {
                if let Some(fields) = faults.table("match", value) {
                    rule.matches = matches::matches(faults, fields, context);
                }
            }
            "path" => rule.path = faults.boolean("path", value).unwrap_or(false),
            "record_route" => rule.record_route = faults.boolean("record_route", value).unwrap_or(true),
            "set" => rule.set = set(faults, value),
            "remove" => rule.remove = remove(faults, value),
            "strip_prefix" => rule.strip_prefix = strip_prefix(faults, value),
            "limit" => rule.limit = limit(faults, value),
            "tag" => rule.tag = faults.name("tag", value).map(|text| text.value.to_owned()),
            "try_timeout" | "try_codes" => faults.not_yet(key, "serial forking comes later; leave it out"),
            name if action::KEYS.contains(&name) => {}
            name => match name.split_once('.') {
                Some(("set" | "remove", _)) => {
                    let message =
                        format!("{}: quote the header's name alone, as in set.\"X-Node\"", quoted(name));
                    faults.error(key.span(), message);
                }
                _ => faults.unknown_key(key, "[[rule]]", KEYS),
            },
        }
    }
    set_and_removed(faults, table, &rule);
    let (action, action_at) = action::action(faults, table, header, context.pools)?;
    rule.action = action;
    needs_backends(faults, &rule, action_at);
    senseless(faults, table, &rule);
    Some(rule)
}

/// `route = "flow"` and `"request-uri"` for clients would make us an open relay (SPEC 5.2).
fn needs_backends(faults: &mut Faults<'_>, rule: &RuleSpec, at: Range<usize>) {
    let word = match rule.action {
        ActionSpec::Flow => "flow",
        ActionSpec::RequestUri => "request-uri",
        _ => return,
    };
    let inside = |source: &SourceSpec| matches!(source, SourceSpec::Backends | SourceSpec::Pool(_));
    if rule.matches.source.is_empty() || !rule.matches.source.iter().all(inside) {
        let message = format!(
            "route = \"{word}\" is for backends only: it needs source = \"backends\", or a pool's name, in match"
        );
        faults.error(at, message);
    }
}

/// What stands beside an action that never uses it.
fn senseless(faults: &mut Faults<'_>, table: &DeTable<'_>, rule: &RuleSpec) {
    let action = match rule.action {
        ActionSpec::Reply { .. } => "reply",
        ActionSpec::RedirectUri(_) | ActionSpec::RedirectPool(_) => "redirect",
        ActionSpec::Drop => "drop",
        ActionSpec::Route(_) | ActionSpec::Flow | ActionSpec::RequestUri => "",
    };
    let mut warn = |key: &str, message: String| {
        if let Some((key, _)) = table.get_key_value(key) {
            faults.warning(key.span(), message);
        }
    };
    if !action.is_empty() {
        for key in ["path", "record_route", "set", "remove", "strip_prefix"] {
            warn(key, format!("{key} does nothing beside {action}: nothing is forwarded"));
        }
        return;
    }
    if !rule.path {
        return;
    }
    let methods = &rule.matches.method;
    if !methods.is_empty() && !methods.iter().any(|(method, _)| *method == Method::Register) {
        warn("path", "path is for REGISTER, which this rule never matches".to_owned());
    } else if !rule.matches.event.is_empty() {
        warn("path", "path is for REGISTER, which has no Event that this rule could match".to_owned());
    } else if !matches!(rule.action, ActionSpec::Route(_)) {
        warn("path", "path is for a client's REGISTER on its way to a pool".to_owned());
    } else if !rule.matches.source.is_empty()
        && rule
            .matches
            .source
            .iter()
            .all(|source| matches!(source, SourceSpec::Backends | SourceSpec::Pool(_)))
    {
        warn(
            "path",
            "path is for a client's REGISTER, and this rule takes those of backends only".to_owned(),
        );
    }
}

/// `set = { "X-Node" = "{source.backend}" }`
fn set(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<(String, Template)> {
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    let Some(table) = faults.table("set", value) else { return out };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        if let Err(why) = headers::settable(name) {
            faults.error(key.span(), why);
            continue;
        }
        if !seen.insert(headers::canonical(name)) {
            faults.error(key.span(), format!("the header {} is set twice", quoted(name)));
        }
        let Some(text) = faults.string(name, value) else { continue };
        if let Some(template) = template::template(faults, &text) {
            out.push((name.to_owned(), template));
        }
    }
    out
}

/// `remove = ["X-Foo"]`, or `remove.X-Foo = true`.
fn remove(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |faults: &mut Faults<'_>, name: &str, span: Range<usize>| match headers::removable(name) {
        Err(why) => faults.error(span, why),
        Ok(()) if out.iter().any(|known| headers::canonical(known) == headers::canonical(name)) => {
            faults.error(span, format!("the header {} is removed twice", quoted(name)));
        }
        Ok(()) => out.push(name.to_owned()),
    };
    if let DeValue::Table(table) = value.get_ref() {
        for (key, value) in in_order(table) {
            match value.get_ref() {
                DeValue::Boolean(true) => add(faults, key.get_ref(), key.span()),
                _ => faults.wrong_type(key.get_ref(), value, "true"),
            }
        }
        return out;
    }
    for text in faults.strings("remove", value) {
        add(faults, text.value, text.span);
    }
    out
}

fn set_and_removed(faults: &mut Faults<'_>, table: &DeTable<'_>, rule: &RuleSpec) {
    let removed: HashSet<String> = rule.remove.iter().map(|name| headers::canonical(name)).collect();
    for (name, _) in rule.set.iter().filter(|(name, _)| removed.contains(&headers::canonical(name))) {
        let span = table.get("remove").map_or(0..0, |value| value.span());
        let message =
            format!("the header {} is both set and removed; set replaces what was there", quoted(name));
        faults.error(span, message);
    }
}

/// Characters of a user part (RFC 3261 25.1: unreserved and user-unreserved; no escapes, which have two spellings).
fn strip_prefix(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<String> {
    let text = faults.string("strip_prefix", value)?;
    let user = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&byte);
    if text.value.is_empty() || text.value.len() > 64 || !text.value.bytes().all(user) {
        let message = format!("strip_prefix: {} cannot begin the user part of a URI", quoted(text.value));
        faults.error(text.span, message);
        return None;
    }
    Some(text.value.to_owned())
}

/// `"100/s"`
fn limit(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<u32> {
    if !matches!(value.get_ref(), DeValue::String(_)) {
        faults.wrong_type("limit", value, "requests a second such as \"100/s\"");
        return None;
    }
    let text = faults.string("limit", value)?;
    let number = text.value.strip_suffix("/s").and_then(|digits| digits.trim_end().parse::<u32>().ok());
    match number.filter(|number| *number > 0) {
        Some(number) => Some(number),
        None => {
            let message = format!(
                "limit: {} is not a number of requests a second such as \"100/s\"",
                quoted(text.value)
            );
            faults.error(text.span, message);
            None
        }
    }
}
