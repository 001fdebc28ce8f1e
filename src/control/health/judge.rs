//! From the outcomes of probes to a verdict (SPEC 8.1). Pure: no socket, no clock, no log.
//!
//! So many failures in a row make a backend down, so many answers in a row up again. ICMP's word that nobody listens
//! needs no second. An answer of 503 with Retry-After is an answer, and a pause for as long as it says.

use std::time::Duration;

use crate::{config::table::ProbeSpec, live::Health, net::streams::TlsFault};

/// What became of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final response, with its Retry-After where it is a 503.
    Answered { code: u16, retry_s: Option<u32>, rtt: Duration },
    /// Nothing came in time.
    Silent,
    /// ICMP port unreachable.
    Refused,
    /// ICMP host or network unreachable, or the kernel knows no way.
    Unreachable,
    /// It listens, but TLS with it fails.
    Insecure(TlsFault),
    /// It could not be sent for a reason of ours (no socket, no such address): says nothing of the backend.
    Unsent,
}

impl Outcome {
    /// Its place in `live::PROBES`.
    pub fn index(self) -> usize {
        match self {
            Outcome::Answered { .. } => 0,
            Outcome::Silent => 1,
            Outcome::Refused => 2,
            Outcome::Unreachable => 3,
            Outcome::Unsent => 4,
            Outcome::Insecure(_) => 5,
        }
    }
}

/// Outcomes in a row, of one kind or the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judge {
    failed: u32,
    answered: u32,
    /// Until when it asked for a pause, in `Now::mono_ms`.
    pause_until_ms: u64,
}

impl Judge {
    /// What the backend's health is after this outcome, and why, for people.
    pub fn probed(
        &mut self,
        before: Health,
        outcome: Outcome,
        rules: &ProbeSpec,
        longest_pause_s: u32,
        now_ms: u64,
    ) -> (Health, String) {
        let method = &rules.method;
        let failure = match outcome {
            Outcome::Unsent => return (before, String::new()),
            Outcome::Refused => {
                self.failed = rules.fall;
                self.answered = 0;
                return (Health::Down, "nobody listens at its address (ICMP)".to_owned());
            }
            Outcome::Answered { retry_s: Some(seconds), .. } => {
                self.pause(now_ms + u64::from(seconds.min(longest_pause_s)) * 1000);
                None
            }
            Outcome::Answered { code, .. } if rules.accepts(code) => None,
            Outcome::Answered { code, .. } => Some(format!("answers {code} to {method}")),
            Outcome::Silent => Some(format!("does not answer {method}")),
            Outcome::Insecure(fault) => Some(format!("TLS with it fails: {}", fault.explained())),
            Outcome::Unreachable => Some("its address cannot be reached (ICMP)".to_owned()),
        };
        if let Some(failure) = failure {
            self.answered = 0;
            self.failed = self.failed.saturating_add(1);
            return if self.failed >= rules.fall {
                (Health::Down, format!("{failure}, {} in a row", self.failed))
            } else {
                (before, String::new())
            };
        }
        self.failed = 0;
        self.answered = self.answered.saturating_add(1);
        if before == Health::Down && self.answered < rules.rise {
            return (Health::Down, String::new());
        }
        self.alive(now_ms, || format!("answers {method}"))
    }

    /// It asks for a pause, or goes on asking.
    pub fn pause(&mut self, until_ms: u64) {
        self.pause_until_ms = self.pause_until_ms.max(until_ms);
    }

    /// The health of one that is not down: up, or degraded while its pause lasts.
    pub fn alive(&self, now_ms: u64, up: impl Fn() -> String) -> (Health, String) {
        match self.pause_until_ms.saturating_sub(now_ms) {
            0 => (Health::Up, up()),
            left => (Health::Degraded, format!("answers 503, retry after {} s", left.div_ceil(1000))),
        }
    }

    /// In the middle of falling or rising: the next probe comes sooner.
    pub fn is_undecided(&self, health: Health, rules: &ProbeSpec) -> bool {
        match health {
            Health::Down => self.answered > 0,
            Health::Up | Health::Degraded => self.failed > 0 && self.failed < rules.fall,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OK: Outcome = Outcome::Answered { code: 200, retry_s: None, rtt: Duration::ZERO };
    const ERROR: Outcome = Outcome::Answered { code: 500, retry_s: None, rtt: Duration::ZERO };
    const BUSY: Outcome = Outcome::Answered { code: 503, retry_s: Some(20), rtt: Duration::ZERO };

    /// The health after each outcome, one a second.
    fn course(outcomes: &[Outcome]) -> Vec<Health> {
        let (mut judge, mut health) = (Judge::default(), Health::Up);
        let rules = ProbeSpec::default();
        let steps = outcomes.iter().zip(1..).map(|(outcome, s)| {
            health = judge.probed(health, *outcome, &rules, 300, s * 1000).0;
            health
        });
        steps.collect()
    }

    #[test]
    fn three_failures_in_a_row_make_it_down_and_two_answers_up() {
        use Health::{Down, Up};
        use Outcome::Silent;
        assert_eq!(course(&[Silent, ERROR, OK, Silent, Silent]), [Up; 5]);
        assert_eq!(course(&[Silent, ERROR, Outcome::Unreachable, OK, OK]), [Up, Up, Down, Down, Up]);
        assert_eq!(course(&[Silent, Silent, Silent, OK, Silent, OK, OK])[2..], [Down, Down, Down, Down, Up]);
        assert_eq!(course(&[Silent, Silent, Outcome::Unsent, Outcome::Unsent]), [Up; 4]);
    }

    #[test]
    fn refused_is_down_at_once() {
        use Health::{Down, Up};
        assert_eq!(course(&[Outcome::Refused, OK, Outcome::Refused, OK, OK]), [Down, Down, Down, Down, Up]);
    }

    #[test]
    fn a_pause_lasts_as_long_as_it_was_asked_for() {
        use Health::{Degraded, Down, Up};
        assert_eq!(course(&[BUSY, OK, OK]), [Degraded; 3]);
        let mut long = vec![BUSY];
        long.extend([OK; 21]);
        assert_eq!(course(&long)[18..], [Degraded, Degraded, Up, Up]);
        let silent = Outcome::Silent;
        assert_eq!(course(&[silent, silent, silent, BUSY, BUSY])[2..], [Down, Down, Degraded]);
        let mut judge = Judge::default();
        let month = Outcome::Answered { code: 503, retry_s: Some(2_592_000), rtt: Duration::ZERO };
        judge.probed(Up, month, &ProbeSpec::default(), 300, 0);
        assert_eq!(judge.alive(300_000, String::new).0, Up, "no longer than the settings allow");
    }

    proptest! {
        /// Whatever comes: a backend that is down was refused or failed `fall` times in a row since it last answered
        /// `rise` times in a row.
        #[test]
        fn down_has_its_reason(steps in proptest::collection::vec(0u8..4, 1..200)) {
            let outcomes = [OK, ERROR, Outcome::Silent, Outcome::Refused];
            let course = course(&steps.iter().map(|s| outcomes[usize::from(*s)]).collect::<Vec<_>>());
            let (mut down, mut failed, mut answered) = (false, 0, 0);
            for (step, health) in steps.iter().zip(course) {
                (failed, answered) = if *step == 0 { (0, answered + 1) } else { (failed + 1, 0) };
                down = (down && answered < 2) || *step == 3 || failed >= 3;
                prop_assert_eq!(health == Health::Down, down);
            }
        }
    }
}
