//! A lease that this process has acquired.

use std::time::{Duration, Instant};

use super::Claim;
use crate::domain::capture::judge::SentMarker;

/// The lease of a payment, as one acquisition has it.
#[derive(Debug)]
pub struct Lease {
    pub(super) claim: Claim,
    pub(super) marker: Option<SentMarker>,
    pub(super) hold_left_ms: i64,
    pub(super) taken: Instant,
    pub(super) until: Instant,
    /// The generation of the connection on which it was acquired or last renewed.
    pub(super) epoch: Option<u64>,
}

impl Lease {
    /// A lease that was never acquired, with which a claim can be rolled back or recorded.
    pub(super) fn none(claim: &Claim) -> Self {
        let now = Instant::now();
        let claim = claim.clone();
        Self { claim, marker: None, hold_left_ms: -2, taken: now, until: now, epoch: None }
    }

    /// The sent marker that an earlier acquisition wrote, if there is one.
    #[must_use]
    pub const fn marker(&self) -> Option<&SentMarker> {
        self.marker.as_ref()
    }

    /// Whether the id was in doubt when the lease was acquired.
    #[must_use]
    pub const fn is_on_hold(&self) -> bool {
        self.hold_left_ms > 0
    }

    /// Whether the in-doubt block and the sent marker were written together with the lease.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.claim.posts()
    }

    /// The remaining time of the lease, counted from before Redis was asked, so never too long.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// The remaining milliseconds of the in-doubt block that existed before the acquisition;
    /// negative if there was none.
    pub(super) fn hold_left_ms(&self) -> i64 {
        let passed_ms = i64::try_from(self.taken.elapsed().as_millis()).unwrap_or(i64::MAX);
        match self.hold_left_ms {
            left if left > 0 => left.saturating_sub(passed_ms).max(1),
            none => none,
        }
    }
}
