//! The environment of one test: its own names at the shared broker, its own Redis and sandbox, and
//! worker processes. Nothing is deleted at the broker, because 3.10 fails when queues with
//! at-least-once dead-lettering are deleted.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    collections::BTreeMap,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use capture_worker::{
    domain::capture::class::Class,
    sandbox::{Sandbox, SandboxOptions, Step},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString},
};
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    broker::{Message, Results, TestBroker},
    env::TestEnv,
    gateway::Gateway,
    memory::name_server,
    poll::eventually,
    servers::{Persistence, PrivateRedis, shared_rabbit},
    worker::Worker,
};

/// Everything that a test needs except workers, which it starts and keeps itself.
pub(crate) struct ItEnv {
    pub(crate) base: TestEnv,
    pub(crate) prefix: String,
    pub(crate) broker: TestBroker,
    pub(crate) results: Results,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) gateway: Gateway,
    _redis: Option<PrivateRedis>,
}

impl ItEnv {
    /// Uses the shared broker and starts its own Redis.
    pub(crate) async fn open() -> Self {
        Self::open_slow(Duration::ZERO).await
    }

    /// [`Self::open`] with a gateway of this latency.
    pub(crate) async fn open_slow(latency: Duration) -> Self {
        let redis = PrivateRedis::start(Persistence::None);
        let (rabbit, redis) = tokio::try_join!(shared_rabbit(), redis).unwrap();
        let env = Self::open_at(&rabbit.url(), &redis.url(), latency).await;
        Self { _redis: Some(redis), ..env }
    }

    /// Uses servers that the test may stop. The Redis is recorded as known, so that no worker waits
    /// for calls in progress.
    pub(crate) async fn open_at(rabbit_url: &str, redis_url: &str, latency: Duration) -> Self {
        let env = Self::open_at_unnamed(rabbit_url, redis_url, latency).await;
        name_server(redis_url, &env.base.owner()).await;
        env
    }

    /// [`Self::open_at`] with a Redis that no worker has recorded as the server of valid leases.
    pub(crate) async fn open_at_unnamed(
        rabbit_url: &str,
        redis_url: &str,
        latency: Duration,
    ) -> Self {
        let options = SandboxOptions { latency, ..SandboxOptions::default() };
        Self::open_with(rabbit_url, redis_url, options).await
    }

    /// [`Self::open_at_unnamed`] with these options of the gateway.
    pub(crate) async fn open_with(
        rabbit_url: &str,
        redis_url: &str,
        options: SandboxOptions,
    ) -> Self {
        let prefix = format!("t{:08x}", rand::random::<u32>());
        let broker = TestBroker::connect(rabbit_url).await.unwrap();
        let results = broker.subscribe_results(&prefix).await.unwrap();
        let gateway = Gateway::start(options).await.unwrap();
        let sandbox = Arc::clone(&gateway.sandbox);
        let base = TestEnv::new(rabbit_url, redis_url, &gateway.url(), sandbox.keys()).set_all([
            ("BROKER__PREFIX", &prefix),
            ("BROKER__PREFETCH", "16"),
            ("GATEWAY__TIMEOUT", "1s"),
            ("GATEWAY__INQUIRY_TIMEOUT", "1s"),
            ("RETRY__SCHEDULE", "100ms,200ms,400ms"),
            ("RETRY__DEFER_SCHEDULE", "100ms,250ms"),
        ]);
        Self { base, prefix, broker, results, sandbox, gateway, _redis: None }
    }

    /// Connects to the broker again after an outage. Test connections don't reconnect.
    pub(crate) async fn reconnect(self, rabbit_url: &str) -> Self {
        let broker = TestBroker::connect(rabbit_url).await.unwrap();
        let results = broker.subscribe_results(&self.prefix).await.unwrap();
        Self { broker, results, ..self }
    }

    /// The full name of a key in Redis, such as `key("{p}:lease")` or `key("server")`.
    pub(crate) fn key(&self, name: &str) -> String {
        self.base.key(name)
    }

    /// Changes a setting, such as `set("RETRY__SCHEDULE", "1s")`.
    pub(crate) fn set(self, key: &str, value: &str) -> Self {
        Self { base: self.base.set(key, value), ..self }
    }

