//! The peers of the demo against each other, without the router: what the demo shows, and what tests use as a backend,
//! must itself keep RFC 6665 and RFC 3903.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use tidings::cli::demo::{
    Account, Behaviour, Count, Endpoint, Failure, Journal, Message, Notification, Pbx, Phone, Publication,
    Publisher, State,
};

const SOON: Duration = Duration::from_secs(5);

struct Peers {
    journal: Arc<Journal>,
    pbx: Pbx,
    phone: Phone,
    publisher: Publisher,
}

fn account(user: &str, proxy: SocketAddr) -> Account {
    Account { user: user.to_owned(), domain: "pbx.example".to_owned(), proxy }
}

/// Each test has its own /24.
async fn peers(net: u8, behaviour: Behaviour) -> Peers {
    let journal = Arc::new(Journal::new(false));
    let at = |host, port| SocketAddr::from(([127, 91, net, host], port));
    let pbx = Pbx::start(at(11, 5060), "pbx1", behaviour, journal.clone()).await.expect("its own address");
    let account = |user| account(user, pbx.address());
    let phone = Phone::start(at(1, 5060), account("2001"), journal.clone()).await.expect("its own address");
    let publisher =
        Publisher::start(at(2, 5060), account("1001"), journal.clone()).await.expect("its own address");
    Peers { journal, pbx, phone, publisher }
}

fn is_over(notification: &Notification) -> bool {
    notification.status == "terminated"
}

/// A message to a PBX as nobody well-behaved sends it, and its answer.
async fn ask(from: SocketAddr, to: SocketAddr, message: Message) -> Message {
    let endpoint = Endpoint::bind(from).await.expect("its own address");
    tokio::select! {
        answer = endpoint.request(to, message) => answer.expect("an answer"),
        _ = endpoint.receive() => panic!("a request"),
        () = tokio::time::sleep(SOON) => panic!("no answer in time"),
    }
}

#[tokio::test]
async fn rfc6665_a_subscription_is_notified_at_once_refreshed_and_ended() {
    let Peers { journal, pbx, phone, .. } = peers(1, Behaviour::default()).await;
    let watch = phone.subscribe("1001", "presence", 60).await.expect("granted");
    let first = phone.wait(&watch, SOON, |_| true).await.expect("a NOTIFY at once");
    assert_eq!((first.status.as_str(), first.state.word.as_str()), ("active", "closed"));
    assert_eq!(first.notifier, "pbx1");
    assert_eq!(first.peer, pbx.address());
    assert_eq!(phone.refresh(&watch, 30).await.expect("refreshed"), 30);
    let second =
        phone.wait(&watch, SOON, |n| n.message.cseq() > first.message.cseq()).await.expect("a NOTIFY");
    assert!(second.message.field("Subscription-State").is_some_and(|s| s.starts_with("active;expires=")));
    phone.unsubscribe(&watch).await.expect("ended");
    let last = phone.wait(&watch, SOON, is_over).await.expect("a last NOTIFY");
    assert_eq!(last.reason.as_deref(), Some("timeout"));
    assert!(matches!(phone.refresh(&watch, 30).await, Err(Failure::Unknown)));
    let counts = pbx.counts();
    assert_eq!((counts.subscribes.load(Relaxed), counts.refreshes.load(Relaxed)), (1, 1));
    assert_eq!((counts.unsubscribes.load(Relaxed), counts.notifies.load(Relaxed)), (1, 3));
    assert_eq!((pbx.subscriptions(), journal.total(Count::Failures)), (0, 0));
}

#[tokio::test]
async fn rfc6665_a_subscription_that_is_not_refreshed_ends_with_reason_timeout() {
    let Peers { journal, pbx, phone, .. } = peers(2, Behaviour::default()).await;
    let watch = phone.subscribe("1001", "dialog", 1).await.expect("granted");
    let last = phone.wait(&watch, SOON, is_over).await.expect("a last NOTIFY");
    assert_eq!(last.reason.as_deref(), Some("timeout"));
    assert_eq!((pbx.subscriptions(), pbx.counts().timeouts.load(Relaxed)), (0, 1));
    assert_eq!(journal.total(Count::Failures), 0);
}

