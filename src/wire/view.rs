//! A scanned message as the rest of the house reads it: fields by name, values, lists, places.
//!
//! Made by `Index::scan` only. Copyable, so that its methods take it by value and what they give lives as long as the
//! received bytes.

use super::lex;
use super::name::{HeaderId, Method, same_name};
use super::scan::{Field, Index, Span, Start};

/// A scanned message: the bytes and their index.
///
/// `bytes` is the message and nothing else: without CRLFs before it, and cut at the end of its body (SPEC 2.5).
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub bytes: &'a [u8],
    pub(super) index: &'a Index,
}

/// One comma-separated value of a header that allows lists.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Position among the message's fields.
    pub field: usize,
    /// The value without blanks at its ends.
    pub value: &'a [u8],
    /// First, last value in its header line.
    pub first: bool,
    pub last: bool,
}

impl<'a> View<'a> {
    #[inline]
    pub fn start(self) -> Start {
        self.index.start
    }

    /// The method; `None` for a response.
    #[inline]
    pub fn method(self) -> Option<Method> {
        match self.index.start {
            Start::Request { method, .. } => Some(method),
            Start::Response { .. } => None,
        }
    }

    /// The Request-URI; empty for a response.
    #[inline]
    pub fn ruri(self) -> &'a [u8] {
        match self.index.start {
            Start::Request { uri, .. } => self.of(uri),
            Start::Response { .. } => &self.bytes[..0],
        }
    }

    #[inline]
    pub fn body(self) -> &'a [u8] {
        self.of(self.index.body)
    }

    #[inline]
    pub fn body_span(self) -> Span {
        self.index.body
    }

    /// Offset behind the empty line.
    #[inline]
    pub fn header_end(self) -> u32 {
        self.index.body.start
    }

    /// Offset of the first header line.
    #[inline]
    pub fn header_start(self) -> u32 {
        self.index.fields().first().map_or(self.index.body.start, |f| f.line().start)
    }

    /// Offset behind the body.
    #[inline]
    pub fn end_of_message(self) -> u32 {
        self.index.body.end
    }

    /// All header fields, in order.
    #[inline]
    pub fn fields(self) -> &'a [Field] {
        self.index.fields()
    }

    #[inline]
    pub fn first(self, id: HeaderId) -> Option<&'a Field> {
        self.index.fields().get(usize::from(self.index.first[id as usize]))
    }

    /// Whether there is more than one field of this name.
    #[inline]
    pub fn is_repeated(self, id: HeaderId) -> bool {
        self.index.twice & (1 << id as u8) != 0
    }

    /// Every field of this id, with its position among `fields`.
    #[inline]
    pub fn all(self, id: HeaderId) -> impl Iterator<Item = (usize, &'a Field)> {
        let from = usize::from(self.index.first[id as usize]);
        let to = match self.index.fields().len() {
            len if from >= len => from,
            len if self.is_repeated(id) => len,
            _ => from + 1,
        };
        let fields = self.index.fields().get(from..to).unwrap_or_default();
        fields.iter().enumerate().filter(move |(_, f)| f.is(id)).map(move |(i, f)| (from + i, f))
    }

    /// The value of the first field of this id.
    #[inline]
    pub fn value(self, id: HeaderId) -> Option<&'a [u8]> {
        self.first(id).map(|f| self.value_of(f))
    }

    /// Every field of the name `canonical_lower` (long form, lower case), known or not, compact form or not.
    pub fn named(self, canonical_lower: &[u8]) -> impl Iterator<Item = (usize, &'a Field)> {
        let fields = self.index.fields().iter().enumerate();
        fields.filter(move |(_, f)| same_name(self.of(f.name()), canonical_lower))
    }

    /// The comma-separated values of all fields of this id, in order (Via, Route, Record-Route, Path, Contact).
    #[inline]
    pub fn items(self, id: HeaderId) -> Items<'a> {
        let field = usize::from(self.index.first[id as usize]);
        let rest = self.index.fields().get(field).map(|f| self.value_of(f));
        Items { view: self, id, repeated: self.is_repeated(id), rest, field, first: true }
    }

    #[inline]
    pub fn of(self, span: Span) -> &'a [u8] {
        &self.bytes[span.range()]
    }

    /// The value of a field: without blanks and folds at its ends; folds inside it stay as received.
    #[inline]
    pub fn value_of(self, field: &Field) -> &'a [u8] {
        field.value(self.bytes)
    }

    /// Where the value of a field stands.
    #[inline]
    pub fn value_span(self, field: &Field) -> Span {
        self.span_of(self.value_of(field))
    }

    /// Where a part of the message stands in it. Panics on a slice of anything else, which is a bug.
    #[inline]
    pub fn span_of(self, part: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        assert!(
            start <= self.bytes.len() && part.len() <= self.bytes.len() - start,
            "no part of the message"
        );
        Span::new(start, start + part.len())
    }
}

/// See `View::items`.
#[derive(Clone)]
pub struct Items<'a> {
    view: View<'a>,
    id: HeaderId,
    repeated: bool,
    /// What has not been given of the field at `field`.
    rest: Option<&'a [u8]>,
    field: usize,
    first: bool,
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    #[inline]
    fn next(&mut self) -> Option<Item<'a>> {
        if self.rest.is_none() {
            if !self.repeated {
                return None;
            }
            let behind = self.view.fields().get(self.field + 1..)?;
            let step = behind.iter().position(|f| f.is(self.id))?;
            self.field += step + 1;
            self.rest = Some(self.view.value_of(&behind[step]));
            self.first = true;
        }
        let rest = self.rest?;
        let end = comma(rest);
        self.rest = rest.get(end + 1..);
        let item = Item {
            field: self.field,
            value: lex::trim(&rest[..end]),
            first: self.first,
            last: self.rest.is_none(),
        };
        self.first = false;
        Some(item)
    }
}

/// Offset of the first comma that separates values: not in a quoted string, not between `<` and `>`. Else the length.
fn comma(value: &[u8]) -> usize {
    if lex::place(b',', value).is_none() {
        return value.len();
    }
    let mut at = 0;
    let mut angle = false;
    while let Some(&b) = value.get(at) {
        match b {
            b',' if !angle => return at,
            b'<' => angle = true,
            b'>' => angle = false,
            b'"' if !angle => {
                at += 1;
                while value.get(at).is_some_and(|&b| b != b'"') {
                    at += if value[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ => {}
        }
        at += 1;
    }
    value.len()
}
