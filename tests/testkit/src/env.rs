//! The environment of the workers under test: their settings, their processes and their queues.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::ensure;
use capture_worker::{domain::capture::class::Class, sandbox::Keys};
use futures_util::future::join_all;

use crate::{
    broker::TestBroker,
    memory,
    processes::{Process, worker_command},
    worker::Worker,
};

/// One deployment of the worker. A target adds what only it needs: servers, proxies, a load.
#[derive(Debug)]
pub struct TestEnv {
    /// Workers that run together, so that a target can scale, watch and drain them as one.
    pub workers: Vec<Worker>,
    /// Settings by the names of their variables without `CAPTURE__`, such as `BROKER__PREFIX`.
    pub settings: BTreeMap<String, String>,
}

impl TestEnv {
    /// The settings without a default, and nothing else.
    pub fn new(broker_url: &str, redis_url: &str, gateway_url: &str, keys: &Keys) -> Self {
        let env = Self { workers: Vec::new(), settings: BTreeMap::new() };
        env.set("BROKER__URL", broker_url)
            .set("REDIS__URL", redis_url)
            .set("GATEWAY__BASE_URL", gateway_url)
            .set("GATEWAY__CLIENT_ID", &keys.client_id)
            .set("GATEWAY__PRIVATE_KEY", &keys.private_key)
            .set("GATEWAY__PUBLIC_KEY", &keys.public_key)
    }

    /// Changes a setting, such as `set("RETRY__SCHEDULE", "1s")`.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// [`Self::set`] for each pair.
    pub fn set_all<const N: usize>(self, settings: [(&str, &str); N]) -> Self {
        settings.into_iter().fold(self, |env, (key, value)| env.set(key, value))
    }

    /// A setting, or an empty text if it has its default.
    fn setting(&self, key: &str) -> &str {
        self.settings.get(key).map_or("", String::as_str)
    }

    /// The prefix of all names at the broker.
    pub fn prefix(&self) -> &str {
        self.settings.get("BROKER__PREFIX").map_or("capture", String::as_str)
    }

    /// The prefix of all keys in Redis.
    pub fn owner(&self) -> String {
        memory::owner(self.prefix(), self.setting("GATEWAY__CLIENT_ID"))
    }

    /// The full name of a key in Redis, such as `key("{p}:lease")` or `key("server")`.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.owner())
    }

    /// A command of the program with these settings. A worker that it starts serves its probes on
    /// any free port.
    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut program = worker_command(arguments);
        program.env("CAPTURE__HTTP__LISTEN", "127.0.0.1:0");
        program.envs(self.settings.iter().map(|(key, value)| (format!("CAPTURE__{key}"), value)));
        program
    }

    /// Starts a worker and waits until it serves its probes.
    pub async fn start_worker(&self) -> anyhow::Result<Worker> {
        Worker::start(self.program(&["run"])).await
    }

    /// Starts a worker and waits until it consumes.
    pub async fn worker(&self) -> anyhow::Result<Worker> {
        let worker = self.start_worker().await?;
        worker.becomes_ready().await?;
        Ok(worker)
    }

    /// Starts workers until this many run. The first one declares the topology before the others
    /// start.
    pub async fn scale_up(&mut self, workers: usize) -> anyhow::Result<()> {
        if self.workers.is_empty() && workers > 0 {
            let first = self.worker().await?;
            self.workers.push(first);
        }
        let missing = self.workers.len()..workers;
        for started in join_all(missing.map(|_| self.worker())).await {
            self.workers.push(started?);
        }
        Ok(())
    }

    /// It is an error if a worker has ended by itself.
    pub fn check_workers(&mut self) -> anyhow::Result<()> {
        for Worker { process, .. } in &mut self.workers {
            ensure!(process.ended().is_none(), "a worker has ended: {}", process.describe());
        }
        Ok(())
    }

    /// Drains all workers at once. It is an error if one of them does not end with exit code 0.
    pub async fn drain_workers(&mut self) -> anyhow::Result<()> {
        let codes = join_all(self.workers.iter_mut().map(|worker| worker.drain())).await;
        for (code, Worker { process, .. }) in codes.into_iter().zip(&self.workers) {
            ensure!(code == Some(0), "a drain ended with {code:?}: {}", process.describe());
        }
        Ok(())
    }

    /// The end of each worker's log, for error messages.
    pub fn describe_workers(&self) -> String {
        let processes = self.workers.iter().map(|worker| &worker.process);
        processes.map(Process::describe).collect::<Vec<_>>().join("\n")
    }

    /// The ready messages of the queue of jobs and of each class and delay, by the queue's name
    /// without prefix. Empty queues are left out.
    pub async fn queued(&self, broker: &TestBroker) -> anyhow::Result<BTreeMap<String, u32>> {
        let classes = Class::ALL.map(|class| format!("dead.{class}"));
        let schedules = ["RETRY__SCHEDULE", "RETRY__DEFER_SCHEDULE"].map(|key| self.setting(key));
        let delays = schedules.iter().flat_map(|schedule| schedule.split(','));
        let waits: BTreeSet<String> = delays.map(|delay| format!("wait.{delay}")).collect();
        let mut queued = BTreeMap::new();
        for queue in ["jobs".to_owned()].into_iter().chain(classes).chain(waits) {
            let name = format!("{}.{queue}", self.prefix());
            let depth = broker.queue_depth(&name).await?.unwrap_or_default();
            if depth > 0 {
                queued.insert(queue, depth);
            }
        }
        Ok(queued)
    }
}
