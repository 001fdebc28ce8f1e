//! The bans in sets of nftables, so that the kernel may drop what banned sources send before it costs us anything. The sets
//! and the rule that drops are the operator's; what is in the sets is ours: they are emptied at the start.
//!
//! One run of `nft` tells all that has changed, whole or not at all, in bounded time. Where that fails the sets are filled
//! anew from the beginning, every ten seconds until it works. Bans do not wait for it: it is turned beside their `watch`.

use std::{
    collections::BTreeSet, fmt::Write as _, io, net::IpAddr, process::Stdio, sync::Arc, time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::{EVERY, Router, written};
use crate::{config::settings::NftSets, net, stats::ProcessCounter};

/// After a failure, in milliseconds.
const PAUSE_MS: u64 = 10_000;
/// One that runs longer is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is read of what one says, in bytes.
const SAID: u64 = 4096;

/// Follows the bans as long as the router lives; at once over where there are no sets.
pub(in crate::control) async fn watch(router: Arc<Router>) {
    let Some(sets) = router.settings.protection.nftables.clone() else { return };
    let mut mirror = Mirror::new(sets);
    let mut often = tokio::time::interval(EVERY);
    often.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        often.tick().await;
        if mirror.is_behind(&router) {
            mirror.follow(&router).await;
        }
    }
}

struct Mirror {
    sets: NftSets,
    /// What the sets hold; `None` where nobody knows.
    held: Option<BTreeSet<IpAddr>>,
    version: u64,
    not_before_ms: u64,
}

impl Mirror {
    fn new(sets: NftSets) -> Mirror {
        Mirror { sets, held: None, version: 0, not_before_ms: 0 }
    }

    /// There is something to be told, and it may be tried.
    fn is_behind(&self, router: &Router) -> bool {
        let is_right = self.held.is_some() && self.version == router.shared.bans.version();
        !is_right && net::now().mono_ms >= self.not_before_ms
    }

    /// Makes the sets hold what is banned now.
    async fn follow(&mut self, router: &Router) {
        let (bans, now) = (&router.shared.bans, net::now());
        let version = bans.version();
        let present: BTreeSet<IpAddr> = bans.list(now.unix_s).into_iter().map(|(ip, _)| ip).collect();
        let script = script(&self.sets, self.held.as_ref(), &present);
        match tell(Command::new("nft").args(["-f", "-"]), &script, PATIENCE).await {
            Ok(()) => (self.held, self.version) = (Some(present), version),
            Err(error) => {
                tracing::error!(%error, "the sets of nftables cannot be made to hold the bans");
                router.process.add(ProcessCounter::BanMirrorFailures, 1);
                self.held = None;
                self.not_before_ms = net::now().mono_ms + PAUSE_MS;
            }
        }
    }
}

/// What `nft` is told: from nothing where nobody knows what the sets hold.
fn script(sets: &NftSets, held: Option<&BTreeSet<IpAddr>>, present: &BTreeSet<IpAddr>) -> String {
    let empty = BTreeSet::new();
    let before = held.unwrap_or(&empty);
    let mut script = String::new();
    for (set, four) in [(&sets.ipv4, true), (&sets.ipv6, false)] {
        let Some(set) = set else { continue };
        if held.is_none() {
            let _ = writeln!(script, "flush set {set}");
        }
        let mut change = |verb: &str, of: Vec<String>| {
            if !of.is_empty() {
                // Writing to a String cannot fail.
                let _ = writeln!(script, "{verb} element {set} {{ {} }}", of.join(", "));
            }
        };
        let of = |a: &BTreeSet<IpAddr>, b: &BTreeSet<IpAddr>| -> Vec<String> {
            a.difference(b).filter(|ip| ip.is_ipv4() == four).map(|ip| written(*ip)).collect()
        };
        change("delete", of(before, present));
        change("add", of(present, before));
    }
    script
}

/// Has a program read `script`; an error where it does not take it, or not within `patience`: then it is killed.
async fn tell(program: &mut Command, script: &str, patience: Duration) -> io::Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let mut child = program.stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let mut said = Vec::new();
    let talk = async {
        let tell = async {
            // Who does not hear all of it says why, or fails.
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(script.as_bytes()).await;
            }
        };
        let hear = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(SAID).read_to_end(&mut said).await;
            }
        };
        tokio::join!(tell, hear);
        child.wait().await
    };
    let Ok(status) = tokio::time::timeout(patience, talk).await else {
        child.kill().await?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {patience:?}")));
    };
    if status?.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    Err(io::Error::other(said.lines().next().unwrap_or("nft failed").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nft_is_told_what_has_changed() {
        let sets = NftSets { ipv4: Some("inet f four".into()), ipv6: Some("inet f six".into()) };
        let of = |written: &[&str]| -> BTreeSet<IpAddr> {
            written.iter().map(|ip| ip.parse().expect("an address")).collect()
        };
        let first = of(&["192.0.2.1", "192.0.2.2", "2001:db8::"]);
        let told = "flush set inet f four\nadd element inet f four { 192.0.2.1, 192.0.2.2 }\n\
                    flush set inet f six\nadd element inet f six { 2001:db8::/64 }\n";
        assert_eq!(script(&sets, None, &first), told);
        let told = "delete element inet f four { 192.0.2.2 }\nadd element inet f four { 192.0.2.3 }\n\
                    delete element inet f six { 2001:db8::/64 }\n";
        assert_eq!(script(&sets, Some(&first), &of(&["192.0.2.1", "192.0.2.3"])), told);
        assert_eq!(script(&sets, Some(&first), &first), "");
        assert_eq!(script(&NftSets::default(), None, &first), "");
    }

    async fn run(script: &str, told: &str, patience: Duration) -> io::Result<()> {
        tell(Command::new("sh").args(["-c", script]), told, patience).await
    }

    #[tokio::test]
    async fn what_a_run_comes_to() {
        let (long, patience) = (format!("{}\n", "x".repeat(100)).repeat(10_000), Duration::from_secs(60));
        assert!(
            run("test $(wc -c) = 1010000", &long, patience).await.is_ok(),
            "more than a pipe holds, whole"
        );
        let failed = run("cat >&2; exit 1", "no such set\nat all\n", patience).await;
        assert_eq!(failed.map_err(|error| error.to_string()), Err("no such set".to_owned()));
        let deaf = run("exec 0<&-; exit 2", &long, patience).await;
        assert_eq!(deaf.map_err(|error| error.to_string()), Err("nft failed".to_owned()));
        assert!(run("exit 1", "", patience).await.is_ok(), "nothing to be told");
    }

    /// One that waits for a lock of somebody who never lets go, and reads nothing.
    #[tokio::test]
    async fn one_that_does_not_end_is_killed() {
        let dir = std::env::temp_dir().join(format!("tidings-nft-{}", std::process::id()));
        let long = "x\n".repeat(100_000);
        let slow = format!("echo $$ >{}; exec sleep 600", dir.display());
        let failed = run(&slow, &long, Duration::from_millis(500)).await.expect_err("it does not end");
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
        let pid = std::fs::read_to_string(&dir).expect("it began");
        std::fs::remove_file(&dir).expect("ours");
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "it is gone");
    }
}
