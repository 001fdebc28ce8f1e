//! The stream connections of all cores, as every core may ask for them: is a FlowId's connection open, since when is it
//! closed, who is at its other end (SPEC 3.2, 3.5, 9.7, 11.5).
//!
//! Each core writes its own slots, when a connection opens and closes and now and then; any core reads one word for a
//! request toward a stream flow. Nothing is asked for a datagram. How many connections a source may have stands in
//! `sources`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use ahash::HashMap;
use parking_lot::Mutex;

use super::Now;
use crate::wire::token::FlowId;

/// Slots that are made at a time: a core pays for the connections that it has had, not for those that it may have.
const CHUNK: usize = 2048;
/// `FlowId::slot` has 24 bits.
pub const MOST_SLOTS: usize = 1 << 24;

const OPEN: u64 = 1 << 47;
const MS: u64 = OPEN - 1;

/// What a FlowId's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    Open,
    /// Since when (`mono_ms`): exactly, or where its slot has a new owner, since that one's beginning at the latest.
    Closed(u64),
    /// So long ago that nobody remembers.
    Forgotten,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct About {
    /// Index of the listener in the settings' order.
    pub listener: u8,
    /// We made it, to a backend.
    pub dialed: bool,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// He was named by the PROXY protocol.
    pub proxied: bool,
    /// `mono_ms`
    pub opened_ms: u64,
}

/// One open connection, for people.
#[derive(Clone, Debug)]
pub struct Listed {
    pub core: usize,
    pub slot: u32,
    pub generation: u16,
    pub about: About,
    /// Who called for the peer, and said so by the PROXY protocol.
    pub proxy: Option<SocketAddr>,
    /// Since the last bytes came, in seconds.
    pub idle_s: u64,
    /// Bytes that wait for the peer to read.
    pub queued: u32,
}

#[derive(Default)]
struct Slot {
    /// Generation 16 bits, open 1 bit, since when 47 bits (`mono_ms`).
    word: AtomicU64,
    /// When bytes last came, in seconds of `mono_ms`.
    heard_s: AtomicU32,
    queued: AtomicU32,
    /// The address of ours, IPv4 as mapped. Read beside the word: where the slot changes hands meanwhile, so does the word.
    local: [AtomicU64; 2],
    about: Mutex<Option<About>>,
}

type Chunk = Box<[Slot]>;

/// The slots of all cores.
pub struct Connections {
    cores: Box<[Box<[OnceLock<Chunk>]>]>,
    /// Open ones of all cores, dialed ones included.
    open: AtomicUsize,
    /// By core and slot, of those that a proxy made: beside the slots, so that others do not pay for it.
    proxies: Mutex<HashMap<(usize, u32), SocketAddr>>,
}

impl Connections {
    pub fn new(cores: usize) -> Connections {
        let chunks = || (0..MOST_SLOTS / CHUNK).map(|_| OnceLock::new()).collect();
        Connections {
            cores: (0..cores.max(1)).map(|_| chunks()).collect(),
            open: AtomicUsize::new(0),
            proxies: Mutex::default(),
        }
    }

    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    fn slot(&self, core: usize, slot: u32) -> Option<&Slot> {
        let (chunk, at) = (slot as usize / CHUNK, slot as usize % CHUNK);
        self.cores.get(core)?.get(chunk)?.get()?.get(at)
    }

