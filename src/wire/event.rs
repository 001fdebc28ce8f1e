//! The Event header (RFC 6665 8.4): package with templates, and `id`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// `presence`, `presence.winfo`: as received (event types are compared exactly, RFC 6665 8.4).
    pub package: &'a [u8],
    pub id: Option<&'a [u8]>,
}
