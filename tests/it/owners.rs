//! Deployments and merchants that share a Redis do not see each other's data.

use std::time::Duration;

use serde_json::json;
use testkit::servers::{Persistence, PrivateRedis, Reply, shared_rabbit};

use crate::env::{ItEnv, job};

#[tokio::test(flavor = "multi_thread")]
async fn deployments_that_share_a_redis_share_no_outcomes() {
    let (rabbit, redis) =
        tokio::try_join!(shared_rabbit(), PrivateRedis::start(Persistence::None)).unwrap();
    let staging = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let production = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    staging.script("declined", json!([{"answer": {"code": "RISK_REJECT"}}]));
    let workers = [staging.worker().await, production.worker().await];
    for (payment, at_staging) in [("p", "CAPTURED"), ("declined", "FAILED")] {
        for (env, status) in [(&staging, at_staging), (&production, "CAPTURED")] {
            let id = format!("c-{payment}");
            env.publish(&job(&id, payment, 12_990)).await;
            let class = (status == "FAILED").then_some("risk");
            let result = env.ends_as(&id, status, class).await;
            assert_eq!((&result["evidence"], env.posts(payment, &id)), (&json!("reply"), 1));
        }
    }
    drop(workers);
    let Reply::List(keys) = redis.cmd(&["KEYS", "*"]).unwrap() else { panic!("no keys") };
    for key in keys {
        let Reply::Text(key) = key else { panic!("{key:?}") };
        let is_owned = [&staging, &production].iter().any(|env| key.starts_with(&env.key("")));
        assert!(is_owned, "{key} names no owner");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_need_redis_refuse_to_run_without_a_client_id() {
    let env = ItEnv::open().await;
    for arguments in [
        &["run"][..],
        &["check"],
        &["status", "c", "--payment", "p"],
        &["dead", "replay", "--all", "--yes"],
        &["dead", "replay", "--all", "--dry-run"],
    ] {
        let mut program = env.program(arguments);
        program.env_remove("CAPTURE__GATEWAY__CLIENT_ID");
        let (exit, _, errors) = crate::commands::run(program).await;
        assert_eq!(exit, Some(64), "{arguments:?}: {errors}");
        assert!(errors.contains("gateway.client_id is missing"), "{arguments:?}: {errors}");
    }
}
