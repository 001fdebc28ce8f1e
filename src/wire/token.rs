//! Tokens of SPEC 3: what we sign and put into a Via branch, a Record-Route or a Path, so that the way back needs no state.
//!
//! The bytes are settled in `tokens.md`, beside this file. Encoding and decoding only: who may use a token, and what for,
//! is decided in `forward`. A token that does not decode is a `Fault`, which the caller turns into SPEC 3.1's answer.
#![doc = include_str!("tokens.md")]

mod etag;

pub use etag::{EtagToken, Publication};

use std::{
    hash::Hasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use siphasher::sip::{SipHasher13, SipHasher24};

use super::{
    base64url,
    block::{self, Block},
    name::Transport,
};

/// A stream connection, by where it is held (SPEC 3.2). `slot` is below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    pub router: u8,
    pub boot: u16,
    pub core: u8,
    pub slot: u32,
    pub generation: u16,
}

impl std::fmt::Display for FlowId {
    /// `core.slot.generation`: what is said of a connection of this router to people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.core, self.slot, self.generation)
    }
}

/// The way to a client: the listener (by the id of its name) and the remote address, or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// `local` is set where the listener is bound to a wildcard: the address that the client spoke to.
    Datagram {
        listener: u16,
        local: Option<IpAddr>,
        peer: SocketAddr,
    },
    Stream {
        listener: u16,
        id: FlowId,
    },
}

impl Flow {
    /// The same flow whichever address of ours it speaks to: how an ICMP error names it, and where its responses may go.
    pub fn without_local(self) -> Flow {
        match self {
            Flow::Datagram { listener, peer, .. } => Flow::Datagram { listener, local: None, peer },
            Flow::Stream { .. } => self,
        }
    }
}

/// One side of a dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Client(Flow),
    /// By address and transport, not by index: it outlives tables (SPEC 3.2).
    Backend {
        addr: SocketAddr,
        transport: Transport,
    },
}

/// From whom a response may be taken (SPEC 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Any backend.
    Backend,
    /// The flow with this hash (`Ring::flow_hash`) under the key of the token.
    Client(u32),
}

/// What a Via branch of ours says (SPEC 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViaToken {
    pub router: u8,
    /// Where the response goes; of a request of our own: where it went.
    pub back: Flow,
    /// A request of our own: its response goes no further (SPEC 3.6).
    pub own: bool,
    /// The request came from a backend (or a trusted source): the response's Record-Route names us as that side sees us.
    pub from_backend: bool,
    pub bound: Bound,
    /// Hash part (`forward::hash`); its low 16 bits stand in the Record-Route that left with it.
    pub branch: u64,
    pub loop_hash: u32,
    /// Where to call the sender, a backend, should the connection `back` be gone (SPEC 3.6).
    pub reopen: Option<SocketAddr>,
    /// The flow that the request's token named, where it came by another (`back`), and the hash of its From tag (SPEC 7.2).
    pub moved: Option<(Flow, u32)>,
    /// Of a PUBLISH to a backend (SPEC 6.1).
    pub publication: Option<Publication>,
}

/// What a Record-Route of ours says (SPEC 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteToken {
    pub router: u8,
    pub sides: [Side; 2],
    /// Which side (0 or 1) owns `tag`.
    pub owner: u8,
    /// Hash of the owner's tag.
    pub tag: u32,
    /// Low 16 bits of the branch that left with it.
    pub bits: u16,
}

/// What a Path of ours says (SPEC 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathToken {
    pub router: u8,
    pub flow: Flow,
}

/// Why a text is no token of that type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not the form of a token of this type.
    Foreign,
    /// The form of one, under a key that the ring does not hold.
    UnknownKey,
    /// A bad MAC under a known key.
    Forged,
}

const VERSION: u8 = 1;
const VIA: u8 = 0;
const ROUTE: u8 = 1;
const PATH: u8 = 2;

/// The first characters that version and type leave to each type: most foreign texts are told by theirs.
const FIRST: [&[u8; 4]; 4] = [b"QRST", b"UVWX", b"YZab", b"cdef"];

/// Longest payload with its MAC, in bytes (a via token of a PUBLISH with a moved IPv6 flow on wildcard listeners and an
/// IPv6 address to call), and a little more.
const MAX: usize = 160;
const MAC: usize = 8;
/// Room for a token and for what binds it, unless that is very long.
const ROOM: usize = 256;
const _: () = assert!(MAX + base64url::SLACK <= ROOM);

