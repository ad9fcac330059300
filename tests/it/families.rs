//! An id that was replaced by a fresh one stays replaced, even after Redis has lost its data.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use capture_worker::domain::capture::{class::Class, family::fresh_id};
use lapin::types::AMQPValue;
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    poll::eventually,
    servers::{Persistence, PrivateRedis, Reply, shared_rabbit},
};

use crate::{
    dead_letters::written,
    env::{ItEnv, headers, job},
    replays::NOW,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

async fn env_with_redis() -> (ItEnv, PrivateRedis) {
    let (rabbit, redis) =
        tokio::try_join!(shared_rabbit(), PrivateRedis::start(Persistence::None)).unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    env.sandbox_has_seen("p").await;
    (env.declare().await, redis)
}

impl ItEnv {
    /// Replays one dead letter, and returns the command's document.
    async fn replay_one(&self, filter: &[&str]) -> Value {
        let arguments = [&["dead", "replay", "--limit", "1", "--yes"][..], filter].concat();
        self.run_json(&arguments).await.1
    }

    /// Redis loses all data, and the workers have detected the loss.
    async fn forget(&self, redis: &PrivateRedis) {
        redis.cmd(&["FLUSHALL"]).unwrap();
        let is_named =
            async || matches!(redis.cmd(&["EXISTS", &self.key("server")]), Ok(Reply::Int(1)));
        eventually("the workers have waited", LIMIT, is_named).await;
    }
}

/// One parent has two dead copies. The first is replaced, its child is refused and replaced too,
/// and the grandchild captures.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_copy_of_a_parent_is_refused_beside_a_grandchild() {
    let (env, redis) = env_with_redis().await;
    let (child, grandchild) = (fresh_id("c"), fresh_id(&fresh_id("c")));
    for _ in 0..2 {
        let dead_letter = written("ACCESS_DENIED", true, NOW);
        env.dead_letter(Class::Access, &job("c", "p", 100), dead_letter).await;
    }
    // The gateway refuses the child before it looks up the id, so inquiries will not show it.
    let refuse = json!([{"captureRequestId": child, "answer": {"code": "ACCESS_DENIED"}}]);
    env.script("p", refuse);
    let _worker = env.worker().await;
    assert_eq!(env.replay_one(&["--id", "c"]).await["sent"], 1);
    env.ends_as(&child, "FAILED", Some("access")).await;
    assert_eq!(env.replay_one(&["--id", &child]).await["sent"], 1);
    env.ends_as(&grandchild, "CAPTURED", None).await;

    env.forget(&redis).await;
    let plan = env.run_json(&["dead", "replay", "--id", "c", "--dry-run"]).await.1;
    let done = env.replay_one(&["--id", "c"]).await;
    for document in [&plan, &done] {
        let refusal = document["letters"][0]["refusal"].as_str().unwrap_or_default();
        assert!(refusal.contains(&grandchild), "{document}");
    }
    assert_eq!((&done["sent"], env.dead_count(Class::Access).await), (&json!(0), 1));
    let captured = ["c", &child, &grandchild].map(|id| env.captures_of(id));
    assert_eq!(captured, [0, 0, 1]);
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_doubt_of_a_replaced_id_is_never_posted() {
    let (env, redis) = env_with_redis().await;
    let dead_letter = written("ACCESS_DENIED", true, NOW);
    env.dead_letter(Class::Access, &job("c", "p", 100), dead_letter).await;
    env.dead_letter(Class::InDoubt, &job("c", "p", 100), written("", false, NOW)).await;
    let _worker = env.worker().await;
    assert_eq!(env.replay_one(&["--class", "access"]).await["sent"], 1);
    env.ends_as(&fresh_id("c"), "CAPTURED", None).await;
    env.forget(&redis).await;

    // The only inquiry gets no valid reply, so the command refuses.
    env.script("p", json!([{"call": "inquiry", "answer": {"http": 503}}]));
    let done = env.replay_one(&["--class", "in_doubt"]).await;
    assert_eq!((&done["sent"], env.dead_count(Class::InDoubt).await), (&json!(0), 1), "{done}");
    let instead = done["letters"][0]["instead"].as_str().unwrap_or_default();
    assert!(instead.contains("dead discard"), "{done}");

    // A worker that receives such a job inquires until there is evidence.
    env.script("p", json!([{"call": "inquiry", "answer": {"http": 503}, "times": 2}]));
    let replayed = headers([
        ("x-capture-sent", AMQPValue::Boolean(true)),
        ("x-capture-replays", AMQPValue::LongInt(1)),
    ]);
    env.publish_with(&job("c", "p", 100), replayed).await;
    let result = env.ends_as("c", "IN_DOUBT", Some("conflict")).await;
    assert!(result["resultMessage"].as_str().unwrap().contains(&fresh_id("c")), "{result}");
    assert!(result.get("evidence").is_none(), "{result}");
    let captured = ["c", &fresh_id("c")].map(|id| env.captures_of(id));
    assert_eq!((captured, env.posts("p", "c")), ([0, 1], 0));
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_id_is_kept_for_400_days_and_for_every_amount() {
    let (env, redis) = env_with_redis().await;
    let dead_letter = written("PARAM_ILLEGAL", true, NOW);
    env.dead_letter(Class::Request, &job("c", "p", 100), dead_letter).await;
    assert_eq!(env.replay_one(&["--id", "c"]).await["sent"], 1);
    let replaced = env.key("{p}:replaced:c");
    let Ok(Reply::Int(ms)) = redis.cmd(&["PTTL", &replaced]) else { panic!("no time") };
    assert!(ms > 399 * DAY_MS && ms <= 400 * DAY_MS, "{ms}");
    let Ok(Reply::Text(record)) = redis.cmd(&["GET", &replaced]) else { panic!("no record") };
    assert!(record.starts_with("HKD:100\nclosed\n{"), "{record}");

    redis.cmd(&["DEL", &env.key("{p}:known:c")]).unwrap();
    let _worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "FAILED", Some("request")).await;
    env.publish(&job("c", "p", 99)).await;
    let is_in_doubt =
        async || env.results_now("c").into_iter().find(|result| result["status"] == "IN_DOUBT");
    let result = eventually("the job with another amount ends", LIMIT, is_in_doubt).await;
    assert_eq!((&result["class"], env.posts("p", "c")), (&json!("conflict"), 0));
    env.ends_as(&fresh_id("c"), "CAPTURED", None).await;
}
