//! The replay of one dead letter: decide, record in the audit, act.
//!
//! A fresh id is sent only after its parent can no longer capture: the command takes the lease of
//! the payment, asks the gateway, and releases the lease with the parent recorded as failed. An
//! inquiry alone is not enough: a copy of the parent in some queue could capture after the inquiry,
//! beside the child.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Action, Desk, DeskError, Told};
use crate::{
    broker::BrowsedMessage,
    domain::{
        capture::outcome::{
            Attempt, Capture, Evidence, Fate, Outcome, Recorded, Release, Sent, Verdict,
        },
        job::Job,
        replay::{
            Policy, Refusal, Replay,
            dead_letter::DeadLetter,
            evidence::{Decision, PaymentSeen, Seen, decide},
        },
        settlement::{Policy as Settling, ResultMessage, Settlement, settle},
    },
    lease::{Acquired, Claim, Inspection, Lease, Released, Unavailable},
};

/// The decision about one dead letter, what it rests on, and what Redis must record.
pub(super) struct Decided {
    pub(super) decision: Decision,
    /// What the gateway replied or Redis had recorded, in words.
    pub(super) evidence: Option<String>,
    /// The `evidence` of the result, if the decision is to settle a capture.
    pub(super) proof: Evidence,
    pub(super) closing: Closing,
}

/// What is done in Redis after the decision is recorded in the audit.
pub(super) enum Closing {
    /// Nothing: no lease is held and no outcome changes.
    None,
    /// The lease of the payment is released, and the outcome of the id is recorded with it.
    Lease(Box<Lease>, Box<Release>),
    /// The failure of the id is recorded already; that a fresh id replaces it is added.
    Replace(Claim, Box<Fate>),
}

impl Decided {
    /// A decision that rests on an inquiry.
    fn inquired(decision: Decision, seen: &Seen, closing: Closing) -> Self {
        Self { decision, evidence: Some(seen.words()), proof: Evidence::Inquiry, closing }
    }

    /// A decision that was made without asking the gateway.
    pub(super) const fn unasked(decision: Decision) -> Self {
        Self { decision, evidence: None, proof: Evidence::Inquiry, closing: Closing::None }
    }

    fn refusing(reason: &str, instead: &str) -> Self {
        Self::unasked(Decision::Refuse(Refusal::new(reason, instead)))
    }

    fn on_record(capture: Capture) -> Self {
        Self {
            decision: Decision::Settle(capture),
            evidence: Some("its capture is recorded in Redis".into()),
            proof: Evidence::Record,
            closing: Closing::None,
        }
    }
}

const WHEN_OVER: &str = "try again when it has ended";

impl Desk {
    /// Decides on a replay under the same id. The same id captures once, whatever became of it. But
    /// it must not be sent beside its child, because a worker would not know of the child; and if
    /// it is captured already, the dead letter is settled without a worker.
    pub(super) async fn same_id(&self, letter: &DeadLetter, job: &Job, replay: Replay) -> Decided {
        let (seen, payment) = self.inquire(job, &letter.history).await;
        let decision = decide(letter, replay, &seen, &payment, OffsetDateTime::now_utc());
        if let Decision::Settle(capture) = &decision {
            let fate = Fate::Captured(capture.clone());
            if let Err(away) = self.leases.record(&self.leases.claim(job, false), fate).await {
                tracing::warn!(%away, "Redis unavailable: outcome of a dead letter not recorded");
            }
        }
        Decided::inquired(decision, &seen, Closing::None)
    }