/// The first byte of a payload.
const fn first(kind: u8, key_id: u8) -> u8 {
    VERSION << 6 | kind << 4 | key_id & 15
}

/// The keys: up to 16, the first signs, all verify (SPEC 3.1).
#[derive(Clone)]
pub struct Ring {
    keys: [Option<[u8; 16]>; 16],
    signing: u8,
}

impl Ring {
    /// `keys`: (key id 0-15, 128 bits), at least one, ids distinct; the first signs. Ids are taken modulo 16.
    pub fn new(keys: &[(u8, [u8; 16])]) -> Ring {
        let mut ring = Ring { keys: [None; 16], signing: keys.first().map_or(0, |k| k.0 & 15) };
        for (id, key) in keys.iter().rev() {
            ring.keys[(id & 15) as usize] = Some(*key);
        }
        ring
    }

    /// The id of the key that signs.
    pub fn signing(&self) -> u8 {
        self.signing
    }

    /// A keyed hash for what must not be guessed by a peer but is no token: branches, pins (SipHash-1-3).
    pub fn hash(&self, text: &[u8]) -> u64 {
        SipHasher13::new_with_key(&self.keys[self.signing as usize].unwrap_or_default()).hash(text)
    }

    /// The hash of a client in a token that is written now.
    pub fn client_hash(&self, flow: &Flow) -> u32 {
        self.flow_hash(self.signing, flow)
    }

    /// A 32-bit hash of where a response to a client-bound request must come from: listener and remote address, or
    /// connection. Under the key `id`, that of the token in which it stands: who reads it there cannot look for an address
    /// of his that has it too (SipHash-1-3).
    pub fn flow_hash(&self, id: u8, flow: &Flow) -> u32 {
        let key = self.keys[(id & 15) as usize].unwrap_or_default();
        let hash = |text: &[u8]| SipHasher13::new_with_key(&key).hash(text) as u32;
        // As nearly all are. What the writer writes, but in one piece: in several it could not be read at once.
        if let Flow::Datagram { listener, peer: SocketAddr::V4(peer), .. } = flow {
            let ip = u128::from(peer.ip().to_bits());
            let text =
                u128::from(DATAGRAM) << 64 | u128::from(*listener) << 48 | ip << 16 | u128::from(peer.port());
            return hash(&text.to_be_bytes()[7..]);
        }
        let mut w = Writer::new();
        w.flow(&flow.without_local(), 0);
        hash(&w.bytes[..w.len])
    }

    /// From whom alone the response to a request may come that leaves by this flow, in a token that is signed now.
    pub fn bound(&self, flow: &Flow) -> Bound {
        Bound::Client(self.client_hash(flow))
    }

    /// The MAC of the first `len` bytes of `room` and of what binds them, which is written behind them where it fits: in one
    /// piece it takes half as long as in several. `None` where the ring does not hold the key.
    fn mac(&self, id: u8, room: &mut [u8; ROOM], len: usize, binding: &[&[u8]]) -> Option<u64> {
        let mut hasher = SipHasher24::new_with_key(self.keys[(id & 15) as usize].as_ref()?);
        let mut end = len;
        for part in binding {
            let Some(behind) = room.get_mut(end..end + part.len()) else {
                hasher.write(&room[..len]);
                binding.iter().for_each(|part| hasher.write(part));
                return Some(hasher.finish());
            };
            behind.copy_from_slice(part);
            end += part.len();
        }
        Some(hasher.hash(&room[..end]))
    }

    /// Appends the token's text: what was written and its MAC by the key `id`. By reference: a move of the writer would cost
    /// as much as half the MAC.
    fn seal(&self, id: u8, w: &mut Writer, binding: &[&[u8]], out: &mut Vec<u8>) {
        let mac = self.mac(id, &mut w.bytes, w.len, binding).unwrap_or_default();
        w.put(&mac.to_be_bytes());
        let len = w.len;
        // Over what may be left of the binding.
        w.put(&[0; 2]);
        base64url::encode(&w.bytes, len, out);
    }

    /// Is the MAC that of the payload in `room` and of what binds it? It is written over.
    fn check(&self, opened: &Opened, room: &mut [u8; ROOM], binding: &[&[u8]]) -> Result<(), Fault> {
        match self.mac(opened.key_id, room, opened.len, binding) {
            None => Err(Fault::UnknownKey),
            Some(mac) if mac == opened.mac => Ok(()),
            Some(_) => Err(Fault::Forged),
        }
    }

