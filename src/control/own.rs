//! Requests of our own, other than probes: NOTIFY and REGISTER of flow events, OPTIONS toward phones (SPEC 3.6, 9.9, 9.10).
//!
//! Each leaves by a worker's socket, from a listener's address, so that NAT lets it pass and a phone's connection can be
//! used; its Via has a token of ours that returns to us. The answer, on whatever core it comes in, is told by `live::News`;
//! `turn` hands it to who waits, and sends again what is due (`live::Transactions`). Not for what is forwarded, nor for
//! INVITE.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    config::{Settings, Side},
    forward::{Reader, Setup, Target},
    live::{Due, News, Now, Outcome, Transactions},
    net::{self, inbox::Inbox, udp},
    route::Backend,
    stats::{Process, ProcessCounter, ProcessGauge},
    wire::{
        Transport,
        token::{Bound, Flow, ViaToken},
    },
    worker,
};

/// The way of a request of ours: by which listener, to whom, and who may answer.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    target: Target,
    /// Where it goes, as the token says it.
    flow: Flow,
    bound: Bound,
    reader: Reader,
    /// Our address, where the listener is bound to a wildcard.
    local: Option<IpAddr>,
}

/// One request, as far as it is not the same for all.
pub struct Ask<'a> {
    pub method: &'static str,
    pub uri: &'a str,
    /// From and To: URIs; empty for our own and for the Request-URI.
    pub from: &'a str,
    pub to: &'a str,
    /// Whole lines, Contact among them where it is not to be ours.
    pub headers: &'a str,
    pub body: &'a str,
}

/// What waits for its answer.
struct Waiting {
    target: Target,
    bytes: Vec<u8>,
    done: oneshot::Sender<Outcome>,
}

/// The requests of our own that are under way.
pub struct Own {
    setup: Arc<Setup>,
    inboxes: Arc<[Inbox]>,
    process: Arc<Process>,
    held: Mutex<Transactions<Waiting>>,
    /// Secret start and count of branches and tags.
    seed: u64,
    made: std::sync::atomic::AtomicU64,
}

impl Own {
    /// `seed`: random.
    pub fn new(
        settings: &Settings,
        setup: Arc<Setup>,
        inboxes: Arc<[Inbox]>,
        process: Arc<Process>,
        seed: u64,
    ) -> Own {
        process.set(ProcessGauge::OwnRequestsLimit, settings.limits.own_requests as u64);
        let held = Mutex::new(Transactions::new(settings.limits.own_requests, net::now()));
        Own { setup, inboxes, process, held, seed, made: Default::default() }
    }

