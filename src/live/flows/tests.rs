use std::collections::HashMap as Model;

use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Now {
    Now { mono_ms: seconds * 1000, unix_s: seconds }
}

fn flows_of(capacity: usize) -> Flows {
    Flows::new(capacity, Arc::new(Connections::new(1)))
}

fn flow(port: u16) -> Flow {
    Flow::Datagram { listener: 1, local: None, peer: ([192, 0, 2, 1], port).into() }
}

fn note(flows: &Flows, branch: u64, seconds: u64, aor: &str, contacts: &[&str], port: u16) -> Noted {
    let contacts: Vec<&[u8]> = contacts.iter().map(|c| c.as_bytes()).collect();
    let registration =
        Registration { aor: aor.as_bytes(), contacts: &contacts, all: contacts.is_empty(), flow: flow(port) };
    flows.note(branch, at(seconds), &registration)
}

/// A REGISTER and its 2xx, which grants `expires` to every contact.
fn register(flows: &Flows, seconds: u64, aor: &str, contact: &str, port: u16, expires: u32) -> Confirmed {
    note(flows, u64::from(port), seconds, aor, &[contact], port);
    flows.confirm(u64::from(port), aor.as_bytes(), at(seconds), &mut |_| Some(expires))
}

fn by_contact(flows: &Flows, seconds: u64, uri: &str) -> Option<u16> {
    port(flows.by_contact(&Uri::parse(uri.as_bytes()).expect("test URI"), at(seconds)))
}

fn by_user(flows: &Flows, seconds: u64, user: &str) -> Option<u16> {
    port(flows.by_user(user.as_bytes(), at(seconds)))
}

fn port(flow: Option<Flow>) -> Option<u16> {
    match flow {
        Some(Flow::Datagram { peer, .. }) => Some(peer.port()),
        Some(Flow::Stream { .. }) => panic!("the tests have no streams"),
        None => None,
    }
}

#[test]
fn a_note_counts_only_once_its_2xx_came_and_for_its_expires() {
    let flows = flows_of(100);
    assert_eq!(note(&flows, 7, 0, "1001@x", &["sip:1001@192.0.2.1:5062"], 1).noted, 1);
    assert_eq!(by_contact(&flows, 0, "sip:1001@192.0.2.1:5062"), None);
    assert_eq!(flows.confirm(8, b"1001@x", at(1), &mut |_| Some(60)), Confirmed::default());
    let confirmed = flows.confirm(7, b"1001@x", at(1), &mut |contact| {
        assert_eq!(contact, b"sip:1001@192.0.2.1:5062");
        Some(60)
    });
    assert_eq!(confirmed, Confirmed { added: 1, ..Default::default() });
    assert_eq!(
        flows.confirm(7, b"1001@x", at(1), &mut |_| Some(60)),
        Confirmed::default(),
        "a note serves once"
    );
    assert_eq!(by_contact(&flows, 60, "sip:1001@192.0.2.1:5062"), Some(1));
    assert_eq!(by_contact(&flows, 61, "sip:1001@192.0.2.1:5062"), None);
    assert_eq!(by_user(&flows, 61, "1001"), None);
    assert_eq!(flows.len(), 1);
    flows.sweep(at(61));
    assert_eq!(flows.len(), 0);
    assert!(flows.shards.iter().all(|s| s.read().lists.is_empty() && s.read().bytes == 0));
}

/// Who chooses the branch may write a second REGISTER over the first, whose 2xx is not its own.
#[test]
fn a_2xx_confirms_its_own_aor_only() {
    let flows = flows_of(100);
    register(&flows, 0, "a@x", "sip:a@192.0.2.1", 1, 60);
    for contacts in [&["sip:a@192.0.2.66"][..], &[]] {
        note(&flows, 9, 1, "a@x", contacts, 66);
        let confirmed = flows.confirm(9, b"mallory@x", at(1), &mut |_| Some(60));
        assert_eq!(confirmed, Confirmed { conflicts: 1, ..Default::default() });
        assert_eq!((by_contact(&flows, 1, "sip:a@192.0.2.1"), by_user(&flows, 1, "a")), (Some(1), Some(1)));
    }
}

