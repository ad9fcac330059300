//! The replies before they are signed, and how a call and its step change the ledger. Pure.

use serde_json::{Map, Value, json};

use super::{
    ledger::{
        CaptureProgress, Ledger, LedgerEntry, LedgerPayment, LedgerResult, Movement, PostedCapture,
    },
    script::{Step, Way},
};
use crate::domain::capture::class::{CAPTURE_IN_PROCESS, Codes};

/// A reply before it is signed.
pub(super) struct Draft {
    pub(super) code: String,
    pub(super) status: String,
    pub(super) message: String,
    /// The fields beside `result`.
    pub(super) fields: Map<String, Value>,
    pub(super) signed: bool,
}

impl Draft {
    pub(super) fn of(code: &str, status: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            status: status.to_owned(),
            message: message.into(),
            fields: Map::new(),
            signed: true,
        }
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = Map::new();
        body.insert(
            "result".to_owned(),
            json!({
                "resultCode": self.code,
                "resultStatus": self.status,
                "resultMessage": self.message,
            }),
        );
        body.extend(self.fields.clone());
        Value::Object(body).to_string().into_bytes()
    }
}

/// Applies a capture and its step to the ledger, and drafts the reply.
pub(super) fn capture(ledger: &mut Ledger, asked: &PostedCapture, step: &Step, now: &str) -> Draft {
    let Way::Code(code) = &step.answer else {
        let acts = step.executes || step.answer.is_of_the_ledger();
        return if acts {
            captured(ledger.capture(asked, now))
        } else {
            Draft::of("UNKNOWN_EXCEPTION", "U", "not executed")
        };
    };
    if step.executes {
        ledger.capture(asked, now);
    } else if code == CAPTURE_IN_PROCESS {
        ledger.begin(asked, step.inquiries, &step.resolves_to);
        if ledger.is_final(&asked.id) {
            return captured(ledger.capture(asked, now));
        }
    } else if step.status_of(code) == "F" && is_about_the_capture(code) {
        if ledger.is_final(&asked.id) {
            return captured(ledger.capture(asked, now));
        }
        ledger.fail(asked, code);
    }
    scripted(step, code)
}

/// Whether a failure with this code is about the capture itself. The gateway checks access and form
/// before it looks up the id, so an `F` of those classes says nothing about the capture.
fn is_about_the_capture(code: &str) -> bool {
    use crate::domain::capture::class::Class::{Access, Conflict, Request};
    !matches!(Codes::default().class_of(code), Access | Request | Conflict)
}

/// The reply with a code that the script sets.
pub(super) fn scripted(step: &Step, code: &str) -> Draft {
    Draft { signed: step.signed, ..Draft::of(code, step.status_of(code), "set by the script") }
}

fn captured(result: LedgerResult) -> Draft {
    let mut draft = Draft::of(&result.code, result.status, message(&result.code));
    if let Some(movement) = result.movement
        && let Ok(Value::Object(fields)) = serde_json::to_value(&movement)
    {
        draft.fields = fields;
        draft.fields.extend(acquirer(&movement));
    }
    draft
}

/// The fields of a reply about the acquirer.
fn acquirer(movement: &Movement) -> [(String, Value); 2] {
    let info = json!({"acquirerName": "SANDBOX", "acquirerTransactionId": movement.capture_id});
    [
        ("acquirerReferenceNo".to_owned(), json!(movement.capture_id)),
        ("acquirerInfo".to_owned(), info),
    ]
}

fn message(code: &str) -> &'static str {
    match code {
        "SUCCESS" => "success.",
        CAPTURE_IN_PROCESS => "The capture is processing.",
        _ => "set by the ledger",
    }
}

/// The reply to an inquiry.
pub(super) fn inquired(
    payment_id: &str,
    payment: &LedgerPayment,
    seen: Option<Vec<(LedgerEntry, LedgerResult)>>,
) -> Draft {
    let Some(seen) = seen else {
        return Draft::of("ORDER_NOT_EXIST", "F", "The order does not exist.");
    };
    let transactions: Vec<Value> =
        seen.iter().map(|(entry, result)| transaction(entry, result)).collect();
    let transactions =
        if transactions.is_empty() { Value::Null } else { Value::Array(transactions) };
    let mut draft = Draft::of("SUCCESS", "S", "success.");
    draft.fields.insert("paymentId".to_owned(), json!(payment_id));
    draft.fields.insert("paymentStatus".to_owned(), json!("SUCCESS"));
    if let Some(authorized) = payment.authorized {
        draft.fields.insert("paymentAmount".to_owned(), json!(authorized));
    }
    if let Some(until) = &payment.auth_expiry_time {
        draft.fields.insert("authExpiryTime".to_owned(), json!(until));
    }
    if let Some(status) = &payment.auth_review_status {
        draft.fields.insert("authReviewStatus".to_owned(), json!(status));
    }
    draft.fields.insert("transactions".to_owned(), transactions);
    draft
}

fn transaction(entry: &LedgerEntry, result: &LedgerResult) -> Value {
    let status = match entry.state {
        CaptureProgress::Captured(_) => "SUCCESS",
        CaptureProgress::Failed(_) => "FAIL",
        CaptureProgress::InProcess { .. } | CaptureProgress::Unseen => "PROCESSING",
    };
    let mut item = json!({
        "transactionType": "CAPTURE",
        "transactionStatus": status,
        "transactionRequestId": entry.asked.id,
        "transactionAmount": entry.asked.amount,
        "transactionResult": {
            "resultCode": result.code,
            "resultStatus": result.status,
            "resultMessage": message(&result.code),
        },
    });
    if let Some(movement) = &result.movement
        && let Some(item) = item.as_object_mut()
    {
        item.insert("transactionId".to_owned(), json!(movement.capture_id));
        item.insert("transactionTime".to_owned(), json!(movement.capture_time));
        item.extend(acquirer(movement));
    }
    item
}

/// Applies the faults that leave a reply readable.
pub(super) fn change(way: &Way, draft: &mut Draft) {
    let mut put = |name: &str, value: Value| {
        if let Some(field) = draft.fields.get_mut(name) {
            *field = value;
        }
    };
    match way {
        Way::OtherId => put("captureRequestId", json!("another-id")),
        Way::OtherPayment => put("paymentId", json!("another-payment")),
        Way::OtherAmount => put("captureAmount", json!({"currency": "HKD", "value": "1"})),
        Way::UnknownStatus => "X".clone_into(&mut draft.status),
        Way::Unsigned => draft.signed = false,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inquiry_shows_the_fields_of_the_authorization() {
        let payment = LedgerPayment {
            auth_expiry_time: Some("2026-12-01T00:00:00Z".to_owned()),
            auth_review_status: Some("PROCESSING".to_owned()),
            ..LedgerPayment::default()
        };
        let fields = inquired("p", &payment, Some(Vec::new())).fields;
        assert_eq!(fields["authExpiryTime"], "2026-12-01T00:00:00Z");
        assert_eq!(fields["authReviewStatus"], "PROCESSING");
        assert_eq!(fields["transactions"], Value::Null);
        assert!(
            !inquired("p", &LedgerPayment::default(), None).fields.contains_key("authReviewStatus")
        );
    }
}
