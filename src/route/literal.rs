//! What a text must contain to match a regex: the literals behind the pre-filter of large tables (SPEC 5.5).
//!
//! A `Need` is a short list of literals of which at least one stands in every text that matches. ASCII letters are in
//! lower case, and texts are searched in lower case, so that `(?i)` costs nothing; what is found this way is only a
//! candidate, which the pattern itself confirms. Too few needs cost time, a wrong one would lose a rule: hence the
//! property test below.

use regex_syntax::hir::{Class, Hir, HirKind};

/// At least one of these stands in every matching text.
pub type Need = Box<[Box<[u8]>]>;

/// Shorter ones stand everywhere and filter nothing.
const SHORTEST: usize = 3;
/// Longer ones filter no better.
const LONGEST: usize = 64;
/// Most branches of an alternation that are worth a search for each.
const BRANCHES: usize = 32;

/// All needs of a pattern; none where it has no usable literal.
pub fn needs(hir: &Hir) -> Vec<Need> {
    let mut walk = Walk::default();
    walk.visit(hir);
    walk.end();
    walk.needs
}

#[derive(Default)]
struct Walk {
    /// The literal that is being gathered.
    run: Vec<u8>,
    needs: Vec<Need>,
}

impl Walk {
    fn visit(&mut self, hir: &Hir) {
        match hir.kind() {
            // An assertion takes no bytes: what stands before and behind it is adjacent.
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => literal.0.iter().for_each(|&b| self.byte(b)),
            HirKind::Class(class) => match one_byte(class) {
                Some(byte) => self.byte(byte),
                None => self.end(),
            },
            HirKind::Capture(capture) => self.visit(&capture.sub),
            HirKind::Concat(parts) => parts.iter().for_each(|part| self.visit(part)),
            HirKind::Repetition(repetition) if repetition.min == 0 => self.end(),
            HirKind::Repetition(repetition) => {
                // The first round continues what stands before; how many follow is open.
                let rounds = if repetition.max == Some(repetition.min) { repetition.min.min(8) } else { 1 };
                (0..rounds).for_each(|_| self.visit(&repetition.sub));
                if repetition.max != Some(rounds) {
                    self.end();
                }
            }
            HirKind::Alternation(branches) => self.alternation(branches),
        }
    }

    fn alternation(&mut self, branches: &[Hir]) {
        self.end();
        let mut all = Vec::new();
        for branch in branches {
            let Some(best) = best(needs(branch)) else { return };
            all.extend(best);
            if all.len() > BRANCHES {
                return;
            }
        }
        all.sort();
        all.dedup();
        self.needs.push(all.into());
    }

    fn byte(&mut self, byte: u8) {
        if self.run.len() == LONGEST {
            self.end();
        }
        self.run.push(byte.to_ascii_lowercase());
    }

    fn end(&mut self) {
        if self.run.len() >= SHORTEST {
            self.needs.push(Box::new([self.run.as_slice().into()]));
        }
        self.run.clear();
    }
}

/// The need whose shortest literal is longest.
fn best(needs: Vec<Need>) -> Option<Need> {
    needs.into_iter().max_by_key(|need| need.iter().map(|l| l.len()).min().unwrap_or(0))
}

/// `[Aa]` is one byte once case is folded.
fn one_byte(class: &Class) -> Option<u8> {
    let mut folded = None;
    let mut take = |start: u32, end: u32| {
        if end > 0x7f || end - start > 1 {
            return false;
        }
        (start..=end).all(|c| {
            let c = (c as u8).to_ascii_lowercase();
            *folded.get_or_insert(c) == c
        })
    };
    let one = match class {
        Class::Unicode(class) => class.ranges().iter().all(|r| take(r.start() as u32, r.end() as u32)),
        Class::Bytes(class) => class.ranges().iter().all(|r| take(r.start().into(), r.end().into())),
    };
    if one { folded } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::pattern::parse;

    fn told(pattern: &str) -> Vec<String> {
        needs(&parse(pattern).expect("a valid pattern"))
            .iter()
            .map(|need| need.iter().map(|l| String::from_utf8_lossy(l)).collect::<Vec<_>>().join("|"))
            .collect()
    }

    #[test]
    fn literals_that_every_match_contains() {
        assert_eq!(told("^sip:1234[0-9]@"), ["sip:1234"]);
        assert_eq!(told("^sip:[^@]+@tenant123\\.example\\.com"), ["sip:", "@tenant123.example.com"]);
        assert_eq!(told("(?i)^PJSIP/"), ["pjsip/"]);
        assert_eq!(told("abc(de)+f"), ["abcde"]);
        assert_eq!(told("abc(de){2}f"), ["abcdedef"]);
        assert_eq!(told("abc(de)?fgh"), ["abc", "fgh"]);
        assert_eq!(told("alice@|bobby@"), ["alice@|bobby@"]);
        assert_eq!(told("alice@|.*"), [""; 0]);
        assert_eq!(told("[0-9]+"), [""; 0]);
        assert_eq!(told("ab"), [""; 0]);
    }

    const PIECES: &[&str] = &[
        "abc",
        "ab",
        "[aA]b",
        "c[bd]",
        "(a|bc){1,2}",
        "(abc|bca)",
        "(abc|d)?",
        "b+",
        "(bca)+",
        "(?i:Abc)",
        "[^a]",
        "c{2}",
        "(ab){2,}",
        "(?:abc|bcd){9}",
        "\\b",
        "b*",
        "(?:(abc|bbb)|cab)",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        /// Every text that a pattern matches contains one literal of each of its needs.
        #[test]
        fn no_match_without_its_needs(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 1..6),
            (starts, ends) in any::<(bool, bool)>(),
            text in "[abcdABC]{0,24}",
        ) {
            let pattern = format!("{}{}{}", ["", "^"][usize::from(starts)], pieces.concat(), ["", "$"][usize::from(ends)]);
            let hir = parse(&pattern).expect("the generator writes valid patterns");
            let regex = regex_automata::meta::Builder::new().build_from_hir(&hir).expect("small");
            if regex.is_match(text.as_bytes()) {
                let text = text.to_ascii_lowercase();
                for need in needs(&hir) {
                    let held = need.iter().any(|l| memchr::memmem::find(text.as_bytes(), l).is_some());
                    prop_assert!(held, "{pattern} matches {text} without {need:?}");
                }
            }
        }
    }
}
