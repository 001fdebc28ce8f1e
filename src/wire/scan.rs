//! One pass over the received bytes: the start line and an index of the header fields (SPEC 2.1, 2.3, 2.4).
//!
//! One search for control characters, 64 bytes at a time, gives the lines and every lone CR, lone LF and NUL; a known name
//! takes one load and one look-up. A fault is noted and the scan goes on, so that a 400 can be written from the header
//! lines that are sound.
//!
//! Ranges only: no copy, no allocation once the `Index` has grown to its limit. What the fields mean is for
//! `inspect`, `via`, `uri`; the worker owns one `Index` and drives it for each message. `frame` asks it where a message ends.

use memchr::{memchr, memchr_iter};

use super::block;
use super::lex;
use super::name::{HeaderId, Method, Name, known_at};
use super::reason::Reason;
pub use super::view::{Item, View};

/// Half-open range of byte offsets into the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// Room for each id that a `Name` can have.
const IDS: usize = 64;

/// One header field, by its places; its value is `View::value_of`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    start: u32,
    end: u32,
    name: Name,
}

impl Field {
    const BLANK: Field = Field { start: 0, end: 0, name: Name::NONE };

    pub fn id(&self) -> HeaderId {
        self.name.id()
    }

    #[inline]
    pub(super) fn is(&self, id: HeaderId) -> bool {
        self.name.is(id)
    }

    /// The name as received.
    #[inline]
    pub fn name(&self) -> Span {
        Span { start: self.start, end: self.start + u32::from(self.name.len()) }
    }

    /// From the first byte of the name to behind the CRLF that ends the (folded) field.
    #[inline]
    pub fn line(&self) -> Span {
        Span { start: self.start, end: self.end }
    }

