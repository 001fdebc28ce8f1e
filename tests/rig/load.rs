//! Traffic that counts itself: closed-loop clients that send each request once, and answering backends that say which
//! table decided it. What is not answered exactly once, or came to the wrong backend, is a fault; nothing retransmits.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Party, text};

/// Requests that one client has in flight.
const WINDOW: usize = 8;
/// After so long without its answer a request is lost.
const LOST: Duration = Duration::from_secs(10);
/// A client's pause after each answer: the load leaves room for the compiler of tables.
const PAUSE: Duration = Duration::from_micros(1_500);

/// What the clients saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sent: u64,
    pub answered: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Answered with anything but 200.
    pub refused: u64,
}

/// Clients and backends, running.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
    backends: Vec<JoinHandle<(u64, Vec<String>)>>,
}

impl Load {
    /// Clients on `clients`, each of which sends SUBSCRIBE, PUBLISH and NOTIFY in turn to `router` for users `user0` to
    /// `user{users - 1}`. Backend number i of `backends` takes only what a table set `X-Table: n` on with n modulo their
    /// number equal to i.
    #[track_caller]
    pub fn start(router: &str, clients: &[String], backends: &[String], users: u32) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let router: SocketAddr = router.parse().expect("an address of the test's");
        let count = backends.len() as u64;
        let serving = backends.iter().enumerate().map(|(index, address)| {
            let (party, stop) = (Party::bind(address.as_str()), stop.clone());
            std::thread::spawn(move || serve(&party, index as u64, count, &stop))
        });
        let backends = serving.collect();
        let calling = clients.iter().map(|address| {
            let (party, stop, sent) = (Party::bind(address.as_str()), stop.clone(), sent.clone());
            std::thread::spawn(move || {
                Client { party, router, users, sent, tally: Tally::default() }.run(&stop)
            })
        });
        let clients = calling.collect();
        Load { stop, sent, clients, backends }
    }

    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Lets the clients finish what is in flight; then what all saw. Panics where a backend was given what was not its
    /// own, and tells the first such request.
    #[track_caller]
    pub fn finish(self) -> (Tally, Vec<u64>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients {
            let one = client.join().expect("a client does not panic");
            all.sent += one.sent;
            all.answered += one.answered;
            all.lost += one.lost;
            all.duplicated += one.duplicated;
            all.refused += one.refused;
        }
        let served =
            self.backends.into_iter().map(|backend| backend.join().expect("a backend does not panic"));
        let served: Vec<(u64, Vec<String>)> = served.collect();
        let wrong: Vec<&String> = served.iter().flat_map(|(_, wrong)| wrong).collect();
        assert!(
            wrong.is_empty(),
            "{} requests decided by two tables, or by none; the first:\n{}",
            wrong.len(),
            wrong[0]
        );
        (all, served.into_iter().map(|(count, _)| count).collect())
    }
}

struct Client {
    party: Party,
    router: SocketAddr,
    users: u32,
    sent: Arc<AtomicU64>,
    tally: Tally,
}

impl Client {
    fn run(mut self, stop: &AtomicBool) -> Tally {
        let mut flight: HashMap<String, Instant> = HashMap::new();
        while !stop.load(Ordering::Relaxed) || !flight.is_empty() {
            while flight.len() < WINDOW && !stop.load(Ordering::Relaxed) {
                let (call_id, request) = self.request();
                self.party.send(self.router, request);
                flight.insert(call_id, Instant::now());
                self.tally.sent += 1;
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
            if let Some((bytes, _)) = self.party.poll(Duration::from_millis(50)) {
                let message = String::from_utf8_lossy(&bytes);
                match (text::status(&message), flight.remove(text::header(&message, "Call-ID"))) {
                    (Some(200), Some(_)) => self.tally.answered += 1,
                    (_, Some(_)) => self.tally.refused += 1,
                    (_, None) => self.tally.duplicated += 1,
                }
                std::thread::sleep(PAUSE);
            }
            let before = flight.len();
            flight.retain(|_, since| since.elapsed() < LOST);
            self.tally.lost += (before - flight.len()) as u64;
        }
        self.tally
    }

    fn request(&self) -> (String, String) {
        let number = self.tally.sent;
        let local = self.party.address;
        // A step that meets all users in a scattered order.
        let user = (number * 7_919) % u64::from(self.users);
        let (method, more) = match number % 3 {
            0 => ("SUBSCRIBE", format!("Contact: <sip:c@{local}>\r\nExpires: 60\r\n")),
            1 => ("PUBLISH", "Expires: 60\r\n".to_owned()),
            _ => ("NOTIFY", format!("Contact: <sip:c@{local}>\r\nSubscription-State: active\r\n")),
        };
        let call_id = format!("{number}@{local}");
        let request = format!(
            "{method} sip:user{user}@pbx.example.org SIP/2.0\r\n\
             Via: SIP/2.0/UDP {local};rport;branch=z9hG4bK{number}\r\nMax-Forwards: 70\r\n\
             From: <sip:c@pbx.example.org>;tag=f{number}\r\nTo: <sip:user{user}@pbx.example.org>\r\n\
             Call-ID: {call_id}\r\nCSeq: 1 {method}\r\nEvent: presence\r\nX-Table: forged\r\n{more}\
             Content-Length: 0\r\n\r\n"
        );
        (call_id, request)
    }
}

/// Answers each request with 200; gives how many there were, and those that are not its own.
fn serve(party: &Party, index: u64, count: u64, stop: &AtomicBool) -> (u64, Vec<String>) {
    let (mut served, mut wrong, mut quiet) = (0, Vec::new(), Instant::now());
    // The clients may still wait for answers when they are told to stop.
    while !stop.load(Ordering::Relaxed) || quiet.elapsed() < Duration::from_secs(1) {
        let Some((bytes, from)) = party.poll(Duration::from_millis(50)) else { continue };
        quiet = Instant::now();
        let request = String::from_utf8_lossy(&bytes).into_owned();
        if !request.contains(" sip:user") {
            continue;
        }
        let tables = text::headers(&request, "X-Table");
        let mine = matches!(tables[..], [table] if table.parse::<u64>().is_ok_and(|n| n % count == index));
        party.answer(from, &request, "200 OK", "b", "Expires: 60\r\n");
        served += 1;
        if !mine {
            wrong.push(request);
        }
    }
    (served, wrong)
}
