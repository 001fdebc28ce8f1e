//! The lexical elements that header fields share (RFC 3261 25.1): character classes, LWS, quoted strings, parameters.
//!
//! Everything here works on a header's value as received, so a fold (CRLF and a blank) counts as LWS. One cursor, one
//! bounds-checked way to read bytes; the parsers of `addr`, `via`, `event` and `inspect` are written with it.

use super::block::{self, Block};

const TOKEN: u8 = 1;
const LWS: u8 = 2;
const URI: u8 = 4;

const CLASS: [u8; 256] = {
    let mut class = [0u8; 256];
    let mut b = 0usize;
    while b < 256 {
        let c = b as u8;
        if c.is_ascii_alphanumeric() {
            class[b] |= TOKEN;
        }
        if matches!(c, b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~') {
            class[b] |= TOKEN;
        }
        if matches!(c, b' ' | b'\t' | b'\r' | b'\n') {
            class[b] |= LWS;
        }
        if c > b' ' && !matches!(c, b'<' | b'>' | b'"' | 0x7f) {
            class[b] |= URI;
        }
        b += 1;
    }
    class
};

/// What may stand in a URI of any scheme: no blank, no control character, no bracket or quote that could end it.
#[inline]
pub fn is_uri_byte(b: u8) -> bool {
    CLASS[b as usize] & URI != 0
}

/// Space, tab, or a byte of a fold.
#[inline]
pub fn is_lws(b: u8) -> bool {
    CLASS[b as usize] & LWS != 0
}

/// How many bytes from the start are of the class. For short runs.
#[inline]
fn run(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|b| CLASS[*b as usize] & class == 0).unwrap_or(bytes.len())
}

/// Of sixteen bytes those that are no URI bytes.
#[inline(always)]
fn not_uri(block: Block) -> Block {
    block.at_most(b' ').or(block.is(b'<')).or(block.is(b'>')).or(block.is(b'"')).or(block.is(0x7f))
}

/// Of sixteen bytes those that may not stand in a parameter's value without quotes. Hosts may, so that an IPv6 address
/// passes with brackets or without (RFC 5118 4.5), but nothing that could end or hide a value for another reader.
#[inline(always)]
fn not_value(block: Block) -> Block {
    not_uri(block).or(block.is(b';')).or(block.is(b','))
}

/// Of sixteen bytes those that are neither letters nor digits nor one of `-._`: what nearly all tokens are made of.
#[inline(always)]
fn not_plain(block: Block) -> Block {
    block.alphanumeric().or(block.is(b'-')).or(block.is(b'.')).or(block.is(b'_')).not()
}

/// One or more token characters and nothing else.
#[inline]
pub fn is_token(bytes: &[u8]) -> bool {
    is_plain_token(bytes) || is_odd_token(bytes)
}

/// One or more letters, digits and `-._`, and nothing else.
#[inline]
fn is_plain_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && block::find(bytes, 0, not_plain) == bytes.len()
}

#[cold]
fn is_odd_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| CLASS[usize::from(*b)] & TOKEN != 0)
}

/// What may stand in a URI, and nothing else.
#[inline]
pub fn is_uri(bytes: &[u8]) -> bool {
    block::find(bytes, 0, not_uri) == bytes.len()
}

/// Where what may stand in a URI ends, from `at` on.
#[inline]
pub fn uri_end(bytes: &[u8], at: usize) -> usize {
    block::find(bytes, at, not_uri)
}

/// Where letters, digits and `-._` end, from `at` on.
#[inline]
pub fn plain_end(bytes: &[u8], at: usize) -> usize {
    block::find(bytes, at, not_plain)
}

/// Where the quoted string at `at` ends, its quotes with it. `None` where it has an escape or a NUL, or does not end.
#[inline]
pub fn quoted_end(bytes: &[u8], at: usize) -> Option<usize> {
    let end = block::find(bytes, at + 1, |b| b.is(b'"').or(b.is(b'\\')).or(b.is(0)));
    (bytes.get(end) == Some(&b'"')).then_some(end + 1)
}

/// Where the first `b` stands. For text so short that the call of a vector search would cost more than it saves.
#[inline]
pub fn place(b: u8, bytes: &[u8]) -> Option<usize> {
    let at = block::find(bytes, 0, |block| block.is(b).or(block.is(0)));
    match bytes.get(at) {
        Some(0) => bytes[at..].iter().position(|&x| x == b).map(|i| at + i),
        Some(_) => Some(at),
        None => None,
    }
}

/// Appends `bytes` in lower case (ASCII).
pub fn push_lower(bytes: &[u8], out: &mut Vec<u8>) {
    let (blocks, rest) = bytes.as_chunks::<16>();
    for block in blocks {
        out.extend_from_slice(&Block::of(block).lower().bytes());
    }
    let last = Block::of(&block::padded(rest)).lower().bytes();
    out.extend_from_slice(&last[..rest.len()]);
}

/// No blank and no control character.
#[inline]
pub fn is_printable(bytes: &[u8]) -> bool {
    block::find(bytes, 0, |b| b.at_most(b' ').or(b.is(0x7f))) == bytes.len()
}

/// How many bytes of a host stand at the start. The underscore is no host character, but many a test domain has one.
#[inline]
pub fn host_len(bytes: &[u8]) -> usize {
    block::find(bytes, 0, not_plain)
}

