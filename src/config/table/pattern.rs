//! The regexes of a table: how they are read, where one is at fault, and whether it can match at all.
//!
//! They see bytes. `.` takes every byte, a newline too (a header may be folded, and an attacker chooses its bytes);
//! classes and `(?i)` are ASCII. Only a pattern that cannot be read so, for a letter beyond ASCII or a `\p{…}`, is read
//! as Unicode.

use regex_syntax::{
    ParserBuilder,
    hir::{Class, Hir, HirKind, Look},
};

use super::{
    super::{
        document::{Faults, Text, quoted},
        ere,
    },
    PatternSpec, Subject,
};

/// Longer ones are refused: a pattern is read on the control thread, but not for ever.
const LONGEST: usize = 8192;

/// How `PatternSpec::regex` is read. The compiler of tables builds from this, so that both mean the same.
pub fn hir(regex: &str) -> Result<Hir, Box<regex_syntax::Error>> {
    let parse = |unicode: bool| {
        let mut parser = ParserBuilder::new().utf8(false).unicode(unicode).dot_matches_new_line(true).build();
        parser.parse(regex).map_err(Box::new)
    };
    // Over bytes a letter beyond ASCII would be a row of bytes that `(?i)` does not fold.
    if regex.is_ascii() { parse(false).or_else(|_| parse(true)) } else { parse(true) }
}

/// A regex of this key over this subject.
pub(super) fn pattern(
    faults: &mut Faults<'_>,
    key: &str,
    text: &Text<'_>,
    subject: Subject,
) -> Option<PatternSpec> {
    let regex = checked(faults, key, text, text.value, 0)?;
    Some(PatternSpec {
        subject,
        regex: regex.into(),
        written: text.value.into(),
        key: key.into(),
        absent_holds: false,
    })
}

/// One of Asterisk's filters: POSIX extended, without case, and holding where the field is absent (SPEC 5.1).
pub(super) fn filter(
    faults: &mut Faults<'_>,
    key: &str,
    text: &Text<'_>,
    member: &str,
) -> Option<PatternSpec> {
    if too_long(faults, key, text) {
        return None;
    }
    let translated = match ere::translate(text.value) {
        Ok(translated) => translated,
        Err(error) => {
            let offset =
                text.value.char_indices().nth(error.column - 1).map_or(text.value.len(), |(at, _)| at);
            at_fault(faults, key, text, offset, &error.message);
            return None;
        }
    };
    match hir(&translated) {
        Ok(hir) => warn_never(faults, key, text, &hir),
        Err(error) => {
            at_fault(
                faults,
                key,
                text,
                0,
                &format!("the filter is too deep to be translated ({})", describe(&error).1),
            );
            return None;
        }
    }
    Some(PatternSpec {
        subject: Subject::Body(member.into()),
        regex: translated.into(),
        written: text.value.into(),
        key: key.into(),
        absent_holds: true,
    })
}

fn checked<'p>(
    faults: &mut Faults<'_>,
    key: &str,
    text: &Text<'_>,
    regex: &'p str,
    skip: usize,
) -> Option<&'p str> {
    if too_long(faults, key, text) {
        return None;
    }
    match hir(regex) {
        Ok(hir) => {
            warn_never(faults, key, text, &hir);
            Some(regex)
        }
        Err(error) => {
            let (offset, message) = describe(&error);
            at_fault(faults, key, text, offset + skip, &message);
            None
        }
    }
}

fn too_long(faults: &mut Faults<'_>, key: &str, text: &Text<'_>) -> bool {
    let long = text.value.len() > LONGEST;
    if long {
        faults.error(text.span.clone(), format!("{key}: the pattern is longer than {LONGEST} bytes"));
    }
    long
}

/// Tells the fault with its column in the pattern, at its place in the file.
fn at_fault(faults: &mut Faults<'_>, key: &str, text: &Text<'_>, offset: usize, message: &str) {
    let column = text.value.get(..offset).map_or(1, |before| before.chars().count() + 1);
    let at = faults.inside(text, offset);
    let pattern = quoted(text.value);
    faults.error(at..at, format!("{key}: column {column} of the pattern {pattern}: {message}"));
}

fn describe(error: &regex_syntax::Error) -> (usize, String) {
    match error {
        regex_syntax::Error::Parse(error) => (error.span().start.offset, error.kind().to_string()),
        regex_syntax::Error::Translate(error) => (error.span().start.offset, error.kind().to_string()),
        other => (0, other.to_string()),
    }
}

fn warn_never(faults: &mut Faults<'_>, key: &str, text: &Text<'_>, hir: &Hir) {
    if never(hir) {
        let message = format!("{key}: the pattern {} can never match", quoted(text.value));
        faults.warning(text.span.clone(), message);
    }
}

/// True only where no text at all matches: an empty class, or text demanded before the start or behind the end.
fn never(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Literal(_) | HirKind::Look(_) => false,
        HirKind::Class(Class::Bytes(class)) => class.ranges().is_empty(),
        HirKind::Class(Class::Unicode(class)) => class.ranges().is_empty(),
        HirKind::Repetition(repetition) => repetition.min > 0 && never(&repetition.sub),
        HirKind::Capture(capture) => never(&capture.sub),
        HirKind::Alternation(branches) => branches.iter().all(never),
        HirKind::Concat(parts) => parts.iter().any(never) || contradicts(parts),
    }
}

fn contradicts(parts: &[Hir]) -> bool {
    let demands = |part: &Hir| part.properties().minimum_len().is_some_and(|length| length > 0);
    let begins = |part: &Hir| part.properties().look_set_prefix().contains(Look::Start);
    let ends = |part: &Hir| part.properties().look_set_suffix().contains(Look::End);
    let (mut text, mut end) = (false, false);
    for part in parts {
        if (text && begins(part)) || (end && demands(part)) {
            return true;
        }
        text |= demands(part);
        end |= ends(part);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_can_never_match() {
        for regex in ["a^", "$a", "(x+)(^b|^c)", "[a&&b]", "x(?:[a&&b]|$y)z", "(a$)b", "^a^"] {
            assert!(never(&hir(regex).expect(regex)), "{regex}");
        }
    }

    #[test]
    fn patterns_that_can_match() {
        for regex in
            ["", "^$", "a*^b", "(?m)a$\\n^b", "(^|a)b", "a|b^", "[a&&b]*x", "^^a$$", "(?:^a|b)c$", "$^"]
        {
            assert!(!never(&hir(regex).expect(regex)), "{regex}");
        }
    }

    #[test]
    fn dots_take_any_byte_and_letters_beyond_ascii_are_read() {
        assert!(hir("Müller").is_ok() && hir("\\p{Greek}").is_ok());
        let any = hir("^.$").expect("a plain pattern");
        assert_eq!(any.properties().maximum_len(), Some(1));
        assert!(hir("(a").is_err());
    }
}
