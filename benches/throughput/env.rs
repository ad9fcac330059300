//! The private servers of the benchmark, and one run of a program against them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use capture_worker::{gateway::signing::SigningKey, sandbox::Keys};
use futures_util::{StreamExt as _, future::try_join_all};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
        QueueDeclareOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use nix::sys::signal::Signal;
use testkit::{
    env::TestEnv,
    poll::within,
    processes::{Process, command},
    servers::{Persistence, PrivateRabbit, PrivateRedis, Reply},
};
use tokio::sync::watch;

use crate::{
    bare::SETTINGS,
    gateway::{Answers, Call, Gateway},
    load::Job,
};

const PREFIX: &str = "capture";
const LIMIT: Duration = Duration::from_secs(300);
/// The largest number of workers in a run.
pub(crate) const WORKERS_MAX: usize = 4;

/// The program that a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// This number of workers.
    Workers(usize),
    /// One process with the bare loop.
    Bare,
}

/// A set of jobs, with the signed replies of the gateway to them.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) jobs: Vec<Job>,
    answers: Answers,
}

/// The measurements of one run.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// The time from the first call to the last result.
    pub(crate) seconds: f64,
    pub(crate) jobs_per_s: f64,
    /// The CPU time of the first process per job of the run, in milliseconds.
    pub(crate) cpu_ms: f64,
    pub(crate) memory_mib: f64,
    /// Script calls to Redis per job.
    pub(crate) redis_calls: f64,
    pub(crate) calls: Vec<Call>,
}

/// The servers that all runs share.
pub(crate) struct BenchEnv {
    rabbit: PrivateRabbit,
    redis: PrivateRedis,
    gateway: Arc<Gateway>,
    base: TestEnv,
    keys: Keys,
    key: SigningKey,
    channel: Channel,
    /// The number of results received since the start.
    results: watch::Receiver<u64>,
    _connection: Connection,
}

impl BenchEnv {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (rabbit, redis) =
            tokio::try_join!(PrivateRabbit::start(), PrivateRedis::start(Persistence::None))?;
        let keys = Keys::generate()?;
        // Worker and gateway share one key pair here: the time that a signature takes is the same.
        let key = SigningKey::parse(&keys.private_key)?;
        let keys = Keys { public_key: key.public_key().context("no public key")?, ..keys };
        let connection =
            Connection::connect(&rabbit.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (counted, results) = watch::channel(0);
        let gateway = Gateway::start(WORKERS_MAX).await?;
        let base = TestEnv::new(&rabbit.url(), &redis.url(), &gateway.url(0), &keys);
        // The first worker declares the topology that all runs use.
        let mut first = base.worker().await?;
        ensure!(first.drain().await == Some(0), "a drain failed: {}", first.process.describe());
        let env = Self {
            rabbit,
            redis,
            gateway,
            base,
            keys,
            key,
            channel,
            results,
            _connection: connection,
        };
        env.count_results(counted).await?;
        Ok(env)
    }

    pub(crate) fn load(&self, jobs: Vec<Job>) -> Load {
        let answers = Answers::sign(&jobs, &self.keys, &self.key);
        Load { jobs, answers }
    }

    /// Publishes the jobs, then starts the program. The time is measured from its first call to the
    /// last result.
    pub(crate) async fn run(
        &self,
        program: Program,
        load: &Load,
        latency_ms: u64,
        prefetch: u16,
    ) -> anyhow::Result<Figures> {
        self.gateway.prepare(&load.answers, Duration::from_millis(latency_ms));
        self.redis.cmd(&["FLUSHALL"])?;
        // Wait until the program of the previous run is gone: the broker would deliver jobs to it,
        // and later requeue them.
        let is_gone = within(LIMIT, async || self.consumers().await == Some(0));
        is_gone.await.context("the program of the previous run still consumes")?;
        // The bare loop is killed right after its last result, so some of its acks may never have
        // been sent, and their jobs are in the queue again.
        let purge = QueuePurgeOptions::default();
        self.channel.queue_purge(format!("{PREFIX}.jobs").into(), purge).await?;
        self.publish(&load.jobs).await?;
        let results_before = *self.results.borrow();
        let mut processes = match program {
            Program::Workers(count) => {
                let workers = (0..count).map(|n| self.worker(n, prefetch));
                workers.collect::<anyhow::Result<Vec<_>>>()?
            }
            Program::Bare => vec![self.bare(prefetch)?],
        };
        let first = processes.first().context("the run has no process")?;
        let called = within(LIMIT, async || self.gateway.count() > 0);
        called.await.with_context(|| format!("no call arrived: {}", first.describe()))?;
        let (cpu_before, redis_before) = (cpu_ms(first.pid())?, redis_calls(&self.redis)?);
        let expected = results_before + u64::try_from(load.jobs.len())?;
        let mut results = self.results.clone();
        let done = tokio::time::timeout(LIMIT, results.wait_for(|count| *count >= expected)).await;
        let ended = Instant::now();
        ensure!(done.is_ok(), "the run did not end in time: {}", first.describe());
        let (cpu_after, redis_after) = (cpu_ms(first.pid())?, redis_calls(&self.redis)?);
        let memory_mib = peak_memory_mib(first.pid())?;
        for process in &mut processes {
            process.signal(if program == Program::Bare {
                Signal::SIGKILL
            } else {
                Signal::SIGTERM
            })?;
            process.wait(LIMIT).await?;
        }
        let calls = self.gateway.calls();
        let began = calls.iter().map(|call| call.began).min().context("no call arrived")?;
        let seconds = ended.duration_since(began).as_secs_f64();
        let jobs = count(load.jobs.len());
        Ok(Figures {
            seconds,
            jobs_per_s: jobs / seconds,
            cpu_ms: (cpu_after - cpu_before) / jobs,
            memory_mib,
            redis_calls: (redis_after - redis_before) / jobs,
            calls,
        })
    }

