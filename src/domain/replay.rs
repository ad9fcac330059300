//! What may be done with a dead letter: the policy of its class, the one fresh id that may replace
//! an id, and what a replay would send. [`self::evidence`] decides whether a fresh id may be sent.
//!
//! For an id that reached `F`, the gateway repeats the same `F` forever, so that id can't succeed
//! any more. A fresh id after an unknown outcome can capture twice. So the policy belongs to the
//! class, and nothing overrides it.

pub mod dead_letter;
pub mod evidence;
mod rewrite;

use serde::Serialize;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::{
    dead_letter::DeadLetter,
    rewrite::{Edits, rewrite},
};
use super::{
    capture::class::Class,
    job::{Job, forward::CaptureType, history::History},
    money::Money,
};

/// What a replay of a class sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Nothing: no replay can succeed, or none is safe.
    Never,
    /// The same id: whatever happened to it, it captures only once.
    SameId,
    /// The one child of the id, after the gateway has shown that the id itself captured nothing.
    FreshId,
    /// The same bytes, whether they are a job or not.
    SameBytes,
}

impl Policy {
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

/// What an operator should do about a class, before or instead of a replay.
#[must_use]
pub const fn advice(class: Class) -> &'static str {
    match class {
        Class::Authorization => "ask for a new payment, then discard",
        Class::Order => "check the transaction at the gateway",
        Class::Limit => "lower the amount",
        Class::Contract => "have the merchant contract changed",
        Class::Access => "fix the credentials or the gateway setup",
        Class::Request => "fix the publisher",
        Class::Conflict => "an earlier capture with this id exists: inquire, then discard",
        Class::Risk => "inform the payer",
        Class::Payer => "contact the payer",
        Class::Provider => "ask the gateway's support",
        Class::UnknownCode => "map the code to a class in [classes]",
        Class::InDoubt => "wait, then inquire",
        Class::Unreachable => "fix the network",
        Class::Expired => "if the goods still ship, set a new expiresAt",
        Class::Malformed => "fix the publisher",
        Class::Poison => "report a bug",
    }
}

/// The one fresh id that may replace an id. It depends on nothing but its parent, so one parent has
/// one child, whichever copy of it is replayed, how often and by which operator.
#[must_use]
pub fn fresh_id(parent: &str) -> String {
    let digest = Sha256::new().chain_update("capture-worker/fresh-id/1\n").chain_update(parent);
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("cw-{}", &hex[..40])
}

/// What an operator asks to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A lower amount in the smallest unit; only for class `limit`.
    pub capture_value: Option<u64>,
    /// A new `expiresAt` for the job.
    pub expires_at: Option<OffsetDateTime>,
}

/// Why a dead letter stays where it is, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Why the action is refused.
    pub reason: String,
    /// What can safely be done instead.
    pub instead: String,
}

impl Refusal {
    /// A refusal with this reason and this alternative.
    #[must_use]
    pub fn new(reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { reason: reason.into(), instead: instead.into() }
    }
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
    pub policy: Policy,
    /// Whether the amount was lowered and the capture is the payment's last one. Then the gateway
    /// gives up the rest of the authorization.
    pub gives_up_rest: bool,
}

/// What a replay would send, by the dead letter alone. A replay with a fresh id may be sent only if
/// [`self::evidence::decide`] allows it.
///
/// # Errors
/// The policy refuses the replay.
pub fn prepare(
    letter: &DeadLetter,
    changes: &Changes,
    now: OffsetDateTime,
) -> Result<Replay, Refusal> {
    let policy = Policy::of(letter.class, letter.signed);
    if changes.capture_value.is_some() && letter.class != Class::Limit {
        return Err(Refusal::new(
            format!(
                "only dead letters of class limit may have their amount lowered; this is class {}",
                letter.class
            ),
            "replay it without --capture-value",
        ));
    }
    match policy {
        Policy::Never => Err(never(letter)),
        Policy::SameBytes => same_bytes(letter, changes),
        Policy::SameId | Policy::FreshId => {
            let job = letter.job.as_ref().map_err(|malformed| {
                Refusal::new(
                    format!("its body is not a valid job: {}", malformed.reason),
                    "export it, and have its publisher send a valid job",
                )
            })?;
            job_replay(letter, job, policy, changes, now)
        }
    }
}

