//! POSIX extended regular expressions, translated to the syntax of regex-syntax (SPEC 5.1: Asterisk's filters).
//!
//! The meaning is that of glibc's `regcomp` with REG_EXTENDED and REG_ICASE in the C locale, which is what Asterisk
//! compiles its filters with: bytes, no multi-line mode, GNU's `\w \W \s \S \b \B \< \> \` \'`. What
//! `regcomp` refuses is refused here, and so are the few things that cannot be translated (back-references, collating
//! elements of several characters, other escaped letters such as `\d`). `tests/ere.rs` compares both on generated patterns.
//!
//! Case: glibc folds pattern and text to capitals before it compares, also the ends of a range, so `[Z-a]` is an error
//! and `[_-~]` takes no letter. Sets are computed here by that rule; for the rest `(?i)` says the same.

use regex_syntax::is_meta_character;

/// A filter that cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct EreError {
    /// 1-based, in characters of the filter.
    pub column: usize,
    pub message: String,
}

/// glibc's RE_DUP_MAX.
const MOST_REPEATS: u32 = 32_767;

/// The filter in the syntax of regex-syntax, flags included: `(?is-u)…`, for a parser with `utf8(false)`. The result
/// searches, as `regexec` does: it is anchored only where the filter is.
pub fn translate(ere: &str) -> Result<String, EreError> {
    let mut translator =
        Translator { ere, bytes: ere.as_bytes(), at: 0, out: "(?is-u)".to_owned(), atom: None };
    translator.run()?;
    Ok(translator.out)
}

struct Translator<'e> {
    ere: &'e str,
    bytes: &'e [u8],
    at: usize,
    out: String,
    /// Where in `out` the expression begins that a `*` here would repeat.
    atom: Option<usize>,
}

/// The bytes that one position may hold.
struct Set([bool; 256]);

