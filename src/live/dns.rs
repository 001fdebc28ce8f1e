//! What host names of backends resolve to (SPEC 5.4), and which of their addresses refuse to be reached.
//!
//! Plain data: control resolves and writes, compiling a table reads. An answer stays until a better one comes, whatever
//! becomes of the DNS server. The workers see of all this only `AddressState`, one for each address of the table.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ahash::HashMap;
use parking_lot::Mutex;

use crate::{config::table::DnsName, wire::Transport};

/// One address of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resolved {
    /// The least is used first (RFC 2782).
    pub priority: u16,
    pub addr: SocketAddr,
    /// Share of the requests among those of one priority; at least 1.
    pub weight: u32,
}

/// What is known of an address beside its backend's state: whether it refuses.
#[derive(Debug, Default)]
pub struct AddressState {
    /// Milliseconds of the monotonic clock; 0: it does not refuse.
    refused_until_ms: AtomicU64,
}

impl AddressState {
    /// It cannot be reached: until then it is passed over where its backend has others. Health may call this as well as
    /// the ICMP errors do.
    pub fn refuse(&self, until_ms: u64) {
        self.refused_until_ms.store(until_ms.max(1), Relaxed);
    }

    /// It was reached again.
    pub fn clear(&self) {
        self.refused_until_ms.store(0, Relaxed);
    }

    pub fn is_down(&self) -> bool {
        self.refused_until_ms.load(Relaxed) != 0
    }
}

/// Answers by name, states by address. Its size is bounded by the table and `[dns] addresses`.
#[derive(Debug, Default)]
pub struct Dns {
    answers: Mutex<HashMap<DnsName, Arc<[Resolved]>>>,
    states: Mutex<HashMap<(SocketAddr, Transport), Weak<AddressState>>>,
    /// Grows with each change of an answer.
    generation: AtomicU64,
}

impl Dns {
    /// The addresses of a name by its last good answer, the most wanted first; none where there was none yet.
    pub fn answer(&self, name: &DnsName) -> Arc<[Resolved]> {
        self.answers.lock().get(name).cloned().unwrap_or_default()
    }

    /// Notes an answer; true where it is another than before. The order of DNS means nothing.
    pub fn put(&self, name: &DnsName, mut answer: Vec<Resolved>) -> bool {
        answer.sort_unstable();
        answer.dedup_by_key(|resolved| resolved.addr);
        let mut answers = self.answers.lock();
        if answers.get(name).map_or(answer.is_empty(), |known| **known == *answer) {
            return false;
        }
        answers.insert(name.clone(), answer.into());
        self.generation.fetch_add(1, Relaxed);
        true
    }

    /// Forgets all other names.
    pub fn keep(&self, names: &BTreeSet<&DnsName>) {
        self.answers.lock().retain(|name, _| names.contains(name));
    }

    /// Of all answers together: what was compiled by an older one is stale.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// The state of an address, the same one for as long as any table holds it.
    pub fn state(&self, addr: SocketAddr, transport: Transport) -> Arc<AddressState> {
        let mut states = self.states.lock();
        let known = states.entry((addr, transport)).or_default();
        known.upgrade().unwrap_or_else(|| {
            let state = Arc::new(AddressState::default());
            *known = Arc::downgrade(&state);
            state
        })
    }

    /// Once a second: what has refused long enough is tried again, what no table holds any more is forgotten.
    pub fn sweep(&self, now_ms: u64) {
        self.states.lock().retain(|_, state| {
            let Some(state) = state.upgrade() else { return false };
            let until = state.refused_until_ms.load(Relaxed);
            if until != 0 && until <= now_ms {
                // A worker that has just seen it refuse again wins.
                let _ = state.refused_until_ms.compare_exchange(until, 0, Relaxed, Relaxed);
            }
            true
        });
    }

    /// Addresses that refuse now.
    pub fn refusing(&self) -> usize {
        let states = self.states.lock();
        states.values().filter(|state| state.upgrade().is_some_and(|state| state.is_down())).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8, priority: u16) -> Resolved {
        Resolved { priority, addr: SocketAddr::from(([192, 0, 2, last], 5060)), weight: 1 }
    }

    #[test]
    fn another_order_is_no_change_and_names_that_left_are_forgotten() {
        let dns = Dns::default();
        let name = DnsName { host: "pbx.example.com".into(), port: None, transport: Transport::Udp };
        assert!(!dns.put(&name, Vec::new()), "nothing is what was known before");
        assert!(dns.put(&name, vec![at(2, 0), at(1, 10), at(1, 10)]));
        assert!(!dns.put(&name, vec![at(1, 10), at(2, 0)]));
        assert_eq!(*dns.answer(&name), [at(2, 0), at(1, 10)]);
        assert!(dns.put(&name, Vec::new()));
        assert_eq!(dns.generation(), 2);
        assert!(dns.put(&name, vec![at(3, 0)]));
        dns.keep(&BTreeSet::new());
        assert!(dns.answer(&name).is_empty());
    }

    #[test]
    fn an_address_that_refused_is_tried_again_when_its_time_is_over() {
        let dns = Dns::default();
        let state = dns.state(at(1, 0).addr, Transport::Udp);
        state.refuse(500);
        dns.sweep(499);
        assert!(dns.state(at(1, 0).addr, Transport::Udp).is_down() && dns.refusing() == 1);
        assert!(!dns.state(at(1, 0).addr, Transport::Tcp).is_down());
        dns.sweep(500);
        assert!(!state.is_down());
        drop(state);
        dns.sweep(501);
        assert!(dns.states.lock().is_empty());
    }
}
