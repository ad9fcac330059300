//! Browsing dead letters changes nothing, however often and by however many operators at once.

use std::time::Duration;

use capture_worker::domain::capture::class::Class;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{LIMIT, broker::Message, poll::eventually, processes::Process};

use crate::{
    commands::run,
    env::{ItEnv, headers, job, text},
};

/// The headers that a worker writes on a dead letter.
pub(crate) fn written(code: &str, signed: bool, age: Duration) -> FieldTable {
    let dead_at = time::OffsetDateTime::now_utc() - age;
    let dead_at_ms = i64::try_from(dead_at.unix_timestamp_nanos() / 1_000_000).expect("a time");
    let mut written = headers([
        ("x-capture-attempt", AMQPValue::LongInt(1)),
        ("x-capture-dead-at", AMQPValue::LongLongInt(dead_at_ms)),
        ("x-capture-signed", AMQPValue::Boolean(signed)),
        ("x-capture-message", text("as it was")),
        ("theirs", text("kept")),
    ]);
    if !code.is_empty() {
        written.insert("x-capture-code".into(), text(code));
        written.insert("x-capture-status".into(), text("F"));
    }
    written
}

impl ItEnv {
    /// Publishes a dead letter to the queue of its class, as a worker does.
    pub(crate) async fn dead_letter(&self, class: Class, body: &[u8], headers: FieldTable) {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_correlation_id("order-7".into())
            .with_headers(headers);
        let exchange = format!("{}.dead", self.prefix);
        self.broker.publish(&exchange, class.name(), body, properties).await.expect("buried");
    }

    /// Runs a command of the program to its end, and returns exit code, stdout and stderr.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        run(self.program(arguments)).await
    }

    /// Runs a command with `--json`, and returns its exit code and its document.
    pub(crate) async fn run_json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let arguments = [arguments, &["--json"]].concat();
        let (code, output, errors) = self.run(&arguments).await;
        let document = serde_json::from_str(&output);
        (code, document.unwrap_or_else(|error| panic!("{error}: {output}{errors}")))
    }

    /// The dead letters of a class in the order of their queue, without the broker's counts of
    /// returns.
    pub(crate) async fn dead_letters_in(&self, class: Class) -> Vec<(Vec<u8>, BasicProperties)> {
        let queue = format!("{}.dead.{class}", self.prefix);
        let dead_letters = self.broker.peek_queue(&queue).await.expect("a size");
        dead_letters.into_iter().map(without_count).collect()
    }
}

pub(crate) fn without_count(dead_letter: Message) -> (Vec<u8>, BasicProperties) {
    let mut headers: FieldTable = dead_letter.properties.headers().clone().unwrap_or_default();
    let kept = headers.inner().iter().filter(|(name, _)| {
        // 4.3 counts acquisitions and failed deliveries separately.
        !["x-delivery-count", "x-acquired-count"].contains(&name.as_str())
    });
    headers = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into();
    (dead_letter.body, dead_letter.properties.with_headers(headers))
}

