//! The bans in sets of nftables, so that the kernel may drop what banned sources send before it costs us anything. The sets
//! and the rule that drops are the operator's; what is in the sets is ours: they are emptied at the start.
//!
//! One run of `nft` tells all that has changed, whole or not at all. Where that fails the sets are filled anew from the
//! beginning, every ten seconds until it works.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use super::{Router, written};
use crate::{config::settings::NftSets, net, stats::ProcessCounter};

/// After a failure, in milliseconds.
const PAUSE_MS: u64 = 10_000;

pub(super) struct Mirror {
    sets: NftSets,
    /// What the sets hold; `None` where nobody knows.
    held: Option<BTreeSet<IpAddr>>,
    version: u64,
    not_before_ms: u64,
}

impl Mirror {
    pub fn new(sets: NftSets) -> Mirror {
        Mirror { sets, held: None, version: 0, not_before_ms: 0 }
    }

    /// Makes the sets hold what is banned now.
    pub fn follow(&mut self, router: &Router) {
        let (bans, now) = (&router.shared.bans, net::now());
        let version = bans.version();
        if self.held.is_some() && version == self.version || now.mono_ms < self.not_before_ms {
            return;
        }
        let present: BTreeSet<IpAddr> = bans.list(now.unix_s).into_iter().map(|(ip, _)| ip).collect();
        let script = script(&self.sets, self.held.as_ref(), &present);
        match tell(&script) {
            Ok(()) => (self.held, self.version) = (Some(present), version),
            Err(error) => {
                tracing::error!(%error, "the sets of nftables cannot be made to hold the bans");
                router.process.add(ProcessCounter::BanMirrorFailures, 1);
                self.held = None;
                self.not_before_ms = now.mono_ms + PAUSE_MS;
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

fn tell(script: &str) -> std::io::Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let mut nft =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(std::io::Error::other(said.lines().next().unwrap_or("nft failed").to_owned()))
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
}
