//! An adversarial gateway, duplicated jobs, killed workers, two operators who replay everything at
//! once, and a Redis that is emptied between the rounds. No id and no family of fresh ids captures
//! twice, and no job is lost.
//!
//! `CAPTURE_ADVERSARY=2000 cargo test --release --test it adversary -- --nocapture` takes that many
//! jobs.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]
#![expect(clippy::print_stdout, reason = "prints the figures of a run for people")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use capture_worker::domain::capture::{class::Class, family::fresh_id};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};
use testkit::{
    poll::eventually,
    processes::Process,
    servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, job};

const JOBS: usize = 60;
const ROUNDS: usize = 3;
const GENERATIONS: usize = ROUNDS + 2;
/// The time limit for each hundred jobs, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The gateway's fault in one call of an id. It includes every fault except to move money and
/// report a signed failure.
const ANSWERS: [&str; 18] = [
    r#"{"answer":{"code":"ACCESS_DENIED"}}"#,
    r#"{"answer":{"code":"ACCESS_DENIED"}}"#,
    r#"{"answer":{"code":"PARAM_ILLEGAL"}}"#,
    r#"{"answer":{"code":"INVALID_SIGNATURE"},"signed":false}"#,
    r#"{"answer":{"code":"RISK_REJECT"}}"#,
    r#"{"answer":{"code":"UNKNOWN_EXCEPTION"}}"#,
    r#"{"answer":{"code":"UNKNOWN_EXCEPTION"},"executes":true}"#,
    r#"{"answer":{"code":"CAPTURE_IN_PROCESS"},"inquiries":2}"#,
    r#"{"answer":{"code":"CAPTURE_IN_PROCESS"},"resolves_to":"PROCESS_FAIL"}"#,
    r#"{"answer":"no_answer"}"#,
    r#"{"answer":"no_answer","executes":true}"#,
    r#"{"answer":"no_answer","executes":true,"delay_ms":300}"#,
    r#"{"answer":"garbage","executes":true}"#,
    r#"{"answer":"stale"}"#,
    r#"{"answer":"odd_time"}"#,
    r#"{"answer":"other_id"}"#,
    r#"{"answer":"bad_signature"}"#,
    r#"{"answer":"unsigned"}"#,
];

/// The gateway's fault in an inquiry about a payment.
const INQUIRIES: [&str; 6] = [
    r#"{"call":"inquiry","answer":{"http":503}}"#,
    r#"{"call":"inquiry","answer":"stale"}"#,
    r#"{"call":"inquiry","answer":"unsigned"}"#,
    r#"{"call":"inquiry","answer":"garbage"}"#,
    r#"{"call":"inquiry","answer":{"code":"UNKNOWN_EXCEPTION"}}"#,
    r#"{"call":"inquiry","answer":"no_answer"}"#,
];

/// An id and the fresh ids that replays can make of it.
fn family(id: &str) -> Vec<String> {
    let next = |id: &String| Some(fresh_id(id));
    std::iter::successors(Some(id.to_owned()), next).take(GENERATIONS).collect()
}

/// The script of the gateway for a job of this payment and its descendants.
fn steps(id: &str, rng: &mut StdRng) -> Vec<Value> {
    let parse = |step: &&str| serde_json::from_str::<Value>(step).unwrap();
    let mut steps = Vec::new();
    for member in family(id) {
        for _ in 0..rng.random_range(0..3) {
            let mut step = ANSWERS.choose(rng).map(parse).unwrap();
            step["captureRequestId"] = json!(member);
            steps.push(step);
        }
    }
    for _ in 0..rng.random_range(0..4) {
        steps.push(INQUIRIES.choose(rng).map(parse).unwrap());
    }
    steps
}

struct Adversary {
    env: ItEnv,
    redis: PrivateRedis,
    workers: Vec<Worker>,
    ids: Vec<String>,
    rng: StdRng,
    limit: Duration,
    kills: usize,
}

