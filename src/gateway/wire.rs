//! The JSON bodies of the gateway's protocol, and how they become replies.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{
    capture::reply::{
        AcquirerInfo, Answer, CaptureBody, GatewayResult, InquiryBody, NoAnswer, Reply, Signature,
        Status, Transaction,
    },
    job::Job,
    money::{Money, WireAmount},
};

/// The body of a capture request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CaptureRequest<'a> {
    capture_request_id: &'a str,
    payment_id: &'a str,
    capture_amount: Money,
}

/// The body of an inquiry request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InquiryRequest<'a> {
    payment_id: &'a str,
}

/// The bytes of a capture request: the contract's fields, then the fields that the job forwards.
pub(super) fn capture_body(job: &Job) -> Vec<u8> {
    let mut body = to_bytes(&CaptureRequest {
        capture_request_id: &job.capture_request_id,
        payment_id: &job.payment_id,
        capture_amount: job.amount,
    });
    let forwarded = job.forwarded.members();
    if !forwarded.is_empty() && body.pop().is_some() {
        body.reserve_exact(forwarded.len() + 1);
        body.extend_from_slice(forwarded.as_bytes());
        body.push(b'}');
    }
    body
}

/// The bytes of an inquiry request.
pub(super) fn inquiry_body(payment_id: &str) -> Vec<u8> {
    to_bytes(&InquiryRequest { payment_id })
}

fn to_bytes(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// A body that a reply can be read into.
pub(super) trait Body: Sized {
    /// The JSON form of the body.
    type Wire: for<'de> Deserialize<'de>;
    /// The largest body that is read, in bytes.
    const BYTES_MAX: usize;

    /// Splits the JSON form into the result and the body.
    fn of(wire: Self::Wire) -> (WireResult, Self);
}

/// Reads a reply from its bytes.
pub(super) fn read<B: Body>(
    bytes: &[u8],
    signature: Signature,
    retry_after: Option<Duration>,
) -> Reply<B> {
    match serde_json::from_slice::<B::Wire>(bytes) {
        Ok(wire) => {
            let (result, body) = B::of(wire);
            Reply::Answered(Answer { signature, result: result.into(), retry_after, body })
        }
        Err(error) => Reply::NoAnswer(NoAnswer::Unreadable(shape(&error))),
    }
}

/// What is wrong with a body, without its content.
fn shape(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Io => "a read error",
        serde_json::error::Category::Syntax => "not JSON",
        serde_json::error::Category::Data => "not in the gateway's format",
        serde_json::error::Category::Eof => "truncated",
    };
    format!("{kind} at line {} column {}", error.line(), error.column())
}

/// `result` of a reply, as written in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireResult {
    result_status: String,
    #[serde(default)]
    result_code: Option<String>,
    #[serde(default)]
    result_message: Option<String>,
}

impl From<WireResult> for GatewayResult {
    fn from(wire: WireResult) -> Self {
        Self {
            status: Status::of(&wire.result_status),
            code: wire.result_code.unwrap_or_default(),
            message: wire.result_message,
        }
    }
}

fn amount(wire: Option<WireAmount<'static>>) -> Option<Result<Money, String>> {
    wire.map(|wire| {
        Money::from_smallest(&wire.currency, &wire.value).map_err(|error| error.to_string())
    })
}

/// The reply to a capture, as written in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireCapture {
    result: WireResult,
    #[serde(default)]
    capture_request_id: Option<String>,
    #[serde(default)]
    payment_id: Option<String>,
    #[serde(default)]
    capture_amount: Option<WireAmount<'static>>,
    #[serde(default)]
    capture_id: Option<String>,
    #[serde(default)]
    capture_time: Option<String>,
    #[serde(default)]
    acquirer_reference_no: Option<String>,
    #[serde(default)]
    acquirer_info: Option<Box<RawValue>>,
}

impl Body for CaptureBody {
    type Wire = WireCapture;
    const BYTES_MAX: usize = 64 * 1024;

    fn of(wire: WireCapture) -> (WireResult, Self) {
        let body = Self {
            capture_request_id: wire.capture_request_id,
            payment_id: wire.payment_id,
            amount: amount(wire.capture_amount),
            capture_id: wire.capture_id,
            capture_time: wire.capture_time,
            acquirer_reference_no: wire.acquirer_reference_no,
            acquirer_info: wire.acquirer_info.and_then(AcquirerInfo::of),
        };
        (wire.result, body)
    }
}

/// The reply to an inquiry, as written in JSON. Absent `transactions` are no evidence; `null` means
/// that there are none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireInquiry {
    result: WireResult,
    #[serde(default)]
    payment_id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    transactions: Option<Option<Vec<WireTransaction>>>,
    #[serde(default)]
    payment_amount: Option<WireAmount<'static>>,
    #[serde(default)]
    auth_expiry_time: Option<String>,
    #[serde(default)]
    auth_review_status: Option<String>,
}

/// Distinguishes `null` from an absent field.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireTransaction {
    #[serde(default)]
    transaction_type: Option<String>,
    #[serde(default)]
    transaction_request_id: Option<String>,
    #[serde(default)]
    transaction_id: Option<String>,
    #[serde(default)]
    transaction_status: Option<String>,
    #[serde(default)]
    transaction_result: Option<WireResult>,
    #[serde(default)]
    transaction_amount: Option<WireAmount<'static>>,
    #[serde(default)]
    transaction_time: Option<String>,
    #[serde(default)]
    acquirer_reference_no: Option<String>,
    #[serde(default)]
    acquirer_info: Option<Box<RawValue>>,
}

