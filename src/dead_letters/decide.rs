//! Decides about the replay of one dead letter, for the dry run and for the act alike.
//!
//! A fresh id is sent only after its parent can no longer capture: the act takes the lease of the
//! payment, asks the gateway, and releases the lease with the parent recorded as failed. An inquiry
//! alone is not enough: a copy of the parent in some queue could capture after the inquiry, beside
//! the child.

use time::OffsetDateTime;

use super::{Desk, DeskError};
use crate::{
    domain::{
        capture::outcome::{Evidence, FailureVerdict, FinalOutcome, Release},
        job::Job,
        replay::{
            Replay, ReplayPolicy,
            dead_letter::DeadLetter,
            decision::{Decision, RecordSeen, decide},
            evidence::CaptureSeen,
            refusal::{RecordRefusal, ReplayRefusal},
        },
    },
    lease::{Acquired, Claim, Inspection, Lease},
};

/// What was done with one dead letter or, in a dry run, what would be done.
#[derive(Clone, Debug)]
pub struct ReplayReport {
    /// The decision that was made.
    pub decision: Decision,
    /// What the gateway replied or Redis had recorded, in words; `None` if neither was asked.
    pub evidence: Option<String>,
}

/// Whether a command acts, or only predicts what it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// A dry run: reads, takes no lease and records nothing.
    Plan,
    /// Takes the lease of the payment before a fresh id is sent.
    Act,
}

/// The decision about one dead letter, what it rests on, and what Redis must record.
pub(super) struct Decided {
    pub(super) report: ReplayReport,
    /// The `evidence` of the result, if the decision is to settle a capture.
    pub(super) proof: Evidence,
    pub(super) closing: Closing,
}

/// What Redis shows about an id, and what the command has to give up in Redis.
struct Access {
    seen: RecordSeen,
    held: Held,
}

/// What a command holds in Redis while it decides.
enum Held {
    /// Nothing: in a dry run, or because Redis refused the lease.
    Nothing,
    /// No lease. The decision may override the recorded outcome of the id.
    Claim(Claim),
    /// No lease is needed, because this failure of the id is recorded.
    Failure(Claim, Box<FinalOutcome>),
    /// The lease of the payment.
    Lease(Box<Lease>),
}

/// What is done in Redis after the decision is recorded in the audit.
pub(super) enum Closing {
    /// Nothing: no lease is held and no outcome changes.
    None,
    /// The lease of the payment is released, and the outcome of the id is recorded with it.
    Lease(Box<Lease>, Box<Release>),
    /// The failure of the id is recorded already; that a fresh id replaces it is added.
    Replace(Claim, Box<FinalOutcome>),
    /// The id was captured, and no failure of it is known to be recorded.
    Remember(Claim, Box<FinalOutcome>),
    /// The id was captured, which must replace the failure that is recorded.
    Override(Claim, Box<FinalOutcome>),
}

impl Closing {
    /// Whether the act must not be done if Redis can't record it.
    pub(super) const fn must_succeed(&self) -> bool {
        matches!(self, Self::Override(..))
    }
}

impl Decided {
    fn new(
        decision: Decision,
        evidence: Option<String>,
        proof: Evidence,
        closing: Closing,
    ) -> Self {
        Self { report: ReplayReport { decision, evidence }, proof, closing }
    }

    /// A decision that was made without asking the gateway.
    fn unasked(decision: Decision) -> Self {
        Self::new(decision, None, Evidence::Inquiry, Closing::None)
    }

    /// A decision that rests on what Redis shows.
    pub(super) fn by_record(decision: Decision, closing: Closing) -> Self {
        let is_capture = matches!(decision, Decision::Settle(_));
        let evidence = is_capture.then(|| "its capture is recorded in Redis".to_owned());
        Self::new(decision, evidence, Evidence::Record, closing)
    }

    pub(super) fn refused(refusal: RecordRefusal) -> Self {
        Self::by_record(Decision::Refuse(refusal.into()), Closing::None)
    }
}

