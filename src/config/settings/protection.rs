//! `[protection]`: who may speak at all, how fast, who is banned for how long, and when new work is shed (SPEC 10).

use std::time::Duration;

use ipnet::IpNet;

use super::{
    super::document::{Faults, Value, in_order, quoted},
    read::{as_usize, at_least_a_second, networks, set, time},
};

/// Who may speak, how fast, and what becomes of those who do not keep to it. Backends and `[trust] prefixes` are never
/// denied, limited or banned.
#[derive(Clone, Debug)]
pub struct Protection {
    /// Where any are written: from nobody else anything is taken.
    pub allow: Vec<IpNet>,
    /// From these nothing is taken; goes before `allow`.
    pub deny: Vec<IpNet>,
    /// Neither limited nor banned.
    pub exempt: Vec<IpNet>,
    /// Requests outside of dialogs that one source may begin in a second and at once, on each core; 0: any number.
    pub new_dialogs: u32,
    pub new_dialogs_burst: u32,
    /// 503s that one source is given in a second for those beyond it; further ones are dropped.
    pub answers: u32,
    /// Malformed messages of one source that are answered in a second and at once; further ones are dropped. 0: all are.
    pub malformed: u32,
    pub malformed_burst: u32,
    /// Retry-After of these 503s and of those of an overload.
    pub retry_after: Duration,
    /// Sources that a core keeps count of.
    pub sources: usize,
    /// Bans in force at one time.
    pub bans: usize,
    /// So many messages of a source dropped within `ban_window` are a reason to ban it; 0: nobody is banned by itself.
    pub ban_after: u32,
    pub ban_window: Duration,
    pub ban_time: Duration,
    /// Each further ban of a source lasts twice as long, up to `ban_longest`.
    pub ban_doubles: bool,
    pub ban_longest: Duration,
    /// What comes over UDP is a reason too, although anybody can write anybody's address on a datagram.
    pub ban_datagrams: bool,
    /// Users of the Request-URI that call for help, beside `urn:service:sos`: never limited, never shed.
    pub emergency: Vec<String>,
    /// New requests are shed while a core is behind.
    pub shed: bool,
    /// A core is behind that has not emptied its queues for so long; and it has caught up once it was not for `calm`.
    pub behind: Duration,
    pub calm: Duration,
    /// Sets of nftables that mirror the bans.
    pub nftables: Option<NftSets>,
}

/// Family, table and set, as `nft` writes them; one for each family of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NftSets {
    pub ipv4: Option<String>,
    pub ipv6: Option<String>,
}

impl Default for Protection {
    fn default() -> Protection {
        Protection {
            allow: Vec::new(),
            deny: Vec::new(),
            exempt: Vec::new(),
            new_dialogs: 200,
            new_dialogs_burst: 4_000,
            answers: 100,
            malformed: 10,
            malformed_burst: 100,
            retry_after: Duration::from_secs(5),
            sources: 32_768,
            bans: 10_000,
            ban_after: 1_000,
            ban_window: Duration::from_secs(60),
            ban_time: Duration::from_secs(300),
            ban_doubles: true,
            ban_longest: Duration::from_secs(86_400),
            ban_datagrams: false,
            emergency: ["112", "911", "999", "000", "110", "119"].map(str::to_owned).into(),
            shed: true,
            behind: Duration::from_millis(100),
            calm: Duration::from_secs(1),
            nftables: None,
        }
    }
}

pub(super) const KEYS: [&str; 22] = [
    "allow",
    "deny",
    "exempt",
    "new_dialogs",
    "new_dialogs_burst",
    "answers",
    "malformed",
    "malformed_burst",
    "retry_after",
    "sources",
    "bans",
    "ban_after",
    "ban_window",
    "ban_time",
    "ban_doubles",
    "ban_longest",
    "ban_datagrams",
    "emergency",
    "shed",
    "behind",
    "calm",
    "nftables",
];
/// Messages a second and at once, at most: a bucket counts in thousandths.
const MOST: u64 = 1_000_000;

pub(super) fn protection(faults: &mut Faults<'_>, value: &Value<'_>, out: &mut Protection) {
    let Some(table) = faults.table("protection", value) else { return };
    let day = Duration::from_secs(86_400);
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        let number = |place: &mut u32, faults: &mut Faults<'_>, least: u64| {
            let number = faults.integer(name, value, least..=MOST);
            set(place, number.and_then(|number| u32::try_from(number).ok()));
        };
        match name {
            "allow" => out.allow = networks(faults, name, value),
            "deny" => out.deny = networks(faults, name, value),
            "exempt" => out.exempt = networks(faults, name, value),
            "new_dialogs" => number(&mut out.new_dialogs, faults, 0),
            "new_dialogs_burst" => number(&mut out.new_dialogs_burst, faults, 1),
            "answers" => number(&mut out.answers, faults, 0),
            "malformed" => number(&mut out.malformed, faults, 0),
            "malformed_burst" => number(&mut out.malformed_burst, faults, 1),
            "retry_after" => set(&mut out.retry_after, at_least_a_second(faults, name, value, day)),
            "sources" => {
                set(&mut out.sources, faults.integer(name, value, 8..=1 << 24).map(as_usize));
            }
            "bans" => set(&mut out.bans, faults.integer(name, value, 1..=1 << 20).map(as_usize)),
            "ban_after" => number(&mut out.ban_after, faults, 0),
            "ban_window" => set(&mut out.ban_window, at_least_a_second(faults, name, value, day)),
            "ban_time" => set(&mut out.ban_time, at_least_a_second(faults, name, value, 365 * day)),
            "ban_doubles" => set(&mut out.ban_doubles, faults.boolean(name, value)),
            "ban_longest" => set(&mut out.ban_longest, at_least_a_second(faults, name, value, 365 * day)),
            "ban_datagrams" => set(&mut out.ban_datagrams, faults.boolean(name, value)),
            "emergency" => out.emergency = emergency(faults, value),
            "shed" => set(&mut out.shed, faults.boolean(name, value)),
            "behind" => set(&mut out.behind, time(faults, name, value, Duration::from_secs(10))),
            "calm" => set(&mut out.calm, time(faults, name, value, Duration::from_secs(60))),
            "nftables" => out.nftables = nftables(faults, value),
            _ => faults.unknown_key(key, "[protection]", KEYS),
        }
    }
}

