//! Our names: is a host (of a Route, a Request-URI, a Record-Route) this router? (SPEC 3.3, 4.4)
//!
//! Asked for each message, so nothing here allocates; addresses are compared as addresses, whatever their spelling.

use std::net::{IpAddr, SocketAddr};

use super::settings::{Settings, host_port};
use crate::wire;

/// Aliases, bound and advertised addresses.
///
/// An alias without a port matches any port, one with a port only that port. A bound or advertised address matches with
/// its port. A wildcard bind matches by port where the host is the address on which
/// the message arrived (`local`).
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Lower case, without brackets.
    pub aliases: Vec<(Box<[u8]>, Option<u16>)>,
    pub bound: Vec<SocketAddr>,
    pub advertised: Vec<(Box<[u8]>, u16)>,
}

impl Names {
    pub fn new(settings: &Settings) -> Names {
        let alias = |written: &String| {
            let (host, port) = host_port(written)?;
            Some((Box::from(host.as_bytes()), port))
        };
        let advertised = settings.listen.iter().filter_map(|listen| listen.advertise.as_ref());
        Names {
            aliases: settings.aliases.iter().filter_map(alias).collect(),
            bound: settings.listen.iter().map(|listen| listen.address).collect(),
            advertised: advertised.map(|(host, port)| (Box::from(host.as_bytes()), *port)).collect(),
        }
    }

    /// Is `host` (with or without brackets) with this port (`Uri::port`) this router, for a message that arrived on `local`?
    pub fn is_us(&self, host: &[u8], named: u16, local: SocketAddr) -> bool {
        let host = Host::of(host);
        let bound = |address: &SocketAddr| {
            let ip = if address.ip().is_unspecified() { local.ip() } else { address.ip() };
            address.port() == named && host.ip == Some(ip.to_canonical())
        };
        self.bound.iter().any(bound)
            || self.advertised.iter().any(|(name, port)| *port == named && host.is(name))
            || self.aliases.iter().any(|(name, only)| only.is_none_or(|only| only == named) && host.is(name))
    }

    /// Is `host` one of our names, whatever the port? Balance takes all of them as one domain (SPEC 5.3).
    pub fn is_our_domain(&self, host: &[u8]) -> bool {
        let host = Host::of(host);
        self.bound.iter().any(|address| host.ip == Some(address.ip().to_canonical()))
            || self.advertised.iter().any(|(name, _)| host.is(name))
            || self.aliases.iter().any(|(name, _)| host.is(name))
    }
}

/// A host as received: its bytes, and the address where it is one.
struct Host<'h> {
    name: &'h [u8],
    ip: Option<IpAddr>,
}

impl<'h> Host<'h> {
    fn of(host: &'h [u8]) -> Host<'h> {
        let inner = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(host);
        let ip = wire::ip::parse(inner).map(|ip| ip.to_canonical());
        Host { name: inner.strip_suffix(b".").unwrap_or(inner), ip }
    }

    /// Compared as an address where both are addresses, else as a name without case.
    fn is(&self, ours: &[u8]) -> bool {
        let ours = ours.strip_suffix(b".").unwrap_or(ours);
        match self.ip {
            Some(ip) => Host::of(ours).ip == Some(ip),
            None => self.name.eq_ignore_ascii_case(ours),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{ListenSpec, Side};

    fn names() -> Names {
        let mut settings = Settings {
            aliases: vec!["Example.com".into(), "sip.example.com:5070".into(), "[2001:db8::5]".into()],
            ..Settings::default()
        };
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address of this test");
        let mut inside = ListenSpec::udp("inside", address("10.0.0.1:5060"), Side::Backends);
        inside.advertise = Some(("edge.example.net".into(), 5080));
        settings.listen = vec![
            inside,
            ListenSpec::udp("six", address("[2001:db8::1]:5061"), Side::Clients),
            ListenSpec::udp("wild", address("0.0.0.0:5090"), Side::Clients),
        ];
        Names::new(&settings)
    }

    fn local() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], 5090))
    }

    #[test]
    fn aliases_match_without_case_and_by_port_where_they_have_one() {
        let names = names();
        for (host, port, ours) in [
            ("example.COM", None, true),
            ("example.com", Some(7000), true),
            ("example.com.", None, true),
            ("sip.example.com", Some(5070), true),
            ("sip.example.com", None, false),
            ("sip.example.com", Some(5071), false),
            ("a.example.com", None, false),
            ("", None, false),
            ("2001:DB8:0::5", Some(1), true),
        ] {
            assert_eq!(names.is_us(host.as_bytes(), port.unwrap_or(5060), local()), ours, "{host} {port:?}");
        }
    }

    #[test]
    fn addresses_match_as_addresses_with_their_port() {
        let names = names();
        for (host, port, ours) in [
            ("10.0.0.1", None, true),
            ("10.0.0.1", Some(5060), true),
            ("10.0.0.1", Some(5061), false),
            ("::ffff:10.0.0.1", Some(5060), true),
            ("[2001:0db8::0001]", Some(5061), true),
            ("2001:db8::1", None, false),
            ("edge.example.net", Some(5080), true),
            ("Edge.Example.NET", None, false),
        ] {
            assert_eq!(names.is_us(host.as_bytes(), port.unwrap_or(5060), local()), ours, "{host} {port:?}");
        }
    }

    #[test]
    fn a_wildcard_is_the_address_on_which_the_message_came() {
        let names = names();
        assert!(names.is_us(b"192.0.2.7", 5090, local()));
        assert!(!names.is_us(b"192.0.2.7", 5060, local()));
        assert!(!names.is_us(b"192.0.2.8", 5090, local()));
        assert!(!names.is_us(b"0.0.0.0", 5090, local()));
    }

    #[test]
    fn our_domain_whatever_the_port() {
        let names = names();
        for host in
            ["EXAMPLE.com", "sip.example.com", "edge.example.net", "10.0.0.1", "2001:db8::1", "[2001:db8::5]"]
        {
            assert!(names.is_our_domain(host.as_bytes()), "{host}");
        }
        for host in ["example.org", "10.0.0.2", "", "example"] {
            assert!(!names.is_our_domain(host.as_bytes()), "{host}");
        }
    }
}
