//! What whoever calls may do: limits, cores, clock, state directory. The router is held to the same only where it is
//! started the same way; under systemd the unit's limits count.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Check, Verdict};
use crate::{config::Settings, net};

/// Beside its sockets the router has the files of the runtime, logs, admin's connections, DNS look-ups.
const SPARE_FILES: u64 = 256;
/// Poll and waker of a worker.
const PER_WORKER: u64 = 3;
/// 2024: a clock before it was never set.
const SET_S: u64 = 1_704_067_200;

pub fn checks(settings: &Settings) -> Vec<Check> {
    let mut checks =
        vec![files(settings), core_dumps(), cores(settings), clock_source(), time(), state(settings)];
    checks.extend(resolver(settings));
    checks
}

/// Soft and hard limit of this process; `u64::MAX` for unlimited.
fn limit(name: &str) -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = line.split_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some((next()?, next()?))
}

fn files(settings: &Settings) -> Check {
    let workers = settings.workers.count as u64;
    let need = workers * (settings.listen.len() as u64 + PER_WORKER) + SPARE_FILES;
    let why = "a socket for each worker and listener, and what control and admin open";
    let needs = format!("at least {need}");
    let Some((soft, _)) = limit("Max open files") else {
        return Check::new("nofile", "not visible here", needs, why).unknown();
    };
    let keep =
        format!("LimitNOFILE={} in the systemd unit, or nofile in /etc/security/limits.d", need.max(65_536));
    Check::new("nofile", soft, needs, why).unless(
        soft >= need,
        Verdict::Fail,
        format!("ulimit -n {need}"),
        keep,
    )
}

fn core_dumps() -> Check {
    let why = "a crash leaves nothing to look at";
    let Some((soft, _)) = limit("Max core file size") else {
        return Check::new("core", "not visible here", "unlimited", why).unknown();
    };
    let value = if soft == u64::MAX { "unlimited".to_owned() } else { soft.to_string() };
    Check::new("core", value, "unlimited", why).unless(
        soft == u64::MAX,
        Verdict::Warn,
        "ulimit -c unlimited",
        "LimitCORE=infinity in the systemd unit",
    )
}

fn cores(settings: &Settings) -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = settings.workers.count;
    let verdict = if settings.workers.pin { Verdict::Fail } else { Verdict::Warn };
    let why = if settings.workers.pin {
        "workers are pinned, each to a core of its own"
    } else {
        "workers that share a core wait for each other, and their clients with them"
    };
    Check::new("cores", cores, format!("at least {workers}, one for each worker"), why).unless(
        workers <= cores,
        verdict,
        "",
        format!("count = {cores} in [workers]"),
    )
}

/// Each turn of a worker reads the clock, and the kernel stamps datagrams with it.
fn clock_source() -> Check {
    let path = "/sys/devices/system/clocksource/clocksource0";
    let why = "the clock is read some thousand times a second; from these sources each reading is a slow device access";
    let needs = "not hpet, acpi_pm, jiffies or refined-jiffies";
    let Ok(source) = fs::read_to_string(format!("{path}/current_clocksource")) else {
        return Check::new("clocksource", "not visible here", needs, why).unknown();
    };
    let source = source.trim();
    let slow = ["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(&source);
    Check::new("clocksource", source, needs, why).unless(
        !slow,
        Verdict::Warn,
        format!("echo tsc > {path}/current_clocksource"),
        "clocksource=tsc on the kernel's command line",
    )
}

fn time() -> Check {
    let now = net::now().unix_s;
    let why = "departed backends, and later certificates, are judged by it";
    Check::new("time", format!("{now} s since 1970"), "a clock that was set", why).unless(
        now >= SET_S,
        Verdict::Fail,
        "timedatectl set-ntp true",
        "systemctl enable --now systemd-timesyncd",
    )
}

fn state(settings: &Settings) -> Check {
    let from_systemd = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    let why = "without it dialogs do not outlive a restart: the token key lives there";
    let Some(path) = settings.state_dir.clone().or(from_systemd) else {
        let has_keys = !settings.tokens.keys.is_empty() || settings.tokens.key_file.is_some();
        return Check::new("state_dir", "none", "a directory that can be written", why).unless(
            has_keys,
            Verdict::Warn,
            "",
            "state_dir = \"/var/lib/tidings\" in tidings.toml, or StateDirectory=tidings in the systemd unit",
        );
    };
    let shown = path.display().to_string();
    // It is made at start where it is not there yet.
    let nearest = path.ancestors().find(|at| at.exists()).unwrap_or(Path::new(".")).to_owned();
    let nearest = if nearest.as_os_str().is_empty() { PathBuf::from(".") } else { nearest };
    let probe = nearest.join(format!(".tidings-doctor-{}", std::process::id()));
    let written = fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe));
    let value = match &written {
        Ok(()) => shown.clone(),
        Err(error) => format!("{shown}: {error}"),
    };
    Check::new("state_dir", value, "a directory that can be written", why).unless(
        written.is_ok(),
        Verdict::Fail,
        format!("install -d -m 700 -o \"$USER\" {shown}"),
        "StateDirectory=tidings in the systemd unit",
    )
}

/// Where names are asked, if the settings do not say.
fn resolver(settings: &Settings) -> Option<Check> {
    if !settings.dns.servers.is_empty() {
        return None;
    }
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver ")).collect();
    let value = if servers.is_empty() { "none".to_owned() } else { servers.join(", ") };
    let why = "host names of backends cannot be resolved";
    let keep = "servers = [\"192.0.2.53\"] in [dns]";
    let check = Check::new("/etc/resolv.conf", value, "a nameserver, where backends have host names", why);
    Some(check.unless(!servers.is_empty(), Verdict::Warn, "", keep))
}
