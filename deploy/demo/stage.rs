//! Where the day is played: everything started here and ended with it, or everything there already.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use crate::{
    sandbox::Keys,
    support::{
        http,
        poll::within,
        processes::{Process, command},
        servers::{Persistence, PrivateRabbit, PrivateRedis, free_port},
    },
};

/// A day in seconds: the same shape as in production, only shorter.
pub(crate) const RETRY_SCHEDULE: &str = "500ms,1s,2s,4s";
pub(crate) const DEFER_SCHEDULE: &str = "100ms,250ms,1s";

const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The addresses that the day needs.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) broker_url: String,
    pub(crate) sandbox_url: String,
}

impl Addresses {
    /// As for a worker: the settings that this and the workers must share.
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let get = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        Ok(Self {
            broker_url: get("CAPTURE__BROKER__URL")?,
            sandbox_url: get("CAPTURE__GATEWAY__BASE_URL")?,
        })
    }
}

/// Servers, sandbox and workers of our own. Fields end in this order: clients before servers.
#[derive(Debug)]
pub(crate) struct Stage {
    workers: Vec<Process>,
    _sandbox: Process,
    _redis: PrivateRedis,
    _rabbit: PrivateRabbit,
    pub(crate) addresses: Addresses,
    keys: Keys,
    redis_url: String,
}

impl Stage {
    pub(crate) async fn build() -> anyhow::Result<Self> {
        let program = worker_program()?;
        let (rabbit, redis, sandbox) = tokio::try_join!(
            PrivateRabbit::start(),
            PrivateRedis::start(Persistence::None),
            start_sandbox(&program),
        )?;
        let (sandbox, sandbox_url, keys) = sandbox;
        let addresses = Addresses { broker_url: rabbit.url(), sandbox_url };
        let mut workers = Vec::new();
        for _ in 0..2 {
            workers.push(start_worker(&program, &addresses, &redis.url(), &keys).await?);
        }
        let redis_url = redis.url();
        let (_sandbox, _redis, _rabbit) = (sandbox, redis, rabbit);
        Ok(Self { workers, _sandbox, _redis, _rabbit, addresses, keys, redis_url })
    }

    /// The settings of everything that runs, as a shell takes them.
    pub(crate) fn environment(&self) -> String {
        let (addresses, keys) = (&self.addresses, &self.keys);
        [
            ("BROKER__URL", &addresses.broker_url),
            ("REDIS__URL", &self.redis_url),
            ("GATEWAY__BASE_URL", &addresses.sandbox_url),
            ("GATEWAY__CLIENT_ID", &keys.client_id),
            ("GATEWAY__PRIVATE_KEY", &keys.private_key),
            ("GATEWAY__PUBLIC_KEY", &keys.public_key),
            ("RETRY__SCHEDULE", &RETRY_SCHEDULE.to_owned()),
            ("RETRY__DEFER_SCHEDULE", &DEFER_SCHEDULE.to_owned()),
        ]
        .map(|(key, value)| format!("export CAPTURE__{key}={value}\n"))
        .concat()
    }

    /// An error, with its log, if a worker ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            ensure!(worker.ended().is_none(), "a worker ended: {}", worker.describe());
        }
        Ok(())
    }

    /// What the workers logged last, for whoever must find out why the books do not add up.
    pub(crate) fn describe(&self) -> String {
        let logs = self.workers.iter().map(Process::describe);
        logs.collect::<Vec<_>>().join("\n")
    }

    /// SIGTERM to the workers, which must drain and leave with 0.
    pub(crate) async fn drain_workers(&mut self) -> anyhow::Result<()> {
        for worker in &self.workers {
            worker.signal(Signal::SIGTERM)?;
        }
        for worker in &mut self.workers {
            let status = worker.wait(STOP_LIMIT).await?;
            ensure!(status.success(), "a worker's drain: {status}: {}", worker.describe());
        }
        Ok(())
    }
}

/// The program that this one was built with, or `CAPTURE_WORKER`, or one beside this.
pub(crate) fn worker_program() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("CAPTURE_WORKER") {
        return Ok(program.into());
    }
    let demo = std::env::current_exe()?;
    let folders = demo.ancestors().skip(1).take(2);
    let candidates = folders.map(|folder| folder.join("capture-worker"));
    let found = candidates.into_iter().find(|program| program.is_file());
    found.context("capture-worker is not built: run deploy/demo.sh")
}

async fn start_sandbox(program: &Path) -> anyhow::Result<(Process, String, Keys)> {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--json", "--latency", "20ms"];
    let mut sandbox = Process::spawn(command(program, &arguments))?;
    let ready = |line: &str| {
        let said: serde_json::Value = serde_json::from_str(line).ok()?;
        let url = format!("http://{}", said.get("listen")?.as_str()?);
        Some((url, serde_json::from_value(said).ok()?))
    };
    let (url, keys) = sandbox.line(READY_LIMIT, ready).await.context("the sandbox")?;
    Ok((sandbox, url, keys))
}

async fn start_worker(
    program: &Path,
    addresses: &Addresses,
    redis_url: &str,
    keys: &Keys,
) -> anyhow::Result<Process> {
    let listen = format!("127.0.0.1:{}", free_port()?);
    let mut run = command(program, &["run"]);
    run.env("CAPTURE__BROKER__URL", &addresses.broker_url)
        .env("CAPTURE__BROKER__PREFETCH", "32")
        .env("CAPTURE__REDIS__URL", redis_url)
        .env("CAPTURE__GATEWAY__BASE_URL", &addresses.sandbox_url)
        .env("CAPTURE__GATEWAY__CLIENT_ID", &keys.client_id)
        .env("CAPTURE__GATEWAY__PRIVATE_KEY", &keys.private_key)
        .env("CAPTURE__GATEWAY__PUBLIC_KEY", &keys.public_key)
        .env("CAPTURE__RETRY__SCHEDULE", RETRY_SCHEDULE)
        .env("CAPTURE__RETRY__DEFER_SCHEDULE", DEFER_SCHEDULE)
        .env("CAPTURE__HTTP__LISTEN", &listen);
    let mut worker = Process::spawn(run)?;
    let url = format!("http://{listen}");
    let ready = within(READY_LIMIT, async || {
        let ready = http::get(&url, "/readyz").await.is_ok().then_some(true);
        ready.or_else(|| worker.ended().map(|_| false))
    });
    let ready = ready.await == Some(true);
    ensure!(ready, "a worker did not get ready: {}", worker.describe());
    Ok(worker)
}
