//! Scripts of faults: the steps for the calls of one payment, or for all calls.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::capture::class::{OTHER_CODES, SUCCESS};

/// The call that a step is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interface {
    /// The capture call, `…/v1/payments/capture`.
    #[default]
    Capture,
    /// The inquiry call, `…/v1/payments/inquiryPayment`.
    Inquiry,
}

/// How the sandbox answers a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// With the ledger's result.
    #[default]
    Honest,
    /// With this result code. If it is an `F` about the capture, the ledger records that the
    /// capture failed. `CAPTURE_IN_PROCESS` leaves the capture in process.
    Code(String),
    /// The sandbox closes the connection without a reply.
    NoAnswer,
    /// The sandbox sends no reply and keeps the connection open.
    Hang,
    /// With this HTTP status instead of 200.
    Http(u16),
    /// With a body that is not JSON.
    Garbage,
    /// With an empty body.
    Empty,
    /// With the ledger's result, in a body of 1 MiB.
    Huge,
    /// With the ledger's result, without a signature.
    Unsigned,
    /// With the ledger's result, and the signature of another body.
    BadSignature,
    /// With the ledger's result, signed with a `response-time` one hour ago.
    Stale,
    /// With the ledger's result, signed with a `response-time` that can't be parsed.
    OddTime,
    /// With the ledger's result, and an unknown `resultStatus`.
    UnknownStatus,
    /// With the ledger's result, about another `captureRequestId`.
    OtherId,
    /// With the ledger's result, about another `paymentId`.
    OtherPayment,
    /// With the ledger's result, about another amount.
    OtherAmount,
}

impl Way {
    /// Whether the reply holds the ledger's result, changed or not. The ledger executes the call
    /// then.
    pub(super) const fn is_of_the_ledger(&self) -> bool {
        !matches!(
            self,
            Self::Code(_)
                | Self::NoAnswer
                | Self::Hang
                | Self::Http(_)
                | Self::Garbage
                | Self::Empty
        )
    }
}

/// The number of calls that a step applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Repeat {
    /// This number of calls.
    Times(u32),
    /// All calls from now on.
    Forever(Forever),
}

/// The JSON string `"forever"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forever {
    /// The only value, so that any other string is refused.
    Forever,
}

/// One step of a script. Every field may be omitted in JSON:
/// `{"answer": {"code": "RISK_REJECT"}}`,
/// `{"answer": "no_answer", "executes": true, "times": 2}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// The call that the step is for. Default: the capture.
    pub call: Interface,
    /// The step is only for this `captureRequestId`. Default: any.
    #[serde(rename = "captureRequestId", skip_serializing_if = "Option::is_none")]
    pub capture_request_id: Option<String>,
    /// How the call is answered. Default: with the ledger's result.
    pub answer: Way,
    /// The `resultStatus` of a `code`. Default: the documented status of the code, or `F` for an
    /// unknown code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Whether the reply with a `code` is signed. Default: `true`.
    pub signed: bool,
    /// Whether the capture is executed although the reply does not show it. Default: `false`. If
    /// the reply holds the ledger's result, the capture is always executed.
    pub executes: bool,
    /// The delay before the sandbox processes the call, in milliseconds.
    pub delay_ms: u64,
    /// The header `Retry-After` of a reply with an HTTP status or a code, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// For how many inquiries a capture in process stays in process. Default: 1.
    pub inquiries: u32,
    /// The code with which a capture in process ends. Default: `SUCCESS`. Any other code is its
    /// failure.
    pub resolves_to: String,
    /// Fields to add to the reply beside `result`. They replace the ledger's fields of the same
    /// name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
    /// The number of calls that the step applies to. Default: 1.
    pub times: Repeat,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            call: Interface::Capture,
            capture_request_id: None,
            answer: Way::Honest,
            status: None,
            signed: true,
            executes: false,
            delay_ms: 0,
            retry_after: None,
            inquiries: 1,
            resolves_to: SUCCESS.to_owned(),
            fields: Map::new(),
            times: Repeat::Times(1),
        }
    }
}

impl Step {
    /// A step that answers every call with this result code.
    pub(super) fn refusal(code: &str) -> Self {
        Self {
            answer: Way::Code(code.to_owned()),
            times: Repeat::Forever(Forever::Forever),
            ..Self::default()
        }
    }

    /// The `resultStatus` that the step sends with this code.
    pub(super) fn status_of<'s>(&'s self, code: &str) -> &'s str {
        match &self.status {
            Some(status) => status,
            None if code == SUCCESS => "S",
            None if OTHER_CODES.contains(&code) => "U",
            None => "F",
        }
    }

    pub(super) const fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    fn is_for(&self, call: Interface, capture_request_id: Option<&str>) -> bool {
        self.call == call
            && self.times != Repeat::Times(0)
            && self.capture_request_id.as_deref().is_none_or(|id| Some(id) == capture_request_id)
    }
}

/// The remaining steps, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Script(VecDeque<Step>);

impl Script {
    pub(super) fn of(steps: Vec<Step>) -> Self {
        Self(steps.into())
    }

    pub(super) fn add(&mut self, steps: Vec<Step>) {
        self.0.extend(steps);
    }

    pub(super) fn steps(&self) -> &VecDeque<Step> {
        &self.0
    }

    /// Returns the first step that applies to this call, and counts the use.
    pub(super) fn next(
        &mut self,
        call: Interface,
        capture_request_id: Option<&str>,
    ) -> Option<Step> {
        let at = self.0.iter().position(|step| step.is_for(call, capture_request_id))?;
        let step = self.0.get_mut(at)?;
        let taken = step.clone();
        if let Repeat::Times(times) = &mut step.times {
            *times -= 1;
            if *times == 0 {
                self.0.remove(at);
            }
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_apply_in_order_each_to_its_own_calls() {
        let steps = r#"[
            {"call":"inquiry","answer":"garbage"},
            {"captureRequestId":"b","answer":"hang"},
            {"answer":"empty","times":2},
            {"answer":{"code":"RISK_REJECT"},"times":"forever"}]"#;
        let mut script = Script::default();
        script.add(serde_json::from_str(steps).unwrap());
        let mut next = |call, id| script.next(call, id).map(|step| step.answer);
        assert_eq!(next(Interface::Capture, Some("a")), Some(Way::Empty));
        assert_eq!(next(Interface::Capture, Some("b")), Some(Way::Hang));
        assert_eq!(next(Interface::Capture, Some("b")), Some(Way::Empty));
        assert_eq!(next(Interface::Inquiry, None), Some(Way::Garbage));
        assert_eq!(next(Interface::Inquiry, None), None);
        for _ in 0..3 {
            assert_eq!(next(Interface::Capture, Some("a")), Some(Way::Code("RISK_REJECT".into())));
        }
    }

    #[test]
    fn a_step_with_an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<Step>(r#"{"anwser":"hang"}"#).is_err());
        assert!(serde_json::from_str::<Step>(r#"{"answer":"vanish"}"#).is_err());
        assert!(serde_json::from_str::<Step>(r#"{"times":"often"}"#).is_err());
    }
}
