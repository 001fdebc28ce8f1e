//! Who does what in the demo, what must come of it, and the summary.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{self, Instant},
};

use super::{
    DOMAIN,
    account::{Account, Failure},
    document::{PACKAGES, State},
    journal::{Count, Journal},
    pbx::Pbx,
    phone::{Phone, Watch},
    publisher::{Publication, Publisher},
};
use crate::control::Running;

/// Min-Expires of the PBXs, in seconds.
pub const SHORTEST: u32 = 3;
/// What phones ask for.
const EXPIRES: u32 = 10;
/// What the publisher asks for.
const PUBLISH_EXPIRES: u32 = 15;
/// Between two PUBLISHes.
const PACE: Duration = Duration::from_millis(400);
/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(3);
/// Unknown to the PBXs: they answer 489 themselves.
const UNKNOWN_PACKAGE: &str = "weather";
/// Answered by the table.
pub const REFUSED_PACKAGE: &str = "conference";

/// A package, and the users whose state in it is watched.
type Watched = (&'static str, &'static [&'static str]);

/// Who watches what.
const WATCHERS: [(&str, &[Watched]); 3] = [
    ("2001", &[("presence", &["1001", "1002", "1003", "1004", "1005", "1006"])]),
    ("2002", &[("dialog", &["1001", "1002", "1003"]), ("presence", &["1001"])]),
    ("2003", &[("message-summary", &["2003"]), ("presence", &["1004", "1005"])]),
];

/// What all of them share.
#[derive(Clone)]
struct Stage {
    journal: Arc<Journal>,
    proxy: SocketAddr,
    /// True once it is time to clear up.
    end: watch::Receiver<bool>,
}

/// Plays until `length` is over or Ctrl-C; true where everything happened that should.
pub async fn play(
    journal: &Arc<Journal>,
    running: &Running,
    pbxs: &[Pbx],
    proxy: SocketAddr,
    length: Option<Duration>,
) -> io::Result<bool> {
    let (end, ended) = watch::channel(false);
    let stage = Stage { journal: journal.clone(), proxy, end: ended };
    let began = Instant::now();
    let mut tasks = vec![tokio::spawn(stage.clone().publisher())];
    for (user, watched) in WATCHERS {
        tasks.push(tokio::spawn(stage.clone().watcher(user, watched)));
    }
    tasks.push(tokio::spawn(stage.clone().forgetful()));
    tasks.push(tokio::spawn(stage.clone().curious()));
    let rates = rates(journal, running);
    let over = tokio::select! {
        over = until(length) => over,
        () = rates => Ok(()),
        () = journal.unread() => Ok(()),
    };
    over?;
    let lasted = began.elapsed();
    journal.print(format_args!(""));
    journal.say("demo", format_args!("clearing up: publications are removed, subscriptions ended"));
    // Fails only where every task is gone already.
    let _ = end.send(true);
    for task in tasks {
        finish(journal, task).await;
    }
    journal.print(format_args!(""));
    Ok(summary(journal, running, pbxs, lasted))
}

/// Waits for Ctrl-C or SIGTERM, at most `length`.
async fn until(length: Option<Duration>) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = time::sleep(length.unwrap_or(Duration::MAX)) => {}
    }
    Ok(())
}

/// A task that does not end, or has panicked, is a failure.
async fn finish(journal: &Journal, mut task: JoinHandle<io::Result<()>>) {
    match time::timeout(SOON * 2, &mut task).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => journal.fail("demo", format_args!("a socket: {error}")),
        Ok(Err(error)) => journal.fail("demo", format_args!("{error}")),
        Err(_) => {
            task.abort();
            journal.fail("demo", format_args!("a phone or publisher did not come to its end"));
        }
    }
}

impl Stage {
    fn account(&self, user: &str) -> Account {
        Account { user: user.to_owned(), domain: DOMAIN.to_owned(), proxy: self.proxy }
    }

    async fn phone(&self, user: &str) -> io::Result<Phone> {
        Phone::start(anywhere(), self.account(user), self.journal.clone()).await
    }

    /// Once it is time to clear up.
    async fn ended(&self) {
        let mut end = self.end.clone();
        // An error: the play itself is over.
        drop(end.wait_for(|end| *end).await);
    }

    /// Sleeps; true where the end came meanwhile.
    async fn sleep(&self, length: Duration) -> bool {
        time::timeout(length, self.ended()).await.is_ok()
    }

    /// Subscribes; the first NOTIFY must come at once.
    async fn watch(&self, phone: &Phone, package: &str, resource: &str, seconds: u32) -> Option<Watch> {
        let who = format!("phone {}", phone.user());
        self.journal.say(&who, format_args!("-> SUBSCRIBE {package} of {resource} for {seconds} s"));
        let watch = match phone.subscribe(resource, package, seconds).await {
            Ok(watch) => watch,
            Err(failure) => {
                self.journal.fail(&who, format_args!("SUBSCRIBE {package} of {resource}: {failure}"));
                return None;
            }
        };
        if phone.wait(&watch, SOON, |_| true).await.is_none() {
            self.journal.fail(&who, format_args!("no NOTIFY of {package} of {resource}"));
        }
        Some(watch)
    }

