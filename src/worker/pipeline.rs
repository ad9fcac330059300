//! The pipeline that every job goes through, top to bottom: attempt, settle, record, act.

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::{
    acquire::{Acquisition, acquire},
    attempt_end::AttemptEnd,
    context::Context,
    gateway_call::call_gateway,
    payment_queue::Slot,
    release::release,
};
use crate::{
    broker::{DELIVERY_LIMIT, Delivery, HELD_MAX, SessionLost, SettleResult},
    domain::{
        capture::outcome::{Deferral, Doubt, DoubtKind, FinishedAttempt, Outcome, SentState},
        job::{Job, trace::TraceContext},
        settlement::{RetryPolicy, Settlement, settle},
        time::epoch_ms,
    },
    telemetry::{DecisionFacts, traces},
};

/// Processes one delivery, from the attempt to its settlement.
pub(super) async fn process(ctx: Arc<Context>, delivery: Delivery) {
    let span = traces::job(delivery.prefix(), delivery.trace().as_ref());
    run(&ctx, delivery, &span).instrument(span.clone()).await;
}

async fn run(ctx: &Arc<Context>, mut delivery: Delivery, span: &Span) {
    let begun = Instant::now();
    let attempt = attempt(ctx, &delivery).await;
    let now = OffsetDateTime::now_utc();
    let settlement = settle(&attempt, delivery.history(), &policy_of(ctx, &delivery), now);
    let settling = traces::settlement(span, &attempt, &settlement);
    if let Some(context) = traces::context(&settling) {
        delivery.continue_trace(&context);
    }
    record(ctx, &delivery, &attempt, &settlement, (begun.elapsed(), now));
    act(ctx, &delivery, &attempt, &settlement).instrument(settling).await;
}

/// Makes one attempt. It can't fail: whatever happens is an outcome, and a panic is in doubt.
async fn attempt(ctx: &Arc<Context>, delivery: &Delivery) -> FinishedAttempt {
    let history = delivery.history();
    let parsed = delivery.job(&ctx.forward);
    let subject = match &parsed {
        Ok(job) => job.subject(),
        Err(malformed) => malformed.subject.clone(),
    };
    let end = if history.returns >= DELIVERY_LIMIT {
        AttemptEnd::new(Outcome::Poison, SentState::Unknown)
    } else if delivery.may_be_dropped() {
        AttemptEnd::deferred(Deferral::DeathHeader, SentState::Unknown)
    } else if let Err(end) = until_publishable(ctx, delivery).await {
        end
    } else {
        match parsed {
            Err(malformed) => {
                let outcome = Outcome::Malformed { error: malformed.reason, inquired: false };
                AttemptEnd::new(outcome, SentState::Unknown)
            }
            Ok(job) => catch_panics(execute(ctx, delivery, &job)).await,
        }
    };
    let AttemptEnd { outcome, sent, remembered, outage, evidence } = end;
    FinishedAttempt { subject, outcome, sent, remembered, outage, evidence }
}

/// Waits while the broker refuses publishes: no attempt starts whose result could not be published.
///
/// # Errors
/// The attempt is over: the wait is too long, or the worker drains.
async fn until_publishable(ctx: &Context, delivery: &Delivery) -> Result<(), AttemptEnd> {
    tokio::select! {
        biased;
        () = delivery.is_publishable() => Ok(()),
        () = ctx.draining.cancelled() => Err(AttemptEnd::handed_back()),
        () = tokio::time::sleep(HELD_MAX) => {
            Err(AttemptEnd::deferred(Deferral::PublishRefused, SentState::Unknown))
        }
    }
}

/// Turns a panic into an outcome in doubt: it is unknown whether a capture was sent before the
/// panic. The other jobs of the worker go on.
async fn catch_panics(attempt: impl Future<Output = AttemptEnd>) -> AttemptEnd {
    AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(|_| {
        let reason = "bug: the worker panicked during the attempt; see its log".to_owned();
        let doubt = Doubt { reason, kind: DoubtKind::Panic, last_reply: None };
        AttemptEnd::new(Outcome::InDoubt(doubt), SentState::Unknown)
    })
}

/// Waits for the payment's slot and lease, calls the gateway, and passes both to the next job.
async fn execute(ctx: &Arc<Context>, delivery: &Delivery, job: &Job) -> AttemptEnd {
    match acquire(ctx, delivery, job).await {
        Acquisition::Granted { mut lease, slot, .. } => {
            let is_urgent = slot.as_ref().is_some_and(Slot::is_awaited);
            let end = call_gateway(ctx, delivery, job, &mut lease, is_urgent).await;
            release(ctx, lease, end, slot).await
        }
        Acquisition::Over { end, .. } => end,
    }
}

/// The retry policy for a delivery. Where only the refused result is missing, the age limit does
/// not apply: otherwise the job could end as expired, against its final outcome.
fn policy_of<'a>(ctx: &'a Context, delivery: &Delivery) -> Cow<'a, RetryPolicy> {
    if delivery.refused_result().outlives_its_age() {
        Cow::Owned(RetryPolicy { max_age: Duration::MAX, ..ctx.policy.clone() })
    } else {
        Cow::Borrowed(&ctx.policy)
    }
}

/// Logs the decision and counts it.
fn record(
    ctx: &Context,
    delivery: &Delivery,
    attempt: &FinishedAttempt,
    settlement: &Settlement,
    (took, now): (Duration, OffsetDateTime),
) {
    let age_ms = epoch_ms(now).saturating_sub(delivery.born_ms());
    let trace = delivery.trace();
    let facts = DecisionFacts {
        took,
        age: Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)),
        now,
        // The end of the job was counted already when its result was refused.
        is_counted: attempt.remembered || delivery.refused_result().times > 0,
        trace_id: trace.as_ref().map(TraceContext::trace_id),
    };
    ctx.metrics.decided(delivery.history(), attempt, settlement, &facts);
}

/// Acts on the settlement.
async fn act(
    ctx: &Context,
    delivery: &Delivery,
    attempt: &FinishedAttempt,
    settlement: &Settlement,
) {
    if let Err(lost) = settle_delivery(ctx, delivery, attempt, settlement).await {
        tracing::info!(
            captureRequestId = attempt.subject.capture_request_id,
            %lost,
            "delivery not settled"
        );
    }
}

/// Settles the delivery. A job whose result the broker refuses waits and publishes it later: a
/// subscriber that does not read its results must not keep other jobs from being captured.
async fn settle_delivery(
    ctx: &Context,
    delivery: &Delivery,
    attempt: &FinishedAttempt,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_makes_the_outcome_in_doubt() {
        let end = catch_panics(async { panic!("a bug") }).await;
        let Outcome::InDoubt(doubt) = end.outcome else { panic!("not in doubt") };
        assert_eq!((doubt.kind, end.remembered), (DoubtKind::Panic, false));
        let fine = catch_panics(async { AttemptEnd::new(Outcome::HandBack, SentState::No) }).await;
        assert_eq!(fine.outcome, Outcome::HandBack);
    }
}
