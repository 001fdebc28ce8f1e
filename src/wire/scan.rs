//! One pass over the received bytes: the start line and an index of the header fields (SPEC 2.1, 2.3, 2.4).
//!
//! Ranges only: no copy, no allocation once the `Index` has grown to its limit. What the fields mean is for
//! `inspect`, `via`, `uri`; the worker owns one `Index` and drives it for each message.

use super::name::{HeaderId, Method};
use super::reason::Reason;

/// Half-open range of byte offsets into the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// One header field. `value` has no blanks at its ends; folds inside it stay as received.
/// `line` runs from the first byte of the name to behind the CRLF that ends the (folded) field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub id: HeaderId,
    pub name: Span,
    pub value: Span,
    pub line: Span,
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
    /// First field of each known name, or `u16::MAX`.
    pub(super) first: [u16; HeaderId::COUNT],
    pub(super) start: Start,
    /// Offset behind the empty line, and end of the body by Content-Length (what is beyond is not the message's).
    pub(super) body: Span,
}

/// A scanned message: the bytes and their index.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub bytes: &'a [u8],
    pub(super) index: &'a Index,
}

/// One comma-separated value of a header that allows lists.
/// `line_has_more` says that other values share its line, so that cutting needs care for the comma.
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
