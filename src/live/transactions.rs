//! Client transactions of our own non-INVITE requests (RFC 3261 17.1.2), as data: what is to be sent again, what has ended.
//!
//! For requests that the router makes itself: NOTIFY and REGISTER of flow events, OPTIONS toward phones. What is forwarded
//! has no transaction here (SPEC 4), and probes have sockets of their own (`control::health`). No socket, no clock: control
//! drives it each 100 ms and says when a response or a fault came. Timers E and F stand in one wheel of 100 ms; K is not
//! needed, since a response that comes again finds no transaction and is dropped.

use ahash::HashMap;

use super::Now;

/// RFC 3261 17.1.1.1, 17.1.2.2.
pub const T1_MS: u64 = 500;
pub const T2_MS: u64 = 4_000;
/// Timer F.
pub const TIMEOUT_MS: u64 = 64 * T1_MS;

/// One turn of the wheel is longer than any timer.
const SLOTS: usize = 512;
const SLOT_MS: u64 = 100;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final response with this code.
    Answered(u16),
    /// Timer F.
    Timeout,
    /// The transport could not take it (RFC 3261 8.1.3.1).
    Undeliverable,
}

/// What is to be done now, in the order of time.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<T> {
    /// Send this again (Timer E).
    Again(u64),
    /// It has ended (Timer F).
    Over(T),
}

/// Those that wait for a final response, by the hash part of their branch.
pub struct Transactions<T> {
    held: HashMap<u64, Transaction<T>>,
    wheel: Vec<Vec<u64>>,
    /// The next slot to be looked at, counted from the clock's beginning.
    next: u64,
    most: usize,
}

struct Transaction<T> {
    of: T,
    /// When Timer E fires next and how long it waits then; never on a reliable transport.
    again_ms: u64,
    wait_ms: u64,
    over_ms: u64,
}

impl<T> Transaction<T> {
    fn due_ms(&self) -> u64 {
        self.again_ms.min(self.over_ms)
    }
}

impl<T> Transactions<T> {
    /// At most `most` at one time.
    pub fn new(most: usize, now: Now) -> Transactions<T> {
        Transactions {
            held: HashMap::default(),
            wheel: (0..SLOTS).map(|_| Vec::new()).collect(),
            next: now.mono_ms / SLOT_MS,
            most,
        }
    }

    /// Begins one: its request is sent now, by the caller. Gives `of` back where there is no room, or one with that branch.
    pub fn begin(&mut self, branch: u64, reliable: bool, of: T, now: Now) -> Result<(), T> {
        if self.held.len() >= self.most || self.held.contains_key(&branch) {
            return Err(of);
        }
        let again_ms = if reliable { u64::MAX } else { now.mono_ms + T1_MS };
        let over_ms = now.mono_ms + TIMEOUT_MS;
        let transaction = Transaction { of, again_ms, wait_ms: T1_MS, over_ms };
        self.arm(branch, transaction.due_ms());
        self.held.insert(branch, transaction);
        Ok(())
    }

    /// What came for one: a final response or a fault ends it and gives it back. A provisional response puts it into the
    /// state Proceeding, where Timer E waits T2 each time (RFC 3261 17.1.2.2).
    pub fn hear(&mut self, branch: u64, outcome: Outcome) -> Option<T> {
        if let Outcome::Answered(100..=199) = outcome {
            if let Some(transaction) = self.held.get_mut(&branch) {
                transaction.wait_ms = T2_MS;
            }
            return None;
        }
        self.held.remove(&branch).map(|transaction| transaction.of)
    }

    /// What one that waits is about.
    pub fn find(&self, branch: u64) -> Option<&T> {
        self.held.get(&branch).map(|transaction| &transaction.of)
    }

    /// Tells what is due. To be called each 100 ms; what is late comes late, nothing twice.
    pub fn tick(&mut self, now: Now, each: &mut dyn FnMut(Due<T>)) {
        let end = now.mono_ms / SLOT_MS;
        // After a long sleep each slot is looked at once.
        self.next = self.next.max((end + 1).saturating_sub(SLOTS as u64));
        while self.next <= end {
            let slot = std::mem::take(&mut self.wheel[self.next as usize % SLOTS]);
            self.next += 1;
            for branch in slot {
                self.look(branch, now, each);
            }
        }
    }

    /// What the wheel names may have ended, or have been armed anew.
    fn look(&mut self, branch: u64, now: Now, each: &mut dyn FnMut(Due<T>)) {
        let Some(transaction) = self.held.get_mut(&branch) else { return };
        if transaction.over_ms <= now.mono_ms {
            if let Some(over) = self.held.remove(&branch) {
                each(Due::Over(over.of));
            }
            return;
        }
        if transaction.again_ms <= now.mono_ms {
            transaction.wait_ms = (transaction.wait_ms * 2).min(T2_MS);
            transaction.again_ms = now.mono_ms + transaction.wait_ms;
            each(Due::Again(branch));
        }
        let due = transaction.due_ms();
        self.arm(branch, due);
    }

    /// Puts it into the first slot that is looked at when it is due, never into one that was looked at.
    fn arm(&mut self, branch: u64, due_ms: u64) {
        let slot = due_ms.div_ceil(SLOT_MS).max(self.next);
        self.wheel[slot as usize % SLOTS].push(branch);
    }

