//! Event state compositors as PBXs have them, each a thread with one UDP socket: what a router must get right about
//! entity-tags depends on what these do with them.
//!
//! Asterisk: tags are one decimal counter of the process from 0, read with `%d`; an unknown or expired one is 412, a tag
//! without a digit and an initial PUBLISH without a body are 400. FreeSWITCH: eight random letters, and 200 to a tag that
//! it does not know: the state is lost, and nobody is told.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Party, message::unique, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With the first tag of its counter.
    Asterisk(u64),
    FreeSwitch,
}

/// One PUBLISH that it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub uri: String,
    pub if_match: Option<String>,
    pub expires: Option<u32>,
    pub body: String,
    pub code: u16,
    /// The tag that it gave.
    pub tag: String,
}

/// A running one; it is gone, and its socket closed, once this is dropped.
pub struct Compositor {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Taken>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Compositor {
    #[track_caller]
    pub fn start(address: SocketAddr, kind: Kind) -> Compositor {
        let socket = Party::bind(address).into_udp();
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout above zero is accepted");
        let (taken, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let state = State { kind, next: 0, held: HashMap::new(), taken: taken.clone() };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || state.serve(&socket, &stopped));
        Compositor { address, taken, stop, thread: Some(thread) }
    }

    /// All that it took so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().expect("its thread does not panic").clone()
    }

    /// What it took last.
    #[track_caller]
    pub fn last(&self) -> Taken {
        self.taken().last().unwrap_or_else(|| panic!("{} took nothing", self.address)).clone()
    }

    pub fn count(&self) -> usize {
        self.taken().len()
    }
}

impl Drop for Compositor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct State {
    kind: Kind,
    next: u64,
    /// When each publication ends, by its tag.
    held: HashMap<String, Instant>,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl State {
    fn serve(mut self, socket: &UdpSocket, stop: &AtomicBool) {
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Acquire) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if !request.starts_with("PUBLISH ") {
                continue;
            }
            let taken = self.publish(&request);
            let status = match taken.code {
                200 => "200 OK",
                412 => "412 Conditional Request Failed",
                _ => "400 Bad Request",
            };
            let seconds = taken.expires.unwrap_or(3600);
            let granted = format!("SIP-ETag: {}\r\nExpires: {seconds}\r\n", taken.tag);
            let more = if taken.code == 200 { granted.as_str() } else { "" };
            self.taken.lock().expect("nobody panics with it").push(taken);
            let _ = socket.send_to(text::answer(&request, status, &unique(), more).as_bytes(), from);
        }
    }

    fn publish(&mut self, request: &str) -> Taken {
        let first = |name: &str| text::headers(request, name).first().map(|value| (*value).to_owned());
        let (if_match, expires) = (first("SIP-If-Match"), first("Expires").and_then(|e| e.parse().ok()));
        let body = text::body(request).to_owned();
        let (uri, kind) = (text::request_uri(request).to_owned(), self.kind);
        let mut taken = Taken { uri, if_match, expires, body, code: 200, tag: String::new() };
        let now = Instant::now();
        self.held.retain(|_, ends| *ends > now);
        // sscanf("%d"): 8abc is 8, 004 is 4.
        let digits =
            |tag: &str| tag.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>();
        taken.code = match (kind, &taken.if_match) {
            (Kind::FreeSwitch, _) => 200,
            (_, None) if taken.body.is_empty() => 400,
            (_, None) => 200,
            (_, Some(tag)) => match digits(tag) {
                Err(_) => 400,
                Ok(number) if self.held.remove(&number.to_string()).is_none() => 412,
                Ok(_) => 200,
            },
        };
        if taken.code == 200 {
            taken.tag = match kind {
                Kind::Asterisk(first) => (first + self.next).to_string(),
                Kind::FreeSwitch => format!("{:x}kqzwvxyt", 10 + self.next % 6)[..8].to_owned(),
            };
            self.next += 1;
            let seconds = u64::from(taken.expires.unwrap_or(3600));
            if seconds > 0 {
                self.held.insert(taken.tag.clone(), now + Duration::from_secs(seconds));
            }
        }
        taken
    }
}
