//! Bans: automatic, by the operator, over table swaps and a restart, and in nftables.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use super::*;
use rig::{TempDir, scene::one_pbx, wait_for};

const STRICT: &str = "[protection]\nmalformed = 1\nmalformed_burst = 2\nban_after = 20\nban_time = \"1h\"\n\
                      new_dialogs = 1\nnew_dialogs_burst = 5\nanswers = 1\n";

/// `tidings bans …`: exit code, stdout, stderr.
fn bans(scene: &Scene, more: &[&str]) -> (Option<i32>, String, String) {
    let admin = scene.router.admin.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["bans", "--admin", &admin])
        .args(more)
        .output()
        .expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn listed(scene: &Scene) -> Vec<serde_json::Value> {
    let (code, json, _) = bans(scene, &["--json"]);
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    json["bans"].as_array().expect("a list").clone()
}

fn connect_from(scene: &Scene, host: u8) -> TcpStream {
    connect_to(scene, host, scene.phones())
}

fn connect_to(scene: &Scene, host: u8, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 45, scene.net, host], 0)).into()).expect("a free port");
    socket.connect(&to.into()).expect("the kernel takes it");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream
}

fn is_closed(mut stream: TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// SPEC 10, issue 4: automatic on malformed and on excessive traffic; its connections end, new ones are refused; lifted.
#[test]
fn who_floods_over_tcp_is_banned_until_the_ban_is_lifted() {
    let scene = layout(246, "tcp", STRICT).start(&one_pbx(246));
    let (honest_phone, pbx) = (scene.phone(), scene.pbx(1));
    honest(&honest_phone, &scene, &pbx);
    for (host, cause) in [(50, "malformed"), (51, "excess")] {
        let idle = connect_from(&scene, host);
        let mut hostile = connect_from(&scene, host);
        let mut request = message(&honest_phone);
        if cause == "malformed" {
            request = request.without("From");
        }
        // It may be closed in the middle of this.
        for _ in 0..60 {
            let fresh = request.text().replace("Call-ID: ", &format!("Call-ID: {}", rig::message::unique()));
            let _ = std::io::Write::write_all(&mut hostile, fresh.as_bytes());
        }
        wait_for("the ban", PATIENCE, || {
            let source = format!("127.45.246.{host}");
            let ban = listed(&scene).into_iter().find(|ban| ban["source"] == source)?;
            assert_eq!((ban["cause"].as_str(), ban["times"].as_u64()), (Some(cause), Some(1)));
            Some(())
        });
        assert!(is_closed(hostile), "its connection ends");
        assert!(is_closed(idle), "and every other of that address");
        assert!(is_closed(connect_from(&scene, host)), "and it gets no new one");
        assert!(metric(&scene, "tidings_bans_begun_total", &[("cause", cause)]) >= 1.0);
    }
    while pbx.poll(Duration::from_millis(50)).is_some() {}
    honest(&honest_phone, &scene, &pbx);
    assert_eq!(metric(&scene, "tidings_bans", &[]), 2.0);
    assert_eq!(metric(&scene, "tidings_connections_closed_total", &[("reason", "barred")]), 4.0);
    assert_eq!(metric(&scene, "tidings_connections_refused_total", &[("cause", "banned")]), 2.0);

    // Over a table swap, and in the list for people.
    assert_eq!(scene.router.put_table(&one_pbx(246)).0, 200);
    let (_, table, _) = bans(&scene, &[]);
    assert!(table.contains("127.45.246.50  malformed") && table.contains("2 of at most 10000"), "{table}");

    assert_eq!(bans(&scene, &["lift", "127.45.246.50"]).0, Some(0));
    let (code, _, error) = bans(&scene, &["lift", "127.45.246.50"]);
    assert_eq!((code, error.trim()), (Some(1), "tidings: 127.45.246.50 is not banned"));
    honest(&scene.party(50), &scene, &pbx);
    assert!(is_closed(connect_from(&scene, 51)));
    assert_eq!(metric(&scene, "tidings_bans_lifted_total", &[]), 1.0);
}

/// Behind a proxy a ban is of the true client: his connections are cut, while others come by the same proxy, here a real
/// HAProxy with `send-proxy-v2`, and the proxy itself is nobody who could be banned.
#[test]
fn a_ban_behind_a_proxy_cuts_that_client_alone() {
    let mut layout = layout(159, "tcp", STRICT);
    layout.listener = "proxy_protocol = [\"127.45.159.9\"]\n".into();
    let scene = layout.start(&one_pbx(159));
    let dir = TempDir::new("haproxy");
    let config = "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
                  listen phones\n bind 127.45.159.9:5060\n\
                  \x20server router 127.45.159.1:5060 source 127.45.159.9 send-proxy-v2\n";
    let config = dir.write("haproxy.cfg", config);
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(config);
    let mut haproxy = rig::Process::start("haproxy", &mut command, &dir.path().join("haproxy.log"));
    haproxy.wait_bound("tcp", scene.at(9), PATIENCE);

    let pbx = scene.pbx(1);
    // A MESSAGE to the PBX and its 200, by whatever connection.
    let served = |stream: &mut TcpStream, from: &str| {
        let request = message(&pbx)
            .with("Via", format!("SIP/2.0/TCP {from};rport;branch=z9hG4bK{}", rig::message::unique()));
        stream.write_all(request.text().as_bytes()).expect("HAProxy takes it");
        let got = pbx.expect("MESSAGE ");
        let received = format!(";received={}", from.split(':').next().expect("an address"));
        assert!(got.contains(&received), "the true client: {got}");
        pbx.answer(scene.pbxs(), &got, "200 OK", "x", "");
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).expect("an answer");
        assert_eq!(&begin, b"SIP/2.0 200 ");
        // The rest of the answer is of no interest.
        stream.set_nonblocking(true).expect("a socket of ours");
        while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
        stream.set_nonblocking(false).expect("a socket of ours");
    };
    let mut phones: Vec<(TcpStream, String)> = [50, 51, 52, 50]
        .into_iter()
        .map(|host| (connect_to(&scene, host, scene.at(9)), format!("127.45.159.{host}:5060")))
        .collect();
    for (stream, from) in &mut phones {
        served(stream, from);
    }
    let (second, _) = phones.pop().expect("of .50");
    let (mut goes_on, goes_on_from) = phones.pop().expect("of .52");
    let (mut hostile, _) = phones.pop().expect("of .51");
    let (banned, _) = phones.pop().expect("of .50");

    // By the operator.
    assert_eq!(bans(&scene, &["add", "127.45.159.50"]).0, Some(0));
    assert!(is_closed(banned) && is_closed(second), "both of his connections end");
    served(&mut goes_on, &goes_on_from);
    // By what he sends.
    let malformed = message(&pbx).without("From").text();
    for _ in 0..60 {
        // It may be closed in the middle of this.
        let _ = hostile.write_all(malformed.replace("Call-ID: ", "Call-ID: x").as_bytes());
    }
    assert!(is_closed(hostile), "his connection ends");
    let mut sources: Vec<_> = listed(&scene).iter().map(|ban| ban["source"].clone()).collect();
    sources.sort_by_key(ToString::to_string);
    assert_eq!(sources, ["127.45.159.50", "127.45.159.51"]);
    served(&mut goes_on, &goes_on_from);

    let barred = || metric(&scene, "tidings_connections_closed_total", &[("reason", "barred")]);
    assert_eq!(barred(), 3.0);

    // What they open anew is cut as soon as the proxy has said whose it is; who is not banned comes in by the same.
    for host in [50, 51] {
        assert!(is_closed(connect_to(&scene, host, scene.at(9))));
    }
    served(&mut connect_to(&scene, 53, scene.at(9)), "127.45.159.53:5060");
    served(&mut goes_on, &goes_on_from);
    assert_eq!(barred(), 5.0);
    assert_eq!(bans(&scene, &["lift", "127.45.159.50"]).0, Some(0));
    served(&mut connect_to(&scene, 50, scene.at(9)), "127.45.159.50:5060");
}

