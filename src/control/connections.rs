//! The stream connections as people see them (SPEC 11.5), and their gauges.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::Router;
use crate::{
    live, net,
    stats::{ProcessGauge, Sample, names},
    wire::token::FlowId,
};

/// Connections that are listed where nobody says how many, and at most.
const LISTED: usize = 100;
const MOST_LISTED: usize = 10_000;

/// Which connections.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// At most so many; default 100, never more than 10,000.
    pub most: Option<usize>,
    /// Of peers within this prefix, or with this address.
    pub peer: Option<String>,
}

/// Those that are open.
#[derive(Debug, serde::Serialize)]
pub struct Open {
    /// All, and those of them that were accepted.
    pub open: usize,
    pub accepted: usize,
    pub limit: usize,
    /// That were asked for, those with most bytes waiting first, then the oldest.
    pub connections: Vec<Listed>,
}

/// One connection.
#[derive(Debug, serde::Serialize)]
pub struct Listed {
    /// `core.slot.generation`
    pub id: String,
    pub peer: SocketAddr,
    /// Who called for him, by the PROXY protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<SocketAddr>,
    pub local: SocketAddr,
    pub listener: String,
    pub transport: &'static str,
    pub role: &'static str,
    /// In seconds.
    pub age_s: u64,
    pub idle_s: u64,
    pub queued_bytes: u32,
    /// AORs of those who are on it.
    pub users: Vec<String>,
}

impl Router {
    /// The open connections; `Err` where the prefix is none.
    pub fn connections(&self, wanted: &Wanted) -> Result<Open, String> {
        let prefix = match &wanted.peer {
            None => None,
            Some(written) => {
                let alone = written.parse::<IpAddr>().map(IpNet::from);
                let net = alone.ok().or_else(|| written.parse().ok());
                Some(net.ok_or_else(|| format!("{written:?} is neither an address nor a prefix"))?)
            }
        };
        let now = net::now();
        let mut all = self.shared.connections.list(now);
        all.retain(|c| prefix.is_none_or(|net| net.contains(&c.about.peer.ip().to_canonical())));
        all.sort_by_key(|c| (std::cmp::Reverse(c.queued), c.about.opened_ms, c.core, c.slot));
        all.truncate(wanted.most.unwrap_or(LISTED).min(MOST_LISTED));
        Ok(Open {
            open: self.shared.connections.len(),
            accepted: self.sources.accepted(),
            limit: self.sources.limits().most,
            connections: all.iter().map(|c| self.listed(c, now)).collect(),
        })
    }

    fn listed(&self, of: &live::Listed, now: live::Now) -> Listed {
        let listener = self.setup.listener(of.about.listener);
        Listed {
            id: format!("{}.{}.{}", of.core, of.slot, of.generation),
            peer: of.about.peer,
            proxy: of.proxy,
            local: of.about.local,
            listener: listener.name.clone(),
            transport: listener.transport.label(),
            role: role(of.about.dialed),
            age_s: now.mono_ms.saturating_sub(of.about.opened_ms) / 1000,
            idle_s: of.idle_s,
            queued_bytes: of.queued,
            users: self.shared.users.list(self.flow_id(of), now),
        }
    }

    fn flow_id(&self, of: &live::Listed) -> FlowId {
        let (router, boot) = (self.setup.router, self.setup.boot);
        FlowId { router, boot, core: of.core as u8, slot: of.slot, generation: of.generation }
    }

    /// For a scrape: how many there are of each transport and role; and what waits in them.
    pub(super) fn connection_samples(&self) -> Vec<Sample> {
        let mut counts: BTreeMap<(&'static str, bool), u64> = BTreeMap::new();
        for listener in self.setup.listeners.iter().filter(|l| !l.transport.is_datagram()) {
            for dialed in [false, true] {
                counts.insert((listener.transport.label(), dialed), 0);
            }
        }
        let mut queued = 0;
        for of in self.shared.connections.list(net::now()) {
            let transport = self.setup.listener(of.about.listener).transport.label();
            *counts.entry((transport, of.about.dialed)).or_default() += 1;
            queued += u64::from(of.queued);
        }
        self.process.set(ProcessGauge::ConnectionQueued, queued);
        let sample = |((transport, dialed), count): ((&'static str, bool), u64)| Sample {
            metric: &names::CONNECTIONS,
            labels: vec![transport.into(), role(dialed).into()],
            value: count as f64,
        };
        counts.into_iter().map(sample).collect()
    }
}

fn role(dialed: bool) -> &'static str {
    if dialed { "dialed" } else { "accepted" }
}
