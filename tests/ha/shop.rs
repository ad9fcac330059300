//! An environment whose servers a test kills: workers, the gateway's sandbox, the load, and the
//! final comparison of jobs, results and ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use capture_worker::{
    domain::capture::class::Class,
    sandbox::{self, Keys, Sandbox, SandboxOptions},
};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    load::{BACKLOG, Job, Load},
    support::{
        broker::TestBroker,
        customers::{Seen, write_down_results},
        http,
        memory::owner,
        poll::{eventually, within},
        processes::{Process, command},
        servers::free_port,
    },
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_capture-worker");
/// The time limit of every wait. It is generous, because the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The gateway's latency. It makes the hot payments the bottleneck: most unfinished jobs wait for
/// their payment.
const LATENCY: Duration = Duration::from_millis(100);
const RETRY_SCHEDULE: &str = "200ms,500ms,1s,2s,4s,4s,4s,4s,4s,4s,4s,4s";
const DEFER_SCHEDULE: &str = "100ms,250ms,1s";
/// Longer than a copy can be missing from all queues: a deferral, or a transfer to the queue of
/// jobs that a lost node interrupted.
const QUIET: Duration = Duration::from_secs(3);

/// Everything that runs, except broker and Redis.
pub(crate) struct Shop {
    pub(crate) workers: Vec<Worker>,
    sandbox: Arc<Sandbox>,
    results: Seen,
    load: Load,
    prefix: String,
    broker_url: String,
    settings: BTreeMap<&'static str, String>,
    began: Instant,
    /// The number of unfinished jobs at each fault.
    met: Vec<usize>,
    _serving: DropGuard,
}

/// A running worker process.
pub(crate) struct Worker {
    pub(crate) process: Process,
    url: String,
}

/// The jobs that were unfinished at a fault.
pub(crate) struct Struck {
    open: BTreeSet<Job>,
    published: usize,
}

impl Shop {
    /// Starts this many workers and the load, with many captures of the hot payments.
    pub(crate) async fn open(
        broker_url: &str,
        redis_url: &str,
        workers: usize,
        hot: &[String],
    ) -> Self {
        let options = SandboxOptions { latency: LATENCY, ..SandboxOptions::default() };
        let sandbox = Arc::new(Sandbox::new(Keys::generate().unwrap(), options).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway_url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(sandbox::serve(listener, Arc::clone(&sandbox), stop.clone()));
        let keys = sandbox.keys();
        let prefix = format!("h{:08x}", rand::random::<u32>());
        let settings = [
            ("BROKER__URL", broker_url),
            ("BROKER__PREFIX", &prefix),
            ("BROKER__PREFETCH", "32"),
            ("REDIS__URL", redis_url),
            ("GATEWAY__BASE_URL", &gateway_url),
            ("GATEWAY__CLIENT_ID", &keys.client_id),
            ("GATEWAY__PRIVATE_KEY", &keys.private_key),
            ("GATEWAY__PUBLIC_KEY", &keys.public_key),
            ("GATEWAY__TIMEOUT", "2s"),
            ("GATEWAY__INQUIRY_TIMEOUT", "2s"),
            ("LEASE__TTL", "5s"),
            // A replica that takes over may lack the end of an in-doubt block. Without a short
            // limit, the payment would stay blocked longer than the test waits.
            ("LEASE__HOLD_IN_DOUBT", "10s"),
            ("RETRY__SCHEDULE", RETRY_SCHEDULE),
            ("RETRY__DEFER_SCHEDULE", DEFER_SCHEDULE),
            ("BREAKER__PAUSE", "200ms"),
            ("BREAKER__MAX_PAUSE", "1s"),
            ("LOG__FILTER", "warn"),
        ];
        let settings: BTreeMap<_, _> = settings.map(|(key, value)| (key, value.to_owned())).into();
        // The first worker declares the topology, before the others check it.
        let first = start_worker(&settings).await;
        let results = write_down_results(broker_url, &prefix).await.unwrap();
        let mut shop = Self {
            workers: vec![first],
            sandbox,
            load: Load::start(broker_url, &prefix, &results, hot),
            results,
            prefix,
            broker_url: broker_url.to_owned(),
            settings,
            began: Instant::now(),
            met: Vec::new(),
            _serving: stop.drop_guard(),
        };
        shop.scale_up(workers).await;
        shop
    }

    /// Starts workers until this many run.
    pub(crate) async fn scale_up(&mut self, workers: usize) {
        let missing = workers - self.workers.len();
        let fresh = (0..missing).map(|_| start_worker(&self.settings));
        self.workers.extend(futures_util::future::join_all(fresh).await);
    }

    /// The full name of a key that workers write to Redis, such as `key("ping")`.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}:{name}", owner(&self.prefix, &self.settings["GATEWAY__CLIENT_ID"]))
    }

