//! A small phone: a subscriber (RFC 6665) that keeps its dialogs, answers NOTIFYs and refreshes.
//!
//! It sends what starts a dialog to its proxy, whatever the URI says, and what is in a dialog along its route set.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle, time};

use super::{
    dialog::Dialog,
    document::State,
    endpoint::Endpoint,
    journal::{Count, Journal},
    message::{Message, param, unique, user_of},
};

/// Notifications of one subscription that are remembered.
const REMEMBERED: usize = 64;

/// Who a phone or publisher is, and where it sends.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: String,
    pub domain: String,
    pub proxy: SocketAddr,
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{} {}", .0.code(), .0.method())]
    Refused(Box<Message>),
    #[error("no answer")]
    Silence,
    #[error("no such subscription")]
    Unknown,
}

impl Failure {
    /// The status code; 0 where there was no answer.
    pub fn code(&self) -> u16 {
        match self {
            Failure::Refused(response) => response.code(),
            Failure::Silence | Failure::Unknown => 0,
        }
    }
}

/// One subscription of a phone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watch(String);

/// A NOTIFY as it came.
#[derive(Clone, Debug)]
pub struct Notification {
    pub state: State,
    /// `active`, `terminated`, …
    pub status: String,
    pub reason: Option<String>,
    /// Who sent it, by its User-Agent.
    pub notifier: String,
    /// The source of the datagram.
    pub peer: SocketAddr,
    pub message: Message,
}

/// A running phone; it stops when this is dropped.
pub struct Phone {
    set: Arc<Set>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct Set {
    account: Account,
    endpoint: Endpoint,
    journal: Arc<Journal>,
    /// By our tag.
    watches: Mutex<HashMap<String, Subscription>>,
    /// A NOTIFY came.
    rang: Notify,
}

struct Subscription {
    resource: String,
    package: String,
    /// The SUBSCRIBE that began it.
    request: Message,
    dialog: Option<Dialog>,
    /// Seconds, as granted last.
    granted: u32,
    notifications: VecDeque<Notification>,
    /// The last change seen.
    change: u64,
    /// `terminated` came.
    over: bool,
}

impl Phone {
    /// Listens on `address` (port 0: any free one).
    pub async fn start(address: SocketAddr, account: Account, journal: Arc<Journal>) -> io::Result<Phone> {
        let endpoint = Endpoint::bind(address).await?;
        let set =
            Arc::new(Set { account, endpoint, journal, watches: Mutex::default(), rang: Notify::new() });
        let serving = tokio::spawn(set.clone().serve());
        Ok(Phone { set, tasks: Mutex::new(vec![serving]) })
    }

    pub fn address(&self) -> SocketAddr {
        self.set.endpoint.local()
    }

    pub fn user(&self) -> &str {
        &self.set.account.user
    }

    /// Subscribes to `package` of the user `resource`. Where 423 says how long it must be, it asks for that.
    pub async fn subscribe(&self, resource: &str, package: &str, seconds: u32) -> Result<Watch, Failure> {
        let tag = unique();
        let request = self.set.initial(resource, package, &tag);
        let subscription = Subscription {
            resource: resource.to_owned(),
            package: package.to_owned(),
            request: request.clone(),
            dialog: None,
            granted: seconds,
            notifications: VecDeque::new(),
            change: 0,
            over: false,
        };
        self.set.watches.lock().insert(tag.clone(), subscription);
        let result = self.set.ask(&tag, request, seconds).await;
        if result.is_err() {
            self.set.watches.lock().remove(&tag);
        }
        result.map(|()| {
            self.set.journal.count(Count::Subscriptions);
            Watch(tag)
        })
    }

    /// Refreshes; gives the seconds granted.
    pub async fn refresh(&self, watch: &Watch, seconds: u32) -> Result<u32, Failure> {
        self.set.refresh(&watch.0, seconds).await
    }

    /// Ends the subscription; its last NOTIFY is still to come.
    pub async fn unsubscribe(&self, watch: &Watch) -> Result<(), Failure> {
        self.set.refresh(&watch.0, 0).await?;
        self.set.journal.count(Count::Unsubscriptions);
        Ok(())
    }

    /// Refreshes it from now on, well before it ends, until it is over.
    pub fn keep(&self, watch: &Watch, seconds: u32) {
        let (set, tag) = (self.set.clone(), watch.0.clone());
        self.tasks.lock().push(tokio::spawn(set.keep(tag, seconds)));
    }

    /// No more refreshes by itself.
    pub fn stop_keeping(&self) {
        self.tasks.lock().drain(1..).for_each(|task| task.abort());
    }

