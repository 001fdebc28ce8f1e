//! Calls that are counted place calls (SPEC 5.3, 5.4, 7.1): least-calls, max_calls, priority; and what belongs to one
//! call stays on one backend, however the numbers change meanwhile.

use crate::rig::{
    Party,
    message::{Request, unique},
    scene::{Scene, pool, rule, via_address},
    text,
};

fn table(net: u8, pbxs: &[u8], more: &str) -> String {
    pool("calls", net, pbxs).replacen("probe =", &format!("{more}\nprobe ="), 1)
        + &rule("phones", "source = \"backends\"", "route = \"flow\"")
        + &rule("calls", "", "route = \"calls\"")
}

struct House {
    scene: Scene,
    phone: Party,
    pbxs: Vec<Party>,
}

/// A call that was answered.
struct Call {
    invite: Request,
    /// As the PBX got it, and by which PBX.
    got: String,
    home: usize,
    tag: String,
}

impl House {
    fn start(net: u8, count: u8, more: &str) -> House {
        let numbers: Vec<u8> = (1..=count).collect();
        let scene = Scene::start(net, &table(net, &numbers, more));
        let phone = scene.phone();
        let pbxs = numbers.iter().map(|n| scene.pbx(*n)).collect();
        House { scene, phone, pbxs }
    }

    /// Sends a request of the phone: which PBX got it, and what. `None`: the phone was answered instead.
    fn place(&self, request: &Request) -> Option<(usize, String)> {
        self.phone.send(self.scene.phones(), request.text());
        self.scene.settle();
        let one = std::time::Duration::from_millis(1);
        self.pbxs
            .iter()
            .enumerate()
            .find_map(|(n, pbx)| Some((n, String::from_utf8_lossy(&pbx.poll(one)?.0).into_owned())))
    }

    fn invite(&self) -> Request {
        Request::new("INVITE", "sip:1000@example.com", &self.phone)
    }

    #[track_caller]
    fn answer(&self, home: usize, got: &str, status: &str, tag: &str) {
        let contact = format!("Contact: <sip:{}>\r\n", self.pbxs[home].address);
        self.pbxs[home].answer(via_address(got), got, status, tag, &contact);
        self.phone.expect(&format!("SIP/2.0 {}", &status[..3]));
    }

    /// An INVITE and its 200.
    #[track_caller]
    fn call(&self) -> Call {
        let invite = self.invite();
        let (home, got) = self.place(&invite).expect("a PBX gets it");
        let tag = unique();
        self.answer(home, &got, "200 OK", &tag);
        Call { invite, got, home, tag }
    }

    fn bye(&self, call: &Call) {
        // As the phone knows it: the same token, our address on its side.
        let (theirs, ours) = (self.scene.pbxs().to_string(), self.scene.phones().to_string());
        let route = text::header(&call.got, "Record-Route").replace(&theirs, &ours);
        let bye = call
            .invite
            .clone()
            .with("To", format!("<sip:1000@example.com>;tag={}", call.tag))
            .routes([&route])
            .into_method("BYE", 2)
            .to(&format!("sip:{}", self.pbxs[call.home].address));
        let (home, got) = self.place(&bye).expect("the BYE passes");
        assert_eq!(home, call.home);
        self.answer(home, &got, "200 OK", "");
    }

    fn counted(&self, n: usize) -> f64 {
        let name = format!("pbx{}", n + 1);
        self.scene.router.metrics().sum("tidings_backend_calls", &[("backend", &name)])
    }

    fn all(&self) -> f64 {
        self.scene.router.metrics().sum("tidings_calls", &[])
    }
}

