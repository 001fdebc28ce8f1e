//! Who is on a stream connection (SPEC 9.9): the AORs whose REGISTER, SUBSCRIBE or PUBLISH came by it and met with a 2xx.
//!
//! `forward` sees a user in his request and confirms him by its 2xx; when the connection ends it takes those who are still
//! there. A datagram flow has no end that could be seen: of those only registrations are remembered, for who comes back by
//! one. Bounded for each flow and in all; what is beyond it is not remembered, and counted. A refresh allocates nothing.
//! Time comes in.
//!
//! A connection's users stand in the shard of its id, the connections of an AOR in the shard of that; never two locks at once.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use ahash::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Now;
use crate::wire::{Transport, token::FlowId};

/// How long one who was seen waits for his 2xx: Timer F.
const PENDING_MS: u64 = 32_000;
/// What one is on a connection for, at most; beyond it the newest is not remembered.
const MOST_STAYS: usize = 64;
const LONGEST_AOR: usize = 256;
const LONGEST_CONTACT: usize = 512;
const SHARDS: usize = 64;
/// Slots of connections are below it.
const DATAGRAM: u32 = 1 << 31;

/// What keeps a user on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Registration,
    /// By a hash of its Call-ID.
    Subscription(u32),
    /// By the publication's key.
    Publication(u32),
}

/// What a request says of its user: the canonical AOR and its URI as written, his Contact's URI (empty where there is none), a hash of its
/// `+sip.instance` (0: none).
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub aor: &'a [u8],
    pub uri: &'a [u8],
    pub contact: &'a [u8],
    pub instance: u64,
    /// It is a REGISTER, whose Contact counts before others'.
    pub registers: bool,
}

/// One user of a connection.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// Canonical: the key.
    aor: Vec<u8>,
    /// The AOR as a URI, as written.
    pub uri: Vec<u8>,
    pub contact: Vec<u8>,
    instance: u64,
    /// The backend that holds the registration, where he has one: its listed address.
    pub owner: Option<(SocketAddr, Transport)>,
    seen_ms: u64,
    /// Since when there is something that he is here for; 0: there is nothing.
    pub since_ms: u64,
    /// Each with its end (`mono_ms`).
    stays: SmallVec<[(Stay, u64); 2]>,
}

impl User {
    fn is_live(&self, now: Now) -> bool {
        self.stays.iter().any(|(_, ends)| *ends > now.mono_ms)
    }

    /// Neither confirmed nor about to be.
    fn is_over(&self, now: Now) -> bool {
        !self.is_live(now) && self.seen_ms + PENDING_MS <= now.mono_ms
    }

    pub fn is_registered(&self) -> bool {
        self.stays.iter().any(|(stay, _)| *stay == Stay::Registration)
    }
}

/// Users by connection; connections by a hash of the AOR.
type OnFlows = HashMap<FlowId, SmallVec<[User; 1]>>;
type Places = HashMap<u64, SmallVec<[FlowId; 2]>>;

/// The users of all connections.
pub struct Users {
    flows: Box<[Mutex<OnFlows>]>,
    places: Box<[Mutex<Places>]>,
    seeds: ahash::RandomState,
    per_connection: usize,
    capacity: usize,
    /// Shards that the sweep has seen.
    swept: AtomicUsize,
    count: AtomicUsize,
    /// Of `count` those on datagram flows.
    datagrams: AtomicUsize,
}

impl Users {
    /// At most about `capacity` in all, `per_connection` on one connection.
    pub fn new(capacity: usize, per_connection: usize) -> Users {
        Users {
            flows: (0..SHARDS).map(|_| Mutex::default()).collect(),
            places: (0..SHARDS).map(|_| Mutex::default()).collect(),
            seeds: ahash::RandomState::new(),
            per_connection,
            capacity,
            swept: Default::default(),
            count: Default::default(),
            datagrams: Default::default(),
        }
    }

    /// By what the users of a datagram flow are remembered: no connection has such an id.
    pub fn datagram(&self, listener: u16, peer: SocketAddr) -> FlowId {
        let [a, b, c, d, e, f, g, h] = self.seeds.hash_one((listener, peer)).to_le_bytes();
        FlowId {
            router: a,
            boot: u16::from_le_bytes([b, c]),
            core: d,
            slot: DATAGRAM | u32::from_le_bytes([e, f, 0, 0]),
            generation: u16::from_le_bytes([g, h]),
        }
    }

