//! Pools and backends as the path sees them, the weighted rendezvous over them, and who is a backend by address.
//!
//! All look-ups are maps built when the table is compiled. A UDP source is a backend's by address and port of a backend
//! that is listed with UDP; a stream's by its address alone, whatever the transport that the table lists, since a TCP
//! source cannot be forged and its port means nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ahash::{HashMap, HashSet};

use super::{
    balance,
    facts::Facts,
    record::{Candidate, Recorder},
    spread::{self, Spread},
};
use crate::{
    config::{
        Names,
        table::{AdminState, Balance, ProbeSpec},
    },
    live::{BackendState, State},
    wire::{Method, Transport},
};

/// A backend by pool and position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendRef {
    pub pool: u16,
    pub index: u16,
}

#[derive(Debug)]
pub struct Backend {
    pub name: Arc<str>,
    /// Metric series; `stats::OTHER` beyond the bound.
    pub series: u32,
    pub addr: SocketAddr,
    pub transport: Transport,
    /// Host of its URI as written, lower case, no brackets (a Route or R-URI host may name it so).
    pub host: Box<[u8]>,
    pub weight: u32,
    /// The lowest goes first where the balance is `priority`.
    pub priority: u16,
    /// Takes no further INVITE beyond so many calls.
    pub max_calls: Option<u32>,
    /// The state that the table gives it; the operator's mark in `state` goes before it.
    pub admin: AdminState,
    /// As written: what a probe asks.
    pub uri: Box<str>,
    /// xxh3 of the name with the fixed seed: placement and entity-tags.
    pub hash: u64,
    pub state: Arc<BackendState>,
    /// Index of the listener by which requests to it leave (SPEC 4.6).
    pub listener: u8,
    /// The address that Via and Record-Route name toward it: the listener's own, for a wildcard the kernel's choice.
    pub local: SocketAddr,
    /// True where `local`'s listener is a wildcard, so that sends must name their source (IP_PKTINFO).
    pub wildcard: bool,
    /// Which of its backend's addresses this is; a backend by name has an entry for each.
    pub spread: Spread,
}

#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub series: u32,
    pub balance: Balance,
    pub any_port: bool,
    /// PUBLISH over UDP with no backend for it is met with silence (SPEC 6.5).
    pub silence: bool,
    /// With no backend up, all that are not drained or off take requests (SPEC 8.3).
    pub panic: bool,
    /// How its backends are probed; `None`: not at all.
    pub probe: Option<ProbeSpec>,
    /// How long a dialog's refresh toward a backend that is down is asked to come again, in milliseconds (SPEC 8.6).
    pub migrate_after_ms: u64,
    /// A backend has `max_calls`.
    pub limits_calls: bool,
    /// Seconds by which Expires of a PUBLISH is raised; `None`: 30 for packages that begin with `asterisk-`, else 0.
    pub publish_expires_margin: Option<u16>,
    /// Entity-tags that are not ours pass though there are several backends (SPEC 6.2).
    pub foreign_etag: bool,
    /// Each address of each backend; those of one backend stand together.
    pub backends: Vec<Backend>,
    /// Backends by name that have no address now.
    pub unresolved: Vec<Unresolved>,
}

/// A backend whose name has no address that could be used: it takes nothing.
#[derive(Debug)]
pub struct Unresolved {
    pub name: Arc<str>,
    pub uri: Box<str>,
    pub transport: Transport,
    pub weight: u32,
    pub series: u32,
    pub admin: AdminState,
    pub state: Arc<BackendState>,
}

/// Who an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Backend(BackendRef),
    /// One that left the table within a day.
    Departed,
}

/// The outcome of a balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    Backend(BackendRef),
    /// The hash names the sender itself: 482 (SPEC 1.5).
    Sender,
    /// No backend takes new requests.
    None,
}

pub struct Pools {
    pub pools: Vec<Pool>,
    /// By pool, what its balance reads.
    draws: Vec<Draws>,
    book: Book,
    departed: Departed,
    dropped: u64,
    serial: u64,
}

