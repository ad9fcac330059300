//! An environment whose servers a test kills: workers, the gateway's sandbox, the load, and the
//! final comparison of jobs, results and ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::{Duration, Instant},
};

use capture_worker::sandbox::SandboxOptions;
use serde_json::json;
use testkit::{
    LIMIT,
    broker::TestBroker,
    clients::{Seen, record_results},
    env::TestEnv,
    gateway::Gateway,
    poll::{eventually, within},
};

use crate::load::{BACKLOG, Job, Load};

/// The gateway's latency. It makes the hot payments the bottleneck: most unfinished jobs wait for
/// their payment.
const LATENCY: Duration = Duration::from_millis(100);
/// Longer than a copy can be missing from all queues: a deferral, or a transfer to the queue of
/// jobs that a lost node interrupted.
const QUIET: Duration = Duration::from_secs(3);

/// Everything that runs, except broker and Redis.
pub(crate) struct HaEnv {
    pub(crate) base: TestEnv,
    gateway: Gateway,
    results: Seen,
    load: Load,
    broker_url: String,
    began: Instant,
    /// The number of unfinished jobs at each fault.
    met: Vec<usize>,
}

/// The jobs that were unfinished at a fault.
pub(crate) struct Struck {
    open: BTreeSet<Job>,
    published: usize,
}

impl HaEnv {
    /// Starts this many workers and the load, with many captures of the hot payments.
    pub(crate) async fn open(
        broker_url: &str,
        redis_url: &str,
        workers: usize,
        hot: &[String],
    ) -> Self {
        let options = SandboxOptions { latency: LATENCY, ..SandboxOptions::default() };
        let gateway = Gateway::start(options).await.unwrap();
        let prefix = format!("h{:08x}", rand::random::<u32>());
        let keys = gateway.sandbox.keys();
        let mut base = TestEnv::new(broker_url, redis_url, &gateway.url(), keys).set_all([
            ("BROKER__PREFIX", &prefix),
            ("BROKER__PREFETCH", "32"),
            ("GATEWAY__TIMEOUT", "2s"),
            ("GATEWAY__INQUIRY_TIMEOUT", "2s"),
            ("LEASE__TTL", "5s"),
            // A replica that takes over may lack the end of an in-doubt block. Without a short
            // limit, the payment would stay blocked longer than the test waits.
            ("LEASE__HOLD_IN_DOUBT", "10s"),
            ("RETRY__SCHEDULE", "200ms,500ms,1s,2s,4s,4s,4s,4s,4s,4s,4s,4s"),
            ("RETRY__DEFER_SCHEDULE", "100ms,250ms,1s"),
            ("BREAKER__PAUSE", "200ms"),
            ("BREAKER__MAX_PAUSE", "1s"),
            ("LOG__FILTER", "warn"),
        ]);
        // One worker declares the exchange to which the queue of results is bound.
        base.scale_up(1).await.unwrap();
        let results = record_results(broker_url, &prefix).await.unwrap();
        let load = Load::start(broker_url, &prefix, &results, hot);
        base.scale_up(workers).await.unwrap();
        let (broker_url, began) = (broker_url.to_owned(), Instant::now());
        Self { base, gateway, results, load, broker_url, began, met: Vec::new() }
    }

    /// The name of the queue of jobs.
    pub(crate) fn jobs_queue(&self) -> String {
        format!("{}.jobs", self.base.prefix())
    }

    /// Causes a fault while a capture of this hot payment is in progress and others of it wait.
    pub(crate) async fn strike(&mut self, hot: &str, fault: impl FnOnce(&mut Self)) -> Struck {
        let under_load = async || {
            let unfinished = self.unfinished();
            let of_it = unfinished.iter().filter(|job| job.payment_id == hot).count();
            unfinished.len() >= BACKLOG / 2 && of_it > 3 && self.gateway.sandbox.in_flight(hot) > 0
        };
        eventually("the workers are under load", LIMIT, under_load).await;
        fault(self);
        // Results are delayed, so use the ledger: none of the jobs below was captured before.
        let captured: BTreeSet<String> = self.captures().into_iter().map(|job| job.id).collect();
        let jobs = self.load.jobs();
        let published = jobs.len();
        let is_open = |job: &Job| !captured.contains(&job.id);
        let open: BTreeSet<Job> = jobs.into_iter().filter(is_open).collect();
        assert!(open.iter().any(|job| job.payment_id == hot), "{hot} has no unfinished job");
        self.met.push(open.len());
        Struck { open, published }
    }

