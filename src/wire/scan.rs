//! One pass over the received bytes: the start line and an index of the header fields (SPEC 2.1, 2.3, 2.4).
//!
//! One search for control characters, 64 bytes at a time, gives the lines and every lone CR, lone LF and NUL; known names
//! take one load and one look-up each. A fault is noted and the scan goes on, so that a 400 can be written from the header
//! lines that are sound.
//!
//! Ranges only: no copy, no allocation once the `Index` has grown to its limit. What the fields mean is for
//! `inspect`, `via`, `uri`; the worker owns one `Index` and drives it for each message. `frame` asks it where a message ends.

use memchr::{memchr, memchr_iter, memchr2};

use super::block;
use super::lex;
use super::name::{HeaderId, Method, known_at};
use super::reason::Reason;
pub use super::view::{Item, View};

/// Half-open range of byte offsets into the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// One header field, by its places; its value is `View::value_of`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    start: u32,
    colon: u32,
    end: u32,
    name_len: u16,
    pub id: HeaderId,
}

impl Field {
    /// The name as received.
    #[inline]
    pub fn name(&self) -> Span {
        Span { start: self.start, end: self.start + u32::from(self.name_len) }
    }

    /// From the first byte of the name to behind the CRLF that ends the (folded) field.
    #[inline]
    pub fn line(&self) -> Span {
        Span { start: self.start, end: self.end }
    }

    /// The value: without blanks and folds at its ends; folds inside it stay as received.
    #[inline]
    pub(super) fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match &bytes[self.colon as usize + 1..self.end as usize - 2] {
            // Nearly all: one space before the value, none behind it.
            [b' ', value @ ..] if matches!(value, [first, .., last] if *first > b' ' && *last > b' ') => {
                value
            }
            value => lex::trim(value),
        }
    }
}

/// The start line. `method` is the token's span, `uri` the Request-URI's.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    Request { method: Method, token: Span, uri: Span },
    Response { code: u16, phrase: Span },
}

/// Limits of SPEC 2.4, in bytes and lines.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub message: usize,
    pub header_lines: usize,
    pub start_line: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { message: 64 * 1024, header_lines: 256, start_line: 8 * 1024 }
    }
}

/// The reusable index of one message.
pub struct Index {
    pub(super) fields: Vec<Field>,
    /// First field of each known name, or `u16::MAX`. Of `Other` nothing is said, here and in `twice`.
    pub(super) first: [u16; HeaderId::COUNT],
    /// A bit for each id that occurs more than once.
    pub(super) twice: u64,
    pub(super) start: Start,
    /// Offset behind the empty line, and end of the body by Content-Length (what is beyond is not the message's).
    pub(super) body: Span,
}

/// A message that is not forwarded. Where `view` is there it is a request to which an answer may be written from the
/// header fields that the view has: those of them whose lines are sound.
pub struct Refused<'a> {
    pub reason: Reason,
    pub view: Option<View<'a>>,
}

impl Default for Index {
    fn default() -> Index {
        Index::new()
    }
}

impl Index {
    /// Grows to the most header lines ever seen, and then allocates no more.
    pub fn new() -> Index {
        Index {
            fields: Vec::with_capacity(64),
            first: [u16::MAX; HeaderId::COUNT],
            twice: 0,
            start: Start::Request { method: Method::Other, token: Span::default(), uri: Span::default() },
            body: Span::default(),
        }
    }

