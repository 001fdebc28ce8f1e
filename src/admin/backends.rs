//! `/api/v1/backends`: the backends of the table in force with their state, and the operator's word for one of them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{config::table::AdminState, control::Router};

/// `GET /api/v1/backends`
pub async fn list(State(router): State<Arc<Router>>) -> Response {
    Json(router.backends()).into_response()
}

/// What a backend is to be.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    state: AdminState,
}

/// `POST /api/v1/backends/NAME/state`: `{"state": "active" | "drain" | "off"}`. At once, whatever table comes, until the
/// process ends. The answer lists the backend as it is now, once for each of its pools.
pub async fn mark(
    State(router): State<Arc<Router>>,
    Path(name): Path<String>,
    Json(mark): Json<Mark>,
) -> Response {
    if !router.mark(&name, mark.state) {
        let text = format!("there is no backend \"{name}\" in the table");
        return (StatusCode::NOT_FOUND, Json(json!({ "error": text, "text": text }))).into_response();
    }
    let its: Vec<_> = router.backends().into_iter().filter(|backend| backend.name == name).collect();
    Json(its).into_response()
}