#[test]
fn a_note_lives_32_seconds() {
    let flows = flows_of(100);
    note(&flows, 1, 0, "a@x", &["sip:a@192.0.2.1"], 1);
    note(&flows, 2, 0, "b@x", &["sip:b@192.0.2.1"], 2);
    assert_eq!(flows.confirm(1, b"a@x", at(31), &mut |_| Some(60)).added, 1);
    assert_eq!(flows.confirm(2, b"b@x", at(32), &mut |_| Some(60)).added, 0);
    note(&flows, 3, 40, "b@x", &["sip:b@192.0.2.1"], 2);
    flows.sweep(at(72));
    assert!(flows.notes.iter().all(|n| n.lock().bytes == 0 && n.lock().notes.oldest().is_none()));
}

#[test]
fn rfc3261_19_1_4_equality_finds_the_contact_written_otherwise() {
    let flows = flows_of(100);
    register(&flows, 0, "1001@x", "sip:%61lice@PHONE.example.com:5062;transport=udp", 1, 60);
    assert_eq!(by_contact(&flows, 1, "sip:alice@phone.example.com:5062;transport=UDP"), Some(1));
    assert_eq!(by_contact(&flows, 1, "sip:Alice@phone.example.com:5062;transport=udp"), None);
    assert_eq!(by_contact(&flows, 1, "sip:alice@phone.example.com;transport=udp"), None);
    assert_eq!(
        (by_user(&flows, 1, "alice"), by_user(&flows, 1, "%61lice"), by_user(&flows, 1, "1001")),
        (Some(1), Some(1), Some(1))
    );
    register(&flows, 0, "1002@x", "sip:[2001:db8::1]:5062", 2, 60);
    assert_eq!(by_contact(&flows, 1, "sip:[2001:db8::1]:5062"), Some(2), "a contact without user");
    assert_eq!(by_user(&flows, 1, "1002"), Some(2));
}

#[test]
fn the_newest_flow_answers_for_a_user() {
    let flows = flows_of(100);
    register(&flows, 0, "1001@x", "sip:1001@192.0.2.1:5001", 1, 600);
    register(&flows, 1, "1001@x", "sip:1001@192.0.2.1:5002", 2, 60);
    register(&flows, 2, "other@x", "sip:1001@192.0.2.1:5003", 3, 1000);
    assert_eq!(by_user(&flows, 3, "1001"), Some(2), "not the flow of another AOR with that Contact user");
    assert_eq!(by_user(&flows, 61, "1001"), Some(1));
    assert_eq!(by_user(&flows, 700, "1001"), Some(3), "nobody is left whose AOR it is");
    assert_eq!(by_user(&flows, 3, "other"), Some(3));
    assert_eq!(by_contact(&flows, 3, "sip:1001@192.0.2.1:5001"), Some(1));
}

#[test]
fn a_register_from_another_flow_replaces_and_the_newest_wins_whatever_the_order_of_2xx() {
    let flows = flows_of(100);
    let contact = "sip:1001@192.0.2.1:5001";
    assert_eq!(register(&flows, 0, "1001@x", contact, 1, 60).added, 1);
    assert_eq!(
        register(&flows, 1, "1001@x", contact, 2, 60),
        Confirmed { refreshed: 1, ..Default::default() }
    );
    assert_eq!(by_contact(&flows, 2, contact), Some(2));
    note(&flows, 33, 3, "1001@x", &[contact], 3);
    note(&flows, 44, 3, "1001@x", &[contact], 4);
    flows.confirm(44, b"1001@x", at(4), &mut |_| Some(60));
    assert_eq!(flows.confirm(33, b"1001@x", at(4), &mut |_| Some(0)), Confirmed::default());
    assert_eq!(by_contact(&flows, 5, contact), Some(4));
    assert_eq!(flows.len(), 1);
}

