//! `/api/v1/connections`: who is connected.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::control::{Router, connections::Wanted};

/// `GET /api/v1/connections?most=N&peer=PREFIX`
pub async fn list(State(router): State<Arc<Router>>, Query(wanted): Query<Wanted>) -> Response {
    match router.connections(&wanted) {
        Ok(open) => Json(open).into_response(),
        Err(text) => (StatusCode::BAD_REQUEST, Json(json!({ "error": text, "text": text }))).into_response(),
    }
}
