//! What the gateway is told to do wrong: steps, for one payment or for every call.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::class::{OTHER_CODES, SUCCESS};

/// Which call a step is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `…/v1/payments/capture`
    #[default]
    Capture,
    /// `…/v1/payments/inquiryPayment`
    Inquiry,
}

/// How a call is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// As the ledger says.
    #[default]
    Honest,
    /// With this result code, signed. Of an `F` that is about the capture the ledger keeps that the capture failed;
    /// `CAPTURE_IN_PROCESS` leaves the capture in process.
    Code(String),
    /// The connection is closed without an answer.
    NoAnswer,
    /// No answer, and the connection stays open.
    Hang,
    /// With another HTTP status than 200.
    Http(u16),
    /// With a body that is no JSON.
    Garbage,
    /// With an empty body.
    Empty,
    /// As the ledger says, in a body of 1 MiB.
    Huge,
    /// As the ledger says, without a signature.
    Unsigned,
    /// As the ledger says, with a signature of something else.
    BadSignature,
    /// As the ledger says, signed an hour before.
    Stale,
    /// As the ledger says, signed at a time that can't be read.
    OddTime,
    /// As the ledger says, with an unknown `resultStatus`.
    UnknownStatus,
    /// As the ledger says, about another `captureRequestId`.
    OtherId,
    /// As the ledger says, about another `paymentId`.
    OtherPayment,
    /// As the ledger says, about another amount.
    OtherAmount,
}

impl Way {
    /// Whether the ledger's own answer is what is sent, changed or not: then the ledger has acted on the call.
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

/// For how many calls a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Times {
    /// So many.
    Some(u32),
    /// All that come.
    Forever(Forever),
}

/// The word `"forever"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forever {
    /// The word itself.
    Forever,
}

/// One step of a script. As JSON, every field may be left out: `{"answer": {"code": "RISK_REJECT"}}`,
/// `{"answer": "no_answer", "executes": true, "times": 2}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Which call it is for; a capture if left out.
    pub call: Call,
    /// Only for this `captureRequestId`.
    #[serde(rename = "captureRequestId", skip_serializing_if = "Option::is_none")]
    pub capture_request_id: Option<String>,
    /// How it is answered; honestly if left out.
    pub answer: Way,
    /// `resultStatus` of a `code`; `F` if left out, but `U` and `S` for the documented codes that are those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Whether a `code` is signed; `true` if left out.
    pub signed: bool,
    /// Whether the capture is carried out although the answer does not say so; `false` if left out. Answers of the
    /// ledger are always carried out.
    pub executes: bool,
    /// How long the call takes before anything is done, in milliseconds.
    pub delay_ms: u64,
    /// `Retry-After` of an HTTP status or a code, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// How many inquiries a capture in process stays so; 1 if left out.
    pub inquiries: u32,
    /// What a capture in process comes to: `SUCCESS` if left out, or the code of its failure.
    pub resolves_to: String,
    /// Fields of the answer beside `result` that are added, or take the place of the ledger's.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
    /// For how many calls it stands; 1 if left out.
    pub times: Times,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            call: Call::Capture,
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
            times: Times::Some(1),
        }
    }
}

impl Step {
    /// Always this result code.
    pub(super) fn refusal(code: &str) -> Self {
        Self {
            answer: Way::Code(code.to_owned()),
            times: Times::Forever(Forever::Forever),
            ..Self::default()
        }
    }

    /// `resultStatus` of its code.
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

    fn is_for(&self, call: Call, capture_request_id: Option<&str>) -> bool {
        self.call == call
            && self.times != Times::Some(0)
            && self.capture_request_id.as_deref().is_none_or(|id| Some(id) == capture_request_id)
    }
}

/// Steps that are still to come, in order.
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

    /// Takes the next step that is for this call.
    pub(super) fn next(&mut self, call: Call, capture_request_id: Option<&str>) -> Option<Step> {
        let at = self.0.iter().position(|step| step.is_for(call, capture_request_id))?;
        let step = self.0.get_mut(at)?;
        let taken = step.clone();
        if let Times::Some(times) = &mut step.times {
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
    fn steps_are_taken_in_order_each_for_its_own_calls() {
        let steps = r#"[
            {"call":"inquiry","answer":"garbage"},
            {"captureRequestId":"b","answer":"hang"},
            {"answer":"empty","times":2},
            {"answer":{"code":"RISK_REJECT"},"times":"forever"}]"#;
        let mut script = Script::default();
        script.add(serde_json::from_str(steps).unwrap());
        let mut next = |call, id| script.next(call, id).map(|step| step.answer);
        assert_eq!(next(Call::Capture, Some("a")), Some(Way::Empty));
        assert_eq!(next(Call::Capture, Some("b")), Some(Way::Hang));
        assert_eq!(next(Call::Capture, Some("b")), Some(Way::Empty));
        assert_eq!(next(Call::Inquiry, None), Some(Way::Garbage));
        assert_eq!(next(Call::Inquiry, None), None);
        for _ in 0..3 {
            assert_eq!(next(Call::Capture, Some("a")), Some(Way::Code("RISK_REJECT".into())));
        }
    }

    #[test]
    fn a_step_with_an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<Step>(r#"{"anwser":"hang"}"#).is_err());
        assert!(serde_json::from_str::<Step>(r#"{"answer":"vanish"}"#).is_err());
        assert!(serde_json::from_str::<Step>(r#"{"times":"often"}"#).is_err());
    }
}
