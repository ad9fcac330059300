//! The outcome of an attempt, and what it means for the payment's lease.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{class::Class, reply::AcquirerInfo};
use crate::domain::job::{JobError, Subject, history::LastReply};

/// The outcome of an attempt. Every attempt has exactly one, whatever happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The money is captured: the gateway signed the reply that says so.
    Captured(Capture),
    /// The capture failed, and this is final: the gateway signed the reply that says so.
    Failed(FailureVerdict),
    /// Failed while leased: a final failure that is true because the gateway has no such capture.
    /// It holds only while no other worker could send the id, so only while this attempt kept its
    /// lease.
    FailedWhileLeased(FailureVerdict),
    /// The gateway may have received a capture request, and it is not yet known whether it
    /// captured.
    InDoubt(Doubt),
    /// The gateway refused the call because there were too many. The job is in doubt for safety,
    /// but no attempt is spent.
    Throttled(Throttle),
    /// Nothing reached the gateway. The text is the reason.
    NotSent(String),
    /// An unauthenticated reply: an unsigned refusal about our credentials. It is no verdict on a
    /// capture.
    Unauthenticated(FailureVerdict),
    /// Nothing was tried. The job waits and is tried again later.
    Deferred(Deferral),
    /// The body breaks the message contract.
    Malformed {
        /// The rule that is broken.
        error: JobError,
        /// Whether an inquiry was needed to show that nothing was captured.
        inquired: bool,
    },
    /// `expiresAt` has passed, and nothing was captured.
    Expired {
        /// Whether an inquiry was needed to show that nothing was captured.
        inquired: bool,
    },
    /// The broker took the job back too often: its content may crash workers.
    Poison,
    /// The worker is stopping and the attempt has not begun: the job goes back to the queue.
    HandBack,
}

/// A successful capture, as the gateway reported it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// `resultCode` of the gateway's reply.
    pub code: String,
    /// `resultMessage` of the gateway's reply, if it has one.
    pub message: Option<String>,
    /// `captureId`: the gateway's id of the capture.
    pub capture_id: Option<String>,
    /// `captureTime` as the gateway wrote it.
    pub capture_time: Option<String>,
    /// `acquirerReferenceNo`: the acquirer's reference for the capture.
    pub acquirer_reference_no: Option<String>,
    /// `acquirerInfo`: further data about the acquirer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquirer_info: Option<AcquirerInfo>,
}

/// The verdict of a final failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureVerdict {
    /// The class of dead letters that the job goes to.
    pub class: Class,
    /// `resultCode`, if the gateway gave one.
    pub code: Option<String>,
    /// `resultMessage`, or a reason written by this program.
    pub message: Option<String>,
    /// Whether the gateway signed the verdict.
    pub signed: bool,
}

/// Why the outcome of a capture is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// What happened, in words.
    pub reason: String,
    /// The kind of doubt, for metrics.
    pub kind: DoubtKind,
    /// The gateway's code and status, if the reply counts as its statement about the id.
    pub last_reply: Option<LastReply>,
}

impl Doubt {
    /// The outcome of an attempt that leaves this doubt.
    pub(super) fn because(
        kind: DoubtKind,
        reason: String,
        last_reply: Option<LastReply>,
    ) -> Outcome {
        Outcome::InDoubt(Self { reason, kind, last_reply })
    }

    /// The outcome of an inquiry that shows nothing about the capture.
    pub(super) fn no_evidence(reason: &str) -> Outcome {
        Self::because(DoubtKind::NoEvidence, reason.to_owned(), None)
    }
}

/// The kinds of doubt, as metrics count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoubtKind {
    /// The gateway replied `U`: unknown, not final.
    Unknown,
    /// There is no reply, or none that can be read.
    NoAnswer,
    /// The reply is not proven to come from the gateway.
    Untrusted,
    /// A signed reply names another capture, payment or amount.
    Contradiction,
    /// A signed `F` that might not be about the capture.
    Unproven,
    /// An inquiry that shows nothing about the capture.
    NoEvidence,
    /// The lease was lost during the call.
    LeaseLost,
    /// The attempt panicked, which is a bug.
    Panic,
}