impl Body for InquiryBody {
    type Wire = WireInquiry;
    // A payment with thousands of partial captures lists all of them.
    const BYTES_MAX: usize = 4 * 1024 * 1024;

    fn of(wire: WireInquiry) -> (WireResult, Self) {
        let transactions = wire.transactions.map(|items| {
            let items = items.unwrap_or_default();
            items.into_iter().map(Transaction::from).collect()
        });
        let body = Self {
            payment_id: wire.payment_id,
            transactions,
            payment_amount: amount(wire.payment_amount),
            auth_expiry_time: wire.auth_expiry_time,
            auth_review_status: wire.auth_review_status,
        };
        (wire.result, body)
    }
}

impl From<WireTransaction> for Transaction {
    fn from(wire: WireTransaction) -> Self {
        Self {
            kind: wire.transaction_type,
            request_id: wire.transaction_request_id,
            id: wire.transaction_id,
            status: wire.transaction_status,
            result: wire.transaction_result.map(GatewayResult::from),
            amount: amount(wire.transaction_amount),
            time: wire.transaction_time,
            acquirer_reference_no: wire.acquirer_reference_no,
            acquirer_info: wire.acquirer_info.and_then(AcquirerInfo::of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inquiry(body: &str) -> InquiryBody {
        match read::<InquiryBody>(body.as_bytes(), Signature::Good, None) {
            Reply::Answered(answer) => answer.body,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_capture_is_written_as_the_gateway_documents_it() {
        let text = concat!(
            r#"{"captureRequestId":"c","paymentId":"p","#,
            r#""captureAmount":{"currency":"HKD","value":"10"}}"#
        );
        let job = Job::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(capture_body(&job)).unwrap(), text);
        assert_eq!(inquiry_body("p"), br#"{"paymentId":"p"}"#);
    }

    #[test]
    fn forwarded_fields_follow_the_three_byte_for_byte_in_the_jobs_order() {
        let text = "{ \"shippings\" : [ 1.0e5,\n\"\\u0041\" ],\"captureType\":\"NON_FINAL\",\
            \"goods\":null,\"captureRequestId\":\"c\",\"other\":1,\"paymentId\":\"p\",\
            \"captureAmount\":{\"currency\":\"HKD\",\"value\":\"10\"},\"isLastCapture\":false}";
        let job = Job::parse(text.as_bytes()).unwrap();
        let body = "{\"captureRequestId\":\"c\",\"paymentId\":\"p\",\
            \"captureAmount\":{\"currency\":\"HKD\",\"value\":\"10\"},\
            \"shippings\":[ 1.0e5,\n\"\\u0041\" ],\"captureType\":\"NON_FINAL\",\
            \"isLastCapture\":false}";
        assert_eq!(String::from_utf8(capture_body(&job)).unwrap(), body);
    }

    #[test]
    fn acquirer_info_is_kept_as_it_came_up_to_4_kib() {
        let capture = |info: &str| {
            let result = r#"{"resultStatus":"S","resultCode":"SUCCESS"}"#;
            let body = format!(r#"{{"result":{result},"acquirerInfo":{info}}}"#);
            match read::<CaptureBody>(body.as_bytes(), Signature::Good, None) {
                Reply::Answered(answer) => answer.body.acquirer_info,
                other => panic!("{other:?}"),
            }
        };
        let text = |info| serde_json::to_string(&capture(info)).unwrap();
        assert_eq!(text(r#"{"b": 1.0e5, "a":"\u0041"}"#), r#"{"b": 1.0e5, "a":"\u0041"}"#);
        assert_eq!(capture("null"), None);
        assert!(capture(&format!("\"{}\"", "x".repeat(4094))).is_some());
        assert_eq!(capture(&format!("\"{}\"", "x".repeat(4095))), None);
    }

    #[test]
    fn null_transactions_are_none_and_absent_ones_are_no_evidence() {
        let result = r#""result":{"resultStatus":"S","resultCode":"SUCCESS"}"#;
        assert_eq!(inquiry(&format!("{{{result}}}")).transactions, None);
        let none = format!("{{{result},\"transactions\":null}}");
        assert_eq!(inquiry(&none).transactions, Some(vec![]));
        let empty = format!("{{{result},\"transactions\":[]}}");
        assert_eq!(inquiry(&empty).transactions, Some(vec![]));
    }

    #[test]
    fn an_inquiry_reports_the_review_of_the_authorization() {
        let result = r#""result":{"resultStatus":"S","resultCode":"SUCCESS"}"#;
        let review = |field: &str| inquiry(&format!("{{{result}{field}}}")).auth_review_status;
        assert_eq!(review(""), None);
        assert_eq!(review(r#","authReviewStatus":null"#), None);
        let processing = review(r#","authReviewStatus":"PROCESSING""#);
        assert_eq!(processing.as_deref(), Some("PROCESSING"));
    }

    #[test]
    fn a_body_in_another_format_is_no_reply() {
        for body in ["", "null", "{}", "[]", "<html>", r#"{"result":"S"}"#, r#"{"result":{}}"#] {
            let reply = read::<CaptureBody>(body.as_bytes(), Signature::Good, None);
            assert!(matches!(reply, Reply::NoAnswer(NoAnswer::Unreadable(_))), "{body}");
        }
    }
}
