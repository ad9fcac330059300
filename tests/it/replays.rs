//! Replay and discard of dead letters: by the policy of their class, repeatedly, by two operators
//! at once, and across crashes.

use std::time::Duration;

use capture_worker::domain::capture::{class::Class, family::fresh_id};
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    poll::{eventually, within},
    processes::Process,
    proxy::Proxy,
    servers::shared_rabbit,
};

use crate::{
    dead_letters::written,
    env::{ItEnv, headers, job},
};

pub(crate) const NOW: Duration = Duration::ZERO;

impl ItEnv {
    /// The number of ready dead letters of a class.
    pub(crate) async fn dead_count(&self, class: Class) -> u32 {
        let queue = format!("{}.dead.{class}", self.prefix);
        self.broker.queue_depth(&queue).await.expect("a size").unwrap_or_default()
    }

    pub(crate) async fn audit(&self, filter: &[&str]) -> Vec<Value> {
        let (code, records) = self.run_json(&[&["audit"], filter].concat()).await;
        assert_eq!(code, Some(0));
        records.as_array().cloned().expect("an array")
    }

    /// Publishes a job that the gateway finally refuses, and waits for its dead letter.
    async fn refused(&self, code: &str, class: Class, id: &str) {
        self.script(&format!("p-{id}"), json!([{"answer": {"code": code}}]));
        self.publish(&job(id, &format!("p-{id}"), 100)).await;
        let status = if class == Class::Conflict { "IN_DOUBT" } else { "FAILED" };
        self.ends_as(id, status, Some(class.name())).await;
        eventually("its dead letter exists", LIMIT, async || self.dead_count(class).await > 0)
            .await;
    }
}