/// The backends of a pool, close together: a balance reads all of them for each request.
pub(super) struct Draws {
    /// All weights are one, so the greatest draw wins.
    equal: bool,
    backends: Box<[Drawn]>,
}

/// One backend in a draw.
struct Drawn {
    /// Of its name.
    hash: u64,
    /// 2^64 by the weight, and that in 2^34.
    share: u64,
    coarse: u64,
    /// Position in the pool.
    at: u16,
}

/// So many backends are drawn at a time.
const DRAWN: usize = 16;

impl Pools {
    /// Builds the look-ups. `departed`: see [`Departed`]; those that are back are forgotten, and of more than `most` those
    /// whose day ends first.
    pub fn new(pools: Vec<Pool>, mut departed: Departed, most: usize) -> Pools {
        let mut book = Book::of(&pools);
        departed.retain_mut(|(ip, port, transport, _)| {
            *ip = ip.to_canonical();
            book.peer(*transport, SocketAddr::new(*ip, port.unwrap_or(ANY))).is_none()
        });
        departed.sort_by_key(|&(.., until)| std::cmp::Reverse(until));
        let dropped = departed.len().saturating_sub(most) as u64;
        departed.truncate(most);
        for &(ip, port, transport, until) in &departed {
            book.departed.entry(ip).or_default().push((port, transport, until));
        }
        let draws = pools.iter().map(Draws::of).collect();
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Pools { pools, draws, book, departed, dropped, serial: SERIAL.fetch_add(1, Relaxed) }
    }