impl Adversary {
    async fn open(jobs: usize, seed: u64) -> Self {
        let (rabbit, redis) =
            tokio::try_join!(shared_rabbit(), PrivateRedis::start(Persistence::None)).unwrap();
        let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::from_millis(5)).await;
        let env = env.set("BREAKER__PAUSE", "100ms").set("BREAKER__MAX_PAUSE", "400ms");
        let env = env.set("RETRY__SCHEDULE", "100ms,200ms,400ms,1s");
        // An id that ends in doubt blocks the other captures of its payment this long.
        let env = env.set("LEASE__HOLD_IN_DOUBT", "2s");
        let workers = vec![env.worker().await, env.worker().await];
        let limit = LIMIT * u32::try_from(jobs.div_ceil(100)).unwrap();
        let rng = StdRng::seed_from_u64(seed);
        Self { env, redis, workers, ids: Vec::new(), rng, limit, kills: 0 }
    }

    /// Publishes jobs, three per payment and 30 % of them twice, and kills a worker meanwhile.
    async fn publish(&mut self, jobs: usize) {
        for n in 0..jobs {
            let (id, payment) = (format!("a-{n}"), format!("p-{}", n / 3));
            let steps = steps(&id, &mut self.rng);
            self.env.script(&payment, json!(steps));
            let copies = if self.rng.random_bool(0.3) { 2 } else { 1 };
            for _ in 0..copies {
                self.env.publish(&job(&id, &payment, 100)).await;
            }
            self.ids.push(id);
            if n % 40 == 20 {
                self.kill().await;
            }
        }
    }

    async fn kill(&mut self) {
        let which = self.rng.random_range(0..self.workers.len());
        self.workers[which].process.kill9();
        self.workers[which] = self.env.start_worker().await;
        self.kills += 1;
    }

    /// Waits until no work remains: all queues except those of dead letters stay empty for as long
    /// as the longest wait.
    async fn settle(&self) {
        let is_quiet = async || {
            let queued = self.env.queued().await;
            queued.keys().all(|queue| queue.starts_with("dead."))
        };
        let all_ended = async || {
            let statuses: BTreeSet<String> = self.statuses().into_keys().collect();
            self.ids.iter().all(|id| statuses.contains(id)) && is_quiet().await
        };
        eventually("every job has ended", self.limit, all_ended).await;
        let mut quiet_since = Instant::now();
        let stays_quiet = async || {
            if !is_quiet().await {
                quiet_since = Instant::now();
            }
            quiet_since.elapsed() > Duration::from_secs(3)
        };
        eventually("no work remains", self.limit, stays_quiet).await;
    }

    /// The statuses in the results of each id.
    fn statuses(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut statuses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for result in self.env.results.all() {
            let result = result.json().unwrap();
            let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
            statuses.entry(text("captureRequestId")).or_default().insert(text("status"));
        }
        statuses
    }

    /// Two operators replay everything at once, while a worker dies.
    async fn replay(&mut self) -> [u64; 3] {
        let replay = ["dead", "replay", "--all", "--yes", "--json", "--reason", "the adversary"];
        let mut operators = [0, 1].map(|_| Process::spawn(self.env.program(&replay)).unwrap());
        self.kill().await;
        let mut sums = [0; 3];
        for operator in &mut operators {
            operator.wait(self.limit).await.unwrap();
            let document: Value = serde_json::from_str(&operator.stdout()).unwrap_or_default();
            for (sum, count) in sums.iter_mut().zip(["sent", "settled", "refused"]) {
                *sum += document[count].as_u64().unwrap_or_default();
            }
        }
        sums
    }

    /// The number of captures of each id in the gateway's ledger.
    fn captured(&self) -> BTreeMap<String, usize> {
        let ledger = self.env.sandbox.ledger();
        let mut captured: BTreeMap<String, usize> = BTreeMap::new();
        for capture in ledger["captures"].as_array().unwrap() {
            let id = capture["captureRequestId"].as_str().unwrap().to_owned();
            *captured.entry(id).or_default() += 1;
        }
        captured
    }

    async fn close(mut self, seed: u64, began: Instant) {
        let (captured, statuses) = (self.captured(), self.statuses());
        let mut dead = BTreeMap::new();
        for class in Class::ALL {
            let count = self.env.dead_count(class).await;
            if count > 0 {
                dead.insert(class, count);
            }
        }
        let twice: Vec<_> = captured.iter().filter(|(_, times)| **times > 1).collect();
        let doubled: Vec<_> = self
            .ids
            .iter()
            .filter(|id| {
                family(id).iter().filter(|member| captured.contains_key(*member)).count() > 1
            })
            .collect();
        let lost: Vec<_> = self.ids.iter().filter(|id| !statuses.contains_key(*id)).collect();
        let denied: Vec<_> = statuses
            .iter()
            .filter(|(id, statuses)| statuses.contains("CAPTURED") && !captured.contains_key(*id))
            .collect();
        let ledger = self.env.sandbox.ledger();
        println!(
            "seed {seed}: {} jobs, {} kills, {} captured, dead {dead:?}, {} s; twice {}, families \
             twice {}, lost {}, overlaps {}",
            self.ids.len(),
            self.kills,
            captured.len(),
            began.elapsed().as_secs(),
            twice.len(),
            doubled.len(),
            lost.len(),
            ledger["overlaps"],
        );
        assert!(twice.is_empty(), "seed {seed}: captured twice: {twice:?}");
        assert!(doubled.is_empty(), "seed {seed}: a family captured twice: {doubled:?}");
        assert!(lost.is_empty(), "seed {seed}: lost: {lost:?}");
        assert!(denied.is_empty(), "seed {seed}: CAPTURED, but not in the ledger: {denied:?}");
        for worker in &mut self.workers {
            worker.drain().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_family_captures_twice_at_an_adversarial_gateway() {
    let jobs = std::env::var("CAPTURE_ADVERSARY").ok().and_then(|jobs| jobs.parse().ok());
    let (jobs, seed, began) = (jobs.unwrap_or(JOBS), rand::random::<u64>(), Instant::now());
    println!("seed {seed}");
    let mut adversary = Adversary::open(jobs, seed).await;
    adversary.publish(jobs).await;
    adversary.settle().await;
    for round in 0..ROUNDS {
        let [sent, settled, refused] = adversary.replay().await;
        println!("round {round}: sent {sent}, settled {settled}, refused {refused}");
        adversary.settle().await;
        adversary.redis.cmd(&["FLUSHALL"]).unwrap();
        let server = adversary.env.key("server");
        let is_named =
            async || matches!(adversary.redis.cmd(&["EXISTS", &server]), Ok(Reply::Int(1)));
        eventually("the workers have waited", adversary.limit, is_named).await;
    }
    adversary.close(seed, began).await;
}
