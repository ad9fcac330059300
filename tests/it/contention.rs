//! Many captures of one payment: one after the other without pauses, without hurting others, and each worker in its turn.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use std::{collections::BTreeMap, time::Duration};

use capture_worker::domain::class::Class;
use serde_json::json;

use crate::{
    shop::{LIMIT, Shop, Worker, job},
    support::{
        http,
        poll::eventually,
        servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
    },
};

const SLOW: Duration = Duration::from_millis(20);

async fn publish_hot(shop: &Shop, count: usize) {
    for n in 0..count {
        shop.publish(&job(&format!("h-{n}"), "hot", 100)).await;
    }
}

async fn results_reach(shop: &Shop, count: usize) {
    let what = format!("{count} results");
    eventually(&what, LIMIT, async || shop.results.all().len() >= count).await;
    let results = shop.results.all();
    let captured = |status: Option<&str>| status == Some("CAPTURED");
    assert!(results.iter().all(|result| captured(result.json().unwrap()["status"].as_str())));
    shop.assert_clean_books();
}

/// All samples of a metric, added up.
async fn metric(worker: &Worker, name: &str) -> f64 {
    let metrics = http::get(&worker.url, "/metrics").await.unwrap();
    let samples = metrics.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Which worker captured each id, by what they logged.
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

/// The longest row of captures of one payment by one worker, and how often the worker changed.
fn turns(shop: &Shop, workers: &[&Worker]) -> (usize, usize) {
    let by = captured_by(workers);
    let order: Vec<usize> =
        shop.calls("hot").iter().filter_map(|(id, ..)| by.get(id.as_deref()?).copied()).collect();
    let rows: Vec<usize> = order.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
    (rows.iter().copied().max().unwrap_or_default(), rows.len().saturating_sub(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_payment_is_captured_job_after_job_and_keeps_nobody_out() {
    let shop = Shop::open_slow(SLOW).await.set("BROKER__PREFETCH", "64");
    let shop = shop.set("RETRY__DEFER_SCHEDULE", "250ms,1s,4s,15s").declare().await;
    publish_hot(&shop, 150).await;
    for n in 0..50 {
        shop.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    let worker = shop.worker().await;
    results_reach(&shop, 200).await;
    let results = shop.results.all();
    let last_cold = results.iter().rposition(|result| {
        result.json().unwrap()["paymentId"].as_str().unwrap().starts_with("p-")
    });
    assert!(last_cold < Some(120), "the cold jobs, behind the hot ones, ended at {last_cold:?}");
    let deferrals = metric(&worker, "capture_worker_deferrals_total").await;
    assert!(deferrals < 150.0 * 4.0, "{deferrals} deferrals of 150 jobs");
    let calls = metric(&worker, "capture_worker_lease_seconds_count").await;
    assert!(calls <= 200.0 * 2.0 + deferrals, "{calls} calls to Redis for 200 jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_take_turns_at_a_hot_payment() {
    let shop = Shop::open_slow(SLOW).await.set("BROKER__PREFETCH", "32");
    let (first, second) = tokio::join!(shop.worker(), shop.worker());
    publish_hot(&shop, 120).await;
    results_reach(&shop, 120).await;
    let (longest, changes) = turns(&shop, &[&first, &second]);
    assert!(changes >= 6, "only {changes} changes, {longest} captures in a row by one worker");
    assert!(longest <= 40, "{longest} captures in a row by one worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_or_dies_in_line_keeps_nobody_waiting() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let shop = Shop::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let shop = shop.set("LEASE__TTL", "2500ms");
    let (mut leaves, mut dies, _stays) = tokio::join!(shop.worker(), shop.worker(), shop.worker());
    publish_hot(&shop, 150).await;
    let captured = async |count| {
        let captures = async || shop.sandbox.ledger()["captures"].as_array().unwrap().len();
        eventually("captures", LIMIT, async || captures().await >= count).await;
    };
    captured(30).await;
    assert_eq!(leaves.drain().await, Some(0));
    captured(60).await;
    dies.process.kill9();
    captured(150).await;
    eventually("nothing is left", LIMIT, async || shop.queued().await.is_empty()).await;
    shop.assert_clean_books();
    let line = redis.cmd(&["LLEN", &shop.key("{hot}:line")]).unwrap();
    assert!(matches!(line, Reply::Int(0 | 1)), "only the one that died may be left: {line:?}");
}

/// A job that takes its worker down each time ends as poison; those in hand with it are captured.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_worker_ends_as_poison_alone() {
    const NEIGHBOURS: usize = 40;
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let shop = Shop::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let shop = shop.set("GATEWAY__TIMEOUT", "20s").set("LEASE__TTL", "21s");
    let shop = shop.set("DRAIN__TIMEOUT", "25s").set("RETRY__MAX_AGE", "1h").declare().await;
    shop.script("killer", json!([{"answer": "hang", "times": "forever"}]));
    for n in 0..NEIGHBOURS {
        shop.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        if n == NEIGHBOURS / 2 {
            shop.publish(&job("killer", "killer", 100)).await;
        }
    }
    let mut kills = 0;
    let dead = format!("{}.dead.poison", shop.prefix);
    while shop.broker.queue_depth(&dead).await.unwrap().unwrap_or_default() == 0 {
        let mut worker = shop.worker().await;
        let begun = async || {
            let over = shop.broker.queue_depth(&dead).await.unwrap().unwrap_or_default() > 0;
            over || shop.sandbox.in_flight("killer") > 0
        };
        eventually("the killer is begun, or given up", LIMIT, begun).await;
        if shop.sandbox.in_flight("killer") > 0 {
            worker.process.kill9();
            kills += 1;
            // Else it would take the rest of the lease's time until the next one begins the job.
            redis.cmd(&["DEL", &shop.key("{killer}:lease")]).unwrap();
            eventually("the call is over", LIMIT, async || shop.sandbox.in_flight("killer") == 0)
                .await;
        }
        assert!(kills <= 25, "it kills for ever");
    }
    let _worker = shop.worker().await;
    for n in 0..NEIGHBOURS {
        shop.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
    }
    let letter = shop.dead(Class::Poison, 1).await.remove(0);
    assert_eq!(letter.body, job("killer", "killer", 100));
    shop.assert_clean_books();
}
