//! With the lease in hand: which call, and what becomes of the lease after it.

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    breaker,
    ended::Ended,
    line::{Turn, Waiter},
    process::{Context, REDIS_RETRY, give_up},
};
use crate::{
    domain::{
        class::Class,
        health::{Health, health},
        history::History,
        job::Job,
        judge::{Before, Call, Inquired, first_call, judge_capture, judge_inquiry},
        outcome::{Deferral, Doubt, DoubtKind, Evidence, Outcome, Release, Sent},
        refused::RefusedResult,
        reply::Reply,
    },
    gateway::NOT_SIGNED,
    lease::{Acquired, Away, Lease, Released, Renewed},
    telemetry::traces,
};

/// A call is begun only if it ends so much before its lease.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// So often the lease is renewed before one call; once is enough unless Redis is slow.
const RENEWALS_MAX: u32 = 3;
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
        announced: Announced::of(&lease),
        refused,
        lease: &mut lease,
        is_awaited,
        inquired: false,
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
    announced: Announced,
    /// Whether others of its payment wait for this call to end.
    is_awaited: bool,
    /// Whether an inquiry has shown in this attempt that there is no such capture.
    inquired: bool,
    /// Whether the breaker was open already when the last call was answered.
    outage: bool,
    /// What kind of call was answered last.
    evidence: Evidence,
}

/// What comes after a step of an attempt.
enum Step {
    /// The attempt is over.
    Over(Box<Outcome>),
    /// This call.
    Next(Call),
}

impl From<Outcome> for Step {
    fn from(outcome: Outcome) -> Self {
        Self::Over(Box::new(outcome))
    }
}

