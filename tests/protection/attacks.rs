//! The limits of SPEC 9.7 under attack, each while a thousand honest phones go on without an error (issue 4, point 5).

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::ClientConnection;

use super::{
    crowd::{COMERS, Crowd, PHONES, connect_from},
    *,
};
use rig::{
    TempDir,
    pki::authority,
    scene::{certificates, one_pbx},
    wait_for,
};

fn refused(scene: &Scene, cause: &str) -> f64 {
    metric(scene, "tidings_connections_refused_total", &[("cause", cause)])
}

fn closed(scene: &Scene, reason: &str) -> f64 {
    metric(scene, "tidings_connections_closed_total", &[("reason", reason)])
}

fn accepted(scene: &Scene) -> f64 {
    metric(scene, "tidings_connections", &[("role", "accepted")])
}

/// Something hostile, in a thread, again and again until it is told to stop.
struct Attack {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Attack {
    fn start(mut again: impl FnMut() + Send + 'static) -> Attack {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                again();
            }
        });
        Attack { stop, thread }
    }

    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("an attack does not panic");
    }
}

/// As `connect_from`, where the kernel may refuse.
fn try_connect(net: u8, host: u8, to: SocketAddr) -> Option<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    // So that a flood leaves no ports in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO)).ok()?;
    socket.bind(&SocketAddr::from(([127, 45, net, host], 0)).into()).ok()?;
    socket.connect_timeout(&to.into(), Duration::from_secs(2)).ok()?;
    Some(socket.into())
}

/// A connection flood from one address: it gets so many and so many a second, and no other address notices.
#[test]
fn a_flood_of_connections_from_one_address() {
    let scene = layout(231, "tcp", "[connections]\nper_address = 50\naccepts_per_second = 100\n")
        .start(&one_pbx(231));
    let crowd = Crowd::start(&scene);
    let (to, mut held) = (scene.phones(), Vec::new());
    let attack = Attack::start(move || {
        held.extend(try_connect(231, 50, to));
        // Those that are refused are closed by the router: the flood holds on to what it has got.
        if held.len() == 2_000 {
            held.clear();
        }
    });
    wait_for("both limits to be hit", Duration::from_secs(60), || {
        (refused(&scene, "address") >= 500.0 && refused(&scene, "rate") >= 500.0).then_some(())
    });
    crowd.go_on();
    assert!(accepted(&scene) <= (PHONES + 50) as f64);
    attack.finish();
    crowd.finish();
}

/// Who hangs up at once never holds many: there it is the rate that stops him.
#[test]
fn a_flood_of_connections_that_are_closed_at_once() {
    const RATE: f64 = 50.0;
    let scene =
        layout(158, "tcp", &format!("[connections]\naccepts_per_second = {RATE}\n")).start(&one_pbx(158));
    let crowd = Crowd::start(&scene);
    let to = scene.phones();
    let opened = || metric(&scene, "tidings_connections_opened_total", &[("role", "accepted")]);
    let (before, begin) = (opened(), std::time::Instant::now());
    let attack = Attack::start(move || drop(try_connect(158, 50, to)));
    wait_for("the rate to be hit", Duration::from_secs(60), || {
        (refused(&scene, "rate") >= 2_000.0).then_some(())
    });
    crowd.go_on();
    let (got_in, seconds) = (opened() - before, begin.elapsed().as_secs_f64());
    assert!(got_in >= RATE && got_in <= RATE * (seconds + 2.0), "{got_in} in {seconds:.1} s");
    assert_eq!(refused(&scene, "address"), 0.0);
    attack.finish();
    crowd.finish();
}