impl Access {
    const fn without_lease(seen: RecordSeen) -> Self {
        Self { seen, held: Held::Nothing }
    }

    const fn refused(refusal: RecordRefusal) -> Self {
        Self::without_lease(RecordSeen::Refused(refusal))
    }
}

impl Desk {
    /// Decides about a dead letter. The dry run and the act both decide here. They differ in how
    /// they learn what Redis shows, and in what they do with the decision.
    ///
    /// Under the same id, a job captures once, whatever became of it. But it must not be sent
    /// beside its child, because a worker would not know of the child; and if it is captured
    /// already, the dead letter is settled without a worker. So the gateway is asked here too.
    pub(super) async fn decide(
        &self,
        dead_letter: &DeadLetter,
        prepared: Result<Replay, ReplayRefusal>,
        mode: Mode,
    ) -> Result<Decided, DeskError> {
        let replay = match prepared {
            Ok(replay) => replay,
            Err(refusal) => return Ok(Decided::unasked(Decision::Refuse(refusal))),
        };
        let Ok(job) = &dead_letter.job else { return Ok(Decided::unasked(Decision::Send(replay))) };
        let access = match (replay.policy, mode) {
            (ReplayPolicy::FreshId, Mode::Plan) => self.read(job).await,
            (ReplayPolicy::FreshId, Mode::Act) => self.acquire(job).await?,
            (_, Mode::Plan) => Access::without_lease(RecordSeen::Undecided),
            (_, Mode::Act) => {
                let held = Held::Claim(self.leases.claim(job, false));
                Access { seen: RecordSeen::Undecided, held }
            }
        };
        if let Some(decision) = access.seen.decide() {
            return Ok(Decided::by_record(decision, access.held.unchanged()));
        }
        let (seen, payment) = self.inquire(job, &dead_letter.history).await;
        let decision = decide(dead_letter, replay, &seen, &payment, OffsetDateTime::now_utc());
        let closing = access.held.closing(dead_letter, &decision, &seen);
        Ok(Decided::new(decision, Some(seen.words()), Evidence::Inquiry, closing))
    }

    /// Reads what Redis shows about the id of a job. Takes no lease, so all of it may have changed
    /// when the replay is run.
    async fn read(&self, job: &Job) -> Access {
        let id = &job.capture_request_id;
        let inspection = match self.leases.inspect(&job.payment_id, id).await {
            Ok(inspection) => inspection,
            Err(unavailable) => {
                return Access::refused(RecordRefusal::RedisUnavailable(unavailable.to_string()));
            }
        };
        match self.leases.withheld().await {
            Some(why) => Access::refused(RecordRefusal::LeasesWithheld(why.to_owned())),
            None => Access::without_lease(seen_without_lease(inspection, id)),
        }
    }

    /// Takes the lease of a payment, unless the outcome of the id is recorded already, so that no
    /// copy of the parent can capture beside its child.
    async fn acquire(&self, job: &Job) -> Result<Access, DeskError> {
        let claim = self.leases.claim(job, false);
        let acquired = match self.leases.acquire(&claim, false).await {
            Ok(acquired) => acquired,
            Err(unavailable) => {
                // The lease may have been acquired although the reply was lost: try to give it up.
                // If that fails too, it ends when its TTL does.
                drop(self.leases.roll_back(&claim).await);
                return Err(unavailable.into());
            }
        };
        Ok(match acquired {
            Acquired::Held { .. } => Access::refused(RecordRefusal::PaymentBusy),
            Acquired::Blocked { .. } => Access::refused(RecordRefusal::PaymentInDoubt),
            Acquired::Replaced => Access::refused(RecordRefusal::ReplacedByOther),
            Acquired::Recorded(FinalOutcome::Captured(capture)) => {
                Access::without_lease(RecordSeen::Captured(capture))
            }
            Acquired::Recorded(failure) => {
                let held = Held::Failure(claim, Box::new(failure));
                Access { seen: RecordSeen::Undecided, held }
            }
            // The verdict in the dead letter has removed the in-doubt block of its id. So a block
            // that exists now belongs to another copy, which is in doubt.
            Acquired::Taken(lease) if lease.was_in_doubt() => {
                let seen = RecordSeen::Refused(RecordRefusal::CopyInDoubt);
                Access { seen, held: Held::Lease(Box::new(lease)) }
            }
            Acquired::Taken(lease) => {
                Access { seen: RecordSeen::Undecided, held: Held::Lease(Box::new(lease)) }
            }
        })
    }
}

