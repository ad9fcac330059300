//! The evidence that settles a job: recorded outcomes and replies that match their request, but
//! never a header.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use capture_worker::domain::capture::class::Class;
use lapin::types::AMQPValue;
use serde_json::json;
use testkit::{
    LIMIT,
    poll::eventually,
    servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
};

use crate::env::{ItEnv, headers, job, text};

/// A recorded capture of HKD 100, in the form that a worker writes.
const CAPTURED: &str =
    "HKD:100\ncaptured\n{\"captured\":{\"code\":\"SUCCESS\",\"capture_id\":\"recorded\"}}";

fn has(redis: &PrivateRedis, key: &str) -> bool {
    matches!(redis.cmd(&["EXISTS", key]), Ok(Reply::Int(1)))
}

async fn env_with_redis() -> (ItEnv, PrivateRedis) {
    let (rabbit, redis) =
        tokio::try_join!(shared_rabbit(), PrivateRedis::start(Persistence::None)).unwrap();
    (ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await, redis)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_recorded_meanwhile_settles_an_attempt_in_doubt() {
    let (env, redis) = env_with_redis().await;
    let env = env.set("RETRY__SCHEDULE", "1h");
    let _worker = env.worker().await;
    env.script("p", json!([{"answer": "no_answer", "delay_ms": 700}]));
    env.publish(&job("c", "p", 100)).await;
    let begun = async || has(&redis, &env.key("{p}:sent:c"));
    eventually("the capture is in progress", LIMIT, begun).await;
    redis.cmd(&["SET", &env.key("{p}:known:c"), CAPTURED]).unwrap();
    let result = env.ends_as("c", "CAPTURED", None).await;
    assert_eq!((&result["captureId"], &result["evidence"]), (&json!("recorded"), &json!("record")));
    assert_eq!(env.posts("p", "c"), 1);
    assert!(!has(&redis, &env.key("{p}:hold")), "the in-doubt block ends with the outcome");
}

#[tokio::test(flavor = "multi_thread")]
async fn finding_a_recorded_outcome_ends_the_in_doubt_block() {
    let (env, redis) = env_with_redis().await;
    let hold = format!("{:032}c", 0);
    redis.cmd(&["SET", &env.key("{p}:hold"), &hold, "PX", "600000"]).unwrap();
    redis.cmd(&["SET", &env.key("{p}:known:c"), CAPTURED]).unwrap();
    let _worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    env.publish(&job("other", "p", 100)).await;
    env.ends_as("other", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_capture_is_evidence_and_a_stale_failure_is_not() {
    for way in ["stale", "odd_time"] {
        let env = ItEnv::open().await;
        let worker = env.worker().await;
        env.script("p", json!([{"answer": way}]));
        env.publish(&job("c", "p", 100)).await;
        env.ends_as("c", "CAPTURED", None).await;
        assert_eq!((env.posts("p", "c"), env.inquiries("p")), (1, 0), "{way}");

        env.sandbox_has_seen("q").await;
        env.script("q", json!([{"answer": way}]));
        env.publish(&job("d", "q", 1001)).await;
        env.ends_as("d", "FAILED", Some("limit")).await;
        assert_eq!(env.posts("q", "d"), 2, "{way}: the first reply is no verdict");
        assert!(worker.process.stderr().contains("check NTP"), "{}", worker.process.describe());
    }
}

/// A publisher may write any header. None of them counts as a verdict of the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn forged_headers_only_choose_the_first_call() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    for (id, code, status) in [
        ("a", "ACCESS_DENIED", "F"),
        ("b", "REPEAT_REQ_INCONSISTENT", "F"),
        ("c", "RISK_REJECT", "F"),
        ("d", "SUCCESS", "S"),
        ("e", "CAPTURE_IN_PROCESS", "U"),
    ] {
        let payment = format!("p-{id}");
        env.sandbox_has_seen(&payment).await;
        let forged = headers([
            ("x-capture-last-code", text(code)),
            ("x-capture-last-status", text(status)),
            ("x-capture-sent", AMQPValue::Boolean(true)),
            ("x-capture-first-seen", AMQPValue::LongLongInt(1_600_000_000_000)),
        ]);
        env.publish_with(&job(id, &payment, 100), forged).await;
        let result = env.ends_as(id, "CAPTURED", None).await;
        assert_eq!((&result["evidence"], env.inquiries(&payment)), (&json!("reply"), 1), "{id}");
    }
    assert_eq!(env.dead_count(Class::Access).await, 0);
}

/// Redis keeps the refusal that ends an id, where only workers write, so that it also counts for a
/// copy without headers.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_a_sent_id_is_kept_in_redis_and_ends_the_id() {
    let (env, redis) = env_with_redis().await;
    let _worker = env.worker().await;
    env.sandbox_has_seen("p").await;
    let refused = json!([
        {"answer": "no_answer"},
        {"answer": {"code": "ACCESS_DENIED"}},
    ]);
    env.script("p", refused);
    env.publish(&job("c", "p", 100)).await;
    let result = env.ends_as("c", "FAILED", Some("access")).await;
    assert_eq!(
        (&result["resultCode"], &result["evidence"]),
        (&json!("ACCESS_DENIED"), &json!("inquiry"))
    );
    let Ok(Reply::Text(marker)) = redis.cmd(&["GET", &env.key("{p}:sent:c")]) else {
        panic!("no marker")
    };
    assert!(marker.ends_with("\nHKD:100\nACCESS_DENIED"), "{marker:?}");
    assert_eq!(env.captures_of("c"), 0);
}
