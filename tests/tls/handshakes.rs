//! Handshakes and what comes after: who may, who is slow, who breaks it, and what it costs.

use std::{
    io::{Read, Write},
    time::Duration,
};

use super::{PATIENCE, Secure, ask, closed, connect, connect_as, failed, honest, layout, options, tcp};
use crate::rig::{
    Party,
    message::{Request, unique},
    pki::{Authority, authority},
    scene::{Dialog, Scene, first_route, one_pbx},
    text, wait_for,
};

fn until_closed(mut stream: impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

fn as_client(scene: &Scene, shows: Option<&crate::rig::pki::Issued>) -> Secure {
    let config = authority().client(shows);
    connect_as(scene.phones(), config, scene.phones().ip().into())
}

#[test]
fn certificates_of_clients_may_be_required_or_optional() {
    let (known, unknown) = (authority().issue(&["phone"]), Authority::new("nobody").issue(&["phone"]));
    for (net, how) in [(234, "required"), (235, "optional")] {
        let dir = crate::rig::TempDir::new("pki");
        let ca = dir.write("clients.pem", &authority().pem());
        let (certificate, key) = authority().issue(&[&format!("127.40.{net}.1")]).write(&dir, "own");
        let more = format!(
            "[tls]\ncertificate = {certificate:?}\nprivate_key = {key:?}\nclient_ca = {ca:?}\n\
             client_certificates = \"{how}\"\n"
        );
        let mut settings = layout(net, "tls", "udp");
        settings.own_tls = true;
        let scene = settings.more(&more).start(&one_pbx(net));
        assert_eq!(ask(&mut as_client(&scene, Some(&known)), &scene), Ok(()));
        let without = ask(&mut as_client(&scene, None), &scene);
        assert_eq!(without.is_ok(), how == "optional", "{without:?}");
        ask(&mut as_client(&scene, Some(&unknown)), &scene).expect_err("nobody knows it");
        wait_for("it to be counted", PATIENCE, || (failed(&scene, "unknown_ca") == 1.0).then_some(()));
        assert_eq!(failed(&scene, "no_certificate"), f64::from(u8::from(how == "required")));
        assert_eq!(ask(&mut as_client(&scene, Some(&known)), &scene), Ok(()));
    }
}

#[test]
fn what_is_no_tls_is_counted_by_cause_and_told_by_an_alert() {
    let scene = layout(236, "tls", "udp").start(&one_pbx(236));
    let mut plain = tcp(scene.phones());
    plain.write_all(options(&scene).as_bytes()).expect("sent");
    let told = until_closed(plain).expect("a clean end");
    assert_eq!(told.first(), Some(&21), "an alert: {told:?}");
    wait_for("it to be counted", PATIENCE, || (failed(&scene, "bad_record") == 1.0).then_some(()));
    // A record of the middle that was changed on its way.
    let mut broken = connect(scene.phones());
    assert_eq!(ask(&mut broken, &scene), Ok(()));
    broken.sock.write_all(b"\x17\x03\x03\x00\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").expect("sent");
    until_closed(&mut broken).expect_err("an alert");
    wait_for("it to be counted", PATIENCE, || (failed(&scene, "bad_record") == 2.0).then_some(()));
    // Who does not trust us says so.
    let stranger = Authority::new("stranger").client(None);
    let mut stranger = connect_as(scene.phones(), stranger, scene.phones().ip().into());
    ask(&mut stranger, &scene).expect_err("not trusted");
    wait_for("it to be counted", PATIENCE, || (failed(&scene, "refused") == 1.0).then_some(()));
    assert_eq!(closed(&scene, "tls"), 3.0);
    let mut phone = connect(scene.phones());
    assert_eq!(ask(&mut phone, &scene), Ok(()));
}

/// SPEC 9.7: half-open handshakes end by time and make room for others, and those who are there go on.
#[test]
fn handshakes_that_hang_end_and_hinder_nobody() {
    let limits = "[connections]\nhandshake_time = \"1s\"\nhandshakes = 20\nper_address = 5000\naccepts_per_second = 5000\n";
    let scene = layout(237, "tls", "tls").more(limits).start(&one_pbx(237));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let mut hello = tcp(scene.phones());
    // The first bytes of a handshake, and then one now and then: that buys no time.
    hello.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01").expect("sent");
    let mut sent = 0;
    while hello.write_all(b"\x00").is_ok() && closed(&scene, "handshake_time") == 0.0 {
        sent += 1;
        assert!(sent < 200, "never closed");
        std::thread::sleep(Duration::from_millis(20));
    }
    honest(&phone, &scene, &pbx);
    let hanging: Vec<_> = (0..200).map(|_| tcp(scene.phones())).collect();
    wait_for("the oldest to make room", PATIENCE, || (closed(&scene, "handshakes") >= 180.0).then_some(()));
    let metrics = scene.router.metrics();
    assert!(metrics.sum("tidings_tls_handshakes_under_way", &[]) <= 20.0);
    assert_eq!(metrics.sum("tidings_tls_handshakes_limit", &[]), 20.0);
    honest(&phone, &scene, &pbx);
    for _ in 0..30 {
        assert_eq!(ask(&mut connect(scene.phones()), &scene), Ok(()), "a new phone comes in");
    }
    for stream in hanging {
        until_closed(stream).ok();
    }
    wait_for("none to be left", PATIENCE, || {
        (scene.router.metrics().sum("tidings_tls_handshakes_under_way", &[]) == 0.0).then_some(())
    });
    honest(&phone, &scene, &pbx);
}

/// A storm of handshakes that are honest, but many: all are made, and who is there already goes on meanwhile.
#[test]
fn a_storm_of_handshakes_hinders_nobody() {
    const MANY: usize = 300;
    let limits = "[connections]\nhandshakes = 1000\nexempt = [\"127.0.0.0/8\"]\n";
    let scene = layout(252, "tls", "tls").more(limits).start(&one_pbx(252));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let config = authority().client(None);
    let mut storm: Vec<Secure> = (0..MANY)
        .map(|_| {
            let mut socket = tcp(scene.phones());
            let name = scene.phones().ip().into();
            let mut tls = rustls::ClientConnection::new(config.clone(), name).expect("a client");
            tls.write_tls(&mut socket).expect("a hello");
            rustls::StreamOwned::new(tls, socket)
        })
        .collect();
    for _ in 0..10 {
        honest(&phone, &scene, &pbx);
    }
    for stream in &mut storm {
        assert_eq!(ask(stream, &scene), Ok(()));
    }
    let metrics = scene.router.metrics();
    let made = metrics.sum("tidings_tls_handshakes_total", &[("role", "accepted")]);
    assert_eq!(made, MANY as f64 + 1.0);
    assert_eq!(metrics.sum("tidings_tls_errors_total", &[]), 0.0);
}

#[test]
fn messages_may_come_together_in_pieces_and_byte_by_byte() {
    let scene = layout(238, "tls", "udp").start(&one_pbx(238));
    let mut stream = connect(scene.phones());
    for byte in options(&scene).as_bytes().chunks(1) {
        stream.write_all(byte).expect("sent");
        stream.flush().expect("sent");
    }
    let expect = |stream: &mut Secure, count: usize| {
        let (mut all, mut buffer) = (String::new(), [0; 4096]);
        while all.matches("SIP/2.0 200 OK\r\n").count() < count {
            let n = stream.read(&mut buffer).expect("an answer");
            assert!(n > 0, "closed after:\n{all}");
            all += std::str::from_utf8(&buffer[..n]).expect("text");
        }
    };
    expect(&mut stream, 1);
    let many: String = (0..100).map(|_| options(&scene)).collect();
    stream.write_all(many.as_bytes()).expect("sent");
    expect(&mut stream, 100);
    stream.write_all(b"\r\n\r\n").expect("sent");
    let mut pong = [0; 2];
    stream.read_exact(&mut pong).expect("a pong");
    assert_eq!(&pong, b"\r\n");
}

#[test]
fn large_bodies_pass_both_ways() {
    let scene = layout(239, "tls", "tls").start(&one_pbx(239));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let body = "0123456789abcdef".repeat(3840);
    for _ in 0..5 {
        let notify = dialog.by_callee("NOTIFY", &pbx).body("text/plain", &body);
        pbx.send(first_route(&notify), notify.text());
        assert_eq!(text::body(&phone.expect("NOTIFY ")), body);
        let message = dialog.by_caller("MESSAGE", &phone).body("text/plain", &body);
        phone.send(first_route(&message), message.text());
        assert_eq!(text::body(&pbx.expect("MESSAGE ")), body);
    }
}

/// RFC 8446 6.1: our end is said, so that who reads knows that nothing is missing.
#[test]
fn our_end_is_a_close_notify() {
    let limits = "[connections]\nidle = \"1s\"\n";
    let scene = layout(240, "tls", "udp").more(limits).start(&one_pbx(240));
    let mut idle = connect(scene.phones());
    assert_eq!(ask(&mut idle, &scene), Ok(()));
    assert_eq!(until_closed(idle).expect("no truncation"), b"");
    assert_eq!(closed(&scene, "idle"), 1.0);
    let mut rubbish = connect(scene.phones());
    rubbish.write_all(b"rubbish\r\n\r\n").expect("sent");
    assert_eq!(until_closed(rubbish).expect("no truncation"), b"");
}

/// SPEC 9.7: who does not read is closed once his bytes are too many; whoever sent what he did not read is told.
#[test]
fn a_reader_that_never_reads_is_closed() {
    let scene = layout(241, "tls", "udp").more("[connections]\noutput = \"64KiB\"\n").start(&one_pbx(241));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let mut deaf = connect(scene.phones());
    let from = deaf.sock.local_addr().expect("connected");
    let request = Request::new("SUBSCRIBE", "sip:1000@example.com", &phone);
    let request = request.with("Via", format!("SIP/2.0/TLS {from};rport;branch=z9hG4bK{}", unique()));
    deaf.write_all(request.text().as_bytes()).expect("sent");
    let got = pbx.expect("SUBSCRIBE ");
    let answer = text::answer(&got, "200 OK", &unique(), &format!("Contact: <sip:{}>\r\n", pbx.address));
    let dialog = Dialog::of(got, answer);
    let body = "x".repeat(30_000);
    let mut sent = 0;
    let mut told = 0;
    while closed(&scene, "output") == 0.0 {
        for _ in 0..20 {
            sent += 1;
            let notify = dialog.by_callee("NOTIFY", &pbx).with("CSeq", format!("{sent} NOTIFY"));
            pbx.send(scene.pbxs(), notify.body("text/plain", &body).text());
        }
        assert!(sent < 2000, "never closed");
        while let Some((bytes, _)) = pbx.poll(Duration::from_millis(20)) {
            assert!(bytes.starts_with(b"SIP/2.0 503"), "{}", String::from_utf8_lossy(&bytes));
            told += 1;
        }
    }
    while pbx.poll(Duration::from_millis(100)).is_some() {
        told += 1;
    }
    assert!(told >= 3, "what the 64 KiB held, and what came later, is told: {told}");
    honest(&phone, &scene, &pbx);
}

/// SPEC 9.8: an idle connection that has spoken costs at most 20 KiB of user memory.
#[test]
fn an_idle_connection_costs_less_than_20_kib() {
    const EACH: usize = 1_000;
    let more = "[connections]\nexempt = [\"127.0.0.0/8\"]\n";
    let scene = layout(242, "tls", "udp").more(more).start(&one_pbx(242));
    let open = || -> Vec<Secure> {
        let each = |_| {
            let mut stream = connect(scene.phones());
            let message = options(&scene);
            // Half a message first, so that it has had a buffer of its own.
            stream.write_all(&message.as_bytes()[..200]).expect("sent");
            stream.write_all(&message.as_bytes()[200..]).expect("sent");
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).expect("an answer") > 0);
            stream
        };
        (0..EACH).map(each).collect()
    };
    let before = scene.router.process.private_kib();
    let _some = open();
    let _more = open();
    // What handshakes used the allocator gives back a moment later.
    let each = || (scene.router.process.private_kib() as f64 - before as f64) / (2 * EACH) as f64;
    let cost = wait_for("20 KiB each at most", PATIENCE, || Some(each()).filter(|cost| *cost <= 20.0));
    assert_eq!(scene.router.metrics().sum("tidings_connections", &[("role", "accepted")]), 2.0 * EACH as f64);
    eprintln!("{cost:.1} KiB each");
}

/// SPEC 9.3: TLS is asked for by nobody else: a phone over UDP and one over TLS are on one router.
#[test]
fn a_rule_may_ask_for_tls() {
    let table = crate::rig::scene::pool("one", 243, &[1])
        + &crate::rig::scene::rule("tls", "source = \"clients\", transport = [\"tls\"]", "route = \"one\"")
        + &crate::rig::scene::rule(
            "rest",
            "source = \"clients\"",
            "reply = { code = 403, reason = \"Use TLS\" }",
        );
    let more = "[[listen]]\nname = \"udp\"\ntransport = \"udp\"\naddress = \"127.40.243.1:5060\"\nside = \"clients\"\n";
    let scene = layout(243, "tls", "udp").more(more).start(&table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&phone, &scene, &pbx);
    let udp = Party::bind("127.40.243.32:5060");
    udp.send(scene.phones(), Request::new("MESSAGE", "sip:1@example.com", &udp).text());
    udp.expect("SIP/2.0 403");
}