    /// Of these pools alone in this process: what was found out by them, such as a `BackendRef`, holds while it is the same.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    pub fn backend(&self, at: BackendRef) -> &Backend {
        &self.pools[at.pool as usize].backends[at.index as usize]
    }

    pub fn pool(&self, index: u16) -> &Pool {
        &self.pools[index as usize]
    }

    /// Does this backend take new requests? (In a pool that panics others may, see `rendezvous`.)
    pub fn takes_new(&self, at: BackendRef) -> bool {
        self.backend(at).takes_new()
    }

    /// Does this backend take requests of what it has: dialogs, transactions? Also where its pool panics.
    pub fn carries(&self, at: BackendRef) -> bool {
        let backend = self.backend(at);
        backend.carries() || (self.panics(at.pool) && backend.may_panic())
    }

    /// The pool says so, and none of its backends takes new requests (SPEC 8.3).
    pub fn panics(&self, pool: u16) -> bool {
        let pool = self.pool(pool);
        pool.panic && !pool.backends.iter().any(Backend::takes_new)
    }

    /// All of the pool's backends take new requests: then a hash balance depends on nothing but the request.
    pub fn is_whole(&self, pool: u16) -> bool {
        self.pool(pool).backends.iter().all(Backend::takes_new)
    }

    /// There are backends, and none takes new requests.
    pub fn all_down(&self) -> bool {
        let down =
            |pool: &Pool| !pool.backends.iter().any(|b| b.takes_new() || (pool.panic && b.may_panic()));
        let any = |pool: &Pool| !pool.backends.is_empty() || !pool.unresolved.is_empty();
        self.pools.iter().any(any) && self.pools.iter().all(down)
    }

    /// Every address of every backend with its place, in the file's order.
    pub fn backends(&self) -> impl Iterator<Item = (BackendRef, &Backend)> {
        self.pools.iter().enumerate().flat_map(|(pool, p)| {
            let at = move |index| BackendRef { pool: pool as u16, index: index as u16 };
            p.backends.iter().enumerate().map(move |(index, b)| (at(index), b))
        })
    }

    /// Backends that left a table, for the next one.
    pub fn departed(&self) -> &Departed {
        &self.departed
    }

    /// How many of those had to make room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Two addresses of one backend?
    pub fn is_same(&self, a: BackendRef, b: BackendRef) -> bool {
        a.pool == b.pool && self.backend(a).spread.first == self.backend(b).spread.first
    }

    /// The address that takes a request with this key's hash, among those of a backend (see `spread`).
    pub fn spread(&self, at: BackendRef, key: u64) -> BackendRef {
        let of = &self.backend(at).spread;
        if of.count == 1 {
            return at;
        }
        let (first, count) = (usize::from(of.first), usize::from(of.count));
        let chosen = spread::choose(&self.pool(at.pool).backends[first..first + count], key);
        BackendRef { index: of.first + chosen as u16, ..at }
    }

    /// Who sent from `peer` over `transport` (SPEC 1.1): over UDP address and port, unless the pool says `any_port`; over
    /// streams the address. `unix_s` ends the day of departed ones.
    pub fn peer(&self, transport: Transport, peer: SocketAddr, unix_s: u64) -> Option<Peer> {
        let peer = canonical(peer);
        if let Some(at) = self.book.peer(transport, peer) {
            return Some(Peer::Backend(at));
        }
        let left = self.book.departed.get(&peer.ip())?.iter().any(|&(port, by, until)| {
            until > unix_s
                && (!transport.is_datagram()
                    || by.is_datagram() && port.is_none_or(|port| port == peer.port()))
        });
        left.then_some(Peer::Departed)
    }

    /// Has any backend this address, whatever port and transport it speaks from, or had it within a day?
    pub fn has_host(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.book.host.contains_key(&ip) || self.book.departed.contains_key(&ip)
    }

    /// The addresses of all backends, and of those that left within a day.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.book.host.keys().chain(self.book.departed.keys()).copied()
    }

    /// Is this address a backend's of that pool?
    pub fn is_member(&self, pool: u16, transport: Transport, peer: SocketAddr) -> bool {
        let peer = canonical(peer);
        if transport.is_datagram() {
            self.book.members.contains(&(pool, peer))
                || self.book.members.contains(&(pool, SocketAddr::new(peer.ip(), ANY)))
        } else {
            self.book.hosts_of.contains(&(pool, peer.ip()))
        }
    }

    /// Every place of a backend with this address and transport.
    pub fn at_address(&self, addr: SocketAddr, transport: Transport) -> &[BackendRef] {
        self.book.listed.get(&(transport, canonical(addr))).map_or(&[], Vec::as_slice)
    }

    /// The backend listed with this address and transport.
    pub fn by_address(&self, addr: SocketAddr, transport: Transport) -> Option<BackendRef> {
        self.at_address(addr, transport).first().copied()
    }

    /// The backend of whose name's hash these are the low bits (entity-tag tokens, SPEC 3.1): that in `pool` where it has
    /// one there, else its first place.
    pub fn by_name_hash(&self, low: u32, pool: Option<u16>) -> Option<BackendRef> {
        let places = self.book.tags.get(&low)?;
        places.iter().find(|at| Some(at.pool) == pool).or(places.first()).copied()
    }

    /// What the balance of a pool reads.
    pub(super) fn draws(&self, pool: u16) -> &Draws {
        &self.draws[usize::from(pool)]
    }

    /// The backend that a URI's host (a name as written in the table, or an IP literal) and port mean; where the port is
    /// absent or no backend's, the first with that host. `pool_of`: only backends that share a pool with this one.
    pub fn by_host(&self, host: &[u8], port: Option<u16>, pool_of: Option<BackendRef>) -> Option<BackendRef> {
        let found = match ip_literal(host) {
            Some(ip) => self.book.ips.get(&ip)?,
            None => {
                let mut lower = [0; LONGEST_NAME];
                let lower = lower.get_mut(..host.len())?;
                lower.copy_from_slice(host);
                lower.make_ascii_lowercase();
                self.book.names.get(&*lower)?
            }
        };
        let pools: Option<&[BackendRef]> = match pool_of {
            Some(at) => {
                let backend = self.backend(at);
                Some(self.book.listed.get(&(backend.transport, canonical(backend.addr)))?)
            }
            None => None,
        };
        let shares = |at: &&BackendRef| pools.is_none_or(|pools| pools.iter().any(|p| p.pool == at.pool));
        let with_port = || found.ports.get(&port?)?.iter().find(shares);
        with_port().or_else(|| found.all.iter().find(shares)).copied()
    }

    /// Balances over a pool: `key_buf` is scratch for the key. `sender` is never the target: the hash is over all that
    /// take new requests, and where it names the sender there is none other (SPEC 1.5).
    pub fn pick<R: Recorder>(
        &self,
        pool: u16,
        facts: &Facts<'_>,
        names: &Names,
        sender: Option<BackendRef>,
        key_buf: &mut Vec<u8>,
        recorder: &mut R,
    ) -> Pick {
        let of = self.pool(pool);
        balance::key(&of.balance, facts, names, key_buf);
        if R::ON {
            recorder.key(balance::label(&of.balance), key_buf);
        }
        let key = balance::key_hash(key_buf);
        if R::ON {
            self.record(pool, key, facts.method, recorder);
        }
        let Some(index) = self.choose(pool, key, facts.method, sender) else { return Pick::None };
        let BackendRef { index, .. } = self.spread(BackendRef { pool, index }, key);
        let target = &of.backends[usize::from(index)];
        let is_sender = |sender: &Backend| sender.addr == target.addr && sender.transport == target.transport;
        if sender.is_some_and(|sender| is_sender(self.backend(sender))) {
            return Pick::Sender;
        }
        Pick::Backend(BackendRef { pool, index })
    }

    /// Weighted rendezvous over the backends of a pool that take new requests: the position of the one that the hash of
    /// a key names. Where none does and the pool panics, over all that are neither drained nor off.
    /// It is the first of its entries where a backend has several (`spread`).
    pub fn rendezvous(&self, pool: u16, key: u64) -> Option<u16> {
        let of = self.pool(pool);
        let draws = &self.draws[usize::from(pool)];
        let is = |fits: fn(&Backend) -> bool| move |at: u16| fits(&of.backends[usize::from(at)]);
        // Who wins over all wins over any part that it is in: only for keys of one that takes nothing is there more to
        // look at, and they are placed as if it were not there.
        let first = draws.winner(key, |_| true)?;
        if is(Backend::takes_new)(first) {
            return Some(first);
        }
        let next = draws.winner(key, is(Backend::takes_new));
        if next.is_none() && of.panic { draws.winner(key, is(Backend::may_panic)) } else { next }
    }

    fn record<R: Recorder>(&self, pool: u16, key: u64, method: Method, recorder: &mut R) {
        for unresolved in &self.pool(pool).unresolved {
            recorder.candidate(Candidate {
                name: &unresolved.name,
                excluded: Some("no address"),
                score: 0.0,
                address: None,
                measured: None,
            });
        }
        let panics = self.panics(pool);
        for (index, backend) in self.pool(pool).backends.iter().enumerate() {
            let at = BackendRef { pool, index: index as u16 };
            if backend.spread.first != at.index {
                continue;
            }
            let excluded = match backend.state.state(backend.admin) {
                State::Up if method == Method::Invite && backend.is_full() => Some("max_calls"),
                State::Up => None,
                _ if panics && backend.may_panic() => None,
                other => Some(other.label()),
            };
            recorder.candidate(Candidate {
                name: &backend.name,
                excluded,
                score: backend.score(key),
                address: backend
                    .spread
                    .by_name
                    .then(|| (self.backend(self.spread(at, key)).addr, backend.spread.count)),
                measured: backend.measured(&self.pool(pool).balance),
            });
        }
    }
}

