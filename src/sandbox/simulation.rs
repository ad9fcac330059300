//! Payment ids that cause a fault, for tests without access to the control API.

use super::script::{Script, Step};
use crate::domain::capture::class::{CAPTURE_IN_PROCESS, FINAL_CODES};

/// A reserved prefix of a `paymentId`, `sim-<name>-…`, its description, and the steps that apply to
/// each capture of the payment.
pub(super) struct Simulation {
    pub(super) name: &'static str,
    pub(super) does: &'static str,
    steps: &'static str,
}

/// Every reserved name except the result codes. `sim-RISK_REJECT-…` answers every capture with that
/// code.
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
        does: "CAPTURE_IN_PROCESS; every inquiry shows it in process",
        steps: r#"[{"answer":{"code":"CAPTURE_IN_PROCESS"},"inquiries":4294967295}]"#,
    },
    Simulation {
        name: "unknown-exception",
        does: "UNKNOWN_EXCEPTION once, nothing captured; then normal",
        steps: r#"[{"answer":{"code":"UNKNOWN_EXCEPTION"}}]"#,
    },
    Simulation {
        name: "unknown-executed",
        does: "UNKNOWN_EXCEPTION once, although it was captured; then normal",
        steps: r#"[{"answer":{"code":"UNKNOWN_EXCEPTION"},"executes":true}]"#,
    },
    Simulation {
        name: "unknown-for-ever",
        does: "UNKNOWN_EXCEPTION to every call, nothing captured",
        steps: r#"[{"answer":{"code":"UNKNOWN_EXCEPTION"},"times":"forever"}]"#,
    },
    Simulation {
        name: "traffic-limit",
        does: "REQUEST_TRAFFIC_EXCEED_LIMIT twice; then normal",
        steps: r#"[{"answer":{"code":"REQUEST_TRAFFIC_EXCEED_LIMIT"},"times":2}]"#,
    },
    Simulation {
        name: "answer-lost",
        does: "captured, but the connection is closed without a reply, once",
        steps: r#"[{"answer":"no_answer","executes":true}]"#,
    },
    Simulation {
        name: "request-lost",
        does: "the connection is closed once, nothing captured",
        steps: r#"[{"answer":"no_answer"}]"#,
    },
    Simulation {
        name: "hang",
        does: "captured, but no reply is sent, once",
        steps: r#"[{"answer":"hang","executes":true}]"#,
    },
    Simulation {
        name: "slow",
        does: "normal, after two seconds",
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
        does: "a body that is not JSON once, although it was captured",
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
        does: "captured, but the reply has no signature, once",
        steps: r#"[{"answer":"unsigned"}]"#,
    },
    Simulation {
        name: "bad-signature",
        does: "captured, but the signature is of another body, once",
        steps: r#"[{"answer":"bad_signature"}]"#,
    },
    Simulation {
        name: "unknown-status",
        does: "captured, but with an unknown resultStatus, once",
        steps: r#"[{"answer":"unknown_status"}]"#,
    },
    Simulation {
        name: "other-id",
        does: "captured, but the reply names another captureRequestId, once",
        steps: r#"[{"answer":"other_id"}]"#,
    },
    Simulation {
        name: "other-payment",
        does: "captured, but the reply names another paymentId, once",
        steps: r#"[{"answer":"other_payment"}]"#,
    },
    Simulation {
        name: "other-amount",
        does: "captured, but the reply names another amount, once",
        steps: r#"[{"answer":"other_amount"}]"#,
    },
    Simulation {
        name: "denied",
        does: "an unsigned ACCESS_DENIED twice, nothing captured; then normal",
        steps: r#"[{"answer":{"code":"ACCESS_DENIED"},"signed":false,"times":2}]"#,
    },
    Simulation {
        name: "lost-then-denied",
        does: "captured without a reply; then a signed ACCESS_DENIED to every post",
        steps: r#"[{"answer":"no_answer","executes":true},
            {"answer":{"code":"ACCESS_DENIED"},"times":"forever"}]"#,
    },
];

/// The complete script that a payment id requests. Each capture of the payment gets its own copy.
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
        return Some(Script::of(steps));
    }
    let code = rest.split('-').next().filter(|code| looks_like_a_code(code))?;
    Some(Script::of(vec![Step::refusal(code)]))
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
    use crate::sandbox::script::{Interface, Way};

    #[test]
    fn the_steps_of_every_simulation_can_be_parsed() {
        for simulation in SIMULATIONS {
            let steps: Vec<Step> = serde_json::from_str(simulation.steps).unwrap();
            assert!(!steps.is_empty(), "{}", simulation.name);
            assert!(simulation_of(&format!("sim-{}-1", simulation.name)).is_some());
        }
    }

    #[test]
    fn the_longest_matching_name_wins_and_a_code_is_a_name() {
        let code = |payment_id: &str| {
            let mut script = simulation_of(payment_id).unwrap();
            script.next(Interface::Capture, Some("c")).unwrap()
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
}
