//! Host names in backend URIs (SPEC 5.4), against a real DNS server on loopback: SRV by priority and weight, A and AAAA,
//! records that change or expire, a server that dies, answers that lie.

mod rig;

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use rig::{
    Metrics, Party, Router,
    dns::Dns,
    http,
    message::{Request, unique},
    process::wait_udp_free,
    scene::{Layout, Scene, rule},
    text, wait_for,
};

const LONG: Duration = Duration::from_secs(20);

fn table(uri: &str) -> String {
    format!(
        "[[pool]]\nname = \"pbxs\"\nprobe = \"off\"\n[[pool.backend]]\nname = \"pbx\"\nuri = \"{uri}\"\n{}{}",
        rule("to phones", "source = \"backends\"", "route = \"flow\""),
        rule("to the pbxs", "source = \"clients\"", "route = \"pbxs\"")
    )
}

fn settings(net: u8, more: &str) -> Layout {
    // Each look at who gets a request asks on the backends' side too, as a client.
    let dns = format!(
        "[protection]\nmalformed_burst = 100000\n[dns]\nservers = [\"127.40.{net}.53:5353\"]\nttl_min = \"1s\"\ntimeout = \"900ms\"\n{more}"
    );
    Layout::new(net).more(&dns)
}

fn server(net: u8, records: &str) -> Dns {
    Dns::start(&format!("127.40.{net}.53:5353"), records)
}

fn start(net: u8, uri: &str) -> Scene {
    settings(net, "").start(&table(uri))
}

fn subscribe(phone: &Party, user: &str) -> Request {
    Request::new("SUBSCRIBE", &format!("sip:{user}@example.com"), phone)
}

/// Sends a SUBSCRIBE for `user`; the PBX, of these, that got it within a moment.
fn taker(scene: &Scene, phone: &Party, pbxs: &[&Party], user: &str) -> Option<usize> {
    phone.send(scene.phones(), subscribe(phone, user).text());
    scene.settle();
    let got = pbxs.iter().position(|pbx| pbx.poll(Duration::from_millis(1)).is_some());
    while phone.poll(Duration::from_millis(1)).is_some() {}
    got
}

/// Waits until requests arrive at this PBX.
#[track_caller]
fn wait_taken(scene: &Scene, phone: &Party, pbx: &Party) {
    wait_for("the requests to move", LONG, || taker(scene, phone, &[pbx], &unique()).map(drop));
}

fn lookups(metrics: &Metrics, outcome: &str) -> f64 {
    metrics.sum("tidings_dns_lookups_total", &[("outcome", outcome)])
}

const SRV: &str = "srv-host=_sip._udp.pbx.test,a.test,5060,10,30\nsrv-host=_sip._udp.pbx.test,b.test,5060,10,10\n\
                   srv-host=_sip._udp.pbx.test,c.test,5060,20,1\n";

fn hosts(net: u8) -> String {
    ["a", "b", "c"]
        .iter()
        .zip(11..)
        .map(|(host, last)| format!("host-record={host}.test,127.40.{net}.{last}\n"))
        .collect()
}

