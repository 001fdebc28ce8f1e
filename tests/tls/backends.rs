//! Backends over TLS: they must prove who they are, are probed, and sips reaches nobody else.

use std::time::Duration;

use rcgen::{CertificateParams, SanType, date_time_ymd};

use super::{PATIENCE, failed, layout};
use crate::rig::{
    self, Party, TempDir,
    dns::Dns,
    message::Request,
    pki::{Authority, Issued, authority},
    scene::{Dialog, Layout, Scene, first_route, one_pbx, pool, rule, via_address},
    text, wait_for,
};

/// A PBX at `.11` that shows this certificate.
fn pbx(scene: &Scene, shown: &Issued, asks: bool) -> Party {
    Party::bind_tls_with(scene.at(11), (authority().client(None), authority().server(shown, asks)))
}

fn message(phone: &Party) -> Request {
    Request::new("MESSAGE", "sip:1@example.com", phone)
}

/// The phone's MESSAGE comes back as 503, and the failure is counted so often by then.
fn refused(scene: &Scene, phone: &Party, cause: &str, count: f64) {
    phone.send(scene.phones(), message(phone).text());
    let answer = phone.expect("SIP/2.0 503");
    assert!(answer.contains("Retry-After: "), "{answer}");
    assert_eq!(failed(scene, cause), count, "{cause}");
}

/// RFC 5922 7: a certificate of ours to trust, not expired, and of the host in the backend's URI.
#[test]
fn a_backend_must_prove_who_it_is() {
    let of = |names: &[&str], change: &dyn Fn(&mut CertificateParams)| {
        authority().issue_with(names, |p| change(p))
    };
    let here = "127.40.244.11";
    let old = |params: &mut CertificateParams| params.not_after = date_time_ymd(2002, 1, 1);
    let sip = |params: &mut CertificateParams| {
        params.subject_alt_names.push(SanType::URI("sip:127.40.244.11".try_into().expect("ASCII")));
    };
    let cases = [
        (of(&["127.40.244.12"], &|_| {}), Some("wrong_name")),
        (of(&["pbx.example.com"], &|_| {}), Some("wrong_name")),
        (of(&[here], &old), Some("bad_certificate")),
        (Authority::new("another").issue(&[here]), Some("unknown_ca")),
        (of(&[here], &|_| {}), None),
        (of(&["pbx.example.com"], &sip), None),
    ];
    for (at, (shown, cause)) in cases.into_iter().enumerate() {
        eprintln!("case {at}");
        let scene = layout(244, "udp", "tls").start(&one_pbx(244));
        let (pbx, phone) = (pbx(&scene, &shown, false), scene.phone());
        let Some(cause) = cause else {
            super::honest(&phone, &scene, &pbx);
            continue;
        };
        refused(&scene, &phone, cause, 1.0);
        pbx.expect_nothing(Duration::from_millis(50));
        // It is not called again with each message.
        refused(&scene, &phone, cause, 1.0);
    }
}

/// The name is that of the URI, whatever DNS says about where it is; names come by `_sips._tcp`.
#[test]
fn a_backend_by_name_shows_a_certificate_of_that_name() {
    let records = "srv-host=_sips._tcp.pbx.example.test,host.example.test,5060,0,10\n\
                   host-record=host.example.test,127.40.245.11\n";
    let _dns = Dns::start("127.40.245.53:5353", records);
    let table = pool("one", 245, &[1])
        .replace("sip:127.40.245.11:5060;transport=udp", "sips:pbx.example.test")
        + &rule("all", "source = \"clients\"", "route = \"one\"");
    let start =
        || layout(245, "udp", "tls").more("[dns]\nservers = [\"127.40.245.53:5353\"]\n").start(&table);
    let scene = start();
    let phone = scene.phone();
    {
        let _wrong = pbx(&scene, &authority().issue(&["host.example.test", "127.40.245.11"]), false);
        refused(&scene, &phone, "wrong_name", 1.0);
    }
    drop(scene);
    let scene = start();
    let pbx = pbx(&scene, &authority().issue(&["pbx.example.test"]), false);
    super::honest(&phone, &scene, &pbx);
}

