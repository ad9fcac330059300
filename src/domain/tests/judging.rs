//! What a reply proves.

use super::*;
use crate::domain::capture::{
    health::{GatewayHealth, health},
    judge::{NextCall, first_call},
    outcome::{Capture, DoubtKind, FailureVerdict, FinalOutcome, Recorded},
    reply::NoAnswer,
};

/// Describes an outcome in one line.
pub(super) fn line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Captured(capture) => format!("captured {}", capture.code),
        Outcome::Failed(verdict) | Outcome::FailedWhileLeased(verdict) => {
            format!("failed {} {}", verdict.class, verdict.code.as_deref().unwrap_or("-"))
        }
        Outcome::InDoubt(doubt) => {
            let reply = doubt
                .last_reply
                .as_ref()
                .map_or_else(|| "-".into(), |reply| format!("{},{}", reply.code, reply.status));
            format!("in doubt {} {reply}", doubt.kind.name())
        }
        Outcome::Unauthenticated(verdict) => {
            format!("account {}", verdict.code.as_deref().unwrap_or("-"))
        }
        other => other.name().into(),
    }
}

#[track_caller]
fn check(reply: CaptureReply, history: &History, expected: &str) {
    assert_eq!(line(&judged(reply, &before(history))), expected);
}

#[track_caller]
pub(super) fn check_inquiry(reply: InquiryReply, history: &History, expected: &str) {
    let found = match inquired(reply, &before(history)) {
        Inquired::Over(outcome) => line(&outcome),
        Inquired::Post => "post".into(),
    };
    assert_eq!(found, expected);
}

#[test]
fn a_signed_verdict_is_final_whether_the_id_was_sent_or_not() {
    for history in [history(), sent_history()] {
        check(signed("S", "SUCCESS"), &history, "captured SUCCESS");
        check(signed("F", "RISK_REJECT"), &history, "failed risk RISK_REJECT");
    }
}

#[test]
fn a_changed_repeat_is_in_doubt_until_an_inquiry() {
    const CODE: &str = "REPEAT_REQ_INCONSISTENT";
    check(signed("F", CODE), &history(), "failed conflict REPEAT_REQ_INCONSISTENT");
    check(signed("F", CODE), &sent_history(), "in doubt unproven REPEAT_REQ_INCONSISTENT,F");
    let (sent, marker) = (sent_history(), marker(Some(CODE)));
    let refused = Before { marker: Some(&marker), ..before(&sent) };
    assert_eq!(first_call(&refused, &Codes::default()), NextCall::Inquire);
    for (items, expected) in [
        (vec![], "failed conflict REPEAT_REQ_INCONSISTENT"),
        (vec![transaction("SUCCESS", None)], "captured SUCCESS"),
        (vec![transaction("FAIL", None)], "failed provider -"),
        (vec![transaction("PROCESSING", None)], "in doubt unknown PAYMENT_IN_PROCESS,U"),
    ] {
        let Inquired::Over(outcome) = inquired(inquiry(items), &refused) else { panic!("posted") };
        assert_eq!(line(&outcome), expected);
        assert!(!matches!(outcome, Outcome::FailedWhileLeased(_)), "a conflict is never recorded");
    }
}

#[test]
fn an_f_about_the_call_is_final_only_for_an_id_never_sent() {
    for (code, class) in [
        ("ACCESS_DENIED", "access"),
        ("PARAM_ILLEGAL", "request"),
        ("SYSTEM_ERROR", "provider"),
        ("BRAND_NEW", "unknown_code"),
    ] {
        check(signed("F", code), &history(), &format!("failed {class} {code}"));
        let in_doubt = format!("in doubt unproven {code},F");
        check(signed("F", code), &sent_history(), &in_doubt);
        let redelivered = History { redelivered: true, ..history() };
        check(signed("F", code), &redelivered, &in_doubt);
        let (fresh, marker) = (history(), marker(None));
        let marked = Before { marker: Some(&marker), ..before(&fresh) };
        assert_eq!(line(&judged(signed("F", code), &marked)), in_doubt);
    }
}

