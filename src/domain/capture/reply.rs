//! What a call to the gateway returned: a reply that can be read, no reply, or the certainty that
//! nothing was sent.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::money::Money;

/// The largest `acquirerInfo` that is kept, in bytes.
const ACQUIRER_INFO_BYTES_MAX: usize = 4 * 1024;

/// The reply to a call. A call that may have reached the gateway is never [`Reply::NotSent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<B> {
    /// HTTP 200 with a body that can be read.
    Answered(Answer<B>),
    /// Connecting failed: no part of the request was sent. The text is the reason.
    NotSent(String),
    /// The request may have been received, and there is no usable reply.
    NoAnswer(NoAnswer),
}

/// The result and body of a reply, and whether the gateway signed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<B> {
    /// Whether the reply is proven to come from the gateway.
    pub signature: Signature,
    /// `result` in the body of the reply.
    pub result: GatewayResult,
    /// `Retry-After`, if the header was given.
    pub retry_after: Option<Duration>,
    /// The fields of the body beside `result`.
    pub body: B,
}

/// Whether a reply is proven to come from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Signed by the gateway, at a time that fits the request.
    Good,
    /// Not signed: the gateway leaves the signature out when it can't tell who calls.
    Missing,
    /// Signed with another key, or changed in transit: never trusted.
    Bad,
    /// Signed by the gateway, but its time can't be read or is well before the request, so it may
    /// be the reply to an earlier call. A capture stays captured, so such a reply proves a capture
    /// and nothing else.
    Stale,
}

/// `result` of a reply: status, code and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayResult {
    /// `resultStatus`: whether the call succeeded.
    pub status: Status,
    /// `resultCode`: the reason, as the gateway documents it; empty if absent.
    pub code: String,
    /// `resultMessage`: the gateway's text for people.
    pub message: Option<String>,
}

/// `resultStatus`: whether a call succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// `S`: the call succeeded.
    S,
    /// `F`: the call failed, and this is final.
    F,
    /// `U`: the outcome is unknown and not final.
    U,
    /// Any other text, which proves nothing.
    Other(String),
}

impl Status {
    /// The status as the gateway writes it.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::S => "S",
            Self::F => "F",
            Self::U => "U",
            Self::Other(other) => other,
        }
    }

    /// Reads the status from its text.
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

/// Why there is no usable reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No complete reply came before the time-out.
    #[error("no reply within {}", crate::domain::duration::show(*.0))]
    TimedOut(Duration),
    /// The connection broke after the request may have been sent.
    #[error("the connection was lost: {0}")]
    ConnectionLost(String),
    /// A status other than 200: only HTTP 200 carries a verdict.
    #[error("HTTP status {status}")]
    HttpStatus {
        /// The HTTP status code.
        status: u16,
        /// `Retry-After`, if the header was given.
        retry_after: Option<Duration>,
    },
    /// The body is not JSON in the gateway's format.
    #[error("the body can't be read: {0}")]
    Unreadable(String),
    /// The body is longer than any reply of the gateway.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
}

/// The body of a reply to a capture, beside its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureBody {
    /// `captureRequestId`: the id that the reply is about.
    pub capture_request_id: Option<String>,
    /// `paymentId`: the payment that the reply is about.
    pub payment_id: Option<String>,
    /// `captureAmount`; `Some(Err)` if it can't be read.
    pub amount: Option<Result<Money, String>>,
    /// `captureId`: the gateway's id of the capture.
    pub capture_id: Option<String>,
    /// `captureTime` as the gateway wrote it.
    pub capture_time: Option<String>,
    /// `acquirerReferenceNo`: the acquirer's reference for the capture.
    pub acquirer_reference_no: Option<String>,
    /// `acquirerInfo`: further data about the acquirer.
    pub acquirer_info: Option<AcquirerInfo>,
}

/// `acquirerInfo`, byte for byte as the gateway sent it. Nothing in it is interpreted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AcquirerInfo(Box<RawValue>);

impl AcquirerInfo {
    /// What the gateway sent; `None` if it is too large for a result message.
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

/// The body of a reply to an inquiry, beside its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InquiryBody {
    /// `paymentId`: the payment that was inquired about, if it is named.
    pub payment_id: Option<String>,
    /// `transactions` of the payment; `None` if the field is absent or can't be read.
    pub transactions: Option<Vec<Transaction>>,
    /// `paymentAmount`: the authorized amount; `Some(Err)` if it can't be read.
    pub payment_amount: Option<Result<Money, String>>,
    /// `authExpiryTime`: until when captures may be made, as the gateway wrote it.
    pub auth_expiry_time: Option<String>,
    /// `authReviewStatus`: whether the authorization is under review. `PROCESSING` means that no
    /// capture may be made yet.
    pub auth_review_status: Option<String>,
}

/// One transaction of a payment, as an inquiry lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// `transactionType`: `CAPTURE` for a capture.
    pub kind: Option<String>,
    /// `transactionRequestId`: the `captureRequestId` of a capture.
    pub request_id: Option<String>,
    /// `transactionId`: the `captureId` of a capture.
    pub id: Option<String>,
    /// `transactionStatus`: SUCCESS, FAIL, PROCESSING, CANCELLED or PENDING.
    pub status: Option<String>,
    /// `transactionResult`: the result of the transaction, with its code.
    pub result: Option<GatewayResult>,
    /// `transactionAmount`; `Some(Err)` if it can't be read.
    pub amount: Option<Result<Money, String>>,
    /// `transactionTime` as the gateway wrote it.
    pub time: Option<String>,
    /// `acquirerReferenceNo`: the acquirer's reference for the transaction.
    pub acquirer_reference_no: Option<String>,
    /// `acquirerInfo`: further data about the acquirer.
    pub acquirer_info: Option<AcquirerInfo>,
}

/// The state of a capture by one transaction. Type, status and result must agree; otherwise the
/// transaction proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The money was captured.
    Captured,
    /// The capture failed, and this is final.
    Failed,
    /// The gateway is still processing the capture.
    InProcess,
    /// The fields contradict each other or have unknown values.
    Unclear,
}

impl Transaction {
    /// The state that its fields prove. `transactionStatus` SUCCESS goes with an `S` in
    /// `transactionResult`, FAIL and CANCELLED with an `F`, PROCESSING and PENDING with a `U`. Each
    /// of them also counts without a `transactionResult`.
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

    /// The transaction of an id that says most: captured, then in process, then one that proves
    /// nothing, then failed.
    #[must_use]
    pub fn most_telling<'t>(transactions: &'t [Self], id: &str) -> Option<&'t Self> {
        let ours = transactions.iter().filter(|item| item.request_id.as_deref() == Some(id));
        ours.min_by_key(|item| match item.standing() {
            Standing::Captured => 0,
            Standing::InProcess => 1,
            Standing::Unclear => 2,
            Standing::Failed => 3,
        })
    }

    /// Whether this may be a capture whose request id the gateway does not give, such as one that
    /// was made by the gateway itself or in its portal.
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
