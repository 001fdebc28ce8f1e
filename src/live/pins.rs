//! Pins of SPEC 7.1, per core: hash(Call-ID, From tag, source) -> target, 32 bytes each, for 32 s or 5 min.
//!
//! A retransmission, a CANCEL, an ACK and the retry after 401/407 look here, so that a table swap or a health change does not
//! send them elsewhere than their request; what else a pin may decide is `forward::decide`'s. Bounded, set-associative, no
//! allocation after `new`; a full set drops its oldest pin.
//!
//! A set keeps its pins newest first, so the oldest is the last, and the pin that a CANCEL looks for is met early.
//!
//! The low bits of a key say what was asked for (the Request-URI), the others by whom: a retransmission and a retry have
//! both equal; a CANCEL and an ACK find the newest pin of who asked, for the ACK of a 2xx names the PBX's Contact.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::Now;
use crate::wire::{Transport, token::FlowId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinTarget {
    /// A backend by address and transport.
    Backend { addr: SocketAddr, transport: Transport },
    /// A UDP client flow; `listener` is the index of the listener, `local` set for wildcard listeners.
    Datagram { local: Option<IpAddr>, peer: SocketAddr },
    /// A client's connection.
    Stream(FlowId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    pub target: PinTarget,
    /// Index of the listener by which it left.
    pub listener: u8,
    /// Low four bits of the version of the table that decided.
    pub table: u8,
    /// Eight bits of the hash of its transaction: a retransmission has them, a new transaction by chance only.
    pub transaction: u8,
}

const WAYS: usize = 8;

/// A stored pin. `rest`, from the low end: port 16 bits, expiry 16 (seconds of `mono_ms`, modulo: right for 9 hours, and
/// swept within minutes), transaction 8, aside 8, listener 8, form 4 (0: empty), table 4.
#[derive(Clone, Copy, Default)]
struct Slot {
    key: u64,
    /// IPv6; or the peer's IPv4 address in the first four bytes and its local one in the next four (0.0.0.0: none).
    address: [u8; 16],
    rest: u64,
}

const _: () = assert!(size_of::<Slot>() == 32);

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Set([Slot; WAYS]);

/// What does not fit into a slot: the local address and the scope of an IPv6 peer, shared by all pins that have them. A
/// machine has few of either.
#[derive(Clone, Copy)]
struct Aside {
    local: Option<IpAddr>,
    scope: u32,
    /// Pins that name it.
    uses: u32,
}

const ASIDES: usize = 255;
const WHAT_MASK: u64 = (1 << 24) - 1;
const EXPIRY_BITS: u32 = 16;
const EXPIRY_MASK: u64 = (1 << EXPIRY_BITS) - 1;
/// Of `Slot::rest`.
const TABLE_BITS: u64 = 15 << 60;
const TRANSACTION_BITS: u64 = 255 << 32;

pub struct Pins {
    sets: Box<[Set]>,
    /// Aside n+1 of a slot is the nth here; 0 stands for no local address and scope 0.
    asides: Box<[Aside]>,
    count: usize,
    /// The next set to sweep.
    hand: usize,
}

impl Pins {
    /// Room for `capacity` pins (rounded up to a power of two).
    pub fn new(capacity: usize) -> Pins {
        let sets = capacity.div_ceil(WAYS).max(1).next_power_of_two();
        Pins {
            sets: vec![Set::default(); sets].into_boxed_slice(),
            asides: vec![Aside { local: None, scope: 0, uses: 0 }; ASIDES].into_boxed_slice(),
            count: 0,
            hand: 0,
        }
    }

    /// Records or renews; one that is renewed with the same target keeps the table that chose it. True where a live pin had to
    /// go, or this one could not be kept.
    pub fn put(&mut self, key: u64, pin: Pin, seconds: u32, now: Now) -> bool {
        let place = self.place(key);
        let same = self.sets[place].0.iter().position(|slot| slot.holds(key));
        let Some(aside) = self.aside(pin.target) else {
            if let Some(way) = same {
                self.release(self.sets[place].0[way]);
                self.sets[place].0[way] = Slot::default();
            }
            return true;
        };
        let way = same
            .or_else(|| self.sets[place].0.iter().position(|slot| !slot.is_live(now)))
            .unwrap_or(WAYS - 1);
        let old = self.sets[place].0[way];
        let dropped = old.is_live(now) && same.is_none();
        self.release(old);
        let set = &mut self.sets[place].0;
        set.copy_within(..way, 1);
        set[0] = Slot::new(key, pin, aside, expiry(seconds, now));
        if same.is_some() && set[0].leads_as(&old) {
            set[0].rest = set[0].rest & !TABLE_BITS | old.rest & TABLE_BITS;
        }
        self.count += 1;
        dropped
    }

    /// Looks at `sets` further sets for expired pins: called on each tick, so that the gauge is true within a minute.
    pub fn sweep(&mut self, sets: usize, now: Now) {
        for _ in 0..sets.min(self.sets.len()) {
            let place = self.hand;
            self.hand = (place + 1) & (self.sets.len() - 1);
            for way in 0..WAYS {
                let slot = self.sets[place].0[way];
                if !slot.is_empty() && !slot.is_live(now) {
                    self.release(slot);
                    self.sets[place].0[way] = Slot::default();
                }
            }
        }
    }

    /// The key of a pin: a hash of who asks (Call-ID, From tag, source, method), and one of what is asked for.
    pub fn key(who: u64, what: u64) -> u64 {
        who & !WHAT_MASK | what & WHAT_MASK
    }

    /// The pin of just this request.
    pub fn find(&self, key: u64, now: Now) -> Option<Pin> {
        self.first(key, now, |slot| slot.holds(key))
    }

    /// The newest pin of who asks, whatever for.
    pub fn newest(&self, who: u64, now: Now) -> Option<Pin> {
        self.first(who, now, |slot| (slot.key ^ who) & !WHAT_MASK == 0)
    }

    fn first(&self, key: u64, now: Now, is_it: impl Fn(&Slot) -> bool) -> Option<Pin> {
        let slot = self.sets[self.place(key)].0.iter().find(|slot| is_it(slot) && slot.is_live(now))?;
        let (local, scope) = match slot.aside() {
            0 => (None, 0),
            n => (self.asides[n - 1].local, self.asides[n - 1].scope),
        };
        Some(slot.pin(local, scope))
    }

    /// Pins in use, counted as they come and go (expired ones are noticed when their place is looked at or swept).
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Pins that there is room for (gauge).
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// How many sets there are: for the pace of `sweep`.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    fn place(&self, key: u64) -> usize {
        // The high half: the low one often serves other tables.
        (key >> 32) as usize & (self.sets.len() - 1)
    }

    /// A slot is about to be written over.
    fn release(&mut self, slot: Slot) {
        if slot.is_empty() {
            return;
        }
        self.count -= 1;
        if let Some(n) = slot.aside().checked_sub(1) {
            self.asides[n].uses -= 1;
        }
    }

    /// Finds or makes the aside of a target. `None`: all 255 are in use by others.
    fn aside(&mut self, target: PinTarget) -> Option<u8> {
        let (local, addr) = match target {
            PinTarget::Backend { addr, .. } => (None, addr),
            PinTarget::Datagram { local, peer } => (local, peer),
            PinTarget::Stream(_) => return Some(0),
        };
        let scope = match addr {
            SocketAddr::V4(_) if local.is_none_or(|ip| ip.is_ipv4()) => return Some(0),
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        if local.is_none() && scope == 0 {
            return Some(0);
        }
        let same = |a: &Aside| a.uses > 0 && a.local == local && a.scope == scope;
        let n = self.asides.iter().position(same).or_else(|| self.asides.iter().position(|a| a.uses == 0))?;
        let uses = self.asides[n].uses + 1;
        self.asides[n] = Aside { local, scope, uses };
        Some(n as u8 + 1)
    }
}

fn pack(id: FlowId) -> [u8; 16] {
    let FlowId { router, boot, core, slot, generation } = id;
    let word = u128::from(slot) | u128::from(generation) << 32 | u128::from(boot) << 48;
    (word | u128::from(router) << 64 | u128::from(core) << 72).to_le_bytes()
}

fn unpack(address: &[u8; 16]) -> FlowId {
    let word = u128::from_le_bytes(*address);
    FlowId {
        router: (word >> 64) as u8,
        boot: (word >> 48) as u16,
        core: (word >> 72) as u8,
        slot: word as u32,
        generation: (word >> 32) as u16,
    }
}

fn expiry(seconds: u32, now: Now) -> u64 {
    now.mono_ms.div_ceil(1000).wrapping_add(u64::from(seconds.min(1 << (EXPIRY_BITS - 2)))) & EXPIRY_MASK
}

impl Slot {
    fn new(key: u64, pin: Pin, aside: u8, expiry: u64) -> Slot {
        let (form, local, addr) = match pin.target {
            PinTarget::Backend { addr, transport } => (1 + transport as u64, None, addr),
            PinTarget::Datagram { local, peer } => (6, local, peer),
            PinTarget::Stream(id) => {
                return Slot { address: pack(id), ..Slot::rest(key, 7 << 56, pin, expiry) };
            }
        };
        let mut address = [0; 16];
        let family = match addr.ip() {
            IpAddr::V4(ip) => {
                address[..4].copy_from_slice(&ip.octets());
                if let Some(IpAddr::V4(ip)) = local {
                    address[4..8].copy_from_slice(&ip.octets());
                }
                0
            }
            IpAddr::V6(ip) => {
                address = ip.octets();
                8
            }
        };
        let rest = u64::from(addr.port()) | u64::from(aside) << 40 | (form | family) << 56;
        Slot { address, ..Slot::rest(key, rest, pin, expiry) }
    }

    fn rest(key: u64, rest: u64, pin: Pin, expiry: u64) -> Slot {
        let Pin { listener, table, transaction, .. } = pin;
        let bits = u64::from(transaction) << 32 | u64::from(listener) << 48 | u64::from(table & 15) << 60;
        Slot { key, address: [0; 16], rest: rest | expiry << 16 | bits }
    }

    fn pin(&self, aside_local: Option<IpAddr>, scope: u32) -> Pin {
        let target = self.target(aside_local, scope);
        let (listener, table) = ((self.rest >> 48) as u8, (self.rest >> 60) as u8);
        Pin { target, listener, table, transaction: (self.rest >> 32) as u8 }
    }

    fn target(&self, aside_local: Option<IpAddr>, scope: u32) -> PinTarget {
        let form = self.form();
        if form == 7 {
            return PinTarget::Stream(unpack(&self.address));
        }
        let port = self.rest as u16;
        let four = |at: usize| {
            let a = &self.address[at..at + 4];
            Ipv4Addr::new(a[0], a[1], a[2], a[3])
        };
        let (addr, local) = if form & 8 == 0 {
            let local = Some(four(4)).filter(|ip| !ip.is_unspecified()).map(IpAddr::V4);
            (SocketAddr::from((four(0), port)), local.or(aside_local))
        } else {
            let ip = Ipv6Addr::from(self.address);
            (SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)), aside_local)
        };
        match form & 7 {
            6 => PinTarget::Datagram { local, peer: addr },
            n => PinTarget::Backend { addr, transport: Transport::ALL[n as usize - 1] },
        }
    }

    fn form(&self) -> u8 {
        (self.rest >> 56) as u8 & 15
    }

    fn aside(&self) -> usize {
        (self.rest >> 40) as usize & 0xff
    }

    fn is_empty(&self) -> bool {
        self.form() == 0
    }

    /// The same target and listener.
    fn leads_as(&self, other: &Slot) -> bool {
        let beside = EXPIRY_MASK << 16 | TABLE_BITS | TRANSACTION_BITS;
        self.address == other.address && (self.rest ^ other.rest) & !beside == 0
    }

    fn holds(&self, key: u64) -> bool {
        self.key == key && !self.is_empty()
    }

    fn is_live(&self, now: Now) -> bool {
        let left = (self.rest >> 16).wrapping_sub(now.mono_ms / 1000) & EXPIRY_MASK;
        !self.is_empty() && left != 0 && left < 1 << (EXPIRY_BITS - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1000, unix_s: seconds }
    }

    fn backend(n: u16) -> Pin {
        let addr = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 5060));
        let target = PinTarget::Backend { addr, transport: Transport::Udp };
        Pin { target, listener: 2, table: n as u8 & 15, transaction: !n as u8 }
    }

    fn client(local: Option<&str>, peer: &str) -> Pin {
        let local = local.map(|ip| ip.parse().expect("test address"));
        let peer = peer.parse().expect("test address");
        Pin { target: PinTarget::Datagram { local, peer }, listener: 255, table: 15, transaction: 255 }
    }

    #[test]
    fn every_form_of_target_comes_back_as_it_was() {
        let mut pins = Pins::new(64);
        let mut all = vec![
            client(None, "192.0.2.1:5060"),
            client(Some("198.51.100.9"), "192.0.2.1:65535"),
            client(Some("2001:db8::9"), "[2001:db8::1]:1"),
            client(None, "[2001:db8::1]:5060"),
            client(Some("fe80::1"), "[fe80::2%7]:5060"),
            client(None, "[fe80::2%8]:5060"),
            client(Some("::ffff:192.0.2.7"), "192.0.2.1:5060"),
        ];
        for transport in Transport::ALL {
            for addr in ["192.0.2.1:5060", "[2001:db8::5]:5061"] {
                let addr = addr.parse().expect("test address");
                let target = PinTarget::Backend { addr, transport };
                all.push(Pin { target, listener: 0, table: 0, transaction: 0 });
            }
        }
        for (key, pin) in all.iter().enumerate() {
            pins.put((key as u64) << 32, *pin, 32, at(5));
        }
        for (key, pin) in all.iter().enumerate() {
            assert_eq!(pins.find((key as u64) << 32, at(5)), Some(*pin));
        }
        assert_eq!(pins.asides.iter().filter(|a| a.uses > 0).count(), 4);
        pins.sweep(pins.sets(), at(100));
        assert!(pins.is_empty() && pins.asides.iter().all(|a| a.uses == 0));
    }

    #[test]
    fn an_ack_finds_the_newest_pin_of_who_asked_and_a_retry_only_its_own() {
        let mut pins = Pins::new(64);
        let (one, other, elsewhere) = (Pins::key(7 << 40, 1), Pins::key(7 << 40, 2), Pins::key(8 << 40, 1));
        pins.put(one, backend(1), 32, at(1));
        pins.put(other, backend(2), 32, at(2));
        pins.put(elsewhere, backend(3), 32, at(3));
        assert_eq!(pins.find(one, at(4)), Some(backend(1)));
        assert_eq!(pins.find(Pins::key(7 << 40, 3), at(4)), None);
        assert_eq!(pins.newest(7 << 40, at(4)), Some(backend(2)));
        assert_eq!(pins.newest(9 << 40, at(4)), None);
        assert_eq!(pins.newest(7 << 40, at(60)), None);
    }

    /// A retransmission after a swap is no choice of the new table.
    #[test]
    fn a_pin_keeps_the_table_that_chose_its_target() {
        let mut pins = Pins::new(8);
        let renewed = |n, table, transaction| Pin { table, transaction, ..backend(n) };
        pins.put(1, renewed(1, 3, 7), 32, at(1));
        pins.put(1, renewed(1, 4, 8), 32, at(2));
        assert_eq!(pins.find(1, at(3)), Some(renewed(1, 3, 8)));
        pins.put(1, renewed(2, 4, 8), 32, at(3));
        assert_eq!(pins.find(1, at(4)), Some(renewed(2, 4, 8)));
    }

    #[test]
    fn a_pin_lives_its_seconds_and_is_counted_until_swept() {
        let mut pins = Pins::new(8);
        let now = Now { mono_ms: 1_500, unix_s: 0 };
        assert!(!pins.put(1, backend(1), 32, now));
        assert!(pins.find(1, Now { mono_ms: 33_500, unix_s: 0 }).is_some());
        assert!(pins.find(1, at(34)).is_none());
        assert_eq!(pins.len(), 1);
        pins.sweep(1, at(34));
        assert_eq!(pins.len(), 0);
        // The 16 bits of the expiry wrap after 18 hours.
        let late = (1 << EXPIRY_BITS) - 3;
        pins.put(2, backend(2), 300, at(late));
        assert!(pins.find(2, at(late + 299)).is_some() && pins.find(2, at(late + 300)).is_none());
    }

    #[test]
    fn a_full_set_drops_its_oldest_and_prefers_the_expired() {
        let mut pins = Pins::new(8);
        for key in 0..8 {
            assert!(!pins.put(key, backend(key as u16), if key == 5 { 1 } else { 300 }, at(0)));
        }
        assert!(!pins.put(8, backend(8), 300, at(2)), "the place of an expired pin");
        assert!(!pins.put(0, backend(9), 300, at(2)), "renewed: now among the youngest");
        assert!(pins.put(9, backend(9), 300, at(2)));
        let kept: Vec<u64> = (0..10).filter(|key| pins.find(*key, at(2)).is_some()).collect();
        assert_eq!(kept, [0, 2, 3, 4, 6, 7, 8, 9]);
        assert_eq!(pins.find(0, at(2)), Some(backend(9)));
        assert_eq!(pins.len(), 8);
    }

    #[test]
    fn more_local_addresses_than_fit_cost_a_pin_not_a_wrong_address() {
        let mut pins = Pins::new(1024);
        let mut lost = 0;
        for n in 0..300u64 {
            let pin = client(Some(&format!("2001:db8::{n:x}")), "[2001:db8::1]:5060");
            lost += u32::from(pins.put(n << 32, pin, 32, at(0)));
            assert!(pins.find(n << 32, at(0)).is_none_or(|found| found == pin));
        }
        assert_eq!(lost, 45);
        assert_eq!(pins.len(), 255);
    }

    #[test]
    fn capacity_is_rounded_up_to_a_power_of_two() {
        for (asked, made) in [(0, 8), (1, 8), (9, 16), (1000, 1024), (1025, 2048)] {
            assert_eq!(Pins::new(asked).capacity(), made);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64, u16, u32),
        Find(u64),
        Sweep(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few keys, all high bits: sets fill and renewals happen.
        let key = (0u64..64).prop_map(|n| n << 30);
        let step = prop_oneof![
            6 => (key.clone(), any::<u16>(), prop_oneof![Just(32u32), Just(300)]).prop_map(|(k, b, s)| Step::Put(k, b, s)),
            3 => key.prop_map(Step::Find),
            1 => (0usize..4).prop_map(Step::Sweep),
            2 => (0u64..40).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..400)
    }

    proptest! {
        /// The model is an unbounded map with times; the only difference allowed is a pin that `put` said it dropped, and
        /// it must have been the oldest of its set.
        #[test]
        fn pins_agree_with_a_model(steps in steps(), capacity in 1usize..64) {
            let mut pins = Pins::new(capacity);
            let mut model: HashMap<u64, (Pin, u64, usize)> = HashMap::new();
            let mut clock = 1;
            for (turn, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Wait(seconds) => clock += seconds,
                    Step::Sweep(sets) => pins.sweep(sets, at(clock)),
                    Step::Find(key) => {
                        let expected = model.get(&key).filter(|(_, ends, _)| *ends > clock).map(|(pin, _, _)| *pin);
                        prop_assert_eq!(pins.find(key, at(clock)), expected);
                    }
                    Step::Put(key, n, seconds) => {
                        let dropped = pins.put(key, backend(n), seconds, at(clock));
                        model.insert(key, (backend(n), clock + u64::from(seconds), turn));
                        if dropped {
                            let set = pins.place(key);
                            let oldest = model
                                .iter()
                                .filter(|(k, (_, ends, _))| pins.place(**k) == set && *ends > clock)
                                .min_by_key(|(_, (_, _, turn))| *turn)
                                .map(|(k, _)| *k)
                                .expect("a live pin was dropped");
                            prop_assert_ne!(oldest, key);
                            model.remove(&oldest);
                        }
                        prop_assert_eq!(pins.find(key, at(clock)), Some(backend(n)));
                    }
                }
                let live = model.values().filter(|(_, ends, _)| *ends > clock).count();
                prop_assert!(pins.len() >= live && pins.len() <= pins.capacity());
                let held = pins.sets.iter().flat_map(|s| s.0).filter(|s| !s.is_empty()).count();
                prop_assert_eq!(pins.len(), held);
            }
        }
    }
}
