//! What is allowed but surely not meant (SPEC 5.5): rules that are never reached, pools that nobody uses or that have
//! no active backend. Looks only at tables without errors.

use std::collections::{HashMap, HashSet};

use super::{
    super::document::{Faults, quoted},
    ActionSpec, AdminState, Balance, MatchSpec, PatternSpec, PoolSpec, SourceSpec, Subject, TableSpec,
};

/// Offsets of the headers, in the order of the table's pools and rules.
#[derive(Default)]
pub(super) struct Places {
    pub pools: Vec<usize>,
    pub rules: Vec<usize>,
}

/// Comparisons of two rules in one table, at most: a table may be hostile (`PUT /api/v1/table`), time is not endless.
const MOST_COMPARISONS: usize = 5_000_000;

pub(super) fn lint(faults: &mut Faults<'_>, spec: &TableSpec, places: &Places) {
    pools(faults, spec, places);
    probes(faults, spec, places);
    unreachable_rules(faults, spec, places);
}

/// A backend is one, whatever pools it is in: it is probed as the first of them that has probes says.
fn probes(faults: &mut Faults<'_>, spec: &TableSpec, places: &Places) {
    let mut first: HashMap<&str, &PoolSpec> = HashMap::new();
    for (pool, at) in spec.pools.iter().zip(&places.pools) {
        let differs = pool.backends.iter().find_map(|backend| {
            let known = *first.entry(&backend.name).or_insert(pool);
            (known.probe != pool.probe).then_some((backend, known))
        });
        if let Some((backend, known)) = differs {
            let [pool, backend, known] = [&pool.name, &backend.name, &known.name].map(|name| quoted(name));
            let message = format!(
                "backend {backend} is in pool {known} too, whose probe is another: it is probed as the first pool with \
                 probes says, and its state holds in both"
            );
            faults.warning(*at..*at, format!("pool {pool}: {message}"));
        }
    }
}

fn pools(faults: &mut Faults<'_>, spec: &TableSpec, places: &Places) {
    let mut used = HashSet::new();
    for rule in &spec.rules {
        match &rule.action {
            ActionSpec::Route(pool) | ActionSpec::RedirectPool(pool) => {
                used.insert(pool.as_str());
            }
            _ => {}
        }
        for source in &rule.matches.source {
            if let SourceSpec::Pool(pool) = source {
                used.insert(pool);
            }
        }
    }
    for (pool, at) in spec.pools.iter().zip(&places.pools) {
        priorities(faults, pool, *at);
    }
    // `request-uri` may reach a backend of any pool.
    let any = spec.rules.iter().any(|rule| rule.action == ActionSpec::RequestUri);
    for (pool, at) in spec.pools.iter().zip(&places.pools) {
        let name = quoted(&pool.name);
        if !any && !used.contains(pool.name.as_str()) {
            faults.warning(*at..*at, format!("pool {name} is not used by any rule"));
        }
        if pool.backends.is_empty() {
            faults.warning(*at..*at, format!("pool {name} has no backend: what is routed to it gets 503"));
        } else if pool.backends.iter().all(|backend| backend.state != AdminState::Active) {
            faults
                .warning(*at..*at, format!("pool {name} has no active backend: new requests to it get 503"));
        }
    }
}

/// A priority that is left out is 0, which goes first: hardly meant where others have one.
fn priorities(faults: &mut Faults<'_>, pool: &PoolSpec, at: usize) {
    let (name, backends) = (quoted(&pool.name), &pool.backends);
    if pool.balance != Balance::Priority {
        if backends.iter().any(|backend| backend.priority.is_some()) {
            let message = format!("pool {name}: priority has no effect but with balance = \"priority\"");
            faults.warning(at..at, message);
        }
    } else if let Some(backend) = backends.iter().find(|backend| backend.priority.is_none()) {
        let backend = quoted(&backend.name);
        let message = format!("pool {name}: backend {backend} has no priority, which counts as 0, the first");
        faults.warning(at..at, message);
    }
}