    /// The value: without blanks and folds at its ends; folds inside it stay as received.
    #[inline]
    pub(super) fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match &bytes[(self.start + self.name.colon()) as usize + 1..self.end as usize - 2] {
            // Nearly all: one space before the value, none behind it.
            [b' ', value @ ..]
                if value.first().is_some_and(|b| *b > b' ') && value.last().is_some_and(|b| *b > b' ') =>
            {
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

impl Start {
    /// Before one is read.
    pub(super) const NONE: Start = {
        let nowhere = Span { start: 0, end: 0 };
        Start::Request { method: Method::Other, token: nowhere, uri: nowhere }
    };
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
    /// Room for fields, and how many there are.
    lines: Vec<Field>,
    count: usize,
    /// First field of each known name, or `u16::MAX`. Of `Other` nothing is said, here and in `twice`.
    pub(super) first: [u16; IDS],
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
            lines: vec![Field::BLANK; 64],
            count: 0,
            first: [u16::MAX; IDS],
            twice: 0,
            start: Start::NONE,
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
        let mut fault = start_line(line, &mut self.start)?;
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

    /// The header fields, in order.
    #[inline]
    pub(super) fn fields(&self) -> &[Field] {
        &self.lines[..self.count]
    }

    fn clear(&mut self) {
        self.count = 0;
        self.first = [u16::MAX; IDS];
        self.twice = 0;
    }

    /// Indexes the header lines from `from` on and gives the offset behind the empty line.
    fn header_lines(&mut self, bytes: &[u8], from: usize, limit: usize, fault: &mut Option<Reason>) -> usize {
        let Lines { count, empty, lone, nul, too_many } = self.lines(bytes, from, limit);
        self.count = count;
        if lone {
            fault.get_or_insert(Reason::BadLineEnd);
        }
        let lines = &mut self.lines[..count];
        let unnamed = name_lines(lines, bytes, &mut self.first, &mut self.twice);
        if unnamed < count && !name_others(lines, unnamed, bytes, &mut self.first, &mut self.twice) {
            self.fold_lines(bytes, fault);
            self.note_all();
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

    /// Finds the lines; makes room for more where they need it.
    fn lines(&mut self, bytes: &[u8], from: usize, limit: usize) -> Lines {
        let limit = limit.min(usize::from(u16::MAX - 1));
        loop {
            let room = self.lines.len().min(limit);
            let lines = find_lines(&mut self.lines[..room], bytes, from);
            if !lines.too_many || room == limit {
                return lines;
            }
            self.lines.resize(2 * self.lines.len(), Field::BLANK);
        }
    }

    /// Joins folds to the fields that they continue (RFC 3261 7.3.1) and takes out the lines that have no name or no colon.
    #[cold]
    fn fold_lines(&mut self, bytes: &[u8], fault: &mut Option<Reason>) {
        let mut kept = 0;
        // Whether a fold would continue the last field kept.
        let mut open = false;
        for i in 0..self.count {
            let field = self.lines[i];
            if field.name.colon() > 0 {
                self.lines[kept] = field;
                (kept, open) = (kept + 1, true);
            } else if !matches!(bytes[field.start as usize], b' ' | b'\t') {
                open = false;
                fault.get_or_insert(Reason::BadHeaderLine);
            } else if open {
                self.lines[kept - 1].end = field.end;
            } else if i == 0 {
                fault.get_or_insert(Reason::BadStartLine);
            }
        }
        self.count = kept;
    }

    fn note_all(&mut self) {
        self.first = [u16::MAX; IDS];
        self.twice = 0;
        for (place, field) in self.lines[..self.count].iter().enumerate() {
            note(&mut self.first, &mut self.twice, field.name, place);
        }
    }

    #[cold]
    fn nuls_are_quoted(&self, bytes: &[u8], end: usize) -> bool {
        let in_head = memchr_iter(0, &bytes[..end]).count();
        let quoted: usize = self.fields().iter().map(|f| quoted_nuls(f.value(bytes))).sum();
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
        let request = match start_line(line, &mut self.start) {
            Ok(_) => matches!(self.start, Start::Request { .. }),
            Err(Reason::BrokenResponse) => false,
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
        let said = |field: &Field| {
            lex::number(field.value(bytes), u64::from(u32::MAX)).ok_or(Reason::BadContentLength)
        };
        let first = usize::from(self.first[HeaderId::ContentLength as usize]);
        let Some((first, behind)) = self.fields().get(first..).and_then(|fields| fields.split_first()) else {
            return Ok(None);
        };
        let length = said(first)?;
        if self.twice & (1 << HeaderId::ContentLength as u8) != 0 {
            for field in behind.iter().filter(|field| field.is(HeaderId::ContentLength)) {
                if said(field)? != length {
                    return Err(Reason::TwoContentLength);
                }
            }
        }
        Ok(Some(length))
    }

    /// Leaves only fields that an answer may copy: none with a lone CR or LF or a NUL in it.
    #[cold]
    fn keep_sound_lines(&mut self, bytes: &[u8]) {
        let mut kept = 0;
        for i in 0..self.count {
            let field = self.lines[i];
            let line = &bytes[field.line().range()];
            let paired = line.windows(2).filter(|w| w == b"\r\n").count();
            if paired == memchr_iter(b'\r', line).count()
                && paired == memchr_iter(b'\n', line).count()
                && memchr_iter(0, line).count() == quoted_nuls(field.value(bytes))
            {
                self.lines[kept] = field;
                kept += 1;
            }
        }
        self.count = kept;
        self.note_all();
    }
}

/// Fills `lines`, as far as the empty line: where each begins and ends. By blocks of the message, not line by line: a loop for
/// each line would end at another turn each time, and the processor would guess wrong once a line.
#[inline(never)]
fn find_lines(lines: &mut [Field], bytes: &[u8], from: usize) -> Lines {
    let (mut lone, mut nul) = (false, false);
    let (mut empty, mut too_many) = (None, false);
    let room = lines.len();
    let mut free = lines.iter_mut();
    let (mut start, mut base) = (from, from);
    let mut rest = &bytes[from..];
    'all: while !rest.is_empty() {
        let mut bits;
        // From here on: that a place in the block is one in it, is known without asking.
        let here = rest;
        (bits, rest) = match rest.split_first_chunk() {
            Some((block, behind)) => (block::controls(block), behind),
            None => (last_controls(bytes, rest.len()), &rest[..0]),
        };
        while bits != 0 {
            let place = bits.trailing_zeros() as usize;
            let at = base + place;
            bits &= bits - 1;
            if here.get(place..place + 2) != Some(b"\r\n") {
                // The LF of a CRLF whose CR closed the block before has been passed: `start` is behind it.
                nul |= bytes[at] == 0;
                lone |= bytes[at] == b'\r' || bytes[at] == b'\n' && at >= start;
                continue;
            }
            // Its LF is not looked at again.
            bits &= bits.wrapping_sub(1);
            if at == start {
                empty = Some(at);
                break 'all;
            }
            let Some(line) = free.next() else {
                too_many = true;
                break 'all;
            };
            (line.start, line.end) = (start as u32, at as u32 + 2);
            start = at + 2;
        }
        base += 64;
    }
    Lines { count: room - free.len(), empty, lone, nul, too_many }
}

/// Names the lines by what is known; gives the place of the first that is not, or that there is none.
///
/// No call in this loop: it would cost each line a dozen moves. From the last line to the first, so that the first of a name
/// is noted last, without asking: a wrong guess by the processor costs as much as naming two lines.
#[inline(never)]
fn name_lines(lines: &mut [Field], bytes: &[u8], first: &mut [u16; IDS], twice: &mut u64) -> usize {
    let mut unnamed = usize::MAX;
    let (mut once, mut again) = (0, 0);
    for (place, field) in lines.iter_mut().enumerate().rev() {
        let start = field.start as usize;
        match bytes.get(start..start + 16).and_then(<[u8]>::first_chunk).and_then(known_at) {
            Some(name) => {
                field.name = name;
                again |= once & 1 << name.place();
                once |= 1 << name.place();
                first[name.place()] = place as u16;
            }
            None => {
                field.name = Name::NONE;
                unnamed = place;
            }
        }
    }
    *twice |= again;
    unnamed
}

/// Names the lines that `name_lines` could not name, from `place` on. False where one has no name of its own: a fold, or a
/// fault.
#[inline(never)]
fn name_others(
    lines: &mut [Field],
    place: usize,
    bytes: &[u8],
    first: &mut [u16; IDS],
    twice: &mut u64,
) -> bool {
    let mut all = true;
    for (place, field) in lines.iter_mut().enumerate().skip(place) {
        if field.name.colon() == 0 {
            field.name = other_name(&bytes[field.start as usize..], (field.end - 2 - field.start) as usize);
            all &= field.name.colon() > 0;
            note(first, twice, field.name, place);
        }
    }
    all
}

/// Notes a field, in whatever order.
#[inline(always)]
fn note(first: &mut [u16; IDS], twice: &mut u64, name: Name, place: usize) {
    let first = &mut first[name.place()];
    *twice |= u64::from(*first != u16::MAX) << name.place();
    *first = (*first).min(place as u16);
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
    count: usize,
    /// The CR of the empty line.
    empty: Option<usize>,
    /// A CR or an LF that is not half of a CRLF.
    lone: bool,
    nul: bool,
    /// It stopped at the limit.
    too_many: bool,
}

/// A name that `known_at` does not take: an unknown one, a rare one, one with blanks before its colon, or one at the very
/// end; or that there is none. `rest` is the message from the line on, `len` the line's length.
#[inline(never)]
fn other_name(rest: &[u8], len: usize) -> Name {
    let line = &rest[..len];
    let Some(colon) = lex::place(b':', line) else { return Name::NONE };
    let name = lex::trim_end(&line[..colon]);
    if !lex::is_token(name) || name.len() > usize::from(u16::MAX) {
        return Name::NONE;
    }
    // Any other `known_at` would have taken.
    let asked = name.len() == colon && rest.len() >= 16;
    let id = if asked { HeaderId::of_rare(name) } else { HeaderId::of(name) };
    Name::new(colon as u32, name.len() as u16, id)
}

/// As `block::controls`, of the last `len` bytes, fewer than 64.
fn last_controls(bytes: &[u8], len: usize) -> u64 {
    match bytes.last_chunk() {
        // Sixty-four once more, but for those already seen.
        Some(block) => block::controls(block) >> (64 - len),
        None => {
            let mut padded = [0xff; 64];
            padded[..len].copy_from_slice(&bytes[bytes.len() - len..]);
            block::controls(&padded)
        }
    }
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
    let mut start = Start::NONE;
    match (start_line(line, &mut start), start) {
        (Ok(_), Start::Response { .. }) => Reason::BrokenResponse,
        (Ok(_), Start::Request { .. }) => Reason::BadLineEnd,
        (Err(reason), _) => reason,
    }
}

/// A response's faults are one, but for the limits, which are counted by their own names.
fn of_response(reason: Reason) -> Reason {
    match reason {
        Reason::TooLarge | Reason::TooManyHeaders | Reason::StartLineTooLong => reason,
        _ => Reason::BrokenResponse,
    }
}

/// Reads the start line, at offset 0 and without its CRLF, to `start`, and gives its fault. `Err`: not recognised, or a broken
/// response.
pub(super) fn start_line(line: &[u8], start: &mut Start) -> Result<Option<Reason>, Reason> {
    if is_version(line) {
        *start = status_line(line).ok_or(Reason::BrokenResponse)?;
        return Ok(None);
    }
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    let mut blank = block::find(line, 0, |b| b.is(b' ').or(b.is(b'\t')).or(b.is(0)));
    if !line.get(blank).is_some_and(is_blank) {
        blank = line.iter().position(is_blank).ok_or(Reason::NotSip)?;
    }
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
    *start = Start::Request { method, token: Span::new(0, blank), uri };
    Ok(fault)
}

/// A status line begins with a version.
fn is_version(line: &[u8]) -> bool {
    line.first_chunk::<4>().is_some_and(|v| v == b"SIP/" || v.eq_ignore_ascii_case(b"SIP/"))
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
    let version = line.first_chunk::<8>()?;
    if version != b"SIP/2.0 " && !version.eq_ignore_ascii_case(b"SIP/2.0 ") {
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
