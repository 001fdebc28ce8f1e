//! `tidings doctor` (SPEC 11.6) on this machine: what it says parses, a need that the machine cannot meet fails, a sysctl
//! that is changed shows.

mod rig;

use std::{
    net::UdpSocket,
    process::{Command, Output},
    time::Duration,
};

use rig::{Process, TempDir};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_tidings");

/// Small needs, on a network of this test's.
fn settings(net: u8, more: &str) -> String {
    format!(
        "[workers]\ncount = 1\n[udp]\nreceive_buffer = \"64KiB\"\nsend_buffer = \"64KiB\"\n\
         [admin]\naddress = \"127.62.{net}.1:9060\"\n{more}\n\
         [[listen]]\nname = \"phones\"\naddress = \"127.62.{net}.1:5060\"\n"
    )
}

fn doctor(before: &[&str], settings: &str, json: bool) -> Output {
    let dir = TempDir::new("doctor");
    let config = dir.write("tidings.toml", settings);
    let mut words = before.to_vec();
    words.extend([BINARY, "doctor"]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--config").arg(&config);
    if json {
        command.arg("--json");
    }
    command.output().unwrap_or_else(|error| panic!("{}: {error}", words[0]))
}

#[track_caller]
fn checks(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

#[track_caller]
fn check<'a>(all: &'a Value, name: &str) -> &'a Value {
    let found = all["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["name"] == name));
    found.unwrap_or_else(|| panic!("no check {name} in {all:#}"))
}

/// Every check is told with what it has, what it needs and why; what does not do, with how to mend it.
#[test]
fn all_checks_are_told_and_the_exit_code_follows_them() {
    let output = doctor(&[], &settings(11, ""), true);
    let all = checks(&output);
    for name in [
        "nofile",
        "core",
        "cores",
        "clocksource",
        "time",
        "state_dir",
        "fs.file-max",
        "net.core.somaxconn",
        "net.core.netdev_max_backlog",
        "net.core.rmem_max",
        "net.core.wmem_max",
        "net.ipv4.udp_mem",
        "net.ipv4.tcp_mem",
        "net.ipv4.ip_local_port_range",
        "SO_REUSEPORT",
        "listener phones",
        "admin",
    ] {
        let check = check(&all, name);
        for field in ["value", "needs", "why"] {
            assert!(check[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {check}");
        }
    }
    let tracked = |check: &&Value| check["name"].as_str().is_some_and(|name| name.contains("conntrack"));
    assert_eq!(all["checks"].as_array().into_iter().flatten().filter(tracked).count(), 1);
    let failed = all["checks"].as_array().into_iter().flatten().any(|check| check["verdict"] == "fail");
    assert_eq!(all["ok"], !failed);
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    assert_eq!(check(&all, "listener phones")["verdict"], "ok");
    let text = doctor(&[], &settings(11, ""), false);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("nofile") && text.contains(" checks: "), "{text}");
}

#[test]
fn needs_beyond_the_machine_fail_with_the_command_that_mends_them() {
    let output = doctor(&["prlimit", "--nofile=100:100"], &settings(12, ""), true);
    let all = checks(&output);
    let files = check(&all, "nofile");
    assert_eq!((files["verdict"].as_str(), files["value"].as_str()), (Some("fail"), Some("100")), "{files}");
    assert_eq!(files["mend"], "ulimit -n 260");
    assert_eq!((&all["ok"], output.status.code()), (&Value::Bool(false), Some(1)));

    // 198.51.100.0/24 is nobody's (RFC 5737); a directory cannot be where a file is.
    let foreign = settings(12, "").replace("127.62.12.1:5060", "198.51.100.1:5060");
    let output = doctor(&[], &format!("state_dir = \"/proc/version/state\"\n{foreign}"), true);
    let all = checks(&output);
    assert_eq!(check(&all, "listener phones")["verdict"], "fail");
    assert_eq!(check(&all, "state_dir")["verdict"], "fail");
    assert_eq!(output.status.code(), Some(1));
}

/// An address that somebody has fails with his name, one that a router of ours has is as it should be.
#[test]
fn an_address_in_use_is_told_by_whom() {
    let settings = settings(13, "");
    let socket = UdpSocket::bind("127.62.13.1:5060").expect("an address of this test's");
    let all = checks(&doctor(&[], &settings, true));
    let listener = check(&all, "listener phones");
    assert_eq!(listener["verdict"], "fail");
    assert!(
        listener["value"].as_str().is_some_and(|v| v.contains(&std::process::id().to_string())),
        "{listener}"
    );
    drop(socket);

    let dir = TempDir::new("doctor");
    let config = dir.write("tidings.toml", &settings);
    let mut command = Command::new(BINARY);
    command.args(["run", "--config"]).arg(config);
    let mut router = Process::start("tidings", &mut command, &dir.path().join("log"));
    router.wait_line("ready", Duration::from_secs(20));
    let all = checks(&doctor(&[], &settings, true));
    for name in ["listener phones", "admin"] {
        let check = check(&all, name);
        assert_eq!(check["verdict"], "ok", "{check}");
        assert_eq!(check["value"], format!("tidings, process {}", router.pid()));
    }
}

/// In a network namespace of its own: what is set there is what is told.
#[test]
fn a_changed_sysctl_shows() {
    let set = "ip link set lo up; echo 7 > /proc/sys/net/core/somaxconn; \
               echo 5000 5200 > /proc/sys/net/ipv4/ip_local_port_range; exec \"$@\"";
    let before = ["unshare", "--net", "--map-root-user", "sh", "-c", set, "sh"];
    let output = doctor(&before, &settings(14, ""), true);
    assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = checks(&output);
    let backlog = check(&all, "net.core.somaxconn");
    assert_eq!(
        (backlog["verdict"].as_str(), backlog["value"].as_str()),
        (Some("warn"), Some("7")),
        "{backlog}"
    );
    assert_eq!(backlog["mend"], "sysctl -w net.core.somaxconn=\"1024\"");
    assert!(backlog["keep"].as_str().is_some_and(|keep| keep.contains("/etc/sysctl.d/")), "{backlog}");
    let range = check(&all, "net.ipv4.ip_local_port_range");
    assert_eq!((range["verdict"].as_str(), range["value"].as_str()), (Some("fail"), Some("5000 5200")));
    let inside = check(&all, "ports of ours in that range");
    assert_eq!((inside["verdict"].as_str(), inside["value"].as_str()), (Some("warn"), Some("5060")));
    assert_eq!(output.status.code(), Some(1));
}

/// With buffers that the kernel does not grant: without CAP_NET_ADMIN its maximum counts.
#[test]
fn a_buffer_beyond_the_maximum_fails() {
    let large = settings(15, "").replace("receive_buffer = \"64KiB\"", "receive_buffer = \"1GiB\"");
    let before = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let output = doctor(&before, &large, true);
    assert!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = checks(&output);
    let buffer = check(&all, "net.core.rmem_max");
    assert_eq!(buffer["verdict"], "fail", "{buffer}");
    assert_eq!(buffer["mend"], format!("sysctl -w net.core.rmem_max=\"{}\"", 1 << 30));
    assert_eq!(check(&all, "net.core.wmem_max")["verdict"], "ok");
}

/// A certificate that phones will refuse, or a key that others can read, is told before it matters.
#[test]
fn certificates_are_looked_at() {
    let dir = TempDir::new("pki");
    let told = |issued: rig::pki::Issued| {
        let (certificate, key) = issued.write(&dir, "sip");
        let listen = format!(
            "[[listen]]\nname = \"secure\"\ntransport = \"tls\"\naddress = \"127.62.17.1:5061\"\n\
             certificate = {certificate:?}\nprivate_key = {key:?}\n"
        );
        let all = checks(&doctor(&[], &settings(17, &listen), true));
        assert_eq!(check(&all, "listener secure")["verdict"], "ok", "{all:#}");
        check(&all, "certificates").clone()
    };
    let good = told(rig::pki::authority().issue(&["sip.example.com"]));
    assert_eq!(good["verdict"], "ok", "{good}");
    let old = rig::pki::authority().issue_with(&["sip.example.com"], |params| {
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let old = told(old);
    assert_eq!(old["verdict"], "warn", "{old}");
    assert!(old["why"].as_str().is_some_and(|why| why.contains("sip.pem: expired ")), "{old}");
}
