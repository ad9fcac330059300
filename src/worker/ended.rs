//! How a job's attempt ended, and what is known besides.

use crate::domain::{
    class::Class,
    outcome::{Deferral, Evidence, Fate, Outcome, Sent, Verdict},
};

/// How a job's attempt ended.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) sent: Sent,
    pub(super) remembered: bool,
    /// The breaker was open already when it failed.
    pub(super) outage: bool,
    pub(super) evidence: Option<Evidence>,
}

impl Ended {
    pub(super) const fn of(outcome: Outcome, sent: Sent) -> Self {
        Self { outcome, sent, remembered: false, outage: false, evidence: None }
    }

    /// Of an id whose final outcome was known already.
    pub(super) fn known(fate: Fate) -> Self {
        let evidence = Some(Evidence::Record);
        Self { remembered: true, evidence, ..Self::of(fate.into(), Sent::Yes) }
    }

    /// Of an id that a fresh one replaced, for another amount.
    pub(super) fn replaced() -> Self {
        let message = "a fresh id replaced this one, for another amount";
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
