//! With the lease in hand: which call, and what becomes of the lease after it.

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    breaker,
    line::{Turn, Waiter},
    process::{Context, Ended, REDIS_RETRY, give_up},
};
use crate::{
    domain::{
        class::Class,
        history::History,
        job::Job,
        judge::{Before, Call, Health, Inquired, first_call, health, judge_capture, judge_inquiry},
        outcome::{Deferral, Doubt, DoubtKind, Evidence, Outcome, Release, Sent},
        refused::RefusedResult,
        reply::Reply,
    },
    lease::{Acquired, Away, Lease, Released, Renewed},
    telemetry::traces,
};

/// A call is begun only if it ends so much before its lease.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// The pace is waited for at least so long.
const PACE_WAIT_MIN: Duration = Duration::from_millis(500);

/// Whether a capture will be posted as soon as the lease is taken, as far as the headers tell.
pub(super) fn posts_at_once(ctx: &Context, history: &History, job: &Job) -> bool {
    let past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
    let forward_error = job.forward_error.as_deref();
    let before = Before { history, marker: None, past_expiry, forward_error };
    first_call(&before, &ctx.codes) == Call::Post
}

/// Calls, and gives the lease back or on.
pub(super) async fn hold(
    ctx: &Arc<Context>,
    job: &Job,
    (history, refused): (&History, &RefusedResult),
    mut lease: Lease,
    turn: Option<Turn>,
) -> Ended {
    let marker = lease.marker().cloned();
    let before = Before {
        history,
        marker: marker.as_ref(),
        past_expiry: job.is_past_expiry(OffsetDateTime::now_utc()),
        forward_error: job.forward_error.as_deref(),
    };
    let sent = if before.sent() { Sent::Yes } else { Sent::No };
    let is_awaited = turn.as_ref().is_some_and(Turn::is_awaited);
    let mut call = UnderLease {
        ctx,
        job,
        before,
        refused,
        lease: &mut lease,
        is_awaited,
        outage: false,
        evidence: Evidence::Reply,
    };
    let outcome = call.begin().await;
    let (outage, evidence) = (call.outage, call.evidence);
    let (outcome, is_from_record) = release(ctx, lease, outcome, turn).await;
    let evidence = if is_from_record { Evidence::Record } else { evidence };
    Ended { outage, evidence: Some(evidence), ..Ended::of(outcome, sent) }
}

/// Whether the hold and the sent marker of a capture are written already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Yes,
    Not {
        /// The number of replays at which an inquiry has just shown that there is no such capture.
        denied_at_replay: Option<u32>,
    },
}

impl Announced {
    fn of(lease: &Lease) -> Self {
        if lease.is_announced() { Self::Yes } else { Self::Not { denied_at_replay: None } }
    }
}

/// The calls of one attempt.
struct UnderLease<'a> {
    ctx: &'a Context,
    job: &'a Job,
    before: Before<'a>,
    refused: &'a RefusedResult,
    lease: &'a mut Lease,
    /// Whether others of its payment wait for this call to end.
    is_awaited: bool,
    /// Whether the breaker was open already when the last call was answered.
    outage: bool,
    /// What kind of call was answered last.
    evidence: Evidence,
}

