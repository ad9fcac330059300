//! Waiting for the slot and the lease of a payment. A job first waits in the payment queue of this
//! worker, then asks Redis for the lease, unless the previous job has handed the lease over.

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    attempt_end::AttemptEnd,
    context::Context,
    gateway_call::posts_at_once,
    payment_queue::{Entered, Slot, counts_as_first_seen_ms},
    release::roll_back,
};
use crate::{
    broker::Delivery,
    domain::{
        capture::outcome::{Deferral, Outcome, SentState},
        job::{Job, history::History},
    },
    lease::{Acquired, Claim, Lease, Unavailable},
    telemetry::{LeaseResult, traces},
};

/// How long a job that can't start stays in the worker before it is deferred. It can't start while
/// the circuit breaker is open, Redis is unavailable, or other jobs of its payment go before it.
const KEPT_MAX: Duration = Duration::from_secs(60);
/// How long a job waits for another worker's lease before it is deferred.
const WAIT_IN_REDIS_MAX: Duration = Duration::from_secs(10);
/// How often the first in the waiting list in Redis asks for the lease. The others ask less often,
/// but often enough to claim a lease that is granted to them before the grant ends (500 ms).
const ASK_EVERY: Duration = Duration::from_millis(12);
const ASK_EVERY_BEHIND: Duration = Duration::from_millis(100);
/// The pause between two tries to reach Redis.
const REDIS_RETRY: Duration = Duration::from_millis(100);

/// How a job's wait for the slot and the lease of its payment ended.
pub(super) enum Acquisition {
    /// The job has the lease. It also has the payment's slot in this worker, unless it found no
    /// position.
    Granted { lease: Lease, slot: Option<Slot>, result: LeaseResult },
    /// The attempt is over without the lease.
    Over { end: AttemptEnd, result: LeaseResult },
}

impl Acquisition {
    const fn over(result: LeaseResult, end: AttemptEnd) -> Self {
        Self::Over { end, result }
    }

    const fn result(&self) -> LeaseResult {
        match self {
            Self::Granted { result, .. } | Self::Over { result, .. } => *result,
        }
    }
}

/// Waits for the payment's slot and lease, and counts how the wait ended.
pub(super) async fn acquire(ctx: &Arc<Context>, delivery: &Delivery, job: &Job) -> Acquisition {
    let begun = Instant::now();
    let span = traces::lease();
    let acquisition = wait_for_slot(ctx, delivery, job).instrument(span.clone()).await;
    let result = acquisition.result();
    ctx.metrics.lease_wait(result, begun.elapsed());
    traces::set_attribute(&span, "capture.lease", result.name());
    acquisition
}

/// Waits for the payment's slot in this worker, then for the lease if it did not come with the
/// slot.
async fn wait_for_slot(ctx: &Arc<Context>, delivery: &Delivery, job: &Job) -> Acquisition {
    let history = delivery.history();
    let posts = delivery.refused_result().ended.is_none() && posts_at_once(ctx, history, job);
    let claim = ctx.leases.claim(job, posts);
    let given_up = async {
        tokio::select! {
            () = ctx.draining.cancelled() => {}
            () = tokio::time::sleep(KEPT_MAX) => {}
        }
    };
    let first_seen_ms = counts_as_first_seen_ms(history.first_seen_ms, job);
    match ctx.payment_queues.enter(&job.payment_id, &claim, first_seen_ms, given_up).await {
        Entered::Slot(slot, None | Some(Acquired::Held { .. })) => {
            wait_for_lease(ctx, delivery, job, claim, Some(slot)).await
        }
        Entered::Slot(slot, Some(acquired)) => {
            conclude(acquired, LeaseResult::HandedOver, job, history, Some(slot))
        }
        Entered::Full(_) if ctx.draining.is_cancelled() => {
            Acquisition::over(LeaseResult::Unavailable, AttemptEnd::handed_back())
        }
        // A job at its age limit asks Redis even without the slot: whether it was sent decides how
        // it ends.
        Entered::Full(_) if is_too_old(ctx, history) => {
            wait_for_lease(ctx, delivery, job, claim, None).await
        }
        Entered::Full(wait) => {
            let end = AttemptEnd::deferred(Deferral::LineFull(wait), SentState::Unknown);
            Acquisition::over(LeaseResult::QueueFull, end)
        }
    }
}

fn is_too_old(ctx: &Context, history: &History) -> bool {
    history.is_older_than(ctx.policy.max_age, OffsetDateTime::now_utc())
}

/// Waits for the lease at Redis.
async fn wait_for_lease(
    ctx: &Arc<Context>,
    delivery: &Delivery,
    job: &Job,
    claim: Claim,
    slot: Option<Slot>,
) -> Acquisition {
    // A job that will not be posted does not wait for another worker's lease.
    let may_wait = slot.is_some() && job.forward_error.is_none();
    match ask_until_acquired(ctx, delivery, job, &claim, may_wait).await {
        Ok(acquired) => conclude(acquired, LeaseResult::Taken, job, delivery.history(), slot),
        Err(end) => {
            roll_back(ctx, claim).await;
            Acquisition::over(LeaseResult::of_given_up(&end.outcome), end)
        }
    }
}

