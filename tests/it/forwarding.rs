//! The fields that a job forwards to the gateway, and the fields that come back from it.

use capture_worker::{
    domain::{capture::class::Class, job::BODY_BYTES_MAX},
    sandbox::SandboxOptions,
};
use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    poll::eventually,
    servers::{Persistence, PrivateRedis, shared_rabbit},
};

use crate::env::{ItEnv, headers, job};

/// The body of a job in HKD with these fields before those of the contract.
fn with(id: &str, payment: &str, fields: &str) -> Vec<u8> {
    let job = String::from_utf8(job(id, payment, 100)).expect("text");
    job.replacen('{', &format!("{{{fields},"), 1).into_bytes()
}

fn of_type(id: &str, payment: &str, capture_type: &str) -> Vec<u8> {
    with(id, payment, &format!(r#""captureType":"{capture_type}""#))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_of_a_job_sends_the_same_forwarded_fields() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let fields = r#""captureType":"NON_FINAL","isLastCapture":false,"transit":null,
        "goods":[{"goodsName":"\u00e9","price":1.50}],"own":1"#;
    let sent = json!({
        "captureType": "NON_FINAL",
        "isLastCapture": false,
        "goods": [{"goodsName": "é", "price": 1.5}],
    });
    // The gateway compares the fields: a difference in the second attempt would be
    // REPEAT_REQ_INCONSISTENT.
    for (id, payment) in [("once", "p-once"), ("again", "sim-answer-lost-1")] {
        env.publish(&with(id, payment, fields)).await;
        env.ends_as(id, "CAPTURED", None).await;
        assert_eq!(env.request(payment, id)["fields"], sent);
    }
    assert_eq!(env.posts("sim-answer-lost-1", "again"), 2);
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_setting_names_the_fields_that_are_forwarded() {
    let env = ItEnv::open().await.set("GATEWAY__FORWARD_FIELDS", "goods,customsCode");
    let _worker = env.worker().await;
    let fields = r#""captureType":"whatever","customsCode":"7","goods":[]"#;
    env.publish(&with("c", "p", fields)).await;
    env.ends_as("c", "CAPTURED", None).await;
    assert_eq!(env.request("p", "c")["fields"], json!({"customsCode": "7", "goods": []}));
    let own = env.set("GATEWAY__FORWARD_FIELDS", "captureAmount");
    let (code, _, errors) = own.run(&["run"]).await;
    assert_eq!(code, Some(64), "{errors}");
    assert!(errors.contains("gateway.forward_fields must not name `captureAmount`"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_the_maximum_size_is_forwarded_completely() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let empty = with("c", "p", r#""goods":"""#).len();
    let goods = "x".repeat(BODY_BYTES_MAX - empty);
    env.publish(&with("c", "p", &format!(r#""goods":"{goods}""#))).await;
    env.ends_as("c", "CAPTURED", None).await;
    assert_eq!(env.request("p", "c")["fields"]["goods"], goods);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_forwarded_fields_that_were_not_sent_are_malformed_at_once() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    for (id, fields, reason) in [
        ("type", r#""captureType":"LAST""#, "`captureType` must be"),
        ("boolean", r#""captureType":false"#, "found a boolean"),
        ("twice", r#""goods":[],"goods":[]"#, "`goods` must stand only once"),
    ] {
        let payment = format!("p-{id}");
        env.publish(&with(id, &payment, fields)).await;
        let result = env.ends_as(id, "FAILED", Some("malformed")).await;
        assert_eq!(
            (&result["attempts"], &result["captureAmount"]["value"]),
            (&json!(0), &json!("100"))
        );
        let message = result["resultMessage"].as_str().unwrap_or_default();
        assert!(message.contains(reason), "{message}");
        assert_eq!(env.calls(&payment), []);
    }
    let dead_letters = env.dead(Class::Malformed, 3).await;
    for dead_letter in dead_letters {
        assert_eq!(dead_letter.header("x-capture-sent"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_forwarded_fields_do_not_wait_for_an_in_doubt_block() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "60s");
    let _worker = env.worker().await;
    env.script("p", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": "forever"}]));
    env.publish(&job("doubt", "p", 100)).await;
    eventually("a capture is in doubt", LIMIT, async || env.posts("p", "doubt") == 1).await;
    env.publish(&with("c", "p", r#""captureType":"LAST""#)).await;
    env.ends_as("c", "FAILED", Some("malformed")).await;
    // A valid job waits.
    env.publish(&job("good", "p", 100)).await;
    env.publish(&with("d", "p", r#""captureType":"LAST""#)).await;
    env.ends_as("d", "FAILED", Some("malformed")).await;
    assert_eq!((env.results_now("good"), env.posts("p", "good")), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_forwarded_fields_of_a_sent_id_need_an_inquiry() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let sent = || headers([("x-capture-sent", AMQPValue::Boolean(true))]);
    env.script("p", json!([{"call": "inquiry", "answer": {"http": 503}}]));
    env.publish_with(&with("c", "p", r#""captureType":"LAST""#), sent()).await;
    let result = env.ends_as("c", "FAILED", Some("malformed")).await;
    assert_eq!((&result["attempts"], env.inquiries("p")), (&json!(2), 2), "two inquiries");
    assert_eq!(env.posts("p", "c"), 0);
    // An id in process is not reported as failed.
    env.script("q", json!([{"call": "inquiry", "answer": {"http": 503}, "times": "forever"}]));
    env.publish_with(&with("d", "q", r#""goods":1,"goods":1"#), sent()).await;
    env.ends_as("d", "IN_DOUBT", Some("in_doubt")).await;
}

/// The rules may change between two attempts, by the settings or by another version.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_captured_under_older_rules_stays_captured() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "3s,3s,3s");
    let mut older = env.worker_with(&[("GATEWAY__FORWARD_FIELDS", "captureType")]).await;
    env.script("p", json!([{"answer": "no_answer", "executes": true}]));
    env.publish(&with("c", "p", r#""goods":1,"goods":2"#)).await;
    eventually("the job is captured", LIMIT, async || env.captures_of("c") == 1).await;
    assert_eq!(older.drain().await, Some(0));
    let _newer = env.worker().await;
    env.ends_as("c", "CAPTURED", None).await;
    assert_eq!((env.posts("p", "c"), env.inquiries("p")), (1, 1));
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_capture_waits_behind_others_of_its_payment_in_a_worker() {
    let env = ItEnv::open().await.set("GATEWAY__TIMEOUT", "8s");
    let slow = json!([{"delay_ms": 1500, "captureRequestId": "first"}]);
    env.script("p", slow);
    let _worker = env.worker().await;
    env.publish(&of_type("first", "p", "NON_FINAL")).await;
    eventually("a capture is in progress", LIMIT, async || env.sandbox.in_flight("p") == 1).await;
    env.publish(&of_type("last", "p", "FINAL")).await;
    for id in ["second", "third"] {
        env.publish(&of_type(id, "p", "NON_FINAL")).await;
    }
    for id in ["first", "second", "third", "last"] {
        env.ends_as(id, "CAPTURED", None).await;
    }
    assert_eq!(env.sandbox.payment("p").expect("a payment")["finalCapture"], "last");
    env.publish(&of_type("late", "p", "NON_FINAL")).await;
    let result = env.ends_as("late", "FAILED", Some("order")).await;
    assert_eq!(result["resultCode"], "ORDER_STATUS_INVALID");
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_gateway_treats_an_absent_capture_type_as_final() {
    let redis = PrivateRedis::start(Persistence::None).await.expect("a Redis");
    let rabbit = shared_rabbit().await.expect("a broker");
    let options = SandboxOptions { strict: true, ..SandboxOptions::default() };
    let env = ItEnv::open_with(&rabbit.url(), &redis.url(), options).await;
    let _worker = env.worker().await;
    env.sandbox_has_seen("p").await;
    env.publish(&of_type("a", "p", "NON_FINAL")).await;
    env.ends_as("a", "CAPTURED", None).await;
    env.publish(&job("b", "p", 100)).await;
    env.ends_as("b", "CAPTURED", None).await;
    env.publish(&of_type("c", "p", "NON_FINAL")).await;
    env.ends_as("c", "FAILED", Some("order")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_have_the_acquirers_fields_of_the_gateway() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let expected = |result: &Value| {
        let id = &result["captureId"];
        json!({"acquirerName": "SANDBOX", "acquirerTransactionId": id})
    };
    env.publish(&job("c", "p", 100)).await;
    let result = env.ends_as("c", "CAPTURED", None).await;
    assert_eq!(result["acquirerInfo"], expected(&result));
    // The recorded outcome settles a copy.
    env.publish(&job("c", "p", 100)).await;
    eventually("the copy's result", LIMIT, async || env.results_now("c").len() == 2).await;
    assert_eq!(env.results_now("c")[1]["acquirerInfo"], expected(&result));
    assert_eq!(env.posts("p", "c"), 1);
    // An inquiry shows it too.
    env.publish(&job("asked", "sim-in-process-1", 100)).await;
    let result = env.ends_as("asked", "CAPTURED", None).await;
    assert_eq!(result["acquirerInfo"], expected(&result));
    assert_eq!(result["acquirerReferenceNo"], result["captureId"]);
    for (id, length) in [("fits", 4094), ("large", 4095)] {
        let info = "x".repeat(length);
        let payment = format!("p-{id}");
        env.script(&payment, json!([{"fields": {"acquirerInfo": info}}]));
        env.publish(&job(id, &payment, 100)).await;
        let result = env.ends_as(id, "CAPTURED", None).await;
        assert_eq!(result["acquirerInfo"].is_string(), id == "fits");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_and_a_byte_order_mark_of_frameworks_are_accepted() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let marked = [b"\xef\xbb\xbf".as_slice(), &job("marked", "p-1", 100)].concat();
    env.publish(&marked).await;
    env.ends_as("marked", "CAPTURED", None).await;
    let unset = r#""amount":null,"expiresAt":null,"metadata":null,"captureType":null,"goods":null"#;
    env.publish(&with("unset", "p-2", unset)).await;
    env.ends_as("unset", "CAPTURED", None).await;
    assert_eq!(env.request("p-2", "unset")["fields"], json!({}));
    let properties = BasicProperties::default().with_delivery_mode(2);
    let exchange = format!("{}.jobs", env.prefix);
    for (encoding, body) in [("gzip", b"\x1f\x8b\x08\x00".as_slice()), ("deflate", b"\x78\x9c\xcb")]
    {
        let compressed = properties.clone().with_content_encoding(encoding.into());
        env.broker.publish(&exchange, "shipped", body, compressed).await.expect("published");
    }
    for dead_letter in env.dead(Class::Malformed, 2).await {
        let message = dead_letter.header("x-capture-message").unwrap_or_default();
        assert_eq!(message, "the body is compressed: publish it uncompressed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_a_lower_amount_shows_what_is_given_up() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    for (id, fields) in [
        ("absent", r#""own":1"#),
        ("final", r#""captureType":"FINAL""#),
        ("partial", r#""captureType":"NON_FINAL""#),
        ("goods", r#""captureType":"NON_FINAL","goods":[{}]"#),
    ] {
        let payment = format!("p-{id}");
        env.script(&payment, json!([{"answer": {"code": "CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT"}}]));
        env.publish(&with(id, &payment, fields)).await;
        env.ends_as(id, "FAILED", Some("limit")).await;
    }
    eventually("all dead letters exist", LIMIT, async || env.dead_count(Class::Limit).await == 4)
        .await;
    let plan = async |id: &str| {
        let command = ["dead", "replay", "--dry-run", "--class", "limit", "--capture-value", "60"];
        let command = [command.as_slice(), &["--id", id]].concat();
        (env.run(&command).await, env.run_json(&command).await)
    };
    for (id, is_given_up) in [("absent", true), ("final", true), ("partial", false)] {
        let ((_, text, errors), (exit, document)) = plan(id).await;
        assert_eq!(exit, Some(0), "{text}{errors}");
        let given_up = "the rest of the authorization is given up";
        assert_eq!(text.contains(given_up), is_given_up, "{id}: {text}");
        assert_eq!(document["letters"][0]["sends"]["givesUpRest"], is_given_up);
    }
    let ((_, text, _), (exit, document)) = plan("goods").await;
    assert_eq!((exit, &document["refused"]), (Some(1), &json!(1)), "{text}");
    assert!(text.contains("its goods list what the amount pays for"), "{text}");
    // Without --capture-value, the job is replayed with its goods.
    let replay = ["dead", "replay", "--class", "limit", "--id", "goods", "--yes"];
    assert_eq!(env.run(&replay).await.0, Some(0));
    let child = capture_worker::domain::capture::family::fresh_id("goods");
    env.ends_as(&child, "CAPTURED", None).await;
    let fields = &env.request("p-goods", &child)["fields"];
    assert_eq!(*fields, json!({"captureType": "NON_FINAL", "goods": [{}]}));
}