impl Translator<'_> {
    fn run(&mut self) -> Result<(), EreError> {
        // Groups that are open: where each begins, in `out` and in the filter.
        let mut open: Vec<(usize, usize)> = Vec::new();
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                0 => return self.fail(self.at, "a filter cannot hold a NUL"),
                b'(' => {
                    open.push((self.out.len(), self.at));
                    self.out.push_str("(?:");
                    self.atom = None;
                    self.at += 1;
                }
                b')' => match open.pop() {
                    Some((start, _)) => {
                        self.out.push(')');
                        self.atom = Some(start);
                        self.at += 1;
                    }
                    // POSIX leaves it open; glibc takes it for itself.
                    None => self.literal(byte),
                },
                b'|' => {
                    self.out.push('|');
                    self.atom = None;
                    self.at += 1;
                }
                b'^' | b'$' => {
                    self.out.push(char::from(byte));
                    self.atom = None; // An anchor cannot be repeated.
                    self.at += 1;
                }
                b'*' | b'+' | b'?' => {
                    self.repeat(self.at, char::from(byte).encode_utf8(&mut [0; 4]))?;
                    self.at += 1;
                }
                b'{' => self.interval()?,
                b'.' => {
                    self.push_atom("[^\\x00]");
                    self.at += 1;
                }
                b'[' => self.bracket()?,
                b'\\' => self.escape()?,
                _ => self.literal(byte),
            }
        }
        match open.pop() {
            Some((_, at)) => self.fail(at, "the group that begins here is never closed"),
            None => Ok(()),
        }
    }

    fn fail<T>(&self, at: usize, message: &str) -> Result<T, EreError> {
        let column = self.ere.get(..at).map_or(1, |before| before.chars().count() + 1);
        Err(EreError { column, message: message.to_owned() })
    }

    fn push_atom(&mut self, regex: &str) {
        self.atom = Some(self.out.len());
        self.out.push_str(regex);
    }

    fn literal(&mut self, byte: u8) {
        self.atom = Some(self.out.len());
        push_literal(&mut self.out, byte);
        self.at += 1;
    }

    /// Each repetition stands in a group of its own: `a+?` repeats twice here, and is lazy there.
    fn repeat(&mut self, at: usize, operator: &str) -> Result<(), EreError> {
        let Some(start) = self.atom else {
            return self.fail(at, "there is nothing to repeat before this");
        };
        self.out.insert_str(start, "(?:");
        self.out.push_str(operator);
        self.out.push(')');
        Ok(())
    }

    /// `{n}`, `{n,}`, `{n,m}`, and `{,m}` as glibc takes it.
    fn interval(&mut self) -> Result<(), EreError> {
        let start = self.at;
        if self.atom.is_none() {
            return self.fail(start, "there is nothing to repeat before this");
        }
        let rest = &self.bytes[start + 1..];
        let Some(end) = rest.iter().position(|byte| *byte == b'}') else {
            return self.fail(start, "this interval is never closed; write \\{ for a brace itself");
        };
        let inner = &self.ere[start + 1..start + 1 + end];
        let (low, high) = match inner.split_once(',') {
            Some((low, high)) => (low, Some(high)),
            None => (inner, None),
        };
        let number = |digits: &str| -> Option<u32> {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().unwrap_or(u32::MAX))
        };
        let least = if low.is_empty() && high.is_some() { Some(0) } else { number(low) };
        let most = match high {
            None => least.map(Some),
            Some("") => Some(None),
            Some(digits) => number(digits).map(Some),
        };
        let (Some(least), Some(most)) = (least, most) else {
            return self
                .fail(start, "this is no interval such as {2}, {2,} or {2,5}; write \\{ for a brace itself");
        };
        if most.unwrap_or(least) > MOST_REPEATS || least > MOST_REPEATS {
            return self.fail(start, "more than 32767 repetitions");
        }
        if most.is_some_and(|most| most < least) {
            return self.fail(start, "the interval ends below its beginning");
        }
        match most {
            Some(most) => self.repeat(start, &format!("{{{least},{most}}}"))?,
            None => self.repeat(start, &format!("{{{least},}}"))?,
        }
        self.at = start + 1 + end + 1;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), EreError> {
        let Some(&byte) = self.bytes.get(self.at + 1) else {
            return self.fail(self.at, "a backslash at the end");
        };
        let anchor = match byte {
            b'1'..=b'9' => return self.fail(self.at, "back-references cannot be translated"),
            0 => return self.fail(self.at + 1, "a filter cannot hold a NUL"),
            b'<' => "\\b{start}",
            b'>' => "\\b{end}",
            b'b' => "\\b",
            b'B' => "\\B",
            b'`' => "\\A",
            b'\'' => "\\z",
            b'w' | b'W' | b's' | b'S' => {
                self.push_atom(match byte {
                    b'w' => "[0-9A-Za-z_]",
                    b'W' => "[^0-9A-Za-z_]",
                    b's' => "[\\x09-\\x0d\\x20]",
                    _ => "[^\\x09-\\x0d\\x20]",
                });
                self.at += 2;
                return Ok(());
            }
            // POSIX gives it no meaning, and glibc compares it with capitals: `\d` matches nothing at all there.
            b'a'..=b'z' | b'A'..=b'Z' => {
                return self.fail(self.at, "this escape has no meaning in POSIX; digits are [0-9]");
            }
            _ => {
                self.at += 1;
                self.literal(byte);
                return Ok(());
            }
        };
        self.out.push_str(anchor);
        self.atom = None;
        self.at += 2;
        Ok(())
    }

    /// `[…]`: a set of bytes, by the rules of POSIX 9.3.5 as glibc reads them.
    fn bracket(&mut self) -> Result<(), EreError> {
        let open = self.at;
        self.at += 1;
        let negated = self.bytes.get(self.at) == Some(&b'^');
        self.at += usize::from(negated);
        let mut set = Set([false; 256]);
        let mut first = true;
        loop {
            match self.bytes.get(self.at) {
                None => return self.fail(open, "the bracket that begins here is never closed"),
                Some(b']') if !first => break,
                Some(_) => {}
            }
            let start_at = self.at;
            let start = self.element(open, first, &mut set)?;
            first = false;
            let ranges = self.bytes.get(self.at) == Some(&b'-') && self.bytes.get(self.at + 1) != Some(&b']');
            match (start, ranges) {
                (Some(low), true) => {
                    self.at += 1;
                    if self.at >= self.bytes.len() {
                        return self.fail(open, "the bracket that begins here is never closed");
                    }
                    let Some(high) = self.element(open, true, &mut set)? else {
                        return self.fail(start_at, "a class cannot end a range");
                    };
                    if low > high {
                        return self
                            .fail(start_at, "the range ends below its beginning (compared as capitals)");
                    }
                    set.0[usize::from(low)..=usize::from(high)].fill(true);
                }
                (Some(byte), false) => set.0[usize::from(byte)] = true,
                (None, _) => {}
            }
        }
        self.at += 1;
        if negated {
            set.0.iter_mut().for_each(|in_set| *in_set = !*in_set);
        }
        let class = set.without_case().class();
        self.push_atom(&class);
        Ok(())
    }

    /// One element of a bracket: a byte (as a capital), or a class, which goes into the set at once. A `-` is an element
    /// only at the beginning, at the end, or as the end of a range (`hyphen`).
    fn element(&mut self, open: usize, hyphen: bool, set: &mut Set) -> Result<Option<u8>, EreError> {
        let at = self.at;
        let byte = self.bytes[at];
        let next = self.bytes.get(at + 1);
        if byte == 0 {
            return self.fail(at, "a filter cannot hold a NUL");
        }
        if byte == b'[' && matches!(next, Some(b':' | b'=' | b'.')) {
            return self.symbol(open, set);
        }
        if byte == b'-' {
            if next == Some(&b'-') && self.bytes.get(at + 2) == Some(&b'-') {
                return self
                    .fail(at, "three hyphens in a bracket mean different things to different systems");
            }
            if !hyphen && next != Some(&b']') {
                return self
                    .fail(at, "a hyphen stands first or last in a bracket, or between the ends of a range");
            }
        }
        self.at += 1;
        Ok(Some(byte.to_ascii_uppercase()))
    }

    /// `[:class:]`, `[=x=]` or `[.x.]` inside a bracket.
    fn symbol(&mut self, open: usize, set: &mut Set) -> Result<Option<u8>, EreError> {
        let at = self.at;
        let kind = self.bytes[at + 1];
        let rest = &self.bytes[at + 2..];
        let Some(length) = rest.windows(2).position(|pair| pair == [kind, b']']) else {
            return self.fail(open, "the bracket that begins here is never closed");
        };
        let name = &rest[..length];
        self.at = at + 2 + length + 2;
        if kind != b':' {
            return match name {
                [byte] if byte.is_ascii() && *byte != 0 && kind == b'.' => {
                    Ok(Some(byte.to_ascii_uppercase()))
                }
                [byte] if byte.is_ascii() && *byte != 0 => {
                    set.0[usize::from(byte.to_ascii_uppercase())] = true;
                    Ok(None)
                }
                _ => self.fail(at, "collating elements of several characters cannot be translated"),
            };
        }
        let member: fn(&u8) -> bool = match name {
            b"alpha" | b"upper" | b"lower" => u8::is_ascii_alphabetic,
            b"digit" => u8::is_ascii_digit,
            b"alnum" => u8::is_ascii_alphanumeric,
            b"xdigit" => u8::is_ascii_hexdigit,
            b"punct" => u8::is_ascii_punctuation,
            b"cntrl" => u8::is_ascii_control,
            b"graph" => u8::is_ascii_graphic,
            b"print" => |byte| (0x20..0x7f).contains(byte),
            b"blank" => |byte| matches!(byte, b' ' | b'\t'),
            b"space" => |byte| matches!(byte, b' ' | 0x09..=0x0d),
            _ => return self.fail(at, "there is no such class of characters"),
        };
        for byte in 0..=255_u8 {
            set.0[usize::from(byte)] |= member(&byte);
        }
        if self.bytes.get(self.at) == Some(&b'-') && self.bytes.get(self.at + 1) != Some(&b']') {
            return self.fail(at, "a class cannot begin a range");
        }
        Ok(None)
    }
}

