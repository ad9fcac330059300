//! The one decision between captured, retry and dead letter. It is pure: this module decides, and
//! the broker's code acts.

mod reason;
pub mod refused;
mod result;
pub mod schedule;

use std::time::Duration;

use time::OffsetDateTime;

use self::schedule::fit;
pub use self::{
    reason::DeadLetterReason,
    result::{ResultMessage, ResultSource, ResultStatus},
};
use super::{
    capture::{
        class::Class,
        outcome::{
            Capture, Deferral, Evidence, FailureVerdict, FinishedAttempt, Outcome, SentState,
        },
    },
    job::history::{History, LastReply},
    time::epoch_ms,
};

/// When a job is tried again, and when it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The waits between attempts: n waits make n + 1 attempts.
    pub schedule: Vec<Duration>,
    /// The waits of deferrals. The last one repeats.
    pub defer_schedule: Vec<Duration>,
    /// After this age no retry or deferral begins.
    pub max_age: Duration,
}

/// What is done with a delivery. Each settlement publishes, waits for the confirm and acks, except
/// [`Settlement::HandBack`], which publishes nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// Publish the result of a capture.
    Captured(Box<ResultMessage>),
    /// Publish the job to the wait queue with this delay.
    Retry {
        /// How long the job waits.
        delay: Duration,
        /// The headers of the published job.
        carry: History,
    },
    /// Publish a dead letter, and a result if the id of the job can be read.
    Dead {
        /// Why the job was given up, for operators.
        reason: Box<DeadLetterReason>,
        /// The headers of the dead letter.
        carry: History,
        /// The result for the publisher, if the id can be read.
        result: Option<Box<ResultMessage>>,
    },
    /// Return the job to its queue unchanged.
    HandBack,
}

impl Settlement {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Captured(_) => "captured",
            Self::Retry { carry, .. } if carry.deferrals > 0 => "deferred",
            Self::Retry { .. } => "retry",
            Self::Dead { .. } => "dead",
            Self::HandBack => "handed_back",
        }
    }

    /// The class of the dead letter, if the job was given up.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Dead { reason, .. } => Some(reason.class),
            _ => None,
        }
    }

    /// How many attempts are spent after this settlement of a delivery with this history.
    #[must_use]
    pub fn attempts(&self, history: &History) -> u32 {
        match self {
            Self::Captured(result) => result.attempts,
            Self::Retry { carry, .. } | Self::Dead { carry, .. } => carry.attempts,
            Self::HandBack => history.attempts,
        }
    }
}

/// Decides what is done with a delivery after its attempt.
#[must_use]
pub fn settle(
    attempt: &FinishedAttempt,
    history: &History,
    policy: &RetryPolicy,
    now: OffsetDateTime,
) -> Settlement {
    let at = At { attempt, history, policy, now };
    match &attempt.outcome {
        Outcome::Captured(capture) => at.captured(capture),
        Outcome::Failed(verdict) | Outcome::FailedWhileLeased(verdict) => {
            at.dead(verdict, at.spent_unless_remembered())
        }
        Outcome::InDoubt(doubt) => {
            at.retry(doubt.last_reply.as_ref(), Class::InDoubt, &doubt.reason)
        }
        Outcome::NotSent(reason) => at.retry(None, Class::Unreachable, reason),
        Outcome::Throttled(throttle) => {
            let reason = "the gateway refused the call: too many calls";
            let reply = throttle.last_reply.as_ref();
            at.defer(at.asked(throttle.retry_after), reply, &ours(Class::InDoubt, reason))
        }
        Outcome::Unauthenticated(verdict) => at.defer(at.nth(), None, verdict),
        Outcome::Deferred(deferral) => {
            let reason =
                format!("the job reached its maximum age while deferred: {}", deferral.name());
            let delay = match deferral {
                Deferral::DeathHeader => return at.republished(),
                Deferral::LineFull(wait) => fit(&policy.defer_schedule, *wait),
                _ => at.nth(),
            };
            at.defer(delay, None, &ours(Class::Expired, &reason))
        }
        Outcome::Malformed { error, inquired } => {
            let spent = history.attempts.saturating_add(u32::from(*inquired));
            at.dead(&ours(Class::Malformed, &error.to_string()), spent)
        }
        Outcome::Expired { inquired } => {
            let verdict = ours(Class::Expired, "expiresAt passed, and nothing was captured");
            let spent = history.attempts.saturating_add(u32::from(*inquired));
            at.dead(&verdict, spent)
        }
        Outcome::Poison => {
            let reason = format!("the broker had to take this job back {} times", history.returns);
            at.dead(&ours(Class::Poison, &reason), history.attempts)
        }
        Outcome::HandBack => Settlement::HandBack,
    }
}

/// A verdict by this program: unsigned and without a code.
fn ours(class: Class, message: &str) -> FailureVerdict {
    FailureVerdict { class, code: None, message: Some(message.to_owned()), signed: false }
}

/// The facts of one decision.
struct At<'a> {
    attempt: &'a FinishedAttempt,
    history: &'a History,
    policy: &'a RetryPolicy,
    now: OffsetDateTime,
}