#[test]
fn least_calls_places_by_what_each_carries_and_a_bye_gives_it_back() {
    let house = House::start(190, 3, "balance = \"least-calls\"");
    let mut calls: Vec<Call> = (0..9).map(|_| house.call()).collect();
    for n in 0..3 {
        assert_eq!(house.counted(n), 3.0, "three each");
    }
    // Two of one PBX end: the next two go there.
    let home = calls[0].home;
    for _ in 0..2 {
        let at = calls.iter().position(|call| call.home == home).expect("it has calls");
        house.bye(&calls.remove(at));
    }
    assert_eq!((house.counted(home), house.all()), (1.0, 7.0));
    for _ in 0..2 {
        let call = house.call();
        assert_eq!(call.home, home);
        calls.push(call);
    }
    for call in &calls {
        house.bye(call);
    }
    assert_eq!(house.all(), 0.0);
    assert_eq!(house.scene.router.metrics().sum("tidings_calls_recorded_total", &[]), 11.0);
}

/// Ringing counts, so that a burst is spread; what is refused counts no more.
#[test]
fn calls_that_ring_count_until_their_final_answer() {
    let house = House::start(191, 2, "balance = \"least-calls\"");
    let ringing: Vec<_> = (0..6).map(|_| house.place(&house.invite()).expect("a PBX gets it")).collect();
    assert_eq!((house.counted(0), house.counted(1)), (3.0, 3.0));
    for (home, got) in &ringing {
        house.answer(*home, got, "180 Ringing", "r");
    }
    assert_eq!(house.all(), 6.0, "not final");
    for (home, got) in &ringing {
        house.answer(*home, got, "486 Busy Here", "b");
    }
    assert_eq!(house.all(), 0.0);
}

#[test]
fn retransmissions_stay_on_their_backend_and_count_once() {
    let house = House::start(192, 3, "balance = \"least-calls\"");
    let invite = house.invite();
    let (home, got) = house.place(&invite).expect("a PBX gets it");
    // Its PBX is the most loaded of all now: a new INVITE goes elsewhere, this one does not.
    for _ in 0..3 {
        assert_eq!(house.place(&invite).map(|(n, _)| n), Some(home));
    }
    assert_eq!(house.all(), 1.0);
    let busy: Vec<Call> = (0..4).map(|_| house.call()).collect();
    assert!(busy.iter().filter(|call| call.home == home).count() <= 1);
    assert_eq!(house.place(&invite).map(|(n, _)| n), Some(home));
    house.answer(home, &got, "200 OK", "t1");
    house.answer(home, &got, "200 OK", "t1");
    assert_eq!(house.all(), 5.0, "a retransmitted 200 counts once");
    let to = "<sip:1000@example.com>;tag=t1";
    let ack = invite.clone().with("To", to).into_method("ACK", 1);
    assert_eq!(house.place(&ack).map(|(n, _)| n), Some(home), "the ACK follows its INVITE's pin");
    let call = Call { invite: invite.clone(), got: got.clone(), home, tag: "t1".into() };
    house.bye(&call);
    house.answer(home, &got, "200 OK", "t1");
    assert_eq!(house.all(), 4.0, "a 200 that its BYE has overtaken begins nothing");
    // A CANCEL of another that still rings.
    let ringing = house.invite();
    let (home, _) = house.place(&ringing).expect("a PBX gets it");
    for _ in 0..4 {
        house.call();
    }
    let cancel = ringing.clone().into_method("CANCEL", 1);
    assert_eq!(house.place(&cancel).map(|(n, _)| n), Some(home));
}

/// What is no call leaves a pin too where the choice was by numbers.
#[test]
fn a_subscribe_by_least_calls_is_retransmitted_to_the_same_backend() {
    let house = House::start(193, 3, "balance = \"least-calls\"");
    let subscribe = Request::new("SUBSCRIBE", "sip:1000@example.com", &house.phone);
    let (home, _) = house.place(&subscribe).expect("a PBX gets it");
    for _ in 0..6 {
        house.call();
        assert_eq!(house.place(&subscribe).map(|(n, _)| n), Some(home));
    }
    let publish = Request::new("PUBLISH", "sip:1000@example.com", &house.phone).body("text/plain", "open");
    let (home, _) = house.place(&publish).expect("a PBX gets it");
    for _ in 0..3 {
        house.call();
        assert_eq!(house.place(&publish).map(|(n, _)| n), Some(home));
    }
}

