//! Acts on the decision about one dead letter: records it in the audit, then in Redis, then
//! publishes the job or the result.

use time::OffsetDateTime;

use super::{
    Action, Desk, DeskError, Record,
    decide::{Closing, Decided, ReplayReport},
};
use crate::{
    broker::BrowsedMessage,
    domain::{
        capture::outcome::{Capture, Evidence, FinalOutcome, Recorded, Release},
        replay::{
            ReplayPolicy, dead_letter::DeadLetter, decision::Decision, refusal::RecordRefusal,
        },
        settlement::{ResultMessage, ResultSource},
    },
    lease::{Released, Unavailable},
};

impl Desk {
    /// Records a decision in the audit, then in Redis, then publishes the job or the result.
    ///
    /// An outcome that Redis recorded since the decision can turn a fresh id into a capture to
    /// report, or into a refusal. It never turns a refusal into a fresh id.
    pub(super) async fn carry_out(
        &self,
        found: &BrowsedMessage,
        dead_letter: &DeadLetter,
        decided: Decided,
    ) -> Result<ReplayReport, DeskError> {
        let Decided { report: ReplayReport { mut decision, mut evidence }, mut proof, closing } =
            decided;
        let written = self.audit(&self.record_of(dead_letter, &decision, evidence.clone())).await;
        let must_close = closing.must_succeed();
        let closed = self.close(closing, written.is_ok()).await;
        written?;
        let is_fresh =
            matches!(&decision, Decision::Send(replay) if replay.policy == ReplayPolicy::FreshId);
        if is_fresh || must_close {
            let closed = match closed {
                Ok(closed) => closed,
                Err(unavailable) => {
                    self.audit(&self.record(Action::Fail, dead_letter)).await?;
                    return Err(unavailable.into());
                }
            };
            if let Some(instead) = instead_of_fresh(closed).filter(|_| is_fresh) {
                let ReplayReport { decision: other, evidence: shown } = instead.report;
                (decision, evidence, proof) = (other, shown, instead.proof);
                self.audit(&self.record_of(dead_letter, &decision, evidence.clone())).await?;
            }
        }
        let published = match &decision {
            Decision::Send(replay) => self.session.replay(found, replay).await,
            Decision::Settle(capture) => {
                self.session.publish_result(found, &captured(dead_letter, capture, proof)).await
            }
            Decision::Refuse(_) => Ok(()),
        };
        if let Err(error) = published {
            // The connection may be lost, and this record with it. Then the record before still
            // says what was about to be done.
            drop(self.audit(&self.record(Action::Fail, dead_letter)).await);
            let what = if is_fresh { "the job with the fresh id" } else { "the job or result" };
            return Err(DeskError::Publish { what, error });
        }
        Ok(ReplayReport { decision, evidence })
    }

    fn record_of(
        &self,
        dead_letter: &DeadLetter,
        decision: &Decision,
        evidence: Option<String>,
    ) -> Record {
        let record = match decision {
            Decision::Send(replay) => self.record(Action::Replay, dead_letter).sending(replay),
            Decision::Settle(_) => self.record(Action::Settle, dead_letter),
            Decision::Refuse(refusal) => self.record(Action::Refuse, dead_letter).refusing(refusal),
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
            Closing::Lease(lease, _) => self.leases.release(&lease, &Release::RollBackAlways).await,
            Closing::Replace(claim, failure) if is_written => {
                let recorded = self.leases.replace(&claim, &failure).await?;
                // Without the recorded failure there is no proof that the parent cannot capture:
                // if it is gone, no fresh id may be sent.
                Ok(Released { kept: recorded.is_some(), recorded })
            }
            Closing::Override(claim, captured) if is_written => {
                self.leases.record(&claim, *captured).await.map(|()| kept)
            }
            Closing::Remember(claim, captured) if is_written => {
                if let Err(unavailable) = self.leases.record(&claim, *captured).await {
                    tracing::warn!(
                        "away" = %unavailable,
                        "Redis unavailable: outcome of a dead letter not recorded"
                    );
                }
                Ok(kept)
            }
            Closing::Replace(..)
            | Closing::Override(..)
            | Closing::Remember(..)
            | Closing::None => Ok(kept),
        }
    }
}

/// What to do instead of sending a fresh id, if releasing the lease showed that it must not be
/// sent.
fn instead_of_fresh(closed: Released) -> Option<Decided> {
    match closed.recorded {
        Some(Recorded::Same(FinalOutcome::Captured(capture))) => {
            Some(Decided::by_record(Decision::Settle(capture), Closing::None))
        }
        Some(Recorded::CapturedOther) => Some(Decided::refused(RecordRefusal::CapturedOtherSince)),
        Some(Recorded::ReplacedOther) => {
            Some(Decided::refused(RecordRefusal::ReplacedByOtherSince))
        }
        _ if !closed.kept => Some(Decided::refused(RecordRefusal::LeaseLost)),
        Some(Recorded::Same(_)) | None => None,
    }
}

/// The result message of a capture that succeeded, as a worker would publish it. It spends no
/// attempt.
fn captured(dead_letter: &DeadLetter, capture: &Capture, proof: Evidence) -> ResultMessage {
    let about = ResultSource {
        subject: &dead_letter.subject(),
        history: &dead_letter.history,
        evidence: Some(proof),
        attempts: dead_letter.history.attempts,
        now: OffsetDateTime::now_utc(),
    };
    about.captured(capture)
}
