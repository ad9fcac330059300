//! Probes and metrics over HTTP.

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
    telemetry::{Health, Metrics},
};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the probes look at.
#[derive(Clone)]
pub struct Probes {
    /// What the worker says of itself.
    pub health: Arc<Health>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether Redis gives leases, and why not.
    pub leases: Leases,
}

/// Serves them until `stop` is cancelled.
pub async fn serve(listener: TcpListener, probes: Probes, stop: CancellationToken) {
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes);
    server::serve(listener, app, stop).await;
}

async fn livez(State(probes): State<Probes>) -> impl IntoResponse {
    if probes.health.is_live() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the loop stands still\n")
    }
}

async fn readyz(State(probes): State<Probes>) -> impl IntoResponse {
    let redis_away = (!*probes.leases.up().borrow())
        .then(|| format!("Redis is away: {}", sanitize::text(&probes.leases.absence())));
    // The gateway is told of, and never makes a worker unready: no restart and no other worker mends it.
    let guard = probes.metrics.guard();
    match probes.health.unready().or(redis_away) {
        None => (StatusCode::OK, format!("ok\n{guard}\n")),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n{guard}\n")),
    }
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], probes.metrics.render())
}
