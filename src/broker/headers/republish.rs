//! The properties of a message that is republished to the queue that it lies in, so that the broker
//! counts its deliveries from the beginning.

use super::{
    letter::{death_of, died_at_ms},
    *,
};

/// What the broker writes itself on every delivery.
const WRITTEN_BY_THE_BROKER: [&str; 2] = [DELIVERY_COUNT, "x-acquired-count"];
/// Header names that the broker would route by.
const ROUTED_BY: [&str; 2] = ["CC", "BCC"];

/// How often the message was returned to its queue, by the broker's count.
pub(in crate::broker) fn delivery_count(properties: &BasicProperties) -> u32 {
    properties.headers().as_ref().and_then(|table| number(table, DELIVERY_COUNT)).unwrap_or(0)
}

/// All properties and headers as they are, without those by which the broker would act on the
/// publish: `user_id` of another user closes the channel, `expiration` would remove the message,
/// `CC` and `BCC` would publish it elsewhere too.
///
/// A dead letter that the broker made gets its reason, its queue and its time as headers of our
/// own, because whether `x-death` survives a publish depends on the broker's version.
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
    // A publisher that filled its frame to the brim leaves no room: then x-death has to do.
    let size = |table: &BTreeMap<ShortString, AMQPValue>| -> usize {
        table.iter().map(|(name, value)| entry_size(name, value)).sum()
    };
    if size(&headers) + size(&added) <= HEADERS_BYTES_MAX {
        headers.extend(added);
    }
    properties.with_headers(headers.into())
}
