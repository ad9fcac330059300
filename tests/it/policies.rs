//! Policies of the broker override the arguments of queues. These tests check their effect on dead
//! letters and audit records that are browsed, and on queues that they delete.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{collections::BTreeSet, time::Duration};

use capture_worker::domain::capture::class::Class;
use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicNackOptions, QueueDeleteOptions},
    types::AMQPValue,
};
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    broker::Message,
    http,
    poll::eventually,
    processes::Process,
    servers::{Persistence, PrivateRabbit, PrivateRedis, shared_rabbit},
};

use crate::{
    dead_letters::{without_count, written},
    env::{ItEnv, headers, job, text},
};

impl ItEnv {
    /// Sets a policy for all queues of this test environment.
    pub(crate) async fn hygiene_policy(&self, rabbit: &PrivateRabbit, definition: &Value) {
        let (name, pattern) = (format!("hygiene-{}", self.prefix), format!("^{}\\.", self.prefix));
        let definition = definition.to_string();
        let set = ["set_policy", "--apply-to", "queues", &name, &pattern, &definition];
        rabbit.ctl(&set).await.unwrap();
    }

    /// Returns every message of a queue this many times, so that the broker counts the returns.
    async fn return_all(&self, queue: &str, times: u32) {
        for _ in 0..times {
            self.messages(queue).await;
        }
    }

    /// The messages of a queue, in order. The broker counts this as a return.
    async fn messages(&self, queue: &str) -> Vec<Message> {
        let messages = self.broker.hold_queue(queue).await.unwrap().requeue().await.unwrap();
        let depth = Some(u32::try_from(messages.len()).unwrap());
        let are_back = async || self.broker.queue_depth(queue).await.unwrap() >= depth;
        eventually("all messages are back", LIMIT, are_back).await;
        messages
    }

    /// The bodies and properties of a queue's messages, without the broker's counts.
    async fn contents(&self, queue: &str) -> Vec<(Vec<u8>, BasicProperties)> {
        self.messages(queue).await.into_iter().map(without_count).collect()
    }

    /// The largest count of returns in a queue, and the number of messages.
    async fn counted(&self, queue: &str) -> (i64, usize) {
        let messages = self.messages(queue).await;
        let counts = messages.iter().filter_map(|message| message.header("x-delivery-count"));
        let largest = counts.map(|count| count.parse().unwrap()).max();
        (largest.unwrap_or_default(), messages.len())
    }

    async fn audit_records(&self, count: usize) {
        for n in 0..count {
            let record = json!({"at": "2026-11-25T10:00:00Z", "who": format!("user-{n}"),
                "action": "discard", "letter": {"class": "risk", "replays": 0, "bodySha256": ""}});
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, body) = (format!("{}.audit", self.prefix), record.to_string());
            self.broker.publish(&exchange, "audit", body.as_bytes(), properties).await.unwrap();
        }
    }

    async fn risks(&self, count: u64) {
        for n in 0..count {
            let written = written("RISK_REJECT", true, Duration::from_secs(3600));
            self.dead_letter(Class::Risk, &job(&format!("risk-{n}"), "p-risk", 100 + n), written)
                .await;
        }
    }
}