    /// A request of a user came by this connection. False where there is no room for him.
    pub fn see(&self, id: FlowId, seen: &Seen<'_>, now: Now) -> bool {
        if seen.aor.len().max(seen.uri.len()) > LONGEST_AOR || seen.contact.len() > LONGEST_CONTACT {
            return false;
        }
        let mut shard = self.flow_shard(id).lock();
        let users = shard.entry(id).or_default();
        if let Some(user) = users.iter_mut().find(|user| user.aor == seen.aor) {
            user.seen_ms = now.mono_ms;
            if !seen.contact.is_empty()
                && (user.contact.is_empty() || seen.registers)
                && user.contact != seen.contact
            {
                user.contact.clear();
                user.contact.extend_from_slice(seen.contact);
            }
            if seen.instance != 0 {
                user.instance = seen.instance;
            }
            return true;
        }
        let mut ended = Vec::new();
        if users.len() >= self.per_connection {
            self.prune(id, users, now, &mut ended);
        }
        // They leave half for connections.
        let datagrams_full = is_datagram(id) && self.datagrams.load(Relaxed) >= self.capacity / 2;
        let room =
            users.len() < self.per_connection && self.count.load(Relaxed) < self.capacity && !datagrams_full;
        if room {
            users.push(User {
                aor: seen.aor.to_vec(),
                uri: seen.uri.to_vec(),
                contact: seen.contact.to_vec(),
                instance: seen.instance,
                seen_ms: now.mono_ms,
                ..User::default()
            });
            self.count.fetch_add(1, Relaxed);
            self.datagrams.fetch_add(is_datagram(id).into(), Relaxed);
        } else if users.is_empty() {
            shard.remove(&id);
        }
        drop(shard);
        ended.iter().for_each(|aor| self.unplace(aor, id));
        room
    }

    /// A 2xx to a request that was seen grants so many seconds. 0 ends what it was for, and a registration's end ends all.
    pub fn confirm(
        &self,
        id: FlowId,
        aor: &[u8],
        (stay, seconds): (Stay, u32),
        owner: Option<(SocketAddr, Transport)>,
        now: Now,
    ) {
        let first = {
            let mut shard = self.flow_shard(id).lock();
            let Some(users) = shard.get_mut(&id) else { return };
            let Some(at) = users.iter().position(|user| user.aor == aor) else { return };
            let user = &mut users[at];
            user.stays.retain(|(of, ends)| *of == stay || *ends > now.mono_ms);
            let held = user.stays.iter().position(|(of, _)| *of == stay);
            let ends = now.mono_ms.saturating_add(u64::from(seconds) * 1000);
            match held {
                _ if seconds == 0 && stay == Stay::Registration => user.stays.clear(),
                Some(held) if seconds == 0 => drop(user.stays.swap_remove(held)),
                Some(held) => user.stays[held].1 = ends,
                None if seconds > 0 && user.stays.len() < MOST_STAYS => user.stays.push((stay, ends)),
                None => {}
            }
            if stay == Stay::Registration {
                user.owner = owner;
            }
            if user.stays.is_empty() {
                // Another request of his may be under way: the sweep forgets him.
                user.since_ms = 0;
                return;
            }
            let first = user.since_ms == 0;
            if first {
                user.since_ms = now.mono_ms.max(1);
            }
            first
        };
        if first {
            let key = self.seeds.hash_one(aor);
            let mut shard = self.place_shard(key).lock();
            let places = shard.entry(key).or_default();
            if !places.contains(&id) {
                places.push(id);
            }
            drop(shard);
            // Another core may have closed it meanwhile.
            if !self.flow_shard(id).lock().contains_key(&id) {
                self.unplace(aor, id);
            }
        }
    }

