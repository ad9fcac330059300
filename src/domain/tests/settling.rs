//! What is done about an outcome.

use super::*;
use crate::domain::{
    capture::{
        class::Class,
        outcome::{Capture, Deferral, Doubt, DoubtKind, Release, Throttle, Verdict},
    },
    job::JobError,
};

fn doubt() -> Outcome {
    let word = Some(LastWord::new("UNKNOWN_EXCEPTION", "U"));
    Outcome::InDoubt(Doubt { reason: "not known".into(), kind: DoubtKind::Unknown, word })
}

fn account() -> Outcome {
    let code = Some("KEY_NOT_FOUND".into());
    Outcome::Account(Verdict { class: Class::Access, code, message: None, signed: false })
}

fn throttled(retry_after: Option<u64>) -> Outcome {
    let retry_after = retry_after.map(Duration::from_secs);
    Outcome::Throttled(Throttle { retry_after, word: None })
}

fn deferred() -> Outcome {
    Outcome::Deferred(Deferral::LeaseHeld)
}

fn old(history: History) -> History {
    History { first_seen_ms: NOW_MS - 3_600_000, ..history }
}

#[track_caller]
fn check(outcome: Outcome, sent: Sent, history: &History, expected: &str) {
    assert_eq!(describe(&settled(outcome, sent, history)), expected);
}

#[test]
fn n_delays_make_n_plus_1_attempts() {
    let mut history = history();
    for delay in [5, 15, 60] {
        let Settlement::Retry { delay: waits, carry } = settled(doubt(), Sent::No, &history) else {
            panic!("given up too early: {history:?}");
        };
        assert_eq!(waits.as_secs(), delay);
        history = carry;
    }
    check(doubt(), Sent::Yes, &history, "dead in_doubt after 4, result in_doubt");
}

#[test]
fn a_job_past_its_maximum_age_is_given_up() {
    let history = old(History { attempts: 1, ..history() });
    check(doubt(), Sent::Yes, &history, "dead in_doubt after 2, result in_doubt");
    check(
        Outcome::NotSent("refused".into()),
        Sent::No,
        &history,
        "dead unreachable after 2, result failed.unreachable",
    );
    check(deferred(), Sent::No, &history, "dead expired after 1, result failed.expired");
    check(account(), Sent::No, &history, "dead access after 1, result failed.access");
    check(throttled(None), Sent::No, &history, "dead in_doubt after 1, result in_doubt");
}

#[test]
fn a_sent_id_that_runs_out_of_time_is_in_doubt() {
    let plain = old(history());
    for (sent, history) in [
        (Sent::Yes, plain.clone()),
        (Sent::Unknown, plain.clone()),
        (Sent::No, old(sent_history())),
        (Sent::No, History { redelivered: true, ..plain }),
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
    check(deferred(), Sent::No, &nth(0), "wait 1s, 2 attempts, 1 deferrals");
    check(deferred(), Sent::No, &nth(1), "wait 4s, 2 attempts, 2 deferrals");
    check(deferred(), Sent::No, &nth(7), "wait 4s, 2 attempts, 8 deferrals");
    check(deferred(), Sent::Yes, &nth(0), "wait 1s, 2 attempts, 1 deferrals, sent");
    check(account(), Sent::No, &nth(0), "wait 1s, 2 attempts, 1 deferrals");
    check(throttled(None), Sent::No, &nth(0), "wait 1s, 2 attempts, 1 deferrals, sent");
    check(throttled(Some(2)), Sent::No, &nth(0), "wait 4s, 2 attempts, 1 deferrals, sent");
    check(throttled(Some(1)), Sent::No, &nth(1), "wait 1s, 2 attempts, 2 deferrals, sent");
    check(throttled(Some(60)), Sent::No, &nth(0), "wait 4s, 2 attempts, 1 deferrals, sent");
    check(doubt(), Sent::No, &nth(3), "wait 60s, 3 attempts, 0 deferrals, sent");
}

/// The broker could drop the job until it is published anew.
#[test]
fn a_job_with_a_death_header_is_republished_at_any_age() {
    let forged = Outcome::Deferred(Deferral::DeathHeader);
    let smallest = "wait 1s, 0 attempts, 1 deferrals";
    check(forged.clone(), Sent::Unknown, &History { attempts: 0, ..history() }, smallest);
    check(forged, Sent::Unknown, &old(History { attempts: 0, ..history() }), smallest);
}

#[test]
fn malformed_expired_and_poison_jobs_are_reported_as_such() {
    let not_a_job = Outcome::Malformed { error: JobError::NoAmount, inquired: false };
    check(not_a_job, Sent::Unknown, &history(), "dead malformed after 0, result failed.malformed");
    let inquired = Outcome::Malformed { error: JobError::NoAmount, inquired: true };
    assert_eq!(inquired.release(), Release::EndHold);
    check(inquired, Sent::Yes, &sent_history(), "dead malformed after 2, result failed.malformed");
    check(
        Outcome::Expired { inquired: false },
        Sent::No,
        &history(),
        "dead expired after 0, result failed.expired",
    );
    let expired = Outcome::Expired { inquired: true };
    check(expired, Sent::Yes, &sent_history(), "dead expired after 2, result failed.expired");
    check(Outcome::Poison, Sent::Unknown, &history(), "dead poison after 0, result in_doubt");
    check(Outcome::HandBack, Sent::Unknown, &history(), "handed back");
}

#[test]
fn a_recorded_outcome_spends_no_attempt() {
    let outcome = Outcome::Captured(Capture::default());
    let attempt = Attempt {
        subject: job().subject(),
        outcome,
        sent: Sent::Yes,
        remembered: true,
        evidence: None,
        outage: false,
    };
    let settlement = settle(&attempt, &sent_history(), &policy(), now());
    assert_eq!(describe(&settlement), "captured after 1");
}

#[test]
fn a_dead_letter_holds_the_reason_and_whether_it_was_signed() {
    let verdict = Verdict {
        class: Class::Risk,
        code: Some("RISK_REJECT".into()),
        message: Some("no".into()),
        signed: true,
    };
    let Settlement::Dead { letter, carry, result } =
        settled(Outcome::Failed(verdict), Sent::No, &history())
    else {
        panic!("not given up")
    };
    assert_eq!(
        (letter.code.as_deref(), letter.status.as_deref()),
        (Some("RISK_REJECT"), Some("F"))
    );
    assert_eq!((letter.signed, letter.dead_at_ms, letter.message.as_str()), (true, NOW_MS, "no"));
    assert_eq!(carry.last_word, Some(LastWord::new("RISK_REJECT", "F")));
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
    let attempt = Attempt {
        subject: malformed.subject,
        outcome: Outcome::Malformed { error: malformed.reason, inquired: false },
        sent: Sent::Unknown,
        remembered: false,
        evidence: None,
        outage: false,
    };
    let settlement = settle(&attempt, &history(), &policy(), now());
    assert_eq!(describe(&settlement), "dead malformed after 0, result none");
}
