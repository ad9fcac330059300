//! What an inquiry proves.

use super::{
    judging::{check_inquiry, line},
    *,
};
use crate::domain::{
    capture::{
        family::fresh_id,
        judge::{NextCall, first_call},
        outcome::FinalOutcome,
        reply::{AcquirerInfo, NoAnswer},
    },
    job::JobError,
    replay::evidence::CaptureSeen,
};

#[test]
fn success_overrides_processing_and_processing_overrides_fail() {
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
fn transactions_of_other_ids_are_ignored() {
    let others = [
        Transaction { request_id: Some("C".into()), ..transaction("FAIL", None) },
        Transaction { request_id: Some("C".into()), ..transaction("SUCCESS", None) },
        Transaction {
            kind: Some("AUTHORIZATION".into()),
            request_id: None,
            ..transaction("SUCCESS", None)
        },
    ];
    check_inquiry(inquiry(others.to_vec()), &sent_history(), "post");
    check_inquiry(inquiry(vec![]), &sent_history(), "post");
}

#[test]
fn a_contradiction_is_no_evidence_and_hides_no_success() {
    let with = |status: &str, result: &str| Transaction {
        result: Some(GatewayResult { status: Status::of(result), code: "X".into(), message: None }),
        ..transaction(status, None)
    };
    let anonymous = |kind: Option<&str>, id: Option<&str>| Transaction {
        kind: kind.map(str::to_owned),
        request_id: id.map(str::to_owned),
        ..transaction("SUCCESS", None)
    };
    for item in [
        with("FAIL", "U"),
        with("FAIL", "S"),
        with("CANCELLED", "S"),
        with("SUCCESS", "F"),
        with("SUCCESS", "U"),
        with("PROCESSING", "F"),
        Transaction { kind: Some("REFUND".into()), ..transaction("SUCCESS", None) },
        Transaction { kind: None, ..transaction("FAIL", None) },
        anonymous(Some("CAPTURE"), None),
        anonymous(Some("CAPTURE"), Some(" ")),
        anonymous(Some("capture"), None),
        anonymous(None, None),
    ] {
        let told = format!("{item:?}");
        let found = inquired(inquiry(vec![item.clone()]), &before(&sent_history()));
        let Inquired::Over(outcome) = found else { panic!("posted: {told}") };
        assert_eq!(line(&outcome), "in doubt no_evidence -", "{told}");
        let hides = vec![item, transaction("SUCCESS", Some("SUCCESS"))];
        check_inquiry(inquiry(hides), &sent_history(), "captured SUCCESS");
    }
}

#[test]
fn an_authorization_under_review_allows_no_post() {
    let body = InquiryBody {
        payment_id: Some("p".into()),
        transactions: Some(Vec::new()),
        auth_review_status: Some("PROCESSING".into()),
        ..InquiryBody::default()
    };
    let reply = answer(Signature::Good, "S", "SUCCESS", body);
    check_inquiry(reply.clone(), &sent_history(), "in doubt no_evidence -");
    assert!(matches!(
        CaptureSeen::of(&reply, &job(), &Codes::default()),
        CaptureSeen::Nothing { .. }
    ));
}

#[test]
fn an_id_with_an_active_descendant_is_never_posted() {
    let of = |generation: usize, status: &str| Transaction {
        request_id: Some((0..generation).fold("c".to_owned(), |id, _| fresh_id(&id))),
        ..transaction(status, None)
    };
    for generation in [1, 2, 5, 32] {
        for status in ["SUCCESS", "PROCESSING", "NEW_STATUS"] {
            let items = vec![of(generation, status)];
            check_inquiry(inquiry(items), &sent_history(), "failed conflict -");
        }
        let dead = vec![of(generation, "FAIL")];
        check_inquiry(inquiry(dead), &sent_history(), "post");
    }
    let own = |status, code| vec![of(2, "SUCCESS"), transaction(status, code)];
    check_inquiry(inquiry(own("SUCCESS", None)), &sent_history(), "captured SUCCESS");
    let failed = own("FAIL", Some("RISK_REJECT"));
    check_inquiry(inquiry(failed), &sent_history(), "failed risk RISK_REJECT");
}

#[test]
fn another_amount_is_a_conflict_and_an_unreadable_one_no_evidence() {
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
        answer(Signature::Good, "S", "SUCCESS", body("q", none.clone())),
        answer(
            Signature::Good,
            "S",
            "SUCCESS",
            InquiryBody { payment_id: None, ..body("p", none) },
        ),
        answer(Signature::Good, "S", "SUCCESS", body("p", None)),
        Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(5))),
    ] {
        check_inquiry(reply, &with_last_word("ACCESS_DENIED", "F"), "in doubt no_evidence -");
    }
    check_inquiry(Reply::NotSent("refused".into()), &sent_history(), "not_sent");
}

