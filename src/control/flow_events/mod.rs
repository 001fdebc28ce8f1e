//! Flow events: who was on a connection that ended without a goodbye, told to the sinks of `[flow_events]` (SPEC 9.9).
//!
//! The cores tell of ended connections with users on them (`live::News`); `watch` waits the grace delay, asks whether the user is
//! back on a newer connection, and makes one event of each who is not: a line in the log, a POST (`webhook`, by way of the
//! `spool`), a NOTIFY, a REGISTER that ends his registration. It also turns `own`. Nothing here is waited for by a worker.
//!
//! What SUBSCRIBE made is not ended on a user's behalf: that takes the dialog's tags, routes and CSeq, which only the
//! subscriber and the notifier have; the notifier learns of his absence by the answer to its next NOTIFY (3.5).

mod spool;
mod webhook;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use self::{spool::Spool, webhook::Desk};
use super::{
    Router, StartError,
    own::{Ask, Own, Way},
    state_dir::StateDir,
};
use crate::{
    config::{Settings, settings::NotifyTo},
    live::{Gone, Now, Outcome, User},
    net,
    stats::{Process, ProcessCounter},
    wire::Transport,
};

/// How often cores' news are looked at.
const TURN: Duration = Duration::from_millis(100);
/// Lines in the log of one second.
const LINES: u32 = 10;
/// NOTIFYs and REGISTERs that wait for their answer, and of `own_requests` no more than half, so that other requests of
/// ours have room. What is beyond it waits its turn.
const ASKED: usize = 256;

/// One event, as its receivers see it: JSON with these names.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Event {
    /// Of this event alone, and the same whenever it is sent again.
    pub id: String,
    /// When the connection ended, in seconds since 1970.
    pub time: u64,
    /// `router_id` of `[tokens]`.
    pub router: u8,
    /// `sip:user@domain`. What is not printable ASCII is escaped, here and in `contact`.
    pub aor: String,
    /// The URI of his Contact; empty where he gave none.
    pub contact: String,
    pub peer: SocketAddr,
    /// Name of the listener.
    pub listener: String,
    pub transport: &'static str,
    /// Why it ended, as `tidings_connections_closed_total` labels it: peer, reset, lost, idle, …
    pub reason: &'static str,
    /// How long it was open, in seconds.
    pub duration: f64,
}

/// A user who may come back yet.
struct Pending {
    user: User,
    gone: Arc<Ended>,
}

/// The connection, without its users.
struct Ended {
    gone: Gone,
    due_ms: u64,
}

impl Pending {
    fn is_back(&self, router: &Router, now: Now) -> bool {
        let gone = &self.gone.gone;
        router.shared.users.is_back(&self.user, gone.id, gone.heard_ms, now)
    }
}

/// Who may come back yet, and where events go.
pub struct FlowEvents {
    pending: Mutex<VecDeque<Pending>>,
    lines: Mutex<Lines>,
    desk: Option<Arc<Desk>>,
}

/// What is to be said by SIP, bounded as `live::Users` bounds what is known of a user.
enum Saying {
    /// With this body.
    Notify(String),
    Deregister(Pending),
}

impl FlowEvents {
    /// Opens the spool; `Err` where what an earlier run left cannot be read.
    pub fn new(
        settings: &Settings,
        process: &Arc<Process>,
        state_dir: Option<&StateDir>,
    ) -> Result<FlowEvents, StartError> {
        let desk = match &settings.flow_events.webhook {
            None => None,
            Some(hook) => {
                let spool =
                    Spool::open(state_dir, hook.spool).map_err(|error| StartError::Spool { error })?;
                if state_dir.is_none() {
                    tracing::warn!(
                        "no state_dir: flow events that wait for the webhook end with this router"
                    );
                }
                Some(Arc::new(Desk::new(spool, hook.spool, process.clone())))
            }
        };
        Ok(FlowEvents { pending: Mutex::default(), lines: Mutex::default(), desk })
    }

    /// What has ended meanwhile, and whose time to come back is over: of all, where the router ends.
    fn turn(&self, router: &Router, ends: bool, now: Now) -> Vec<(Pending, Event)> {
        let delay_ms = router.settings.flow_events.delay.as_millis() as u64;
        let mut pending = self.pending.lock();
        for mut gone in router.shared.news.take_gone() {
            let users = std::mem::take(&mut gone.users);
            let due_ms = gone.at.mono_ms + delay_ms;
            let gone = Arc::new(Ended { gone, due_ms });
            pending.extend(users.into_iter().map(|user| Pending { user, gone: gone.clone() }));
        }
        let due = pending.partition_point(|pending| ends || pending.gone.due_ms <= now.mono_ms);
        // Beyond the room for news the oldest are not waited for.
        let due = due.max(pending.len().saturating_sub(router.settings.limits.news));
        let lost: Vec<_> = pending.drain(..due).filter_map(|pending| lost(router, pending, now)).collect();
        drop(pending);
        if router.settings.flow_events.log {
            let mut lines = self.lines.lock();
            lost.iter().for_each(|(_, event)| lines.log(router, event, now));
        }
        if let Some(desk) = self.desk.as_ref().filter(|_| !lost.is_empty()) {
            tokio::task::block_in_place(|| desk.push(lost.iter().map(|(_, event)| json(event))));
        }
        lost
    }