#[test]
fn expires_0_absence_and_star_end_contacts_of_that_aor_only() {
    let flows = flows_of(100);
    for (n, contact) in ["sip:a@192.0.2.1:1", "sip:a@192.0.2.1:2", "sip:b@192.0.2.1:3"].iter().enumerate() {
        register(&flows, 0, "a@x", contact, n as u16, 60);
    }
    register(&flows, 0, "a@other", "sip:a@192.0.2.1:9", 9, 60);
    assert_eq!(register(&flows, 1, "a@x", "sip:a@192.0.2.1:1", 1, 0).removed, 1);
    assert_eq!(by_contact(&flows, 1, "sip:a@192.0.2.1:1"), None);
    note(&flows, 50, 1, "a@x", &["sip:a@192.0.2.1:2", "sip:new@192.0.2.1"], 5);
    assert_eq!(
        flows.confirm(50, b"a@x", at(1), &mut |_| None),
        Confirmed { removed: 1, ..Default::default() }
    );
    assert_eq!(by_contact(&flows, 1, "sip:b@192.0.2.1:3"), Some(2));
    note(&flows, 51, 2, "a@x", &[], 5);
    assert_eq!(flows.confirm(51, b"a@x", at(2), &mut |_| None).removed, 1);
    assert_eq!((by_contact(&flows, 2, "sip:b@192.0.2.1:3"), by_user(&flows, 2, "a")), (None, Some(9)));
    assert_eq!(flows.len(), 1);
}

#[test]
fn a_contact_of_another_aors_live_flow_is_not_noted_and_counted() {
    let flows = flows_of(100);
    let contact = "sip:1001@192.0.2.1:5001";
    register(&flows, 0, "1001@x", contact, 1, 60);
    let noted = note(&flows, 66, 1, "mallory@x", &[contact, "sip:m@192.0.2.66"], 66);
    assert_eq!((noted.noted, noted.conflicts), (1, 1));
    assert_eq!(flows.confirm(66, b"mallory@x", at(1), &mut |_| Some(60)).added, 1);
    assert_eq!(by_contact(&flows, 2, contact), Some(1));
    assert_eq!(register(&flows, 2, "mallory@x", contact, 66, 0).removed, 0, "nor ended by another");
    assert_eq!(by_contact(&flows, 2, contact), Some(1));
    // Noted while it was free, confirmed when it is not.
    note(&flows, 77, 3, "mallory@x", &["sip:late@192.0.2.1"], 77);
    register(&flows, 3, "late@x", "sip:late@192.0.2.1", 3, 60);
    assert_eq!(
        flows.confirm(77, b"mallory@x", at(4), &mut |_| Some(60)),
        Confirmed { conflicts: 1, ..Default::default() }
    );
    assert_eq!(by_contact(&flows, 4, "sip:late@192.0.2.1"), Some(3));
    // Once the flow has ended the contact is free.
    assert_eq!(register(&flows, 70, "mallory@x", contact, 66, 60).added, 1);
    assert_eq!(by_contact(&flows, 71, contact), Some(66));
}

#[test]
fn a_full_index_and_a_full_user_drop_their_oldest() {
    let flows = flows_of(3);
    for n in 1..=4 {
        let dropped =
            register(&flows, 0, &format!("{n}@x"), &format!("sip:{n}@192.0.2.1"), n, 60).dropped_oldest;
        assert_eq!(dropped, u32::from(n == 4));
    }
    assert_eq!((by_user(&flows, 1, "1"), by_user(&flows, 1, "2"), flows.len()), (None, Some(2), 3));
    let noted: u32 = (0..5).map(|n| note(&flows, n, 1, "a@x", &["sip:a@192.0.2.1"], 1).dropped_oldest).sum();
    assert_eq!(noted, 2);

    let flows = flows_of(100_000);
    let mut dropped = 0;
    for n in 1..=200 {
        dropped += register(&flows, 0, "a@x", &format!("sip:{n}@192.0.2.1"), n, 60).dropped_oldest;
        register(&flows, 0, &format!("{n}@x"), &format!("sip:b@192.0.2.1:{n}"), n, 60);
    }
    assert_eq!((dropped, flows.len()), (200 - 64, 128));
    assert_eq!(
        (by_user(&flows, 1, "1"), by_user(&flows, 1, "200"), by_user(&flows, 1, "b")),
        (None, Some(200), Some(200))
    );
}

