//! The decisions of a stateless proxy (RFC 3261 16.11) with tokens for memory: `Core::step`.
//!
//! No I/O, no clock, no async: what arrives and what time it is come in, what is to be sent goes into the `Outbox`. The way
//! of a request is in `relay`, of a response in `response`; `decide` is SPEC 4.4, `routes` and `hop` are 3.4 and 3.5,
//! `write` is 4.1, `answer` what we say ourselves, `publication` is 6,
//! `calls` the call records of 7.1, `users` who is on a connection (9.9), `guard` who may go on (10). `explain` runs the same
//! code with a recorder.

mod answer;
mod calls;
mod decide;
pub mod explain;
mod guard;
mod hash;
mod hop;
mod io;
mod publication;
mod relay;
mod request;
mod response;
mod routes;
mod setup;
mod signs;
mod users;
mod write;

use std::sync::Arc;

pub use explain::{Explanation, explain};
use guard::Guard;
pub use io::{Arrival, Closed, Fault, Input, Outbox, Target};
pub use setup::{Listener, Reader, Setup, Shared};

use crate::{
    live::{Buckets, Now, Pins},
    route::{Recorder, Scratch, Source, Table},
    stats::{CoreStats, Counter, Gauge},
    wire::{
        Edits, Index, Reason, Start,
        reply::Stamp,
        stun,
        token::{Bound, Flow},
    },
};

/// What every branch of RFC 3261 begins with (8.1.1.7).
const COOKIE: &[u8] = b"z9hG4bK";
/// Sets of pins that a tick sweeps: a full table of 262,144 is seen within a minute.
const PIN_SETS_PER_TICK: usize = 1024;

/// One core's decisions.
pub struct Core {
    index: Index,
    setup: Arc<Setup>,
    shared: Arc<Shared>,
    sources: request::Sources,
    proxy: Proxy,
}

/// What one core writes to while it decides: its pins, its counters, and scratch that is kept between messages.
struct Proxy {
    stats: Arc<CoreStats>,
    pins: Pins,
    buckets: Buckets,
    /// The core is behind.
    shedding: bool,
    edits: Edits,
    scratch: Scratch,
    text: Vec<u8>,
    headers: Vec<u8>,
}

/// What stays the same while one message is decided.
struct Turn<'a> {
    now: Now,
    setup: &'a Setup,
    shared: &'a Shared,
    table: &'a Table,
    arrival: &'a Arrival,
    source: Source,
    guard: Guard,
    stamp: &'a Stamp,
}

impl Core {
    pub fn new(setup: Arc<Setup>, shared: Arc<Shared>, stats: Arc<CoreStats>) -> Core {
        let (pins, buckets) = (Pins::new(setup.pins), Buckets::new(&setup.protection));
        Core::with(setup, shared, stats, pins, buckets)
    }

    fn with(
        setup: Arc<Setup>,
        shared: Arc<Shared>,
        stats: Arc<CoreStats>,
        pins: Pins,
        buckets: Buckets,
    ) -> Core {
        let proxy = Proxy {
            pins,
            stats,
            buckets,
            shedding: false,
            edits: Edits::default(),
            scratch: Scratch::default(),
            text: Vec::new(),
            headers: Vec::new(),
        };
        proxy.stats.set(Gauge::PinsMax, proxy.pins.capacity() as u64);
        proxy.stats.set(Gauge::GuardedMax, proxy.buckets.capacity() as u64);
        Core { index: Index::new(), setup, shared, sources: request::Sources::default(), proxy }
    }

