//! After Redis has lost leases, no capture begins before the calls under those leases have ended.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use capture_worker::domain::capture::family::fresh_id;
use serde_json::json;
use testkit::{
    LIMIT,
    poll::eventually,
    processes::Process,
    proxy::Proxy,
    servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, job};

const SETTLES: &str = "Redis may have lost leases";
const WITHHELD: &str = "Redis may have lost leases: start a worker";
const ANSWERS: &str = "Redis connected";

fn said(worker: &Worker, words: &str) -> usize {
    worker.process.stderr().matches(words).count()
}

fn has(redis: &PrivateRedis, key: &str) -> bool {
    matches!(redis.cmd(&["EXISTS", key]), Ok(Reply::Int(1)))
}

/// A test environment with its own Redis, whose workers have a prefetch of one.
async fn env_at(redis_url: &str) -> ItEnv {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), redis_url, Duration::ZERO).await;
    env.set("BROKER__PREFETCH", "1").set("GATEWAY__TIMEOUT", "5s").set("DRAIN__TIMEOUT", "15s")
}

/// Redis loses all data while the first capture of a payment is in progress. The second capture, in
/// another worker, must wait for it.
async fn captures_after(what: &str, lose: impl AsyncFnOnce(&mut PrivateRedis)) {
    let mut redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = env_at(&redis.url()).await;
    let workers = [env.worker().await, env.worker().await];
    env.script("p", json!([{"answer": "honest", "delay_ms": 4500, "captureRequestId": "first"}]));
    env.publish(&job("first", "p", 100)).await;
    let begun = async || has(&redis, &env.key("{p}:lease"));
    eventually("the first capture is in progress", LIMIT, begun).await;
    lose(&mut redis).await;
    // Another process that uses Redis does not hide the loss from the workers.
    let mut check = Process::spawn(env.program(&["check"])).unwrap();
    assert_eq!(check.wait(LIMIT).await.unwrap().code(), Some(0), "{}", check.describe());
    assert!(check.stdout().contains(WITHHELD), "{}", check.describe());
    let _new_worker = env.start_worker().await;
    // Workers detect an emptied Redis within one second. This window cannot be closed.
    eventually("the workers detect the loss", LIMIT, async || {
        workers.iter().all(|worker| said(worker, "Redis unavailable") > 0)
    })
    .await;
    env.publish(&job("second", "p", 100)).await;
    for id in ["first", "second"] {
        env.ends_as(id, "CAPTURED", None).await;
    }
    env.assert_clean_books();
    assert_eq!(env.posts("p", "first"), 1, "{what}: the reply was received");
    assert!(has(&redis, &env.key("server")), "{what}: the new server is recorded");
    assert!(!has(&redis, &env.key("settling")), "{what}: the wait has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_captures_overlap_after_redis_restarts_empty() {
    captures_after("restarted", async |redis| {
        redis.kill9();
        redis.start_again().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_captures_overlap_after_redis_is_emptied() {
    captures_after("emptied", async |redis| {
        redis.cmd(&["FLUSHALL"]).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_worker_waits_if_another_server_is_recorded() {
    let mut redis = PrivateRedis::start(Persistence::Always).await.unwrap();
    let env = env_at(&redis.url()).await.set("GATEWAY__TIMEOUT", "1s");
    let mut first = env.worker().await;
    assert_eq!(said(&first, SETTLES), 0, "nothing was written, so nothing was lost");
    assert_eq!(first.drain().await, Some(0));
    let second = env.worker().await;
    assert_eq!(said(&second, SETTLES), 0, "the same server");
    drop(second);
    redis.stop().await.unwrap();
    redis.start_again().await.unwrap();
    let third = env.worker().await;
    assert_eq!(said(&third, SETTLES), 1, "another run of the server");
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_to_the_same_server_causes_no_wait() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let proxy = Proxy::to(redis.port()).await.unwrap();
    let env = env_at(&proxy.url(&redis.url())).await;
    let worker = env.worker().await;
    let before = said(&worker, ANSWERS);
    proxy.cut();
    eventually("the worker is reconnected", LIMIT, async || said(&worker, ANSWERS) > before).await;
    assert_eq!(said(&worker, SETTLES), 0);
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_for_info_every_new_connection_waits() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let rules = ["ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "-@dangerous"];
    redis.cmd(&rules).unwrap();
    let proxy = Proxy::to(redis.port()).await.unwrap();
    let url = format!("redis://worker:pw@127.0.0.1:{}", proxy.port());
    let env = env_at(&url).await.set("GATEWAY__TIMEOUT", "1s");
    let worker = env.worker().await;
    assert_eq!(said(&worker, SETTLES), 1, "the first connection");
    proxy.cut();
    eventually("the new connection waits", LIMIT, async || said(&worker, SETTLES) == 2).await;
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_recorded_server_workers_wait_and_commands_refuse() {
    let (rabbit, redis) =
        tokio::try_join!(shared_rabbit(), PrivateRedis::start(Persistence::None)).unwrap();
    let env = ItEnv::open_at_unnamed(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let mut worker = env.worker().await;
    assert_eq!(said(&worker, SETTLES), 1, "other workers may have calls in progress");
    env.script("p", json!([{"answer": {"code": "RISK_REJECT"}}]));
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "FAILED", Some("risk")).await;
    assert_eq!(worker.drain().await, Some(0));

    redis.cmd(&["DEL", &env.key("server")]).unwrap();
    let replay = ["dead", "replay", "--class", "risk", "--yes", "--reason", "a test"];
    let mut replays = Process::spawn(env.program(&replay)).unwrap();
    assert_eq!(replays.wait(LIMIT).await.unwrap().code(), Some(1), "{}", replays.describe());
    assert!(replays.stderr().contains(WITHHELD), "{}", replays.describe());
    assert!(!has(&redis, &env.key("server")), "only a worker records the server");

    let _worker = env.worker().await;
    let mut replays = Process::spawn(env.program(&replay)).unwrap();
    assert_eq!(replays.wait(LIMIT).await.unwrap().code(), Some(0), "{}", replays.describe());
    env.ends_as(&fresh_id("c"), "CAPTURED", None).await;
}
