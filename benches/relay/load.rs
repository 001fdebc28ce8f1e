//! The load: phones and a PBX in one thread, on one core, that talk to each other through a router.
//!
//! A slot is one phone's conversation, a cycle of SUBSCRIBE, PUBLISH (phone to PBX) and NOTIFY (PBX to phone), each with
//! its 200: six messages, all of which the router forwards. Closed loop: every slot always has one message under way.
//! Paced: transactions start by the clock. One message in flight for a slot, so a lost one is seen by its age.

use std::{io, net::SocketAddr, os::fd::AsFd};

use hdrhistogram::Histogram;
use tidings::net::{
    sys,
    udp::{self, BATCH, Datagram, Inbound, Outbound},
};

use super::messages::{Ask, Script, id, learn_route, slot_of};

const LOST_NS: u64 = 500_000_000;
/// Messages that are gathered before they are sent: so a fast router gets whole batches too, from one core of load.
const CHUNK: usize = 64;

/// The six steps of a cycle: what is under way.
const STEPS: [(Ask, bool); 6] = [
    (Ask::Subscribe, false),
    (Ask::Subscribe, true),
    (Ask::Publish, false),
    (Ask::Publish, true),
    (Ask::Notify, false),
    (Ask::Notify, true),
];

#[derive(Default)]
struct Slot {
    cycle: u32,
    /// Index into STEPS of the message under way, or of the one to come where `idle`.
    step: usize,
    idle: bool,
    sent_ns: u64,
    route: Vec<u8>,
}

/// One end: its socket, and what it is about to send.
struct End {
    socket: udp::Socket,
    inbound: Inbound,
    outbound: Outbound,
    bytes: Vec<u8>,
    queue: Vec<(usize, std::ops::Range<usize>)>,
}

impl End {
    fn new(address: SocketAddr) -> io::Result<End> {
        let socket = udp::bind(address, 1, 8 << 20, 8 << 20)?.pop().expect("one was asked for");
        Ok(End {
            socket,
            inbound: Inbound::new(),
            outbound: Outbound::new(),
            bytes: Vec::new(),
            queue: Vec::new(),
        })
    }
}

/// What one run gave.
pub struct Outcome {
    pub sent: u64,
    pub forwarded: u64,
    pub lost: u64,
    /// What came that nobody waited for: an error answer, a duplicate, a late one. The first is kept.
    pub strange: u64,
    pub example: Option<String>,
    pub bytes: u64,
    pub wall_ns: u64,
    /// Nanoseconds from send to receive of each forwarded message.
    pub latency: Histogram<u64>,
}

impl Default for Outcome {
    fn default() -> Self {
        Outcome {
            sent: 0,
            forwarded: 0,
            lost: 0,
            strange: 0,
            example: None,
            bytes: 0,
            wall_ns: 0,
            latency: Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("valid bounds"),
        }
    }
}

impl Outcome {
    pub fn add(&mut self, other: Outcome) {
        self.sent += other.sent;
        self.forwarded += other.forwarded;
        self.lost += other.lost;
        self.strange += other.strange;
        self.example = self.example.take().or(other.example);
        self.bytes += other.bytes;
        self.wall_ns += other.wall_ns;
        self.latency.add(other.latency).expect("equal bounds");
    }
}

/// When a run ends.
#[derive(Clone, Copy)]
pub enum Until {
    Nanos(u64),
    /// This many, in whole transactions of two.
    Messages(u64),
}

/// The two ends and their slots.
pub struct Load {
    /// The phones' end and the PBX's.
    ends: [End; 2],
    script: Script,
    slots: Vec<Slot>,
}

const PHONES: usize = 0;
const PBX: usize = 1;

impl Load {
    pub fn new(phones: SocketAddr, pbx: SocketAddr, window: usize) -> io::Result<Load> {
        let script = Script::new(&phones.to_string(), &pbx.to_string());
        let mut slots = Vec::new();
        slots.resize_with(window, Slot::default);
        Ok(Load { ends: [End::new(phones)?, End::new(pbx)?], script, slots })
    }

    /// Runs the load through the router at `router`. `rate`: forwarded messages a second; `None`: closed loop.
    pub fn run(&mut self, router: SocketAddr, rate: Option<f64>, until: Until) -> Outcome {
        self.discard();
        let mut outcome = Outcome::default();
        // The last one to end is the next to start: at a low rate few slots run, each through its whole cycle.
        let mut idle: Vec<usize> = (0..self.slots.len()).collect();
        for slot in &mut self.slots {
            (slot.idle, slot.step) = (true, 0);
        }
        let start = sys::monotonic_ns();
        let interval = rate.map(|rate| (2e9 / rate) as u64);
        let (mut next_start, mut next_sweep) = (start, start + LOST_NS / 4);
        let mut started = 0;
        loop {
            let now = sys::monotonic_ns();
            let over = match until {
                Until::Nanos(nanos) => now >= start + nanos,
                Until::Messages(messages) => 2 * started >= messages,
            };
            let starts = match interval {
                _ if over => 0,
                None => idle.len(),
                Some(interval) => {
                    let due = if now >= next_start { (now - next_start) / interval + 1 } else { 0 };
                    next_start += due * interval;
                    (due as usize).min(idle.len())
                }
            };
            started += starts as u64;
            for slot in idle.split_off(idle.len() - starts) {
                self.start(slot);
            }
            let received = self.receive(&mut idle, &mut outcome);
            let queued = self.ends[PHONES].queue.len() + self.ends[PBX].queue.len();
            if queued >= CHUNK || received == 0 && queued > 0 && (interval.is_some() || self.all_here(&idle))
            {
                self.send(router, &mut outcome);
            }
            if received == 0 {
                std::thread::yield_now();
            }
            if now >= next_sweep {
                next_sweep = now + LOST_NS / 4;
                self.sweep(now, &mut idle, &mut outcome);
            }
            if over && idle.len() == self.slots.len() {
                break;
            }
        }
        outcome.wall_ns = sys::monotonic_ns() - start;
        outcome
    }

