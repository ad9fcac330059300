//! AMQP headers and properties of jobs, results and dead letters. They are read strictly, and
//! copied to the next message without those that the broker would act on.

use std::collections::BTreeMap;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use self::names::{
    ACTED_ON, ACTED_ON_PREFIXES, ATTEMPT, BROKER_QUEUE, BROKER_REASON, CLASS, CODE, DEAD_AT,
    DEFERRALS, DELIVERY_COUNT, ENDED, FIRST_SEEN, LAST_CODE, LAST_STATUS, MESSAGE, ORIGIN, OURS,
    PARENT, PRIORITY, REFUSALS, REPLAYS, RETURNS, SENT, SIGNED, STATUS,
};
use crate::domain::{
    capture::class::Class,
    job::{
        Job, Malformed,
        forward::ForwardFields,
        history::{History, LastWord},
        trace::{TRACESTATE_BYTES_MAX, TraceContext},
    },
    settlement::{Letter, refused::RefusedResult},
};

const YEAR_2020_MS: i64 = 1_577_836_800_000;
const DAY_MS: i64 = 86_400_000;
/// The maximum length of `x-capture-message`, in characters.
const MESSAGE_CHARS_MAX: usize = 500;
/// The maximum length of a text header, in characters: publishers can write these headers, too.
const TEXT_CHARS_MAX: usize = 128;
/// The broker's default `frame_max` is 128 KiB, and a message's properties travel in one frame.
const HEADERS_BYTES_MAX: usize = 120 * 1024;
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const PERSISTENT: u8 = 2;
/// The one `reply_to` that the broker acts on (direct reply-to).
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Reads a job's history from its headers. A header with an invalid value counts as absent, because
/// anybody who may publish can write it.
pub(super) fn read(properties: &BasicProperties, redelivered: bool, now_ms: i64) -> History {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let is_poison_letter = text(table, CLASS).is_some_and(|class| class == Class::Poison.name());
    // A status without a code is valid: the gateway may leave the code empty.
    let last_word = text_or_empty(table, LAST_CODE)
        .zip(text(table, LAST_STATUS))
        .map(|(code, status)| LastWord { code, status });
    // The broker counts deliveries, and sets the count only on redelivered messages.
    let count = if redelivered { number(table, DELIVERY_COUNT).unwrap_or(1) } else { 0 };
    History {
        attempts: number(table, ATTEMPT).unwrap_or(0),
        deferrals: number(table, DEFERRALS).unwrap_or(0),
        first_seen_ms: integer(table, FIRST_SEEN)
            .filter(|ms| *ms >= YEAR_2020_MS && *ms <= now_ms.saturating_add(DAY_MS))
            .unwrap_or(now_ms),
        last_word,
        sent: is_poison_letter || is_poison_of_the_broker(table) || flag(table, SENT),
        redelivered,
        replays: number(table, REPLAYS).unwrap_or(0),
        returns: number(table, RETURNS).unwrap_or(0).saturating_add(count),
        parent: text(table, PARENT),
        origin: text(table, ORIGIN),
    }
}

/// Reads a message's body as a job.
pub(super) fn read_job(
    body: &[u8],
    properties: &BasicProperties,
    forward: &ForwardFields,
) -> Result<Job, Box<Malformed>> {
    let encoding = properties.content_encoding().as_ref().map(ShortString::as_str);
    Job::parse_with(body, forward).map_err(|malformed| malformed.with_encoding(encoding))
}

/// How often in a row the job's result was refused, and the failure that the result reports, as an
/// earlier worker wrote it into the headers.
pub(super) fn refused_result(properties: &BasicProperties) -> RefusedResult {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let ended = text(table, ENDED).and_then(|name| name.parse().ok());
    RefusedResult::read(number(table, REFUSALS).unwrap_or(0), ended)
}

