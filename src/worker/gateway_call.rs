//! The calls to the gateway that a job makes while it has the lease. Each call goes through the
//! same steps: prepare, sign, check once more, send, record the reply.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument;

use super::{attempt_end::AttemptEnd, circuit_breaker::CallKind, context::Context};
use crate::{
    broker::Delivery,
    domain::{
        capture::{
            class::Class,
            health::{GatewayHealth, health},
            judge::{Before, Inquired, NextCall, first_call, judge_capture, judge_inquiry},
            outcome::{Deferral, Evidence, Outcome, SentState},
            reply::Reply,
        },
        job::{Job, history::History},
        settlement::refused::RefusedResult,
    },
    gateway::NOT_SIGNED,
    lease::{Lease, Renewed},
    telemetry::traces,
};

/// A call starts only if its time-out ends at least this long before the lease does.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// How often the lease is renewed before one call. Once is enough unless Redis is slow.
const RENEWALS_MAX: u32 = 3;
/// How long a job waits for the rate limiter at least, even if the lease leaves less time.
const RATE_LIMIT_WAIT_MIN: Duration = Duration::from_millis(500);

/// Whether the job, judging by its headers, will post a capture as soon as it has the lease. Then
/// the acquisition can record the intent in the same call to Redis.
pub(super) fn posts_at_once(ctx: &Context, history: &History, job: &Job) -> bool {
    let past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
    let forward_error = job.forward_error.as_deref();
    let before = Before { history, marker: None, past_expiry, forward_error };
    first_call(&before, &ctx.codes) == NextCall::Post
}

/// Makes the calls of one attempt under the lease. `is_urgent`: other jobs of the payment wait for
/// this one to end, so its request is signed first.
pub(super) async fn call_gateway(
    ctx: &Context,
    delivery: &Delivery,
    job: &Job,
    lease: &mut Lease,
    is_urgent: bool,
) -> AttemptEnd {
    let marker = lease.marker().cloned();
    let before = Before {
        history: delivery.history(),
        marker: marker.as_ref(),
        past_expiry: job.is_past_expiry(OffsetDateTime::now_utc()),
        forward_error: job.forward_error.as_deref(),
    };
    let sent = if before.sent() { SentState::Yes } else { SentState::No };
    let mut calls = CallsUnderLease {
        ctx,
        job,
        before,
        refused: delivery.refused_result(),
        intent: IntentRecorded::with(lease),
        lease,
        is_urgent,
        inquired: false,
        outage: false,
        evidence: Evidence::Reply,
    };
    let outcome = calls.run().await;
    let (outage, evidence) = (calls.outage, Some(calls.evidence));
    AttemptEnd { outage, evidence, ..AttemptEnd::new(outcome, sent) }
}

/// Whether the in-doubt block and the sent marker of a capture were written already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IntentRecorded {
    Yes,
    No {
        /// The replay count of the job, if an inquiry has just shown that the capture does not
        /// exist.
        denied_at_replay: Option<u32>,
    },
}

impl IntentRecorded {
    fn with(lease: &Lease) -> Self {
        if lease.is_intent_recorded() { Self::Yes } else { Self::No { denied_at_replay: None } }
    }
}

/// The state of one attempt while it has the lease.
struct CallsUnderLease<'a> {
    ctx: &'a Context,
    job: &'a Job,
    before: Before<'a>,
    refused: &'a RefusedResult,
    intent: IntentRecorded,
    lease: &'a mut Lease,
    is_urgent: bool,
    /// Whether an inquiry of this attempt has shown that the capture does not exist.
    inquired: bool,
    /// Whether the circuit breaker was already open when the last call ended.
    outage: bool,
    /// The kind of the last call: what the outcome rests on.
    evidence: Evidence,
}

/// How an attempt goes on after one of its steps.
enum NextStep {
    /// The attempt is over, with this outcome.
    End(Box<Outcome>),
    /// The attempt goes on with this call.
    Call(NextCall),
}

impl From<Outcome> for NextStep {
    fn from(outcome: Outcome) -> Self {
        Self::End(Box::new(outcome))
    }
}

