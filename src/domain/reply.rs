//! What came back from the gateway: an answer, nothing, or the certainty that nothing was sent.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::money::Money;

/// The largest `acquirerInfo` that is kept, in bytes.
const ACQUIRER_INFO_BYTES_MAX: usize = 4 * 1024;

/// The reply to a call. Whatever may have reached the gateway is never [`Reply::NotSent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<B> {
    /// HTTP 200 with a body that could be read.
    Answered(Answer<B>),
    /// Connecting failed: nothing of the request has left.
    NotSent(String),
    /// The request may have been received, and there is no answer to go by.
    NoAnswer(NoAnswer),
}

/// An answer's result and body, and whether the gateway signed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<B> {
    /// Whose word it is.
    pub signature: Signature,
    /// `result` of the body.
    pub result: GatewayResult,
    /// `Retry-After`, where it was given.
    pub retry_after: Option<Duration>,
    /// The rest of the body.
    pub body: B,
}

/// Whether an answer is the gateway's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Signed by the gateway.
    Good,
    /// Not signed at all: the gateway does this when it can't tell who calls.
    Missing,
    /// Signed by somebody else, or changed on the way: never trusted.
    Bad,
    /// Signed by the gateway, at a time that can't be read or lies well before the request: perhaps an answer to an
    /// earlier call. What has captured stays captured, so it proves a capture, and nothing else.
    Stale,
}

/// `result` of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayResult {
    /// `resultStatus`.
    pub status: Status,
    /// `resultCode`.
    pub code: String,
    /// `resultMessage`.
    pub message: Option<String>,
}

/// `resultStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// `S`: it succeeded.
    S,
    /// `F`: it failed for good.
    F,
    /// `U`: unknown, not final.
    U,
    /// Anything else: ambiguous.
    Other(String),
}

impl Status {
    /// As the gateway wrote it.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::S => "S",
            Self::F => "F",
            Self::U => "U",
            Self::Other(other) => other,
        }
    }

    /// The status with this text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        match text {
            "S" => Self::S,
            "F" => Self::F,
            "U" => Self::U,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The time-out passed.
    #[error("no answer within {}", super::duration::show(*.0))]
    TimedOut(Duration),
    /// The connection broke after the request may have left.
    #[error("the connection was lost: {0}")]
    ConnectionLost(String),
    /// Only HTTP 200 carries a verdict.
    #[error("HTTP status {status}")]
    HttpStatus {
        /// The status.
        status: u16,
        /// `Retry-After`, where it was given.
        retry_after: Option<Duration>,
    },
    /// No JSON of the gateway's form.
    #[error("the body can't be read: {0}")]
    Unreadable(String),
    /// More than any answer of the gateway.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
}

/// What an answer to a capture says besides its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureBody {
    /// Our id.
    pub capture_request_id: Option<String>,
    /// The payment.
    pub payment_id: Option<String>,
    /// The amount; `Some(Err)` if it can't be read.
    pub amount: Option<Result<Money, String>>,
    /// The gateway's id of the capture.
    pub capture_id: Option<String>,
    /// When it captured, as the gateway wrote it.
    pub capture_time: Option<String>,
    /// The acquirer's id.
    pub acquirer_reference_no: Option<String>,
    /// What else is known of the acquirer.
    pub acquirer_info: Option<AcquirerInfo>,
}

/// `acquirerInfo`, byte for byte as the gateway sent it. Nothing in it is looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AcquirerInfo(Box<RawValue>);

impl AcquirerInfo {
    /// What the gateway sent; nothing if it is larger than a result should carry.
    #[must_use]
    pub fn of(raw: Box<RawValue>) -> Option<Self> {
        (raw.get().len() <= ACQUIRER_INFO_BYTES_MAX).then_some(Self(raw))
    }
}

impl PartialEq for AcquirerInfo {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Eq for AcquirerInfo {}

/// What an answer to an inquiry says besides its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InquiryBody {
    /// The payment, if it is named.
    pub payment_id: Option<String>,
    /// The transactions of the payment; `None` if the field is absent or can't be read.
    pub transactions: Option<Vec<Transaction>>,
    /// What was authorized; `Some(Err)` if it can't be read.
    pub payment_amount: Option<Result<Money, String>>,
    /// Until when captures may be made, as the gateway wrote it.
    pub auth_expiry_time: Option<String>,
    /// Whether the authorization is under review; `PROCESSING`: do not capture yet.
    pub auth_review_status: Option<String>,
}

/// One transaction of an inquired payment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// `CAPTURE` for ours.
    pub kind: Option<String>,
    /// `captureRequestId` for ours.
    pub request_id: Option<String>,
    /// `captureId` for ours.
    pub id: Option<String>,
    /// SUCCESS, FAIL, PROCESSING, CANCELLED, PENDING.
    pub status: Option<String>,
    /// Why.
    pub result: Option<GatewayResult>,
    /// How much; `Some(Err)` if it can't be read.
    pub amount: Option<Result<Money, String>>,
    /// When, as the gateway wrote it.
    pub time: Option<String>,
    /// The acquirer's id.
    pub acquirer_reference_no: Option<String>,
    /// What else is known of the acquirer.
    pub acquirer_info: Option<AcquirerInfo>,
}

/// What one transaction says of a capture. Type, status and result must agree, or it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It captured.
    Captured,
    /// It failed for good.
    Failed,
    /// It is not over.
    InProcess,
    /// It contradicts itself, or is not known.
    Unclear,
}

impl Transaction {
    /// What it says. `transactionStatus` SUCCESS goes with an `S` in `transactionResult`, FAIL and CANCELLED with an `F`,
    /// PROCESSING and PENDING with a `U`; each also with no result at all.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let result = self.result.as_ref().map(|result| &result.status);
        let status = self.status.as_deref().unwrap_or_default();
        match (self.kind.as_deref(), status, result) {
            (Some(CAPTURE), "SUCCESS", None | Some(Status::S)) => Standing::Captured,
            (Some(CAPTURE), "FAIL" | "CANCELLED", None | Some(Status::F)) => Standing::Failed,
            (Some(CAPTURE), "PROCESSING" | "PENDING", None | Some(Status::U)) => {
                Standing::InProcess
            }
            _ => Standing::Unclear,
        }
    }

    /// Whether it may be a capture whose request id the gateway does not tell: one by the gateway itself or by its
    /// portal.
    #[must_use]
    pub fn is_anonymous_capture(&self) -> bool {
        let is_capture =
            self.kind.as_ref().is_none_or(|kind| kind.trim().eq_ignore_ascii_case(CAPTURE));
        is_capture && self.request_id.as_ref().is_none_or(|id| id.trim().is_empty())
    }
}

/// `transactionType` of a capture.
const CAPTURE: &str = "CAPTURE";

/// The reply to a capture.
pub type CaptureReply = Reply<CaptureBody>;
/// The reply to an inquiry.
pub type InquiryReply = Reply<InquiryBody>;
