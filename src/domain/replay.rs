//! What may be done with a dead letter: the policy of its class, the one fresh id that may replace an id, and what a replay
//! would send. Whether a fresh id may go is decided by [`super::evidence`].
//!
//! The gateway answers an id that reached `F` with the same `F` for ever, so the same id can't succeed any more; and a fresh
//! id after an unknown outcome captures twice. So the policy belongs to the class, and nothing overrides it.

use serde::Serialize;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    class::Class,
    forward::CaptureType,
    history::History,
    job::Job,
    letter::DeadLetter,
    money::Money,
    rewrite::{Edits, rewrite},
};

/// What a replay of a class sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Nothing: no replay can succeed, or none is safe.
    Never,
    /// The same id: whatever became of it, it captures once.
    SameId,
    /// The id's one child, once the gateway has shown that the id itself captured nothing.
    FreshId,
    /// The same bytes, job or not.
    SameBytes,
}

impl Policy {
    /// The policy of a class; a verdict of class `access` that nobody signed says nothing about the id.
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

    /// In words, for people.
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

/// What an operator does about a class, before or instead of a replay.
#[must_use]
pub const fn advice(class: Class) -> &'static str {
    match class {
        Class::Authorization => "a new payment is needed; discard",
        Class::Order => "look at the transaction",
        Class::Limit => "lower the amount",
        Class::Contract => "settle the contract",
        Class::Access => "mend credentials or set-up",
        Class::Request => "mend the publisher",
        Class::Conflict => "an earlier capture with this id exists: inquire, then discard",
        Class::Risk => "tell the payer",
        Class::Payer => "contact the payer",
        Class::Provider => "ask the gateway's support",
        Class::UnknownCode => "classify the code",
        Class::InDoubt => "wait, inquire",
        Class::Unreachable => "mend the network",
        Class::Expired => "decide; give a new expiresAt",
        Class::Malformed => "mend the publisher",
        Class::Poison => "report a bug",
    }
}

/// The one fresh id that may replace an id: nothing else enters, so one parent has one child, whichever copy of it is
/// replayed, however often and by whomever.
#[must_use]
pub fn fresh_id(parent: &str) -> String {
    let digest = Sha256::new().chain_update("capture-worker/fresh-id/1\n").chain_update(parent);
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("cw-{}", &hex[..40])
}

/// What an operator asks to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A lower amount, in the smallest unit; for class `limit`.
    pub capture_value: Option<u64>,
    /// A new `expiresAt`.
    pub expires_at: Option<OffsetDateTime>,
}

/// Why a letter stays where it is, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// The safe alternative.
    pub instead: String,
}

impl Refusal {
    /// A refusal in these words.
    #[must_use]
    pub fn new(reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { reason: reason.into(), instead: instead.into() }
    }
}

/// A job that goes back to the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Its body.
    pub body: Vec<u8>,
    /// What it carries.
    pub history: History,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its amount, if it is a job.
    pub amount: Option<Money>,
    /// By which policy.
    pub policy: Policy,
    /// Its amount was lowered and its capture is the payment's last one: the gateway gives up what
    /// is left of the authorization.
    pub gives_up_rest: bool,
}

/// What a replay would send, as far as the letter alone tells. One with a fresh id may go only if
/// [`super::evidence::decide`] lets it.
///
/// # Errors
/// The policy refuses it.
pub fn prepare(
    letter: &DeadLetter,
    changes: &Changes,
    now: OffsetDateTime,
) -> Result<Replay, Refusal> {
    let policy = Policy::of(letter.class, letter.signed);
    if changes.capture_value.is_some() && letter.class != Class::Limit {
        return Err(Refusal::new(
            format!(
                "only the amount of a letter of class limit may go down, this is {}",
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
                    format!("its body is no job: {}", malformed.reason),
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
            "dead show ID --inquire tells what it came to; then dead discard, which keeps that evidence",
        ),
        _ => Refusal::new(
            "the authorization is gone: no capture of this payment can succeed, under any id",
            "a new payment; then dead discard",
        ),
    }
}

fn same_bytes(letter: &DeadLetter, changes: &Changes) -> Result<Replay, Refusal> {
    if changes.expires_at.is_some() {
        return Err(Refusal::new(
            format!("a letter of class {} is replayed byte for byte", letter.class),
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
            "submit its body again as it is (dead export): the same id captures once",
        ));
    }
    if let (true, Some(error)) = (is_fresh, &job.forward_error) {
        return Err(Refusal::new(
            format!("its forwarded fields break their rules: {error}"),
            "have its publisher send a valid job",
        ));
    }
    if changes.capture_value.is_some() && job.forwarded.has_goods() {
        return Err(Refusal::new(
            "its goods say what its amount pays for: they would not fit a lower one",
            "dead discard, and a job with a lower amount and the goods of it, by its publisher",
        ));
    }
    let expires_at = changes.expires_at.or(job.expires_at);
    if expires_at.is_some_and(|at| now >= at) && (is_fresh || !letter.sent()) {
        return Err(Refusal::new(
            "its expiresAt has passed: it would expire again at once",
            "decide whether the goods still ship; if so, give --expires-at",
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
            format!(
                "--capture-value {value} is not less than the {} of the letter",
                amount.value()
            ),
            "the amount of a capture only goes down",
        ));
    }
    Money::from_smallest(amount.currency().code(), &value.to_string())
        .map_err(|error| Refusal::new(format!("--capture-value: {error}"), "give another amount"))
}

/// A replay begins anew; the same id keeps that it was sent, and the gateway's last word on it.
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

/// Of a fresh id nothing has been sent.
fn fresh(letter: &DeadLetter, job: &Job) -> History {
    let parent = job.capture_request_id.clone();
    History {
        replays: letter.history.replays.saturating_add(1),
        origin: letter.history.origin.clone().or_else(|| Some(parent.clone())),
        parent: Some(parent),
        ..History::default()
    }
}
