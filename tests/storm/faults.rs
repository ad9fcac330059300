//! Faults during a run: to servers, to the network and to workers.

use std::time::Duration;

use anyhow::ensure;
use rand::{RngExt as _, rngs::StdRng};
use testkit::proxy::Proxy;

use crate::{
    env::{LEASE_TTL, StormEnv},
    plan::Fault,
};

/// How long a network fault lasts.
const BAD: Duration = Duration::from_secs(2);
/// The rate of a throttled connection, in bytes per second.
const THROTTLED: u32 = 20_000;
/// How long overlaps are excused after Redis has lost its data. A call in progress has no lease any
/// more, and its reply may be late.
const FORGOTTEN: Duration = LEASE_TTL.saturating_add(Duration::from_secs(2));

impl StormEnv {
    /// Causes one fault and repairs it. Returns the number of overlaps that it excuses: those while
    /// Redis had lost its data.
    pub(crate) async fn cause(&mut self, fault: Fault, rng: &mut StdRng) -> anyhow::Result<u64> {
        let which = rng.random_range(0..self.base.workers.len());
        match fault {
            Fault::KillWorker | Fault::DrainWorker => self.replace(which, fault).await?,
            Fault::RestartBroker => {
                self.rabbit.stop().await?;
                self.rabbit.start_again().await?;
            }
            Fault::KillBroker => {
                self.rabbit.kill9();
                self.rabbit.start_again().await?;
            }
            Fault::RestartRedis => {
                self.redis.stop().await?;
                self.redis.start_again().await?;
            }
            Fault::KillRedis => {
                self.redis.kill9();
                self.redis.start_again().await?;
            }
            Fault::PauseRedis => {
                self.redis.pause()?;
                tokio::time::sleep(BAD + LEASE_TTL).await;
                self.redis.resume()?;
            }
            Fault::FlushRedis => {
                let before = self.overlaps();
                self.redis.cmd(&["FLUSHALL"])?;
                tokio::time::sleep(FORGOTTEN).await;
                return Ok(self.overlaps() - before);
            }
            Fault::CutAll => {
                for proxy in [&self.to_rabbit, &self.to_redis, &self.to_gateway] {
                    proxy.cut();
                }
            }
            Fault::ThrottleBroker => throttle(&self.to_rabbit).await,
            Fault::ThrottleRedis => throttle(&self.to_redis).await,
            Fault::ThrottleGateway => throttle(&self.to_gateway).await,
            Fault::RefuseGateway => {
                self.to_gateway.refuse().await;
                self.to_gateway.cut();
                tokio::time::sleep(BAD).await;
                self.to_gateway.accept().await?;
            }
            Fault::HideAnswers => {
                self.to_gateway.freeze_replies();
                tokio::time::sleep(BAD).await;
                self.to_gateway.thaw();
            }
        }
        Ok(0)
    }

    async fn replace(&mut self, which: usize, fault: Fault) -> anyhow::Result<()> {
        if let Some(worker) = self.base.workers.get_mut(which) {
            if fault == Fault::KillWorker {
                worker.process.kill9();
            } else {
                let code = worker.drain().await;
                let log = worker.process.describe();
                ensure!(code == Some(0), "a drain ended with {code:?}: {log}");
            }
        }
        let fresh = self.base.worker().await?;
        if let Some(worker) = self.base.workers.get_mut(which) {
            *worker = fresh;
        }
        Ok(())
    }
}

async fn throttle(proxy: &Proxy) {
    proxy.throttle(Some(THROTTLED));
    tokio::time::sleep(BAD).await;
    proxy.throttle(None);
}