/// Writes into the headers that the job's result was refused.
pub(super) fn put_refused_result(properties: &mut BasicProperties, refused: &RefusedResult) {
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
pub(super) fn names_a_death_of_ours(properties: &BasicProperties, prefix: &str) -> bool {
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
fn priority(properties: &BasicProperties) -> Option<u8> {
    let kept = || number(properties.headers().as_ref()?, PRIORITY)?.try_into().ok();
    properties.priority().or_else(kept)
}

/// When the job was first published, in epoch milliseconds. The timestamp of a replayed job is
/// ignored: it is that of the original publish, and the age of a replay starts anew.
pub(super) fn born_ms(properties: &BasicProperties, history: &History) -> i64 {
    let written_ms = properties
        .timestamp()
        .and_then(|seconds| i64::try_from(seconds).ok())
        .map(|seconds| seconds.saturating_mul(1000))
        .filter(|ms| *ms >= YEAR_2020_MS && history.replays == 0);
    written_ms.unwrap_or(history.first_seen_ms).min(history.first_seen_ms)
}

/// The W3C trace context in the headers of a message.
pub(super) fn trace(properties: &BasicProperties) -> Option<TraceContext> {
    let table = properties.headers().as_ref()?;
    let text = |name: &str| match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    };
    TraceContext::read(text(TRACEPARENT)?, text(TRACESTATE))
}

/// Replaces the trace context in the headers of a message.
pub(super) fn put_trace(properties: &mut BasicProperties, context: &TraceContext) {
    let mut headers = properties.headers().clone().unwrap_or_default().inner().clone();
    headers.insert(TRACEPARENT.into(), long(context.traceparent()));
    match context.tracestate() {
        Some(state) => headers.insert(TRACESTATE.into(), long(state)),
        None => headers.remove(TRACESTATE),
    };
    *properties = std::mem::take(properties).with_headers(headers.into());
}

/// The properties of a republished job: the publisher's, without those that the broker acts on, and
/// with the headers of this program.
pub(super) fn carry(
    original: &BasicProperties,
    history: &History,
    letter: Option<&Letter>,
) -> BasicProperties {
    let mut ours = BTreeMap::new();
    let mut put = |name: &str, value: AMQPValue| ours.insert(ShortString::from(name), value);
    put(ATTEMPT, int(history.attempts));
    put(DEFERRALS, int(history.deferrals));
    put(FIRST_SEEN, AMQPValue::LongLongInt(history.first_seen_ms));
    if let Some(word) = &history.last_word {
        put(LAST_CODE, long(&bounded(&word.code, TEXT_CHARS_MAX)));
        put(LAST_STATUS, long(&bounded(&word.status, TEXT_CHARS_MAX)));
    }
    if history.sent {
        put(SENT, AMQPValue::Boolean(true));
    }
    for (name, count) in [(REPLAYS, history.replays), (RETURNS, history.returns)] {
        if count > 0 {
            put(name, int(count));
        }
    }
    for (name, id) in [(PARENT, &history.parent), (ORIGIN, &history.origin)] {
        if let Some(id) = id {
            put(name, long(id));
        }
    }
    // Not as the property: in a wait queue, a message of higher priority keeps the others from
    // expiring.
    if let Some(priority) = priority(original) {
        put(PRIORITY, int(priority.into()));
    }
    if let Some(letter) = letter {
        put(CLASS, long(letter.class.name()));
        for (name, value) in [(CODE, &letter.code), (STATUS, &letter.status)] {
            if let Some(value) = value {
                put(name, long(&bounded(value, TEXT_CHARS_MAX)));
            }
        }
        put(MESSAGE, long(&bounded(&letter.message, MESSAGE_CHARS_MAX)));
        put(DEAD_AT, AMQPValue::LongLongInt(letter.dead_at_ms));
        put(SIGNED, AMQPValue::Boolean(letter.signed));
    }
    without_what_acts(original).with_headers(fit(original.headers().as_ref(), ours).into())
}

/// The properties of the result message of a job.
pub(super) fn of_result(original: &BasicProperties, now_ms: i64) -> BasicProperties {
    let mut headers = BTreeMap::new();
    for name in [TRACEPARENT, TRACESTATE] {
        let value = original.headers().as_ref().and_then(|table| table.inner().get(name));
        if let Some(AMQPValue::LongString(text)) = value
            && text.as_bytes().len() <= TRACESTATE_BYTES_MAX
        {
            headers.insert(ShortString::from(name), AMQPValue::LongString(text.clone()));
        }
    }
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_type("capture.result".into())
        .with_app_id("capture-worker".into())
        .with_timestamp(u64::try_from(now_ms / 1000).unwrap_or(0))
        .with_headers(headers.into());
    let properties = with_priority(properties, priority(original));
    match original.correlation_id() {
        Some(id) => properties.with_correlation_id(id.clone()),
        None => properties,
    }
}

/// The properties of a job that `submit` publishes.
pub(super) fn of_job(now_ms: i64) -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_type("capture.job".into())
        .with_app_id("capture-worker".into())
        .with_timestamp(u64::try_from(now_ms / 1000).unwrap_or(0))
}