#[test]
fn a_recorded_refusal_is_final_once_there_is_no_capture() {
    let (sent, marker) = (sent_history(), marker(Some("ACCESS_DENIED")));
    let denied = Before { marker: Some(&marker), ..before(&sent) };
    let expired = Before { past_expiry: true, ..denied };
    for (items, before, expected) in [
        (vec![], denied, "failed access ACCESS_DENIED"),
        (vec![transaction("SUCCESS", None)], denied, "captured SUCCESS"),
        // A verdict takes precedence over expiry.
        (vec![], expired, "failed access ACCESS_DENIED"),
    ] {
        let Inquired::Over(outcome) = inquired(inquiry(items), &before) else { panic!("posted") };
        assert_eq!(line(&outcome), expected);
    }
}

/// Any publisher can write headers. Only Redis shows what the gateway has signed.
#[test]
fn a_refusal_known_only_from_headers_proves_nothing() {
    let claims = with_last_word("ACCESS_DENIED", "F");
    assert_eq!(first_call(&before(&claims), &Codes::default()), NextCall::Inquire);
    check_inquiry(inquiry(vec![]), &claims, "post");
    let empty = marker(None);
    let marked = Before { marker: Some(&empty), ..before(&claims) };
    assert_eq!(first_call(&marked, &Codes::default()), NextCall::Inquire);
    assert_eq!(inquired(inquiry(vec![]), &marked), Inquired::Post);
}

#[test]
fn no_capture_after_expires_at_is_expired() {
    let history = History { redelivered: true, ..history() };
    let late = Before { past_expiry: true, ..before(&history) };
    assert_eq!(
        inquired(inquiry(vec![]), &late),
        Inquired::Over(Outcome::Expired { inquired: true })
    );
}

#[test]
fn a_fresh_id_is_not_posted_beside_an_active_ancestor() {
    let replaces = |origin: &str| History {
        replays: 1,
        parent: Some("b".into()),
        origin: Some(origin.into()),
        ..history()
    };
    let of = |id: &str, status: &str| Transaction {
        request_id: Some(id.into()),
        ..transaction(status, None)
    };
    for status in ["SUCCESS", "PROCESSING", "NEW_STATUS"] {
        check_inquiry(inquiry(vec![of("b", status)]), &replaces("b"), "failed conflict -");
    }
    check_inquiry(inquiry(vec![of("b", "FAIL")]), &replaces("b"), "post");
    check_inquiry(inquiry(vec![of("a", "SUCCESS")]), &replaces("a"), "post");
}

#[test]
fn a_sent_job_is_malformed_only_after_an_inquiry() {
    let codes = Codes::default();
    let error = JobError::Repeated("goods".into());
    let marker = marker(None);
    let bad = |history, marked: bool| Before {
        marker: marked.then_some(&marker),
        forward_error: Some(&error),
        ..before(history)
    };
    let (fresh, redelivered) = (history(), History { redelivered: true, ..history() });
    let denied = with_last_word("ACCESS_DENIED", "F");
    let late = Before { past_expiry: true, ..bad(&fresh, false) };
    assert_eq!(first_call(&bad(&fresh, false), &codes), NextCall::Malformed);
    assert_eq!(first_call(&late, &codes), NextCall::Malformed);
    for before in [
        bad(&fresh, true),
        bad(&redelivered, false),
        bad(&denied, false),
        Before { past_expiry: true, ..bad(&fresh, true) },
    ] {
        assert_eq!(first_call(&before, &codes), NextCall::Inquire, "{before:?}");
        let malformed = Outcome::Malformed { error: error.clone(), inquired: true };
        assert_eq!(inquired(inquiry(vec![]), &before), Inquired::Over(malformed), "{before:?}");
        let shown = |status| inquired(inquiry(vec![transaction(status, None)]), &before);
        let Inquired::Over(captured) = shown("SUCCESS") else { panic!("posted") };
        assert_eq!(line(&captured), "captured SUCCESS");
        let Inquired::Over(in_process) = shown("PROCESSING") else { panic!("posted") };
        assert_eq!(in_process.name(), "in_doubt");
    }
}

#[test]
fn an_inquiry_reports_the_acquirer() {
    let info = || {
        let info = serde_json::value::RawValue::from_string(r#"{"a": 1.0}"#.into()).unwrap();
        AcquirerInfo::of(info)
    };
    let item = Transaction {
        acquirer_reference_no: Some("reference".into()),
        acquirer_info: info(),
        ..transaction("SUCCESS", None)
    };
    let Inquired::Over(Outcome::Captured(capture)) =
        inquired(inquiry(vec![item]), &before(&sent_history()))
    else {
        panic!("not captured")
    };
    assert_eq!(capture.acquirer_reference_no.as_deref(), Some("reference"));
    assert_eq!(capture.acquirer_info, info());
    // Redis stores the outcome in this form.
    let kept = serde_json::to_string(&FinalOutcome::Captured(capture.clone())).unwrap();
    assert!(kept.contains(r#""acquirer_info":{"a": 1.0}"#), "{kept}");
    assert_eq!(
        serde_json::from_str::<FinalOutcome>(&kept).unwrap(),
        FinalOutcome::Captured(capture)
    );
    let older = concat!(
        r#"{"captured":{"code":"SUCCESS","message":null,"capture_id":null,"#,
        r#""capture_time":null,"acquirer_reference_no":null}}"#
    );
    assert!(serde_json::from_str::<FinalOutcome>(older).is_ok());
}
