//! Affinity: a publication stays with the backend that has it (SPEC 6), a call and its retransmissions with theirs, and
//! what is known of calls places new ones (SPEC 5.3, 5.4, 7.1).
//!
//! Real binary; behind it small compositors that do with entity-tags what Asterisk and FreeSWITCH do, Kamailio's presence
//! server, and raw parties where the bytes are what matters.

#[path = "../rig/mod.rs"]
mod rig;

mod calls;
mod expires;
mod kamailio;
mod publications;

use std::net::SocketAddr;

use rig::{
    Party,
    message::{Request, unique},
    scene::Scene,
    text,
};

/// A publisher that knows no more than its entity-tag.
struct Publisher {
    party: Party,
    entry: SocketAddr,
    uri: String,
    package: &'static str,
}

/// The final answer to a PUBLISH.
#[derive(Debug)]
struct Answer {
    code: u16,
    tag: Option<String>,
    expires: Option<u32>,
}

impl Publisher {
    /// At .`host` of a scene, for this user at example.com.
    fn phone(scene: &Scene, host: u8, user: &str) -> Publisher {
        let uri = format!("sip:{user}@example.com");
        Publisher { party: scene.party(host), entry: scene.phones(), uri, package: "presence" }
    }

    fn request(&self, tag: Option<&str>, expires: Option<u32>, body: &str) -> Request {
        let request = Request::new("PUBLISH", &self.uri, &self.party)
            .with("From", format!("<{}>;tag={}", self.uri, unique()))
            .with("Event", self.package);
        let request = match tag {
            Some(tag) => request.with("SIP-If-Match", tag),
            None => request,
        };
        let request = match expires {
            Some(seconds) => request.with("Expires", seconds.to_string()),
            None => request,
        };
        if body.is_empty() { request } else { request.body("application/pidf+xml", body) }
    }

    #[track_caller]
    fn send(&self, request: &Request) -> Answer {
        self.party.send(self.entry, request.text());
        self.answer()
    }

    #[track_caller]
    fn answer(&self) -> Answer {
        let got = self.party.receive("the answer to a PUBLISH");
        let first = |name: &str| text::headers(&got, name).first().map(|value| (*value).to_owned());
        Answer {
            code: text::status(&got).unwrap_or_else(|| panic!("no answer:\n{got}")),
            tag: first("SIP-ETag"),
            expires: first("Expires").and_then(|seconds| seconds.parse().ok()),
        }
    }

    #[track_caller]
    fn publish(&self, tag: Option<&str>, expires: Option<u32>, body: &str) -> Answer {
        self.send(&self.request(tag, expires, body))
    }

    /// An initial PUBLISH for ten minutes: its tag.
    #[track_caller]
    fn begin(&self) -> String {
        let answer = self.publish(None, Some(600), "open");
        assert_eq!(answer.code, 200, "{answer:?}");
        answer.tag.expect("a 200 has an entity-tag")
    }

    /// A refresh.
    #[track_caller]
    fn refresh(&self, tag: &str) -> Answer {
        self.publish(Some(tag), Some(600), "")
    }
}
