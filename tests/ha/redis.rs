//! Redis with replicas that take over: a Cluster, and a primary behind Sentinels.

use testkit::{
    LIMIT,
    poll::eventually,
    servers::{RedisCluster, WatchedRedis, shared_rabbit},
};

use crate::{env::HaEnv, turn};

/// The index of the primary that serves a payment. All keys of a payment are in the slot of its id.
fn primary_of(cluster: &RedisCluster, payment: &str) -> usize {
    cluster.primary_of(&format!("capture:{{{payment}}}:lease")).unwrap()
}

/// How often workers have waited for calls because leases may have been lost.
fn waits(env: &HaEnv) -> usize {
    env.base.workers.iter().map(|worker| worker.logged("Redis may have lost leases")).sum()
}

/// One payment for each primary.
fn hot_payments(cluster: &RedisCluster) -> Vec<String> {
    let mut names = (0..).map(|n| format!("hot-{n}"));
    let mut on = |primary| names.find(|name| primary_of(cluster, name) == primary).unwrap();
    (0..3).map(&mut on).collect()
}

/// The first fault kills the primary that serves the key of the workers' pings. The second kills
/// another one, without `cluster-require-full-coverage`. In both cases leases may be lost, and
/// captures must wait.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_a_redis_cluster_loses_two_primaries_in_turn() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut cluster = RedisCluster::start().await.unwrap();
    let hot = hot_payments(&cluster);
    let _turn = turn().await;
    let mut env = HaEnv::open(&rabbit.url(), &cluster.url(), 3, &hot).await;
    for is_watched in [true, false] {
        let watched = cluster.primary_of(&env.base.key("ping")).unwrap();
        let meets = |payment: &&String| (primary_of(&cluster, payment) == watched) == is_watched;
        let payment = hot.iter().find(meets).unwrap();
        let victim = primary_of(&cluster, payment);
        let waited = waits(&env);
        let struck = env.strike(payment, |_| cluster.node(victim).kill9()).await;
        env.outlives(&struck).await;
        assert_ne!(primary_of(&cluster, payment), victim, "no replica took over");
        assert!(waits(&env) > waited, "the new primary may lack leases");
        cluster.node(victim).start_again().await.unwrap();
        cluster.becomes_whole().await.unwrap();
        cluster.set("cluster-require-full-coverage", "no").unwrap();
    }
    env.close().await;
}

/// The killed server starts again as a primary, until the Sentinels make it a replica.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_redis_behind_sentinels_loses_its_primary() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut redis = WatchedRedis::start().await.unwrap();
    let hot = ["hot-a", "hot-b", "hot-c"].map(str::to_owned);
    let _turn = turn().await;
    let mut env = HaEnv::open(&rabbit.url(), &redis.url(), 3, &hot).await;
    let (victim, waited) = (redis.primary().unwrap(), waits(&env));
    let struck = env.strike(&hot[0], |_| redis.server(victim).kill9()).await;
    env.outlives(&struck).await;
    assert_ne!(redis.primary().unwrap(), victim, "no replica took over");
    assert!(waits(&env) > waited, "the new primary may lack leases");
    let noticed =
        async || env.base.workers.iter().all(|worker| worker.logged("Redis unavailable") > 0);
    eventually("every worker has found Redis unavailable", LIMIT, noticed).await;
    redis.server(victim).start_again().await.unwrap();
    redis.becomes_whole().await.unwrap();
    env.close().await;
}
