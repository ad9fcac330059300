//! The checks before the gateway looks up any id: the caller, and the form of the call. Pure.

use axum::http::{HeaderMap, Method};
use serde_json::Value;

use super::{ledger::PostedCapture, script::Interface};
use crate::{
    domain::{job::forward::CAPTURE_TYPE, money::Money},
    gateway::signing::VerifyingKeys,
};

/// The longest id that the gateway accepts, in characters.
const ID_CHARS_MAX: usize = 64;
/// The version of the merchant's key that the sandbox accepts.
const KEY_VERSION: &str = "1";

/// A call that passed all checks.
#[derive(Debug)]
pub(super) enum Admitted {
    Capture(PostedCapture),
    Inquiry { payment_id: String },
}

/// A call that was refused with `resultStatus` `F`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CallRefused {
    pub(super) code: &'static str,
    pub(super) message: String,
    /// Whether the gateway signs the refusal. It signs errors of form, and signs nothing for a
    /// caller that it can't authenticate.
    pub(super) signed: bool,
}

/// The merchant that the gateway accepts calls from.
pub(super) struct Gate<'a> {
    pub(super) client_id: &'a str,
    pub(super) merchant_keys: &'a VerifyingKeys,
}

impl Gate<'_> {
    /// Checks a call in the gateway's order: interface, method, media type, client, signature,
    /// form.
    pub(super) fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Admitted, CallRefused> {
        let call = match path {
            path if path.ends_with("/v1/payments/capture") => Interface::Capture,
            path if path.ends_with("/v1/payments/inquiryPayment") => Interface::Inquiry,
            _ => {
                return Err(no_access("NO_INTERFACE_DEF", format!("{path} is no known interface")));
            }
        };
        if method != Method::POST {
            let message = format!("the method must be POST, found {method}");
            return Err(no_access("METHOD_NOT_SUPPORTED", message));
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if !header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            let message = "Content-Type must be application/json; charset=UTF-8".to_owned();
            return Err(no_access("MEDIA_TYPE_NOT_ACCEPTABLE", message));
        }
        let client_id = header("client-id").unwrap_or_default();
        if client_id != self.client_id {
            return Err(no_access("CLIENT_INVALID", "Client-Id is unknown".to_owned()));
        }
        let time = header("request-time").unwrap_or_default();
        let signature = header("signature").unwrap_or_default();
        if key_version(signature).is_some_and(|version| version != KEY_VERSION) {
            let message = format!("keyVersion must be {KEY_VERSION}");
            return Err(no_access("KEY_NOT_FOUND", message));
        }
        if !self.merchant_keys.verify(path, client_id, time, body, signature) {
            let message =
                "Signature is missing or does not match path, Client-Id, Request-Time and body";
            return Err(no_access("INVALID_SIGNATURE", message.to_owned()));
        }
        if time.is_empty() || !time.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(illegal("Request-Time must be epoch milliseconds".to_owned()));
        }
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| illegal(format!("the body is not JSON: {error}")))?;
        match call {
            Interface::Capture => capture_request(&body).map(Admitted::Capture),
            Interface::Inquiry => {
                id(&body, "paymentId").map(|payment_id| Admitted::Inquiry { payment_id })
            }
        }
        .map_err(illegal)
    }
}

fn no_access(code: &'static str, message: String) -> CallRefused {
    CallRefused { code, message, signed: false }
}

fn illegal(message: String) -> CallRefused {
    CallRefused { code: "PARAM_ILLEGAL", message, signed: true }
}

fn key_version(signature_header: &str) -> Option<&str> {
    signature_header.split(',').find_map(|part| part.trim().strip_prefix("keyVersion="))
}

/// The fields for which [`PostedCapture`] has its own members; it keeps the others as JSON.
const OWN: [&str; 3] = ["captureRequestId", "paymentId", "captureAmount"];

fn capture_request(body: &Value) -> Result<PostedCapture, String> {
    let amount = body.get("captureAmount").ok_or("captureAmount is missing")?;
    let text = |name: &str| {
        let text = amount.get(name).and_then(Value::as_str);
        text.ok_or_else(|| format!("captureAmount.{name} must be a string"))
    };
    let amount = Money::from_smallest(text("currency")?, text("value")?)
        .map_err(|error| format!("captureAmount: {error}"))?;
    let (id, payment_id) = (id(body, "captureRequestId")?, id(body, "paymentId")?);
    let mut fields = body.as_object().cloned().unwrap_or_default();
    fields.retain(|name, value| !OWN.contains(&name.as_str()) && !value.is_null());
    let is_capture_type = |value: &Value| matches!(value.as_str(), Some("FINAL" | "NON_FINAL"));
    if !fields.get(CAPTURE_TYPE).is_none_or(is_capture_type) {
        return Err(format!("{CAPTURE_TYPE} must be FINAL or NON_FINAL"));
    }
    Ok(PostedCapture { id, payment_id, amount, fields })
}

fn id(body: &Value, name: &str) -> Result<String, String> {
    let id = body.get(name).and_then(Value::as_str);
    match id.map(|id| (id, id.chars().count())) {
        Some((id, 1..=ID_CHARS_MAX)) => Ok(id.to_owned()),
        Some((_, chars)) => {
            Err(format!("{name} must be 1 to {ID_CHARS_MAX} characters, found {chars}"))
        }
        None => Err(format!("{name} must be a string")),
    }
}
