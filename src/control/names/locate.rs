//! One resolution of a name (RFC 3263 4.2, RFC 2782): SRV where the URI has no port, then A and AAAA.
//!
//! NAPTR is not asked: the table's URI says the transport. An answer is whole or none: where one look-up of several fails
//! for another reason than that there is no such record, all of it has failed, lest a lost datagram look like a server
//! that was taken out.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    net::NetError,
    proto::rr::{RData, RecordType},
};
use ipnet::IpNet;
use tokio::task::JoinSet;

use crate::{config::table::DnsName, live::Resolved, net::udp, wire::Transport};

/// How to resolve, for all names.
pub struct Locator {
    pub resolver: TokioResolver,
    pub timeout: Duration,
    /// Of one name, at most.
    pub addresses: usize,
    /// Families that a listener of ours can reach.
    pub v4: bool,
    pub v6: bool,
    /// `[dns] prefixes`.
    pub prefixes: Vec<IpNet>,
    /// Our own: no answer makes us a backend of ours.
    pub listeners: Vec<SocketAddr>,
}

/// What a name resolves to. No address: RFC 2782's `.`, the service is not offered.
#[derive(Debug)]
pub struct Located {
    pub addresses: Vec<Resolved>,
    /// By its records.
    pub ttl: Duration,
    /// SRV targets and addresses beyond the bound.
    pub dropped: usize,
}

/// Why there is no answer; each is a label of `tidings_dns_lookups_total`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("there is no such name, or it has no SRV, A or AAAA record")]
    Nothing,
    #[error("{0}")]
    Failed(String),
    /// Addresses, but none that may be a backend's.
    #[error("refused: {0}")]
    Refused(String),
}

/// What a look-up of one record type gave; empty where there is no such record.
struct Found {
    data: Vec<RData>,
    ttl: Duration,
}

/// A host to ask addresses for.
#[derive(Clone)]
struct Target {
    host: String,
    port: u16,
    priority: u16,
    /// Share of the whole host.
    weight: u32,
}

/// A weight of 1 in an SRV record, so that it can be divided among the addresses of its target, and a weight of 0 be
/// less than one.
const ONE: u32 = 1 << 10;
/// A weight of 0 beside others: "a very small chance of being selected" (RFC 2782).
const NEARLY_NONE: u32 = ONE / 64;

impl Locator {
    /// Resolves a name, bounded by the timeout.
    pub async fn locate(self: &Arc<Self>, name: &DnsName) -> Result<Located, Fault> {
        match tokio::time::timeout(self.timeout, self.ask(name)).await {
            Ok(located) => located,
            Err(_) => Err(Fault::Failed(format!("no answer within {:?}", self.timeout))),
        }
    }

    async fn ask(self: &Arc<Self>, name: &DnsName) -> Result<Located, Fault> {
        let plain = |port| Target { host: name.host.clone(), port, priority: 0, weight: ONE };
        let (mut targets, ttl) = match name.port {
            Some(port) => (vec![plain(port)], Duration::MAX),
            None => {
                // RFC 3263 4.1: TLS has a service of its own.
                let service = match name.transport {
                    Transport::Tls => format!("_sips._tcp.{}", name.host),
                    other => format!("_sip._{}.{}", other.label(), name.host),
                };
                let found = self.look_up(service, RecordType::SRV).await?;
                match targets(&found.data) {
                    // The service is decidedly not available at this domain (RFC 2782).
                    Some(targets) if targets.is_empty() => {
                        return Ok(Located { addresses: Vec::new(), ttl: found.ttl, dropped: 0 });
                    }
                    Some(targets) => (targets, found.ttl),
                    None => (vec![plain(name.transport.default_port())], Duration::MAX),
                }
            }
        };
        let dropped = targets.len().saturating_sub(self.addresses);
        targets.truncate(self.addresses);
        self.addresses(targets, ttl, dropped).await
    }

    /// The addresses of all targets. One without any is no fault while others have some.
    async fn addresses(
        self: &Arc<Self>,
        targets: Vec<Target>,
        mut ttl: Duration,
        mut dropped: usize,
    ) -> Result<Located, Fault> {
        let mut asked = JoinSet::new();
        for target in targets {
            let locator = self.clone();
            asked.spawn(async move { locator.addresses_of(target).await });
        }
        let (mut addresses, mut refused) = (Vec::new(), None);
        while let Some(answer) = asked.join_next().await {
            let answer = answer.map_err(|error| Fault::Failed(error.to_string()))?;
            let (target, ips, its_ttl) = answer?;
            let told = ips.len();
            let usable: Vec<IpAddr> = ips.into_iter().filter(|ip| self.may_be(*ip, target.port)).collect();
            if usable.len() < told {
                refused = Some(target.host.clone());
            }
            ttl = ttl.min(its_ttl);
            for &ip in &usable {
                let alike = usable.iter().filter(|other| other.is_ipv4() == ip.is_ipv4()).count();
                let weight = (target.weight / u32::try_from(alike).unwrap_or(u32::MAX)).max(1);
                let addr = SocketAddr::new(ip, target.port);
                addresses.push(Resolved { priority: target.priority, addr, weight });
            }
        }
        addresses.sort_unstable();
        addresses.dedup_by_key(|resolved| resolved.addr);
        dropped += addresses.len().saturating_sub(self.addresses);
        addresses.truncate(self.addresses);
        match (addresses.is_empty(), refused) {
            (false, _) => Ok(Located { addresses, ttl, dropped }),
            (true, Some(host)) => Err(Fault::Refused(format!(
                "{host} has only addresses that are no host's, our own, or outside of prefixes in [dns]"
            ))),
            (true, None) => Err(Fault::Nothing),
        }
    }