    /// The name of the queue of jobs.
    pub(crate) fn jobs_queue(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// Causes a fault while a capture of this hot payment is in progress and others of it wait.
    pub(crate) async fn strike(&mut self, hot: &str, fault: impl FnOnce(&mut Self)) -> Struck {
        let under_load = async || {
            let unfinished = self.unfinished();
            let of_it = unfinished.iter().filter(|job| job.payment_id == hot).count();
            unfinished.len() >= BACKLOG / 2 && of_it > 3 && self.sandbox.in_flight(hot) > 0
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
        for worker in &mut self.workers {
            assert!(worker.process.ended().is_none(), "{}", worker.process.describe());
        }
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
        for worker in &self.workers {
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
            for worker in &self.workers {
                in_flight += worker.metric("capture_worker_jobs_in_flight").await;
            }
            if in_flight > 0 || !self.queued().await.is_some_and(|queued| queued.is_empty()) {
                quiet_since = Instant::now();
            }
            quiet_since.elapsed() > QUIET
        })
        .await;
        for worker in &mut self.workers {
            assert_eq!(worker.drain().await, Some(0), "{}", worker.process.describe());
        }
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
        let ledger = self.sandbox.ledger();
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
        let ledger = self.sandbox.ledger();
        let captures = ledger["captures"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let job = |capture: &serde_json::Value| Job {
            id: text(&capture["captureRequestId"]),
            payment_id: text(&capture["paymentId"]),
            value: text(&capture["captureAmount"]["value"]),
        };
        captures.iter().map(job).collect()
    }

    /// The ready messages of the queue of jobs and of each class and delay, by queue. `None` if the
    /// broker does not reply.
    async fn queued(&self) -> Option<BTreeMap<String, u32>> {
        let broker = TestBroker::connect(&self.broker_url).await.ok()?;
        let delays: BTreeSet<&str> =
            RETRY_SCHEDULE.split(',').chain(DEFER_SCHEDULE.split(',')).collect();
        let classes = Class::ALL.map(|class| format!("dead.{class}"));
        let queues = delays.into_iter().map(|delay| format!("wait.{delay}")).chain(classes);
        let mut queued = BTreeMap::new();
        for queue in queues.chain(["jobs".to_owned()]) {
            let name = format!("{}.{queue}", self.prefix);
            let depth = broker.queue_depth(&name).await.ok()?.expect("the queue exists");
            if depth > 0 {
                queued.insert(queue, depth);
            }
        }
        Some(queued)
    }
}

impl Worker {
    /// The value of a counter or gauge, or 0 if it does not exist yet.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let metrics = http::get(&self.url, "/metrics").await.unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// The number of log lines that contain this text.
    pub(crate) fn logged(&self, what: &str) -> usize {
        self.process.stderr().lines().filter(|line| line.contains(what)).count()
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn drain(&mut self) -> Option<i32> {
        self.process.signal(Signal::SIGTERM).unwrap();
        self.process.wait(LIMIT).await.unwrap().code()
    }
}

/// Starts a worker and waits until it consumes.
async fn start_worker(settings: &BTreeMap<&'static str, String>) -> Worker {
    let mut run = command(Path::new(PROGRAM), &["run"]);
    run.envs(settings.iter().map(|(key, value)| (format!("CAPTURE__{key}"), value)));
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    run.env("CAPTURE__HTTP__LISTEN", &listen);
    let process = Process::spawn(run).unwrap();
    let url = format!("http://{listen}");
    let ready = within(LIMIT, async || http::get(&url, "/readyz").await.is_ok()).await;
    assert!(ready.is_some(), "a worker is not ready: {}", process.describe());
    Worker { process, url }
}