    /// A registration ended cleanly, from whatever connection: nobody with this Contact is there any more; `None`: nobody of
    /// this AOR.
    pub fn depart(&self, aor: &[u8], contact: Option<&[u8]>) {
        for id in self.places_of(aor) {
            let mut shard = self.flow_shard(id).lock();
            let Some(users) = shard.get_mut(&id) else { continue };
            let his =
                |user: &&mut User| user.aor == aor && contact.is_none_or(|contact| user.contact == contact);
            for user in users.iter_mut().filter(his) {
                user.stays.clear();
                user.since_ms = 0;
            }
        }
    }

    /// The connection has ended: gives those who were on it still.
    pub fn close(&self, id: FlowId, now: Now) -> Vec<User> {
        let Some(users) = self.flow_shard(id).lock().remove(&id) else { return Vec::new() };
        self.count.fetch_sub(users.len(), Relaxed);
        for user in &users {
            self.unplace(&user.aor, id);
        }
        users.into_iter().filter(|user| user.is_live(now)).collect()
    }

    /// Is this user, whose connection `id` ended, on a newer one? Where both say which instance they are (RFC 5626) that is
    /// one on which the same began later. Else it is one on which he began later with the same Contact, which is the same
    /// binding (RFC 3261 10.2.4), or after he was last heard on the other (`heard_ms`).
    pub fn is_back(&self, user: &User, id: FlowId, heard_ms: u64, now: Now) -> bool {
        self.places_of(&user.aor).into_iter().filter(|place| *place != id).any(|place| {
            let shard = self.flow_shard(place).lock();
            let there = shard.get(&place).and_then(|users| users.iter().find(|other| other.aor == user.aor));
            there.is_some_and(|other| {
                let named = other.instance != 0 && user.instance != 0;
                let same = if named {
                    other.instance == user.instance
                } else {
                    // Who opens the new connection before he closes the old is heard on that once more.
                    !user.contact.is_empty() && other.contact == user.contact
                };
                let since_ms = if same { user.since_ms } else { heard_ms };
                (same || !named) && other.since_ms >= since_ms && other.is_live(now)
            })
        })
    }

    /// The AORs of those who are on a connection, for people.
    pub fn list(&self, id: FlowId, now: Now) -> Vec<String> {
        let shard = self.flow_shard(id).lock();
        let users = shard.get(&id).into_iter().flatten().filter(|user| user.is_live(now));
        users.map(|user| user.uri.escape_ascii().to_string()).collect()
    }

    /// Forgets whose time is over, a part of all with each call; called every second by control, not by the path.
    pub fn sweep(&self, now: Now) {
        let at = self.swept.fetch_add(1, Relaxed) % SHARDS;
        let mut ended: Vec<(Vec<u8>, FlowId)> = Vec::new();
        self.flows[at].lock().retain(|id, users| {
            let mut aors = Vec::new();
            self.prune(*id, users, now, &mut aors);
            ended.extend(aors.into_iter().map(|aor| (aor, *id)));
            !users.is_empty()
        });
        for (aor, id) in ended {
            self.unplace(&aor, id);
        }
    }

    /// Takes those out whose time is over; gives the AORs that have a place.
    fn prune(&self, id: FlowId, users: &mut SmallVec<[User; 1]>, now: Now, ended: &mut Vec<Vec<u8>>) {
        let before = users.len();
        users.retain(|user| {
            let over = user.is_over(now);
            if over {
                ended.push(std::mem::take(&mut user.aor));
            }
            !over
        });
        self.count.fetch_sub(before - users.len(), Relaxed);
        if is_datagram(id) {
            self.datagrams.fetch_sub(before - users.len(), Relaxed);
        }
    }

    /// Users that are remembered (gauge).
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn flow_shard(&self, id: FlowId) -> &Mutex<OnFlows> {
        &self.flows[self.seeds.hash_one(id) as usize % SHARDS]
    }

    fn place_shard(&self, key: u64) -> &Mutex<Places> {
        &self.places[key as usize % SHARDS]
    }

    fn places_of(&self, aor: &[u8]) -> SmallVec<[FlowId; 2]> {
        let key = self.seeds.hash_one(aor);
        self.place_shard(key).lock().get(&key).cloned().unwrap_or_default()
    }

    fn unplace(&self, aor: &[u8], id: FlowId) {
        let key = self.seeds.hash_one(aor);
        let mut shard = self.place_shard(key).lock();
        let Some(places) = shard.get_mut(&key) else { return };
        places.retain(|place| *place != id);
        if places.is_empty() {
            shard.remove(&key);
        }
    }
}

