//! The plain majority of patterns as a few bytes: `^sip:[^@]+@tenant7\.example\.com`, `^PJSIP/`, `<sips?:[^@]+@example\.com`.
//!
//! Of ten thousand patterns each is cold when its turn comes, and a DFA touches a cache line for every byte that it
//! reads, and has as many; a chain lies in one or two. It takes only what needs no second thought: a row of bytes and
//! byte classes, a class repeated only where what follows cannot belong to it, so that the longest run is the only one.
//! Without `^` the row is tried from every start; lest a hostile text be read once for each of its bytes, a run that led
//! to nothing is remembered: who comes to the same class within it would end as it did. All else is left to the engines
//! of regex-automata, and a property test holds this one to them.

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Longer ones gain nothing.
const LONGEST: usize = 1024;
/// No upper bound of a repetition.
const OPEN: u16 = u16::MAX;
/// Most classes without an upper bound in a row without `^`, and the highest upper bound of the others.
const RUNS: usize = 4;
const BOUND: u16 = 64;

/// A program: `LITERAL` or `FOLDED`, length, bytes; or `CLASS`, number among those without an upper bound, least, most,
/// 32 bytes of bits.
pub struct Chain {
    code: Box<[u8]>,
    anchor: Anchor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Anchor {
    /// `^`, perhaps with `$`.
    Start,
    /// `$` alone, behind so many bytes.
    End(u16),
    /// Anywhere.
    Nowhere,
}

/// For each class without an upper bound a run that led to nothing, from its first byte to behind its last.
type Dead = [(usize, usize); RUNS];
const NONE_DEAD: Dead = [(usize::MAX, 0); RUNS];

const LITERAL: u8 = 0;
/// As a literal, in lower case, without regard to case.
const FOLDED: u8 = 1;
const CLASS: u8 = 2;
/// `$`
const END: u8 = 3;

type Bits = [u8; 32];

/// One class, so many times.
#[derive(Clone, PartialEq, Eq)]
struct Atom {
    bits: Bits,
    least: u16,
    most: u16,
}

impl Chain {
    /// `None` where the pattern is none of the plain ones.
    pub fn new(hir: &Hir) -> Option<Chain> {
        let mut row = Row::default();
        row.visit(hir)?;
        if !row.ends {
            row.cut_tail();
        }
        row.is_plain().then_some(())?;
        let anchor = match (row.starts, row.fixed_length()) {
            (true, _) => Anchor::Start,
            (false, Some(length)) if row.ends => Anchor::End(length),
            (false, _) if row.is_bounded() => Anchor::Nowhere,
            (false, _) => return None,
        };
        let code = row.code()?;
        (code.len() <= LONGEST).then(|| Chain { code: code.into(), anchor })
    }

    pub fn is_match(&self, text: &[u8]) -> bool {
        let mut dead = NONE_DEAD;
        match self.anchor {
            Anchor::Start => self.holds(text, 0, &mut dead),
            Anchor::End(length) => match text.len().checked_sub(length.into()) {
                Some(start) => self.holds(text, start, &mut dead),
                None => false,
            },
            Anchor::Nowhere => match *self.code {
                [LITERAL, _, first, ..] => {
                    memchr::memchr_iter(first, text).any(|start| self.holds(text, start, &mut dead))
                }
                [FOLDED, _, first, ..] => memchr::memchr2_iter(first, first.to_ascii_uppercase(), text)
                    .any(|start| self.holds(text, start, &mut dead)),
                _ => (0..=text.len()).any(|start| self.holds(text, start, &mut dead)),
            },
        }
    }

