//! What an attempt came to, and what that means for the lease.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    class::Class,
    history::LastWord,
    job::{JobError, Subject},
    reply::AcquirerInfo,
};

/// What an attempt came to. Exactly one of these, whatever happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The money is captured, by the gateway's signed word.
    Captured(Capture),
    /// It failed for good, by the gateway's signed word.
    Failed(Verdict),
    /// A failure that stands because the gateway has no such capture: true only as long as nobody else could send it.
    Closed(Verdict),
    /// A capture request may have been received, and nobody can say yet whether it captured.
    InDoubt(Doubt),
    /// The gateway took too many calls: in doubt for safety, but no attempt.
    Throttled(Throttle),
    /// Nothing has happened at the gateway.
    NotSent(String),
    /// The gateway does not know who calls, and says so unsigned: no verdict on a capture.
    Account(Verdict),
    /// Nothing was tried; later.
    Deferred(Deferral),
    /// The body breaks the message contract.
    Malformed {
        /// The rule that is broken.
        error: JobError,
        /// Whether that nothing was captured had to be inquired.
        inquired: bool,
    },
    /// Its time was over before it was sent.
    Expired {
        /// Whether that it was not captured had to be inquired.
        inquired: bool,
    },
    /// It came back from the broker too often: something in it may kill workers.
    Poison,
    /// The worker stops before it began: back to the queue.
    HandBack,
}

/// A capture that stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// `resultCode`.
    pub code: String,
    /// `resultMessage`.
    pub message: Option<String>,
    /// The gateway's id of the capture.
    pub capture_id: Option<String>,
    /// When, as the gateway wrote it.
    pub capture_time: Option<String>,
    /// The acquirer's id.
    pub acquirer_reference_no: Option<String>,
    /// What else is known of the acquirer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquirer_info: Option<AcquirerInfo>,
}

/// A final failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its class.
    pub class: Class,
    /// `resultCode`, if there is one.
    pub code: Option<String>,
    /// `resultMessage`, or the reason in our words.
    pub message: Option<String>,
    /// Whether the gateway signed it.
    pub signed: bool,
}

/// Why nobody can say yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// What happened, for people.
    pub reason: String,
    /// The kind, for counters.
    pub kind: DoubtKind,
    /// The gateway's word, where it gave one that counts.
    pub word: Option<LastWord>,
}

/// The kinds of doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoubtKind {
    /// `U`.
    Unknown,
    /// No answer at all.
    NoAnswer,
    /// An answer that is not the gateway's word.
    Untrusted,
    /// A signed `S` about something else.
    Contradiction,
    /// An `F` that need not be about the capture.
    Unproven,
    /// An inquiry that tells nothing.
    NoEvidence,
    /// The lease was lost while the call was under way.
    LeaseLost,
    /// A bug of ours.
    Panic,
}

impl DoubtKind {
    /// The name in counters.
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

/// Too many calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// How long the gateway asks to wait.
    pub retry_after: Option<Duration>,
    /// The gateway's word on this id, where it gave one that counts.
    pub word: Option<LastWord>,
}

/// Why nothing was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deferral {
    /// Another capture of this payment is under way.
    LeaseHeld,
    /// Another capture of this payment is in doubt.
    HoldOfAnother,
    /// Too many jobs of this payment wait in this worker: there may be room after so long.
    LineFull(Duration),
    /// Redis is away: nothing is captured without a lease.
    LeaseUnavailable,
    /// The gateway answers nobody, or does not know us: the breaker is open.
    GatewayPaused,
    /// Our own rate limit.
    RateLimit,
    /// The broker may drop the job for its `x-death` in place of dead-lettering it: it is published anew first.
    DeathHeader,
    /// The broker refuses whatever would be published.
    PublishRefused,
    /// The job ended before, and its result was refused.
    ResultRefused,
}

impl Deferral {
    /// The name in logs and counters.
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

/// An attempt that is over: whose it was, what it came to, and what is known besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The job, as far as it could be read.
    pub subject: Subject,
    /// What it came to.
    pub outcome: Outcome,
    /// Whether a capture request for this id had left before, by the marks that were looked at.
    pub sent: Sent,
    /// Whether the outcome was known already: no attempt was spent on it.
    pub remembered: bool,
    /// What the outcome rests on.
    pub evidence: Option<Evidence>,
    /// Whether the breaker was open already when it failed: then no attempt is spent.
    pub outage: bool,
}

/// Whether a capture request for an id may have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Its mark was looked for, and there is none.
    No,
    /// Nobody could look: no ground to say that nothing was sent, and none to say that something was.
    Unknown,
    /// It may have left.
    Yes,
}

/// What a final outcome rests on; `evidence` of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// An answer to the capture call.
    Reply,
    /// An inquiry showed it, or denied that there is such a capture.
    Inquiry,
    /// The outcome was on record.
    Record,
}

