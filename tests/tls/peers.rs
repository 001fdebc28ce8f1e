//! TLS with those who did not learn it from rustls: OpenSSL as a phone, Kamailio as a PBX, and SIPp (whose Debian package
//! has no TLS) behind HAProxy on both sides.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use super::{PATIENCE, failed, layout, options};
use crate::rig::{
    Kamailio, Process, Router, Scenario, TempDir,
    pki::authority,
    scene::{certificates, one_pbx, rule},
    wait_for,
};

/// What `openssl s_client` hears after it has sent `message`.
fn openssl(to: &str, more: &[&str], ca: &str, message: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", to, "-CAfile", ca, "-verify_return_error", "-quiet", "-ign_eof"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{error}: apt-get install -y openssl"));
    let mut stdin = child.stdin.take().expect("piped");
    // It may have given up already.
    let _ = stdin.write_all(message.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn openssl_is_a_phone_of_either_version() {
    // The router ends what is idle, and so the client.
    let scene = layout(251, "tls", "udp").more("[connections]\nidle = \"1s\"\n").start(&one_pbx(251));
    let ca = scene.pki.path().join("ca.pem").display().to_string();
    let to = scene.phones().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let heard = openssl(&to, &[version], &ca, &options(&scene));
        assert!(heard.contains("SIP/2.0 200 OK\r\n"), "{version}: {heard}");
    }
    let heard = openssl(&to, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], &ca, &options(&scene));
    assert!(!heard.contains("SIP/2.0"), "{heard}");
    wait_for("it to be counted", PATIENCE, || (failed(&scene, "nothing_shared") == 1.0).then_some(()));
    assert_eq!(scene.router.metrics().sum("tidings_tls_handshakes_total", &[("role", "accepted")]), 2.0);
}

/// Phones over UDP and TLS on 127.`net`.1, PBXs over both on .2; the directory has their certificates.
fn router(net: &str, table: &str) -> (Router, TempDir) {
    let dir = TempDir::new("pki");
    let listen = |name: &str, transport: &str, host: u8, port: u16, side: &str| {
        format!(
            "[[listen]]\nname = \"{name}-{transport}\"\ntransport = \"{transport}\"\n\
             address = \"127.{net}.{host}:{port}\"\nside = \"{side}\"\n"
        )
    };
    let settings = "[workers]\ncount = 2\n".to_owned()
        + &listen("phones", "udp", 1, 5060, "clients")
        + &listen("phones", "tls", 1, 5061, "clients")
        + &listen("pbxs", "udp", 2, 5060, "backends")
        + &listen("pbxs", "tls", 2, 5061, "backends")
        + &format!("[admin]\naddress = \"127.{net}.1:9060\"\n")
        + &certificates(&dir, &[&format!("127.{net}.1"), &format!("127.{net}.2")]);
    (Router::start(&settings, table), dir)
}

fn pool_at(backends: &[&str]) -> String {
    let mut text = "[[pool]]\nname = \"pbx\"\nbalance = \"call-id\"\nprobe = \"off\"\n".to_owned();
    for (at, uri) in backends.iter().enumerate() {
        text += &format!("[[pool.backend]]\nname = \"pbx{}\"\nuri = \"{uri}\"\n", at + 1);
    }
    text + &rule("all", "source = \"clients\"", "route = \"pbx\"")
}

/// HAProxy that makes TLS of what comes to `.9:{port}` in the clear, toward the router, and the reverse at `.11:5061`.
fn haproxy(net: &str, dir: &TempDir) -> Process {
    let (certificate, _) = authority().issue(&[&format!("127.{net}.11")]).write(dir, "haproxy");
    let key = std::fs::read_to_string(certificate.with_extension("key")).expect("written a moment ago");
    let both = dir.write("both.pem", &(std::fs::read_to_string(&certificate).expect("written") + &key));
    let ca = dir.path().join("ca.pem");
    let config = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen phones\n bind 127.{net}.9:5060\n\
         \x20server router 127.{net}.1:5061 source 127.{net}.9 ssl verify required ca-file {}\n\
         listen pbx\n bind 127.{net}.11:5061 ssl crt {}\n server sipp 127.{net}.11:5060\n",
        ca.display(),
        both.display()
    );
    let config = dir.write("haproxy.cfg", &config);
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(config);
    let mut process = Process::start("haproxy", &mut command, &dir.path().join("haproxy.log"));
    process.wait_bound(
        "tcp",
        format!("127.{net}.11:5061").parse().expect("an address"),
        Duration::from_secs(10),
    );
    process
}

