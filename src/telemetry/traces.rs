//! Traces: a span for each delivery, in it one for the wait for the lease, one for each call to the gateway, one for giving
//! the lease back, one for the settlement. A job is one trace, from its publisher through retries, wait queues, dead letter
//! and replay: the W3C trace context is taken from its headers, and put into those of whatever is published of it.
//!
//! They are spans of `tracing` with targets of their own. As long as nobody asked for them no layer takes these targets,
//! and each span is a check of one static flag.

use std::{collections::HashMap, time::Duration};

use opentelemetry::{
    KeyValue,
    propagation::TextMapPropagator,
    trace::{Status, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tracing::{Metadata, Span, field::Empty, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::domain::{
    class::Class, outcome::Attempt, reply::Reply, settle::Settlement, trace::TraceContext,
};

/// The span of a delivery: in the lines of log too.
const JOB: &str = "capture_worker::trace";
/// The spans in it.
const STEP: &str = "capture_worker::trace::step";
/// Where a collector takes spans, under its address.
const PATH: &str = "/v1/traces";
/// How long the last spans may take to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The way of spans to the collector; to be ended, or the last of them are lost.
#[derive(Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Spans go to the collector at this address by OTLP over HTTP. Its headers, time-outs, the sampler and the service's
    /// attributes are those of OpenTelemetry's environment variables.
    pub(super) fn to(endpoint: &str) -> Result<(Self, SdkTracer), String> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}{PATH}", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| format!("traces.endpoint can't be used: {error}"))?;
        let name = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
        let resource = Resource::builder()
            .with_service_name(name.unwrap_or_else(|| "capture-worker".to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        let tracer = provider.tracer("capture-worker");
        Ok((Self(Some(provider)), tracer))
    }

    /// Sends what has not been sent yet.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let ended =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "the last spans did not leave");
        }
    }
}

/// Whether this is a span of ours, for the collector.
pub(super) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(JOB)
}

/// Whether this is a span that lines of log show.
pub(super) fn is_shown(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == JOB
}

/// The span of a delivery from the queue of jobs, in the trace that the job belongs to, or in a new one.
#[must_use]
pub fn job(prefix: &str, parent: Option<&TraceContext>) -> Span {
    let span = info_span!(
        target: JOB,
        "job",
        trace_id = Empty,
        otel.name = format!("process {prefix}.jobs"),
        otel.kind = "consumer",
    );
    if span.is_disabled() {
        return span;
    }
    if let Some(parent) = parent {
        let headers = HashMap::from([
            ("traceparent".to_owned(), parent.traceparent().to_owned()),
            ("tracestate".to_owned(), parent.tracestate().unwrap_or_default().to_owned()),
        ]);
        let parent = TraceContextPropagator::new().extract(&headers);
        // It fails where there is no layer for it: the span is disabled then.
        drop(span.set_parent(parent));
    }
    span.set_attribute("messaging.system", "rabbitmq");
    span.set_attribute("messaging.operation.type", "process");
    span.set_attribute("messaging.destination.name", format!("{prefix}.jobs"));
    if let Some(context) = context(&span) {
        span.record("trace_id", context.trace_id());
    }
    span
}

/// Waiting for the lease of the payment.
#[must_use]
pub fn lease() -> Span {
    info_span!(target: STEP, "lease")
}

/// Giving the lease back, or on.
#[must_use]
pub fn release() -> Span {
    info_span!(target: STEP, "release")
}

/// A call to the gateway.
#[must_use]
pub fn call(name: &'static str) -> Span {
    info_span!(target: STEP, "gateway", otel.name = name, otel.kind = "client")
}

/// What the gateway replied to a call.
pub fn replied<B>(span: &Span, reply: &Reply<B>) {
    if span.is_disabled() {
        return;
    }
    match reply {
        Reply::Answered(answer) => {
            let result = &answer.result;
            span.set_attribute("capture.result.code", result.code.clone());
            span.set_attribute("capture.result.status", result.status.text().to_owned());
        }
        Reply::NotSent(why) => span.set_status(Status::error(why.clone())),
        Reply::NoAnswer(why) => span.set_status(Status::error(why.to_string())),
    }
}

/// Publishing what a delivery came to, and acking it; the delivery's span learns it too.
#[must_use]
pub fn settlement(job: &Span, attempt: &Attempt, settlement: &Settlement) -> Span {
    let (name, class) = (settlement.name(), settlement.class().map(Class::name));
    let span = info_span!(
        target: STEP,
        "settle",
        otel.name = format!("settle {name}"),
        otel.kind = "producer",
    );
    if job.is_disabled() {
        return span;
    }
    let subject = &attempt.subject;
    for (key, value) in [
        ("capture.request_id", subject.capture_request_id.as_deref()),
        ("capture.payment_id", subject.payment_id.as_deref()),
        ("capture.outcome", Some(attempt.outcome.name())),
        ("capture.settlement", Some(name)),
        ("capture.class", class),
    ] {
        if let Some(value) = value {
            job.set_attribute(key, value.to_owned());
        }
    }
    if let Some(class) = class {
        job.set_status(Status::error(class));
    }
    span
}

/// Says something of a span.
pub fn say(span: &Span, key: &'static str, value: impl Into<opentelemetry::Value>) {
    if !span.is_disabled() {
        span.set_attribute(key, value);
    }
}

/// The trace context of a span, for what is published in it. `None`: there are no traces.
#[must_use]
pub fn context(span: &Span) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    let state = headers.get("tracestate").map(String::as_str);
    TraceContext::read(headers.get("traceparent")?, state)
}