/// One thing that a message must have for a rule to match; rules are looked up by it.
#[derive(PartialEq, Eq, Hash)]
enum Mark<'t> {
    Pattern(&'t Subject, &'t str),
    Event(&'t str),
    Method(&'t str),
    Any,
}

/// A rule is unreachable where an earlier one takes all that it could take. Sound, not complete: only rule against rule.
fn unreachable_rules(faults: &mut Faults<'_>, spec: &TableSpec, places: &Places) {
    let mut by_mark: HashMap<Mark<'_>, Vec<usize>> = HashMap::new();
    let mut left = MOST_COMPARISONS;
    for (index, rule) in spec.rules.iter().enumerate() {
        let mut first: Option<usize> = None;
        for mark in marks_of(&rule.matches) {
            let earlier = by_mark.get(&mark).map_or(&[][..], Vec::as_slice);
            let candidates =
                earlier.iter().take(left).take_while(|other| first.is_none_or(|found| **other < found));
            let mut compared = 0;
            let found = candidates
                .inspect(|_| compared += 1)
                .find(|other| covers(&spec.rules[**other].matches, &rule.matches));
            left -= compared;
            first = found.copied().or(first);
        }
        if let Some(other) = first {
            let at = places.rules[index];
            let (name, by) = (quoted(&rule.name), &spec.rules[other]);
            let message = format!(
                "rule {name} is never reached: rule {}, in line {}, takes all that it matches",
                quoted(&by.name),
                by.line
            );
            faults.warning(at..at, message);
            continue; // What it covers is covered by the other one too.
        }
        for mark in marks_for(&rule.matches) {
            by_mark.entry(mark).or_default().push(index);
        }
    }
}

/// Under which marks an earlier rule is found: a later rule that it covers has one of them.
fn marks_for(matches: &MatchSpec) -> Vec<Mark<'_>> {
    if let Some(pattern) = matches.patterns.first() {
        return vec![Mark::Pattern(&pattern.subject, &pattern.regex)];
    }
    if !matches.event.is_empty() {
        return matches.event.iter().map(|event| Mark::Event(event)).collect();
    }
    if !matches.method.is_empty() {
        return matches.method.iter().map(|(_, method)| Mark::Method(method)).collect();
    }
    vec![Mark::Any]
}

/// Under which marks a rule that covers this one would be.
fn marks_of(matches: &MatchSpec) -> Vec<Mark<'_>> {
    let mut out = vec![Mark::Any];
    out.extend(matches.event.first().map(|event| Mark::Event(event)));
    out.extend(matches.method.first().map(|(_, method)| Mark::Method(method)));
    out.extend(matches.patterns.iter().map(|pattern| Mark::Pattern(&pattern.subject, &pattern.regex)));
    out
}

/// Does every message that `later` matches match `earlier` too? A key that is absent takes everything.
fn covers(earlier: &MatchSpec, later: &MatchSpec) -> bool {
    holds(&earlier.method, &later.method, |a, b| a.1 == b.1)
        && holds(&earlier.event, &later.event, |a, b| a == b)
        && holds(&earlier.source, &later.source, source_covers)
        && holds(&earlier.transport, &later.transport, |a, b| a == b)
        && holds(&earlier.listener, &later.listener, |a, b| a == b)
        && earlier.patterns.iter().all(|a| later.patterns.iter().any(|b| pattern_covers(a, b)))
}

fn holds<T>(earlier: &[T], later: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    earlier.is_empty() || (!later.is_empty() && later.iter().all(|b| earlier.iter().any(|a| covers(a, b))))
}

fn source_covers(earlier: &SourceSpec, later: &SourceSpec) -> bool {
    match (earlier, later) {
        (SourceSpec::Net(a), SourceSpec::Net(b)) => a.contains(b),
        (SourceSpec::Backends, SourceSpec::Pool(_)) => true,
        (a, b) => a == b,
    }
}

/// The same text over the same field; one that also holds where the field is absent takes more.
fn pattern_covers(earlier: &PatternSpec, later: &PatternSpec) -> bool {
    earlier.subject == later.subject
        && earlier.regex == later.regex
        && (earlier.absent_holds || !later.absent_holds)
}
