//! An event publication agent (RFC 3903): keeps the entity-tag of each publication and publishes afresh on 412.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::task::JoinHandle;

use super::{
    document::{State, content_type},
    endpoint::Endpoint,
    journal::{Count, Journal},
    message::unique,
    phone::{Account, Failure},
};

/// One publication, as its publisher knows it.
#[derive(Clone, Debug)]
pub struct Publication {
    pub resource: String,
    pub package: String,
    /// Of the last 2xx.
    pub etag: Option<String>,
    /// Seconds: asked for, and as granted last.
    pub expires: u32,
}

impl Publication {
    pub fn new(resource: &str, package: &str, expires: u32) -> Publication {
        Publication { resource: resource.to_owned(), package: package.to_owned(), etag: None, expires }
    }
}

/// A running publisher; it stops when this is dropped.
pub struct Publisher {
    account: Account,
    endpoint: Arc<Endpoint>,
    journal: Arc<Journal>,
    serving: JoinHandle<()>,
}

impl Publisher {
    pub async fn start(
        address: SocketAddr,
        account: Account,
        journal: Arc<Journal>,
    ) -> io::Result<Publisher> {
        let endpoint = Arc::new(Endpoint::bind(address).await?);
        let own = endpoint.clone();
        let serving = tokio::spawn(async move {
            loop {
                let incoming = own.receive().await;
                let reply = incoming.message.reply(405, "Method Not Allowed", &unique());
                own.respond(&incoming, &reply).await;
            }
        });
        Ok(Publisher { account, endpoint, journal, serving })
    }

    /// One PUBLISH. `None` as state: without a body (a refresh, or a removal with 0 seconds). Nothing is repeated here.
    pub async fn publish(
        &self,
        publication: &mut Publication,
        seconds: u32,
        state: Option<&State>,
    ) -> Result<(), Failure> {
        let Publication { resource, package, .. } = &*publication;
        let mut request = self.account.request("PUBLISH", resource, &unique());
        request = request.with("Event", package).with("Expires", &seconds.to_string());
        if let Some(etag) = &publication.etag {
            request = request.with("SIP-If-Match", etag);
        }
        if let Some(state) = state {
            let body = state.write(package, &self.account.uri(resource), 0);
            request = request.with_body(content_type(package), body);
            self.journal.published(state.change);
        }
        let answer = self.endpoint.request(self.account.proxy, request).await.ok_or(Failure::Silence)?;
        match answer.field("SIP-ETag") {
            Some(etag) if (200..300).contains(&answer.code()) => {
                publication.etag = Some(etag.to_owned()).filter(|_| seconds > 0);
                publication.expires = answer.number("Expires").unwrap_or(seconds);
                Ok(())
            }
            _ => Err(Failure::Refused(Box::new(answer))),
        }
    }

    /// Publishes a state: as RFC 3903 4.1 asks, 412 means to begin anew, 423 to ask for longer.
    pub async fn change(&self, publication: &mut Publication, state: &State) -> Result<(), Failure> {
        let mut seconds = publication.expires;
        for _ in 0..3 {
            let Err(failure) = self.publish(publication, seconds, Some(state)).await else {
                self.journal.count(Count::Publications);
                return Ok(());
            };
            let Failure::Refused(answer) = &failure else { return Err(failure) };
            match (answer.code(), answer.number("Min-Expires")) {
                (412, _) if publication.etag.take().is_some() => {
                    self.journal.count(Count::StaleTags);
                    self.say(publication, format_args!("412, publishes afresh"));
                }
                (423, Some(least)) => {
                    self.journal.count(Count::TooBrief);
                    self.say(publication, format_args!("423, asks again for Min-Expires {least}"));
                    seconds = least;
                }
                _ => return Err(failure),
            }
        }
        Err(Failure::Silence)
    }

    /// Refreshes without a body.
    pub async fn refresh(&self, publication: &mut Publication) -> Result<(), Failure> {
        self.publish(publication, publication.expires, None).await?;
        self.journal.count(Count::PublishRefreshes);
        Ok(())
    }

    pub async fn remove(&self, publication: &mut Publication) -> Result<(), Failure> {
        self.publish(publication, 0, None).await
    }

    fn say(&self, publication: &Publication, what: std::fmt::Arguments<'_>) {
        let Publication { resource, package, .. } = publication;
        self.journal.say("publisher", format_args!("<- PUBLISH {package} of {resource}: {what}"));
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
