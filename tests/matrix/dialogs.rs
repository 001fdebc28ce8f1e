//! Who talks to whom: client to backend, backend to client, backend to backend, spiral, NOTIFY first, forked.

use crate::{
    goes_on, in_each_column, passes,
    rig::{
        Party,
        message::{Request, unique},
        scene::{
            Dialog, Layout, Scene, branch, first_route, one_pbx, pool, rule, uri_address, user, via_address,
        },
        text,
    },
};

/// Subscriptions and calls of pbx1 go to pbx2, all else of backends to the flow.
fn between(net: u8) -> String {
    pool("one", net, &[1])
        + &pool("two", net, &[2])
        + &rule("onwards", "source = \"one\", method = [\"SUBSCRIBE\", \"INVITE\"]", "route = \"two\"")
        + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("in", "source = \"clients\"", "route = \"one\"")
}

#[test]
fn client_to_backend() {
    in_each_column(|| {
        let scene = Scene::start(100, &one_pbx(100));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        for method in ["SUBSCRIBE", "INVITE", "REFER"] {
            let request = Request::new(method, "sip:1000@example.com", &phone);
            let dialog = Dialog::open(&phone, scene.phones(), &pbx, &request);
            assert_eq!(via_address(&dialog.request), scene.pbxs());
            assert_eq!(uri_address(&dialog.callee_routes[0]), scene.pbxs(), "toward the PBX: its side");
            assert_eq!(uri_address(&dialog.caller_routes[0]), scene.phones(), "toward the phone: its side");
            assert_eq!((dialog.callee_routes.len(), dialog.caller_routes.len()), (1, 1));
            goes_on(&scene, &dialog, &phone, &pbx);
            passes(&phone, &dialog.by_caller("ACK", &phone), &pbx, scene.pbxs());
            passes(&phone, &dialog.by_caller("BYE", &phone), &pbx, scene.pbxs());
            passes(&pbx, &dialog.by_callee("BYE", &pbx), &phone, scene.phones());
        }
        scene.quiet(&[&phone, &pbx]);
    });
}

#[test]
fn backend_to_client() {
    in_each_column(|| {
        let scene = Scene::start(101, &one_pbx(101));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        scene.register(&phone, &pbx, "alice", "<sip:alice@10.0.0.7:5060>");
        for method in ["INVITE", "SUBSCRIBE", "REFER", "NOTIFY"] {
            let request = Request::new(method, "sip:alice@10.0.0.7:5060", &pbx);
            let dialog = Dialog::open(&pbx, scene.pbxs(), &phone, &request);
            assert_eq!(via_address(&dialog.request), scene.phones());
            assert_eq!(uri_address(&dialog.callee_routes[0]), scene.phones(), "toward the phone: its side");
            assert_eq!(uri_address(&dialog.caller_routes[0]), scene.pbxs(), "toward the PBX: its side");
            passes(&pbx, &dialog.by_caller("ACK", &pbx), &phone, scene.phones());
            passes(&phone, &dialog.by_callee("INFO", &phone), &pbx, scene.pbxs());
            passes(&pbx, &dialog.by_caller("UPDATE", &pbx), &phone, scene.phones());
            passes(&phone, &dialog.by_callee("BYE", &phone), &pbx, scene.pbxs());
        }
        scene.quiet(&[&phone, &pbx]);
    });
}

/// Neither side is a client's: the tags tell which way.
#[test]
fn backend_to_backend() {
    in_each_column(|| {
        let scene = Scene::start(102, &between(102));
        let (pbx1, pbx2) = (scene.pbx(1), scene.pbx(2));
        for method in ["SUBSCRIBE", "INVITE"] {
            let request = Request::new(method, "sip:lamp@example.com", &pbx1);
            let dialog = Dialog::open(&pbx1, scene.pbxs(), &pbx2, &request);
            assert_eq!(uri_address(&dialog.callee_routes[0]), scene.pbxs());
            assert_eq!(uri_address(&dialog.caller_routes[0]), scene.pbxs());
            for _ in 0..2 {
                passes(&pbx2, &dialog.by_callee("NOTIFY", &pbx2), &pbx1, scene.pbxs());
                passes(&pbx1, &dialog.by_caller("SUBSCRIBE", &pbx1), &pbx2, scene.pbxs());
            }
            passes(&pbx2, &dialog.by_callee("BYE", &pbx2), &pbx1, scene.pbxs());
            passes(&pbx1, &dialog.by_caller("BYE", &pbx1), &pbx2, scene.pbxs());
        }
        scene.quiet(&[&pbx1, &pbx2]);
    });
}