    /// Decides on a replay under a fresh id. Takes the lease of the payment, unless the outcome of
    /// the id is recorded already, and asks the gateway under it, so that no copy of the parent can
    /// capture beside its child.
    pub(super) async fn close_parent(
        &self,
        letter: &DeadLetter,
        job: &Job,
        replay: Replay,
    ) -> Result<Decided, DeskError> {
        let claim = self.leases.claim(job, false);
        let acquired = match self.leases.acquire(&claim, false).await {
            Ok(acquired) => acquired,
            Err(away) => {
                // The lease may have been acquired although the reply was lost: try to give it up.
                // If that fails too, it ends when its TTL does.
                drop(self.leases.roll_back(&claim).await);
                return Err(away.into());
            }
        };
        Ok(match acquired {
            Acquired::Held { .. } => {
                Decided::refusing("a capture of its payment is in progress", WHEN_OVER)
            }
            Acquired::Blocked { .. } => {
                Decided::refusing("another capture of its payment is in doubt", WHEN_OVER)
            }
            Acquired::Replaced => Decided::refusing(
                "a fresh id with another amount has already replaced its id",
                "run dead discard; the missing amount needs a new job",
            ),
            Acquired::Recorded(Fate::Captured(capture)) => Decided::on_record(capture),
            Acquired::Recorded(fate) => {
                let (seen, payment) = self.inquire(job, &letter.history).await;
                let now = OffsetDateTime::now_utc();
                let decision = decide(letter, replay, &seen, &payment, now);
                let closing = match &decision {
                    Decision::Settle(capture) => {
                        self.leases.record(&claim, Fate::Captured(capture.clone())).await?;
                        Closing::None
                    }
                    Decision::Send(_) => Closing::Replace(claim, Box::new(fate)),
                    Decision::Refuse(_) => Closing::None,
                };
                Decided::inquired(decision, &seen, closing)
            }
            // The verdict in the dead letter has removed the in-doubt block of its id. So a block
            // that exists now belongs to another copy, which is in doubt.
            Acquired::Taken(lease) if lease.was_in_doubt() => {
                drop(self.leases.release(&lease, &Release::Forget).await);
                Decided::refusing("a copy of it is in doubt", WHEN_OVER)
            }
            Acquired::Taken(lease) => {
                let (seen, payment) = self.inquire(job, &letter.history).await;
                under_lease(letter, replay, lease, &seen, &payment)
            }
        })
    }

    /// Records a decision in the audit, then in Redis, then publishes the job or the result.
    ///
    /// An outcome that Redis recorded since the decision can turn a fresh id into a capture to
    /// report, or into a refusal. It never turns a refusal into a fresh id.
    pub(super) async fn carry_out(
        &self,
        found: &BrowsedMessage,
        letter: &DeadLetter,
        decided: Decided,
    ) -> Result<Told, DeskError> {
        let Decided { mut decision, mut evidence, mut proof, closing } = decided;
        let written = self.audit(&self.record_of(letter, &decision, evidence.clone())).await;
        let closed = self.close(closing, written.is_ok()).await;
        written?;
        let is_fresh =
            matches!(&decision, Decision::Send(replay) if replay.policy == Policy::FreshId);
        if is_fresh {
            let closed = match closed {
                Ok(closed) => closed,
                Err(away) => {
                    self.audit(&self.record(Action::Fail, letter)).await?;
                    return Err(away.into());
                }
            };
            if let Some(instead) = instead_of_fresh(closed) {
                (decision, evidence, proof) = (instead.decision, instead.evidence, instead.proof);
                self.audit(&self.record_of(letter, &decision, evidence.clone())).await?;
            }
        }
        let published = match &decision {
            Decision::Send(replay) => self.session.replay(found, replay).await,
            Decision::Settle(capture) => match result_of(letter, capture.clone(), proof) {
                Some(result) => self.session.publish_result(found, &result).await,
                None => Ok(()),
            },
            Decision::Refuse(_) => Ok(()),
        };
        if let Err(error) = published {
            // The connection may be lost, and this record with it. Then the record before still
            // says what was about to be done.
            drop(self.audit(&self.record(Action::Fail, letter)).await);
            let what = if is_fresh { "the job with the fresh id" } else { "the job or result" };
            return Err(DeskError::Publish { what, error });
        }
        Ok(Told { decision, evidence })
    }

