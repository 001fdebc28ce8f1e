//! From the text of a table to its `TableSpec`: the walk over the file's sections.

use std::collections::HashSet;

use super::{
    super::{
        diagnostic::Diagnostic,
        document::{self, Faults, Value, in_order, quoted},
        headers, settings,
    },
    TableSpec, lint, pool, rule,
};

const SECTIONS: [&str; 3] = ["pool", "rule", "packages"];

/// Reads a table. `file` names it in diagnostics. A sound table comes with its warnings (SPEC 5.5), any other one gives
/// all its faults, sorted by place. Time and space are bounded by a multiple of the text's length.
pub fn parse(file: &str, text: &str) -> Result<(TableSpec, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (root, mut faults) = document::open(file, text);
    let mut spec = TableSpec { file: file.to_owned(), ..TableSpec::default() };
    let mut lints = lint::Places::default();
    // Rules name pools, wherever these stand in the file.
    if let Some(value) = root.get("pool") {
        pool::pools(&mut faults, value, &mut spec, &mut lints);
    }
    for (key, value) in in_order(&root) {
        match key.get_ref().as_ref() {
            "pool" => {}
            "rule" => rule::rules(&mut faults, value, &mut spec, &mut lints),
            "packages" => packages(&mut faults, value, &mut spec),
            name if settings::SECTIONS.contains(&name) => faults.error(
                key.span(),
                format!(
                    "{} belongs into tidings.toml: this file is a routing table, with [[pool]], [[rule]] and [packages]",
                    quoted(key.get_ref())
                ),
            ),
            _ => faults.unknown_key(key, "the table", SECTIONS),
        }
    }
    if faults.has_errors() {
        return Err(faults.finish());
    }
    lint::lint(&mut faults, &spec, &lints);
    Ok((spec, faults.finish()))
}

/// `[packages]`: `known = ["presence", …]`, or a table for each (its limits are of a later version).
fn packages<'i>(faults: &mut Faults<'i>, value: &Value<'i>, spec: &mut TableSpec) {
    let Some(table) = faults.table("packages", value) else { return };
    let mut seen = HashSet::new();
    let mut add = |faults: &mut Faults<'i>, name: &str, span: std::ops::Range<usize>| {
        if !headers::is_token(name) {
            faults.error(span, format!("{} is no name of an event package", quoted(name)));
        } else if !seen.insert(name.to_owned()) {
            faults.error(span, format!("package {} stands here twice", quoted(name)));
        } else {
            spec.packages.push(name.to_owned());
        }
    };
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        if name == "known" && !matches!(value.get_ref(), toml::de::DeValue::Table(_)) {
            let items = faults.array("known", value).into_iter().flat_map(|items| items.iter());
            for item in items {
                if let Some(text) = faults.string("known", item) {
                    add(faults, text.value, text.span);
                }
            }
            continue;
        }
        if let Some(limits) = faults.table(name, value) {
            for (limit, _) in in_order(limits) {
                faults.not_yet(limit, "limits of packages come with subscriptions; leave the table empty");
            }
        }
        add(faults, name, key.span());
    }
}
