//! A broker of three nodes behind one address.

use testkit::{
    LIMIT,
    balancer::Balancer,
    poll::eventually,
    servers::{Persistence, PrivateRedis, RabbitCluster},
};

use crate::{env::HaEnv, turn};

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
    let mut env = HaEnv::open(&url, &redis.url(), 3, &hot).await;
    cluster.write_queue_names().await.unwrap();
    cluster.becomes_whole().await.unwrap();

    // If the lost node led the queue of jobs and a wait queue, 3.10 returns the messages of that
    // wait queue only after the node is back.
    let is_old = cluster.node(0).ctl(&["version"]).await.unwrap().trim().starts_with("3.10.");

    let mut first = None;
    for _ in 0..2 {
        let leader = cluster.leader_of(&env.jobs_queue()).await.unwrap();
        let other = (0..cluster.ports().len()).find(|node| Some(*node) != first);
        let victim = if Some(leader) == first { other.unwrap() } else { leader };
        first = Some(victim);
        assert!(balancer.connections()[victim] > 0, "{:?}", balancer.connections());
        let lost = |env: &HaEnv| env.base.workers.iter().map(|worker| worker.logged(LOST)).sum();
        let before: usize = lost(&env);
        let struck = env.strike(&hot[0], |_| cluster.node(victim).kill9()).await;
        env.goes_on(&struck).await;
        if !is_old {
            env.outlives(&struck).await;
        }
        eventually("a worker has lost its session", LIMIT, async || lost(&env) > before).await;
        assert_ne!(cluster.leader_of(&env.jobs_queue()).await.unwrap(), victim);
        cluster.node(victim).start_again().await.unwrap();
        env.outlives(&struck).await;
        cluster.becomes_whole().await.unwrap();
    }
    env.close().await;
}
