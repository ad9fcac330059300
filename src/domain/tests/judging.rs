//! What a reply proves.

use super::*;
use crate::domain::{
    judge::{Call, first_call},
    outcome::DoubtKind,
    reply::NoAnswer,
};

/// An outcome in one line.
fn line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Captured(capture) => format!("captured {}", capture.code),
        Outcome::Failed(verdict) | Outcome::Closed(verdict) => {
            format!("failed {} {}", verdict.class, verdict.code.as_deref().unwrap_or("-"))
        }
        Outcome::InDoubt(doubt) => {
            let word = doubt
                .word
                .as_ref()
                .map_or_else(|| "-".into(), |word| format!("{},{}", word.code, word.status));
            format!("in doubt {} {word}", doubt.kind.name())
        }
        Outcome::Account(verdict) => format!("account {}", verdict.code.as_deref().unwrap_or("-")),
        other => other.name().into(),
    }
}

#[track_caller]
fn check(reply: CaptureReply, history: &History, expected: &str) {
    assert_eq!(line(&judged(reply, &before(history))), expected);
}

#[track_caller]
fn check_inquiry(reply: InquiryReply, history: &History, expected: &str) {
    let found = match inquired(reply, &before(history)) {
        Inquired::Over(outcome) => line(&outcome),
        Inquired::Post => "post".into(),
    };
    assert_eq!(found, expected);
}

#[test]
fn a_signed_word_is_final_whether_the_id_was_sent_or_not() {
    for history in [history(), sent_history()] {
        check(signed("S", "SUCCESS"), &history, "captured SUCCESS");
        check(signed("F", "RISK_REJECT"), &history, "failed risk RISK_REJECT");
        check(
            signed("F", "REPEAT_REQ_INCONSISTENT"),
            &history,
            "failed conflict REPEAT_REQ_INCONSISTENT",
        );
    }
}

#[test]
fn an_f_that_need_not_be_about_the_capture_is_final_only_for_an_id_that_was_never_sent() {
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
        let fresh = history();
        let marked = Before { marked: true, ..before(&fresh) };
        assert_eq!(line(&judged(signed("F", code), &marked)), in_doubt);
    }
}

#[test]
fn what_is_not_signed_is_no_verdict() {
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
fn u_is_in_doubt_and_too_many_calls_spend_no_attempt() {
    check(signed("U", "CAPTURE_IN_PROCESS"), &history(), "in doubt unknown CAPTURE_IN_PROCESS,U");
    check(signed("X", "SUCCESS"), &history(), "in doubt untrusted -");
    check(signed("U", "REQUEST_TRAFFIC_EXCEED_LIMIT"), &history(), "throttled");
    check(signed("F", "REQUEST_TRAFFIC_EXCEED_LIMIT"), &history(), "throttled");
    let too_many = NoAnswer::HttpStatus { status: 429, retry_after: None };
    check(Reply::NoAnswer(too_many), &history(), "throttled");
}

#[test]
fn no_answer_is_in_doubt_and_not_sent_is_not() {
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
fn of_our_transactions_success_beats_processing_beats_fail() {
    let history = sent_history();
    let (ok, busy, fail) = (
        transaction("SUCCESS", Some("SUCCESS")),
        transaction("PROCESSING", None),
        transaction("FAIL", Some("RISK_REJECT")),
    );
    check_inquiry(
        inquiry(vec![fail.clone(), busy.clone(), ok.clone()]),
        &history,
        "captured SUCCESS",
    );
    check_inquiry(
        inquiry(vec![fail.clone(), busy]),
        &history,
        "in doubt unknown PAYMENT_IN_PROCESS,U",
    );
    check_inquiry(
        inquiry(vec![transaction("PENDING", None)]),
        &history,
        "in doubt unknown PAYMENT_IN_PROCESS,U",
    );
    check_inquiry(inquiry(vec![fail]), &history, "failed risk RISK_REJECT");
    check_inquiry(inquiry(vec![transaction("FAIL", None)]), &history, "failed provider -");
    check_inquiry(inquiry(vec![transaction("CANCELLED", None)]), &history, "failed order -");
    check_inquiry(
        inquiry(vec![transaction("HIBERNATING", None)]),
        &history,
        "in doubt no_evidence -",
    );
}

#[test]
fn transactions_of_others_are_none_of_ours() {
    let others = [
        Transaction { kind: Some("REFUND".into()), ..transaction("SUCCESS", None) },
        Transaction { kind: None, ..transaction("SUCCESS", None) },
        Transaction { request_id: Some("C".into()), ..transaction("FAIL", None) },
    ];
    check_inquiry(inquiry(others.to_vec()), &sent_history(), "post");
    check_inquiry(inquiry(vec![]), &sent_history(), "post");
}

#[test]
fn a_success_of_another_amount_is_a_conflict_and_an_unreadable_one_no_evidence() {
    let other = Transaction { amount: Some(Ok(hkd("99"))), ..transaction("SUCCESS", None) };
    check_inquiry(inquiry(vec![other.clone()]), &sent_history(), "failed conflict -");
    check_inquiry(
        inquiry(vec![other, transaction("SUCCESS", None)]),
        &sent_history(),
        "captured SUCCESS",
    );
    for amount in [None, Some(Err("no money".into()))] {
        let unreadable = Transaction { amount, ..transaction("SUCCESS", None) };
        check_inquiry(inquiry(vec![unreadable]), &sent_history(), "in doubt no_evidence -");
    }
}

#[test]
fn only_a_signed_s_about_our_payment_with_transactions_is_evidence() {
    let body = |payment: &str, transactions| InquiryBody {
        payment_id: Some(payment.into()),
        transactions,
        ..InquiryBody::default()
    };
    let none = Some(Vec::new());
    for reply in [
        answer(Signature::Missing, "S", "SUCCESS", body("p", none.clone())),
        answer(Signature::Bad, "S", "SUCCESS", body("p", none.clone())),
        answer(Signature::Good, "F", "ORDER_NOT_EXIST", body("p", none.clone())),
        answer(Signature::Good, "U", "UNKNOWN_EXCEPTION", body("p", none.clone())),
        answer(Signature::Good, "S", "SUCCESS", body("q", none)),
        answer(Signature::Good, "S", "SUCCESS", body("p", None)),
        Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(5))),
    ] {
        check_inquiry(reply, &with_last_word("ACCESS_DENIED", "F"), "in doubt no_evidence -");
    }
    check_inquiry(Reply::NotSent("refused".into()), &sent_history(), "not_sent");
}

