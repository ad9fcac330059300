//! What the gateway shows about the capture of a dead letter and about its payment.

use time::OffsetDateTime;

use crate::domain::{
    capture::{
        class::{Class, Codes},
        family::{ActiveId, Descendants, active_ancestor},
        judge::{Before, Inquired, judge_inquiry},
        outcome::{Capture, Doubt, FailureVerdict, Outcome},
        reply::{InquiryBody, InquiryReply, Reply, Signature, Standing, Status},
    },
    job::{Job, history::History},
    time::parse as parse_time,
};

/// What an inquiry shows about one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaptureSeen {
    /// The money was captured.
    Captured(Capture),
    /// The id captured another amount, which the text names.
    OtherAmount(String),
    /// The capture failed, with this verdict.
    Failed(FailureVerdict),
    /// The gateway is still processing the capture.
    InProcess,
    /// The gateway knows of no such capture.
    NoSuchCapture,
    /// There is no evidence either way.
    Nothing {
        /// Why there is no evidence.
        reason: String,
        /// The code of an inquiry that the gateway refused with a signed reply.
        code: Option<String>,
    },
}

impl CaptureSeen {
    /// What the reply to an inquiry shows about a job's capture. The job's own history is ignored.
    #[must_use]
    pub fn of(reply: &InquiryReply, job: &Job, codes: &Codes) -> Self {
        let history = &History::default();
        let before = Before { history, marker: None, past_expiry: false, forward_error: None };
        let mut reply = reply.clone();
        // [`PaymentSeen`] covers the other ids of the family. None of them is a capture of this id.
        if let Reply::Answered(answer) = &mut reply
            && let Some(transactions) = &mut answer.body.transactions
        {
            transactions.retain(|item| {
                item.request_id.as_ref() == Some(&job.capture_request_id)
                    || item.is_anonymous_capture()
            });
        }
        match judge_inquiry(reply.clone(), job, &before, codes) {
            Inquired::Post => Self::NoSuchCapture,
            Inquired::Over(Outcome::Captured(capture)) => Self::Captured(capture),
            Inquired::Over(Outcome::Failed(verdict)) if verdict.class == Class::Conflict => {
                Self::OtherAmount(verdict.message.unwrap_or_default())
            }
            Inquired::Over(Outcome::Failed(verdict)) => Self::Failed(verdict),
            Inquired::Over(Outcome::InDoubt(Doubt { last_reply: Some(_), .. })) => Self::InProcess,
            Inquired::Over(Outcome::InDoubt(doubt)) => {
                Self::Nothing { reason: doubt.reason, code: refused(&reply) }
            }
            Inquired::Over(Outcome::NotSent(reason)) => Self::Nothing {
                reason: format!("the gateway can't be reached: {reason}"),
                code: None,
            },
            Inquired::Over(Outcome::Unauthenticated(verdict)) => {
                let code = verdict.code.unwrap_or_default();
                let reason = format!("the gateway refused our credentials: {code}, unsigned");
                Self::Nothing { reason, code: None }
            }
            Inquired::Over(Outcome::Throttled(_)) => {
                let reason = "the gateway refused the inquiry: too many calls".into();
                Self::Nothing { reason, code: None }
            }
            Inquired::Over(other) => Self::Nothing { reason: other.name().into(), code: None },
        }
    }

    /// A description for people and for the audit record.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Captured(capture) => match &capture.capture_id {
                Some(id) => format!("captured, captureId {id}"),
                None => "captured".into(),
            },
            Self::OtherAmount(message) => message.clone(),
            Self::Failed(verdict) => {
                format!("failed: {}", verdict.code.as_deref().unwrap_or("no code"))
            }
            Self::InProcess => "in process: the gateway has not finished the capture".into(),
            Self::NoSuchCapture => "the gateway knows of no such capture".into(),
            Self::Nothing { reason, .. } => format!("no evidence: {reason}"),
        }
    }
}

/// The code of a signed reply that refuses the inquiry.
fn refused(reply: &InquiryReply) -> Option<String> {
    match reply {
        Reply::Answered(answer)
            if answer.signature == Signature::Good && answer.result.status == Status::F =>
        {
            Some(answer.result.code.clone())
        }
        _ => None,
    }
}

/// What an inquiry shows about the whole payment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaymentSeen {
    /// What may still be captured, in the smallest unit, if the reply gives the authorized amount.
    pub left: Option<u64>,
    /// Until when captures may be made, as the gateway wrote it.
    pub authorized_until: Option<String>,
    /// The fresh ids that descend from the job's id and captured or may still capture.
    pub descendants: Descendants,
    /// An ancestor of the job's id that captured or may still capture.
    pub ancestor: Option<ActiveId>,
}

impl PaymentSeen {
    /// Reads a signed, successful reply to an inquiry about a job's payment. Any other reply shows
    /// nothing. A stale reply still shows which fresh ids exist.
    #[must_use]
    pub fn of(reply: &InquiryReply, job: &Job, history: &History) -> Self {
        let Reply::Answered(answer) = reply else { return Self::default() };
        if answer.result.status != Status::S {
            return Self::default();
        }
        let transactions = answer.body.transactions.as_deref().unwrap_or_default();
        let descendants = Descendants::of(transactions, &job.capture_request_id);
        let ancestor = active_ancestor(transactions, &job.capture_request_id, history);
        match answer.signature {
            Signature::Good => Self {
                left: left(&answer.body),
                authorized_until: answer.body.auth_expiry_time.clone(),
                descendants,
                ancestor,
            },
            Signature::Stale => Self { descendants, ancestor, ..Self::default() },
            Signature::Missing | Signature::Bad => Self::default(),
        }
    }

    pub(super) fn is_over(&self, now: OffsetDateTime) -> bool {
        let until = self.authorized_until.as_deref().and_then(parse_time);
        until.is_some_and(|until| now >= until)
    }
}

fn left(body: &InquiryBody) -> Option<u64> {
    let authorized = body.payment_amount.clone()?.ok()?;
    let mut left = authorized.value();
    let transactions = body.transactions.as_ref()?.iter();
    let captured = transactions.filter(|item| item.standing() == Standing::Captured);
    for item in captured {
        let amount = item.amount.clone()?.ok()?;
        if amount.currency() != authorized.currency() {
            return None;
        }
        left = left.saturating_sub(amount.value());
    }
    Some(left)
}
