//! SIP, SIPS, TEL and other URIs by their parts (RFC 3261 19.1), borrowed, never repaired.

/// Host and port. `host` keeps the brackets of an IPv6 reference off: `2001:db8::1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort<'a> {
    pub host: &'a [u8],
    pub port: Option<u16>,
}

/// A URI. For schemes other than sip and sips everything behind the colon is `rest`, and `host` is empty.
#[derive(Clone, Copy, Debug)]
pub struct Uri<'a> {
    pub scheme: &'a [u8],
    /// Escaped as received; without the password.
    pub user: Option<&'a [u8]>,
    pub host: HostPort<'a>,
    /// Everything between the first `;` behind the host and the `?`, without the leading `;`.
    pub params: &'a [u8],
    /// Behind the `?`.
    pub headers: &'a [u8],
    pub rest: &'a [u8],
}
