//! Single payments without normal replies must not stop the others, and unsigned replies must not
//! use the jobs' attempts.

use capture_worker::domain::capture::class::Class;
use serde_json::{Value, json};
use testkit::{LIMIT, poll::eventually};

use crate::env::{ItEnv, job};

const OPENINGS: &str = "capture_worker_breaker_openings_total";

/// Makes the gateway reply to every call in this way, about one payment or all.
fn script_calls(env: &ItEnv, payment: Option<&str>, answer: &Value) {
    let step = |call| json!({"call": call, "answer": answer, "times": "forever"});
    let steps = json!([step("capture"), step("inquiry")]);
    match payment {
        Some(payment) => env.script(payment, steps),
        None => env.script_all(steps),
    }
}

async fn publish(env: &ItEnv, name: &str, count: usize) {
    for n in 0..count {
        env.publish(&job(&format!("{name}-{n}"), &format!("p-{name}-{n}"), 100)).await;
    }
}

async fn are_captured(env: &ItEnv, name: &str, count: usize) {
    for n in 0..count {
        env.ends_as(&format!("{name}-{n}"), "CAPTURED", None).await;
    }
}

/// Its jobs use their attempts and end in doubt, although there are no other calls in between.
#[tokio::test(flavor = "multi_thread")]
async fn one_payment_without_normal_replies_never_opens_the_breaker() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "50ms,50ms,50ms,50ms,50ms,50ms,50ms");
    for answer in [json!({"http": 403}), json!({"http": 503}), json!("no_answer")] {
        let worker = env.worker().await;
        let name = answer.to_string().replace(['{', '}', '"', ':'], "-");
        let (sick, good) = (format!("sick{name}"), format!("good{name}"));
        script_calls(&env, Some(&sick), &answer);
        env.publish(&job(&sick, &sick, 100)).await;
        eventually("the job has failed often", LIMIT, async || env.posts(&sick, &sick) >= 6).await;
        publish(&env, &good, 20).await;
        are_captured(&env, &good, 20).await;
        env.ends_as(&sick, "IN_DOUBT", Some("in_doubt")).await;
        assert_eq!(worker.metric(OPENINGS).await, 0, "{answer}");
    }
}

/// Their failures open the breaker, and a probe of another payment closes it.
#[tokio::test(flavor = "multi_thread")]
async fn eleven_failing_payments_of_forty_stop_no_worker() {
    forty_with_eleven_sick(&json!({"http": 403}), true).await;
}

/// A successful inquiry proves little in this case: one more failure opens the breaker again, until
/// a capture has a reply. So while there are no other jobs, these use their attempts slowly, as in
/// an outage.
#[tokio::test(flavor = "multi_thread")]
async fn eleven_payments_whose_captures_only_fail_stop_no_worker() {
    forty_with_eleven_sick(&json!({"http": 503}), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eleven_payments_without_any_reply_stop_no_worker() {
    forty_with_eleven_sick(&json!("hang"), true).await;
}

async fn forty_with_eleven_sick(answer: &Value, inquiries_too: bool) {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "100ms,200ms,400ms,400ms,400ms,400ms");
    let env = env.set("BREAKER__MAX_PAUSE", "2s").declare().await;
    for n in 0..11 {
        let payment = format!("p-sick-{n}");
        if inquiries_too {
            script_calls(&env, Some(&payment), answer);
        } else {
            env.script(&payment, json!([{"answer": answer, "times": "forever"}]));
        }
    }
    publish(&env, "sick", 11).await;
    publish(&env, "good", 29).await;
    let _workers = [env.worker().await, env.worker().await];
    are_captured(&env, "good", 29).await;
    let often = |n| env.posts(&format!("p-sick-{n}"), &format!("sick-{n}")) > 2;
    eventually("the failing ones have failed often", LIMIT, async || (0..11).all(often)).await;
    publish(&env, "later", 20).await;
    are_captured(&env, "later", 20).await;
    if inquiries_too {
        assert_eq!(env.dead(Class::InDoubt, 11).await.len(), 11);
    }
    env.assert_clean_books();
}

/// Behind a proxy that strips headers, inquiries are unsigned too, so only the breaker can protect
/// the jobs.
#[tokio::test(flavor = "multi_thread")]
async fn replies_without_a_signature_use_no_attempts() {
    const JOBS: usize = 30;
    let env = ItEnv::open().await.set("BREAKER__PAUSE", "200ms").set("BREAKER__MAX_PAUSE", "400ms");
    let env = env.declare().await;
    script_calls(&env, None, &json!("unsigned"));
    publish(&env, "c", JOBS).await;
    let worker = env.worker().await;
    let opened = async || worker.metric(OPENINGS).await > 0;
    eventually("the breaker opens", LIMIT, opened).await;
    let inquiries = async || {
        let calls = env.sandbox.calls(None);
        let calls = calls.as_array().unwrap();
        calls.iter().filter(|call| call["call"] == "inquiryPayment").count()
    };
    // This takes so long that every job would otherwise have used its schedule.
    eventually("probes have failed often", LIMIT, async || inquiries().await >= 12).await;
    env.sandbox.clear_steps(None);
    are_captured(&env, "c", JOBS).await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_traffic_limit_is_a_throttle_and_no_outage() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    let answer = json!({"code": "REQUEST_TRAFFIC_EXCEED_LIMIT"});
    env.script_all(json!([{"answer": answer, "signed": false, "times": 10}]));
    publish(&env, "c", 12).await;
    are_captured(&env, "c", 12).await;
    assert_eq!(worker.metric(OPENINGS).await, 0);
    let results = env.results.all();
    let attempts = results.iter().map(|result| result.json().unwrap()["attempts"].as_u64());
    assert!(attempts.flatten().all(|attempts| attempts == 1), "a traffic limit used an attempt");
}
