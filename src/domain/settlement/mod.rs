//! The one decision between captured, retry and dead letter. It is pure: this module decides, and
//! the broker's code acts.

pub mod refused;
pub mod schedule;

use std::time::Duration;

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::schedule::fit;
use super::{
    capture::{
        class::Class,
        outcome::{Attempt, Capture, Deferral, Evidence, Outcome, Sent, Verdict},
        reply::AcquirerInfo,
    },
    job::{
        Subject,
        history::{History, LastWord},
    },
};

/// When a job is tried again, and when it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
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
        letter: Box<Letter>,
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
            Self::Dead { letter, .. } => Some(letter.class),
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

/// Why a job was given up: the headers of its dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The class, which selects the queue.
    pub class: Class,
    /// The gateway's result code, if there is one.
    pub code: Option<String>,
    /// The gateway's result status, if there is one.
    pub status: Option<String>,
    /// The reason in words.
    pub message: String,
    /// When the job was given up, in epoch milliseconds.
    pub dead_at_ms: i64,
    /// Whether the gateway signed the verdict.
    pub signed: bool,
}

/// The result message for the publisher.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultMessage {
    /// The job that the result is about.
    #[serde(flatten)]
    pub subject: Subject,
    /// Whether the money was captured.
    pub status: ResultStatus,
    /// The class of the dead letter, if the job was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The gateway's result code, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_code: Option<String>,
    /// The gateway's result status, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_status: Option<String>,
    /// The gateway's message, or a reason written by this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_message: Option<String>,
    /// The gateway's id of the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_id: Option<String>,
    /// When the money was captured, as the gateway wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_time: Option<String>,
    /// The acquirer's reference for the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquirer_reference_no: Option<String>,
    /// Further data about the acquirer, as the gateway sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquirer_info: Option<AcquirerInfo>,
    /// What the outcome rests on; absent if nothing proves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// The id that this fresh id replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_capture_request_id: Option<String>,
    /// The first id of the family, which the publisher wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_capture_request_id: Option<String>,
    /// How many attempts were spent.
    pub attempts: u32,
    /// When the delivery was settled, in RFC 3339.
    pub settled_at: String,
}

/// What a publisher may conclude from a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResultStatus {
    /// The money is captured.
    Captured,
    /// The money is not captured, and will not be under this id unless an operator acts.
    Failed,
    /// It is not known whether the money is captured: the publisher must not send a new id for it.
    InDoubt,
}

impl ResultMessage {
    /// The routing key: `captured`, `failed.<class>` or `in_doubt`.
    #[must_use]
    pub fn routing_key(&self) -> String {
        match (self.status, self.class) {
            (ResultStatus::Captured, _) => "captured".into(),
            (ResultStatus::InDoubt, _) => "in_doubt".into(),
            (ResultStatus::Failed, Some(class)) => format!("failed.{class}"),
            (ResultStatus::Failed, None) => "failed".into(),
        }
    }
}