impl CallsUnderLease<'_> {
    async fn run(&mut self) -> Outcome {
        let is_sent = self.before.marker.is_some() || self.before.history.sent;
        if let Some(outcome) = self.refused.ends(is_sent, self.before.past_expiry) {
            return outcome;
        }
        let mut next = match first_call(&self.before, &self.ctx.codes) {
            // Some subscribers may have its result `expired` already: it must not capture now.
            NextCall::Post if self.refused.ended == Some(Class::Expired) => NextCall::Inquire,
            call => call,
        };
        loop {
            let step = match (next, self.before.forward_error) {
                (NextCall::Malformed, Some(error)) => {
                    return Outcome::Malformed { error: error.clone(), inquired: false };
                }
                // `first_call` returns `Malformed` only for a job with such an error, handled
                // above.
                (NextCall::Expired | NextCall::Malformed, _) => {
                    return Outcome::Expired { inquired: self.inquired };
                }
                (NextCall::Post, _) => self.post().await,
                (NextCall::Inquire, _) => self.inquire().await,
            };
            next = match step {
                NextStep::End(outcome) => return *outcome,
                NextStep::Call(call) => call,
            };
        }
    }

    async fn inquire(&mut self) -> NextStep {
        let Self { ctx, job, .. } = *self;
        let timeout = ctx.gateway.inquiry_timeout();
        let signing = ctx.gateway.sign_inquiry(&job.payment_id);
        let call = match self.prepare(timeout, signing).await {
            Ok(call) => call,
            Err(outcome) => return outcome.into(),
        };
        if let Err(step) = self.last_check(timeout, false).await {
            return step;
        }
        let reply = self.send(CallKind::Inquiry, call.send()).await;
        self.before.past_expiry = job.is_past_expiry(OffsetDateTime::now_utc());
        match judge_inquiry(reply, job, &self.before, &ctx.codes) {
            Inquired::Over(outcome) => outcome.into(),
            Inquired::Post => {
                // The in-doubt block must be written anew: its time counts from the last send.
                let denied_at_replay = Some(self.before.history.replays);
                self.intent = IntentRecorded::No { denied_at_replay };
                self.inquired = true;
                NextStep::Call(NextCall::Post)
            }
        }
    }

    async fn post(&mut self) -> NextStep {
        let Self { ctx, job, .. } = *self;
        let timeout = ctx.gateway.capture_timeout();
        let signing = ctx.gateway.sign_capture(job, self.is_urgent);
        let call = match self.prepare(timeout, signing).await {
            Ok(call) => call,
            Err(outcome) => return outcome.into(),
        };
        if let Err(step) = self.last_check(timeout, true).await {
            return step;
        }
        let reply = self.send(CallKind::Capture, call.send()).await;
        judge_capture(reply, job, &self.before, &ctx.codes).into()
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
        let spare = self.lease.left().saturating_sub(timeout + LEASE_MARGIN);
        let prepared = async {
            if !ctx.rate_limiter.wait(spare.max(RATE_LIMIT_WAIT_MIN)).await {
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
    async fn last_check(&mut self, timeout: Duration, posts: bool) -> Result<(), NextStep> {
        let ctx = self.ctx;
        let mut needed = timeout + LEASE_MARGIN;
        for _ in 0..RENEWALS_MAX {
            self.check_due(posts)?;
            let is_good = self.lease.left() >= needed && ctx.leases.is_current(self.lease);
            let denied_at_replay = match self.intent {
                IntentRecorded::No { denied_at_replay } if posts => denied_at_replay,
                _ if is_good => return Ok(()),
                _ => None,
            };
            // After a renewal the margin is not required: the lease may be exactly as long as call
            // and margin, and Redis's reply has taken a part of it.
            needed = timeout;
            match ctx.leases.renew(self.lease, posts, denied_at_replay).await {
                Ok(Renewed::Kept) if posts => self.intent = IntentRecorded::Yes,
                Ok(Renewed::Kept) => {}
                // The recorded outcome, if any, settles the job when the lease is released.
                Ok(Renewed::Lost | Renewed::Recorded) => {
                    return Err(Outcome::Deferred(Deferral::LeaseHeld).into());
                }
                Err(error) => {
                    tracing::debug!("away" = %error, "lease renewal failed");
                    break;
                }
            }
        }
        Err(Outcome::Deferred(Deferral::LeaseUnavailable).into())
    }

    /// Checks that the call is still due: the worker does not drain, the circuit breaker is closed,
    /// and a capture is still what this job needs. A job that was never sent may have expired
    /// meanwhile; one that may have been sent must be inquired about.
    fn check_due(&mut self, posts: bool) -> Result<(), NextStep> {
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
            (true, true) => NextCall::Expired,
            (true, false) => NextCall::Post,
            (false, _) => first_call(&self.before, &self.ctx.codes),
        };
        if due == NextCall::Post { Ok(()) } else { Err(NextStep::Call(due)) }
    }

    /// Sends a call and records its reply.
    async fn send<B>(
        &mut self,
        kind: CallKind,
        sending: impl Future<Output = Reply<B>>,
    ) -> Reply<B> {
        self.evidence = match kind {
            CallKind::Capture => Evidence::Reply,
            CallKind::Inquiry => Evidence::Inquiry,
        };
        let (begun, span) = (Instant::now(), traces::call(kind.name()));
        let reply = sending.instrument(span.clone()).await;
        traces::record_reply(&span, &reply);
        self.ctx.metrics.gateway_call(kind.name(), begun.elapsed());
        self.record_reply(kind, &reply);
        reply
    }

    /// Passes the reply to the circuit breaker and the rate limiter: what it shows about the
    /// gateway concerns all jobs.
    fn record_reply<B>(&mut self, kind: CallKind, reply: &Reply<B>) {
        let Self { ctx, job, .. } = *self;
        let health = health(reply, &ctx.codes);
        self.outage = ctx.breaker.is_open();
        ctx.breaker.record_reply(kind, &job.payment_id, &health);
        match health {
            GatewayHealth::Throttled(retry_after) => ctx.rate_limiter.throttled(retry_after),
            GatewayHealth::Healthy => ctx.rate_limiter.not_throttled(),
            GatewayHealth::Unhealthy(..) => {}
        }
    }
}
