//! The lexical elements that header fields share (RFC 3261 25.1): character classes, LWS, quoted strings, parameters.
//!
//! Everything here works on a header's value as received, so a fold (CRLF and a blank) counts as LWS. One cursor, one
//! bounds-checked way to read bytes; the parsers of `addr`, `via`, `event` and `inspect` are written with it.

const TOKEN: u8 = 1;
const LWS: u8 = 2;
const HOST: u8 = 4;
const URI: u8 = 8;
/// What may stand in a parameter's value without quotes: hosts too, so that an IPv6 address passes with brackets or
/// without (RFC 5118 4.5), but nothing that could end or hide a value for another reader.
const VALUE: u8 = 16;

const CLASS: [u8; 256] = {
    let mut class = [0u8; 256];
    let mut b = 0usize;
    while b < 256 {
        let c = b as u8;
        if c.is_ascii_alphanumeric() {
            class[b] |= TOKEN | HOST;
        }
        if matches!(c, b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~') {
            class[b] |= TOKEN;
        }
        // The underscore is no host character, but many a test domain has one.
        if matches!(c, b'-' | b'.' | b'_') {
            class[b] |= HOST;
        }
        if matches!(c, b' ' | b'\t' | b'\r' | b'\n') {
            class[b] |= LWS;
        }
        if c > b' ' && !matches!(c, b'<' | b'>' | b'"' | 0x7f) {
            class[b] |= URI;
            if !matches!(c, b';' | b',') {
                class[b] |= VALUE;
            }
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

/// How many bytes from the start are of the class: eight at a time, since most runs are longer than that.
#[inline]
fn run(bytes: &[u8], class: u8) -> usize {
    let mut rest = bytes;
    while let Some((block, behind)) = rest.split_first_chunk::<8>() {
        if block.iter().fold(class, |all, b| all & CLASS[*b as usize]) == 0 {
            break;
        }
        rest = behind;
    }
    while let [first, behind @ ..] = rest
        && CLASS[*first as usize] & class != 0
    {
        rest = behind;
    }
    bytes.len() - rest.len()
}

/// One or more token characters and nothing else.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && run(bytes, TOKEN) == bytes.len()
}

/// What may stand in a URI, and nothing else.
#[inline]
pub fn is_uri(bytes: &[u8]) -> bool {
    run(bytes, URI) == bytes.len()
}

/// How many bytes of a host stand at the start.
#[inline]
pub fn host_len(bytes: &[u8]) -> usize {
    run(bytes, HOST)
}

/// `bytes` without LWS at its ends.
pub fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes {
        if !is_lws(*first) {
            break;
        }
        bytes = rest;
    }
    while let [rest @ .., last] = bytes {
        if !is_lws(*last) {
            break;
        }
        bytes = rest;
    }
    bytes
}

/// `1*DIGIT` of at most `max`; leading zeros are fine, however many.
pub fn number(bytes: &[u8], max: u64) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    let mut n = 0u64;
    for &b in bytes {
        if !b.is_ascii_digit() {
            return None;
        }
        n = n.checked_mul(10)?.checked_add(u64::from(b - b'0'))?;
        if n > max {
            return None;
        }
    }
    Some(n)
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

    #[inline]
    pub fn take_while(&mut self, mut holds: impl FnMut(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let end = rest.iter().position(|&b| !holds(b)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    #[inline]
    fn take_class(&mut self, class: u8) -> &'a [u8] {
        let rest = self.rest();
        let end = run(rest, class);
        self.at += end;
        &rest[..end]
    }

    /// What may stand in a URI.
    #[inline]
    pub fn take_uri(&mut self) -> &'a [u8] {
        self.take_class(URI)
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
        let token = self.take_class(TOKEN);
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
        let value = if self.peek() == Some(b'"') { self.quoted()? } else { self.take_class(VALUE) };
        Some(Param { name, value: Some(value) })
    }

    /// `*( ; param )` up to the end of the value, each given to `each`. `None` where it is anything else.
    #[inline]
    pub fn params(&mut self, mut each: impl FnMut(Param<'a>) -> Option<()>) -> Option<()> {
        loop {
            self.skip_lws();
            if self.at_end() {
                return Some(());
            }
            self.separator(b';')?;
            each(self.param()?)?;
        }
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
