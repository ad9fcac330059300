//! What the gateway shows of a dead letter's capture, and what that makes of a replay.

use time::OffsetDateTime;

use super::{
    class::{Class, Codes},
    family::{Descendants, Living, living_forebear},
    history::History,
    job::Job,
    judge::{Before, Inquired, judge_inquiry},
    letter::DeadLetter,
    outcome::{Capture, Doubt, Outcome, Verdict},
    replay::{Policy, Refusal, Replay},
    reply::{InquiryBody, InquiryReply, Reply, Signature, Standing, Status},
    time::parse as parse_time,
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
        let history = &History::default();
        let before = Before { history, marker: None, past_expiry: false, forward_error: None };
        let mut reply = reply.clone();
        // Others of its family are seen by [`PaymentSeen`]: one that lives is no capture of this id.
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
    /// The fresh ids that replaced the job's and captured, or may still.
    pub descendants: Descendants,
    /// A forebear of the job's id that captured, or may still.
    pub forebear: Option<Living>,
}

impl PaymentSeen {
    /// What a signed inquiry that succeeded says about a job's payment; nothing of any other. A stale one still shows
    /// fresh ids that exist.
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

/// What the gateway's evidence makes of a replay that was prepared. A fresh id needs evidence that its parent captured
/// nothing; an id that may have been sent needs evidence of what became of it, because it may have been replaced.
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
    if let Some(refusal) = living(&replay, is_fresh, &payment.descendants) {
        return Decision::Refuse(refusal);
    }
    if let Some(forebear) = &payment.forebear {
        return Decision::Refuse(Refusal::new(
            format!("the id {} that it replaces captured, or may still", forebear.id),
            "dead discard, once that is captured",
        ));
    }
    if let Seen::Nothing { reason, .. } = seen
        && letter.sent()
    {
        return Decision::Refuse(Refusal::new(
            format!("nobody knows what became of its id, which may have been replaced: {reason}"),
            "try again when the gateway answers inquiries; or dead discard, which keeps a record",
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
            if is_fresh && payment.descendants.child.is_none() && left < amount.value() =>
        {
            let instead = match (letter.class, left) {
                (_, 0) => "nothing is left to capture: dead discard".to_owned(),
                (Class::Limit, _) if !letter.has_goods() => {
                    format!("--capture-value {left} takes what is left")
                }
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

/// Why an id may not be sent beside the fresh ids that descend from the dead letter's. The child itself may be sent again
/// with the same amount: it captures once.
fn living(replay: &Replay, is_fresh: bool, descendants: &Descendants) -> Option<Refusal> {
    if let (true, Some(Living { id, amount: Some(amount) })) = (is_fresh, &descendants.child)
        && replay.amount != Some(*amount)
    {
        return Some(Refusal::new(
            format!("its fresh id {id} is at the gateway already, with {amount}"),
            "dead discard; what is missing of it needs a job of its own",
        ));
    }
    let living = if is_fresh { descendants.later.as_ref() } else { descendants.nearest() };
    living.map(|living| {
        Refusal::new(
            format!("the fresh id {} replaced it, and captured or may still", living.id),
            "dead discard, once that is captured",
        )
    })
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
