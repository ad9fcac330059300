//! What is done about an outcome.

use super::*;
use crate::domain::{
    capture::{
        class::Class,
        outcome::{Capture, Deferral, Doubt, DoubtKind, FailureVerdict, Release, Throttle},
    },
    job::JobError,
};

fn doubt() -> Outcome {
    let last_reply = Some(LastReply::new("UNKNOWN_EXCEPTION", "U"));
    Outcome::InDoubt(Doubt { reason: "not known".into(), kind: DoubtKind::Unknown, last_reply })
}

fn account() -> Outcome {
    let code = Some("KEY_NOT_FOUND".into());
    Outcome::Unauthenticated(FailureVerdict {
        class: Class::Access,
        code,
        message: None,
        signed: false,
    })
}

fn throttled(retry_after: Option<u64>) -> Outcome {
    let retry_after = retry_after.map(Duration::from_secs);
    Outcome::Throttled(Throttle { retry_after, last_reply: None })
}

fn deferred() -> Outcome {
    Outcome::Deferred(Deferral::LeaseHeld)
}

fn old(history: History) -> History {
    History { first_seen_ms: NOW_MS - 3_600_000, ..history }
}

#[track_caller]
fn check(outcome: Outcome, sent: SentState, history: &History, expected: &str) {
    assert_eq!(describe(&settled(outcome, sent, history)), expected);
}

#[test]
fn n_delays_make_n_plus_1_attempts() {
    let mut history = history();
    for delay in [5, 15, 60] {
        let Settlement::Retry { delay: waits, carry } = settled(doubt(), SentState::No, &history)
        else {
            panic!("given up too early: {history:?}");
        };
        assert_eq!(waits.as_secs(), delay);
        history = carry;
    }
    check(doubt(), SentState::Yes, &history, "dead in_doubt after 4, result in_doubt");
}

#[test]
fn a_job_past_its_maximum_age_is_given_up() {
    let history = old(History { attempts: 1, ..history() });
    check(doubt(), SentState::Yes, &history, "dead in_doubt after 2, result in_doubt");
    check(
        Outcome::NotSent("refused".into()),
        SentState::No,
        &history,
        "dead unreachable after 2, result failed.unreachable",
    );
    check(deferred(), SentState::No, &history, "dead expired after 1, result failed.expired");
    check(account(), SentState::No, &history, "dead access after 1, result failed.access");
    check(throttled(None), SentState::No, &history, "dead in_doubt after 1, result in_doubt");
}

#[test]
fn a_sent_id_that_runs_out_of_time_is_in_doubt() {
    let plain = old(history());
    for (sent, history) in [
        (SentState::Yes, plain.clone()),
        (SentState::Unknown, plain.clone()),
        (SentState::No, old(sent_history())),
        (SentState::No, History { redelivered: true, ..plain }),
    ] {
        for outcome in [deferred(), account()] {
            let expected = format!("dead in_doubt after {}, result in_doubt", history.attempts);
            check(outcome, sent, &history, &expected);
        }
        let expected = format!("dead in_doubt after {}, result in_doubt", history.attempts + 1);
        check(Outcome::NotSent("refused".into()), sent, &history, &expected);
    }
}

#[test]
fn a_deferral_waits_by_its_own_schedule_and_spends_no_attempt() {
    let nth = |deferrals| History { deferrals, attempts: 2, ..history() };
    check(deferred(), SentState::No, &nth(0), "wait 1s, 2 attempts, 1 deferrals");
    check(deferred(), SentState::No, &nth(1), "wait 4s, 2 attempts, 2 deferrals");
    check(deferred(), SentState::No, &nth(7), "wait 4s, 2 attempts, 8 deferrals");
    check(deferred(), SentState::Yes, &nth(0), "wait 1s, 2 attempts, 1 deferrals, sent");
    check(account(), SentState::No, &nth(0), "wait 1s, 2 attempts, 1 deferrals");
    check(throttled(None), SentState::No, &nth(0), "wait 1s, 2 attempts, 1 deferrals, sent");
    check(throttled(Some(2)), SentState::No, &nth(0), "wait 4s, 2 attempts, 1 deferrals, sent");
    check(throttled(Some(1)), SentState::No, &nth(1), "wait 1s, 2 attempts, 2 deferrals, sent");
    check(throttled(Some(60)), SentState::No, &nth(0), "wait 4s, 2 attempts, 1 deferrals, sent");
    check(doubt(), SentState::No, &nth(3), "wait 60s, 3 attempts, 0 deferrals, sent");
}

