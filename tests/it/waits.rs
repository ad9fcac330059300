//! The waits between the acquisition of the lease and the call: meanwhile the job may expire, and
//! the worker may receive a signal.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::{Duration, SystemTime};

use capture_worker::domain::capture::class::Class;
use nix::sys::signal::Signal;
use serde_json::json;
use testkit::{
    LIMIT, http,
    poll::eventually,
    proxy::Proxy,
    servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, job, job_until};

/// The sandbox records a call when it has replied. On a busy machine this is later than the
/// departure of the call by up to this time.
const ANSWERED_WITHIN_MS: u128 = 1500;

fn epoch_ms(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

async fn in_flight(worker: &Worker, jobs: u64) {
    let name = "capture_worker_jobs_in_flight ";
    eventually(&format!("{jobs} jobs are in flight"), LIMIT, async || {
        let metrics = http::get(&worker.url, "/metrics").await.unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value == Some(&jobs.to_string())
    })
    .await;
}

/// With two calls per second, most jobs expire while they wait.
#[tokio::test(flavor = "multi_thread")]
async fn no_capture_begins_after_a_job_expired_in_the_rate_limiter() {
    const JOBS: usize = 16;
    let env = ItEnv::open().await.set("GATEWAY__RATE_LIMIT", "2/s");
    let _worker = env.worker().await;
    let until = SystemTime::now() + Duration::from_secs(3);
    for n in 0..JOBS {
        env.publish(&job_until(&format!("c-{n}"), &format!("p-{n}"), until)).await;
    }
    let all = async || env.results.all().len() == JOBS;
    eventually("every job has its result", LIMIT, all).await;
    let calls = env.sandbox.calls(None);
    let calls = calls.as_array().unwrap();
    let latest = calls.iter().map(|call| u128::from(call["atMs"].as_u64().unwrap())).max();
    assert!(latest < Some(epoch_ms(until) + ANSWERED_WITHIN_MS), "{latest:?} {until:?}");
    let expired = env.dead(Class::Expired, u32::try_from(JOBS - calls.len()).unwrap()).await;
    assert!(!expired.is_empty(), "no job expired, so the test shows nothing");
    assert!(expired.iter().all(|dead_letter| dead_letter.header("x-capture-sent").is_none()));
}

/// What the lease wrote for a capture that was never sent is rolled back: its payment is free at
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_expires_in_a_retry_after_leaves_no_sent_marker() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    env.script("stop", json!([{"answer": {"http": 429}, "retry_after": 4}]));
    env.publish(&job("first", "stop", 100)).await;
    eventually("the first is throttled", LIMIT, async || env.posts("stop", "first") == 1).await;
    let slowed =
        async || worker.process.stderr().contains("throttled by the gateway: call rate reduced");
    eventually("calls are stopped", LIMIT, slowed).await;
    let until = SystemTime::now() + Duration::from_secs(1);
    env.publish(&job_until("late", "p", until)).await;
    env.ends_as("late", "FAILED", Some("expired")).await;
    assert_eq!(env.posts("p", "late"), 0);
    env.publish(&job("next", "p", 100)).await;
    env.ends_as("next", "CAPTURED", None).await;
    env.ends_as("first", "CAPTURED", None).await;
    env.assert_clean_books();
}

/// The next call may leave after half a minute, so one job waits for its first call and one for its
/// second.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_never_sent_keeps_only_older_sent_markers() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let env = env.set("LEASE__TTL", "3m").set("GATEWAY__RATE_LIMIT", "2/m");
    let mut worker = env.worker().await;
    env.script("older", json!([{"answer": "no_answer"}]));
    env.publish(&job("older", "older", 100)).await;
    eventually("the older job was sent", LIMIT, async || env.posts("older", "older") == 1).await;
    env.publish(&job("fresh", "fresh", 100)).await;
    let keys = |pattern: &str| {
        let Reply::List(keys) = redis.cmd(&["KEYS", pattern]).unwrap() else { panic!("no list") };
        keys.len()
    };
    let wait = async || keys("*:lease") == 2 && keys("*:sent:*") == 2;
    eventually("both have leases and sent markers", LIMIT, wait).await;
    assert_eq!(worker.drain().await, Some(0));
    assert_eq!((env.posts("older", "older"), env.posts("fresh", "fresh")), (1, 0));
    assert_eq!((keys("*:sent:fresh"), keys("*{fresh}:hold")), (0, 0), "rolled back");
    assert_eq!((keys("*:sent:older"), keys("*{older}:hold")), (1, 1), "still in doubt");
    assert_eq!(keys("*:lease"), 0);
    let _worker = env.worker_with(&[("GATEWAY__RATE_LIMIT", "100/s")]).await;
    for id in ["older", "fresh"] {
        env.ends_as(id, "CAPTURED", None).await;
    }
    env.assert_clean_books();
}