/// A test environment with dead letters of several classes, ages and currencies.
async fn env_with_dead_letters() -> ItEnv {
    let env = ItEnv::open().await.declare().await;
    let hour = Duration::from_secs(3600);
    env.sandbox_has_seen("p-risk").await;
    for n in 0..3_u64 {
        let id = format!("risk-{n}");
        env.dead_letter(
            Class::Risk,
            &job(&id, "p-risk", 100 + n),
            written("RISK_REJECT", true, hour),
        )
        .await;
    }
    let expired = br#"{"captureRequestId":"old","paymentId":"p-old",
        "amount":{"currency":"JPY","value":"500"},"expiresAt":"2026-01-01T00:00:00Z"}"#;
    env.dead_letter(Class::Expired, expired, written("", false, 3 * hour)).await;
    env.dead_letter(Class::InDoubt, &job("doubt", "p-doubt", 7), written("", false, hour / 60))
        .await;
    env.dead_letter(Class::Malformed, b"{\xff\x00", written("", false, hour)).await;
    env.dead_letter(Class::Poison, &job("killer", "p-killer", 9), FieldTable::default()).await;
    env
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_what_failed_why_how_much_and_how_old() {
    let env = env_with_dead_letters().await;
    let (code, listed) = env.run_json(&["dead", "list"]).await;
    assert_eq!(code, Some(0));
    let listed = listed.as_array().expect("an array");
    let classes: Vec<_> =
        listed.iter().map(|class| class["class"].as_str().expect("name")).collect();
    assert_eq!(classes, ["risk", "in_doubt", "expired", "malformed", "poison"]);
    let risk = &listed[0];
    assert_eq!((&risk["letters"], &risk["money"]), (&json!(3), &json!({"HKD": "303"})));
    assert_eq!(
        (&risk["codes"], &risk["replay"]),
        (&json!({"RISK_REJECT": 3}), &json!({"fresh_id": 3}))
    );
    assert!((3600..3700).contains(&risk["oldestAgeSeconds"].as_i64().expect("an age")), "{risk}");
    assert_eq!(listed[2]["money"], json!({"JPY": "500"}));
    assert_eq!(
        (&listed[3]["withoutAmount"], &listed[4]["oldestDeadAt"]),
        (&json!(1), &Value::Null)
    );

    let (_, output, _) = env.run(&["dead", "list"]).await;
    assert!(output.contains("HKD 3.03") && output.contains("RISK_REJECT 3"), "{output}");
    assert!(output.lines().nth(1).is_some_and(|line| line.contains("fresh id; inform the payer")));

    let (_, dead_letters) =
        env.run_json(&["dead", "list", "--class", "risk", "--limit", "2"]).await;
    let ids: Vec<_> =
        dead_letters.as_array().expect("letters").iter().map(|l| &l["captureRequestId"]).collect();
    assert_eq!(ids, ["risk-0", "risk-1"]);
    for (filter, count) in [
        (vec!["--older-than", "2h"], 1),
        (vec!["--newer-than", "30m"], 1),
        (vec!["--code", "RISK_REJECT"], 3),
        (vec!["--id", "doubt", "--id", "old"], 2),
        (vec!["--payment", "p-risk", "--class", "risk,poison"], 3),
        (vec!["--all"], 7),
    ] {
        let (code, output, errors) = env.run(&[&["dead", "export"], &*filter].concat()).await;
        assert_eq!((code, output.lines().count()), (Some(0), count), "{filter:?} {output}{errors}");
    }
    let (code, _, errors) = env.run(&["dead", "list", "--class", "nonsense"]).await;
    assert_eq!(code, Some(64));
    assert!(errors.contains("is not a class of dead letters"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn browses_and_dry_runs_leave_every_queue_byte_identical() {
    let env = env_with_dead_letters().await;
    let mut before = Vec::new();
    for class in Class::ALL {
        before.push(env.dead_letters_in(class).await);
    }
    for arguments in [
        &["dead", "list"][..],
        &["dead", "list", "--class", "risk,malformed", "--limit", "1"],
        &["dead", "show", "doubt", "--inquire"],
        &["dead", "export"],
        &["dead", "replay", "--all", "--dry-run"],
        &["dead", "replay", "--class", "risk", "--dry-run", "--limit", "1"],
        &["dead", "discard", "--all", "--reason", "none", "--dry-run"],
        &["audit"],
        &["status", "doubt", "--payment", "p-doubt"],
    ] {
        let (code, output, errors) = env.run(arguments).await;
        let is_plan = arguments.contains(&"--all") && arguments.contains(&"replay");
        // The plan refuses the job whose `expiresAt` has passed.
        assert_eq!(code, Some(i32::from(is_plan)), "{arguments:?} {output}{errors}");
    }
    let mut after = Vec::new();
    for class in Class::ALL {
        after.push(env.dead_letters_in(class).await);
    }
    assert_eq!(before, after);
    let audit = format!("{}.audit", env.prefix);
    assert_eq!(env.broker.queue_depth(&audit).await.expect("a size"), Some(0));
    assert_eq!(env.queued().await.get("jobs"), None);
    assert!(env.sandbox.ledger()["captures"].as_array().is_some_and(Vec::is_empty));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_contains_every_byte_and_header() {
    let env = env_with_dead_letters().await;
    let (_, output, _) = env.run(&["dead", "export", "--class", "risk,malformed"]).await;
    let lines: Vec<Value> =
        output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["body"].as_str().map(str::as_bytes), Some(&*job("risk-0", "p-risk", 100)));
    assert_eq!(lines[0]["headers"]["theirs"], "kept");
    assert_eq!(lines[0]["properties"]["correlationId"], "order-7");
    assert_eq!(lines[3]["bodyBase64"], "e/8A");
}

/// Each browse waits for the others, so each sees all dead letters. One that is killed returns
/// everything to the queue.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_browses_see_everything_and_a_killed_one_loses_nothing() {
    const DEAD_LETTERS: u64 = 3000;
    let env = ItEnv::open().await.declare().await;
    let channel = env.broker.channel().await.expect("a channel");
    let exchange = format!("{}.dead", env.prefix);
    for n in 0..DEAD_LETTERS {
        let written = written("PROCESS_FAIL", true, Duration::ZERO);
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(written);
        let (to, key) = (exchange.as_str().into(), "provider".into());
        let body = job(&format!("c-{n}"), &format!("p-{n}"), 100);
        channel.basic_publish(to, key, Default::default(), &body, properties).await.expect("sent");
    }
    let queue = format!("{}.dead.provider", env.prefix);
    let all = u32::try_from(DEAD_LETTERS).expect("a count");
    let all_are_there = async || env.broker.queue_depth(&queue).await.expect("a size") == Some(all);
    eventually("all dead letters are in the queue", LIMIT, all_are_there).await;

    let browses = (0..3).map(|_| env.run_json(&["dead", "list"]));
    for (code, listed) in futures_util::future::join_all(browses).await {
        assert_eq!((code, &listed[0]["letters"]), (Some(0), &json!(DEAD_LETTERS)));
    }
    let numbers = async || {
        let (_, output, _) = env.run(&["dead", "export"]).await;
        let number = |line: &str| {
            let dead_letter: Value = serde_json::from_str(line).expect("JSON");
            dead_letter["captureRequestId"].as_str().and_then(|id| id[2..].parse::<u64>().ok())
        };
        output.lines().map(|line| number(line).expect("a number")).collect::<Vec<_>>()
    };
    let in_order: Vec<u64> = (0..DEAD_LETTERS).collect();
    assert!(numbers().await == in_order, "out of order after browses");
    let mut interrupted = Process::spawn(env.program(&["dead", "export"])).expect("a process");
    interrupted.line(LIMIT, |line| line.contains("c-100").then_some(())).await.expect("an export");
    interrupted.signal(Signal::SIGINT).expect("a signal");
    assert_eq!(interrupted.wait(LIMIT).await.expect("an exit").code(), Some(1));
    eventually("all messages are back", LIMIT, all_are_there).await;
    assert!(numbers().await == in_order, "out of order after an interrupted browse");
    for _ in 0..3 {
        let mut killed = Process::spawn(env.program(&["dead", "list"])).expect("a process");
        let browses = async || env.broker.queue_depth(&queue).await.expect("a size") < Some(all);
        eventually("the command holds some dead letters", LIMIT, browses).await;
        killed.kill9();
        eventually("all messages are back", LIMIT, all_are_there).await;
    }
    let mut back = numbers().await;
    back.sort_unstable();
    assert!(back == in_order, "dead letters were lost or duplicated");
}

#[tokio::test(flavor = "multi_thread")]
async fn show_prints_everything_and_the_possible_actions_as_commands() {
    let env = env_with_dead_letters().await;
    let (code, output, _) = env.run(&["dead", "show", "risk-1", "--inquire"]).await;
    assert_eq!(code, Some(0));
    for part in
        ["F RISK_REJECT, signed", "HKD 1.01", "theirs", "dead replay --class risk --id=risk-1"]
    {
        assert!(output.contains(part), "{part} in {output}");
    }
    assert!(
        output.contains("the gateway knows of no such capture") && output.contains("as cw-"),
        "{output}"
    );
    let (_, shown) = env.run_json(&["dead", "show", "killer", "--class", "poison"]).await;
    assert_eq!((&shown[0]["sent"], &shown[0]["replay"]), (&json!(true), &json!("same_bytes")));
    let (code, _, errors) = env.run(&["dead", "show", "nobody"]).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("no dead letter has the captureRequestId nobody"), "{errors}");
}