    /// Transactions that wait (gauge).
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: 0 }
    }

    /// All that happens until `end`, with its times, ticked each 100 ms.
    fn run(held: &mut Transactions<&'static str>, from: u64, end: u64) -> Vec<(u64, Due<&'static str>)> {
        let mut all = Vec::new();
        let mut clock = from;
        while clock <= end {
            held.tick(at(clock), &mut |due| all.push((clock, due)));
            clock += 100;
        }
        all
    }

    /// RFC 3261 17.1.2.2 with T1 500 ms and T2 4 s: 500 ms, 1.5 s, 3.5 s, 7.5 s and then each 4 s, until 32 s.
    #[test]
    fn timers_e_and_f_over_udp() {
        let mut held = Transactions::new(4, at(1_000));
        assert_eq!(held.begin(7, false, "a", at(1_000)), Ok(()));
        let times: Vec<u64> = run(&mut held, 1_000, 40_000).iter().map(|(at, _)| at - 1_000).collect();
        let mut expected = vec![500, 1_500, 3_500];
        expected.extend((7_500..32_000).step_by(4_000));
        expected.push(32_000);
        assert_eq!(times, expected);
        assert!(held.is_empty());
    }

    #[test]
    fn a_reliable_transport_has_timer_f_alone() {
        let mut held = Transactions::new(4, at(0));
        assert_eq!(held.begin(7, true, "a", at(0)), Ok(()));
        assert_eq!(run(&mut held, 0, 60_000), [(32_000, Due::Over("a"))]);
    }

    /// RFC 3261 17.1.2.2: in Proceeding Timer E is reset to T2.
    #[test]
    fn a_provisional_response_slows_retransmissions_and_a_final_one_ends_it() {
        let mut held = Transactions::new(4, at(0));
        assert_eq!(held.begin(7, false, "a", at(0)), Ok(()));
        assert_eq!(held.hear(7, Outcome::Answered(100)), None);
        let times: Vec<u64> = run(&mut held, 0, 9_000).iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [500, 4_500, 8_500]);
        assert_eq!(held.hear(8, Outcome::Answered(200)), None, "nobody's");
        assert_eq!(held.hear(7, Outcome::Answered(200)), Some("a"));
        assert_eq!(held.hear(7, Outcome::Answered(200)), None, "Timer K's response");
        assert_eq!(run(&mut held, 9_100, 60_000), []);
    }

    #[test]
    fn never_more_than_there_is_room_for_and_one_of_a_branch() {
        let mut held = Transactions::new(2, at(0));
        assert_eq!(held.begin(1, false, "a", at(0)), Ok(()));
        assert_eq!(held.begin(1, false, "b", at(0)), Err("b"));
        assert_eq!(held.begin(2, false, "c", at(0)), Ok(()));
        assert_eq!(held.begin(3, false, "d", at(0)), Err("d"));
        assert_eq!(held.hear(1, Outcome::Undeliverable), Some("a"));
        assert_eq!(held.begin(3, false, "d", at(0)), Ok(()));
        assert_eq!(held.len(), 2);
    }

    proptest! {
        /// Whatever is answered and however late the ticks come: each transaction ends exactly once, none before 32 s but by
        /// an answer, none more than a tick late, and what is sent again waits still.
        #[test]
        fn each_ends_exactly_once(
            begun in proptest::collection::vec((0u64..20_000, any::<bool>(), proptest::option::of(0u64..50_000)), 1..60),
            steps in proptest::collection::vec(1u64..3_000, 1..50),
        ) {
            let mut held: Transactions<usize> = Transactions::new(1_000, at(0));
            let mut ended = vec![None; begun.len()];
            let (mut before, mut clock, mut step) = (0, 0, 0);
            while clock < 120_000 {
                for (n, (begins, reliable, answer)) in begun.iter().enumerate() {
                    if (before..clock).contains(begins) {
                        prop_assert_eq!(held.begin(n as u64, *reliable, n, at(*begins)), Ok(()));
                    }
                    if answer.is_some_and(|answer| (before..clock).contains(&(begins + answer)))
                        && held.hear(n as u64, Outcome::Answered(200)).is_some()
                    {
                        prop_assert_eq!(ended[n].replace(clock), None);
                    }
                }
                let mut due = Vec::new();
                held.tick(at(clock), &mut |what| due.push(what));
                for what in due {
                    match what {
                        Due::Again(n) => {
                            prop_assert!(!begun[n as usize].1, "again over a reliable transport");
                            prop_assert_eq!(held.find(n), Some(&(n as usize)));
                        }
                        Due::Over(n) => {
                            prop_assert!(clock >= begun[n].0 + TIMEOUT_MS);
                            prop_assert!(before < begun[n].0 + TIMEOUT_MS + SLOT_MS, "late by more than a tick");
                            prop_assert_eq!(ended[n].replace(clock), None);
                        }
                    }
                }
                before = clock;
                clock += steps[step % steps.len()];
                step += 1;
            }
            prop_assert!(ended.iter().all(Option::is_some));
            prop_assert!(held.is_empty());
        }
    }
}