    async fn addresses_of(&self, target: Target) -> Result<(Target, Vec<IpAddr>, Duration), Fault> {
        let ask = async |wanted: bool, kind| {
            if wanted { self.look_up(target.host.clone(), kind).await } else { Ok(Found::none()) }
        };
        let (a, aaaa) = tokio::try_join!(ask(self.v4, RecordType::A), ask(self.v6, RecordType::AAAA))?;
        let ips = a.data.iter().chain(&aaaa.data).filter_map(RData::ip_addr).collect();
        Ok((target, ips, a.ttl.min(aaaa.ttl)))
    }

    async fn look_up(&self, name: String, kind: RecordType) -> Result<Found, Fault> {
        match self.resolver.lookup(name.as_str(), kind).await {
            Ok(lookup) => {
                // Aliases on the way are records too: the shortest life counts.
                let ttl = lookup.answers().iter().map(|record| record.ttl).min();
                let data: Vec<RData> = lookup
                    .answers()
                    .iter()
                    .filter(|record| record.record_type() == kind)
                    .map(|record| record.data.clone())
                    .collect();
                let ttl = ttl.map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.into()));
                Ok(Found { data, ttl })
            }
            Err(error) if error.is_no_records_found() => Ok(Found::none()),
            Err(NetError::Timeout) => Err(Fault::Failed(format!("{kind} {name}: no answer"))),
            Err(error) => Err(Fault::Failed(format!("{kind} {name}: {error}"))),
        }
    }

    /// Can this be a backend's? What a resolver says is not what an operator wrote: see README, "Names of backends".
    fn may_be(&self, ip: IpAddr, port: u16) -> bool {
        let ip = ip.to_canonical();
        let one_host = !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from([255, 255, 255, 255]);
        let ours = self.listeners.iter().any(|listener| is_ours(*listener, SocketAddr::new(ip, port)));
        let allowed = self.prefixes.is_empty() || self.prefixes.iter().any(|net| net.contains(&ip));
        one_host && port != 0 && !ours && allowed
    }
}

/// Does this listener of ours take what is sent there? One on a wildcard does on every address of this machine, which is
/// that from which the machine would send to itself.
fn is_ours(listener: SocketAddr, addr: SocketAddr) -> bool {
    let local = || listener.ip().is_unspecified() && udp::source_for(addr) == Some(addr.ip());
    listener.port() == addr.port() && (listener.ip().to_canonical() == addr.ip() || local())
}

impl Found {
    fn none() -> Found {
        Found { data: Vec::new(), ttl: Duration::MAX }
    }
}

/// The targets of SRV records, the most wanted first; none in the list where the service is not offered,
/// `None` where there is no SRV record.
fn targets(records: &[RData]) -> Option<Vec<Target>> {
    let records: Vec<_> = records
        .iter()
        .filter_map(|data| match data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        })
        .collect();
    if records.is_empty() {
        return None;
    }
    let weighted = |priority| records.iter().any(|srv| srv.priority == priority && srv.weight > 0);
    let mut targets: Vec<Target> = records
        .iter()
        .filter(|srv| !srv.target.is_root() && srv.port != 0)
        .map(|srv| Target {
            host: srv.target.to_ascii(),
            port: srv.port,
            priority: srv.priority,
            weight: match srv.weight {
                0 if weighted(srv.priority) => NEARLY_NONE,
                weight => u32::from(weight.max(1)) * ONE,
            },
        })
        .collect();
    targets.sort_by(|a, b| {
        (a.priority, std::cmp::Reverse(a.weight), &a.host, a.port).cmp(&(
            b.priority,
            std::cmp::Reverse(b.weight),
            &b.host,
            b.port,
        ))
    });
    Some(targets)
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::{Name, rdata::SRV};

    use super::*;

    fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
        RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(target).expect("a name")))
    }

    fn told(records: &[RData]) -> Option<Vec<(u16, u32, u16, String)>> {
        let targets = targets(records)?;
        Some(targets.into_iter().map(|t| (t.priority, t.weight, t.port, t.host)).collect())
    }

    #[test]
    fn what_would_come_back_to_us_is_ours() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (listener, addr, ours) in [
            ("192.0.2.1:5060", "192.0.2.1:5060", true),
            ("192.0.2.1:5060", "192.0.2.1:5070", false),
            ("192.0.2.1:5060", "192.0.2.2:5060", false),
            ("0.0.0.0:5060", "127.0.0.1:5060", true),
            ("0.0.0.0:5060", "127.0.0.1:5061", false),
            ("[::]:5060", "[::1]:5060", true),
            ("0.0.0.0:5060", "198.51.100.7:5060", false),
        ] {
            assert_eq!(is_ours(at(listener), at(addr)), ours, "{listener} {addr}");
        }
    }

    /// RFC 2782: priority first, weights within it; 0 beside others is hardly ever chosen, among itself it is equal.
    #[test]
    fn srv_records_become_targets() {
        let all = [srv(20, 0, 5060, "c."), srv(10, 0, 5060, "b."), srv(10, 60, 5070, "a.")];
        let expected = [(10, 60 * ONE, 5070, "a."), (10, NEARLY_NONE, 5060, "b."), (20, ONE, 5060, "c.")];
        let expected = expected.map(|(p, w, port, host)| (p, w, port, host.to_owned()));
        assert_eq!(told(&all), Some(expected.to_vec()));
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[srv(0, 0, 0, ".")]), Some(Vec::new()), "decidedly not available");
    }
}
