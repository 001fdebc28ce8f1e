//! One backend as it is watched: when it is probed next, what its silence and the cores' signs mean, and the change of
//! its health with the one log line of it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    judge::{Judge, Outcome},
    probe::Target,
};
use crate::{
    config::table::{AdminState, ProbeSpec},
    live::{AddressState, BackendState, Health, Noticed, Now, Sign, State},
    route::Backend,
    stats::OTHER,
};

/// Between two probes of one backend, at least, whatever the signs say.
const APART_MS: u64 = 100;
/// Beyond its timeout no probe is under way: its task is lost.
const LOST_MS: u64 = 5_000;

pub(super) struct Watch {
    pub state: Arc<BackendState>,
    /// Of its requests and responses.
    pub series: u32,
    pub due_ms: u64,
    /// What the table says of it, where it is first named.
    admin: AdminState,
    /// `None`: no pool of it has probes. Where its URI names a host: the address that is asked now.
    target: Option<Arc<Target>>,
    /// Its addresses, the most wanted first; one where its URI has it.
    addresses: Vec<Address>,
    judge: Judge,
    started_ms: u64,
    under_way: bool,
    /// It was due while there was no room.
    delayed: bool,
    /// The last probe could not be sent; said once.
    unsent: bool,
    /// Since when requests to it have met with no response at all, in `Now::mono_ms`; 0: no such time.
    unheard_ms: u64,
    /// What was asked before it was watched does not count.
    watched_ms: u64,
}

/// One address of a backend, as far as probes need it.
struct Address {
    addr: SocketAddr,
    local: IpAddr,
    state: Arc<AddressState>,
}

/// So long an address is passed over that failed a probe while its backend has others; the sweep of addresses ends it.
const AVOID_MS: u64 = 30_000;

impl Watch {
    pub fn new(backend: &Backend, probe: Option<&ProbeSpec>, seed: u64, now: Now) -> Watch {
        let target = target(backend, probe);
        // The first probes of all backends are spread over an interval.
        let interval = target.as_ref().map_or(0, |target| millis(target.rules.interval)).max(1);
        let due_ms = now.mono_ms + xxh3_64_with_seed(backend.name.as_bytes(), seed) % interval;
        Watch {
            state: backend.state.clone(),
            series: backend.series,
            due_ms,
            admin: backend.admin,
            target,
            addresses: vec![Address::of(backend)],
            judge: Judge::default(),
            started_ms: 0,
            under_way: false,
            delayed: false,
            unsent: false,
            unheard_ms: 0,
            watched_ms: now.mono_ms,
        }
    }

    /// It stands in another place too: another address of it, or another pool.
    pub fn also(&mut self, backend: &Backend, probe: Option<&ProbeSpec>) {
        self.target = self.target.take().or_else(|| target(backend, probe));
        if !self.addresses.iter().any(|known| known.addr == backend.addr) {
            self.addresses.push(Address::of(backend));
        }
    }

    /// Takes over from the watch of the table before.
    pub fn go_on(&mut self, before: Watch, now: Now) {
        let same = before.target == self.target;
        self.due_ms = if same { before.due_ms } else { now.mono_ms };
        self.judge = before.judge;
        self.started_ms = before.started_ms;
        self.under_way = before.under_way;
        self.delayed = before.delayed;
        self.unsent = before.unsent;
        self.unheard_ms = before.unheard_ms;
        self.watched_ms = before.watched_ms;
    }

    pub fn is_probed(&self) -> bool {
        self.target.is_some()
    }

    /// Takes what the cores left: `asked` and `heard` are when a request last went there and a response last came.
    pub fn notice(&mut self, (asked, heard): (u64, u64), silence_ms: u64, now: Now) {
        let signs = self.state.signs.take();
        if signs & (Sign::Refused as u8 | Sign::Unreachable as u8) != 0 {
            self.sign(Noticed::Icmp, now);
        }
        if signs & Sign::Busy as u8 != 0 {
            self.sign(Noticed::Busy, now);
            self.judge.pause(self.state.signs.busy_until_ms());
        }
        if signs & Sign::Asked as u8 != 0 {
            self.prompt(now);
        }
        if self.is_silent(asked, heard, silence_ms, now) {
            self.sign(Noticed::Silence, now);
        }
        let health = self.state.health();
        if health == Health::Degraded || signs & Sign::Busy as u8 != 0 && health == Health::Up {
            let verdict = self.judge.alive(now.mono_ms, || "its pause is over".to_owned());
            if verdict.0 == Health::Up {
                self.prompt(now);
            }
            self.settle(verdict, now);
        }
    }