/// pbx1 proxies the call back through us, to pbx2, with or without a Record-Route of its own.
struct Spiral {
    scene: Scene,
    phone: Party,
    pbx1: Party,
    pbx2: Party,
    dialog: Dialog,
}

impl Spiral {
    fn start(net: u8, record_route: bool) -> Spiral {
        let scene = Scene::start(net, &between(net));
        let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
        phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
        let first = pbx1.expect("INVITE ");
        let line = "INVITE sip:1000@example.com SIP/2.0\r\n";
        let mut above =
            format!("{line}Via: SIP/2.0/{} {};branch=z9hG4bK{}\r\n", pbx1.via(), pbx1.address, unique());
        if record_route {
            above += &format!("Record-Route: <sip:{};lr>\r\n", pbx1.address);
        }
        pbx1.send(scene.pbxs(), first.replacen(line, &above, 1));
        let second = pbx2.expect("INVITE ");
        let contact = format!("Contact: <sip:{}>\r\n", pbx2.address);
        pbx2.answer(scene.pbxs(), &second, "200 OK", &unique(), &contact);
        let back = pbx1.expect("SIP/2.0 200");
        // A proxy takes its Via off and sends the response on.
        let own = text::header(&back, "Via").to_owned();
        assert!(own.contains(&pbx1.address.to_string()), "the Via of the proxy is on top again:\n{back}");
        pbx1.send(scene.pbxs(), back.replacen(&format!("Via: {own}\r\n"), "", 1));
        let dialog = Dialog::of(second, phone.expect("SIP/2.0 200"));
        Spiral { scene, phone, pbx1, pbx2, dialog }
    }
}

#[test]
fn spiral_through_a_pbx_that_does_not_record_route() {
    in_each_column(|| {
        let Spiral { scene, phone, pbx1, pbx2, dialog } = Spiral::start(103, false);
        assert_eq!((dialog.caller_routes.len(), dialog.callee_routes.len()), (2, 2), "one for each pass");
        assert_eq!(
            uri_address(&dialog.caller_routes[0]),
            scene.phones(),
            "the phone's first hop is of its side"
        );
        for route in &dialog.callee_routes {
            assert_eq!(uri_address(route), scene.pbxs());
        }
        passes(&phone, &dialog.by_caller("ACK", &phone), &pbx2, scene.pbxs());
        passes(&phone, &dialog.by_caller("INFO", &phone), &pbx2, scene.pbxs());
        passes(&pbx2, &dialog.by_callee("INFO", &pbx2), &phone, scene.phones());
        passes(&pbx2, &dialog.by_callee("BYE", &pbx2), &phone, scene.phones());
        scene.quiet(&[&phone, &pbx1, &pbx2]);
    });
}

#[test]
fn spiral_through_a_pbx_that_record_routes() {
    in_each_column(|| {
        let Spiral { scene, phone, pbx1, pbx2, dialog } = Spiral::start(104, true);
        assert_eq!((dialog.caller_routes.len(), dialog.callee_routes.len()), (3, 3));
        assert_eq!(uri_address(&dialog.caller_routes[0]), scene.phones());
        // Phone, we, pbx1 by its own Route, we, pbx2.
        let ack = dialog.by_caller("ACK", &phone);
        phone.send(first_route(&ack), ack.text());
        let got = pbx1.expect("ACK ");
        let routes = text::headers(&got, "Route");
        assert_eq!(routes.len(), 2, "our first is popped, the PBX's own is its to pop:\n{got}");
        assert_eq!(uri_address(routes[0]), pbx1.address);
        let popped = got.replacen(&format!("Route: {}\r\n", routes[0]), "", 1);
        pbx1.send(uri_address(routes[1]), popped);
        let got = pbx2.expect("ACK ");
        assert!(text::headers(&got, "Route").is_empty(), "{got}");
        // And back.
        let bye = dialog.by_callee("BYE", &pbx2);
        pbx2.send(first_route(&bye), bye.text());
        let got = pbx1.expect("BYE ");
        let routes = text::headers(&got, "Route");
        assert_eq!(routes.len(), 2, "{got}");
        let popped = got.replacen(&format!("Route: {}\r\n", routes[0]), "", 1);
        pbx1.send(uri_address(routes[1]), popped);
        phone.expect("BYE ");
        scene.quiet(&[&phone, &pbx1, &pbx2]);
    });
}

