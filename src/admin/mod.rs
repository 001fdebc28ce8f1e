//! The HTTP side (SPEC 11.1, 5.6, 5.8): metrics, health, and the API over the tables. Listens on loopback by default.
//!
//! `start` binds and serves on control's runtime; `serve` bounds connections and their times, `api` holds what changes or
//! explains something, `guard` who may ask. Nothing here touches a message on its way.

mod api;
mod backends;
mod bans;
mod connections;
mod guard;
mod serve;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    middleware,
    response::{Html, IntoResponse},
    routing::{delete, get, post},
};

use crate::control::{Router, Running};

/// Largest table that `PUT /api/v1/table` takes; 10,000 rules are about 3 MB.
const LARGEST_TABLE: usize = 32 << 20;

/// Why admin did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin: {address} is in use by another process (address in [admin] of tidings.toml)")]
    InUse { address: SocketAddr },
    #[error("admin: {address} cannot be bound: {error}")]
    Bind { address: SocketAddr, error: io::Error },
}

/// Serves admin where the settings want it; gives the bound address.
pub fn start(running: &Running) -> Result<Option<SocketAddr>, AdminError> {
    let admin = &running.router().settings().admin;
    let Some(address) = admin.address else {
        return Ok(None);
    };
    let fault = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => AdminError::InUse { address },
        _ => AdminError::Bind { address, error },
    };
    let listener = running.runtime().block_on(tokio::net::TcpListener::bind(address)).map_err(fault)?;
    let bound = listener.local_addr().map_err(fault)?;
    let service = service(running.router().clone());
    running.runtime().spawn(serve::serve(listener, service, running.router().clone()));
    Ok(Some(bound))
}

fn service(router: Arc<Router>) -> axum::Router {
    let api = axum::Router::new()
        .route("/api/v1/table", get(api::table).put(api::put_table))
        .route("/api/v1/reload", post(api::reload))
        .route("/api/v1/rollback", post(api::rollback))
        .route("/api/v1/explain", post(api::explain))
        .route("/api/v1/backends", get(backends::list))
        .route("/api/v1/bans", get(bans::list).post(bans::add))
        .route("/api/v1/bans/{address}", delete(bans::lift))
        .route("/api/v1/connections", get(connections::list))
        .route("/api/v1/backends/{name}/state", post(backends::mark))
        .layer(middleware::from_fn_with_state(router.clone(), serve::take_body))
        .layer(DefaultBodyLimit::max(LARGEST_TABLE))
        .layer(middleware::from_fn_with_state(router.clone(), guard::check_host));
    // Scrapers ask by whatever name they know.
    let guarded = axum::Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .merge(api)
        .layer(middleware::from_fn_with_state(router.clone(), guard::check));
    // Probes of orchestrators carry no token and learn nothing.
    let open = axum::Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    guarded.merge(open).with_state(router)
}

async fn index() -> Html<&'static str> {
    Html(include_str!("index.html"))
}

async fn metrics(State(router): State<Arc<Router>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], router.metrics())
}

/// Alive: every worker turns.
async fn healthz(State(router): State<Arc<Router>>) -> (StatusCode, String) {
    match router.stuck(crate::net::now()) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(worker) => (StatusCode::SERVICE_UNAVAILABLE, format!("worker {worker} does not turn\n")),
    }
}

/// Takes traffic: from the start of the workers until the stop begins, while any backend takes requests.
async fn readyz(State(router): State<Arc<Router>>) -> (StatusCode, String) {
    match router.unready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}
