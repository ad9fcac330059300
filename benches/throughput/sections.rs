//! The sections of the benchmark; each prints a table. The rounds of two compared programs
//! alternate, and each ratio is taken within one round.

use std::time::Instant;

use crate::{
    env::{BenchEnv, Figures, Load, Program},
    figures::{Gaps, median, percentile},
    load::{cold, hot, mix},
};

/// The servers and the parameters that all sections use.
pub(crate) struct Sections<'a> {
    pub(crate) env: &'a BenchEnv,
    pub(crate) rounds: usize,
    pub(crate) jobs: usize,
}

impl Sections<'_> {
    pub(crate) async fn throughput(
        &self,
        latencies_ms: &[u64],
        prefetches: &[u16],
    ) -> anyhow::Result<()> {
        println!("\nthroughput: one worker / the bare loop");
        println!(
            "latency  prefetch      jobs/s (worker  bare  ratio)   \
             CPU ms per job (worker  bare  ratio)   peak MiB (worker  bare)"
        );
        let load = self.env.load(cold(self.jobs));
        for &latency_ms in latencies_ms {
            for &prefetch in prefetches {
                let rounds = self.pairs(&load, latency_ms, prefetch).await?;
                let of = |figure: fn(&Figures) -> f64| {
                    let worker = median(rounds.iter().map(|(worker, _)| figure(worker)));
                    let bare = median(rounds.iter().map(|(_, bare)| figure(bare)));
                    let ratios = rounds.iter().map(|(worker, bare)| figure(worker) / figure(bare));
                    (worker, bare, median(ratios))
                };
                let (speed, cpu) = (of(|run| run.jobs_per_s), of(|run| run.cpu_ms));
                let memory = of(|run| run.memory_mib);
                println!(
                    "{latency_ms:>4} ms  {prefetch:>8}  {:>20.0} {:>6.0} {:>6.2}  \
                     {:>23.3} {:>6.3} {:>6.2}  {:>17.1} {:>6.1}",
                    speed.0, speed.1, speed.2, cpu.0, cpu.1, cpu.2, memory.0, memory.1
                );
            }
        }
        Ok(())
    }

    async fn pairs(
        &self,
        load: &Load,
        latency_ms: u64,
        prefetch: u16,
    ) -> anyhow::Result<Vec<(Figures, Figures)>> {
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let worker = self.env.run(Program::Workers(1), load, latency_ms, prefetch).await?;
            let bare = self.env.run(Program::Bare, load, latency_ms, prefetch).await?;
            rounds.push((worker, bare));
        }
        Ok(rounds)
    }

    pub(crate) async fn memory(&self) -> anyhow::Result<()> {
        println!("\nmemory: prefetch 1,000, latency 1 s, all in flight");
        let load = self.env.load(cold(3000));
        let rounds = self.pairs(&load, 1000, 1000).await?;
        let worker = median(rounds.iter().map(|(worker, _)| worker.memory_mib));
        let bare = median(rounds.iter().map(|(_, bare)| bare.memory_mib));
        let at_once =
            rounds.iter().map(|(worker, _)| at_once_max(worker)).max().unwrap_or_default();
        println!("peak MiB: worker {worker:.1}, bare {bare:.1}; {at_once} calls at once");
        Ok(())
    }

    pub(crate) async fn hot_mix(&self) -> anyhow::Result<()> {
        println!("\nhot mix: every 20th job belongs to one payment, latency 20 ms, prefetch 256");
        let hot_jobs = self.jobs / 20;
        let load = self.env.load(mix(cold(self.jobs - hot_jobs), hot(hot_jobs)));
        for workers in [1, 2, 4] {
            let mut rounds = Vec::new();
            for _ in 0..self.rounds {
                rounds.push(self.env.run(Program::Workers(workers), &load, 20, 256).await?);
            }
            let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure));
            let overlaps: usize = rounds.iter().map(|run| Gaps::of(&run.calls).overlaps).sum();
            println!(
                "{workers} workers: {:>5.0} jobs/s, {:.2} calls to Redis per job, \
                 {overlaps} overlaps",
                of(|run| run.jobs_per_s),
                of(|run| run.redis_calls),
            );
        }
        Ok(())
    }

    pub(crate) async fn hot(&self) -> anyhow::Result<()> {
        println!("\nhot: 500 captures of one payment, latency 20 ms, prefetch 256");
        let load = self.env.load(hot(500));
        for workers in [1, 2, 4] {
            let (mut gaps, mut runs) = (Gaps::default(), Vec::new());
            for _ in 0..self.rounds {
                let run = self.env.run(Program::Workers(workers), &load, 20, 256).await?;
                let of_run = Gaps::of(&run.calls);
                gaps.within.extend(of_run.within);
                gaps.across.extend(of_run.across);
                gaps.overlaps += of_run.overlaps;
                runs.push(run);
            }
            let gap = |gaps: &[f64]| {
                let p = |percent| percentile(gaps.iter().copied(), percent);
                format!("p50 {:.2} p99 {:.1} (n {})", p(50), p(99), gaps.len())
            };
            println!(
                "{workers} workers: {:.1} s; gap ms within a worker {}, across workers {}; \
                 {:.2} calls to Redis per job; {} overlaps",
                median(runs.iter().map(|run| run.seconds)),
                gap(&gaps.within),
                gap(&gaps.across),
                median(runs.iter().map(|run| run.redis_calls)),
                gaps.overlaps
            );
        }
        Ok(())
    }

    pub(crate) async fn scale(&self) -> anyhow::Result<()> {
        println!("\nscale: latency 100 ms, prefetch 16: at best 160 jobs/s per worker");
        for workers in [1, 2, 4_u16] {
            // Runs of the same length for each number of workers, long enough that the start
            // matters little.
            let load = self.env.load(cold(self.jobs * usize::from(workers)));
            let mut rounds = Vec::new();
            for _ in 0..self.rounds {
                let program = Program::Workers(workers.into());
                rounds.push(self.env.run(program, &load, 100, 16).await?);
            }
            let speed = median(rounds.iter().map(|run| run.jobs_per_s));
            let best = 160.0 * f64::from(workers);
            println!("{workers} workers: {speed:>4.0} jobs/s, {:.2} of the maximum", speed / best);
        }
        Ok(())
    }

    pub(crate) async fn cold(&self) -> anyhow::Result<()> {
        println!(
            "\ncold: {} jobs of other payments beside 500 of a hot payment, one worker",
            self.jobs * 2
        );
        let alone = self.env.load(cold(self.jobs * 2));
        let beside = self.env.load(mix(cold(self.jobs * 2), hot(500)));
        for (latency_ms, prefetch) in [(20, 256), (20, 64), (100, 64)] {
            let mut rounds = Vec::new();
            for _ in 0..self.rounds {
                let alone = self.env.run(Program::Workers(1), &alone, latency_ms, prefetch).await?;
                let beside =
                    self.env.run(Program::Workers(1), &beside, latency_ms, prefetch).await?;
                rounds.push((cold_seconds(&alone), cold_seconds(&beside)));
            }
            let alone = median(rounds.iter().map(|round| round.0));
            let beside = median(rounds.iter().map(|round| round.1));
            let ratio = median(rounds.iter().map(|(alone, beside)| beside / alone));
            println!(
                "latency {latency_ms:>3} ms, prefetch {prefetch:>3}: alone {alone:.2} s, \
                 beside {beside:.2} s, ratio {ratio:.3}"
            );
        }
        Ok(())
    }
}

/// The time from the first call for a cold job to the last reply to one, in seconds.
fn cold_seconds(run: &Figures) -> f64 {
    let cold = || run.calls.iter().filter(|call| !call.is_hot);
    let (first, last): (Option<Instant>, Option<Instant>) =
        (cold().map(|call| call.began).min(), cold().map(|call| call.ended).max());
    let span = first.zip(last).map(|(first, last)| last.duration_since(first));
    span.unwrap_or_default().as_secs_f64()
}

fn at_once_max(run: &Figures) -> usize {
    let begins = run.calls.iter().map(|call| (call.began, true));
    let mut events: Vec<_> =
        begins.chain(run.calls.iter().map(|call| (call.ended, false))).collect();
    events.sort_by_key(|(at, _)| *at);
    let (mut now, mut max) = (0_usize, 0);
    for (_, begins) in events {
        now = if begins { now + 1 } else { now.saturating_sub(1) };
        max = max.max(now);
    }
    max
}
