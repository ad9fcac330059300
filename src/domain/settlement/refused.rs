//! A result that the broker refused because a subscriber's queue is full. The job waits, and its
//! result is published later.

use std::time::Duration;

use super::{RetryPolicy, Settlement, result::ResultStatus};
use crate::domain::{
    capture::{
        class::Class,
        outcome::{Deferral, FailureVerdict, Outcome},
    },
    job::history::History,
};

/// How often the broker refused the result of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedResult {
    /// How many times in a row.
    pub times: u32,
    /// The failure that the refused result reports, if neither the gateway nor a record in Redis
    /// would report it again. Other subscribers may already have that result, and the publisher may
    /// have sent a new id because of it: this job must not capture any more.
    pub ended: Option<Class>,
}

/// How a job waits after its result was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultWait {
    /// How long the job waits.
    pub delay: Duration,
    /// The headers that the job carries.
    pub carry: History,
    /// What the job carries about its refused result.
    pub refused: RefusedResult,
}

impl RefusedResult {
    /// Reads the values that the job carried. A failure that does not go with them is dropped.
    #[must_use]
    pub fn read(times: u32, ended: Option<Class>) -> Self {
        Self { times, ended: ended.filter(|class| times > 0 && is_of_our_own(*class)) }
    }

    /// Whether the gateway or a record in Redis knows the outcome, and only the result is missing.
    /// Then the result must still be published, however old the job is.
    #[must_use]
    pub const fn outlives_its_age(&self) -> bool {
        self.times > 0 && self.ended.is_none()
    }

    /// How an attempt ends without a call: with the same failure as before, if no request for the
    /// id was sent.
    #[must_use]
    pub fn ends(&self, is_sent: bool, past_expiry: bool) -> Option<Outcome> {
        if is_sent {
            return None;
        }
        Some(match self.ended? {
            Class::Unreachable => {
                Outcome::NotSent("nothing was sent, and the result was refused before".into())
            }
            Class::Access => Outcome::Unauthenticated(FailureVerdict {
                class: Class::Access,
                code: None,
                message: Some("credentials refused, and the result was refused before".into()),
                signed: false,
            }),
            Class::Expired if past_expiry => Outcome::Expired { inquired: false },
            _ => Outcome::Deferred(Deferral::ResultRefused),
        })
    }

    /// How a job waits after its result was refused once more: by the retry schedule, whose last
    /// delay repeats. No attempt is spent. `None`: the settlement has no result.
    #[must_use]
    pub fn wait(
        &self,
        settlement: &Settlement,
        history: &History,
        policy: &RetryPolicy,
    ) -> Option<ResultWait> {
        let (sent, last_reply, ended) = match settlement {
            Settlement::Captured(_) => (true, &history.last_reply, None),
            Settlement::Dead { reason, carry, result: Some(result) } => {
                let is_ours = !reason.signed && is_of_our_own(reason.class);
                let ended =
                    (is_ours && result.status == ResultStatus::Failed).then_some(reason.class);
                let is_unsent = ended.is_some() || reason.class == Class::Malformed;
                (carry.sent || !is_unsent, &carry.last_reply, ended)
            }
            Settlement::Dead { result: None, .. }
            | Settlement::Retry { .. }
            | Settlement::HandBack => return None,
        };
        let nth = usize::try_from(self.times).ok().and_then(|times| policy.schedule.get(times));
        let delay = nth.or_else(|| policy.schedule.last()).copied();
        Some(ResultWait {
            delay: delay.unwrap_or(Duration::from_secs(1)),
            carry: History {
                deferrals: 0,
                last_reply: last_reply.clone(),
                sent,
                redelivered: false,
                ..history.clone()
            },
            refused: Self { times: self.times.saturating_add(1), ended },
        })
    }
}

/// Whether a failure of this class is decided without proof from the gateway.
const fn is_of_our_own(class: Class) -> bool {
    matches!(class, Class::Unreachable | Class::Access | Class::Expired)
}
