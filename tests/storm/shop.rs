//! Servers, the sandbox, workers behind proxies, a publisher that never gives up, and whoever writes down the results.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use capture_worker::sandbox::{self, Keys, Sandbox, SandboxOptions};
use futures_util::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    plan::Job,
    support::{
        broker::TestBroker,
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
/// How long what a lost Redis knew may be missed: the lease of a call that was under way.
pub(crate) const LEASE_TTL: Duration = Duration::from_millis(2500);
pub(crate) const RETRY_SCHEDULE: &str = "200ms,500ms,1s,2s,4s,4s,8s,8s,8s,8s,8s,8s";
pub(crate) const DEFER_SCHEDULE: &str = "100ms,250ms,1s,2s";

/// Results by id: (status, class), in the order of their coming.
pub(crate) type Results = Arc<Mutex<BTreeMap<String, Vec<(String, Option<String>)>>>>;

/// Everything that runs. Fields end in this order: clients before servers.
pub(crate) struct Shop {
    pub(crate) workers: Vec<Process>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) results: Results,
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
            results: Results::default(),
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
        declare_results(&shop.rabbit.url()).await?;
        tokio::spawn(collect(shop.rabbit.url(), Arc::clone(&shop.results)));
        shop.rabbit.write_queue_names().await?;
        Ok(shop)
    }

    /// A worker that consumes.
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
        ready.with_context(|| format!("a worker does not get ready: {}", worker.describe()))?;
        Ok(worker)
    }

    /// An error if a worker ended by itself.
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

    /// Ids that have a result.
    pub(crate) fn ended(&self) -> usize {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn overlaps(&self) -> u64 {
        self.sandbox.ledger()["overlaps"].as_u64().unwrap_or_default()
    }
}

/// Publishes jobs and their copies until each is confirmed; whatever was not is published again.
pub(crate) async fn publish(broker_url: String, jobs: Vec<Job>) {
    let mut bodies: Vec<Vec<u8>> =
        jobs.iter().flat_map(|job| std::iter::repeat_n(job.body(), job.copies)).collect();
    bodies.reverse();
    while !bodies.is_empty() {
        let Ok(broker) = TestBroker::connect(&broker_url).await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        while let Some(body) = bodies.last() {
            let published = tokio::time::timeout(LIMIT, broker.publish_job(PREFIX, body)).await;
            if !matches!(published, Ok(Ok(()))) {
                break;
            }
            bodies.pop();
        }
    }
}

async fn declare_results(broker_url: &str) -> anyhow::Result<()> {
    let connection = Connection::connect(broker_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
    let (queue, exchange) = (format!("{PREFIX}.seen"), format!("{PREFIX}.results"));
    channel.queue_declare(queue.as_str().into(), options, arguments).await?;
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.into(), "#".into(), options, arguments).await?;
    Ok(())
}

/// Writes every result down, then acks it; connects again whenever the broker was away.
async fn collect(broker_url: String, results: Results) {
    loop {
        // Whatever ended it: the next connection goes on.
        drop(collect_once(&broker_url, &results).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn collect_once(broker_url: &str, results: &Results) -> anyhow::Result<()> {
    let connection = Connection::connect(broker_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let (queue, options) = (format!("{PREFIX}.seen"), BasicConsumeOptions::default());
    let mut seen =
        channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(2), seen.next()).await;
        let Ok(next) = next else {
            ensure!(connection.status().connected(), "the broker is gone");
            continue;
        };
        let delivery = next.context("the consumer was cancelled")??;
        let result: Value = serde_json::from_slice(&delivery.data)?;
        let text = |name: &str| result[name].as_str().map(str::to_owned);
        let id = text("captureRequestId").context("a result without an id")?;
        let status = text("status").context("a result without a status")?;
        let seen = (status, text("class"));
        results.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().push(seen);
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
    }
}
