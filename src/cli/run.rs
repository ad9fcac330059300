//! `capture-worker run`: builds a worker from the settings and runs it until a signal.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Exit, print_error,
    settings::{self, Service},
};
use crate::{
    config::Settings,
    http::{self, Probes},
    lease::Role,
    telemetry::{Metrics, ProbeState},
    worker::{Drained, Worker},
};

/// A second signal that comes sooner than this after the first is ignored: see [`on_signals`].
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);

/// Runs a worker until SIGTERM or SIGINT.
pub(super) async fn run(config: Option<&Path>) -> Exit {
    let settings = match settings::load(config, Service::ALL) {
        Ok(settings) => settings,
        Err(exit) => return exit,
    };
    let traces = match settings::start_telemetry(&settings) {
        Ok(traces) => traces,
        Err(error) => {
            print_error(&format!("error: {error}"));
            return Exit::Usage;
        }
    };
    let exit = run_traced(&settings).await;
    traces.end().await;
    exit
}

async fn run_traced(settings: &Settings) -> Exit {
    for warning in settings.warnings() {
        tracing::warn!("{warning}");
    }
    let (metrics, probe_state) = (Arc::new(Metrics::default()), Arc::new(ProbeState::default()));
    let worker = match build(settings, &metrics, &probe_state) {
        Ok(worker) => worker,
        Err(errors) => {
            for error in errors {
                print_error(&format!("error: {error}"));
            }
            return Exit::Usage;
        }
    };
    let listener = match TcpListener::bind(settings.http.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            let address = settings.http.listen;
            print_error(&format!("error: cannot listen on {address} (http.listen): {error}"));
            return Exit::Failed;
        }
    };
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "probes and metrics are served");
    }
    let probes = Probes { worker: probe_state, metrics, leases: worker.leases.clone() };
    work(worker, listener, probes).await
}

fn build(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    probe_state: &Arc<ProbeState>,
) -> Result<Worker, Vec<String>> {
    let broker = settings::broker_options(settings);
    let gateway = settings::gateway(settings);
    let leases = settings::leases(settings, Role::Worker);
    match (broker, gateway, leases) {
        (Ok(broker), Ok(gateway), Ok(leases)) => Ok(Worker {
            broker,
            gateway,
            leases,
            codes: settings.classes.clone(),
            forward: settings.gateway.forward_fields(),
            policy: settings::policy(settings),
            breaker: settings::breaker(settings),
            rate_limit: settings::rate_limit(settings),
            drain_timeout: settings.drain.timeout,
            metrics: Arc::clone(metrics),
            probe_state: Arc::clone(probe_state),
        }),
        (broker, gateway, leases) => Err([broker.err(), gateway.err(), leases.err()]
            .into_iter()
            .flatten()
            .flatten()
            .collect()),
    }
}

async fn work(worker: Worker, listener: TcpListener, probes: Probes) -> Exit {
    let stop = CancellationToken::new();
    let served = CancellationToken::new();
    let server = tokio::spawn(http::serve(listener, probes, served.clone()));
    let second = match on_signals(stop.clone()) {
        Ok(second) => second,
        Err(error) => {
            print_error(&format!("error: cannot handle SIGTERM and SIGINT: {error}"));
            return Exit::Failed;
        }
    };
    let exit = tokio::select! {
        ended = worker.run(stop) => match ended {
            Ok(Drained::Complete) => Exit::Done,
            Ok(Drained::TimedOut) => Exit::Failed,
            Err(error) => {
                print_error(&format!("error: {error}"));
                Exit::Failed
            }
        },
        () = second.cancelled() => {
            tracing::error!("second signal received: drain aborted, unacked jobs are redelivered");
            Exit::Failed
        }
    };
    served.cancel();
    server.abort();
    exit
}

/// Cancels `stop` on the first SIGTERM or SIGINT, and the token that is returned on a second one.
///
/// A second signal counts only if it comes [`SECOND_SIGNAL_AFTER`] or later after the first. Some
/// init processes and `timeout` send each signal twice, to the process and to its process group,
/// and that must not abort the drain.
pub(super) fn on_signals(stop: CancellationToken) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let second = CancellationToken::new();
    let cut_short = second.clone();
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match first {
                None => stop.cancel(),
                Some(first) if first.elapsed() >= SECOND_SIGNAL_AFTER => {
                    return cut_short.cancel();
                }
                Some(_) => {
                    tracing::info!("signal ignored: it came within a second of the first");
                }
            }
            first.get_or_insert_with(Instant::now);
        }
    });
    Ok(second)
}