    /// Does the row hold from `at`?
    fn holds(&self, text: &[u8], mut at: usize, dead: &mut Dead) -> bool {
        let mut code = &*self.code;
        // The runs of this attempt, to be remembered should it fail.
        let mut runs = NONE_DEAD;
        let held = loop {
            match code {
                [] => break true,
                [END, ..] => break at == text.len(),
                [CLASS, number, a, b, c, d, rest @ ..] => {
                    let Some((bits, rest)) = rest.split_first_chunk::<32>() else { break false };
                    let (least, most) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                    let open = (most == OPEN).then_some(usize::from(*number) % RUNS);
                    if open.is_some_and(|n| (dead[n].0..=dead[n].1).contains(&at)) {
                        break false;
                    }
                    let left = &text[at..];
                    let most = if open.is_some() { left.len() } else { left.len().min(most.into()) };
                    let run = left[..most].iter().position(|&b| !has(bits, b)).unwrap_or(most);
                    if let Some(n) = open {
                        runs[n] = (at, at + run);
                    }
                    if run < usize::from(least) {
                        break false;
                    }
                    at += run;
                    code = rest;
                }
                [kind, length, rest @ ..] => {
                    let length = usize::from(*length);
                    let (Some(wanted), Some(found)) = (rest.get(..length), text.get(at..at + length)) else {
                        break false;
                    };
                    let same =
                        if *kind == LITERAL { wanted == found } else { wanted.eq_ignore_ascii_case(found) };
                    if !same {
                        break false;
                    }
                    at += length;
                    code = &rest[length..];
                }
                [_] => break false,
            }
        };
        if !held {
            dead.iter_mut()
                .zip(runs)
                .filter(|(_, run)| run.0 != usize::MAX)
                .for_each(|(dead, run)| *dead = run);
        }
        held
    }
}

fn has(bits: &Bits, byte: u8) -> bool {
    bits[usize::from(byte >> 3)] & 1 << (byte & 7) != 0
}

#[derive(Default)]
struct Row {
    starts: bool,
    ends: bool,
    atoms: Vec<Atom>,
}

impl Row {
    fn visit(&mut self, hir: &Hir) -> Option<()> {
        if self.ends && !matches!(hir.kind(), HirKind::Empty) {
            return None;
        }
        match hir.kind() {
            HirKind::Empty => {}
            HirKind::Look(Look::Start) if self.atoms.is_empty() && !self.starts => self.starts = true,
            HirKind::Look(Look::End) => self.ends = true,
            HirKind::Literal(literal) => literal.0.iter().for_each(|&b| self.push(single(b), 1, 1)),
            HirKind::Class(class) => self.push(bits_of(class)?, 1, 1),
            HirKind::Capture(capture) => self.visit(&capture.sub)?,
            HirKind::Concat(parts) => parts.iter().try_for_each(|part| self.visit(part))?,
            HirKind::Repetition(repetition) => {
                let bits = match repetition.sub.kind() {
                    HirKind::Class(class) => bits_of(class)?,
                    HirKind::Literal(literal) if literal.0.len() == 1 => single(literal.0[0]),
                    _ => return None,
                };
                let count = |n: u32| u16::try_from(n).ok().filter(|&n| n < OPEN);
                let most = repetition.max.map_or(Some(OPEN), count)?;
                self.push(bits, count(repetition.min)?, most);
            }
            _ => return None,
        }
        Some(())
    }

    fn push(&mut self, bits: Bits, least: u16, most: u16) {
        self.atoms.push(Atom { bits, least, most });
    }

    /// Without `$` nothing need be read behind what must be there.
    fn cut_tail(&mut self) {
        while let Some(last) = self.atoms.last_mut() {
            last.most = last.least;
            if last.least > 0 {
                return;
            }
            self.atoms.pop();
        }
    }

    /// Whether the longest run of each class is the only one that can lead to a match.
    fn is_plain(&self) -> bool {
        self.atoms.iter().enumerate().filter(|(_, atom)| atom.least != atom.most).all(|(at, atom)| {
            for next in &self.atoms[at + 1..] {
                if atom.bits.iter().zip(&next.bits).any(|(a, b)| a & b != 0) {
                    return false;
                }
                if next.least > 0 {
                    return true;
                }
            }
            true
        })
    }

    fn fixed_length(&self) -> Option<u16> {
        let fixed = |sum: u16, atom: &Atom| {
            if atom.least == atom.most { sum.checked_add(atom.least) } else { None }
        };
        self.atoms.iter().try_fold(0, fixed).filter(|&sum| usize::from(sum) <= LONGEST)
    }

    /// Whether trying it from every start costs no more than reading the text a few times.
    fn is_bounded(&self) -> bool {
        let open = self.atoms.iter().filter(|atom| atom.most == OPEN).count();
        open <= RUNS && self.atoms.iter().all(|atom| atom.most == OPEN || atom.most <= BOUND)
    }

    fn code(&self) -> Option<Vec<u8>> {
        let mut code = Vec::new();
        let mut open = 0u8;
        let mut literal = Literal::default();
        for atom in &self.atoms {
            match byte_of(&atom.bits) {
                Some((byte, folded)) if atom.least == atom.most && atom.least <= 8 => {
                    (0..atom.least).for_each(|_| literal.push(byte, folded, &mut code));
                }
                _ => {
                    literal.end(&mut code);
                    code.extend([CLASS, open]);
                    open = open.saturating_add(u8::from(atom.most == OPEN));
                    code.extend(atom.least.to_le_bytes());
                    code.extend(atom.most.to_le_bytes());
                    code.extend(atom.bits);
                }
            }
            if code.len() > LONGEST {
                return None;
            }
        }
        literal.end(&mut code);
        if self.ends {
            code.push(END);
        }
        Some(code)
    }
}

/// Adjacent bytes, all with regard to case or all without.
#[derive(Default)]
struct Literal {
    bytes: Vec<u8>,
    folded: Option<bool>,
}

impl Literal {
    fn push(&mut self, byte: u8, folded: bool, code: &mut Vec<u8>) {
        let cased = byte.is_ascii_alphabetic();
        if self.bytes.len() == 255 || cased && self.folded.is_some_and(|f| f != folded) {
            self.end(code);
        }
        if cased {
            self.folded = Some(folded);
        }
        self.bytes.push(byte);
    }