    fn is_silent(&mut self, asked: u64, heard: u64, silence_ms: u64, now: Now) -> bool {
        // Those beyond the bound of series share one time, which says nothing of any.
        if self.series == OTHER || asked <= self.watched_ms || asked <= heard {
            self.unheard_ms = 0;
            return false;
        }
        if self.unheard_ms == 0 || heard >= self.unheard_ms {
            self.unheard_ms = asked;
        }
        let silent = now.mono_ms.saturating_sub(self.unheard_ms) >= silence_ms;
        if silent {
            // Not again before another window has passed.
            self.unheard_ms = now.mono_ms;
        }
        silent
    }

    fn sign(&mut self, noticed: Noticed, now: Now) {
        self.state.counts.noticed[noticed as usize].fetch_add(1, Relaxed);
        self.prompt(now);
    }

    /// To be probed as soon as may be.
    fn prompt(&mut self, now: Now) {
        self.due_ms = self.due_ms.min(now.mono_ms.max(self.started_ms + APART_MS));
    }

    pub fn is_due(&self, now: Now) -> bool {
        let Some(target) = &self.target else { return false };
        let lost_ms = self.started_ms + millis(target.rules.timeout) + LOST_MS;
        let due_ms = if self.under_way { lost_ms } else { self.due_ms };
        now.mono_ms >= due_ms && self.state.state(self.admin) != State::Off
    }

    /// There is no room. True where that is new.
    pub fn delay(&mut self) -> bool {
        !std::mem::replace(&mut self.delayed, true)
    }

    pub fn start(&mut self, now: Now) -> Option<Arc<Target>> {
        self.started_ms = now.mono_ms;
        self.under_way = true;
        self.delayed = false;
        // Unless a sign comes meanwhile, what becomes of it says when the next is due.
        self.due_ms = u64::MAX;
        self.aim();
        self.target.clone()
    }

    /// The next probe goes to the first address that does not refuse.
    fn aim(&mut self) {
        let wanted = self.addresses.iter().find(|address| !address.state.is_down());
        let (Some(wanted), Some(target)) = (wanted.or(self.addresses.first()), &mut self.target) else {
            return;
        };
        if target.address != wanted.addr {
            let target = Arc::make_mut(target);
            (target.address, target.local) = (wanted.addr, wanted.local);
        }
    }

    /// Notes how the address fared that was asked. True where it failed and another may do: that is the next to be asked,
    /// before anything is said of the backend.
    fn falls_back(&self, asked: SocketAddr, outcome: Outcome, now: Now) -> bool {
        let Some(address) = self.addresses.iter().find(|known| known.addr == asked) else { return false };
        match outcome {
            Outcome::Unsent => return false,
            Outcome::Answered { .. } => {
                address.state.clear();
                return false;
            }
            Outcome::Silent | Outcome::Refused | Outcome::Unreachable | Outcome::Insecure(_) => {}
        }
        if self.addresses.len() == 1 {
            return false;
        }
        address.state.refuse(now.mono_ms + AVOID_MS);
        self.addresses.iter().any(|other| !other.state.is_down())
    }

    /// What became of its probe; `random` spreads the next one.
    pub fn probed(&mut self, outcome: Outcome, longest_pause_s: u32, random: u64, now: Now) {
        self.under_way = false;
        self.state.counts.probes[outcome.index()].fetch_add(1, Relaxed);
        let Some(target) = self.target.clone() else { return };
        if let Outcome::Answered { rtt, .. } = outcome {
            self.state.measured(rtt);
        }
        let unsent = std::mem::replace(&mut self.unsent, outcome == Outcome::Unsent);
        if self.unsent && !unsent {
            tracing::warn!(backend = %self.state.name, local = %target.local, "its probes cannot be sent from here");
        }
        if self.falls_back(target.address, outcome, now) {
            self.due_ms = now.mono_ms.max(self.started_ms + APART_MS);
            return;
        }
        let verdict =
            self.judge.probed(self.state.health(), outcome, &target.rules, longest_pause_s, now.mono_ms);
        self.settle(verdict, now);
        let (interval, timeout) = (millis(target.rules.interval), millis(target.rules.timeout));
        let next = if self.judge.is_undecided(self.state.health(), &target.rules) {
            now.mono_ms + timeout.min(interval)
        } else {
            // A tenth sooner or later, so that backends which began together do not stay together.
            let spread = interval / 5 + 1;
            self.started_ms + interval - interval / 10
                + xxh3_64_with_seed(self.state.name.as_bytes(), random) % spread
        };
        self.due_ms = self.due_ms.min(next.max(now.mono_ms));
    }