/// A hash balance depends on state while a backend takes nothing: what went elsewhere meanwhile stays there.
#[test]
fn a_retransmission_does_not_follow_its_users_home_when_that_comes_back() {
    let net = 197;
    let whole_table = table(net, &[1, 2], "");
    let house = House::start(net, 2, "");
    let message = || Request::new("MESSAGE", "sip:1000@example.com", &house.phone);
    let place = |request: &Request| house.place(request).map(|(n, _)| n).expect("a PBX gets it");
    let whole = message();
    let home = place(&whole);
    let line = format!("uri = \"sip:127.40.{net}.{}:5060;transport=udp\"", 11 + home);
    assert!(whole_table.contains(&line), "{whole_table}");
    let put = |table: &str| assert_eq!(house.scene.router.put_table(table).0, 200);
    put(&whole_table.replace(&line, &format!("{line}\nstate = \"off\"")));
    let early = message();
    assert_ne!(place(&early), home);
    put(&whole_table);
    assert_ne!(place(&early), home, "its first copy is there");
    assert_eq!((place(&message()), place(&whole)), (home, home));
}

#[test]
fn a_backend_takes_no_more_calls_than_max_calls_and_all_else_as_before() {
    let net = 194;
    let full = table(net, &[1, 2], "").replace("transport=udp\"", "transport=udp\"\nmax_calls = 2");
    let house = House::start(net, 2, "");
    assert_eq!(house.scene.router.put_table(&full).0, 200);
    let home =
        house.place(&Request::new("MESSAGE", "sip:1000@example.com", &house.phone)).expect("by hash").0;
    let first = house.call();
    assert_eq!(first.home, home, "one resource");
    assert_eq!(house.call().home, home);
    let spilt = house.call();
    assert_ne!(spilt.home, home, "full");
    house.call();
    assert_eq!((house.counted(0), house.counted(1)), (2.0, 2.0));
    assert!(house.place(&house.invite()).is_none());
    assert_eq!(text::header(&house.phone.expect("SIP/2.0 503"), "Retry-After"), "5");
    // Its own dialogs and what is no call still pass.
    let again = first.invite.clone();
    assert_eq!(house.place(&again).map(|(n, _)| n), Some(home), "a retransmission");
    let message = Request::new("MESSAGE", "sip:1000@example.com", &house.phone);
    assert_eq!(house.place(&message).map(|(n, _)| n), Some(home));
    house.bye(&spilt);
    assert_eq!(house.call().home, spilt.home);
}

#[test]
fn priority_takes_the_lowest_number_that_takes_anything() {
    let net = 195;
    let with = |states: [&str; 3]| {
        let mut text = String::from("[[pool]]\nname = \"calls\"\nbalance = \"priority\"\nprobe = \"off\"\n");
        for (n, (priority, state)) in (1..).zip([10, 10, 20].iter().zip(states)) {
            text += &format!(
                "[[pool.backend]]\nname = \"pbx{n}\"\nuri = \"sip:127.40.{net}.1{n}\"\npriority = {priority}\n\
                 state = \"{state}\"\n"
            );
        }
        text + &rule("calls", "", "route = \"calls\"")
    };
    let house = House::start(net, 3, "");
    let homes = |states| {
        assert_eq!(house.scene.router.put_table(&with(states)).0, 200);
        let mut homes: Vec<usize> = (0..12)
            .map(|n| {
                let message = Request::new("MESSAGE", &format!("sip:10{n:02}@example.com"), &house.phone);
                house.place(&message).expect("a PBX gets it").0
            })
            .collect();
        homes.sort_unstable();
        homes.dedup();
        homes
    };
    assert_eq!(homes(["active", "active", "active"]), [0, 1], "both of the first priority, by the resource");
    assert_eq!(homes(["drain", "active", "active"]), [1]);
    assert_eq!(homes(["drain", "off", "active"]), [2]);
    assert_eq!(homes(["active", "off", "active"]), [0]);
}

