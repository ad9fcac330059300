//! Faults under load: of workers, the broker, Redis and the network. No job is lost, and none is
//! captured twice.

use std::{collections::BTreeSet, time::Duration};

use capture_worker::domain::capture::class::Class;
use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use nix::sys::signal::Signal;
use serde_json::json;
use testkit::{
    LIMIT, http,
    poll::eventually,
    proxy::Proxy,
    servers::{Persistence, PrivateRabbit, PrivateRedis, shared_rabbit},
};

use crate::env::{ItEnv, headers, job, text};

const SLOW: Duration = Duration::from_millis(20);

/// Publishes this many jobs, one fifth of them for one payment.
async fn publish_load(env: &ItEnv, count: usize) {
    for n in 0..count {
        let payment = if n % 5 == 0 { "hot".to_owned() } else { format!("p-{n}") };
        env.publish(&job(&format!("c-{n}"), &payment, 100)).await;
    }
}

fn captures(env: &ItEnv) -> usize {
    env.sandbox.ledger()["captures"].as_array().map_or(0, Vec::len)
}

async fn captures_reach(env: &ItEnv, count: usize) {
    let what = format!("{count} captures");
    eventually(&what, LIMIT, async || captures(env) >= count).await;
}

/// Asserts that all jobs are captured once and that no message is left at the broker.
async fn assert_all_captured_once(env: &ItEnv, count: usize) {
    captures_reach(env, count).await;
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger["captured"], json!({"HKD": (count * 100).to_string()}));
    assert_eq!(ledger["capturedTwice"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_captures_in_progress_and_returns_the_rest() {
    let env = ItEnv::open().await.set("BROKER__PREFETCH", "3").set("GATEWAY__TIMEOUT", "5s");
    let mut worker = env.worker().await;
    env.script_all(json!([{"delay_ms": 700, "times": "forever"}]));
    for n in 0..10 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    eventually("captures are in progress", LIMIT, async || {
        (0..10).filter(|n| env.posts(&format!("p-{n}"), &format!("c-{n}")) > 0).count() == 3
    })
    .await;
    assert_eq!(worker.drain().await, Some(0));
    assert_eq!(captures(&env), 3, "only the captures in flight");
    assert_eq!(env.results.wait_for(3, LIMIT).await.unwrap().len(), 3);
    assert_eq!(env.queued().await, [("jobs".to_owned(), 7)].into());
    let log = worker.process.stderr();
    assert!(!log.contains(r#""level":"ERROR""#), "a drain must not log errors: {log}");
    let _next = env.worker().await;
    env.results.wait_for(10, LIMIT).await.unwrap();
    assert_all_captured_once(&env, 10).await;
    assert!((0..10).all(|n| env.posts(&format!("p-{n}"), &format!("c-{n}")) == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_after_a_second_exits_with_1_at_once() {
    let env = ItEnv::open().await.set("GATEWAY__TIMEOUT", "15s");
    let mut worker = env.worker().await;
    env.script("p", json!([{"answer": "hang", "executes": true}]));
    env.publish(&job("c", "p", 100)).await;
    eventually("the capture hangs", LIMIT, async || captures(&env) == 1).await;
    worker.process.signal(Signal::SIGINT).unwrap();
    eventually("the worker drains", LIMIT, async || {
        http::get(&worker.url, "/readyz").await.is_err() && worker.process.ended().is_none()
    })
    .await;
    // A signal within one second of the first counts as the same.
    let ended = eventually("the worker ends", LIMIT, async || {
        worker.process.signal(Signal::SIGTERM).unwrap_or_default();
        worker.process.ended()
    });
    assert_eq!(ended.await.code(), Some(1));
    assert_eq!(env.results_now("c").len(), 0, "the call was still in progress");
    let _next = env.worker_with(&[("LEASE__TTL", "20s")]).await;
    env.ends_as("c", "CAPTURED", None).await;
    assert_all_captured_once(&env, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_under_load_loses_nothing() {
    let env = ItEnv::open_slow(SLOW).await.set("LEASE__TTL", "2500ms");
    let mut first = env.worker().await;
    let mut second = env.worker().await;
    publish_load(&env, 200).await;
    captures_reach(&env, 30).await;
    first.process.kill9();
    captures_reach(&env, 60).await;
    let _third = env.worker().await;
    second.process.kill9();
    assert_all_captured_once(&env, 200).await;
    // The ledger shows a capture before its result has arrived here.
    eventually("every job has its result", LIMIT, async || {
        let results = env.results.all().into_iter();
        let ids = results.map(|result| result.json().unwrap()["captureRequestId"].to_string());
        ids.collect::<BTreeSet<String>>().len() == 200
    })
    .await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_under_load_loses_nothing() {
    let mut rabbit = PrivateRabbit::start().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let workers = tokio::join!(env.worker(), env.worker());
    publish_load(&env, 150).await;
    captures_reach(&env, 30).await;
    rabbit.kill9();
    for worker in [&workers.0, &workers.1] {
        eventually("the worker is not ready", LIMIT, async || {
            http::get(&worker.url, "/readyz").await.is_err()
        })
        .await;
        http::get(&worker.url, "/livez").await.expect("livez does not depend on the broker");
    }
    rabbit.start_again().await.unwrap();
    let env = env.reconnect(&rabbit.url()).await;
    assert_all_captured_once(&env, 150).await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_killed_under_load_pauses_work_and_loses_nothing() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut redis = PrivateRedis::start(Persistence::Always).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let workers = tokio::join!(env.worker(), env.worker());
    publish_load(&env, 150).await;
    captures_reach(&env, 30).await;
    redis.kill9();
    for worker in [&workers.0, &workers.1] {
        eventually("the worker is not ready", LIMIT, async || {
            http::get(&worker.url, "/readyz").await.is_err()
        })
        .await;
    }
    // Calls that had begun end. Without a lease, no call begins.
    let quiet = async || {
        let before = captures(&env);
        tokio::time::sleep(Duration::from_millis(300)).await;
        captures(&env) == before
    };
    eventually("captures have stopped", LIMIT, quiet).await;
    let before = captures(&env);
    env.publish(&job("late", "late", 100)).await;
    redis.start_again().await.unwrap();
    assert_all_captured_once(&env, 151).await;
    assert!(before < 151, "the outage came too late: all jobs were captured before it");
    env.ends_as("late", "CAPTURED", None).await;
    env.assert_clean_books();
}

/// After the loss, workers wait for the calls whose leases are lost.
#[tokio::test(flavor = "multi_thread")]
async fn data_loss_in_redis_under_load_loses_no_job() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let _workers = tokio::join!(env.worker(), env.worker());
    publish_load(&env, 150).await;
    for count in [20, 60] {
        captures_reach(&env, count).await;
        redis.kill9();
        redis.start_again().await.unwrap();
    }
    assert_all_captured_once(&env, 150).await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_connections_under_load_lose_nothing() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let (to_rabbit, to_redis) =
        tokio::try_join!(Proxy::to(rabbit.port()), Proxy::to(redis.port())).unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let to_gateway = Proxy::to(env.gateway.port).await.unwrap();
    let env = env.set("BROKER__URL", &to_rabbit.url(&rabbit.url()));
    let url = to_gateway.url(&env.gateway.url());
    let env = env.set("REDIS__URL", &to_redis.url(&redis.url())).set("GATEWAY__BASE_URL", &url);
    let env = env.set("RETRY__SCHEDULE", "100ms,200ms,400ms,800ms,1s,2s");
    let _workers = tokio::join!(env.worker(), env.worker());
    publish_load(&env, 150).await;
    for count in [10, 25, 40, 60, 90] {
        captures_reach(&env, count).await;
        for proxy in [&to_rabbit, &to_redis, &to_gateway] {
            proxy.cut();
        }
    }
    assert_all_captured_once(&env, 150).await;
    env.assert_clean_books();
}

/// A frozen broker sends no reply and closes no connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_is_detected_and_its_jobs_are_redelivered() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let proxy = Proxy::to(rabbit.port()).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), SLOW).await;
    let env = env.set("BROKER__URL", &proxy.url(&rabbit.url()));
    let worker = env.worker().await;
    // The first result opens the channel for results.
    env.publish(&job("before", "o", 100)).await;
    env.ends_as("before", "CAPTURED", None).await;
    env.script("p", json!([{"delay_ms": 500}]));
    env.publish(&job("c", "p", 100)).await;
    eventually("the capture is in progress", LIMIT, async || env.posts("p", "c") == 1).await;
    // The worker's publishes arrive at the broker, but their confirms don't reach the worker.
    proxy.freeze_replies();
    captures_reach(&env, 2).await;
    eventually("the worker ends the session", LIMIT, async || {
        http::get(&worker.url, "/readyz").await.is_err()
    })
    .await;
    proxy.cut();
    proxy.thaw();
    worker.becomes_ready().await.unwrap();
    env.publish(&job("d", "q", 100)).await;
    env.ends_as("d", "CAPTURED", None).await;
    assert_all_captured_once(&env, 3).await;
    // The first result was published without a confirm, and then the job was redelivered.
    let results = async || (env.results_now("c").len() == 2).then_some(());
    eventually("a second result of the first job", LIMIT, results).await;
    assert_eq!(env.posts("p", "c"), 1, "the outcome was recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_broker_is_waited_for() {
    let rabbit = PrivateRabbit::start().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let to_gateway = Proxy::to(env.gateway.port).await.unwrap();
    let url = to_gateway.url(&env.gateway.url());
    let env = env.set("GATEWAY__BASE_URL", &url).set("GATEWAY__TIMEOUT", "25s");
    let env = env.set("DRAIN__TIMEOUT", "30s");
    let worker = env.worker().await;
    // The broker tells only publishers that it is blocked, so the result must come after the alarm.
    to_gateway.freeze_replies();
    env.publish(&job("c", "p", 100)).await;
    captures_reach(&env, 1).await;
    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await.unwrap();
    to_gateway.thaw();
    let warned = async || worker.process.stderr().contains("consumption paused");
    eventually("the worker pauses", LIMIT, warned).await;
    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"]).await.unwrap();
    env.ends_as("c", "CAPTURED", None).await;
    env.publish(&job("d", "p", 100)).await;
    env.ends_as("d", "CAPTURED", None).await;
    assert_eq!(worker.process.stderr().matches("broker session opened").count(), 1);
    assert_eq!(env.results_now("c").len(), 1);
}

/// Some publishes of one batch are returned because their queue does not exist. The returned ones
/// must not count as delivered, and the others must not count as lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_returned_publish_never_counts_as_confirmed() {
    let env = ItEnv::open().await.set("BROKER__PREFETCH", "400");
    let mut worker = env.worker().await;
    let no_topology = [("BROKER__TOPOLOGY", "none")];
    assert_eq!(worker.drain().await, Some(0));
    let channel = env.broker.channel().await.unwrap();
    let risk = format!("{}.dead.risk", env.prefix);
    channel.queue_delete(risk.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    for n in 0..100 {
        for code in ["RISK_REJECT", "AUTH_EXPIRED", "PROCESS_FAIL"] {
            env.publish(&job(&format!("c-{code}-{n}"), &format!("sim-{code}-{n}"), 100)).await;
        }
    }
    let _worker = env.worker_with(&no_topology).await;
    let ids = |messages: Vec<testkit::broker::Message>| -> BTreeSet<String> {
        messages
            .iter()
            .map(|message| message.json().unwrap()["captureRequestId"].to_string())
            .collect()
    };
    assert_eq!(ids(env.dead(Class::Authorization, 100).await).len(), 100);
    assert_eq!(ids(env.dead(Class::Provider, 100).await).len(), 100);
    assert!(env.queued().await.is_empty(), "the other jobs are in hand");

    let mut arguments = headers([("x-queue-type", text("quorum"))]);
    arguments.insert("x-overflow".into(), text("reject-publish"));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(risk.as_str().into(), durable, arguments).await.unwrap();
    let (exchange, bind) = (format!("{}.dead", env.prefix), QueueBindOptions::default());
    let none = FieldTable::default();
    channel
        .queue_bind(risk.as_str().into(), exchange.as_str().into(), "risk".into(), bind, none)
        .await
        .unwrap();
    // Read the messages as they arrive: 4.0 does not count the messages of a queue that was
    // declared again.
    let mut arrived = BTreeSet::new();
    eventually("all dead letters of class risk", LIMIT, async || {
        arrived.extend(ids(env.broker.drain_queue(&risk).await.unwrap()));
        arrived.len() == 100
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_dead_letter_queue_is_declared_before_the_publish() {
    let env = ItEnv::open().await;
    let _worker = env.worker().await;
    let channel = env.broker.channel().await.unwrap();
    let risk = format!("{}.dead.risk", env.prefix);
    channel.queue_delete(risk.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    env.publish(&job("c", "sim-RISK_REJECT-1", 100)).await;
    env.dead(Class::Risk, 1).await;
    env.ends_as("c", "FAILED", Some("risk")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_broker_cancelled_is_replaced() {
    let rabbit = PrivateRabbit::start().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let worker = env.worker().await;
    let channel = env.broker.channel().await.unwrap();
    let jobs = format!("{}.jobs", env.prefix);
    channel.queue_delete(jobs.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let opened = || worker.process.stderr().matches("broker session opened").count();
    eventually("a new session", LIMIT, async || opened() == 2).await;
    worker.becomes_ready().await.unwrap();
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_mismatch_names_the_queue_and_the_argument() {
    let env = ItEnv::open().await;
    let channel = env.broker.channel().await.unwrap();
    let queue = format!("{}.dead.risk", env.prefix);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let other =
        headers([("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(5))]);
    channel.queue_declare(queue.as_str().into(), durable, other).await.unwrap();
    let mut process = testkit::processes::Process::spawn(env.program(&["run"])).unwrap();
    let status = process.wait(LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(1));
    let said = process.stderr();
    assert!(said.contains(&queue) && said.contains("x-"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_consumers_is_poison_by_the_delivery_limit() {
    let env = ItEnv::open().await;
    let mut worker = env.worker().await;
    assert_eq!(worker.drain().await, Some(0));
    env.publish(&job("c", "p", 100)).await;
    let jobs = format!("{}.jobs", env.prefix);
    for _ in 0..21 {
        let peeked = async || env.broker.peek_queue(&jobs).await.unwrap().len() == 1;
        eventually("the job is in the queue", LIMIT, peeked).await;
    }
    let message = env.dead(Class::Poison, 1).await.remove(0);
    assert_eq!(message.body, job("c", "p", 100));
    assert!(env.results_now("c").is_empty(), "a dead letter of the broker has no result");
}