    /// The verdict, told once.
    pub fn settle(&mut self, (health, why): (Health, String), now: Now) {
        let before = self.state.health();
        if !self.state.set_health(health, &why, now) {
            return;
        }
        let (backend, was, is) = (&self.state.name, label(before), label(health));
        match health {
            Health::Up => tracing::info!(%backend, was, %why, "backend is {is}"),
            Health::Degraded | Health::Down => tracing::warn!(%backend, was, %why, "backend is {is}"),
        }
    }
}

fn label(health: Health) -> &'static str {
    match health {
        Health::Up => State::Up.label(),
        Health::Degraded => State::Degraded.label(),
        Health::Down => State::Down.label(),
    }
}

impl Address {
    fn of(backend: &Backend) -> Address {
        Address { addr: backend.addr, local: backend.local.ip(), state: backend.spread.state.clone() }
    }
}

fn target(backend: &Backend, probe: Option<&ProbeSpec>) -> Option<Arc<Target>> {
    probe.map(|rules| {
        Arc::new(Target {
            uri: backend.uri.clone(),
            address: backend.addr,
            local: backend.local.ip(),
            transport: backend.transport,
            host: std::str::from_utf8(&backend.host).unwrap_or_default().into(),
            rules: rules.clone(),
        })
    })
}

