//! A dead letter, as it lies in the queue of its class.

use std::sync::Arc;

use super::{
    class::Class,
    history::History,
    job::{Job, Malformed, Subject},
    money::Money,
};

/// A job that was given up, and what is written on it about why.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The class of the queue that it lies in, whatever its headers say.
    pub class: Class,
    /// The job, byte for byte.
    pub body: Arc<[u8]>,
    /// The job, read.
    pub job: Result<Job, Box<Malformed>>,
    /// What it carries with it from earlier deliveries.
    pub history: History,
    /// The gateway's code, if there is one.
    pub code: Option<String>,
    /// The gateway's status, if there is one.
    pub status: Option<String>,
    /// Why, for people.
    pub message: Option<String>,
    /// When it was given up, in epoch milliseconds; `None` if nobody wrote it down.
    pub dead_at_ms: Option<i64>,
    /// Whether the gateway signed the verdict.
    pub signed: bool,
}

impl DeadLetter {
    /// Its id, where it can be read once and is valid.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match &self.job {
            Ok(job) => Some(&job.capture_request_id),
            Err(malformed) => malformed.subject.capture_request_id.as_deref(),
        }
    }

    /// Its payment, likewise.
    #[must_use]
    pub fn payment_id(&self) -> Option<&str> {
        match &self.job {
            Ok(job) => Some(&job.payment_id),
            Err(malformed) => malformed.subject.payment_id.as_deref(),
        }
    }

    /// Its amount, likewise.
    #[must_use]
    pub fn amount(&self) -> Option<Money> {
        match &self.job {
            Ok(job) => Some(job.amount),
            Err(malformed) => malformed.subject.capture_amount,
        }
    }

    /// Whether it says what its amount pays for: then its amount can't be lowered.
    #[must_use]
    pub fn has_goods(&self) -> bool {
        self.job.as_ref().is_ok_and(|job| job.forwarded.has_goods())
    }

    /// What a result says about it.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match &self.job {
            Ok(job) => job.subject(),
            Err(malformed) => malformed.subject.clone(),
        }
    }

    /// How long ago it was given up, in milliseconds.
    #[must_use]
    pub fn age_ms(&self, now_ms: i64) -> Option<i64> {
        self.dead_at_ms.map(|dead_at_ms| now_ms.saturating_sub(dead_at_ms).max(0))
    }

    /// Whether a capture request for its id may have left: what its headers say, or its class.
    #[must_use]
    pub const fn sent(&self) -> bool {
        self.history.sent || matches!(self.class, Class::InDoubt | Class::Poison)
    }
}
