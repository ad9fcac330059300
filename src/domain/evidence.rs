//! What the gateway shows of a dead letter's capture, and what that makes of a replay.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    class::{Class, Codes},
    history::History,
    job::Job,
    judge::{Before, Inquired, judge_inquiry},
    letter::DeadLetter,
    money::Money,
    outcome::{Capture, Doubt, Outcome, Verdict},
    replay::{Policy, Refusal, Replay, fresh_id},
    reply::{InquiryBody, InquiryReply, Reply, Signature, Status},
};

/// What an inquiry shows about one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It captured.
    Captured(Capture),
    /// Its id captured another amount.
    OtherAmount(String),
    /// It failed.
    Failed(Verdict),
    /// It is not over.
    InProcess,
    /// The gateway knows of no such capture.
    NoSuchCapture,
    /// No evidence: why, and the gateway's code if it gave one.
    Nothing {
        /// Why.
        reason: String,
        /// The code of an inquiry that failed by the gateway's signed word: it answered, and knows nothing.
        code: Option<String>,
    },
}

impl Seen {
    /// What a reply to an inquiry shows about a job's capture, whatever the job's own history says.
    #[must_use]
    pub fn of(reply: &InquiryReply, job: &Job, codes: &Codes) -> Self {
        let before = Before { history: &History::default(), marked: false, past_expiry: false };
        match judge_inquiry(reply.clone(), job, &before, codes) {
            Inquired::Post => Self::NoSuchCapture,
            Inquired::Over(Outcome::Captured(capture)) => Self::Captured(capture),
            Inquired::Over(Outcome::Failed(verdict)) if verdict.class == Class::Conflict => {
                Self::OtherAmount(verdict.message.unwrap_or_default())
            }
            Inquired::Over(Outcome::Failed(verdict)) => Self::Failed(verdict),
            Inquired::Over(Outcome::InDoubt(Doubt { word: Some(_), .. })) => Self::InProcess,
            Inquired::Over(Outcome::InDoubt(doubt)) => {
                Self::Nothing { reason: doubt.reason, code: refused(reply) }
            }
            Inquired::Over(Outcome::NotSent(reason)) => Self::Nothing {
                reason: format!("the gateway can't be reached: {reason}"),
                code: None,
            },
            Inquired::Over(Outcome::Account(verdict)) => {
                let code = verdict.code.unwrap_or_default();
                let reason = format!("the gateway does not know who asks: {code}, unsigned");
                Self::Nothing { reason, code: None }
            }
            Inquired::Over(Outcome::Throttled(_)) => {
                Self::Nothing { reason: "too many calls for the gateway".into(), code: None }
            }
            Inquired::Over(other) => Self::Nothing { reason: other.name().into(), code: None },
        }
    }

    /// In words, for people and for the audit.
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
            Self::InProcess => "in process: not over yet".into(),
            Self::NoSuchCapture => "no such capture is known".into(),
            Self::Nothing { reason, .. } => format!("no evidence: {reason}"),
        }
    }
}

/// The code of a signed answer that refuses to say anything about the payment.
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
    /// What may still be captured, in the smallest unit, if the answer tells what was authorized.
    pub left: Option<u64>,
    /// Until when captures may be made, as the gateway wrote it.
    pub authorized_until: Option<String>,
    /// The fresh id that replaced the job's, if it captured or may still, and its amount.
    pub child: Option<(String, Option<Money>)>,
}

impl PaymentSeen {
    /// What a signed inquiry that succeeded says about a job's payment; nothing of any other.
    #[must_use]
    pub fn of(reply: &InquiryReply, job: &Job) -> Self {
        match reply {
            Reply::Answered(answer)
                if answer.signature == Signature::Good && answer.result.status == Status::S =>
            {
                Self {
                    left: left(&answer.body),
                    authorized_until: answer.body.auth_expiry_time.clone(),
                    child: living_child(&answer.body, job),
                }
            }
            _ => Self::default(),
        }
    }

