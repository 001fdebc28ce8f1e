//! One Via value (RFC 3261 20.42, RFC 3581, RFC 5118 4.5).

use super::uri::HostPort;

#[derive(Clone, Copy, Debug)]
pub struct Via<'a> {
    /// `UDP`, `TCP`, … as received.
    pub transport: &'a [u8],
    pub sent_by: HostPort<'a>,
    /// Empty where there is none (RFC 2543).
    pub branch: &'a [u8],
    /// The whole `received=…` value, where there is one.
    pub received: Option<&'a [u8]>,
    /// The `rport` parameter's name where it is present (its place in the bytes), and its value where it has one.
    pub rport: Option<(&'a [u8], Option<&'a [u8]>)>,
    /// The whole value (up to the comma or the end of the line), without blanks at its ends.
    pub whole: &'a [u8],
}
