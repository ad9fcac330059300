//! Unknown outcomes are retried under the same id until the gateway reports the outcome. They never
//! count as failures.

use std::time::{Duration, SystemTime};

use capture_worker::domain::capture::class::Class;
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use testkit::{LIMIT, poll::eventually, servers::free_port};

use crate::env::{ItEnv, headers, job, job_until};

/// The gateway's faults that end after one or two calls.
const RECOVERED: [&str; 22] = [
    "in-process",
    "unknown-exception",
    "unknown-executed",
    "traffic-limit",
    "answer-lost",
    "request-lost",
    "hang",
    "http-500",
    "http-503",
    "http-429",
    "http-302",
    "garbage",
    "empty",
    "huge",
    "unsigned",
    "bad-signature",
    "unknown-status",
    "other-id",
    "other-payment",
    "other-amount",
    "denied",
    "lost-then-denied",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_ambiguous_reply_ends_captured_exactly_once_or_in_doubt() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let payment = |name: &str| format!("sim-{name}-1");
    let ended_otherwise = ["in-process-fails", "in-process-for-ever", "unknown-for-ever"];
    for name in RECOVERED.iter().chain(&ended_otherwise) {
        env.publish(&job(&format!("c-{name}"), &payment(name), 100)).await;
    }
    for name in RECOVERED {
        let id = format!("c-{name}");
        env.ends_as(&id, "CAPTURED", None).await;
        assert_eq!(env.captures_of(&id), 1, "{name}");
    }
    let failed = env.ends_as("c-in-process-fails", "FAILED", Some("provider")).await;
    assert_eq!(failed["resultCode"], "PROCESS_FAIL");
    for (name, code) in
        [("in-process-for-ever", "PAYMENT_IN_PROCESS"), ("unknown-for-ever", "UNKNOWN_EXCEPTION")]
    {
        let result = env.ends_as(&format!("c-{name}"), "IN_DOUBT", Some("in_doubt")).await;
        assert_eq!((&result["resultCode"], &result["resultStatus"]), (&json!(code), &json!("U")));
        assert_eq!(result["attempts"], 4, "three delays allow four attempts");
    }
    let dead_letters = env.dead(Class::InDoubt, 2).await;
    for dead_letter in dead_letters {
        assert_eq!(dead_letter.header("x-capture-sent").as_deref(), Some("true"));
        assert_eq!(dead_letter.header("x-capture-signed").as_deref(), Some("false"));
        assert_eq!(dead_letter.header("x-capture-status").as_deref(), Some("U"));
    }
    env.dead(Class::Provider, 1).await;
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_in_process_is_inquired_about_and_not_posted_again() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let steps = json!([{"answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 2}]);
    env.script("p", steps);
    env.publish(&job("c", "p", 100)).await;
    let result = env.ends_as("c", "CAPTURED", None).await;
    assert_eq!((env.posts("p", "c"), env.inquiries("p")), (1, 3));
    assert_eq!(result["attempts"], 4, "an attempt that only inquired counts");
    assert!(result["captureId"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_exception_is_posted_again_under_the_same_id() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    env.publish(&job("c", "sim-unknown-exception-1", 100)).await;
    let result = env.ends_as("c", "CAPTURED", None).await;
    let payment = "sim-unknown-exception-1";
    assert_eq!((env.posts(payment, "c"), env.inquiries(payment)), (2, 0));
    assert_eq!(result["attempts"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_wait_for_the_delays_of_the_schedule() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "300ms,1s");
    let _worker = env.worker().await;
    env.publish(&job("c", "sim-unknown-for-ever-1", 100)).await;
    env.ends_as("c", "IN_DOUBT", Some("in_doubt")).await;
    let times: Vec<i64> =
        env.calls("sim-unknown-for-ever-1").into_iter().map(|(_, _, at_ms)| at_ms).collect();
    let gaps: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps.len(), 2);
    assert!(gaps[0] >= 300 && gaps[1] >= 1000, "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_retried_after_the_maximum_age() {
    let env = ItEnv::open().await;
    let env = env.set("RETRY__SCHEDULE", "200ms,400ms,800ms,1s").set("RETRY__MAX_AGE", "500ms");
    let env = env.set("RETRY__DEFER_SCHEDULE", "100ms");
    let _worker = env.worker().await;
    // This capture ends in doubt by its age, before its schedule is used.
    env.publish(&job("doubtful", "sim-unknown-for-ever-1", 100)).await;
    let result = env.ends_as("doubtful", "IN_DOUBT", Some("in_doubt")).await;
    assert!(result["attempts"].as_u64() < Some(5), "{result}");
    // This one is deferred because of the first, and was never sent.
    env.publish(&job("waits", "sim-unknown-for-ever-1", 100)).await;
    let result = env.ends_as("waits", "FAILED", Some("expired")).await;
    assert_eq!(
        (result["attempts"].as_u64(), env.posts("sim-unknown-for-ever-1", "waits")),
        (Some(0), 0)
    );
    // An unsigned refusal of the credentials uses no attempt.
    let denied =
        json!([{"answer": {"code": "KEY_NOT_FOUND"}, "signed": false, "times": "forever"}]);
    env.script("p", denied);
    env.publish(&job("account", "p", 100)).await;
    let result = env.ends_as("account", "FAILED", Some("access")).await;
    assert_eq!(result["attempts"], 0);
    let dead_letter = env.dead(Class::Access, 1).await.remove(0);
    assert_eq!(dead_letter.header("x-capture-signed").as_deref(), Some("false"));
    assert_eq!(dead_letter.header("x-capture-code").as_deref(), Some("KEY_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_in_doubt_blocks_its_payment_until_it_is_resolved() {
    let env = ItEnv::open().await;
    let env = env.set("RETRY__SCHEDULE", "200ms,300ms,400ms,500ms,600ms,700ms");
    let _worker = env.worker().await;
    let steps = json!([
        {"captureRequestId": "first", "answer": "no_answer", "times": 2},
        {"captureRequestId": "first", "answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 2},
    ]);
    env.script("p", steps);
    env.publish(&job("first", "p", 100)).await;
    eventually("the first capture is in doubt", LIMIT, async || env.posts("p", "first") > 0).await;
    for id in ["second", "third"] {
        env.publish(&job(id, "p", 100)).await;
    }
    for id in ["first", "second", "third"] {
        env.ends_as(id, "CAPTURED", None).await;
    }
    let posted: Vec<Option<String>> = env.calls("p").into_iter().map(|(id, ..)| id).collect();
    let first = Some("first".to_owned());
    let resolved = posted.iter().rposition(|id| *id == first || id.is_none());
    let others = posted.iter().position(|id| id.is_some() && *id != first);
    assert!(
        resolved < others,
        "another capture was posted before the first was resolved: {posted:?}"
    );
    let result = env.results_of("second").await.remove(0);
    assert_eq!(result["attempts"], 1, "a deferral uses no attempt");
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_in_doubt_block_ends_after_its_time() {
    let env = ItEnv::open().await;
    let env = env.set("RETRY__SCHEDULE", "100ms,60s").set("LEASE__HOLD_IN_DOUBT", "3s");
    let env = env.set("LEASE__TTL", "2500ms");
    let _worker = env.worker().await;
    let steps = json!([{"captureRequestId": "first", "answer": "no_answer", "times": "forever"}]);
    env.script("p", steps);
    env.publish(&job("first", "p", 100)).await;
    eventually("the first is posted twice", LIMIT, async || env.posts("p", "first") == 2).await;
    env.publish(&job("second", "p", 100)).await;
    env.ends_as("second", "CAPTURED", None).await;
    let calls = env.calls("p");
    let last_send = calls.iter().rfind(|call| call.0.as_deref() == Some("first")).unwrap().2;
    let second = calls.iter().find(|call| call.0.as_deref() == Some("second")).unwrap().2;
    // Slightly less than three seconds, because the in-doubt block is written before the call from
    // which the test counts.
    assert!(second - last_send >= 2_500, "the block ended after {} ms", second - last_send);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_in_doubt_block_outlives_a_killed_worker() {
    let env = ItEnv::open().await.set("LEASE__TTL", "2500ms");
    let mut worker = env.worker().await;
    let steps = json!([
        {"captureRequestId": "first", "answer": "hang"},
        {"captureRequestId": "first", "answer": {"code": "UNKNOWN_EXCEPTION"}},
    ]);
    env.script("p", steps);
    env.publish(&job("first", "p", 100)).await;
    eventually("the first is in progress", LIMIT, async || env.posts("p", "first") == 1).await;
    worker.process.kill9();
    env.publish(&job("second", "p", 100)).await;
    let _next = env.worker().await;
    env.ends_as("first", "CAPTURED", None).await;
    env.ends_as("second", "CAPTURED", None).await;
    let posted: Vec<String> = env.calls("p").into_iter().filter_map(|(id, ..)| id).collect();
    // The sandbox also records the hanging call, at its beginning.
    assert_eq!(posted, ["first", "first", "first", "second"]);
    env.assert_clean_books();
}

/// Copies have no headers. Only the sent marker shows that the id may have been sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_job_in_doubt_never_ends_expired_or_unreachable() {
    let env = ItEnv::open().await.set("LEASE__HOLD_IN_DOUBT", "3s").set("LEASE__TTL", "2500ms");
    // The breaker must not pause captures in this test's outage.
    let env = env.set("BREAKER__FAILURES", "100");
    let mut worker = env.worker().await;
    env.script("p", json!([{"answer": "no_answer", "times": "forever"}]));
    let until = SystemTime::now() + Duration::from_secs(2);
    let body = job_until("c", "p", until);
    env.publish(&body).await;
    env.ends_as("c", "IN_DOUBT", Some("in_doubt")).await;
    eventually("the job has expired", LIMIT, async || SystemTime::now() > until).await;

    env.publish(&body).await;
    let second = async || Some(env.results_now("c")).filter(|results| results.len() == 2);
    let results = eventually("the copy's result", LIMIT, second).await;
    assert_eq!(results[1]["status"], "IN_DOUBT", "an expired copy is still executed");

    assert_eq!(worker.drain().await, Some(0));
    let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
    let _cut_off = env.worker_with(&[("GATEWAY__BASE_URL", &nobody)]).await;
    env.publish(&body).await;
    env.publish(&job("fresh", "p-2", 100)).await;
    let third = async || Some(env.results_now("c")).filter(|results| results.len() == 3);
    let results = eventually("the third result", LIMIT, third).await;
    assert_eq!(results[2]["class"], "in_doubt", "a sent id is never unreachable");
    let unreachable = env.ends_as("fresh", "FAILED", Some("unreachable")).await;
    assert_eq!(unreachable["attempts"], 4);
    env.dead(Class::InDoubt, 3).await;
    env.dead(Class::Unreachable, 1).await;
    assert!(env.queued().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_job_does_not_begin_unless_it_was_sent() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let past = SystemTime::now() - Duration::from_secs(60);
    env.publish(&job_until("never-sent", "p", past)).await;
    let sent = headers([("x-capture-sent", AMQPValue::Boolean(true))]);
    env.publish_with(&job_until("sent", "p", past), sent).await;
    // A header that is present and not `false` counts as true, even with another type.
    let odd = headers([("x-capture-sent", AMQPValue::LongLongInt(0))]);
    env.publish_with(&job_until("odd", "p", past), odd).await;
    let not_sent = headers([("x-capture-sent", AMQPValue::Boolean(false))]);
    env.publish_with(&job_until("not-sent", "p", past), not_sent).await;
    for id in ["never-sent", "not-sent"] {
        env.ends_as(id, "FAILED", Some("expired")).await;
        assert_eq!(env.posts("p", id), 0);
    }
    // Only headers say that these were sent. An inquiry shows that there is no such capture.
    for id in ["sent", "odd"] {
        env.ends_as(id, "FAILED", Some("expired")).await;
        assert_eq!(env.posts("p", id), 0);
    }
    assert_eq!(env.inquiries("p"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_sent_in_time_is_retried_after_it_expired() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "6s,6s");
    let _worker = env.worker().await;
    env.script("p", json!([{"answer": "no_answer"}]));
    let soon = SystemTime::now() + Duration::from_secs(5);
    env.publish(&job_until("c", "p", soon)).await;
    let result = env.ends_as("c", "CAPTURED", None).await;
    assert!(SystemTime::now() > soon, "the second attempt came too early");
    assert_eq!((&result["attempts"], env.posts("p", "c")), (&json!(2), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_a_sent_id_inquires_before_it_posts() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let replayed = || {
        headers([
            ("x-capture-sent", AMQPValue::Boolean(true)),
            ("x-capture-replays", AMQPValue::LongLongInt(1)),
        ])
    };
    // The inquiry shows no capture, so the same attempt posts.
    env.publish_with(&job("unseen", "p", 100), replayed()).await;
    let result = env.ends_as("unseen", "CAPTURED", None).await;
    assert_eq!((&result["attempts"], env.inquiries("p")), (&json!(1), 1));
    // The id was captured, and Redis has lost the outcome: the inquiry alone settles it.
    env.script("q", json!([{"answer": "no_answer", "executes": true, "times": "forever"}]));
    env.publish(&job("lost", "q", 100)).await;
    env.ends_as("lost", "IN_DOUBT", Some("in_doubt")).await;
    let posts = env.posts("q", "lost");
    env.publish_with(&job("lost", "q", 100), replayed()).await;
    let second = async || Some(env.results_now("lost")).filter(|results| results.len() == 2);
    let results: Vec<Value> = eventually("the second result", LIMIT, second).await;
    assert_eq!(results[1]["status"], "CAPTURED");
    assert_eq!((env.posts("q", "lost"), env.captures_of("lost")), (posts, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inquiry_without_evidence_leaves_the_capture_in_doubt() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let steps = json!([
        {"answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 0},
        {"call": "inquiry", "answer": "unsigned"},
        {"call": "inquiry", "answer": {"code": "SYSTEM_ERROR"}},
    ]);
    env.script("p", steps);
    env.publish(&job("c", "p", 100)).await;
    let result = env.ends_as("c", "CAPTURED", None).await;
    assert_eq!((&result["attempts"], env.posts("p", "c")), (&json!(4), 1));
    let answers: Vec<String> = env.calls("p").into_iter().map(|(_, answer, _)| answer).collect();
    assert_eq!(answers, ["CAPTURE_IN_PROCESS", "unsigned", "SYSTEM_ERROR", "SUCCESS"]);
}
