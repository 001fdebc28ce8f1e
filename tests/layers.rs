//! Holds the rooms of `src/` to their order (lib.rs): a room may use itself and those before it, never one behind it.
//!
//! Reads the sources, comments left out, for `crate::ROOM` (groups too) and for `super::` chains that reach the crate's
//! root. `lib.rs` names every room and is exempt.

use std::{fs, path::Path};

const ORDER: [&str; 12] = [
    "wire", "config", "live", "route", "forks", "forward", "net", "worker", "control", "admin", "cli", "main",
];

/// Whether room `a` may use room `b`. `stats` stands beside the order: it uses `wire`, and all above wire use it.
fn may_use(a: &str, b: &str) -> bool {
    let rank = |room| ORDER.iter().position(|r| *r == room);
    match (a, b) {
        (a, b) if a == b => true,
        ("stats", b) => b == "wire",
        (a, "stats") => a != "wire",
        (a, b) => matches!((rank(a), rank(b)), (Some(a), Some(b)) if b < a),
    }
}

fn is_room(name: &str) -> bool {
    name == "stats" || ORDER.contains(&name)
}

/// `text` without `//` comments (a `//` in a string cuts its line too: nothing that names a room stands behind one).
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

/// The first names behind a path's root: one identifier, or those of a `{…}` group.
fn heads(text: &str) -> Vec<&str> {
    let text = text.trim_start();
    let Some(group) = text.strip_prefix('{') else { return vec![identifier(text)] };
    let (mut depth, mut fresh, mut names) = (1, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => fresh = true,
            c if fresh && (c.is_alphanumeric() || c == '_') => {
                names.push(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// The rooms that a source text names. `depth`: how many modules lie between it and the root (`src/wire.rs`: 1).
fn uses(text: &str, depth: usize) -> Vec<String> {
    let text = without_comments(text);
    let mut found = Vec::new();
    for (at, root) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            found.extend(heads(&text[at + root.len()..]).into_iter().map(str::to_owned));
        }
    }
    // With as many `super::` as the module is deep the path starts at the root (or, in an inline module, in the room
    // itself, whose modules have other names than rooms).
    let chain = "super::".repeat(depth);
    for (at, _) in text.match_indices(&chain) {
        let mut behind = &text[at + chain.len()..];
        while let Some(rest) = behind.strip_prefix("super::") {
            behind = rest;
        }
        found.extend(heads(behind).into_iter().map(str::to_owned));
    }
    found.retain(|name| is_room(name));
    found
}

/// Every source file below `dir`, with its room and depth.
fn walk(dir: &Path, room: Option<&str>, depth: usize, each: &mut dyn FnMut(&Path, &str, usize)) {
    let mut entries: Vec<_> =
        fs::read_dir(dir).expect("src is there").map(|e| e.expect("readable").path()).collect();
    entries.sort();
    for path in entries {
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("names in UTF-8").to_owned();
        let room = room.unwrap_or(&stem);
        if path.is_dir() {
            walk(&path, Some(room), depth + 1, each);
        } else if path.extension().is_some_and(|e| e == "rs") && !(depth == 0 && stem == "lib") {
            each(&path, room, if stem == "mod" { depth } else { depth + 1 });
        }
    }
}

#[test]
fn rooms_use_only_rooms_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut faults, mut files) = (Vec::new(), 0);
    walk(&src, None, 0, &mut |path, room, depth| {
        files += 1;
        if !is_room(room) {
            faults.push(format!("{}: `{room}` has no place in the order", path.display()));
        }
        let text = fs::read_to_string(path).expect("readable source");
        for used in uses(&text, depth) {
            if !may_use(room, &used) {
                faults.push(format!("{}: `{room}` must not use `{used}`", path.display()));
            }
        }
    });
    assert!(files > 10, "only {files} files were seen");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_test_sees_what_it_should() {
    let seen = |text: &str, depth| uses(text, depth).join(" ");
    assert_eq!(seen("use crate::route::Table; // crate::cli", 1), "route");
    assert_eq!(seen("use crate::{\n  net::{self, Udp}, wire, stats::Counter as C,\n};", 1), "net wire stats");
    assert_eq!(seen("fn f() { crate::admin::serve(crate :: x) }", 1), "admin");
    assert_eq!(seen("pub(crate) use mycrate::net; /// crate::net", 2), "");
    assert_eq!(seen("use super::super::cli::run;", 2), "cli");
    assert_eq!(seen("use super::cli::run;", 2), "");
    assert_eq!(seen("use super::{cli, worker::Turn};", 1), "cli worker");
    assert!(may_use("main", "wire") && may_use("wire", "wire") && may_use("forward", "stats"));
    assert!(!may_use("wire", "stats") && !may_use("stats", "config") && !may_use("live", "route"));
    assert!(!may_use("route", "nowhere"));
}
