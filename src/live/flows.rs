//! Which client is reached by which flow, learnt from REGISTER: the index behind `route = "flow"` (SPEC 5.2).
//!
//! A client's REGISTER is noted under the branch with which it left, for 32 s; its 2xx confirms the note. Sharded, bounded,
//! shared by the cores; time comes in. A full index drops its oldest.
//!
//! A binding stands in the list of its AOR's user and in the list of its Contact's user, often the same; both look-ups
//! are then a walk along one short list, newest first. The shard of the AOR's list is the binding's home: it keeps the
//! ages and the bound. Where two shards are changed together both are locked, the lower one first.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{BuildHasher, Hash, Hasher},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use ahash::HashMap;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use smallvec::SmallVec;

use super::{
    Now,
    aged::{Aged, Replaced, shards},
    connections::{Alive, Connections},
};
use crate::wire::{Uri, token::Flow};

/// How long a REGISTER waits for its 2xx: Timer F.
const NOTE_MS: u64 = 32_000;
/// Contacts of one REGISTER that are noted; further ones are not. Registrars allow fewer.
const MOST_CONTACTS: usize = 16;
/// A Contact URI or an AOR beyond this is not noted.
const LONGEST: usize = 1024;
/// A store holds at most this many bytes of URIs times its capacity: what registrations have on the mean, and more.
const MEAN: usize = 512;
/// Bindings in one user's list, so that a walk stays short whatever is registered; the oldest goes.
const MOST_OF_USER: usize = 64;

/// What a REGISTER said. `aor` is canonical `user@domain` (of To), `contacts` the URIs as written.
pub struct Registration<'a> {
    pub aor: &'a [u8],
    pub contacts: &'a [&'a [u8]],
    /// `Contact: *`
    pub all: bool,
    pub flow: Flow,
}

/// What became of a note: for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub noted: u32,
    /// Contacts held by a live flow of another AOR: not noted (SPEC 5.2).
    pub conflicts: u32,
    pub dropped_oldest: u32,
}

/// What became of a confirmation: for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    pub added: u32,
    pub refreshed: u32,
    pub removed: u32,
    /// `*`: all contacts of the AOR have ended.
    pub all: bool,
    /// Contacts that another AOR's live flow took between the REGISTER and its 2xx.
    pub conflicts: u32,
    pub dropped_oldest: u32,
}

/// The index.
pub struct Flows {
    notes: Box<[Mutex<Notes>]>,
    shards: Box<[RwLock<Shard>]>,
    /// Of one shard.
    capacity: usize,
    /// Which of the flows that are connections are open still.
    connections: Arc<Connections>,
    seeds: ahash::RandomState,
    /// Numbers the REGISTERs, so that the newest wins whatever the order of their 2xx.
    serial: AtomicU64,
    count: AtomicUsize,
}

struct Notes {
    notes: Aged<u64, Note>,
    bytes: usize,
    most_bytes: usize,
}

struct Note {
    aor: Arc<[u8]>,
    contacts: SmallVec<[Box<[u8]>; 1]>,
    all: bool,
    flow: Flow,
    serial: u64,
    /// In `mono_ms`.
    ends: u64,
}

struct Shard {
    lists: HashMap<u64, List>,
    /// The bindings at home here by age.
    ages: BTreeMap<u64, Arc<Binding>>,
    bytes: usize,
    /// No binding at home here ends before this: spares the sweep a walk.
    soonest: u64,
}

/// Newest first.
type List = SmallVec<[Arc<Binding>; 2]>;

/// A confirmed Contact. Never changed: a refresh puts a new one in its place.
struct Binding {
    aor: Arc<[u8]>,
    contact: Box<[u8]>,
    /// Hashes of the AOR's and the Contact's user (`Flows::user_key`).
    home: u64,
    away: u64,
    flow: Flow,
    ends: u64,
    serial: u64,
    /// Its place in `Shard::ages`.
    age: u64,
}

impl Binding {
    fn is_live(&self, now: Now) -> bool {
        self.ends > now.mono_ms
    }

    /// Live, and its connection, where it is one, not closed.
    fn is_open(&self, now: Now, connections: &Connections) -> bool {
        self.is_live(now)
            && match self.flow {
                Flow::Datagram { .. } => true,
                Flow::Stream { id, .. } => connections.find(id) == Alive::Open,
            }
    }

