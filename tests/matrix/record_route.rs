//! Record-Route: exactly one of ours for each pass, small, and of the receiver's side (SPEC 3.2, 3.3, 4.1).

use crate::rig::{
    Party,
    message::{Passage, Request, beyond_edits, unique},
    scene::{
        Dialog, Layout, Scene, first_route, one_pbx, parameter, pool, rule, uri_address, user, via_address,
    },
    text,
};

#[test]
fn on_invite_subscribe_refer_and_notify_and_on_nothing_else() {
    let scene = Scene::start(140, &one_pbx(140));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let foreign = "<sip:192.0.2.1;lr>, <sip:192.0.2.2;lr>";
    let methods = [
        ("INVITE", 2),
        ("SUBSCRIBE", 2),
        ("REFER", 2),
        ("NOTIFY", 2),
        ("MESSAGE", 1),
        ("OPTIONS", 1),
        ("REGISTER", 1),
        ("PUBLISH", 1),
        ("BYE", 1),
        ("CANCEL", 1),
        ("ACK", 1),
        ("INFO", 1),
        ("UPDATE", 1),
        ("PRACK", 1),
        ("UNHEARDOF", 1),
    ];
    for (method, count) in methods {
        let request = Request::new(method, "sip:1000@example.com", &phone).and("Record-Route", foreign);
        phone.send(scene.phones(), request.text());
        let got = pbx.expect(method);
        let routes = text::headers(&got, "Record-Route");
        assert_eq!(routes.len(), count, "{got}");
        assert_eq!(routes[count - 1], foreign, "what was there stays below ours");
        if count == 2 {
            assert_eq!(uri_address(routes[0]), scene.pbxs());
            assert!(text::uri(routes[0]).contains(";lr"), "{}", routes[0]);
        }
    }
}

/// In dialogs too, in both directions: Asterisk with rewrite_contact takes the Contact of a 2xx without Record-Route for the
/// packet's source.
#[test]
fn in_dialogs_too() {
    let scene = Scene::start(141, &one_pbx(141));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    for _ in 0..2 {
        for (from, to, side, request) in [
            (&phone, &pbx, scene.pbxs(), dialog.by_caller("SUBSCRIBE", &phone)),
            (&pbx, &phone, scene.phones(), dialog.by_callee("NOTIFY", &pbx)),
            (&phone, &pbx, scene.pbxs(), dialog.by_caller("INVITE", &phone)),
        ] {
            let entry = first_route(&request);
            from.send(entry, request.text());
            let got = to.expect(&request.method);
            let routes = text::headers(&got, "Record-Route");
            assert_eq!(routes.len(), 1, "{got}");
            assert_eq!(uri_address(routes[0]), side, "{got}");
            to.answer(via_address(&got), &got, "200 OK", "", "");
            let back = from.expect("SIP/2.0 200");
            let routes = text::headers(&back, "Record-Route");
            assert_eq!(routes.len(), 1, "{back}");
            assert_eq!(uri_address(routes[0]), entry, "in the response: the side of who asked:\n{back}");
        }
        let bye = dialog.by_caller("BYE", &phone);
        phone.send(first_route(&bye), bye.text());
        assert!(text::headers(&pbx.expect("BYE "), "Record-Route").is_empty());
    }
}

/// Only the Record-Route whose bits are the top branch's is rewritten, and only in its own response.
#[test]
fn a_response_has_only_its_own_record_route_rewritten() {
    let scene = Scene::start(142, &one_pbx(142));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let earlier = Dialog::subscribe(&scene, &phone, &pbx);
    let foreign = earlier.callee_routes[0].clone();
    phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).text());
    let got = pbx.expect("SUBSCRIBE ");
    let ours = text::header(&got, "Record-Route").to_owned();
    let stack = format!("<sip:192.0.2.7;lr>, {foreign}, {ours}, <sip:x@{}:5060;lr>", scene.pbxs().ip());
    pbx.send(scene.pbxs(), text::answer(&got, "200 OK", "t", "").replacen(&ours, &stack, 1));
    let back = phone.expect("SIP/2.0 200");
    let rewritten: Vec<&str> = text::header(&back, "Record-Route").split(',').map(str::trim).collect();
    assert_eq!(rewritten[0], "<sip:192.0.2.7;lr>");
    assert_eq!(rewritten[1], foreign, "of another Call-ID: its MAC is not good here");
    assert_eq!(uri_address(rewritten[2]), scene.phones());
    assert_eq!(rewritten[3], format!("<sip:x@{}:5060;lr>", scene.pbxs().ip()));
}