#[test]
fn an_unsigned_reply_is_no_verdict() {
    let unsigned = |status, code| answer(Signature::Missing, status, code, success());
    check(unsigned("S", "SUCCESS"), &history(), "in doubt untrusted -");
    check(unsigned("F", "RISK_REJECT"), &history(), "in doubt untrusted -");
    check(unsigned("F", "KEY_NOT_FOUND"), &history(), "account KEY_NOT_FOUND");
    check(unsigned("F", "KEY_NOT_FOUND"), &sent_history(), "account KEY_NOT_FOUND");
    check(unsigned("U", "UNKNOWN_EXCEPTION"), &history(), "in doubt unknown UNKNOWN_EXCEPTION,U");
    for (status, code) in
        [("S", "SUCCESS"), ("F", "RISK_REJECT"), ("F", "KEY_NOT_FOUND"), ("U", "X")]
    {
        check(answer(Signature::Bad, status, code, success()), &history(), "in doubt untrusted -");
    }
}

#[test]
fn a_signed_success_about_something_else_is_a_contradiction() {
    let bodies = [
        CaptureBody { capture_request_id: Some("d".into()), ..success() },
        CaptureBody { capture_request_id: None, ..success() },
        CaptureBody { payment_id: Some("q".into()), ..success() },
        CaptureBody { amount: Some(Ok(hkd("101"))), ..success() },
        CaptureBody { amount: Some(Ok(Money::from_smallest("USD", "100").unwrap())), ..success() },
        CaptureBody { amount: Some(Err("no money".into())), ..success() },
    ];
    for body in bodies {
        let reply = answer(Signature::Good, "S", "SUCCESS", body);
        check(reply, &history(), &format!("in doubt {} -", DoubtKind::Contradiction.name()));
    }
}

#[test]
fn a_signed_failure_about_something_else_is_a_contradiction() {
    let other_id = CaptureBody { capture_request_id: Some("d".into()), ..success() };
    let other_payment = CaptureBody { payment_id: Some("q".into()), ..success() };
    for body in [other_id, other_payment] {
        for (status, code) in [("F", "RISK_REJECT"), ("F", "ACCESS_DENIED"), ("U", "X")] {
            let reply = answer(Signature::Good, status, code, body.clone());
            check(reply, &history(), "in doubt contradiction -");
        }
    }
    let same = CaptureBody { amount: Some(Ok(hkd("1"))), ..success() };
    let reply = answer(Signature::Good, "F", "RISK_REJECT", same);
    check(reply, &history(), "failed risk RISK_REJECT");
}

#[test]
fn a_stale_reply_proves_a_capture_and_nothing_else() {
    let stale = |status, code| answer(Signature::Stale, status, code, success());
    check(stale("S", "SUCCESS"), &history(), "captured SUCCESS");
    for (status, code) in [("F", "RISK_REJECT"), ("F", "ACCESS_DENIED"), ("U", "X")] {
        check(stale(status, code), &history(), "in doubt untrusted -");
    }
    let shows = |transactions| {
        let body = InquiryBody {
            payment_id: Some("p".into()),
            transactions: Some(transactions),
            ..InquiryBody::default()
        };
        answer(Signature::Stale, "S", "SUCCESS", body)
    };
    let other = Transaction { amount: Some(Ok(hkd("99"))), ..transaction("SUCCESS", None) };
    let denied = with_last_word("ACCESS_DENIED", "F");
    check_inquiry(shows(vec![transaction("SUCCESS", None)]), &denied, "captured SUCCESS");
    for items in [vec![], vec![transaction("FAIL", Some("RISK_REJECT"))], vec![other]] {
        check_inquiry(shows(items), &denied, "in doubt no_evidence -");
    }
    assert!(matches!(
        health(&stale("F", "RISK_REJECT"), &Codes::default()),
        GatewayHealth::Unhealthy(..)
    ));
}

#[test]
fn u_is_in_doubt_and_too_many_calls_spend_no_attempt() {
    check(signed("U", "CAPTURE_IN_PROCESS"), &history(), "in doubt unknown CAPTURE_IN_PROCESS,U");
    check(signed("X", "SUCCESS"), &history(), "in doubt untrusted -");
    check(signed("U", "REQUEST_TRAFFIC_EXCEED_LIMIT"), &history(), "throttled");
    check(signed("F", "REQUEST_TRAFFIC_EXCEED_LIMIT"), &history(), "throttled");
    let too_many = NoAnswer::HttpStatus { status: 429, retry_after: None };
    check(Reply::NoAnswer(too_many), &history(), "throttled");
}

#[test]
fn no_reply_is_in_doubt_and_not_sent_is_not() {
    for reason in [
        NoAnswer::TimedOut(Duration::from_secs(8)),
        NoAnswer::ConnectionLost("reset".into()),
        NoAnswer::HttpStatus { status: 500, retry_after: None },
        NoAnswer::HttpStatus { status: 302, retry_after: None },
        NoAnswer::Unreadable("no JSON".into()),
        NoAnswer::TooLong(1),
    ] {
        check(Reply::NoAnswer(reason), &history(), "in doubt no_answer -");
    }
    check(Reply::NotSent("refused".into()), &history(), "not_sent");
}

