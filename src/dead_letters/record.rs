//! The audit: who did what to which letter, when, why, from what to what. Written before the act.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::domain::{
    class::Class,
    letter::DeadLetter,
    money::Money,
    replay::{Refusal, Replay},
    settle::epoch_ms,
};

/// Who acts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// The user of the operating system, and the host.
    pub user: String,
    /// In whose name, if that is somebody else.
    pub as_: Option<String>,
}

/// What is done to a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Its job goes to the queue of jobs again.
    Replay,
    /// Its capture stands: its publisher is told so.
    Settle,
    /// It is thrown away.
    Discard,
    /// It stays, for this reason.
    Refuse,
    /// What was written down before could not be done; it stays.
    Fail,
}

impl Action {
    /// The name in records.
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

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When, RFC 3339.
    pub at: String,
    /// The user of the operating system, and the host.
    pub who: String,
    /// In whose name.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub as_: Option<String>,
    /// What.
    pub action: Action,
    /// Why, by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which letter.
    pub letter: Audited,
    /// What a replay sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Sent>,
    /// What the gateway or the memory of outcomes said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Why it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// What to do instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

/// A letter, as far as it is needed to tell which one it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audited {
    /// Its class.
    pub class: Class,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_request_id: Option<String>,
    /// Its payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// Its amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_amount: Option<Money>,
    /// Its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// When it was given up, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_at: Option<String>,
    /// Replays before.
    pub replays: u32,
    /// SHA-256 of its body, in hexadecimal.
    pub body_sha256: String,
}

/// What a replay sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// Under which id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_request_id: Option<String>,
    /// How much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_amount: Option<Money>,
    /// By which policy.
    pub policy: String,
}

impl Record {
    /// A record of an action on a letter, made now.
    #[must_use]
    pub fn of(who: &Who, reason: Option<&str>, action: Action, letter: &DeadLetter) -> Self {
        Self {
            at: rfc3339(epoch_ms(OffsetDateTime::now_utc())).unwrap_or_default(),
            who: who.user.clone(),
            as_: who.as_.clone(),
            action,
            reason: reason.map(str::to_owned),
            letter: Audited::of(letter),
            to: None,
            evidence: None,
            refusal: None,
            instead: None,
        }
    }

    /// With what a replay sends.
    #[must_use]
    pub fn sending(mut self, replay: &Replay) -> Self {
        self.to = Some(Sent {
            capture_request_id: replay.id.clone(),
            capture_amount: replay.amount,
            policy: replay.policy.words().to_owned(),
        });
        self
    }

    /// With what was seen.
    #[must_use]
    pub fn seeing(mut self, evidence: Option<String>) -> Self {
        self.evidence = evidence;
        self
    }

    /// With why it stays.
    #[must_use]
    pub fn refusing(mut self, refusal: &Refusal) -> Self {
        self.refusal = Some(refusal.reason.clone());
        self.instead = Some(refusal.instead.clone());
        self
    }
}

impl Audited {
    /// Of a letter.
    #[must_use]
    pub fn of(letter: &DeadLetter) -> Self {
        Self {
            class: letter.class,
            capture_request_id: letter.id().map(str::to_owned),
            payment_id: letter.payment_id().map(str::to_owned),
            capture_amount: letter.amount(),
            code: letter.code.clone(),
            dead_at: letter.dead_at_ms.and_then(rfc3339),
            replays: letter.history.replays,
            body_sha256: Sha256::digest(&letter.body)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }
}

/// A time of epoch milliseconds as text.
pub(crate) fn rfc3339(ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    time.format(&Rfc3339).ok()
}
