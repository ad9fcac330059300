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
        outcome::{Attempt, Capture, Evidence, Fate, Outcome, Recorded, Release, Sent, Verdict},
        replay::{Policy, Refusal, Replay},
        settle::{Policy as Settling, ResultMessage, Settlement, settle},
    },
    lease::{Acquired, Away, Claim, Inspection, Lease, Released},
};

/// What the decision on one letter rests on.
pub(super) struct Decided {
    pub(super) decision: Decision,
    /// What was found out, for people.
    pub(super) evidence: Option<String>,
    /// What a capture that is settled rests on.
    pub(super) proof: Evidence,
    pub(super) closing: Closing,
}

/// What is done in Redis once the decision is written down.
pub(super) enum Closing {
    /// Nothing.
    None,
    /// The lease of the payment is given back.
    Lease(Box<Lease>, Box<Release>),
    /// It is recorded that a fresh id replaces one whose failure is on record.
    Replace(Claim, Box<Fate>),
}

impl Decided {
    /// By what an inquiry showed.
    fn inquired(decision: Decision, seen: &Seen, closing: Closing) -> Self {
        Self { decision, evidence: Some(seen.words()), proof: Evidence::Inquiry, closing }
    }

    /// Without asking the gateway.
    pub(super) const fn unasked(decision: Decision) -> Self {
        Self { decision, evidence: None, proof: Evidence::Inquiry, closing: Closing::None }
    }

    fn refusing(reason: &str, instead: &str) -> Self {
        Self::unasked(Decision::Refuse(Refusal::new(reason, instead)))
    }

    fn on_record(capture: Capture) -> Self {
        Self {
            decision: Decision::Settle(capture),
            evidence: Some("its capture is on record".into()),
            proof: Evidence::Record,
            closing: Closing::None,
        }
    }
}

const WHEN_OVER: &str = "try again when that is over";

impl Desk {
    /// The same id captures once, whatever became of it; but not beside its child, of which a worker would not know. What is
    /// captured already needs no worker.
    pub(super) async fn same_id(&self, letter: &DeadLetter, job: &Job, replay: Replay) -> Decided {
        let (seen, payment) = self.inquire(job, &letter.history).await;
        let decision = decide(letter, replay, &seen, &payment, OffsetDateTime::now_utc());
        if let Decision::Settle(capture) = &decision {
            let fate = Fate::Captured(capture.clone());
            if let Err(away) = self.leases.remember(&self.leases.claim(job, false), fate).await {
                tracing::warn!(%away, "its outcome is not on record");
            }
        }
        Decided::inquired(decision, &seen, Closing::None)
    }

    /// Finds out what the id of a letter came to, so that no copy of it can capture beside its child.
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
                // Whether the lease was taken is not known; it ends by its time.
                drop(self.leases.forget(&claim).await);
                return Err(away.into());
            }
        };
        Ok(match acquired {
            Acquired::Held { .. } => {
                Decided::refusing("a capture of its payment is under way", WHEN_OVER)
            }
            Acquired::OnHold { .. } => {
                Decided::refusing("another capture of its payment is in doubt", WHEN_OVER)
            }
            Acquired::Replaced => Decided::refusing(
                "a fresh id replaced its id already, for another amount",
                "dead discard; what is missing of it needs a job of its own",
            ),
            Acquired::Known(Fate::Captured(capture)) => Decided::on_record(capture),
            Acquired::Known(fate) => {
                let (seen, payment) = self.inquire(job, &letter.history).await;
                let now = OffsetDateTime::now_utc();
                let decision = decide(letter, replay, &seen, &payment, now);
                let closing = match &decision {
                    Decision::Settle(capture) => {
                        self.leases.remember(&claim, Fate::Captured(capture.clone())).await?;
                        Closing::None
                    }
                    Decision::Send(_) => Closing::Replace(claim, Box::new(fate)),
                    Decision::Refuse(_) => Closing::None,
                };
                Decided::inquired(decision, &seen, closing)
            }
            // A normal verdict ended the hold of its id: another copy is in doubt.
            Acquired::Taken(lease) if lease.is_on_hold() => {
                drop(self.leases.release(&lease, &Release::Forget).await);
                Decided::refusing("a copy of it is in doubt", WHEN_OVER)
            }
            Acquired::Taken(lease) => {
                let (seen, payment) = self.inquire(job, &letter.history).await;
                under_lease(letter, replay, lease, &seen, &payment)
            }
        })
    }

    /// Writes a decision down, closes the id in Redis, and publishes what is to be published. What was recorded
    /// meanwhile may change a fresh id into a capture to tell, or a refusal: never a refusal into a fresh id.
    pub(super) async fn carry_out(
        &self,
        found: &Found,
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

    /// Does in Redis what was decided, if the decision is written down; else takes back what was written there.
    async fn close(&self, closing: Closing, is_written: bool) -> Result<Released, Away> {
        let kept = Released { kept: true, recorded: None };
        match closing {
            Closing::Lease(lease, release) if is_written => {
                self.leases.release(&lease, &release).await
            }
            Closing::Lease(lease, _) => self.leases.release(&lease, &Release::Forget).await,
            Closing::Replace(claim, fate) if is_written => {
                let recorded = self.leases.replace(&claim, &fate).await?;
                // The failure that was on record is the ground to close the id without its lease.
                Ok(Released { kept: recorded.is_some(), recorded })
            }
            Closing::Replace(..) | Closing::None => Ok(kept),
        }
    }
}

/// What is done in place of sending a fresh id, where closing its parent showed that it must not go.
fn instead_of_fresh(closed: Released) -> Option<Decided> {
    let of_another = |reason| Some(Decided::refusing(reason, "dead discard, once the books agree"));
    match closed.recorded {
        Some(Recorded::Same(Fate::Captured(capture))) => Some(Decided::on_record(capture)),
        Some(Recorded::CapturedOther) => of_another("its id captured another amount meanwhile"),
        Some(Recorded::ReplacedOther) => {
            of_another("a fresh id replaced its id meanwhile, for another amount")
        }
        _ if !closed.kept => {
            Some(Decided::refusing("its lease or its record was lost meanwhile", "try again"))
        }
        Some(Recorded::Same(_)) | None => None,
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

/// The result of a capture that stands, as the worker would publish it.
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