impl At<'_> {
    fn spent_unless_remembered(&self) -> u32 {
        self.history.attempts.saturating_add(u32::from(!self.attempt.remembered))
    }

    fn captured(&self, capture: &Capture) -> Settlement {
        let about = self.about(self.attempt.evidence, self.spent_unless_remembered());
        Settlement::Captured(Box::new(about.captured(capture)))
    }

    /// Spends one attempt: the job is tried again after the schedule's next delay, unless the
    /// schedule is exhausted or the job has reached its maximum age. During an outage no attempt is
    /// spent.
    fn retry(&self, reply: Option<&LastReply>, class: Class, reason: &str) -> Settlement {
        if self.attempt.outage {
            return self.defer(self.nth(), reply, &ours(class, reason));
        }
        let spent = self.history.attempts.saturating_add(1);
        let carry = History { attempts: spent, deferrals: 0, ..self.carry(reply) };
        let next = usize::try_from(spent).ok().and_then(|n| self.policy.schedule.get(n - 1));
        match next {
            Some(delay) if !self.history.is_older_than(self.policy.max_age, self.now) => {
                Settlement::Retry { delay: *delay, carry }
            }
            _ => self.dead_with(&ours(class, reason), carry),
        }
    }

    /// Spends no attempt: the job is tried again after this delay, unless it has reached its
    /// maximum age.
    fn defer(
        &self,
        delay: Duration,
        reply: Option<&LastReply>,
        at_the_end: &FailureVerdict,
    ) -> Settlement {
        let carry = History { deferrals: self.deferrals(), ..self.carry(reply) };
        if self.history.is_older_than(self.policy.max_age, self.now) {
            return self.dead_with(at_the_end, carry);
        }
        Settlement::Retry { delay, carry }
    }

    /// Publishes the job anew before anything else, whatever its age.
    fn republished(&self) -> Settlement {
        let RetryPolicy { schedule, defer_schedule, .. } = self.policy;
        let smallest = schedule.iter().chain(defer_schedule).min();
        let delay = smallest.copied().unwrap_or(Duration::from_secs(1));
        let carry = History { deferrals: self.deferrals(), ..self.carry(None) };
        Settlement::Retry { delay, carry }
    }

    const fn deferrals(&self) -> u32 {
        self.history.deferrals.saturating_add(1)
    }

    /// The nth deferral waits for the nth delay. The last delay repeats.
    fn nth(&self) -> Duration {
        let delays = &self.policy.defer_schedule;
        let nth = usize::try_from(self.deferrals() - 1).ok().and_then(|n| delays.get(n));
        nth.or_else(|| delays.last()).copied().unwrap_or(Duration::from_secs(1))
    }

    /// The smallest delay that is at least as long as the gateway asks for, or the last if none is.
    fn asked(&self, retry_after: Option<Duration>) -> Duration {
        let Some(asked) = retry_after else { return self.nth() };
        let delays = &self.policy.defer_schedule;
        let delay = delays.iter().find(|delay| **delay >= asked);
        delay.or_else(|| delays.last()).copied().unwrap_or(asked)
    }

    fn dead(&self, verdict: &FailureVerdict, attempts: u32) -> Settlement {
        let reply =
            verdict.code.as_ref().filter(|_| verdict.signed).map(|code| LastReply::new(code, "F"));
        let carry = History { attempts, ..self.carry(reply.as_ref()) };
        self.dead_with(verdict, carry)
    }

    /// A job that may have been sent becomes `in_doubt`, never `unreachable`, `expired` or unsigned
    /// `access`, when it runs out of time.
    fn dead_with(&self, verdict: &FailureVerdict, carry: History) -> Settlement {
        let for_want_of_time = matches!(
            self.attempt.outcome,
            Outcome::NotSent(_) | Outcome::Unauthenticated(_) | Outcome::Deferred(_)
        );
        if for_want_of_time && (carry.sent || self.attempt.sent != SentState::No) {
            let verdict = ours(Class::InDoubt, verdict.message.as_deref().unwrap_or("out of time"));
            return self.dead_letter(&verdict, carry);
        }
        self.dead_letter(verdict, carry)
    }

    fn dead_letter(&self, verdict: &FailureVerdict, carry: History) -> Settlement {
        let class = verdict.class;
        let (code, status) = match (&verdict.code, class, &carry.last_reply) {
            (Some(code), _, _) => (Some(code.clone()), Some("F".to_owned())),
            (None, Class::InDoubt, Some(reply)) => {
                (Some(reply.code.clone()), Some(reply.status.clone()))
            }
            (None, _, _) => (None, verdict.signed.then(|| "F".to_owned())),
        };
        let reason = DeadLetterReason {
            class,
            code,
            status,
            message: verdict.message.clone().unwrap_or_else(|| class.name().to_owned()),
            dead_at_ms: epoch_ms(self.now),
            signed: verdict.signed,
        };
        let is_proven = verdict.signed && class != Class::Conflict;
        let result = self.attempt.subject.capture_request_id.is_some().then(|| {
            let evidence = self.attempt.evidence.filter(|_| is_proven);
            Box::new(self.about(evidence, carry.attempts).given_up(&reason))
        });
        Settlement::Dead { reason: Box::new(reason), carry, result }
    }

    /// What a result reports about the job, whatever the outcome.
    fn about(&self, evidence: Option<Evidence>, attempts: u32) -> ResultSource<'_> {
        let Self { attempt, history, now, .. } = *self;
        ResultSource { subject: &attempt.subject, history, evidence, attempts, now }
    }

    /// The headers of the next message: what the delivery carried, what this attempt adds, and
    /// whether the id may have been sent.
    fn carry(&self, reply: Option<&LastReply>) -> History {
        let may_have_left = matches!(
            self.attempt.outcome,
            Outcome::Captured(_)
                | Outcome::Failed(_)
                | Outcome::FailedWhileLeased(_)
                | Outcome::InDoubt(_)
                | Outcome::Throttled(_)
        );
        History {
            sent: self.attempt.sent == SentState::Yes
                || self.history.sent
                || self.history.redelivered
                || may_have_left,
            redelivered: false,
            last_reply: reply.or(self.history.last_reply.as_ref()).cloned(),
            ..self.history.clone()
        }
    }
}