#[test]
fn a_backend_that_asks_is_shown_our_certificate() {
    let dir = TempDir::new("pki");
    let table = one_pbx(246);
    let with_own = |own: &str| {
        let mut layout: Layout = layout(246, "udp", "tls");
        layout.own_tls = true;
        let general = rig::scene::certificates(&dir, &["127.40.246.2"]);
        layout.more(&format!("{general}{own}")).start(&table)
    };
    let shown = authority().issue(&["127.40.246.11"]);
    {
        let scene = with_own("");
        let (pbx, phone) = (pbx(&scene, &shown, true), scene.phone());
        // The first may have left before the PBX says no (TLS 1.3).
        phone.send(scene.phones(), message(&phone).text());
        wait_for("its refusal", PATIENCE, || (failed(&scene, "refused") == 1.0).then_some(()));
        refused(&scene, &phone, "refused", 1.0);
        pbx.expect_nothing(Duration::from_millis(50));
    }
    let (certificate, key) = authority().issue(&["router"]).write(&dir, "client");
    let scene = with_own(&format!("backend_certificate = {certificate:?}\nbackend_private_key = {key:?}\n"));
    let (pbx, phone) = (pbx(&scene, &shown, true), scene.phone());
    super::honest(&phone, &scene, &pbx);
}

/// SPEC 3.3: sips has SIPS Record-Route in the request and in its response, and in the dialog; a Path too.
#[test]
fn sips_goes_by_tls_and_says_so() {
    let scene = layout(247, "tls", "tls").start(&one_pbx(247));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let contact = |party: &Party| format!("<sips:x@{}>", party.address);
    let request = Request::new("SUBSCRIBE", "sips:1000@example.com", &phone).with("Contact", contact(&phone));
    phone.send(scene.phones(), request.text());
    let got = pbx.expect("SUBSCRIBE sips:1000@example.com SIP/2.0");
    let route = text::header(&got, "Record-Route");
    assert!(route.starts_with("<sips:") && route.contains("@127.40.247.2:5060;transport=tls;lr>"), "{got}");
    assert!(text::header(&got, "Via").starts_with("SIP/2.0/TLS 127.40.247.2:5060;"), "{got}");
    pbx.answer(via_address(&got), &got, "200 OK", "there", &format!("Contact: {}\r\n", contact(&pbx)));
    let back = phone.expect("SIP/2.0 200");
    let route = text::header(&back, "Record-Route");
    assert!(route.starts_with("<sips:") && route.contains("@127.40.247.1:5060;transport=tls;lr>"), "{back}");
    let dialog = Dialog::of(got, back);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(first_route(&notify), notify.text());
    let got = phone.expect("NOTIFY sips:");
    assert!(text::header(&got, "Record-Route").starts_with("<sips:"), "{got}");
    let refresh = dialog.by_caller("SUBSCRIBE", &phone);
    phone.send(first_route(&refresh), refresh.text());
    assert!(text::header(&pbx.expect("SUBSCRIBE sips:"), "Record-Route").starts_with("<sips:"));
    let register = Request::new("REGISTER", "sips:example.com", &phone);
    phone.send(scene.phones(), register.text());
    assert!(text::header(&pbx.expect("REGISTER sips:"), "Path").starts_with("<sips:"));
    // Without sips all is as on other transports.
    phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).text());
    assert!(text::header(&pbx.expect("SUBSCRIBE sip:"), "Record-Route").starts_with("<sip:"));
}