    fn end(&mut self, code: &mut Vec<u8>) {
        if !self.bytes.is_empty() {
            code.push(if self.folded == Some(true) { FOLDED } else { LITERAL });
            code.push(self.bytes.len() as u8);
            code.append(&mut self.bytes);
        }
        self.folded = None;
    }
}

fn single(byte: u8) -> Bits {
    let mut bits = [0; 32];
    bits[usize::from(byte >> 3)] |= 1 << (byte & 7);
    bits
}

/// The one byte of a class, or its letter in lower case and true.
fn byte_of(bits: &Bits) -> Option<(u8, bool)> {
    let mut members = (0..=255).filter(|&b| has(bits, b));
    match (members.next(), members.next(), members.next()) {
        (Some(byte), None, _) => Some((byte, false)),
        (Some(upper), Some(lower), None) if upper.is_ascii_uppercase() && upper | 0x20 == lower => {
            Some((lower, true))
        }
        _ => None,
    }
}

/// `None` where a character has more than one byte.
fn bits_of(class: &Class) -> Option<Bits> {
    let mut bits = [0; 32];
    let mut take = |start: u32, end: u32| {
        (start..=end).for_each(|b| bits[b as usize >> 3] |= 1 << (b & 7));
    };
    match class {
        Class::Bytes(class) => class.ranges().iter().for_each(|r| take(r.start().into(), r.end().into())),
        Class::Unicode(class) => {
            let ascii = class.ranges().last().is_none_or(|last| last.end() <= '\x7f');
            ascii.then(|| class.ranges().iter().for_each(|r| take(r.start().into(), r.end().into())))?;
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex_automata::meta;

    use super::*;
    use crate::route::pattern::parse;

    fn chain(pattern: &str) -> Option<Chain> {
        Chain::new(&parse(pattern).expect("a valid pattern"))
    }

    #[test]
    fn plain_patterns_are_chains_and_others_are_not() {
        for plain in [
            "^sip:1234[0-9]@",
            "^sip:[^@]+@tenant7\\.example\\.com",
            "(?i)^PJSIP/",
            "@example\\.com$",
            "^sips?:[0-9]{3,5}@",
            "^1000",
            "^[0-9]+$",
            "",
            "^",
            "$",
            "^abc.*",
            "alice[0-9]{2}",
            "(?i)<sips?:[^@>]+@company7\\.example\\.org",
            "[0-9]+@x",
        ] {
            assert!(chain(plain).is_some(), "{plain}");
        }
        for other in [
            "a|b.", "^a*a", "^[a-z]+b", "a{1,99}b", "^(ab)+", "\\bab", "^[äö]", "(?m)^a", "$a", "^.*a",
            "^a?a", "a$b",
        ] {
            assert!(chain(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_chain_is_one_or_two_cache_lines() {
        let chain = chain("^sip:[^@]+@tenant7919\\.example\\.com").expect("plain");
        assert!(chain.code.len() < 80, "{}", chain.code.len());
    }

    /// Each of these would read the text once from every start, were dead runs forgotten: minutes, not milliseconds.
    #[test]
    fn a_hostile_text_is_read_a_few_times_at_most() {
        let size = 4 * 1024 * 1024;
        for (pattern, unit) in [
            ("<sip:[^@>]+@", "<sip:"),
            ("a[^x]+x[^y]+y", "a.x"),
            ("[a-z]+@", "a"),
            ("<sips?:[^@]+@", "<sips:<sip:"),
            ("a{1,64}[b-d]+e", "aaab"),
        ] {
            let chain = chain(pattern).expect("plain");
            assert!(!chain.is_match(unit.repeat(size / unit.len()).as_bytes()), "{pattern}");
        }
    }

    /// An empty text, and one shorter than the chain, must not be read beyond their ends.
    #[test]
    fn short_texts() {
        for pattern in ["abc", "abc$", "^abc", "[a-c]{3}", "$"] {
            let chain = chain(pattern).expect("plain");
            assert_eq!(chain.is_match(b""), pattern == "$");
            assert_eq!(chain.is_match(b"ab"), pattern == "$");
        }
        assert!(chain("").expect("plain").is_match(b""));
    }

    const PIECES: &[&str] = &[
        "a",
        "bc",
        "[ab]",
        "[^a]",
        "(?i:b)",
        "(?i:ab1)",
        "[cd]?",
        "d*",
        "[bc]+",
        "1{2}",
        "[0-9]{0,2}",
        "(a)",
        "a*?",
        "c{1,3}",
        ".",
        "[^c]*",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn equals_the_general_engine(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 1..6),
            (starts, ends) in any::<(bool, bool)>(),
            text in "[abcdAB1\\n]{0,14}",
        ) {
            let pattern = format!("{}{}{}", ["", "^"][usize::from(starts)], pieces.concat(), ["", "$"][usize::from(ends)]);
            let hir = parse(&pattern).expect("the generator writes valid patterns");
            if let Some(chain) = Chain::new(&hir) {
                let regex = meta::Builder::new().build_from_hir(&hir).expect("small");
                prop_assert_eq!(chain.is_match(text.as_bytes()), regex.is_match(text.as_bytes()), "{} {:?}", pattern, text);
            }
        }
    }
}