    fn is_over(&self, now: OffsetDateTime) -> bool {
        let until = self.authorized_until.as_deref();
        let until = until.and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        until.is_some_and(|until| now >= until)
    }
}

fn living_child(body: &InquiryBody, job: &Job) -> Option<(String, Option<Money>)> {
    let child = fresh_id(&job.capture_request_id);
    let living = body.transactions.iter().flatten().find(|item| {
        item.request_id.as_ref() == Some(&child)
            && !matches!(item.status.as_deref(), Some("FAIL" | "CANCELLED"))
    });
    living.map(|item| (child, item.amount.clone().and_then(Result::ok)))
}

fn left(body: &InquiryBody) -> Option<u64> {
    let authorized = body.payment_amount.clone()?.ok()?;
    let mut left = authorized.value();
    let captured = body.transactions.as_ref()?.iter().filter(|item| {
        item.kind.as_deref() == Some("CAPTURE") && item.status.as_deref() == Some("SUCCESS")
    });
    for item in captured {
        let amount = item.amount.clone()?.ok()?;
        if amount.currency() != authorized.currency() {
            return None;
        }
        left = left.saturating_sub(amount.value());
    }
    Some(left)
}

/// What becomes of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes back to the queue of jobs.
    Send(Replay),
    /// Its capture stands: its publisher is told so, and the letter goes.
    Settle(Capture),
    /// It stays.
    Refuse(Refusal),
}

/// What the gateway's evidence makes of a replay that was prepared. Needed for a fresh id; for the same id it foretells what
/// the worker will find.
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
                "dead discard, once the books agree",
            ));
        }
        Seen::InProcess if is_fresh => {
            return Decision::Refuse(Refusal::new(
                "the gateway is still processing the capture of its id",
                "try again when that is over: a fresh id could capture twice",
            ));
        }
        Seen::Nothing { reason, code } if is_fresh => {
            return Decision::Refuse(no_evidence(reason, code.as_deref()));
        }
        Seen::Failed(_) | Seen::NoSuchCapture | Seen::InProcess | Seen::Nothing { .. } => {}
    }
    if let (true, Some((child, Some(amount)))) = (is_fresh, &payment.child)
        && replay.amount != Some(*amount)
    {
        return Decision::Refuse(Refusal::new(
            format!("its fresh id {child} is at the gateway already, with {amount}"),
            "dead discard; what is missing of it needs a job of its own",
        ));
    }
    if let (false, Some((child, _))) = (is_fresh, &payment.child) {
        return Decision::Refuse(Refusal::new(
            format!("the fresh id {child} replaced it, and captured or may still"),
            "dead discard, once that is captured",
        ));
    }
    if is_fresh && payment.is_over(now) {
        return Decision::Refuse(Refusal::new(
            format!(
                "the authorization ended {}",
                payment.authorized_until.as_deref().unwrap_or_default()
            ),
            "a new payment; then dead discard",
        ));
    }
    match (payment.left, replay.amount) {
        // What its child has taken already is not asked for again.
        (Some(left), Some(amount))
            if is_fresh && payment.child.is_none() && left < amount.value() =>
        {
            let instead = match (letter.class, left) {
                (_, 0) => "nothing is left to capture: dead discard".to_owned(),
                (Class::Limit, _) => format!("--capture-value {left} takes what is left"),
                _ => "a job with a lower amount, by its publisher".to_owned(),
            };
            let code = amount.currency().code();
            Decision::Refuse(Refusal::new(
                format!(
                    "over the limit: of the authorization {code} {left} (smallest unit) is left"
                ),
                instead,
            ))
        }
        _ => Decision::Send(replay),
    }
}

fn no_evidence(reason: &str, code: Option<&str>) -> Refusal {
    let class = code.map(|code| Codes::default().class_of(code));
    if class == Some(Class::Authorization) {
        return Refusal::new(
            format!("the authorization is gone: {}", code.unwrap_or_default()),
            "a new payment; then dead discard",
        );
    }
    Refusal::new(
        format!("no evidence that its id captured nothing: {reason}"),
        "try again when the gateway answers inquiries: a fresh id could capture twice",
    )
}
