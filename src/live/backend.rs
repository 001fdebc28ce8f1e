//! What is known of a backend at run time, by name: it outlives the tables that mention it (SPEC 5.6, 8).
//!
//! One word says whether it takes requests: its health, which `control::health` judges, and the operator's mark. A core
//! reads it with one relaxed load for each candidate, so that a change of health costs no message and no table. What
//! cores notice themselves (ICMP errors, 503s) they leave in `signs`; control picks it up and asks the backend.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{Now, signs::Signs, tags::Tags};
use crate::config::table::AdminState;

/// What probes and signs say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Also before the first probe, and where there is none.
    #[default]
    Up,
    /// It asked for a pause (503 with Retry-After): nothing new goes there until that is over.
    Degraded,
    /// It does not answer.
    Down,
}

/// Health and administrative state in one word, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Up,
    Degraded,
    Down,
    Drain,
    Off,
}

impl State {
    pub const ALL: [State; 5] = [State::Up, State::Degraded, State::Down, State::Drain, State::Off];

    pub const fn label(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "down",
            State::Drain => "drain",
            State::Off => "off",
        }
    }
}

/// Run-time state of one backend.
#[derive(Debug, Default)]
pub struct BackendState {
    pub name: String,
    /// Seconds since 1970 of the first table that named it.
    pub first_seen_unix_s: AtomicU64,
    /// Bits 0-1 health, bits 2-3 mark.
    word: AtomicU32,
    /// When it went down, in `Now::mono_ms`; what of it went on then ends with `migrate_after` (SPEC 8.6).
    down_ms: AtomicU64,
    /// When the operator marked it.
    marked_ms: AtomicU64,
    restarted_unix_s: AtomicU64,
    /// Microseconds; 0: never measured.
    rtt_us: AtomicU64,
    smoothed_us: AtomicU64,
    told: Mutex<Told>,
    pub counts: Counts,
    /// What cores write, apart from what they read.
    pub signs: Signs,
    /// Calls that it carries, as `Calls` counts them.
    pub(super) calls: AtomicUsize,
    /// The counter behind its entity-tags.
    pub tags: Tags,
    /// Answers to publications of Asterisks that stop their publisher for good (SPEC 6.5).
    pub stops: AtomicU64,
}

/// What becomes of probes, as metrics say it: order of `Counts::probes`.
pub const PROBES: [&str; 6] = ["answered", "silent", "refused", "unreachable", "unsent", "insecure"];

/// What made control probe at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    Icmp,
    Busy,
    Silence,
}

impl Noticed {
    pub const ALL: [Noticed; 3] = [Noticed::Icmp, Noticed::Busy, Noticed::Silence];

    pub const fn label(self) -> &'static str {
        match self {
            Noticed::Icmp => "icmp",
            Noticed::Busy => "busy",
            Noticed::Silence => "silence",
        }
    }
}

/// What control counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// By place in `PROBES`.
    pub probes: [AtomicU64; PROBES.len()],
    /// By `Noticed`.
    pub noticed: [AtomicU64; 3],
}

/// The last change of health or mark, for people.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub since_unix_s: u64,
    pub why: String,
    /// How often it came into each state of `State::ALL`.
    pub entered: [u64; 5],
}

const HEALTH: u32 = 0b11;
const MARK: u32 = 0b1100;

fn health_of(word: u32) -> Health {
    match word & HEALTH {
        0 => Health::Up,
        1 => Health::Degraded,
        _ => Health::Down,
    }
}

fn mark_of(word: u32) -> Option<AdminState> {
    match (word & MARK) >> 2 {
        0 => None,
        1 => Some(AdminState::Active),
        2 => Some(AdminState::Drain),
        _ => Some(AdminState::Off),
    }
}

impl BackendState {
    pub fn new(name: &str, unix_s: u64) -> BackendState {
        let told = Told { since_unix_s: unix_s, ..Told::default() };
        BackendState {
            name: name.to_owned(),
            first_seen_unix_s: AtomicU64::new(unix_s),
            told: Mutex::new(told),
            ..BackendState::default()
        }
    }