/// Replays a verdict of every class. A fresh id is captured. A class that is never replayed is
/// refused with an alternative.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_is_replayed_with_the_one_fresh_id_or_never() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    for (code, class) in [
        ("ORDER_STATUS_INVALID", Class::Order),
        ("USER_AMOUNT_EXCEED_LIMIT", Class::Limit),
        ("INVALID_CONTRACT", Class::Contract),
        ("ACCESS_DENIED", Class::Access),
        ("PARAM_ILLEGAL", Class::Request),
        ("RISK_REJECT", Class::Risk),
        ("USER_NOT_EXIST", Class::Payer),
        ("PROCESS_FAIL", Class::Provider),
        ("BRAND_NEW", Class::UnknownCode),
    ] {
        let (id, child) = (class.name(), fresh_id(class.name()));
        env.refused(code, class, id).await;
        let replay = ["dead", "replay", "--class", id, "--reason", "fixed", "--as", "alice"];
        let (exit, document) = env.run_json(&replay).await;
        assert_eq!((exit, &document["sent"]), (Some(0), &json!(1)), "{document}");
        let result = env.ends_as(&child, "CAPTURED", None).await;
        assert_eq!(result["parentCaptureRequestId"], id);
        assert_eq!(result["originCaptureRequestId"], id);
        assert_eq!((env.captures_of(id), env.captures_of(&child)), (0, 1));
        let records = env.audit(&["--id", &child]).await;
        let [record] = &*records else { panic!("{records:?}") };
        assert_eq!(
            (&record["action"], &record["reason"], &record["as"]),
            (&json!("replay"), &json!("fixed"), &json!("alice"))
        );
        assert_eq!(record["letter"]["captureRequestId"], id);
        assert!(record["who"].as_str().is_some_and(|who| who.contains('@')));
        assert_eq!(env.dead_count(class).await, 0);
    }
    for (code, class) in
        [("AUTH_EXPIRED", Class::Authorization), ("REPEAT_REQ_INCONSISTENT", Class::Conflict)]
    {
        let id = class.name();
        env.refused(code, class, id).await;
        let (exit, document) = env.run_json(&["dead", "replay", "--class", id]).await;
        assert_eq!((exit, &document["refused"]), (Some(1), &json!(1)));
        assert!(
            document["letters"][0]["instead"].as_str().is_some_and(|i| i.contains("dead discard"))
        );
        assert_eq!(env.audit(&["--id", id, "--action", "refuse"]).await.len(), 1);
        assert_eq!((env.dead_count(class).await, env.captures_of(&fresh_id(id))), (1, 0));
    }
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_without_verdict_is_replayed_with_the_same_id() {
    let env = ItEnv::open().await.declare().await;
    for payment in ["p-1", "p-4"] {
        env.sandbox_has_seen(payment).await;
    }
    let bytes = b"{\"captureRequestId\": \"mal\",  \"paymentId\":\"p\"}";
    env.dead_letter(Class::InDoubt, &job("doubt", "p-1", 100), written("", false, NOW)).await;
    env.dead_letter(Class::Unreachable, &job("far", "p-2", 100), written("", false, NOW)).await;
    env.dead_letter(
        Class::Access,
        &job("who", "p-3", 100),
        written("INVALID_SIGNATURE", false, NOW),
    )
    .await;
    env.dead_letter(Class::Malformed, bytes, written("", false, NOW)).await;
    let counted = headers([
        ("x-capture-returns", AMQPValue::LongInt(20)),
        ("x-capture-attempt", AMQPValue::LongInt(3)),
    ]);
    env.dead_letter(Class::Poison, &job("killer", "p-4", 100), counted).await;
    let expired = br#"{"captureRequestId":"late","paymentId":"p-5",
        "amount":{"currency":"HKD","value":"1.00"},"expiresAt":"2026-01-01T00:00:00Z"}"#;
    env.dead_letter(Class::Expired, expired, written("", false, NOW)).await;
    let (exit, document) = env.run_json(&["dead", "replay", "--all", "--yes"]).await;
    assert_eq!(
        (exit, &document["sent"], &document["refused"]),
        (Some(1), &json!(5), &json!(1)),
        "{document}"
    );
    let refused = document["letters"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["decision"] == "refuse"));
    assert!(
        refused
            .is_some_and(|one| one["instead"].as_str().is_some_and(|i| i.contains("--expires-at")))
    );
    let (exit, _) = env
        .run_json(&["dead", "replay", "--id", "late", "--expires-at", "2099-01-01T00:00:00Z"])
        .await;
    assert_eq!(exit, Some(0));

    let jobs = env.broker.peek_queue(&format!("{}.jobs", env.prefix)).await.expect("a size");
    assert_eq!(jobs.len(), 6);
    for sent in &jobs {
        assert_eq!(sent.header("x-capture-replays").as_deref(), Some("1"));
        for cleared in
            ["x-capture-attempt", "x-capture-first-seen", "x-capture-returns", "x-capture-class"]
        {
            assert_eq!(sent.header(cleared), None, "{cleared}");
        }
        let was_sent = [&b"doubt"[..], b"killer"]
            .iter()
            .any(|id| sent.body.windows(id.len()).any(|part| part == *id));
        assert_eq!(sent.header("x-capture-sent").is_some(), was_sent, "{sent:?}");
    }
    assert!(jobs.iter().any(|sent| sent.body == bytes));
    let late =
        String::from_utf8_lossy(expired).replace("2026-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
    assert!(jobs.iter().any(|sent| sent.body == late.as_bytes()));
    let _worker = env.worker().await;
    for id in ["doubt", "far", "who", "killer", "late"] {
        env.ends_as(id, "CAPTURED", None).await;
        assert_eq!(env.captures_of(id), 1);
    }
    env.ends_as("mal", "FAILED", Some("malformed")).await;
}

/// Copies of one dead letter, some of which were replayed before, have one child. What two
/// operators do at once is done once.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_and_concurrent_replays_capture_once() {
    const PARENTS: usize = 15;
    let env = ItEnv::open().await.declare().await;
    for n in 0..PARENTS {
        let body = job(&format!("c-{n}"), &format!("p-{n}"), 100);
        env.script(&format!("p-{n}"), json!([{"answer": {"code": "RISK_REJECT"}}]));
        env.publish(&body).await;
        for replays in [0, 1, 5] {
            let mut copy = written("RISK_REJECT", true, NOW);
            copy.insert("x-capture-replays".into(), AMQPValue::LongInt(replays));
            env.dead_letter(Class::Risk, &body, copy).await;
        }
    }
    let _worker = env.worker().await;
    let parents = async || env.results.all().len() >= PARENTS;
    eventually("the parents are refused", LIMIT, parents).await;
    let replay = ["dead", "replay", "--class", "risk", "--yes"];
    let (one, other) = tokio::join!(env.run_json(&replay), env.run_json(&replay));
    let sent = [&one, &other].map(|(_, document)| document["sent"].as_u64().expect("a count"));
    // While a child is captured, copies of its parent are refused. The next replay takes the rest.
    let left = env.dead_count(Class::Risk).await;
    assert_eq!(sent.iter().sum::<u64>() + u64::from(left), 4 * 15, "{one:?} {other:?}");
    eventually("all dead letters are gone", LIMIT, async || {
        env.run_json(&replay).await;
        env.dead_count(Class::Risk).await == 0
    })
    .await;
    for n in 0..PARENTS {
        let (parent, child) = (format!("c-{n}"), fresh_id(&format!("c-{n}")));
        env.ends_as(&child, "CAPTURED", None).await;
        assert_eq!((env.captures_of(&child), env.captures_of(&parent)), (1, 0));
    }
    assert_eq!(env.sandbox.ledger()["captures"].as_array().map(Vec::len), Some(PARENTS));
    env.assert_clean_books();
}

