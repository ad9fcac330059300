//! The properties of a message that is republished to its own queue, so that the broker counts its
//! deliveries from zero.

use std::collections::BTreeMap;

use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};

use super::{
    dead_letter::{death_of, died_at_ms},
    names::{BROKER_QUEUE, BROKER_REASON, DEAD_AT, DELIVERY_COUNT},
    properties::{HEADERS_BYTES_MAX, inert, with_priority},
    values::{entry_size, long, number, text},
};

/// The headers that the broker itself writes on every delivery.
const WRITTEN_BY_THE_BROKER: [&str; 2] = [DELIVERY_COUNT, "x-acquired-count"];
/// The headers by which the broker would route copies to other queues.
const ROUTED_BY: [&str; 2] = ["CC", "BCC"];

/// How often the message was returned to its queue, as the broker counted.
pub(in crate::broker) fn delivery_count(properties: &BasicProperties) -> u32 {
    properties.headers().as_ref().and_then(|table| number(table, DELIVERY_COUNT)).unwrap_or(0)
}

/// All properties and headers unchanged, except those that the broker would act on: a `user_id` of
/// another user closes the channel, `expiration` would remove the message, and `CC` and `BCC` would
/// publish it to other queues as well.
///
/// If the broker itself dead-lettered the message, our own headers keep its reason, queue and time,
/// because whether `x-death` survives a publish depends on the broker's version.
pub(in crate::broker) fn republished(
    original: &BasicProperties,
    jobs_queue: &str,
) -> BasicProperties {
    let mut properties = with_priority(inert(original), *original.priority());
    if let Some(mode) = original.delivery_mode() {
        properties = properties.with_delivery_mode(*mode);
    }
    let Some(table) = original.headers() else { return properties };
    let mut headers = table.inner().clone();
    for name in WRITTEN_BY_THE_BROKER.into_iter().chain(ROUTED_BY) {
        headers.remove(name);
    }
    let mut added = BTreeMap::<ShortString, AMQPValue>::new();
    if let Some(death) = death_of(table, jobs_queue)
        && let Some(reason) = text(death, "reason")
    {
        added.insert(BROKER_REASON.into(), long(&reason));
        added.insert(BROKER_QUEUE.into(), long(jobs_queue));
        if let Some(at_ms) = died_at_ms(death) {
            added.insert(DEAD_AT.into(), AMQPValue::LongLongInt(at_ms));
        }
    }
    // If the publisher's headers leave no room in the frame, only x-death keeps the reason.
    let size = |table: &BTreeMap<ShortString, AMQPValue>| -> usize {
        table.iter().map(|(name, value)| entry_size(name, value)).sum()
    };
    if size(&headers) + size(&added) <= HEADERS_BYTES_MAX {
        headers.extend(added);
    }
    properties.with_headers(headers.into())
}
