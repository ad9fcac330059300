//! Compares the published jobs with the results, the gateway's ledger and the remaining messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::PoisonError,
};

use capture_worker::domain::capture::class::Class;
use serde_json::Value;
use testkit::broker::TestBroker;

use crate::{
    env::{PREFIX, StormEnv},
    plan::Job,
};

/// The outcome of a run.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) captured: usize,
    pub(crate) failed: usize,
    pub(crate) in_doubt: usize,
    /// Jobs that are in doubt by their results and captured by the ledger. This is correct: an
    /// operator's inquiry resolves them.
    pub(crate) in_doubt_and_captured: usize,
    pub(crate) dead_letters: BTreeMap<String, usize>,
    pub(crate) money: BTreeMap<String, u64>,
    /// The violated rules, each with its ids.
    pub(crate) wrong: BTreeMap<&'static str, BTreeSet<String>>,
}

/// The rules that no id may violate.
const NEVER: [&str; 8] = [
    "lost: neither a result nor a dead letter",
    "captured twice",
    "captured without a job",
    "captured another amount",
    "CAPTURED, but not in the ledger",
    "FAILED, but in the ledger",
    "captured, but the gateway should have refused it",
    "left in a queue",
];

impl Books {
    /// Compares all sides after the workers have ended.
    pub(crate) async fn close(env: &StormEnv, jobs: &[Job]) -> anyhow::Result<Self> {
        let mut books =
            Self { wrong: NEVER.map(|what| (what, BTreeSet::new())).into(), ..Self::default() };
        let broker = TestBroker::connect(&env.rabbit.url()).await?;
        let mut dead = BTreeSet::new();
        for class in Class::ALL {
            let dead_letters = broker.drain_queue(&format!("{PREFIX}.dead.{class}")).await?;
            if !dead_letters.is_empty() {
                books.dead_letters.insert(class.to_string(), dead_letters.len());
            }
            for dead_letter in dead_letters {
                let body: Value = serde_json::from_slice(&dead_letter.body)?;
                dead.extend(body["captureRequestId"].as_str().map(str::to_owned));
            }
        }
        for (queue, depth) in env.base.queued(&broker).await? {
            books.wrong("left in a queue", &format!("{queue}: {depth}"));
        }
        books.compare(env, jobs, &dead);
        Ok(books)
    }

    fn compare(&mut self, env: &StormEnv, jobs: &[Job], dead: &BTreeSet<String>) {
        let by_id: BTreeMap<&str, &Job> = jobs.iter().map(|job| (job.id.as_str(), job)).collect();
        let ledger = env.gateway.sandbox.ledger();
        let mut moved = BTreeSet::new();
        for capture in ledger["captures"].as_array().into_iter().flatten() {
            let id = capture["captureRequestId"].as_str().unwrap_or_default();
            let amount = &capture["captureAmount"];
            match by_id.get(id) {
                None => self.wrong("captured without a job", id),
                Some(job)
                    if amount["currency"] != job.currency
                        || amount["value"].as_str().and_then(|value| value.parse().ok())
                            != Some(job.value) =>
                {
                    self.wrong("captured another amount", id);
                }
                Some(job) => {
                    *self.money.entry(job.currency.to_owned()).or_default() += job.value;
                    if job.refusal.is_some() {
                        self.wrong("captured, but the gateway should have refused it", id);
                    }
                }
            }
            if !moved.insert(id.to_owned()) {
                self.wrong("captured twice", id);
            }
        }
        let results = env.results.lock().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            let seen = results.get(&job.id).map(Vec::as_slice).unwrap_or_default();
            let says = |wanted: &str| seen.iter().any(|(status, _)| status == wanted);
            let is_moved = moved.contains(&job.id);
            if seen.is_empty() && !dead.contains(&job.id) {
                self.wrong("lost: neither a result nor a dead letter", &job.id);
            }
            if says("FAILED") && is_moved {
                self.wrong("FAILED, but in the ledger", &format!("{} {seen:?}", job.id));
            }
            if says("CAPTURED") {
                self.captured += 1;
                if !is_moved {
                    self.wrong("CAPTURED, but not in the ledger", &job.id);
                }
            } else if says("FAILED") {
                self.failed += 1;
            } else {
                self.in_doubt += 1;
                self.in_doubt_and_captured += usize::from(is_moved);
            }
        }
    }

    fn wrong(&mut self, what: &'static str, id: &str) {
        self.wrong.entry(what).or_default().insert(id.to_owned());
    }

    /// One line for each violated rule, with the first of its ids.
    pub(crate) fn verdict(&self) -> (bool, String) {
        let mut text = String::new();
        for (what, ids) in &self.wrong {
            let some: Vec<&str> = ids.iter().take(5).map(String::as_str).collect();
            // A write to a string cannot fail.
            writeln!(text, "  {:>6}  {what} {}", ids.len(), some.join(" ")).unwrap_or_default();
        }
        (self.wrong.values().all(BTreeSet::is_empty), text)
    }
}
