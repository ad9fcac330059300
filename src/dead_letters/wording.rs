//! Refusals in words: why a dead letter stays, and what can safely be done instead. Audit records,
//! JSON and the terminal have the same sentences.

use crate::domain::replay::refusal::{
    DiscardRefusal, EvidenceRefusal, LimitRefusal, PolicyRefusal, RecordRefusal, ReplayRefusal,
};

const WHEN_OVER: &str = "try again when it has ended";
const NEW_PAYMENT: &str = "ask for a new payment, then run dead discard";
const MISSING_AMOUNT: &str = "run dead discard; the missing amount needs a new job";
const WHEN_CAPTURED: &str = "run dead discard when that id is captured";
const RECORDS_AGREE: &str = "make your records agree, then run dead discard";

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalText {
    /// Why the action is refused.
    pub reason: String,
    /// What can safely be done instead.
    pub instead: String,
}

impl RefusalText {
    fn new(reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { reason: reason.into(), instead: instead.into() }
    }
}

impl From<&ReplayRefusal> for RefusalText {
    fn from(refusal: &ReplayRefusal) -> Self {
        match refusal {
            ReplayRefusal::Policy(refusal) => by_policy(refusal),
            ReplayRefusal::Limit(refusal) => by_limit(refusal),
            ReplayRefusal::Record(refusal) => by_record(refusal),
            ReplayRefusal::Evidence(refusal) => by_evidence(refusal),
        }
    }
}

impl From<&DiscardRefusal> for RefusalText {
    fn from(refusal: &DiscardRefusal) -> Self {
        match refusal {
            DiscardRefusal::CapturedUnpublished => Self::new(
                "it is captured, and the result is not published yet",
                "run dead replay, which publishes the result and removes the dead letter",
            ),
            DiscardRefusal::InProcess => Self::new(
                "the gateway is still processing a capture of its id",
                "try again when the gateway has finished",
            ),
            DiscardRefusal::OutcomeUnknown(reason) => Self::new(
                format!("the outcome of its id is unknown: {reason}"),
                "try again when the gateway answers inquiries",
            ),
        }
    }
}

fn by_policy(refusal: &PolicyRefusal) -> RefusalText {
    match refusal {
        PolicyRefusal::NotOfClassLimit(class) => RefusalText::new(
            format!(
                "only dead letters of class limit may have their amount lowered; this is class \
                 {class}"
            ),
            "replay it without --capture-value",
        ),
        PolicyRefusal::EarlierCapture => RefusalText::new(
            "an earlier capture with this id exists and may have succeeded",
            "run dead show ID --inquire for its outcome, then dead discard (it keeps the evidence)",
        ),
        PolicyRefusal::NoAuthorization => RefusalText::new(
            "the authorization is no longer valid: no id can capture from this payment",
            NEW_PAYMENT,
        ),
        PolicyRefusal::ByteForByte(class) => RefusalText::new(
            format!("a dead letter of class {class} is replayed byte for byte"),
            "replay it without --expires-at",
        ),
        PolicyRefusal::NotAJob(error) => RefusalText::new(
            format!("its body is not a valid job: {error}"),
            "export it, and have its publisher send a valid job",
        ),
        PolicyRefusal::Unsigned => RefusalText::new(
            "its verdict is not marked as signed by the gateway, so its id may have captured",
            "run dead export and submit the body unchanged: the same id captures only once",
        ),
        PolicyRefusal::InvalidForwardedFields(error) => RefusalText::new(
            format!("its forwarded fields are not valid: {error}"),
            "have its publisher send a valid job",
        ),
        PolicyRefusal::HasGoods => RefusalText::new(
            "its goods list what the amount pays for: they would not match a lower amount",
            "run dead discard, and have its publisher send a job with that amount and its goods",
        ),
        PolicyRefusal::ExpiresAtPassed => RefusalText::new(
            "its expiresAt has passed: it would expire again at once",
            "if the goods still ship, replay it with --expires-at",
        ),
        PolicyRefusal::NotLower { asked, amount } => RefusalText::new(
            format!("--capture-value {asked} is not less than the amount {}", amount.value()),
            "give a lower value: the amount of a capture can only be lowered",
        ),
        PolicyRefusal::InvalidAmount(error) => {
            RefusalText::new(format!("--capture-value: {error}"), "give another amount")
        }
        PolicyRefusal::Unchangeable(error) => RefusalText::new(
            format!("its body can't be changed: {error}"),
            "export it, and have its publisher send it",
        ),
    }
}

