//! How a letter is written, for people and for programs.

use serde_json::{Value, json};

use super::super::desk::{Table, age, plain};
use crate::{
    dead_letters::Audited,
    domain::{letter::DeadLetter, replay::Policy},
};

/// A table of letters.
pub(super) fn table() -> Table<8> {
    Table::new([
        "CLASS",
        "CAPTURE REQUEST ID",
        "PAYMENT",
        "AMOUNT",
        "CODE OR REASON",
        "AGE",
        "ATTEMPTS",
        "REPLAY",
    ])
}

/// A letter as a row of it.
pub(super) fn row(letter: &DeadLetter, now_ms: i64) -> [String; 8] {
    let or_none = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), plain);
    [
        letter.class.name().to_owned(),
        or_none(letter.id()),
        or_none(letter.payment_id()),
        letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string()),
        code_or_reason(letter),
        letter.age_ms(now_ms).map_or_else(|| "-".to_owned(), age),
        letter.history.attempts.to_string(),
        Policy::of(letter.class, letter.signed).words().to_owned(),
    ]
}

fn code_or_reason(letter: &DeadLetter) -> String {
    match (&letter.broker_death, &letter.code, &letter.message) {
        (Some(death), ..) => format!("by the broker: {}", plain(death.reason.word())),
        (None, Some(text), _) | (None, None, Some(text)) => plain(text),
        (None, None, None) => "-".to_owned(),
    }
}

/// A letter as a JSON object.
pub(super) fn document(letter: &DeadLetter, now_ms: i64) -> Value {
    let Audited { capture_request_id, payment_id, capture_amount, code, dead_at, .. } =
        Audited::of(letter);
    let broker = letter.broker_death.as_ref();
    json!({
        "class": letter.class,
        "captureRequestId": capture_request_id,
        "paymentId": payment_id,
        "captureAmount": capture_amount,
        "code": code,
        "status": letter.status,
        "message": letter.message,
        "signed": letter.signed,
        "brokerReason": broker.map(|death| death.reason.word()),
        "brokerQueue": broker.map(|death| &death.queue),
        "deadAt": dead_at,
        "ageSeconds": letter.age_ms(now_ms).map(|ms| ms / 1000),
        "attempts": letter.history.attempts,
        "replays": letter.history.replays,
        "sent": letter.sent(),
        "parentCaptureRequestId": letter.history.parent,
        "originCaptureRequestId": letter.history.origin,
        "replay": Policy::of(letter.class, letter.signed),
    })
}
