//! `/api/v1/bans`: who is banned, and the operator's word about it.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::control::{Router, bans::Wanted};

/// `GET /api/v1/bans`
pub async fn list(State(router): State<Arc<Router>>) -> Response {
    Json(router.bans()).into_response()
}

/// `POST /api/v1/bans`: `{"address": "192.0.2.1", "seconds": 3600}`; 409 where that cannot be. Answers with the list.
pub async fn add(State(router): State<Arc<Router>>, Json(wanted): Json<Wanted>) -> Response {
    match router.ban(&wanted) {
        Ok(()) => Json(router.bans()).into_response(),
        Err(text) => refused(StatusCode::CONFLICT, &text),
    }
}

/// `DELETE /api/v1/bans/ADDRESS`: 404 where there is no ban. Answers with the list.
pub async fn lift(State(router): State<Arc<Router>>, Path(written): Path<String>) -> Response {
    // Lists write the /64 of IPv6.
    let address = written.strip_suffix("/64").unwrap_or(&written).parse::<IpAddr>();
    let Ok(address) = address else {
        return refused(StatusCode::BAD_REQUEST, &format!("{written:?} is no address"));
    };
    if router.lift(address) {
        Json(router.bans()).into_response()
    } else {
        refused(StatusCode::NOT_FOUND, &format!("{address} is not banned"))
    }
}

fn refused(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text, "text": text }))).into_response()
}
