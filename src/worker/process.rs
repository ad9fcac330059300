//! The one pipeline of a job, top to bottom: attempt, settle, log, act.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use governor::DefaultDirectRateLimiter;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::line::Line;
use crate::{
    broker::{DELIVERY_LIMIT, Delivery},
    domain::{
        class::Codes,
        history::History,
        job::Job,
        judge::{Before, Call, Inquired, first_call, judge_capture, judge_inquiry},
        outcome::{Attempt, Deferral, Doubt, DoubtKind, Outcome, Release, Sent},
        settle::{Policy, epoch_ms, settle},
    },
    gateway::Gateway,
    lease::{Acquired, Lease, Leases, Token},
    telemetry::Metrics,
};

/// A call is begun only if it ends so much before its lease.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// A job in hand that can't begin because Redis is away is kept so long, then deferred.
const KEPT_IN_HAND: Duration = Duration::from_secs(60);
/// The rate limit is waited for at least so long.
const RATE_WAIT_MIN: Duration = Duration::from_millis(500);
/// Between two tries to reach Redis.
const REDIS_RETRY: Duration = Duration::from_millis(100);

/// What every job needs.
pub(super) struct Context {
    pub(super) gateway: Gateway,
    pub(super) leases: Leases,
    pub(super) line: Line,
    pub(super) codes: Codes,
    pub(super) policy: Policy,
    pub(super) rate_limit: Option<DefaultDirectRateLimiter>,
    pub(super) metrics: Arc<Metrics>,
    /// Cancelled when the worker drains: what has not begun is handed back.
    pub(super) draining: CancellationToken,
}

/// Takes one job to its settlement.
pub(super) async fn process(ctx: Arc<Context>, delivery: Delivery) {
    let begun = Instant::now();
    let attempt = attempt(&ctx, &delivery).await;
    let now = OffsetDateTime::now_utc();
    let settlement = settle(&attempt, delivery.history(), &ctx.policy, now);
    ctx.metrics.settled(delivery.history(), &attempt, &settlement, begun.elapsed());
    if let Err(lost) = delivery.settle(settlement).await {
        tracing::info!(captureRequestId = attempt.subject.capture_request_id, %lost, "not settled");
    }
}

/// One attempt. Never an error: whatever happens is an outcome, a panic is in doubt.
async fn attempt(ctx: &Arc<Context>, delivery: &Delivery) -> Attempt {
    let history = delivery.history();
    let parsed = Job::parse(delivery.body());
    let subject = match &parsed {
        Ok(job) => job.subject(),
        Err(malformed) => malformed.subject.clone(),
    };
    let came_to = if history.returns >= DELIVERY_LIMIT {
        Ended::of(Outcome::Poison, Sent::Unknown)
    } else {
        match parsed {
            Err(malformed) => Ended::of(Outcome::Malformed(malformed.reason), Sent::Unknown),
            Ok(job) => contain(pursue(ctx, delivery, &job)).await,
        }
    };
    let Ended { outcome, sent, remembered } = came_to;
    Attempt { subject, outcome, sent, remembered }
}

/// A panic ends one job's attempt, in doubt: how far it came is not known.
async fn contain(pursuit: impl Future<Output = Ended>) -> Ended {
    AssertUnwindSafe(pursuit).catch_unwind().await.unwrap_or_else(|_| {
        let reason = "the worker failed in the middle of it: a bug, see its log".to_owned();
        let doubt = Doubt { reason, kind: DoubtKind::Panic, word: None };
        Ended::of(Outcome::InDoubt(doubt), Sent::Unknown)
    })
}

/// How a job's attempt ended.
struct Ended {
    outcome: Outcome,
    sent: Sent,
    remembered: bool,
}

impl Ended {
    const fn of(outcome: Outcome, sent: Sent) -> Self {
        Self { outcome, sent, remembered: false }
    }

    const fn deferred(why: Deferral, sent: Sent) -> Self {
        Self::of(Outcome::Deferred(why), sent)
    }
}