fn millis(duration: std::time::Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, unix_s: mono_ms / 1000 }
    }

    fn watch() -> Watch {
        let rules = ProbeSpec { fall: 2, ..ProbeSpec::default() };
        let address = "192.0.2.11:5060".parse().expect("an address");
        let local = "192.0.2.1".parse().expect("an address");
        let uri = "sip:192.0.2.11".into();
        let transport = crate::wire::Transport::Udp;
        let target = Target { uri, host: "192.0.2.11".into(), address, local, transport, rules };
        Watch {
            state: Arc::new(BackendState::new("pbx1", 1)),
            series: 1,
            due_ms: 60_000,
            admin: AdminState::Active,
            addresses: vec![Address { addr: target.address, local, state: Arc::default() }],
            target: Some(Arc::new(target)),
            judge: Judge::default(),
            started_ms: 0,
            under_way: false,
            delayed: false,
            unsent: false,
            unheard_ms: 0,
            watched_ms: 1_000,
        }
    }

    const OK: Outcome = Outcome::Answered { code: 200, retry_s: None, rtt: Duration::from_millis(3) };

    #[test]
    fn silence_is_a_window_without_any_response_after_a_request() {
        let mut watch = watch();
        let mut silent = |asked, heard, now| watch.is_silent(asked, heard, 2_000, at(now));
        assert!(!silent(900, 0, 9_000), "asked before it was watched");
        assert!(!silent(9_000, 9_000, 20_000) && !silent(9_000, 9_500, 20_000), "answered");
        assert!(!silent(20_000, 9_500, 20_000));
        assert!(!silent(21_500, 9_500, 21_900), "the first request counts");
        assert!(silent(21_500, 9_500, 22_000));
        assert!(!silent(22_500, 9_500, 22_500), "once in a window");
        assert!(silent(24_500, 9_500, 24_500));
        assert!(!silent(24_600, 24_550, 24_600), "one answer ends it");
        assert!(!silent(26_000, 25_900, 26_500), "some answers are missing, others come");
    }

    #[test]
    fn a_sign_makes_it_due_at_once_but_not_again_and_again() {
        let mut watch = watch();
        watch.state.signs.unreachable(Sign::Refused);
        watch.notice((0, 0), 2_000, at(5_000));
        assert!(watch.is_due(at(5_000)));
        assert!(watch.start(at(5_000)).is_some() && !watch.is_due(at(5_050)));
        // Another while the probe is under way asks for one more.
        watch.state.signs.unreachable(Sign::Refused);
        watch.notice((0, 0), 2_000, at(5_010));
        assert!(!watch.is_due(at(5_010)));
        watch.probed(OK, 300, 7, at(5_020));
        assert!(!watch.is_due(at(5_099)) && watch.is_due(at(5_100)), "{}", watch.due_ms);
        watch.start(at(5_100));
        watch.probed(OK, 300, 8, at(5_103));
        assert!((4_500..=5_500).contains(&(watch.due_ms - 5_100)), "an interval, a tenth more or less");
        assert_eq!(watch.state.counts.noticed[Noticed::Icmp as usize].load(Relaxed), 2);
    }

    #[test]
    fn one_that_falls_or_rises_is_asked_sooner_and_one_that_is_off_never() {
        let mut watch = watch();
        watch.start(at(10_000));
        watch.probed(Outcome::Silent, 300, 1, at(11_000));
        assert_eq!(watch.due_ms, 12_000, "again after the timeout");
        watch.start(at(12_000));
        watch.probed(Outcome::Silent, 300, 2, at(13_000));
        assert_eq!(watch.state.health(), Health::Down);
        assert!((16_500..=17_500).contains(&watch.due_ms), "{}", watch.due_ms);
        watch.start(at(17_000));
        watch.probed(OK, 300, 3, at(17_003));
        assert_eq!((watch.state.health(), watch.due_ms), (Health::Down, 18_003));
        watch.start(at(18_003));
        watch.probed(OK, 300, 4, at(18_006));
        assert_eq!(watch.state.health(), Health::Up);
        watch.state.set_mark(Some(AdminState::Off), "", at(19_000));
        assert!(!watch.is_due(at(1_000_000)));
        watch.state.set_mark(Some(AdminState::Drain), "", at(20_000));
        assert!(watch.is_due(at(1_000_000)), "what it has goes on, so it is asked");
        watch.start(at(1_000_000));
        assert!(!watch.is_due(at(1_005_999)) && watch.is_due(at(1_006_000)), "a probe that is lost");
    }

    #[test]
    fn of_several_addresses_the_next_is_asked_before_the_backend_is_judged() {
        let mut watch = watch();
        let (first, second) = (watch.addresses[0].addr, "192.0.2.12:5060".parse().expect("an address"));
        watch.addresses.push(Address {
            addr: second,
            local: watch.addresses[0].local,
            state: Arc::default(),
        });
        let ask = |watch: &mut Watch, outcome, ms| {
            let target = watch.start(at(ms)).expect("it is probed");
            watch.probed(outcome, 300, 1, at(ms));
            (target.address, watch.state.health())
        };
        assert_eq!(ask(&mut watch, OK, 10_000), (first, Health::Up));
        assert_eq!(ask(&mut watch, Outcome::Refused, 20_000), (first, Health::Up));
        assert!(watch.addresses[0].state.is_down() && watch.is_due(at(20_100)));
        assert_eq!(ask(&mut watch, OK, 20_100), (second, Health::Up));
        // None is left: now it is the backend.
        assert_eq!(ask(&mut watch, Outcome::Refused, 30_000), (second, Health::Down));
        assert_eq!(ask(&mut watch, OK, 40_000), (first, Health::Down));
        assert!(!watch.addresses[0].state.is_down(), "it answers again");
        assert_eq!(ask(&mut watch, OK, 41_000), (first, Health::Up));
    }

    #[test]
    fn a_pause_ends_by_itself_and_is_told_twice() {
        let mut watch = watch();
        let busy = Outcome::Answered { code: 503, retry_s: Some(4), rtt: Duration::ZERO };
        watch.start(at(10_000));
        watch.probed(busy, 300, 1, at(10_000));
        watch.notice((0, 0), 2_000, at(13_999));
        assert_eq!(watch.state.health(), Health::Degraded);
        watch.notice((0, 0), 2_000, at(14_000));
        assert_eq!((watch.state.health(), watch.is_due(at(14_000))), (Health::Up, true));
        assert_eq!(watch.state.told().entered, [1, 1, 0, 0, 0]);
    }
}
