//! Throughput, CPU, memory and contention of the worker, beside a bare loop in the same run: ratios say more than times on
//! a machine that does other things too. `cargo bench --bench throughput -- --help`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]
#![expect(clippy::float_arithmetic, reason = "figures, not money")]

mod bare;
mod figures;
mod gateway;
mod load;
mod sections;
mod stage;
#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use self::{sections::Sections, stage::Stage};

/// Measures the worker beside a bare loop, with servers of its own.
#[derive(Debug, Parser)]
struct Arguments {
    /// What is measured; all of it if nothing is named.
    sections: Vec<Section>,
    /// Rounds of each measurement; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Jobs of a run.
    #[arg(long, default_value_t = 2000)]
    jobs: usize,
    /// The gateway's latencies in milliseconds, of the throughput table.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20, 100])]
    latency: Vec<u64>,
    /// The prefetches of the throughput table.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
    prefetch: Vec<u16>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Given by test runners: nothing is measured then.
    #[arg(long, hide = true)]
    test: bool,
    #[arg(long, hide = true)]
    list: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Jobs a second, CPU and memory at several latencies and prefetches, worker beside bare loop.
    Throughput,
    /// Peak memory with 1,000 jobs in flight.
    Memory,
    /// A twentieth of the jobs on one payment.
    HotMix,
    /// Captures of one payment alone, by one worker and several.
    Hot,
    /// Jobs of other payments, with and without a hot payment beside them.
    Cold,
    /// Several workers at a slow gateway.
    Scale,
}

fn main() -> ExitCode {
    // reqwest's client takes whichever provider is installed.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = if installed.is_err() {
        Err(anyhow::anyhow!("a TLS provider was there before"))
    } else if arguments == ["bare"] {
        bare::run()
    } else {
        measure(&Arguments::parse())
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.test || arguments.list {
        return Ok(());
    }
    let wanted = |section| arguments.sections.is_empty() || arguments.sections.contains(&section);
    let cores = std::thread::available_parallelism()?;
    println!(
        "{cores} cores, {} jobs a run, medians of {} rounds",
        arguments.jobs, arguments.rounds
    );
    let stage = Stage::build().await?;
    let sections =
        Sections { stage: &stage, rounds: arguments.rounds.max(1), jobs: arguments.jobs };
    if wanted(Section::Throughput) {
        sections.throughput(&arguments.latency, &arguments.prefetch).await?;
    }
    if wanted(Section::Memory) {
        sections.memory().await?;
    }
    if wanted(Section::HotMix) {
        sections.hot_mix().await?;
    }
    if wanted(Section::Hot) {
        sections.hot().await?;
    }
    if wanted(Section::Cold) {
        sections.cold().await?;
    }
    if wanted(Section::Scale) {
        sections.scale().await?;
    }
    Ok(())
}