/// The command is killed after the broker has the job and before the dead letter is acked. The dead
/// letter stays, and its next replay publishes the same job again.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_publish_and_ack_captures_once() {
    const DEAD_LETTERS: u32 = 40;
    let env = ItEnv::open().await.declare().await;
    let rabbit = shared_rabbit().await.expect("a broker");
    let port =
        env.base.settings["BROKER__URL"].rsplit(':').next().and_then(|rest| rest.split('/').next());
    let slow =
        Proxy::to(port.and_then(|port| port.parse().ok()).expect("a port")).await.expect("a proxy");
    let jobs = format!("{}.jobs", env.prefix);
    let mut parents = 0;
    // The slow connection makes this window long, but a kill may still miss it.
    let mut hits = 0;
    for round in 0..20 {
        for n in 0..DEAD_LETTERS {
            let id = format!("c-{round}-{n}");
            env.sandbox_has_seen(&format!("p-{id}")).await;
            env.dead_letter(
                Class::Risk,
                &job(&id, &format!("p-{id}"), 100),
                written("RISK_REJECT", true, NOW),
            )
            .await;
            parents += 1;
        }
        let before = env.broker.queue_depth(&jobs).await.expect("a size").unwrap_or_default();
        let dead_before = env.dead_count(Class::Risk).await;
        let mut program = env.program(&["dead", "replay", "--all", "--yes"]);
        program.env("CAPTURE__BROKER__URL", slow.url(&rabbit.url()));
        program.env("CAPTURE__BROKER__TOPOLOGY", "none");
        let mut killed = Process::spawn(program).expect("a process");
        slow.throttle(Some(40_000));
        let published = async || {
            env.broker.queue_depth(&jobs).await.expect("a size").unwrap_or_default() > before + 2
        };
        eventually("some jobs are published", LIMIT, published).await;
        killed.kill9();
        slow.throttle(None);
        slow.cut();
        let settled = within(LIMIT, async || {
            let sent = env.broker.queue_depth(&jobs).await.expect("a size")? - before;
            let left = env.dead_count(Class::Risk).await;
            (left + sent).checked_sub(dead_before)
        });
        hits += settled.await.expect("the dead letters are back");
        if hits > 0 {
            break;
        }
    }
    assert!(hits > 0, "no kill met the window between publish and ack");
    let _worker = env.worker().await;
    eventually("all dead letters are gone", LIMIT, async || {
        env.run_json(&["dead", "replay", "--all", "--yes"]).await;
        env.dead_count(Class::Risk).await == 0
    })
    .await;
    let captured = async || env.sandbox.ledger()["captures"].as_array().map(Vec::len);
    eventually("each child is captured", LIMIT, async || captured().await == Some(parents)).await;
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    assert_eq!(captured().await, Some(parents));
    env.assert_clean_books();
}

/// The verdict was an `F`, but the money moved. There is no fresh id, and a result reports the
/// capture.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_captured_is_settled_and_has_no_child() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    env.script("p", json!([{"answer": {"code": "SYSTEM_ERROR"}, "executes": true}]));
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "FAILED", Some("provider")).await;
    let (_, plan) = env.run_json(&["dead", "replay", "--id", "c", "--dry-run"]).await;
    assert_eq!((&plan["settled"], env.dead_count(Class::Provider).await), (&json!(1), 1));
    let (exit, _) = env
        .run_json(&["dead", "discard", "--id", "c", "--reason", "x", "--yes", "--limit", "0"])
        .await;
    assert_eq!((exit, env.dead_count(Class::Provider).await), (Some(0), 1));
    let (exit, done) = env.run_json(&["dead", "replay", "--id", "c"]).await;
    assert_eq!((exit, &done["settled"], &done["sent"]), (Some(0), &json!(1), &json!(0)));
    let has_result =
        async || env.results_now("c").iter().any(|result| result["status"] == "CAPTURED");
    eventually("the publisher has the result", LIMIT, has_result).await;
    assert_eq!((env.dead_count(Class::Provider).await, env.posts("p", &fresh_id("c"))), (0, 0));
    assert_eq!(env.audit(&["--action", "settle"]).await.len(), 1);
    // From now on, every copy ends as captured.
    env.publish(&job("c", "p", 100)).await;
    eventually("a copy is captured too", LIMIT, async || {
        env.results_now("c").iter().filter(|result| result["status"] == "CAPTURED").count() == 2
    })
    .await;
}