/// The broker could drop the job until it is published anew.
#[test]
fn a_job_with_a_death_header_is_republished_at_any_age() {
    let forged = Outcome::Deferred(Deferral::DeathHeader);
    let smallest = "wait 1s, 0 attempts, 1 deferrals";
    check(forged.clone(), SentState::Unknown, &History { attempts: 0, ..history() }, smallest);
    check(forged, SentState::Unknown, &old(History { attempts: 0, ..history() }), smallest);
}

#[test]
fn malformed_expired_and_poison_jobs_are_reported_as_such() {
    let not_a_job = Outcome::Malformed { error: JobError::NoAmount, inquired: false };
    check(
        not_a_job,
        SentState::Unknown,
        &history(),
        "dead malformed after 0, result failed.malformed",
    );
    let inquired = Outcome::Malformed { error: JobError::NoAmount, inquired: true };
    assert_eq!(inquired.release(), Release::EndBlock);
    check(
        inquired,
        SentState::Yes,
        &sent_history(),
        "dead malformed after 2, result failed.malformed",
    );
    check(
        Outcome::Expired { inquired: false },
        SentState::No,
        &history(),
        "dead expired after 0, result failed.expired",
    );
    let expired = Outcome::Expired { inquired: true };
    check(expired, SentState::Yes, &sent_history(), "dead expired after 2, result failed.expired");
    check(Outcome::Poison, SentState::Unknown, &history(), "dead poison after 0, result in_doubt");
    check(Outcome::HandBack, SentState::Unknown, &history(), "handed back");
}

#[test]
fn a_recorded_outcome_spends_no_attempt() {
    let outcome = Outcome::Captured(Capture::default());
    let attempt = FinishedAttempt {
        subject: job().subject(),
        outcome,
        sent: SentState::Yes,
        remembered: true,
        evidence: None,
        outage: false,
    };
    let settlement = settle(&attempt, &sent_history(), &policy(), now());
    assert_eq!(describe(&settlement), "captured after 1");
}

#[test]
fn a_dead_letter_holds_the_reason_and_whether_it_was_signed() {
    let verdict = FailureVerdict {
        class: Class::Risk,
        code: Some("RISK_REJECT".into()),
        message: Some("no".into()),
        signed: true,
    };
    let Settlement::Dead { reason, carry, result } =
        settled(Outcome::Failed(verdict), SentState::No, &history())
    else {
        panic!("not given up")
    };
    assert_eq!(
        (reason.code.as_deref(), reason.status.as_deref()),
        (Some("RISK_REJECT"), Some("F"))
    );
    assert_eq!((reason.signed, reason.dead_at_ms, reason.message.as_str()), (true, NOW_MS, "no"));
    assert_eq!(carry.last_reply, Some(LastReply::new("RISK_REJECT", "F")));
    let result = serde_json::to_value(result.unwrap()).unwrap();
    assert_eq!(
        result,
        serde_json::json!({
            "captureRequestId": "c",
            "paymentId": "p",
            "captureAmount": {"currency": "HKD", "value": "100"},
            "status": "FAILED",
            "class": "risk",
            "resultCode": "RISK_REJECT",
            "resultStatus": "F",
            "resultMessage": "no",
            "attempts": 1,
            "settledAt": "2027-01-15T08:00:00Z",
        })
    );
}

#[test]
fn a_malformed_job_without_a_readable_id_has_no_result() {
    let malformed = Job::parse(b"{}").unwrap_err();
    let attempt = FinishedAttempt {
        subject: malformed.subject,
        outcome: Outcome::Malformed { error: malformed.reason, inquired: false },
        sent: SentState::Unknown,
        remembered: false,
        evidence: None,
        outage: false,
    };
    let settlement = settle(&attempt, &history(), &policy(), now());
    assert_eq!(describe(&settlement), "dead malformed after 0, result none");
}
