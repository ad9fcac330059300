//! How a job's attempt ended.

use crate::domain::capture::{
    class::Class,
    outcome::{Deferral, Evidence, FailureVerdict, FinalOutcome, Outcome, SentState},
};

/// The outcome of a job's attempt, and the facts that settling needs besides.
pub(super) struct AttemptEnd {
    pub(super) outcome: Outcome,
    /// Whether the id may have been sent before this attempt.
    pub(super) sent: SentState,
    /// Whether the outcome was recorded before this attempt.
    pub(super) remembered: bool,
    /// Whether the circuit breaker was already open when the attempt failed.
    pub(super) outage: bool,
    pub(super) evidence: Option<Evidence>,
}

impl AttemptEnd {
    pub(super) const fn new(outcome: Outcome, sent: SentState) -> Self {
        Self { outcome, sent, remembered: false, outage: false, evidence: None }
    }

    /// For an id whose final outcome is recorded: no attempt is spent.
    pub(super) fn recorded(outcome: FinalOutcome) -> Self {
        let evidence = Some(Evidence::Record);
        Self { remembered: true, evidence, ..Self::new(outcome.into(), SentState::Yes) }
    }

    /// For an id that was replaced by a fresh id while it had another amount.
    pub(super) fn replaced() -> Self {
        let message = "a fresh id replaced this id, which had another amount";
        let verdict = FailureVerdict {
            class: Class::Conflict,
            code: None,
            message: Some(message.to_owned()),
            signed: false,
        };
        Self { remembered: true, ..Self::new(Outcome::Failed(verdict), SentState::Yes) }
    }

    pub(super) const fn deferred(why: Deferral, sent: SentState) -> Self {
        Self::new(Outcome::Deferred(why), sent)
    }

    pub(super) const fn handed_back() -> Self {
        Self::new(Outcome::HandBack, SentState::Unknown)
    }
}