fn never(letter: &DeadLetter) -> Refusal {
    match letter.class {
        Class::Conflict => Refusal::new(
            "an earlier capture with this id exists and may have succeeded",
            "run dead show ID --inquire for its outcome, then dead discard (it keeps the evidence)",
        ),
        _ => Refusal::new(
            "the authorization is no longer valid: no id can capture from this payment",
            "ask for a new payment, then run dead discard",
        ),
    }
}

fn same_bytes(letter: &DeadLetter, changes: &Changes) -> Result<Replay, Refusal> {
    if changes.expires_at.is_some() {
        return Err(Refusal::new(
            format!("a dead letter of class {} is replayed byte for byte", letter.class),
            "replay it without --expires-at",
        ));
    }
    Ok(Replay {
        body: letter.body.to_vec(),
        history: replayed(letter),
        id: letter.id().map(str::to_owned),
        amount: letter.amount(),
        policy: Policy::SameBytes,
        gives_up_rest: false,
    })
}

fn job_replay(
    letter: &DeadLetter,
    job: &Job,
    policy: Policy,
    changes: &Changes,
    now: OffsetDateTime,
) -> Result<Replay, Refusal> {
    let is_fresh = policy == Policy::FreshId;
    if is_fresh && !letter.signed {
        return Err(Refusal::new(
            "its verdict is not marked as signed by the gateway, so its id may have captured",
            "run dead export and submit the body unchanged: the same id captures only once",
        ));
    }
    if let (true, Some(error)) = (is_fresh, &job.forward_error) {
        return Err(Refusal::new(
            format!("its forwarded fields are not valid: {error}"),
            "have its publisher send a valid job",
        ));
    }
    if changes.capture_value.is_some() && job.forwarded.has_goods() {
        return Err(Refusal::new(
            "its goods list what the amount pays for: they would not match a lower amount",
            "run dead discard, and have its publisher send a job with that amount and its goods",
        ));
    }
    let expires_at = changes.expires_at.or(job.expires_at);
    if expires_at.is_some_and(|at| now >= at) && (is_fresh || !letter.sent()) {
        return Err(Refusal::new(
            "its expiresAt has passed: it would expire again at once",
            "if the goods still ship, replay it with --expires-at",
        ));
    }
    let amount = lowered(job.amount, changes)?;
    let id =
        if is_fresh { fresh_id(&job.capture_request_id) } else { job.capture_request_id.clone() };
    let edits = Edits {
        capture_request_id: is_fresh.then(|| id.clone()),
        amount: (amount != job.amount).then_some(amount),
        expires_at: changes.expires_at.and_then(|at| at.format(&Rfc3339).ok()),
    };
    let body = rewrite(&letter.body, &edits).map_err(|error| {
        Refusal::new(
            format!("its body can't be changed: {error}"),
            "export it, and have its publisher send it",
        )
    })?;
    let history = if is_fresh { fresh(letter, job) } else { replayed(letter) };
    let gives_up_rest = changes.capture_value.is_some()
        && job.forwarded.capture_type() != Some(CaptureType::NonFinal);
    Ok(Replay { body, history, id: Some(id), amount: Some(amount), policy, gives_up_rest })
}

fn lowered(amount: Money, changes: &Changes) -> Result<Money, Refusal> {
    let Some(value) = changes.capture_value else { return Ok(amount) };
    if value >= amount.value() {
        return Err(Refusal::new(
            format!("--capture-value {value} is not less than the amount {}", amount.value()),
            "give a lower value: the amount of a capture can only be lowered",
        ));
    }
    Money::from_smallest(amount.currency().code(), &value.to_string())
        .map_err(|error| Refusal::new(format!("--capture-value: {error}"), "give another amount"))
}

/// The history of a replayed job. Its attempts start again, but it keeps that the id was sent, and
/// the gateway's last reply about it.
fn replayed(letter: &DeadLetter) -> History {
    History {
        last_word: letter.history.last_word.clone(),
        sent: letter.sent(),
        replays: letter.history.replays.saturating_add(1),
        parent: letter.history.parent.clone(),
        origin: letter.history.origin.clone(),
        ..History::default()
    }
}

/// The history of a fresh id, for which nothing has been sent.
fn fresh(letter: &DeadLetter, job: &Job) -> History {
    let parent = job.capture_request_id.clone();
    History {
        replays: letter.history.replays.saturating_add(1),
        origin: letter.history.origin.clone().or_else(|| Some(parent.clone())),
        parent: Some(parent),
        ..History::default()
    }
}