impl UnderLease<'_> {
    async fn begin(&mut self) -> Outcome {
        let is_sent = self.before.marker.is_some() || self.before.history.sent;
        if let Some(outcome) = self.refused.ends(is_sent, self.before.past_expiry) {
            return outcome;
        }
        match (first_call(&self.before, &self.ctx.codes), self.before.forward_error) {
            (Call::Malformed, Some(error)) => {
                Outcome::Malformed { error: error.clone(), inquired: false }
            }
            // Only a job with such an error is malformed here.
            (Call::Expired | Call::Malformed, _) => Outcome::Expired { inquired: false },
            // It was told as expired: it must not capture now.
            (Call::Post, _) if self.refused.ended == Some(Class::Expired) => self.inquire().await,
            (Call::Post, _) => self.post(Announced::of(self.lease)).await,
            (Call::Inquire, _) => self.inquire().await,
        }
    }

    async fn inquire(&mut self) -> Outcome {
        let Self { ctx, job, .. } = *self;
        if let Some(outcome) = self.secure(ctx.gateway.inquiry_timeout(), None).await {
            return outcome;
        }
        self.evidence = Evidence::Inquiry;
        let (asked, span) = (Instant::now(), traces::call("inquiry"));
        let reply = ctx.gateway.inquire(&job.payment_id).instrument(span.clone()).await;
        traces::replied(&span, &reply);
        ctx.metrics.called("inquiry", asked.elapsed());
        self.heard(breaker::Call::Inquiry, &reply);
        self.before.past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
        match judge_inquiry(reply, job, &self.before, &ctx.codes) {
            Inquired::Over(outcome) => outcome,
            Inquired::Post => {
                let denied_at_replay = Some(self.before.history.replays);
                self.post(Announced::Not { denied_at_replay }).await
            }
        }
    }

    async fn post(&mut self, announced: Announced) -> Outcome {
        let Self { ctx, job, .. } = *self;
        if let Some(outcome) = self.secure(ctx.gateway.capture_timeout(), Some(announced)).await {
            return outcome;
        }
        self.evidence = Evidence::Reply;
        let (asked, span) = (Instant::now(), traces::call("capture"));
        let capture = ctx.gateway.capture(job, self.is_awaited);
        let reply = capture.instrument(span.clone()).await;
        traces::replied(&span, &reply);
        ctx.metrics.called("capture", asked.elapsed());
        self.heard(breaker::Call::Capture, &reply);
        judge_capture(reply, job, &self.before, &ctx.codes)
    }

    /// What a reply says of the gateway concerns all jobs.
    fn heard<B>(&mut self, call: breaker::Call, reply: &Reply<B>) {
        let Self { ctx, job, .. } = *self;
        let health = health(reply, &ctx.codes);
        self.outage = ctx.breaker.is_open();
        ctx.breaker.heard(call, &job.payment_id, &health);
        match health {
            Health::Throttled(retry_after) => ctx.pace.throttled(retry_after),
            Health::Well => ctx.pace.went_well(),
            Health::Ill(_) => {}
        }
    }

    /// Makes sure that a call keeps to the pace, that it ends within the lease, and that a capture is announced (hold and
    /// mark are written) before it leaves. An outcome if the call may not begin.
    async fn secure(&mut self, timeout: Duration, announced: Option<Announced>) -> Option<Outcome> {
        // A lease that is no longer than the call is renewed below, after a short wait at most.
        let spare = self.lease.left().saturating_sub(timeout + LEASE_MARGIN).max(PACE_WAIT_MIN);
        if !self.ctx.pace.slot(spare).await {
            return Some(Outcome::Deferred(Deferral::RateLimit));
        }
        if self.ctx.breaker.is_open() {
            return Some(Outcome::Deferred(Deferral::GatewayPaused));
        }
        let is_good =
            self.lease.left() >= timeout + LEASE_MARGIN && self.ctx.leases.is_current(self.lease);
        let denied_at_replay = match announced {
            None | Some(Announced::Yes) if is_good => return None,
            None | Some(Announced::Yes) => None,
            Some(Announced::Not { denied_at_replay }) => denied_at_replay,
        };
        match self.ctx.leases.renew(self.lease, announced.is_some(), denied_at_replay).await {
            Ok(Renewed::Kept) => None,
            // What is on record settles the job when the lease is given back.
            Ok(Renewed::Lost | Renewed::Recorded) => Some(Outcome::Deferred(Deferral::LeaseHeld)),
            Err(away) => {
                tracing::debug!(%away, "the lease can't be renewed");
                Some(Outcome::Deferred(Deferral::LeaseUnavailable))
            }
        }
    }
}