impl Held {
    /// What is done in Redis if the decision leaves the outcome of the id as it is.
    fn unchanged(self) -> Closing {
        match self {
            Self::Lease(lease) => Closing::Lease(lease, Box::new(Release::RollBackAlways)),
            Self::Nothing | Self::Claim(_) | Self::Failure(..) => Closing::None,
        }
    }

    /// What Redis must record with the decision that the gateway's evidence allows.
    fn closing(self, dead_letter: &DeadLetter, decision: &Decision, seen: &CaptureSeen) -> Closing {
        let captured = match decision {
            Decision::Settle(capture) => Some(FinalOutcome::Captured(capture.clone())),
            Decision::Send(_) | Decision::Refuse(_) => None,
        };
        match (self, captured, decision) {
            (Self::Claim(claim), Some(captured), _) => Closing::Remember(claim, captured.into()),
            (Self::Failure(claim, _), Some(captured), _) => {
                Closing::Override(claim, captured.into())
            }
            (Self::Failure(claim, failure), None, Decision::Send(_)) => {
                Closing::Replace(claim, failure)
            }
            (Self::Lease(lease), ..) => {
                Closing::Lease(lease, Box::new(release(dead_letter, decision, seen)))
            }
            (Self::Nothing | Self::Claim(_) | Self::Failure(..), ..) => Closing::None,
        }
    }
}

/// How the lease is released with a decision.
fn release(dead_letter: &DeadLetter, decision: &Decision, seen: &CaptureSeen) -> Release {
    match (decision, seen) {
        (Decision::Settle(capture), _) => Release::Final(FinalOutcome::Captured(capture.clone())),
        (Decision::Send(_), CaptureSeen::Failed(verdict)) => {
            Release::Replace(FinalOutcome::Failed(verdict.clone()))
        }
        (Decision::Refuse(_), CaptureSeen::Failed(verdict)) => {
            Release::Final(FinalOutcome::Failed(verdict.clone()))
        }
        (Decision::Send(_), _) => {
            Release::Replace(FinalOutcome::FailedWhileLeased(FailureVerdict {
                class: dead_letter.class,
                code: dead_letter.code.clone(),
                message: dead_letter.message.clone(),
                signed: true,
            }))
        }
        (Decision::Refuse(_), _) => Release::RollBackAlways,
    }
}

/// What an inspection shows, in the order in which acquiring the lease would find it.
fn seen_without_lease(inspection: Inspection, id: &str) -> RecordSeen {
    match (inspection.recorded, inspection.in_doubt_block) {
        (Some(FinalOutcome::Captured(capture)), _) => RecordSeen::Captured(capture),
        (Some(FinalOutcome::Failed(_) | FinalOutcome::FailedWhileLeased(_)), _) => {
            RecordSeen::Undecided
        }
        (None, _) if inspection.lease_left_ms.is_some() => {
            RecordSeen::Refused(RecordRefusal::PaymentBusy)
        }
        (None, Some(hold)) if hold.capture_request_id != id => {
            RecordSeen::Refused(RecordRefusal::PaymentInDoubt)
        }
        (None, Some(_)) => RecordSeen::Refused(RecordRefusal::CopyInDoubt),
        (None, None) => RecordSeen::Undecided,
    }
}
