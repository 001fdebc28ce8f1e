use proptest::prelude::*;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::*;

fn ring() -> Ring {
    Ring::new(&[(3, *b"0123456789abcdef"), (1, *b"fedcba9876543210")])
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn flow() -> impl Strategy<Value = Flow> {
    let datagram =
        (any::<u16>(), ip(), any::<u16>(), any::<bool>()).prop_map(|(listener, ip, port, wild)| {
            Flow::Datagram { listener, local: wild.then_some(ip), peer: SocketAddr::new(ip, port) }
        });
    let stream = (any::<u16>(), any::<(u8, u16, u8, u32, u16)>()).prop_map(
        |(listener, (router, boot, core, slot, generation))| Flow::Stream {
            listener,
            id: FlowId { router, boot, core, slot: slot & 0xff_ffff, generation },
        },
    );
    prop_oneof![datagram, stream]
}

fn side() -> impl Strategy<Value = Side> {
    let backend = (ip(), any::<u16>(), 0usize..5).prop_map(|(ip, port, t)| Side::Backend {
        addr: SocketAddr::new(ip, port),
        transport: Transport::ALL[t],
    });
    prop_oneof![flow().prop_map(Side::Client), backend]
}

fn via() -> impl Strategy<Value = ViaToken> {
    let publication = any::<(u64, u32, u16, bool)>().prop_map(|(key, backend, margin, asterisk)| {
        Publication { key, backend, margin: margin >> 1, asterisk }
    });
    let reopen = proptest::option::of((ip(), any::<u16>()).prop_map(SocketAddr::from));
    let moved = proptest::option::of((flow(), any::<u32>()));
    let more = (reopen, moved, proptest::option::of(publication));
    (any::<(u8, bool, bool, bool, u32, u64, u32)>(), flow(), more).prop_map(
        |(
            (router, own, from_backend, client, hash, branch, loop_hash),
            back,
            (reopen, moved, publication),
        )| {
            ViaToken {
                own,
                router,
                back,
                reopen,
                from_backend,
                bound: if client { Bound::Client(hash) } else { Bound::Backend },
                branch,
                loop_hash,
                moved,
                publication,
            }
        },
    )
}

fn route() -> impl Strategy<Value = RouteToken> {
    (any::<(u8, bool, u32, u16)>(), side(), side()).prop_map(|((router, owner, tag, bits), a, b)| {
        RouteToken { router, sides: [a, b], owner: owner as u8, tag, bits }
    })
}

proptest! {
    #[test]
    fn what_is_encoded_decodes(v in via(), r in route(), f in flow()) {
        let ring = ring();
        prop_assert_eq!(ViaToken::decode(&text(|o| v.encode(&ring, o)), &ring), Ok((v, 3)));
        prop_assert_eq!(RouteToken::decode(&text(|o| r.encode(&ring, b"call", o)), &ring, b"call"), Ok((r, 3)));
        let p = PathToken { router: 9, flow: f };
        prop_assert_eq!(PathToken::decode(&text(|o| p.encode(&ring, o)), &ring), Ok((p, 3)));
    }

    #[test]
    fn spec_3_1_any_changed_character_is_refused(v in via(), r in route(), at in any::<prop::sample::Index>(), to in 0u8..64) {
        let ring = ring();
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut t = text(|o| v.encode(&ring, o));
        let i = at.index(t.len());
        if t[i] != alphabet[to as usize] {
            t[i] = alphabet[to as usize];
            prop_assert!(ViaToken::decode(&t, &ring).is_err());
        }
        let mut t = text(|o| r.encode(&ring, b"call", o));
        let i = at.index(t.len());
        if t[i] != alphabet[to as usize] {
            t[i] = alphabet[to as usize];
            prop_assert!(RouteToken::decode(&t, &ring, b"call").is_err());
        }
    }

    #[test]
    fn arbitrary_text_is_no_token_and_no_panic(t in proptest::collection::vec(any::<u8>(), 0..200)) {
        let ring = ring();
        prop_assert!(ViaToken::decode(&t, &ring).is_err());
        prop_assert!(RouteToken::decode(&t, &ring, b"call").is_err());
        prop_assert!(PathToken::decode(&t, &ring).is_err());
    }

    #[test]
    fn types_are_never_interchangeable(v in via(), r in route()) {
        let ring = ring();
        let (v, r) = (text(|o| v.encode(&ring, o)), text(|o| r.encode(&ring, b"", o)));
        prop_assert_eq!(RouteToken::decode(&v, &ring, b"").map(|_| ()), Err(Fault::Foreign));
        prop_assert_eq!(PathToken::decode(&v, &ring).map(|_| ()), Err(Fault::Foreign));
        prop_assert_eq!(ViaToken::decode(&r, &ring).map(|_| ()), Err(Fault::Foreign));
        prop_assert_eq!(PathToken::decode(&r, &ring).map(|_| ()), Err(Fault::Foreign));
    }
}

fn v4(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([203, 0, 113, last]), port)
}

