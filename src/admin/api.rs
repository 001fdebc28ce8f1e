//! `/api/v1`: the table in force, a new one, back to the one before, and what would become of a message.
//!
//! Answers are JSON. A table that is refused is 422 with all its diagnostics, and with the text that a person would be
//! shown (`text`).

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::control::{Loaded, Refusal, Router};

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