    /// Tells of a new connection in this slot; by its core only.
    pub fn open(&self, core: usize, slot: u32, generation: u16, about: About) {
        let (chunk, at) = (slot as usize / CHUNK, slot as usize % CHUNK);
        let Some(chunk) = self.cores.get(core).and_then(|chunks| chunks.get(chunk)) else { return };
        let slot = &chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect())[at];
        let since = about.opened_ms & MS;
        slot.heard_s.store((about.opened_ms / 1000) as u32, Ordering::Relaxed);
        slot.queued.store(0, Ordering::Relaxed);
        let local = match about.local.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        slot.local[0].store((local >> 64) as u64, Ordering::Relaxed);
        slot.local[1].store(local as u64, Ordering::Relaxed);
        *slot.about.lock() = Some(about);
        slot.word.store(u64::from(generation) << 48 | OPEN | since, Ordering::Release);
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells of its end; by its core only.
    pub fn close(&self, core: usize, number: u32, generation: u16, now: Now) {
        let Some(slot) = self.slot(core, number) else { return };
        slot.word.store(u64::from(generation) << 48 | now.mono_ms & MS, Ordering::Release);
        let about = slot.about.lock().take();
        if about.is_some_and(|about| about.proxied) {
            self.proxies.lock().remove(&(core, number));
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A proxy has said for whom it calls; by its core only.
    pub fn introduce(&self, core: usize, number: u32, client: SocketAddr) {
        let Some(slot) = self.slot(core, number) else { return };
        if let Some(about) = slot.about.lock().as_mut() {
            let proxy = std::mem::replace(&mut about.peer, client);
            about.proxied = true;
            self.proxies.lock().insert((core, number), proxy);
        }
    }

    /// Notes for people when bytes last came; by its core only.
    pub fn note_heard(&self, core: usize, slot: u32, heard_ms: u64) {
        if let Some(slot) = self.slot(core, slot) {
            slot.heard_s.store((heard_ms / 1000) as u32, Ordering::Relaxed);
        }
    }

    /// Notes for people how much waits for the peer; by its core only.
    pub fn note_queued(&self, core: usize, slot: u32, queued: usize) {
        if let Some(slot) = self.slot(core, slot) {
            slot.queued.store(u32::try_from(queued).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }

    /// Is this connection open? The id must be of this router and this boot.
    pub fn find(&self, id: FlowId) -> Alive {
        let Some(slot) = self.slot(id.core.into(), id.slot) else { return Alive::Forgotten };
        let word = slot.word.load(Ordering::Acquire);
        let (generation, since) = ((word >> 48) as u16, word & MS);
        if generation == id.generation {
            if word & OPEN != 0 { Alive::Open } else { Alive::Closed(since) }
        } else if generation.wrapping_sub(1) == id.generation && word & OPEN != 0 {
            Alive::Closed(since)
        } else {
            Alive::Forgotten
        }
    }

    /// Who is at the other end of an open connection. Takes a lock: not for every message.
    pub fn about(&self, id: FlowId) -> Option<About> {
        if self.find(id) != Alive::Open {
            return None;
        }
        self.slot(id.core.into(), id.slot)?.about.lock().clone()
    }

    /// The address of ours to which an open connection leads, for listeners that are bound to a wildcard.
    pub fn local(&self, id: FlowId) -> Option<IpAddr> {
        let slot = self.slot(id.core.into(), id.slot)?;
        let half = |at: usize| u128::from(slot.local[at].load(Ordering::Relaxed));
        let local = IpAddr::from(Ipv6Addr::from_bits(half(0) << 64 | half(1))).to_canonical();
        (self.find(id) == Alive::Open).then_some(local)
    }

    /// Open connections (gauge).
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All open connections, by core and slot.
    pub fn list(&self, now: Now) -> Vec<Listed> {
        let mut list = Vec::with_capacity(self.len());
        for (core, chunks) in self.cores.iter().enumerate() {
            for (number, chunk) in chunks.iter().enumerate().filter_map(|(n, c)| Some((n, c.get()?))) {
                for (at, slot) in chunk.iter().enumerate() {
                    let Some(about) = slot.about.lock().clone() else { continue };
                    let heard_s = u64::from(slot.heard_s.load(Ordering::Relaxed));
                    let place = (number * CHUNK + at) as u32;
                    let proxy = about.proxied.then(|| self.proxies.lock().get(&(core, place)).copied());
                    list.push(Listed {
                        core,
                        slot: place,
                        proxy: proxy.flatten(),
                        generation: (slot.word.load(Ordering::Acquire) >> 48) as u16,
                        about,
                        idle_s: (now.mono_ms / 1000).saturating_sub(heard_s),
                        queued: slot.queued.load(Ordering::Relaxed),
                    });
                }
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: 0 }
    }

    fn id(slot: u32, generation: u16) -> FlowId {
        FlowId { router: 0, boot: 1, core: 1, slot, generation }
    }

    fn about(opened_ms: u64) -> About {
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        About {
            listener: 0,
            dialed: false,
            local: address(5060),
            peer: address(40_000),
            proxied: false,
            opened_ms,
        }
    }

    /// SPEC 3.2: a slot only with its generation; 3.5: grace counts from the close that we saw.
    #[test]
    fn a_slot_counts_with_its_generation_only() {
        let all = Connections::new(2);
        assert_eq!(all.find(id(5, 0)), Alive::Forgotten);
        all.open(1, 5, 7, about(1_000));
        assert_eq!((all.find(id(5, 7)), all.find(id(5, 6))), (Alive::Open, Alive::Closed(1_000)));
        assert_eq!((all.find(id(5, 8)), all.find(id(6, 7))), (Alive::Forgotten, Alive::Forgotten));
        assert_eq!(all.find(FlowId { core: 0, ..id(5, 7) }), Alive::Forgotten);
        assert_eq!(all.find(FlowId { core: 9, ..id(5, 7) }), Alive::Forgotten);
        all.close(1, 5, 7, at(3_000));
        assert_eq!((all.find(id(5, 7)), all.find(id(5, 6))), (Alive::Closed(3_000), Alive::Forgotten));
        all.open(1, 5, 8, about(4_000));
        assert_eq!((all.find(id(5, 7)), all.find(id(5, 8))), (Alive::Closed(4_000), Alive::Open));
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn the_list_has_what_is_open() {
        let all = Connections::new(2);
        all.open(1, 3_000, 1, about(1_000));
        all.open(0, 0, 9, about(2_000));
        all.note_heard(1, 3_000, 5_500);
        all.note_queued(1, 3_000, 77);
        let (client, proxy) = (SocketAddr::from(([198, 51, 100, 7], 5)), about(0).peer);
        all.introduce(1, 3_000, client);
        all.close(0, 0, 9, at(2_500));
        let list = all.list(at(9_000));
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].core, list[0].slot, list[0].idle_s, list[0].queued), (1, 3_000, 4, 77));
        assert_eq!((list[0].about.peer, list[0].proxy), (client, Some(proxy)));
        all.close(1, 3_000, 1, at(9_500));
        assert!(all.is_empty() && all.proxies.lock().is_empty());
    }
}
