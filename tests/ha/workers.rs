//! Workers are added and removed under load.

use nix::sys::signal::Signal;

use crate::{
    shop::{LIMIT, Shop, Worker},
    support::{
        poll::eventually,
        servers::{Persistence, PrivateRedis, shared_rabbit},
    },
    turn,
};

/// Workers are removed by SIGTERM, as an autoscaler does, and one of them by SIGKILL.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_workers_scale_from_one_to_four_and_back() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let hot = ["hot-a", "hot-b", "hot-c"].map(str::to_owned);
    let _turn = turn().await;
    let mut shop = Shop::open(&rabbit.url(), &redis.url(), 1, &hot).await;
    let struck = shop.strike(&hot[0], |_| {}).await;
    shop.scale_up(4).await;
    for worker in &shop.workers {
        let works = async || worker.metric("capture_worker_attempts_total").await > 0;
        eventually("every worker captures", LIMIT, works).await;
    }
    shop.outlives(&struck).await;

    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        let leaving: &Worker = &shop.workers[0];
        let busy = async || leaving.metric("capture_worker_jobs_in_flight").await > 0;
        eventually("the worker has jobs in flight", LIMIT, busy).await;
        let told = |shop: &mut Shop| shop.workers[0].process.signal(signal).unwrap();
        let struck = shop.strike(&hot[0], told).await;
        let mut left = shop.workers.remove(0);
        let status = left.process.wait(LIMIT).await.unwrap();
        let expected = if signal == Signal::SIGTERM { Some(0) } else { None };
        assert_eq!(status.code(), expected, "{}", left.process.describe());
        shop.outlives(&struck).await;
    }
    assert_eq!(shop.workers.len(), 1);
    shop.close().await;
}
