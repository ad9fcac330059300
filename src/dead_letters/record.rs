//! Audit records: who did what to which dead letter, when and why. A record is published before the
//! act.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::wording::RefusalText;
use crate::domain::{
    capture::class::Class,
    money::Money,
    replay::{Replay, dead_letter::DeadLetter},
    time::{epoch_ms, rfc3339_of_ms},
};

/// The operator who acts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// The user of the operating system and the host: `user@host`.
    pub user: String,
    /// On whose behalf, if that is somebody else: `--as`.
    pub as_: Option<String>,
}

/// What an operator does with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Its job is sent to the queue of jobs again.
    Replay,
    /// Its capture succeeded: the result is published, and the dead letter is removed.
    Settle,
    /// It is removed for good.
    Discard,
    /// It stays in its queue, because the act was refused.
    Refuse,
    /// The act of the record before could not be done: it stays in its queue.
    Fail,
}

impl Action {
    /// The value of `action` in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Settle => "settle",
            Self::Discard => "discard",
            Self::Refuse => "refuse",
            Self::Fail => "fail",
        }
    }
}

/// One audit record, as it is published in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When the record was made, in RFC 3339.
    pub at: String,
    /// The user of the operating system and the host: `user@host`.
    pub who: String,
    /// On whose behalf the operator acts.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub as_: Option<String>,
    /// What the operator does with the dead letter.
    pub action: Action,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The dead letter that is acted on.
    #[serde(rename = "letter")]
    pub dead_letter: Audited,
    /// The job that a replay sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Sent>,
    /// What the gateway replied, or the recorded outcome in Redis, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Why the dead letter stays, if the act was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The safe alternative to an act that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

/// The facts about a dead letter that identify it after it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audited {
    /// The class of its queue.
    pub class: Class,
    /// The captureRequestId, if it is readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_request_id: Option<String>,
    /// The paymentId, if it is readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// The amount, if it is readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_amount: Option<Money>,
    /// The result code, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// When it was dead-lettered, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_at: Option<String>,
    /// How often the job was replayed before.
    pub replays: u32,
    /// The SHA-256 of the body, in hexadecimal.
    pub body_sha256: String,
}

/// The job that a replay sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// Its captureRequestId: the same one, or a fresh id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_request_id: Option<String>,
    /// Its amount, which may be lower than that of the dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_amount: Option<Money>,
    /// The replay policy of the class, in words.
    pub policy: String,
}

impl Record {
    /// A record, made now, of an action on a dead letter.
    #[must_use]
    pub fn of(who: &Who, reason: Option<&str>, action: Action, dead_letter: &DeadLetter) -> Self {
        Self {
            at: rfc3339_of_ms(epoch_ms(OffsetDateTime::now_utc())).unwrap_or_default(),
            who: who.user.clone(),
            as_: who.as_.clone(),
            action,
            reason: reason.map(str::to_owned),
            dead_letter: Audited::of(dead_letter),
            to: None,
            evidence: None,
            refusal: None,
            instead: None,
        }
    }

    /// Adds the job that a replay sends.
    #[must_use]
    pub fn sending(mut self, replay: &Replay) -> Self {
        self.to = Some(Sent {
            capture_request_id: replay.id.clone(),
            capture_amount: replay.amount,
            policy: replay.policy.words().to_owned(),
        });
        self
    }

    /// Adds the evidence, in words.
    #[must_use]
    pub fn seeing(mut self, evidence: Option<String>) -> Self {
        self.evidence = evidence;
        self
    }

    /// Adds why the act is refused, and the safe alternative.
    #[must_use]
    pub fn refusing(mut self, refusal: impl Into<RefusalText>) -> Self {
        let RefusalText { reason, instead } = refusal.into();
        self.refusal = Some(reason);
        self.instead = Some(instead);
        self
    }
}

impl Audited {
    /// The identifying facts of a dead letter.
    #[must_use]
    pub fn of(dead_letter: &DeadLetter) -> Self {
        Self {
            class: dead_letter.class,
            capture_request_id: dead_letter.id().map(str::to_owned),
            payment_id: dead_letter.payment_id().map(str::to_owned),
            capture_amount: dead_letter.amount(),
            code: dead_letter.code.clone(),
            dead_at: dead_letter.dead_at_ms.and_then(rfc3339_of_ms),
            replays: dead_letter.history.replays,
            body_sha256: Sha256::digest(&dead_letter.body)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }
}
