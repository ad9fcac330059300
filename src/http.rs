//! The HTTP endpoints of the worker: `/livez`, `/readyz` and `/metrics`.

pub mod server;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    lease::Leases,
    sanitize,
    telemetry::{Metrics, ProbeState},
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The state that the probes and the metrics endpoint read.
#[derive(Clone)]
pub struct Probes {
    /// Liveness and readiness as the worker itself reports them.
    pub worker: Arc<ProbeState>,
    /// The metrics that `/metrics` renders.
    pub metrics: Arc<Metrics>,
    /// Whether Redis can give leases now, and if not, why.
    pub leases: Leases,
}

/// Serves the endpoints until `stop` is cancelled.
pub async fn serve(listener: TcpListener, probes: Probes, stop: CancellationToken) {
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes);
    server::serve(listener, app, stop).await;
}

async fn livez(State(probes): State<Probes>) -> impl IntoResponse {
    if probes.worker.is_live() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "main loop stalled\n")
    }
}

async fn readyz(State(probes): State<Probes>) -> impl IntoResponse {
    let redis_unavailable = (!*probes.leases.up().borrow()).then(|| {
        format!("Redis unavailable: {}", sanitize::text(&probes.leases.unavailable_reason()))
    });
    // The gateway's state is printed, but never makes a worker unready: neither a restart nor
    // another worker would fix a gateway that is down.
    let call_limits = probes.worker.call_limits();
    match probes.worker.unready().or(redis_unavailable) {
        None => (StatusCode::OK, format!("ok\n{call_limits}\n")),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n{call_limits}\n")),
    }
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], probes.metrics.render())
}