    /// The router ends: whose time is not over has it no more. What the webhook does not get now waits on the disk.
    pub fn finish(&self, router: &Router) {
        self.turn(router, true, net::now());
    }
}

/// Runs as long as the router.
pub async fn watch(router: Arc<Router>) {
    let settings = &router.settings.flow_events;
    if let Some(NotifyTo::Pool(name)) = &settings.notify
        && !router.tables.spec().pools.iter().any(|pool| pool.name == *name)
    {
        tracing::warn!(pool = %name, "[flow_events] notify: the table has no such pool; until it has, nobody is notified");
    }
    let (sayings, waiting) = mpsc::channel(router.settings.limits.news);
    let look = async {
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            let now = net::now();
            router.own.turn(&router.shared.news, now);
            for (user, event) in router.flow_events.turn(&router, false, now) {
                tell(&router, user, &event, &sayings);
            }
        }
    };
    // Either is nothing without the other.
    tokio::join!(look, say_in_turn(router.clone(), waiting));
}

/// Brings the webhook's receiver what waits for it; at once over where there is none.
pub async fn deliver(router: Arc<Router>) {
    if let (Some(hook), Some(desk)) = (&router.settings.flow_events.webhook, &router.flow_events.desk) {
        webhook::deliver(hook.clone(), desk.clone()).await;
    }
}

/// The event of a user who is not back.
fn lost(router: &Router, pending: Pending, now: Now) -> Option<(Pending, Event)> {
    let (user, gone) = (&pending.user, &pending.gone.gone);
    if pending.is_back(router, now) {
        router.process.add(ProcessCounter::FlowEventsReturned, 1);
        return None;
    }
    router.process.add(ProcessCounter::FlowEventsTold, 1);
    let listener = router.setup.listener(gone.listener);
    let event = Event {
        id: format!("{:016x}{:016x}", router.own.word(), router.own.word()),
        time: gone.at.unix_s,
        router: router.setup.router,
        aor: address_of_record(&user.uri).escape_ascii().to_string(),
        contact: user.contact.escape_ascii().to_string(),
        peer: gone.peer,
        listener: listener.name.clone(),
        transport: listener.transport.label(),
        reason: gone.reason,
        duration: gone.at.mono_ms.saturating_sub(gone.opened_ms) as f64 / 1000.0,
    };
    Some((pending, event))
}

fn json(event: &Event) -> String {
    // Strings and numbers: nothing in it can fail.
    serde_json::to_string(event).unwrap_or_default()
}

/// By SIP, as far as is asked for. What there is no room for is not said.
fn tell(router: &Router, pending: Pending, event: &Event, sayings: &mpsc::Sender<Saying>) {
    let settings = &router.settings.flow_events;
    if settings.notify.is_some() && sayings.try_send(Saying::Notify(json(event))).is_err() {
        router.process.add(ProcessCounter::NotifyFull, 1);
    }
    if settings.deregister
        && pending.user.is_registered()
        && sayings.try_send(Saying::Deregister(pending)).is_err()
    {
        router.process.add(ProcessCounter::DeregisterFull, 1);
    }
}

/// Says what waits, in its order, so many at a time as may wait for their answers.
async fn say_in_turn(router: Arc<Router>, mut waiting: mpsc::Receiver<Saying>) {
    let most = ASKED.min(router.settings.limits.own_requests / 2).max(1);
    let asked = Arc::new(Semaphore::new(most));
    while let Some(saying) = waiting.recv().await {
        // Nobody closes it.
        let Ok(permit) = asked.clone().acquire_owned().await else { return };
        let router = router.clone();
        tokio::spawn(async move {
            let _permit = permit;
            router.process.add(say(&router, saying).await, 1);
        });
    }
}