impl Draws {
    fn of(pool: &Pool) -> Draws {
        let firsts =
            pool.backends.iter().enumerate().filter(|(at, backend)| usize::from(backend.spread.first) == *at);
        let drawn = |(at, backend): (usize, &Backend)| {
            let share = u64::MAX / u64::from(backend.weight.max(1));
            Drawn { hash: backend.hash, share, coarse: share >> 34, at: at as u16 }
        };
        let backends: Box<[_]> = firsts.map(drawn).collect();
        Draws { equal: backends.windows(2).all(|pair| pair[0].share == pair[1].share), backends }
    }

    /// Weighted rendezvous: the least loss by weight wins. Where two are equal the greater draw does, and the order of the
    /// file decides nothing.
    pub(super) fn winner(&self, key: u64, among: impl Fn(u16) -> bool) -> Option<u16> {
        if self.equal {
            let backends = self.backends.iter().filter(|backend| among(backend.at));
            return backends.max_by_key(|backend| balance::draw(key, backend.hash)).map(|winner| winner.at);
        }
        let (mut winner, mut best) = (None, u128::MAX);
        // What a loss by weight must not be above, in 2^34, to win yet.
        let mut reach = u64::MAX - 1;
        for backends in self.backends.chunks(DRAWN) {
            let (mut draws, mut floors, mut lowest) = ([0; DRAWN], [u64::MAX; DRAWN], 0);
            for (i, backend) in backends.iter().enumerate().filter(|(_, backend)| among(backend.at)) {
                draws[i] = balance::draw(key, backend.hash);
                floors[i] = balance::least_loss(draws[i]) * backend.coarse;
                lowest = if floors[i] < floors[lowest] { i } else { lowest };
            }
            // A logarithm is dear. Who has the lowest floor nearly always wins, and few others can still reach it.
            for i in std::iter::once(lowest).chain(0..backends.len()) {
                if floors[i] > reach {
                    continue;
                }
                let loss = u128::from(balance::loss(draws[i])) * u128::from(backends[i].share);
                let rank = loss << 24 | u128::from(!draws[i] >> 40);
                if rank < best {
                    (winner, best) = (Some(backends[i].at), rank);
                    reach = u64::try_from(loss >> 34).unwrap_or(reach);
                }
            }
        }
        winner
    }
}