    async fn consumers(&self) -> Option<u32> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = format!("{PREFIX}.jobs");
        let queue = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        queue.ok().map(|queue| queue.consumer_count())
    }

    /// Publishes all jobs before it waits for the confirms. This is not part of the measured time.
    async fn publish(&self, jobs: &[Job]) -> anyhow::Result<()> {
        let mut confirms = Vec::new();
        for job in jobs {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let (exchange, options) = (format!("{PREFIX}.jobs"), BasicPublishOptions::default());
            let body = job.body();
            let confirm = self
                .channel
                .basic_publish(
                    exchange.as_str().into(),
                    "shipped".into(),
                    options,
                    body.as_bytes(),
                    properties,
                )
                .await?;
            confirms.push(confirm);
        }
        let confirms = try_join_all(confirms).await?;
        ensure!(confirms.iter().all(|confirm| confirm.is_ack()), "the broker refused a job");
        Ok(())
    }

    async fn count_results(&self, counted: watch::Sender<u64>) -> anyhow::Result<()> {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare("".into(), options, FieldTable::default()).await?;
        let queue = queue.name().clone();
        let exchange = format!("{PREFIX}.results");
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let binding =
            self.channel.queue_bind(queue.clone(), exchange.into(), "#".into(), options, arguments);
        binding.await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let results = self.channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let mut results = results.await?;
        tokio::spawn(async move {
            while let Some(Ok(_)) = results.next().await {
                counted.send_modify(|count| *count += 1);
            }
        });
        Ok(())
    }

    /// Starts a worker that calls its own port of the gateway. All workers of a run start at once.
    fn worker(&self, number: usize, prefetch: u16) -> anyhow::Result<Process> {
        let mut run = self.base.program(&["run"]);
        run.env("CAPTURE__BROKER__PREFETCH", prefetch.to_string())
            .env("CAPTURE__GATEWAY__BASE_URL", self.gateway.url(number));
        Process::spawn(run)
    }

    fn bare(&self, prefetch: u16) -> anyhow::Result<Process> {
        let mut bare = command(&std::env::current_exe()?, &["bare"]);
        let prefetch = prefetch.to_string();
        let values = [
            self.rabbit.url(),
            PREFIX.to_owned(),
            prefetch,
            self.gateway.url(0),
            self.keys.client_id.clone(),
            self.keys.private_key.clone(),
        ];
        bare.envs(SETTINGS.into_iter().zip(values));
        Process::spawn(bare)
    }
}

/// The user and system time of a process, all threads included, in milliseconds. The unit in
/// `/proc/<pid>/stat` is the clock tick (see proc(5)); Linux has 100 per second in user space.
fn cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("unknown format of /proc/<pid>/stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? * 10.0)
}

/// The peak resident memory of a process, in MiB.
fn peak_memory_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 =
        peak.and_then(|peak| peak.split_whitespace().next()).context("no VmHWM")?.parse()?;
    Ok(kib / 1024.0)
}

/// The number of script calls. The commands inside a script are not counted.
fn redis_calls(redis: &PrivateRedis) -> anyhow::Result<f64> {
    let Reply::Text(stats) = redis.cmd(&["INFO", "commandstats"])? else { return Ok(0.0) };
    let scripts = stats.lines().filter_map(|line| {
        let stats = line.strip_prefix("cmdstat_eval").and_then(|line| line.split_once(":calls="));
        stats?.1.split(',').next()?.parse::<f64>().ok()
    });
    Ok(scripts.sum())
}

/// A count as a floating-point number.
pub(crate) fn count(things: usize) -> f64 {
    u32::try_from(things).map_or(f64::INFINITY, f64::from)
}