/// Handshakes that are begun and never ended, of three kinds: not a byte, half a hello, a whole one that the router has
/// answered. By time where they are few, by their number where they are many they end, while phones come anew over TLS.
#[test]
fn handshakes_that_are_never_ended() {
    const MOST: f64 = 600.0;
    let pki = TempDir::new("pki");
    let to = SocketAddr::from(([127, 45, 157, 1], 5061));
    let more = format!(
        "[[listen]]\nname = \"secure\"\ntransport = \"tls\"\naddress = \"{to}\"\nside = \"clients\"\n\
         [connections]\nhandshakes = {MOST}\nhandshake_time = \"2s\"\naccepts_per_second = 5000\n{}",
        certificates(&pki, &["127.45.157.1"])
    );
    let scene = layout(157, "tcp", &more).start(&one_pbx(157));
    let crowd = Crowd::start(&scene).and_comers(157, to);
    crowd.go_on();
    let fast = Arc::new(AtomicBool::new(false));
    let (hurry, mut open, mut count) = (fast.clone(), VecDeque::new(), 0);
    let attack = Attack::start(move || {
        // The first by 100 a second, so that 200 hang; then 1,000 a second, until which the oldest has 0.6 s.
        std::thread::sleep(Duration::from_millis(if hurry.load(Ordering::Relaxed) { 1 } else { 10 }));
        let Some(mut stream) = try_connect(157, 50, to) else { return };
        let mut hello = Vec::new();
        let name = to.ip().into();
        let mut tls = ClientConnection::new(authority().client(None), name).expect("a client");
        tls.write_tls(&mut hello).expect("a Vec takes it");
        let sent = [0, hello.len() / 2, hello.len()][count % 3];
        count += 1;
        // It may be closed already.
        let _ = stream.write_all(&hello[..sent]);
        open.push_back(stream);
        if open.len() > 2_000 {
            open.pop_front();
        }
    });
    let under_way = || metric(&scene, "tidings_tls_handshakes_under_way", &[]);
    wait_for("them to end by time", Duration::from_secs(60), || {
        (closed(&scene, "handshake_time") >= 300.0).then_some(())
    });
    crowd.go_on();
    assert_eq!(closed(&scene, "handshakes"), 0.0);
    fast.store(true, Ordering::Relaxed);
    wait_for("the oldest to make room", Duration::from_secs(60), || {
        assert!(under_way() <= MOST);
        (closed(&scene, "handshakes") >= 1_000.0).then_some(())
    });
    crowd.go_on();
    assert!(closed(&scene, "handshakes") > 1_000.0, "it goes on all the time");
    attack.finish();
    // They go on coming, and a client is done with a handshake before its server.
    let came = crowd.handshakes();
    let made = metric(&scene, "tidings_tls_handshakes_total", &[("role", "accepted")]);
    assert!(made + 1.0 >= came as f64 && came >= 3 * COMERS as u64, "{made} of {came}");
    crowd.finish();
}

/// Slow-loris: a byte of a header now and then. Each is closed in time, whatever the others do.
#[test]
fn connections_that_never_end_their_message() {
    let scene =
        layout(232, "tcp", "[connections]\nper_address = 200\nmessage_time = \"2s\"\n").start(&one_pbx(232));
    let crowd = Crowd::start(&scene);
    let (to, mut slow) = (scene.phones(), Vec::new());
    let attack = Attack::start(move || {
        while slow.len() < 100 {
            let Some(stream) = try_connect(232, 50, to) else { break };
            slow.push(stream);
        }
        slow.retain_mut(|stream| stream.write_all(b"X").is_ok());
        std::thread::sleep(Duration::from_millis(100));
    });
    wait_for("them to be closed", Duration::from_secs(60), || {
        (closed(&scene, "message_time") >= 300.0).then_some(())
    });
    crowd.go_on();
    attack.finish();
    crowd.finish();
}