/// Says one thing; gives what became of it.
async fn say(router: &Router, saying: Saying) -> ProcessCounter {
    let is_good = |outcome| matches!(outcome, Some(Outcome::Answered(200..=299)));
    match saying {
        Saying::Notify(body) => match &router.settings.flow_events.notify {
            Some(to) if is_good(notify(router, to, &body).await) => ProcessCounter::NotifySuccess,
            _ => ProcessCounter::NotifyFailed,
        },
        // Who came back while it waited may have the same Contact.
        Saying::Deregister(pending) if pending.is_back(router, net::now()) => {
            ProcessCounter::DeregisterReturned
        }
        Saying::Deregister(pending) if is_good(deregister(router, &pending.user).await) => {
            ProcessCounter::DeregisterSuccess
        }
        Saying::Deregister(_) => ProcessCounter::DeregisterFailed,
    }
}

/// `None`: there is nobody to be asked.
async fn notify(router: &Router, to: &NotifyTo, body: &str) -> Option<Outcome> {
    let (way, uri) = match to {
        NotifyTo::Uri { uri, address, transport } => (way_to(router, *address, *transport)?, uri.clone()),
        NotifyTo::Pool(name) => {
            let table = router.tables.current().load_full();
            let mut backends = table.pools.backends();
            let (_, backend) = backends
                .find(|(at, backend)| *table.pools.pool(at.pool).name == **name && backend.takes_new())?;
            (router.own.to_backend(backend), backend.uri.to_string())
        }
    };
    let headers = "Event: tidings-flow\r\nSubscription-State: active\r\nContent-Type: application/json\r\n";
    let ask = Ask { method: "NOTIFY", uri: &uri, from: "", to: "", headers, body };
    Some(router.own.ask(&way, &ask).await)
}

/// To a backend where one is listed at that address, else to whoever is there.
fn way_to(router: &Router, address: SocketAddr, transport: Transport) -> Option<Way> {
    let table = router.tables.current().load_full();
    match table.pools.by_address(address, transport) {
        Some(at) => Some(router.own.to_backend(table.pools.backend(at))),
        None => router.own.to_address(address, transport),
    }
}

/// REGISTER with Expires 0 (RFC 3261 10.2.2), to the backend that took the registration.
async fn deregister(router: &Router, user: &User) -> Option<Outcome> {
    let (address, transport) = user.owner?;
    let table = router.tables.current().load_full();
    let way = router.own.to_backend(table.pools.backend(table.pools.by_address(address, transport)?));
    let text = |bytes: &[u8]| plain(bytes).map(str::to_owned);
    let aor = text(address_of_record(&user.uri))?;
    let contact = text(&user.contact).filter(|contact| !contact.is_empty())?;
    let headers = format!("Contact: <{contact}>;expires=0\r\nExpires: 0\r\n");
    let uri = format!("sip:{}", aor.rsplit_once('@')?.1);
    let ask = Ask { method: "REGISTER", uri: &uri, from: &aor, to: &aor, headers: &headers, body: "" };
    Some(router.own.ask(&way, &ask).await)
}

/// A URI without its parameters.
fn address_of_record(uri: &[u8]) -> &[u8] {
    let host = uri.iter().rposition(|b| *b == b'@').unwrap_or(0);
    let end = uri[host..].iter().position(|b| b";?".contains(b));
    &uri[..end.map_or(uri.len(), |end| host + end)]
}

/// What may stand between angle brackets in a header as it is: phones write it.
fn plain(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"".contains(&b)).then_some(text)
}

/// The lines of one second.
#[derive(Default)]
struct Lines {
    second: u64,
    written: u32,
}

impl Lines {
    fn log(&mut self, router: &Router, event: &Event, now: Now) {
        if self.second != now.unix_s {
            *self = Lines { second: now.unix_s, written: 0 };
        }
        self.written += 1;
        if self.written > LINES {
            return router.process.add(ProcessCounter::FlowLinesSuppressed, 1);
        }
        let Event { id, aor, contact, peer, listener, transport, reason, duration, .. } = event;
        tracing::info!(
            %id, %aor, %contact, %peer, %listener, transport, reason, duration,
            "a user's connection ended without a goodbye"
        );
    }
}

impl Router {
    /// Requests of our own.
    pub fn own(&self) -> &Own {
        &self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_phones_write_gets_into_no_header_that_it_could_break() {
        assert_eq!(plain(b"sip:alice@10.0.0.1;transport=tcp"), Some("sip:alice@10.0.0.1;transport=tcp"));
        assert_eq!(address_of_record(b"sip:a;b@example.com;user=phone?x=y"), b"sip:a;b@example.com");
        assert_eq!(address_of_record(b"sip:example.com;x"), b"sip:example.com");
        for bad in [&b"sip:a>b"[..], b"sip:a\r\nX: y", b"sip:a b", b"sip:\xff", b"sip:a\"b"] {
            assert_eq!(plain(bad), None);
        }
    }
}
