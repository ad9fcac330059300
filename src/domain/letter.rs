//! A dead letter, as it lies in the queue of its class.

use std::sync::Arc;

use super::{
    class::Class,
    history::History,
    job::{Job, Malformed, Subject},
    money::Money,
    replay::advice,
};

/// Why the broker itself moved a job to the dead letters. It says nothing about whether a capture
/// request had left before: a job that came back from a worker that died can expire too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerReason {
    /// A TTL of the message or of a policy ended before a worker took it.
    Expired,
    /// A limit on the queue's length dropped it.
    MaxLen,
    /// It was returned to the queue more often than the delivery limit allows.
    DeliveryLimit,
    /// A consumer rejected it. This program never does.
    Rejected,
    /// What a later version of the broker may say.
    Other(String),
}

impl BrokerReason {
    /// The reason by the broker's word for it.
    #[must_use]
    pub fn of(word: &str) -> Self {
        match word {
            "expired" => Self::Expired,
            "maxlen" => Self::MaxLen,
            "delivery_limit" => Self::DeliveryLimit,
            "rejected" => Self::Rejected,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The broker's word.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Other(word) => word,
            known => known.kind(),
        }
    }

    /// The word, from a bounded set.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::MaxLen => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            Self::Rejected => "rejected",
            Self::Other(_) => "other",
        }
    }

    /// What happened, and what an operator does about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Expired => {
                "expired by a TTL before a worker took it (again): remove the publisher's \
                 expiration or the policy's message-ttl, then replay"
            }
            Self::MaxLen => {
                "dropped by a length limit: remove max-length with drop-head from the policy, then \
                 replay"
            }
            Self::DeliveryLimit => {
                "returned to the queue more often than its delivery limit: report a bug"
            }
            Self::Rejected => {
                "rejected by a consumer that is not this program: find it, then replay"
            }
            Self::Other(_) => {
                "dead-lettered by the broker for a reason that this version does not know"
            }
        }
    }
}

/// What the broker wrote down when it dead-lettered a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDeath {
    /// Why.
    pub reason: BrokerReason,
    /// Out of which queue: that of jobs.
    pub queue: String,
}

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
    /// Why the broker dead-lettered it, if it was the broker that did.
    pub broker_death: Option<BrokerDeath>,
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

    /// What an operator does about it: by the broker's reason, if there is one, else by its class.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match &self.broker_death {
            Some(death) => death.reason.advice(),
            None => advice(self.class),
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
