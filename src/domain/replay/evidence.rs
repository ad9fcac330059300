//! What the gateway shows about the capture of a dead letter, and what that means for a replay.

use time::OffsetDateTime;

use super::{Policy, Refusal, Replay, dead_letter::DeadLetter};
use crate::domain::{
    capture::{
        class::{Class, Codes},
        family::{Descendants, Living, living_forebear},
        judge::{Before, Inquired, judge_inquiry},
        outcome::{Capture, Doubt, Outcome, Verdict},
        reply::{InquiryBody, InquiryReply, Reply, Signature, Standing, Status},
    },
    job::{Job, history::History},
    time::parse as parse_time,
};

/// What an inquiry shows about one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The money was captured.
    Captured(Capture),
    /// The id captured another amount, which the text names.
    OtherAmount(String),
    /// The capture failed, with this verdict.
    Failed(Verdict),
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

impl Seen {
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
            Inquired::Over(Outcome::InDoubt(Doubt { word: Some(_), .. })) => Self::InProcess,
            Inquired::Over(Outcome::InDoubt(doubt)) => {
                Self::Nothing { reason: doubt.reason, code: refused(&reply) }
            }
            Inquired::Over(Outcome::NotSent(reason)) => Self::Nothing {
                reason: format!("the gateway can't be reached: {reason}"),
                code: None,
            },
            Inquired::Over(Outcome::Account(verdict)) => {
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
    pub forebear: Option<Living>,
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
        let forebear = living_forebear(transactions, &job.capture_request_id, history);
        match answer.signature {
            Signature::Good => Self {
                left: left(&answer.body),
                authorized_until: answer.body.auth_expiry_time.clone(),
                descendants,
                forebear,
            },
            Signature::Stale => Self { descendants, forebear, ..Self::default() },
            Signature::Missing | Signature::Bad => Self::default(),
        }
    }

    fn is_over(&self, now: OffsetDateTime) -> bool {
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

/// What is done with a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The job is published to the queue of jobs.
    Send(Replay),
    /// The money was captured: the result is published, and the dead letter is removed.
    Settle(Capture),
    /// The dead letter stays where it is.
    Refuse(Refusal),
}

/// Decides about a prepared replay by the gateway's evidence. A fresh id needs evidence that its
/// parent captured nothing. An id that may have been sent needs evidence of its outcome, because a
/// fresh id may have replaced it.
#[must_use]
pub fn decide(
    letter: &DeadLetter,
    replay: Replay,
    seen: &Seen,
    payment: &PaymentSeen,
    now: OffsetDateTime,
) -> Decision {
    let is_fresh = replay.policy == Policy::FreshId;
    match seen {
        Seen::Captured(capture) => return Decision::Settle(capture.clone()),
        Seen::OtherAmount(message) => {
            return Decision::Refuse(Refusal::new(
                message.clone(),
                "make your records agree with this capture, then run dead discard",
            ));
        }
        Seen::InProcess if is_fresh => {
            return Decision::Refuse(Refusal::new(
                "the gateway is still processing the capture with this id",
                "try again when it has finished: a fresh id now could capture twice",
            ));
        }
        Seen::Nothing { reason, code } if is_fresh => {
            return Decision::Refuse(no_evidence(reason, code.as_deref()));
        }
        Seen::Failed(_) | Seen::NoSuchCapture | Seen::InProcess | Seen::Nothing { .. } => {}
    }
    if let Some(refusal) = living(&replay, is_fresh, &payment.descendants) {
        return Decision::Refuse(refusal);
    }
    if let Some(forebear) = &payment.forebear {
        return Decision::Refuse(Refusal::new(
            format!("the replaced id {} has captured or may still capture", forebear.id),
            "run dead discard when that id is captured",
        ));
    }
    if let Seen::Nothing { reason, .. } = seen
        && letter.sent()
    {
        return Decision::Refuse(Refusal::new(
            format!("its outcome is not known, and a fresh id may have replaced its id: {reason}"),
            "try again when the gateway answers inquiries, or run dead discard (it keeps a record)",
        ));
    }
    if is_fresh && payment.is_over(now) {
        return Decision::Refuse(Refusal::new(
            format!(
                "the authorization expired at {}",
                payment.authorized_until.as_deref().unwrap_or_default()
            ),
            "ask for a new payment, then run dead discard",
        ));
    }
    match (payment.left, replay.amount) {
        // An active child has already taken its amount from what is left.
        (Some(left), Some(amount))
            if is_fresh && payment.descendants.child.is_none() && left < amount.value() =>
        {
            let instead = match (letter.class, left) {
                (_, 0) => "nothing is left to capture: run dead discard".to_owned(),
                (Class::Limit, _) if !letter.has_goods() => {
                    format!("replay it with --capture-value {left} to capture what is left")
                }
                _ => "have its publisher send a new job with a lower amount".to_owned(),
            };
            let code = amount.currency().code();
            Decision::Refuse(Refusal::new(
                format!(
                    "over the limit: {code} {left} (smallest unit) of the authorization is left"
                ),
                instead,
            ))
        }
        _ => Decision::Send(replay),
    }
}

/// Why an id must not be sent while a fresh id that descends from it is active. The child itself
/// may be sent again with the same amount, because it captures only once.
fn living(replay: &Replay, is_fresh: bool, descendants: &Descendants) -> Option<Refusal> {
    if let (true, Some(Living { id, amount: Some(amount) })) = (is_fresh, &descendants.child)
        && replay.amount != Some(*amount)
    {
        return Some(Refusal::new(
            format!("its fresh id {id} is already at the gateway with {amount}"),
            "run dead discard; the missing amount needs a new job",
        ));
    }
    let living = if is_fresh { descendants.later.as_ref() } else { descendants.nearest() };
    living.map(|living| {
        Refusal::new(
            format!("the fresh id {} replaced it and has captured or may still capture", living.id),
            "run dead discard when that id is captured",
        )
    })
}

fn no_evidence(reason: &str, code: Option<&str>) -> Refusal {
    let class = code.map(|code| Codes::default().class_of(code));
    if class == Some(Class::Authorization) {
        return Refusal::new(
            format!("the authorization is no longer valid: {}", code.unwrap_or_default()),
            "ask for a new payment, then run dead discard",
        );
    }
    Refusal::new(
        format!("no evidence that its id captured nothing: {reason}"),
        "try again when the gateway answers inquiries: a fresh id now could capture twice",
    )
}
