//! The end of a lease: it is released, handed over to the next job of the payment, or rolled back
//! if the job gave up before it began.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::Instrument;

use super::{
    attempt_end::AttemptEnd,
    context::Context,
    payment_queue::{NextJob, Slot},
};
use crate::{
    domain::capture::outcome::{Doubt, DoubtKind, Evidence, Outcome, Release},
    lease::{Acquired, Claim, Lease, Released, Unavailable},
    telemetry::traces,
};

/// The pause between two tries to release a lease in the background.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// How long a job that gives up waits until its lease request is rolled back. The Redis Cluster
/// client retries a call many times, and a drain must not wait for that.
const ROLL_BACK_WAIT: Duration = Duration::from_secs(2);
/// How long a rollback is tried in the background. The lease expires in any case.
const ROLL_BACK_RETRIES: Duration = Duration::from_secs(60);

/// Releases the lease or hands it over to the next job, and returns how the attempt ends. If the
/// lease was lost meanwhile, every outcome becomes in doubt, except a signed verdict of the
/// gateway. An outcome that was recorded meanwhile may settle the job.
pub(super) async fn release(
    ctx: &Arc<Context>,
    lease: Lease,
    end: AttemptEnd,
    slot: Option<Slot>,
) -> AttemptEnd {
    let release = end.outcome.release();
    match release_or_hand_over(ctx, &lease, &release, slot).instrument(traces::release()).await {
        Ok(Released { kept, recorded }) => {
            if let Some(outcome) = end.outcome.settled_by(recorded, kept) {
                return AttemptEnd { outcome, evidence: Some(Evidence::Record), ..end };
            }
            if kept || !was_called(&end.outcome) || end.outcome.is_final() {
                return end;
            }
            lease_lost(end)
        }
        Err(error) => {
            tracing::warn!("away" = %error, "lease release failed: retrying in the background");
            let is_over = lease.left().is_zero();
            tokio::spawn(release_later(Arc::clone(ctx), lease, release));
            let needs_lease = matches!(end.outcome, Outcome::FailedWhileLeased(_));
            if needs_lease && is_over { lease_lost(end) } else { end }
        }
    }
}

/// Whether the outcome rests on a call to the gateway.
const fn was_called(outcome: &Outcome) -> bool {
    !matches!(
        outcome,
        Outcome::Deferred(_)
            | Outcome::HandBack
            | Outcome::Expired { inquired: false }
            | Outcome::Malformed { inquired: false, .. }
    )
}

fn lease_lost(end: AttemptEnd) -> AttemptEnd {
    let name = end.outcome.name();
    let outcome = Outcome::InDoubt(Doubt {
        reason: format!("the lease was lost during the call, whose outcome was {name}"),
        kind: DoubtKind::LeaseLost,
        last_reply: None,
    });
    AttemptEnd { outcome, ..end }
}

/// Releases the lease or hands it over, and returns Redis's reply. While the circuit breaker is
/// open or the worker drains, it does not hand the lease over: the next job could not start.
async fn release_or_hand_over(
    ctx: &Arc<Context>,
    lease: &Lease,
    release: &Release,
    slot: Option<Slot>,
) -> Result<Released, Unavailable> {
    let may_begin = !ctx.breaker.is_open() && !ctx.draining.is_cancelled();
    let next = slot.as_ref().filter(|_| may_begin).and_then(Slot::take_next);
    let asked = Instant::now();
    let (Some(slot), Some(next)) = (slot, next) else {
        let released = ctx.leases.release(lease, release).await;
        ctx.metrics.lease_call("release", asked.elapsed());
        return released;
    };
    let handed = ctx.leases.hand_over(lease, release, &next.claim, slot.may_keep_lease()).await;
    ctx.metrics.lease_call("hand_over", asked.elapsed());
    match handed {
        Ok((released, acquired)) => {
            hand_over_slot(ctx, slot, next, Some(acquired));
            Ok(released)
        }
        // The waiting job asks Redis itself, with the same claim.
        Err(error) => {
            hand_over_slot(ctx, slot, next, None);
            Err(error)
        }
    }
}

/// Hands the slot over. If the waiting job has given up, the lease that was acquired for it is
/// rolled back.
fn hand_over_slot(ctx: &Arc<Context>, slot: Slot, next: NextJob, acquired: Option<Acquired>) {
    let claim = next.claim.clone();
    if !slot.hand_over(next, acquired) {
        let ctx = Arc::clone(ctx);
        tokio::spawn(async move { roll_back(&ctx, claim).await });
    }
}

/// Retries a release in the background, so that the settlement does not wait for Redis. It gives up
/// when the lease has expired by itself; where an in-doubt block must end, when that has expired.
async fn release_later(ctx: Arc<Context>, lease: Lease, release: Release) {
    let until = match release {
        Release::Final(_) | Release::EndBlock => Instant::now() + ctx.leases.in_doubt_block(),
        Release::FailedWhileLeased(_)
        | Release::Replace(_)
        | Release::KeepBlock { .. }
        | Release::RollBack
        | Release::RollBackAlways => Instant::now() + lease.left(),
    };
    while Instant::now() < until {
        tokio::time::sleep(RETRY_EVERY).await;
        if ctx.leases.release(&lease, &release).await.is_ok() {
            return;
        }
    }
}

/// Rolls back an abandoned lease request, in the background if Redis is unavailable. The request
/// may be in the waiting list, or the lease may have been granted while Redis's reply was lost.
pub(super) async fn roll_back(ctx: &Arc<Context>, claim: Claim) {
    let rolled_back = tokio::time::timeout(ROLL_BACK_WAIT, ctx.leases.roll_back(&claim)).await;
    if matches!(rolled_back, Ok(Ok(()))) {
        return;
    }
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        let until = Instant::now() + ROLL_BACK_RETRIES;
        while Instant::now() < until {
            tokio::time::sleep(RETRY_EVERY).await;
            if ctx.leases.roll_back(&claim).await.is_ok() {
                return;
            }
        }
    });
}
