//! A thousand honest phones on connections of their own, an ordinary mix, and their PBX; and where a test wants them, phones
//! that come anew over TLS all the time. Any answer but the one that is due, any that is late, any handshake that fails, any
//! connection that ends is a failure of the test that they run in.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use rustls::{ClientConnection, StreamOwned};

use super::*;
use rig::{pki::authority, text};

pub const PHONES: usize = 1_000;
const THREADS: usize = 4;
/// Addresses .100 and above, with ten phones each.
const FIRST_HOST: u8 = 100;
const EACH: usize = 10;
/// Those who are there over TLS at one time; the oldest makes room for the next. One each at .200 and above.
pub const COMERS: usize = 50;
const FIRST_COMER: u8 = 200;

pub struct Crowd {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    /// Handshakes that were made, and how many of them `go_on` waits for.
    handshakes: Arc<AtomicU64>,
    comers: u64,
    threads: Vec<JoinHandle<()>>,
    pbx: JoinHandle<()>,
}

impl Crowd {
    /// Connects them all, and begins.
    #[track_caller]
    pub fn start(scene: &Scene) -> Crowd {
        tidings::net::sys::raise_open_files().expect("the limit is ours");
        let stop = Arc::new(AtomicBool::new(false));
        let exchanges = Arc::new(AtomicU64::new(0));
        let (pbx, back) = (scene.pbx(1), scene.pbxs());
        let pbx = {
            let stop = stop.clone();
            std::thread::spawn(move || serve(&pbx, back, &stop))
        };
        let mut phones: Vec<Phone> = (0..PHONES)
            .map(|n| Phone::connect(scene.net, FIRST_HOST + (n / EACH) as u8, scene.phones()))
            .collect();
        let mut threads = Vec::new();
        while !phones.is_empty() {
            let mut share = phones.split_off(phones.len() - PHONES / THREADS);
            let (stop, exchanges) = (stop.clone(), exchanges.clone());
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for phone in &mut share {
                        phone.act();
                        exchanges.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        Crowd { stop, exchanges, handshakes: Arc::default(), comers: 0, threads, pbx }
    }

    /// Phones besides that call `to` by TLS, one after the other with a whole handshake each, and act when they come and
    /// before they go.
    pub fn and_comers(mut self, net: u8, to: SocketAddr) -> Crowd {
        let (stop, handshakes) = (self.stop.clone(), self.handshakes.clone());
        self.comers = COMERS as u64;
        self.threads.push(std::thread::spawn(move || {
            let mut there: VecDeque<Phone> = VecDeque::new();
            for host in (FIRST_COMER..FIRST_COMER + COMERS as u8).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if there.len() == COMERS {
                    there.pop_front().expect("all are there").act();
                }
                there.push_back(Phone::connect_secure(net, host, to));
                handshakes.fetch_add(1, Ordering::Relaxed);
            }
        }));
        self
    }

    /// How many handshakes those who come anew have made.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Waits until each phone has done something more, twice, and as many as are there over TLS have come anew.
    #[track_caller]
    pub fn go_on(&self) {
        let wanted = self.exchanges.load(Ordering::Relaxed) + 2 * PHONES as u64;
        let comers = self.handshakes() + self.comers;
        rig::wait_for("the honest phones to go on", Duration::from_secs(60), || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "one of them has failed");
            (self.exchanges.load(Ordering::Relaxed) >= wanted && self.handshakes() >= comers).then_some(())
        });
    }

    /// Ends them; panics where any of them saw anything but what is due.
    #[track_caller]
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        assert_eq!(failed, 0, "threads of honest phones that failed");
        self.pbx.join().expect("the PBX does not fail");
    }
}

/// Answers all, and sends a NOTIFY for each subscription.
fn serve(pbx: &Party, back: SocketAddr, stop: &AtomicBool) {
    let mut quiet = 0;
    while !stop.load(Ordering::Relaxed) || quiet < 10 {
        let Some((bytes, _)) = pbx.poll(Duration::from_millis(20)) else {
            quiet += 1;
            continue;
        };
        quiet = 0;
        let got = String::from_utf8(bytes).expect("text");
        if let Some(status) = text::status(&got) {
            assert_eq!(status, 200, "{got}");
            continue;
        }
        let more = format!("Contact: <sip:{}>\r\nExpires: 600\r\n", pbx.address);
        pbx.answer(back, &got, "200 OK", "pbx", &more);
        if got.starts_with("SUBSCRIBE ") {
            let value = |name| text::header(&got, name);
            let notify = format!(
                "NOTIFY {} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch=z9hG4bK{}\r\nMax-Forwards: 70\r\nRoute: {}\r\n\
                 From: {};tag=pbx\r\nTo: {}\r\nCall-ID: {}\r\nCSeq: 1 NOTIFY\r\nEvent: dialog\r\n\
                 Subscription-State: active;expires=600\r\nContact: <sip:{}>\r\nContent-Length: 0\r\n\r\n",
                text::uri(value("Contact")),
                pbx.address,
                rig::message::unique(),
                value("Record-Route"),
                value("To"),
                value("From"),
                value("Call-ID"),
                pbx.address,
            );
            pbx.send(back, notify);
        }
    }
}

