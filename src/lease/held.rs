//! A lease in hand.

use std::time::{Duration, Instant};

use super::Claim;
use crate::domain::judge::SentMarker;

/// The lease of a payment, in the hands of one acquisition.
#[derive(Debug)]
pub struct Lease {
    pub(super) claim: Claim,
    pub(super) marker: Option<SentMarker>,
    pub(super) hold_left_ms: i64,
    pub(super) taken: Instant,
    pub(super) until: Instant,
    /// The connection that it was taken or renewed by.
    pub(super) epoch: Option<u64>,
}

impl Lease {
    /// What was never taken, to release what belongs to a claim.
    pub(super) fn none(claim: &Claim) -> Self {
        let now = Instant::now();
        let claim = claim.clone();
        Self { claim, marker: None, hold_left_ms: -2, taken: now, until: now, epoch: None }
    }

    /// The sent marker that an earlier acquisition left, if there is one.
    #[must_use]
    pub const fn marker(&self) -> Option<&SentMarker> {
        self.marker.as_ref()
    }

    /// Whether the id was in doubt when the lease was taken.
    #[must_use]
    pub const fn is_on_hold(&self) -> bool {
        self.hold_left_ms > 0
    }

    /// Whether hold and mark were written when it was taken.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.claim.posts()
    }

    /// How much of the lease is left, counted from before it was asked for.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// What is left by now of the hold that was there before.
    pub(super) fn hold_left_ms(&self) -> i64 {
        let passed_ms = i64::try_from(self.taken.elapsed().as_millis()).unwrap_or(i64::MAX);
        match self.hold_left_ms {
            left if left > 0 => left.saturating_sub(passed_ms).max(1),
            none => none,
        }
    }
}
