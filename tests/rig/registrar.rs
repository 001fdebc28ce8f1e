//! A registrar that calls back: it takes REGISTERs, keeps Path and Contact, and for each registration makes one call to
//! the Contact, along the Path where one came (RFC 3327 5.4), and hangs up. SIPp cannot keep a Path.

use std::{
    collections::HashMap,
    net::SocketAddr,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Party, text};

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Registrations, and those that came with a Path.
    pub registered: usize,
    pub with_path: usize,
    /// Calls answered, and calls ended by a 200 to our BYE.
    pub answered: usize,
    pub ended: usize,
    /// Final answers other than 200.
    pub refused: Vec<String>,
}

/// One that runs in a thread until it has ended as many calls as were asked for, or until its time is over.
pub struct Registrar(JoinHandle<Outcome>);

impl Registrar {
    /// Binds `local`; sends what it begins itself to `router`.
    #[track_caller]
    pub fn start(local: &str, router: &str, calls: usize, limit: Duration) -> Registrar {
        let party = Party::bind(local);
        let router: SocketAddr = router.parse().expect("an address of the test's");
        let desk = Desk { party, router, calls: HashMap::new(), outcome: Outcome::default() };
        Registrar(std::thread::spawn(move || desk.serve(calls, Instant::now() + limit)))
    }

    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.0.join().expect("the registrar does not panic")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Calling,
    Ending,
    Over,
}

struct Desk {
    party: Party,
    router: SocketAddr,
    /// By Call-ID of the call back.
    calls: HashMap<String, Stage>,
    outcome: Outcome,
}

impl Desk {
    fn serve(mut self, calls: usize, end: Instant) -> Outcome {
        while self.outcome.ended + self.outcome.refused.len() < calls && Instant::now() < end {
            let Some((bytes, from)) = self.party.poll(Duration::from_millis(100)) else { continue };
            let message = String::from_utf8_lossy(&bytes).into_owned();
            match text::status(&message) {
                None if message.starts_with("REGISTER ") => self.register(&message, from),
                None => self.outcome.refused.push(message),
                Some(status) => self.response(status, &message),
            }
        }
        self.outcome
    }

    /// 200 with the Contact and the Path as they came; then the call back, once.
    fn register(&mut self, request: &str, from: SocketAddr) {
        let contact = text::header(request, "Contact");
        let path = text::headers(request, "Path").join(", ");
        let path_line = if path.is_empty() { String::new() } else { format!("Path: {path}\r\n") };
        let more = format!("{path_line}Contact: {contact};expires=300\r\n");
        self.party.answer(from, request, "200 OK", "registrar", &more);
        let call_id = format!("back///{}", text::header(request, "Call-ID"));
        if self.calls.contains_key(&call_id) {
            return;
        }
        self.outcome.registered += 1;
        self.outcome.with_path += usize::from(!path.is_empty());
        let route = if path.is_empty() { String::new() } else { format!("Route: {path}\r\n") };
        let to = format!("<{}>", text::uri(text::header(request, "To")));
        self.request("INVITE", 1, text::uri(contact), &route, &to, &call_id);
        self.calls.insert(call_id, Stage::Calling);
    }

    fn response(&mut self, status: u16, response: &str) {
        let call_id = text::header(response, "Call-ID").to_owned();
        let stage = self.calls.get(&call_id).copied();
        if status < 200 || stage.is_none() || stage == Some(Stage::Over) {
            return;
        }
        if status != 200 {
            self.outcome.refused.push(response.to_owned());
            self.calls.insert(call_id, Stage::Over);
        } else if stage == Some(Stage::Calling) && text::header(response, "CSeq").ends_with("INVITE") {
            self.outcome.answered += 1;
            let routes: Vec<&str> = text::headers(response, "Record-Route").into_iter().rev().collect();
            let route = routes.iter().map(|route| format!("Route: {route}\r\n")).collect::<String>();
            let target = text::uri(text::header(response, "Contact"));
            let to = text::header(response, "To");
            self.request("ACK", 1, target, &route, to, &call_id);
            self.request("BYE", 2, target, &route, to, &call_id);
            self.calls.insert(call_id, Stage::Ending);
        } else if stage == Some(Stage::Ending) && text::header(response, "CSeq").ends_with("BYE") {
            self.outcome.ended += 1;
            self.calls.insert(call_id, Stage::Over);
        }
    }

    fn request(&self, method: &str, cseq: u32, uri: &str, route: &str, to: &str, call_id: &str) {
        let local = self.party.address;
        let message = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{method}{call_id}\r\n\
             Max-Forwards: 70\r\n{route}From: <sip:pbx@pbx.example.org>;tag=b1\r\nTo: {to}\r\n\
             Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nContact: <sip:pbx@{local}>\r\nContent-Length: 0\r\n\r\n"
        );
        self.party.send(self.router, message);
    }
}