    /// Unsubscribes; the last NOTIFY must come at once.
    async fn unwatch(&self, phone: &Phone, watch: &Watch) {
        let who = format!("phone {}", phone.user());
        if let Err(failure) = phone.unsubscribe(watch).await {
            self.journal.fail(&who, format_args!("could not unsubscribe: {failure}"));
        } else if phone.wait(watch, SOON, |n| n.status == "terminated").await.is_none() {
            self.journal.fail(&who, format_args!("no last NOTIFY"));
        }
    }

    /// A phone that keeps its subscriptions, and ends them in the end.
    async fn watcher(self, user: &str, watched: &[(&str, &[&str])]) -> io::Result<()> {
        let phone = self.phone(user).await?;
        let mut watches = Vec::new();
        for (package, resources) in watched {
            for resource in *resources {
                if let Some(watch) = self.watch(&phone, package, resource, EXPIRES).await {
                    phone.keep(&watch, EXPIRES);
                    watches.push(watch);
                }
            }
        }
        self.sleep(Duration::MAX).await;
        phone.stop_keeping();
        for watch in &watches {
            self.unwatch(&phone, watch).await;
        }
        Ok(())
    }

    /// A phone that never refreshes: its subscription times out, and it subscribes again a while later.
    async fn forgetful(self) -> io::Result<()> {
        let phone = self.phone("2004").await?;
        let limit = Duration::from_secs(SHORTEST.into()) + SOON;
        while !*self.end.borrow() {
            let Some(watch) = self.watch(&phone, "presence", "1002", SHORTEST).await else { return Ok(()) };
            let over = tokio::select! {
                over = phone.wait(&watch, limit, |n| n.status == "terminated") => over,
                () = self.ended() => {
                    self.unwatch(&phone, &watch).await;
                    return Ok(());
                }
            };
            match over.and_then(|notification| notification.reason) {
                Some(reason) if reason == "timeout" => self.journal.count(Count::Timeouts),
                _ => self.journal.fail("phone 2004", format_args!("no NOTIFY terminated;reason=timeout")),
            }
            phone.forget(&watch);
            self.sleep(SOON).await;
        }
        Ok(())
    }

    /// A phone that asks for what it cannot have, and for too little.
    async fn curious(self) -> io::Result<()> {
        let phone = self.phone("2005").await?;
        for package in [UNKNOWN_PACKAGE, REFUSED_PACKAGE] {
            self.journal.say("phone 2005", format_args!("-> SUBSCRIBE {package} of 1003"));
            match phone.subscribe("1003", package, EXPIRES).await {
                Err(Failure::Refused(answer)) if answer.code() == 489 => {
                    self.journal.count(Count::BadEvents);
                    let by = answer.field("Server").unwrap_or("the router");
                    let allowed = answer.field("Allow-Events").unwrap_or("(none named)");
                    self.journal.say("phone 2005", format_args!("<- 489 from {by}, Allow-Events: {allowed}"));
                }
                Err(failure) => {
                    self.journal.fail("phone 2005", format_args!("{package}: {failure}, not 489"))
                }
                Ok(_) => self.journal.fail("phone 2005", format_args!("{package} was granted, not 489")),
            }
        }
        let Some(watch) = self.watch(&phone, "presence", "1003", 1).await else { return Ok(()) };
        self.unwatch(&phone, &watch).await;
        Ok(())
    }

    /// Changes one state after the other, refreshes each seventh time, and tries a stale entity-tag once.
    async fn publisher(self) -> io::Result<()> {
        let publisher = Publisher::start(anywhere(), self.account("3000"), self.journal.clone()).await?;
        let mut publications = Vec::new();
        for package in PACKAGES {
            let watched =
                WATCHERS.iter().flat_map(|(_, watched)| *watched).filter(|(own, _)| *own == package);
            let mut resources: Vec<&str> = watched.flat_map(|(_, resources)| *resources).copied().collect();
            resources.sort_unstable();
            resources.dedup();
            publications
                .extend(resources.iter().map(|user| Publication::new(user, package, PUBLISH_EXPIRES)));
        }
        let count = publications.len();
        let mut turn = 0;
        while !self.sleep(PACE).await {
            let publication = &mut publications[turn % count];
            let change = turn as u64 + 1;
            let refresh = change.is_multiple_of(7) && publication.etag.is_some();
            if change == 2 * count as u64 - 3 {
                self.journal.say("publisher", format_args!("forgets an entity-tag and makes one up"));
                publication.etag = Some("made-up".to_owned());
            }
            let state = State::new(State::word_of(&publication.package, turn / count), change);
            let (package, resource) = (publication.package.clone(), publication.resource.clone());
            let what = if refresh { "(refresh)" } else { &state.word };
            self.journal.say("publisher", format_args!("-> PUBLISH {package} of {resource}: {what}"));
            let outcome = match refresh {
                true => publisher.refresh(publication).await,
                false => publisher.change(publication, &state).await,
            };
            if let Err(failure) = outcome {
                self.journal.fail("publisher", format_args!("PUBLISH {package} of {resource}: {failure}"));
                publication.etag = None;
            }
            turn += 1;
        }
        for publication in publications.iter_mut().filter(|publication| publication.etag.is_some()) {
            if let Err(failure) = publisher.remove(publication).await {
                self.journal.fail("publisher", format_args!("removal: {failure}"));
            }
        }
        Ok(())
    }
}

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Tells each second what the router took and sent in it. Never ends.
async fn rates(journal: &Journal, running: &Running) {
    let mut second = time::interval(Duration::from_secs(1));
    second.tick().await;
    let mut before = messages(running);
    loop {
        second.tick().await;
        let now = messages(running);
        let (received, sent) = (now.0 - before.0, now.1 - before.1);
        journal.say("router", format_args!("== {received} messages in, {sent} out in this second"));
        before = now;
    }
}

