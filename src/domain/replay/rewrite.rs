//! Changes only those fields of a job's body that a replay may change, and no other byte.

use serde_json::value::RawValue;

use crate::domain::{
    job::{
        BODY_BYTES_MAX, Job, JobError,
        fields::{self, JOB_FIELDS},
        text_of,
    },
    money::Money,
};

/// The fields to change. `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::domain) struct Edits {
    /// The new `captureRequestId`, which replaces the old one.
    pub(in crate::domain) capture_request_id: Option<String>,
    /// The new amount, written as `captureAmount` in place of the amount field that the body has.
    pub(in crate::domain) amount: Option<Money>,
    /// The new `expiresAt` in RFC 3339, which replaces the old one or is added.
    pub(in crate::domain) expires_at: Option<String>,
}

/// Returns the body of a valid job with these changes.
pub(in crate::domain) fn rewrite(body: &[u8], edits: &Edits) -> Result<Vec<u8>, JobError> {
    let text = text_of(body)?;
    let fields = fields::read(text, JOB_FIELDS, &[])
        .map_err(|error| JobError::NotAnObject(error.to_string()))?;
    let [capture_request_id, _, capture_amount, amount, expires_at, _] = *fields.values();
    let mut changes = Vec::new();
    if let (Some(id), Some(old)) = (&edits.capture_request_id, capture_request_id) {
        changes.push((span(text, old), json(id)));
    }
    if let Some(money) = &edits.amount {
        changes.extend(amount_changes(text, capture_amount, amount, money));
    }
    if let Some(time) = &edits.expires_at {
        match expires_at {
            Some(old) => changes.push((span(text, old), json(time))),
            None => {
                let end = text.rfind('}').unwrap_or(text.len());
                changes.push(((end, end), format!(",\"expiresAt\":{}", json(time))));
            }
        }
    }
    changes.sort_unstable();
    let (mut changed, mut at) = (String::with_capacity(text.len() + 128), 0);
    for ((start, end), new) in changes {
        changed.push_str(&text[at..start]);
        changed.push_str(&new);
        at = end;
    }
    changed.push_str(&text[at..]);
    // A byte order mark stays where it is.
    let mark = &body[..body.len() - text.len()];
    let changed = [mark, changed.as_bytes()].concat();
    if changed.len() > BODY_BYTES_MAX {
        return Err(JobError::TooLong(changed.len()));
    }
    // The changed body must be a valid job again.
    Job::parse(&changed).map_err(|malformed| malformed.reason)?;
    Ok(changed)
}

type Change = ((usize, usize), String);

