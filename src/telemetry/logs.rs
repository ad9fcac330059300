//! Logs on stderr, and spans to a collector.

use std::io::{IsTerminal, Stderr};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::traces::{Traces, is_ours, is_shown};
use crate::{config::LogFormat, sanitize::LogLines};

/// Sends logs to stderr from now on, without a format as text to a terminal and as JSON elsewhere; and spans to the
/// collector at this address, if there is one.
///
/// # Errors
/// The filter is none, or the address can't be used.
pub fn start(
    format: Option<LogFormat>,
    filter: &str,
    traces_endpoint: Option<&str>,
) -> Result<Traces, String> {
    let on_terminal = std::io::stderr().is_terminal();
    let by_default = if on_terminal { LogFormat::Text } else { LogFormat::Json };
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log.filter: {error}"))?;
    let (traces, tracer) = match traces_endpoint.map(Traces::to).transpose()? {
        Some((traces, tracer)) => (traces, Some(tracer)),
        None => (Traces::default(), None),
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

/// A line that can't be written is lost, and the work goes on: `log_internal_errors`, which would print that it was lost,
/// panics where stderr is a pipe without a reader.
fn writer(is_json: bool, is_coloured: bool) -> impl Fn() -> LogLines<Stderr> + Send + Sync {
    move || LogLines { to: std::io::stderr(), is_json, is_coloured }
}

/// As <https://no-color.org> says; and some terminals have none.
fn takes_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whatever the filter asks for: below `info`, libraries print frames, with passwords and bodies in them; and the AMQP client
/// prints whole messages that come back.
fn keeps_secrets(line: &Metadata<'_>) -> bool {
    let (target, level) = (line.target(), *line.level());
    target.starts_with("capture_worker")
        || (level <= Level::INFO && target != "lapin::returned_messages")
}
