//! Our names: is a host (of a Route, a Request-URI, a Record-Route) this router? (SPEC 3.3, 4.4)

use std::net::SocketAddr;

/// Aliases, bound and advertised addresses.
///
/// An alias without a port matches any port, one with a port only that port. A bound or advertised address matches with
/// its port (absent: the transport's default). A wildcard bind matches by port where the host is the address on which
/// the message arrived (`local`).
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Lower case, without brackets.
    pub aliases: Vec<(Box<[u8]>, Option<u16>)>,
    pub bound: Vec<SocketAddr>,
    pub advertised: Vec<(Box<[u8]>, u16)>,
}

impl Names {
    pub fn is_our_domain(&self, host: &[u8]) -> bool {
        self.aliases.iter().any(|(alias, _)| host.eq_ignore_ascii_case(alias))
    }
}
