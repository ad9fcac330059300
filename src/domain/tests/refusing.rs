//! How a job waits after its result was refused, and how it ends when it is delivered again.

use super::*;
use crate::domain::{
    capture::outcome::{Capture, Deferral, Doubt, DoubtKind, FailureVerdict},
    settlement::refused::{RefusedResult, ResultWait},
};

const NEVER: RefusedResult = RefusedResult { times: 0, ended: None };

fn risk() -> Outcome {
    let (code, message) = (Some("RISK_REJECT".into()), None);
    Outcome::Failed(FailureVerdict { class: Class::Risk, code, message, signed: true })
}

fn doubt() -> Outcome {
    let reason = "not known".into();
    Outcome::InDoubt(Doubt { reason, kind: DoubtKind::NoAnswer, last_reply: None })
}

/// An old job with all attempts but one spent.
fn at_its_end() -> History {
    History { attempts: 3, first_seen_ms: 0, deferrals: 7, ..history() }
}

fn waits(outcome: Outcome, before: RefusedResult, history: &History) -> ResultWait {
    let settlement = settled(outcome, SentState::No, history);
    before.wait(&settlement, history, &policy()).expect("it has a result")
}

#[test]
fn a_refused_result_waits_by_the_schedule_and_spends_no_attempt() {
    let schedule = policy().schedule;
    for outcome in [Outcome::Captured(Capture::default()), risk(), doubt()] {
        let history = at_its_end();
        for (times, delay) in
            [(0, schedule[0]), (1, schedule[1]), (2, schedule[2]), (9, schedule[2])]
        {
            let before = RefusedResult { times, ended: None };
            let wait = waits(outcome.clone(), before, &history);
            assert_eq!(wait.delay, delay, "{outcome:?} after {times}");
            assert_eq!(wait.refused, RefusedResult { times: times + 1, ended: None });
            assert_eq!((wait.carry.attempts, wait.carry.deferrals, wait.carry.sent), (3, 0, true));
            assert_eq!(wait.carry.first_seen_ms, history.first_seen_ms);
        }
    }
}

/// A failure that was published without any call to the gateway makes no call later.
#[test]
fn a_failure_known_only_from_the_job_ends_it_again() {
    let unreachable = Outcome::NotSent("refused".into());
    let account = Outcome::Unauthenticated(FailureVerdict {
        class: Class::Access,
        code: Some("KEY_NOT_FOUND".into()),
        message: None,
        signed: false,
    });
    let deferred = Outcome::Deferred(Deferral::LeaseHeld);
    let expired = Outcome::Expired { inquired: false };
    for (outcome, class, past_expiry) in [
        (unreachable, Class::Unreachable, false),
        (account, Class::Access, false),
        (deferred, Class::Expired, false),
        (expired, Class::Expired, true),
    ] {
        let history = at_its_end();
        let first = settled(outcome.clone(), SentState::No, &history);
        let wait = NEVER.wait(&first, &history, &policy()).expect("a result");
        assert_eq!((wait.refused.ended, wait.carry.sent), (Some(class), false), "{outcome:?}");
        assert!(!wait.refused.outlives_its_age());
        let again = wait.refused.ends(false, past_expiry).expect("no call");
        let again = settled(again, SentState::No, &wait.carry);
        assert_eq!(describe(&again), describe(&first), "{outcome:?}");
        assert_eq!(wait.refused.ends(true, past_expiry), None, "a copy of it was sent");
    }
}

#[test]
fn a_job_without_a_refused_result_is_not_ended() {
    let retry = settled(doubt(), SentState::No, &history());
    assert_eq!(NEVER.wait(&retry, &history(), &policy()), None);
    assert_eq!(NEVER.ends(false, false), None);
    assert_eq!(RefusedResult::read(0, Some(Class::Unreachable)), NEVER);
    let known = RefusedResult { times: 1, ended: None };
    assert_eq!(RefusedResult::read(1, Some(Class::Risk)), known, "a verdict of the gateway");
    assert!(known.outlives_its_age() && !NEVER.outlives_its_age());
}