    fn record_of(
        &self,
        letter: &DeadLetter,
        decision: &Decision,
        evidence: Option<String>,
    ) -> super::Record {
        let record = match decision {
            Decision::Send(replay) => self.record(Action::Replay, letter).sending(replay),
            Decision::Settle(_) => self.record(Action::Settle, letter),
            Decision::Refuse(refusal) => self.record(Action::Refuse, letter).refusing(refusal),
        };
        record.seeing(evidence)
    }

    /// Records in Redis what was decided, if the audit has the decision. Otherwise only rolls back
    /// what acquiring the lease wrote.
    async fn close(&self, closing: Closing, is_written: bool) -> Result<Released, Unavailable> {
        let kept = Released { kept: true, recorded: None };
        match closing {
            Closing::Lease(lease, release) if is_written => {
                self.leases.release(&lease, &release).await
            }
            Closing::Lease(lease, _) => self.leases.release(&lease, &Release::Forget).await,
            Closing::Replace(claim, fate) if is_written => {
                let recorded = self.leases.replace(&claim, &fate).await?;
                // Without the recorded failure there is no proof that the parent cannot capture:
                // if it is gone, no fresh id may be sent.
                Ok(Released { kept: recorded.is_some(), recorded })
            }
            Closing::Replace(..) | Closing::None => Ok(kept),
        }
    }
}

/// What to do instead of sending a fresh id, if releasing the lease showed that it must not be
/// sent.
fn instead_of_fresh(closed: Released) -> Option<Decided> {
    let of_another = |reason| {
        let instead = "make your records agree, then run dead discard";
        Some(Decided::refusing(reason, instead))
    };
    match closed.recorded {
        Some(Recorded::Same(Fate::Captured(capture))) => Some(Decided::on_record(capture)),
        Some(Recorded::CapturedOther) => of_another("its id has captured another amount since"),
        Some(Recorded::ReplacedOther) => {
            of_another("a fresh id with another amount has replaced its id since")
        }
        _ if !closed.kept => {
            Some(Decided::refusing("its lease or recorded outcome was lost", "try again"))
        }
        Some(Recorded::Same(_)) | None => None,
    }
}

/// Why a fresh id cannot be sent now, as far as Redis shows: for the dry run, which takes no lease.
pub(super) fn occupied(known: &Inspection, id: &str) -> Option<Refusal> {
    let reason = match &known.in_doubt_block {
        _ if known.lease_left_ms.is_some() => "a capture of its payment is in progress",
        Some(hold) if hold.capture_request_id != id => "another capture of its payment is in doubt",
        Some(_) => "a copy of it is in doubt",
        None => return None,
    };
    Some(Refusal::new(reason, WHEN_OVER))
}

/// The decision that the evidence allows, and how the lease is released with it.
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
        (Decision::Send(_), Seen::Failed(verdict)) => {
            Release::Replace(Fate::Failed(verdict.clone()))
        }
        (Decision::Refuse(_), Seen::Failed(verdict)) => {
            Release::Final(Fate::Failed(verdict.clone()))
        }
        (Decision::Send(_), _) => Release::Replace(Fate::Closed(Verdict {
            class: letter.class,
            code: letter.code.clone(),
            message: letter.message.clone(),
            signed: true,
        })),
        (Decision::Refuse(_), _) => Release::Forget,
    };
    Decided::inquired(decision, seen, Closing::Lease(Box::new(lease), Box::new(release)))
}

/// The result message of a capture that succeeded, as a worker would publish it.
fn result_of(letter: &DeadLetter, capture: Capture, proof: Evidence) -> Option<Box<ResultMessage>> {
    let attempt = Attempt {
        subject: letter.subject(),
        outcome: Outcome::Captured(capture),
        sent: Sent::Yes,
        remembered: true,
        outage: false,
        evidence: Some(proof),
    };
    let unused =
        Settling { schedule: Vec::new(), defer_schedule: Vec::new(), max_age: Duration::ZERO };
    match settle(&attempt, &letter.history, &unused, OffsetDateTime::now_utc()) {
        Settlement::Captured(result) => Some(result),
        _ => None,
    }
}
