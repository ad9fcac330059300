//! What all jobs of a worker share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    circuit_breaker::CircuitBreaker, payment_queue::PaymentQueues, rate_limiter::RateLimiter,
};
use crate::{
    domain::{capture::class::Codes, job::forward::ForwardFields, settlement::RetryPolicy},
    gateway::Gateway,
    lease::Leases,
    telemetry::Metrics,
};

/// The services, policies and state that all jobs of a worker share.
pub(super) struct Context {
    pub(super) gateway: Gateway,
    pub(super) leases: Leases,
    pub(super) payment_queues: PaymentQueues,
    pub(super) codes: Codes,
    pub(super) forward: ForwardFields,
    pub(super) policy: RetryPolicy,
    pub(super) breaker: CircuitBreaker,
    pub(super) rate_limiter: RateLimiter,
    pub(super) metrics: Arc<Metrics>,
    /// Cancelled when the worker drains: jobs that have not started are handed back.
    pub(super) draining: CancellationToken,
}
