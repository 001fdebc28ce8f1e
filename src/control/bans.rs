//! Bans (SPEC 10): judges what the cores ask for, lets bans begin and end, keeps them over a restart, mirrors them into
//! nftables, and does what the operator says.
//!
//! Never banned, by nobody's wish: `[trust]` and exempt prefixes, and addresses of backends, those included that left within
//! a day. Control is the only one who writes `live::Bans`; workers are woken where one begins, and see an end by themselves.

pub(super) mod mirror;

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Router,
    state_dir::{Kept, StateDir},
    tasks,
};
use crate::{
    live::{Ban, Cause, buckets},
    net,
    stats::{ProcessCounter, Sample, names},
    worker::Worker,
};

/// How often the cores' questions are looked at.
const EVERY: Duration = Duration::from_millis(250);
/// Bans that are logged one by one of each look; the rest is a number.
const LOGGED: usize = 5;
/// Longest ban that the operator may ask for, in seconds.
const LONGEST_S: u64 = 10 * 365 * 86_400;

/// One ban as people see it.
#[derive(Debug, serde::Serialize)]
pub struct Listed {
    /// An IPv4 address, or the /64 of an IPv6 one.
    pub source: String,
    pub cause: Cause,
    pub since_unix_s: u64,
    pub until_unix_s: u64,
    /// How often in a row.
    pub times: u32,
}

/// All that are in force.
#[derive(Debug, serde::Serialize)]
pub struct Banned {
    pub limit: usize,
    pub bans: Vec<Listed>,
}

/// Whom the operator bans, and for how long.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub address: IpAddr,
    /// Default: `ban_time`, doubled as for others.
    pub seconds: Option<u64>,
}

impl Router {
    pub fn bans(&self) -> Banned {
        let list = self.shared.bans.list(net::now().unix_s);
        Banned { limit: self.shared.bans.terms().most, bans: list.into_iter().map(listed).collect() }
    }

    /// Bans an address; `Err` says why not.
    pub fn ban(&self, wanted: &Wanted) -> Result<(), String> {
        if let Some(who) = self.spared(wanted.address) {
            return Err(format!("{} is {who}: it is never banned", wanted.address));
        }
        if wanted.seconds.is_some_and(|seconds| seconds == 0 || seconds > LONGEST_S) {
            return Err(format!("a ban lasts from 1 s to {LONGEST_S} s"));
        }
        let one = [(wanted.address, Cause::Operator, wanted.seconds)];
        if self.shared.bans.begin(one, net::now().unix_s) > 0 {
            self.process.add(ProcessCounter::BansLeftOut, 1);
            let most = self.shared.bans.terms().most;
            return Err(format!("there is room for {most} bans only (bans in [protection])"));
        }
        tracing::warn!(address = %wanted.address, "banned by the operator");
        self.process.add(ProcessCounter::BansOperator, 1);
        self.wake();
        Ok(())
    }

    /// Lifts a ban. False where there is none.
    pub fn lift(&self, address: IpAddr) -> bool {
        let lifted = self.shared.bans.lift(address, net::now().unix_s);
        if lifted {
            tracing::info!(%address, "ban lifted by the operator");
            self.process.add(ProcessCounter::BansLifted, 1);
        }
        lifted
    }

    fn wake(&self) {
        self.workers.lock().iter().for_each(Worker::wake);
    }

    /// Who it is that is never banned. A ban of an IPv6 address is one of its /64: nobody in it may be spared.
    fn spared(&self, address: IpAddr) -> Option<&'static str> {
        let source = buckets::source(address);
        let last = match source {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() | u64::MAX as u128).into(),
            four => four,
        };
        let pools = self.tables.current().load();
        if self.setup.exempt.intersects(source, last) {
            Some("exempt or trusted")
        } else if pools.pools.hosts().any(|host| buckets::source(host) == source) {
            Some("a backend's address")
        } else {
            None
        }
    }

    /// Begins what the cores ask for, ends what is over. True where any begins.
    fn judge_bans(&self) -> bool {
        let asked = self.shared.bans.take_asked();
        let before = self.shared.bans.begun();
        let now = net::now().unix_s;
        let wanted: Vec<_> = asked.into_iter().filter(|(ip, _)| self.spared(*ip).is_none()).collect();
        if !wanted.is_empty() {
            let begin = wanted.iter().map(|&(ip, cause)| (ip, cause, None));
            let left_out = self.shared.bans.begin(begin, now);
            self.process.add(ProcessCounter::BansLeftOut, left_out as u64);
            for (at, &(ip, cause)) in wanted.iter().enumerate() {
                let counter = match cause {
                    Cause::Malformed => ProcessCounter::BansMalformed,
                    Cause::Excess => ProcessCounter::BansExcess,
                    Cause::Operator => ProcessCounter::BansOperator,
                };
                self.process.add(counter, 1);
                if at < LOGGED {
                    tracing::warn!(source = %written(ip), cause = cause.label(), "banned");
                }
            }
            if wanted.len() > LOGGED || left_out > 0 {
                tracing::warn!(more = wanted.len().saturating_sub(LOGGED), left_out, "banned at once");
            }
        }
        self.shared.bans.sweep(now);
        self.shared.bans.begun() != before
    }

    /// The limit of being behind, for a scrape: a fraction of a second.
    pub(super) fn patience_sample(&self) -> Sample {
        let of = &self.settings.protection;
        let value = if of.shed { of.behind.as_secs_f64() } else { 0.0 };
        Sample { metric: &names::OVERLOAD_BEHIND_LIMIT, labels: Vec::new(), value }
    }
}

/// Looks at what the cores ask for, as long as the router lives.
pub(super) async fn watch(router: Arc<Router>, state_dir: Option<StateDir>) {
    let kept = Arc::new(Mutex::new(Kept::new(router.shared.bans.book())));
    let mut often = tokio::time::interval(EVERY);
    often.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        often.tick().await;
        let process = router.process.clone();
        let (router, state_dir, kept) = (router.clone(), state_dir.clone(), kept.clone());
        let look = tokio::task::spawn_blocking(move || {
            if router.judge_bans() {
                router.wake();
            }
            if let Some(dir) = &state_dir {
                let present = router.shared.bans.book();
                kept.lock().keep("bans", present, net::now(), |bans| dir.write_bans(bans));
            }
        });
        // The next time it is tried again.
        if let Err(error) = look.await {
            tasks::tell(&process, "bans", &error);
        }
    }
}

fn listed((ip, ban): (IpAddr, Ban)) -> Listed {
    let Ban { cause, since_unix_s, until_unix_s, times } = ban;
    Listed { source: written(ip), cause, since_unix_s, until_unix_s, times }
}

/// A source as people and `nft` write it.
fn written(ip: IpAddr) -> String {
    match buckets::source(ip) {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("{ip}/64"),
    }
}