/// Messages received and sent, as `/metrics` has them.
fn messages(running: &Running) -> (u64, u64) {
    let text = running.router().metrics();
    let sum = |direction: &str| {
        let lines = text.lines().filter(|line| line.starts_with("tidings_messages_total{"));
        let lines = lines.filter(|line| line.contains(direction));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    (sum("direction=\"in\""), sum("direction=\"out\""))
}

/// Prints what was done; true where it was all that was to be expected.
fn summary(journal: &Journal, running: &Running, pbxs: &[Pbx], lasted: Duration) -> bool {
    let print = |line: fmt::Arguments<'_>| journal.print(line);
    let total = |what| journal.total(what);
    let (received, sent) = messages(running);
    let (timed, [half, most, nearly, all]) = journal.delays([0.5, 0.9, 0.99, 1.0]);
    print(format_args!("Summary of {:.1} s", lasted.as_secs_f64()));
    print(format_args!("  router         {received} messages in, {sent} out"));
    print(format_args!(
        "  subscriptions  {} made, {} refreshed, {} ended, {} timed out (on purpose)",
        total(Count::Subscriptions),
        total(Count::Refreshes),
        total(Count::Unsubscriptions),
        total(Count::Timeouts)
    ));
    print(format_args!("  NOTIFYs        {}", total(Count::Notifies)));
    print(format_args!(
        "  publications   {} changes, {} refreshes, {} stale entity-tags (412, published afresh)",
        total(Count::Publications),
        total(Count::PublishRefreshes),
        total(Count::StaleTags)
    ));
    print(format_args!(
        "  refused        {} x 489, {} x 423 (on purpose)",
        total(Count::BadEvents),
        total(Count::TooBrief)
    ));
    for pbx in pbxs {
        let counts = pbx.counts();
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        print(format_args!(
            "  {}           {} subscriptions, {} publications, {} NOTIFYs",
            pbx.name(),
            count(&counts.subscribes),
            count(&counts.publishes),
            count(&counts.notifies)
        ));
    }
    let ms = |micros: u64| micros as f64 / 1000.0;
    print(format_args!(
        "  PUBLISH to NOTIFY, {timed} timed: half within {:.2} ms, 90 % {:.2}, 99 % {:.2}, all {:.2}",
        ms(half),
        ms(most),
        ms(nearly),
        ms(all)
    ));
    let missing = missing(journal, pbxs, timed, lasted);
    missing.iter().for_each(|what| print(format_args!("  MISSING        {what}")));
    let failures = total(Count::Failures);
    print(format_args!("  failures       {failures}"));
    failures == 0 && missing.is_empty()
}

/// What had time to happen and did not.
fn missing(journal: &Journal, pbxs: &[Pbx], timed: u64, lasted: Duration) -> Vec<&'static str> {
    let seconds = lasted.as_secs();
    let expected = [
        (Count::Subscriptions, 1, "a subscription"),
        (Count::Notifies, 1, "a NOTIFY"),
        (Count::BadEvents, 1, "489"),
        (Count::TooBrief, 1, "423"),
        (Count::Publications, 2, "a publication"),
        (Count::PublishRefreshes, 7, "a refresh of a publication"),
        (Count::Timeouts, 7, "a subscription that times out"),
        (Count::Refreshes, 8, "a refresh of a subscription"),
        (Count::StaleTags, 9, "412"),
    ];
    let late = expected.iter().filter(|(what, from, _)| seconds >= *from && journal.total(*what) == 0);
    let mut missing: Vec<_> = late.map(|(_, _, what)| *what).collect();
    if seconds >= 5 && timed == 0 {
        missing.push("a NOTIFY that a PUBLISH caused");
    }
    if seconds >= 5 && pbxs.iter().any(|pbx| pbx.counts().subscribes.load(Ordering::Relaxed) == 0) {
        missing.push("a PBX that takes part");
    }
    missing
}
