//! Datagrams that keep the NAT bindings of registered phones open (SPEC 9.10), as `[keepalive]` says: CRLF, or OPTIONS,
//! after which silence means that the phone is gone until it speaks.
//!
//! Each interval all flows that phones registered by over UDP get one, from the listener that theirs is, spread over the
//! interval and no more in a second than the rate allows; what that leaves over comes late, and is counted. Not for streams:
//! their peers ping (RFC 5626), and what is dead on them is seen.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{Router, own::Ask};
use crate::{
    config::settings::KeepaliveMethod,
    live::Outcome,
    net,
    stats::{ProcessCounter, ProcessGauge},
    wire::{put, token::Flow},
};

/// How often a share is sent, at most.
const TURN_MS: u64 = 100;

/// Runs as long as the router; at once over where there is nothing to do.
pub async fn watch(router: Arc<Router>) {
    let settings = router.settings.keepalive.clone();
    if settings.method == KeepaliveMethod::Off {
        return;
    }
    router.process.set(ProcessGauge::KeepaliveRate, settings.rate as u64);
    // The other half is for flow events: dead phones hold theirs for half a minute each.
    let asked = Arc::new(Semaphore::new((router.settings.limits.own_requests / 2).max(1)));
    let interval_ms = settings.interval.as_millis() as u64;
    let turn_ms = TURN_MS.max(1_000 / settings.rate as u64);
    let turns = (interval_ms / turn_ms).max(1);
    let most = settings.rate * turn_ms as usize / 1_000;
    let mut turn = tokio::time::interval(Duration::from_millis(turn_ms));
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Phones that registered meanwhile are of the next round.
        let began = net::now().mono_ms;
        let flows = router.shared.flows.datagrams(net::now());
        router.process.set(ProcessGauge::KeepaliveFlows, flows.len() as u64);
        let share = flows.len().div_ceil(turns as usize).clamp(1, most.max(1));
        for flows in flows.chunks(share) {
            turn.tick().await;
            let late = net::now().mono_ms >= began + interval_ms;
            router.process.add(ProcessCounter::KeepalivesLate, if late { flows.len() as u64 } else { 0 });
            flows.iter().for_each(|flow| keep(&router, settings.method, *flow, &asked));
        }
        loop {
            turn.tick().await;
            if net::now().mono_ms >= began + interval_ms {
                break;
            }
        }
    }
}

fn keep(router: &Arc<Router>, method: KeepaliveMethod, flow: Flow, asked: &Arc<Semaphore>) {
    let Some(way) = router.own.to_flow(flow) else { return };
    let place = match method {
        KeepaliveMethod::Options => asked.clone().try_acquire_owned().ok(),
        KeepaliveMethod::Crlf | KeepaliveMethod::Off => None,
    };
    // Where too many have not answered yet, its binding is kept open all the same.
    let Some(place) = place else {
        // One that finds no room is the next round's.
        if router.own.put(&way, b"\r\n\r\n") {
            router.process.add(ProcessCounter::KeepaliveCrlf, 1);
        }
        return;
    };
    router.process.add(ProcessCounter::KeepaliveOptions, 1);
    let router = router.clone();
    tokio::spawn(async move {
        let _place = place;
        let Flow::Datagram { peer, .. } = flow else { return };
        let mut host = Vec::new();
        put::host_port(peer, &mut host);
        let uri = format!("sip:{}", String::from_utf8_lossy(&host));
        let ask =
            Ask { method: "OPTIONS", uri: &uri, from: "", to: "", headers: "Accept: */*\r\n", body: "" };
        // Whatever comes from it meanwhile is a sign of life; an ICMP error the core has dealt with.
        let (flow, unreachable) = (flow.without_local(), &router.shared.unreachable);
        unreachable.ask(flow);
        if router.own.ask(&way, &ask).await != Outcome::Timeout {
            unreachable.unasked(flow);
        } else if unreachable.unanswered(flow, net::now()) {
            router.process.add(ProcessCounter::KeepaliveDead, 1);
        }
    });
}
