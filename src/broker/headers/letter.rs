//! The headers of dead letters: how they are read, which of them a replay keeps, and how they are
//! shown to operators.

use serde_json::{Map, Value, json};

use super::*;
use crate::domain::replay::dead_letter::{BrokerDeath, BrokerReason, DeadLetter};

/// Reads a message in the dead-letter queue of a class. `jobs_queue` is the name of the queue of
/// jobs, by which `x-death` is read.
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
    // A redelivery proves nothing about the job: an operator browsed the queue before.
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
        // The broker dead-letters to this class only. In others, a publisher wrote such headers.
        broker_death: (class == Class::Poison).then(|| broker_death(table, jobs_queue)).flatten(),
    }
}

/// When the job was dead-lettered, in epoch milliseconds: by the broker, whose clock has seconds,
/// or else by a worker.
fn dead_at_ms(table: &FieldTable, jobs_queue: &str, now_ms: i64) -> Option<i64> {
    let is_plausible = |ms: &i64| *ms >= YEAR_2020_MS && *ms <= now_ms.saturating_add(DAY_MS);
    let by_broker = death_of(table, jobs_queue).and_then(died_at_ms);
    by_broker.or_else(|| integer(table, DEAD_AT)).filter(is_plausible)
}

/// The time in an `x-death` entry, in epoch milliseconds.
pub(super) fn died_at_ms(death: &FieldTable) -> Option<i64> {
    match death.inner().get("time")? {
        AMQPValue::Timestamp(seconds) => Some(i64::try_from(*seconds).ok()?.saturating_mul(1000)),
        _ => None,
    }
}

/// Why the broker dead-lettered a job from the queue of jobs.
///
/// Only the `x-death` entry of that queue proves it. Once a job has been in a wait queue,
/// `x-first-death-*` stays `expired` for good, and other entries are about other queues. When this
/// program republishes a dead letter, it keeps the reason in headers of its own. They count only
/// if `x-death` is absent: some versions of the broker drop an `x-death` that a client publishes.
pub(super) fn broker_death(table: &FieldTable, jobs_queue: &str) -> Option<BrokerDeath> {
    let word =
        death_of(table, jobs_queue).and_then(|death| text(death, "reason")).or_else(|| {
            is_text(table, BROKER_QUEUE, jobs_queue).then(|| text(table, BROKER_REASON)).flatten()
        })?;
    Some(BrokerDeath { reason: BrokerReason::of(&word), queue: jobs_queue.to_owned() })
}

/// The newest `x-death` entry about this queue: the broker lists the newest first.
pub(super) fn death_of<'t>(table: &'t FieldTable, queue: &str) -> Option<&'t FieldTable> {
    let Some(AMQPValue::FieldArray(deaths)) = table.inner().get("x-death") else { return None };
    deaths.as_slice().iter().find_map(|death| match death {
        AMQPValue::FieldTable(death) => is_text(death, "queue", queue).then_some(death),
        _ => None,
    })
}

/// Whether a header equals this text, which may be longer than [`TEXT_CHARS_MAX`].
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

/// The properties of a replayed job: the publisher's, including the priority, without those that
/// the broker acts on, and with our headers. Attempts, deferrals, returns and the time when a
/// worker first saw the job are cleared.
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

/// The properties of a message in the audit queue.
pub(in crate::broker) fn of_audit(now_ms: i64) -> BasicProperties {
    of_job(now_ms).with_type("capture.audit".into())
}

/// Headers and properties as JSON objects, for operators and archives.
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

/// A header value as JSON. Values without a JSON type become strings.
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