/// The worker hands back the waiting jobs, and does not continue to capture until `drain.timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_the_wait_for_the_rate_limiter() {
    const JOBS: usize = 12;
    let env = ItEnv::open().await.set("DRAIN__TIMEOUT", "4s");
    let env = env.declare().await;
    for n in 0..JOBS {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    let mut worker = env.worker_with(&[("GATEWAY__RATE_LIMIT", "1/s")]).await;
    in_flight(&worker, u64::try_from(JOBS - 1).unwrap()).await;
    let before = env.sandbox.calls(None).as_array().unwrap().len();
    assert_eq!(worker.drain().await, Some(0));
    let after = env.sandbox.calls(None).as_array().unwrap().len();
    assert!(after <= before + 2, "{} captures began in the drain", after - before);
    let _worker = env.worker().await;
    for n in 0..JOBS {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
    }
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_the_wait_for_a_retry_after() {
    let env = ItEnv::open().await.set("DRAIN__TIMEOUT", "4s");
    let mut worker = env.worker().await;
    env.script("stop", json!([{"answer": {"http": 429}, "retry_after": 15}]));
    env.publish(&job("first", "stop", 100)).await;
    eventually("the first is throttled", LIMIT, async || env.posts("stop", "first") == 1).await;
    let slowed =
        async || worker.process.stderr().contains("throttled by the gateway: call rate reduced");
    eventually("calls are stopped", LIMIT, slowed).await;
    for n in 0..5 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    in_flight(&worker, 6).await;
    assert_eq!(worker.drain().await, Some(0));
    assert_eq!(env.sandbox.calls(None).as_array().unwrap().len(), 1);
    let _worker = env.worker().await;
    for id in ["first", "c-0", "c-1", "c-2", "c-3", "c-4"] {
        env.ends_as(id, "CAPTURED", None).await;
    }
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_the_wait_for_an_unresponsive_redis() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let port = redis.url().rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::to(port).await.unwrap();
    let url = proxy.url(&redis.url());
    let env = ItEnv::open_at(&rabbit.url(), &url, Duration::ZERO).await;
    let env = env.set("DRAIN__TIMEOUT", "10s");
    let mut worker = env.worker().await;
    proxy.freeze();
    for n in 0..5 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    eventually("some jobs are in hand", LIMIT, async || {
        let metrics = http::get(&worker.url, "/metrics").await.unwrap();
        !metrics.contains("capture_worker_jobs_in_flight 0\n")
    })
    .await;
    assert_eq!(worker.drain().await, Some(0));
    proxy.thaw();
    let _worker = env.worker().await;
    for n in 0..5 {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
    }
    env.assert_clean_books();
}

/// `timeout` and some init processes send the signal to the process and to its group.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_at_once_does_not_abort_the_drain() {
    let env = ItEnv::open_slow(Duration::from_secs(3)).await.set("GATEWAY__TIMEOUT", "8s");
    let mut worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    eventually("the capture is posted", LIMIT, async || env.posts("p", "c") == 1).await;
    worker.process.signal(Signal::SIGTERM).unwrap();
    let draining = |line: &str| line.contains("drain started").then_some(());
    worker.process.line(LIMIT, draining).await.unwrap();
    assert_eq!(worker.drain().await, Some(0));
    env.ends_as("c", "CAPTURED", None).await;
    assert_eq!(env.posts("p", "c"), 1);
}
