//! What is known of a job before its attempt: from its headers, and from the broker.

/// The gateway's last word on an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWord {
    /// `resultCode`.
    pub code: String,
    /// `resultStatus`.
    pub status: String,
}

impl LastWord {
    /// A word with this code and status.
    #[must_use]
    pub fn new(code: &str, status: &str) -> Self {
        Self { code: code.to_owned(), status: status.to_owned() }
    }
}

/// What a delivery carries with it from earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Attempts spent.
    pub attempts: u32,
    /// Deferrals in a row since the last attempt.
    pub deferrals: u32,
    /// When a worker first had this job, in epoch milliseconds.
    pub first_seen_ms: i64,
    /// The gateway's last word on this id.
    pub last_word: Option<LastWord>,
    /// The job says that a capture request for its id may have left.
    pub sent: bool,
    /// The broker handed it out before, and nobody knows how far that delivery came.
    pub redelivered: bool,
    /// Replays so far.
    pub replays: u32,
    /// How often the broker had to take this job back, this delivery included.
    pub returns: u32,
    /// A fresh id's parent.
    pub parent: Option<String>,
    /// A fresh id's first forebear: the id that the publisher wrote.
    pub origin: Option<String>,
}

impl History {
    /// How long ago a worker first had this job, in milliseconds.
    #[must_use]
    pub const fn age_ms(&self, now_ms: i64) -> i64 {
        let age = now_ms.saturating_sub(self.first_seen_ms);
        if age < 0 { 0 } else { age }
    }
}