#[test]
fn spec_3_1_record_route_and_path_fit_48_characters_for_ipv4() {
    let ring = ring();
    let client = Flow::Datagram { listener: 0xffff, local: Some(v4(9, 0).ip()), peer: v4(1, 65535) };
    let stream = Flow::Stream {
        listener: 0xffff,
        id: FlowId { router: 255, boot: 65535, core: 255, slot: 0xff_ffff, generation: 65535 },
    };
    let backend = Side::Backend { addr: v4(2, 65535), transport: Transport::Tls };
    for side in [Side::Client(client), Side::Client(stream), backend] {
        let token = RouteToken { router: 1, sides: [side, backend], owner: 0, tag: u32::MAX, bits: 1 };
        assert!(text(|o| token.encode(&ring, b"x", o)).len() <= 48);
    }
    for flow in [client, stream] {
        assert!(text(|o| PathToken { router: 1, flow }.encode(&ring, o)).len() <= 48);
    }
}

#[test]
fn spec_3_4_a_route_token_is_good_in_its_own_call_id_only() {
    let ring = ring();
    let backend = Side::Backend { addr: v4(2, 5060), transport: Transport::Udp };
    let token = RouteToken { router: 1, sides: [backend, backend], owner: 0, tag: 7, bits: 1 };
    let t = text(|o| token.encode(&ring, b"mine", o));
    assert_eq!(RouteToken::decode(&t, &ring, b"theirs"), Err(Fault::Forged));
}

#[test]
fn spec_3_1_an_old_key_verifies_and_an_unknown_one_is_told_apart_from_a_forgery() {
    let (old, new) = (Ring::new(&[(1, *b"fedcba9876543210")]), ring());
    let other = Ring::new(&[(1, *b"ffffffffffffffff")]);
    let token = PathToken { router: 0, flow: Flow::Datagram { listener: 1, local: None, peer: v4(1, 5060) } };
    let t = text(|o| token.encode(&old, o));
    assert_eq!(PathToken::decode(&t, &new), Ok((token, 1)));
    assert_eq!(PathToken::decode(&text(|o| token.encode(&new, o)), &old), Err(Fault::UnknownKey));
    assert_eq!(PathToken::decode(&text(|o| token.encode(&other, o)), &new), Err(Fault::Forged));
}

#[test]
fn the_bytes_of_tokens_md_are_what_is_written() {
    let ring = Ring::new(&[(0, [0; 16])]);
    let client = Flow::Datagram { listener: 0x0102, local: None, peer: v4(7, 0x1314) };
    let backend = Side::Backend { addr: v4(2, 0x13c4), transport: Transport::Udp };
    let t = text(|o| {
        RouteToken {
            router: 5,
            sides: [Side::Client(client), backend],
            owner: 0,
            tag: 0x0a0b0c0d,
            bits: 0x0e0f,
        }
        .encode(&ring, b"c", o)
    });
    let bytes = URL_SAFE_NO_PAD.decode(&t).expect("base64url");
    let expected = [
        0x50, 5, 0x41, 1, 2, 203, 0, 113, 7, 0x13, 0x14, 0xc0, 203, 0, 113, 2, 0x13, 0xc4, 0x0a, 0x0b, 0x0c,
        0x0d, 0x0e, 0x0f,
    ];
    assert_eq!(&bytes[..bytes.len() - 8], &expected);
}