    /// Scans one datagram.
    pub fn scan<'a>(&'a mut self, bytes: &'a [u8], limits: &Limits) -> Result<View<'a>, Refused<'a>> {
        let mut bytes = bytes;
        while let [b'\r', b'\n', rest @ ..] = bytes {
            bytes = rest; // RFC 3261 7.5
        }
        match self.read(bytes, limits) {
            Ok(None) => Ok(View { bytes: &bytes[..self.body.end as usize], index: self }),
            Ok(Some(reason)) if matches!(self.start, Start::Request { .. }) => {
                self.keep_sound_lines(bytes);
                Err(Refused { reason, view: Some(View { bytes, index: self }) })
            }
            Ok(Some(reason)) => Err(Refused { reason: of_response(reason), view: None }),
            Err(_) if is_blank(bytes) => Err(Refused { reason: Reason::Keepalive, view: None }),
            Err(reason) => Err(Refused { reason, view: None }),
        }
    }

    /// `Ok` with the first fault where the start line was recognised, `Err` where it was not.
    fn read(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<Reason>, Reason> {
        self.clear();
        let Some(lf) = memchr(b'\n', bytes) else { return Err(no_line(bytes)) };
        let [line @ .., b'\r'] = &bytes[..lf] else { return Err(no_line(bytes)) };
        let (start, mut fault) = start_line(line)?;
        self.start = start;
        if bytes.len() > limits.message {
            fault = Some(Reason::TooLarge);
        } else if line.len() > limits.start_line {
            fault = Some(Reason::StartLineTooLong);
        }
        let end = self.header_lines(bytes, lf + 1, limits.header_lines, &mut fault);
        self.body = Span::new(end, bytes.len());
        if fault.is_none() {
            fault = self.cut_body(bytes);
        }
        Ok(fault)
    }

    fn clear(&mut self) {
        self.fields.clear();
        self.first = [u16::MAX; HeaderId::COUNT];
        self.twice = 0;
    }

    /// Indexes the header lines from `from` on and gives the offset behind the empty line.
    fn header_lines(&mut self, bytes: &[u8], from: usize, limit: usize, fault: &mut Option<Reason>) -> usize {
        let Lines { empty, lone, nul, too_many } = self.find_lines(bytes, from, limit);
        if lone {
            fault.get_or_insert(Reason::BadLineEnd);
        }
        if !self.name_lines(bytes) {
            self.name_odd_lines(bytes, fault);
        }
        match empty {
            Some(cr) => {
                if nul && !self.nuls_are_quoted(bytes, cr) {
                    fault.get_or_insert(Reason::BadLineEnd);
                }
                cr + 2
            }
            None => {
                fault.get_or_insert(if too_many { Reason::TooManyHeaders } else { Reason::BadLineEnd });
                bytes.len()
            }
        }
    }

    /// Fills `fields` with the lines as far as the empty one or the limit: where each begins and ends.
    fn find_lines(&mut self, bytes: &[u8], from: usize, limit: usize) -> Lines {
        let mut found = Lines { empty: None, lone: false, nul: false, too_many: false };
        let fields = &mut self.fields;
        let (mut start, mut base) = (from, from);
        while let Some(rest) = bytes.get(base..).filter(|rest| !rest.is_empty()) {
            let mut bits = match rest.first_chunk::<64>() {
                Some(block) => block::controls(block),
                None => {
                    let mut padded = [0xff; 64];
                    padded[..rest.len()].copy_from_slice(rest);
                    block::controls(&padded)
                }
            };
            base += 64;
            while bits != 0 {
                let at = base - 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if bytes.get(at + 1) != Some(&b'\n') || bytes[at] != b'\r' {
                    // The LF of a CRLF whose CR closed the block before has been passed: `start` is behind it.
                    found.nul |= bytes[at] == 0;
                    found.lone |= bytes[at] == b'\r' || bytes[at] == b'\n' && at >= start;
                    continue;
                }
                // Its LF is not looked at again.
                bits &= bits.wrapping_sub(1);
                if at == start {
                    found.empty = Some(at);
                    return found;
                }
                if fields.len() >= limit.min(usize::from(u16::MAX - 1)) {
                    found.too_many = true;
                    return found;
                }
                let (at, end) = (start as u32, at as u32 + 2);
                fields.push(Field { start: at, colon: at, end, name_len: 0, id: HeaderId::Other });
                start = end as usize;
            }
        }
        found
    }

    /// Names the lines whose names are known. Are there others?
    fn name_lines(&mut self, bytes: &[u8]) -> bool {
        let mut all = true;
        for (place, field) in self.fields.iter_mut().enumerate() {
            let Some(known) = known_at(bytes, field.start as usize) else {
                all = false;
                continue;
            };
            field.colon = field.start + u32::from(known.len);
            field.name_len = u16::from(known.len);
            field.id = known.id;
            note(&mut self.first, &mut self.twice, known.id, place);
        }
        all
    }

    /// Names the lines that `name_lines` left: unknown names, folds, faults.
    fn name_odd_lines(&mut self, bytes: &[u8], fault: &mut Option<Reason>) {
        let (mut odd, mut known) = (false, false);
        for field in &mut self.fields {
            let Span { start, end } = field.line();
            let line = &bytes[start as usize..end as usize - 2];
            if field.colon != field.start {
                continue;
            }
            match other_name(line, bytes.len() - start as usize) {
                Some((id, len, colon)) => {
                    (field.id, field.name_len, field.colon) = (id, len, start + colon);
                    known |= id != HeaderId::Other;
                }
                None => odd = true,
            }
        }
        if odd {
            self.fold_lines(bytes, fault);
        }
        if odd || known {
            self.note_all();
        }
    }

    /// Joins folds to the fields that they continue (RFC 3261 7.3.1) and takes out the lines that have no name or no colon.
    #[cold]
    fn fold_lines(&mut self, bytes: &[u8], fault: &mut Option<Reason>) {
        let mut kept = 0;
        // Whether a fold would continue the last field kept.
        let mut open = false;
        for i in 0..self.fields.len() {
            let field = self.fields[i];
            if field.colon != field.start {
                self.fields[kept] = field;
                (kept, open) = (kept + 1, true);
            } else if !matches!(bytes[field.start as usize], b' ' | b'\t') {
                open = false;
                fault.get_or_insert(Reason::BadHeaderLine);
            } else if open {
                self.fields[kept - 1].end = field.end;
            } else if i == 0 {
                fault.get_or_insert(Reason::BadStartLine);
            }
        }
        self.fields.truncate(kept);
    }

    fn note_all(&mut self) {
        self.first = [u16::MAX; HeaderId::COUNT];
        self.twice = 0;
        for (place, field) in self.fields.iter().enumerate() {
            note(&mut self.first, &mut self.twice, field.id, place);
        }
    }

    #[cold]
    fn nuls_are_quoted(&self, bytes: &[u8], end: usize) -> bool {
        let in_head = memchr_iter(0, &bytes[..end]).count();
        let quoted: usize = self.fields.iter().map(|f| quoted_nuls(f.value(bytes))).sum();
        in_head == quoted
    }

    /// The length of a message on a stream, by its head, which ends with the first empty line, and its Content-Length, which
    /// must be there (RFC 3261 18.3). `Err`: where it ends is not certain, or it is too large; then an answer may be written
    /// where the reason has a code. Faults that concern no line's end pass: `scan` finds them again.
    pub(super) fn length(&mut self, head: &[u8], limits: &Limits) -> Result<u32, Reason> {
        match self.length_if_said(head, limits)? {
            Some(length) => Ok(length),
            None if is_version(head) => Err(Reason::BrokenResponse),
            None => Err(Reason::MissingContentLength),
        }
    }

    /// The same where the end is known besides (RFC 7118 5): `None` without a Content-Length.
    pub(super) fn length_if_said(&mut self, head: &[u8], limits: &Limits) -> Result<Option<u32>, Reason> {
        self.clear();
        let lf = memchr(b'\n', head).ok_or(Reason::NotSip)?;
        let line = head[..lf].strip_suffix(b"\r").ok_or(Reason::NotSip)?;
        let request = match start_line(line) {
            Ok((Start::Request { .. }, _)) => true,
            Ok((Start::Response { .. }, _)) | Err(Reason::BrokenResponse) => false,
            Err(reason) => return Err(reason),
        };
        let mut fault = (line.len() > limits.start_line).then_some(Reason::StartLineTooLong);
        let end = self.header_lines(head, lf + 1, limits.header_lines, &mut fault);
        let length = match fault {
            None => self.content_length(head),
            Some(fault) => Err(fault),
        };
        // `n` is below 2^32.
        match length.map(|length| length.map(|n| n + end as u64)) {
            Ok(None) => Ok(None),
            Ok(Some(whole)) if whole <= limits.message as u64 => Ok(Some(whole as u32)),
            Ok(Some(_)) => Err(Reason::TooLarge),
            Err(reason) => Err(reason),
        }
        .map_err(|reason| if request { reason } else { of_response(reason) })
    }

    /// The body ends where Content-Length says (SPEC 2.3, 2.5).
    fn cut_body(&mut self, bytes: &[u8]) -> Option<Reason> {
        match self.content_length(bytes) {
            Ok(None) => None,
            Ok(Some(n)) if n > u64::from(self.body.end - self.body.start) => Some(Reason::BadContentLength),
            Ok(Some(n)) => {
                self.body.end = self.body.start + n as u32;
                None
            }
            Err(reason) => Some(reason),
        }
    }

    /// What Content-Length says, below 2^32; said twice it must be the same.
    fn content_length(&self, bytes: &[u8]) -> Result<Option<u64>, Reason> {
        let mut length = None;
        let first = self.first[HeaderId::ContentLength as usize];
        if first == u16::MAX {
            return Ok(None);
        }
        for field in &self.fields[usize::from(first)..] {
            if field.id != HeaderId::ContentLength {
                continue;
            }
            let Some(n) = lex::number(field.value(bytes), u64::from(u32::MAX)) else {
                return Err(Reason::BadContentLength);
            };
            if length.is_some_and(|length| length != n) {
                return Err(Reason::TwoContentLength);
            }
            length = Some(n);
            if self.twice & (1 << HeaderId::ContentLength as u8) == 0 {
                break;
            }
        }
        Ok(length)
    }

    /// Leaves only fields that an answer may copy: none with a lone CR or LF or a NUL in it.
    #[cold]
    fn keep_sound_lines(&mut self, bytes: &[u8]) {
        self.fields.retain(|f| {
            let line = &bytes[f.line().range()];
            let paired = line.windows(2).filter(|w| w == b"\r\n").count();
            paired == memchr_iter(b'\r', line).count()
                && paired == memchr_iter(b'\n', line).count()
                && memchr_iter(0, line).count() == quoted_nuls(f.value(bytes))
        });
        self.note_all();
    }
}

