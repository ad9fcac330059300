//! Payments that get no normal answer while others do, and answers that nobody signed: no such payment stops the others,
//! and no such answer uses jobs up.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use capture_worker::domain::class::Class;
use serde_json::{Value, json};

use crate::{
    shop::{LIMIT, Shop, Worker, job},
    support::{http, poll::eventually},
};

const OPENINGS: &str = "capture_worker_breaker_openings_total";

async fn metric(worker: &Worker, name: &str) -> u64 {
    let metrics = http::get(&worker.url, "/metrics").await.unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Every call about these payments is answered so.
fn script_calls(shop: &Shop, payment: Option<&str>, answer: &Value) {
    let step = |call| json!({"call": call, "answer": answer, "times": "forever"});
    let steps = json!([step("capture"), step("inquiry")]);
    match payment {
        Some(payment) => shop.script(payment, steps),
        None => shop.script_all(steps),
    }
}

async fn publish(shop: &Shop, name: &str, count: usize) {
    for n in 0..count {
        shop.publish(&job(&format!("{name}-{n}"), &format!("p-{name}-{n}"), 100)).await;
    }
}

async fn are_captured(shop: &Shop, name: &str, count: usize) {
    for n in 0..count {
        shop.ends_as(&format!("{name}-{n}"), "CAPTURED", None).await;
    }
}

/// Its jobs spend their attempts, and end in doubt, although nothing else is called in between.
#[tokio::test(flavor = "multi_thread")]
async fn one_payment_without_normal_answers_never_opens_the_breaker() {
    let shop = Shop::open().await.set("RETRY__SCHEDULE", "50ms,50ms,50ms,50ms,50ms,50ms,50ms");
    for answer in [json!({"http": 403}), json!({"http": 503}), json!("no_answer")] {
        let worker = shop.worker().await;
        let name = answer.to_string().replace(['{', '}', '"', ':'], "-");
        let (sick, good) = (format!("sick{name}"), format!("good{name}"));
        script_calls(&shop, Some(&sick), &answer);
        shop.publish(&job(&sick, &sick, 100)).await;
        eventually("it has failed often", LIMIT, async || shop.posts(&sick, &sick) >= 6).await;
        publish(&shop, &good, 20).await;
        are_captured(&shop, &good, 20).await;
        shop.ends_as(&sick, "IN_DOUBT", Some("in_doubt")).await;
        assert_eq!(metric(&worker, OPENINGS).await, 0, "{answer}");
    }
}

/// Enough of them to open the breaker: what is known of other payments closes it.
#[tokio::test(flavor = "multi_thread")]
async fn eleven_sick_payments_of_forty_stop_no_worker() {
    forty_with_eleven_sick(&json!({"http": 403}), true).await;
}

/// An inquiry proves little then: one more failure opens the breaker again, until a capture is answered.
/// So while there are no other jobs, these spend their attempts slowly, as in an outage.
#[tokio::test(flavor = "multi_thread")]
async fn eleven_payments_whose_captures_alone_fail_stop_no_worker() {
    forty_with_eleven_sick(&json!({"http": 503}), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eleven_payments_without_any_answer_stop_no_worker() {
    forty_with_eleven_sick(&json!("hang"), true).await;
}

async fn forty_with_eleven_sick(answer: &Value, inquiries_too: bool) {
    let shop = Shop::open().await.set("RETRY__SCHEDULE", "100ms,200ms,400ms,400ms,400ms,400ms");
    let shop = shop.set("BREAKER__MAX_PAUSE", "2s").declare().await;
    for n in 0..11 {
        let payment = format!("p-sick-{n}");
        if inquiries_too {
            script_calls(&shop, Some(&payment), answer);
        } else {
            shop.script(&payment, json!([{"answer": answer, "times": "forever"}]));
        }
    }
    publish(&shop, "sick", 11).await;
    publish(&shop, "good", 29).await;
    let _workers = [shop.worker().await, shop.worker().await];
    are_captured(&shop, "good", 29).await;
    let often = |n| shop.posts(&format!("p-sick-{n}"), &format!("sick-{n}")) > 2;
    eventually("the sick ones have failed often", LIMIT, async || (0..11).all(often)).await;
    publish(&shop, "later", 20).await;
    are_captured(&shop, "later", 20).await;
    if inquiries_too {
        assert_eq!(shop.dead(Class::InDoubt, 11).await.len(), 11);
    }
    shop.assert_clean_books();
}

/// As behind a proxy that strips headers. Inquiries are not signed either, so nothing but the breaker can help.
#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_signature_use_no_jobs_up() {
    const JOBS: usize = 30;
    let shop = Shop::open().await.set("BREAKER__PAUSE", "200ms").set("BREAKER__MAX_PAUSE", "400ms");
    let shop = shop.declare().await;
    script_calls(&shop, None, &json!("unsigned"));
    publish(&shop, "c", JOBS).await;
    let worker = shop.worker().await;
    let opened = async || metric(&worker, OPENINGS).await > 0;
    eventually("the breaker opens", LIMIT, opened).await;
    let inquiries = async || {
        let calls = shop.sandbox.calls(None);
        let calls = calls.as_array().unwrap();
        calls.iter().filter(|call| call["call"] == "inquiryPayment").count()
    };
    // So long that every job would be at the end of its schedule.
    eventually("probes have failed often", LIMIT, async || inquiries().await >= 12).await;
    shop.sandbox.clear_steps(None);
    are_captured(&shop, "c", JOBS).await;
    shop.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_traffic_limit_is_a_throttle_and_no_outage() {
    let shop = Shop::open().await;
    let worker = shop.worker().await;
    let answer = json!({"code": "REQUEST_TRAFFIC_EXCEED_LIMIT"});
    shop.script_all(json!([{"answer": answer, "signed": false, "times": 10}]));
    publish(&shop, "c", 12).await;
    are_captured(&shop, "c", 12).await;
    assert_eq!(metric(&worker, OPENINGS).await, 0);
    let results = shop.results.all();
    let attempts = results.iter().map(|result| result.json().unwrap()["attempts"].as_u64());
    assert!(attempts.flatten().all(|attempts| attempts == 1), "none is spent on it");
}
