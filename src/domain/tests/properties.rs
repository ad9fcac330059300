//! Properties that hold for every reply, every history and every outcome.

use proptest::{option, prelude::*, sample::select};

use super::*;
use crate::domain::{
    capture::{
        class::{Class, FINAL_CODES, OTHER_CODES},
        judge::{NextCall, first_call},
        reply::NoAnswer,
    },
    settlement::ResultStatus,
};

fn code() -> impl Strategy<Value = String> {
    let known: Vec<String> = FINAL_CODES
        .iter()
        .map(|(code, _)| (*code).to_owned())
        .chain(OTHER_CODES.iter().map(|code| (*code).to_owned()))
        .collect();
    prop_oneof![4 => select(known), 1 => "[A-Z_]{0,12}"]
}

fn signature() -> impl Strategy<Value = Signature> {
    select(vec![Signature::Good, Signature::Missing, Signature::Bad, Signature::Stale])
}

fn status() -> impl Strategy<Value = String> {
    select(vec!["S", "F", "U", "X", ""]).prop_map(str::to_owned)
}

fn no_reply<B: Clone + std::fmt::Debug>() -> impl Strategy<Value = Reply<B>> {
    prop_oneof![
        Just(Reply::NotSent("refused".into())),
        Just(Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(8)))),
        Just(Reply::NoAnswer(NoAnswer::ConnectionLost("reset".into()))),
        Just(Reply::NoAnswer(NoAnswer::Unreadable("no JSON".into()))),
        Just(Reply::NoAnswer(NoAnswer::TooLong(70_000))),
        (100..600_u16, option::of(0..100_u64)).prop_map(|(status, after)| {
            let retry_after = after.map(Duration::from_secs);
            Reply::NoAnswer(NoAnswer::HttpStatus { status, retry_after })
        }),
    ]
}

fn capture_body() -> impl Strategy<Value = CaptureBody> {
    let id = option::of(select(vec!["c", "d"]).prop_map(str::to_owned));
    let payment = option::of(select(vec!["p", "q"]).prop_map(str::to_owned));
    let amount =
        select(vec![None, Some(Ok(hkd("100"))), Some(Ok(hkd("1"))), Some(Err("?".to_owned()))]);
    (id, payment, amount).prop_map(|(capture_request_id, payment_id, amount)| CaptureBody {
        capture_request_id,
        payment_id,
        amount,
        ..CaptureBody::default()
    })
}

fn capture_reply() -> impl Strategy<Value = CaptureReply> {
    let body = prop_oneof![Just(success()), capture_body()];
    let answered = (signature(), status(), code(), body)
        .prop_map(|(signature, status, code, body)| answer(signature, &status, &code, body));
    prop_oneof![3 => answered, 1 => no_reply()]
}

fn inquiry_reply() -> impl Strategy<Value = InquiryReply> {
    let item = (
        select(vec!["SUCCESS", "FAIL", "PROCESSING", "PENDING", "CANCELLED", "?"]),
        option::of(code()),
        any::<bool>(),
    )
        .prop_map(|(status, code, ours)| {
            let request_id = Some(if ours { "c" } else { "d" }.to_owned());
            Transaction { request_id, ..transaction(status, code.as_deref()) }
        });
    let transactions = option::of(proptest::collection::vec(item, 0..4));
    let answered = (signature(), status(), code(), transactions).prop_map(
        |(signature, status, code, transactions)| {
            let body = InquiryBody {
                payment_id: Some("p".into()),
                transactions,
                ..InquiryBody::default()
            };
            answer(signature, &status, &code, body)
        },
    );
    prop_oneof![3 => answered, 1 => no_reply()]
}

fn any_history() -> impl Strategy<Value = History> {
    let last_reply =
        option::of((code(), status()).prop_map(|(code, status)| LastReply { code, status }));
    (0..6_u32, 0..9_u32, 0..5_000_000_i64, last_reply, any::<(bool, bool)>(), 0..3_u32).prop_map(
        |(attempts, deferrals, age_ms, last_reply, (sent, redelivered), replays)| History {
            attempts,
            deferrals,
            first_seen_ms: NOW_MS - age_ms,
            last_reply,
            sent,
            redelivered,
            replays,
            ..History::default()
        },
    )
}

/// One attempt as the worker makes it, if the gateway sends these replies.
fn attempt(
    history: &History,
    marked: bool,
    past_expiry: bool,
    capture: CaptureReply,
    inquiry: InquiryReply,
) -> Outcome {
    let marker = marked.then(SentMarker::default);
    let before = Before { marker: marker.as_ref(), past_expiry, ..before(history) };
    match first_call(&before, &Codes::default()) {
        NextCall::Expired | NextCall::Malformed => Outcome::Expired { inquired: false },
        NextCall::Post => judged(capture, &before),
        NextCall::Inquire => match inquired(inquiry, &before) {
            Inquired::Over(outcome) => outcome,
            Inquired::Post => judged(capture, &before),
        },
    }
}

/// A signed success proves a capture, whatever its time.
fn is_signed_s<B>(reply: &Reply<B>) -> bool {
    let Reply::Answered(answer) = reply else { return false };
    let is_signed = matches!(answer.signature, Signature::Good | Signature::Stale);
    is_signed && answer.result.status == Status::S
}