impl DoubtKind {
    /// The label value in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NoAnswer => "no_answer",
            Self::Untrusted => "untrusted",
            Self::Contradiction => "contradiction",
            Self::Unproven => "unproven",
            Self::NoEvidence => "no_evidence",
            Self::LeaseLost => "lease_lost",
            Self::Panic => "panic",
        }
    }
}

/// The gateway refused a call because there were too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// How long the gateway asks to wait (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// The gateway's code and status, if the reply counts as its statement about the id.
    pub last_reply: Option<LastReply>,
}

/// Why nothing was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deferral {
    /// Another job holds the lease of this payment.
    LeaseHeld,
    /// An in-doubt block: another capture of this payment is in doubt.
    HoldOfAnother,
    /// The payment queue in this worker is full; a position may be free after this time.
    LineFull(Duration),
    /// Redis is unavailable: nothing is captured without a lease.
    LeaseUnavailable,
    /// The circuit breaker is open: the gateway does not reply, or does not accept our credentials.
    GatewayPaused,
    /// The rate limiter allows no call soon enough.
    RateLimit,
    /// The job has an `x-death` header, for which the broker may drop it instead of dead-lettering
    /// it. So the job is published anew before anything else.
    DeathHeader,
    /// The broker refuses what this worker publishes.
    PublishRefused,
    /// The job ended in an earlier delivery, but the broker refused its result.
    ResultRefused,
}

impl Deferral {
    /// The name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeaseHeld => "lease_held",
            Self::HoldOfAnother => "hold_of_another",
            Self::LineFull(_) => "line_full",
            Self::LeaseUnavailable => "lease_unavailable",
            Self::GatewayPaused => "gateway_paused",
            Self::RateLimit => "rate_limit",
            Self::DeathHeader => "death_header",
            Self::PublishRefused => "publish_refused",
            Self::ResultRefused => "result_refused",
        }
    }
}

/// A finished attempt: the job, its outcome, and the facts that decide what is done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedAttempt {
    /// What could be read of the job.
    pub subject: Subject,
    /// The outcome of the attempt.
    pub outcome: Outcome,
    /// Whether a capture request for this id may have been sent before, by its sent marker.
    pub sent: SentState,
    /// Whether the outcome was already recorded in Redis: then no attempt was spent on it.
    pub remembered: bool,
    /// What the outcome rests on.
    pub evidence: Option<Evidence>,
    /// Whether the circuit breaker was already open when the attempt failed: then no attempt is
    /// spent.
    pub outage: bool,
}

/// Whether a capture request for an id may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentState {
    /// Redis was asked for the sent marker, and there is none.
    No,
    /// Redis could not be asked: neither "sent" nor "not sent" may be claimed.
    Unknown,
    /// A request may have been sent.
    Yes,
}

/// What a final outcome rests on: `evidence` in the result message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The reply to the capture call.
    Reply,
    /// An inquiry that showed the capture, or showed that there is none.
    Inquiry,
    /// The outcome that Redis had recorded.
    Record,
}

/// A final outcome of an id. Redis records it, so that a copy of the job needs no call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalOutcome {
    /// The money was captured.
    Captured(Capture),
    /// Failed by a verdict about the id: no request that is still under way can change it.
    Failed(FailureVerdict),
    /// Failed while leased: the gateway gave an `F` before it looked up the id. This is true only
    /// for an attempt that kept its lease, because another copy of the job may have been sent
    /// meanwhile. The record in Redis names it `closed`.
    #[serde(rename = "closed")]
    FailedWhileLeased(FailureVerdict),
}

impl FinalOutcome {
    /// The name of its kind in Redis: the second line of the record.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Captured(_) => "captured",
            Self::Failed(_) => "failed",
            Self::FailedWhileLeased(_) => "closed",
        }
    }
}

impl From<FinalOutcome> for Outcome {
    fn from(outcome: FinalOutcome) -> Self {
        match outcome {
            FinalOutcome::Captured(capture) => Self::Captured(capture),
            FinalOutcome::Failed(verdict) => Self::Failed(verdict),
            FinalOutcome::FailedWhileLeased(verdict) => Self::FailedWhileLeased(verdict),
        }
    }
}

/// The recorded outcome that an attempt found in Redis when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The outcome of this id with this amount.
    Same(FinalOutcome),
    /// The id captured another amount.
    CapturedOther,
    /// A fresh id for another amount has replaced the id.
    ReplacedOther,
}