impl Set {
    /// glibc compares capitals: a byte is in where its capital is.
    fn without_case(mut self) -> Set {
        for byte in b'a'..=b'z' {
            self.0[usize::from(byte)] = self.0[usize::from(byte.to_ascii_uppercase())];
        }
        self
    }

    /// `[\x30-\x39…]`
    fn class(&self) -> String {
        let mut out = String::from("[");
        let mut from = 0;
        while from < 256 {
            if !self.0[from] {
                from += 1;
                continue;
            }
            let to = (from..256).take_while(|byte| self.0[*byte]).last().unwrap_or(from);
            push_bound(&mut out, from);
            if to > from {
                out.push('-');
                push_bound(&mut out, to);
            }
            from = to + 1;
        }
        if out.len() == 1 {
            out.push_str("^\\x00-\\xff");
        }
        out.push(']');
        out
    }
}

fn push_bound(out: &mut String, byte: usize) {
    match u8::try_from(byte) {
        Ok(byte) if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
        _ => out.push_str(&format!("\\x{byte:02x}")),
    }
}

fn push_literal(out: &mut String, byte: u8) {
    let character = char::from(byte);
    if !byte.is_ascii_graphic() && byte != b' ' {
        out.push_str(&format!("\\x{byte:02x}"));
        return;
    }
    if is_meta_character(character) {
        out.push('\\');
    }
    out.push(character);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(ere: &str) -> String {
        translate(ere).unwrap_or_else(|error| panic!("{ere}: {error}"))
    }

    #[test]
    fn filters_of_asterisk_configurations() {
        assert_eq!(ok("^PJSIP/"), "(?is-u)^PJSIP/");
        assert_eq!(ok("^1000"), "(?is-u)^1000");
        assert_eq!(ok("^(PJSIP|SIP)/[0-9]{3,4}$"), "(?is-u)^(?:PJSIP|SIP)/(?:[0-9]{3,4})$");
        assert_eq!(ok("@default$"), "(?is-u)@default$");
    }

    #[test]
    fn repetitions_are_never_lazy() {
        assert_eq!(ok("a+?"), "(?is-u)(?:(?:a+)?)");
        assert_eq!(ok("(ab){,3}*"), "(?is-u)(?:(?:(?:ab){0,3})*)");
        assert_eq!(ok("a{2,}b"), "(?is-u)(?:a{2,})b");
    }

    #[test]
    fn brackets_by_the_rules_of_posix() {
        assert_eq!(ok("[]a]"), "(?is-u)[A\\x5da]");
        assert_eq!(ok("[^]a]"), "(?is-u)[\\x00-\\x40B-\\x5c\\x5e-\\x60b-\\xff]");
        assert_eq!(ok("[a\\d]"), "(?is-u)[AD\\x5cad]");
        assert_eq!(ok("[a-]"), "(?is-u)[\\x2dAa]");
        assert_eq!(ok("[[:digit:]x]"), "(?is-u)[0-9Xx]");
        assert_eq!(ok("[[.-.]]"), "(?is-u)[\\x2d]");
        assert_eq!(ok("[_-~]"), "(?is-u)[\\x5f-\\x60\\x7b-\\x7e]");
    }

    #[test]
    fn escapes_as_glibc_reads_them() {
        assert_eq!(ok("\\.\\0)\\{"), "(?is-u)\\.0\\)\\{");
        assert_eq!(ok("\\w\\<x\\>"), "(?is-u)[0-9A-Za-z_]\\b{start}x\\b{end}");
        assert_eq!(ok("é}"), "(?is-u)\\xc3\\xa9\\}");
    }

    #[test]
    fn what_cannot_be_translated_says_where() {
        for (ere, column, why) in [
            ("é(a", 2, "never closed"),
            ("*a", 1, "nothing to repeat"),
            ("a|+", 3, "nothing to repeat"),
            ("(?:a)", 2, "nothing to repeat"),
            ("^*", 2, "nothing to repeat"),
            ("{2}", 1, "nothing to repeat"),
            ("a{", 2, "never closed"),
            ("a{x}", 2, "no interval"),
            ("a{}", 2, "no interval"),
            ("a{3,2}", 2, "below its beginning"),
            ("a{32768}", 2, "32767"),
            ("ab[c", 3, "never closed"),
            ("[]", 1, "never closed"),
            ("[b-a]", 2, "below its beginning"),
            ("[Z-a]", 2, "below its beginning"),
            ("[a-z-9]", 5, "hyphen"),
            ("[[:word:]]", 2, "no such class"),
            ("[[:digit:]-z]", 2, "begin a range"),
            ("[[.ch.]]", 2, "collating"),
            ("(a)\\1", 4, "back-references"),
            ("é\\d", 2, "no meaning"),
            ("a\\", 2, "at the end"),
        ] {
            let error = translate(ere).expect_err(ere);
            assert_eq!(error.column, column, "{ere}: {error}");
            assert!(error.message.contains(why), "{ere}: {error}");
        }
    }
}