/// Readers that never read: what waits for each is bounded, then it is closed.
#[test]
fn readers_that_never_read() {
    // Exempt, so that nothing but the limit of output holds: it would be banned before.
    let more = "[connections]\noutput = \"64KiB\"\n[protection]\nexempt = [\"127.45.233.50\"]\n";
    let scene = layout(233, "tcp", more).start(&one_pbx(233));
    let crowd = Crowd::start(&scene);
    let to = scene.phones();
    let request = format!(
        "OPTIONS sip:{to} SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bKdeaf\r\nMax-Forwards: 70\r\n\
         From: \"{}\" <sip:deaf@example.com>;tag=d\r\nTo: <sip:{to}>\r\nCall-ID: deaf\r\nCSeq: 1 OPTIONS\r\n\
         Content-Length: 0\r\n\r\n",
        "x".repeat(20_000)
    );
    let mut deaf: Vec<TcpStream> = Vec::new();
    let attack = Attack::start(move || {
        while deaf.len() < 20 {
            let Some(stream) = try_connect(233, 50, to) else { return };
            stream.set_nonblocking(true).expect("a socket of ours");
            deaf.push(stream);
        }
        deaf.retain_mut(|stream| match stream.write(request.as_bytes()) {
            // Half a message is no message: another begins on another connection.
            Ok(n) => n == request.len(),
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        std::thread::sleep(Duration::from_millis(1));
    });
    wait_for("them to be closed", Duration::from_secs(60), || {
        let queued = metric(&scene, "tidings_connection_queued_bytes", &[]);
        assert!(queued <= (PHONES + 21) as f64 * 65_536.0 && queued <= 21.0 * 100_000.0, "{queued}");
        (closed(&scene, "output") >= 20.0).then_some(())
    });
    crowd.go_on();
    attack.finish();
    crowd.finish();
}

/// CRLFs without end by many connections, which are always ready to be read: they are closed, and who opens more is banned.
#[test]
fn keepalives_without_end() {
    let scene = layout(229, "tcp", "[protection]\nban_after = 200\n").start(&one_pbx(229));
    let crowd = Crowd::start(&scene);
    let (to, bulk) = (scene.phones(), "\r\n".repeat(30_000));
    let mut open: Vec<TcpStream> = Vec::new();
    let attack = Attack::start(move || {
        while open.len() < 100 {
            let Some(stream) = try_connect(229, 50, to) else { break };
            stream.set_nonblocking(true).expect("a socket of ours");
            open.push(stream);
        }
        open.retain_mut(|stream| match stream.write(bulk.as_bytes()) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
    });
    wait_for("the ban", Duration::from_secs(60), || {
        (metric(&scene, "tidings_bans_begun_total", &[("cause", "malformed")]) >= 1.0).then_some(())
    });
    crowd.go_on();
    assert!(closed(&scene, "keepalives") >= 100.0);
    assert_eq!(metric(&scene, "tidings_overloads_total", &[]), 0.0);
    attack.finish();
    crowd.finish();
}

/// No descriptor is left: who is here goes on, who comes is served once there are some again.
#[test]
fn no_file_is_left_for_another_connection() {
    let scene = layout(234, "tcp", "").start(&one_pbx(234));
    let crowd = Crowd::start(&scene);
    let pid = scene.router.process.pid().to_string();
    let limit = |files: &str| {
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}")]).status();
        assert!(status.expect("prlimit is there").success());
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    limit(&format!("{}:20000", open + 5));
    let to = scene.phones();
    let mut waiting: Vec<TcpStream> = (0..100).map(|_| connect_from(234, 50, to)).collect();
    crowd.go_on();
    // Those that got a file are served.
    let ask = |stream: &mut TcpStream| {
        let request = format!(
            "OPTIONS sip:{to} SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;rport;branch=z9hG4bKa\r\nMax-Forwards: 70\r\n\
             From: <sip:a@example.com>;tag=a\r\nTo: <sip:{to}>\r\nCall-ID: a\r\nCSeq: 1 OPTIONS\r\n\
             Content-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the kernel takes it");
    };
    for stream in &mut waiting {
        ask(stream);
    }
    crowd.go_on();
    limit("20000:20000");
    for stream in &mut waiting {
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).expect("an answer");
        assert_eq!(&begin, b"SIP/2.0 200 ");
    }
    assert!(refused(&scene, "files") >= 1.0);
    crowd.go_on();
    crowd.finish();
}
