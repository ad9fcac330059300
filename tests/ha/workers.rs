//! Workers are added and removed under load.

use nix::sys::signal::Signal;
use testkit::{
    LIMIT,
    poll::eventually,
    servers::{Persistence, PrivateRedis, shared_rabbit},
    worker::Worker,
};

use crate::{env::HaEnv, turn};

/// Workers are removed by SIGTERM, as an autoscaler does, and one of them by SIGKILL.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_when_workers_scale_from_one_to_four_and_back() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let hot = ["hot-a", "hot-b", "hot-c"].map(str::to_owned);
    let _turn = turn().await;
    let mut env = HaEnv::open(&rabbit.url(), &redis.url(), 1, &hot).await;
    let struck = env.strike(&hot[0], |_| {}).await;
    env.base.scale_up(4).await.unwrap();
    for worker in &env.base.workers {
        let works = async || worker.metric("capture_worker_attempts_total").await > 0;
        eventually("every worker captures", LIMIT, works).await;
    }
    env.outlives(&struck).await;

    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        let leaving: &Worker = &env.base.workers[0];
        let busy = async || leaving.metric("capture_worker_jobs_in_flight").await > 0;
        eventually("the worker has jobs in flight", LIMIT, busy).await;
        let leaves = |env: &mut HaEnv| env.base.workers[0].process.signal(signal).unwrap();
        let struck = env.strike(&hot[0], leaves).await;
        let mut left = env.base.workers.remove(0);
        let status = left.process.wait(LIMIT).await.unwrap();
        let expected = if signal == Signal::SIGTERM { Some(0) } else { None };
        assert_eq!(status.code(), expected, "{}", left.process.describe());
        env.outlives(&struck).await;
    }
    assert_eq!(env.base.workers.len(), 1);
    env.close().await;
}