    /// A word that nobody can guess, and nobody else has.
    pub fn word(&self) -> u64 {
        let n = self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_be_bytes(), self.seed)
    }

    /// To a backend, by the listener by which requests to it leave; any backend may answer.
    pub fn to_backend(&self, backend: &Backend) -> Way {
        let local = backend.wildcard.then(|| backend.local.ip());
        self.way(backend.listener, backend.addr, backend.transport, local, (Bound::Backend, Reader::Backend))
    }

    /// To an address that is no backend's: by the first listener of that transport and family with side backends, then
    /// both, then clients. Only who is there may answer. `None`: there is no such listener, or no route.
    pub fn to_address(&self, address: SocketAddr, transport: Transport) -> Option<Way> {
        let listeners = self.setup.listeners.iter().enumerate();
        let fits =
            listeners.filter(|(_, l)| l.transport == transport && l.address.is_ipv4() == address.is_ipv4());
        let rank = |side: Side| match side {
            Side::Backends => 0,
            Side::Both => 1,
            Side::Clients => 2,
        };
        let (index, listener) = fits.min_by_key(|(_, listener)| rank(listener.side))?;
        let local = if listener.wildcard { Some(udp::source_for(address)?) } else { None };
        let there = Flow::Datagram { listener: listener.id, local: None, peer: address };
        let bound = self.setup.ring.bound(&there);
        Some(self.way(index as u8, address, transport, local, (bound, Reader::Backend)))
    }

    /// To a client's datagram flow; who is there may answer. `None`: its listener is gone.
    pub fn to_flow(&self, flow: Flow) -> Option<Way> {
        let Flow::Datagram { listener, local, peer } = flow else { return None };
        let index = self.setup.by_id(listener)?;
        let bound = self.setup.ring.bound(&flow);
        Some(self.way(index, peer, Transport::Udp, local, (bound, Reader::Client)))
    }

    fn way(
        &self,
        listener: u8,
        to: SocketAddr,
        transport: Transport,
        local: Option<IpAddr>,
        (bound, reader): (Bound, Reader),
    ) -> Way {
        let target = if transport.is_datagram() {
            Target::Datagram { listener, from: local, to }
        } else {
            Target::Connect { listener, from: local, to }
        };
        let flow = Flow::Datagram { listener: self.setup.listener(listener).id, local: None, peer: to };
        Way { target, flow, bound, reader, local }
    }

    /// Sends bytes that nobody answers. False where there is no room.
    pub fn put(&self, way: &Way, bytes: &[u8]) -> bool {
        self.hand(way.target, bytes)
    }

    /// Sends a request and waits for what becomes of it (RFC 3261 17.1.2).
    pub async fn ask(&self, way: &Way, ask: &Ask<'_>) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let branch = self.word();
        let bytes = self.write(way, ask, branch);
        let reliable = !matches!(way.target, Target::Datagram { .. });
        let waiting = Waiting { target: way.target, bytes, done };
        let begun = {
            let mut held = self.held.lock();
            let copy = waiting.bytes.clone();
            let begun = held.begin(branch, reliable, waiting, net::now()).is_ok();
            begun.then_some(copy)
        };
        let outcome = match begun {
            None => {
                self.process.add(ProcessCounter::OwnFull, 1);
                return Outcome::Undeliverable;
            }
            // What a datagram's inbox has no room for goes with Timer E.
            Some(bytes) if !self.hand(way.target, &bytes) && reliable => {
                self.held.lock().hear(branch, Outcome::Undeliverable);
                Outcome::Undeliverable
            }
            // Control ends before it answers only where the router does.
            Some(_) => outcome.await.unwrap_or(Outcome::Timeout),
        };
        self.process.add(counter(outcome), 1);
        outcome
    }

    /// What has come in, and what is due: to be called each 100 ms.
    pub fn turn(&self, news: &News, now: Now) {
        let mut held = self.held.lock();
        for reply in news.take_replies() {
            if let Some(waiting) = held.hear(reply.branch, reply.outcome) {
                let _ = waiting.done.send(reply.outcome);
            }
        }
        let mut again = Vec::new();
        held.tick(now, &mut |due| match due {
            Due::Again(branch) => again.push(branch),
            Due::Over(waiting) => drop(waiting.done.send(Outcome::Timeout)),
        });
        for waiting in again.into_iter().filter_map(|branch| held.find(branch)) {
            self.hand(waiting.target, &waiting.bytes);
        }
        self.process.set(ProcessGauge::OwnRequests, held.len() as u64);
    }

    /// Gives it to a core that can send it.
    fn hand(&self, target: Target, bytes: &[u8]) -> bool {
        let core = match target {
            Target::Stream { id, .. } => usize::from(id.core),
            Target::Connect { to, .. } => worker::owner(to, self.inboxes.len()),
            Target::Datagram { to, .. } => usize::from(to.port()) % self.inboxes.len().max(1),
        };
        self.inboxes.get(core).is_some_and(|inbox| inbox.put(target, bytes))
    }

    fn write(&self, way: &Way, ask: &Ask<'_>, branch: u64) -> Vec<u8> {
        let listener = self.setup.listener(way.target.listener());
        let mut via = Vec::new();
        listener.write_via(way.reader, way.local, &mut via);
        let via = String::from_utf8_lossy(&via);
        let sent_by = via.rsplit_once(' ').map_or(&*via, |(_, rest)| rest);
        let host = sent_by.split(';').next().unwrap_or(sent_by);
        let mut token = Vec::new();
        ViaToken {
            router: self.setup.router,
            back: way.flow,
            own: true,
            from_backend: false,
            bound: way.bound,
            branch,
            loop_hash: self.word() as u32,
            reopen: None,
            moved: None,
            publication: None,
        }
        .encode(&self.setup.ring, &mut token);
        let token = String::from_utf8_lossy(&token);
        let Ask { method, uri, headers, body, .. } = *ask;
        let ours = format!("sip:tidings@{host}");
        let from = if ask.from.is_empty() { &ours } else { ask.from };
        let to = if ask.to.is_empty() { uri } else { ask.to };
        let (tag, call) = (self.word(), self.word());
        let mut text = format!(
            "{method} {uri} SIP/2.0\r\n\
             {via}{token};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <{from}>;tag={tag:016x}\r\n\
             To: <{to}>\r\n\
             Call-ID: {call:016x}@{host}\r\n\
             CSeq: 1 {method}\r\n"
        );
        if !headers.starts_with("Contact:") {
            // Writing to a String cannot fail.
            let _ = match listener.transport {
                Transport::Udp => write!(text, "Contact: <{ours}>\r\n"),
                // RFC 3261 8.1.1.8
                Transport::Tls if uri.starts_with("sips:") => {
                    write!(text, "Contact: <sips:tidings@{host}>\r\n")
                }
                other => write!(text, "Contact: <{ours};transport={}>\r\n", other.label()),
            };
        }
        let _ = write!(text, "{headers}User-Agent: Tidings\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        text.into_bytes()
    }
}

