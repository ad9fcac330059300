//! The limits of an operator's acts: counts, money, canaries, reasons, evidence, and the audit.

use std::time::Duration;

use capture_worker::domain::capture::{class::Class, family::fresh_id};
use lapin::types::FieldTable;
use serde_json::json;
use testkit::{LIMIT, http, poll::eventually};

use crate::{
    dead_letters::written,
    env::{ItEnv, job},
    replays::NOW,
};

#[tokio::test(flavor = "multi_thread")]
async fn limits_bound_what_a_replay_sends() {
    let env = ItEnv::open().await.declare().await;
    for n in 0..6 {
        let id = format!("c-{n}");
        env.dead_letter(Class::Unreachable, &job(&id, &id, 100), written("", false, NOW)).await;
    }
    let replay = |more: &[&str]| {
        let words: Vec<String> = ["dead", "replay", "--class", "unreachable"]
            .iter()
            .chain(more)
            .map(ToString::to_string)
            .collect();
        let env = &env;
        async move { env.run_json(&words.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let (exit, done) = replay(&["--limit", "1"]).await;
    assert_eq!((exit, &done["sent"]), (Some(0), &json!(1)));
    let (exit, done) = replay(&["--max-money", "HKD=250"]).await;
    assert_eq!((exit, &done["sent"], &done["refused"]), (Some(1), &json!(2), &json!(3)));
    let (exit, done) = replay(&["--max-money", "USD=250"]).await;
    assert_eq!((exit, &done["sent"]), (Some(1), &json!(0)));
    let begun = std::time::Instant::now();
    let (_, done) = replay(&["--rate", "2/s", "--limit", "2"]).await;
    assert_eq!(done["sent"], json!(2));
    assert!(begun.elapsed() >= Duration::from_millis(500));
    // The gateway refuses it, so the canary fails.
    env.script("c-5", json!([{"answer": {"code": "RISK_REJECT"}}]));
    env.dead_letter(Class::Unreachable, &job("c-6", "c-6", 100), written("", false, NOW)).await;
    let _worker = env.worker().await;
    let (exit, done) = replay(&["--canary", "1"]).await;
    assert_eq!((exit, &done["sent"]), (Some(1), &json!(1)), "{done}");
    assert!(
        done["error"]
            .as_str()
            .is_some_and(|error| error.contains("c-5 ended as FAILED RISK_REJECT"))
    );
    let (exit, done) = replay(&["--canary", "1"]).await;
    assert_eq!((exit, &done["sent"]), (Some(0), &json!(1)));
    env.ends_as("c-6", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_above_the_rest_can_be_lowered() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let authorize = json!({"authorized": {"currency": "HKD", "value": "150"}});
    let path = "/sandbox/payments/p";
    http::call("PUT", &env.gateway.url(), path, Some(&authorize)).await.expect("authorized");
    env.publish(&job("a", "p", 100)).await;
    env.ends_as("a", "CAPTURED", None).await;
    env.publish(&job("b", "p", 100)).await;
    env.ends_as("b", "FAILED", Some("limit")).await;
    let (exit, plan) = env.run_json(&["dead", "replay", "--class", "limit", "--dry-run"]).await;
    assert_eq!(exit, Some(1));
    assert!(
        plan["letters"][0]["instead"].as_str().is_some_and(|i| i.contains("--capture-value 50")),
        "{plan}"
    );
    for (value, id, code) in [("101", "b", 1), ("50", "b", 0)] {
        let (exit, done) =
            env.run_json(&["dead", "replay", "--id", id, "--capture-value", value]).await;
        assert_eq!(exit, Some(code), "{done}");
    }
    let result = env.ends_as(&fresh_id("b"), "CAPTURED", None).await;
    assert_eq!(result["captureAmount"]["value"], "50");
    // A copy of the dead letter is refused: its only child has captured with another amount.
    let code = "CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT";
    env.dead_letter(Class::Limit, &job("b", "p", 100), written(code, true, NOW)).await;
    let lower = ["dead", "replay", "--id", "b", "--capture-value", "40"];
    let (exit, done) = env.run_json(&lower).await;
    assert_eq!((exit, &done["refused"]), (Some(1), &json!(1)), "{done}");
    let refusal = done["letters"][0]["refusal"].as_str().unwrap_or_default();
    assert!(refusal.contains("is already at the gateway with HKD 0.50"), "{done}");
    assert_eq!(env.captures_of(&fresh_id("b")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_needs_a_reason_and_evidence_if_money_may_have_moved() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    env.publish(&job("c", "p", 70)).await;
    eventually("the dead letter is in its queue", LIMIT, async || {
        env.dead_count(Class::Conflict).await == 1
    })
    .await;
    let (_, shown, _) = env.run(&["dead", "show", "c", "--class", "conflict", "--inquire"]).await;
    assert!(shown.contains("captured another amount: HKD 1.00"), "{shown}");
    env.dead_letter(Class::InDoubt, &job("c", "p", 100), written("", false, NOW)).await;
    env.dead_letter(Class::Risk, &job("r", "p", 100), written("RISK_REJECT", true, NOW)).await;

    let (exit, _, _) = env.run(&["dead", "discard", "--class", "risk", "--yes"]).await;
    assert_eq!(exit, Some(64), "no reason");
    let (exit, _, _) = env.run(&["dead", "discard", "--reason", "x", "--yes"]).await;
    assert_eq!(exit, Some(64), "no filter");
    let (exit, _, _) = env.run(&["dead", "discard", "--all", "--reason", "x"]).await;
    assert_eq!(exit, Some(64), "no confirmation possible");
    let (exit, plan) =
        env.run_json(&["dead", "discard", "--all", "--reason", "closed", "--dry-run"]).await;
    assert_eq!((exit, &plan["discarded"], &plan["refused"]), (Some(1), &json!(2), &json!(1)));
    let (exit, done) =
        env.run_json(&["dead", "discard", "--all", "--reason", "closed", "--yes"]).await;
    assert_eq!(
        (exit, &done["discarded"], &done["refused"]),
        (Some(1), &json!(2), &json!(1)),
        "{done}"
    );
    // It is captured, and no result reported it, so it must not be discarded.
    assert_eq!(
        (
            env.dead_count(Class::Conflict).await,
            env.dead_count(Class::Risk).await,
            env.dead_count(Class::InDoubt).await
        ),
        (0, 0, 1)
    );
    let records = env.audit(&["--action", "discard", "--class", "conflict"]).await;
    assert_eq!(records[0]["evidence"], "this id captured another amount: HKD 1.00");
    assert_eq!(records[0]["reason"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_without_its_audit_record_is_not_done() {
    let env = ItEnv::open().await.declare().await.set("BROKER__TOPOLOGY", "none");
    env.dead_letter(Class::Unreachable, &job("c", "p", 100), written("", false, NOW)).await;
    let audit = format!("{}.audit", env.prefix);
    let channel = env.broker.channel().await.expect("a channel");
    let name = || audit.as_str().into();
    channel
        .queue_unbind(name(), name(), "audit".into(), FieldTable::default())
        .await
        .expect("unbound");
    for arguments in [
        &["dead", "replay", "--all", "--yes"][..],
        &["dead", "discard", "--all", "--yes", "--reason", "x"],
    ] {
        let (exit, _, errors) = env.run(arguments).await;
        assert_eq!(exit, Some(1));
        assert!(
            errors.contains("cannot write the audit record, so the dead letter is unchanged"),
            "{errors}"
        );
    }
    assert_eq!(
        (env.dead_count(Class::Unreachable).await, env.queued().await.get("jobs")),
        (1, None)
    );
}

/// There are more dead letters than one window of a browse. Some are replayed and some stay.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_dead_letters_is_processed_once() {
    const DEAD_LETTERS: u32 = 300;
    let env = ItEnv::open().await.declare().await;
    for n in 0..DEAD_LETTERS {
        let (id, payment) = (format!("c-{n}"), format!("p-{}", n % 3));
        env.dead_letter(Class::Unreachable, &job(&id, &payment, 100), written("", false, NOW))
            .await;
    }
    let money =
        ["dead", "replay", "--payment", "p-1", "--payment", "p-2", "--max-money", "HKD=15000"];
    let (_, done) = env.run_json(&money).await;
    assert_eq!((&done["sent"], &done["refused"]), (&json!(150), &json!(50)), "{}", done["error"]);
    assert_eq!(env.dead_count(Class::Unreachable).await, 150);
    let (exit, done) = env.run_json(&["dead", "discard", "--all", "--reason", "x", "--yes"]).await;
    assert_eq!((exit, &done["discarded"]), (Some(0), &json!(150)));
    assert_eq!(env.queued().await, [("jobs".to_owned(), 150)].into());
    assert_eq!(env.audit(&["--all"]).await.len(), 350);
    assert_eq!(env.audit(&["--action", "discard", "--limit", "7"]).await.len(), 7);
}
