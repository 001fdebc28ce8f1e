//! A small PBX for events: a notifier (RFC 6665) and event state compositor (RFC 3903) on one UDP socket.
//!
//! What it does is what the router meets in the field: 200 and at once a NOTIFY; refresh; expiry with `terminated;
//! reason=timeout`; entity-tags that change with each PUBLISH; 412, 423 and 489; NOTIFYs along the recorded route,
//! retransmitted until answered, in a dialog of its own for each subscription. It challenges nobody and makes no calls.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{self, Instant},
};

use super::{
    dialog::Dialog,
    document::{PACKAGES, State, content_type},
    endpoint::Endpoint,
    journal::Journal,
    message::{Message, unique, user_of},
};

/// What differs between PBXs.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub packages: Vec<String>,
    /// Below: 423 with Min-Expires. Seconds.
    pub shortest: u32,
    /// Above: cut. Where none is asked for: this. Seconds.
    pub longest: u32,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour { packages: PACKAGES.map(str::to_owned).to_vec(), shortest: 1, longest: 3600 }
    }
}

/// What a PBX has done.
#[derive(Debug, Default)]
pub struct Counts {
    pub subscribes: AtomicU64,
    pub refreshes: AtomicU64,
    pub unsubscribes: AtomicU64,
    /// Subscriptions that ran out.
    pub timeouts: AtomicU64,
    pub notifies: AtomicU64,
    /// NOTIFYs that were refused or never answered.
    pub notify_failures: AtomicU64,
    /// Initial and modifying ones.
    pub publishes: AtomicU64,
    pub publish_refreshes: AtomicU64,
    pub publish_removes: AtomicU64,
    /// Any other request: REGISTER, OPTIONS, …
    pub others: AtomicU64,
    /// Requests that it refused.
    pub refused: AtomicU64,
}

/// A running PBX; it stops when this is dropped.
pub struct Pbx {
    exchange: Arc<Exchange>,
    tasks: [JoinHandle<()>; 2],
}

struct Exchange {
    name: String,
    endpoint: Endpoint,
    behaviour: Behaviour,
    journal: Arc<Journal>,
    counts: Counts,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// By our tag.
    subscriptions: HashMap<String, Subscription>,
    /// By entity-tag.
    publications: HashMap<String, Publication>,
}

struct Subscription {
    dialog: Dialog,
    package: String,
    /// The Event header as the NOTIFYs repeat it.
    event: String,
    resource: String,
    entity: String,
    ends: Instant,
    /// A NOTIFY is due.
    owed: bool,
    /// Why it is over, once it is.
    over: Option<&'static str>,
    version: u32,
    wake: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

struct Publication {
    package: String,
    resource: String,
    state: State,
    ends: Instant,
}

/// An answer, and whom to wake once it is sent, so that no NOTIFY overtakes its 200.
struct Answer {
    message: Message,
    wake: Vec<Arc<Notify>>,
}

impl From<Message> for Answer {
    fn from(message: Message) -> Answer {
        Answer { message, wake: Vec::new() }
    }
}

impl Pbx {
    /// Listens on `address` (port 0: any free one).
    pub async fn start(
        address: SocketAddr,
        name: &str,
        behaviour: Behaviour,
        journal: Arc<Journal>,
    ) -> io::Result<Pbx> {
        let exchange = Arc::new(Exchange {
            name: name.to_owned(),
            endpoint: Endpoint::bind(address).await?,
            behaviour,
            journal,
            counts: Counts::default(),
            held: Mutex::default(),
        });
        let tasks = [tokio::spawn(exchange.clone().serve()), tokio::spawn(exchange.clone().expire())];
        Ok(Pbx { exchange, tasks })
    }

    pub fn name(&self) -> &str {
        &self.exchange.name
    }

    pub fn address(&self) -> SocketAddr {
        self.exchange.endpoint.local()
    }

    pub fn counts(&self) -> &Counts {
        &self.exchange.counts
    }

    pub fn subscriptions(&self) -> usize {
        self.exchange.held.lock().subscriptions.len()
    }

    pub fn publications(&self) -> usize {
        self.exchange.held.lock().publications.len()
    }
}

impl Drop for Pbx {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for (_, subscription) in self.exchange.held.lock().subscriptions.drain() {
            subscription.task.inspect(JoinHandle::abort);
        }
    }
}

