//! A TOML document as it is read: the recovered tree, and a collector for every fault in it, each with its place.
//!
//! `table` and `settings` walk the tree with one `match` per section; whatever is wrong goes to `Faults`, the walk goes
//! on, and all faults come out at once, sorted by place. Syntax errors silence what they would cause: other faults on
//! the same line, and keys that are missing from the section that they stand in. Nothing here knows a key's meaning.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeArray, DeString, DeTable, DeValue},
};

use super::diagnostic::{Diagnostic, Severity};

pub(super) type Key<'i> = Spanned<DeString<'i>>;
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// Beyond so many faults the rest are only counted: a megabyte of rubbish must not become a gigabyte of complaints.
const MOST: usize = 1000;
/// Longer lines are cut to what begins at the fault.
const LONGEST_LINE: usize = 200;

/// A string of the document and where it stands (with its quotes).
#[derive(Clone, Debug)]
pub(super) struct Text<'t> {
    pub value: &'t str,
    pub span: Range<usize>,
}

/// A place that later checks can point at again, when the document is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// 1-based; 0 where there is no document.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// The line, as `Diagnostic::text`.
    pub text: String,
}

/// The collector.
pub(super) struct Faults<'i> {
    pub file: &'i str,
    pub text: &'i str,
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    /// Offsets of syntax errors, ascending.
    broken: Vec<usize>,
    list: Vec<Diagnostic>,
    left_out: usize,
}

/// Parses `text` as far as it goes.
pub(super) fn open<'i>(file: &'i str, text: &'i str) -> (DeTable<'i>, Faults<'i>) {
    let lines =
        std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1)).collect();
    let mut faults = Faults { file, text, lines, broken: Vec::new(), list: Vec::new(), left_out: 0 };
    let (root, errors) = DeTable::parse_recoverable(text);
    let (mut broken, mut broken_lines) = (Vec::new(), Vec::new());
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            let key = text.get(span.clone()).unwrap_or_default().trim_matches(['"', '\'']);
            faults.error(span, format!("{} stands here twice", quoted(key)));
            continue;
        }
        // One slip often makes several syntax errors: the first of a line says it.
        let line = faults.line_of(span.start);
        if !broken_lines.contains(&line) && broken_lines.len() < MOST {
            broken_lines.push(line);
            faults.error(span.clone(), format!("not valid TOML: {}", error.message()));
            broken.push(span.start);
        }
    }
    broken.sort_unstable();
    faults.broken = broken;
    (root.into_inner(), faults)
}

/// The entries of a table in the order of the file (the tree sorts them by name).
pub(super) fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Key<'i>, &'t Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// What a value is, for "expected …, found …".
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What the user wrote, in quotes, short and without control characters.
pub(super) fn quoted(written: &str) -> String {
    let mut out = String::from("\"");
    for (count, character) in written.chars().enumerate() {
        if count == 60 {
            out.push('…');
            break;
        }
        out.push(if character.is_control() { '\u{fffd}' } else { character });
    }
    out.push('"');
    out
}

/// `, did you mean "X"?` for the nearest of `known`, or nothing where none is near.
pub(super) fn suggestion<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    match nearest(word, known) {
        Some(near) => format!(", did you mean {}?", quoted(near)),
        None => String::new(),
    }
}

/// Names looked at for a suggestion, at most.
const MOST_NAMES: usize = 200;