#[test]
fn an_attempt_posts_unless_it_must_inquire_first() {
    let codes = Codes::default();
    let redelivered = || History { redelivered: true, ..history() };
    let replayed = || History { replays: 2, attempts: 3, ..sent_history() };
    let plain = || Some(marker(None));
    let denied_at = |replay| Some(SentMarker { denied_at_replay: Some(replay), refused: None });
    for (history, marker, past_expiry, expected) in [
        (history(), None, false, NextCall::Post),
        (history(), plain(), false, NextCall::Post),
        (sent_history(), plain(), false, NextCall::Post),
        (redelivered(), plain(), false, NextCall::Post),
        // SentState, but Redis can't show what the earlier calls did.
        (sent_history(), None, false, NextCall::Inquire),
        (redelivered(), None, false, NextCall::Inquire),
        (with_last_word("UNKNOWN_EXCEPTION", "U"), plain(), false, NextCall::Post),
        (with_last_word("CAPTURE_IN_PROCESS", "U"), plain(), false, NextCall::Inquire),
        (with_last_word("PAYMENT_IN_PROCESS", "U"), plain(), true, NextCall::Inquire),
        (with_last_word("ACCESS_DENIED", "F"), plain(), false, NextCall::Inquire),
        (with_last_word("REPEAT_REQ_INCONSISTENT", "F"), plain(), false, NextCall::Inquire),
        (with_last_word("RISK_REJECT", "F"), plain(), false, NextCall::Post),
        (history(), Some(marker(Some("ACCESS_DENIED"))), false, NextCall::Inquire),
        // A replayed id that was sent is inquired about in each attempt until there is evidence.
        (replayed(), plain(), false, NextCall::Inquire),
        (replayed(), denied_at(1), false, NextCall::Inquire),
        (replayed(), denied_at(2), false, NextCall::Post),
        // A replayed job that was not sent: another id of its family may have been sent.
        (History { replays: 1, ..history() }, None, false, NextCall::Inquire),
        (History { replays: 1, ..history() }, denied_at(1), false, NextCall::Post),
        (history(), None, true, NextCall::Expired),
        (history(), plain(), true, NextCall::Post),
        (sent_history(), plain(), true, NextCall::Post),
        (sent_history(), None, true, NextCall::Inquire),
        (redelivered(), None, true, NextCall::Inquire),
    ] {
        let before = Before { marker: marker.as_ref(), past_expiry, ..before(&history) };
        assert_eq!(first_call(&before, &codes), expected, "{before:?}");
    }
}

#[test]
fn a_recorded_outcome_ends_an_attempt_that_has_none() {
    let verdict = |class| FailureVerdict { class, code: None, message: None, signed: true };
    let captured =
        || FinalOutcome::Captured(Capture { code: "SUCCESS".into(), ..Capture::default() });
    let failed = || FinalOutcome::Failed(verdict(Class::Risk));
    let closed = || FinalOutcome::FailedWhileLeased(verdict(Class::Access));
    let doubt = || judged(signed("U", "X"), &before(&history()));
    let own = || Outcome::Failed(verdict(Class::Payer));
    let own_closed = || Outcome::FailedWhileLeased(verdict(Class::Request));
    let not_sent = || Outcome::NotSent("refused".into());
    for (outcome, recorded, kept, expected) in [
        (doubt(), captured(), false, Some("captured SUCCESS")),
        (doubt(), failed(), false, Some("failed risk -")),
        (doubt(), closed(), false, None),
        (doubt(), closed(), true, Some("failed access -")),
        (not_sent(), failed(), false, Some("failed risk -")),
        (own(), captured(), true, Some("captured SUCCESS")),
        (own(), failed(), true, None),
        (own_closed(), failed(), true, Some("failed risk -")),
        (own_closed(), closed(), true, None),
        (own_closed(), closed(), false, None),
        (Outcome::HandBack, captured(), true, None),
    ] {
        let settled = outcome.settled_by(Some(Recorded::Same(recorded.clone())), kept);
        let told = (format!("{outcome:?}"), recorded);
        assert_eq!(settled.as_ref().map(line).as_deref(), expected, "{told:?}");
    }
    for recorded in [None, Some(Recorded::CapturedOther), Some(Recorded::ReplacedOther)] {
        assert_eq!(doubt().settled_by(recorded, true), None);
    }
}
