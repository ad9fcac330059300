//! The metrics of queues, ages, leases, publishes and deadlines that alerts and dashboards use.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use lapin::{BasicProperties, options::QueueDeleteOptions, types::FieldTable};
use serde_json::json;
use testkit::{LIMIT, http, poll::eventually, worker::Worker};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::env::{ItEnv, job};

/// The value of a sample, by its name and labels in the exposition format.
async fn sample(worker: &Worker, sample: &str) -> Option<f64> {
    let scrape = http::get(&worker.url, "/metrics").await.unwrap();
    scrape.lines().find_map(|line| {
        line.strip_prefix(&format!("capture_worker_{sample}"))?.strip_prefix(' ')?.parse().ok()
    })
}

async fn becomes(worker: &Worker, name: &str, is_right: impl Fn(f64) -> bool) -> f64 {
    eventually(name, LIMIT, async || sample(worker, name).await.filter(|value| is_right(*value)))
        .await
}

fn same(value: f64, number: u32) -> bool {
    value.total_cmp(&f64::from(number)).is_eq()
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_have_counts_and_the_time_since_they_were_last_empty() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "1h");
    let worker = env.worker().await;
    becomes(&worker, r#"queue_messages{kind="jobs",name="jobs"}"#, |n| same(n, 0)).await;
    env.script("p-risk", json!([{"answer": {"code": "RISK_REJECT"}, "times": "forever"}]));
    env.script("p-u", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": "forever"}]));
    for n in 0..3 {
        env.publish(&job(&format!("r-{n}"), "p-risk", 100)).await;
    }
    env.publish(&job("u", "p-u", 100)).await;
    becomes(&worker, r#"queue_messages{kind="dead",name="risk"}"#, |n| same(n, 3)).await;
    becomes(&worker, r#"queue_messages{kind="wait",name="1h"}"#, |n| same(n, 1)).await;
    becomes(&worker, r#"queue_nonempty_seconds{kind="dead",name="risk"}"#, |s| s > 0.0).await;
    let empty = sample(&worker, r#"queue_nonempty_seconds{kind="dead",name="limit"}"#).await;
    assert!(same(empty.unwrap(), 0), "{empty:?}");
    for (kind, name) in [("audit", "audit"), ("dead", "poison"), ("wait", "100ms")] {
        let name = format!("queue_messages{{kind=\"{kind}\",name=\"{name}\"}}");
        assert!(sample(&worker, &name).await.is_some(), "{name}");
    }
    let queue = format!("{}.dead.risk", env.prefix);
    assert_eq!(env.broker.drain_queue(&queue).await.unwrap().len(), 3);
    becomes(&worker, r#"queue_nonempty_seconds{kind="dead",name="risk"}"#, |s| same(s, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_has_no_count_and_affects_no_other() {
    let env = ItEnv::open().await.declare().await.set("BROKER__TOPOLOGY", "none");
    let channel = env.broker.channel().await.unwrap();
    // This queue has no at-least-once dead-lettering, so it is safe to delete.
    let queue = format!("{}.dead.payer", env.prefix);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let worker = env.worker().await;
    becomes(&worker, r#"queue_messages{kind="dead",name="provider"}"#, |n| same(n, 0)).await;
    assert_eq!(sample(&worker, r#"queue_messages{kind="dead",name="payer"}"#).await, None);
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ages_count_from_the_publishers_timestamp() {
    let env = ItEnv::open().await.set("GATEWAY__TIMEOUT", "5s");
    let worker = env.worker().await;
    env.script("p", json!([{"answer": "honest", "delay_ms": 2000}]));
    let an_hour_ago = OffsetDateTime::now_utc() - Duration::from_secs(3600);
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_timestamp(u64::try_from(an_hour_ago.unix_timestamp()).unwrap());
    let exchange = format!("{}.jobs", env.prefix);
    env.broker.publish(&exchange, "shipped", &job("c", "p", 100), properties).await.unwrap();
    let age = becomes(&worker, "oldest_job_age_seconds", |age| age > 0.0).await;
    assert!((3_600.0..3_700.0).contains(&age), "{age}");
    env.ends_as("c", "CAPTURED", None).await;
    becomes(&worker, "oldest_job_age_seconds", |age| same(age, 0)).await;
    let ended = sample(&worker, r#"job_age_seconds_bucket{le="3600.0",settlement="captured"}"#);
    assert!(same(ended.await.unwrap(), 0));
    let ended = sample(&worker, r#"job_age_seconds_bucket{le="10800.0",settlement="captured"}"#);
    assert!(same(ended.await.unwrap(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_acquisitions_and_publishes_are_counted_by_result() {
    let env = ItEnv::open_slow(Duration::from_millis(50)).await;
    let worker = env.worker().await;
    for n in 0..6 {
        env.publish(&job(&format!("c-{n}"), "p", 100)).await;
    }
    env.publish(&job("c-0", "p", 100)).await;
    env.results.wait_for(7, LIMIT).await.unwrap();
    let count = async |name: &str| {
        let scrape = http::get(&worker.url, "/metrics").await.unwrap();
        let value = scrape.lines().find_map(|line| {
            line.strip_prefix(&format!("capture_worker_{name} "))?.parse::<u32>().ok()
        });
        value.unwrap_or_default()
    };
    let taken = count(r#"lease_acquisitions_total{result="taken"}"#).await;
    let handed_over = count(r#"lease_acquisitions_total{result="handed_over"}"#).await;
    assert!(taken >= 1 && handed_over >= 1, "{taken}, {handed_over}");
    assert_eq!(taken + handed_over, 6, "each capture acquired the lease once");
    assert_eq!(count("lease_wait_seconds_count").await, 6);
    assert!(count(r#"lease_acquisitions_total{result="known"}"#).await >= 1, "the copy needs none");
    let results = r#"publishes_total{to="results",result="confirmed"}"#;
    becomes(&worker, results, |n| same(n, 7)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_finds_no_queue_is_counted() {
    let env = ItEnv::open().await.declare().await.set("BROKER__TOPOLOGY", "none");
    let channel = env.broker.channel().await.unwrap();
    let (queue, exchange) = (format!("{}.dead.risk", env.prefix), format!("{}.dead", env.prefix));
    let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
    channel.queue_unbind(queue, exchange, "risk".into(), FieldTable::default()).await.unwrap();
    let worker = env.worker().await;
    env.script("p", json!([{"answer": {"code": "RISK_REJECT"}, "times": "forever"}]));
    env.publish(&job("c", "p", 100)).await;
    let returned = r#"publishes_total{to="dead",result="returned"}"#;
    becomes(&worker, returned, |n| n >= 1.0).await;
    assert_eq!(env.results_of("c").await.len(), 1, "the result needs no queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_until_shortly_before_they_expire_are_counted() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "30m,30m");
    let worker = env.worker().await;
    let unknown = json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": "forever"}]);
    for (minutes, within) in [(35, "10m"), (80, "1h"), (300, "6h"), (3000, "")] {
        let payment = format!("p-{minutes}");
        env.script(&payment, unknown.clone());
        let expires_at = OffsetDateTime::now_utc() + Duration::from_secs(minutes * 60);
        let job = json!({
            "captureRequestId": format!("c-{minutes}"),
            "paymentId": payment,
            "captureAmount": {"currency": "HKD", "value": "100"},
            "expiresAt": expires_at.format(&Rfc3339).unwrap(),
        });
        env.publish(job.to_string().as_bytes()).await;
        if !within.is_empty() {
            let name = format!("expiring_jobs_total{{within=\"{within}\"}}");
            becomes(&worker, &name, |n| same(n, 1)).await;
        }
    }
    becomes(&worker, r#"settlements_total{settlement="retry",class="none"}"#, |n| same(n, 4)).await;
    let scrape = http::get(&worker.url, "/metrics").await.unwrap();
    let counted =
        scrape.lines().filter(|line| line.starts_with("capture_worker_expiring_jobs_total"));
    assert_eq!(counted.count(), 3, "a job with enough time is not counted");
}