    /// Nothing is under way at the router: all that is not idle waits in our queues.
    fn all_here(&self, idle: &[usize]) -> bool {
        let queued = self.ends[PHONES].queue.len() + self.ends[PBX].queue.len();
        // Below half a chunk under way the router is about to run dry.
        self.slots.len() - idle.len() - queued <= CHUNK / 2
    }

    /// Queues the next request of an idle slot.
    fn start(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let (ask, _) = STEPS[slot.step];
        if slot.step == 0 {
            slot.cycle = slot.cycle.wrapping_add(1);
        }
        (slot.idle, slot.sent_ns) = (false, u64::MAX);
        let end = &mut self.ends[if ask == Ask::Notify { PBX } else { PHONES }];
        let from = end.bytes.len();
        self.script.ask(ask, &id(at, slot.cycle), &slot.route, &mut end.bytes);
        end.queue.push((at, from..end.bytes.len()));
    }

    /// Takes a batch at each end, and queues the answers to the requests in it.
    fn receive(&mut self, idle: &mut Vec<usize>, outcome: &mut Outcome) -> usize {
        let mut received = 0;
        for here in [PBX, PHONES] {
            let n = self.ends[here].inbound.receive(self.ends[here].socket.as_fd()).unwrap_or(0);
            let now = sys::monotonic_ns();
            for i in 0..n {
                let End { inbound, bytes, queue, .. } = &mut self.ends[here];
                let message = inbound.datagram(i).expect("within the batch").bytes;
                let found = slot_of(message).and_then(|(at, cycle)| {
                    let slot = self.slots.get_mut(at)?;
                    (slot.cycle == cycle && !slot.idle && slot.sent_ns != u64::MAX).then_some((at, slot))
                });
                let expected = found.filter(|(_, slot)| {
                    let (ask, answer) = STEPS[slot.step];
                    let there = if (ask == Ask::Notify) == answer { PBX } else { PHONES };
                    let prefix: &[u8] = match ask {
                        _ if answer => b"SIP/2.0 200",
                        Ask::Subscribe => b"SUBSCRIBE ",
                        Ask::Publish => b"PUBLISH ",
                        Ask::Notify => b"NOTIFY ",
                    };
                    here == there && message.starts_with(prefix)
                });
                let Some((at, slot)) = expected else {
                    outcome.strange += 1;
                    outcome.example.get_or_insert_with(|| String::from_utf8_lossy(message).into_owned());
                    continue;
                };
                outcome.forwarded += 1;
                outcome.bytes += message.len() as u64;
                outcome.latency.saturating_record(now.saturating_sub(slot.sent_ns));
                let (ask, answer) = STEPS[slot.step];
                slot.step = (slot.step + 1) % STEPS.len();
                if answer {
                    slot.idle = true;
                    idle.push(at);
                } else {
                    if ask == Ask::Subscribe {
                        learn_route(message, &mut slot.route);
                    }
                    slot.sent_ns = u64::MAX;
                    let from = bytes.len();
                    self.script.answer(ask, &id(at, slot.cycle), message, bytes);
                    queue.push((at, from..bytes.len()));
                }
            }
            received += n;
        }
        received
    }

    /// Sends what is queued at both ends.
    fn send(&mut self, router: SocketAddr, outcome: &mut Outcome) {
        for end in &mut self.ends {
            let mut done = 0;
            while done < end.queue.len() {
                let now = sys::monotonic_ns();
                for (at, _) in &end.queue[done..end.queue.len().min(done + BATCH)] {
                    self.slots[*at].sent_ns = now;
                }
                let bytes = &end.bytes;
                let datagrams = end.queue[done..].iter().map(|(_, range)| Datagram {
                    bytes: &bytes[range.clone()],
                    to: router,
                    from: None,
                });
                // An error is an ICMP error about an earlier one, or a full buffer: try again.
                let n = end.outbound.send(end.socket.as_fd(), datagrams).unwrap_or(0);
                outcome.sent += n as u64;
                done += n;
            }
            end.queue.clear();
            end.bytes.clear();
        }
    }

    /// Starts slots anew whose message is lost.
    fn sweep(&mut self, now: u64, idle: &mut Vec<usize>, outcome: &mut Outcome) {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if !slot.idle && slot.sent_ns != u64::MAX && now.saturating_sub(slot.sent_ns) > LOST_NS {
                outcome.lost += 1;
                (slot.idle, slot.step) = (true, 0);
                idle.push(at);
            }
        }
    }

    /// Throws away what an earlier run left in the sockets.
    fn discard(&mut self) {
        let mut buffer = [0; 64];
        for end in &mut self.ends {
            while let Ok(Some(_)) = end.socket.take_error(&mut buffer) {}
            while end.inbound.receive(end.socket.as_fd()).is_ok() {}
        }
    }
}
