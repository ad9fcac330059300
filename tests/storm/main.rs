//! Workers under load while servers, network, gateway and the workers themselves fail, one fault
//! after the other. At the end, jobs, results, ledger and queues must agree.
//! `cargo test --test storm` makes a short run;
//! `cargo test --release --test storm -- --jobs 100000 --seed 7` makes a long one.
//!
//! The seed determines the jobs, the faults of the gateway and the other faults, but not the moment
//! at which a fault meets a job.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod books;
mod env;
mod faults;
mod plan;
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use testkit::poll::within;

use self::{
    books::Books,
    env::StormEnv,
    plan::{Fault, Job, Plan},
};

/// Causes faults everywhere, and checks that no job is lost and no money is captured twice.
#[derive(Debug, Parser)]
struct Arguments {
    /// The number of jobs to publish.
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// The seed that determines jobs and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of worker processes.
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// The filter of a test runner: nothing runs unless "storm" contains it.
    #[arg(hide = true)]
    filter: Option<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(short, long, hide = true)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_meant = arguments.filter.as_deref().is_none_or(|filter| "storm".contains(filter));
    if arguments.list || !is_meant {
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm, seed {}: {error:#}", arguments.seed);
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let began = Instant::now();
    let plan = Plan::of(arguments.seed, arguments.jobs);
    println!(
        "storm: seed {}, {} jobs, {} workers",
        arguments.seed, arguments.jobs, arguments.workers
    );
    let mut env = StormEnv::open(arguments.workers).await?;
    let excused = cause_faults(&mut env, &plan, arguments.seed).await?;
    let limit =
        Duration::from_secs(180) + Duration::from_millis(20) * u32::try_from(plan.jobs.len())?;
    settle(&mut env, &plan.jobs, limit).await?;
    env.base.drain_workers().await?;
    let books = Books::close(&env, &plan.jobs).await?;
    let overlaps = env.overlaps().saturating_sub(excused);
    Ok(report(&env, &plan, &books, (overlaps, excused), began.elapsed()))
}

/// Publishes a part of the jobs with each fault. Returns the number of excused overlaps.
async fn cause_faults(env: &mut StormEnv, plan: &Plan, seed: u64) -> anyhow::Result<u64> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(1));
    let parts: Vec<&[Job]> =
        plan.jobs.chunks(plan.jobs.len().div_ceil(plan.faults.len())).collect();
    let (mut excused, mut published) = (0, 0);
    for (n, fault) in plan.faults.iter().enumerate() {
        let part = parts.get(n).copied().unwrap_or_default();
        for job in part {
            env.gateway.sandbox.add_steps(Some(&job.payment_id), job.steps()?);
        }
        published += part.len();
        let publishing = tokio::spawn(env::publish(env.rabbit.url(), part.to_vec()));
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..1000))).await;
        excused += env.cause(*fault, &mut rng).await.with_context(|| format!("{fault:?}"))?;
        publishing.await?;
        env.base.check_workers()?;
        // A pause in which workers process most of the backlog. Otherwise the next fault meets a
        // longer one.
        let backlog = async || published - env.ended().min(published) <= part.len() / 2;
        within(Duration::from_secs(15), backlog).await.unwrap_or_default();
    }
    Ok(excused)
}

/// Waits until every job has ended: by its result, or as a dead letter that the broker made.
async fn settle(env: &mut StormEnv, jobs: &[Job], limit: Duration) -> anyhow::Result<()> {
    let broker = testkit::broker::TestBroker::connect(&env.rabbit.url()).await?;
    let poison = format!("{}.dead.poison", env::PREFIX);
    let waiting = format!("{}.jobs", env::PREFIX);
    let ended = within(limit, async || {
        let dead_letters = broker.queue_depth(&poison).await.ok().flatten().unwrap_or_default();
        let ready = broker.queue_depth(&waiting).await.ok().flatten().unwrap_or_default();
        env.ended() + usize::try_from(dead_letters).unwrap_or_default() >= jobs.len() && ready == 0
    });
    if ended.await.is_none() {
        let (ended, logs) = (env.ended(), env.base.describe_workers());
        bail!("{ended} of {} jobs have ended\n{logs}", jobs.len());
    }
    // Copies that still wait get the same outcome.
    let delay = Duration::from_secs(9);
    tokio::time::sleep(delay).await;
    let quiet = async || broker.queue_depth(&waiting).await.ok().flatten() == Some(0);
    within(limit, quiet).await.context("copies remain in the queue")?;
    env.base.check_workers()
}

fn report(
    env: &StormEnv,
    plan: &Plan,
    books: &Books,
    (overlaps, excused): (u64, u64),
    took: Duration,
) -> bool {
    let mut faults: BTreeMap<Fault, usize> = BTreeMap::new();
    for fault in &plan.faults {
        *faults.entry(*fault).or_default() += 1;
    }
    let mut gateway_faults: BTreeMap<&str, usize> = BTreeMap::new();
    for gateway_fault in plan.jobs.iter().filter_map(|job| job.gateway_fault.or(job.refusal)) {
        *gateway_faults.entry(gateway_fault).or_default() += 1;
    }
    let copies: usize = plan.jobs.iter().map(|job| job.copies - 1).sum();
    let ledger = env.gateway.sandbox.ledger();
    println!("{} jobs and {copies} copies in {} s", plan.jobs.len(), took.as_secs());
    println!("faults: {faults:?}");
    println!("the gateway's faults: {gateway_faults:?}");
    println!(
        "CAPTURED {}, FAILED {}, IN_DOUBT {} (of these in the ledger: {})",
        books.captured, books.failed, books.in_doubt, books.in_doubt_and_captured
    );
    println!("dead letters: {:?}; captured: {:?}", books.dead_letters, books.money);
    println!(
        "most calls at once: {}; overlaps of the same id: {}",
        ledger["atOnceMax"], ledger["sameIdOverlaps"]
    );
    let (good, verdict) = books.verdict();
    print!("{verdict}");
    println!(
        "  {overlaps:>6}  overlaps while Redis kept its data ({excused} while it had lost its data)"
    );
    good && overlaps == 0
}