/// RFC 6665 4.1.2.4: the NOTIFY may overtake the 2xx; it has the SUBSCRIBE's token.
#[test]
fn notify_before_the_2xx() {
    in_each_column(|| {
        let scene = Scene::start(105, &one_pbx(105));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).text());
        let request = pbx.expect("SUBSCRIBE ");
        let tag = unique();
        let ok = text::answer(&request, "200 OK", &tag, &format!("Contact: <sip:{}>\r\n", pbx.address));
        let early = Dialog::of(request, ok.clone());
        let got = passes(&pbx, &early.by_callee("NOTIFY", &pbx), &phone, scene.phones());
        let learnt = text::header(&got, "Record-Route").to_owned();
        assert_eq!(uri_address(&learnt), scene.phones());
        pbx.send(scene.pbxs(), ok);
        let dialog = Dialog::of(early.request.clone(), phone.expect("SIP/2.0 200"));
        goes_on(&scene, &dialog, &phone, &pbx);
        // The route set of a subscriber whom the NOTIFY reached first (RFC 6665 4.4.1) serves as well.
        let refresh = dialog.by_caller("SUBSCRIBE", &phone).with("Route", learnt);
        passes(&phone, &refresh, &pbx, scene.pbxs());
    });
}

/// A PBX below us forks: one request, two dialogs, by one Record-Route.
#[test]
fn forked_by_a_pbx_below() {
    in_each_column(|| {
        let scene = Scene::start(106, &between(106));
        let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
        phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).text());
        let request = pbx1.expect("SUBSCRIBE ");
        let legs: Vec<Dialog> = [&pbx1, &pbx2]
            .into_iter()
            .map(|pbx| {
                let contact = format!("Contact: <sip:{}>\r\n", pbx.address);
                pbx.answer(scene.pbxs(), &request, "200 OK", &unique(), &contact);
                Dialog::of(request.clone(), phone.expect("SIP/2.0 200"))
            })
            .collect();
        assert_ne!(legs[0].callee_tag, legs[1].callee_tag);
        assert_eq!(legs[0].caller_routes, legs[1].caller_routes, "one token for both");
        for (leg, pbx) in legs.iter().zip([&pbx1, &pbx2]) {
            passes(pbx, &leg.by_callee("NOTIFY", pbx), &phone, scene.phones());
        }
        passes(&phone, &legs[0].by_caller("SUBSCRIBE", &phone), &pbx1, scene.pbxs());
        // The other leg's Contact is a backend, but of a pool that the token's has no part in: its token decides.
        passes(&phone, &legs[1].by_caller("SUBSCRIBE", &phone), &pbx1, scene.pbxs());
    });
}

/// The same, where both are in one pool: each leg's requests reach its own backend.
#[test]
fn forked_within_a_pool() {
    in_each_column(|| {
        let table = pool("one", 107, &[1, 2])
            + &rule("to phones", "source = \"backends\"", "route = \"flow\"")
            + &rule("in", "source = \"clients\"", "route = \"one\"");
        let scene = Scene::start(107, &table);
        let (phone, pbxs) = (scene.phone(), [scene.pbx(1), scene.pbx(2)]);
        phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
        scene.settle();
        let brief = std::time::Duration::from_millis(20);
        let request = pbxs.iter().find_map(|pbx| pbx.poll(brief)).expect("one of them has it").0;
        let request = String::from_utf8(request).expect("the test's messages are text");
        for pbx in &pbxs {
            let contact = format!("Contact: <sip:{}>\r\n", pbx.address);
            pbx.answer(scene.pbxs(), &request, "200 OK", &unique(), &contact);
            let leg = Dialog::of(request.clone(), phone.expect("SIP/2.0 200"));
            passes(&phone, &leg.by_caller("ACK", &phone), pbx, scene.pbxs());
            passes(&phone, &leg.by_caller("BYE", &phone), pbx, scene.pbxs());
            passes(pbx, &leg.by_callee("BYE", pbx), &phone, scene.phones());
        }
    });
}