#[tokio::test]
async fn a_kept_subscription_outlives_its_expires() {
    let Peers { journal, pbx, phone, .. } = peers(3, Behaviour::default()).await;
    let watch = phone.subscribe("1001", "message-summary", 1).await.expect("granted");
    phone.keep(&watch, 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(journal.total(Count::Refreshes) >= 3);
    assert_eq!((pbx.subscriptions(), journal.total(Count::Failures)), (1, 0));
    assert!(!phone.notifications(&watch).iter().any(is_over));
}

#[tokio::test]
async fn rfc3903_a_publication_is_notified_changed_refreshed_and_removed() {
    let Peers { journal, pbx, phone, publisher } = peers(4, Behaviour::default()).await;
    let presence = phone.subscribe("1001", "presence", 60).await.expect("granted");
    let other = phone.subscribe("1002", "presence", 60).await.expect("granted");
    assert!(phone.wait(&presence, SOON, |_| true).await.is_some());
    let mut publication = Publication::new("1001", "presence", 60);
    let mut tags = Vec::new();
    for change in 1..=3 {
        let state = State::new(if change == 2 { "closed" } else { "open" }, change);
        publisher.change(&mut publication, &state).await.expect("published");
        phone.wait(&presence, SOON, |n| n.state == state).await.expect("a NOTIFY of the change");
        tags.push(publication.etag.clone().expect("a tag"));
    }
    publisher.refresh(&mut publication).await.expect("refreshed");
    tags.push(publication.etag.clone().expect("a tag"));
    tags.dedup();
    assert_eq!(tags.len(), 4, "a new entity-tag each time");
    assert_eq!(pbx.publications(), 1);
    publisher.remove(&mut publication).await.expect("removed");
    phone
        .wait(&presence, SOON, |n| n.state.change == 0 && n.message.cseq() > Some((4, "")))
        .await
        .expect("a NOTIFY");
    assert_eq!(pbx.publications(), 0);
    assert_eq!(phone.notifications(&other).len(), 1, "another presentity is not disturbed");
    assert_eq!(phone.notifications(&presence).len(), 5, "a refresh changes nothing");
    assert_eq!((journal.delays([0.5]).0, journal.total(Count::Failures)), (3, 0));
}

#[tokio::test]
async fn rfc3903_a_publication_that_is_not_refreshed_is_forgotten() {
    let Peers { pbx, phone, publisher, .. } = peers(5, Behaviour::default()).await;
    let watch = phone.subscribe("1001", "presence", 60).await.expect("granted");
    let mut publication = Publication::new("1001", "presence", 1);
    publisher.change(&mut publication, &State::new("open", 1)).await.expect("published");
    phone.wait(&watch, SOON, |n| n.state.change == 1).await.expect("a NOTIFY");
    let closed =
        |n: &Notification| n.state.change == 0 && n.message.cseq().is_some_and(|(number, _)| number > 2);
    phone.wait(&watch, SOON, closed).await.expect("a NOTIFY of its end");
    assert_eq!(pbx.publications(), 0);
    let refused = publisher.refresh(&mut publication).await.expect_err("its tag is gone");
    assert_eq!(refused.code(), 412);
}

#[tokio::test]
async fn rfc3903_an_unknown_entity_tag_is_412_and_the_publisher_begins_anew() {
    let Peers { journal, publisher, pbx: _pbx, .. } = peers(6, Behaviour::default()).await;
    let mut publication = Publication::new("1001", "presence", 60);
    publisher.change(&mut publication, &State::new("open", 1)).await.expect("published");
    // A tag is good for its own resource and package only.
    let mut stolen = Publication { resource: "1002".to_owned(), ..publication.clone() };
    assert_eq!(publisher.refresh(&mut stolen).await.expect_err("not its own").code(), 412);
    let mut stolen = Publication { package: "dialog".to_owned(), ..publication.clone() };
    assert_eq!(publisher.remove(&mut stolen).await.expect_err("not its own").code(), 412);
    publication.etag = Some("made-up".to_owned());
    publisher.change(&mut publication, &State::new("closed", 2)).await.expect("published afresh");
    assert_eq!(journal.total(Count::StaleTags), 1);
    assert!(publication.etag.is_some_and(|etag| etag != "made-up"));
}

#[tokio::test]
async fn what_a_pbx_refuses_it_refuses_with_the_header_that_helps() {
    let behaviour =
        Behaviour { shortest: 5, packages: vec!["presence".to_owned(), "dialog".to_owned()], longest: 60 };
    let Peers { journal, pbx, phone, publisher } = peers(7, behaviour).await;
    for package in ["weather", "message-summary"] {
        let Err(Failure::Refused(answer)) = phone.subscribe("1001", package, 60).await else {
            panic!("granted")
        };
        assert_eq!((answer.code(), answer.field("Allow-Events")), (489, Some("presence, dialog")));
        let mut publication = Publication::new("1001", package, 60);
        let refused = publisher.change(&mut publication, &State::new("yes", 1)).await.expect_err("unknown");
        assert_eq!(refused.code(), 489);
    }
    let watch = phone.subscribe("1001", "presence", 1).await.expect("granted on the second try");
    let mut publication = Publication::new("1001", "presence", 1);
    publisher.change(&mut publication, &State::new("open", 1)).await.expect("published on the second try");
    assert_eq!((journal.total(Count::TooBrief), publication.expires), (2, 5));
    assert_eq!(phone.refresh(&watch, 4).await.expect_err("too brief").code(), 423);
    assert_eq!(phone.refresh(&watch, 600).await.expect("cut"), 60);
    let empty = Publication::new("1002", "presence", 60);
    assert_eq!(publisher.refresh(&mut empty.clone()).await.expect_err("no body").code(), 400);

    let account = account("2009", pbx.address());
    let at = |host| SocketAddr::from(([127, 91, 7, host], 5060));
    let text =
        account.request("PUBLISH", "1001", "a").with("Event", "presence").with_body("text/plain", "x".into());
    let answer = ask(at(21), pbx.address(), text).await;
    assert_eq!((answer.code(), answer.field("Accept")), (415, Some("application/pidf+xml")));
    let mut foreign = account
        .request("SUBSCRIBE", "1001", "a")
        .with("Event", "presence")
        .with("Contact", "<sip:x@127.91.7.22>");
    foreign.set("To", "<sip:1001@pbx.example>;tag=nobody");
    assert_eq!(ask(at(22), pbx.address(), foreign).await.code(), 481);
    let options = ask(at(23), pbx.address(), account.request("OPTIONS", "1001", "a")).await;
    assert!(options.code() == 200 && options.field("Allow").is_some_and(|allow| allow.contains("PUBLISH")));
    assert_eq!(ask(at(24), pbx.address(), account.request("INVITE", "1001", "a")).await.code(), 405);
}

#[tokio::test]
async fn rfc6665_4_2_2_a_subscriber_that_refuses_its_notify_is_forgotten() {
    let Peers { pbx, .. } = peers(8, Behaviour::default()).await;
    let address = SocketAddr::from(([127, 91, 8, 1], 5062));
    let gone = Endpoint::bind(address).await.expect("its own address");
    let account = account("2002", pbx.address());
    let subscribe = account
        .request("SUBSCRIBE", "1001", "gone")
        .with("Event", "presence;id=7")
        .with("Contact", &format!("<sip:2002@{address}>"))
        .with("Record-Route", &format!("<sip:{address};lr;token=a>, <sip:192.0.2.1;lr>"));
    let notified = async {
        let incoming = gone.receive().await;
        gone.respond(&incoming, &incoming.message.reply(481, "No", "x")).await;
        incoming.message
    };
    // The NOTIFY may be read before the 200, but both are read by `receive`.
    let both = async { tokio::join!(gone.request(pbx.address(), subscribe), notified) };
    let (answer, notify) = tokio::time::timeout(SOON, both).await.expect("in time");
    let answer = answer.expect("a 200");
    assert_eq!(
        answer.values("Record-Route"),
        [format!("<sip:{address};lr;token=a>"), "<sip:192.0.2.1;lr>".into()]
    );
    assert_eq!(notify.values("Route"), answer.values("Record-Route"), "the notifier keeps their order");
    assert_eq!((notify.field("Event"), notify.from_tag()), (Some("presence;id=7"), answer.to_tag()));
    assert_eq!(notify.uri(), format!("sip:2002@{address}"));
    for _ in 0..50 {
        if pbx.subscriptions() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((pbx.subscriptions(), pbx.counts().notify_failures.load(Relaxed)), (0, 1));
}

#[tokio::test]
async fn rfc3261_17_1_2_an_unanswered_notify_is_sent_again() {
    let Peers { pbx, .. } = peers(9, Behaviour::default()).await;
    let deaf = tokio::net::UdpSocket::bind("127.91.9.1:5062").await.expect("its own address");
    let account = account("2002", pbx.address());
    let subscribe = account
        .request("SUBSCRIBE", "1001", "deaf")
        .with("Via", "SIP/2.0/UDP 127.91.9.1:5062;branch=z9hG4bKdeaf")
        .with("Event", "presence")
        .with("Contact", "<sip:2002@127.91.9.1:5062>");
    deaf.send_to(&subscribe.to_bytes(), pbx.address()).await.expect("sent");
    let mut notifies = Vec::new();
    let mut buffer = [0; 4000];
    while notifies.len() < 3 {
        let received = tokio::time::timeout(SOON, deaf.recv(&mut buffer)).await.expect("in time");
        let message = Message::parse(&buffer[..received.expect("received")]).expect("SIP");
        if message.code() == 0 {
            notifies.push(message.to_bytes());
        }
    }
    assert!(notifies.iter().all(|notify| *notify == notifies[0]), "the same each time");
}
