//! The event state compositor of a demo PBX (RFC 3903): publications by entity-tag, and what they add up to.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{self, Instant};

use super::{
    document::{State, content_type},
    message::{Message, unique},
    pbx::{Answer, Exchange, resource},
};

pub(super) struct Publication {
    package: String,
    resource: String,
    state: State,
    ends: Instant,
}

impl Exchange {
    /// Ends publications whose time is over (RFC 3903 6, step 5).
    pub(super) async fn expire(self: Arc<Self>) {
        let mut tick = time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let now = Instant::now();
            let mut held = self.held.lock();
            let is_over = |publication: &Publication| publication.ends <= now;
            let ended: Vec<_> =
                held.publications.iter().filter(|(_, p)| is_over(p)).map(|(etag, _)| etag.clone()).collect();
            for etag in ended {
                let Some(publication) = held.publications.remove(&etag) else { continue };
                self.journal.say(
                    &self.name,
                    format_args!("publication {} of {} expired", publication.package, publication.resource),
                );
                let wake = held.owe(&publication.package, &publication.resource);
                wake.iter().for_each(|wake| wake.notify_one());
            }
        }
    }

    /// RFC 3903 6.
    pub(super) fn publish(&self, request: &Message) -> Answer {
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
}

/// The state of a resource: what was published last, else the neutral one.
pub(super) fn composed(publications: &HashMap<String, Publication>, package: &str, resource: &str) -> State {
    let its = publications.values().filter(|p| p.package == package && p.resource == resource);
    its.map(|p| &p.state).max_by_key(|s| s.change).cloned().unwrap_or_else(|| State::neutral(package))
}
