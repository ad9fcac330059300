//! A dead letter, as it lies in the queue of its class.

use std::sync::Arc;

use crate::domain::{
    capture::class::Class,
    job::{Job, Malformed, Subject, history::History},
    money::Money,
};

/// Why the broker itself dead-lettered a job. This says nothing about whether a capture request was
/// sent before: a job that is redelivered after its worker crashed can expire, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerReason {
    /// A TTL of the message or of a policy ended before a worker took the job.
    Expired,
    /// A limit on the queue's length dropped the job.
    MaxLen,
    /// The job was returned to the queue more often than the delivery limit allows.
    DeliveryLimit,
    /// A consumer rejected it. This program never does.
    Rejected,
    /// A reason of a later broker version, as the broker names it.
    Other(String),
}

impl BrokerReason {
    /// Reads the reason from the broker's name for it.
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

    /// The broker's name for the reason.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Other(word) => word,
            known => known.kind(),
        }
    }

    /// The broker's name for the reason, from a fixed set: `other` stands for unknown names.
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

    /// What happened, and what an operator should do about it.
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
                "returned to the queue more often than the delivery limit allows: report a bug"
            }
            Self::Rejected => {
                "rejected by a consumer that is not this program: stop it, then replay"
            }
            Self::Other(_) => {
                "dead-lettered by the broker for a reason that this version does not know"
            }
        }
    }
}

/// What the broker recorded when it dead-lettered a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDeath {
    /// Why the broker dead-lettered it.
    pub reason: BrokerReason,
    /// The queue that the job was in.
    pub queue: String,
}

/// A job that was given up, with the reason in its headers.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The class of the queue that it lies in, whatever its headers say.
    pub class: Class,
    /// The body of the job, byte for byte.
    pub body: Arc<[u8]>,
    /// The parsed job, or why the body is not a job.
    pub job: Result<Job, Box<Malformed>>,
    /// What the job carries from earlier deliveries.
    pub history: History,
    /// The gateway's result code, if there is one.
    pub code: Option<String>,
    /// The gateway's result status, if there is one.
    pub status: Option<String>,
    /// The reason in words, if there is one.
    pub message: Option<String>,
    /// When the job was given up, in epoch milliseconds; `None` if no header says so.
    pub dead_at_ms: Option<i64>,
    /// Whether the gateway signed the verdict.
    pub signed: bool,
    /// What the broker recorded, if it was the broker that dead-lettered the job.
    pub broker_death: Option<BrokerDeath>,
}

impl DeadLetter {
    /// The id, if the body gives it once and it is valid.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match &self.job {
            Ok(job) => Some(&job.capture_request_id),
            Err(malformed) => malformed.subject.capture_request_id.as_deref(),
        }
    }

    /// The payment, if the body gives it once and it is valid.
    #[must_use]
    pub fn payment_id(&self) -> Option<&str> {
        match &self.job {
            Ok(job) => Some(&job.payment_id),
            Err(malformed) => malformed.subject.payment_id.as_deref(),
        }
    }

    /// The amount, if the body gives it once and it is valid.
    #[must_use]
    pub fn amount(&self) -> Option<Money> {
        match &self.job {
            Ok(job) => Some(job.amount),
            Err(malformed) => malformed.subject.capture_amount,
        }
    }

    /// Whether the job lists the goods that its amount pays for. Then its amount can't be lowered.
    #[must_use]
    pub fn has_goods(&self) -> bool {
        self.job.as_ref().is_ok_and(|job| job.forwarded.has_goods())
    }

    /// What a result reports about the job.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match &self.job {
            Ok(job) => job.subject(),
            Err(malformed) => malformed.subject.clone(),
        }
    }

    /// What an operator should do: by the broker's reason if the broker dead-lettered the job,
    /// otherwise by its class.
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

    /// Whether a capture request for its id may have been sent, by its headers or its class.
    #[must_use]
    pub const fn sent(&self) -> bool {
        self.history.sent || matches!(self.class, Class::InDoubt | Class::Poison)
    }
}

/// What an operator should do about a class, before or instead of a replay.
#[must_use]
pub const fn advice(class: Class) -> &'static str {
    match class {
        Class::Authorization => "ask for a new payment, then discard",
        Class::Order => "check the transaction at the gateway",
        Class::Limit => "lower the amount",
        Class::Contract => "have the merchant contract changed",
        Class::Access => "fix the credentials or the gateway setup",
        Class::Request => "fix the publisher",
        Class::Conflict => "an earlier capture with this id exists: inquire, then discard",
        Class::Risk => "inform the payer",
        Class::Payer => "contact the payer",
        Class::Provider => "ask the gateway's support",
        Class::UnknownCode => "map the code to a class in [classes]",
        Class::InDoubt => "wait, then inquire",
        Class::Unreachable => "fix the network",
        Class::Expired => "if the goods still ship, set a new expiresAt",
        Class::Malformed => "fix the publisher",
        Class::Poison => "report a bug",
    }
}