/// A copy of the parent that still waits must not capture after the child may: the replay records
/// the parent as failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_replaced_parent_captures_nothing() {
    let env = ItEnv::open().await.declare().await;
    env.dead_letter(Class::Request, &job("c", "p", 100), written("PARAM_ILLEGAL", true, NOW)).await;
    env.sandbox_has_seen("p").await;
    let (exit, done) = env.run_json(&["dead", "replay", "--id", "c"]).await;
    assert_eq!((exit, &done["sent"]), (Some(0), &json!(1)), "{done}");
    env.publish(&job("c", "p", 100)).await;
    let _worker = env.worker().await;
    env.ends_as(&fresh_id("c"), "CAPTURED", None).await;
    env.ends_as("c", "FAILED", Some("request")).await;
    assert_eq!((env.captures_of("c"), env.captures_of(&fresh_id("c"))), (0, 1));
    let (exit, status) = env.run_json(&["status", "c", "--payment", "p"]).await;
    assert_eq!((exit, &status["is"]), (Some(0), &json!("failed")));
    assert_eq!(status["family"][0]["captureRequestId"], fresh_id("c"));
    let (_, child) = env.run_json(&["status", &fresh_id("c"), "--payment", "p"]).await;
    assert_eq!(child["is"], "captured");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_id_needs_evidence_a_signature_and_the_lease() {
    let env = ItEnv::open().await.declare().await;
    let refused = async |reason: &str| {
        let (exit, done) = env.run_json(&["dead", "replay", "--class", "risk"]).await;
        assert_eq!(exit, Some(1));
        let found = done["letters"][0]["refusal"].as_str().unwrap_or_default();
        assert!(found.contains(reason), "{reason} in {done}");
        assert_eq!((env.dead_count(Class::Risk).await, env.queued().await.get("jobs")), (1, None));
    };
    env.dead_letter(Class::Risk, &job("c", "p", 100), written("RISK_REJECT", false, NOW)).await;
    refused("not marked as signed").await;
    env.dead(Class::Risk, 1).await;
    env.dead_letter(Class::Risk, &job("c", "p", 100), written("RISK_REJECT", true, NOW)).await;
    env.script("p", json!([{"call": "inquiry", "answer": {"http": 503}}]));
    refused("no evidence").await;
    env.script("p", json!([{"answer": {"code": "CAPTURE_IN_PROCESS"}, "inquiries": 100}]));
    env.publish(&job("c", "p", 100)).await;
    let mut worker = env.worker().await;
    eventually("the capture is in process", LIMIT, async || env.posts("p", "c") > 0).await;
    assert_eq!(worker.drain().await, Some(0));
    let (exit, done) = env.run_json(&["dead", "replay", "--class", "risk"]).await;
    assert_eq!((exit, &done["sent"]), (Some(1), &json!(0)), "in doubt: {done}");
    let mut without_redis = env.program(&["dead", "replay", "--class", "risk"]);
    without_redis.env("CAPTURE__REDIS__URL", "redis://127.0.0.1:1");
    let (exit, _, errors) = crate::commands::run(without_redis).await;
    assert_eq!((exit, env.dead_count(Class::Risk).await), (Some(1), 1));
    assert!(errors.contains("only under the lease"), "{errors}");
}

impl ItEnv {
    /// Makes the gateway know a payment without captures.
    pub(crate) async fn sandbox_has_seen(&self, payment: &str) {
        let authorize = json!({"authorized": {"currency": "HKD", "value": "1000"}});
        let path = format!("/sandbox/payments/{payment}");
        testkit::http::call("PUT", &self.gateway.url(), &path, Some(&authorize))
            .await
            .expect("authorized");
    }
}