    /// A command of the program with the settings of this environment.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        self.base.program(arguments)
    }

    /// Declares the topology at the broker, so that jobs can wait for the first worker.
    pub(crate) async fn declare(self) -> Self {
        assert_eq!(self.worker().await.drain().await, Some(0));
        self
    }

    /// Starts a worker and waits until it consumes.
    pub(crate) async fn worker(&self) -> Worker {
        self.base.worker().await.unwrap()
    }

    /// Starts a worker without waiting until it is ready.
    pub(crate) async fn start_worker(&self) -> Worker {
        self.base.start_worker().await.unwrap()
    }

    /// Starts a worker with these additional settings.
    pub(crate) async fn worker_with(&self, settings: &[(&str, &str)]) -> Worker {
        let mut program = self.program(&["run"]);
        program.envs(settings.iter().map(|(key, value)| (format!("CAPTURE__{key}"), value)));
        Self::worker_from(program).await
    }

    /// Starts a worker with this command.
    pub(crate) async fn worker_from(program: Command) -> Worker {
        let worker = Worker::start(program).await.unwrap();
        worker.becomes_ready().await.unwrap();
        worker
    }

    /// Publishes these bytes as a job.
    pub(crate) async fn publish(&self, body: &[u8]) {
        self.broker.publish_job(&self.prefix, body).await.unwrap();
    }

    /// Publishes these bytes with headers as a job.
    pub(crate) async fn publish_with(&self, body: &[u8], headers: FieldTable) {
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        let exchange = format!("{}.jobs", self.prefix);
        self.broker.publish(&exchange, "shipped", body, properties).await.unwrap();
    }

    /// Waits until a class has this many dead letters, and removes them from the queue.
    pub(crate) async fn dead(&self, class: Class, count: u32) -> Vec<Message> {
        let queue = format!("{}.dead.{class}", self.prefix);
        let what = format!("{count} dead letters in {queue}");
        eventually(&what, LIMIT, async || {
            self.broker.queue_depth(&queue).await.unwrap() == Some(count)
        })
        .await;
        self.broker.drain_queue(&queue).await.unwrap()
    }

    /// The ready messages of the queue of jobs and of each class and delay, by queue. Empty queues
    /// are left out.
    pub(crate) async fn queued(&self) -> BTreeMap<String, u32> {
        self.base.queued(&self.broker).await.unwrap()
    }

    /// Waits for a result of an id, and returns all its results.
    pub(crate) async fn results_of(&self, id: &str) -> Vec<Value> {
        eventually(&format!("a result of {id}"), LIMIT, async || {
            let found = self.results_now(id);
            (!found.is_empty()).then_some(found)
        })
        .await
    }

    /// The results of an id so far.
    pub(crate) fn results_now(&self, id: &str) -> Vec<Value> {
        let results = self.results.all().into_iter().map(|result| result.json().unwrap());
        results.filter(|result| result["captureRequestId"] == id).collect()
    }

    /// Waits for the only result of an id, which must have this status and class.
    #[track_caller]
    pub(crate) fn ends_as(
        &self,
        id: &str,
        status: &str,
        class: Option<&str>,
    ) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let results = self.results_of(id).await;
            let result = results.first().unwrap();
            let found = (result["status"].as_str(), result["class"].as_str());
            assert_eq!(found, (Some(status), class), "{caller}: {result}");
            result.clone()
        }
    }

    /// How often the sandbox moved money for an id.
    pub(crate) fn captures_of(&self, id: &str) -> usize {
        let ledger = self.sandbox.ledger();
        let captures = ledger["captures"].as_array().unwrap();
        captures.iter().filter(|capture| capture["captureRequestId"] == id).count()
    }

    /// The state of one id of a payment in the sandbox.
    pub(crate) fn request(&self, payment: &str, id: &str) -> Value {
        let payment = self.sandbox.payment(payment).unwrap_or_default();
        let requests = payment["requests"].as_array().cloned().unwrap_or_default();
        requests.into_iter().find(|request| request["captureRequestId"] == id).unwrap_or_default()
    }

    /// How often an id was posted.
    pub(crate) fn posts(&self, payment: &str, id: &str) -> u64 {
        self.request(payment, id)["posts"].as_u64().unwrap_or_default()
    }

    /// How often a payment was inquired about.
    pub(crate) fn inquiries(&self, payment: &str) -> usize {
        self.calls(payment).iter().filter(|(id, ..)| id.is_none()).count()
    }

    /// The calls of a payment in the order of their replies: the id (`None` for an inquiry), the
    /// reply, and the time in epoch milliseconds.
    pub(crate) fn calls(&self, payment: &str) -> Vec<(Option<String>, String, i64)> {
        let calls = self.sandbox.calls(Some(payment));
        let call = |call: &Value| {
            let text = |name: &str| call[name].as_str().map(str::to_owned);
            (text("captureRequestId"), text("answer").unwrap(), call["atMs"].as_i64().unwrap())
        };
        calls.as_array().unwrap().iter().map(call).collect()
    }

    /// Adds steps to the sandbox's script for a payment.
    pub(crate) fn script(&self, payment: &str, steps: Value) {
        let steps: Vec<Step> = serde_json::from_value(steps).unwrap();
        self.sandbox.add_steps(Some(payment), steps);
    }

    /// Adds steps to the sandbox's script for all calls.
    pub(crate) fn script_all(&self, steps: Value) {
        self.sandbox.add_steps(None, serde_json::from_value(steps).unwrap());
    }

    /// Asserts that nothing was captured twice and that no capture calls of a payment overlapped.
    #[track_caller]
    pub(crate) fn assert_clean_books(&self) {
        let ledger = self.sandbox.ledger();
        assert_eq!(ledger["capturedTwice"], json!([]));
        assert_eq!(ledger["overlaps"], 0, "capture calls of one payment overlapped");
    }
}

/// The body of a job in HKD.
pub(crate) fn job(id: &str, payment: &str, value: u64) -> Vec<u8> {
    json!({
        "captureRequestId": id,
        "paymentId": payment,
        "captureAmount": {"currency": "HKD", "value": value.to_string()},
    })
    .to_string()
    .into_bytes()
}

/// The body of a job with `expiresAt`.
pub(crate) fn job_until(id: &str, payment: &str, until: SystemTime) -> Vec<u8> {
    json!({
        "captureRequestId": id,
        "paymentId": payment,
        "captureAmount": {"currency": "HKD", "value": "100"},
        "expiresAt": time::OffsetDateTime::from(until)
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap(),
    })
    .to_string()
    .into_bytes()
}

/// A header table of these entries.
pub(crate) fn headers<const N: usize>(headers: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    table
}

pub(crate) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}
