//! The pipeline that every job goes through, top to bottom: attempt, settle, log, act.

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::{
    breaker::Breaker,
    call::{hold, posts_at_once},
    ended::Ended,
    line::{Entered, Line, Turn, counts_as_first_seen_ms},
    pace::Pace,
};
use crate::{
    broker::{DELIVERY_LIMIT, Delivery, HELD_MAX, SessionLost, SettleResult},
    domain::{
        capture::{
            class::Codes,
            outcome::{Attempt, Deferral, Doubt, DoubtKind, Outcome, Sent},
        },
        job::{Job, forward::ForwardFields, history::History, trace::TraceContext},
        settlement::{Policy, Settlement, epoch_ms, settle},
    },
    gateway::Gateway,
    lease::{Acquired, Claim, Lease, Leases, Unavailable},
    telemetry::{LeaseResult, Metrics, Times, traces},
};

/// How long a job that can't start stays in the worker before it is deferred. It can't start while
/// the circuit breaker is open, Redis is unavailable, or other jobs of its payment go before it.
const KEPT_IN_HAND: Duration = Duration::from_secs(60);
/// How long a job waits for another worker's lease before it is deferred.
const OUTSIDE_MAX: Duration = Duration::from_secs(10);
/// How often the first in the waiting list in Redis asks for the lease. The others ask less often,
/// but often enough to claim a lease that is granted to them before the grant ends (500 ms).
const ASK_EVERY: Duration = Duration::from_millis(12);
const ASK_EVERY_BEHIND: Duration = Duration::from_millis(100);
/// The pause between two tries to reach Redis.
pub(super) const REDIS_RETRY: Duration = Duration::from_millis(100);

/// How long a job that gives up waits until its lease request is rolled back. The Redis Cluster
/// client retries a call many times, and a drain must not wait for that.
const FORGET_WAIT: Duration = Duration::from_secs(2);

/// The services, policies and state that all jobs of a worker share.
pub(super) struct Context {
    pub(super) gateway: Gateway,
    pub(super) leases: Leases,
    pub(super) line: Line,
    pub(super) codes: Codes,
    pub(super) forward: ForwardFields,
    pub(super) policy: Policy,
    pub(super) breaker: Breaker,
    pub(super) pace: Pace,
    pub(super) metrics: Arc<Metrics>,
    /// Cancelled when the worker drains: jobs that have not started are handed back.
    pub(super) draining: CancellationToken,
}

/// Processes one delivery, from the attempt to its settlement.
pub(super) async fn process(ctx: Arc<Context>, delivery: Delivery) {
    let span = traces::job(delivery.prefix(), delivery.trace().as_ref());
    run(&ctx, delivery, &span).instrument(span.clone()).await;
}

async fn run(ctx: &Arc<Context>, mut delivery: Delivery, span: &Span) {
    let begun = Instant::now();
    let mut attempt = attempt(ctx, &delivery).await;
    let now = OffsetDateTime::now_utc();
    let settlement = settle(&attempt, delivery.history(), &policy_of(ctx, &delivery), now);
    // The end of the job was counted already when its result was refused.
    attempt.remembered |= delivery.refused_result().times > 0;
    let age_ms = epoch_ms(now).saturating_sub(delivery.born_ms());
    let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
    let times = Times { took: begun.elapsed(), age, now };
    let settling = traces::settlement(span, &attempt, &settlement);
    if let Some(context) = traces::context(&settling) {
        delivery.continue_trace(&context);
    }
    let trace = delivery.trace();
    let trace_id = trace.as_ref().map(TraceContext::trace_id);
    ctx.metrics.settled(delivery.history(), &attempt, &settlement, &times, trace_id);
    let settled = carry_out(ctx, &delivery, &attempt, &settlement).instrument(settling).await;
    if let Err(lost) = settled {
        tracing::info!(
            captureRequestId = attempt.subject.capture_request_id,
            %lost,
            "delivery not settled"
        );
    }
}

