//! Measures throughput, CPU, memory and contention of the worker, beside a bare loop in the same
//! run. On a machine that does other things too, the ratios say more than the times.
//!
//! Usage: `cargo bench --bench throughput -- --help`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it prints for people")]
#![expect(clippy::float_arithmetic, reason = "the numbers are measurements, not money")]

mod bare;
mod env;
mod figures;
mod gateway;
mod load;
mod sections;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use self::{env::BenchEnv, sections::Sections};

/// Measures the worker beside a bare loop, with servers of its own.
#[derive(Debug, Parser)]
struct Arguments {
    /// The sections to measure; all of them if none is named.
    sections: Vec<Section>,
    /// How often each measurement is repeated; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The number of jobs in a run.
    #[arg(long, default_value_t = 2000)]
    jobs: usize,
    /// The latencies of the gateway in the throughput table, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 20, 100])]
    latency: Vec<u64>,
    /// The prefetch values of the throughput table.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
    prefetch: Vec<u16>,
    /// Accepted because `cargo bench` passes it; has no effect.
    #[arg(long, hide = true)]
    bench: bool,
    /// Accepted because test runners pass it; nothing is measured then.
    #[arg(long, hide = true)]
    test: bool,
    #[arg(long, hide = true)]
    list: bool,
}

/// The part of the benchmark that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Jobs per second, CPU and memory at several latencies and prefetch values, worker and bare
    /// loop.
    Throughput,
    /// Peak memory with 1,000 jobs in flight.
    Memory,
    /// A load in which every twentieth job belongs to one payment.
    HotMix,
    /// Captures of a single payment, by one worker and by several.
    Hot,
    /// Jobs of other payments, with and without a hot payment beside them.
    Cold,
    /// Throughput of several workers with a slow gateway.
    Scale,
}

fn main() -> ExitCode {
    // reqwest's client uses the default cryptography provider of the process.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = if installed.is_err() {
        Err(anyhow::anyhow!("a TLS provider is installed already"))
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
        "{cores} cores, {} jobs per run, medians of {} rounds",
        arguments.jobs, arguments.rounds
    );
    let env = BenchEnv::start().await?;
    let sections = Sections { env: &env, rounds: arguments.rounds.max(1), jobs: arguments.jobs };
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
