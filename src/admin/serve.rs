//! Connections of admin: so many at one time, and none for ever. Each holds an open file, and those are SIP's.
//!
//! A request has `request_time` for its head, counted from the end of the answer before it, which bounds idle connections
//! too; then as much for its body. What it asks for may take its time: a large table compiles for seconds.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

use crate::{
    control::Router,
    stats::{Process, ProcessCounter, ProcessGauge},
};

/// Never returns; ends with the runtime.
pub async fn serve(mut listener: TcpListener, service: axum::Router, router: Arc<Router>) {
    let (limits, process) = (&router.settings().admin, router.process());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.request_time);
    let service = TowerToHyperService::new(service);
    loop {
        // Where no file is left it waits a second, and goes on.
        let (stream, _) = Listener::accept(&mut listener).await;
        // Only this loop adds to them.
        if process.gauge(ProcessGauge::AdminConnections) >= limits.connections as u64 {
            process.add(ProcessCounter::AdminRefused, 1);
            continue;
        }
        let place = Place::new(process);
        // Who does not take his answer is the kernel's to end.
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(limits.request_time));
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            let _place = place;
            // What ends it badly is the peer's own affair.
            let _ = connection.await;
        });
    }
}

/// A connection's place among those that there may be.
struct Place(Arc<Process>);

impl Place {
    fn new(process: &Arc<Process>) -> Place {
        process.enter(ProcessGauge::AdminConnections);
        Place(process.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave(ProcessGauge::AdminConnections);
    }
}

/// Takes the whole body, within its time, before anything is done with it; 408 where it does not come.
pub async fn take_body(State(router): State<Arc<Router>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(head.clone(), body), &());
    match tokio::time::timeout(router.settings().admin.request_time, body).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(refusal)) => refusal.into_response(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response(),
    }
}
