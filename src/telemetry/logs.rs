//! Log lines on stderr, and spans to a trace collector.

use std::io::{IsTerminal, Stderr};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::traces::{TraceExport, is_ours, is_shown};
use crate::{config::LogFormat, sanitize::LogLines};

/// Starts logging to stderr, and sends spans to the collector at `traces_endpoint` if there is one.
/// Without a `format`, logs are text on a terminal and JSON elsewhere.
///
/// # Errors
/// `filter` is not a valid filter expression, the address can't be used, or logging was started
/// before.
pub fn start(
    format: Option<LogFormat>,
    filter: &str,
    traces_endpoint: Option<&str>,
) -> Result<TraceExport, String> {
    let on_terminal = std::io::stderr().is_terminal();
    let by_default = if on_terminal { LogFormat::Text } else { LogFormat::Json };
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("log.filter is not valid: {error}"))?;
    let (traces, tracer) = match traces_endpoint.map(TraceExport::to).transpose()? {
        Some((traces, tracer)) => (traces, Some(tracer)),
        None => (TraceExport::default(), None),
    };
    let has_traces = tracer.is_some();
    let shown = filter.and(filter_fn(move |line| {
        if line.is_span() { has_traces && is_shown(line) } else { keeps_secrets(line) }
    }));
    let lines = match format.unwrap_or(by_default) {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .log_internal_errors(false)
            .with_writer(writer(true, false))
            .boxed(),
        LogFormat::Text => {
            let is_coloured = on_terminal && takes_colour();
            fmt::layer()
                .with_ansi(is_coloured)
                .log_internal_errors(false)
                .with_writer(writer(false, is_coloured))
                .boxed()
        }
    };
    let spans = tracer.map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_ours))
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(shown))
        .with(spans)
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(traces)
}

/// A log line that can't be written is lost, and the worker goes on. `log_internal_errors` is off
/// because it would print the loss to stderr, and panic where stderr is a pipe without a reader.
fn writer(is_json: bool, is_coloured: bool) -> impl Fn() -> LogLines<Stderr> + Send + Sync {
    move || LogLines { to: std::io::stderr(), is_json, is_coloured }
}

/// Whether a terminal may be sent styled text. Honors `NO_COLOR` (<https://no-color.org>) and
/// `TERM=dumb`. Whether a stream is a terminal must be checked as well.
pub(crate) fn takes_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a log line can't contain secrets. Lines that may are dropped, whatever the filter says:
/// below `info`, libraries print frames with passwords and bodies in them, and the AMQP client
/// prints whole returned messages.
fn keeps_secrets(line: &Metadata<'_>) -> bool {
    let (target, level) = (line.target(), *line.level());
    target.starts_with("capture_worker")
        || (level <= Level::INFO && target != "lapin::returned_messages")
}