    pub fn health(&self) -> Health {
        health_of(self.word.load(Relaxed))
    }

    pub fn is_up(&self) -> bool {
        self.health() == Health::Up
    }

    /// The operator's mark, which goes before the state in the table.
    pub fn mark(&self) -> Option<AdminState> {
        mark_of(self.word.load(Relaxed))
    }

    /// With the state that the table gives it.
    pub fn state(&self, table: AdminState) -> State {
        let word = self.word.load(Relaxed);
        match (mark_of(word).unwrap_or(table), health_of(word)) {
            (AdminState::Off, _) => State::Off,
            (AdminState::Drain, Health::Down) => State::Down,
            (AdminState::Drain, _) => State::Drain,
            (AdminState::Active, Health::Up) => State::Up,
            (AdminState::Active, Health::Degraded) => State::Degraded,
            (AdminState::Active, Health::Down) => State::Down,
        }
    }

    /// Does it take new requests? `table`: the state that the table gives it.
    #[inline]
    pub fn takes_new(&self, table: AdminState) -> bool {
        let word = self.word.load(Relaxed);
        word & HEALTH == 0 && mark_of(word).unwrap_or(table) == AdminState::Active
    }

    /// Does it take requests of dialogs that it has? Drained and degraded it does; down and off it does not.
    #[inline]
    pub fn carries(&self, table: AdminState) -> bool {
        !matches!(self.state(table), State::Down | State::Off)
    }

    /// Since when it carries nothing, in `Now::mono_ms`; 0 where the table says off.
    pub fn gone_ms(&self) -> u64 {
        let word = self.word.load(Relaxed);
        match (mark_of(word), health_of(word)) {
            (Some(AdminState::Off), _) => self.marked_ms.load(Relaxed),
            (_, Health::Down) => self.down_ms.load(Relaxed),
            _ => 0,
        }
    }

    /// Seconds since 1970 of the last sign that it restarted (ICMP refused, a gap in its answers); 0: none was seen.
    pub fn restarted_at(&self) -> u64 {
        self.restarted_unix_s.load(Relaxed)
    }

    /// A sign that it restarted, such as an ICMP error that says nobody listens there.
    pub fn note_restart(&self, unix_s: u64) {
        // Most signs come in bursts; what says nothing new is not written. One that is known from the future is of a clock
        // that has been set back: tags were issued behind it, and this restart voids them too.
        let known = self.restarted_unix_s.load(Relaxed);
        if known != unix_s {
            self.restarted_unix_s.store(unix_s.max(known.saturating_add(1)), Relaxed);
        }
    }

    /// Round trip of its probes, smoothed (RFC 6298 2.3: an eighth of each new one); `None` before the first.
    pub fn rtt(&self) -> Option<Duration> {
        micros(&self.smoothed_us)
    }

    /// Of the last probe that it answered.
    pub fn last_rtt(&self) -> Option<Duration> {
        micros(&self.rtt_us)
    }