impl Backend {
    /// Does it take new requests?
    #[inline]
    pub fn takes_new(&self) -> bool {
        self.state.takes_new(self.admin)
    }

    /// Does it take requests of dialogs that it has?
    pub fn carries(&self) -> bool {
        self.state.carries(self.admin)
    }

    /// Neither drained nor off: only its health is against it.
    pub(super) fn may_panic(&self) -> bool {
        self.state.mark().unwrap_or(self.admin) == AdminState::Active
    }

    /// How entity-tag tokens name it (SPEC 3.1): half of its name's hash, which outlives moves of its address. Where its URI
    /// names a host each address is another process with tags of its own, so the address is in it too.
    pub fn tag(&self) -> u32 {
        let address = if self.spread.by_name { self.spread.hash } else { 0 };
        (self.hash ^ address) as u32
    }

    /// What the balance weighs beside the hash, for people.
    fn measured(&self, balance: &Balance) -> Option<String> {
        match balance {
            Balance::LeastCalls => Some(format!("{} calls", self.state.calls())),
            Balance::LeastLatency => Some(
                self.state.rtt().map_or("no round trip yet".to_owned(), |rtt| format!("round trip {rtt:?}")),
            ),
            Balance::Priority => Some(format!("priority {}", self.priority)),
            _ => None,
        }
    }

    /// The score of this backend for a key, for people: the balance compares in integers.
    fn score(&self, key: u64) -> f64 {
        let loss = balance::loss(balance::draw(key, self.hash));
        f64::from(self.weight) / (loss.max(1) as f64 / (1u64 << 32) as f64)
    }
}

/// Addresses of backends that left the table, with the second until which they are still believed (a day). Without a
/// port they are believed on any.
pub type Departed = Vec<(IpAddr, Option<u16>, Transport, u64)>;

/// Stands for every port in `Book::members`: no packet comes from port 0.
const ANY: u16 = 0;

/// A DNS name has no more bytes.
const LONGEST_NAME: usize = 255;

/// Look-ups over all pools, so that nothing scans them for a message. Addresses are canonical: an IPv4-mapped IPv6
/// address is the IPv4 address.
#[derive(Default)]
struct Book {
    /// Every place of a backend, by transport and address.
    listed: HashMap<(Transport, SocketAddr), Vec<BackendRef>>,
    /// First backend over UDP, port `ANY` where its pool takes any.
    datagram: HashMap<SocketAddr, BackendRef>,
    /// First backend with an address, first of this transport, then of any.
    stream: HashMap<(Transport, IpAddr), BackendRef>,
    host: HashMap<IpAddr, BackendRef>,
    /// As `datagram`, by pool.
    members: HashSet<(u16, SocketAddr)>,
    hosts_of: HashSet<(u16, IpAddr)>,
    /// Port, transport and last second of those that left, by address.
    departed: HashMap<IpAddr, Vec<(Option<u16>, Transport, u64)>>,
    names: HashMap<Box<[u8]>, Found>,
    /// By the low bits of the hash of its name.
    tags: HashMap<u32, Vec<BackendRef>>,
    ips: HashMap<IpAddr, Found>,
}

