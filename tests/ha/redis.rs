//! Redis whose primaries have replicas.

use crate::{
    shop::{LIMIT, Shop},
    support::{
        poll::eventually,
        servers::{RedisCluster, WatchedRedis, shared_rabbit},
    },
    turn,
};

/// All keys of a payment are in the slot of its id.
fn primary_of(cluster: &RedisCluster, payment: &str) -> usize {
    cluster.primary_of(&format!("capture:{{{payment}}}:lease")).unwrap()
}

/// How often workers have waited for calls whose leases may have been lost.
fn waits(shop: &Shop) -> usize {
    shop.workers.iter().map(|worker| worker.logged("Redis may have lost leases")).sum()
}

/// A payment of each primary.
fn hot_payments(cluster: &RedisCluster) -> Vec<String> {
    let mut names = (0..).map(|n| format!("hot-{n}"));
    let mut on = |primary| names.find(|name| primary_of(cluster, name) == primary).unwrap();
    (0..3).map(&mut on).collect()
}

/// First a primary that serves what the workers write to see whether Redis is there, then one that does not, and without
/// `cluster-require-full-coverage`: whichever it is, leases may be lost, and captures wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_redis_loses_one_primary_and_then_another_and_work_goes_on() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut cluster = RedisCluster::start().await.unwrap();
    let hot = hot_payments(&cluster);
    let _turn = turn().await;
    let mut shop = Shop::open(&rabbit.url(), &cluster.url(), 3, &hot).await;
    for is_watched in [true, false] {
        let watched = cluster.primary_of(&shop.key("ping")).unwrap();
        let meets = |payment: &&String| (primary_of(&cluster, payment) == watched) == is_watched;
        let payment = hot.iter().find(meets).unwrap();
        let victim = primary_of(&cluster, payment);
        let waited = waits(&shop);
        let struck = shop.strike(payment, |_| cluster.node(victim).kill9()).await;
        shop.outlives(&struck).await;
        assert_ne!(primary_of(&cluster, payment), victim, "nobody took over");
        assert!(waits(&shop) > waited, "the new primary may lack leases");
        cluster.node(victim).start_again().await.unwrap();
        cluster.becomes_whole().await.unwrap();
        cluster.set("cluster-require-full-coverage", "no").unwrap();
    }
    shop.close().await;
}

/// It comes back as a primary, and is one until the Sentinels have told it otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_behind_sentinels_loses_its_primary_and_work_goes_on() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut redis = WatchedRedis::start().await.unwrap();
    let hot = ["hot-a", "hot-b", "hot-c"].map(str::to_owned);
    let _turn = turn().await;
    let mut shop = Shop::open(&rabbit.url(), &redis.url(), 3, &hot).await;
    let (victim, waited) = (redis.primary().unwrap(), waits(&shop));
    let struck = shop.strike(&hot[0], |_| redis.server(victim).kill9()).await;
    shop.outlives(&struck).await;
    assert_ne!(redis.primary().unwrap(), victim, "nobody took over");
    assert!(waits(&shop) > waited, "the new primary may lack leases");
    let noticed = async || shop.workers.iter().all(|worker| worker.logged("Redis is away") > 0);
    eventually("every worker noticed", LIMIT, noticed).await;
    redis.server(victim).start_again().await.unwrap();
    redis.becomes_whole().await.unwrap();
    shop.close().await;
}
