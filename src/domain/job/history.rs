//! What is known about a job before its attempt, from its headers and from the broker.

use std::time::Duration;

use time::OffsetDateTime;

use crate::domain::time::epoch_ms;

/// The gateway's last reply about an id: its code and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReply {
    /// `resultCode` of the reply.
    pub code: String,
    /// `resultStatus` of the reply.
    pub status: String,
}

impl LastReply {
    /// A reply with this code and status.
    #[must_use]
    pub fn new(code: &str, status: &str) -> Self {
        Self { code: code.to_owned(), status: status.to_owned() }
    }
}

/// What a delivery carries from earlier deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How many attempts were spent.
    pub attempts: u32,
    /// Deferrals in a row since the last attempt.
    pub deferrals: u32,
    /// When a worker first received this job, in epoch milliseconds.
    pub first_seen_ms: i64,
    /// The gateway's last reply about this id.
    pub last_reply: Option<LastReply>,
    /// Whether the headers say that a capture request for this id may have been sent.
    pub sent: bool,
    /// Whether the broker delivered the job before. It is not known how far that delivery got.
    pub redelivered: bool,
    /// How many times the job was replayed.
    pub replays: u32,
    /// How often the broker had to take this job back, this delivery included.
    pub returns: u32,
    /// The parent of a fresh id: the id that it replaced.
    pub parent: Option<String>,
    /// The first ancestor of a fresh id: the id that the publisher wrote.
    pub origin: Option<String>,
}

impl History {
    /// How long ago a worker first received this job, in milliseconds. It is never negative.
    #[must_use]
    pub const fn age_ms(&self, now_ms: i64) -> i64 {
        let age = now_ms.saturating_sub(self.first_seen_ms);
        if age < 0 { 0 } else { age }
    }

    /// Whether the job has reached the age at which no retry or deferral begins any more.
    #[must_use]
    pub fn is_older_than(&self, max_age: Duration, now: OffsetDateTime) -> bool {
        let max_age_ms = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
        self.age_ms(epoch_ms(now)) >= max_age_ms
    }
}
