//! The ring of token keys (SPEC 3.1), from `[tokens] keys` or from a file of lines `id hex`. The first key signs.

use std::collections::HashSet;

use super::super::{
    diagnostic::{Diagnostic, Severity},
    document::quoted,
};

/// A ring holds at most so many keys; ids run from 0 to 15.
pub(super) const MOST_KEYS: usize = 16;

/// 32 hexadecimal digits.
pub(super) fn key(written: &str) -> Option<[u8; 16]> {
    let digits = written.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut out = [0; 16];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

/// The text of a key file: a line `3 00112233445566778899aabbccddeeff` for each key; empty lines and `#` comments pass.
/// Faults never quote a key.
pub fn parse_ring(file: &str, text: &str) -> Result<Vec<(u8, [u8; 16])>, Vec<Diagnostic>> {
    let mut ring = Vec::new();
    let mut seen = HashSet::new();
    let mut faults = Vec::new();
    let mut fault = |line: usize, message: String| {
        let (file, text) = (file.to_owned(), String::new());
        faults.push(Diagnostic { severity: Severity::Error, file, line, column: 1, message, text });
    };
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (id, hex, more) = (words.next().unwrap_or_default(), words.next(), words.next());
        let Some(number) = id.parse::<u8>().ok().filter(|id| *id < 16) else {
            fault(index + 1, "a line is \"id key\", with an id from 0 to 15".to_owned());
            continue;
        };
        match hex.and_then(key) {
            Some(key) if more.is_none() && seen.insert(number) => ring.push((number, key)),
            Some(_) if more.is_none() => fault(index + 1, format!("key id {} stands here twice", quoted(id))),
            _ => fault(index + 1, format!("the key of id {number} is not 32 hexadecimal digits")),
        }
    }
    if ring.is_empty() && faults.is_empty() {
        let message = "there is no key in this file".to_owned();
        let (file, text) = (file.to_owned(), String::new());
        faults.push(Diagnostic { severity: Severity::Error, file, line: 0, column: 0, message, text });
    }
    if faults.is_empty() { Ok(ring) } else { Err(faults) }
}
