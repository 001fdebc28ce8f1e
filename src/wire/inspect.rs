//! What every proxy must know of a message, parsed once and checked (SPEC 2.5): the second step after `scan`.

use super::{reason::Reason, scan::View, via::Via};

/// The mandatory header fields of a request or response.
#[derive(Clone, Copy, Debug)]
pub struct Essentials<'a> {
    /// The topmost Via.
    pub via: Via<'a>,
    /// Empty where From has no tag (RFC 2543).
    pub from_tag: &'a [u8],
    pub to_tag: Option<&'a [u8]>,
    pub from_uri: &'a [u8],
    pub to_uri: &'a [u8],
    pub call_id: &'a [u8],
    pub cseq: u32,
    pub max_forwards: Option<u8>,
}

/// Checks the mandatory fields. For a response every fault is `Reason::BrokenResponse`.
pub fn inspect<'a>(_view: &View<'a>) -> Result<Essentials<'a>, Reason> {
    todo!()
}