    /// Waits at most `limit` for a notification of this kind, those that came before included.
    pub async fn wait(
        &self,
        watch: &Watch,
        limit: Duration,
        mut wanted: impl FnMut(&Notification) -> bool,
    ) -> Option<Notification> {
        let found = async {
            loop {
                let rang = self.set.rang.notified();
                let found = self.notifications(watch).into_iter().find(&mut wanted);
                match found {
                    Some(notification) => return notification,
                    None => rang.await,
                }
            }
        };
        time::timeout(limit, found).await.ok()
    }

    /// What came for a subscription, oldest first.
    pub fn notifications(&self, watch: &Watch) -> Vec<Notification> {
        let watches = self.set.watches.lock();
        watches.get(&watch.0).map(|s| s.notifications.iter().cloned().collect()).unwrap_or_default()
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(JoinHandle::abort);
    }
}

impl Account {
    pub fn uri(&self, user: &str) -> String {
        format!("sip:{user}@{}", self.domain)
    }

    /// A request that starts a dialog or stands alone, about the user `resource`.
    pub fn request(&self, method: &str, resource: &str, tag: &str) -> Message {
        let uri = self.uri(resource);
        Message::request(method, &uri)
            .with("From", &format!("<{}>;tag={tag}", self.uri(&self.user)))
            .with("To", &format!("<{uri}>"))
            .with("Call-ID", &unique())
            .with("CSeq", &format!("1 {method}"))
    }
}

impl Set {
    fn who(&self) -> String {
        format!("phone {}", self.account.user)
    }

    fn contact(&self) -> String {
        format!("<sip:{}@{}>", self.account.user, self.endpoint.local())
    }

    fn initial(&self, resource: &str, package: &str, tag: &str) -> Message {
        let request = self.account.request("SUBSCRIBE", resource, tag);
        request.with("Contact", &self.contact()).with("Event", package)
    }

    /// Sends the SUBSCRIBE that begins a subscription; twice where the first asks for too little.
    async fn ask(&self, tag: &str, mut request: Message, mut seconds: u32) -> Result<(), Failure> {
        for number in 1.. {
            request.set("CSeq", &format!("{number} SUBSCRIBE"));
            request.set("Expires", &seconds.to_string());
            let answer = self.endpoint.request(self.account.proxy, request.clone()).await;
            let answer = answer.ok_or(Failure::Silence)?;
            match (answer.code(), answer.number("Min-Expires")) {
                (200..300, _) => {
                    self.granted(tag, &request, &answer, seconds);
                    return Ok(());
                }
                (423, Some(least)) if number == 1 => {
                    self.journal.count(Count::TooBrief);
                    self.journal.say(
                        &self.who(),
                        format_args!("<- 423 {seconds} s is too brief; asks again for Min-Expires {least}"),
                    );
                    seconds = least;
                }
                _ => return Err(Failure::Refused(Box::new(answer))),
            }
        }
        Err(Failure::Silence)
    }

    fn granted(&self, tag: &str, request: &Message, answer: &Message, asked: u32) {
        if let Some(subscription) = self.watches.lock().get_mut(tag) {
            subscription.granted = answer.number("Expires").unwrap_or(asked);
            subscription.request = request.clone();
            match &mut subscription.dialog {
                Some(dialog) => dialog.retarget(answer),
                none => *none = Dialog::asking(request, answer),
            }
        }
    }

    async fn refresh(&self, tag: &str, seconds: u32) -> Result<u32, Failure> {
        let request = {
            let mut watches = self.watches.lock();
            let subscription = watches.get_mut(tag).filter(|s| !s.over).ok_or(Failure::Unknown)?;
            let request = subscription.dialog.as_mut().and_then(|dialog| dialog.request("SUBSCRIBE"));
            request.map(|(to, request)| (to, request.with("Event", &subscription.package)))
        };
        let (to, request) = request.ok_or(Failure::Unknown)?;
        let request = request.with("Contact", &self.contact()).with("Expires", &seconds.to_string());
        let answer = self.endpoint.request(to, request.clone()).await.ok_or(Failure::Silence)?;
        if !(200..300).contains(&answer.code()) {
            return Err(Failure::Refused(Box::new(answer)));
        }
        let granted = answer.number("Expires").unwrap_or(seconds);
        if let Some(subscription) = self.watches.lock().get_mut(tag) {
            subscription.granted = granted;
            subscription.dialog.iter_mut().for_each(|dialog| dialog.retarget(&answer));
        }
        Ok(granted)
    }

