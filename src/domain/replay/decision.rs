//! The decision about a replay by what Redis and the gateway show: send the job, settle the dead
//! letter as captured, or refuse. [`super::prepare`] has decided by the class before. A dry run and
//! the act call the same functions, and differ only in what they do afterwards.

use time::OffsetDateTime;

use super::{
    Replay, ReplayPolicy,
    dead_letter::DeadLetter,
    evidence::{CaptureSeen, PaymentSeen},
    refusal::{EvidenceRefusal, RecordRefusal, ReplayRefusal},
};
use crate::domain::capture::{
    class::{Class, Codes},
    family::{ActiveId, Descendants},
    outcome::Capture,
};

/// What is done with a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The job is published to the queue of jobs.
    Send(Replay),
    /// The money was captured: the result is published, and the dead letter is removed.
    Settle(Capture),
    /// The dead letter stays where it is.
    Refuse(ReplayRefusal),
}

/// What Redis shows about the id of a dead letter, when a fresh id shall replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordSeen {
    /// The id was captured.
    Captured(Capture),
    /// No fresh id can be sent now.
    Refused(RecordRefusal),
    /// Nothing that decides alone: ask the gateway.
    Undecided,
}

impl RecordSeen {
    /// Decides without the gateway, if the record is enough for that.
    #[must_use]
    pub fn decide(&self) -> Option<Decision> {
        match self {
            Self::Captured(capture) => Some(Decision::Settle(capture.clone())),
            Self::Refused(refusal) => Some(Decision::Refuse(refusal.clone().into())),
            Self::Undecided => None,
        }
    }
}

/// Decides about a prepared replay by the gateway's evidence. A fresh id needs evidence that its
/// parent captured nothing. An id that may have been sent needs evidence of its outcome, because a
/// fresh id may have replaced it.
#[must_use]
pub fn decide(
    dead_letter: &DeadLetter,
    replay: Replay,
    seen: &CaptureSeen,
    payment: &PaymentSeen,
    now: OffsetDateTime,
) -> Decision {
    if let CaptureSeen::Captured(capture) = seen {
        return Decision::Settle(capture.clone());
    }
    match check(dead_letter, &replay, seen, payment, now) {
        Ok(()) => Decision::Send(replay),
        Err(refusal) => Decision::Refuse(refusal.into()),
    }
}

fn check(
    dead_letter: &DeadLetter,
    replay: &Replay,
    seen: &CaptureSeen,
    payment: &PaymentSeen,
    now: OffsetDateTime,
) -> Result<(), EvidenceRefusal> {
    let is_fresh = replay.policy == ReplayPolicy::FreshId;
    match seen {
        CaptureSeen::OtherAmount(message) => {
            return Err(EvidenceRefusal::CapturedOtherAmount(message.clone()));
        }
        CaptureSeen::InProcess if is_fresh => return Err(EvidenceRefusal::InProcess),
        CaptureSeen::Nothing { reason, code } if is_fresh => {
            return Err(no_evidence(reason, code.as_deref()));
        }
        _ => {}
    }
    check_descendants(replay, is_fresh, &payment.descendants)?;
    if let Some(ancestor) = &payment.ancestor {
        return Err(EvidenceRefusal::AncestorActive(ancestor.id.clone()));
    }
    if let CaptureSeen::Nothing { reason, .. } = seen
        && dead_letter.sent()
    {
        return Err(EvidenceRefusal::OutcomeUnknown(reason.clone()));
    }
    if is_fresh && payment.is_over(now) {
        let until = payment.authorized_until.clone().unwrap_or_default();
        return Err(EvidenceRefusal::AuthorizationExpired(until));
    }
    // An active child has already taken its amount from what is left.
    if let (Some(left), Some(amount)) = (payment.left, replay.amount)
        && is_fresh
        && payment.descendants.child.is_none()
        && left < amount.value()
    {
        let may_lower = dead_letter.class == Class::Limit && !dead_letter.has_goods();
        let currency = amount.currency();
        return Err(EvidenceRefusal::OverAuthorization { currency, left, may_lower });
    }
    Ok(())
}

/// Refuses to send an id while a fresh id that descends from it is active. The child itself may be
/// sent again with the same amount, because it captures only once.
fn check_descendants(
    replay: &Replay,
    is_fresh: bool,
    descendants: &Descendants,
) -> Result<(), EvidenceRefusal> {
    if let (true, Some(ActiveId { id, amount: Some(amount) })) = (is_fresh, &descendants.child)
        && replay.amount != Some(*amount)
    {
        let (child, amount) = (id.clone(), *amount);
        return Err(EvidenceRefusal::ChildWithOtherAmount { child, amount });
    }
    let active = if is_fresh { descendants.later.as_ref() } else { descendants.nearest() };
    match active {
        Some(active) => Err(EvidenceRefusal::DescendantActive(active.id.clone())),
        None => Ok(()),
    }
}

fn no_evidence(reason: &str, code: Option<&str>) -> EvidenceRefusal {
    match code {
        Some(code) if Codes::default().class_of(code) == Class::Authorization => {
            EvidenceRefusal::AuthorizationRefused(code.to_owned())
        }
        _ => EvidenceRefusal::NoEvidence(reason.to_owned()),
    }
}