/// A datagram's source can be forged: by itself it bans nobody, and where the operator wants that, never a backend.
#[test]
fn a_datagram_bans_nobody_unless_the_operator_wants_it_and_never_a_backend() {
    let flood = |scene: &Scene, party: &Party| {
        for _ in 0..100 {
            party.send(scene.phones(), "rubbish");
        }
        scene.settle();
    };
    let scene = layout(247, "udp", STRICT).start(&one_pbx(247));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    flood(&scene, &phone);
    assert!(scene.refused("malformed_rate") >= 90.0);
    std::thread::sleep(Duration::from_millis(600));
    assert!(listed(&scene).is_empty());
    honest(&phone, &scene, &pbx);
    drop(scene);

    let more = format!("{STRICT}ban_datagrams = true\nexempt = [\"127.45.247.33\", \"127.45.247.250/31\"]\n");
    let scene = layout(247, "udp", &more).start(&one_pbx(247));
    // In the name of the PBX, from another port and to the phones' listener: for us a client.
    let forged = Party::bind("127.45.247.11:5999");
    let (exempt, hostile) = (scene.party(33), scene.party(34));
    for party in [&forged, &exempt, &hostile] {
        flood(&scene, party);
    }
    wait_for("the ban", PATIENCE, || (listed(&scene).len() == 1).then_some(()));
    assert_eq!(listed(&scene)[0]["source"], "127.45.247.34");
    honest(&phone, &scene, &pbx);
    honest(&exempt, &scene, &pbx);
    let before = scene.refused("banned");
    hostile.send(scene.phones(), message(&hostile).text());
    scene.quiet(&[&hostile, &pbx]);
    assert_eq!(scene.refused("banned"), before + 1.0);
}

