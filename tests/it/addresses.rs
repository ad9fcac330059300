//! Common set-ups of Redis: Sentinels that require a password, a Cluster behind one address, and a
//! server that evicts keys.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use testkit::{
    LIMIT,
    poll::eventually,
    servers::{Persistence, PrivateRedis, RedisCluster, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, job};

/// A password with special characters.
const PASSWORD: &str = "p@ss/w0rd#1,%:";
const ENCODED: &str = "p%40ss%2Fw0rd%231%2C%25%3A";

fn asking_for(password: &str) -> [String; 2] {
    ["--requirepass".to_owned(), password.to_owned()]
}

/// A test environment whose Redis is at this URL.
async fn env_at(url: &str) -> ItEnv {
    let rabbit = shared_rabbit().await.unwrap();
    ItEnv::open_at(&rabbit.url(), url, Duration::ZERO).await
}

/// Whether `check` accepts Redis, and its whole output.
async fn redis_is_well(env: &ItEnv) -> (bool, String) {
    let (_, document) = env.run_json(&["check"]).await;
    (document["checks"]["redis"]["ok"] == true, document.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_get_their_own_credentials_or_those_of_the_url() {
    let primary = PrivateRedis::start_with(&asking_for(PASSWORD)).await.unwrap();
    let open = primary.start_sentinel().await.unwrap();
    let same = primary.start_sentinel_with(&asking_for(PASSWORD)).await.unwrap();
    let other = primary.start_sentinel_with(&asking_for("0f/Sentinels")).await.unwrap();
    let url = |sentinel: &PrivateRedis| {
        format!("redis-sentinel://:{ENCODED}@127.0.0.1:{}#main", sentinel.port())
    };
    let (open, same, other) = (url(&open), url(&same), url(&other));
    let mut env = env_at(&open).await;
    for (url, password, is_well) in [
        (&open, None, true),
        (&same, None, true),
        (&same, Some(PASSWORD), true),
        (&same, Some("wrong"), false),
        (&other, Some("0f/Sentinels"), true),
        (&other, None, false),
    ] {
        env = env.set("REDIS__URL", url);
        env.base.settings.remove("REDIS__SENTINEL_PASSWORD");
        if let Some(password) = password {
            env = env.set("REDIS__SENTINEL_PASSWORD", password);
        }
        // A Sentinel needs a moment until it considers its primary healthy.
        let mut said = String::new();
        eventually(&format!("Redis is healthy: {is_well}, {password:?}"), LIMIT, async || {
            let found = redis_is_well(&env).await;
            said = found.1;
            found.0 == is_well
        })
        .await;
        assert!(!said.contains("w0rd") && !said.contains("0f/Sentinels"), "{said}");
    }
    // A separate user of the Sentinels, whose password is in a file.
    let acl = ["ACL", "SETUSER", "worker", "on", ">hush", "allcommands"];
    let third = primary.start_sentinel_with(&asking_for(PASSWORD)).await.unwrap();
    third.cmd(&acl).unwrap();
    let folder = testkit::guardian::folder().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hush\n").unwrap();
    env.base.settings.remove("REDIS__SENTINEL_PASSWORD");
    let env = env
        .set("REDIS__URL", &url(&third))
        .set("REDIS__SENTINEL_USERNAME", "worker")
        .set("REDIS__SENTINEL_PASSWORD_FILE", file.to_str().unwrap());
    eventually("a user of the Sentinels", LIMIT, async || redis_is_well(&env).await.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_with_any_characters_is_read_from_the_url() {
    let redis = PrivateRedis::start_with(&asking_for(PASSWORD)).await.unwrap();
    let url = format!("redis://:{ENCODED}@127.0.0.1:{}/0", redis.port());
    let (is_well, said) = redis_is_well(&env_at(&url).await).await;
    assert!(is_well, "{said}");
    assert!(!said.contains("w0rd"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_behind_one_address_is_used_as_a_cluster() {
    let cluster = RedisCluster::start().await.unwrap();
    let env = env_at(&cluster.url_of_one().unwrap()).await;
    let (is_well, said) = redis_is_well(&env).await;
    assert!(is_well, "{said}");
    let mut worker = env.worker().await;
    // Payments in all slots. If the client treated the node as a single server, it could use only
    // one third of them.
    for n in 0..12 {
        env.publish(&job(&format!("c{n}"), &format!("p{n}"), 100)).await;
    }
    for n in 0..12 {
        env.ends_as(&format!("c{n}"), "CAPTURED", None).await;
    }
    assert_eq!(worker.drain().await, Some(0));
    env.assert_clean_books();
}

/// The number of a worker's log lines that warn about the policy.
fn warnings(worker: &Worker) -> usize {
    worker.process.stderr().lines().filter(|line| line.contains("maxmemory_policy")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_may_evict_keys_causes_one_warning() {
    let evicts = ["--maxmemory-policy", "allkeys-lru"].map(str::to_owned);
    let mut redis = PrivateRedis::start_with(&evicts).await.unwrap();
    let env = env_at(&redis.url()).await;
    let mut worker = env.worker().await;
    assert_eq!(warnings(&worker), 1, "{}", worker.process.stderr());
    assert!(worker.process.stderr().contains("allkeys-lru"));
    // A new connection causes no second warning.
    let connected = |worker: &Worker| worker.process.stderr().matches("Redis connected").count();
    assert_eq!(connected(&worker), 1);
    redis.kill9();
    redis.start_again().await.unwrap();
    eventually("the worker is reconnected", LIMIT, async || connected(&worker) == 2).await;
    assert_eq!(warnings(&worker), 1);
    assert_eq!(worker.drain().await, Some(0));

    // There is no warning without permission for INFO, or if nothing is evicted.
    redis.cmd(&["ACL", "SETUSER", "mute", "on", ">hush", "~*", "allcommands", "-info"]).unwrap();
    let mute = format!("redis://mute:hush@127.0.0.1:{}", redis.port());
    let kept = PrivateRedis::start(Persistence::None).await.unwrap();
    for url in [mute, kept.url()] {
        let env = env_at(&url).await;
        let mut worker = env.worker().await;
        assert_eq!(warnings(&worker), 0, "{}", worker.process.stderr());
        assert_eq!(worker.drain().await, Some(0));
    }
}
