//! The normal cases: a job is captured once, or finally refused by a signed verdict of the gateway.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use capture_worker::domain::capture::class::{Class, FINAL_CODES};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, ShortString},
};
use serde_json::{Value, json};
use testkit::{LIMIT, poll::eventually};

use crate::env::{ItEnv, headers, job, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_captured_and_has_a_result() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let body = json!({
        "captureRequestId": "c-1",
        "paymentId": "p-1",
        "amount": {"currency": "HKD", "value": "129.90"},
        "metadata": {"warehouse": "HKG-2"},
        "somethingElse": [1, 2, {"three": null}],
    });
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_correlation_id("order-7".into())
        .with_headers(headers([(
            "traceparent",
            text("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        )]));
    let exchange = format!("{}.jobs", env.prefix);
    let body = body.to_string();
    env.broker.publish(&exchange, "any.key", body.as_bytes(), properties).await.unwrap();

    let result = env.ends_as("c-1", "CAPTURED", None).await;
    assert_eq!(result["paymentId"], "p-1");
    assert_eq!(result["captureAmount"], json!({"currency": "HKD", "value": "12990"}));
    assert_eq!((&result["resultCode"], &result["resultStatus"]), (&json!("SUCCESS"), &json!("S")));
    assert_eq!(
        (&result["attempts"], &result["metadata"]),
        (&json!(1), &json!({"warehouse": "HKG-2"}))
    );
    for field in ["captureId", "captureTime", "acquirerReferenceNo", "settledAt"] {
        assert!(result[field].is_string(), "{field} of {result}");
    }
    let result = env.results.all().remove(0);
    assert_eq!(result.routing_key, "captured");
    assert_eq!(
        result.properties.correlation_id().as_ref().map(ShortString::as_str),
        Some("order-7")
    );
    assert!(result.header("traceparent").is_some());
    assert_eq!(env.captures_of("c-1"), 1);
    eventually("the job is acked", LIMIT, async || env.queued().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_job_published_five_times_captures_once() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    for _ in 0..5 {
        env.publish(&job("c-5", "p-5", 500)).await;
    }
    let results = env.results.wait_for(5, LIMIT).await.unwrap();
    assert!(results.iter().all(|result| result.routing_key == "captured"));
    assert_eq!(env.captures_of("c-5"), 1);
    assert_eq!(env.posts("p-5", "c-5"), 1, "a recorded outcome needs no call");
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_captures_of_one_payment_by_three_workers_never_overlap() {
    let env = ItEnv::open_slow(Duration::from_millis(15)).await;
    let env = env.set("BROKER__PREFETCH", "8").set("RETRY__MAX_AGE", "10m");
    let workers = tokio::join!(env.worker(), env.worker(), env.worker());
    for n in 0..60 {
        env.publish(&job(&format!("hot-{n}"), "hot", 100)).await;
        env.publish(&job(&format!("cold-{n}"), &format!("cold-{n}"), 100)).await;
    }
    let results = env.results.wait_for(120, LIMIT).await.unwrap();
    assert!(results.iter().all(|result| result.routing_key == "captured"));
    env.assert_clean_books();
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger["captured"], json!({"HKD": "12000"}));
    assert!(ledger["atOnceMax"].as_u64() > Some(1), "the workers did not work concurrently");
    drop(workers);
}

/// A job that fails with any code of the gateway's documentation becomes a dead letter with its
/// unchanged body and the reason.
#[tokio::test(flavor = "multi_thread")]
async fn every_final_failure_reaches_the_queue_of_its_class() {
    // Ten codes of class access in a row must not open the breaker here: at the beginning of its
    // pause, the broker would requeue messages on their way.
    let env = ItEnv::open().await.set("BREAKER__FAILURES", "100");
    let _worker = env.worker().await;
    let codes = FINAL_CODES.iter().copied().chain([("BRAND_NEW_CODE", Class::UnknownCode)]);
    let mut expected: BTreeMap<Class, BTreeSet<String>> = BTreeMap::new();
    for (code, class) in codes.clone() {
        let body = format!(
            "{{ \"paymentId\" : \"sim-{code}-1\",\n\"captureRequestId\":\"c-{code}\", \
             \"unknown\": 1e2, \"captureAmount\":{{\"value\":\"100\",\"currency\":\"HKD\"}} }} "
        );
        let own = headers([("x-shop", text("kept")), ("x-capture-parent", text("parent-id"))]);
        env.publish_with(body.as_bytes(), own).await;
        expected.entry(class).or_default().insert(body);
    }
    for (class, bodies) in expected {
        let dead_letters = env.dead(class, u32::try_from(bodies.len()).unwrap()).await;
        let found: BTreeSet<String> = dead_letters
            .iter()
            .map(|dead_letter| String::from_utf8(dead_letter.body.clone()).unwrap())
            .collect();
        assert_eq!(found, bodies, "{class}");
        for dead_letter in dead_letters {
            let code =
                dead_letter.json().unwrap()["captureRequestId"].as_str().unwrap()[2..].to_owned();
            let header = |name: &str| dead_letter.header(name).unwrap_or_default();
            assert_eq!(header("x-capture-class"), class.name());
            assert_eq!(
                (header("x-capture-code"), header("x-capture-status")),
                (code.clone(), "F".into())
            );
            assert_eq!(
                (header("x-capture-signed"), header("x-capture-attempt")),
                ("true".into(), "1".into())
            );
            assert_eq!(
                (header("x-capture-sent"), header("x-shop")),
                ("true".into(), "kept".into())
            );
            assert_eq!(
                (header("x-capture-last-code"), header("x-capture-last-status")),
                (code, "F".into())
            );
            assert!(
                header("x-capture-dead-at").parse::<i64>().is_ok(),
                "{:?}",
                dead_letter.headers()
            );
            assert!(!header("x-capture-message").is_empty());
            assert_eq!(dead_letter.routing_key, class.name());
        }
    }
    for (code, class) in codes {
        let standing = if class == Class::Conflict { "IN_DOUBT" } else { "FAILED" };
        let result = env.ends_as(&format!("c-{code}"), standing, Some(class.name())).await;
        assert_eq!((&result["resultCode"], &result["attempts"]), (&json!(code), &json!(1)));
        assert_eq!(result["parentCaptureRequestId"], "parent-id");
    }
    let keys: BTreeSet<String> =
        env.results.all().into_iter().map(|result| result.routing_key).collect();
    assert!(keys.contains("failed.risk") && keys.contains("in_doubt"), "{keys:?}");
    assert_eq!(env.sandbox.ledger()["captures"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settings_file_assigns_a_class_to_a_new_code() {
    let folder = testkit::guardian::folder().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "[classes]\nBRAND_NEW_CODE = \"payer\"\n").unwrap();
    let mut env = ItEnv::open().await;
    env.base.settings.insert("BROKER__PREFETCH".into(), "4".into());
    let mut run = env.program(&["run", "--config"]);
    run.arg(&file);
    let _worker = ItEnv::worker_from(run).await;
    env.publish(&job("c", "sim-BRAND_NEW_CODE-1", 100)).await;
    env.ends_as("c", "FAILED", Some("payer")).await;
    env.dead(Class::Payer, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_reused_with_another_amount_is_a_conflict() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    env.publish(&job("c", "p", 200)).await;
    let dead_letters = env.dead(Class::Conflict, 1).await;
    assert_eq!(
        dead_letters[0].header("x-capture-code").as_deref(),
        Some("REPEAT_REQ_INCONSISTENT")
    );
    let results = eventually("the second result", LIMIT, async || {
        Some(env.results_of("c").await).filter(|results| results.len() == 2)
    });
    assert_eq!(results.await[1]["status"], "IN_DOUBT");
    // The conflict did not become the recorded outcome of the id.
    env.publish(&job("c", "p", 100)).await;
    let results = eventually("the third result", LIMIT, async || {
        Some(env.results_of("c").await).filter(|results| results.len() == 3)
    });
    assert_eq!(results.await[2]["status"], "CAPTURED");
    assert_eq!((env.captures_of("c"), env.posts("p", "c")), (1, 2));
}

/// A copy that is delivered after the failure was reported must not capture, even if the cause was
/// fixed meanwhile: the publisher may have sent a new id.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_failed_job_fails_without_a_call() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let failures =
        [("access", "ACCESS_DENIED"), ("request", "PARAM_ILLEGAL"), ("risk", "RISK_REJECT")];
    for (class, code) in failures {
        env.script(class, json!([{"answer": {"code": code}, "times": 1}]));
        env.publish(&job(class, class, 100)).await;
        env.ends_as(class, "FAILED", Some(class)).await;
        // The gateway would capture it now.
        env.publish(&job(class, class, 100)).await;
        let results = eventually("the copy's result", LIMIT, async || {
            Some(env.results_of(class).await).filter(|results| results.len() == 2)
        });
        assert_eq!(results.await[1]["resultCode"], code);
        assert_eq!((env.captures_of(class), env.posts(class, class)), (0, 1));
    }
}

/// The broker acts on `CC`, `BCC`, `expiration`, `x-death` and similar properties, and closes a
/// channel because of `user_id`. A publisher's values must not influence the worker's own messages.
#[tokio::test(flavor = "multi_thread")]
async fn properties_that_the_broker_acts_on_are_not_republished() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let victim = format!("{}.dead.risk", env.prefix);
    let routes = || {
        let keys = ["risk", "poison", "captured", "100ms", victim.as_str()];
        AMQPValue::FieldArray(FieldArray::from(keys.map(text).to_vec()))
    };
    let death = || {
        let entry = headers([
            ("queue", text("capture.jobs")),
            ("reason", text("expired")),
            ("count", AMQPValue::LongLongInt(9)),
        ]);
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(entry)]))
    };
    let own = || {
        let mut table = headers([
            ("x-death", death()),
            ("x-first-death-queue", text("q")),
            ("x-last-death-reason", text("expired")),
            ("x-delivery-count", AMQPValue::LongLongInt(19)),
            ("x-kept", text("yes")),
        ]);
        // CC also routes at the exchange of jobs, where every key leads to the same queue.
        table.insert("CC".into(), routes());
        table.insert("BCC".into(), routes());
        table
    };
    let exchange = format!("{}.jobs", env.prefix);
    for payment in ["p-ok", "sim-unknown-exception-1", "sim-AUTH_EXPIRED-1"] {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_headers(own())
            .with_user_id("guest".into())
            .with_expiration("60000".into())
            .with_message_id("m-1".into());
        let body = job(&format!("c-{payment}"), payment, 100);
        env.broker.publish(&exchange, "k", &body, properties).await.unwrap();
    }
    env.ends_as("c-p-ok", "CAPTURED", None).await;
    env.ends_as("c-sim-unknown-exception-1", "CAPTURED", None).await;
    env.ends_as("c-sim-AUTH_EXPIRED-1", "FAILED", Some("authorization")).await;
    let dead_letter = env.dead(Class::Authorization, 1).await.remove(0);
    let kept: Vec<String> = dead_letter.headers().into_keys().collect();
    for name in ["CC", "BCC", "x-death", "x-first-death-queue", "x-last-death-reason"] {
        assert!(!kept.iter().any(|kept| kept == name), "{name} was republished: {kept:?}");
    }
    // The broker makes its own count: this read is the first delivery.
    assert_eq!(dead_letter.header("x-delivery-count").unwrap_or_else(|| "0".into()), "0");
    assert!(kept.iter().any(|kept| kept == "x-kept"));
    assert_eq!(dead_letter.properties.user_id(), &None);
    assert_eq!(dead_letter.properties.expiration(), &None);
    assert_eq!(dead_letter.properties.message_id().as_ref().map(ShortString::as_str), Some("m-1"));
    for id in ["c-p-ok", "c-sim-unknown-exception-1", "c-sim-AUTH_EXPIRED-1"] {
        assert_eq!(env.results_of(id).await.len(), 1, "one result of {id}");
    }
    eventually("no copies remain", LIMIT, async || env.queued().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_publishers_count_only_if_their_values_are_possible() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let nonsense = headers([
        ("x-capture-attempt", AMQPValue::LongLongInt(-3)),
        ("x-capture-deferrals", text("many")),
        ("x-capture-first-seen", AMQPValue::LongLongInt(7)),
        ("x-capture-replays", AMQPValue::Boolean(true)),
        ("x-capture-returns", AMQPValue::Double(1e300)),
    ]);
    env.publish_with(&job("c", "sim-AUTH_EXPIRED-1", 100), nonsense).await;
    let dead_letter = env.dead(Class::Authorization, 1).await.remove(0);
    assert_eq!(dead_letter.header("x-capture-attempt").as_deref(), Some("1"));
    let first_seen: i64 = dead_letter.header("x-capture-first-seen").unwrap().parse().unwrap();
    assert!(first_seen > 1_577_836_800_000, "{first_seen}");
    let result: Value = env.results_of("c").await.remove(0);
    assert_eq!(result["attempts"], 1);
}