/// Gives the lease back, or on to the next in line. One that was lost meanwhile makes every outcome doubtful but the
/// gateway's signed word. What was on record by then may settle the job; the second value says whether it does.
async fn release(
    ctx: &Arc<Context>,
    lease: Lease,
    outcome: Outcome,
    turn: Option<Turn>,
) -> (Outcome, bool) {
    let release = outcome.release();
    let called = !matches!(
        outcome,
        Outcome::Deferred(_)
            | Outcome::Expired { inquired: false }
            | Outcome::Malformed { inquired: false, .. }
    );
    match give_on(ctx, &lease, &release, turn).instrument(traces::release()).await {
        Ok(Released { kept, recorded }) => {
            if let Some(settled) = outcome.settled_by(recorded, kept) {
                return (settled, true);
            }
            let is_lost = !kept && called && !outcome.is_final();
            (if is_lost { lost(&outcome) } else { outcome }, false)
        }
        Err(away) => {
            tracing::warn!(%away, "a lease could not be given back yet; it ends by its time");
            let is_over = lease.left().is_zero();
            tokio::spawn(release_later(Arc::clone(ctx), lease, release));
            let needs_lease = matches!(outcome, Outcome::Closed(_));
            (if needs_lease && is_over { lost(&outcome) } else { outcome }, false)
        }
    }
}

fn lost(outcome: &Outcome) -> Outcome {
    Outcome::InDoubt(Doubt {
        reason: format!("the lease was lost during the call, which came to {}", outcome.name()),
        kind: DoubtKind::LeaseLost,
        word: None,
    })
}

/// Says what became of the lease. Nobody is handed a lease for a call that may not begin.
async fn give_on(
    ctx: &Arc<Context>,
    lease: &Lease,
    release: &Release,
    turn: Option<Turn>,
) -> Result<Released, Away> {
    let may_begin = !ctx.breaker.is_open() && !ctx.draining.is_cancelled();
    let next = turn.as_ref().filter(|_| may_begin).and_then(Turn::next);
    let asked = Instant::now();
    let (Some(turn), Some(waiter)) = (turn, next) else {
        let released = ctx.leases.release(lease, release).await;
        ctx.metrics.leased("release", asked.elapsed());
        return released;
    };
    let handed = ctx.leases.hand_over(lease, release, &waiter.claim, turn.stays()).await;
    ctx.metrics.leased("hand_over", asked.elapsed());
    match handed {
        Ok((released, acquired)) => {
            pass(ctx, turn, waiter, Some(acquired));
            Ok(released)
        }
        // The waiter asks for itself, with the same claim.
        Err(away) => {
            pass(ctx, turn, waiter, None);
            Err(away)
        }
    }
}

/// Passes the turn on; what was acquired for a waiter that is gone is taken back.
fn pass(ctx: &Arc<Context>, turn: Turn, waiter: Waiter, acquired: Option<Acquired>) {
    let claim = waiter.claim.clone();
    if !turn.pass(waiter, acquired) {
        let ctx = Arc::clone(ctx);
        tokio::spawn(async move { give_up(&ctx, claim).await });
    }
}

/// Goes on trying to give a lease back for as long as it could last, or the hold of an id whose verdict is known: the
/// settlement does not wait for it.
async fn release_later(ctx: Arc<Context>, lease: Lease, release: Release) {
    let hold = ctx.leases.hold_in_doubt();
    let until = match release {
        Release::Final(_) | Release::EndHold => Instant::now() + hold,
        Release::Close(_)
        | Release::Replace(_)
        | Release::KeepHold { .. }
        | Release::TakeBack
        | Release::Forget => Instant::now() + lease.left(),
    };
    while Instant::now() < until {
        tokio::time::sleep(REDIS_RETRY * 5).await;
        if ctx.leases.release(&lease, &release).await.is_ok() {
            return;
        }
    }
}
