//! `probe` of a `[[pool]]`: how its backends are asked whether they live (SPEC 8.1). Absent: OPTIONS every five seconds.

use std::{ops::RangeInclusive, time::Duration};

use toml::de::DeValue;

use super::super::{
    document::{Faults, Value, in_order, quoted},
    headers,
    settings::time,
};

const KEYS: [&str; 6] = ["method", "interval", "timeout", "fall", "rise", "codes"];

/// Methods that would leave something behind, or mean nothing alone.
const NO_PROBE: [&str; 10] =
    ["INVITE", "ACK", "CANCEL", "BYE", "PRACK", "UPDATE", "REGISTER", "SUBSCRIBE", "NOTIFY", "PUBLISH"];

/// Default of `migrate_after` (SPEC 8.6).
pub const MIGRATE_AFTER: Duration = Duration::from_secs(30);
/// Longest interval, and longest `migrate_after`.
pub const LONGEST: Duration = Duration::from_secs(3600);
const SHORTEST: Duration = Duration::from_millis(100);

/// How a backend is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    pub method: String,
    pub interval: Duration,
    /// How long an answer is waited for; at most the interval.
    pub timeout: Duration,
    /// So many failures in a row make it down, so many answers in a row up again.
    pub fall: u32,
    pub rise: u32,
    /// Final responses that say: alive.
    pub codes: Vec<RangeInclusive<u16>>,
}

impl Default for ProbeSpec {
    fn default() -> ProbeSpec {
        ProbeSpec {
            method: "OPTIONS".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
            // Whoever refuses OPTIONS, or does not know it, or wants a password for it, is there.
            codes: vec![200..=499, 501..=501],
        }
    }
}

impl ProbeSpec {
    pub fn accepts(&self, code: u16) -> bool {
        self.codes.iter().any(|range| range.contains(&code))
    }
}

/// `"off"` (`None`) or a table; the default where it is faulty.
pub(super) fn read(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<ProbeSpec> {
    let mut probe = ProbeSpec::default();
    let table = match value.get_ref() {
        DeValue::String(text) if text == "off" => return None,
        DeValue::Table(table) => table,
        DeValue::String(text) => {
            let message = format!(
                "probe: {} is neither \"off\" nor a table such as {{ interval = \"5s\", timeout = \"1s\" }}",
                quoted(text)
            );
            faults.error(value.span(), message);
            return Some(probe);
        }
        _ => {
            faults.wrong_type(
                "probe",
                value,
                "\"off\" or a table such as { interval = \"5s\", timeout = \"1s\" }",
            );
            return Some(probe);
        }
    };
    let mut timeout_at = None;
    for (key, value) in in_order(table) {
        match key.get_ref().as_ref() {
            "method" => method(faults, value, &mut probe.method),
            "interval" => interval(faults, "interval", value, &mut probe.interval),
            "timeout" => {
                timeout_at = Some(value.span());
                interval(faults, "timeout", value, &mut probe.timeout);
            }
            "fall" => times(faults, "fall", value, &mut probe.fall),
            "rise" => times(faults, "rise", value, &mut probe.rise),
            "codes" => codes(faults, value, &mut probe.codes),
            _ => faults.unknown_key(key, "probe", KEYS),
        }
    }
    match timeout_at {
        Some(at) if probe.timeout > probe.interval => {
            faults.error(at, "probe: the timeout is longer than the interval");
        }
        // Who shortens the interval alone means the timeout too.
        None => probe.timeout = probe.timeout.min(probe.interval),
        Some(_) => {}
    }
    Some(probe)
}

fn method(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut String) {
    let Some(text) = faults.string("method", value) else { return };
    if !headers::is_token(text.value) {
        faults.error(text.span, format!("probe: {} is no method", quoted(text.value)));
    } else if NO_PROBE.contains(&text.value) {
        faults.error(
            text.span,
            format!("probe: {} is no method to probe with, OPTIONS is", quoted(text.value)),
        );
    } else {
        text.value.clone_into(out);
    }
}

fn interval(faults: &mut Faults<'_>, key: &str, value: &Value<'_>, out: &mut Duration) {
    let at = value.span();
    match time(faults, key, value, LONGEST) {
        Some(duration) if duration < SHORTEST => faults.error(at, format!("{key}: less than 100 ms")),
        Some(duration) => *out = duration,
        None => {}
    }
}

fn times(faults: &mut Faults<'_>, key: &str, value: &Value<'_>, out: &mut u32) {
    if let Some(number) = faults.integer(key, value, 1..=100).and_then(|number| u32::try_from(number).ok()) {
        *out = number;
    }
}

/// `[200, "400-499"]`
fn codes(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Vec<RangeInclusive<u16>>) {
    let Some(items) = faults.array("codes", value) else { return };
    if items.is_empty() {
        faults.error(value.span(), "codes: the list is empty; leave the key out instead");
        return;
    }
    out.clear();
    for item in items.iter() {
        let range = match item.get_ref() {
            DeValue::String(text) => match range(text) {
                Some(range) => range,
                None => {
                    let message =
                        format!("codes: {} is no range of final responses such as \"200-299\"", quoted(text));
                    faults.error(item.span(), message);
                    continue;
                }
            },
            _ => match faults.integer("codes", item, 200..=699).and_then(|code| u16::try_from(code).ok()) {
                Some(code) => code..=code,
                None => continue,
            },
        };
        out.push(range);
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-')?;
    let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
    (200 <= low && low <= high && high <= 699).then_some(low..=high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_final_responses() {
        assert_eq!(range("200-299"), Some(200..=299));
        assert_eq!(range("486 - 486"), Some(486..=486));
        for text in ["100-299", "299-200", "200-700", "200", "-", "2xx-3xx", ""] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn by_default_a_busy_or_broken_one_does_not_count_as_alive() {
        let alive: Vec<u16> = (200..700).filter(|code| ProbeSpec::default().accepts(*code)).collect();
        assert!([200, 401, 404, 405, 483, 489, 501].iter().all(|code| alive.contains(code)));
        assert!([500, 502, 503, 504, 600].iter().all(|code| !alive.contains(code)));
    }
}