#[inline]
fn note(first: &mut [u16; HeaderId::COUNT], twice: &mut u64, id: HeaderId, place: usize) {
    let first = &mut first[id as usize];
    if *first == u16::MAX {
        *first = place as u16;
    } else {
        *twice |= 1 << id as u8;
    }
}

impl Span {
    #[inline]
    pub(super) fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    #[inline]
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    #[inline]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    #[inline]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// What `find_lines` found besides them.
struct Lines {
    /// The CR of the empty line.
    empty: Option<usize>,
    /// A CR or an LF that is not half of a CRLF.
    lone: bool,
    nul: bool,
    /// It stopped at the limit.
    too_many: bool,
}

/// A name that `known_at` does not take: an unknown one, one with blanks before its colon, or one at the very end.
/// Gives the id, the length of the name, the place of the colon. `left`: how many bytes of the message there are from the
/// line on.
fn other_name(line: &[u8], left: usize) -> Option<(HeaderId, u16, u32)> {
    let colon = memchr(b':', line)?;
    let name = lex::trim_end(&line[..colon]);
    if !lex::is_token(name) {
        return None;
    }
    let certain = name.len() == colon && left >= 32;
    let id = if certain { HeaderId::Other } else { HeaderId::of(name) };
    Some((id, u16::try_from(name.len()).ok()?, colon as u32))
}

/// `start..end` without blanks at its ends (within one line).
#[inline]
fn trimmed(bytes: &[u8], mut start: usize, mut end: usize) -> (usize, usize) {
    while start < end && matches!(bytes[start], b' ' | b'\t') {
        start += 1;
    }
    while start < end && matches!(bytes[end - 1], b' ' | b'\t') {
        end -= 1;
    }
    (start, end)
}

/// How many NULs stand in quoted strings as `\NUL` (RFC 3261 25.1, quoted-pair).
fn quoted_nuls(value: &[u8]) -> usize {
    let (mut at, mut quoted, mut found) = (0, false, 0);
    while let Some(&b) = value.get(at) {
        match b {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                at += 1;
                found += usize::from(value.get(at) == Some(&0));
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// A keep-alive: CRLFs (RFC 5626 3.5.1), or the blanks and NULs that some phones send instead.
fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b'\r' | b'\n' | b' ' | b'\t' | 0))
}

/// What to call a datagram without one whole first line.
#[cold]
pub(super) fn no_line(bytes: &[u8]) -> Reason {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    match start_line(line) {
        Ok((Start::Response { .. }, _)) | Err(Reason::BrokenResponse) => Reason::BrokenResponse,
        Ok(_) => Reason::BadLineEnd,
        Err(reason) => reason,
    }
}

/// A response's faults are one, but for the limits, which are counted by their own names.
fn of_response(reason: Reason) -> Reason {
    match reason {
        Reason::TooLarge | Reason::TooManyHeaders | Reason::StartLineTooLong => reason,
        _ => Reason::BrokenResponse,
    }
}

/// The start line at offset 0, without its CRLF. `Err`: not recognised, or a broken response.
pub(super) fn start_line(line: &[u8]) -> Result<(Start, Option<Reason>), Reason> {
    if is_version(line) {
        return status_line(line).map(|start| (start, None)).ok_or(Reason::BrokenResponse);
    }
    let Some(blank) = memchr2(b' ', b'\t', line) else { return Err(Reason::NotSip) };
    let token = &line[..blank];
    let (uri_end, mut fault) =
        if line.ends_with(b" SIP/2.0") { (line.len() - 8, None) } else { odd_version(line)? };
    let method = Method::of(token);
    if method == Method::Other && !lex::is_token(token) {
        return Err(Reason::BadStartLine);
    }
    let uri = Span::new((blank + 1).min(uri_end), uri_end);
    let text = &line[uri.range()];
    let spaced = |b: Option<&u8>| matches!(b, None | Some(b' ' | b'\t'));
    if line[blank] != b' ' || spaced(text.first()) || spaced(text.last()) {
        fault = fault.or(Some(Reason::BadStartLine));
    } else if !lex::is_uri(text) {
        fault = fault.or(Some(Reason::BadRequestUri));
    }
    Ok((Start::Request { method, token: Span::new(0, blank), uri }, fault))
}

/// A status line begins with a version.
fn is_version(line: &[u8]) -> bool {
    line.first_chunk::<4>().is_some_and(|v| v.eq_ignore_ascii_case(b"SIP/"))
}

/// A request line that does not end with ` SIP/2.0`: where its URI ends, and its fault, if it has one.
#[cold]
fn odd_version(line: &[u8]) -> Result<(usize, Option<Reason>), Reason> {
    let (_, end) = trimmed(line, 0, line.len());
    let line_trimmed = &line[..end];
    let blank = line_trimmed.iter().rposition(|b| matches!(b, b' ' | b'\t')).ok_or(Reason::NotSip)?;
    let version = &line_trimmed[blank + 1..];
    if !version.first_chunk::<4>().is_some_and(|v| v.eq_ignore_ascii_case(b"SIP/")) {
        return Err(Reason::NotSip);
    }
    let fault = if !version.eq_ignore_ascii_case(b"SIP/2.0") {
        Some(Reason::Version)
    } else if end != line.len() || line[blank] != b' ' {
        Some(Reason::BadStartLine)
    } else {
        None
    };
    Ok((blank, fault))
}

/// `SIP/2.0 200 OK`; the phrase may be empty.
fn status_line(line: &[u8]) -> Option<Start> {
    if !line.get(..8)?.eq_ignore_ascii_case(b"SIP/2.0 ") {
        return None;
    }
    let code = lex::number(line.get(8..11)?, 699)? as u16;
    let phrase = match line.get(11) {
        None => 11,
        Some(b' ') => 12,
        Some(_) => return None,
    };
    if block::find(line, 11, |b| b.is(0).or(b.is(b'\r'))) < line.len() {
        return None;
    }
    (code >= 100).then_some(Start::Response { code, phrase: Span::new(phrase, line.len()) })
}

#[cfg(test)]
mod tests;
