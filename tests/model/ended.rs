//! The bridge to `src/domain/settlement/mod.rs`: the settlement of an ended attempt.

use std::{cell::RefCell, collections::HashMap, time::Duration};

use capture_worker::domain::{
    capture::outcome::{FinishedAttempt, SentState},
    settlement::{ResultStatus, RetryPolicy, Settlement, settle},
};
use time::OffsetDateTime;

use crate::domain::{
    Came, Carried, Left, MAX_AGE_MS, NOW_MS, Todo, carried, history, job, outcome, remembered,
};

/// An ended attempt: everything that `src/domain/settlement::settle` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ended {
    pub(crate) came: Came,
    pub(crate) sent: Left,
    pub(crate) remembered: bool,
    pub(crate) carried: Carried,
    pub(crate) is_old: bool,
    pub(crate) delays: u8,
}

impl Ended {
    /// Calls the program's `src/domain/settlement::settle`.
    pub(crate) fn settle(self) -> Todo {
        thread_local!(static SETTLED: RefCell<HashMap<Ended, Todo>> = RefCell::default());
        remembered(&SETTLED, self, |ended| {
            let attempt = FinishedAttempt {
                subject: job().subject(),
                outcome: outcome(ended.came),
                sent: match ended.sent {
                    Left::No => SentState::No,
                    Left::Unknown => SentState::Unknown,
                    Left::Yes => SentState::Yes,
                },
                remembered: ended.remembered,
                evidence: None,
                outage: false,
            };
            let policy = RetryPolicy {
                schedule: vec![Duration::from_secs(5); usize::from(ended.delays)],
                defer_schedule: vec![Duration::from_secs(1)],
                max_age: Duration::from_millis(u64::try_from(MAX_AGE_MS).unwrap_or(0)),
            };
            let now = OffsetDateTime::from_unix_timestamp(NOW_MS / 1000).expect("a time");
            let history = history(ended.carried, ended.is_old);
            match settle(&attempt, &history, &policy, now) {
                Settlement::Captured(_) => Todo::Captured,
                Settlement::Retry { carry, .. } => Todo::Retry(carried(&carry)),
                Settlement::Dead { reason, carry, result } => Todo::Dead {
                    class: reason.class,
                    signed: reason.signed,
                    carried: carried(&carry),
                    in_doubt: result.is_none_or(|told| told.status == ResultStatus::InDoubt),
                },
                Settlement::HandBack => Todo::Retry(ended.carried),
            }
        })
    }
}