/// SPEC 10: set by the operator, for a time, over a restart; not for those who are never banned.
#[test]
fn the_operator_bans_for_a_time_and_a_restart_does_not_forget() {
    let more = "[protection]\nbans = 2\nexempt = [\"127.45.248.33\"]\n";
    let mut scene = layout(248, "udp", more).start(&one_pbx(248));
    let (phone, pbx) = (scene.phone(), scene.pbx(1));
    let refused = |scene: &Scene, address: &str, why: &str| {
        let (code, _, error) = bans(scene, &["add", address]);
        assert!(code == Some(1) && error.contains(why), "{code:?} {error}");
    };
    refused(&scene, "127.45.248.11", "is a backend's address: it is never banned");
    refused(&scene, "127.45.248.33", "is exempt or trusted: it is never banned");
    assert_eq!(bans(&scene, &["add", "127.45.248.31"]).0, Some(0));
    assert_eq!(bans(&scene, &["add", "2001:db8:1:2::7", "--seconds", "2"]).0, Some(0));
    refused(&scene, "192.0.2.1", "there is room for 2 bans only");
    assert_eq!(metric(&scene, "tidings_bans_left_out_total", &[]), 1.0);
    let sources: Vec<_> = listed(&scene).iter().map(|ban| ban["source"].clone()).collect();
    assert_eq!(sources, ["127.45.248.31", "2001:db8:1:2::/64"]);
    phone.send(scene.phones(), message(&phone).text());
    scene.quiet(&[&phone, &pbx]);
    wait_for("the short ban to end", PATIENCE, || (listed(&scene).len() == 1).then_some(()));

    let kept = std::fs::read_to_string(scene.router.dir.path().join("state/bans")).expect("it is kept");
    assert!(kept.contains(" operator 127.45.248.31\n"), "{kept}");
    let settings = std::fs::read_to_string(scene.router.dir.path().join("tidings.toml")).expect("settings");
    assert!(scene.router.stop().success());
    let config = scene.router.dir.write("tidings.toml", &settings);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["run", "--config"]).arg(&config);
    let output = scene.router.dir.path().join("again.log");
    scene.router.process = rig::Process::start("tidings", &mut command, &output);
    scene.router.process.wait_line("ready", Duration::from_secs(20));
    phone.send(scene.phones(), message(&phone).text());
    scene.quiet(&[&phone, &pbx]);
    let (status, body) = rig::http::ask(scene.router.admin, "DELETE", "/api/v1/bans/127.45.248.31", "");
    assert_eq!(status, 200, "{body}");
    honest(&phone, &scene, &pbx);
    let (status, _) = rig::http::ask(scene.router.admin, "DELETE", "/api/v1/bans/nobody", "");
    assert_eq!(status, 400);
}

/// The kernel drops what is banned: real nftables, in a network namespace of its own.
#[test]
fn bans_are_mirrored_into_nftables() {
    let dir = rig::TempDir::new("nft");
    dir.write("table.toml", &one_pbx(249));
    let config = dir.write(
        "tidings.toml",
        "table = \"table.toml\"\n[workers]\ncount = 1\n[[listen]]\nname = \"phones\"\ntransport = \"udp\"\n\
         address = \"127.45.249.1:5060\"\n[admin]\naddress = \"127.45.249.1:9060\"\n\
         [protection]\nnftables = { ipv4 = \"inet guard four\", ipv6 = \"inet guard six\" }\n",
    );
    let script = "set -eu
ip link set lo up
nft 'add table inet guard'
nft 'add set inet guard four { type ipv4_addr; }'
nft 'add set inet guard six { type ipv6_addr; flags interval; }'
nft 'add element inet guard four { 192.0.2.99 }'
\"$TIDINGS\" run --config \"$CONFIG\" 2>&1 &
router=$!
trap 'kill $router' EXIT
bans() { \"$TIDINGS\" bans --config \"$CONFIG\" \"$@\" >/dev/null; }
holds() { for _ in $(seq 100); do got=$(nft list set inet guard $1 | tr -d '\\n\\t'); \
case \"$got\" in *\"$2\"*) return 0;; esac; sleep 0.1; done; echo \"set $1 does not hold $2: $got\"; exit 1; }
lacks() { for _ in $(seq 100); do got=$(nft list set inet guard $1 | tr -d '\\n\\t'); \
case \"$got\" in *\"$2\"*) ;; *) return 0;; esac; sleep 0.1; done; echo \"set $1 holds $2: $got\"; exit 1; }
for _ in $(seq 100); do bans 2>/dev/null && break; sleep 0.1; done
lacks four 192.0.2.99
bans add 192.0.2.7; bans add 192.0.2.8; bans add 2001:db8:1:2::3
holds four '192.0.2.7, 192.0.2.8'
holds six '2001:db8:1:2::/64'
bans lift 192.0.2.7; bans lift 2001:db8:1:2::/64
lacks four 192.0.2.7
lacks six 2001:db8
holds four '192.0.2.8'
echo all as expected
";
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", script])
        .env("TIDINGS", env!("CARGO_BIN_EXE_tidings"))
        .env("CONFIG", &config)
        .output()
        .expect("unshare is installed: apt-get install -y util-linux nftables");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("all as expected"), "{said}");
}