/// Backends of one host, in the file's order.
#[derive(Default)]
struct Found {
    all: Vec<BackendRef>,
    ports: HashMap<u16, Vec<BackendRef>>,
}

impl Book {
    fn of(pools: &[Pool]) -> Book {
        let mut book = Book::default();
        // Addresses that the table names go first: no DNS answer makes one of them another backend's.
        for by_name in [false, true] {
            for (pool, p) in pools.iter().enumerate() {
                for (index, backend) in p.backends.iter().enumerate() {
                    let at = BackendRef { pool: pool as u16, index: index as u16 };
                    if backend.spread.by_name == by_name {
                        book.enter(at, backend, p.any_port);
                    }
                }
            }
        }
        book
    }

    fn enter(&mut self, at: BackendRef, backend: &Backend, any_port: bool) {
        let addr = canonical(backend.addr);
        let ip = addr.ip();
        self.listed.entry((backend.transport, addr)).or_default().push(at);
        self.tags.entry(backend.tag()).or_default().push(at);
        if backend.transport.is_datagram() {
            self.datagram.entry(addr).or_insert(at);
            self.members.insert((at.pool, addr));
            if any_port {
                self.datagram.entry(SocketAddr::new(ip, ANY)).or_insert(at);
                self.members.insert((at.pool, SocketAddr::new(ip, ANY)));
            }
        }
        self.stream.entry((backend.transport, ip)).or_insert(at);
        self.host.entry(ip).or_insert(at);
        self.hosts_of.insert((at.pool, ip));
        let found = |found: &mut Found| {
            found.all.push(at);
            found.ports.entry(addr.port()).or_default().push(at);
        };
        found(self.ips.entry(ip).or_default());
        if ip_literal(&backend.host).is_none() {
            found(self.names.entry(backend.host.to_ascii_lowercase().into()).or_default());
        }
    }

    fn peer(&self, transport: Transport, peer: SocketAddr) -> Option<BackendRef> {
        let found = if transport.is_datagram() {
            self.datagram.get(&peer).or_else(|| self.datagram.get(&SocketAddr::new(peer.ip(), ANY)))
        } else {
            self.stream.get(&(transport, peer.ip())).or_else(|| self.host.get(&peer.ip()))
        };
        found.copied()
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// An IPv4 or IPv6 address, with or without brackets.
fn ip_literal(host: &[u8]) -> Option<IpAddr> {
    let host = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]")).unwrap_or(host);
    let looks_so = host.contains(&b':') || host.last().is_some_and(u8::is_ascii_digit);
    let ip: IpAddr = std::str::from_utf8(host).ok().filter(|_| looks_so)?.parse().ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What spares logarithms changes no placement.
        #[test]
        fn the_winner_is_who_has_the_least_loss_by_weight(
            weights in proptest::collection::vec(1u64..1000, 1..40), keys in proptest::collection::vec(any::<u64>(), 50),
            absent in 0u16..40,
        ) {
            let drawn = |(at, weight): (usize, &u64)| {
                let share = u64::MAX / weight;
                Drawn { hash: balance::name_hash(&format!("pbx{at}")), share, coarse: share >> 34, at: at as u16 }
            };
            let backends: Box<[_]> = weights.iter().enumerate().map(drawn).collect();
            let draws = Draws { equal: false, backends };
            for key in keys {
                let rank = |backend: &&Drawn| {
                    let draw = balance::draw(key, backend.hash);
                    (u128::from(balance::loss(draw)) * u128::from(backend.share), u64::MAX - draw)
                };
                let expected = draws.backends.iter().filter(|b| b.at != absent).min_by_key(rank).map(|b| b.at);
                prop_assert_eq!(draws.winner(key, |at| at != absent), expected);
            }
        }
    }
}
