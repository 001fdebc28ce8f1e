//! Files of certificates: faults at check and start, the choice by name, their replacement under live connections.

use std::{os::unix::fs::PermissionsExt, process::Command, time::Duration};

use rcgen::{SanType, date_time_ymd};
use rustls::pki_types::ServerName;

use super::{PATIENCE, ask, connect, connect_as, failed, layout};
use crate::rig::{
    TempDir,
    pki::{Authority, Issued, authority},
    scene::one_pbx,
    wait_for,
};

fn tidings(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidings")).args(arguments).output().expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

/// A tidings.toml with one TLS listener in `dir`; `pair` stands in line 4.
fn settings(dir: &TempDir, pair: &str) -> String {
    let text = format!(
        "[[listen]]\ntransport = \"tls\"\naddress = \"127.40.231.1:5061\"\n{pair}\n[admin]\naddress = \"off\"\n"
    );
    dir.write("tidings.toml", &text).display().to_string()
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_place_at_check_and_at_start() {
    let dir = TempDir::new("pki");
    let (good, other) = (authority().issue(&["a.example.com"]), authority().issue(&["b.example.com"]));
    good.write(&dir, "good");
    other.write(&dir, "other");
    dir.write("text.pem", "no certificate\n");
    dir.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    dir.write(
        "sealed.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let open = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path().join(name), permissions).expect("it is ours");
    };
    open("sealed.key", 0o600);
    open("text.pem", 0o600);
    for (pair, place, why) in [
        (
            "certificates = [{ certificate = \"gone.pem\", private_key = \"good.key\" }]",
            "4:33",
            "gone.pem: cannot be read: No such file",
        ),
        (
            "certificates = [{ certificate = \"good.pem\", private_key = \"other.key\" }]",
            "4:59",
            "other.key: is not the key of the certificate in",
        ),
        (
            "certificates = [{ certificate = \"text.pem\", private_key = \"good.key\" }]",
            "4:33",
            "text.pem: there is no certificate in it",
        ),
        (
            "certificates = [{ certificate = \"broken.pem\", private_key = \"good.key\" }]",
            "4:33",
            "broken.pem: its first certificate is no X.509",
        ),
        (
            "certificates = [{ certificate = \"good.pem\", private_key = \"text.pem\" }]",
            "4:59",
            "text.pem: there is no private key in it",
        ),
        (
            "certificates = [{ certificate = \"good.pem\", private_key = \"sealed.key\" }]",
            "4:59",
            "sealed.key: is encrypted",
        ),
        (
            "client_ca = \"gone.pem\"\ncertificate = \"good.pem\"\nprivate_key = \"good.key\"",
            "4:13",
            "gone.pem: cannot be read",
        ),
    ] {
        let config = settings(&dir, pair);
        for command in ["check", "run"] {
            let (code, told) = tidings(&[command, "--config", &config]);
            assert_eq!(code, Some(1), "{command}: {told}");
            assert!(
                told.contains(&format!("tidings.toml:{place}: error: ")) && told.contains(why),
                "{command}: {told}"
            );
        }
    }
}

#[test]
fn what_will_be_wrong_is_a_warning() {
    let dir = TempDir::new("pki");
    let dated = |from, until| {
        authority()
            .issue_with(&["a.example.com"], |params| (params.not_before, params.not_after) = (from, until))
    };
    dated(date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1)).write(&dir, "old");
    dated(date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1)).write(&dir, "new");
    for (name, why) in [("old", "old.pem: expired "), ("new", "new.pem: is not valid yet")] {
        let config = settings(&dir, &format!("certificate = \"{name}.pem\"\nprivate_key = \"{name}.key\""));
        let (code, told) = tidings(&["check", "--config", &config]);
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("tidings.toml:4:15: warning: ") && told.contains(why), "{told}");
    }
    let (_, key) = authority().issue(&["a.example.com"]).write(&dir, "open");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let config = settings(&dir, "certificate = \"open.pem\"\nprivate_key = \"open.key\"");
    let (code, told) = tidings(&["check", "--config", &config]);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("open.key: has mode 0644: others could read the private key; chmod 600 it"),
        "{told}"
    );
}

