//! Header values: how they are read, written and measured.

use lapin::types::{AMQPValue, FieldTable, ShortString};

/// The maximum length of a text header, in characters: publishers can write these headers, too.
pub(super) const TEXT_CHARS_MAX: usize = 128;
pub(super) const YEAR_2020_MS: i64 = 1_577_836_800_000;
pub(super) const DAY_MS: i64 = 86_400_000;

pub(super) fn int(number: u32) -> AMQPValue {
    AMQPValue::LongInt(i32::try_from(number).unwrap_or(i32::MAX))
}

pub(super) fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub(super) fn bounded(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

pub(super) fn integer(table: &FieldTable, name: &str) -> Option<i64> {
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

pub(super) fn number(table: &FieldTable, name: &str) -> Option<u32> {
    integer(table, name).filter(|number| *number >= 0).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}

/// Whether a header is present and not `false`.
pub(super) fn flag(table: &FieldTable, name: &str) -> bool {
    table.inner().get(name).is_some_and(|value| *value != AMQPValue::Boolean(false))
}

pub(super) fn text(table: &FieldTable, name: &str) -> Option<String> {
    text_or_empty(table, name).filter(|text| !text.is_empty())
}

pub(super) fn text_or_empty(table: &FieldTable, name: &str) -> Option<String> {
    let text = match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.to_owned(),
        AMQPValue::ShortString(text) => text.to_string(),
        _ => return None,
    };
    (text.chars().count() <= TEXT_CHARS_MAX).then_some(text)
}

pub(super) fn entry_size(name: &ShortString, value: &AMQPValue) -> usize {
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
pub(in crate::broker) fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| entry_size(name, value)).sum::<usize>()
}
