//! A job is one trace. Its context comes from the job's headers and goes into the headers of all
//! messages that are published about it.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use capture_worker::domain::capture::class::Class;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value as Any,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use serde_json::{Value, json};
use testkit::{LIMIT, processes::Process, worker::Worker};
use tokio::net::TcpListener;

use crate::env::{ItEnv, headers, job, text};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";

/// A collector that accepts OTLP over HTTP.
#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (collector, url)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn services(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let attributes = resources.filter_map(|resource| resource.resource.as_ref());
        attributes.filter_map(|resource| said(&resource.attributes, "service.name")).collect()
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    collector.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
}

type Attributes = [opentelemetry_proto::tonic::common::v1::KeyValue];

fn said(attributes: &Attributes, key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?;
    match value.value? {
        Any::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The log lines about the settlement of an id.
fn settling(process: &Process, id: &str) -> Vec<Value> {
    let log = process.stderr();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["message"] == "settlement decided" && line["captureRequestId"] == id)
        .collect()
}

async fn publish_traced(env: &ItEnv, body: &[u8], traceparent: &str) {
    let traced = [("traceparent", text(traceparent)), ("tracestate", text("shop=42"))];
    env.publish_with(body, headers(traced)).await;
}

fn publishers() -> String {
    format!("00-{TRACE}-{PUBLISHER}-01")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_trace_through_retries_death_and_replay() {
    let (collector, url) = Collector::start().await;
    let env = ItEnv::open().await.set("TRACES__ENDPOINT", &url);
    let mut worker = env.worker().await;
    env.script(
        "p",
        json!([
            {"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": 2},
            {"answer": {"code": "RISK_REJECT"}, "captureRequestId": "c", "times": "forever"},
        ]),
    );
    publish_traced(&env, &job("c", "p", 100), &publishers()).await;
    env.ends_as("c", "FAILED", Some("risk")).await;
    let queue = format!("{}.dead.{}", env.prefix, Class::Risk);
    let dead_letter = env.broker.peek_queue(&queue).await.unwrap().remove(0);
    let carried = dead_letter.header("traceparent").unwrap();
    assert!(carried.starts_with(&format!("00-{TRACE}-")), "{carried}");
    assert_eq!(dead_letter.header("tracestate").as_deref(), Some("shop=42"));

    let replay = ["dead", "replay", "--class", "risk", "--reason", "a test", "--yes"];
    let mut replay = Process::spawn(env.program(&replay)).unwrap();
    assert!(replay.wait(LIMIT).await.unwrap().success(), "{}", replay.describe());
    let results = env.results.wait_for(2, LIMIT).await.unwrap();
    assert_eq!(results[1].routing_key, "captured");
    let of_result = results[1].header("traceparent").unwrap();
    assert!(of_result.starts_with(&format!("00-{TRACE}-")), "{of_result}");
    let child = results[1].json().unwrap()["captureRequestId"].as_str().unwrap().to_owned();
    assert_eq!(worker.drain().await, Some(0), "the remaining spans are sent at the end");

    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "a span of another trace");
    assert!(spans.iter().all(|span| span.trace_state == "shop=42"), "the tracestate is lost");
    assert_eq!(collector.services()[0], "capture-worker");
    let jobs = chain(&spans, &env.prefix);
    let came_to: Vec<_> =
        jobs.iter().filter_map(|job| said(&job.attributes, "capture.settlement")).collect();
    assert_eq!(came_to, ["retry", "retry", "dead", "captured"]);
    for job in &jobs {
        let steps: BTreeMap<_, _> =
            children(&spans, job).map(|span| (span.name.as_str(), span.kind())).collect();
        assert_eq!(steps["lease"], SpanKind::Internal, "{steps:?}");
        assert_eq!(steps["capture"], SpanKind::Client, "{steps:?}");
        assert!(steps.contains_key("release"), "{steps:?}");
        assert_eq!(job.kind(), SpanKind::Consumer);
    }
    assert_eq!(said(&jobs[3].attributes, "capture.request_id"), Some(child.clone()));
    for (id, lines) in [("c", 3), (&child, 1)] {
        let lines_of_id = settling(&worker.process, id);
        assert_eq!(lines_of_id.len(), lines);
        assert!(lines_of_id.iter().all(|line| line["trace_id"] == TRACE), "{lines_of_id:?}");
    }
}

fn children<'s>(spans: &'s [Span], of: &'s Span) -> impl Iterator<Item = &'s Span> {
    spans.iter().filter(|span| span.parent_span_id == of.span_id)
}

/// The spans of the deliveries in order. The parent of the first is the publisher's span; the
/// parent of each other is the settlement of the one before.
fn chain(spans: &[Span], prefix: &str) -> Vec<Span> {
    let name = format!("process {prefix}.jobs");
    let deliveries = spans.iter().filter(|span| span.name == name).count();
    let mut parent = PUBLISHER.to_owned();
    let mut chain = Vec::new();
    while let Some(job) =
        spans.iter().find(|span| span.name == name && hex(&span.parent_span_id) == parent)
    {
        chain.push(job.clone());
        let settlement = children(spans, job).find(|span| span.name.starts_with("settle "));
        let settlement = settlement.expect("a settlement of each delivery");
        assert_eq!(settlement.kind(), SpanKind::Producer);
        parent = hex(&settlement.span_id);
    }
    assert_eq!(chain.len(), deliveries, "a delivery outside the chain");
    chain
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_trace_context_is_replaced_and_an_unsampled_one_kept() {
    let (collector, url) = Collector::start().await;
    let env = ItEnv::open().await.set("TRACES__ENDPOINT", &url);
    let mut worker = env.worker().await;
    publish_traced(&env, &job("bad", "p-bad", 100), "00-zero-zero-01").await;
    publish_traced(&env, &job("unsampled", "p-2", 100), &format!("00-{TRACE}-{PUBLISHER}-00"))
        .await;
    env.ends_as("bad", "CAPTURED", None).await;
    env.ends_as("unsampled", "CAPTURED", None).await;
    assert_eq!(worker.drain().await, Some(0));
    let of_result = |id: &str| {
        let results = env.results.all().into_iter();
        let mut of_id = results.filter(|result| result.json().unwrap()["captureRequestId"] == id);
        of_id.next().unwrap().header("traceparent").unwrap()
    };
    let (new, kept) = (of_result("bad"), of_result("unsampled"));
    assert!(!new.contains("zero") && new.ends_with("-01"), "{new}");
    assert!(kept.starts_with(&format!("00-{TRACE}-")) && kept.ends_with("-00"), "{kept}");
    let spans = collector.spans();
    assert!(!spans.is_empty());
    assert!(spans.iter().all(|span| new.contains(&hex(&span.trace_id))), "{new}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_the_context_is_kept_and_logs_have_its_id() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    publish_traced(&env, &job("c", "p", 100), &publishers()).await;
    env.ends_as("c", "CAPTURED", None).await;
    let result = env.results.all().remove(0);
    assert_eq!(result.header("traceparent"), Some(publishers()));
    assert_eq!(result.header("tracestate").as_deref(), Some("shop=42"));
    let lines = settling(&worker.process, "c");
    assert_eq!((lines.len(), &lines[0]["trace_id"]), (1, &json!(TRACE)));
    assert_eq!(lines[0]["span"], Value::Null, "no span without an endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_or_hanging_collector_delays_no_capture() {
    // The kernel accepts connections, and nothing replies.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let urls = [address(&hangs), address(&refuses)];
    drop(refuses);
    for url in urls {
        let env = ItEnv::open().await.set("TRACES__ENDPOINT", &url);
        let mut worker: Worker = env.worker().await;
        for n in 0..50 {
            env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        }
        env.results.wait_for(50, LIMIT).await.unwrap();
        let asked = Instant::now();
        assert_eq!(worker.drain().await, Some(0));
        assert!(asked.elapsed() < Duration::from_secs(20), "the drain waited for the collector");
        env.assert_clean_books();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_endpoint_is_refused() {
    let env = ItEnv::open().await.set("TRACES__ENDPOINT", "collector:4318");
    let mut process = Process::spawn(env.program(&["run"])).unwrap();
    assert_eq!(process.wait(LIMIT).await.unwrap().code(), Some(64));
    assert!(process.stderr().contains("traces.endpoint must be"), "{}", process.stderr());
}
