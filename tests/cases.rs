//! routing/cases: a table, a message, and what `tidings explain` says of it, compared byte for byte.
//!
//! Each case is a folder with `args` (the command line but for the message; paths are relative to the folder),
//! `message.sip` and `explained.txt`. `BLESS=1 cargo test --test cases` writes what is said now.

use std::{fs, path::Path, process::Command};

#[test]
fn each_case_is_explained_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("routing/cases");
    let mut cases: Vec<_> =
        fs::read_dir(&folder).expect("routing/cases").flatten().map(|e| e.path()).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    assert!(cases.len() >= 10, "only {} cases found", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let args = fs::read_to_string(case.join("args")).expect("args of a case");
        let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .arg("explain")
            .args(args.split_whitespace())
            .arg("message.sip")
            .current_dir(&case)
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let file = case.join("explained.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&file, said.as_bytes()).expect("explained.txt is written");
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if said != expected {
            wrong.push(format!("{}:\n--- expected\n{expected}\n--- said\n{said}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
