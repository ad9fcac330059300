//! Why a dead letter stays in its queue, as data. The words for operators and for the audit are not
//! here: a refusal says what was found, and `dead_letters` puts it into words.

use crate::domain::{
    capture::class::Class,
    job::JobError,
    money::{Currency, Money, MoneyError},
};

/// Why a dead letter is not replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayRefusal {
    /// By the dead letter alone, and by what the operator wants to change.
    Policy(PolicyRefusal),
    /// By the operator's own limits.
    Limit(LimitRefusal),
    /// By what Redis shows about the id and its payment.
    Record(RecordRefusal),
    /// By what the gateway shows about the id and its payment.
    Evidence(EvidenceRefusal),
}

impl From<PolicyRefusal> for ReplayRefusal {
    fn from(refusal: PolicyRefusal) -> Self {
        Self::Policy(refusal)
    }
}

impl From<LimitRefusal> for ReplayRefusal {
    fn from(refusal: LimitRefusal) -> Self {
        Self::Limit(refusal)
    }
}

impl From<RecordRefusal> for ReplayRefusal {
    fn from(refusal: RecordRefusal) -> Self {
        Self::Record(refusal)
    }
}

impl From<EvidenceRefusal> for ReplayRefusal {
    fn from(refusal: EvidenceRefusal) -> Self {
        Self::Evidence(refusal)
    }
}

/// Why the policy of its class, or its own content, forbids to replay a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyRefusal {
    /// A lower amount was asked for, but the class is not `limit`.
    NotOfClassLimit(Class),
    /// The class is `conflict`: an earlier capture with this id may have succeeded.
    EarlierCapture,
    /// The class is `authorization`: no id can capture from this payment any more.
    NoAuthorization,
    /// A new `expiresAt` was asked for, but this class is replayed byte for byte.
    ByteForByte(Class),
    /// The body is not a valid job.
    NotAJob(JobError),
    /// A fresh id needs a verdict that the gateway signed, and this one is not marked as signed.
    Unsigned,
    /// The forwarded fields break the message contract, so a fresh id can't be posted with them.
    InvalidForwardedFields(JobError),
    /// A lower amount was asked for, but the job lists the goods that its amount pays for.
    HasGoods,
    /// `expiresAt` has passed, and nothing was sent: the job would expire again at once.
    ExpiresAtPassed,
    /// The amount that was asked for is not lower than that of the job.
    NotLower {
        /// The value that was asked for, in the smallest unit.
        asked: u64,
        /// The amount of the job.
        amount: Money,
    },
    /// The amount that was asked for is not a valid amount.
    InvalidAmount(MoneyError),
    /// The changes would make the body an invalid job.
    Unchangeable(JobError),
}

/// Why a replay exceeds the limits that the operator set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitRefusal {
    /// Without a readable id there is no result that could show whether a canary was captured.
    CanaryWithoutId,
    /// Another job with this amount would exceed the most money that may be sent.
    OverMaxMoney(Money),
    /// The amount is not readable, so it can't be compared with the most money that may be sent.
    AmountUnreadable,
}

/// Why a fresh id can't be sent, as far as Redis shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordRefusal {
    /// Another capture of the payment is under way.
    PaymentBusy,
    /// Another capture of the payment is in doubt.
    PaymentInDoubt,
    /// A copy of the job is in doubt.
    CopyInDoubt,
    /// A fresh id with another amount has replaced the id.
    ReplacedByOther,
    /// Redis is unavailable, with the reason: a fresh id needs the lease of its payment.
    RedisUnavailable(String),
    /// Redis gives no leases at present, with the reason.
    LeasesWithheld(String),
    /// When the lease was released, the id had captured another amount.
    CapturedOtherSince,
    /// When the lease was released, a fresh id with another amount had replaced the id.
    ReplacedByOtherSince,
    /// When the lease was released, it was lost, or the recorded outcome was.
    LeaseLost,
}

/// Why the gateway's evidence forbids a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvidenceRefusal {
    /// The id captured another amount, which the text names.
    CapturedOtherAmount(String),
    /// The gateway is still processing the capture.
    InProcess,
    /// The gateway refused the inquiry, because the authorization is no longer valid: its code.
    AuthorizationRefused(String),
    /// There is no evidence that the id captured nothing, with the reason.
    NoEvidence(String),
    /// The child is at the gateway already, with another amount.
    ChildWithOtherAmount {
        /// The fresh id that replaces the id of the dead letter.
        child: String,
        /// Its amount at the gateway.
        amount: Money,
    },
    /// This fresh id replaced the id, and has captured or may still capture.
    DescendantActive(String),
    /// This id, which the id of the dead letter replaced, has captured or may still capture.
    AncestorActive(String),
    /// The outcome of the id is not known, with the reason, and a fresh id may have replaced it.
    OutcomeUnknown(String),
    /// The authorization expired at this time, as the gateway wrote it.
    AuthorizationExpired(String),
    /// Less is left of the authorization than the amount.
    OverAuthorization {
        /// The currency of the authorization.
        currency: Currency,
        /// What is left, in the smallest unit.
        left: u64,
        /// Whether the operator may lower the amount of this dead letter.
        may_lower: bool,
    },
}

/// Why a dead letter is not discarded: without it, no operator would find out about the money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscardRefusal {
    /// The money is captured, and no result says so yet.
    CapturedUnpublished,
    /// The gateway is still processing a capture of the id.
    InProcess,
    /// The outcome of the id is unknown, with the reason.
    OutcomeUnknown(String),
}