#[test]
fn flow_hash_tells_flows_apart_and_forgets_our_own_address() {
    let ring = Ring::new(&[(1, [7; 16])]);
    let hash = |flow| ring.flow_hash(1, &flow);
    let a = Flow::Datagram { listener: 1, local: None, peer: v4(1, 5060) };
    let b = Flow::Datagram { listener: 1, local: Some(v4(3, 0).ip()), peer: v4(1, 5060) };
    let c = Flow::Datagram { listener: 1, local: None, peer: v4(1, 5061) };
    assert_eq!(hash(a), hash(b));
    assert_ne!(hash(a), hash(c));
}

/// A flow of IPv4, which has a way of its own, as any other: the hash of its bytes in a token.
#[test]
fn flow_hash_is_of_the_bytes_of_the_flow() {
    let ring = Ring::new(&[(1, [7; 16])]);
    for flow in [
        Flow::Datagram { listener: 0x0102, local: None, peer: v4(1, 5060) },
        Flow::Datagram {
            listener: 0xfffe,
            local: None,
            peer: "[2001:db8::1]:5061".parse().expect("an address"),
        },
    ] {
        let mut w = Writer::new();
        w.flow(&flow, 0);
        assert_eq!(ring.flow_hash(1, &flow), ring.hash(&w.bytes[..w.len]) as u32);
    }
}

/// Who reads one in a token cannot look for another flow that has it: that hangs on the key. With a rotated key the hash is
/// still that of the key which the token names.
#[test]
fn flow_hash_is_that_of_the_tokens_key() {
    let (old, new) = ((1, [7; 16]), (2, [8; 16]));
    let (before, after) = (Ring::new(&[old]), Ring::new(&[new, old]));
    let flow = Flow::Datagram { listener: 1, local: None, peer: v4(1, 5060) };
    assert_eq!(after.bound(&flow), Bound::Client(after.flow_hash(2, &flow)));
    assert_eq!(before.bound(&flow), Bound::Client(after.flow_hash(1, &flow)));
    assert_ne!(before.bound(&flow), after.bound(&flow));
    let flows = [v4(22, 5427), v4(35, 5327)].map(|peer| Flow::Datagram { listener: 1, local: None, peer });
    let public = flows.map(|flow| {
        let mut w = Writer::new();
        w.flow(&flow, 0);
        xxhash_rust::xxh3::xxh3_64_with_seed(&w.bytes[..w.len], 0x7469_6469_6e67_7302) as u32
    });
    assert_eq!(public[0], public[1], "found within a second");
    assert_ne!(before.bound(&flows[0]), before.bound(&flows[1]));
}

/// A tag is chosen by who writes it, and its hash with it: no such token passes for one that names a caller.
#[test]
fn a_caller_is_named_in_the_called_clients_tokens_only() {
    let client =
        Side::Client(Flow::Datagram { listener: 1, local: None, peer: ([192, 0, 2, 1], 5060).into() });
    let backend = Side::Backend { addr: ([192, 0, 2, 2], 5060).into(), transport: Transport::Udp };
    let caller = |sides, owner| RouteToken { router: 1, sides, owner, tag: 7, bits: 1 }.caller();
    assert_eq!(caller([backend, client], CALLED), Some(7));
    for (sides, owner) in [
        ([backend, client], 0),
        ([client, backend], 0),
        ([client, backend], 1),
        ([backend, backend], 0),
        ([backend, backend], 1),
    ] {
        assert_eq!(caller(sides, owner), None, "{sides:?} {owner}");
    }
}