fn by_limit(refusal: &LimitRefusal) -> RefusalText {
    match refusal {
        LimitRefusal::CanaryWithoutId => RefusalText::new(
            "without a readable id there is no result, so it cannot be a canary",
            "replay it without --canary",
        ),
        LimitRefusal::OverMaxMoney(amount) => RefusalText::new(
            format!("another {amount} would exceed --max-money"),
            "raise --max-money, or add this currency to it",
        ),
        LimitRefusal::AmountUnreadable => RefusalText::new(
            "its amount is not readable, so --max-money cannot be checked",
            "replay it without --max-money",
        ),
    }
}

fn by_record(refusal: &RecordRefusal) -> RefusalText {
    match refusal {
        RecordRefusal::PaymentBusy => {
            RefusalText::new("a capture of its payment is in progress", WHEN_OVER)
        }
        RecordRefusal::PaymentInDoubt => {
            RefusalText::new("another capture of its payment is in doubt", WHEN_OVER)
        }
        RecordRefusal::CopyInDoubt => RefusalText::new("a copy of it is in doubt", WHEN_OVER),
        RecordRefusal::ReplacedByOther => RefusalText::new(
            "a fresh id with another amount has already replaced its id",
            MISSING_AMOUNT,
        ),
        RecordRefusal::RedisUnavailable(reason) => RefusalText::new(
            format!("{reason}, and a fresh id is sent only under the lease of its payment"),
            "try again when Redis is available",
        ),
        RecordRefusal::LeasesWithheld(reason) => {
            RefusalText::new(reason, "try again when a worker is ready")
        }
        RecordRefusal::CapturedOtherSince => {
            RefusalText::new("its id has captured another amount meanwhile", RECORDS_AGREE)
        }
        RecordRefusal::ReplacedByOtherSince => RefusalText::new(
            "a fresh id with another amount has replaced its id meanwhile",
            RECORDS_AGREE,
        ),
        RecordRefusal::LeaseLost => {
            RefusalText::new("its lease or recorded outcome was lost", "try again")
        }
    }
}

fn by_evidence(refusal: &EvidenceRefusal) -> RefusalText {
    match refusal {
        EvidenceRefusal::CapturedOtherAmount(message) => RefusalText::new(
            message,
            "make your records agree with this capture, then run dead discard",
        ),
        EvidenceRefusal::InProcess => RefusalText::new(
            "the gateway is still processing the capture with this id",
            "try again when it has finished: a fresh id now could capture twice",
        ),
        EvidenceRefusal::AuthorizationRefused(code) => {
            RefusalText::new(format!("the authorization is no longer valid: {code}"), NEW_PAYMENT)
        }
        EvidenceRefusal::NoEvidence(reason) => RefusalText::new(
            format!("no evidence that its id captured nothing: {reason}"),
            "try again when the gateway answers inquiries: a fresh id now could capture twice",
        ),
        EvidenceRefusal::ChildWithOtherAmount { child, amount } => RefusalText::new(
            format!("its fresh id {child} is already at the gateway with {amount}"),
            MISSING_AMOUNT,
        ),
        EvidenceRefusal::DescendantActive(id) => RefusalText::new(
            format!("the fresh id {id} replaced it and has captured or may still capture"),
            WHEN_CAPTURED,
        ),
        EvidenceRefusal::AncestorActive(id) => RefusalText::new(
            format!("the replaced id {id} has captured or may still capture"),
            WHEN_CAPTURED,
        ),
        EvidenceRefusal::OutcomeUnknown(reason) => RefusalText::new(
            format!("its outcome is not known, and a fresh id may have replaced its id: {reason}"),
            "try again when the gateway answers inquiries, or run dead discard (it keeps a record)",
        ),
        EvidenceRefusal::AuthorizationExpired(at) => {
            RefusalText::new(format!("the authorization expired at {at}"), NEW_PAYMENT)
        }
        EvidenceRefusal::OverAuthorization { currency, left, may_lower } => RefusalText::new(
            format!(
                "over the limit: {} {left} (smallest unit) of the authorization is left",
                currency.code()
            ),
            match left {
                0 => "nothing is left to capture: run dead discard".to_owned(),
                _ if *may_lower => {
                    format!("replay it with --capture-value {left} to capture what is left")
                }
                _ => "have its publisher send a new job with a lower amount".to_owned(),
            },
        ),
    }
}
