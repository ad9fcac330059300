//! What the transactions of a payment show about one capture.

use super::{
    class::{Class, Codes, PAYMENT_IN_PROCESS, SUCCESS},
    family::{ActiveId, Descendants, active_ancestor},
    outcome::{Capture, Doubt, DoubtKind, FailureVerdict, Outcome},
    reply::{InquiryBody, Standing, Transaction},
};
use crate::domain::job::{
    Job,
    history::{History, LastReply},
};

/// What a successful inquiry shows about one capture.
pub(super) enum TransactionEvidence {
    Proves(Outcome),
    NoSuchCapture,
}

/// Judges one capture by the transactions of its payment. SUCCESS overrides PROCESSING, and
/// PROCESSING overrides FAIL. A transaction that can't be read or contradicts itself is no
/// evidence, and it prevents others from proving a failure or that there is no capture.
pub(super) fn judge_transactions(
    body: &InquiryBody,
    job: &Job,
    history: &History,
    codes: &Codes,
) -> TransactionEvidence {
    match &body.payment_id {
        Some(payment_id) if *payment_id == job.payment_id => {}
        Some(_) => {
            let reason = "the reply to the inquiry is about another paymentId";
            return TransactionEvidence::Proves(Doubt::no_evidence(reason));
        }
        None => {
            return TransactionEvidence::Proves(Doubt::no_evidence(
                "the reply to the inquiry names no paymentId",
            ));
        }
    }
    let Some(transactions) = &body.transactions else {
        let reason = "the reply to the inquiry has no readable transactions";
        return TransactionEvidence::Proves(Doubt::no_evidence(reason));
    };
    let id = &job.capture_request_id;
    if let Some(item) = Transaction::most_telling(transactions, id) {
        return TransactionEvidence::Proves(match item.standing() {
            Standing::Captured => inquired_success(transactions, job),
            Standing::InProcess => {
                let last_reply = Some(LastReply::new(PAYMENT_IN_PROCESS, "U"));
                let reason = "the gateway is still processing the capture".into();
                Doubt::because(DoubtKind::Unknown, reason, last_reply)
            }
            Standing::Unclear => Doubt::no_evidence(
                "transactionType, transactionStatus and transactionResult of the capture do not \
                 agree or have unknown values",
            ),
            Standing::Failed => Outcome::Failed(inquired_failure(item, codes)),
        });
    }
    if let Some(active) = Descendants::of(transactions, id).nearest() {
        return TransactionEvidence::Proves(Outcome::Failed(beside(
            active,
            "the fresh id that replaced it",
        )));
    }
    if let Some(active) = active_ancestor(transactions, id, history) {
        return TransactionEvidence::Proves(Outcome::Failed(beside(
            &active,
            "the id that it replaces",
        )));
    }
    if transactions.iter().any(Transaction::is_anonymous_capture) {
        let reason =
            "the payment has a capture without a transactionRequestId, which may be this one";
        return TransactionEvidence::Proves(Doubt::no_evidence(reason));
    }
    TransactionEvidence::NoSuchCapture
}

/// The gateway does not know the id, but knows another of its family that captured or may still
/// capture.
fn beside(active: &ActiveId, kin: &str) -> FailureVerdict {
    FailureVerdict {
        class: Class::Conflict,
        code: None,
        message: Some(format!("{kin} has captured or may still capture: {}", active.id)),
        signed: true,
    }
}

/// The outcome of a job whose id has captured, by the amounts of its captures.
fn inquired_success(transactions: &[Transaction], job: &Job) -> Outcome {
    let id = Some(&job.capture_request_id);
    let captures = transactions.iter().filter(|item| item.request_id.as_ref() == id);
    let succeeded: Vec<&Transaction> =
        captures.filter(|item| item.standing() == Standing::Captured).collect();
    let amounts = || succeeded.iter().map(|item| &item.amount);
    if let Some(item) = succeeded.iter().find(|item| item.amount == Some(Ok(job.amount))) {
        return Outcome::Captured(Capture {
            code: SUCCESS.into(),
            message: item.result.as_ref().and_then(|result| result.message.clone()),
            capture_id: item.id.clone(),
            capture_time: item.time.clone(),
            acquirer_reference_no: item.acquirer_reference_no.clone(),
            acquirer_info: item.acquirer_info.clone(),
        });
    }
    if amounts().any(|amount| !matches!(amount, Some(Ok(_)))) {
        return Doubt::no_evidence("the capture succeeded, but its amount can't be read");
    }
    let amount = amounts().flatten().flatten().next();
    Outcome::Failed(FailureVerdict {
        class: Class::Conflict,
        code: None,
        message: amount.map(|amount| format!("this id captured another amount: {amount}")),
        signed: true,
    })
}

fn inquired_failure(item: &Transaction, codes: &Codes) -> FailureVerdict {
    let code = item.result.as_ref().map(|result| result.code.clone()).filter(|c| !c.is_empty());
    let class = match (item.status.as_deref(), &code) {
        (Some("CANCELLED"), _) => Class::Order,
        (_, Some(code)) => codes.class_of(code),
        (_, None) => Class::Provider,
    };
    let message = item.result.as_ref().and_then(|result| result.message.clone());
    FailureVerdict { class, code, message, signed: true }
}
