//! The certificates and keys of TLS listeners, as the router would read them: faults, dates, modes.

use super::{Check, Verdict};
use crate::{
    config::{Settings, tls},
    net,
};

const NEEDS: &str = "sound files, valid for two weeks more, keys that only their owner reads";

/// Nothing where no listener has TLS.
pub fn checks(settings: &Settings) -> Vec<Check> {
    let now = net::now().unix_s;
    let (told, until_s) = match tls::load(settings, now) {
        Ok(loaded) => (loaded.warnings, loaded.until_s),
        Err(faults) => (faults, None),
    };
    let complaint = |fault: crate::config::Diagnostic| {
        let verdict = if fault.is_error() { Verdict::Fail } else { Verdict::Warn };
        let place = format!("{}:{}", fault.file, fault.line);
        Check::new("certificates", place, NEEDS, &fault.message).unless(false, verdict, "", "")
    };
    let mut checks: Vec<Check> = told.into_iter().map(complaint).collect();
    if let (true, Some(until_s)) = (checks.is_empty(), until_s) {
        let value = format!("valid for {} days", until_s.saturating_sub(now) / 86_400);
        checks.push(Check::new("certificates", value, NEEDS, "phones refuse an expired certificate"));
    }
    checks
}