/// A call that a PBX makes is its call too.
#[test]
fn a_call_toward_a_phone_counts_for_the_pbx_that_makes_it() {
    let house = House::start(196, 1, "");
    house.scene.register(
        &house.phone,
        &house.pbxs[0],
        "alice",
        &format!("<sip:alice@{}>", house.phone.address),
    );
    let invite = Request::new("INVITE", &format!("sip:alice@{}", house.phone.address), &house.pbxs[0]);
    house.pbxs[0].send(house.scene.pbxs(), invite.text());
    let got = house.phone.expect("INVITE ");
    assert_eq!(house.counted(0), 1.0);
    let contact = format!("Contact: <sip:alice@{}>\r\n", house.phone.address);
    house.phone.answer(house.scene.phones(), &got, "200 OK", "p", &contact);
    house.pbxs[0].expect("SIP/2.0 200");
    assert_eq!((house.counted(0), house.all()), (1.0, 1.0));
    let bye = invite.with("To", "<sip:alice@example.com>;tag=p").into_method("BYE", 2);
    house.pbxs[0].send(house.scene.pbxs(), bye.text());
    house.phone.expect("BYE ");
    assert_eq!(house.all(), 0.0);
}

/// SPEC 7.1: what leaves the record of a call is the answer to an INVITE that rings, not what a phone writes.
#[test]
fn a_phone_cannot_fill_a_backend_by_answers() {
    let net = 198;
    let house = House::start(net, 1, "");
    let (phone, pbx) = (&house.phone, &house.pbxs[0]);
    house.scene.register(phone, pbx, "alice", &format!("<sip:alice@{}>", phone.address));
    let asked = |method: &str| {
        let request = Request::new(method, &format!("sip:alice@{}", phone.address), pbx);
        pbx.send(house.scene.pbxs(), request.text());
        (request, phone.expect(&format!("{method} ")))
    };
    let answered = |answer: &str| {
        phone.send(house.scene.phones(), answer);
        pbx.expect("SIP/2.0 ");
    };
    let ok = |got: &str, tag: &str| text::answer(got, "200 OK", tag, "");
    let other = |got: &str, name: &str| {
        let value = text::header(got, name);
        ok(got, "t").replacen(&format!("{name}: {value}"), &format!("{name}: {value}{}", unique()), 1)
    };
    // To what was no INVITE.
    let (_, got) = asked("OPTIONS");
    for n in 0..5 {
        answered(&ok(&got, &format!("o{n}")).replacen("CSeq: 1 OPTIONS", "CSeq: 1 INVITE", 1));
    }
    assert_eq!(house.all(), 0.0);
    // To an INVITE that rings, in the name of other dialogs: it goes on to ring.
    let (invite, got) = asked("INVITE");
    for name in ["Call-ID", "From"] {
        answered(&other(&got, name));
    }
    assert_eq!(house.all(), 1.0);
    // Several phones that answer one INVITE are one call, and the first of them has it.
    for tag in ["one", "two", "one", "three"] {
        answered(&ok(&got, tag));
    }
    assert_eq!((house.counted(0), house.all()), (1.0, 1.0));
    let bye = invite.with("To", "<sip:alice@example.com>;tag=one").into_method("BYE", 2);
    pbx.send(house.scene.pbxs(), bye.text());
    phone.expect("BYE ");
    assert_eq!(house.all(), 0.0);
    // To an INVITE that was refused.
    let (_, got) = asked("INVITE");
    answered(&text::answer(&got, "486 Busy Here", "b", ""));
    answered(&ok(&got, "late"));
    assert_eq!(house.all(), 0.0);
}

/// A backend's answer is taken at its word: several to one INVITE are several calls, and one to an INVITE that an earlier run
/// of the router has passed on is one.
#[test]
fn a_backends_answers_leave_a_record_each() {
    let net = 199;
    let first = House::start(net, 1, "");
    let (_, got) = first.place(&first.invite()).expect("the PBX gets it");
    for tag in ["one", "two", "one"] {
        first.answer(0, &got, "200 OK", tag);
    }
    assert_eq!(first.all(), 2.0);
    drop(first);
    let house = House::start(net, 1, "");
    house.answer(0, &got, "200 OK", "one");
    assert_eq!((house.counted(0), house.all()), (1.0, 1.0));
}