/// Acts on the settlement. A job whose result the broker refuses waits and publishes it later: a
/// subscriber that does not read its results must not keep other jobs from being captured.
async fn carry_out(
    ctx: &Context,
    delivery: &Delivery,
    attempt: &Attempt,
    settlement: &Settlement,
) -> Result<(), SessionLost> {
    if delivery.settle(settlement, &ctx.draining).await? == SettleResult::Acked {
        return Ok(());
    }
    let refused = delivery.refused_result();
    let Some(wait) = refused.wait(settlement, delivery.history(), &ctx.policy) else {
        return Ok(());
    };
    tracing::warn!(
        captureRequestId = attempt.subject.capture_request_id,
        paymentId = attempt.subject.payment_id,
        settlement = settlement.name(),
        times = wait.refused.times,
        delay_ms = %wait.delay.as_millis(),
        "result refused by the broker: job waits"
    );
    delivery.wait_for_result(&wait).await
}

/// The retry policy for a delivery. Where only the refused result is missing, the age limit does
/// not apply: otherwise the job could end as expired, against its final outcome.
fn policy_of<'a>(ctx: &'a Context, delivery: &Delivery) -> Cow<'a, Policy> {
    if delivery.refused_result().outlives_its_age() {
        Cow::Owned(Policy { max_age: Duration::MAX, ..ctx.policy.clone() })
    } else {
        Cow::Borrowed(&ctx.policy)
    }
}

/// Makes one attempt. It can't fail: whatever happens is an outcome, and a panic is in doubt.
async fn attempt(ctx: &Arc<Context>, delivery: &Delivery) -> Attempt {
    let history = delivery.history();
    let parsed = delivery.job(&ctx.forward);
    let subject = match &parsed {
        Ok(job) => job.subject(),
        Err(malformed) => malformed.subject.clone(),
    };
    let came_to = if history.returns >= DELIVERY_LIMIT {
        Ended::of(Outcome::Poison, Sent::Unknown)
    } else if delivery.may_be_dropped() {
        Ended::deferred(Deferral::DeathHeader, Sent::Unknown)
    } else if let Some(ended) = held_up(ctx, delivery).await {
        ended
    } else {
        match parsed {
            Err(malformed) => {
                let outcome = Outcome::Malformed { error: malformed.reason, inquired: false };
                Ended::of(outcome, Sent::Unknown)
            }
            Ok(job) => contain(pursue(ctx, delivery, &job)).await,
        }
    };
    let Ended { outcome, sent, remembered, outage, evidence } = came_to;
    Attempt { subject, outcome, sent, remembered, outage, evidence }
}

/// Waits while the broker refuses publishes: no attempt starts whose result could not be published.
/// Returns the end of the attempt if the wait is too long or the worker drains.
async fn held_up(ctx: &Context, delivery: &Delivery) -> Option<Ended> {
    tokio::select! {
        biased;
        () = delivery.is_publishable() => None,
        () = ctx.draining.cancelled() => Some(Ended::handed_back()),
        () = tokio::time::sleep(HELD_MAX) => {
            Some(Ended::deferred(Deferral::PublishRefused, Sent::Unknown))
        }
    }
}

/// Turns a panic into an outcome in doubt: it is unknown whether a capture was sent before the
/// panic. The other jobs of the worker go on.
async fn contain(pursuit: impl Future<Output = Ended>) -> Ended {
    AssertUnwindSafe(pursuit).catch_unwind().await.unwrap_or_else(|_| {
        let reason = "bug: the worker panicked during the attempt; see its log".to_owned();
        let doubt = Doubt { reason, kind: DoubtKind::Panic, word: None };
        Ended::of(Outcome::InDoubt(doubt), Sent::Unknown)
    })
}

/// Waits for the payment's slot and lease, calls the gateway, and passes both to the next job.
async fn pursue(ctx: &Arc<Context>, delivery: &Delivery, job: &Job) -> Ended {
    let begun = Instant::now();
    let span = traces::lease();
    let (result, waited) = wait(ctx, delivery, job).instrument(span.clone()).await;
    ctx.metrics.lease_wait(result, begun.elapsed());
    traces::say(&span, "capture.lease", result.name());
    match waited {
        Waited::Granted(lease, turn) => {
            let refused = delivery.refused_result();
            hold(ctx, job, (delivery.history(), refused), lease, turn).await
        }
        Waited::Over(ended) => ended,
    }
}