/// SPEC 3.3: without TLS toward the next hop it is 480: by the R-URI, by the top Route, by a Route of ours.
#[test]
fn sips_goes_nowhere_else() {
    let scene = layout(248, "tls", "udp").start(&one_pbx(248));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let new = |method: &str, uri: &str| Request::new(method, uri, &phone);
    let ours = format!("<sips:{};lr>", scene.phones());
    for request in [
        new("SUBSCRIBE", "sips:1000@example.com"),
        new("MESSAGE", "SIPS:1000@example.com"),
        new("INVITE", "sip:1000@example.com").and("Route", "<sips:127.40.248.99;lr>"),
        new("INVITE", "sip:1000@example.com").and("Route", &ours),
    ] {
        phone.send(scene.phones(), request.text());
        phone.expect("SIP/2.0 480");
    }
    // A dialog over sip is not made one over TLS on one side by who writes sips into its Route.
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let refresh = dialog.by_caller("SUBSCRIBE", &phone);
    let secured = refresh.value("Route").replacen("<sip:", "<sips:", 1);
    phone.send(scene.phones(), refresh.with("Route", secured).text());
    phone.expect("SIP/2.0 480");
    scene.quiet(&[&pbx]);
    // And toward the phone it is TLS indeed, whatever the PBX speaks.
    let notify = dialog.by_callee("NOTIFY", &pbx).to("sips:alice@127.40.248.31:5060");
    pbx.send(first_route(&notify), notify.text());
    let got = phone.expect("NOTIFY sips:");
    assert!(text::header(&got, "Record-Route").starts_with("<sips:"), "{got}");
    phone.answer(scene.phones(), &got, "200 OK", "", "");
    let back = pbx.expect("SIP/2.0 200");
    assert!(text::header(&back, "Record-Route").starts_with("<sip:"), "it cannot come back by TLS:\n{back}");
    assert_eq!(scene.refused("sips"), 5.0);
}

/// SPEC 8.1, 9.3: probes use TLS and judge as calls do.
#[test]
fn a_backend_over_tls_is_probed_over_tls() {
    let probe = "probe = { interval = \"500ms\", timeout = \"400ms\", fall = 2, rise = 1 }";
    let table = one_pbx(249).replace("probe = \"off\"", probe);
    let scene = layout(249, "udp", "tls").start(&table);
    let state = || {
        let (_, body) = rig::http::get(scene.router.admin, "/api/v1/backends");
        let list: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let text = |key: &str| list[0][key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("why"))
    };
    let answering = |shown: &Issued, until: &dyn Fn() -> bool| {
        let pbx = pbx(&scene, shown, false);
        let end = std::time::Instant::now() + PATIENCE;
        while !until() {
            assert!(std::time::Instant::now() < end, "{:?}\n{}", state(), scene.router.process.output());
            let Some((bytes, from)) = pbx.poll(Duration::from_millis(20)) else { continue };
            let request = String::from_utf8(bytes).expect("text");
            assert!(text::header(&request, "Via").starts_with("SIP/2.0/TLS "), "{request}");
            pbx.answer(from, &request, "200 OK", "x", "");
        }
    };
    let count =
        |outcome: &str| scene.router.metrics().sum("tidings_backend_probes_total", &[("outcome", outcome)]);
    let good = authority().issue(&["127.40.249.11"]);
    answering(&good, &|| count("answered") >= 2.0 && state().0 == "up");
    answering(&authority().issue(&["127.40.249.12"]), &|| state().0 == "down" && count("insecure") >= 1.0);
    answering(&good, &|| state().0 == "up");
    let said = scene.router.process.output();
    assert!(
        said.contains("TLS with it fails: its certificate is another host's")
            || said.contains("nobody listens"),
        "{said}"
    );
}

/// SPEC 4.6: without a listener for TLS a table with such a backend is refused, and says what is missing.
#[test]
fn a_table_with_tls_needs_a_listener_with_tls() {
    let scene = layout(250, "udp", "udp").start(&one_pbx(250));
    let (status, told) = scene.router.put_table(&one_pbx(250).replace("transport=udp", "transport=tls"));
    assert_eq!(status, 422, "{told}");
    assert!(told.contains("no listener for tls"), "{told}");
}
