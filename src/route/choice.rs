//! Which backend of a pool takes a new request: by hash alone (`Pools::rendezvous`), or by what is known of the backends
//! too: calls, round trips, priorities (SPEC 5.3), and room for calls (5.4).
//!
//! Whatever is known only narrows the field; among equals the hash decides, weighted and the same on every router. What
//! was chosen so leaves a pin (`forward`): a retransmission is not weighed again.

use super::pool::{Backend, BackendRef, Pool, Pools};
use crate::{config::table::Balance, wire::Method};

impl Pools {
    /// The position of the backend that takes a request with this key. `sender` is no candidate where the choice is not
    /// by hash alone (SPEC 1.5).
    pub(super) fn choose(
        &self,
        pool: u16,
        key: u64,
        method: Method,
        sender: Option<BackendRef>,
    ) -> Option<u16> {
        let of = self.pool(pool);
        let counts = of.limits_calls && method == Method::Invite;
        if !of.balance.is_measured() && !counts {
            return self.rendezvous(pool, key);
        }
        let panics = self.panics(pool);
        let sender = sender.filter(|_| of.balance.is_measured()).map(|at| self.backend(at));
        let fits = |at: u16| {
            let backend = &of.backends[usize::from(at)];
            let takes = if panics { backend.may_panic() } else { backend.takes_new() };
            takes && !(counts && backend.is_full()) && !sender.is_some_and(|sender| sender.is_at(backend))
        };
        let draws = self.draws(pool);
        match of.balance {
            Balance::LeastCalls => {
                let least = least(of, fits, Backend::load)?;
                draws.winner(key, |at| fits(at) && of.backends[usize::from(at)].load() == least)
            }
            Balance::Priority => {
                let first = least(of, fits, |backend| backend.priority.into())?;
                draws.winner(key, |at| fits(at) && u64::from(of.backends[usize::from(at)].priority) == first)
            }
            Balance::LeastLatency => {
                let first = draws.winner(key, fits)?;
                let second = draws.winner(key, |at| at != first && fits(at));
                let rtt = |at: u16| of.backends[usize::from(at)].state.rtt();
                let faster = second.filter(|second| {
                    // What was never measured is as good as anything.
                    rtt(*second).zip(rtt(first)).is_some_and(|(second, first)| second < first)
                });
                faster.or(Some(first))
            }
            _ => draws.winner(key, fits),
        }
    }
}

/// The least of a measure among the backends that fit.
fn least(pool: &Pool, fits: impl Fn(u16) -> bool, of: impl Fn(&Backend) -> u64) -> Option<u64> {
    (0u16..).zip(&pool.backends).filter(|(at, _)| fits(*at)).map(|(_, backend)| of(backend)).min()
}

impl Backend {
    /// Calls by weight, in millionths.
    fn load(&self) -> u64 {
        self.state.calls() as u64 * 1_000_000 / u64::from(self.weight.max(1))
    }

    /// No more calls (`max_calls`).
    pub fn is_full(&self) -> bool {
        self.max_calls.is_some_and(|most| self.state.calls() >= most as usize)
    }

    fn is_at(&self, other: &Backend) -> bool {
        self.addr == other.addr && self.transport == other.transport
    }
}
