//! Who is a backend, and who is not (SPEC 1.1, 1.5).

use std::net::SocketAddr;

use crate::rig::{
    Party,
    message::{Request, unique},
    scene::{Layout, Scene, pool, rule},
    text,
};

/// Answers 480 to backends, 486 to clients, and has a pool of pbx1.
fn who(net: u8, any_port: bool) -> String {
    let port = if any_port { "any_port = true\n" } else { "" };
    let pool = pool("one", net, &[1]).replacen("probe = ", &format!("{port}probe = "), 1);
    pool + &rule("backends", "source = \"backends\"", "reply = { code = 480, reason = \"Backend\" }")
        + &rule("clients", "source = \"clients\"", "reply = { code = 486, reason = \"Client\" }")
}

/// A third listener with side `both` at .3.
fn with_both(net: u8, more: &str) -> Layout {
    let both = format!(
        "[[listen]]\nname = \"both\"\ntransport = \"udp\"\naddress = \"127.40.{net}.3:5060\"\nside = \"both\"\n"
    );
    Layout::new(net).more(&(both + more))
}

#[track_caller]
fn code(party: &Party, listener: SocketAddr) -> u16 {
    party.send(listener, Request::new("MESSAGE", "sip:1000@example.com", party).text());
    text::status(&party.receive("an answer")).expect("a response")
}

const BACKEND: u16 = 480;
const CLIENT: u16 = 486;

#[test]
fn a_backend_is_known_by_its_address_and_port_on_a_listener_of_its_side() {
    let scene = with_both(10, "").start(&who(10, false));
    let pbx = scene.pbx(1);
    assert_eq!(code(&pbx, scene.pbxs()), BACKEND);
    assert_eq!(code(&pbx, scene.at(3)), BACKEND, "side both takes backends");
    assert_eq!(code(&pbx, scene.phones()), CLIENT, "its address on a listener for clients makes no backend");
}

#[test]
fn a_backends_address_with_another_port_is_a_client() {
    let scene = with_both(11, "").start(&who(11, false));
    let other = Party::bind("127.40.11.11:5061");
    assert_eq!(code(&other, scene.at(3)), CLIENT);
    assert_eq!(code(&other, scene.pbxs()), 403);
}

#[test]
fn any_port_takes_a_backend_by_its_address_alone() {
    let scene = with_both(12, "").start(&who(12, true));
    assert_eq!(code(&Party::bind("127.40.12.11:5061"), scene.at(3)), BACKEND);
    assert_eq!(code(&scene.phone(), scene.at(3)), CLIENT);
}

#[test]
fn a_client_on_a_listener_for_backends_is_403_and_its_ack_is_met_with_silence() {
    let scene = with_both(13, "").start(&who(13, false));
    let phone = scene.phone();
    for method in ["INVITE", "SUBSCRIBE", "REGISTER", "OPTIONS", "UNHEARDOF"] {
        phone.send(scene.pbxs(), Request::new(method, "sip:1000@example.com", &phone).text());
        let answer = phone.expect("SIP/2.0 403");
        assert!(text::header(&answer, "CSeq").ends_with(method));
    }
    phone.send(scene.pbxs(), Request::new("ACK", "sip:1000@example.com", &phone).text());
    scene.quiet(&[&phone]);
    assert!(scene.refused("side") >= 5.0);
}

#[test]
fn trusted_prefixes_count_as_backends_on_a_listener_of_that_side_only() {
    let scene = with_both(14, "[trust]\nprefixes = [\"127.40.14.64/28\"]\n").start(&who(14, false));
    let inside = scene.party(66);
    assert_eq!(code(&inside, scene.at(3)), BACKEND);
    assert_eq!(code(&inside, scene.pbxs()), BACKEND);
    assert_eq!(code(&inside, scene.phones()), CLIENT);
    assert_eq!(code(&scene.party(80), scene.at(3)), CLIENT, "one beyond the prefix");
}

