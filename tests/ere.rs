//! The POSIX translator against the C library's `regcomp` and `regexec` (REG_EXTENDED, REG_ICASE), on generated filters
//! and texts. What we translate the C library must take, and both must find the same; what it refuses we must refuse.

#![allow(unsafe_code)] // regcomp, regexec and regfree have no safe form.

use std::{ffi::CString, mem::MaybeUninit};

use proptest::prelude::*;
use regex_automata::meta::Regex;
use tidings::config::{ere, table};

/// A filter as the C library compiled it, in the C locale (this process never calls setlocale).
struct Posix(libc::regex_t);

impl Posix {
    fn compile(pattern: &str) -> Option<Posix> {
        let pattern = CString::new(pattern).expect("patterns here hold no NUL");
        let mut compiled = MaybeUninit::<libc::regex_t>::uninit();
        let flags = libc::REG_EXTENDED | libc::REG_ICASE | libc::REG_NOSUB;
        // SAFETY: the pattern is a C string that outlives the call; regcomp fills `compiled` where it returns 0.
        let code = unsafe { libc::regcomp(compiled.as_mut_ptr(), pattern.as_ptr(), flags) };
        // SAFETY: regcomp returned 0, so it has filled it.
        (code == 0).then(|| Posix(unsafe { compiled.assume_init() }))
    }