    /// Calls that it carries or that ring there.
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }

    /// One more measured. Control's only.
    pub fn measured(&self, rtt: Duration) {
        let last = (rtt.as_micros() as u64).max(1);
        let before = self.smoothed_us.load(Relaxed);
        let smoothed = if before == 0 { last } else { (before * 7 + last) / 8 };
        self.rtt_us.store(last, Relaxed);
        self.smoothed_us.store(smoothed.max(1), Relaxed);
    }

    /// Control's verdict. True where it changed anything; `why` is for people.
    pub fn set_health(&self, health: Health, why: &str, now: Now) -> bool {
        let mut told = self.told.lock();
        let before = self.health();
        if before == health {
            return false;
        }
        if health == Health::Down {
            self.down_ms.store(now.mono_ms, Relaxed);
        }
        if Health::Down == health || Health::Down == before {
            // A gap in its answers is taken for a restart (SPEC 6.2), at both of its ends.
            self.note_restart(now.unix_s);
        }
        self.change(HEALTH, health as u32, &mut told, why, now);
        true
    }

    /// The operator's word (`None`: the table's own again). True where it changed anything.
    pub fn set_mark(&self, mark: Option<AdminState>, why: &str, now: Now) -> bool {
        let mut told = self.told.lock();
        if self.mark() == mark {
            return false;
        }
        let bits = match mark {
            None => 0,
            Some(AdminState::Active) => 1,
            Some(AdminState::Drain) => 2,
            Some(AdminState::Off) => 3,
        };
        self.marked_ms.store(now.mono_ms, Relaxed);
        self.change(MARK, bits << 2, &mut told, why, now);
        true
    }

    /// Under the lock of `told`, so that there is one writer; readers see the times of a state before the state or a
    /// moment after it, which moves a Retry-After at most.
    fn change(&self, mask: u32, bits: u32, told: &mut Told, why: &str, now: Now) {
        let word = self.word.load(Relaxed) & !mask | bits;
        self.word.store(word, Relaxed);
        told.since_unix_s = now.unix_s;
        why.clone_into(&mut told.why);
        told.entered[self.state(AdminState::Active) as usize] += 1;
    }

    /// The last change, for people.
    pub fn told(&self) -> Told {
        self.told.lock().clone()
    }
}

fn micros(of: &AtomicU64) -> Option<Duration> {
    Some(of.load(Relaxed)).filter(|us| *us > 0).map(Duration::from_micros)
}

/// The backends of the tables that are held, by name, and those that the operator marked.
#[derive(Debug, Default)]
pub struct Registry {
    states: Mutex<ahash::HashMap<String, Arc<BackendState>>>,
    /// Restarts of those that have no state now, seconds since 1970.
    restarts: Mutex<BTreeMap<String, u64>>,
}

/// So long a restart is remembered of a backend that has left: what was published before is over by then.
const RESTARTS_S: u64 = 86_400;

impl Registry {
    /// The state of the backend `name`; made at first sight.
    pub fn state(&self, name: &str, unix_s: u64) -> Arc<BackendState> {
        let mut states = self.states.lock();
        if let Some(state) = states.get(name) {
            return state.clone();
        }
        let state = Arc::new(BackendState::new(name, unix_s));
        if let Some(at) = self.restarts.lock().remove(name) {
            state.note_restart(at);
        }
        states.insert(name.to_owned(), state.clone());
        state
    }

    /// The state of a backend that a table has named.
    pub fn find(&self, name: &str) -> Option<Arc<BackendState>> {
        self.states.lock().get(name).cloned()
    }

    /// Forgets those that no table holds, but never one that the operator has marked: it may come back. Called by
    /// control, so that names which change for ever fill no memory.
    pub fn sweep(&self, unix_s: u64) {
        let mut restarts = self.restarts.lock();
        restarts.retain(|_, at| unix_s < *at + RESTARTS_S);
        drop(restarts);
        self.states.lock().retain(|name, state| {
            let kept = Arc::strong_count(state) > 1 || state.mark().is_some();
            if !kept && state.restarted_at() > 0 {
                self.restarts.lock().insert(name.clone(), state.restarted_at());
            }
            kept
        });
    }

    /// Every restart that was seen, by name, for the state directory (SPEC 3.1).
    pub fn restarts(&self) -> BTreeMap<String, u64> {
        let mut restarts = self.restarts.lock().clone();
        let states = self.states.lock();
        let seen = states.values().filter(|state| state.restarted_at() > 0);
        restarts.extend(seen.map(|state| (state.name.clone(), state.restarted_at())));
        restarts
    }

    /// What the state directory knows of before this process.
    pub fn remember(&self, restarts: BTreeMap<String, u64>) {
        *self.restarts.lock() = restarts;
    }

