//! A broker of three nodes behind one address.

use crate::{
    shop::{LIMIT, Shop},
    support::{
        balancer::Balancer,
        poll::eventually,
        servers::{Persistence, PrivateRedis, RabbitCluster},
    },
    turn,
};

const LOST: &str = "broker session lost";

/// Each fault kills the node that leads the queue of jobs and has one third of the connections or
/// more.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_a_broker_loses_two_nodes_in_turn() {
    let mut cluster = RabbitCluster::start().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let balancer = Balancer::to(&cluster.ports()).await.unwrap();
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", balancer.port());
    let hot = ["hot-a", "hot-b", "hot-c"].map(str::to_owned);
    let _turn = turn().await;
    let mut shop = Shop::open(&url, &redis.url(), 3, &hot).await;
    cluster.write_queue_names().await.unwrap();
    cluster.becomes_whole().await.unwrap();

    // If the lost node led the queue of jobs and a wait queue, 3.10 returns the messages of that
    // wait queue only after the node is back.
    let is_old = cluster.node(0).ctl(&["version"]).await.unwrap().trim().starts_with("3.10.");

    let mut first = None;
    for _ in 0..2 {
        let leader = cluster.leader_of(&shop.jobs_queue()).await.unwrap();
        let other = (0..cluster.ports().len()).find(|node| Some(*node) != first);
        let victim = if Some(leader) == first { other.unwrap() } else { leader };
        first = Some(victim);
        assert!(balancer.connections()[victim] > 0, "{:?}", balancer.connections());
        let lost = |shop: &Shop| shop.workers.iter().map(|worker| worker.logged(LOST)).sum();
        let before: usize = lost(&shop);
        let struck = shop.strike(&hot[0], |_| cluster.node(victim).kill9()).await;
        shop.goes_on(&struck).await;
        if !is_old {
            shop.outlives(&struck).await;
        }
        eventually("a worker has lost its session", LIMIT, async || lost(&shop) > before).await;
        assert_ne!(cluster.leader_of(&shop.jobs_queue()).await.unwrap(), victim);
        cluster.node(victim).start_again().await.unwrap();
        shop.outlives(&struck).await;
        cluster.becomes_whole().await.unwrap();
    }
    shop.close().await;
}