impl UnderLease<'_> {
    async fn begin(&mut self) -> Outcome {
        let is_sent = self.before.marker.is_some() || self.before.history.sent;
        if let Some(outcome) = self.refused.ends(is_sent, self.before.past_expiry) {
            return outcome;
        }
        let mut next = match first_call(&self.before, &self.ctx.codes) {
            // It was told as expired: it must not capture now.
            Call::Post if self.refused.ended == Some(Class::Expired) => Call::Inquire,
            call => call,
        };
        loop {
            let step = match (next, self.before.forward_error) {
                (Call::Malformed, Some(error)) => {
                    return Outcome::Malformed { error: error.clone(), inquired: false };
                }
                // Only a job with such an error is malformed here.
                (Call::Expired | Call::Malformed, _) => {
                    return Outcome::Expired { inquired: self.inquired };
                }
                (Call::Post, _) => self.post().await,
                (Call::Inquire, _) => self.inquire().await,
            };
            next = match step {
                Step::Over(outcome) => return *outcome,
                Step::Next(call) => call,
            };
        }
    }

    async fn inquire(&mut self) -> Step {
        let Self { ctx, job, .. } = *self;
        let timeout = ctx.gateway.inquiry_timeout();
        let signing = ctx.gateway.sign_inquiry(&job.payment_id);
        let call = match self.prepare(timeout, signing).await {
            Ok(call) => call,
            Err(outcome) => return outcome.into(),
        };
        if let Err(step) = self.secure(timeout, false).await {
            return step;
        }
        self.evidence = Evidence::Inquiry;
        let (asked, span) = (Instant::now(), traces::call("inquiry"));
        let reply = call.send().instrument(span.clone()).await;
        traces::replied(&span, &reply);
        ctx.metrics.called("inquiry", asked.elapsed());
        self.heard(breaker::Call::Inquiry, &reply);
        self.before.past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
        match judge_inquiry(reply, job, &self.before, &ctx.codes) {
            Inquired::Over(outcome) => outcome.into(),
            Inquired::Post => {
                // The hold is written anew: it lasts from the last send.
                let denied_at_replay = Some(self.before.history.replays);
                self.announced = Announced::Not { denied_at_replay };
                self.inquired = true;
                Step::Next(Call::Post)
            }
        }
    }

    async fn post(&mut self) -> Step {
        let Self { ctx, job, .. } = *self;
        let timeout = ctx.gateway.capture_timeout();
        let signing = ctx.gateway.sign_capture(job, self.is_awaited);
        let call = match self.prepare(timeout, signing).await {
            Ok(call) => call,
            Err(outcome) => return outcome.into(),
        };
        if let Err(step) = self.secure(timeout, true).await {
            return step;
        }
        self.evidence = Evidence::Reply;
        let (asked, span) = (Instant::now(), traces::call("capture"));
        let reply = call.send().instrument(span.clone()).await;
        traces::replied(&span, &reply);
        ctx.metrics.called("capture", asked.elapsed());
        self.heard(breaker::Call::Capture, &reply);
        judge_capture(reply, job, &self.before, &ctx.codes).into()
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
            Health::Ill(..) => {}
        }
    }

    /// Waits for the rate limit and for the signature, unless the worker drains meanwhile. Both may take
    /// seconds.
    async fn prepare<C>(
        &self,
        timeout: Duration,
        signing: impl Future<Output = Option<C>>,
    ) -> Result<C, Outcome> {
        let ctx = self.ctx;
        // A lease that is no longer than the call is renewed later, after a short wait at most.
        let spare = self.lease.left().saturating_sub(timeout + LEASE_MARGIN).max(PACE_WAIT_MIN);
        let prepared = async {
            if !ctx.pace.slot(spare).await {
                return Err(Outcome::Deferred(Deferral::RateLimit));
            }
            if ctx.breaker.is_open() {
                return Err(Outcome::Deferred(Deferral::GatewayPaused));
            }
            signing.await.ok_or_else(|| Outcome::NotSent(NOT_SIGNED.to_owned()))
        };
        tokio::select! {
            biased;
            () = ctx.draining.cancelled() => Err(Outcome::HandBack),
            prepared = prepared => prepared,
        }
    }

    /// The last look before a call leaves, after all other waits: it must still be due, and end within
    /// the lease; and a capture must be announced (hold and mark are written). Renewing the lease is a
    /// wait too: then it looks once more. An error: nothing was sent, and this comes instead.
    async fn secure(&mut self, timeout: Duration, posts: bool) -> Result<(), Step> {
        let ctx = self.ctx;
        let mut needed = timeout + LEASE_MARGIN;
        for _ in 0..RENEWALS_MAX {
            self.look_again(posts)?;
            let is_good = self.lease.left() >= needed && ctx.leases.is_current(self.lease);
            let denied_at_replay = match self.announced {
                Announced::Not { denied_at_replay } if posts => denied_at_replay,
                _ if is_good => return Ok(()),
                _ => None,
            };
            // A renewed lease may be no longer than call and margin, and Redis took a part of it to answer.
            needed = timeout;
            match ctx.leases.renew(self.lease, posts, denied_at_replay).await {
                Ok(Renewed::Kept) if posts => self.announced = Announced::Yes,
                Ok(Renewed::Kept) => {}
                // What is on record settles the job when the lease is given back.
                Ok(Renewed::Lost | Renewed::Recorded) => {
                    return Err(Outcome::Deferred(Deferral::LeaseHeld).into());
                }
                Err(away) => {
                    tracing::debug!(%away, "the lease can't be renewed");
                    break;
                }
            }
        }
        Err(Outcome::Deferred(Deferral::LeaseUnavailable).into())
    }

    /// Whether the call is still due: the worker does not drain, the breaker is closed, and a capture is
    /// what this job needs by now. A job that was never sent expires; one that may have been sent is
    /// pursued.
    fn look_again(&mut self, posts: bool) -> Result<(), Step> {
        if self.ctx.draining.is_cancelled() {
            return Err(Outcome::HandBack.into());
        }
        if self.ctx.breaker.is_open() {
            return Err(Outcome::Deferred(Deferral::GatewayPaused).into());
        }
        if !posts {
            return Ok(());
        }
        self.before.past_expiry = self.job.is_past_expiry(OffsetDateTime::now_utc());
        let due = match (self.inquired, self.before.past_expiry) {
            (true, true) => Call::Expired,
            (true, false) => Call::Post,
            (false, _) => first_call(&self.before, &self.ctx.codes),
        };
        if due == Call::Post { Ok(()) } else { Err(Step::Next(due)) }
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
            | Outcome::HandBack
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
