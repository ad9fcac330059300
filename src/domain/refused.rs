//! A result that the broker refused, because a subscriber's queue is full: the job waits, and tells it later.

use std::time::Duration;

use super::{
    class::Class,
    history::History,
    outcome::{Deferral, Outcome, Verdict},
    settle::{Policy, ResultStatus, Settlement},
};

/// How often the result of a job was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedResult {
    /// In a row.
    pub times: u32,
    /// The failure that it tells, where neither the gateway nor a record would tell it again. Other subscribers may
    /// have that result, and the publisher may have sent a new id for it: this job must not capture any more.
    pub ended: Option<Class>,
}

/// How a job waits whose result was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultWait {
    /// How long.
    pub delay: Duration,
    /// Its headers.
    pub carry: History,
    /// What it carries besides.
    pub refused: RefusedResult,
}

impl RefusedResult {
    /// What was carried on, as far as it makes sense.
    #[must_use]
    pub fn read(times: u32, ended: Option<Class>) -> Self {
        Self { times, ended: ended.filter(|class| times > 0 && is_of_our_own(*class)) }
    }

    /// Whether what became of the job is known to the gateway or by a record, and only its result is missing: then it
    /// must come back to it, however old the job is.
    #[must_use]
    pub const fn outlives_its_age(&self) -> bool {
        self.times > 0 && self.ended.is_none()
    }

    /// How an attempt ends without a call: as before, if no request for the id has left.
    #[must_use]
    pub fn ends(&self, is_sent: bool, past_expiry: bool) -> Option<Outcome> {
        if is_sent {
            return None;
        }
        Some(match self.ended? {
            Class::Unreachable => {
                Outcome::NotSent("nothing was sent, and its result was refused before".into())
            }
            Class::Access => Outcome::Account(Verdict {
                class: Class::Access,
                code: None,
                message: Some("the gateway took no call, and its result was refused before".into()),
                signed: false,
            }),
            Class::Expired if past_expiry => Outcome::Expired { inquired: false },
            _ => Outcome::Deferred(Deferral::ResultRefused),
        })
    }

    /// How a job waits whose result was refused once more: by the schedule of retries, whose last delay repeats. No
    /// attempt is spent. `None`: there is no result.
    #[must_use]
    pub fn wait(
        &self,
        settlement: &Settlement,
        history: &History,
        policy: &Policy,
    ) -> Option<ResultWait> {
        let (sent, last_word, ended) = match settlement {
            Settlement::Captured(_) => (true, &history.last_word, None),
            Settlement::Dead { letter, carry, result: Some(result) } => {
                let is_ours = !letter.signed && is_of_our_own(letter.class);
                let ended =
                    (is_ours && result.status == ResultStatus::Failed).then_some(letter.class);
                let is_unsent = ended.is_some() || letter.class == Class::Malformed;
                (carry.sent || !is_unsent, &carry.last_word, ended)
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
                last_word: last_word.clone(),
                sent,
                redelivered: false,
                ..history.clone()
            },
            refused: Self { times: self.times.saturating_add(1), ended },
        })
    }
}

/// The failures that no reply of the gateway proves.
const fn is_of_our_own(class: Class) -> bool {
    matches!(class, Class::Unreachable | Class::Access | Class::Expired)
}