/// The result of waiting for the payment's lease.
enum Waited {
    /// This job has the lease. It also has the payment's slot in this worker, unless it found no
    /// position.
    Granted(Lease, Option<Turn>),
    /// The attempt is over without the lease.
    Over(Ended),
}

async fn wait(ctx: &Arc<Context>, delivery: &Delivery, job: &Job) -> (LeaseResult, Waited) {
    let history = delivery.history();
    let posts = delivery.refused_result().ended.is_none() && posts_at_once(ctx, history, job);
    let claim = ctx.leases.claim(job, posts);
    let given_up = async {
        tokio::select! {
            () = ctx.draining.cancelled() => {}
            () = tokio::time::sleep(KEPT_IN_HAND) => {}
        }
    };
    let first_seen_ms = counts_as_first_seen_ms(history.first_seen_ms, job);
    let entered = ctx.line.enter(&job.payment_id, &claim, first_seen_ms, given_up).await;
    let (turn, handed) = match entered {
        Entered::Turn(turn, handed) => (Some(turn), handed),
        Entered::Full(_) if ctx.draining.is_cancelled() => {
            return (LeaseResult::Unavailable, Waited::Over(Ended::handed_back()));
        }
        // A job at its age limit asks Redis even without the slot: whether it was sent decides how
        // it ends.
        Entered::Full(_) if is_old(ctx, history) => (None, None),
        Entered::Full(wait) => {
            let deferred = Ended::deferred(Deferral::LineFull(wait), Sent::Unknown);
            return (LeaseResult::LineFull, Waited::Over(deferred));
        }
    };
    let (result, acquired) = match handed {
        Some(Acquired::Held { .. }) | None => {
            // A job that will not be posted does not wait for another worker's lease.
            let waits = turn.is_some() && job.forward_error.is_none();
            (LeaseResult::Taken, acquire(ctx, delivery, job, &claim, waits).await)
        }
        Some(acquired) => (LeaseResult::HandedOver, Ok(acquired)),
    };
    let over = match acquired {
        Ok(Acquired::Taken(lease)) => return (result, Waited::Granted(lease, turn)),
        Ok(Acquired::Recorded(fate)) => (LeaseResult::Known, Ended::known(fate)),
        Ok(Acquired::Replaced) => (LeaseResult::Known, Ended::replaced()),
        Ok(Acquired::Held { marked, .. }) => {
            (LeaseResult::Held, kept_out(job, history, Deferral::LeaseHeld, marked))
        }
        Ok(Acquired::Blocked { marked }) => {
            (LeaseResult::OnHold, kept_out(job, history, Deferral::HoldOfAnother, marked))
        }
        Err(ended) => {
            give_up(ctx, claim).await;
            (LeaseResult::of_given_up(&ended.outcome), ended)
        }
    };
    (over.0, Waited::Over(over.1))
}

/// Defers a job whose payment is busy or blocked by another capture. A job that must not be posted
/// and was never sent ends as malformed instead: that needs no lease.
fn kept_out(job: &Job, history: &History, why: Deferral, marked: bool) -> Ended {
    let may_have_left = marked || history.sent || history.redelivered;
    match &job.forward_error {
        Some(error) if !may_have_left => {
            let outcome = Outcome::Malformed { error: (**error).clone(), inquired: false };
            Ended::of(outcome, sent(marked))
        }
        _ => Ended::deferred(why, sent(marked)),
    }
}

const fn sent(marked: bool) -> Sent {
    if marked { Sent::Yes } else { Sent::No }
}

fn is_old(ctx: &Context, history: &History) -> bool {
    let max_age_ms = i64::try_from(ctx.policy.max_age.as_millis()).unwrap_or(i64::MAX);
    history.age_ms(epoch_ms(OffsetDateTime::now_utc())) >= max_age_ms
}