/// Users of URIs, compared byte for byte.
fn emergency(faults: &mut Faults<'_>, value: &Value<'_>) -> Vec<String> {
    let mut out = Vec::new();
    for item in faults.array("emergency", value).into_iter().flat_map(|items| items.iter()) {
        let Some(text) = faults.string("emergency", item) else { continue };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+*#-_.".contains(&byte);
        if text.value.is_empty() || !text.value.bytes().all(plain) {
            faults.error(text.span, format!("{} is no number such as \"112\"", quoted(text.value)));
        } else {
            out.push(text.value.to_owned());
        }
    }
    out
}

fn nftables(faults: &mut Faults<'_>, value: &Value<'_>) -> Option<NftSets> {
    let table = faults.table("nftables", value)?;
    let mut sets = NftSets::default();
    for (key, value) in in_order(table) {
        let name = key.get_ref().as_ref();
        let place = match name {
            "ipv4" => &mut sets.ipv4,
            "ipv6" => &mut sets.ipv6,
            _ => {
                faults.unknown_key(key, "nftables", ["ipv4", "ipv6"]);
                continue;
            }
        };
        let Some(text) = faults.string(name, value) else { continue };
        // It becomes a part of what `nft` is told to do.
        let word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        };
        let words: Vec<&str> = text.value.split(' ').collect();
        if words.len() == 3 && words.iter().all(|part| word(part)) {
            *place = Some(text.value.to_owned());
        } else {
            let message = format!(
                "{} is not family, table and set, such as \"inet filter banned\"",
                quoted(text.value)
            );
            faults.error(text.span, message);
        }
    }
    Some(sets)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Settings;

    fn faults(text: &str) -> String {
        let faults = Settings::parse("tidings.toml", text, Path::new("")).expect_err("it is refused");
        faults.iter().map(|fault| format!("{fault}\n")).collect()
    }

    #[test]
    fn a_whole_section_is_read() {
        let text = "[protection]\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.6.6.6\"]\nexempt = [\"10.1.0.0/16\"]\n\
            new_dialogs = 7\nnew_dialogs_burst = 8\nanswers = 9\nmalformed = 0\nmalformed_burst = 11\n\
            retry_after = \"12s\"\nsources = 1000\nbans = 13\nban_after = 0\nban_window = \"14s\"\nban_time = \"15s\"\n\
            ban_doubles = false\nban_longest = \"16s\"\nban_datagrams = true\nemergency = [\"+112\"]\nshed = false\n\
            behind = \"17ms\"\ncalm = \"18ms\"\nnftables = { ipv4 = \"inet filter banned\" }\n";
        let of = Settings::parse("tidings.toml", text, Path::new("")).expect("sound").protection;
        assert_eq!((of.allow.len(), of.deny[0].to_string().as_str(), of.exempt.len()), (1, "10.6.6.6/32", 1));
        assert_eq!((of.new_dialogs, of.new_dialogs_burst, of.answers), (7, 8, 9));
        assert_eq!((of.malformed, of.malformed_burst, of.sources, of.bans), (0, 11, 1000, 13));
        let seconds = [of.retry_after, of.ban_window, of.ban_time, of.ban_longest].map(|time| time.as_secs());
        assert_eq!((of.ban_after, seconds), (0, [12, 14, 15, 16]));
        assert!(!of.ban_doubles && of.ban_datagrams && !of.shed);
        assert_eq!((of.behind.as_millis(), of.calm.as_millis()), (17, 18));
        assert_eq!(of.emergency, ["+112"]);
        assert_eq!(of.nftables.and_then(|sets| sets.ipv4).as_deref(), Some("inet filter banned"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let text = "[protection]\ndeny = [\"10.0.0.0/33\"]\nnew_dialog = 3\nemergency = [\"a b\"]\n\
            nftables = { ipv4 = \"inet filter banned; flush ruleset\" }\nban_time = \"0s\"\n";
        let said = faults(text).replace(" error: ", " ");
        for part in [
            "tidings.toml:2:9: \"10.0.0.0/33\" is not an address or prefix",
            "tidings.toml:3:1: unknown key \"new_dialog\" in [protection], did you mean \"new_dialogs\"?",
            "tidings.toml:4:14: \"a b\" is no number such as \"112\"",
            "tidings.toml:5:21: \"inet filter banned; flush ruleset\" is not family, table and set",
            "tidings.toml:6:12: ban_time: less than 1 s",
        ] {
            assert!(said.contains(part), "{part} in\n{said}");
        }
    }
}