    /// Takes one input and appends what is to be sent to `out`.
    pub fn step(&mut self, now: Now, table: &Table, input: Input<'_>, out: &mut Outbox) {
        // By reference: an arrival is long to move.
        match &input {
            Input::Message(arrival, bytes) => self.message(now, table, arrival, bytes, out, &mut ()),
            Input::Refused(arrival, reason, head) => self.refused(now, table, arrival, *reason, head, out),
            Input::Keepalive => self.proxy.stats.refused(Reason::Keepalive),
            Input::Undeliverable { target, sent, why } => {
                self.undeliverable(now, table, *target, sent, *why, out)
            }
            Input::Closed(closed) => users::closed(&self.shared, &self.proxy.stats, closed, now),
            Input::Lost { listener, to, why } => {
                let transport = self.setup.listener(*listener).transport;
                for &at in table.pools.at_address(*to, transport) {
                    signs::unreachable(&table.pools.backend(at).state, *why, true, now);
                }
            }
            Input::Behind(behind) => {
                self.proxy.shedding = *behind;
                self.proxy.stats.set(Gauge::Overloaded, (*behind).into());
                self.proxy.stats.add(Counter::Overloads, (*behind).into());
            }
            Input::Tick => {
                let proxy = &mut self.proxy;
                proxy.stats.set(Gauge::Guarded, proxy.buckets.len() as u64);
                proxy.stats.add(Counter::GuardedDropped, proxy.buckets.take_dropped());
                proxy.pins.sweep(PIN_SETS_PER_TICK, now);
                proxy.stats.set(Gauge::Pins, proxy.pins.len() as u64);
                proxy.stats.set(Gauge::TableVersion, table.version);
            }
        }
    }

    fn message<R: Recorder>(
        &mut self,
        now: Now,
        table: &Table,
        arrival: &Arrival,
        bytes: &[u8],
        out: &mut Outbox,
        rec: &mut R,
    ) {
        let Core { index, setup, shared, sources, proxy } = self;
        let (source, guard, stamp) = sources.of(now, setup, shared, table, arrival);
        let turn = Turn { now, setup, shared, table, arrival, source, guard, stamp };
        if let Guard::Barred(reason) = guard {
            if R::ON {
                rec.step("drop", format_args!("{}", reason.label()));
            }
            return proxy.stats.refused(reason);
        }
        if !R::ON && !shared.unreachable.is_empty() && arrival.flow.is_none() {
            // Whatever it is that a flow says, keep-alives too: it is alive again (SPEC 3.5).
            let flow = setup.listener(arrival.listener).flow(arrival);
            shared.unreachable.clear(&flow.without_local());
        }
        // By reference, as all that is larger than a word or two: what has just been written in parts is slow to move.
        match &index.scan(bytes, &setup.limits) {
            Ok(view) => match view.start() {
                Start::Request { .. } => proxy.request(&turn, view, out, rec),
                Start::Response { .. } => proxy.response(&turn, view, out, rec),
            },
            Err(refused) => match &refused.view {
                Some(view) => proxy.refuse(&turn, view, refused.reason.into(), out, rec),
                None if stun::is_binding_request(bytes) => proxy.stun(&turn, bytes, out),
                None => {
                    if R::ON {
                        rec.step("drop", format_args!("{}", refused.reason.label()));
                    }
                    let borne = proxy.bears(&turn, refused.reason);
                    proxy.stats.refused(if borne { refused.reason } else { Reason::MalformedRate });
                }
            },
        }
    }

    /// What cannot be framed: an answer from the head, where it is a request's (SPEC 2.5).
    fn refused(
        &mut self,
        now: Now,
        table: &Table,
        arrival: &Arrival,
        reason: Reason,
        head: &[u8],
        out: &mut Outbox,
    ) {
        let Core { index, setup, shared, sources, proxy } = self;
        let (source, guard, stamp) = sources.of(now, setup, shared, table, arrival);
        if let Guard::Barred(reason) = guard {
            return proxy.stats.refused(reason);
        }
        let turn = Turn { now, setup, shared, table, arrival, source, guard, stamp };
        let view = match index.scan(head, &setup.limits) {
            Ok(view) => Some(view),
            Err(refused) => refused.view,
        };
        match view.filter(|view| matches!(view.start(), Start::Request { .. })) {
            Some(view) => proxy.refuse(&turn, &view, reason.into(), out, &mut ()),
            None => {
                let borne = proxy.bears(&turn, reason);
                proxy.stats.refused(if borne { reason } else { Reason::MalformedRate });
            }
        }
    }