/// INVITE, 180, 200, ACK, re-INVITE, BYE: phones over UDP and TLS, each to PBXs over UDP and TLS, none lost.
#[test]
fn calls_pass_whatever_the_transports_are() {
    let table = pool_at(&["sip:127.63.3.12:5060", "sips:127.63.3.11"]);
    let (router, dir) = router("63.3", &table);
    let mut pbxs = [
        Scenario::ours("callee").listen("127.63.3.12:5060"),
        Scenario::ours("callee").tcp(false).listen("127.63.3.11:5060"),
    ];
    let _haproxy = haproxy("63.3", &dir);
    let calling = || Scenario::ours("caller").with(&["-s", "1000"]).calls(200, 100);
    let mut phones = [
        calling().call("127.63.3.21:5060", "127.63.3.1:5060"),
        calling().tcp(true).call("127.63.3.22:5060", "127.63.3.9:5060"),
        calling().tcp(false).call("127.63.3.23:5060", "127.63.3.9:5060"),
    ];
    for phones in &mut phones {
        assert_eq!(phones.finish().successful, 200);
    }
    let taken: Vec<u64> = pbxs.iter_mut().map(|pbx| pbx.dismiss().successful).collect();
    assert_eq!(taken.iter().sum::<u64>(), 600);
    assert!(taken.iter().all(|calls| *calls > 100), "call-id spreads them: {taken:?}");
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
    assert_eq!(metrics.sum("tidings_tls_errors_total", &[]), 0.0);
    assert_eq!(metrics.sum("tidings_tls_handshakes_total", &[("role", "dialed")]), 1.0, "one for the PBX");
    for (direction, transport) in [("in", "udp"), ("in", "tls"), ("out", "udp"), ("out", "tls")] {
        let labels = [("direction", direction), ("transport", transport), ("method", "INVITE")];
        assert!(metrics.sum("tidings_messages_total", &labels) > 200.0, "{direction} {transport}");
    }
}

/// SUBSCRIBE, 2xx, NOTIFY, PUBLISH and the NOTIFY that it causes, refresh, unsubscribe: phones over UDP and TLS with a
/// real Kamailio over TLS, which sends its NOTIFYs along our Record-Route.
#[test]
fn akamailio_over_tls_serves_watchers_over_both() {
    const PHONES: u32 = 20;
    let (router, dir) = router("63.4", &pool_at(&["sip:127.63.4.12;transport=tls"]));
    let shown = authority().issue(&["127.63.4.12"]);
    let (certificate, key) = shown.write(&dir, "kamailio");
    let kamailio = Kamailio::start_tls("127.63.4.12:5061", &certificate, &key, &dir.path().join("ca.pem"));
    let _haproxy = haproxy("63.4", &dir);
    let body = |state: &str| {
        format!(
            "<?xml version=\"1.0\"?><presence xmlns=\"urn:ietf:params:xml:ns:pidf\" \
             entity=\"sip:[service][call_number]@pbx.example.org\"><tuple id=\"t\"><status><basic>{state}</basic></status>\
             </tuple></presence>"
        )
    };
    let entry = |tls: bool| if tls { "127.63.4.9:5060" } else { "127.63.4.1:5060" };
    let watch = |users: &str, host: u8, tls: bool| {
        let scenario =
            Scenario::ours("watcher").fill("EVENT", "presence").fill("ACCEPT", "application/pidf+xml");
        let scenario = scenario.fill("CONTENT", "basic.open").fill("CHANGED", "basic.closed");
        let router = if tls { "127.63.4.1:5061" } else { "127.63.4.1:5060" };
        let scenario = scenario.fill("ROUTER", router).with(&["-s", users]).calls(PHONES, 30);
        let scenario = if tls { scenario.tcp(true) } else { scenario };
        scenario.call(&format!("127.63.4.{host}:5060"), entry(tls))
    };
    let publish = |users: &str, host: u8, tls: bool| {
        let scenario =
            Scenario::ours("publisher").fill("EVENT", "presence").fill("TYPE", "application/pidf+xml");
        let scenario = scenario.fill("BODY", &body("open")).fill("CHANGED_BODY", &body("closed"));
        let scenario = scenario.with(&["-s", users]).calls(PHONES, 30);
        let scenario = if tls { scenario.tcp(false) } else { scenario };
        scenario.call(&format!("127.63.4.{host}:5060"), entry(tls))
    };
    let mut watchers = [watch("10", 31, true), watch("20", 32, false)];
    kamailio.wait_count("SUBSCRIBE", "presence", 2 * PHONES as usize, Duration::from_secs(60));
    let mut publishers = [publish("10", 41, false), publish("20", 42, true)];
    for sipp in publishers.iter_mut().chain(&mut watchers) {
        assert_eq!(sipp.finish().successful, u64::from(PHONES));
    }
    let metrics = router.metrics();
    assert_eq!(metrics.sum("tidings_answers_total", &[]), 0.0, "the router refused nothing");
    assert_eq!(metrics.sum("tidings_tls_errors_total", &[]), 0.0);
    assert!(metrics.sum("tidings_messages_total", &[("direction", "out"), ("transport", "tls")]) > 0.0);
}
