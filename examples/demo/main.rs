//! Runs a day of shipments through the whole system, and checks that each was captured once or
//! became a dead letter.
//!
//! `demo` starts everything that it needs on this machine and stops it at the end. `demo --stay`
//! keeps it running until Ctrl-C. `demo --external` uses a broker, a sandbox and workers that are
//! running (`CAPTURE__BROKER__URL`, `CAPTURE__GATEWAY__BASE_URL`).
//!
//! Exit codes: 0 if all totals are equal, 1 if not (the differences are listed), 130 if
//! interrupted.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod day;
mod env;
mod proof;
mod sandbox;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use capture_worker::domain::capture::class::Class;
use serde_json::Value;
use testkit::{
    broker::{Results, TestBroker},
    guardian,
    poll::within,
    processes::{Process, worker_command},
};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    day::{Day, Shipment, json_lines},
    env::{Addresses, DemoEnv},
    proof::{Evidence, Outcomes},
};

const PREFIX: &str = "capture";
const LIMIT: Duration = Duration::from_secs(150);
/// The part of it for the jobs. Those that have not ended by then are listed as differences.
const DAY_LIMIT: Duration = Duration::from_secs(110);

#[tokio::main]
async fn main() -> ExitCode {
    let done = tokio::select! {
        done = run() => done,
        () = interrupted() => {
            // The other branch was dropped, and with it everything that it started.
            println!("\nInterrupted.");
            return ExitCode::from(130);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("\nerror: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Whether all totals are equal.
async fn run() -> anyhow::Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => in_own_env(false).await,
        ["--stay"] => in_own_env(true).await,
        ["--external"] => in_time(play(&Addresses::from_env()?, || Ok(()))).await,
        _ => bail!("usage: demo [--stay | --external]"),
    }
}

async fn in_time(play: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let done = tokio::time::timeout(LIMIT, play).await;
    done.with_context(|| format!("the demo was not done after {LIMIT:?}"))?
}

async fn in_own_env(stay: bool) -> anyhow::Result<bool> {
    println!("Starting RabbitMQ, Redis, the gateway's sandbox and two workers.");
    let mut env = DemoEnv::start().await?;
    let addresses = env.addresses.clone();
    let proven = in_time(play(&addresses, || env.base.check_workers())).await?;
    if !proven {
        eprintln!("{}", env.base.describe_workers());
    }
    if stay {
        println!(
            "\nEverything keeps running until Ctrl-C. Settings for another terminal:\n\n{}",
            env.exports()
        );
        std::future::pending::<()>().await;
    }
    env.base.drain_workers().await?;
    println!("Both workers drained and ended with exit code 0.");
    Ok(proven)
}

/// Submits the jobs of the day, waits for their results, and compares all totals.
async fn play(
    addresses: &Addresses,
    mut check: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    let day = Day::new(&run);
    let broker = TestBroker::connect(&addresses.broker_url).await?;
    // Workers declare the queues. Workers that were started outside may not be ready yet.
    let jobs = format!("{PREFIX}.jobs");
    let declared = within(LIMIT, async || matches!(broker.queue_depth(&jobs).await, Ok(Some(_))));
    declared.await.context("no worker has declared its queues")?;
    let results = broker.subscribe_results(PREFIX).await?;
    let begun = Instant::now();
    submit(&day.first(), addresses).await?;
    publish_copies_and_a_malformed_job(&day, &broker).await?;
    let outcomes = watch(&day, addresses, &results, begun, &mut check).await?;
    let dead = dead_letters(&broker, &run).await?;
    let ledger = sandbox::ledger(&addresses.sandbox_url).await?.of_run(&run);
    let left_over = left_over(&broker).await?;
    let evidence =
        Evidence { day: &day, outcomes: &outcomes, ledger: &ledger, dead: &dead, left_over };
    println!("\nTotals of the day:\n{}", evidence.table());
    let differences = evidence.differences();
    if differences.is_empty() {
        println!(
            "Every job is accounted for. Nothing was captured twice, and no two calls of one \
             payment overlapped."
        );
        println!("The money in the gateway's ledger, in the results and in the plan is equal.");
        return Ok(true);
    }
    println!("The totals differ:");
    for difference in differences {
        println!("  {difference}");
    }
    Ok(false)
}

/// Submits valid jobs with the command of operators.
async fn submit(shipments: &[&Shipment], addresses: &Addresses) -> anyhow::Result<()> {
    let folder = guardian::folder()?;
    let jobs = folder.path().join("jobs.jsonl");
    fs::write(&jobs, json_lines(shipments))?;
    let mut submit = worker_command(&["submit", "-"]);
    submit
        .env("CAPTURE__BROKER__URL", &addresses.broker_url)
        .env("CAPTURE__GATEWAY__BASE_URL", &addresses.sandbox_url)
        .stdin(fs::File::open(&jobs)?);
    let mut submit = Process::spawn(submit)?;
    let status = submit.wait(Duration::from_secs(60)).await?;
    ensure!(status.success(), "submit: {status}: {}", submit.describe());
    Ok(())
}

/// Publishes what a publisher with a bug would publish: copies of jobs, and a malformed job.
async fn publish_copies_and_a_malformed_job(day: &Day, broker: &TestBroker) -> anyhow::Result<()> {
    for copy in &day.copies {
        broker.publish_job(PREFIX, copy.job().to_string().as_bytes()).await?;
    }
    broker.publish_job(PREFIX, day.malformed_job().to_string().as_bytes()).await
}

/// Waits until every delivery has ended or the time limit passes, and prints a line every second.
/// As a publisher does, it submits the final capture of a payment when the other parts have
/// results.
async fn watch(
    day: &Day,
    addresses: &Addresses,
    results: &Results,
    begun: Instant,
    check: &mut impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Outcomes> {
    let jobs = day.shipments.len() + 1;
    let on_terminal = std::io::stdout().is_terminal();
    let mut submitted = BTreeSet::new();
    loop {
        check()?;
        let bodies: Vec<Value> =
            results.all().iter().map(|result| result.json()).collect::<Result<_, _>>()?;
        let outcomes = Outcomes::read(&bodies);
        let mut due = day.due(|id| outcomes.has_ended(id));
        due.retain(|last| submitted.insert(last.id.clone()));
        if !due.is_empty() {
            submit(&due, addresses).await?;
        }
        let (captured, failed) = (outcomes.count("CAPTURED"), outcomes.count("FAILED"));
        let line = format!(
            "{:>3} s   {jobs} jobs   {captured} captured   {failed} failed   {} open",
            begun.elapsed().as_secs(),
            jobs.saturating_sub(outcomes.ended())
        );
        if on_terminal {
            print!("\r\x1b[2K{line}");
        } else {
            println!("{line}");
        }
        std::io::stdout().flush()?;
        let all_ended = outcomes.ended() >= jobs && outcomes.results >= day.deliveries();
        if all_ended || begun.elapsed() > DAY_LIMIT {
            return Ok(outcomes);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Jobs that are still ready in the job queue or in a wait queue.
async fn left_over(broker: &TestBroker) -> anyhow::Result<u32> {
    let waits = env::RETRY_SCHEDULE.split(',').chain(env::DEFER_SCHEDULE.split(','));
    let waits = waits.map(|delay| format!("{PREFIX}.wait.{delay}"));
    let mut left_over = 0;
    for queue in waits.chain([format!("{PREFIX}.jobs")]) {
        left_over += broker.queue_depth(&queue).await?.unwrap_or_default();
    }
    Ok(left_over)
}

/// The ids of this run's dead letters by class. The dead letters stay in their queues.
async fn dead_letters(
    broker: &TestBroker,
    run: &str,
) -> anyhow::Result<BTreeMap<&'static str, Vec<String>>> {
    let mut dead = BTreeMap::new();
    for class in Class::ALL {
        let dead_letters = broker.peek_queue(&format!("{PREFIX}.dead.{}", class.name())).await?;
        let ids = dead_letters.iter().filter_map(|dead_letter| {
            let id = dead_letter.json().ok()?.get("captureRequestId")?.as_str()?.to_owned();
            id.contains(run).then_some(id)
        });
        dead.insert(class.name(), ids.collect());
    }
    Ok(dead)
}