    pub fn len(&self) -> usize {
        self.states.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Now {
        Now { mono_ms: s * 1000, unix_s: 1_000_000 + s }
    }

    #[test]
    fn health_and_mark_decide_together() {
        let state = BackendState::new("pbx1", 1);
        let seen = |table| (state.state(table), state.takes_new(table), state.carries(table));
        assert_eq!(seen(AdminState::Active), (State::Up, true, true));
        assert_eq!(seen(AdminState::Drain), (State::Drain, false, true));
        assert_eq!(seen(AdminState::Off), (State::Off, false, false));
        assert!(
            state.set_health(Health::Degraded, "503", at(1))
                && !state.set_health(Health::Degraded, "", at(2))
        );
        assert_eq!(seen(AdminState::Active), (State::Degraded, false, true));
        assert!(state.set_health(Health::Down, "no answer", at(3)));
        assert_eq!(seen(AdminState::Drain), (State::Down, false, false));
        assert_eq!((state.gone_ms(), state.restarted_at()), (3000, 1_000_003));
        assert!(state.set_health(Health::Up, "answers", at(9)));
        assert_eq!((seen(AdminState::Active), state.restarted_at()), ((State::Up, true, true), 1_000_009));

        assert!(state.set_mark(Some(AdminState::Drain), "operator", at(10)));
        assert_eq!(seen(AdminState::Active), (State::Drain, false, true));
        assert!(state.set_mark(Some(AdminState::Active), "operator", at(11)));
        assert_eq!(seen(AdminState::Off), (State::Up, true, true), "the mark goes before the table");
        assert!(state.set_mark(Some(AdminState::Off), "operator", at(12)));
        assert_eq!((seen(AdminState::Active), state.gone_ms()), ((State::Off, false, false), 12_000));
        assert!(state.set_mark(None, "operator", at(13)));
        assert_eq!(seen(AdminState::Active), (State::Up, true, true));
        let told = state.told();
        assert_eq!((told.since_unix_s, told.entered), (1_000_013, [3, 1, 1, 1, 1]));
    }

    /// A restart that is known from a clock that ran ahead: what was issued behind it is void by the next all the same.
    #[test]
    fn restarts_go_on_after_a_clock_that_is_set_back() {
        let state = BackendState::new("pbx1", 1);
        state.note_restart(5);
        state.note_restart(5);
        assert_eq!(state.restarted_at(), 5);
        state.note_restart(3);
        assert_eq!(state.restarted_at(), 6);
        state.note_restart(9);
        assert_eq!(state.restarted_at(), 9);
    }

    #[test]
    fn round_trips_are_smoothed() {
        let state = BackendState::new("pbx1", 1);
        assert_eq!((state.rtt(), state.last_rtt()), (None, None));
        state.measured(Duration::from_micros(800));
        assert_eq!(state.rtt(), Some(Duration::from_micros(800)));
        state.measured(Duration::from_micros(1600));
        assert_eq!(state.rtt(), Some(Duration::from_micros(900)));
        assert_eq!(state.last_rtt(), Some(Duration::from_micros(1600)));
    }

    #[test]
    fn the_registry_forgets_what_nobody_holds_or_marked() {
        let registry = Registry::default();
        let held = registry.state("held", 1);
        registry.state("gone", 1);
        registry.state("marked", 1).set_mark(Some(AdminState::Off), "", at(1));
        registry.state("gone", 1).note_restart(5);
        registry.sweep(10);
        assert_eq!((registry.len(), registry.find("gone").is_none()), (2, true));
        assert_eq!(registry.restarts(), [("gone".to_owned(), 5)].into());
        assert_eq!(registry.state("gone", 20).restarted_at(), 5, "its restart is remembered");
        registry.sweep(30);
        registry.sweep(5 + RESTARTS_S);
        assert!(registry.restarts().is_empty(), "for a day");
        assert!(Arc::ptr_eq(&held, &registry.state("held", 9)));
        assert_eq!(registry.state("marked", 9).mark(), Some(AdminState::Off));
    }
}
