//! Reports the decision about each delivery: one log line, and the counters.

use std::{borrow::Cow, time::Duration};

use time::OffsetDateTime;

use super::{
    labels::{
        EndLabel, MoneyLabels, OutcomeLabel, ReasonLabel, SettlementLabels, Text, WithinLabel,
    },
    metrics::Metrics,
};
use crate::domain::{
    capture::{
        class::Class,
        outcome::{FinishedAttempt, Outcome},
    },
    job::history::History,
    settlement::Settlement,
};

/// Values of the label `within`, shortest first: a retry is counted if the job's `expiresAt` comes
/// at most this long after its next attempt.
const SOON: [(&str, Duration); 3] = [
    ("10m", Duration::from_secs(600)),
    ("1h", Duration::from_secs(3_600)),
    ("6h", Duration::from_secs(21_600)),
];

/// The facts about a decision that its log line and the counters need besides.
pub struct DecisionFacts<'a> {
    /// The time from delivery to decision.
    pub took: Duration,
    /// The age of the job: since the publisher's timestamp, or else since a worker first received
    /// it.
    pub age: Duration,
    /// The time of the decision.
    pub now: OffsetDateTime,
    /// Whether the end of the job was counted before: it must not be counted again.
    pub is_counted: bool,
    /// The id of the job's trace, if it has one.
    pub trace_id: Option<&'a str>,
}

impl Metrics {
    /// Counts a decision, and logs it as one line.
    pub fn decided(
        &self,
        history: &History,
        attempt: &FinishedAttempt,
        settlement: &Settlement,
        facts: &DecisionFacts<'_>,
    ) {
        let outcome = &attempt.outcome;
        let label = OutcomeLabel { outcome: Text(outcome.name()) };
        self.outcomes.get_or_create(&label).inc();
        let name = settlement.name();
        let class = settlement.class().map_or("none", Class::name);
        let attempts = settlement.attempts(history);
        if attempts > history.attempts {
            self.attempts.inc();
        }
        match outcome {
            Outcome::InDoubt(doubt) => {
                let label = ReasonLabel { reason: Text(doubt.kind.name()) };
                self.doubts.get_or_create(&label).inc();
            }
            Outcome::Deferred(deferral) => {
                let label = ReasonLabel { reason: Text(deferral.name()) };
                self.deferrals.get_or_create(&label).inc();
            }
            _ => {}
        }
        let labels = SettlementLabels { settlement: Text(name), class: Text(class) };
        self.settlements.get_or_create(&labels).inc();
        let is_end = matches!(settlement, Settlement::Captured(_) | Settlement::Dead { .. });
        if is_end && !facts.is_counted {
            self.count_end(attempt, name, class, facts.age);
        }
        if let Settlement::Retry { delay, .. } = settlement {
            self.count_expiring(attempt, facts.now, *delay);
        }
        self.job_seconds.observe(facts.took.as_secs_f64());
        tracing::info!(
            captureRequestId = attempt.subject.capture_request_id,
            paymentId = attempt.subject.payment_id,
            trace_id = facts.trace_id,
            outcome = outcome.name(),
            reason = reason(outcome).as_deref(),
            settlement = name,
            class,
            attempts,
            delay_ms = delay_ms(settlement),
            took_ms = %facts.took.as_millis(),
            "settlement decided"
        );
    }

    /// Counts the end of a job. Copies of a job that was settled before must not be counted: their
    /// money would count twice.
    fn count_end(
        &self,
        attempt: &FinishedAttempt,
        settlement: &'static str,
        class: &'static str,
        age: Duration,
    ) {
        let label = EndLabel { settlement: Text(settlement) };
        self.job_age_seconds.get_or_create(&label).observe(age.as_secs_f64());
        if let Some(amount) = attempt.subject.capture_amount {
            let currency = Text(amount.currency().code());
            let labels = MoneyLabels { settlement: Text(settlement), class: Text(class), currency };
            self.settled_money.get_or_create(&labels).inc_by(amount.value());
        }
    }

    /// Counts a job whose next attempt comes only shortly before its `expiresAt`, or after it.
    fn count_expiring(&self, attempt: &FinishedAttempt, now: OffsetDateTime, delay: Duration) {
        // A job that is past its expiry and still retried may have been sent: it no longer expires.
        let ahead = attempt.subject.expires_at.filter(|expires_at| now < *expires_at);
        let Some(left) = ahead.map(|expires_at| expires_at - now - delay) else { return };
        let soon = SOON.iter().find(|(_, within)| left <= *within);
        if let Some((within, _)) = soon {
            self.expiring_jobs.get_or_create(&WithinLabel { within: Text(within) }).inc();
        }
    }
}

fn delay_ms(settlement: &Settlement) -> Option<u64> {
    match settlement {
        Settlement::Retry { delay, .. } => u64::try_from(delay.as_millis()).ok(),
        _ => None,
    }
}

fn reason(outcome: &Outcome) -> Option<Cow<'_, str>> {
    match outcome {
        Outcome::InDoubt(doubt) => Some((&doubt.reason).into()),
        Outcome::NotSent(reason) => Some(reason.into()),
        Outcome::Failed(verdict)
        | Outcome::FailedWhileLeased(verdict)
        | Outcome::Unauthenticated(verdict) => verdict.code.as_ref().map(Cow::from),
        Outcome::Deferred(deferral) => Some(deferral.name().into()),
        Outcome::Malformed { error, .. } => Some(error.to_string().into()),
        _ => None,
    }
}