/// `bytes` without LWS at its ends.
#[inline]
pub fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_lws(*first)
    {
        bytes = rest;
    }
    trim_end(bytes)
}

/// `bytes` without LWS at its end.
#[inline]
pub fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., last] = bytes
        && is_lws(*last)
    {
        bytes = rest;
    }
    bytes
}

/// `1*DIGIT` of at most `max`; leading zeros are fine, however many.
#[inline]
pub fn number(bytes: &[u8], max: u64) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    let mut n = 0u64;
    for &b in bytes {
        let digit = b.wrapping_sub(b'0');
        // `max` is below 2^60, so this cannot overflow.
        if digit > 9 || n > max {
            return None;
        }
        n = n * 10 + u64::from(digit);
    }
    (n <= max).then_some(n)
}

/// The value of a hexadecimal digit.
pub fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

/// Reads a value from left to right.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub fn at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    #[inline]
    pub fn eat(&mut self, b: u8) -> Option<()> {
        if self.peek()? != b {
            return None;
        }
        self.at += 1;
        Some(())
    }

    /// Reads `text`, exactly.
    #[inline]
    pub fn skip(&mut self, text: &[u8]) -> Option<()> {
        if !self.rest().starts_with(text) {
            return None;
        }
        self.at += text.len();
        Some(())
    }

    /// `1*DIGIT` of at most `max`, as far as digits go.
    #[inline]
    pub fn number(&mut self, max: u64) -> Option<u64> {
        let (from, mut n) = (self.at, 0u64);
        while let Some(digit) = self.peek().map(|b| b.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
            // `max` is below 2^60, so this cannot overflow.
            if n > max {
                return None;
            }
            n = n * 10 + u64::from(digit);
            self.at += 1;
        }
        (self.at > from && n <= max).then_some(n)
    }

    #[inline]
    pub fn take_while(&mut self, mut holds: impl FnMut(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let end = rest.iter().position(|&b| !holds(b)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// What stands before `end`.
    #[inline]
    fn take_to(&mut self, end: usize) -> &'a [u8] {
        let taken = self.bytes.get(self.at..end).unwrap_or_default();
        self.at = end;
        taken
    }

    /// What may stand in a URI.
    #[inline]
    pub fn take_uri(&mut self) -> &'a [u8] {
        self.take_to(block::find(self.bytes, self.at, not_uri))
    }

    #[inline]
    pub fn skip_lws(&mut self) -> bool {
        let from = self.at;
        while self.peek().is_some_and(is_lws) {
            self.at += 1;
        }
        self.at > from
    }

    #[inline]
    pub fn token(&mut self) -> Option<&'a [u8]> {
        let token = self.take_to(self.at + run(self.rest(), TOKEN));
        (!token.is_empty()).then_some(token)
    }

    /// `*LWS b *LWS`; where `b` is not there the LWS has been read all the same.
    #[inline]
    pub fn separator(&mut self, b: u8) -> Option<()> {
        self.skip_lws();
        self.eat(b)?;
        self.skip_lws();
        Some(())
    }

    /// A quoted string with its quotes; `None` where it does not end.
    pub fn quoted(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        self.eat(b'"')?;
        loop {
            self.at = block::find(self.bytes, self.at, |b| b.is(b'"').or(b.is(b'\\')).or(b.is(0)));
            match self.peek()? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(&self.bytes[from..self.at])
    }

    /// One `name [= value]` of a header's parameters. The value is a token, a host, or a quoted string with its
    /// quotes; it may be empty (`;rport=`).
    #[inline]
    pub fn param(&mut self) -> Option<Param<'a>> {
        let name = self.token()?;
        if self.separator(b'=').is_none() {
            return Some(Param { name, value: None });
        }
        let value = match self.peek() {
            Some(b'"') => self.quoted()?,
            _ => self.value(),
        };
        Some(Param { name, value: Some(value) })
    }

    /// A parameter's value without quotes, perhaps empty.
    #[inline]
    fn value(&mut self) -> &'a [u8] {
        self.take_to(block::find(self.bytes, self.at, not_value))
    }

    /// `*( ; param )` up to the end of the value, each given to `each`. `None` where it is anything else.
    #[inline]
    pub fn params(&mut self, mut each: impl FnMut(Param<'a>) -> Option<()>) -> Option<()> {
        while let Some(param) = self.next_param()? {
            each(param)?;
        }
        Some(())
    }

    /// The next `; param`, or that there is none. `None` where it is anything else.
    #[inline]
    pub fn next_param(&mut self) -> Option<Option<Param<'a>>> {
        self.skip_lws();
        if self.at_end() {
            return Some(None);
        }
        self.eat(b';')?;
        self.skip_lws();
        self.param().map(Some)
    }
}

/// A header parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    pub name: &'a [u8],
    pub value: Option<&'a [u8]>,
}

impl Param<'_> {
    /// Parameter names are compared without case (RFC 3261 7.3.1).
    #[inline]
    pub fn is(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The parameter `name` of a list that has been checked (`a=1;b`, no leading `;`).
pub fn find_param<'a>(params: &'a [u8], name: &[u8]) -> Option<Option<&'a [u8]>> {
    let mut cursor = Cursor::new(params);
    loop {
        cursor.skip_lws();
        let param = cursor.param()?;
        if param.is(name) {
            return Some(param.value);
        }
        cursor.separator(b';')?;
    }
}
