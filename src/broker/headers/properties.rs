//! The properties and headers of the messages that this program publishes. Those of the original
//! are copied, without those that the broker would act on.

use std::collections::BTreeMap;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    job::priority,
    names::{
        ACTED_ON, ACTED_ON_PREFIXES, ATTEMPT, CLASS, CODE, DEAD_AT, DEFERRALS, FIRST_SEEN,
        LAST_CODE, LAST_STATUS, MESSAGE, ORIGIN, OURS, PARENT, PRIORITY, REPLAYS, RETURNS, SENT,
        SIGNED, STATUS, TRACEPARENT, TRACESTATE,
    },
    values::{TEXT_CHARS_MAX, bounded, entry_size, int, long},
};
use crate::domain::{
    job::{history::History, trace::TRACESTATE_BYTES_MAX},
    settlement::DeadLetterReason,
};

/// The maximum length of `x-capture-message`, in characters.
pub(super) const MESSAGE_CHARS_MAX: usize = 500;
/// The broker's default `frame_max` is 128 KiB, and a message's properties travel in one frame.
pub(super) const HEADERS_BYTES_MAX: usize = 120 * 1024;
const PERSISTENT: u8 = 2;
/// The one `reply_to` that the broker acts on (direct reply-to).
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The properties of a republished job: the publisher's, without those that the broker acts on, and
/// with the headers of this program.
pub(in crate::broker) fn carry(
    original: &BasicProperties,
    history: &History,
    reason: Option<&DeadLetterReason>,
) -> BasicProperties {
    let mut ours = BTreeMap::new();
    let mut put = |name: &str, value: AMQPValue| ours.insert(ShortString::from(name), value);
    put(ATTEMPT, int(history.attempts));
    put(DEFERRALS, int(history.deferrals));
    put(FIRST_SEEN, AMQPValue::LongLongInt(history.first_seen_ms));
    if let Some(word) = &history.last_reply {
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
    if let Some(reason) = reason {
        put(CLASS, long(reason.class.name()));
        for (name, value) in [(CODE, &reason.code), (STATUS, &reason.status)] {
            if let Some(value) = value {
                put(name, long(&bounded(value, TEXT_CHARS_MAX)));
            }
        }
        put(MESSAGE, long(&bounded(&reason.message, MESSAGE_CHARS_MAX)));
        put(DEAD_AT, AMQPValue::LongLongInt(reason.dead_at_ms));
        put(SIGNED, AMQPValue::Boolean(reason.signed));
    }
    without_what_acts(original).with_headers(fit(original.headers().as_ref(), ours).into())
}

/// The properties of the result message of a job.
pub(in crate::broker) fn of_result(original: &BasicProperties, now_ms: i64) -> BasicProperties {
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
pub(in crate::broker) fn of_job(now_ms: i64) -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_type("capture.job".into())
        .with_app_id("capture-worker".into())
        .with_timestamp(u64::try_from(now_ms / 1000).unwrap_or(0))
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

pub(super) fn with_priority(properties: BasicProperties, priority: Option<u8>) -> BasicProperties {
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
pub(super) fn inert(original: &BasicProperties) -> BasicProperties {
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