impl Exchange {
    async fn serve(self: Arc<Self>) {
        loop {
            let incoming = self.endpoint.receive().await;
            let answer = match incoming.message.method() {
                "ACK" => continue,
                "SUBSCRIBE" => self.subscribe(&incoming.message),
                "PUBLISH" => self.publish(&incoming.message),
                _ => self.other(&incoming.message),
            };
            if answer.message.code() >= 300 {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
            }
            self.endpoint.respond(&incoming, &answer.message).await;
            answer.wake.iter().for_each(|wake| wake.notify_one());
        }
    }

    /// Ends publications whose time is over (RFC 3903 6, step 5).
    async fn expire(self: Arc<Self>) {
        let mut tick = time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let now = Instant::now();
            let mut held = self.held.lock();
            let ended = held.publications.extract_if(|_, publication| publication.ends <= now);
            let changed: Vec<_> = ended.map(|(_, publication)| publication).collect();
            for publication in changed {
                self.journal.say(
                    &self.name,
                    format_args!("publication {} of {} expired", publication.package, publication.resource),
                );
                let wake = held.owe(&publication.package, &publication.resource);
                wake.iter().for_each(|wake| wake.notify_one());
            }
        }
    }

    fn subscribe(self: &Arc<Self>, request: &Message) -> Answer {
        let Some((package, _)) = request.event().filter(|(package, _)| self.serves(package)) else {
            return self.bad_event(request);
        };
        let asked = request.number("Expires").unwrap_or(self.behaviour.longest);
        if request.to_tag().is_some() {
            return self.resubscribe(request, asked);
        }
        if let Some(refusal) = self.too_brief(request, asked) {
            return refusal;
        }
        let tag = unique();
        let Some(dialog) = Dialog::answering(request, &tag) else {
            return request.reply(400, "Missing Contact", &tag).into();
        };
        let granted = asked.min(self.behaviour.longest);
        let resource = resource(request.uri());
        let wake = Arc::new(Notify::new());
        let subscription = Subscription {
            dialog,
            package: package.to_owned(),
            event: request.field("Event").unwrap_or(package).to_owned(),
            entity: format!("sip:{resource}"),
            resource,
            ends: Instant::now() + Duration::from_secs(granted.into()),
            owed: true,
            // A fetch (RFC 6665 4.4.3) is a subscription that ends with its first NOTIFY.
            over: (asked == 0).then_some("timeout"),
            version: 0,
            wake: wake.clone(),
            task: None,
        };
        self.counts.subscribes.fetch_add(1, Ordering::Relaxed);
        let mut held = self.held.lock();
        held.subscriptions.insert(tag.clone(), subscription);
        let task = tokio::spawn(self.clone().notify(tag.clone(), wake.clone()));
        if let Some(subscription) = held.subscriptions.get_mut(&tag) {
            subscription.task = Some(task);
        }
        Answer { message: self.granted(request, &tag, granted), wake: vec![wake] }
    }

    /// A SUBSCRIBE in its dialog: refresh, or end where it asks for 0.
    fn resubscribe(&self, request: &Message, asked: u32) -> Answer {
        let tag = request.to_tag().unwrap_or_default().to_owned();
        let mut held = self.held.lock();
        let known = held.subscriptions.get_mut(&tag).filter(|s| s.over.is_none() && s.dialog.owns(request));
        let Some(subscription) = known else {
            return request.reply(481, "Subscription Does Not Exist", &tag).into();
        };
        if let Some(refusal) = self.too_brief(request, asked) {
            return refusal;
        }
        if !subscription.dialog.take(request) {
            return request.reply(500, "CSeq Out Of Order", &tag).into();
        }
        let granted = asked.min(self.behaviour.longest);
        subscription.ends = Instant::now() + Duration::from_secs(granted.into());
        subscription.owed = true;
        if granted == 0 {
            subscription.over = Some("timeout");
        }
        let count = if granted == 0 { &self.counts.unsubscribes } else { &self.counts.refreshes };
        count.fetch_add(1, Ordering::Relaxed);
        let wake = vec![subscription.wake.clone()];
        Answer { message: self.granted(request, &tag, granted), wake }
    }

    fn granted(&self, request: &Message, tag: &str, seconds: u32) -> Message {
        let reply = request.reply(200, "OK", tag).with("Expires", &seconds.to_string());
        reply.with("Contact", &self.contact()).with("Server", &self.name)
    }

    /// Sends the NOTIFYs of one subscription, one after the other, until it is over.
    async fn notify(self: Arc<Self>, tag: String, wake: Arc<Notify>) {
        loop {
            let ends = self.held.lock().subscriptions.get(&tag).map(|subscription| subscription.ends);
            let Some(ends) = ends else { return };
            let _ = time::timeout_at(ends, wake.notified()).await;
            let Some((to, notify, last)) = self.next_notify(&tag) else { continue };
            self.counts.notifies.fetch_add(1, Ordering::Relaxed);
            let answer = self.endpoint.request(to, notify).await;
            let code = answer.as_ref().map_or(0, Message::code);
            if last || (200..300).contains(&code) {
                continue;
            }
            self.counts.notify_failures.fetch_add(1, Ordering::Relaxed);
            // RFC 6665 4.2.2: an error ends the subscription, but for one that says when to try again.
            let retry = answer.and_then(|a| a.number("Retry-After")).filter(|_| code != 481);
            self.journal.say(&self.name, format_args!("NOTIFY answered {code} (0: never), retry {retry:?}"));
            match retry {
                Some(seconds) => {
                    time::sleep(Duration::from_secs(seconds.min(60).into())).await;
                    if let Some(subscription) = self.held.lock().subscriptions.get_mut(&tag) {
                        subscription.owed = true;
                        wake.notify_one();
                    }
                }
                None => {
                    self.held.lock().subscriptions.remove(&tag);
                }
            }
        }
    }

    /// The NOTIFY that is due, where it goes, and whether it is the last.
    fn next_notify(&self, tag: &str) -> Option<(SocketAddr, Message, bool)> {
        let mut held = self.held.lock();
        let now = Instant::now();
        let Held { subscriptions, publications } = &mut *held;
        let subscription = subscriptions.get_mut(tag)?;
        if subscription.over.is_none() && subscription.ends <= now {
            subscription.over = Some("timeout");
            subscription.owed = true;
            self.counts.timeouts.fetch_add(1, Ordering::Relaxed);
            self.journal.say(
                &self.name,
                format_args!(
                    "subscription to {} of {} timed out",
                    subscription.package, subscription.resource
                ),
            );
        }
        if !std::mem::take(&mut subscription.owed) {
            return None;
        }
        let state = composed(publications, &subscription.package, &subscription.resource);
        let body = state.write(&subscription.package, &subscription.entity, subscription.version);
        subscription.version += 1;
        let left = subscription.ends.saturating_duration_since(now).as_secs_f64().round();
        let status = match subscription.over {
            Some(reason) => format!("terminated;reason={reason}"),
            None => format!("active;expires={left}"),
        };
        let request = subscription.dialog.request("NOTIFY");
        let last = subscription.over.is_some();
        let (event, kind) = (subscription.event.clone(), content_type(&subscription.package));
        if last || request.is_none() {
            subscriptions.remove(tag);
        }
        let (to, notify) = request?;
        let notify = notify
            .with("Contact", &self.contact())
            .with("Event", &event)
            .with("Subscription-State", &status)
            .with("User-Agent", &self.name);
        Some((to, notify.with_body(kind, body), last))
    }

    /// RFC 3903 6.
    fn publish(&self, request: &Message) -> Answer {
        let tag = unique();
        let Some((package, _)) = request.event().filter(|(package, _)| self.serves(package)) else {
            return self.bad_event(request);
        };
        let resource = resource(request.uri());
        let asked = request.number("Expires").unwrap_or(self.behaviour.longest);
        let mut held = self.held.lock();
        let old_tag = request.field("SIP-If-Match");
        let former = match old_tag {
            None => None,
            Some(etag) => match held.publications.get(etag) {
                Some(p) if p.package == package && p.resource == resource => Some(p.state.clone()),
                _ => return request.reply(412, "Conditional Request Failed", &tag).into(),
            },
        };
        if let Some(refusal) = self.too_brief(request, asked) {
            return refusal;
        }
        let state = match (State::read(package, &request.body), former) {
            (Some(state), _) if request.field("Content-Type") == Some(content_type(package)) => state,
            (None, Some(state)) if request.body.is_empty() => state,
            (None, None) if request.body.is_empty() => {
                return request.reply(400, "Missing Body", &tag).into();
            }
            _ => {
                let reply = request.reply(415, "Unsupported Media Type", &tag);
                return reply.with("Accept", content_type(package)).into();
            }
        };
        if let Some(etag) = old_tag {
            held.publications.remove(etag);
        }
        let granted = asked.min(self.behaviour.longest);
        let etag = unique();
        let changes = granted == 0 || !request.body.is_empty();
        let counts = &self.counts;
        let count = match (granted, changes) {
            (0, _) => &counts.publish_removes,
            (_, true) => &counts.publishes,
            (_, false) => &counts.publish_refreshes,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if granted > 0 {
            let ends = Instant::now() + Duration::from_secs(granted.into());
            let publication =
                Publication { package: package.to_owned(), resource: resource.clone(), state, ends };
            held.publications.insert(etag.clone(), publication);
        }
        let wake = if changes { held.owe(package, &resource) } else { Vec::new() };
        let reply = request.reply(200, "OK", &tag).with("SIP-ETag", &etag);
        let message = reply.with("Expires", &granted.to_string()).with("Server", &self.name);
        Answer { message, wake }
    }

    /// REGISTER is granted as asked, OPTIONS answered; this PBX has no calls.
    fn other(&self, request: &Message) -> Answer {
        self.counts.others.fetch_add(1, Ordering::Relaxed);
        let tag = unique();
        let allow = "SUBSCRIBE, NOTIFY, PUBLISH, REGISTER, OPTIONS, MESSAGE";
        let reply = match request.method() {
            "OPTIONS" | "MESSAGE" => request.reply(200, "OK", &tag),
            "REGISTER" => {
                let mut reply = request.reply(200, "OK", &tag);
                for contact in request.values("Contact") {
                    reply = reply.with("Contact", contact);
                }
                for path in request.values("Path") {
                    reply = reply.with("Path", path);
                }
                let seconds = request.number("Expires").unwrap_or(self.behaviour.longest);
                reply.with("Expires", &seconds.to_string())
            }
            _ => request.reply(405, "Method Not Allowed", &tag),
        };
        reply.with("Allow", allow).with("Server", &self.name).into()
    }

    fn serves(&self, package: &str) -> bool {
        self.behaviour.packages.iter().any(|own| own == package)
    }

    fn bad_event(&self, request: &Message) -> Answer {
        let reply = request.reply(489, "Bad Event", &unique());
        reply.with("Allow-Events", &self.behaviour.packages.join(", ")).with("Server", &self.name).into()
    }

    fn too_brief(&self, request: &Message, asked: u32) -> Option<Answer> {
        let shortest = self.behaviour.shortest;
        (asked > 0 && asked < shortest).then(|| {
            let reply = request.reply(423, "Interval Too Brief", &unique());
            reply.with("Min-Expires", &shortest.to_string()).with("Server", &self.name).into()
        })
    }

    /// Without a user, as Asterisk's.
    fn contact(&self) -> String {
        format!("<sip:{}>", self.endpoint.local())
    }
}

impl Held {
    /// Every subscription to this resource is owed a NOTIFY: gives whom to wake.
    fn owe(&mut self, package: &str, resource: &str) -> Vec<Arc<Notify>> {
        let subscriptions = self.subscriptions.values_mut();
        let theirs = subscriptions.filter(|s| s.package == package && s.resource == resource);
        let wake = theirs.map(|subscription| {
            subscription.owed = true;
            subscription.wake.clone()
        });
        wake.collect()
    }
}

/// The state of a resource: what was published last, else the neutral one.
fn composed(publications: &HashMap<String, Publication>, package: &str, resource: &str) -> State {
    let its = publications.values().filter(|p| p.package == package && p.resource == resource);
    its.map(|p| &p.state).max_by_key(|s| s.change).cloned().unwrap_or_else(|| State::neutral(package))
}

/// `user@host` of a Request-URI: without port and parameters, the host in lower case.
fn resource(uri: &str) -> String {
    let rest = uri.split_once(':').map_or(uri, |(_, rest)| rest);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = host.split([':', ';', '?']).next().unwrap_or(host).to_ascii_lowercase();
    format!("{}@{host}", user_of(uri))
}
