//! The environment of a run: servers, the sandbox, and workers behind proxies.

use std::{sync::PoisonError, time::Duration};

use capture_worker::sandbox::SandboxOptions;
use testkit::{
    clients::{Publisher, Seen, record_results},
    env::TestEnv,
    gateway::Gateway,
    proxy::Proxy,
    servers::{Persistence, PrivateRabbit, PrivateRedis},
};

use crate::plan::Job;

pub(crate) const PREFIX: &str = "storm";
/// The time-to-live of leases, and so the longest time that a worker's lost lease blocks a payment.
pub(crate) const LEASE_TTL: Duration = Duration::from_millis(2500);

/// Everything that runs. Fields are dropped in order: clients before servers.
pub(crate) struct StormEnv {
    pub(crate) base: TestEnv,
    pub(crate) gateway: Gateway,
    pub(crate) results: Seen,
    pub(crate) to_rabbit: Proxy,
    pub(crate) to_redis: Proxy,
    pub(crate) to_gateway: Proxy,
    pub(crate) redis: PrivateRedis,
    pub(crate) rabbit: PrivateRabbit,
}

impl StormEnv {
    pub(crate) async fn open(workers: usize) -> anyhow::Result<Self> {
        let options =
            SandboxOptions { latency: Duration::from_millis(10), ..SandboxOptions::default() };
        let (rabbit, redis, gateway) = tokio::try_join!(
            PrivateRabbit::start(),
            PrivateRedis::start(Persistence::Always),
            Gateway::start(options)
        )?;
        let (to_rabbit, to_redis, to_gateway) = tokio::try_join!(
            Proxy::to(rabbit.port()),
            Proxy::to(redis.port()),
            Proxy::to(gateway.port)
        )?;
        let (broker_url, redis_url) = (to_rabbit.url(&rabbit.url()), to_redis.url(&redis.url()));
        let gateway_url = to_gateway.url(&gateway.url());
        let keys = gateway.sandbox.keys();
        let mut base = TestEnv::new(&broker_url, &redis_url, &gateway_url, keys).set_all([
            ("BROKER__PREFIX", PREFIX),
            ("BROKER__PREFETCH", "32"),
            ("GATEWAY__TIMEOUT", "1s"),
            ("GATEWAY__INQUIRY_TIMEOUT", "1s"),
            ("LEASE__TTL", &format!("{}ms", LEASE_TTL.as_millis())),
            ("RETRY__SCHEDULE", "200ms,500ms,1s,2s,4s,4s,8s,8s,8s,8s,8s,8s"),
            ("RETRY__DEFER_SCHEDULE", "100ms,250ms,1s,2s"),
            ("BREAKER__PAUSE", "200ms"),
            ("BREAKER__MAX_PAUSE", "1s"),
            ("LOG__FILTER", "warn"),
        ]);
        base.scale_up(workers).await?;
        let results = record_results(&rabbit.url(), PREFIX).await?;
        rabbit.write_queue_names().await?;
        Ok(Self { base, gateway, results, to_rabbit, to_redis, to_gateway, redis, rabbit })
    }

    /// The number of ids that have a result.
    pub(crate) fn ended(&self) -> usize {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn overlaps(&self) -> u64 {
        self.gateway.sandbox.ledger()["overlaps"].as_u64().unwrap_or_default()
    }
}

/// Publishes jobs and their copies until each is confirmed.
pub(crate) async fn publish(broker_url: String, jobs: Vec<Job>) {
    let mut publisher = Publisher::to(broker_url, PREFIX);
    for body in jobs.iter().flat_map(|job| std::iter::repeat_n(job.body(), job.copies)) {
        publisher.publish(&body).await;
    }
}
