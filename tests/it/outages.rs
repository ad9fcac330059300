//! Long outages: the gateway does not reply, rejects the credentials or is overloaded, or Redis is
//! unavailable. The backlog waits, no job becomes a dead letter because of the outage, and no
//! operator has to act afterwards.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{
    LIMIT, http,
    poll::{eventually, within},
    proxy::Proxy,
    servers::{Persistence, PrivateRedis, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, job};

/// Publishes a backlog with one payment per job.
async fn publish_backlog(env: &ItEnv, count: usize) {
    for n in 0..count {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
}

async fn captures_reach(env: &ItEnv, count: usize, limit: Duration) {
    let what = format!("{count} captures");
    let captured = async || env.sandbox.ledger()["captures"].as_array().unwrap().len() >= count;
    eventually(&what, limit, captured).await;
}

async fn breaker_becomes(worker: &Worker, open: bool) {
    let expected = u64::from(open);
    eventually(&format!("the breaker is {expected}"), LIMIT, async || {
        worker.metric("capture_worker_breaker_open").await == expected
    })
    .await;
}

/// Asserts that every job is captured once in few attempts, and that none became a dead letter.
async fn assert_untouched(env: &ItEnv, count: usize, limit: Duration) {
    captures_reach(env, count, limit).await;
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    eventually("every job has its result", LIMIT, async || env.results.all().len() >= count).await;
    let results: Vec<Value> =
        env.results.all().iter().map(|result| result.json().unwrap()).collect();
    assert!(results.iter().all(|result| result["status"] == "CAPTURED"), "a dead letter");
    let attempts = results.iter().map(|result| result["attempts"].as_u64().unwrap());
    assert!(attempts.max() < Some(4), "a job used too many attempts");
    env.assert_clean_books();
}

/// For twenty seconds, the gateway refuses connections, then replies with 503, then does not reply,
/// then rejects the credentials.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_down_costs_no_job_its_attempts() {
    const JOBS: usize = 2000;
    let env = ItEnv::open().await;
    let gateway = Proxy::to(env.gateway.port).await.unwrap();
    let url = gateway.url(&env.gateway.url());
    let env = env.set("GATEWAY__BASE_URL", &url).set("BROKER__PREFETCH", "64");
    let env = env.set("BREAKER__PAUSE", "200ms").set("BREAKER__MAX_PAUSE", "1s");
    let env = env.declare().await;
    publish_backlog(&env, JOBS).await;
    let worker = env.worker().await;
    captures_reach(&env, 20, LIMIT).await;

    let phase = Duration::from_secs(5);
    gateway.refuse().await;
    gateway.cut();
    breaker_becomes(&worker, true).await;
    // A reply that was on its way may close the breaker once more.
    let tells = async || {
        let ready = http::get(&worker.url, "/readyz").await;
        ready.expect("ready: a restart would not help").contains("breaker open")
    };
    eventually("readyz shows the open breaker", LIMIT, tells).await;
    tokio::time::sleep(phase).await;
    for answer in [json!({"http": 503}), json!("hang"), json!({"code": "INVALID_SIGNATURE"})] {
        let step =
            |call| json!({"call": call, "answer": answer, "signed": false, "times": "forever"});
        env.sandbox.clear_steps(None);
        env.script_all(json!([step("capture"), step("inquiry")]));
        gateway.accept().await.unwrap();
        tokio::time::sleep(phase).await;
        assert_eq!(worker.metric("capture_worker_breaker_open").await, 1, "{answer}");
    }
    let before = env.sandbox.ledger()["captures"].as_array().unwrap().len();
    assert!(before < JOBS, "the outage came too late: all jobs were captured before it");
    env.sandbox.clear_steps(None);
    assert_untouched(&env, JOBS, 3 * LIMIT).await;
    breaker_becomes(&worker, false).await;
    let openings = worker.metric("capture_worker_breaker_openings_total").await;
    assert_eq!(worker.logged("circuit breaker opened"), usize::try_from(openings).unwrap());
    assert_eq!(worker.logged("circuit breaker closed"), worker.logged("circuit breaker opened"));
}

/// After a key rotation on one side only, the gateway rejects every call from the first job on.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_credentials_make_no_dead_letters() {
    let env = ItEnv::open().await.set("BROKER__PREFETCH", "64").set("BREAKER__PAUSE", "200ms");
    let denied = |call: &str| {
        let answer = json!({"code": "INVALID_SIGNATURE"});
        json!({"call": call, "answer": answer, "signed": false, "times": "forever"})
    };
    env.script_all(json!([denied("capture"), denied("inquiry")]));
    let env = env.declare().await;
    publish_backlog(&env, 300).await;
    let worker = env.worker().await;
    breaker_becomes(&worker, true).await;
    let posts = async || env.sandbox.calls(None).as_array().unwrap().len();
    let before = posts().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(posts().await < before + 64 + 5, "more posts than those in progress");
    env.sandbox.clear_steps(None);
    assert_untouched(&env, 300, LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn business_failures_and_unknown_outcomes_never_open_the_breaker() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    for n in 0..12 {
        let name = if n % 2 == 0 { "RISK_REJECT" } else { "UNKNOWN_EXCEPTION" };
        env.script(&format!("p-{n}"), json!([{"answer": {"code": name}, "times": "forever"}]));
    }
    publish_backlog(&env, 12).await;
    for n in 0..12 {
        env.results_of(&format!("c-{n}")).await;
    }
    assert_eq!(worker.metric("capture_worker_breaker_openings_total").await, 0);
}