    fn bytes(&self) -> usize {
        self.aor.len() + self.contact.len()
    }

    fn has_contact(&self, uri: &Uri<'_>) -> bool {
        Uri::parse(&self.contact).is_some_and(|own| own.same(uri))
    }
}

impl Flows {
    /// At most `capacity` confirmed contacts, and as many notes.
    pub fn new(capacity: usize, connections: Arc<Connections>) -> Flows {
        let (count, each) = shards(capacity);
        let most_bytes = (each * MEAN).max((MOST_CONTACTS + 1) * LONGEST);
        let notes = || Notes { notes: Aged::new(each), bytes: 0, most_bytes };
        let shard =
            || Shard { lists: HashMap::default(), ages: BTreeMap::new(), bytes: 0, soonest: u64::MAX };
        Flows {
            notes: (0..count).map(|_| Mutex::new(notes())).collect(),
            shards: (0..count).map(|_| RwLock::new(shard())).collect(),
            capacity: each,
            connections,
            seeds: ahash::RandomState::new(),
            serial: AtomicU64::new(0),
            count: AtomicUsize::new(0),
        }
    }

    /// Notes a client's REGISTER under its branch for 32 s.
    pub fn note(&self, branch: u64, now: Now, registration: &Registration<'_>) -> Noted {
        let mut noted = Noted::default();
        if registration.aor.len() > LONGEST {
            return noted;
        }
        let mut contacts = SmallVec::new();
        for contact in registration.contacts.iter().take(MOST_CONTACTS).filter(|c| c.len() <= LONGEST) {
            let Some(uri) = Uri::parse(contact) else { continue };
            if self.is_taken(&uri, registration.aor, now) {
                noted.conflicts += 1;
            } else {
                contacts.push(Box::from(*contact));
                noted.noted += 1;
            }
        }
        if contacts.is_empty() && !registration.all {
            return noted;
        }
        let note = Note {
            aor: registration.aor.into(),
            contacts,
            all: registration.all,
            flow: registration.flow,
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
            ends: now.mono_ms + NOTE_MS,
        };
        noted.dropped_oldest = self.notes_of(branch).lock().insert(branch, note, now);
        noted
    }

    /// Confirms the note by its 2xx, which names the AOR that was registered: another's note under this branch confirms
    /// nothing, since who chooses the branch may have written a second REGISTER over the first. `expires(contact)` gives the
    /// seconds that the 2xx grants to a noted contact URI (`None`: it is not in the 2xx, so it has ended). 0 ends it. For `*`
    /// all contacts of the AOR end.
    pub fn confirm(
        &self,
        branch: u64,
        aor: &[u8],
        now: Now,
        expires: &mut dyn FnMut(&[u8]) -> Option<u32>,
    ) -> Confirmed {
        let mut confirmed = Confirmed::default();
        let Some(note) = self.notes_of(branch).lock().take(branch).filter(|n| n.ends > now.mono_ms) else {
            return confirmed;
        };
        if *note.aor != *aor {
            confirmed.conflicts += 1;
            return confirmed;
        }
        let home = self.aor_key(&note.aor);
        if note.all {
            confirmed.all = true;
            confirmed.removed += self.remove_all(home, &note, now);
        }
        for contact in note.contacts {
            let Some(uri) = Uri::parse(&contact) else { continue };
            let seconds = expires(&contact).unwrap_or(0);
            let away = self.contact_key(&uri);
            let binding = Binding {
                aor: note.aor.clone(),
                home,
                away,
                flow: note.flow,
                ends: now.mono_ms.saturating_add(u64::from(seconds) * 1000),
                serial: note.serial,
                age: 0,
                contact,
            };
            self.write(binding, seconds, now, &mut confirmed);
        }
        confirmed
    }

    /// The newest live flow whose Contact equals this URI (RFC 3261 19.1.4). Here and below a connection that is closed is
    /// named only where there is nothing better: its dialogs may have grace.
    pub fn by_contact(&self, uri: &Uri<'_>, now: Now) -> Option<Flow> {
        let key = self.contact_key(uri);
        let shard = self.shard(key).read();
        let list = shard.lists.get(&key)?;
        let live = || list.iter().filter(|b| b.away == key && b.is_live(now) && b.has_contact(uri));
        live().find(|b| b.is_open(now, &self.connections)).or_else(|| live().next()).map(|b| b.flow)
    }