fn with_priority(properties: BasicProperties, priority: Option<u8>) -> BasicProperties {
    match priority {
        Some(priority) => properties.with_priority(priority),
        None => properties,
    }
}

/// The properties that [`inert`] keeps, and persistent delivery.
fn without_what_acts(original: &BasicProperties) -> BasicProperties {
    inert(original).with_delivery_mode(PERSISTENT)
}

/// All properties except `delivery_mode`, `expiration`, `user_id`, the priority and the headers.
fn inert(original: &BasicProperties) -> BasicProperties {
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<ShortString>, With); 8] = [
        (original.content_type(), BasicProperties::with_content_type),
        (original.content_encoding(), BasicProperties::with_content_encoding),
        (original.correlation_id(), BasicProperties::with_correlation_id),
        (original.reply_to(), BasicProperties::with_reply_to),
        (original.message_id(), BasicProperties::with_message_id),
        (original.kind(), BasicProperties::with_type),
        (original.app_id(), BasicProperties::with_app_id),
        (original.cluster_id(), BasicProperties::with_cluster_id),
    ];
    let mut properties = BasicProperties::default();
    for (value, with) in texts {
        if let Some(value) = value
            && value.as_str() != DIRECT_REPLY_TO
        {
            properties = with(properties, value.clone());
        }
    }
    if let Some(timestamp) = original.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    properties
}

/// The publisher's headers together with ours. If they don't fit into one frame, the publisher's
/// largest headers are left out: a frame that is too long would close the connection, and would do
/// so again after each redelivery.
fn fit(
    original: Option<&FieldTable>,
    ours: BTreeMap<ShortString, AMQPValue>,
) -> BTreeMap<ShortString, AMQPValue> {
    let mut theirs: Vec<_> = original
        .into_iter()
        .flat_map(|table| table.inner())
        .filter(|(name, _)| is_kept(&name.to_string()))
        .map(|(name, value)| (entry_size(name, value), name.clone(), value.clone()))
        .collect();
    theirs.sort_by_key(|(size, _, _)| *size);
    let mut size: usize = ours.iter().map(|(name, value)| entry_size(name, value)).sum();
    let mut fitted = ours;
    for (bytes, name, value) in theirs {
        size += bytes;
        if size > HEADERS_BYTES_MAX {
            let header = name.to_string();
            tracing::warn!(header, bytes, "header left out: too large to republish");
        } else {
            fitted.insert(name, value);
        }
    }
    fitted
}

fn is_kept(name: &str) -> bool {
    !OURS.contains(&name)
        && !ACTED_ON.contains(&name)
        && !ACTED_ON_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn entry_size(name: &ShortString, value: &AMQPValue) -> usize {
    name.to_string().len() + 2 + value_size(value)
}

/// The size of a value in a frame, in bytes. An upper bound.
fn value_size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.to_string().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(array) => {
            4 + array.as_slice().iter().map(|value| 1 + value_size(value)).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => table_size(table),
        _ => 9,
    }
}

/// The size of a table in a frame, in bytes. An upper bound.
pub(super) fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| entry_size(name, value)).sum::<usize>()
}

fn int(number: u32) -> AMQPValue {
    AMQPValue::LongInt(i32::try_from(number).unwrap_or(i32::MAX))
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn bounded(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

fn integer(table: &FieldTable, name: &str) -> Option<i64> {
    match table.inner().get(name)? {
        AMQPValue::ShortShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::LongUInt(number) => Some(i64::from(*number)),
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}

fn number(table: &FieldTable, name: &str) -> Option<u32> {
    integer(table, name).filter(|number| *number >= 0).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
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

fn text(table: &FieldTable, name: &str) -> Option<String> {
    text_or_empty(table, name).filter(|text| !text.is_empty())
}

fn text_or_empty(table: &FieldTable, name: &str) -> Option<String> {
    let text = match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.to_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        _ => return None,
    };
    (text.chars().count() <= TEXT_CHARS_MAX).then_some(text)
}

/// Whether a header is present and not `false`.
fn flag(table: &FieldTable, name: &str) -> bool {
    table.inner().get(name).is_some_and(|value| *value != AMQPValue::Boolean(false))
}

mod letter;
mod names;
pub(super) use self::letter::{of_audit, read_letter, replayed, shown};

mod republish;
pub(super) use self::republish::{delivery_count, republished};

#[cfg(test)]
mod tests;
