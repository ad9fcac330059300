//! What may be done with a dead letter: the policy of its class, the one fresh id that may replace
//! an id, and what a replay would send. [`self::decision`] decides whether it may be sent.
//!
//! For an id that reached `F`, the gateway repeats the same `F` forever, so that id can't succeed
//! any more. A fresh id after an unknown outcome can capture twice. So the policy belongs to the
//! class, and nothing overrides it.

pub mod dead_letter;
pub mod decision;
pub mod discard;
pub mod evidence;
pub mod refusal;
mod rewrite;

use serde::Serialize;
use time::OffsetDateTime;

use self::{
    dead_letter::DeadLetter,
    refusal::PolicyRefusal,
    rewrite::{Edits, rewrite},
};
use super::{
    capture::{class::Class, family::fresh_id},
    job::{Job, forward::CaptureType, history::History},
    money::Money,
    time::rfc3339,
};

/// What a replay of a class sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayPolicy {
    /// Nothing: no replay can succeed, or none is safe.
    Never,
    /// The same id: whatever happened to it, it captures only once.
    SameId,
    /// The one child of the id, after the gateway has shown that the id itself captured nothing.
    FreshId,
    /// The same bytes, whether they are a job or not.
    SameBytes,
}

impl ReplayPolicy {
    /// The policy of a class. An unsigned verdict of class `access` says nothing about the id.
    #[must_use]
    pub const fn of(class: Class, signed: bool) -> Self {
        match class {
            Class::Authorization | Class::Conflict => Self::Never,
            Class::InDoubt | Class::Unreachable | Class::Expired => Self::SameId,
            Class::Malformed | Class::Poison => Self::SameBytes,
            Class::Access if !signed => Self::SameId,
            Class::Access
            | Class::Order
            | Class::Limit
            | Class::Contract
            | Class::Request
            | Class::Risk
            | Class::Payer
            | Class::Provider
            | Class::UnknownCode => Self::FreshId,
        }
    }

    /// The name of the policy for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::SameId => "same id",
            Self::FreshId => "fresh id",
            Self::SameBytes => "same bytes",
        }
    }
}

/// What an operator asks to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A lower amount in the smallest unit; only for class `limit`.
    pub capture_value: Option<u64>,
    /// A new `expiresAt` for the job.
    pub expires_at: Option<OffsetDateTime>,
}

/// A job that a replay publishes to the queue of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The body of the job.
    pub body: Vec<u8>,
    /// The history in the headers of the job.
    pub history: History,
    /// The id, if the body has a readable one.
    pub id: Option<String>,
    /// The amount, if the body is a job.
    pub amount: Option<Money>,
    /// The policy that the replay follows.
    pub policy: ReplayPolicy,
    /// Whether the amount was lowered and the capture is the payment's last one. Then the gateway
    /// gives up the rest of the authorization.
    pub gives_up_rest: bool,
}

/// What a replay would send, by the dead letter alone. A replay with a fresh id may be sent only if
/// [`self::decision::decide`] allows it.
///
/// # Errors
/// The policy refuses the replay.
pub fn prepare(
    dead_letter: &DeadLetter,
    changes: &Changes,
    now: OffsetDateTime,
) -> Result<Replay, PolicyRefusal> {
    let policy = ReplayPolicy::of(dead_letter.class, dead_letter.signed);
    if changes.capture_value.is_some() && dead_letter.class != Class::Limit {
        return Err(PolicyRefusal::NotOfClassLimit(dead_letter.class));
    }
    match policy {
        ReplayPolicy::Never if dead_letter.class == Class::Conflict => {
            Err(PolicyRefusal::EarlierCapture)
        }
        ReplayPolicy::Never => Err(PolicyRefusal::NoAuthorization),
        ReplayPolicy::SameBytes => same_bytes(dead_letter, changes),
        ReplayPolicy::SameId | ReplayPolicy::FreshId => {
            let job = dead_letter.job.as_ref();
            let job = job.map_err(|malformed| PolicyRefusal::NotAJob(malformed.reason.clone()))?;
            job_replay(dead_letter, job, policy, changes, now)
        }
    }
}

fn same_bytes(dead_letter: &DeadLetter, changes: &Changes) -> Result<Replay, PolicyRefusal> {
    if changes.expires_at.is_some() {
        return Err(PolicyRefusal::ByteForByte(dead_letter.class));
    }
    Ok(Replay {
        body: dead_letter.body.to_vec(),
        history: replayed(dead_letter),
        id: dead_letter.id().map(str::to_owned),
        amount: dead_letter.amount(),
        policy: ReplayPolicy::SameBytes,
        gives_up_rest: false,
    })
}

fn job_replay(
    dead_letter: &DeadLetter,
    job: &Job,
    policy: ReplayPolicy,
    changes: &Changes,
    now: OffsetDateTime,
) -> Result<Replay, PolicyRefusal> {
    let is_fresh = policy == ReplayPolicy::FreshId;
    if is_fresh && !dead_letter.signed {
        return Err(PolicyRefusal::Unsigned);
    }
    if let (true, Some(error)) = (is_fresh, &job.forward_error) {
        return Err(PolicyRefusal::InvalidForwardedFields((**error).clone()));
    }
    if changes.capture_value.is_some() && job.forwarded.has_goods() {
        return Err(PolicyRefusal::HasGoods);
    }
    let expires_at = changes.expires_at.or(job.expires_at);
    if expires_at.is_some_and(|at| now >= at) && (is_fresh || !dead_letter.sent()) {
        return Err(PolicyRefusal::ExpiresAtPassed);
    }
    let amount = lowered(job.amount, changes)?;
    let id =
        if is_fresh { fresh_id(&job.capture_request_id) } else { job.capture_request_id.clone() };
    let edits = Edits {
        capture_request_id: is_fresh.then(|| id.clone()),
        amount: (amount != job.amount).then_some(amount),
        expires_at: changes.expires_at.map(rfc3339),
    };
    let body = rewrite(&dead_letter.body, &edits).map_err(PolicyRefusal::Unchangeable)?;
    let history = if is_fresh { fresh(dead_letter, job) } else { replayed(dead_letter) };
    let gives_up_rest = changes.capture_value.is_some()
        && job.forwarded.capture_type() != Some(CaptureType::NonFinal);
    Ok(Replay { body, history, id: Some(id), amount: Some(amount), policy, gives_up_rest })
}

fn lowered(amount: Money, changes: &Changes) -> Result<Money, PolicyRefusal> {
    let Some(asked) = changes.capture_value else { return Ok(amount) };
    if asked >= amount.value() {
        return Err(PolicyRefusal::NotLower { asked, amount });
    }
    Money::from_smallest(amount.currency().code(), &asked.to_string())
        .map_err(PolicyRefusal::InvalidAmount)
}

/// The history of a replayed job. Its attempts start again, but it keeps that the id was sent, and
/// the gateway's last reply about it.
fn replayed(dead_letter: &DeadLetter) -> History {
    History {
        last_reply: dead_letter.history.last_reply.clone(),
        sent: dead_letter.sent(),
        replays: dead_letter.history.replays.saturating_add(1),
        parent: dead_letter.history.parent.clone(),
        origin: dead_letter.history.origin.clone(),
        ..History::default()
    }
}

/// The history of a fresh id, for which nothing has been sent.
fn fresh(dead_letter: &DeadLetter, job: &Job) -> History {
    let parent = job.capture_request_id.clone();
    History {
        replays: dead_letter.history.replays.saturating_add(1),
        origin: dead_letter.history.origin.clone().or_else(|| Some(parent.clone())),
        parent: Some(parent),
        ..History::default()
    }
}
