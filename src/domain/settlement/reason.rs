//! Why a job was given up, as its dead letter says.

use crate::domain::capture::class::Class;

/// Why a job was given up: the headers of its dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterReason {
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
