//! Headers and properties as JSON.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Map, Value, json};

/// Headers and properties as JSON objects, for operators and archives.
pub(in crate::broker) fn to_json(properties: &BasicProperties) -> (Value, Value) {
    let headers = properties.headers().as_ref().map_or_else(Map::new, object);
    let mut all = Map::new();
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
            all.insert(name.into(), json!(value.as_str()));
        }
    }
    let numbers = [
        ("deliveryMode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            all.insert(name.into(), json!(value));
        }
    }
    (Value::Object(headers), Value::Object(all))
}

fn object(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), value_to_json(value))).collect()
}

/// A header value as JSON. Values without a JSON type become strings.
fn value_to_json(value: &AMQPValue) -> Value {
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
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(value_to_json).collect(),
        AMQPValue::FieldTable(table) => Value::Object(object(table)),
        AMQPValue::DecimalValue(decimal) => json!(format!("{decimal:?}")),
        AMQPValue::Void => Value::Null,
    }
}