    #[inline]
    fn start(&self, kind: u8, router: u8) -> Writer {
        let mut w = Writer::new();
        w.put(&[first(kind, self.signing), router]);
        w
    }
}

impl std::fmt::Debug for Ring {
    /// Never the keys themselves: logs are read by many.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.keys.iter().filter(|k| k.is_some()).count();
        write!(f, "Ring {{ keys: {held}, signing: {} }}", self.signing)
    }
}

impl ViaToken {
    /// Appends the token's text (behind `z9hG4bK`).
    pub fn encode(&self, ring: &Ring, out: &mut Vec<u8>) {
        let mut w = ring.start(VIA, self.router);
        let to_client = matches!(self.bound, Bound::Client(_));
        w.put(&[u8::from(self.from_backend)
            | u8::from(to_client) << 1
            | u8::from(self.moved.is_some()) << 2
            | u8::from(self.publication.is_some()) << 3
            | u8::from(self.reopen.is_some()) << 4
            | u8::from(self.reopen.is_some_and(|addr| addr.is_ipv6())) << 5
            | u8::from(self.own) << 6]);
        w.flow(&self.back, 0);
        if let Bound::Client(hash) = self.bound {
            w.put(&hash.to_be_bytes());
        }
        w.put(&self.branch.to_be_bytes());
        w.put(&self.loop_hash.to_be_bytes());
        if let Some((flow, tag)) = &self.moved {
            w.flow(flow, 0);
            w.put(&tag.to_be_bytes());
        }
        if let Some(publication) = &self.publication {
            publication.write(&mut w);
        }
        if let Some(addr) = self.reopen {
            w.addr(addr);
        }
        ring.seal(ring.signing, &mut w, &[], out);
    }

    /// The token and the id of its key.
    pub fn decode(text: &[u8], ring: &Ring) -> Result<(ViaToken, u8), Fault> {
        let mut room = [0; ROOM];
        let opened = Opened::read(VIA, text, &mut room)?;
        let mut r = opened.reader(&room);
        let flags = r.byte();
        let (back, _) = r.flow();
        let bound = if flags & 2 != 0 { Bound::Client(r.u32()) } else { Bound::Backend };
        let (branch, loop_hash) = (u64::from_be_bytes(r.take()), r.u32());
        let moved = (flags & 4 != 0).then(|| (r.flow().0, r.u32()));
        let publication = (flags & 8 != 0).then(|| Publication::read(&mut r));
        let reopen = (flags & 16 != 0).then(|| r.addr(flags & 32 != 0));
        if flags & !127 != 0 || !r.is_used_up() {
            return Err(Fault::Foreign);
        }
        ring.check(&opened, &mut room, &[])?;
        let (from_backend, own) = (flags & 1 != 0, flags & 64 != 0);
        let token = ViaToken {
            router: opened.router,
            back,
            own,
            from_backend,
            bound,
            branch,
            loop_hash,
            reopen,
            moved,
            publication,
        };
        Ok((token, opened.key_id))
    }
}

impl RouteToken {
    /// Appends the token's text, bound to the Call-ID.
    pub fn encode(&self, ring: &Ring, call_id: &[u8], out: &mut Vec<u8>) {
        let mut w = ring.start(ROUTE, self.router);
        let [a, b] = &self.sides;
        w.side(a, u8::from(self.owner == 0));
        w.side(b, u8::from(self.owner == 1));
        w.put(&self.tag.to_be_bytes());
        w.put(&self.bits.to_be_bytes());
        ring.seal(ring.signing, &mut w, &[call_id], out);
    }

    /// The token and the id of its key.
    pub fn decode(text: &[u8], ring: &Ring, call_id: &[u8]) -> Result<(RouteToken, u8), Fault> {
        let mut room = [0; ROOM];
        let opened = Opened::read(ROUTE, text, &mut room)?;
        let mut r = opened.reader(&room);
        let ((a, owns_a), (b, owns_b)) = (r.side(), r.side());
        let (tag, bits) = (r.u32(), r.u16());
        if owns_a == owns_b || !r.is_used_up() {
            return Err(Fault::Foreign);
        }
        ring.check(&opened, &mut room, &[call_id])?;
        let (router, owner) = (opened.router, u8::from(owns_b));
        Ok((RouteToken { router, sides: [a, b], owner, tag, bits }, opened.key_id))
    }
}

/// `RouteToken::owner` where the tag is a `caller`.
pub const CALLED: u8 = 1;