/// What Redis's reply means for the job. `granted` is the result if it has the lease.
fn conclude(
    acquired: Acquired,
    granted: LeaseResult,
    job: &Job,
    history: &History,
    slot: Option<Slot>,
) -> Acquisition {
    let (result, end) = match acquired {
        Acquired::Taken(lease) => return Acquisition::Granted { lease, slot, result: granted },
        Acquired::Recorded(outcome) => (LeaseResult::Recorded, AttemptEnd::recorded(outcome)),
        Acquired::Replaced => (LeaseResult::Recorded, AttemptEnd::replaced()),
        Acquired::Held { marked, .. } => {
            (LeaseResult::Held, kept_out(job, history, Deferral::LeaseHeld, marked))
        }
        Acquired::Blocked { marked } => {
            (LeaseResult::Blocked, kept_out(job, history, Deferral::HoldOfAnother, marked))
        }
    };
    Acquisition::over(result, end)
}

/// Defers a job whose payment is busy or blocked by another capture. A job that must not be posted
/// and was never sent ends as malformed instead: that needs no lease.
fn kept_out(job: &Job, history: &History, why: Deferral, is_marked: bool) -> AttemptEnd {
    let may_have_been_sent = is_marked || history.sent || history.redelivered;
    let sent = if is_marked { SentState::Yes } else { SentState::No };
    match &job.forward_error {
        Some(error) if !may_have_been_sent => {
            let outcome = Outcome::Malformed { error: (**error).clone(), inquired: false };
            AttemptEnd::new(outcome, sent)
        }
        _ => AttemptEnd::deferred(why, sent),
    }
}

/// Asks for the lease until the job gets it, or may not wait any longer. While the circuit breaker
/// is open or Redis is unavailable, it does not ask. While another worker has the lease, the job
/// waits in Redis's waiting list if it may: it has the payment's slot, and will be posted.
///
/// # Errors
/// The attempt is over. The claim may still be in the waiting list, or have the lease.
async fn ask_until_acquired(
    ctx: &Context,
    delivery: &Delivery,
    job: &Job,
    claim: &Claim,
    may_wait: bool,
) -> Result<Acquired, AttemptEnd> {
    let begun = Instant::now();
    let keep_until = begun + KEPT_MAX;
    let mut counted = None;
    let mut marked_before = SentState::Unknown;
    loop {
        // The broker has requeued the job or will do so: the worker that receives it next starts
        // it.
        if ctx.draining.is_cancelled() || !delivery.is_alive() {
            return Err(AttemptEnd::handed_back());
        }
        if ctx.breaker.is_open() {
            let late = AttemptEnd::deferred(Deferral::GatewayPaused, marked_before);
            let closed = ctx.breaker.closed_for(&job.payment_id);
            keep(ctx, keep_until, late, closed).await?;
            continue;
        }
        let asked = tokio::select! {
            asked = ask(ctx, claim, may_wait) => asked,
            () = ctx.draining.cancelled() => return Err(AttemptEnd::handed_back()),
        };
        match asked {
            Ok(Acquired::Held { position: Some(position), marked }) => {
                // A copy of the job may be sent while this one waits, so a missing sent marker
                // proves nothing for later. A marker, once seen, stays.
                if marked {
                    marked_before = SentState::Yes;
                }
                if counted.is_none() {
                    counted = ctx.payment_queues.wait_in_redis();
                }
                if counted.is_none() || begun.elapsed() >= WAIT_IN_REDIS_MAX {
                    return Err(AttemptEnd::deferred(Deferral::LeaseHeld, marked_before));
                }
                let every = if position == 0 { ASK_EVERY } else { ASK_EVERY_BEHIND };
                let pause = every.mul_f32(rand::random_range(0.8..1.2));
                tokio::select! {
                    () = ctx.draining.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
            Ok(acquired) => return Ok(acquired),
            Err(error) => {
                tracing::debug!("away" = %error, "lease request failed");
                let late = AttemptEnd::deferred(Deferral::LeaseUnavailable, marked_before);
                keep(ctx, keep_until, late, redis_back(ctx)).await?;
            }
        }
    }
}

async fn ask(ctx: &Context, claim: &Claim, may_wait: bool) -> Result<Acquired, Unavailable> {
    let asked = Instant::now();
    let acquired = ctx.leases.acquire(claim, may_wait).await;
    ctx.metrics.lease_call("acquire", asked.elapsed());
    acquired
}

/// Keeps a job in the worker until `over` completes.
///
/// # Errors
/// The attempt is over: the worker drains, or the wait was too long, in which case the attempt ends
/// as `late`.
async fn keep(
    ctx: &Context,
    until: Instant,
    late: AttemptEnd,
    over: impl Future<Output = ()>,
) -> Result<(), AttemptEnd> {
    tokio::select! {
        () = ctx.draining.cancelled() => Err(AttemptEnd::handed_back()),
        () = tokio::time::sleep_until(until) => Err(late),
        () = over => Ok(()),
    }
}

async fn redis_back(ctx: &Context) {
    tokio::time::sleep(REDIS_RETRY).await;
    // The sender lives as long as the leases, so the wait ends only when Redis is available.
    drop(ctx.leases.up().wait_for(|up| *up).await);
}