/// The nearest of `known`: at most a third of the letters differ, case does not count much.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word: Vec<char> = word.chars().take(65).collect();
    if word.is_empty() || word.len() > 64 {
        return None;
    }
    let allowed = (word.len() / 3).max(1);
    known
        .into_iter()
        .take(MOST_NAMES)
        .filter(|candidate| candidate.len() <= 64 && candidate.len().abs_diff(word.len()) <= allowed + 3)
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between two short words: insertion, deletion, change, and exchange of neighbours; letters compared without case.
fn distance(from: &[char], to: &str) -> usize {
    let fold = |character: char| if character == '_' { '-' } else { character.to_ascii_lowercase() };
    let from: Vec<char> = from.iter().map(|character| fold(*character)).collect();
    let to: Vec<char> = to.chars().map(fold).collect();
    let mut before = vec![0; to.len() + 1];
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (row, a) in from.iter().enumerate() {
        let mut current = vec![row + 1; to.len() + 1];
        for (column, b) in to.iter().enumerate() {
            let change = above[column] + usize::from(a != b);
            let mut best = change.min(above[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && *a == to[column - 1] && from[row - 1] == *b {
                best = best.min(before[column - 1] + 1);
            }
            current[column + 1] = best;
        }
        before = std::mem::replace(&mut above, current);
    }
    above[to.len()]
}

impl<'i> Faults<'i> {
    pub fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.push(Severity::Error, span.start, message.into());
    }

    pub fn warning(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.push(Severity::Warning, span.start, message.into());
    }

    /// Something that should stand in the section that begins at `span` does not. Silent where a syntax error in that
    /// section may have swallowed it.
    pub fn missing(&mut self, span: Range<usize>, message: impl Into<String>) {
        let rest = self.text.get(span.end..).unwrap_or_default();
        let end = rest.find("\n[").map_or(self.text.len(), |at| span.end + at);
        let from = self.broken.partition_point(|at| *at < span.start);
        if self.broken.get(from).is_none_or(|at| *at > end) {
            self.error(span, message);
        }
    }

    pub fn unknown_key<'k>(
        &mut self,
        key: &Key<'_>,
        section: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) {
        let name = key.get_ref();
        let near = self.suggestion(name, known);
        self.error(key.span(), format!("unknown key {} in {section}{near}", quoted(name)));
    }

    /// As the function of this name, but nothing once faults are only counted.
    pub fn suggestion<'k>(&self, word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
        if self.list.len() < MOST { suggestion(word, known) } else { String::new() }
    }

    /// A key whose feature this version does not have. `instead` says what to do.
    pub fn not_yet(&mut self, key: &Key<'_>, instead: &str) {
        let name = key.get_ref();
        self.error(key.span(), format!("{} is not in this version yet: {instead}", quoted(name)));
    }

    pub fn wrong_type(&mut self, key: &str, value: &Value<'_>, expected: &str) {
        let found = kind(value.get_ref());
        self.error(value.span(), format!("{key}: expected {expected}, found {found}"));
    }

    pub fn string<'t>(&mut self, key: &str, value: &'t Value<'_>) -> Option<Text<'t>> {
        match value.get_ref() {
            DeValue::String(text) => Some(Text { value: text, span: value.span() }),
            _ => {
                self.wrong_type(key, value, "a string");
                None
            }
        }
    }

    /// One of a few words, and what it stands for.
    pub fn choice<T: Copy, const N: usize>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        choices: [(&str, T); N],
    ) -> Option<T> {
        let text = self.string(key, value)?;
        let known = choices.iter().find(|(word, _)| *word == text.value);
        if known.is_none() {
            let words = choices.map(|(word, _)| word);
            let near = self.suggestion(text.value, words);
            self.error(
                text.span,
                format!("unknown {key} {}{near} ({})", quoted(text.value), words.join(", ")),
            );
        }
        known.map(|(_, choice)| *choice)
    }

    /// A string, or a list of strings that is not empty.
    pub fn strings<'t>(&mut self, key: &str, value: &'t Value<'_>) -> Vec<Text<'t>> {
        match value.get_ref() {
            DeValue::String(text) => vec![Text { value: text, span: value.span() }],
            DeValue::Array(items) if items.is_empty() => {
                self.error(value.span(), format!("{key}: the list is empty; leave the key out instead"));
                Vec::new()
            }
            DeValue::Array(items) => items.iter().filter_map(|item| self.string(key, item)).collect(),
            _ => {
                self.wrong_type(key, value, "a string or a list of strings");
                Vec::new()
            }
        }
    }

    pub fn boolean(&mut self, key: &str, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(on) => Some(*on),
            _ => {
                self.wrong_type(key, value, "true or false");
                None
            }
        }
    }

    pub fn integer(
        &mut self,
        key: &str,
        value: &Value<'_>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let DeValue::Integer(digits) = value.get_ref() else {
            self.wrong_type(key, value, "an integer");
            return None;
        };
        match i128::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) if u64::try_from(number).is_ok_and(|number| range.contains(&number)) => {
                u64::try_from(number).ok()
            }
            _ => {
                let written = self.text.get(value.span()).unwrap_or_default();
                let (low, high) = (range.start(), range.end());
                self.error(
                    value.span(),
                    format!("{key}: {} is not between {low} and {high}", quoted(written)),
                );
                None
            }
        }
    }

    pub fn table<'t, 'v>(&mut self, key: &str, value: &'t Value<'v>) -> Option<&'t DeTable<'v>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.wrong_type(key, value, "a table");
                None
            }
        }
    }

    pub fn array<'t, 'v>(&mut self, key: &str, value: &'t Value<'v>) -> Option<&'t DeArray<'v>> {
        match value.get_ref() {
            DeValue::Array(array) => Some(array),
            _ => {
                self.wrong_type(key, value, "a list");
                None
            }
        }
    }

    /// The tables of `[[key]]`, each with the place of its header.
    pub fn tables<'t, 'v>(
        &mut self,
        key: &str,
        value: &'t Value<'v>,
    ) -> Vec<(&'t DeTable<'v>, Range<usize>)> {
        let DeValue::Array(items) = value.get_ref() else {
            let found = kind(value.get_ref());
            self.error(value.span(), format!("expected [[{key}]] sections, found {found}"));
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| match item.get_ref() {
                DeValue::Table(table) => Some((table, item.span())),
                other => {
                    let found = kind(other);
                    self.error(item.span(), format!("expected a [[{key}]] section, found {found}"));
                    None
                }
            })
            .collect()
    }

    /// A name that goes into logs, metrics and headers: not empty, at most 128 bytes, no control characters.
    pub fn name<'t>(&mut self, key: &str, value: &'t Value<'_>) -> Option<Text<'t>> {
        let text = self.string(key, value)?;
        let fault = if text.value.trim().is_empty() {
            "is empty"
        } else if text.value.len() > 128 {
            "is longer than 128 bytes"
        } else if text.value.chars().any(char::is_control) {
            "holds a control character"
        } else {
            return Some(text);
        };
        self.error(text.span, format!("{key} {fault}"));
        None
    }

    /// The offset in the document of byte `offset` of a string's decoded value.
    pub fn inside(&self, text: &Text<'_>, offset: usize) -> usize {
        let raw = self.text.get(text.span.clone()).unwrap_or_default();
        text.span.start + raw_offset(raw, offset)
    }

    pub fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    pub fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.line_of(offset);
        let start = self.lines[line - 1];
        let end = self.lines.get(line).map_or(self.text.len(), |next| next - 1);
        let whole = self.text[start..end].trim_end_matches('\r');
        let column = self.text[start..offset].chars().count() + 1;
        let shown = |part: &str| -> String {
            let clean = |c: char| {
                if c == '\t' {
                    ' '
                } else if c.is_control() {
                    '\u{fffd}'
                } else {
                    c
                }
            };
            part.chars().take(LONGEST_LINE).map(clean).collect()
        };
        let text = if whole.len() <= LONGEST_LINE {
            shown(whole)
        } else {
            format!("…{}", shown(&self.text[offset.min(end)..end]))
        };
        Place { line, column, text }
    }

    /// All that was found, sorted by place.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.list.sort_by_key(|fault| (fault.line, fault.column));
        if self.left_out > 0 {
            self.list.push(Diagnostic {
                severity: Severity::Error,
                file: self.file.to_owned(),
                line: 0,
                column: 0,
                message: format!("{} more faults are not shown", self.left_out),
                text: String::new(),
            });
        }
        self.list
    }

    pub fn has_errors(&self) -> bool {
        self.left_out > 0 || self.list.iter().any(Diagnostic::is_error)
    }

    fn push(&mut self, severity: Severity, offset: usize, message: String) {
        if self.list.len() >= MOST {
            self.left_out += 1;
            return;
        }
        let line = self.line_of(offset.min(self.text.len()));
        if self.broken.iter().any(|at| self.line_of(*at) == line) {
            return;
        }
        let Place { line, column, text } = self.place(offset);
        self.list.push(Diagnostic { severity, file: self.file.to_owned(), line, column, message, text });
    }
}

/// Where byte `offset` of the decoded value stands in the raw form of a TOML string, quotes included.
fn raw_offset(raw: &str, offset: usize) -> usize {
    let quotes = if raw.starts_with("\"\"\"") || raw.starts_with("'''") { 3 } else { 1 };
    let escapes = raw.starts_with('"');
    let mut at = quotes;
    if quotes == 3 {
        // A newline right behind the opening quotes is not part of the value.
        at += match &raw.as_bytes()[3..] {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] => 1,
            _ => 0,
        };
    }
    let mut decoded = 0;
    while decoded < offset {
        let Some(character) = raw.get(at..).and_then(|rest| rest.chars().next()) else { break };
        if character != '\\' || !escapes {
            at += character.len_utf8();
            decoded += character.len_utf8();
            continue;
        }
        let rest = &raw[at + 1..];
        let digits = match rest.chars().next() {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(' ' | '\t' | '\r' | '\n') => {
                // The backslash at a line's end eats all blanks behind it.
                at += 1 + rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
                continue;
            }
            Some(_) => 0,
            None => break,
        };
        let code = rest.get(1..1 + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        decoded += code.and_then(char::from_u32).map_or(1, char::len_utf8);
        at += 2 + digits;
    }
    at.min(raw.len())
}