/// RabbitMQ up to 4.2 counts every return, and drops a message that exceeds the policy's limit.
#[tokio::test(flavor = "multi_thread")]
async fn forty_browses_under_a_delivery_limit_of_12_lose_nothing() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await;
    env.hygiene_policy(rabbit, &json!({"delivery-limit": 12})).await;
    env.sandbox_has_seen("p-risk").await;
    env.risks(10).await;
    env.audit_records(3).await;
    let queue = format!("{}.dead.risk", env.prefix);
    let before = env.contents(&queue).await;
    assert_eq!(before.len(), 10);
    let browses: [&[&str]; 5] = [
        &["dead", "list", "--json"],
        &["dead", "show", "risk-9", "--json"],
        &["dead", "export"],
        &["dead", "replay", "--class", "risk", "--dry-run", "--limit", "2"],
        &["dead", "discard", "--class", "risk", "--reason", "none", "--dry-run"],
    ];
    for browse in 0..40 {
        let (code, output, errors) = env.run(browses[browse % browses.len()]).await;
        assert_eq!(code, Some(0), "browse {browse}: {output}{errors}");
        let (_, audited) = env.run_json(&["audit"]).await;
        assert_eq!(audited.as_array().unwrap().len(), 3, "browse {browse}");
    }
    assert!(env.contents(&queue).await == before, "order or content has changed");
    let (code, acted, _) =
        env.run(&["dead", "discard", "--class", "risk", "--reason", "r", "--yes"]).await;
    assert_eq!(code, Some(0), "{acted}");
    assert_eq!(env.run_json(&["audit"]).await.1.as_array().unwrap().len(), 13);
}