    fn matches(&self, text: &str) -> bool {
        let text = CString::new(text).expect("texts here hold no NUL");
        // SAFETY: the expression is compiled, the text a C string; no match positions are asked for.
        unsafe { libc::regexec(&self.0, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Posix {
    fn drop(&mut self) {
        // SAFETY: compiled once, freed once.
        unsafe { libc::regfree(&mut self.0) }
    }
}

/// `Ok(None)`: refused by the translator.
fn ours(pattern: &str) -> Option<Regex> {
    let translated = ere::translate(pattern).ok()?;
    let hir =
        table::hir(&translated).unwrap_or_else(|error| panic!("{pattern:?} became {translated:?}: {error}"));
    Some(Regex::builder().build_from_hir(&hir).unwrap_or_else(|error| panic!("{translated:?}: {error}")))
}

fn compare(pattern: &str, texts: &[String]) {
    let (posix, ours) = (Posix::compile(pattern), ours(pattern));
    match (&posix, &ours) {
        (None, Some(_)) => panic!("{pattern:?}: the C library refuses it, we translate it"),
        (Some(posix), Some(ours)) => {
            for text in texts {
                let (theirs, mine) = (posix.matches(text), ours.is_match(text.as_bytes()));
                let translated = ere::translate(pattern).expect("translated above");
                assert_eq!(mine, theirs, "{pattern:?} ({translated}) on {text:?}");
            }
        }
        (_, None) => {}
    }
}

/// Pieces that make sense, in any order: most patterns are valid. glibc writes repeated parts out and takes minutes where
/// such parts stand in one another, so a pattern here has at most 16 copies of its innermost part.
fn sensible() -> impl Strategy<Value = String> {
    let set = prop_oneof![
        Just("[a-c]".to_owned()),
        Just("[^a-c]".to_owned()),
        Just("[]x]".to_owned()),
        Just("[^]b]".to_owned()),
        Just("[[:alpha:]]".to_owned()),
        Just("[[:upper:]_]".to_owned()),
        Just("[^[:digit:]]".to_owned()),
        Just("[[:punct:][:space:]]".to_owned()),
        Just("[a\\]".to_owned()),
        Just("[+--]".to_owned()),
        Just("[[.a.]-[.c.]]".to_owned()),
        Just("[[=b=]c]".to_owned()),
        Just("[_-~]".to_owned()),
        Just("[A-z]".to_owned()),
        Just("[^-x]".to_owned()),
        Just("[x-]".to_owned()),
    ];
    let atom = prop_oneof![
        4 => "[abcABC12 _/-]".prop_map(String::from),
        1 => Just(".".to_owned()),
        1 => "\\\\[.*{}()|^$d/@0wWsS]".prop_map(String::from),
        1 => Just("}".to_owned()),
        2 => set,
    ];
    // With how often the C library writes out what stands before.
    let repeat = prop_oneof![
        5 => Just((String::new(), 1)),
        1 => "[*+?]".prop_map(|repeat| (repeat, 1)),
        1 => "\\{[0-3]\\}|\\{[0-2],\\}|\\{[0-2],[2-4]\\}|\\{,2\\}".prop_map(|repeat| (repeat, 4)),
    ];
    let leaf = (atom, repeat.clone(), repeat.clone())
        .prop_map(|(atom, once, twice)| (atom + &once.0 + &twice.0, once.1 * twice.1));
    let inner = leaf.prop_recursive(3, 24, 4, move |inner| {
        let alternatives = prop::collection::vec(inner.clone(), 0..4).prop_map(|parts| joined(&parts, "|"));
        let sequence = prop::collection::vec(inner, 1..4).prop_map(|parts| joined(&parts, ""));
        let group = (alternatives, repeat.clone())
            .prop_map(|((inside, copies), repeat)| (format!("({inside}){}", repeat.0), copies * repeat.1));
        prop_oneof![group, sequence]
    });
    (prop::bool::ANY, prop::collection::vec(inner, 0..4), prop::bool::ANY)
        .prop_map(|(begin, parts, end)| (begin, joined(&parts, ""), end))
        .prop_filter("written out more than 16 times", |(_, (_, copies), _)| *copies <= 16)
        .prop_map(|(begin, (parts, _), end)| {
            let (begin, end) = (if begin { "^" } else { "" }, if end { "$" } else { "" });
            format!("{begin}{parts}{end}")
        })
}

/// The parts one after the other, and the copies of the part that has most.
fn joined(parts: &[(String, u32)], between: &str) -> (String, u32) {
    let texts: Vec<&str> = parts.iter().map(|(text, _)| text.as_str()).collect();
    (texts.join(between), parts.iter().map(|(_, copies)| *copies).max().unwrap_or(1))
}

/// Without newlines: with one behind an anchor (`$.` on "\n") glibc finds what POSIX forbids.
fn lines() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[abcABC12 _/(){}+^$*.,:=\\\\-]{0,8}".prop_map(String::from), 1..6)
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    let text = prop_oneof![
        3 => "[abcABC12 _/-]{0,8}".prop_map(String::from),
        1 => "[ -~\n\t]{0,8}".prop_map(String::from),
    ];
    prop::collection::vec(text, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sensible_filters_find_the_same(pattern in sensible(), texts in texts()) {
        compare(&pattern, &texts);
    }

    #[test]
    fn arbitrary_filters_find_the_same(pattern in "[ab1(){}|*+?.,^$\\[\\]:=\\\\-]{0,10}", texts in lines()) {
        compare(&pattern, &texts);
    }

    #[test]
    fn boundaries_are_found_alike(
        pattern in "(\\\\[<>bB`'])?[ab1_ ]{0,3}(\\\\[<>bB])?[ab1 ]{0,2}(\\\\[<>bB`'])?",
        texts in prop::collection::vec("[ab1_ /]{0,6}", 1..6),
    ) {
        compare(&pattern, &texts);
    }

    #[test]
    fn arbitrary_brackets_find_the_same(inside in "[]^aZ9:=.\\[_ -]{0,6}", texts in texts()) {
        compare(&format!("x*[{inside}]"), &texts);
    }
}

#[test]
fn filters_seen_in_the_field_find_the_same() {
    let filters = [
        "^PJSIP/",
        "^PJSIP/[0-9]+$",
        "^(PJSIP|SIP)/1[0-9]{3}",
        "^Custom:",
        "@default$",
        "^1000",
        "^[12][0-9]{3}@",
        "PJSIP/(1000|2000)",
        "^Local/.*@",
        "",
        "^$",
        "()",
        "a||b",
        "(|a)+",
        "^(PJSIP/1|Queue:).*",
        "[[:digit:]]{4}",
        "\\<1000\\>",
        "\\bPJSIP\\b",
        "\\`PJSIP",
        "1000\\'",
        "x)y",
        "a**",
        "(a*)*",
        "(a+)+b",
        "(^a|b$)",
    ];
    let texts = [
        "PJSIP/1000",
        "pjsip/1000",
        "SIP/2000",
        "PJSIP/1000-0001",
        "Custom:DND1000",
        "1000@default",
        "2000@default",
        "Local/100@from-internal",
        "",
        "a",
        "b",
        "ab",
        "x)y",
        "Queue:sales",
        "MWI:1000@default",
        "line\nPJSIP/1000",
    ]
    .map(String::from);
    for filter in filters {
        assert!(ours(filter).is_some(), "{filter:?} is not translated: {:?}", ere::translate(filter));
        compare(filter, &texts);
    }
}