impl Outcome {
    /// The outcome that replaces this one because Redis had recorded another when the attempt
    /// ended.
    ///
    /// A recorded capture always wins. A recorded failure wins if its verdict is about the id, or
    /// if this attempt kept its lease. An attempt that captured stays captured. A job that goes
    /// back to the queue finds the record in its next delivery.
    ///
    /// `None`: the outcome stays as it is.
    #[must_use]
    pub fn settled_by(&self, recorded: Option<Recorded>, kept_lease: bool) -> Option<Self> {
        match (self, recorded?) {
            (Self::Captured(_) | Self::HandBack, _)
            | (_, Recorded::CapturedOther | Recorded::ReplacedOther) => None,
            (_, Recorded::Same(outcome @ FinalOutcome::Captured(_))) => Some(outcome.into()),
            (Self::Failed(_), _) => None,
            (_, Recorded::Same(outcome @ FinalOutcome::Failed(_))) => Some(outcome.into()),
            (Self::FailedWhileLeased(_), _) if kept_lease => None,
            (_, Recorded::Same(outcome @ FinalOutcome::FailedWhileLeased(_))) => {
                kept_lease.then(|| outcome.into())
            }
        }
    }
}

/// What is done with the lease, the in-doubt block and the sent marker of an id after its attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// A final verdict: record it and end the in-doubt block.
    Final(FinalOutcome),
    /// Failed while leased: record it and end the in-doubt block, if the lease was kept until now.
    FailedWhileLeased(FinalOutcome),
    /// As [`Release::FailedWhileLeased`], and record for more than a year that a fresh id replaces
    /// this one, whatever its amount.
    Replace(FinalOutcome),
    /// The attempt is over without a verdict that may be recorded: end the in-doubt block and keep
    /// the sent marker.
    EndBlock,
    /// In doubt: keep the in-doubt block and the sent marker.
    KeepBlock {
        /// The code of a signed `F` that might not be about the capture. It is kept with the sent
        /// marker, because only what the gateway signed may end an id later.
        refused: Option<String>,
    },
    /// Nothing was sent: roll back what this acquisition wrote, unless the lease was lost during
    /// the call.
    RollBack,
    /// No call was made: roll back what this acquisition wrote, even if the lease is lost.
    RollBackAlways,
}

impl Outcome {
    /// What this outcome means for the lease.
    #[must_use]
    pub fn release(&self) -> Release {
        match self {
            Self::Captured(capture) => Release::Final(FinalOutcome::Captured(capture.clone())),
            Self::Failed(verdict) => match verdict.class {
                Class::Conflict => Release::RollBack,
                // `access` too: otherwise a copy of the job could capture after the failure was
                // published.
                _ => Release::Final(FinalOutcome::Failed(verdict.clone())),
            },
            Self::FailedWhileLeased(verdict) => {
                Release::FailedWhileLeased(FinalOutcome::FailedWhileLeased(verdict.clone()))
            }
            Self::Expired { inquired: true } | Self::Malformed { inquired: true, .. } => {
                Release::EndBlock
            }
            Self::InDoubt(Doubt { kind: DoubtKind::Unproven, last_reply, .. }) => {
                Release::KeepBlock { refused: last_reply.as_ref().map(|reply| reply.code.clone()) }
            }
            Self::InDoubt(_) | Self::Throttled(_) => Release::KeepBlock { refused: None },
            Self::NotSent(_) | Self::Unauthenticated(_) => Release::RollBack,
            Self::Deferred(_)
            | Self::Malformed { inquired: false, .. }
            | Self::Expired { inquired: false }
            | Self::Poison
            | Self::HandBack => Release::RollBackAlways,
        }
    }

    /// Whether a signed reply of the gateway ended it. That stays true whichever worker holds the
    /// lease by now.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Captured(_) | Self::Failed(_))
    }

    /// The name in logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Captured(_) => "captured",
            Self::Failed(_) | Self::FailedWhileLeased(_) => "failed",
            Self::InDoubt(_) => "in_doubt",
            Self::Throttled(_) => "throttled",
            Self::NotSent(_) => "not_sent",
            Self::Unauthenticated(_) => "account",
            Self::Deferred(_) => "deferred",
            Self::Malformed { .. } => "malformed",
            Self::Expired { .. } => "expired",
            Self::Poison => "poison",
            Self::HandBack => "handed_back",
        }
    }
}