impl RouteToken {
    /// The client of a token between it and a backend, and which side it is.
    pub fn client(&self) -> Option<(usize, &Flow)> {
        match &self.sides {
            [Side::Client(flow), _] => Some((0, flow)),
            [_, Side::Client(flow)] => Some((1, flow)),
            _ => None,
        }
    }

    /// The hash of another client (`Ring::client_hash`), where it stands in the place of a tag: its owner is the client that
    /// a backend calls, which no token with a tag has.
    pub fn caller(&self) -> Option<u32> {
        let called = matches!(self.sides, [Side::Backend { .. }, Side::Client(_)]);
        (called && self.owner == CALLED).then_some(self.tag)
    }
}

impl PathToken {
    /// Appends the token's text; nothing but its MAC binds it (SPEC 3.4).
    pub fn encode(&self, ring: &Ring, out: &mut Vec<u8>) {
        let mut w = ring.start(PATH, self.router);
        w.flow(&self.flow, 0);
        ring.seal(ring.signing, &mut w, &[], out);
    }

    /// The token and the id of its key.
    pub fn decode(text: &[u8], ring: &Ring) -> Result<(PathToken, u8), Fault> {
        let mut room = [0; ROOM];
        let opened = Opened::read(PATH, text, &mut room)?;
        let mut r = opened.reader(&room);
        let (flow, _) = r.flow();
        if !r.is_used_up() {
            return Err(Fault::Foreign);
        }
        ring.check(&opened, &mut room, &[])?;
        Ok((PathToken { router: opened.router, flow }, opened.key_id))
    }
}

/// Are these the letters of a token, which nobody reads as anything else?
pub fn is_text(bytes: &[u8]) -> bool {
    let other = |block: Block| block.alphanumeric().or(block.is(b'-')).or(block.is(b'_')).not();
    block::find(bytes, 0, other) == bytes.len()
}

/// A 32-bit hash of a tag, for Record-Route tokens and moved flows. Fixed seed: routers that share keys must agree.
pub fn tag_hash(tag: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64_with_seed(tag, 0x7469_6469_6e67_7301) as u32
}

const DATAGRAM: u8 = 1 << 6;
const STREAM: u8 = 2 << 6;
const BACKEND: u8 = 3 << 6;
const V6: u8 = 1 << 5;
const LOCAL: u8 = 1 << 4;

struct Writer {
    bytes: [u8; ROOM],
    len: usize,
}

impl Writer {
    #[inline]
    fn new() -> Writer {
        Writer { bytes: [0; ROOM], len: 0 }
    }

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.put(&ip.octets()),
            IpAddr::V6(ip) => self.put(&ip.octets()),
        }
    }

    #[inline]
    fn addr(&mut self, addr: SocketAddr) {
        let [high, low] = addr.port().to_be_bytes();
        match addr.ip() {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                self.put(&[a, b, c, d, high, low]);
            }
            IpAddr::V6(ip) => {
                self.put(&ip.octets());
                self.put(&[high, low]);
            }
        }
    }

    // In line, so that who writes a token need not put it together in memory first.
    #[inline(always)]
    fn flow(&mut self, flow: &Flow, owns: u8) {
        match flow {
            Flow::Datagram { listener, local, peer } => {
                let v6 = if peer.is_ipv6() { V6 } else { 0 };
                // A local address of the other family cannot be: the flow would not exist.
                let local = local.filter(|l| l.is_ipv6() == peer.is_ipv6());
                let descriptor = DATAGRAM | v6 | if local.is_some() { LOCAL } else { 0 } | owns;
                let [high, low] = listener.to_be_bytes();
                self.put(&[descriptor, high, low]);
                self.addr(*peer);
                if let Some(local) = local {
                    self.ip(local);
                }
            }
            Flow::Stream { listener, id } => {
                self.put(&[STREAM | owns]);
                self.put(&listener.to_be_bytes());
                self.put(&[id.router]);
                self.put(&id.boot.to_be_bytes());
                self.put(&[id.core]);
                self.put(&id.slot.to_be_bytes()[1..]);
                self.put(&id.generation.to_be_bytes());
            }
        }
    }

    #[inline(always)]
    fn side(&mut self, side: &Side, owns: u8) {
        match side {
            Side::Client(flow) => self.flow(flow, owns),
            Side::Backend { addr, transport } => {
                let v6 = if addr.is_ipv6() { V6 } else { 0 };
                self.put(&[BACKEND | v6 | (*transport as u8) << 1 | owns]);
                self.addr(*addr);
            }
        }
    }
}

