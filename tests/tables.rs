//! Every table under routing/ means what it says: examples and the embedded table have neither errors nor warnings,
//! and each table in routing/invalid gives exactly the diagnostics of the .txt beside it.
//!
//! After a deliberate change of a message, `BLESS=1 cargo test --test tables` writes the .txt files anew; read the diff.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use tidings::config::{Diagnostic, settings, table};

fn routing(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("routing").join(folder)
}

/// File names with this ending, without it, sorted.
fn stems(folder: &Path, ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("the folder is part of the tree");
    entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == ending))
        .map(|path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned())
        .collect()
}

fn diagnostics(name: &str, text: &str) -> Vec<Diagnostic> {
    match table::parse(name, text) {
        Ok((_, warnings)) => warnings,
        Err(faults) => {
            assert!(faults.iter().any(Diagnostic::is_error), "{name}: refused without an error");
            faults
        }
    }
}

fn shown(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().fold(String::new(), |mut out, diagnostic| {
        writeln!(out, "{diagnostic}").expect("a string takes everything");
        out
    })
}

#[test]
fn examples_have_no_fault() {
    let folder = routing("examples");
    let names = stems(&folder, "toml");
    assert!(names.len() >= 5, "only {} examples", names.len());
    for name in names {
        let text = fs::read_to_string(folder.join(format!("{name}.toml"))).expect("the example can be read");
        let found = diagnostics(&name, &text);
        assert!(found.is_empty(), "{}", shown(&found));
        let (spec, _) = table::parse(&name, &text).expect("it has no fault");
        assert!(!spec.pools.is_empty() && !spec.rules.is_empty(), "{name} is no complete table");
        assert!(text.starts_with("# "), "{name} does not begin with what it is for");
    }
}

#[test]
fn the_embedded_table_is_empty_and_sound() {
    let (spec, warnings) = table::parse(settings::DEFAULT_TABLE_NAME, settings::DEFAULT_TABLE)
        .expect("the embedded table is sound");
    assert!(spec.pools.is_empty() && spec.rules.is_empty() && warnings.is_empty());
}

#[test]
fn invalid_tables_give_exactly_their_diagnostics() {
    let folder = routing("invalid");
    let names = stems(&folder, "toml");
    assert!(names.len() >= 25, "only {} invalid tables", names.len());
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for name in &names {
        let text = fs::read_to_string(folder.join(format!("{name}.toml"))).expect("the table can be read");
        let found = shown(&diagnostics(&format!("{name}.toml"), &text));
        assert!(!found.is_empty(), "{name}: nothing is wrong with it");
        let expected_path = folder.join(format!("{name}.txt"));
        if bless {
            fs::write(&expected_path, &found).expect("the tree can be written");
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if found != expected {
            wrong.push(format!("== {name}.toml, expected:\n{expected}== found:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(stems(&folder, "txt"), names, "each .txt has its table");
}