    /// The newest live flow whose AOR's user is this one (escaped or not), else the newest whose Contact's user is: nobody
    /// takes another's calls by a Contact with that one's name.
    pub fn by_user(&self, user: &[u8], now: Now) -> Option<Flow> {
        let user = unescaped(user);
        let key = self.user_key(&user);
        let shard = self.shard(key).read();
        let list = shard.lists.get(&key)?;
        let live = |open: bool| {
            let live = list.iter().filter(move |b| b.is_live(now));
            live.filter(move |b| !open || b.is_open(now, &self.connections))
        };
        let of_contact = |b: &&Arc<Binding>| {
            Uri::parse(&b.contact).and_then(|uri| uri.user).map(unescaped).is_some_and(|own| own == user)
        };
        let named = |open| {
            let of_aor = |b: &&Arc<Binding>| aor_user(&b.aor) == Some(&*user);
            live(open).find(of_aor).or_else(|| live(open).find(of_contact))
        };
        named(true).or_else(|| named(false)).map(|b| b.flow)
    }

    /// The datagram flows by which contacts are registered, each once; for control, not for the path.
    pub fn datagrams(&self, now: Now) -> Vec<Flow> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            let flows = shard.ages.values().filter(|b| b.is_live(now)).map(|b| b.flow);
            all.extend(flows.filter(|flow| matches!(flow, Flow::Datagram { .. })));
        }
        // Of phones that have one flow for several contacts.
        let mut seen = ahash::HashSet::default();
        all.retain(|flow| seen.insert(*flow));
        all
    }

    /// Confirmed contacts that are held (gauge).
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends what has expired; called every second by control, not by the path.
    pub fn sweep(&self, now: Now) {
        for notes in &self.notes {
            notes.lock().sweep(now);
        }
        let mut ended = Vec::new();
        for shard in &self.shards {
            if shard.read().soonest > now.mono_ms {
                continue;
            }
            let mut shard = shard.write();
            let mut soonest = u64::MAX;
            for binding in shard.ages.values() {
                if binding.is_live(now) {
                    soonest = soonest.min(binding.ends);
                } else {
                    ended.push(binding.clone());
                }
            }
            shard.soonest = soonest;
        }
        for binding in ended {
            self.forget(&binding);
        }
    }

    fn notes_of(&self, branch: u64) -> &Mutex<Notes> {
        &self.notes[self.seeds.hash_one(branch) as usize & (self.notes.len() - 1)]
    }

    fn shard(&self, key: u64) -> &RwLock<Shard> {
        &self.shards[self.place(key)]
    }

    fn place(&self, key: u64) -> usize {
        key as usize & (self.shards.len() - 1)
    }

    /// Locks the shards of two keys, the lower one first; one guard where they are the same.
    fn lock_pair(&self, home: u64, away: u64) -> Pair<'_> {
        let (h, a) = (self.place(home), self.place(away));
        match h.cmp(&a) {
            std::cmp::Ordering::Equal => Pair { home: self.shards[h].write(), away: None },
            std::cmp::Ordering::Less => {
                let home = self.shards[h].write();
                Pair { home, away: Some(self.shards[a].write()) }
            }
            std::cmp::Ordering::Greater => {
                let away = self.shards[a].write();
                Pair { home: self.shards[h].write(), away: Some(away) }
            }
        }
    }

    /// Is this Contact held by a live flow of another AOR?
    fn is_taken(&self, uri: &Uri<'_>, aor: &[u8], now: Now) -> bool {
        let key = self.contact_key(uri);
        self.shard(key).read().is_taken(key, uri, aor, now, &self.connections)
    }

    /// Puts a binding in the place of the one with its AOR and Contact, or ends that one where `seconds` is 0.
    fn write(&self, mut binding: Binding, seconds: u32, now: Now, confirmed: &mut Confirmed) {
        let contact = binding.contact.clone();
        let Some(uri) = Uri::parse(&contact) else { return };
        let mut pair = self.lock_pair(binding.home, binding.away);
        if seconds > 0 && pair.away().is_taken(binding.away, &uri, &binding.aor, now, &self.connections) {
            confirmed.conflicts += 1;
            return;
        }
        let list = pair.home.lists.get(&binding.home);
        let is_same =
            |b: &&Arc<Binding>| b.home == binding.home && b.aor == binding.aor && b.has_contact(&uri);
        let old = list.and_then(|list| list.iter().find(is_same)).cloned();
        if let Some(old) = &old {
            if old.serial > binding.serial {
                return;
            }
            pair.remove(old);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        if seconds == 0 {
            confirmed.removed += u32::from(old.is_some());
            return;
        }
        binding.age = self.serial.fetch_add(1, Ordering::Relaxed);
        confirmed.refreshed += u32::from(old.is_some());
        confirmed.added += u32::from(old.is_none());
        let binding = Arc::new(binding);
        pair.insert(&binding);
        self.count.fetch_add(1, Ordering::Relaxed);
        let surplus = self.surplus(&pair, &binding);
        drop(pair);
        for old in surplus {
            confirmed.dropped_oldest += u32::from(self.forget(&old) && old.is_live(now));
        }
    }

    /// What has to go now that `binding` was written: the oldest at its home beyond the bounds, the oldest of its lists.
    fn surplus(&self, pair: &Pair<'_>, binding: &Binding) -> SmallVec<[Arc<Binding>; 2]> {
        let mut surplus = SmallVec::new();
        let shard = &pair.home;
        let (mut count, mut bytes) = (shard.ages.len(), shard.bytes);
        for oldest in shard.ages.values() {
            if count <= self.capacity && bytes <= (self.capacity * MEAN).max(2 * LONGEST) {
                break;
            }
            count -= 1;
            bytes -= oldest.bytes();
            surplus.push(oldest.clone());
        }
        let lists = [shard.lists.get(&binding.home), pair.away().lists.get(&binding.away)];
        for list in lists.into_iter().flatten().filter(|list| list.len() > MOST_OF_USER) {
            surplus.extend(list.last().cloned());
        }
        surplus
    }

    /// Takes a binding out; false where it went before.
    fn forget(&self, binding: &Arc<Binding>) -> bool {
        let removed = self.lock_pair(binding.home, binding.away).remove(binding);
        self.count.fetch_sub(usize::from(removed), Ordering::Relaxed);
        removed
    }

    /// Ends all Contacts of an AOR that were registered before this note.
    fn remove_all(&self, home: u64, note: &Note, now: Now) -> u32 {
        let shard = self.shard(home).read();
        let ended = |b: &&Arc<Binding>| b.home == home && b.aor == note.aor && b.serial < note.serial;
        let list: List = shard
            .lists
            .get(&home)
            .map(|list| list.iter().filter(ended).cloned().collect())
            .unwrap_or_default();
        drop(shard);
        list.iter().filter(|b| self.forget(b) && b.is_live(now)).count() as u32
    }

    fn user_key(&self, user: &[u8]) -> u64 {
        self.seeds.hash_one(user)
    }

    fn aor_key(&self, aor: &[u8]) -> u64 {
        self.user_key(aor_user(aor).unwrap_or(aor))
    }

    /// URIs that are equal have equal keys: by the user where there is one, else by the host.
    fn contact_key(&self, uri: &Uri<'_>) -> u64 {
        if let Some(user) = uri.user {
            return self.user_key(&unescaped(user));
        }
        let mut hasher = self.seeds.build_hasher();
        let host = std::str::from_utf8(uri.host.host).ok().and_then(|host| host.parse::<IpAddr>().ok());
        match host {
            Some(ip) => ip.hash(&mut hasher),
            None => {
                // Other schemes have no host; tel ignores case and visual separators (RFC 3966 4).
                let of_tel = |b: &&u8| !(uri.host.host.is_empty() && b"-.()".contains(b));
                let name = uri.host.host.iter().chain(uri.rest.iter().take_while(|b| **b != b';'));
                name.filter(of_tel).for_each(|b| hasher.write_u8(b.to_ascii_lowercase()));
            }
        }
        hasher.finish()
    }
}

