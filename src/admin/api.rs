//! `/api/v1`: the table in force, a new one, back to the one before, and what would become of a message.
//!
//! Answers are JSON. A table that is refused is 422 with all its diagnostics, and with the text that a person would be
//! shown (`text`).

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    control::{Loaded, Refusal, Router},
    forward::{self, Arrival},
    net,
};

/// `GET /api/v1/table`
pub async fn table(State(router): State<Arc<Router>>) -> Response {
    Json(router.tables().status()).into_response()
}

/// `PUT /api/v1/table`: the body is the table.
pub async fn put_table(State(router): State<Arc<Router>>, text: String) -> Response {
    answer(router.put("PUT /api/v1/table", text).await)
}

/// `POST /api/v1/reload`
pub async fn reload(State(router): State<Arc<Router>>) -> Response {
    answer(router.reload().await)
}

/// `POST /api/v1/rollback`
pub async fn rollback(State(router): State<Arc<Router>>) -> Response {
    answer(router.rollback().await)
}

/// What `explain` may be asked about a message.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    source: SocketAddr,
    /// By name; default: the first.
    listener: Option<String>,
}

/// `POST /api/v1/explain?source=ADDR&listener=NAME`: the body is the message as it stands on the wire. Text, or JSON for
/// those who accept it.
pub async fn explain(
    State(router): State<Arc<Router>>,
    Query(question): Query<Question>,
    headers: HeaderMap,
    message: Bytes,
) -> Response {
    let listeners = &router.settings().listen;
    let named = |name: &str| listeners.iter().position(|listen| listen.name == name);
    let Some(index) = question.listener.as_deref().map_or(Some(0), named) else {
        let text = "there is no listener of that name";
        return (StatusCode::NOT_FOUND, Json(json!({ "error": text, "text": text }))).into_response();
    };
    // The settings allow 255 listeners at most.
    let (listener, local) = (index as u8, listeners[index].address);
    let arrival = Arrival { listener, local, peer: question.source, flow: None };
    let table = router.tables().current().load_full();
    let told = forward::explain(router.setup(), router.shared(), &table, arrival, &message, net::now());
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("application/json") {
        Json(told).into_response()
    } else {
        told.to_string().into_response()
    }
}

fn answer(outcome: Result<Loaded, Refusal>) -> Response {
    match outcome {
        Ok(loaded) => Json(loaded).into_response(),
        Err(Refusal::Failed(failure)) => {
            let body = json!({
                "error": failure.message,
                "diagnostics": failure.diagnostics,
                "text": failure.to_string(),
            });
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
        Err(refusal) => {
            let text = refusal.to_string();
            (StatusCode::CONFLICT, Json(json!({ "error": text, "text": text }))).into_response()
        }
    }
}
