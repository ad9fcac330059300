//! The calls to the gateway that a job makes while it has the lease, and the release of the lease
//! after them.

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
        capture::{
            class::Class,
            health::{Health, health},
            judge::{Before, Call, Inquired, first_call, judge_capture, judge_inquiry},
            outcome::{Deferral, Doubt, DoubtKind, Evidence, Outcome, Release, Sent},
            reply::Reply,
        },
        job::{Job, history::History},
        settlement::refused::RefusedResult,
    },
    gateway::NOT_SIGNED,
    lease::{Acquired, Lease, Released, Renewed, Unavailable},
    telemetry::traces,
};

/// A call starts only if its time-out ends at least this long before the lease does.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// How often the lease is renewed before one call. Once is enough unless Redis is slow.
const RENEWALS_MAX: u32 = 3;
/// How long a job waits for the rate limiter at least, even if the lease leaves less time.
const PACE_WAIT_MIN: Duration = Duration::from_millis(500);

/// Whether the job, judging by its headers, will post a capture as soon as it has the lease. Then
/// the acquisition can record the intent in the same call to Redis.
pub(super) fn posts_at_once(ctx: &Context, history: &History, job: &Job) -> bool {
    let past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
    let forward_error = job.forward_error.as_deref();
    let before = Before { history, marker: None, past_expiry, forward_error };
    first_call(&before, &ctx.codes) == Call::Post
}

/// Calls the gateway, then releases the lease or hands it over.
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

/// Whether the in-doubt block and the sent marker of a capture were written already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Yes,
    Not {
        /// The replay count of the job, if an inquiry has just shown that the capture does not
        /// exist.
        denied_at_replay: Option<u32>,
    },
}

impl Announced {
    fn of(lease: &Lease) -> Self {
        if lease.is_intent_recorded() { Self::Yes } else { Self::Not { denied_at_replay: None } }
    }
}

/// The state of one attempt while it has the lease.
struct UnderLease<'a> {
    ctx: &'a Context,
    job: &'a Job,
    before: Before<'a>,
    refused: &'a RefusedResult,
    lease: &'a mut Lease,
    announced: Announced,
    /// Whether other jobs of the payment wait for this one to end: its request is signed first.
    is_awaited: bool,
    /// Whether an inquiry of this attempt has shown that the capture does not exist.
    inquired: bool,
    /// Whether the circuit breaker was already open when the last call ended.
    outage: bool,
    /// The kind of the last call: what the outcome rests on.
    evidence: Evidence,
}

/// The result of one step of an attempt.
enum Step {
    /// The attempt is over, with this outcome.
    Over(Box<Outcome>),
    /// The attempt goes on with this call.
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
            // Some subscribers may have its result `expired` already: it must not capture now.
            Call::Post if self.refused.ended == Some(Class::Expired) => Call::Inquire,
            call => call,
        };
        loop {
            let step = match (next, self.before.forward_error) {
                (Call::Malformed, Some(error)) => {
                    return Outcome::Malformed { error: error.clone(), inquired: false };
                }
                // `first_call` returns `Malformed` only for a job with such an error, handled
                // above.
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
                // The in-doubt block must be written anew: its time counts from the last send.
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

    /// Passes the reply to the circuit breaker and the rate limiter: what it shows about the
    /// gateway concerns all jobs.
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

    /// Waits for the rate limiter and for the request's signature. Both may take seconds, so a
    /// drain ends the wait.
    async fn prepare<C>(
        &self,
        timeout: Duration,
        signing: impl Future<Output = Option<C>>,
    ) -> Result<C, Outcome> {
        let ctx = self.ctx;
        // If the lease is too short for the call, it is renewed later. The job then waits only
        // briefly here.
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

    /// The last check before a call is sent, after all other waits. The call must still be due and
    /// must end within the lease. Before a capture, the intent must be recorded (in-doubt block and
    /// sent marker). Renewing the lease takes time too, so the check is repeated after it.
    ///
    /// # Errors
    /// Nothing was sent; the attempt goes on with this step instead.
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
            // After a renewal the margin is not required: the lease may be exactly as long as call
            // and margin, and Redis's reply has taken a part of it.
            needed = timeout;
            match ctx.leases.renew(self.lease, posts, denied_at_replay).await {
                Ok(Renewed::Kept) if posts => self.announced = Announced::Yes,
                Ok(Renewed::Kept) => {}
                // The recorded outcome, if any, settles the job when the lease is released.
                Ok(Renewed::Lost | Renewed::Recorded) => {
                    return Err(Outcome::Deferred(Deferral::LeaseHeld).into());
                }
                Err(away) => {
                    tracing::debug!(%away, "lease renewal failed");
                    break;
                }
            }
        }
        Err(Outcome::Deferred(Deferral::LeaseUnavailable).into())
    }

    /// Checks that the call is still due: the worker does not drain, the circuit breaker is closed,
    /// and a capture is still what this job needs. A job that was never sent may have expired
    /// meanwhile; one that may have been sent must be inquired about.
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

/// Releases the lease or hands it over to the next job. If the lease was lost meanwhile, every
/// outcome becomes in doubt, except a signed verdict of the gateway. An outcome that was recorded
/// meanwhile may settle the job; the second value says whether it does.
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
            tracing::warn!(%away, "lease release failed: retrying in the background");
            let is_over = lease.left().is_zero();
            tokio::spawn(release_later(Arc::clone(ctx), lease, release));
            let needs_lease = matches!(outcome, Outcome::Closed(_));
            (if needs_lease && is_over { lost(&outcome) } else { outcome }, false)
        }
    }
}

fn lost(outcome: &Outcome) -> Outcome {
    Outcome::InDoubt(Doubt {
        reason: format!("the lease was lost during the call, whose outcome was {}", outcome.name()),
        kind: DoubtKind::LeaseLost,
        word: None,
    })
}

/// Releases the lease or hands it over, and returns Redis's reply. While the circuit breaker is
/// open or the worker drains, it does not hand the lease over: the next job could not start.
async fn give_on(
    ctx: &Arc<Context>,
    lease: &Lease,
    release: &Release,
    turn: Option<Turn>,
) -> Result<Released, Unavailable> {
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
        // The waiting job asks Redis itself, with the same claim.
        Err(away) => {
            pass(ctx, turn, waiter, None);
            Err(away)
        }
    }
}

/// Passes the slot on. If the waiting job has given up, the lease that was acquired for it is
/// rolled back.
fn pass(ctx: &Arc<Context>, turn: Turn, waiter: Waiter, acquired: Option<Acquired>) {
    let claim = waiter.claim.clone();
    if !turn.pass(waiter, acquired) {
        let ctx = Arc::clone(ctx);
        tokio::spawn(async move { give_up(&ctx, claim).await });
    }
}

/// Retries a release in the background, so that the settlement does not wait for Redis. It gives up
/// when the lease has expired by itself; where an in-doubt block must end, when that has expired.
async fn release_later(ctx: Arc<Context>, lease: Lease, release: Release) {
    let hold = ctx.leases.in_doubt_block();
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
