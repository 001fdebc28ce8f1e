//! A UDP socket with the transactions of RFC 3261 17 for everything but INVITE: requests are retransmitted by Timers E
//! and F, retransmissions of others are met with the answer that they got before.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{net::UdpSocket, sync::oneshot, time};

use super::message::{Message, param, unique};

const T1: Duration = Duration::from_millis(500);
const T2: Duration = Duration::from_secs(4);
const TIMER_F: Duration = Duration::from_secs(32);
/// Answers kept for retransmissions; at the demo's rates that is Timer J and more.
const ANSWERS: usize = 1024;

pub struct Endpoint {
    socket: UdpSocket,
    local: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Client transactions by branch.
    waiting: HashMap<String, oneshot::Sender<Message>>,
    /// Server transactions by branch, sent-by and method.
    answers: HashMap<String, (Vec<u8>, SocketAddr)>,
    order: VecDeque<String>,
}

/// A request that is no retransmission, and where its answer goes (RFC 3581).
pub struct Incoming {
    pub message: Message,
    pub peer: SocketAddr,
    back: SocketAddr,
    key: String,
}

impl Endpoint {
    pub async fn bind(address: SocketAddr) -> io::Result<Endpoint> {
        let socket = UdpSocket::bind(address).await?;
        let local = socket.local_addr()?;
        Ok(Endpoint { socket, local, state: Mutex::default() })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a request and waits for its final response; `None` when Timer F fires.
    pub async fn request(&self, to: SocketAddr, mut message: Message) -> Option<Message> {
        let branch = format!("z9hG4bK{}", unique());
        message.put_first("Via", &format!("SIP/2.0/UDP {};rport;branch={branch}", self.local));
        let bytes = message.to_bytes();
        let (sender, mut response) = oneshot::channel();
        self.state.lock().waiting.insert(branch.clone(), sender);
        let retransmit = async {
            let mut timer_e = T1;
            loop {
                // What a send error means (the peer is gone) Timer F tells too.
                let _ = self.socket.send_to(&bytes, to).await;
                time::sleep(timer_e).await;
                timer_e = (timer_e * 2).min(T2);
            }
        };
        let answer = tokio::select! {
            answer = &mut response => answer.ok(),
            () = retransmit => None,
            () = time::sleep(TIMER_F) => None,
        };
        self.state.lock().waiting.remove(&branch);
        answer
    }

    /// The next request. Responses go to who waits for them, retransmissions get their answer again.
    pub async fn receive(&self) -> Incoming {
        let mut buffer = vec![0; 65_536];
        loop {
            // An error here is an ICMP report about something sent before; the next datagram is unaffected.
            let Ok((length, peer)) = self.socket.recv_from(&mut buffer).await else { continue };
            let Some(mut message) = Message::parse(&buffer[..length]) else { continue };
            let Some(via) = message.values("Via").first().map(|via| via.to_string()) else { continue };
            if message.code() > 0 {
                self.deliver(&via, message);
                continue;
            }
            let (via, back) = returned(&via, peer);
            let sent_by = via.split(';').next().unwrap_or_default();
            let key = format!("{sent_by} {} {}", param(&via, "branch").unwrap_or_default(), message.method());
            let again = self.state.lock().answers.get(&key).cloned();
            if let Some((bytes, back)) = again {
                let _ = self.socket.send_to(&bytes, back).await;
                continue;
            }
            let rest = message.values("Via")[1..].iter().map(|v| format!(", {v}")).collect::<String>();
            message = message.without("Via");
            message.put_first("Via", &format!("{via}{rest}"));
            return Incoming { message, peer, back, key };
        }
    }

    fn deliver(&self, via: &str, response: Message) {
        let branch = param(via, "branch").unwrap_or_default();
        if response.code() >= 200
            && let Some(waiting) = self.state.lock().waiting.remove(branch)
        {
            // Whoever waited may have been stopped meanwhile.
            let _ = waiting.send(response);
        }
    }

    pub async fn respond(&self, incoming: &Incoming, response: &Message) {
        let bytes = response.to_bytes();
        {
            let mut state = self.state.lock();
            state.answers.insert(incoming.key.clone(), (bytes.clone(), incoming.back));
            state.order.push_back(incoming.key.clone());
            if state.order.len() > ANSWERS
                && let Some(oldest) = state.order.pop_front()
            {
                state.answers.remove(&oldest);
            }
        }
        let _ = self.socket.send_to(&bytes, incoming.back).await;
    }
}

/// The top Via with `received` and `rport`, and where the response goes (RFC 3261 18.2, RFC 3581 4).
fn returned(via: &str, peer: SocketAddr) -> (String, SocketAddr) {
    let sent_by = via.split(';').next().unwrap_or_default().rsplit(' ').next().unwrap_or_default();
    if param(via, "rport") == Some("") {
        let parts = via.split(';').map(|part| match part.trim() {
            "rport" => format!("rport={};received={}", peer.port(), peer.ip()),
            other => other.to_owned(),
        });
        return (parts.collect::<Vec<_>>().join(";"), peer);
    }
    let port = sent_by.parse::<SocketAddr>().map_or(5060, |sent_by| sent_by.port());
    (format!("{via};received={}", peer.ip()), SocketAddr::new(peer.ip(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3581_4_the_answer_goes_to_the_source() {
        let peer = "127.0.0.1:7000".parse().expect("test address");
        let (via, back) = returned("SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bKa", peer);
        assert_eq!(via, "SIP/2.0/UDP 192.0.2.1:5060;rport=7000;received=127.0.0.1;branch=z9hG4bKa");
        assert_eq!(back, peer);
        let (_, back) = returned("SIP/2.0/UDP 127.0.0.1:5070;branch=z9hG4bKa", peer);
        assert_eq!(back.port(), 5070);
    }

    #[tokio::test]
    async fn rfc3261_17_2_2_a_retransmission_gets_the_same_answer() {
        let server = Endpoint::bind(([127, 90, 1, 1], 5060).into()).await.expect("loopback");
        let client = UdpSocket::bind("127.90.1.1:5061").await.expect("loopback");
        let request = Message::request("OPTIONS", "sip:x")
            .with("Via", "SIP/2.0/UDP 127.90.1.1;rport;branch=z9hG4bKone")
            .with("From", "<sip:a@x>;tag=1")
            .with("To", "<sip:b@x>")
            .with("Call-ID", "c")
            .with("CSeq", "1 OPTIONS");
        let mut buffer = [0; 2000];
        let once = async {
            let incoming = server.receive().await;
            let answer = incoming.message.reply(200, "OK", "t1");
            server.respond(&incoming, &answer).await;
            server.receive().await.message
        };
        let twice = async {
            let mut answers = Vec::new();
            for _ in 0..2 {
                client.send_to(&request.to_bytes(), server.local()).await.expect("sent");
                let length = client.recv(&mut buffer).await.expect("answered");
                answers.push(buffer[..length].to_vec());
            }
            let mut other = request.clone();
            other.set("Via", "SIP/2.0/UDP 127.90.1.1;rport;branch=z9hG4bKtwo");
            client.send_to(&other.to_bytes(), server.local()).await.expect("sent");
            answers
        };
        let both = async { tokio::join!(once, twice) };
        let (next, answers) = time::timeout(Duration::from_secs(5), both).await.expect("in time");
        assert_eq!(answers[0], answers[1]);
        assert!(answers[0].starts_with(b"SIP/2.0 200 OK\r\n"));
        assert!(next.values("Via")[0].contains("z9hG4bKtwo"));
    }
}