/// Asks for the lease until the job gets it, or may not wait any longer. While the circuit breaker
/// is open or Redis is unavailable, it does not ask. While another worker has the lease, the job
/// waits in Redis's waiting list if it may (`in_turn`): it has the payment's slot, and will be
/// posted.
async fn acquire(
    ctx: &Context,
    delivery: &Delivery,
    job: &Job,
    claim: &Claim,
    in_turn: bool,
) -> Result<Acquired, Ended> {
    let begun = Instant::now();
    let keep_until = begun + KEPT_IN_HAND;
    let mut outside = None;
    let mut marked_before = Sent::Unknown;
    loop {
        // The broker has requeued the job or will do so: the worker that receives it next starts
        // it.
        if ctx.draining.is_cancelled() || !delivery.is_alive() {
            return Err(Ended::handed_back());
        }
        if ctx.breaker.is_open() {
            let closed = ctx.breaker.closed_for(&job.payment_id);
            keep(ctx, keep_until, closed).await.map_err(|over| {
                over.unwrap_or_else(|| Ended::deferred(Deferral::GatewayPaused, marked_before))
            })?;
            continue;
        }
        let asked = tokio::select! {
            asked = ask(ctx, claim, in_turn) => asked,
            () = ctx.draining.cancelled() => return Err(Ended::handed_back()),
        };
        match asked {
            Ok(Acquired::Held { position: Some(position), marked }) => {
                // A copy of the job may be sent while this one waits, so a missing sent marker
                // proves nothing for later. A marker, once seen, stays.
                if marked {
                    marked_before = Sent::Yes;
                }
                if outside.is_none() {
                    outside = ctx.line.wait_outside();
                }
                if outside.is_none() || begun.elapsed() >= OUTSIDE_MAX {
                    return Err(Ended::deferred(Deferral::LeaseHeld, marked_before));
                }
                let every = if position == 0 { ASK_EVERY } else { ASK_EVERY_BEHIND };
                let pause = every.mul_f32(rand::random_range(0.8..1.2));
                tokio::select! {
                    () = ctx.draining.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
            Ok(acquired) => return Ok(acquired),
            Err(away) => {
                tracing::debug!(%away, "lease request failed");
                keep(ctx, keep_until, redis_back(ctx)).await.map_err(|over| {
                    over.unwrap_or_else(|| {
                        Ended::deferred(Deferral::LeaseUnavailable, marked_before)
                    })
                })?;
            }
        }
    }
}

async fn ask(ctx: &Context, claim: &Claim, waits: bool) -> Result<Acquired, Unavailable> {
    let asked = Instant::now();
    let acquired = ctx.leases.acquire(claim, waits).await;
    ctx.metrics.leased("acquire", asked.elapsed());
    acquired
}

/// Keeps a job in the worker until `over` completes. The error is `None` if that takes too long,
/// and how the attempt ended if the worker drains.
async fn keep(
    ctx: &Context,
    until: Instant,
    over: impl Future<Output = ()>,
) -> Result<(), Option<Ended>> {
    tokio::select! {
        () = ctx.draining.cancelled() => Err(Some(Ended::handed_back())),
        () = tokio::time::sleep_until(until) => Err(None),
        () = over => Ok(()),
    }
}

async fn redis_back(ctx: &Context) {
    tokio::time::sleep(REDIS_RETRY).await;
    // The sender lives as long as the leases, so the wait ends only when Redis is available.
    drop(ctx.leases.up().wait_for(|up| *up).await);
}

/// Rolls back an abandoned lease request, in the background if Redis is unavailable. The request
/// may be in the waiting list, or the lease may have been granted while Redis's reply was lost.
pub(super) async fn give_up(ctx: &Arc<Context>, claim: Claim) {
    let forgotten = tokio::time::timeout(FORGET_WAIT, ctx.leases.roll_back(&claim)).await;
    if matches!(forgotten, Ok(Ok(()))) {
        return;
    }
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        let until = Instant::now() + KEPT_IN_HAND;
        while Instant::now() < until {
            tokio::time::sleep(REDIS_RETRY * 5).await;
            if ctx.leases.roll_back(&claim).await.is_ok() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_makes_the_outcome_in_doubt() {
        let ended = contain(async { panic!("a bug") }).await;
        let Outcome::InDoubt(doubt) = ended.outcome else { panic!("not in doubt") };
        assert_eq!((doubt.kind, ended.remembered), (DoubtKind::Panic, false));
        let fine = contain(async { Ended::of(Outcome::HandBack, Sent::No) }).await;
        assert_eq!(fine.outcome, Outcome::HandBack);
    }
}
