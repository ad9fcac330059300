//! Dead letters: what is written on them, what a replay carries on, and how both are shown.

use serde_json::{Map, Value, json};

use super::*;
use crate::domain::letter::{BrokerDeath, BrokerReason, DeadLetter};

/// Reads a dead letter that lies in the queue of a class. `jobs_queue` is the queue of jobs.
pub(in crate::broker) fn read_letter(
    class: Class,
    body: Vec<u8>,
    properties: &BasicProperties,
    forward: &ForwardFields,
    jobs_queue: &str,
    now_ms: i64,
) -> DeadLetter {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    // That the broker hands it out again says nothing about the job: it was looked at.
    let history = read(properties, false, now_ms);
    DeadLetter {
        class,
        job: read_job(&body, properties, forward),
        body: body.into(),
        history,
        code: text(table, CODE),
        status: text(table, STATUS),
        message: long_text(table, MESSAGE),
        dead_at_ms: dead_at_ms(table, jobs_queue, now_ms),
        signed: table.inner().get(SIGNED) == Some(&AMQPValue::Boolean(true)),
        // The broker dead-letters to this class only; elsewhere the headers are somebody's text.
        broker_death: (class == Class::Poison).then(|| broker_death(table, jobs_queue)).flatten(),
    }
}

/// When the broker gave it up, which writes seconds; else when the worker did.
fn dead_at_ms(table: &FieldTable, jobs_queue: &str, now_ms: i64) -> Option<i64> {
    let is_plausible = |ms: &i64| *ms >= YEAR_2020_MS && *ms <= now_ms.saturating_add(DAY_MS);
    let by_broker = death_of(table, jobs_queue).and_then(died_at_ms);
    by_broker.or_else(|| integer(table, DEAD_AT)).filter(is_plausible)
}

/// The time of an `x-death` entry, in epoch milliseconds.
pub(super) fn died_at_ms(death: &FieldTable) -> Option<i64> {
    match death.inner().get("time")? {
        AMQPValue::Timestamp(seconds) => Some(i64::try_from(*seconds).ok()?.saturating_mul(1000)),
        _ => None,
    }
}

/// Why the broker took it out of the queue of jobs.
///
/// Only the `x-death` entry of that queue says so. `x-first-death-*` says `expired` for ever once
/// a job has been in a wait queue, and other entries are about other queues. Our own headers keep
/// the reason of a dead letter that was republished, and count where `x-death` is absent: some
/// versions of the broker drop an `x-death` that a client publishes.
pub(super) fn broker_death(table: &FieldTable, jobs_queue: &str) -> Option<BrokerDeath> {
    let word =
        death_of(table, jobs_queue).and_then(|death| text(death, "reason")).or_else(|| {
            is_text(table, BROKER_QUEUE, jobs_queue).then(|| text(table, BROKER_REASON)).flatten()
        })?;
    Some(BrokerDeath { reason: BrokerReason::of(&word), queue: jobs_queue.to_owned() })
}

/// The newest `x-death` entry about this queue: the broker puts the newest first.
pub(super) fn death_of<'t>(table: &'t FieldTable, queue: &str) -> Option<&'t FieldTable> {
    let Some(AMQPValue::FieldArray(deaths)) = table.inner().get("x-death") else { return None };
    deaths.as_slice().iter().find_map(|death| match death {
        AMQPValue::FieldTable(death) => is_text(death, "queue", queue).then_some(death),
        _ => None,
    })
}

/// Whether a header is this text, however long.
fn is_text(table: &FieldTable, name: &str, expected: &str) -> bool {
    match table.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.as_bytes() == expected.as_bytes(),
        Some(AMQPValue::ShortString(text)) => text.as_str() == expected,
        _ => false,
    }
}

fn long_text(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => {
            let text = String::from_utf8_lossy(text.as_bytes());
            Some(bounded(&text, MESSAGE_CHARS_MAX))
        }
        _ => None,
    }
}

/// The properties of a replayed job: the publisher's, without those by which the broker acts, with what a replay keeps of
/// ours, and with their priority. Attempts, deferrals, returns and the first sight are cleared.
pub(in crate::broker) fn replayed(
    original: &BasicProperties,
    history: &History,
) -> BasicProperties {
    let carried = carry(original, history, None);
    let Some(mut headers) = carried.headers().clone().map(|table| table.inner().clone()) else {
        return carried;
    };
    for cleared in [ATTEMPT, DEFERRALS, FIRST_SEEN, RETURNS, PRIORITY] {
        headers.remove(cleared);
    }
    with_priority(carried, priority(original)).with_headers(headers.into())
}

/// The properties of an audit record.
pub(in crate::broker) fn of_audit(now_ms: i64) -> BasicProperties {
    of_job(now_ms).with_type("capture.audit".into())
}

/// Headers and properties as JSON, for people and archives.
pub(in crate::broker) fn shown(properties: &BasicProperties) -> (Value, Value) {
    let headers = properties.headers().as_ref().map_or_else(Map::new, object);
    let mut shown = Map::new();
    let texts = [
        ("contentType", properties.content_type()),
        ("contentEncoding", properties.content_encoding()),
        ("correlationId", properties.correlation_id()),
        ("replyTo", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("messageId", properties.message_id()),
        ("type", properties.kind()),
        ("userId", properties.user_id()),
        ("appId", properties.app_id()),
        ("clusterId", properties.cluster_id()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            shown.insert(name.into(), json!(value.as_str()));
        }
    }
    let numbers = [
        ("deliveryMode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            shown.insert(name.into(), json!(value));
        }
    }
    (Value::Object(headers), Value::Object(shown))
}

fn object(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), value_shown(value))).collect()
}

/// What JSON has no type for is shown as text.
fn value_shown(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Float(number) => json!(number),
        AMQPValue::Double(number) => json!(number),
        AMQPValue::Timestamp(seconds) => json!(seconds),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(value_shown).collect(),
        AMQPValue::FieldTable(table) => Value::Object(object(table)),
        AMQPValue::DecimalValue(decimal) => json!(format!("{decimal:?}")),
        AMQPValue::Void => Value::Null,
    }
}
