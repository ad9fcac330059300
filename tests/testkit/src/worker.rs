//! A running worker, observed by its probes, its metrics and its log.

use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use crate::{LIMIT, http, poll::within, processes::Process, servers::free_port};

/// A worker process with a port of its own for probes and metrics.
#[derive(Debug)]
pub struct Worker {
    pub process: Process,
    /// The base URL of probes and metrics.
    pub url: String,
}

impl Worker {
    /// Starts a worker by this command, and waits until it serves its probes. It need not be ready.
    pub async fn start(mut command: Command) -> anyhow::Result<Self> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        command.env("CAPTURE__HTTP__LISTEN", &listen);
        let mut process = Process::spawn(command)?;
        let serves = within(LIMIT, async || match process.ended() {
            Some(_) => Some(false),
            None => TcpStream::connect(&listen).await.is_ok().then_some(true),
        });
        let serves = serves.await == Some(true);
        ensure!(serves, "a worker does not serve its probes: {}", process.describe());
        Ok(Self { process, url: format!("http://{listen}") })
    }

    /// Waits until the worker consumes.
    pub async fn becomes_ready(&self) -> anyhow::Result<()> {
        let is_ready = within(LIMIT, async || http::get(&self.url, "/readyz").await.is_ok()).await;
        is_ready.with_context(|| format!("a worker is not ready: {}", self.process.describe()))
    }

    /// The value of a counter or gauge, or 0 if it does not exist yet. It panics if the worker does
    /// not reply.
    pub async fn metric(&self, name: &str) -> u64 {
        let metrics = http::get(&self.url, "/metrics").await;
        let metrics = metrics
            .unwrap_or_else(|error| panic!("{name}: {error:#}: {}", self.process.describe()));
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{name} is {value}")))
    }

    /// The number of log lines that contain this text.
    pub fn logged(&self, text: &str) -> usize {
        self.process.stderr().lines().filter(|line| line.contains(text)).count()
    }

    /// Sends SIGTERM and returns the exit code. It is `None` if a signal ended the worker, or if it
    /// still runs after the time limit.
    pub async fn drain(&mut self) -> Option<i32> {
        self.process.signal(Signal::SIGTERM).ok()?;
        self.process.wait(LIMIT).await.ok()?.code()
    }
}