    /// Waits until as many jobs have ended since the fault as were unfinished then.
    pub(crate) async fn goes_on(&mut self, struck: &Struck) {
        let enough = async || self.ended() >= struck.published + BACKLOG;
        if within(LIMIT, enough).await.is_none() {
            panic!("{}", self.report(struck).await);
        }
        self.base.check_workers().unwrap();
    }

    /// Waits until the work continues and all jobs that were unfinished at the fault have ended.
    pub(crate) async fn outlives(&mut self, struck: &Struck) {
        self.goes_on(struck).await;
        let all_ended = async || {
            let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            struck.open.iter().all(|job| results.contains_key(&job.id))
        };
        if within(LIMIT, all_ended).await.is_none() {
            panic!("{}", self.report(struck).await);
        }
    }

    /// Describes the jobs that have not ended, and where they may be.
    async fn report(&self, struck: &Struck) -> String {
        let unfinished = self.unfinished();
        let (late, later): (Vec<&Job>, Vec<&Job>) =
            unfinished.iter().partition(|job| struck.open.contains(job));
        let captured = self.captures();
        let captured = late.iter().filter(|job| captured.contains(job)).count();
        let mut report = format!(
            "unfinished since the fault ({captured} of them captured): {late:?}\n\
             others: {}\nqueued: {:?}",
            later.len(),
            self.queued().await,
        );
        for worker in &self.base.workers {
            let in_hand = worker.metric("capture_worker_jobs_in_flight").await;
            report.push_str(&format!("\n{in_hand} in flight: {}", worker.process.describe()));
        }
        report
    }

    /// Stops the load and checks that every job is captured once and has its result, and that no
    /// message remains.
    pub(crate) async fn close(mut self) {
        self.load.stop().await;
        eventually("every job has its result", LIMIT, async || self.unfinished().is_empty()).await;
        let mut quiet_since = Instant::now();
        eventually("all queues are empty", LIMIT, async || {
            let mut in_flight = 0;
            for worker in &self.base.workers {
                in_flight += worker.metric("capture_worker_jobs_in_flight").await;
            }
            if in_flight > 0 || !self.queued().await.is_some_and(|queued| queued.is_empty()) {
                quiet_since = Instant::now();
            }
            quiet_since.elapsed() > QUIET
        })
        .await;
        self.base.drain_workers().await.unwrap();
        assert_eq!(self.queued().await, Some(BTreeMap::new()), "messages that the workers left");
        self.compare();
        let (jobs, took) = (self.load.jobs().len(), self.began.elapsed().as_secs());
        println!("{jobs} jobs in {took} s, unfinished at each fault: {:?}", self.met);
    }

    fn compare(&self) {
        let jobs = self.load.jobs();
        let expected: BTreeMap<&str, &Job> = jobs.iter().map(|job| (&*job.id, job)).collect();
        let captures = self.captures();
        let captured: BTreeMap<&str, &Job> = captures.iter().map(|job| (&*job.id, job)).collect();
        assert_eq!(captured, expected, "the captures in the ledger differ from the jobs");
        assert_eq!(captures.len(), jobs.len(), "captured twice");
        let ledger = self.gateway.sandbox.ledger();
        assert_eq!(ledger["capturedTwice"], json!([]));
        assert_eq!(ledger["overlaps"], 0, "capture calls of one payment overlapped");
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(results.keys().eq(expected.keys()), "the ids of the results differ from the jobs");
        for (id, results) in results.iter() {
            let all_captured = results.iter().all(|(status, _)| status == "CAPTURED");
            assert!(all_captured, "{id}: {results:?}");
        }
    }

    fn ended(&self) -> usize {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The jobs that have no result yet.
    fn unfinished(&self) -> Vec<Job> {
        let jobs = self.load.jobs();
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.into_iter().filter(|job| !results.contains_key(&job.id)).collect()
    }

    /// The captures in the gateway's ledger.
    fn captures(&self) -> Vec<Job> {
        let ledger = self.gateway.sandbox.ledger();
        let captures = ledger["captures"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let job = |capture: &serde_json::Value| Job {
            id: text(&capture["captureRequestId"]),
            payment_id: text(&capture["paymentId"]),
            value: text(&capture["captureAmount"]["value"]),
        };
        captures.iter().map(job).collect()
    }

    /// The ready messages of all queues. `None` if the broker does not reply.
    async fn queued(&self) -> Option<BTreeMap<String, u32>> {
        let broker = TestBroker::connect(&self.broker_url).await.ok()?;
        self.base.queued(&broker).await.ok()
    }
}
