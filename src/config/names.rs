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
    pub fn new(settings: &super::Settings) -> Names {
        let mut names = Names::default();
        for alias in &settings.aliases {
            names.aliases.push((alias.to_ascii_lowercase().into_bytes().into(), None));
        }
        for l in &settings.listen {
            names.bound.push(l.address);
            if let Some((h, p)) = &l.advertise {
                names.advertised.push((h.to_ascii_lowercase().into_bytes().into(), *p));
            }
        }
        names
    }

    pub fn is_us(&self, host: &[u8], port: Option<u16>, local: SocketAddr) -> bool {
        let ip = std::str::from_utf8(host).ok().and_then(|h| h.parse::<std::net::IpAddr>().ok());
        if self.aliases.iter().any(|(h, p)| h.eq_ignore_ascii_case(host) && p.is_none_or(|p| Some(p) == port)) {
            return true;
        }
        let port = port.unwrap_or(5060);
        if self.advertised.iter().any(|(h, p)| h.eq_ignore_ascii_case(host) && *p == port) {
            return true;
        }
        let Some(ip) = ip else { return false };
        self.bound.iter().any(|b| b.port() == port && (b.ip() == ip || (b.ip().is_unspecified() && ip == local.ip())))
    }

    pub fn is_our_domain(&self, host: &[u8]) -> bool {
        let ip = std::str::from_utf8(host).ok().and_then(|h| h.parse::<std::net::IpAddr>().ok());
        self.aliases.iter().any(|(h, _)| h.eq_ignore_ascii_case(host))
            || self.advertised.iter().any(|(h, _)| h.eq_ignore_ascii_case(host))
            || ip.is_some_and(|ip| self.bound.iter().any(|b| b.ip() == ip))
    }
}
