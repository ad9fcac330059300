//! The worker: it opens one broker session after another, starts the pipeline of each job, and
//! drains.
//!
//! In reading order: `supervisor` takes deliveries, `pipeline` has the four steps of one job,
//! `acquire` waits for the lease of its payment, `gateway_call` makes the calls under the lease,
//! and `release` ends it. `payment_queue`, `circuit_breaker` and `rate_limiter` decide when a job
//! may go on.

// The modules are listed in reading order. rustfmt sorts them only within a group.
mod supervisor;

mod pipeline;

mod acquire;
mod gateway_call;
mod release;

mod attempt_end;
mod context;

mod circuit_breaker;
mod payment_queue;
mod rate_limiter;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use self::{circuit_breaker::BreakerOptions, supervisor::Drained};
use self::{
    circuit_breaker::CircuitBreaker, context::Context, payment_queue::PaymentQueues,
    rate_limiter::RateLimiter, supervisor::Supervisor,
};
use crate::{
    broker::{BrokerOptions, OnPublish, OpenError, PublishError},
    domain::{capture::class::Codes, job::forward::ForwardFields, settlement::RetryPolicy},
    gateway::Gateway,
    lease::Leases,
    telemetry::{Metrics, ProbeState},
};

/// The services, policies and limits that a worker runs with.
pub struct Worker {
    /// How to connect to the broker, and what to declare there.
    pub broker: BrokerOptions,
    /// The client of the payment gateway.
    pub gateway: Gateway,
    /// The leases of payments, kept in Redis.
    pub leases: Leases,
    /// The class of each result code of the gateway.
    pub codes: Codes,
    /// The fields of a job that are forwarded to the gateway.
    pub forward: ForwardFields,
    /// When and how often a job is retried or deferred.
    pub policy: RetryPolicy,
    /// When the circuit breaker pauses captures.
    pub breaker: BreakerOptions,
    /// The limit of gateway calls as (calls, period); `None` means unlimited.
    pub rate_limit: Option<(NonZeroU32, Duration)>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Where the worker reports its metrics.
    pub metrics: Arc<Metrics>,
    /// Where the worker reports its state for the probes.
    pub probe_state: Arc<ProbeState>,
}

impl Worker {
    /// Processes jobs until `stop` is cancelled, then drains. While broker, Redis or gateway is
    /// unavailable, the worker waits for it.
    ///
    /// # Errors
    /// At the start, exchange or queue declarations do not match those at the broker, or the broker
    /// URL can't be used. Trying again would not help.
    pub async fn run(self, stop: CancellationToken) -> Result<Drained, OpenError> {
        let on_publish = Some(counts_publishes(Arc::clone(&self.metrics)));
        let broker = BrokerOptions { on_publish, ..self.broker };
        let (metrics, probe_state) = (self.metrics, self.probe_state);
        let ctx = Arc::new(Context {
            gateway: self.gateway,
            leases: self.leases,
            payment_queues: PaymentQueues::new(broker.prefetch, self.policy.defer_schedule.clone()),
            codes: self.codes,
            forward: self.forward,
            policy: self.policy,
            breaker: CircuitBreaker::new(
                self.breaker,
                Arc::clone(&metrics),
                Arc::clone(&probe_state),
            ),
            rate_limiter: RateLimiter::new(
                self.rate_limit,
                Arc::clone(&metrics),
                Arc::clone(&probe_state),
            ),
            metrics,
            draining: CancellationToken::new(),
        });
        let background = CancellationToken::new();
        let redis = tokio::spawn({
            let (leases, background) = (ctx.leases.clone(), background.clone());
            async move { leases.keep_connected(background).await }
        });
        let prober = tokio::spawn({
            let (ctx, background) = (Arc::clone(&ctx), background.clone());
            async move { ctx.breaker.probe(&ctx.gateway, &ctx.codes, background).await }
        });
        let drained =
            Supervisor::new(ctx, broker, probe_state, self.drain_timeout, stop).run().await;
        background.cancel();
        redis.await.unwrap_or_default();
        prober.abort();
        drained
    }
}

fn counts_publishes(metrics: Arc<Metrics>) -> OnPublish {
    Arc::new(move |to, result| {
        let result = result.as_ref().map_or_else(PublishError::name, |()| "confirmed");
        metrics.published(to.name(), result);
    })
}