#[test]
fn evidence_of_no_capture_lets_an_unproven_f_stand() {
    let denied = with_last_word("ACCESS_DENIED", "F");
    check_inquiry(inquiry(vec![]), &denied, "failed access ACCESS_DENIED");
    check_inquiry(inquiry(vec![transaction("SUCCESS", None)]), &denied, "captured SUCCESS");
    let expired = Before { past_expiry: true, ..before(&denied) };
    let Inquired::Over(outcome) = inquired(inquiry(vec![]), &expired) else { panic!("posted") };
    assert_eq!(line(&outcome), "failed access ACCESS_DENIED", "a verdict comes before the time");
}

#[test]
fn evidence_of_no_capture_past_its_time_is_expired() {
    let history = History { redelivered: true, ..history() };
    let late = Before { past_expiry: true, ..before(&history) };
    assert_eq!(
        inquired(inquiry(vec![]), &late),
        Inquired::Over(Outcome::Expired { inquired: true })
    );
}

#[test]
fn an_attempt_posts_unless_there_is_something_to_inquire_about() {
    let codes = Codes::default();
    let call = |history: &History, marked, past_expiry| {
        first_call(&Before { history, marked, past_expiry }, &codes)
    };
    let redelivered = History { redelivered: true, ..history() };
    let replayed = History { replays: 1, attempts: 0, ..sent_history() };
    for (history, marked, past_expiry, expected) in [
        (history(), false, false, Call::Post),
        (history(), true, false, Call::Post),
        (sent_history(), false, false, Call::Post),
        (redelivered.clone(), false, false, Call::Post),
        (with_last_word("UNKNOWN_EXCEPTION", "U"), false, false, Call::Post),
        (with_last_word("CAPTURE_IN_PROCESS", "U"), false, false, Call::Inquire),
        (with_last_word("PAYMENT_IN_PROCESS", "U"), true, true, Call::Inquire),
        (with_last_word("ACCESS_DENIED", "F"), false, false, Call::Inquire),
        (with_last_word("RISK_REJECT", "F"), false, false, Call::Post),
        (replayed.clone(), false, false, Call::Inquire),
        (History { sent: false, ..replayed.clone() }, true, false, Call::Inquire),
        (History { sent: false, ..replayed.clone() }, false, false, Call::Post),
        (History { attempts: 1, ..replayed }, false, false, Call::Post),
        (history(), false, true, Call::Expired),
        (history(), true, true, Call::Post),
        (sent_history(), false, true, Call::Post),
        (redelivered.clone(), false, true, Call::Inquire),
        (redelivered, true, true, Call::Post),
    ] {
        assert_eq!(
            call(&history, marked, past_expiry),
            expected,
            "{history:?} {marked} {past_expiry}"
        );
    }
}