/// Everything else is proven only by a reply whose time fits the request.
fn is_evidence(reply: &InquiryReply) -> bool {
    let is_stale = matches!(reply, Reply::Answered(Answer { signature: Signature::Stale, .. }));
    is_signed_s(reply) && !is_stale
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(4000)
    })]

    #[test]
    fn a_sent_id_ends_captured_failed_by_a_signed_verdict_or_in_doubt(
        history in any_history(), marked: bool, past_expiry: bool,
        capture in capture_reply(), inquiry in inquiry_reply(),
    ) {
        let marker = marked.then(SentMarker::default);
        let before = Before { marker: marker.as_ref(), past_expiry, ..before(&history) };
        let sent = if before.sent() { SentState::Yes } else { SentState::No };
        let outcome = attempt(&history, marked, past_expiry, capture, inquiry.clone());
        if let Settlement::Dead { reason, result, .. } = settled(outcome, sent, &history) {
            // The one exception: signed evidence, after `expiresAt`, that there is no such capture.
            let inquires = first_call(&before, &Codes::default()) == NextCall::Inquire;
            let expired_by_inquiry =
                reason.class == Class::Expired && inquires && is_evidence(&inquiry);
            let told = result.unwrap().status;
            if sent == SentState::Yes && told == ResultStatus::Failed {
                prop_assert!(reason.signed || expired_by_inquiry, "{reason:?}");
            }
            if sent == SentState::Yes {
                prop_assert!(reason.class != Class::Unreachable);
                prop_assert!(reason.class != Class::Access || reason.signed);
                prop_assert!(reason.class != Class::Expired || expired_by_inquiry);
            }
        }
    }

    #[test]
    fn captured_needs_a_signed_reply_about_this_capture(
        history in any_history(), marked: bool,
        capture in capture_reply(), inquiry in inquiry_reply(),
    ) {
        let not_sent = Reply::NotSent(String::new());
        let posted = attempt(&history, marked, false, capture.clone(), not_sent);
        if posted.name() == "captured" {
            prop_assert!(is_signed_s(&capture));
        }
        let marker = marked.then(SentMarker::default);
        let before = Before { marker: marker.as_ref(), ..before(&history) };
        if let Inquired::Over(Outcome::Captured(_)) = inquired(inquiry.clone(), &before) {
            prop_assert!(is_signed_s(&inquiry));
        }
    }

    #[test]
    fn a_u_never_becomes_captured_or_failed_by_waiting(
        history in any_history(), code in code(),
        signature in select(vec![Signature::Good, Signature::Missing]),
    ) {
        let mut history =
            History { first_seen_ms: NOW_MS, last_reply: None, replays: 0, ..history };
        for _ in 0..20 {
            let reply = answer(signature, "U", &code, CaptureBody::default());
            let silent = Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(5)));
            let outcome = attempt(&history, true, false, reply, silent);
            match settled(outcome, SentState::Yes, &history) {
                Settlement::Retry { carry, .. } => {
                    // The job grows older, too.
                    history = History { first_seen_ms: carry.first_seen_ms - 300_000, ..carry };
                }
                Settlement::Dead { reason, result, .. } => {
                    prop_assert_eq!(reason.class, Class::InDoubt);
                    prop_assert_eq!(result.unwrap().status, ResultStatus::InDoubt);
                    return Ok(());
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(false, "the job waits forever");
    }

    #[test]
    fn every_republish_carries_that_the_id_may_have_been_sent(
        history in any_history(), marked: bool,
        capture in capture_reply(), inquiry in inquiry_reply(),
    ) {
        let marker = marked.then(SentMarker::default);
        let before = Before { marker: marker.as_ref(), ..before(&history) };
        let sent = if before.sent() { SentState::Yes } else { SentState::No };
        let left = !matches!(capture, Reply::NotSent(_));
        let posts = first_call(&before, &Codes::default()) == NextCall::Post;
        let outcome = attempt(&history, marked, false, capture, inquiry);
        let may_be_sent = before.sent() || posts && left && outcome.name() != "account";
        match settled(outcome, sent, &history) {
            Settlement::Retry { carry, .. } | Settlement::Dead { carry, .. } => {
                prop_assert!(carry.sent || !may_be_sent);
            }
            Settlement::Captured(_) | Settlement::HandBack => {}
        }
    }

    #[test]
    fn attempts_are_spent_one_by_one_and_deferrals_spend_none(
        history in any_history(), marked: bool,
        capture in capture_reply(), inquiry in inquiry_reply(),
    ) {
        let outcome = attempt(&history, marked, false, capture, inquiry);
        let spends = !matches!(
            outcome,
            Outcome::Throttled(_) | Outcome::Unauthenticated(_) | Outcome::Deferred(_)
        );
        let expected = history.attempts + u32::from(spends);
        match settled(outcome, SentState::No, &history) {
            Settlement::Retry { carry, .. } => {
                prop_assert_eq!(carry.attempts, expected);
                prop_assert_eq!(carry.deferrals, if spends { 0 } else { history.deferrals + 1 });
            }
            Settlement::Dead { carry, .. } => prop_assert_eq!(carry.attempts, expected),
            Settlement::Captured(result) => prop_assert_eq!(result.attempts, expected),
            Settlement::HandBack => prop_assert!(false),
        }
    }
}
