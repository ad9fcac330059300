//! One letter's replay: decided, written down, done.
//!
//! A fresh id goes only after its parent was closed: under the lease of the payment the gateway is asked, and the lease is given
//! back with the parent recorded as failed. An inquiry alone would not do: a copy of the parent that waits somewhere could
//! capture after it, beside the child.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Action, Desk, DeskError, Told};
use crate::{
    broker::Found,
    domain::{
        evidence::{Decision, PaymentSeen, Seen, decide},
        job::Job,
        letter::DeadLetter,
        outcome::{Attempt, Capture, Fate, Outcome, Release, Sent, Verdict},
        replay::{Policy, Refusal, Replay},
        settle::{Policy as Settling, ResultMessage, Settlement, settle},
    },
    lease::{Acquired, Claim, Inspection, Lease},
};

/// What the decision on one letter rests on.
pub(super) struct Decided {
    pub(super) decision: Decision,
    pub(super) evidence: Option<String>,
    /// Held until the decision is written down.
    pub(super) lease: Option<(Lease, Release)>,
}

impl Desk {
    /// The same id captures once, whatever became of it; but not beside its child, of which a worker would not know. What is
    /// captured already needs no worker.
    pub(super) async fn same_id(&self, letter: &DeadLetter, job: &Job, replay: Replay) -> Decided {
        let (seen, payment) = self.inquire(job).await;
        let decision = decide(letter, replay, &seen, &payment, OffsetDateTime::now_utc());
        if let Decision::Settle(capture) = &decision {
            let fate = Fate::Captured(capture.clone());
            if let Err(away) = self.leases.remember(&Claim::of(job, false), fate).await {
                tracing::warn!(%away, "its outcome is not on record");
            }
        }
        Decided { decision, evidence: Some(seen.words()), lease: None }
    }

    /// Finds out what the id of a letter came to, so that no copy of it can capture beside its child.
    pub(super) async fn close_parent(
        &self,
        letter: &DeadLetter,
        job: &Job,
        replay: Replay,
    ) -> Result<Decided, DeskError> {
        let claim = Claim::of(job, false);
        let acquired = match self.leases.acquire(&claim, false).await {
            Ok(acquired) => acquired,
            Err(away) => {
                // Whether the lease was taken is not known; it ends by its time.
                drop(self.leases.forget(&claim).await);
                return Err(away.into());
            }
        };
        let refuse = |reason: &str| Decided {
            decision: Decision::Refuse(Refusal::new(reason, "try again when that is over")),
            evidence: None,
            lease: None,
        };
        match acquired {
            Acquired::Held { .. } => Ok(refuse("a capture of its payment is under way")),
            Acquired::OnHold { .. } => Ok(refuse("another capture of its payment is in doubt")),
            Acquired::Known(Fate::Captured(capture)) => Ok(Decided {
                decision: Decision::Settle(capture),
                evidence: Some("a worker has its capture on record".into()),
                lease: None,
            }),
            Acquired::Known(Fate::Failed(_)) => {
                let (seen, payment) = self.inquire(job).await;
                let now = OffsetDateTime::now_utc();
                let decision = decide(letter, replay, &seen, &payment, now);
                if let Decision::Settle(capture) = &decision {
                    self.leases.remember(&claim, Fate::Captured(capture.clone())).await?;
                }
                Ok(Decided { decision, evidence: Some(seen.words()), lease: None })
            }
            // A normal verdict ended the hold of its id: another copy is in doubt.
            Acquired::Taken(lease) if lease.is_on_hold() => {
                drop(self.leases.release(&lease, &Release::Forget).await);
                Ok(refuse("a copy of it is in doubt"))
            }
            Acquired::Taken(lease) => {
                let (seen, payment) = self.inquire(job).await;
                Ok(under_lease(letter, replay, lease, &seen, &payment))
            }
        }
    }

