//! Faults during a run: to servers, to the network and to workers.

use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use rand::{RngExt as _, rngs::StdRng};

use crate::{
    plan::Blow,
    shop::{LEASE_TTL, LIMIT, Shop},
};

/// How long a network fault lasts.
const BAD: Duration = Duration::from_secs(2);
/// The rate of a throttled connection, in bytes per second.
const THROTTLED: u32 = 20_000;
/// How long overlaps are excused after Redis has lost its data. A call in progress has no lease any
/// more, and its reply may be late.
const FORGOTTEN: Duration = LEASE_TTL.saturating_add(Duration::from_secs(2));

impl Shop {
    /// Causes one fault and repairs it. Returns the number of overlaps that it excuses: those while
    /// Redis had lost its data.
    pub(crate) async fn deal(&mut self, blow: Blow, rng: &mut StdRng) -> anyhow::Result<u64> {
        let which = rng.random_range(0..self.workers.len());
        match blow {
            Blow::KillWorker | Blow::DrainWorker => self.replace(which, blow).await?,
            Blow::RestartBroker => {
                self.rabbit.stop().await?;
                self.rabbit.start_again().await?;
            }
            Blow::KillBroker => {
                self.rabbit.kill9();
                self.rabbit.start_again().await?;
            }
            Blow::RestartRedis => {
                self.redis.stop().await?;
                self.redis.start_again().await?;
            }
            Blow::KillRedis => {
                self.redis.kill9();
                self.redis.start_again().await?;
            }
            Blow::PauseRedis => {
                self.redis.pause()?;
                tokio::time::sleep(BAD + LEASE_TTL).await;
                self.redis.resume()?;
            }
            Blow::FlushRedis => {
                let before = self.overlaps();
                self.redis.cmd(&["FLUSHALL"])?;
                tokio::time::sleep(FORGOTTEN).await;
                return Ok(self.overlaps() - before);
            }
            Blow::CutAll => {
                for proxy in [&self.to_rabbit, &self.to_redis, &self.to_gateway] {
                    proxy.cut();
                }
            }
            Blow::ThrottleBroker => throttle(&self.to_rabbit).await,
            Blow::ThrottleRedis => throttle(&self.to_redis).await,
            Blow::ThrottleGateway => throttle(&self.to_gateway).await,
            Blow::RefuseGateway => {
                self.to_gateway.refuse().await;
                self.to_gateway.cut();
                tokio::time::sleep(BAD).await;
                self.to_gateway.accept().await?;
            }
            Blow::HideAnswers => {
                self.to_gateway.freeze_answers();
                tokio::time::sleep(BAD).await;
                self.to_gateway.thaw();
            }
        }
        Ok(0)
    }

    async fn replace(&mut self, which: usize, blow: Blow) -> anyhow::Result<()> {
        if let Some(worker) = self.workers.get_mut(which) {
            if blow == Blow::KillWorker {
                worker.kill9();
            } else {
                worker.signal(Signal::SIGTERM)?;
                let status = worker.wait(LIMIT).await?;
                ensure!(status.success(), "a drain: {status}: {}", worker.describe());
            }
        }
        let fresh = self.start_worker().await?;
        if let Some(worker) = self.workers.get_mut(which) {
            *worker = fresh;
        }
        Ok(())
    }
}

async fn throttle(proxy: &crate::support::proxy::Proxy) {
    proxy.throttle(Some(THROTTLED));
    tokio::time::sleep(BAD).await;
    proxy.throttle(None);
}