/// The gateway replies to inquiries and not to captures. A probe closes the breaker, the next
/// capture opens it again, and only that capture uses an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn when_only_captures_fail_they_are_tried_one_at_a_time() {
    let env = ItEnv::open().await.set("BREAKER__PAUSE", "100ms").set("BREAKER__MAX_PAUSE", "400ms");
    let env = env.set("RETRY__SCHEDULE", "100ms,200ms,400ms,800ms,1s,1s,1s,1s,1s,1s,1s,1s");
    let env = env.declare().await;
    env.script_all(json!([{"answer": {"http": 503}, "times": "forever"}]));
    publish_backlog(&env, 100).await;
    let worker = env.worker().await;
    let reopened = async || worker.metric("capture_worker_breaker_openings_total").await >= 5;
    eventually("the breaker opens several times", LIMIT, reopened).await;
    env.sandbox.clear_steps(None);
    captures_reach(&env, 100, LIMIT).await;
    eventually("every job has its result", LIMIT, async || env.results.all().len() >= 100).await;
    let spent = worker.metric("capture_worker_attempts_total").await;
    let openings = worker.metric("capture_worker_breaker_openings_total").await;
    assert!(spent <= 100 + 5 + openings * 3, "{spent} attempts, {openings} openings");
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_limits_reduce_the_call_rate_and_retry_after_stops_it() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    env.script_all(json!([{"answer": {"http": 429}, "retry_after": 1}]));
    publish_backlog(&env, 30).await;
    let slowed = async || worker.metric("capture_worker_calls_per_second_max").await > 0;
    eventually("calls are limited", LIMIT, slowed).await;
    let ready = http::get(&worker.url, "/readyz").await.unwrap();
    assert!(ready.contains("calls per second"), "{}", ready);
    assert_untouched(&env, 30, LIMIT).await;
    assert_eq!(worker.logged("throttled by the gateway: call rate reduced"), 1);
    let results = env.results.all();
    let attempts = results.iter().map(|result| result.json().unwrap()["attempts"].as_u64());
    assert!(attempts.flatten().all(|attempts| attempts == 1), "a traffic limit used an attempt");
}

/// The outage is longer than the time for which a worker keeps jobs in hand.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_over_a_minute_raises_no_delivery_count() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut redis = PrivateRedis::start(Persistence::Always).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::from_millis(20)).await;
    let worker = env.worker().await;
    // When a consumer is cancelled (after the first job, for the full prefetch, and in a pause),
    // the broker requeues the messages on their way. Here there are none.
    env.publish(&job("first", "first", 100)).await;
    env.ends_as("first", "CAPTURED", None).await;
    env.script("hot", json!([{"answer": "honest", "delay_ms": 500}]));
    for n in 0..5 {
        env.publish(&job(&format!("h-{n}"), "hot", 100)).await;
    }
    let in_hand = async || worker.metric("capture_worker_jobs_in_flight").await == 5;
    eventually("all jobs are in hand", LIMIT, in_hand).await;
    redis.kill9();
    let paused = async || worker.logged("consumption paused") == 1;
    eventually("consumption pauses", LIMIT, paused).await;
    publish_backlog(&env, 50).await;
    let deferred = "capture_worker_deferrals_total{reason=\"lease_unavailable\"}";
    let jobs = format!("{}.jobs", env.prefix);
    let deferred = within(Duration::from_secs(90), async || {
        worker.metric(deferred).await >= 1
            && worker.metric("capture_worker_jobs_in_flight").await == 0
            && env.queued().await.keys().eq(["jobs"])
    });
    deferred.await.expect("jobs in hand are deferred after one minute");
    let messages = env.broker.peek_queue(&jobs).await.unwrap();
    let deferred =
        messages.iter().filter(|message| message.header("x-capture-deferrals").is_some());
    assert!(deferred.count() >= 1);
    for message in &messages {
        assert!(!message.redelivered, "the broker requeued the job: {message:?}");
        assert!(message.header("x-capture-returns").is_none_or(|returns| returns == "0"));
        assert!(
            message.header("x-capture-attempt").is_none_or(|attempt| attempt == "0"),
            "{message:?}"
        );
    }
    redis.start_again().await.unwrap();
    assert_untouched(&env, 56, LIMIT).await;
}