/// Takes the payment's turn and lease, calls the gateway, gives the lease back.
async fn pursue(ctx: &Arc<Context>, delivery: &Delivery, job: &Job) -> Ended {
    let history = delivery.history();
    let is_old = history.age_ms(epoch_ms(OffsetDateTime::now_utc()))
        >= i64::try_from(ctx.policy.max_age.as_millis()).unwrap_or(i64::MAX);
    let turn = tokio::select! {
        () = ctx.draining.cancelled() => return Ended::of(Outcome::HandBack, Sent::Unknown),
        turn = ctx.line.enter(&job.payment_id) => turn,
    };
    // A job at the end of its time asks Redis even so: whether it was sent decides how it ends.
    if turn.is_none() && !is_old {
        return Ended::deferred(Deferral::LineFull, Sent::Unknown);
    }
    let posts = posts_at_once(ctx, history, job);
    let token = Token::fresh();
    match acquire(ctx, delivery, job, &token, posts).await {
        Err(ended) => {
            tokio::spawn(forget_later(Arc::clone(ctx), job.clone(), token));
            ended
        }
        Ok(Acquired::Known(fate)) => {
            Ended { outcome: fate.into(), sent: Sent::Yes, remembered: true }
        }
        Ok(Acquired::Refused { by_hold, marked }) => {
            let why = if by_hold { Deferral::HoldOfAnother } else { Deferral::LeaseHeld };
            Ended::deferred(why, if marked { Sent::Yes } else { Sent::No })
        }
        Ok(Acquired::Taken(lease)) => hold(ctx, job, history, lease, posts).await,
    }
}

/// Whether a capture will be posted as soon as the lease is taken, as far as the headers tell.
fn posts_at_once(ctx: &Context, history: &History, job: &Job) -> bool {
    let past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
    first_call(&Before { history, marked: false, past_expiry }, &ctx.codes) == Call::Post
}

/// Asks for the lease; while Redis is away the job is kept in hand, for a while.
async fn acquire(
    ctx: &Context,
    delivery: &Delivery,
    job: &Job,
    token: &Token,
    posts: bool,
) -> Result<Acquired, Ended> {
    let keep_until = Instant::now() + KEPT_IN_HAND;
    let mut up = ctx.leases.up();
    loop {
        // Whoever has the job by now, or will have it, begins it.
        if ctx.draining.is_cancelled() || !delivery.is_alive() {
            return Err(Ended::of(Outcome::HandBack, Sent::Unknown));
        }
        let asked = Instant::now();
        match ctx.leases.acquire(job, token, posts).await {
            Ok(acquired) => {
                ctx.metrics.leased("acquire", asked.elapsed());
                return Ok(acquired);
            }
            Err(away) => tracing::debug!(%away, "no lease yet"),
        }
        let back = async {
            tokio::time::sleep(REDIS_RETRY).await;
            up.wait_for(|up| *up).await.is_ok()
        };
        tokio::select! {
            () = ctx.draining.cancelled() => return Err(Ended::of(Outcome::HandBack, Sent::Unknown)),
            () = tokio::time::sleep_until(keep_until) => {
                return Err(Ended::deferred(Deferral::LeaseUnavailable, Sent::Unknown));
            }
            _ = back => {}
        }
    }
}

/// An acquisition that was given up may have been granted, and its answer lost: what it wrote is taken back.
async fn forget_later(ctx: Arc<Context>, job: Job, token: Token) {
    let until = Instant::now() + KEPT_IN_HAND;
    while ctx.leases.forget(&job, &token).await.is_err() && Instant::now() < until {
        tokio::time::sleep(REDIS_RETRY * 5).await;
    }
}

/// With the lease in hand: call, and give it back.
async fn hold(
    ctx: &Arc<Context>,
    job: &Job,
    history: &History,
    mut lease: Lease,
    announced: bool,
) -> Ended {
    let before = Before {
        history,
        marked: lease.marked(),
        past_expiry: job.is_past_expiry(OffsetDateTime::now_utc()),
    };
    let sent = if before.sent() { Sent::Yes } else { Sent::No };
    let outcome = call(ctx, job, &before, &mut lease, announced).await;
    Ended::of(release(ctx, lease, outcome).await, sent)
}