/// The final outcomes of an id, kept on record so that a copy of the job needs no call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Captured.
    Captured(Capture),
    /// Failed, by a verdict about the id: nothing that is still under way can change it.
    Failed(Verdict),
    /// Failed for want of a capture: an `F` that the gateway gives before it looks at the id. True only for an attempt
    /// that kept its lease, because another copy of the job may have been sent meanwhile.
    Closed(Verdict),
}

impl Fate {
    /// The name of its kind in Redis: the second line of a record.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Captured(_) => "captured",
            Self::Failed(_) => "failed",
            Self::Closed(_) => "closed",
        }
    }
}

impl From<Fate> for Outcome {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Captured(capture) => Self::Captured(capture),
            Fate::Failed(verdict) => Self::Failed(verdict),
            Fate::Closed(verdict) => Self::Closed(verdict),
        }
    }
}

/// A final outcome that an attempt found on record when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The outcome of this id and this amount.
    Same(Fate),
    /// Its id captured another amount.
    CapturedOther,
    /// Its id was replaced by a fresh one, for another amount.
    ReplacedOther,
}

impl Outcome {
    /// What an attempt comes to that ended so, when this was on record by then. A capture on record stands. A failure on
    /// record settles the job if it is about the id, or if the attempt kept its lease. A captured job is captured, and
    /// one that goes back to the queue finds the record when it comes again.
    ///
    /// `None`: the outcome stands as it is.
    #[must_use]
    pub fn settled_by(&self, recorded: Option<Recorded>, kept_lease: bool) -> Option<Self> {
        match (self, recorded?) {
            (Self::Captured(_) | Self::HandBack, _)
            | (_, Recorded::CapturedOther | Recorded::ReplacedOther) => None,
            (_, Recorded::Same(fate @ Fate::Captured(_))) => Some(fate.into()),
            (Self::Failed(_), _) => None,
            (_, Recorded::Same(fate @ Fate::Failed(_))) => Some(fate.into()),
            (Self::Closed(_), _) if kept_lease => None,
            (_, Recorded::Same(fate @ Fate::Closed(_))) => kept_lease.then(|| fate.into()),
        }
    }
}

/// What becomes of the lease, the hold and the mark of an id when its attempt is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// A final verdict: remember it, end the hold.
    Final(Fate),
    /// A failure for want of a capture: remember it and end the hold, if the lease was kept until now.
    Close(Fate),
    /// The same, and remember for more than a year that a fresh id replaces this one, whatever its amount.
    Replace(Fate),
    /// It is over, but not by a verdict that may be remembered: end the hold, leave the mark.
    EndHold,
    /// In doubt: hold and mark stay.
    KeepHold {
        /// The code of a signed `F` that need not be about the capture: kept with the mark, since only what the gateway
        /// signed may close an id later.
        refused: Option<String>,
    },
    /// Nothing was sent: take back what this acquisition wrote, unless the lease was lost during the call.
    TakeBack,
    /// No call was made: take back what this acquisition wrote, even if the lease is lost.
    Forget,
}

impl Outcome {
    /// What becomes of the lease.
    #[must_use]
    pub fn release(&self) -> Release {
        match self {
            Self::Captured(capture) => Release::Final(Fate::Captured(capture.clone())),
            Self::Failed(verdict) => match verdict.class {
                Class::Conflict => Release::TakeBack,
                // `access` too: a copy that came back and captured would deny a failure that was told.
                _ => Release::Final(Fate::Failed(verdict.clone())),
            },
            Self::Closed(verdict) => Release::Close(Fate::Closed(verdict.clone())),
            Self::Expired { inquired: true } | Self::Malformed { inquired: true, .. } => {
                Release::EndHold
            }
            Self::InDoubt(Doubt { kind: DoubtKind::Unproven, word, .. }) => {
                Release::KeepHold { refused: word.as_ref().map(|word| word.code.clone()) }
            }
            Self::InDoubt(_) | Self::Throttled(_) => Release::KeepHold { refused: None },
            Self::NotSent(_) | Self::Account(_) => Release::TakeBack,
            Self::Deferred(_)
            | Self::Malformed { inquired: false, .. }
            | Self::Expired { inquired: false }
            | Self::Poison
            | Self::HandBack => Release::Forget,
        }
    }

    /// Whether the gateway's signed word ended it: true whoever holds the lease by now.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Captured(_) | Self::Failed(_))
    }

    /// The name in logs and counters.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Captured(_) => "captured",
            Self::Failed(_) | Self::Closed(_) => "failed",
            Self::InDoubt(_) => "in_doubt",
            Self::Throttled(_) => "throttled",
            Self::NotSent(_) => "not_sent",
            Self::Account(_) => "account",
            Self::Deferred(_) => "deferred",
            Self::Malformed { .. } => "malformed",
            Self::Expired { .. } => "expired",
            Self::Poison => "poison",
            Self::HandBack => "handed_back",
        }
    }
}
