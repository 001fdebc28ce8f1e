//! A core that is behind (SPEC 10): twice what it can carry is offered, in dialogs and outside of them.
//!
//! Nothing is timed: the load offers without waiting for anything until the router says by its own metrics that it is
//! behind, and answers are counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::*;
use rig::{
    scene::{Dialog, first_route, pool, rule},
    text, wait_for,
};

/// Threads that offer without a pause: with the router on one core of two they have what it has, and their datagrams cost
/// less to send than to route.
const THREADS: u8 = 3;

/// Rules that cost something, so that the router is slower than those who send.
fn table(net: u8) -> String {
    let patterns: String = (0..40)
        .map(|n| {
            let name = format!("never {n}");
            let matches = format!(
                "header.X-Long = \"(a|b|ab)*c{n}$\", header.From = \"never{n}@\", source = \"clients\""
            );
            rule(&name, &matches, "reply = { code = 488, reason = \"No\" }")
        })
        .collect();
    pool("one", net, &[1])
        + &patterns
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("floods", "ruri = \"^sip:flood@\"", "reply = { code = 486, reason = \"Busy\" }")
        + &rule("to the pbx", "source = \"clients\"", "route = \"one\"")
}

/// Offers new requests until told to stop; tells how many were answered by 503 with Retry-After.
fn flood(party: Party, to: std::net::SocketAddr, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let request =
        Request::new("MESSAGE", "sip:flood@example.com", &party).with("X-Long", "ab".repeat(200)).text();
    std::thread::spawn(move || {
        let socket = party.into_udp();
        socket.set_nonblocking(true).expect("a socket of ours");
        let (mut told, mut buffer) = (0, [0; 4096]);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                // What the kernel does not take is not offered.
                let _ = socket.send_to(request.as_bytes(), to);
            }
            while let Ok(n) = socket.recv(&mut buffer) {
                let answer = &buffer[..n];
                let is = |part: &[u8]| answer.windows(part.len()).any(|window| window == part);
                if answer.starts_with(b"SIP/2.0 503 ") {
                    assert!(is(b"\r\nRetry-After: 9\r\n"), "{}", String::from_utf8_lossy(answer));
                    told += 1;
                }
            }
        }
        told
    })
}

#[test]
fn a_core_that_is_behind_sheds_what_is_new_and_goes_on_with_what_it_has() {
    let more = "[protection]\nnew_dialogs = 0\nretry_after = \"9s\"\nbehind = \"20ms\"\ncalm = \"300ms\"\n";
    let scene = layout(239, "udp", more).start(&table(239));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> =
        (0..THREADS).map(|n| flood(scene.party(50 + n), scene.phones(), stop.clone())).collect();
    let behind = |scene: &Scene| metric(scene, "tidings_overloaded", &[("worker", "0")]);
    wait_for("the worker to be behind", Duration::from_secs(60), || (behind(&scene) == 1.0).then_some(()));

    // While it goes on: requests of both ends of the dialog arrive and are answered, as often as it takes for one that
    // the kernel dropped before anybody saw it (they are datagrams, and so are those of the flood).
    let mut carried = 0;
    let shed = || scene.refused("overload");
    let (before, end) = (shed(), Instant::now() + Duration::from_secs(60));
    while (carried < 30 || shed() < before + 1_000.0) && Instant::now() < end {
        let cseq = 10 + carried;
        let refresh = dialog.by_caller("SUBSCRIBE", &phone).with("CSeq", format!("{cseq} SUBSCRIBE"));
        let notify = dialog.by_callee("NOTIFY", &pbx).with("CSeq", format!("{cseq} NOTIFY"));
        exchange(&phone, scene.phones(), &refresh, &pbx, scene.pbxs());
        exchange(&pbx, first_route(&notify), &notify, &phone, scene.phones());
        carried += 1;
    }
    assert!(carried >= 30 && shed() >= before + 1_000.0, "{carried} carried, {} shed", shed() - before);
    // A call for help is not shed.
    let help = Request::new("INVITE", "urn:service:sos", &phone);
    exchange(&phone, scene.phones(), &help, &pbx, scene.pbxs());
    // Nor is what has a priority.
    let prior = message(&phone).with("Resource-Priority", "esnet.1").with("CSeq", "77 MESSAGE");
    exchange(&phone, scene.phones(), &prior, &pbx, scene.pbxs());
    assert!(metric(&scene, "tidings_overloads_total", &[]) >= 1.0);

    stop.store(true, Ordering::Relaxed);
    let told: u64 = floods.into_iter().map(|flood| flood.join().expect("it does not panic")).sum();
    assert!(told > 0, "nobody was told to come later");
    wait_for("the worker to have caught up", PATIENCE, || (behind(&scene) == 0.0).then_some(()));
    honest(&phone, &scene, &pbx);
}

/// Sends a request until the other side has it, and its answer until the first has that. No answer is a refusal.
#[track_caller]
fn exchange(
    from: &Party,
    entry: std::net::SocketAddr,
    request: &Request,
    to: &Party,
    back: std::net::SocketAddr,
) {
    let cseq = request.value("CSeq").to_owned();
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < end, "never answered:\n{}", request.text());
        from.send(entry, request.text());
        let Some((got, _)) = to.poll(Duration::from_millis(300)) else { continue };
        let got = String::from_utf8(got).expect("text");
        if text::header(&got, "CSeq") != cseq || text::status(&got).is_some() {
            continue;
        }
        let more = format!("Contact: <sip:{}>\r\nExpires: 600\r\n", to.address);
        to.answer(back, &got, "200 OK", "x", &more);
        while let Some((answer, _)) = from.poll(Duration::from_millis(300)) {
            let answer = String::from_utf8(answer).expect("text");
            if text::header(&answer, "CSeq") == cseq && text::status(&answer).is_some() {
                assert_eq!(text::status(&answer), Some(200), "{answer}");
                return;
            }
        }
    }
}