/// Two browsing commands are killed while they republish the queue.
#[tokio::test(flavor = "multi_thread")]
async fn browses_that_are_killed_near_the_limit_lose_nothing() {
    const COUNT: u64 = 2000;
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await;
    env.hygiene_policy(rabbit, &json!({"delivery-limit": 12})).await;
    env.risks(COUNT).await;
    let queue = format!("{}.dead.risk", env.prefix);
    env.return_all(&queue, 10).await;
    let all = u32::try_from(COUNT).unwrap();
    for _ in 0..2 {
        let mut killed = Process::spawn(env.program(&["dead", "list"])).unwrap();
        let browses = async || env.broker.queue_depth(&queue).await.unwrap() < Some(all);
        eventually("the command holds some messages", LIMIT, browses).await;
        killed.kill9();
        let are_back = async || env.broker.queue_depth(&queue).await.unwrap() >= Some(all);
        eventually("all messages are back", LIMIT, are_back).await;
    }
    for _ in 0..15 {
        let (code, listed) = env.run_json(&["dead", "list"]).await;
        assert_eq!(code, Some(0));
        // A message that was republished and not acked yet exists twice.
        assert!(listed[0]["letters"].as_u64() >= Some(COUNT), "{listed}");
    }
    let (_, exported, _) = env.run(&["dead", "export"]).await;
    let ids: BTreeSet<String> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["captureRequestId"].to_string())
        .collect();
    assert_eq!(ids.len(), usize::try_from(COUNT).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_republished_when_its_count_reaches_ten() {
    let env = ItEnv::open().await.declare().await;
    env.risks(30).await;
    let queue = format!("{}.dead.risk", env.prefix);
    let before = env.contents(&queue).await;
    env.return_all(&queue, 7).await;
    let browse = async || assert_eq!(env.run(&["dead", "list"]).await.0, Some(0));
    browse().await;
    assert_eq!(env.counted(&queue).await, (9, 30), "returned in place");
    browse().await;
    assert_eq!(env.counted(&queue).await, (1, 30), "republished with new counts");
    assert!(env.contents(&queue).await == before, "order or content has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_high_count_behind_the_first_messages_is_found() {
    let env = ItEnv::open().await.declare().await;
    let queue = format!("{}.dead.risk", env.prefix);
    env.risks(200).await;
    // The last message is returned repeatedly while the others are held.
    let mut held = env.broker.hold_queue(&queue).await.unwrap();
    for _ in 0..11 {
        let nack = BasicNackOptions { requeue: true, ..Default::default() };
        held.channel.basic_nack(held.tags.pop().unwrap(), nack).await.unwrap();
        let message = eventually("the message is ready again", LIMIT, async || {
            let get = BasicGetOptions::default();
            held.channel.basic_get(queue.as_str().into(), get).await.unwrap()
        });
        held.tags.push(message.await.delivery.delivery_tag);
    }
    held.requeue().await.unwrap();
    let are_back = async || env.broker.queue_depth(&queue).await.unwrap() == Some(200);
    eventually("all messages are back", LIMIT, are_back).await;
    assert_eq!(env.counted(&queue).await.0, 12);
    assert_eq!(env.run(&["dead", "list"]).await.0, Some(0));
    let (count, messages) = env.counted(&queue).await;
    assert!((count, messages) <= (1, 200), "{count}, {messages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_write_permission_messages_return_with_a_warning() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await;
    env.risks(5).await;
    env.audit_records(5).await;
    let (prefix, user) = (env.prefix.clone(), format!("reader-{}", env.prefix));
    rabbit.ctl(&["add_user", &user, "secret"]).await.unwrap();
    let (configure, read) = (format!("^{prefix}\\..*\\.look$"), format!("^{prefix}\\."));
    rabbit
        .ctl(&["set_permissions", "-p", "/", &user, &configure, &configure, &read])
        .await
        .unwrap();
    let url = format!("amqp://{user}:secret@127.0.0.1:{}/%2f", rabbit.port());
    let env = env.set("BROKER__URL", &url);
    for (queue, command, count) in [
        (format!("{prefix}.dead.risk"), &["dead", "export"][..], 5),
        (format!("{prefix}.audit"), &["audit"][..], 6),
    ] {
        let before = env.contents(&queue).await;
        env.return_all(&queue, 9).await;
        let (code, output, errors) = env.run(command).await;
        assert_eq!((code, output.lines().count()), (Some(0), count), "{errors}");
        for part in ["could not be republished", "ACCESS_REFUSED", &queue] {
            assert!(errors.contains(part), "{part} in {errors}");
        }
        assert_eq!(env.counted(&queue).await, (11, 5));
        assert!(env.contents(&queue).await == before, "order or content has changed");
    }
}

/// Some properties would make the broker act: another user's id closes the channel, and an
/// expiration removes the message.
#[tokio::test(flavor = "multi_thread")]
async fn a_republished_message_is_unchanged() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await;
    rabbit.ctl(&["add_user", &env.prefix, "secret"]).await.unwrap();
    rabbit.ctl(&["set_permissions", "-p", "/", &env.prefix, ".*", ".*", ".*"]).await.unwrap();
    let properties = BasicProperties::default()
        .with_delivery_mode(1)
        .with_priority(3)
        .with_timestamp(1_700_000_000)
        .with_message_id("m".into())
        .with_correlation_id("c".into())
        .with_content_type("application/json".into())
        .with_type("shipment".into())
        .with_app_id("warehouse".into())
        .with_reply_to("answers".into())
        .with_user_id("guest".into())
        .with_headers(headers([
            ("x-capture-sent", AMQPValue::Boolean(true)),
            ("double", AMQPValue::Double(0.5)),
            ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
            ("nothing", AMQPValue::Void),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
        ]));
    let exchange = format!("{}.dead", env.prefix);
    env.broker.publish(&exchange, "poison", b"{\xff\x00", properties).await.unwrap();
    let (mut body, mut before) = env.dead_letters_in(Class::Poison).await.remove(0);
    env.return_all(&format!("{}.dead.poison", env.prefix), 10).await;
    let url = format!("amqp://{0}:secret@127.0.0.1:{1}/%2f", env.prefix, rabbit.port());
    let env = env.set("BROKER__URL", &url);
    let (code, _, errors) = env.run(&["dead", "list"]).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let (now_body, now) = env.dead_letters_in(Class::Poison).await.remove(0);
    assert_eq!(now.user_id(), &None);
    before = before.with_user_id("".into());
    assert_eq!((std::mem::take(&mut body), before), (now_body, now.with_user_id("".into())));
}

/// The reason is that of a job that expires in its queue.
#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_reason_is_shown_before_and_after_a_republish() {
    let env = ItEnv::open().await.declare().await;
    let exchange = format!("{}.jobs", env.prefix);
    let expires = BasicProperties::default().with_delivery_mode(2).with_expiration("50".into());
    env.broker.publish(&exchange, "job", &job("late", "p", 100), expires).await.unwrap();
    let queue = format!("{}.dead.poison", env.prefix);
    let is_there = async || env.broker.queue_depth(&queue).await.unwrap() == Some(1);
    eventually("the job has expired", LIMIT, is_there).await;
    let before = env.dead_letters_in(Class::Poison).await.remove(0);

    for returns in [0, 10] {
        env.return_all(&queue, returns).await;
        let (_, shown) = env.run_json(&["dead", "show", "late"]).await;
        assert_eq!(
            (&shown[0]["brokerReason"], &shown[0]["brokerQueue"], &shown[0]["sent"]),
            (&json!("expired"), &json!(format!("{}.jobs", env.prefix)), &json!(true))
        );
        assert!(shown[0]["deadAt"].is_string(), "{shown}");
        let advice = shown[0]["advice"].as_str().unwrap();
        assert!(advice.starts_with("expired by a TTL before a worker took it"), "{advice}");
        let (_, output, _) = env.run(&["dead", "list"]).await;
        assert!(output.contains("by the broker: expired 1") && output.contains(advice), "{output}");
        let (_, output, _) = env.run(&["dead", "list", "--class", "poison"]).await;
        assert!(output.contains("by the broker: expired"), "{output}");
        let (_, output, _) = env.run(&["dead", "export"]).await;
        let exported: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(exported["brokerReason"], "expired");
        let (_, listed) = env.run_json(&["dead", "list"]).await;
        assert_eq!(listed[0]["brokerReasons"], json!({"expired": 1}));
    }
    let (body, properties) = env.dead_letters_in(Class::Poison).await.remove(0);
    assert_eq!(body, before.0);
    let of = |properties: &BasicProperties, name: &str| {
        properties.headers().as_ref().unwrap().inner().get(name).cloned()
    };
    assert_eq!(of(&properties, "x-capture-broker-reason"), Some(text("expired")));
    let jobs = format!("{}.jobs", env.prefix);
    assert_eq!(of(&properties, "x-capture-broker-queue"), Some(text(&jobs)));
    assert_eq!(of(&before.1, "x-capture-broker-reason"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_length_limit_dropped_shows_this_reason() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await;
    env.hygiene_policy(rabbit, &json!({"max-length": 1, "overflow": "drop-head"})).await;
    let queue = format!("{}.dead.poison", env.prefix);
    let mut jobs = 0;
    eventually("the policy drops a job", LIMIT, async || {
        jobs += 1;
        env.publish(&job(&format!("c-{jobs}"), "p", 100)).await;
        env.broker.queue_depth(&queue).await.unwrap() > Some(0)
    })
    .await;
    let (_, dead_letters) = env.run_json(&["dead", "list", "--class", "poison"]).await;
    assert_eq!(dead_letters[0]["brokerReason"], "maxlen");
    let (_, listed) = env.run_json(&["dead", "list"]).await;
    let advice = listed[0]["advice"].as_str().unwrap();
    assert!(advice.starts_with("dropped by a length limit"), "{advice}");
}

/// If the broker has dropped `x-death`, the worker's own headers count, but not a publisher's.
#[tokio::test(flavor = "multi_thread")]
async fn forged_reasons_are_dropped_and_kept_ones_are_read() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "1h").declare().await;
    let jobs = format!("{}.jobs", env.prefix);
    let kept = || {
        headers([
            ("x-capture-broker-reason", text("maxlen")),
            ("x-capture-broker-queue", text(&jobs)),
        ])
    };
    env.dead_letter(Class::Poison, &job("kept", "p", 100), kept()).await;
    env.script("p-risk", json!([{"answer": {"code": "RISK_REJECT"}, "times": "forever"}]));
    env.script("p-u", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": "forever"}]));
    let _worker = env.worker().await;
    env.publish_with(&job("dead", "p-risk", 100), kept()).await;
    env.publish_with(&job("waits", "p-u", 100), kept()).await;
    let (_, shown) = env.run_json(&["dead", "show", "kept"]).await;
    assert_eq!(shown[0]["brokerReason"], "maxlen");
    let dead = env.dead(Class::Risk, 1).await.remove(0);
    let waits = format!("{}.wait.1h", env.prefix);
    let is_there = async || env.broker.queue_depth(&waits).await.unwrap() == Some(1);
    eventually("the job waits", LIMIT, is_there).await;
    let waiting = env.broker.peek_queue(&waits).await.unwrap().remove(0);
    for republished in [dead, waiting] {
        let names: Vec<String> = republished.headers().into_keys().collect();
        assert!(!names.iter().any(|name| name.contains("broker")), "{names:?}");
    }
}

/// This test has its own broker, because 3.10 fails when queues with at-least-once dead-lettering
/// are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_a_policy_deletes_is_reported_and_declared_again() {
    let rabbit = PrivateRabbit::start().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let mut worker = env.worker().await;
    let queues = ["wait.100ms", "dead.risk"].map(|name| format!("{}.{name}", env.prefix));
    let pattern = format!("^{}\\.(wait\\.100ms|dead\\.risk)$", env.prefix);
    let expires =
        ["set_policy", "--apply-to", "queues", "hygiene", &pattern, r#"{"expires":1000}"#];
    rabbit.ctl(&expires).await.unwrap();
    for queue in &queues {
        let is_gone = async || env.broker.queue_depth(queue).await.unwrap().is_none();
        eventually("the policy deletes the queue", LIMIT, is_gone).await;
    }
    rabbit.ctl(&["clear_policy", "hygiene"]).await.unwrap();
    let gone = |line: &str, queue: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_said = line["message"].as_str()?.starts_with("queue not found");
        (is_said && line["level"] == "ERROR" && line["queue"] == *queue).then_some(())
    };
    for queue in &queues {
        worker.process.line(LIMIT, |line| gone(line, queue)).await.unwrap();
    }
    for queue in &queues {
        let is_there = async || env.broker.queue_depth(queue).await.unwrap().is_some();
        eventually("the queue is declared again", LIMIT, is_there).await;
    }
    eventually("the metric shows it", LIMIT, async || {
        let scrape = http::get(&worker.url, "/metrics").await.ok()?;
        let has = |line: &str| scrape.lines().any(|found| found == line);
        (has(r#"capture_worker_queue_missing{kind="wait",name="100ms"} 1"#)
            && has(r#"capture_worker_queue_missing{kind="dead",name="risk"} 1"#)
            && has(r#"capture_worker_queue_missing{kind="dead",name="payer"} 0"#))
        .then_some(())
    })
    .await;
    env.script("p-risk", json!([{"answer": {"code": "RISK_REJECT"}, "times": "forever"}]));
    env.publish(&job("r", "p-risk", 100)).await;
    assert_eq!(env.dead(Class::Risk, 1).await.len(), 1);

    // The session ends with the queue that it consumes from, and the next session declares it.
    let jobs = format!("{}.jobs", env.prefix);
    let channel = env.broker.channel().await.unwrap();
    channel.queue_delete(jobs.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    worker.process.line(LIMIT, |line| gone(line, &jobs)).await.unwrap();
    worker.becomes_ready().await.unwrap();
    let is_there = async || env.broker.queue_depth(&jobs).await.unwrap().is_some();
    eventually("the queue is declared again", LIMIT, is_there).await;
    // A publish that finds no queue causes its declaration.
    let risk = format!("{}.dead.risk", env.prefix);
    channel.queue_delete(risk.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    env.publish(&job("again", "p-risk", 100)).await;
    assert_eq!(env.dead(Class::Risk, 1).await.len(), 1);
    assert_eq!(worker.drain().await, Some(0));
}
