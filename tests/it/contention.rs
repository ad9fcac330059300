//! Many captures of one payment: they run one after another without pauses, other payments are not
//! delayed, and workers alternate.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{collections::BTreeMap, time::Duration};

use capture_worker::domain::capture::class::Class;
use serde_json::json;
use testkit::{
    LIMIT, http,
    poll::eventually,
    servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, job};

const SLOW: Duration = Duration::from_millis(20);

async fn publish_hot(env: &ItEnv, count: usize) {
    for n in 0..count {
        env.publish(&job(&format!("h-{n}"), "hot", 100)).await;
    }
}

async fn results_reach(env: &ItEnv, count: usize) {
    let what = format!("{count} results");
    eventually(&what, LIMIT, async || env.results.all().len() >= count).await;
    let results = env.results.all();
    let captured = |status: Option<&str>| status == Some("CAPTURED");
    assert!(results.iter().all(|result| captured(result.json().unwrap()["status"].as_str())));
    env.assert_clean_books();
}

/// The sum of all samples of a metric.
async fn metric(worker: &Worker, name: &str) -> f64 {
    let metrics = http::get(&worker.url, "/metrics").await.unwrap();
    let samples = metrics.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The worker that captured each id, by the workers' logs.
fn captured_by(workers: &[&Worker]) -> BTreeMap<String, usize> {
    let mut captured = BTreeMap::new();
    for (n, worker) in workers.iter().enumerate() {
        for line in worker.process.stderr().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            if line["settlement"] == "captured" {
                captured.insert(line["captureRequestId"].as_str().unwrap().to_owned(), n);
            }
        }
    }
    captured
}

/// The longest series of captures of one payment by one worker, and the number of changes between
/// workers.
fn turns(env: &ItEnv, workers: &[&Worker]) -> (usize, usize) {
    let by = captured_by(workers);
    let order: Vec<usize> =
        env.calls("hot").iter().filter_map(|(id, ..)| by.get(id.as_deref()?).copied()).collect();
    let rows: Vec<usize> = order.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
    (rows.iter().copied().max().unwrap_or_default(), rows.len().saturating_sub(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_payment_is_captured_without_delaying_other_payments() {
    let env = ItEnv::open_slow(SLOW).await.set("BROKER__PREFETCH", "64");
    let env = env.set("RETRY__DEFER_SCHEDULE", "250ms,1s,4s,15s").declare().await;
    publish_hot(&env, 150).await;
    for n in 0..50 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    let worker = env.worker().await;
    results_reach(&env, 200).await;
    let results = env.results.all();
    let last_cold = results.iter().rposition(|result| {
        result.json().unwrap()["paymentId"].as_str().unwrap().starts_with("p-")
    });
    assert!(last_cold < Some(120), "the last job of another payment ended at {last_cold:?}");
    let deferrals = metric(&worker, "capture_worker_deferrals_total").await;
    assert!(deferrals < 150.0 * 4.0, "{deferrals} deferrals of 150 jobs");
    let calls = metric(&worker, "capture_worker_lease_seconds_count").await;
    assert!(calls <= 200.0 * 2.0 + deferrals, "{calls} calls to Redis for 200 jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_alternate_at_a_hot_payment() {
    let env = ItEnv::open_slow(SLOW).await.set("BROKER__PREFETCH", "32");
    let (first, second) = tokio::join!(env.worker(), env.worker());
    publish_hot(&env, 120).await;
    results_reach(&env, 120).await;
    let (longest, changes) = turns(&env, &[&first, &second]);
    assert!(changes >= 6, "only {changes} changes, {longest} captures in a row by one worker");
    assert!(longest <= 40, "{longest} captures in a row by one worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_worker_that_stops_or_dies_blocks_no_others() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let env = env.set("LEASE__TTL", "2500ms");
    let (mut leaves, mut dies, _stays) = tokio::join!(env.worker(), env.worker(), env.worker());
    publish_hot(&env, 150).await;
    let captured = async |count| {
        let captures = async || env.sandbox.ledger()["captures"].as_array().unwrap().len();
        eventually("captures", LIMIT, async || captures().await >= count).await;
    };
    captured(30).await;
    assert_eq!(leaves.drain().await, Some(0));
    captured(60).await;
    dies.process.kill9();
    captured(150).await;
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    env.assert_clean_books();
    let line = redis.cmd(&["LLEN", &env.key("{hot}:line")]).unwrap();
    assert!(matches!(line, Reply::Int(0 | 1)), "only the dead worker may remain: {line:?}");
}

/// A job that kills its worker each time ends as poison. The jobs in flight beside it are captured.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_worker_ends_as_poison_alone() {
    const NEIGHBOURS: usize = 40;
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let env = env.set("GATEWAY__TIMEOUT", "20s").set("LEASE__TTL", "21s");
    let env = env.set("DRAIN__TIMEOUT", "25s").set("RETRY__MAX_AGE", "1h").declare().await;
    env.script("killer", json!([{"answer": "hang", "times": "forever"}]));
    for n in 0..NEIGHBOURS {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        if n == NEIGHBOURS / 2 {
            env.publish(&job("killer", "killer", 100)).await;
        }
    }
    let mut kills = 0;
    let dead = format!("{}.dead.poison", env.prefix);
    while env.broker.queue_depth(&dead).await.unwrap().unwrap_or_default() == 0 {
        let mut worker = env.worker().await;
        let begun = async || {
            let over = env.broker.queue_depth(&dead).await.unwrap().unwrap_or_default() > 0;
            over || env.sandbox.in_flight("killer") > 0
        };
        eventually("the killer has begun, or is a dead letter", LIMIT, begun).await;
        if env.sandbox.in_flight("killer") > 0 {
            worker.process.kill9();
            kills += 1;
            // Without this, the next worker waits until the lease expires before it begins the job.
            redis.cmd(&["DEL", &env.key("{killer}:lease")]).unwrap();
            eventually("the call has ended", LIMIT, async || env.sandbox.in_flight("killer") == 0)
                .await;
        }
        assert!(kills <= 25, "the job is never dead-lettered");
    }
    let _worker = env.worker().await;
    for n in 0..NEIGHBOURS {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
    }
    let dead_letter = env.dead(Class::Poison, 1).await.remove(0);
    assert_eq!(dead_letter.body, job("killer", "killer", 100));
    env.assert_clean_books();
}