    /// Why nothing is taken from this peer, where that is so: for those who are at the door.
    pub fn bars(&self, now: Now, table: &Table, arrival: &Arrival) -> Option<Reason> {
        match request::standing(now, &self.setup, &self.shared, table, arrival).1 {
            Guard::Barred(reason) => Some(reason),
            Guard::Exempt | Guard::Limited => None,
        }
    }

    /// Another one whenever somebody who is here already may have been barred.
    pub fn bars_version(&self) -> u64 {
        self.shared.bans.begun()
    }

    fn undeliverable(
        &mut self,
        now: Now,
        table: &Table,
        target: Target,
        sent: &[u8],
        why: Fault,
        out: &mut Outbox,
    ) {
        let Core { index, setup, shared, proxy, .. } = self;
        let listener = target.listener();
        let out_by = setup.listener(listener);
        let to = match target {
            Target::Datagram { to, .. } | Target::Connect { to, .. } => to,
            Target::Stream { .. } => out_by.address,
        };
        proxy.stats.add(Counter::Undeliverable, 1);
        // An ICMP error quotes the beginning only: its head may still be whole lines, enough for an answer.
        let view = match index.scan(sent, &setup.limits) {
            Ok(view) => Some(view),
            Err(refused) => refused.view,
        };
        let token = view.as_ref().and_then(|view| answer::sent_token(view, &setup.ring));
        // Of a stream `Input::Lost` tells, once for the connection.
        if matches!(target, Target::Datagram { .. }) && why != Fault::TooLarge {
            let listed = table.pools.at_address(to, out_by.transport);
            let of_backend =
                !listed.is_empty() || table.pools.peer(out_by.transport, to, now.unix_s).is_some();
            let flow = Flow::Datagram { listener: out_by.id, local: None, peer: to };
            // Anybody can write an ICMP error. One is believed where it quotes a request that we sent there, by the token in
            // our Via; another makes a backend's probe due, and no more.
            let proven = token.as_ref().is_some_and(|(token, key_id)| match token.bound {
                Bound::Backend => of_backend,
                Bound::Client(hash) => hash == setup.ring.flow_hash(*key_id, &flow),
            });
            for &at in listed {
                let backend = table.pools.backend(at);
                signs::unreachable(&backend.state, why, proven, now);
                if proven {
                    backend.spread.state.refuse(now.mono_ms + setup.avoid_ms);
                }
            }
            if !proven {
                return proxy.stats.add(Counter::UndeliverableUnproven, 1);
            }
            if !of_backend {
                proxy.stats.add(Counter::UnreachableDropped, u64::from(shared.unreachable.put(flow, now)));
            }
        }
        let arrival = Arrival { listener, local: out_by.address, peer: to, flow: None };
        let (source, guard) = (Source::Trusted, Guard::Exempt);
        let stamp = &Stamp::NONE;
        let turn = Turn { now, setup, shared, table, arrival: &arrival, source, guard, stamp };
        if let (Some(view), Some((token, _))) = (view, token) {
            proxy.undeliverable(&turn, &view, &token, why, out);
        }
    }
}

impl Proxy {
    fn stun(&mut self, turn: &Turn<'_>, bytes: &[u8], out: &mut Outbox) {
        let start = out.bytes.len();
        stun::answer(bytes, turn.arrival.peer, &mut out.bytes);
        let from = turn.setup.listener(turn.arrival.listener).wildcard.then(|| turn.arrival.local.ip());
        let to = turn.arrival.peer;
        out.finish(Target::Datagram { listener: turn.arrival.listener, from, to }, start);
        self.stats.refused(Reason::Stun);
    }
}