impl Notes {
    /// Gives how many live notes had to go.
    fn insert(&mut self, branch: u64, note: Note, now: Now) -> u32 {
        self.bytes += note.bytes();
        let mut dropped = 0;
        match self.notes.insert(branch, note) {
            Replaced::None => {}
            Replaced::Same(old) => self.bytes -= old.bytes(),
            Replaced::Oldest(old) => {
                self.bytes -= old.bytes();
                dropped += u32::from(old.ends > now.mono_ms);
            }
        }
        // The new one stays, however long: it is bounded itself.
        while self.bytes > self.most_bytes {
            let Some((_, old)) = self.notes.pop_oldest() else { break };
            self.bytes -= old.bytes();
            dropped += u32::from(old.ends > now.mono_ms);
        }
        dropped
    }

    fn take(&mut self, branch: u64) -> Option<Note> {
        let note = self.notes.remove(&branch)?;
        self.bytes -= note.bytes();
        Some(note)
    }

    /// All notes live equally long: the oldest ends first.
    fn sweep(&mut self, now: Now) {
        while self.notes.oldest().is_some_and(|note| note.ends <= now.mono_ms) {
            let Some((_, old)) = self.notes.pop_oldest() else { break };
            self.bytes -= old.bytes();
        }
    }
}

impl Note {
    fn bytes(&self) -> usize {
        self.aor.len() + self.contacts.iter().map(|c| c.len()).sum::<usize>()
    }
}

