//! Traces. Each delivery is a span. Inside it are spans for the wait for the lease, each call to
//! the gateway, the release of the lease, and the settlement. A job is one trace from its publisher
//! through retries, wait queues, dead letter and replay: the W3C trace context is read from the
//! job's headers and written to the headers of every message that is published for it.
//!
//! The spans are `tracing` spans with targets of their own. While tracing is off, no layer enables
//! these targets, and each span costs one check of a static flag.

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
    capture::{class::Class, outcome::FinishedAttempt, reply::Reply},
    job::trace::TraceContext,
    settlement::Settlement,
};

/// The target of the span of a delivery. Log lines show the fields of this span.
const JOB: &str = "capture_worker::trace";
/// The target of the spans inside a delivery. Log lines do not show them.
const STEP: &str = "capture_worker::trace::step";
/// The path of a collector's OTLP endpoint for spans, below its address.
const PATH: &str = "/v1/traces";
/// How long the export of the last spans may take at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The export of spans to the collector. Call [`TraceExport::end`] before the process exits, or the
/// last spans are lost.
#[derive(Default)]
pub struct TraceExport(Option<SdkTracerProvider>);

impl TraceExport {
    /// Exports spans to the collector at `endpoint` by OTLP over HTTP. The environment variables of
    /// OpenTelemetry set the headers, the time-outs, the sampler and the attributes of the service.
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

    /// Exports the spans that have not been exported yet.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let ended =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "export of the last trace spans failed");
        }
    }
}

/// Whether this is one of the worker's own spans, which go to the collector.
pub(super) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with(JOB)
}

/// Whether log lines show the fields of this span.
pub(super) fn is_shown(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == JOB
}

/// The span of a delivery from the queue of jobs. It joins the trace of the job's headers, or
/// begins a new trace.
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
        // This fails only if no layer exports spans, and then the span is disabled.
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

/// The span of the wait for the lease of the payment.
#[must_use]
pub fn lease() -> Span {
    info_span!(target: STEP, "lease")
}

/// The span of releasing the lease, or handing it over to the next job.
#[must_use]
pub fn release() -> Span {
    info_span!(target: STEP, "release")
}

/// The span of one call to the gateway; `name` is `capture` or `inquiry`.
#[must_use]
pub fn call(name: &'static str) -> Span {
    info_span!(target: STEP, "gateway", otel.name = name, otel.kind = "client")
}

/// Records the result of a call on its span.
pub fn record_reply<B>(span: &Span, reply: &Reply<B>) {
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

/// The span of publishing the messages of a settlement and acking the delivery. It also records the
/// settlement on the span of the delivery.
#[must_use]
pub fn settlement(job: &Span, attempt: &FinishedAttempt, settlement: &Settlement) -> Span {
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

/// Sets an attribute of a span, if traces are on.
pub fn set_attribute(span: &Span, key: &'static str, value: impl Into<opentelemetry::Value>) {
    if !span.is_disabled() {
        span.set_attribute(key, value);
    }
}

/// The trace context of a span, for the messages published inside it. `None` if traces are off.
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