/// `rewrite_contact` of Asterisk writes the packet's source into it: the host may be any of ours, any port.
#[test]
fn the_host_in_a_returned_record_route_may_be_any_of_ours() {
    let mut layout = Layout::new(143);
    layout.top = "aliases = [\"sip.example.net\"]\n".into();
    let scene = layout.start(&one_pbx(143));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    for host in
        ["127.40.143.1:5060", "127.40.143.2:7777", "127.40.143.2", "sip.example.net", "SIP.example.NET:5080"]
    {
        phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).text());
        let got = pbx.expect("SUBSCRIBE ");
        let ours = text::header(&got, "Record-Route").to_owned();
        let changed = ours.replacen("127.40.143.2:5060", host, 1);
        let contact = format!("Contact: <sip:{}>\r\n", pbx.address);
        pbx.send(
            scene.pbxs(),
            text::answer(&got, "200 OK", &unique(), &contact).replacen(&ours, &changed, 1),
        );
        let dialog = Dialog::of(got, phone.expect("SIP/2.0 200"));
        assert_eq!(uri_address(&dialog.caller_routes[0]), scene.phones(), "{host}");
        let refresh = dialog.by_caller("SUBSCRIBE", &phone);
        phone.send(scene.phones(), refresh.text());
        pbx.expect("SUBSCRIBE ");
        // Back in a Route it is ours by its port as well (SPEC 4.4).
        if !host.ends_with(":7777") {
            let notify = dialog.by_callee("NOTIFY", &pbx).with("Route", changed);
            pbx.send(scene.pbxs(), notify.text());
            phone.expect("NOTIFY ");
        }
    }
}

#[test]
fn record_route_false_leaves_none_and_the_dialog_goes_by_the_table() {
    let table = one_pbx(144).replace("path = true", "path = true\nrecord_route = false");
    let scene = Scene::start(144, &table);
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    assert!(dialog.callee_routes.is_empty() && dialog.caller_routes.is_empty());
    phone.send(scene.phones(), dialog.by_caller("SUBSCRIBE", &phone).text());
    pbx.expect("SUBSCRIBE ");
}

/// SPEC 4.1, 3.1: under 256 bytes for IPv4, and at most 48 characters of token; the longest addresses of the block.
#[test]
fn what_we_add_is_under_256_bytes() {
    let scene = Scene::start(145, &one_pbx(145));
    let (phone, pbx) = (Party::bind("127.40.145.231:31999"), scene.pbx(1));
    let via = "SIP/2.0/UDP phone.example.com;rport;branch=z9hG4bK776asdhds";
    for method in ["INVITE", "SUBSCRIBE", "REGISTER", "MESSAGE", "NOTIFY", "REFER"] {
        let request = Request::new(method, "sip:1000@example.com", &phone)
            .without("Max-Forwards")
            .with("Via", via)
            .with("Contact", "<sip:alice@phone.example.com>;reg-id=1;+sip.instance=\"<urn:uuid:0>\"");
        let sent = request.text();
        phone.send(scene.phones(), &sent);
        let got = pbx.expect(method);
        assert!(got.len() - sent.len() < 256, "{} bytes more:\n{got}", got.len() - sent.len());
        for value in text::headers(&got, "Record-Route").iter().chain(&text::headers(&got, "Path")) {
            assert!(user(value).len() <= 48, "{} characters: {value}", user(value).len());
        }
    }
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    let notify = dialog.by_callee("NOTIFY", &pbx).without("Max-Forwards").text();
    pbx.send(scene.pbxs(), &notify);
    let got = phone.expect("NOTIFY ");
    assert!(got.len() < notify.len() + 256, "{got}");
}

/// All else stays as it came, byte for byte, in a request of many forms.
#[test]
fn what_is_not_an_edit_stays_byte_for_byte() {
    let scene = Scene::start(146, &one_pbx(146));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let odd = "SUBSCRIBE sip:10%30@example.com;x=y SIP/2.0\r\n\
               o : presence.winfo ;id=7\r\nf:\"A \\\"B\\\"\" <sip:a@example.com>\r\n ;tag = q1\r\n\
               v: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKodd , SIP/2.0/TCP 10.0.0.2;branch=z9hG4bKbelow\r\n\
               X-Empty:\r\nx-empty :   \r\nt  :   <sip:b@example.com>\r\ni:odd-one@example.com\r\ncseq:  007  SUBSCRIBE\r\n\
               m: <sip:a@10.0.0.1>,\r\n\t<sip:a@10.0.0.2>\r\nRecord-Route: <sip:10.0.0.2;lr>\r\nMAX-FORWARDS:  9\r\n\
               Accept:a/b,c/d , e/f\r\nc:text/plain\r\nl :  5  \r\n\r\na\r\n\0z";
    for (n, message) in [odd.to_owned(), odd.replace("MAX-FORWARDS:  9\r\n", "")].into_iter().enumerate() {
        let message = message.replace("odd-one", &format!("odd-{n}"));
        phone.send(scene.phones(), &message);
        let (got, _) = pbx.poll(std::time::Duration::from_secs(5)).expect("it comes through");
        let passage = Passage { source: phone.address, left_by: scene.pbxs(), line: None };
        beyond_edits(message.as_bytes(), &got, &passage)
            .unwrap_or_else(|fault| panic!("{fault}\n{}", got.escape_ascii()));
    }
}