#[test]
fn a_backend_that_left_the_table_is_still_one_for_a_day() {
    let scene = with_both(15, "").start(&who(15, false));
    let pbx = scene.pbx(1);
    assert_eq!(code(&pbx, scene.pbxs()), BACKEND);
    let (status, body) = scene.router.put_table(&who(15, false).replace("127.40.15.11", "127.40.15.12"));
    assert_eq!(status, 200, "{body}");
    assert_eq!(code(&pbx, scene.pbxs()), BACKEND);
    assert_eq!(code(&scene.pbx(2), scene.pbxs()), BACKEND);
}

#[test]
fn a_pools_name_as_source_means_its_addresses() {
    let table = pool("one", 16, &[1])
        + &pool("two", 16, &[2])
        + &rule("two", "source = \"two\"", "reply = { code = 488, reason = \"Pool Two\" }")
        + &rule("rest", "source = \"backends\"", "reply = { code = 480, reason = \"Backend\" }")
        + &rule("clients", "source = \"clients\"", "reply = { code = 486, reason = \"Client\" }");
    let scene = with_both(16, "").start(&table);
    assert_eq!(code(&scene.pbx(1), scene.at(3)), BACKEND);
    assert_eq!(code(&scene.pbx(2), scene.at(3)), 488);
    assert_eq!(code(&Party::bind("127.40.16.12:5061"), scene.at(3)), CLIENT);
}

/// SPEC 1.5: a backend's SUBSCRIBE, PUBLISH and REGISTER go by the table, but never back to it.
#[test]
fn a_backends_own_request_never_returns_to_it() {
    let table = pool("both", 17, &[1, 2]) + &rule("all", "", "route = \"both\"");
    let scene = Scene::start(17, &table);
    let (pbx1, pbx2) = (scene.pbx(1), scene.pbx(2));
    let (mut passed, mut refused) = (0, 0);
    for n in 0..24 {
        let method = ["SUBSCRIBE", "PUBLISH", "REGISTER", "MESSAGE"][n % 4];
        let user = unique();
        let request = Request::new(method, &format!("sip:{user}@example.com"), &pbx1)
            .with("To", format!("<sip:{user}@example.com>"));
        pbx1.send(scene.pbxs(), request.text());
        scene.settle();
        match pbx2.poll(std::time::Duration::from_millis(5)) {
            Some(_) => passed += 1,
            None => {
                let answer = pbx1.receive("what became of it");
                assert!(answer.starts_with("SIP/2.0 482"), "neither with the other nor 482:\n{answer}");
                refused += 1;
            }
        }
    }
    scene.quiet(&[&pbx1]);
    assert!(passed > 0 && refused > 0, "{passed} to the other backend, {refused} refused: one hash of two");
}

/// SPEC 1.5: no flow is learnt from a backend's REGISTER, and it gets no Path.
#[test]
fn a_backends_register_has_no_path_and_teaches_no_flow() {
    let table = pool("registrar", 18, &[2])
        + &rule("registrations", "method = [\"REGISTER\"]", "route = \"registrar\"\npath = true")
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"");
    let scene = Scene::start(18, &table);
    let (pbx1, pbx2) = (scene.pbx(1), scene.pbx(2));
    let contact = format!("<sip:trunk@{}>", pbx1.address);
    let register = Request::new("REGISTER", "sip:example.com", &pbx1)
        .with("To", "<sip:trunk@example.com>")
        .with("Contact", contact.as_str())
        .with("Expires", "600");
    pbx1.send(scene.pbxs(), register.text());
    let got = pbx2.expect("REGISTER ");
    assert!(text::headers(&got, "Path").is_empty(), "{got}");
    assert!(text::headers(&got, "Supported").is_empty(), "{got}");
    pbx2.answer(scene.pbxs(), &got, "200 OK", "reg", &format!("Contact: {contact};expires=600\r\n"));
    pbx1.expect("SIP/2.0 200");
    pbx2.send(scene.pbxs(), Request::new("INVITE", "sip:trunk@example.com", &pbx2).text());
    pbx2.expect("SIP/2.0 480");
    scene.quiet(&[&pbx1]);
}