    /// Writes a decision down, gives the lease back, and publishes what is to be published.
    pub(super) async fn carry_out(
        &self,
        found: &Found,
        letter: &DeadLetter,
        decided: Decided,
    ) -> Result<Told, DeskError> {
        let Decided { decision, evidence, lease } = decided;
        let record = match &decision {
            Decision::Send(replay) => self.record(Action::Replay, letter).sending(replay),
            Decision::Settle(_) => self.record(Action::Settle, letter),
            Decision::Refuse(refusal) => self.record(Action::Refuse, letter).refusing(refusal),
        };
        let written = self.audit(&record.seeing(evidence.clone())).await;
        let closed = match (&written, lease) {
            (Ok(()), Some((lease, release))) => self.leases.release(&lease, &release).await,
            (Err(_), Some((lease, _))) => self.leases.release(&lease, &Release::Forget).await,
            (_, None) => Ok(true),
        };
        written?;
        let is_fresh =
            matches!(&decision, Decision::Send(replay) if replay.policy == Policy::FreshId);
        let closed = match closed {
            Err(away) if is_fresh => {
                self.audit(&self.record(Action::Fail, letter)).await?;
                return Err(away.into());
            }
            closed => closed.unwrap_or(true),
        };
        if is_fresh && !closed {
            let refusal = Refusal::new("the lease was lost meanwhile", "try again");
            self.refuse(letter, &refusal, None).await?;
            return Ok(Told { decision: Decision::Refuse(refusal), evidence });
        }
        let published = match &decision {
            Decision::Send(replay) => self.session.replay(found, replay).await,
            Decision::Settle(capture) => match result_of(letter, capture.clone()) {
                Some(result) => self.session.tell(found, &result).await,
                None => Ok(()),
            },
            Decision::Refuse(_) => Ok(()),
        };
        if let Err(error) = published {
            // The broker may be gone: then this is lost too, and the record before says what was meant.
            drop(self.audit(&self.record(Action::Fail, letter)).await);
            let what = if is_fresh { "the fresh job" } else { "what replaces the letter" };
            return Err(DeskError::Publish { what, error });
        }
        Ok(Told { decision, evidence })
    }
}

/// Why a fresh id would have to wait.
pub(super) fn occupied(known: &Inspection, id: &str) -> Option<Refusal> {
    let reason = match &known.hold {
        _ if known.lease_left_ms.is_some() => "a capture of its payment is under way",
        Some(hold) if hold.capture_request_id != id => "another capture of its payment is in doubt",
        Some(_) => "a copy of it is in doubt",
        None => return None,
    };
    Some(Refusal::new(reason, "try again when that is over"))
}

/// What the evidence makes of it, and how the lease is given back.
fn under_lease(
    letter: &DeadLetter,
    replay: Replay,
    lease: Lease,
    seen: &Seen,
    payment: &PaymentSeen,
) -> Decided {
    let decision = decide(letter, replay, seen, payment, OffsetDateTime::now_utc());
    let release = match (&decision, seen) {
        (Decision::Settle(capture), _) => Release::Final(Fate::Captured(capture.clone())),
        (_, Seen::Failed(verdict)) => Release::Final(Fate::Failed(verdict.clone())),
        (Decision::Send(_), _) => Release::Close(Fate::Failed(Verdict {
            class: letter.class,
            code: letter.code.clone(),
            message: letter.message.clone(),
            signed: true,
        })),
        (Decision::Refuse(_), _) => Release::Forget,
    };
    Decided { decision, evidence: Some(seen.words()), lease: Some((lease, release)) }
}

/// The result of a capture that stands, as the worker would publish it.
fn result_of(letter: &DeadLetter, capture: Capture) -> Option<Box<ResultMessage>> {
    let attempt = Attempt {
        subject: letter.subject(),
        outcome: Outcome::Captured(capture),
        sent: Sent::Yes,
        remembered: true,
        outage: false,
    };
    let unused =
        Settling { schedule: Vec::new(), defer_schedule: Vec::new(), max_age: Duration::ZERO };
    match settle(&attempt, &letter.history, &unused, OffsetDateTime::now_utc()) {
        Settlement::Captured(result) => Some(result),
        _ => None,
    }
}