/// RFC 2782: only the least priority is used, its weights are shares; one key stays on one address.
#[test]
fn srv_priority_first_then_shares_by_weight() {
    let _dns = server(220, &(SRV.to_owned() + &hosts(220)));
    let scene = start(220, "sip:pbx.test");
    let (phone, pbxs) = (scene.phone(), [1, 2, 3].map(|n| scene.pbx(n)));
    let mut counts = [0; 3];
    let mut places = HashMap::new();
    for n in 0..800 {
        phone.send(scene.phones(), subscribe(&phone, &format!("user{n}")).text());
        if n % 20 < 19 {
            continue;
        }
        scene.settle();
        for (at, pbx) in pbxs.iter().enumerate() {
            while let Some((bytes, _)) = pbx.poll(Duration::from_millis(1)) {
                let message = String::from_utf8(bytes).expect("a request of ours");
                places.insert(text::request_uri(&message).to_owned(), at);
                counts[at] += 1;
            }
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 800, "{counts:?}");
    assert_eq!(counts[2], 0, "priority 20 is not used: {counts:?}");
    // 0.75 by weight; four standard deviations of 800 draws are 0.06.
    let share = counts[0] as f64 / 800.0;
    assert!((share - 0.75).abs() < 0.06, "{counts:?}");
    let all: Vec<&Party> = pbxs.iter().collect();
    for n in 0..20 {
        let user = format!("user{n}");
        let expected = places[&format!("sip:{user}@example.com")];
        assert_eq!(taker(&scene, &phone, &all, &user), Some(expected), "{user}");
    }
    let metrics = scene.router.metrics();
    assert_eq!(metrics.find("tidings_backend_addresses", &[("backend", "pbx")]), Some(3.0));
}

/// RFC 3263 4.3: where the addresses of a priority refuse, the next one is used; and after a while they are tried again.
#[test]
fn an_address_that_refuses_is_passed_over_and_the_next_priority_serves() {
    let _dns = server(221, &(SRV.to_owned() + &hosts(221)));
    let scene = settings(221, "avoid = \"3s\"\n").start(&table("sip:pbx.test"));
    let (phone, spare) = (scene.phone(), scene.pbx(3));
    // Nobody is at .11 and .12: the first requests are refused, and those after them go to the spare.
    wait_taken(&scene, &phone, &spare);
    let refusing = |metrics: &Metrics| metrics.sum("tidings_addresses_refusing", &[]);
    wait_for("both to refuse", LONG, || {
        taker(&scene, &phone, &[&spare], &unique());
        (refusing(&scene.router.metrics()) == 2.0).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(taker(&scene, &phone, &[&spare], &unique()), Some(0), "no request is lost any more");
    }
    let (_, status) = http::get(scene.router.admin, "/api/v1/table");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let shown = &status["names"][0];
    assert_eq!(shown["name"], "pbx.test");
    assert_eq!(shown["addresses"].as_array().map(Vec::len), Some(3), "{shown}");
    assert_eq!(shown["addresses"][0]["refuses"], true, "{shown}");
    let both = [scene.pbx(1), scene.pbx(2)];
    wait_taken(&scene, &phone, &both[0]);
}

/// A port in the URI: no SRV, every A record of the host takes its share (RFC 3263 4.2).
#[test]
fn a_port_means_addresses_only() {
    let records = "srv-host=_sip._udp.pbx.test,c.test,5060,10,1\nhost-record=pbx.test,127.40.222.11\n\
                   host-record=pbx.test,127.40.222.12\n";
    let _dns = server(222, &(records.to_owned() + "host-record=c.test,127.40.222.13\n"));
    let scene = start(222, "sip:pbx.test:5060");
    let (phone, pbxs) = (scene.phone(), [1, 2, 3].map(|n| scene.pbx(n)));
    let all: Vec<&Party> = pbxs.iter().collect();
    let mut counts = [0; 3];
    for n in 0..60 {
        counts[taker(&scene, &phone, &all, &format!("user{n}")).expect("one of them")] += 1;
    }
    assert!(counts[0] > 10 && counts[1] > 10 && counts[2] == 0, "{counts:?}");
}

/// Without SRV records the addresses of the name itself, on the default port.
#[test]
fn no_srv_record_means_the_default_port() {
    let _dns = server(223, "host-record=pbx.test,127.40.223.11\n");
    let scene = start(223, "sip:pbx.test");
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    assert_eq!(taker(&scene, &phone, &[&pbx], "1000"), Some(0));
}

/// AAAA: only what a listener can reach is used, here IPv6 though the name has an A record too.
#[test]
fn aaaa_records_are_reached_by_an_ipv6_listener() {
    let _dns = server(224, "host-record=pbx.test,127.40.224.11,::1\n");
    let settings = "[workers]\ncount = 1\n[admin]\naddress = \"127.40.224.1:9060\"\n\
                    [[listen]]\nname = \"phones\"\naddress = \"127.40.224.1:5060\"\nside = \"clients\"\n\
                    [[listen]]\nname = \"inside\"\naddress = \"[::1]:5321\"\nside = \"backends\"\n\
                    [dns]\nservers = [\"127.40.224.53:5353\"]\n";
    let router = Router::start(settings, &table("sip:pbx.test:5322"));
    let (phone, pbx) = (Party::bind("127.40.224.31:5060"), Party::bind("[::1]:5322"));
    phone.send("127.40.224.1:5060", subscribe(&phone, "1000").text());
    let seen = pbx.expect("SUBSCRIBE ");
    pbx.answer("[::1]:5321", &seen, "200 OK", "t", "Expires: 600\r\n");
    phone.expect("SIP/2.0 200");
    let metrics = router.metrics();
    assert_eq!(metrics.find("tidings_backend_addresses", &[("backend", "pbx")]), Some(1.0));
}

/// A record that changes moves the traffic when its time to live is over, with the table's version unchanged; the old
/// address is believed for another day (SPEC 1.1).
#[test]
fn a_changed_record_moves_the_traffic() {
    let mut dns = server(225, "host-record=pbx.test,127.40.225.11\n");
    let scene = start(225, "sip:pbx.test:5060");
    let (phone, old, new) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    assert_eq!(taker(&scene, &phone, &[&old], "1000"), Some(0));
    let before = scene.router.metrics();
    dns.restart("host-record=pbx.test,127.40.225.12\n");
    wait_taken(&scene, &phone, &new);
    while old.poll(Duration::from_millis(1)).is_some() {}
    assert_eq!(taker(&scene, &phone, &[&old, &new], "1000"), Some(1));
    let after = scene.router.metrics();
    let version = |metrics: &Metrics| metrics.find("tidings_table_version", &[]);
    assert_eq!(version(&after), version(&before));
    assert_eq!(after.sum("tidings_departed_addresses", &[]), 1.0);
    // The listener for backends refuses clients: from there only a backend gets another answer than 403.
    old.send(scene.pbxs(), Request::new("MESSAGE", "sip:nobody@example.com", &old).text());
    old.expect("SIP/2.0 480");
    let stranger = scene.party(99);
    stranger.send(scene.pbxs(), Request::new("MESSAGE", "sip:nobody@example.com", &stranger).text());
    stranger.expect("SIP/2.0 403");
}

/// A server that dies takes nothing away, and nothing stalls; when it is back, what it says counts.
#[test]
fn a_dead_server_leaves_the_last_answer_in_force() {
    let mut dns = server(226, "host-record=pbx.test,127.40.226.11\n");
    let scene = start(226, "sip:pbx.test:5060");
    let (phone, old, new) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    assert_eq!(taker(&scene, &phone, &[&old], "1000"), Some(0));
    dns.kill();
    wait_for("two look-ups to fail", LONG, || {
        assert_eq!(taker(&scene, &phone, &[&old], &unique()), Some(0), "it goes on");
        (lookups(&scene.router.metrics(), "failed") >= 2.0).then_some(())
    });
    let (_, status) = http::get(scene.router.admin, "/api/v1/table");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert!(status["names"][0]["error"].is_string(), "{status}");
    // A name without any record is no reason either to leave users without a PBX.
    dns.restart("");
    scene.router.wait_metrics("an empty answer", LONG, |m| (lookups(m, "nothing") >= 1.0).then_some(()));
    assert_eq!(taker(&scene, &phone, &[&old], "1000"), Some(0));
    dns.restart("host-record=pbx.test,127.40.226.12\n");
    wait_taken(&scene, &phone, &new);
}

/// A table whose name cannot be resolved comes into force after a bounded wait: requests are answered 503, and served as
/// soon as the name resolves.
#[test]
fn a_name_that_does_not_resolve_is_503_until_it_does() {
    let scene = start(227, "sip:pbx.test");
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    phone.send(scene.phones(), subscribe(&phone, "1000").text());
    let answer = phone.expect("SIP/2.0 503");
    assert!(!text::headers(&answer, "Retry-After").is_empty(), "{answer}");
    phone.send(scene.phones(), Request::new("OPTIONS", &format!("sip:{}", scene.phones()), &phone).text());
    phone.expect("SIP/2.0 503");
    let metrics = scene.router.metrics();
    assert_eq!(metrics.find("tidings_dns_names_unresolved", &[]), Some(1.0));
    assert_eq!(metrics.find("tidings_backend_addresses", &[("backend", "pbx")]), Some(0.0));
    let message = subscribe(&phone, "1000").text();
    let (_, told) = http::post(scene.router.admin, "/api/v1/explain?source=192.0.2.1:5060", &message);
    assert!(told.contains("pbx: no candidate, no address"), "{told}");
    let _dns = server(227, "host-record=pbx.test,127.40.227.11\n");
    wait_taken(&scene, &phone, &pbx);
    let (_, told) = http::post(scene.router.admin, "/api/v1/explain?source=192.0.2.1:5060", &message);
    assert!(told.contains("at 127.40.227.11:5060 (its one address)"), "{told}");
}

/// No answer makes a backend of what cannot be one host, of ourselves, or of what `prefixes` leaves out; and none makes a
/// backend of the table another one's.
#[test]
fn answers_that_lie_are_refused() {
    let lies = "host-record=any.test,0.0.0.0\nhost-record=us.test,127.40.228.2\nhost-record=out.test,127.41.0.1\n\
                host-record=thief.test,127.40.228.11\n";
    let _dns = server(228, lies);
    let backend = |name: &str, uri: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\nprobe = \"off\"\n[[pool.backend]]\nname = \"{name}\"\nuri = \"sip:{uri}:5060\"\n{}",
            rule(name, &format!("ruri = \"^sip:{name}@\""), &format!("route = \"{name}\""))
        )
    };
    let table = ["any", "us", "out", "thief"].map(|name| backend(name, &format!("{name}.test"))).concat()
        + &backend("pbx1", "127.40.228.11");
    let scene = settings(228, "prefixes = [\"127.40.0.0/16\", \"0.0.0.0/32\"]\n").start(&table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for name in ["any", "us", "out"] {
        phone
            .send(scene.phones(), Request::new("MESSAGE", &format!("sip:{name}@example.com"), &phone).text());
        phone.expect("SIP/2.0 503");
    }
    assert!(lookups(&scene.router.metrics(), "refused") >= 3.0);
    let message = Request::new("MESSAGE", "sip:nobody@example.com", &pbx).text();
    let address: SocketAddr = pbx.address;
    let asked = format!("/api/v1/explain?source={address}&listener=pbxs");
    let (_, told) = http::post(scene.router.admin, &asked, &message);
    assert!(told.contains("backend pbx1"), "a literal address is whose the table says: {told}");
}

/// A dialog stays at its address, though the notifier's Contact names the host.
#[test]
fn a_dialog_stays_at_its_address() {
    let _dns = server(229, "host-record=pbx.test,127.40.229.11\nhost-record=pbx.test,127.40.229.12\n");
    let scene = start(229, "sip:pbx.test:5060");
    let (phone, pbxs) = (scene.phone(), [scene.pbx(1), scene.pbx(2)]);
    let mut seen_at = [0; 2];
    for n in 0..16 {
        let request = subscribe(&phone, &format!("user{n}"));
        phone.send(scene.phones(), request.text());
        scene.settle();
        let (at, seen) = (0..2)
            .find_map(|at| Some((at, pbxs[at].poll(Duration::from_millis(1))?)))
            .map(|(at, (bytes, _))| (at, String::from_utf8(bytes).expect("a request of ours")))
            .expect("one of them takes it");
        seen_at[at] += 1;
        let more = "Contact: <sip:1000@pbx.test:5060>\r\nExpires: 600\r\n";
        pbxs[at].answer(scene.pbxs(), &seen, "200 OK", "n", more);
        let accepted = phone.expect("SIP/2.0 200");
        let again = subscribe(&phone, "x")
            .with("Call-ID", text::header(&accepted, "Call-ID"))
            .with("From", text::header(&accepted, "From"))
            .with("To", text::header(&accepted, "To"))
            .with("CSeq", "2 SUBSCRIBE")
            .and("Route", text::header(&accepted, "Record-Route"))
            .text()
            .replace("SUBSCRIBE sip:x@example.com", "SUBSCRIBE sip:1000@pbx.test:5060");
        phone.send(scene.phones(), again);
        pbxs[at].expect("SUBSCRIBE ");
    }
    assert!(seen_at[0] > 0 && seen_at[1] > 0, "{seen_at:?}");
}

/// Of more addresses than the bound the most wanted are taken, and the others counted.
#[test]
fn addresses_beyond_the_bound_are_left_out() {
    let _dns = server(231, &(SRV.to_owned() + &hosts(231)));
    let scene = settings(231, "addresses = 2\n").start(&table("sip:pbx.test"));
    let metrics = scene.router.metrics();
    assert_eq!(metrics.find("tidings_backend_addresses", &[("backend", "pbx")]), Some(2.0));
    assert_eq!(metrics.find("tidings_dns_addresses_limit", &[]), Some(2.0));
    assert!(metrics.sum("tidings_dns_addresses_dropped_total", &[]) >= 1.0);
    let (phone, pbxs) = (scene.phone(), [1, 2].map(|n| scene.pbx(n)));
    assert!(taker(&scene, &phone, &[&pbxs[0], &pbxs[1]], "1000").is_some());
}

/// A reload takes up new names before the table is in force, and forgets those that left.
#[test]
fn a_new_table_begins_with_its_names_resolved() {
    let _dns = server(230, "host-record=one.test,127.40.230.11\nhost-record=two.test,127.40.230.12\n");
    let scene = start(230, "sip:one.test:5060");
    let (phone, two) = (scene.phone(), scene.pbx(2));
    let (status, body) = scene.router.put_table(&table("sip:two.test:5060"));
    assert_eq!(status, 200, "{body}");
    assert_eq!(taker(&scene, &phone, &[&two], "1000"), Some(0), "not one request without an address");
    assert_eq!(scene.router.metrics().find("tidings_dns_names", &[]), Some(1.0));
    drop(two);
    wait_udp_free(scene.at(12));
}
