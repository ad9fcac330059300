//! How a dead letter is printed, for people and for programs.

use serde_json::{Value, json};

use crate::{
    cli::{
        desk::{age, plain},
        table::TextTable,
    },
    dead_letters::{Audited, Captures},
    domain::{
        money::major,
        replay::{ReplayPolicy, dead_letter::DeadLetter},
    },
};

/// An empty table of dead letters.
pub(super) fn table() -> TextTable<8> {
    TextTable::new([
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

/// The sum of each currency over distinct captures, in the major unit.
pub(super) fn sums(captures: &Captures) -> Vec<String> {
    let sums = captures.money().iter();
    sums.map(|(currency, sum)| format!("{} {}", currency.code(), major(*currency, *sum))).collect()
}

/// The distinct captures and their money: `1 distinct capture, HKD 738.88`.
pub(super) fn captures_in_words(captures: &Captures) -> String {
    let noun = if captures.distinct() == 1 { "distinct capture" } else { "distinct captures" };
    let mut words = vec![format!("{} {noun}", captures.distinct())];
    words.extend(sums(captures));
    words.join(", ")
}

/// A dead letter as a row of [`table`].
pub(super) fn row(dead_letter: &DeadLetter, now_ms: i64) -> [String; 8] {
    let or_none = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), plain);
    [
        dead_letter.class.name().to_owned(),
        or_none(dead_letter.id()),
        or_none(dead_letter.payment_id()),
        dead_letter.amount().map_or_else(|| "-".to_owned(), |amount| amount.to_string()),
        code_or_reason(dead_letter),
        dead_letter.age_ms(now_ms).map_or_else(|| "-".to_owned(), age),
        dead_letter.history.attempts.to_string(),
        ReplayPolicy::of(dead_letter.class, dead_letter.signed).words().to_owned(),
    ]
}

fn code_or_reason(dead_letter: &DeadLetter) -> String {
    match (&dead_letter.broker_death, &dead_letter.code, &dead_letter.message) {
        (Some(death), ..) => format!("by the broker: {}", plain(death.reason.word())),
        (None, Some(text), _) | (None, None, Some(text)) => plain(text),
        (None, None, None) => "-".to_owned(),
    }
}

/// A dead letter as a JSON object.
pub(super) fn document(dead_letter: &DeadLetter, now_ms: i64) -> Value {
    let Audited { capture_request_id, payment_id, capture_amount, code, dead_at, .. } =
        Audited::of(dead_letter);
    let broker = dead_letter.broker_death.as_ref();
    json!({
        "class": dead_letter.class,
        "captureRequestId": capture_request_id,
        "paymentId": payment_id,
        "captureAmount": capture_amount,
        "code": code,
        "status": dead_letter.status,
        "message": dead_letter.message,
        "signed": dead_letter.signed,
        "brokerReason": broker.map(|death| death.reason.word()),
        "brokerQueue": broker.map(|death| &death.queue),
        "deadAt": dead_at,
        "ageSeconds": dead_letter.age_ms(now_ms).map(|ms| ms / 1000),
        "attempts": dead_letter.history.attempts,
        "replays": dead_letter.history.replays,
        "sent": dead_letter.sent(),
        "parentCaptureRequestId": dead_letter.history.parent,
        "originCaptureRequestId": dead_letter.history.origin,
        "replay": ReplayPolicy::of(dead_letter.class, dead_letter.signed),
    })
}