async fn call(
    ctx: &Context,
    job: &Job,
    before: &Before<'_>,
    lease: &mut Lease,
    announced: bool,
) -> Outcome {
    match first_call(before, &ctx.codes) {
        Call::Expired => Outcome::Expired { inquired: false },
        Call::Post => post(ctx, job, before, lease, announced).await,
        Call::Inquire => {
            if let Some(outcome) = secure(ctx, lease, ctx.gateway.inquiry_timeout(), None).await {
                return outcome;
            }
            let asked = Instant::now();
            let reply = ctx.gateway.inquire(&job.payment_id).await;
            ctx.metrics.called("inquiry", asked.elapsed());
            let past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
            match judge_inquiry(reply, job, &Before { past_expiry, ..*before }, &ctx.codes) {
                Inquired::Over(outcome) => outcome,
                Inquired::Post => post(ctx, job, before, lease, false).await,
            }
        }
    }
}

async fn post(
    ctx: &Context,
    job: &Job,
    before: &Before<'_>,
    lease: &mut Lease,
    announced: bool,
) -> Outcome {
    let timeout = ctx.gateway.capture_timeout();
    if let Some(outcome) = secure(ctx, lease, timeout, Some(announced)).await {
        return outcome;
    }
    let asked = Instant::now();
    let reply = ctx.gateway.capture(job).await;
    ctx.metrics.called("capture", asked.elapsed());
    judge_capture(reply, job, before, &ctx.codes)
}

/// Makes sure that a call keeps to the rate limit, that it ends within the lease, and that a capture is announced (hold
/// and mark are written) before it leaves. An outcome if the call may not begin.
async fn secure(
    ctx: &Context,
    lease: &mut Lease,
    timeout: Duration,
    announced: Option<bool>,
) -> Option<Outcome> {
    if let Some(limit) = &ctx.rate_limit {
        // A lease that is no longer than the call is renewed below, after a short wait at most.
        let spare = lease.left().saturating_sub(timeout + LEASE_MARGIN).max(RATE_WAIT_MIN);
        let ready = tokio::time::timeout(spare, limit.until_ready()).await;
        if ready.is_err() {
            return Some(Outcome::Deferred(Deferral::RateLimit));
        }
    }
    if lease.left() >= timeout + LEASE_MARGIN && announced != Some(false) {
        return None;
    }
    match ctx.leases.renew(lease, announced.is_some()).await {
        Ok(true) => None,
        Ok(false) => Some(Outcome::Deferred(Deferral::LeaseHeld)),
        Err(away) => {
            tracing::debug!(%away, "the lease can't be renewed");
            Some(Outcome::Deferred(Deferral::LeaseUnavailable))
        }
    }
}

/// Gives the lease back. One that was lost meanwhile makes every outcome doubtful but the gateway's signed word.
async fn release(ctx: &Arc<Context>, lease: Lease, outcome: Outcome) -> Outcome {
    let release = outcome.release();
    let asked = Instant::now();
    let released = ctx.leases.release(&lease, &release).await;
    ctx.metrics.leased("release", asked.elapsed());
    let called = !matches!(outcome, Outcome::Deferred(_) | Outcome::Expired { inquired: false });
    match released {
        Ok(false) if called && !outcome.is_final() => Outcome::InDoubt(Doubt {
            reason: format!("the lease was lost during the call, which came to {}", outcome.name()),
            kind: DoubtKind::LeaseLost,
            word: None,
        }),
        Ok(_) => outcome,
        Err(away) => {
            tracing::warn!(%away, "a lease could not be given back yet; it ends by its time");
            tokio::spawn(release_later(Arc::clone(ctx), lease, release));
            outcome
        }
    }
}

/// Goes on trying to give a lease back for as long as it could last, or the hold of an id whose verdict is known: the
/// settlement does not wait for it.
async fn release_later(ctx: Arc<Context>, lease: Lease, release: Release) {
    let hold = ctx.leases.hold_in_doubt();
    let until = match release {
        Release::Final(_) | Release::EndHold => Instant::now() + hold,
        Release::KeepHold | Release::TakeBack | Release::Forget => Instant::now() + lease.left(),
    };
    while Instant::now() < until {
        tokio::time::sleep(REDIS_RETRY * 5).await;
        if ctx.leases.release(&lease, &release).await.is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_outcome_in_doubt() {
        let ended = contain(async { panic!("a bug") }).await;
        let Outcome::InDoubt(doubt) = ended.outcome else { panic!("not in doubt") };
        assert_eq!((doubt.kind, ended.remembered), (DoubtKind::Panic, false));
        let fine = contain(async { Ended::of(Outcome::HandBack, Sent::No) }).await;
        assert_eq!(fine.outcome, Outcome::HandBack);
    }
}
