//! What the headers say about a job. They are read strictly.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    names::{
        ATTEMPT, BROKER_REASON, CLASS, DEFERRALS, DELIVERY_COUNT, ENDED, FIRST_SEEN, LAST_CODE,
        LAST_STATUS, ORIGIN, PARENT, PRIORITY, REFUSALS, REPLAYS, RETURNS, SENT, TRACEPARENT,
        TRACESTATE,
    },
    values::{DAY_MS, YEAR_2020_MS, flag, int, integer, long, number, text, text_or_empty},
};
use crate::domain::{
    capture::class::Class,
    job::{
        Job, Malformed,
        forward::ForwardFields,
        history::{History, LastReply},
        trace::TraceContext,
    },
    settlement::refused::RefusedResult,
};

/// Reads a job's history from its headers. A header with an invalid value counts as absent, because
/// anybody who may publish can write it.
pub(in crate::broker) fn read_history(
    properties: &BasicProperties,
    redelivered: bool,
    now_ms: i64,
) -> History {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let is_dead_poison = text(table, CLASS).is_some_and(|class| class == Class::Poison.name());
    // A status without a code is valid: the gateway may leave the code empty.
    let last_reply = text_or_empty(table, LAST_CODE)
        .zip(text(table, LAST_STATUS))
        .map(|(code, status)| LastReply { code, status });
    // The broker counts deliveries, and sets the count only on redelivered messages.
    let count = if redelivered { number(table, DELIVERY_COUNT).unwrap_or(1) } else { 0 };
    History {
        attempts: number(table, ATTEMPT).unwrap_or(0),
        deferrals: number(table, DEFERRALS).unwrap_or(0),
        first_seen_ms: integer(table, FIRST_SEEN)
            .filter(|ms| *ms >= YEAR_2020_MS && *ms <= now_ms.saturating_add(DAY_MS))
            .unwrap_or(now_ms),
        last_reply,
        sent: is_dead_poison || is_poison_of_the_broker(table) || flag(table, SENT),
        redelivered,
        replays: number(table, REPLAYS).unwrap_or(0),
        returns: number(table, RETURNS).unwrap_or(0).saturating_add(count),
        parent: text(table, PARENT),
        origin: text(table, ORIGIN),
    }
}

/// Reads a message's body as a job.
pub(in crate::broker) fn read_job(
    body: &[u8],
    properties: &BasicProperties,
    forward: &ForwardFields,
) -> Result<Job, Box<Malformed>> {
    let encoding = properties.content_encoding().as_ref().map(ShortString::as_str);
    Job::parse_with(body, forward).map_err(|malformed| malformed.with_encoding(encoding))
}

/// How often in a row the job's result was refused, and the failure that the result reports, as an
/// earlier worker wrote it into the headers.
pub(in crate::broker) fn refused_result(properties: &BasicProperties) -> RefusedResult {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let ended = text(table, ENDED).and_then(|name| name.parse().ok());
    RefusedResult::read(number(table, REFUSALS).unwrap_or(0), ended)
}

/// Writes into the headers that the job's result was refused.
pub(in crate::broker) fn put_refused_result(
    properties: &mut BasicProperties,
    refused: &RefusedResult,
) {
    if refused.times == 0 {
        return;
    }
    let mut headers = properties.headers().clone().unwrap_or_default().inner().clone();
    headers.insert(REFUSALS.into(), int(refused.times));
    if let Some(class) = refused.ended {
        headers.insert(ENDED.into(), long(class.name()));
    }
    *properties = std::mem::take(properties).with_headers(headers.into());
}

/// Whether the broker may drop this job instead of dead-lettering it. RabbitMQ 3.x reads `x-death`
/// from the published message and treats a queue named there as a dead-letter cycle. Wait queues
/// are expected there.
pub(in crate::broker) fn names_a_death_of_ours(properties: &BasicProperties, prefix: &str) -> bool {
    let deaths = properties.headers().as_ref().and_then(|table| table.inner().get("x-death"));
    let Some(AMQPValue::FieldArray(deaths)) = deaths else { return false };
    let (ours, waits) = (format!("{prefix}."), format!("{prefix}.wait."));
    deaths.as_slice().iter().any(|death| {
        let AMQPValue::FieldTable(death) = death else { return false };
        let queue = match death.inner().get("queue") {
            Some(AMQPValue::LongString(queue)) => queue.as_bytes(),
            Some(AMQPValue::ShortString(queue)) => queue.as_str().as_bytes(),
            _ => return false,
        };
        queue.starts_with(ours.as_bytes()) && !queue.starts_with(waits.as_bytes())
    })
}

/// The publisher's priority: the property, or the header in which an earlier republish kept it.
pub(super) fn priority(properties: &BasicProperties) -> Option<u8> {
    let kept = || number(properties.headers().as_ref()?, PRIORITY)?.try_into().ok();
    properties.priority().or_else(kept)
}

/// When the job was first published, in epoch milliseconds. The timestamp of a replayed job is
/// ignored: it is that of the original publish, and the age of a replay starts anew.
pub(in crate::broker) fn born_ms(properties: &BasicProperties, history: &History) -> i64 {
    let written_ms = properties
        .timestamp()
        .and_then(|seconds| i64::try_from(seconds).ok())
        .map(|seconds| seconds.saturating_mul(1000))
        .filter(|ms| *ms >= YEAR_2020_MS && history.replays == 0);
    written_ms.unwrap_or(history.first_seen_ms).min(history.first_seen_ms)
}

/// The W3C trace context in the headers of a message.
pub(in crate::broker) fn trace(properties: &BasicProperties) -> Option<TraceContext> {
    let table = properties.headers().as_ref()?;
    let text = |name: &str| match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    };
    TraceContext::read(text(TRACEPARENT)?, text(TRACESTATE))
}

/// Replaces the trace context in the headers of a message.
pub(in crate::broker) fn put_trace(properties: &mut BasicProperties, context: &TraceContext) {
    let mut headers = properties.headers().clone().unwrap_or_default().inner().clone();
    headers.insert(TRACEPARENT.into(), long(context.traceparent()));
    match context.tracestate() {
        Some(state) => headers.insert(TRACESTATE.into(), long(state)),
        None => headers.remove(TRACESTATE),
    };
    *properties = std::mem::take(properties).with_headers(headers.into());
}

/// Whether the broker once dead-lettered this job because it exceeded the delivery limit. Workers
/// that had it may have sent its capture.
fn is_poison_of_the_broker(table: &FieldTable) -> bool {
    let reason =
        |table: &FieldTable, name: &str| text(table, name).as_deref() == Some("delivery_limit");
    let deaths = match table.inner().get("x-death") {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
        _ => &[],
    };
    reason(table, "x-first-death-reason")
        || reason(table, "x-last-death-reason")
        || reason(table, BROKER_REASON)
        || deaths.iter().any(|death| match death {
            AMQPValue::FieldTable(death) => reason(death, "reason"),
            _ => false,
        })
}