/// SPEC 4.6: `advertise` is what phones are told; PBXs are told the socket's own address.
#[test]
fn advertise_counts_toward_clients_only() {
    let table = one_pbx(147);
    let settings = "[workers]\ncount = 1\npin = false\n\
        [[listen]]\nname = \"phones\"\ntransport = \"udp\"\naddress = \"127.40.147.1:5060\"\nside = \"clients\"\n\
        advertise = \"sip.example.net:5070\"\n\
        [[listen]]\nname = \"pbxs\"\ntransport = \"udp\"\naddress = \"127.40.147.2:5060\"\nside = \"backends\"\n\
        advertise = \"inner.example.net:5071\"\n\
        [admin]\naddress = \"127.40.147.1:9060\"\n\
        [tokens]\nkeys = [{ id = 1, key = \"00112233445566778899aabbccddeeff\" }]\n";
    let scene = Scene {
        router: crate::rig::Router::start(settings, &table),
        net: 147,
        column: ("udp", "udp"),
        pki: crate::rig::TempDir::new("pki"),
    };
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let dialog = Dialog::subscribe(&scene, &phone, &pbx);
    assert_eq!(uri_address(&dialog.callee_routes[0]), scene.pbxs());
    assert!(dialog.caller_routes[0].contains("@sip.example.net:5070;"), "{}", dialog.caller_routes[0]);
    let notify = dialog.by_callee("NOTIFY", &pbx);
    pbx.send(scene.pbxs(), notify.text());
    let got = phone.expect("NOTIFY ");
    let via = text::header(&got, "Via");
    assert!(via.starts_with("SIP/2.0/UDP sip.example.net:5070;"), "{via}");
    assert!(text::header(&got, "Record-Route").contains("@sip.example.net:5070;"), "{got}");
    assert!(parameter(via, "branch").is_some());
    phone.answer(scene.phones(), &got, "200 OK", "", "");
    pbx.expect("SIP/2.0 200");
    // The phone's requests name us by the advertised name.
    phone.send(scene.phones(), dialog.by_caller("SUBSCRIBE", &phone).text());
    let got = pbx.expect("SUBSCRIBE ");
    assert!(text::headers(&got, "Route").is_empty(), "{got}");
    phone.send(scene.phones(), Request::new("OPTIONS", "sip:sip.example.net:5070", &phone).text());
    phone.expect("SIP/2.0 200");
}

/// SPEC 4.6: requests leave by the pool's `listener`, else by the first with side `backends`, then `both`.
#[test]
fn a_pool_may_name_the_listener_by_which_its_requests_leave() {
    let more = "[[listen]]\nname = \"second\"\ntransport = \"udp\"\naddress = \"127.40.148.3:5060\"\nside = \"backends\"\n";
    let table = pool("one", 148, &[1])
        + &pool("two", 148, &[2]).replacen("probe = ", "listener = \"second\"\nprobe = ", 1)
        + &rule("two", "source = \"clients\", method = [\"SUBSCRIBE\"]", "route = \"two\"")
        + &rule("one", "source = \"clients\"", "route = \"one\"");
    let scene = Layout::new(148).more(more).start(&table);
    let (phone, pbx1, pbx2) = (scene.phone(), scene.pbx(1), scene.pbx(2));
    phone.send(scene.phones(), Request::new("INVITE", "sip:1000@example.com", &phone).text());
    assert_eq!(via_address(&pbx1.expect("INVITE ")), scene.pbxs());
    phone.send(scene.phones(), Request::new("SUBSCRIBE", "sip:1000@example.com", &phone).text());
    let (bytes, from) = pbx2.poll(std::time::Duration::from_secs(5)).expect("it comes");
    let got = String::from_utf8(bytes).expect("the test's messages are text");
    assert_eq!((via_address(&got), from), (scene.at(3), scene.at(3)));
    assert_eq!(uri_address(text::header(&got, "Record-Route")), scene.at(3));
}

/// Kamailio writes its own before its Via (RFC 3261 16.6: ours comes before all that are there).
#[test]
fn ours_is_the_first_wherever_the_vias_stand() {
    let scene = Scene::start(147, &one_pbx(147));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    scene.register(&phone, &pbx, "alice", "<sip:alice@127.40.147.31:5060>");
    let before = |request: Request, name: &str| {
        let text = request.text();
        let (start, rest) = text.split_once("\r\n").expect("a start line");
        format!("{start}\r\n{name}: <sip:192.0.2.1;lr>\r\n{rest}")
    };
    let notify = before(Request::new("NOTIFY", "sip:alice@127.40.147.31:5060", &pbx), "Record-Route");
    pbx.send(scene.pbxs(), notify);
    let got = phone.expect("NOTIFY ");
    let routes = text::headers(&got, "Record-Route");
    assert_eq!((uri_address(routes[0]), routes[1]), (scene.phones(), "<sip:192.0.2.1;lr>"), "{got}");
    assert_eq!(via_address(&got), scene.phones());

    let register = Request::new("REGISTER", "sip:example.com", &phone).with("To", "<sip:alice@example.com>");
    phone.send(scene.phones(), before(register, "Path"));
    let got = pbx.expect("REGISTER ");
    let paths = text::headers(&got, "Path");
    assert_eq!((uri_address(paths[0]), paths[1]), (scene.pbxs(), "<sip:192.0.2.1;lr>"), "{got}");
}