/// What a phone speaks over: a socket, or TLS over it.
trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

struct Phone {
    stream: Box<dyn Wire>,
    transport: &'static str,
    local: SocketAddr,
    router: SocketAddr,
    count: usize,
    unread: String,
}

/// Connects from an address of the network.
pub fn connect_from(net: u8, host: u8, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 45, net, host], 0)).into()).expect("a free port");
    socket.connect(&to.into()).expect("the kernel takes it");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero is accepted");
    stream
}

impl Phone {
    fn connect(net: u8, host: u8, router: SocketAddr) -> Phone {
        let stream = connect_from(net, host, router);
        let local = stream.local_addr().expect("it is connected");
        Phone::over(Box::new(stream), "tcp", local, router)
    }

    /// With a handshake of its own: nothing is resumed.
    fn connect_secure(net: u8, host: u8, router: SocketAddr) -> Phone {
        let mut socket = connect_from(net, host, router);
        let local = socket.local_addr().expect("it is connected");
        let name = router.ip().into();
        let mut tls = ClientConnection::new(authority().client(None), name).expect("a client");
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).unwrap_or_else(|error| panic!("the handshake of {local}: {error}"));
        }
        Phone::over(Box::new(StreamOwned::new(tls, socket)), "tls", local, router)
    }

    fn over(stream: Box<dyn Wire>, transport: &'static str, local: SocketAddr, router: SocketAddr) -> Phone {
        let mut phone = Phone { stream, transport, local, router, count: 0, unread: String::new() };
        phone.act();
        phone
    }

    /// The next of the mix, and all that is due for it.
    fn act(&mut self) {
        self.count += 1;
        let kind = self.count % 4;
        let (local, word, transport) = (self.local, rig::message::unique(), self.transport);
        let method = ["REGISTER", "SUBSCRIBE", "MESSAGE", "OPTIONS"][kind];
        let uri =
            if method == "OPTIONS" { format!("sip:{}", self.router) } else { "sip:1@example.com".into() };
        let more = match method {
            "SUBSCRIBE" => "Event: dialog\r\nExpires: 600\r\n",
            "REGISTER" => "Expires: 600\r\n",
            _ => "",
        };
        let request = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{} {local};rport;branch=z9hG4bK{word}\r\nMax-Forwards: 70\r\n\
             From: <sip:p{}@example.com>;tag={word}\r\nTo: <sip:1@example.com>\r\nCall-ID: {word}\r\n\
             CSeq: 1 {method}\r\nContact: <sip:p@{local};transport={transport}>\r\n{more}Content-Length: 0\r\n\r\n",
            transport.to_ascii_uppercase(),
            local.port()
        );
        self.stream.write_all(request.as_bytes()).expect("the connection is alive");
        let mut due = vec!["SIP/2.0 200 "];
        if method == "SUBSCRIBE" {
            due.push("NOTIFY ");
        }
        while !due.is_empty() {
            let message = self.read(method);
            assert!(message.contains(&format!("Call-ID: {word}\r\n")), "to {method} {word}:\n{message}");
            let at = due.iter().position(|begin| message.starts_with(begin));
            due.remove(at.unwrap_or_else(|| panic!("not due, of {method}:\n{message}")));
            if message.starts_with("NOTIFY ") {
                let answer = text::answer(&message, "200 OK", "", "");
                self.stream.write_all(answer.as_bytes()).expect("the connection is alive");
            }
        }
    }

    /// The next message; none has a body.
    fn read(&mut self, what: &str) -> String {
        loop {
            if let Some(end) = self.unread.find("\r\n\r\n") {
                let rest = self.unread.split_off(end + 4);
                return std::mem::replace(&mut self.unread, rest);
            }
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(n > 0, "{what}: the connection was closed");
            self.unread += std::str::from_utf8(&buffer[..n]).expect("text");
        }
    }
}