/// Decides what is done with a delivery after its attempt.
#[must_use]
pub fn settle(
    attempt: &Attempt,
    history: &History,
    policy: &Policy,
    now: OffsetDateTime,
) -> Settlement {
    let at = At { attempt, history, policy, now };
    match &attempt.outcome {
        Outcome::Captured(capture) => at.captured(capture),
        Outcome::Failed(verdict) | Outcome::Closed(verdict) => {
            at.dead(verdict, at.spent_unless_remembered())
        }
        Outcome::InDoubt(doubt) => at.retry(doubt.word.as_ref(), Class::InDoubt, &doubt.reason),
        Outcome::NotSent(reason) => at.retry(None, Class::Unreachable, reason),
        Outcome::Throttled(throttle) => {
            let reason = "the gateway refused the call: too many calls";
            let word = throttle.word.as_ref();
            at.defer(at.asked(throttle.retry_after), word, &ours(Class::InDoubt, reason))
        }
        Outcome::Account(verdict) => at.defer(at.nth(), None, verdict),
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
fn ours(class: Class, message: &str) -> Verdict {
    Verdict { class, code: None, message: Some(message.to_owned()), signed: false }
}

/// The facts of one decision.
struct At<'a> {
    attempt: &'a Attempt,
    history: &'a History,
    policy: &'a Policy,
    now: OffsetDateTime,
}

impl At<'_> {
    fn spent_unless_remembered(&self) -> u32 {
        self.history.attempts.saturating_add(u32::from(!self.attempt.remembered))
    }

    fn captured(&self, capture: &Capture) -> Settlement {
        Settlement::Captured(Box::new(ResultMessage {
            result_code: Some(capture.code.clone()),
            result_status: Some("S".into()),
            result_message: capture.message.clone(),
            capture_id: capture.capture_id.clone(),
            capture_time: capture.capture_time.clone(),
            acquirer_reference_no: capture.acquirer_reference_no.clone(),
            acquirer_info: capture.acquirer_info.clone(),
            evidence: self.attempt.evidence,
            ..self.result(ResultStatus::Captured, None, self.spent_unless_remembered())
        }))
    }

    /// Spends one attempt: the job is tried again after the schedule's next delay, unless the
    /// schedule is exhausted or the job has reached its maximum age. During an outage no attempt is
    /// spent.
    fn retry(&self, word: Option<&LastWord>, class: Class, reason: &str) -> Settlement {
        if self.attempt.outage {
            return self.defer(self.nth(), word, &ours(class, reason));
        }
        let spent = self.history.attempts.saturating_add(1);
        let carry = History { attempts: spent, deferrals: 0, ..self.carry(word) };
        let next = usize::try_from(spent).ok().and_then(|n| self.policy.schedule.get(n - 1));
        match next {
            Some(delay) if !self.is_too_old() => Settlement::Retry { delay: *delay, carry },
            _ => self.dead_with(&ours(class, reason), carry),
        }
    }

    /// Spends no attempt: the job is tried again after this delay, unless it has reached its
    /// maximum age.
    fn defer(&self, delay: Duration, word: Option<&LastWord>, at_the_end: &Verdict) -> Settlement {
        let carry = History { deferrals: self.deferrals(), ..self.carry(word) };
        if self.is_too_old() {
            return self.dead_with(at_the_end, carry);
        }
        Settlement::Retry { delay, carry }
    }

    /// Publishes the job anew before anything else, whatever its age.
    fn republished(&self) -> Settlement {
        let Policy { schedule, defer_schedule, .. } = self.policy;
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

    fn dead(&self, verdict: &Verdict, attempts: u32) -> Settlement {
        let word =
            verdict.code.as_ref().filter(|_| verdict.signed).map(|code| LastWord::new(code, "F"));
        let carry = History { attempts, ..self.carry(word.as_ref()) };
        self.dead_with(verdict, carry)
    }

    /// A job that may have been sent becomes `in_doubt`, never `unreachable`, `expired` or unsigned
    /// `access`, when it runs out of time.
    fn dead_with(&self, verdict: &Verdict, carry: History) -> Settlement {
        let for_want_of_time = matches!(
            self.attempt.outcome,
            Outcome::NotSent(_) | Outcome::Account(_) | Outcome::Deferred(_)
        );
        if for_want_of_time && (carry.sent || self.attempt.sent != Sent::No) {
            let verdict = ours(Class::InDoubt, verdict.message.as_deref().unwrap_or("out of time"));
            return self.bury(&verdict, carry);
        }
        self.bury(verdict, carry)
    }

    fn bury(&self, verdict: &Verdict, carry: History) -> Settlement {
        let class = verdict.class;
        let (code, status) = match (&verdict.code, class, &carry.last_word) {
            (Some(code), _, _) => (Some(code.clone()), Some("F".to_owned())),
            (None, Class::InDoubt, Some(word)) => {
                (Some(word.code.clone()), Some(word.status.clone()))
            }
            (None, _, _) => (None, verdict.signed.then(|| "F".to_owned())),
        };
        let letter = Letter {
            class,
            code: code.clone(),
            status: status.clone(),
            message: verdict.message.clone().unwrap_or_else(|| class.name().to_owned()),
            dead_at_ms: epoch_ms(self.now),
            signed: verdict.signed,
        };
        let standing = match class {
            Class::InDoubt | Class::Conflict | Class::Poison => ResultStatus::InDoubt,
            _ => ResultStatus::Failed,
        };
        let is_proven = verdict.signed && class != Class::Conflict;
        let result = self.attempt.subject.capture_request_id.is_some().then(|| {
            Box::new(ResultMessage {
                evidence: self.attempt.evidence.filter(|_| is_proven),
                result_code: code,
                result_status: status,
                result_message: Some(letter.message.clone()),
                ..self.result(standing, Some(class), carry.attempts)
            })
        });
        Settlement::Dead { letter: Box::new(letter), carry, result }
    }

    /// The headers of the next message: what the delivery carried, what this attempt adds, and
    /// whether the id may have been sent.
    fn carry(&self, word: Option<&LastWord>) -> History {
        let may_have_left = matches!(
            self.attempt.outcome,
            Outcome::Captured(_)
                | Outcome::Failed(_)
                | Outcome::Closed(_)
                | Outcome::InDoubt(_)
                | Outcome::Throttled(_)
        );
        History {
            sent: self.attempt.sent == Sent::Yes
                || self.history.sent
                || self.history.redelivered
                || may_have_left,
            redelivered: false,
            last_word: word.or(self.history.last_word.as_ref()).cloned(),
            ..self.history.clone()
        }
    }

    fn result(&self, status: ResultStatus, class: Option<Class>, attempts: u32) -> ResultMessage {
        ResultMessage {
            subject: self.attempt.subject.clone(),
            status,
            class,
            result_code: None,
            result_status: None,
            result_message: None,
            capture_id: None,
            capture_time: None,
            acquirer_reference_no: None,
            acquirer_info: None,
            evidence: None,
            parent_capture_request_id: self.history.parent.clone(),
            origin_capture_request_id: self.history.origin.clone(),
            attempts,
            settled_at: self.now.format(&Rfc3339).unwrap_or_default(),
        }
    }

    fn is_too_old(&self) -> bool {
        let max_age_ms = i64::try_from(self.policy.max_age.as_millis()).unwrap_or(i64::MAX);
        self.history.age_ms(epoch_ms(self.now)) >= max_age_ms
    }
}

/// A time as epoch milliseconds.
#[must_use]
pub fn epoch_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
