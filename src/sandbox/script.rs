//! What the gateway is told to do wrong: steps, for one payment or for every call, and the payment ids that bring their
//! own.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::domain::class::{CAPTURE_IN_PROCESS, FINAL_CODES, OTHER_CODES};

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
            resolves_to: crate::domain::class::SUCCESS.to_owned(),
            times: Times::Some(1),
        }
    }
}

impl Step {
    /// Always this result code.
    fn refusal(code: &str) -> Self {
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
            None if code == crate::domain::class::SUCCESS => "S",
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

/// A reserved beginning of a `paymentId`: `sim-<name>-…`, what it does, and the steps that each of the payment's captures
/// goes through.
pub(super) struct Simulation {
    pub(super) name: &'static str,
    pub(super) does: &'static str,
    steps: &'static str,
}

/// Every reserved name besides the result codes (`sim-RISK_REJECT-…` answers that code for ever).
pub(super) const SIMULATIONS: &[Simulation] = &[
    Simulation {
        name: "in-process",
        does: "CAPTURE_IN_PROCESS; captured after one inquiry",
        steps: r#"[{"answer":{"code":"CAPTURE_IN_PROCESS"}}]"#,
    },
    Simulation {
        name: "in-process-fails",
        does: "CAPTURE_IN_PROCESS; failed with PROCESS_FAIL after one inquiry",
        steps: r#"[{"answer":{"code":"CAPTURE_IN_PROCESS"},"resolves_to":"PROCESS_FAIL"}]"#,
    },
    Simulation {
        name: "in-process-for-ever",
        does: "CAPTURE_IN_PROCESS, and no inquiry ever says more",
        steps: r#"[{"answer":{"code":"CAPTURE_IN_PROCESS"},"inquiries":4294967295}]"#,
    },
    Simulation {
        name: "unknown-exception",
        does: "UNKNOWN_EXCEPTION once, nothing captured; then honest",
        steps: r#"[{"answer":{"code":"UNKNOWN_EXCEPTION"}}]"#,
    },
    Simulation {
        name: "unknown-executed",
        does: "UNKNOWN_EXCEPTION once, although it was captured; then honest",
        steps: r#"[{"answer":{"code":"UNKNOWN_EXCEPTION"},"executes":true}]"#,
    },
    Simulation {
        name: "unknown-for-ever",
        does: "UNKNOWN_EXCEPTION to every call, nothing captured",
        steps: r#"[{"answer":{"code":"UNKNOWN_EXCEPTION"},"times":"forever"}]"#,
    },
    Simulation {
        name: "traffic-limit",
        does: "REQUEST_TRAFFIC_EXCEED_LIMIT twice; then honest",
        steps: r#"[{"answer":{"code":"REQUEST_TRAFFIC_EXCEED_LIMIT"},"times":2}]"#,
    },
    Simulation {
        name: "answer-lost",
        does: "captured, but the connection is closed without an answer, once",
        steps: r#"[{"answer":"no_answer","executes":true}]"#,
    },
    Simulation {
        name: "request-lost",
        does: "the connection is closed once, and nothing captured",
        steps: r#"[{"answer":"no_answer"}]"#,
    },
    Simulation {
        name: "hang",
        does: "captured, but never answered, once",
        steps: r#"[{"answer":"hang","executes":true}]"#,
    },
    Simulation {
        name: "slow",
        does: "honest, after two seconds",
        steps: r#"[{"delay_ms":2000,"times":"forever"}]"#,
    },
    Simulation {
        name: "http-500",
        does: "HTTP 500 once, although it was captured",
        steps: r#"[{"answer":{"http":500},"executes":true}]"#,
    },
    Simulation {
        name: "http-503",
        does: "HTTP 503 once, nothing captured",
        steps: r#"[{"answer":{"http":503}}]"#,
    },
    Simulation {
        name: "http-429",
        does: "HTTP 429 once, with Retry-After of one second",
        steps: r#"[{"answer":{"http":429},"retry_after":1}]"#,
    },
    Simulation {
        name: "http-302",
        does: "HTTP 302 to itself once, nothing captured",
        steps: r#"[{"answer":{"http":302}}]"#,
    },
    Simulation {
        name: "garbage",
        does: "a body that is no JSON once, although it was captured",
        steps: r#"[{"answer":"garbage","executes":true}]"#,
    },
    Simulation {
        name: "empty",
        does: "an empty body once, although it was captured",
        steps: r#"[{"answer":"empty","executes":true}]"#,
    },
    Simulation {
        name: "huge",
        does: "captured, in a body of 1 MiB, once",
        steps: r#"[{"answer":"huge"}]"#,
    },
    Simulation {
        name: "unsigned",
        does: "captured, but the answer has no signature, once",
        steps: r#"[{"answer":"unsigned"}]"#,
    },
    Simulation {
        name: "bad-signature",
        does: "captured, but the signature is of something else, once",
        steps: r#"[{"answer":"bad_signature"}]"#,
    },
    Simulation {
        name: "unknown-status",
        does: "captured, but with an unknown resultStatus, once",
        steps: r#"[{"answer":"unknown_status"}]"#,
    },
    Simulation {
        name: "other-id",
        does: "captured, but the answer names another captureRequestId, once",
        steps: r#"[{"answer":"other_id"}]"#,
    },
    Simulation {
        name: "other-payment",
        does: "captured, but the answer names another paymentId, once",
        steps: r#"[{"answer":"other_payment"}]"#,
    },
    Simulation {
        name: "other-amount",
        does: "captured, but the answer names another amount, once",
        steps: r#"[{"answer":"other_amount"}]"#,
    },
    Simulation {
        name: "denied",
        does: "an unsigned ACCESS_DENIED twice, nothing captured; then honest",
        steps: r#"[{"answer":{"code":"ACCESS_DENIED"},"signed":false,"times":2}]"#,
    },
    Simulation {
        name: "lost-then-denied",
        does: "captured but unanswered; then a signed ACCESS_DENIED to every post",
        steps: r#"[{"answer":"no_answer","executes":true},{"answer":{"code":"ACCESS_DENIED"},"times":"forever"}]"#,
    },
];

/// The steps that a payment's id asks for, from the beginning: one such script for each of its captures.
pub(super) fn simulation_of(payment_id: &str) -> Option<Script> {
    let rest = payment_id.strip_prefix("sim-")?;
    let is_named = |name: &str| {
        rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let simulation = SIMULATIONS
        .iter()
        .filter(|simulation| is_named(simulation.name))
        .max_by_key(|simulation| simulation.name.len());
    if let Some(simulation) = simulation {
        let steps: Vec<Step> = serde_json::from_str(simulation.steps).ok()?;
        return Some(Script(steps.into()));
    }
    let code = rest.split('-').next().filter(|code| looks_like_a_code(code))?;
    Some(Script([Step::refusal(code)].into()))
}

fn looks_like_a_code(text: &str) -> bool {
    FINAL_CODES.iter().any(|(code, _)| *code == text)
        || (text != CAPTURE_IN_PROCESS
            && text.contains('_')
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_simulation_is_written_in_the_language_of_scripts() {
        for simulation in SIMULATIONS {
            let steps: Vec<Step> = serde_json::from_str(simulation.steps).unwrap();
            assert!(!steps.is_empty(), "{}", simulation.name);
            assert!(simulation_of(&format!("sim-{}-1", simulation.name)).is_some());
        }
    }

    #[test]
    fn the_longest_name_counts_and_a_code_is_a_name() {
        let code = |payment_id: &str| {
            let mut script = simulation_of(payment_id).unwrap();
            script.next(Call::Capture, Some("c")).unwrap()
        };
        assert_eq!(code("sim-in-process-fails-7").resolves_to, "PROCESS_FAIL");
        assert_eq!(code("sim-in-process-7").resolves_to, "SUCCESS");
        assert_eq!(code("sim-RISK_REJECT-7").answer, Way::Code("RISK_REJECT".into()));
        assert_eq!(code("sim-BRAND_NEW-7").answer, Way::Code("BRAND_NEW".into()));
        for payment_id in
            ["sim-", "sim-nothing-1", "simRISK_REJECT", "2022-in-process", "sim-hangar"]
        {
            assert!(simulation_of(payment_id).is_none(), "{payment_id}");
        }
    }

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