#[test]
fn what_is_too_long_or_too_much_is_not_noted() {
    let flows = flows_of(100);
    let long = format!("sip:{}@192.0.2.1", "a".repeat(LONGEST));
    assert_eq!(note(&flows, 1, 0, "a@x", &[&long], 1), Noted::default());
    assert_eq!(note(&flows, 1, 0, &long, &["sip:a@192.0.2.1"], 1), Noted::default());
    let many: Vec<String> = (0..100).map(|n| format!("sip:{n}@192.0.2.1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(note(&flows, 1, 0, "a@x", &many, 1).noted, MOST_CONTACTS as u32);
    let wide = format!("sip:{}@192.0.2.1", "a".repeat(1000));
    for branch in 0..1000 {
        note(&flows, branch, 0, "a@x", &[&wide], 1);
    }
    let held: usize = flows.notes.iter().map(|n| n.lock().bytes).sum();
    assert!(held <= 100 * MEAN, "{held} bytes of notes");
}

#[test]
fn cores_that_register_at_once_leave_nothing_behind() {
    let flows = flows_of(4096);
    std::thread::scope(|scope| {
        for core in 0..4u64 {
            let flows = &flows;
            scope.spawn(move || {
                for turn in 0..3000u64 {
                    let (user, port) = (turn % 50, (turn % 7) as u16 + 1);
                    let branch = turn * 4 + core;
                    let contact = format!("sip:c{}@192.0.2.1", turn % 11);
                    let aor = format!("{user}@x");
                    note(flows, branch, 0, &aor, &[&contact], port);
                    flows.confirm(branch, aor.as_bytes(), at(0), &mut |_| Some((turn % 5) as u32 * 10));
                    by_user(flows, 0, &format!("c{}", turn % 11));
                    if turn % 100 == 0 {
                        flows.sweep(at(0));
                    }
                }
            });
        }
    });
    flows.sweep(at(1000));
    assert_eq!(flows.len(), 0);
    assert!(
        flows
            .shards
            .iter()
            .all(|s| s.read().lists.is_empty() && s.read().ages.is_empty() && s.read().bytes == 0)
    );
}

proptest! {
    /// Against a plain list of what is registered, where nothing is dropped.
    #[test]
    fn flows_agree_with_a_model(
        steps in proptest::collection::vec((0u64..5, 0u64..4, 0u64..4, 1u16..100, prop_oneof![Just(0u32), 1u32..60]), 1..150),
    ) {
        let flows = flows_of(10_000);
        let mut model: Model<(u64, u64), (u16, u64, usize)> = Model::new();
        let mut clock = 0;
        for (turn, (step, user, contact, port, expires)) in steps.into_iter().enumerate() {
            clock += step;
            let taken = model.iter().any(|((u, c), (_, ends, _))| *c == contact && *u != user && *ends > clock);
            register(&flows, clock, &format!("{user}@x"), &format!("sip:c{contact}@192.0.2.1"), port, expires);
            if expires == 0 {
                if !taken {
                    model.remove(&(user, contact));
                }
            } else if !taken {
                model.insert((user, contact), (port, clock + u64::from(expires), turn));
            }
            let newest = |wanted: &dyn Fn(u64, u64) -> bool| {
                let live = model.iter().filter(|((u, c), (_, ends, _))| wanted(*u, *c) && *ends > clock);
                live.max_by_key(|(_, (_, _, turn))| *turn).map(|(_, (port, ..))| *port)
            };
            for n in 0..4 {
                prop_assert_eq!(by_user(&flows, clock, &n.to_string()), newest(&|u, _| u == n));
                prop_assert_eq!(by_user(&flows, clock, &format!("c{n}")), newest(&|_, c| c == n));
                prop_assert_eq!(by_contact(&flows, clock, &format!("sip:c{n}@192.0.2.1")), newest(&|_, c| c == n));
            }
        }
        flows.sweep(at(clock));
        prop_assert_eq!(flows.len(), model.values().filter(|(_, ends, _)| *ends > clock).count());
    }

    #[test]
    fn never_more_than_its_capacity(
        capacity in 1usize..1500,
        registrations in proptest::collection::vec((0u16..4000, 0u16..40, 0u32..3), 1..3000),
    ) {
        let flows = flows_of(capacity);
        for (turn, (user, contact, expires)) in registrations.into_iter().enumerate() {
            let contact = format!("sip:{user}@192.0.2.1:{}", contact + 1);
            register(&flows, turn as u64 / 100, &format!("{user}@x"), &contact, user, expires * 100);
            prop_assert!(flows.len() <= capacity);
        }
        let ages: usize = flows.shards.iter().map(|s| s.read().ages.len()).sum();
        prop_assert_eq!(ages, flows.len());
    }
}