fn counter(outcome: Outcome) -> ProcessCounter {
    match outcome {
        Outcome::Answered(200..=299) => ProcessCounter::OwnSuccess,
        Outcome::Answered(_) => ProcessCounter::OwnRefused,
        Outcome::Timeout => ProcessCounter::OwnTimeout,
        Outcome::Undeliverable => ProcessCounter::OwnUndeliverable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::inbox::Batch,
        wire::{Index, Limits, inspect::inspect, token::Ring},
    };

    fn own() -> Own {
        let settings = Settings::default();
        let now = net::now();
        let setup = Arc::new(Setup::new(&settings, Ring::new(&[(0, [7; 16])]), 1, now));
        let inboxes = (0..2).map(|_| Inbox::default()).collect();
        Own::new(&settings, setup, inboxes, Arc::default(), 42)
    }

    fn sent(own: &Own) -> Vec<(Target, Vec<u8>)> {
        let mut all = Vec::new();
        for inbox in own.inboxes.iter() {
            let mut batch = Batch::default();
            inbox.take(&mut batch);
            all.extend(batch.items.into_iter().map(|(to, range)| (to, batch.bytes[range].to_vec())));
        }
        all
    }

    /// What it writes is a request by our own measure; its answer ends it once; its token says that it is ours.
    #[tokio::test]
    async fn a_request_of_ours_is_sent_again_until_its_answer_comes() {
        let own = Arc::new(own());
        let way =
            own.to_address("127.0.0.1:5090".parse().expect("an address"), Transport::Udp).expect("a way");
        let asking = own.clone();
        let asked = tokio::spawn(async move {
            let ask = Ask {
                method: "NOTIFY",
                uri: "sip:events@127.0.0.1:5090",
                from: "",
                to: "",
                headers: "Event: tidings-flow\r\n",
                body: "{}",
            };
            asking.ask(&way, &ask).await
        });
        while own.held.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let first = sent(&own);
        assert_eq!(first.len(), 1);
        let mut index = Index::new();
        let view = index.scan(&first[0].1, &Limits::default()).ok().expect("a message");
        let essentials = inspect(&view).expect("a request");
        let token = essentials.via.branch.strip_prefix(b"z9hG4bK").expect("a branch");
        let (token, _) = ViaToken::decode(token, &own.setup.ring).expect("ours");
        assert!(token.own);
        let news = News::new(16);
        let mut now = net::now();
        now.mono_ms += 700;
        own.turn(&news, now);
        assert_eq!(sent(&own), first, "again, byte for byte");
        assert!(
            news.reply(token.branch, Outcome::Answered(180))
                && news.reply(token.branch, Outcome::Answered(202))
        );
        own.turn(&news, now);
        assert_eq!(asked.await.expect("no panic"), Outcome::Answered(202));
        assert_eq!(own.process.counter(ProcessCounter::OwnSuccess), 1);
    }
}