/// RFC 6066 3: the certificate of the name that is asked for, a wildcard's of one label, else the first.
#[test]
fn the_name_that_is_asked_for_picks_the_certificate() {
    let dir = TempDir::new("pki");
    let mut pairs = Vec::new();
    for (at, names) in
        [vec!["127.40.232.1", "first.example.com"], vec!["b.example.com"], vec!["*.example.net"]]
            .iter()
            .enumerate()
    {
        let (certificate, key) = authority().issue(names).write(&dir, &format!("c{at}"));
        pairs.push(format!("{{ certificate = {certificate:?}, private_key = {key:?} }}"));
    }
    let more = format!(
        "[[listen]]\nname = \"many\"\ntransport = \"tls\"\naddress = \"127.40.232.1:5061\"\ncertificates = [{}]\n",
        pairs.join(", ")
    );
    let scene = layout(232, "udp", "udp").more(&more).start(&one_pbx(232));
    let at = "127.40.232.1:5061".parse().expect("an address");
    let asks = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        ask(&mut connect_as(at, authority().client(None), name), &scene)
    };
    for name in ["first.example.com", "b.example.com", "B.Example.COM", "any.example.net", "127.40.232.1"] {
        assert_eq!(asks(name), Ok(()), "{name}");
    }
    for name in ["c.example.com", "example.net", "a.b.example.net"] {
        let refused = asks(name).expect_err(name);
        assert!(refused.contains("not valid for name"), "{name}: {refused}");
    }
    wait_for("them to be counted", PATIENCE, || (failed(&scene, "refused") == 3.0).then_some(()));
}

/// The serial number's stand-in: what the next handshake sees.
fn shown(scene: &crate::rig::scene::Scene) -> Vec<u8> {
    let stream = connect(scene.phones());
    stream.conn.peer_certificates().expect("a handshake")[0].to_vec()
}

fn write(scene: &crate::rig::scene::Scene, issued: &Issued) {
    issued.write(&scene.pki, "router");
}

/// SPEC 9.3: the next handshake has the new one, no connection is lost; a bad one changes nothing.
#[test]
fn certificates_are_replaced_under_live_connections() {
    let scene = layout(233, "tls", "udp").start(&one_pbx(233));
    let first = shown(&scene);
    let mut live = connect(scene.phones());
    assert_eq!(ask(&mut live, &scene), Ok(()));
    let loads = |outcome: &str| {
        scene.router.metrics().sum("tidings_certificate_loads_total", &[("outcome", outcome)])
    };
    assert_eq!((loads("loaded"), loads("refused")), (1.0, 0.0));

    write(&scene, &authority().issue(&["127.40.233.1"]));
    let second =
        wait_for("the files to be seen", PATIENCE, || Some(shown(&scene)).filter(|now| *now != first));
    assert_eq!(ask(&mut live, &scene), Ok(()), "who was connected stays so");

    // The key of another one: refused, with its place, and the second stays.
    let admin = scene.router.admin.to_string();
    let strange = Authority::new("another").issue(&["127.40.233.1"]);
    std::fs::write(scene.pki.path().join("router.key"), strange.key).expect("the directory can be written");
    let (code, told) = tidings(&["reload", "--admin", &admin]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("router.key: is not the key of the certificate in"), "{told}");
    assert!(told.contains("certificates refused, those in use stay"), "{told}");
    assert!(loads("refused") >= 1.0);
    assert_eq!(shown(&scene), second);
    assert_eq!(ask(&mut live, &scene), Ok(()));
    assert!(scene.router.process.output().contains("certificates refused, those in use stay"));

    // Mended, by SIGHUP.
    write(
        &scene,
        &authority().issue_with(&["127.40.233.1"], |params| {
            params.subject_alt_names.push(SanType::DnsName("third.example.com".try_into().expect("ASCII")));
        }),
    );
    scene.router.process.signal("HUP");
    wait_for("the third", PATIENCE, || Some(shown(&scene)).filter(|now| *now != second && *now != first));
    assert_eq!(ask(&mut live, &scene), Ok(()));
    let (code, told) = tidings(&["reload", "--admin", &admin]);
    assert_eq!(code, Some(0), "{told}");
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(scene.router.metrics().sum("tidings_connections_closed_total", &[("reason", "tls")]), 0.0);
}
