//! What the operations of a lease return.

use super::Lease;
use crate::domain::capture::outcome::{FinalOutcome, Recorded};

/// The result of trying to acquire a lease.
#[derive(Debug)]
pub enum Acquired {
    /// The lease was acquired.
    Taken(Lease),
    /// The id has a recorded outcome: no call is needed.
    Recorded(FinalOutcome),
    /// A fresh id replaced this one, for another amount. This id is never posted again.
    Replaced,
    /// Another capture of the payment is under way.
    Held {
        /// How many workers wait before this one; `None` if it is not in the waiting list.
        position: Option<u32>,
        /// Whether an earlier acquisition wrote a sent marker for this id.
        marked: bool,
    },
    /// Another id of the payment is in doubt, and blocks the payment.
    Blocked {
        /// Whether an earlier acquisition wrote a sent marker for this id.
        marked: bool,
    },
}

/// The result of renewing a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The lease is still ours, for its full time.
    Kept,
    /// The lease is lost: begin no call.
    Lost,
    /// The id has a recorded outcome by now, which the release returns: begin no call.
    Recorded,
}

/// The result of releasing a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Whether the lease was still ours.
    pub kept: bool,
    /// The outcome of the id that was recorded before.
    pub recorded: Option<Recorded>,
}
