//! The result of a job's attempt.

use crate::domain::capture::{
    class::Class,
    outcome::{Deferral, Evidence, Fate, Outcome, Sent, Verdict},
};

/// The outcome of a job's attempt, and the facts that settling needs besides.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) sent: Sent,
    pub(super) remembered: bool,
    /// Whether the circuit breaker was already open when the attempt failed.
    pub(super) outage: bool,
    pub(super) evidence: Option<Evidence>,
}

impl Ended {
    pub(super) const fn of(outcome: Outcome, sent: Sent) -> Self {
        Self { outcome, sent, remembered: false, outage: false, evidence: None }
    }

    /// For an id whose final outcome is recorded: no attempt is spent.
    pub(super) fn known(fate: Fate) -> Self {
        let evidence = Some(Evidence::Record);
        Self { remembered: true, evidence, ..Self::of(fate.into(), Sent::Yes) }
    }

    /// For an id that was replaced by a fresh id while it had another amount.
    pub(super) fn replaced() -> Self {
        let message = "a fresh id replaced this id, which had another amount";
        let verdict = Verdict {
            class: Class::Conflict,
            code: None,
            message: Some(message.to_owned()),
            signed: false,
        };
        Self { remembered: true, ..Self::of(Outcome::Failed(verdict), Sent::Yes) }
    }

    pub(super) const fn deferred(why: Deferral, sent: Sent) -> Self {
        Self::of(Outcome::Deferred(why), sent)
    }

    pub(super) const fn handed_back() -> Self {
        Self::of(Outcome::HandBack, Sent::Unknown)
    }
}
