//! One compiled regex, interned by its text across versions of the table, and what a text must contain to match it.
//!
//! The plain ones are a `Chain`, a few bytes each. Others are a small dense DFA: it needs no cache, so ten thousand of them
//! cost a worker nothing, and it reads one byte per step whatever the pattern. A pattern whose DFA would be large gets the
//! general engine of regex-automata, whose cache lives in the worker's `Scratch` (a shared one would be a lock).
//!
//! What comes by the wire is bytes, not text: `config` reads patterns so that `.` and `[^@]` take any byte where they can,
//! and nobody walks around a filter by a byte that is not UTF-8.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use regex_automata::{
    Input,
    dfa::{Automaton, StartKind, dense},
    meta,
    nfa::thompson::{self, NFA, WhichCaptures},
};
use regex_syntax::hir::Hir;

use super::{caches::Caches, chain::Chain, literal};
use crate::config::table::hir;

/// Beyond this a pattern is not worth a DFA of its own.
const DFA_BYTES: usize = 32 * 1024;
/// Beyond this a pattern is refused: a table must not eat the machine.
const NFA_BYTES: usize = 4 * 1024 * 1024;

/// A regex by its text. Shared by the tables that have it.
pub struct Compiled {
    pub(super) text: Box<str>,
    engine: Engine,
    /// Ways to say what a matching text must contain: of each way at least one literal (ASCII letters in lower case).
    pub(super) needs: Box<[literal::Need]>,
}

enum Engine {
    Chain(Chain),
    Dfa(Box<dense::DFA<Vec<u32>>>),
    Meta { regex: Box<meta::Regex>, id: u64 },
}

/// Names an engine that needs a cache: in the memory of this process only.
pub(super) fn engine_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// As the reader of tables reads it.
pub(super) fn parse(text: &str) -> Result<Hir, String> {
    hir(text).map_err(|e| last_line(&e.to_string()))
}

pub(super) fn nfa(hirs: &[&Hir], limit: usize) -> Result<NFA, String> {
    let config =
        thompson::Config::new().utf8(false).which_captures(WhichCaptures::None).nfa_size_limit(Some(limit));
    thompson::Compiler::new().configure(config).build_many_from_hir(hirs).map_err(|e| e.to_string())
}

/// Errors of regex-syntax span lines; the last says what is wrong.
fn last_line(text: &str) -> String {
    let line = text.trim_end().rsplit('\n').next().unwrap_or(text);
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl Compiled {
    pub fn new(text: &str) -> Result<Arc<Compiled>, String> {
        let hir = parse(text)?;
        let engine = match Chain::new(&hir) {
            Some(chain) => Engine::Chain(chain),
            None => Engine::of(&hir)?,
        };
        Ok(Arc::new(Compiled { text: text.into(), engine, needs: literal::needs(&hir).into() }))
    }

    /// Does the pattern match anywhere in `value`?
    pub(super) fn is_match(&self, value: &[u8], caches: &mut Caches) -> bool {
        let input = || Input::new(value).earliest(true);
        match &self.engine {
            Engine::Chain(chain) => chain.is_match(value),
            Engine::Dfa(dfa) => dfa.try_search_fwd(&input()).is_ok_and(|found| found.is_some()),
            Engine::Meta { regex, id } => {
                regex.search_half_with(caches.meta(*id, || regex.create_cache()), &input()).is_some()
            }
        }
    }
}

impl Engine {
    fn of(hir: &Hir) -> Result<Engine, String> {
        let nfa = nfa(&[hir], NFA_BYTES)?;
        let config = dense::Config::new()
            .start_kind(StartKind::Unanchored)
            .accelerate(false)
            .dfa_size_limit(Some(DFA_BYTES))
            .determinize_size_limit(Some(16 * DFA_BYTES));
        if let Ok(dfa) = dense::Builder::new().configure(config).build_from_nfa(&nfa) {
            return Ok(Engine::Dfa(Box::new(dfa)));
        }
        let config = meta::Config::new()
            .utf8_empty(false)
            .which_captures(WhichCaptures::Implicit)
            .nfa_size_limit(Some(NFA_BYTES))
            .dfa(false)
            .onepass(false)
            .backtrack(false);
        let regex = meta::Builder::new().configure(config).build_from_hir(hir);
        let regex = Box::new(regex.map_err(|e| last_line(&e.to_string()))?);
        Ok(Engine::Meta { regex, id: engine_id() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(pattern: &str, value: &[u8]) -> bool {
        Compiled::new(pattern).expect("a valid pattern").is_match(value, &mut Caches::default())
    }

    #[test]
    fn a_byte_that_is_not_utf8_does_not_walk_around_a_filter() {
        assert!(is_match("^sip:.*@", b"sip:\xff\xfe@example.com"));
        assert!(is_match("^sip:[^@]+@", b"sip:\xff@example.com"));
        assert!(!is_match("^sip:[^\\xff]+@", b"sip:\xff@example.com"));
    }

    #[test]
    fn patterns_that_need_unicode_have_it() {
        assert!(is_match("^[äö]+$", "äöä".as_bytes()));
        assert!(is_match("\\p{Lu}ber", "Über".as_bytes()));
        assert!(is_match("(?i)über", "ÜBER".as_bytes()));
    }

    #[test]
    fn a_pattern_too_large_for_a_dfa_still_matches() {
        let large = "^(?:[ab]*a[ab]{16}|x)y$";
        let compiled = Compiled::new(large).expect("a valid pattern");
        assert!(matches!(compiled.engine, Engine::Meta { .. }), "the test needs a pattern with a large DFA");
        assert!(is_match(large, b"baaaaaaaaaaaaaaaaay"));
        assert!(!is_match(large, b"bbbbbbbbbbbbbbbbbbby"));
    }

    #[test]
    fn faults_are_told_in_one_line() {
        let Err(fault) = Compiled::new("^sip:(") else { panic!("an unclosed group is a fault") };
        assert_eq!(fault, "unclosed group");
        assert!(Compiled::new("(?:a{1000}){1000}{1000}").is_err());
    }
}