    async fn keep(self: Arc<Self>, tag: String, seconds: u32) {
        loop {
            let granted = {
                let watches = self.watches.lock();
                let Some(subscription) = watches.get(&tag).filter(|s| !s.over) else { return };
                subscription.granted
            };
            time::sleep(Duration::from_secs(granted.into()).mul_f64(0.6)).await;
            match self.refresh(&tag, seconds).await {
                Ok(granted) => {
                    self.journal.count(Count::Refreshes);
                    let what = self.about(&tag);
                    self.journal.say(&self.who(), format_args!("-> refreshed {what} for {granted} s"));
                }
                Err(Failure::Unknown) => return,
                Err(failure) => {
                    let what = self.about(&tag);
                    self.journal.fail(&self.who(), format_args!("refresh of {what}: {failure}"));
                    return;
                }
            }
        }
    }

    fn about(&self, tag: &str) -> String {
        let watches = self.watches.lock();
        watches.get(tag).map_or_else(String::new, |s| format!("{} of {}", s.package, s.resource))
    }

    async fn serve(self: Arc<Self>) {
        loop {
            let incoming = self.endpoint.receive().await;
            let answer = match incoming.message.method() {
                "ACK" => continue,
                "NOTIFY" => self.notified(&incoming.message, incoming.peer),
                "OPTIONS" => incoming.message.reply(200, "OK", &unique()),
                _ => incoming
                    .message
                    .reply(405, "Method Not Allowed", &unique())
                    .with("Allow", "NOTIFY, OPTIONS"),
            };
            self.endpoint.respond(&incoming, &answer).await;
            self.rang.notify_waiters();
        }
    }

    /// RFC 6665 4.1.3.
    fn notified(&self, request: &Message, peer: SocketAddr) -> Message {
        let tag = request.to_tag().unwrap_or_default().to_owned();
        let mut watches = self.watches.lock();
        let known = watches.get_mut(&tag).filter(|s| s.request.call_id() == request.call_id() && !s.over);
        let Some(subscription) = known else {
            self.journal.fail(&self.who(), format_args!("<- NOTIFY that belongs to no subscription"));
            return request.reply(481, "Subscription Does Not Exist", &unique());
        };
        let in_order = match &mut subscription.dialog {
            Some(dialog) if dialog.owns(request) => dialog.take(request),
            // A second notifier, by a fork: this phone wants one only.
            Some(_) => return request.reply(481, "Subscription Does Not Exist", &tag),
            none => {
                *none = Dialog::notified(&subscription.request, request);
                true
            }
        };
        if !in_order {
            self.journal.fail(&self.who(), format_args!("<- NOTIFY out of order"));
            return request.reply(500, "CSeq Out Of Order", &tag);
        }
        let Some(notification) = Notification::read(&subscription.package, request, peer) else {
            self.journal.fail(&self.who(), format_args!("<- NOTIFY that cannot be read"));
            return request.reply(400, "Bad Event Or Body", &tag);
        };
        if peer != self.account.proxy {
            self.journal.fail(&self.who(), format_args!("<- NOTIFY from {peer}, not by the proxy"));
        }
        self.journal.count(Count::Notifies);
        let Notification { state, status, reason, notifier, .. } = &notification;
        let over = match (status.as_str(), reason) {
            ("terminated", Some(reason)) => format!(", terminated: {reason}"),
            ("terminated", None) => ", terminated".to_owned(),
            _ => String::new(),
        };
        let (package, resource, word) = (&subscription.package, &subscription.resource, &state.word);
        self.journal.say(
            &self.who(),
            format_args!("<- NOTIFY {package} of {resource}: {word}{over} (via {notifier})"),
        );
        if state.change > subscription.change {
            subscription.change = state.change;
            if !subscription.notifications.is_empty() {
                self.journal.notified(state.change);
            }
        }
        subscription.over = status == "terminated";
        if subscription.notifications.len() == REMEMBERED {
            subscription.notifications.pop_front();
        }
        subscription.notifications.push_back(notification);
        request.reply(200, "OK", &tag).with("Contact", &self.contact())
    }
}

impl Notification {
    fn read(package: &str, request: &Message, peer: SocketAddr) -> Option<Notification> {
        request.event().filter(|(own, _)| *own == package)?;
        let status = request.field("Subscription-State")?;
        Some(Notification {
            state: State::read(package, &request.body)?,
            status: status.split(';').next().unwrap_or(status).trim().to_owned(),
            reason: param(status, "reason").map(str::to_owned),
            notifier: request.field("User-Agent").unwrap_or_else(|| user_of(request.uri())).to_owned(),
            peer,
            message: request.clone(),
        })
    }
}