/// A field that is null counts as absent, but its name must not be written a second time.
fn amount_changes(
    text: &str,
    capture_amount: Option<&RawValue>,
    amount: Option<&RawValue>,
    money: &Money,
) -> Vec<Change> {
    let replaced = |old: &RawValue| {
        let value = span(text, old);
        let field = key_start(text, value.0);
        ((field, value.1), format!("\"captureAmount\":{}", json(money)))
    };
    match (capture_amount, amount) {
        (Some(old), Some(other)) => {
            vec![replaced(old), (span(text, other), "null".to_owned())]
        }
        (Some(old), None) | (None, Some(old)) => vec![replaced(old)],
        (None, None) => Vec::new(),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The byte range of a value in the text that it was read from.
fn span(text: &str, value: &RawValue) -> (usize, usize) {
    let start = value.get().as_ptr().addr() - text.as_ptr().addr();
    (start, start + value.get().len())
}

/// Where the key before a value begins. The keys of amounts contain no quotation mark, even when
/// they are escaped.
fn key_start(text: &str, value: usize) -> usize {
    let quotes = text[..value].rmatch_indices('"').map(|(at, _)| at);
    quotes.take(2).last().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(id: Option<&str>, amount: Option<&str>, expires_at: Option<&str>) -> Edits {
        Edits {
            capture_request_id: id.map(str::to_owned),
            amount: amount.map(|value| Money::from_smallest("HKD", value).unwrap()),
            expires_at: expires_at.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(body: &str, edits: &Edits, expected: &str) {
        assert_eq!(String::from_utf8(rewrite(body.as_bytes(), edits).unwrap()).unwrap(), expected);
    }

    #[test]
    fn only_the_named_fields_change() {
        let body = " {\"x\":\"captureRequestId\", \"captureRequestId\" :\"c\\u0031\",\n\
            \"paymentId\":\"p\",\"amount\":{\"value\":\"1.50\",\"currency\":\"HKD\"},\
            \"x\":[1.0e5]} ";
        check(body, &Edits::default(), body);
        check(
            body,
            &edits(Some("cw-\"1"), None, None),
            &body.replace("\"c\\u0031\"", "\"cw-\\\"1\""),
        );
        check(
            body,
            &edits(None, Some("70"), None),
            &body.replace(
                "\"amount\":{\"value\":\"1.50\",\"currency\":\"HKD\"}",
                "\"captureAmount\":{\"currency\":\"HKD\",\"value\":\"70\"}",
            ),
        );
        check(
            body,
            &edits(None, None, Some("2026-12-01T00:00:00Z")),
            &body.replace("[1.0e5]}", "[1.0e5],\"expiresAt\":\"2026-12-01T00:00:00Z\"}"),
        );
    }

    #[test]
    fn fields_are_found_in_any_order_and_with_any_escapes() {
        let body = concat!(
            r#"{"expiresAt":"2026-01-01T00:00:00Z","captur\u0065Amount" : "#,
            r#"{"currency":"HKD","value":"9"},"paymentId":"p","captureRequestId":"c"}"#
        );
        check(
            body,
            &edits(Some("d"), Some("8"), Some("2027-01-01T00:00:00Z")),
            concat!(
                r#"{"expiresAt":"2027-01-01T00:00:00Z","captureAmount":"#,
                r#"{"currency":"HKD","value":"8"},"paymentId":"p","captureRequestId":"d"}"#
            ),
        );
    }

    #[test]
    fn a_null_amount_is_replaced_by_the_lowered_one() {
        let lowered = edits(None, Some("7"), Some("2027-01-01T00:00:00Z"));
        check(
            concat!(
                r#"{"captureRequestId":"c","paymentId":"p","captureAmount":null,"#,
                r#""amount":{"currency":"HKD","value":"1"},"expiresAt":null}"#
            ),
            &lowered,
            concat!(
                r#"{"captureRequestId":"c","paymentId":"p","#,
                r#""captureAmount":{"currency":"HKD","value":"7"},"#,
                r#""amount":null,"expiresAt":"2027-01-01T00:00:00Z"}"#
            ),
        );
        check(
            concat!(
                r#"{"captureRequestId":"c","paymentId":"p","amount":null,"#,
                r#""captureAmount":{"currency":"HKD","value":"9"}}"#
            ),
            &edits(None, Some("7"), None),
            concat!(
                r#"{"captureRequestId":"c","paymentId":"p","amount":null,"#,
                r#""captureAmount":{"currency":"HKD","value":"7"}}"#
            ),
        );
    }

    #[test]
    fn a_byte_order_mark_and_forwarded_fields_stay_as_they_are() {
        check(
            "\u{feff}{\"captureType\" : \"NON_FINAL\",\"captureRequestId\":\"c\",\
             \"paymentId\":\"p\",\"captureAmount\":{\"currency\":\"HKD\",\"value\":\"9\"},\
             \"goods\":[1.0e5]}",
            &edits(Some("d"), None, None),
            "\u{feff}{\"captureType\" : \"NON_FINAL\",\"captureRequestId\":\"d\",\
             \"paymentId\":\"p\",\"captureAmount\":{\"currency\":\"HKD\",\"value\":\"9\"},\
             \"goods\":[1.0e5]}",
        );
    }

    #[test]
    fn a_body_that_would_grow_too_long_is_refused() {
        let amount = r#"{"currency":"HKD","value":"9"}"#;
        let body = format!(
            r#"{{"captureRequestId":"c","paymentId":"p","captureAmount":{amount},"x":"{}"}}"#,
            "x".repeat(BODY_BYTES_MAX - 100)
        );
        assert!(Job::parse(body.as_bytes()).is_ok());
        let long = edits(Some(&"d".repeat(64)), None, None);
        assert!(matches!(rewrite(body.as_bytes(), &long), Err(JobError::TooLong(_))));
    }
}