/// In a dialog the token stays the same dialog's, however often it is renewed: the newest Record-Route works as well.
#[test]
fn each_renewed_token_serves_as_the_first_did() {
    in_each_column(|| {
        let scene = Scene::start(108, &one_pbx(108));
        let (phone, pbx) = (scene.phone(), scene.pbx(1));
        let dialog = Dialog::subscribe(&scene, &phone, &pbx);
        let mut to_pbx = dialog.caller_routes[0].clone();
        let mut branches = Vec::new();
        for n in 2..6 {
            let refresh = dialog.by_caller("SUBSCRIBE", &phone).with("Route", to_pbx.as_str());
            let refresh = refresh.with("CSeq", format!("{n} SUBSCRIBE"));
            let got = passes(&phone, &refresh, &pbx, scene.pbxs());
            let to_phone = text::header(&got, "Record-Route").to_owned();
            let notify = dialog.by_callee("NOTIFY", &pbx).with("Route", to_phone.as_str());
            let got = passes(&pbx, &notify.with("CSeq", format!("{n} NOTIFY")), &phone, scene.phones());
            to_pbx = text::header(&got, "Record-Route").to_owned();
            branches.push(branch(&got).to_owned());
            assert!(user(&to_pbx).len() <= 48 && user(&to_phone).len() <= 48);
        }
        branches.dedup();
        assert_eq!(branches.len(), 4, "each request has its own branch");
    });
}

/// A trunk that a backend called by its address, and that is trusted: what it sends in the dialog comes to that backend.
#[test]
fn a_trusted_source_that_was_called_talks_to_its_caller() {
    let table = pool("one", 109, &[1]) + &rule("out", "source = \"backends\"", "route = \"request-uri\"");
    let scene = Layout::new(109).more("[trust]\nprefixes = [\"127.40.109.64/28\"]\n").start(&table);
    let (pbx, trunk) = (scene.pbx(1), scene.party(66));
    let invite = Request::new("INVITE", "sip:123@127.40.109.66:5060", &pbx);
    let dialog = Dialog::open(&pbx, scene.pbxs(), &trunk, &invite);
    for (request, from, to) in [
        (dialog.by_caller("ACK", &pbx), &pbx, &trunk),
        (dialog.by_callee("INVITE", &trunk), &trunk, &pbx),
        (dialog.by_callee("BYE", &trunk), &trunk, &pbx),
        (dialog.by_caller("INFO", &pbx), &pbx, &trunk),
    ] {
        from.send(first_route(&request), request.text());
        to.expect(&format!("{} ", request.method));
    }
    scene.quiet(&[&pbx, &trunk]);
}

/// `request-uri` leads to one host, never to an address that is none's (SPEC 5.2).
#[test]
fn request_uri_leads_to_one_host() {
    let table = pool("one", 169, &[1]) + &rule("out", "source = \"backends\"", "route = \"request-uri\"");
    let scene = Scene::start(169, &table);
    let (pbx, trunk) = (scene.pbx(1), scene.party(66));
    for host in ["0.0.0.0", "224.0.1.75", "255.255.255.255", "[::]", "[ff02::1]"] {
        pbx.send(scene.pbxs(), Request::new("MESSAGE", &format!("sip:x@{host}"), &pbx).text());
        pbx.expect("SIP/2.0 404 ");
    }
    pbx.send(scene.pbxs(), Request::new("MESSAGE", "sip:x@127.40.169.66:5060", &pbx).text());
    trunk.expect("MESSAGE ");
}