/// The shards of a binding, locked.
struct Pair<'a> {
    home: RwLockWriteGuard<'a, Shard>,
    away: Option<RwLockWriteGuard<'a, Shard>>,
}

impl Pair<'_> {
    fn away(&self) -> &Shard {
        self.away.as_ref().unwrap_or(&self.home)
    }

    fn insert(&mut self, binding: &Arc<Binding>) {
        let home = &mut *self.home;
        home.ages.insert(binding.age, binding.clone());
        home.bytes += binding.bytes();
        home.soonest = home.soonest.min(binding.ends);
        home.lists.entry(binding.home).or_default().insert_newest(binding);
        if binding.away != binding.home {
            let away = self.away.as_mut().unwrap_or(&mut self.home);
            away.lists.entry(binding.away).or_default().insert_newest(binding);
        }
    }

    /// False where it is not there any more.
    fn remove(&mut self, binding: &Arc<Binding>) -> bool {
        if self.home.ages.remove(&binding.age).is_none() {
            return false;
        }
        self.home.bytes -= binding.bytes();
        self.home.unlist(binding.home, binding);
        if binding.away != binding.home {
            self.away.as_mut().unwrap_or(&mut self.home).unlist(binding.away, binding);
        }
        true
    }
}

impl Shard {
    fn is_taken(&self, key: u64, uri: &Uri<'_>, aor: &[u8], now: Now, connections: &Connections) -> bool {
        let others = |b: &&Arc<Binding>| b.away == key && *b.aor != *aor && b.is_open(now, connections);
        self.lists.get(&key).is_some_and(|list| list.iter().filter(others).any(|b| b.has_contact(uri)))
    }

    fn unlist(&mut self, key: u64, binding: &Arc<Binding>) {
        if let Some(list) = self.lists.get_mut(&key) {
            list.retain(|b| !Arc::ptr_eq(b, binding));
            if list.is_empty() {
                self.lists.remove(&key);
            }
        }
    }
}

trait NewestFirst {
    fn insert_newest(&mut self, binding: &Arc<Binding>);
}

impl NewestFirst for List {
    /// By the order of the REGISTERs, not of their 2xx.
    fn insert_newest(&mut self, binding: &Arc<Binding>) {
        let place = self.iter().position(|b| b.serial <= binding.serial).unwrap_or(self.len());
        self.insert(place, binding.clone());
    }
}

/// `user` of `user@domain`.
fn aor_user(aor: &[u8]) -> Option<&[u8]> {
    aor.iter().rposition(|b| *b == b'@').map(|at| &aor[..at])
}

/// Decodes `%HH`; borrows where there is none. What is no escape stays.
fn unescaped(user: &[u8]) -> Cow<'_, [u8]> {
    if !user.contains(&b'%') {
        return Cow::Borrowed(user);
    }
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(user.len());
    let mut rest = user;
    while let Some((&byte, behind)) = rest.split_first() {
        match (byte, digit(behind.first()), digit(behind.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &behind[2..];
            }
            _ => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests;