fn is_datagram(id: FlowId) -> bool {
    id.slot & DATAGRAM != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1000, unix_s: seconds }
    }

    fn id(slot: u32) -> FlowId {
        FlowId { router: 0, boot: 1, core: 0, slot, generation: 1 }
    }

    fn seen<'a>(aor: &'a str, contact: &'a str, instance: u64) -> Seen<'a> {
        Seen {
            aor: aor.as_bytes(),
            uri: aor.as_bytes(),
            contact: contact.as_bytes(),
            instance,
            registers: true,
        }
    }

    fn register(users: &Users, slot: u32, who: &Seen<'_>, seconds: u32, now: Now) {
        assert!(users.see(id(slot), who, now));
        users.confirm(id(slot), who.aor, (Stay::Registration, seconds), None, now);
    }

    fn aors(gone: &[User]) -> Vec<&[u8]> {
        gone.iter().map(|user| &user.aor[..]).collect()
    }

    #[test]
    fn who_was_confirmed_and_has_not_left_is_there_at_the_end() {
        let users = Users::new(100, 4);
        register(&users, 1, &seen("alice@a", "sip:alice@1", 0), 60, at(1));
        register(&users, 1, &seen("bob@a", "sip:bob@1", 0), 60, at(1));
        register(&users, 1, &seen("bob@a", "sip:bob@1", 0), 0, at(2));
        assert!(users.see(id(1), &seen("carol@a", "sip:carol@1", 0), at(2)), "never confirmed");
        register(&users, 1, &seen("dan@a", "sip:dan@1", 0), 5, at(2));
        assert_eq!(users.list(id(1), at(3)), ["alice@a", "dan@a"]);
        assert_eq!(aors(&users.close(id(1), at(20))), [b"alice@a"]);
        assert!(users.is_empty() && users.close(id(1), at(20)).is_empty());
        assert!(users.places.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn subscriptions_count_one_by_one_and_a_deregistration_ends_them_all() {
        let users = Users::new(100, 4);
        let alice = seen("alice@a", "sip:alice@1", 0);
        let stay = |stay, seconds| users.confirm(id(1), alice.aor, (stay, seconds), None, at(1));
        assert!(users.see(id(1), &alice, at(1)));
        stay(Stay::Subscription(1), 60);
        stay(Stay::Subscription(2), 60);
        stay(Stay::Publication(1), 60);
        stay(Stay::Subscription(1), 0);
        assert_eq!(users.list(id(1), at(2)), ["alice@a"]);
        stay(Stay::Publication(1), 0);
        stay(Stay::Subscription(2), 0);
        assert!(users.list(id(1), at(2)).is_empty());
        stay(Stay::Subscription(2), 60);
        assert_eq!(users.list(id(1), at(2)), ["alice@a"], "who was under way when the others ended");
        stay(Stay::Registration, 60);
        stay(Stay::Registration, 0);
        assert!(users.close(id(1), at(2)).is_empty());
    }

    #[test]
    fn a_clean_end_from_another_connection_counts() {
        let users = Users::new(100, 4);
        register(&users, 1, &seen("alice@a", "sip:alice@1", 0), 60, at(1));
        register(&users, 2, &seen("alice@a", "sip:alice@2", 0), 60, at(1));
        users.depart(b"alice@a", Some(b"sip:alice@1"));
        assert_eq!((users.list(id(1), at(2)).len(), users.list(id(2), at(2)).len()), (0, 1));
        users.depart(b"alice@a", None);
        assert!(users.list(id(2), at(2)).is_empty());
        (0..SHARDS).for_each(|_| users.sweep(at(100)));
        assert!(users.is_empty());
        assert!(users.places.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn back_is_who_began_on_another_after_he_was_last_heard() {
        let users = Users::new(100, 4);
        let alice = seen("alice@a", "sip:alice@1", 0);
        register(&users, 1, &alice, 600, at(1));
        register(&users, 2, &seen("alice@a", "sip:alice@2", 0), 600, at(50));
        let gone = users.close(id(1), at(100));
        assert!(!users.is_back(&gone[0], id(1), at(90).mono_ms, at(100)), "another phone of hers");
        assert!(users.is_back(&gone[0], id(1), at(40).mono_ms, at(100)), "the same phone, by all we know");
        assert!(!users.is_back(&gone[0], id(1), at(40).mono_ms, at(5_000)), "which has expired");

        register(&users, 3, &seen("bob@a", "sip:bob@1", 7), 600, at(1));
        register(&users, 4, &seen("bob@a", "sip:bob@1", 8), 600, at(50));
        let gone = users.close(id(3), at(100));
        assert!(!users.is_back(&gone[0], id(3), at(40).mono_ms, at(100)), "another instance");
        register(&users, 5, &seen("bob@a", "sip:bob@1", 7), 600, at(60));
        assert!(users.is_back(&gone[0], id(3), at(90).mono_ms, at(100)), "the same instance");
    }

    /// What registers by datagrams leaves half of the room to connections, and gives its own back.
    #[test]
    fn datagram_flows_have_half_of_the_room() {
        let users = Users::new(4, 4);
        let flow = |port: u16| users.datagram(1, SocketAddr::from(([192, 0, 2, 1], port)));
        assert!(flow(1) == flow(1) && flow(1) != flow(2) && is_datagram(flow(1)) && !is_datagram(id(1)));
        let alice = seen("alice@a", "sip:alice@1", 0);
        for (port, room) in [(1, true), (2, true), (3, false), (1, true)] {
            assert_eq!(users.see(flow(port), &alice, at(1)), room, "{port}");
        }
        assert!(users.see(id(1), &alice, at(1)) && users.see(id(2), &alice, at(1)));
        (0..SHARDS).for_each(|_| users.sweep(at(100)));
        assert!(users.is_empty() && users.datagrams.load(Relaxed) == 0);
    }

    /// RFC 3261 10.2.4: the same Contact is the same binding, which a newer connection has taken over.
    #[test]
    fn back_is_who_registered_the_same_contact_before_the_old_connection_was_heard_last() {
        let users = Users::new(100, 4);
        register(&users, 1, &seen("alice@a", "sip:alice@1", 0), 600, at(1));
        register(&users, 2, &seen("alice@a", "sip:alice@2", 0), 600, at(50));
        register(&users, 3, &seen("alice@a", "sip:alice@1", 7), 600, at(60));
        let gone = users.close(id(1), at(100));
        assert!(users.is_back(&gone[0], id(1), at(90).mono_ms, at(100)), "make before break");
        let gone = users.close(id(2), at(100));
        assert!(!users.is_back(&gone[0], id(2), at(90).mono_ms, at(100)), "another phone of hers");
        register(&users, 4, &seen("alice@a", "sip:alice@1", 0), 600, at(70));
        let gone = users.close(id(4), at(100));
        assert!(!users.is_back(&gone[0], id(4), at(90).mono_ms, at(100)), "the other is older");

        let subscriber = Seen { registers: false, ..seen("bob@a", "", 0) };
        for (slot, second) in [(5, 1), (6, 50)] {
            assert!(users.see(id(slot), &subscriber, at(second)));
            users.confirm(id(slot), subscriber.aor, (Stay::Subscription(1), 600), None, at(second));
        }
        let gone = users.close(id(5), at(100));
        assert!(!users.is_back(&gone[0], id(5), at(90).mono_ms, at(100)), "no Contact is nobody's");
    }

    #[test]
    fn bounded_for_each_connection_and_in_all() {
        let users = Users::new(3, 2);
        for (slot, name) in [(1, "a"), (1, "b"), (2, "c")] {
            assert!(users.see(id(slot), &seen(name, "", 0), at(1)));
        }
        assert!(!users.see(id(1), &seen("d", "", 0), at(1)) && !users.see(id(3), &seen("d", "", 0), at(1)));
        assert!(!users.see(id(3), &seen(&"x".repeat(300), "", 0), at(1)));
        assert_eq!(users.len(), 3);
        assert!(users.see(id(1), &seen("d", "", 0), at(60)), "those before were never confirmed");
        for _ in 0..SHARDS {
            users.sweep(at(100));
        }
        assert_eq!(users.len(), 0);
        assert!(users.flows.iter().all(|shard| shard.lock().is_empty()));
    }
}
