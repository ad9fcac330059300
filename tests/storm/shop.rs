//! The environment of a run: servers, the sandbox, and workers behind proxies.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use capture_worker::sandbox::{self, Keys, Sandbox, SandboxOptions};
use nix::sys::signal::Signal;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    plan::Job,
    support::{
        customers::{Publisher, Seen, write_down_results},
        http,
        poll::within,
        processes::{Process, command},
        proxy::Proxy,
        servers::{Persistence, PrivateRabbit, PrivateRedis, free_port},
    },
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_capture-worker");
pub(crate) const PREFIX: &str = "storm";
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The time-to-live of leases, and so the longest time that a worker's lost lease blocks a payment.
pub(crate) const LEASE_TTL: Duration = Duration::from_millis(2500);
pub(crate) const RETRY_SCHEDULE: &str = "200ms,500ms,1s,2s,4s,4s,8s,8s,8s,8s,8s,8s";
pub(crate) const DEFER_SCHEDULE: &str = "100ms,250ms,1s,2s";

/// Everything that runs. Fields are dropped in order: clients before servers.
pub(crate) struct Shop {
    pub(crate) workers: Vec<Process>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) results: Seen,
    pub(crate) to_rabbit: Proxy,
    pub(crate) to_redis: Proxy,
    pub(crate) to_gateway: Proxy,
    settings: BTreeMap<&'static str, String>,
    pub(crate) redis: PrivateRedis,
    pub(crate) rabbit: PrivateRabbit,
    _serving: DropGuard,
}

impl Shop {
    pub(crate) async fn open(workers: usize) -> anyhow::Result<Self> {
        let (rabbit, redis) =
            tokio::try_join!(PrivateRabbit::start(), PrivateRedis::start(Persistence::Always))?;
        let options =
            SandboxOptions { latency: Duration::from_millis(10), ..SandboxOptions::default() };
        let sandbox = Arc::new(Sandbox::new(Keys::generate()?, options)?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let gateway_port = listener.local_addr()?.port();
        let stop = CancellationToken::new();
        tokio::spawn(sandbox::serve(listener, Arc::clone(&sandbox), stop.clone()));
        let (to_rabbit, to_redis, to_gateway) = tokio::try_join!(
            Proxy::to(rabbit.port()),
            Proxy::to(redis.port()),
            Proxy::to(gateway_port)
        )?;
        let keys = sandbox.keys();
        let settings = [
            ("BROKER__URL", to_rabbit.url(&rabbit.url())),
            ("BROKER__PREFIX", PREFIX.to_owned()),
            ("BROKER__PREFETCH", "32".to_owned()),
            ("REDIS__URL", to_redis.url(&redis.url())),
            ("GATEWAY__BASE_URL", format!("http://127.0.0.1:{}", to_gateway.port())),
            ("GATEWAY__CLIENT_ID", keys.client_id.clone()),
            ("GATEWAY__PRIVATE_KEY", keys.private_key.clone()),
            ("GATEWAY__PUBLIC_KEY", keys.public_key.clone()),
            ("GATEWAY__TIMEOUT", "1s".to_owned()),
            ("GATEWAY__INQUIRY_TIMEOUT", "1s".to_owned()),
            ("LEASE__TTL", format!("{}ms", LEASE_TTL.as_millis())),
            ("RETRY__SCHEDULE", RETRY_SCHEDULE.to_owned()),
            ("RETRY__DEFER_SCHEDULE", DEFER_SCHEDULE.to_owned()),
            ("BREAKER__PAUSE", "200ms".to_owned()),
            ("BREAKER__MAX_PAUSE", "1s".to_owned()),
            ("LOG__FILTER", "warn".to_owned()),
        ];
        let mut shop = Self {
            workers: Vec::new(),
            sandbox,
            results: Seen::default(),
            to_rabbit,
            to_redis,
            to_gateway,
            settings: settings.into(),
            redis,
            rabbit,
            _serving: stop.drop_guard(),
        };
        for _ in 0..workers {
            let worker = shop.start_worker().await?;
            shop.workers.push(worker);
        }
        shop.results = write_down_results(&shop.rabbit.url(), PREFIX).await?;
        shop.rabbit.write_queue_names().await?;
        Ok(shop)
    }

    /// Starts a worker and waits until it consumes.
    pub(crate) async fn start_worker(&self) -> anyhow::Result<Process> {
        let mut run = command(Path::new(PROGRAM), &["run"]);
        for (key, value) in &self.settings {
            run.env(format!("CAPTURE__{key}"), value);
        }
        let listen = format!("127.0.0.1:{}", free_port()?);
        run.env("CAPTURE__HTTP__LISTEN", &listen);
        let worker = Process::spawn(run)?;
        let url = format!("http://{listen}");
        let ready = within(LIMIT, async || http::get(&url, "/readyz").await.is_ok()).await;
        ready.with_context(|| format!("a worker is not ready: {}", worker.describe()))?;
        Ok(worker)
    }

    /// It is an error if a worker has ended by itself.
    pub(crate) fn check_workers(&mut self) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            ensure!(worker.ended().is_none(), "a worker ended: {}", worker.describe());
        }
        Ok(())
    }

    pub(crate) async fn drain_workers(&mut self) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            worker.signal(Signal::SIGTERM)?;
            let status = worker.wait(LIMIT).await?;
            ensure!(status.success(), "{status}: {}", worker.describe());
        }
        Ok(())
    }

    /// The number of ids that have a result.
    pub(crate) fn ended(&self) -> usize {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn overlaps(&self) -> u64 {
        self.sandbox.ledger()["overlaps"].as_u64().unwrap_or_default()
    }
}

/// Publishes jobs and their copies until each is confirmed.
pub(crate) async fn publish(broker_url: String, jobs: Vec<Job>) {
    let mut publisher = Publisher::to(broker_url, PREFIX);
    for body in jobs.iter().flat_map(|job| std::iter::repeat_n(job.body(), job.copies)) {
        publisher.publish(&body).await;
    }
}
