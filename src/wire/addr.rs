//! name-addr and addr-spec: From, To, Contact, Route, Record-Route, Path (RFC 3261 20.10, 20.34).

/// `"Display" <uri>;params` or `uri;params`. All parts borrow the header's value.
#[derive(Clone, Copy, Debug)]
pub struct NameAddr<'a> {
    pub display: &'a [u8],
    /// The bytes of the URI (parse with `Uri::parse`).
    pub uri: &'a [u8],
    /// Header parameters, without the leading `;`.
    pub params: &'a [u8],
}