/// A token's text that has the form of its type; the MAC is not checked yet.
struct Opened {
    /// Of the payload.
    len: usize,
    mac: u64,
    router: u8,
    key_id: u8,
}

impl Opened {
    /// Decodes the text into `room`.
    fn read(kind: u8, text: &[u8], room: &mut [u8; ROOM]) -> Result<Opened, Fault> {
        // A text as long as no token of ours is none; the bound also keeps the decoder inside `room`.
        if text.len() < 24 || text.len() > MAX * 4 / 3 || !FIRST[usize::from(kind)].contains(&text[0]) {
            return Err(Fault::Foreign);
        }
        let n = base64url::decode(text, room).ok_or(Fault::Foreign)?;
        let (payload, mac) = room[..n].split_last_chunk::<MAC>().ok_or(Fault::Foreign)?;
        let [begin, router, ..] = *payload else { return Err(Fault::Foreign) };
        let key_id = begin & 15;
        if begin != first(kind, key_id) {
            return Err(Fault::Foreign);
        }
        Ok(Opened { len: payload.len(), mac: u64::from_be_bytes(*mac), router, key_id })
    }

    /// Of what stands behind the first two bytes.
    fn reader<'a>(&self, room: &'a [u8; ROOM]) -> Reader<'a> {
        Reader { rest: &room[2..self.len], short: false }
    }
}

/// Reads a payload. What is not there is zero, and told at the end: a token is long to move as an `Option`.
struct Reader<'a> {
    rest: &'a [u8],
    /// Something was missing, or no form of ours.
    short: bool,
}

impl Reader<'_> {
    fn is_used_up(&self) -> bool {
        self.rest.is_empty() && !self.short
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((part, rest)) => {
                self.rest = rest;
                *part
            }
            None => {
                self.short = true;
                [0; N]
            }
        }
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn ip(&mut self, v6: bool) -> IpAddr {
        if v6 { Ipv6Addr::from(self.take::<16>()).into() } else { Ipv4Addr::from(self.take::<4>()).into() }
    }

    fn addr(&mut self, v6: bool) -> SocketAddr {
        SocketAddr::new(self.ip(v6), self.u16())
    }

    /// As nearly all are: a datagram flow of IPv4 without an address of ours.
    #[inline(always)]
    fn plain(&mut self) -> Option<(Flow, bool)> {
        let ([descriptor, high, low, a, b, c, d, port @ ..], rest) = self.rest.split_first_chunk::<9>()?;
        if descriptor & !1 != DATAGRAM {
            return None;
        }
        self.rest = rest;
        let peer = SocketAddr::from(([*a, *b, *c, *d], u16::from_be_bytes(*port)));
        let listener = u16::from_be_bytes([*high, *low]);
        Some((Flow::Datagram { listener, local: None, peer }, descriptor & 1 != 0))
    }

    /// A side and whether it owns the tag.
    fn side(&mut self) -> (Side, bool) {
        let descriptor = self.byte();
        let (v6, owns) = (descriptor & V6 != 0, descriptor & 1 != 0);
        let side = match descriptor & 0xc0 {
            STREAM if descriptor & 0x3e == 0 => {
                let (listener, router, boot, core) = (self.u16(), self.byte(), self.u16(), self.byte());
                let [a, b, c] = self.take();
                let (slot, generation) = (u32::from_be_bytes([0, a, b, c]), self.u16());
                Side::Client(Flow::Stream { listener, id: FlowId { router, boot, core, slot, generation } })
            }
            BACKEND => {
                let transport = Transport::ALL.get(usize::from(descriptor >> 1 & 7));
                self.short |= transport.is_none() || descriptor & LOCAL != 0;
                Side::Backend { addr: self.addr(v6), transport: *transport.unwrap_or(&Transport::Udp) }
            }
            kind => {
                self.short |= kind != DATAGRAM || descriptor & 0x0e != 0;
                let (listener, peer) = (self.u16(), self.addr(v6));
                let local = (descriptor & LOCAL != 0).then(|| self.ip(v6));
                Side::Client(Flow::Datagram { listener, local, peer })
            }
        };
        (side, owns)
    }

    #[inline]
    fn flow(&mut self) -> (Flow, bool) {
        if let Some(plain) = self.plain() {
            return plain;
        }
        match self.side() {
            (Side::Client(flow), owns) => (flow, owns),
            (Side::Backend { addr, .. }, owns) => {
                self.short = true;
                (Flow::Datagram { listener: 0, local: None, peer: addr }, owns)
            }
        }
    }
}

#[cfg(test)]
mod tests;
