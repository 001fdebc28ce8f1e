//! Posts flow events to the webhook's receiver, one after the other, in the order in which they came: a POST of one JSON
//! object each (SPEC 9.9).
//!
//! A 2xx takes it. 400, 413, 415 and 422 say that this one will never do: it is dropped, and counted. Anything else, and
//! silence, is tried again, for ever, after 1 s, 2 s, 4 s, … Events wait in the spool meanwhile.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::spool::Spool;
use crate::{
    config::settings::Webhook,
    stats::{Process, ProcessCounter, ProcessGauge},
};

/// What is read of an answer, so that its connection can be used again.
const ANSWER: usize = 64 << 10;

/// The spool, and who waits for it to have something.
pub struct Desk {
    pub spool: Mutex<Spool>,
    pub filled: Notify,
    process: Arc<Process>,
}

impl Desk {
    pub fn new(spool: Spool, most: usize, process: Arc<Process>) -> Desk {
        process.set(ProcessGauge::WebhookSpoolLimit, most as u64);
        process.set(ProcessGauge::WebhookSpool, spool.bytes() as u64);
        Desk { spool: Mutex::new(spool), filled: Notify::new(), process }
    }

    /// Takes events. Writes to the disk: not for a task that others wait for.
    pub fn push(&self, events: impl Iterator<Item = String>) {
        let mut spool = self.spool.lock();
        let (dropped, written) = spool.push(events);
        self.process.add(ProcessCounter::WebhookDropped, dropped);
        self.process.set(ProcessGauge::WebhookSpool, spool.bytes() as u64);
        drop(spool);
        if let Err(error) = written {
            tracing::warn!(%error, "flow events cannot be written to the state directory: they end with the router");
        }
        self.filled.notify_one();
    }

    fn done(&self) {
        let mut spool = self.spool.lock();
        if let Err(error) = spool.done() {
            tracing::warn!(%error, "what was delivered of the flow events cannot be noted: a restart delivers it again");
        }
        self.process.set(ProcessGauge::WebhookSpool, spool.bytes() as u64);
    }
}

enum Poster {
    Plain(Client<HttpConnector, Body>),
    Tls(Client<HttpsConnector<HttpConnector>, Body>),
}

impl Poster {
    fn new(url: &str) -> std::io::Result<Poster> {
        let client = Client::builder(TokioExecutor::new());
        if url.starts_with("https:") {
            let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1();
            return Ok(Poster::Tls(client.build(connector.build())));
        }
        Ok(Poster::Plain(client.build(HttpConnector::new())))
    }

    async fn post(&self, hook: &Webhook, event: String) -> Result<StatusCode, String> {
        let mut request = Request::post(&hook.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("tidings/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &hook.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::from(event)).map_err(|error| error.to_string())?;
        let response = match self {
            Poster::Plain(client) => client.request(request).await,
            Poster::Tls(client) => client.request(request).await,
        };
        let response = response.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        })?;
        let status = response.status();
        // What it says besides is nobody's business.
        let _ = to_bytes(Body::new(response.into_body()), ANSWER).await;
        Ok(status)
    }
}

/// Posts as long as the router runs.
pub async fn deliver(hook: Webhook, desk: Arc<Desk>) {
    let poster = match Poster::new(&hook.url) {
        Ok(poster) => poster,
        Err(error) => {
            tracing::error!(%error, "the webhook cannot be called: no roots to verify https by (ca-certificates); its events wait");
            return;
        }
    };
    let mut failures = 0u32;
    loop {
        // Who holds the lock may be writing.
        let first = tokio::task::block_in_place(|| desk.spool.lock().first().map(str::to_owned));
        let Some(event) = first else {
            desk.filled.notified().await;
            continue;
        };
        let failed = match tokio::time::timeout(hook.timeout, poster.post(&hook, event)).await {
            Ok(Ok(status)) if status.is_success() => {
                desk.process.add(ProcessCounter::WebhookDelivered, 1);
                None
            }
            Ok(Ok(
                status @ (StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNSUPPORTED_MEDIA_TYPE
                | StatusCode::UNPROCESSABLE_ENTITY),
            )) => {
                desk.process.add(ProcessCounter::WebhookRefused, 1);
                tracing::warn!(%status, "the webhook's receiver refuses a flow event, which is dropped");
                None
            }
            Ok(Ok(status)) => Some(status.to_string()),
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no answer within {:?}", hook.timeout)),
        };
        let Some(why) = failed else {
            if failures > 0 {
                tracing::info!("the webhook's receiver takes flow events again");
            }
            failures = 0;
            // It writes to the disk.
            tokio::task::block_in_place(|| desk.done());
            continue;
        };
        desk.process.add(ProcessCounter::WebhookFailed, 1);
        if failures == 0 {
            tracing::warn!(%why, "the webhook's receiver takes no flow event; they wait");
        }
        tokio::time::sleep(pause(failures, hook.retry_max)).await;
        failures = failures.saturating_add(1);
    }
}

/// 1 s, 2 s, 4 s, … up to `most`.
fn pause(failures: u32, most: Duration) -> Duration {
    Duration::from_secs(1 << failures.min(20)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let seconds = |n| pause(n, Duration::from_secs(60)).as_secs();
        assert_eq!([0, 1, 5, 6, 7, u32::MAX].map(seconds), [1, 2, 32, 60, 60, 60]);
    }
}
