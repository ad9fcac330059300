//! What the transactions of a payment show about one capture.

use super::{
    class::{Class, Codes, PAYMENT_IN_PROCESS, SUCCESS},
    family::{Descendants, Living, living_forebear},
    judge::{in_doubt, no_evidence},
    outcome::{Capture, DoubtKind, Outcome, Verdict},
    reply::{InquiryBody, Standing, Transaction},
};
use crate::domain::job::{
    Job,
    history::{History, LastWord},
};

/// What a successful inquiry shows about one capture.
pub(super) enum Shown {
    Proves(Outcome),
    NoSuchCapture,
}

/// Judges one capture by the transactions of its payment. SUCCESS overrides PROCESSING, and
/// PROCESSING overrides FAIL. A transaction that can't be read or contradicts itself is no
/// evidence, and it prevents others from proving a failure or that there is no capture.
pub(super) fn shown(body: &InquiryBody, job: &Job, history: &History, codes: &Codes) -> Shown {
    match &body.payment_id {
        Some(payment_id) if *payment_id == job.payment_id => {}
        Some(_) => {
            let reason = "the reply to the inquiry is about another paymentId";
            return Shown::Proves(no_evidence(reason));
        }
        None => return Shown::Proves(no_evidence("the reply to the inquiry names no paymentId")),
    }
    let Some(transactions) = &body.transactions else {
        let reason = "the reply to the inquiry has no readable transactions";
        return Shown::Proves(no_evidence(reason));
    };
    let is_ours = |item: &&Transaction| item.request_id.as_ref() == Some(&job.capture_request_id);
    let ours: Vec<&Transaction> = transactions.iter().filter(is_ours).collect();
    let with = |standing| -> Vec<&Transaction> {
        ours.iter().filter(|item| item.standing() == standing).copied().collect()
    };
    let succeeded = with(Standing::Captured);
    if !succeeded.is_empty() {
        return Shown::Proves(inquired_success(&succeeded, job));
    }
    if !with(Standing::InProcess).is_empty() {
        let word = Some(LastWord::new(PAYMENT_IN_PROCESS, "U"));
        let reason = "the gateway is still processing the capture".into();
        return Shown::Proves(in_doubt(DoubtKind::Unknown, reason, word));
    }
    if !with(Standing::Unclear).is_empty() {
        let reason = "transactionType, transactionStatus and transactionResult of the capture do \
            not agree or have unknown values";
        return Shown::Proves(no_evidence(reason));
    }
    if let Some(item) = ours.first() {
        return Shown::Proves(Outcome::Failed(inquired_failure(item, codes)));
    }
    let id = &job.capture_request_id;
    if let Some(living) = Descendants::of(transactions, id).nearest() {
        return Shown::Proves(Outcome::Failed(beside(living, "the fresh id that replaced it")));
    }
    if let Some(living) = living_forebear(transactions, id, history) {
        return Shown::Proves(Outcome::Failed(beside(&living, "the id that it replaces")));
    }
    if transactions.iter().any(Transaction::is_anonymous_capture) {
        let reason =
            "the payment has a capture without a transactionRequestId, which may be this one";
        return Shown::Proves(no_evidence(reason));
    }
    Shown::NoSuchCapture
}

/// The gateway does not know the id, but knows another of its family that captured or may still
/// capture.
fn beside(living: &Living, kin: &str) -> Verdict {
    Verdict {
        class: Class::Conflict,
        code: None,
        message: Some(format!("{kin} has captured or may still capture: {}", living.id)),
        signed: true,
    }
}

fn inquired_success(succeeded: &[&Transaction], job: &Job) -> Outcome {
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
        return no_evidence("the capture succeeded, but its amount can't be read");
    }
    let amount = amounts().flatten().flatten().next();
    Outcome::Failed(Verdict {
        class: Class::Conflict,
        code: None,
        message: amount.map(|amount| format!("this id captured another amount: {amount}")),
        signed: true,
    })
}

fn inquired_failure(item: &Transaction, codes: &Codes) -> Verdict {
    let code = item.result.as_ref().map(|result| result.code.clone()).filter(|c| !c.is_empty());
    let class = match (item.status.as_deref(), &code) {
        (Some("CANCELLED"), _) => Class::Order,
        (_, Some(code)) => codes.class_of(code),
        (_, None) => Class::Provider,
    };
    let message = item.result.as_ref().and_then(|result| result.message.clone());
    Verdict { class, code, message, signed: true }
}
