//! What the headers say about a dead letter.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use super::{
    job::{read_history, read_job},
    names::{BROKER_QUEUE, BROKER_REASON, CODE, DEAD_AT, MESSAGE, SIGNED, STATUS},
    properties::MESSAGE_CHARS_MAX,
    values::{DAY_MS, YEAR_2020_MS, bounded, integer, text},
};
use crate::domain::{
    capture::class::Class,
    job::forward::ForwardFields,
    replay::dead_letter::{BrokerDeath, BrokerReason, DeadLetter},
};

/// Reads a message in the dead-letter queue of a class. `jobs_queue` is the name of the queue of
/// jobs, by which `x-death` is read.
pub(in crate::broker) fn read_dead_letter(
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
    let history = read_history(properties, false, now_ms);
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
