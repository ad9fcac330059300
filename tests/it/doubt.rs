//! Unknown outcomes are retried under the same id until the gateway reports the outcome. They never
//! count as failures.

use std::time::{Duration, SystemTime};

use capture_worker::domain::capture::class::Class;
use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::{
    shop::{LIMIT, Shop, headers, job, job_until},
    support::{poll::eventually, servers::free_port},
};

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
    let shop = Shop::open().await;
    let _worker = shop.worker().await;
    let payment = |name: &str| format!("sim-{name}-1");
    let ended_otherwise = ["in-process-fails", "in-process-for-ever", "unknown-for-ever"];
    for name in RECOVERED.iter().chain(&ended_otherwise) {
        shop.publish(&job(&format!("c-{name}"), &payment(name), 100)).await;
    }
    for name in RECOVERED {
        let id = format!("c-{name}");
        shop.ends_as(&id, "CAPTURED", None).await;
        assert_eq!(shop.captures_of(&id), 1, "{name}");
    }
    let failed = shop.ends_as("c-in-process-fails", "FAILED", Some("provider")).await;
    assert_eq!(failed["resultCode"], "PROCESS_FAIL");
    for (name, code) in
        [("in-process-for-ever", "PAYMENT_IN_PROCESS"), ("unknown-for-ever", "UNKNOWN_EXCEPTION")]
    {
        let result = shop.ends_as(&format!("c-{name}"), "IN_DOUBT", Some("in_doubt")).await;
        assert_eq!((&result["resultCode"], &result["resultStatus"]), (&json!(code), &json!("U")));
        assert_eq!(result["attempts"], 4, "three delays allow four attempts");
    }
    let letters = shop.dead(Class::InDoubt, 2).await;
    for letter in letters {
        assert_eq!(letter.header("x-capture-sent").as_deref(), Some("true"));
        assert_eq!(letter.header("x-capture-signed").as_deref(), Some("false"));
        assert_eq!(letter.header("x-capture-status").as_deref(), Some("U"));
    }
    shop.dead(Class::Provider, 1).await;
    eventually("all queues are empty", LIMIT, async || shop.queued().await.is_empty()).await;
    shop.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_in_process_is_inquired_about_and_not_posted_again() {
    let shop = Shop::open().await;
    let _worker = shop.worker().await;
    let steps = json!([{"answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 2}]);
    shop.script("p", steps);
    shop.publish(&job("c", "p", 100)).await;
    let result = shop.ends_as("c", "CAPTURED", None).await;
    assert_eq!((shop.posts("p", "c"), shop.inquiries("p")), (1, 3));
    assert_eq!(result["attempts"], 4, "an attempt that only inquired counts");
    assert!(result["captureId"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_exception_is_posted_again_under_the_same_id() {
    let shop = Shop::open().await;
    let _worker = shop.worker().await;
    shop.publish(&job("c", "sim-unknown-exception-1", 100)).await;
    let result = shop.ends_as("c", "CAPTURED", None).await;
    let payment = "sim-unknown-exception-1";
    assert_eq!((shop.posts(payment, "c"), shop.inquiries(payment)), (2, 0));
    assert_eq!(result["attempts"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_wait_for_the_delays_of_the_schedule() {
    let shop = Shop::open().await.set("RETRY__SCHEDULE", "300ms,1s");
    let _worker = shop.worker().await;
    shop.publish(&job("c", "sim-unknown-for-ever-1", 100)).await;
    shop.ends_as("c", "IN_DOUBT", Some("in_doubt")).await;
    let times: Vec<i64> =
        shop.calls("sim-unknown-for-ever-1").into_iter().map(|(_, _, at_ms)| at_ms).collect();
    let gaps: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps.len(), 2);
    assert!(gaps[0] >= 300 && gaps[1] >= 1000, "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_retried_after_the_maximum_age() {
    let shop = Shop::open().await;
    let shop = shop.set("RETRY__SCHEDULE", "200ms,400ms,800ms,1s").set("RETRY__MAX_AGE", "500ms");
    let shop = shop.set("RETRY__DEFER_SCHEDULE", "100ms");
    let _worker = shop.worker().await;
    // This capture ends in doubt by its age, before its schedule is used.
    shop.publish(&job("doubtful", "sim-unknown-for-ever-1", 100)).await;
    let result = shop.ends_as("doubtful", "IN_DOUBT", Some("in_doubt")).await;
    assert!(result["attempts"].as_u64() < Some(5), "{result}");
    // This one is deferred because of the first, and was never sent.
    shop.publish(&job("waits", "sim-unknown-for-ever-1", 100)).await;
    let result = shop.ends_as("waits", "FAILED", Some("expired")).await;
    assert_eq!(
        (result["attempts"].as_u64(), shop.posts("sim-unknown-for-ever-1", "waits")),
        (Some(0), 0)
    );
    // An unsigned refusal of the credentials uses no attempt.
    let denied =
        json!([{"answer": {"code": "KEY_NOT_FOUND"}, "signed": false, "times": "forever"}]);
    shop.script("p", denied);
    shop.publish(&job("account", "p", 100)).await;
    let result = shop.ends_as("account", "FAILED", Some("access")).await;
    assert_eq!(result["attempts"], 0);
    let letter = shop.dead(Class::Access, 1).await.remove(0);
    assert_eq!(letter.header("x-capture-signed").as_deref(), Some("false"));
    assert_eq!(letter.header("x-capture-code").as_deref(), Some("KEY_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_in_doubt_blocks_its_payment_until_it_is_resolved() {
    let shop = Shop::open().await;
    let shop = shop.set("RETRY__SCHEDULE", "200ms,300ms,400ms,500ms,600ms,700ms");
    let _worker = shop.worker().await;
    let steps = json!([
        {"captureRequestId": "first", "answer": "no_answer", "times": 2},
        {"captureRequestId": "first", "answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 2},
    ]);
    shop.script("p", steps);
    shop.publish(&job("first", "p", 100)).await;
    eventually("the first capture is in doubt", LIMIT, async || shop.posts("p", "first") > 0).await;
    for id in ["second", "third"] {
        shop.publish(&job(id, "p", 100)).await;
    }
    for id in ["first", "second", "third"] {
        shop.ends_as(id, "CAPTURED", None).await;
    }
    let posted: Vec<Option<String>> = shop.calls("p").into_iter().map(|(id, ..)| id).collect();
    let first = Some("first".to_owned());
    let resolved = posted.iter().rposition(|id| *id == first || id.is_none());
    let others = posted.iter().position(|id| id.is_some() && *id != first);
    assert!(
        resolved < others,
        "another capture was posted before the first was resolved: {posted:?}"
    );
    let result = shop.results_of("second").await.remove(0);
    assert_eq!(result["attempts"], 1, "a deferral uses no attempt");
    shop.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_in_doubt_block_ends_after_its_time() {
    let shop = Shop::open().await;
    let shop = shop.set("RETRY__SCHEDULE", "100ms,60s").set("LEASE__HOLD_IN_DOUBT", "3s");
    let shop = shop.set("LEASE__TTL", "2500ms");
    let _worker = shop.worker().await;
    let steps = json!([{"captureRequestId": "first", "answer": "no_answer", "times": "forever"}]);
    shop.script("p", steps);
    shop.publish(&job("first", "p", 100)).await;
    eventually("the first is posted twice", LIMIT, async || shop.posts("p", "first") == 2).await;
    shop.publish(&job("second", "p", 100)).await;
    shop.ends_as("second", "CAPTURED", None).await;
    let calls = shop.calls("p");
    let last_send = calls.iter().rfind(|call| call.0.as_deref() == Some("first")).unwrap().2;
    let second = calls.iter().find(|call| call.0.as_deref() == Some("second")).unwrap().2;
    // Slightly less than three seconds, because the in-doubt block is written before the call from
    // which the test counts.
    assert!(second - last_send >= 2_500, "the block ended after {} ms", second - last_send);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_in_doubt_block_outlives_a_killed_worker() {
    let shop = Shop::open().await.set("LEASE__TTL", "2500ms");
    let mut worker = shop.worker().await;
    let steps = json!([
        {"captureRequestId": "first", "answer": "hang"},
        {"captureRequestId": "first", "answer": {"code": "UNKNOWN_EXCEPTION"}},
    ]);
    shop.script("p", steps);
    shop.publish(&job("first", "p", 100)).await;
    eventually("the first is in progress", LIMIT, async || shop.posts("p", "first") == 1).await;
    worker.process.kill9();
    shop.publish(&job("second", "p", 100)).await;
    let _next = shop.worker().await;
    shop.ends_as("first", "CAPTURED", None).await;
    shop.ends_as("second", "CAPTURED", None).await;
    let posted: Vec<String> = shop.calls("p").into_iter().filter_map(|(id, ..)| id).collect();
    // The sandbox also records the hanging call, at its beginning.
    assert_eq!(posted, ["first", "first", "first", "second"]);
    shop.assert_clean_books();
}

/// Copies have no headers. Only the sent marker shows that the id may have been sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_job_in_doubt_never_ends_expired_or_unreachable() {
    let shop = Shop::open().await.set("LEASE__HOLD_IN_DOUBT", "3s").set("LEASE__TTL", "2500ms");
    // The breaker must not pause captures in this test's outage.
    let shop = shop.set("BREAKER__FAILURES", "100");
    let mut worker = shop.worker().await;
    shop.script("p", json!([{"answer": "no_answer", "times": "forever"}]));
    let until = SystemTime::now() + Duration::from_secs(2);
    let body = job_until("c", "p", until);
    shop.publish(&body).await;
    shop.ends_as("c", "IN_DOUBT", Some("in_doubt")).await;
    eventually("the job has expired", LIMIT, async || SystemTime::now() > until).await;

    shop.publish(&body).await;
    let second = async || Some(shop.results_now("c")).filter(|results| results.len() == 2);
    let results = eventually("the copy's result", LIMIT, second).await;
    assert_eq!(results[1]["status"], "IN_DOUBT", "an expired copy is still executed");

    assert_eq!(worker.drain().await, Some(0));
    let nobody = format!("http://127.0.0.1:{}", free_port().unwrap());
    let _cut_off = shop.worker_with(&[("GATEWAY__BASE_URL", &nobody)]).await;
    shop.publish(&body).await;
    shop.publish(&job("fresh", "p-2", 100)).await;
    let third = async || Some(shop.results_now("c")).filter(|results| results.len() == 3);
    let results = eventually("the third result", LIMIT, third).await;
    assert_eq!(results[2]["class"], "in_doubt", "a sent id is never unreachable");
    let unreachable = shop.ends_as("fresh", "FAILED", Some("unreachable")).await;
    assert_eq!(unreachable["attempts"], 4);
    shop.dead(Class::InDoubt, 3).await;
    shop.dead(Class::Unreachable, 1).await;
    assert!(shop.queued().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_job_does_not_begin_unless_it_was_sent() {
    let shop = Shop::open().await;
    let _worker = shop.worker().await;
    let past = SystemTime::now() - Duration::from_secs(60);
    shop.publish(&job_until("never-sent", "p", past)).await;
    let sent = headers([("x-capture-sent", AMQPValue::Boolean(true))]);
    shop.publish_with(&job_until("sent", "p", past), sent).await;
    // A header that is present and not `false` counts as true, even with another type.
    let odd = headers([("x-capture-sent", AMQPValue::LongLongInt(0))]);
    shop.publish_with(&job_until("odd", "p", past), odd).await;
    let not_sent = headers([("x-capture-sent", AMQPValue::Boolean(false))]);
    shop.publish_with(&job_until("not-sent", "p", past), not_sent).await;
    for id in ["never-sent", "not-sent"] {
        shop.ends_as(id, "FAILED", Some("expired")).await;
        assert_eq!(shop.posts("p", id), 0);
    }
    // Only headers say that these were sent. An inquiry shows that there is no such capture.
    for id in ["sent", "odd"] {
        shop.ends_as(id, "FAILED", Some("expired")).await;
        assert_eq!(shop.posts("p", id), 0);
    }
    assert_eq!(shop.inquiries("p"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_sent_in_time_is_retried_after_it_expired() {
    let shop = Shop::open().await.set("RETRY__SCHEDULE", "6s,6s");
    let _worker = shop.worker().await;
    shop.script("p", json!([{"answer": "no_answer"}]));
    let soon = SystemTime::now() + Duration::from_secs(5);
    shop.publish(&job_until("c", "p", soon)).await;
    let result = shop.ends_as("c", "CAPTURED", None).await;
    assert!(SystemTime::now() > soon, "the second attempt came too early");
    assert_eq!((&result["attempts"], shop.posts("p", "c")), (&json!(2), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_a_sent_id_inquires_before_it_posts() {
    let shop = Shop::open().await;
    let _worker = shop.worker().await;
    let replayed = || {
        headers([
            ("x-capture-sent", AMQPValue::Boolean(true)),
            ("x-capture-replays", AMQPValue::LongLongInt(1)),
        ])
    };
    // The inquiry shows no capture, so the same attempt posts.
    shop.publish_with(&job("unseen", "p", 100), replayed()).await;
    let result = shop.ends_as("unseen", "CAPTURED", None).await;
    assert_eq!((&result["attempts"], shop.inquiries("p")), (&json!(1), 1));
    // The id was captured, and Redis has lost the outcome: the inquiry alone settles it.
    shop.script("q", json!([{"answer": "no_answer", "executes": true, "times": "forever"}]));
    shop.publish(&job("lost", "q", 100)).await;
    shop.ends_as("lost", "IN_DOUBT", Some("in_doubt")).await;
    let posts = shop.posts("q", "lost");
    shop.publish_with(&job("lost", "q", 100), replayed()).await;
    let second = async || Some(shop.results_now("lost")).filter(|results| results.len() == 2);
    let results: Vec<Value> = eventually("the second result", LIMIT, second).await;
    assert_eq!(results[1]["status"], "CAPTURED");
    assert_eq!((shop.posts("q", "lost"), shop.captures_of("lost")), (posts, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inquiry_without_evidence_leaves_the_capture_in_doubt() {
    let shop = Shop::open().await;
    let _worker = shop.worker().await;
    let steps = json!([
        {"answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 0},
        {"call": "inquiry", "answer": "unsigned"},
        {"call": "inquiry", "answer": {"code": "SYSTEM_ERROR"}},
    ]);
    shop.script("p", steps);
    shop.publish(&job("c", "p", 100)).await;
    let result = shop.ends_as("c", "CAPTURED", None).await;
    assert_eq!((&result["attempts"], shop.posts("p", "c")), (&json!(4), 1));
    let answers: Vec<String> = shop.calls("p").into_iter().map(|(_, answer, _)| answer).collect();
    assert_eq!(answers, ["CAPTURE_IN_PROCESS", "unsigned", "SYSTEM_ERROR", "SUCCESS"]);
}
