//! A lease that this process has acquired.

use std::time::{Duration, Instant};

use super::Claim;
use crate::domain::capture::judge::SentMarker;

/// The lease of a payment, as one acquisition has it.
#[derive(Debug)]
pub struct Lease {
    pub(super) claim: Claim,
    pub(super) marker: Option<SentMarker>,
    /// The remaining milliseconds of the in-doubt block that existed before the acquisition.
    pub(super) block_left_ms: Option<i64>,
    pub(super) taken: Instant,
    pub(super) until: Instant,
    /// The generation of the connection on which it was acquired or last renewed.
    pub(super) generation: Option<u64>,
}

impl Lease {
    /// A lease that was never acquired, with which a claim can be rolled back or recorded.
    pub(super) fn none(claim: &Claim) -> Self {
        let now = Instant::now();
        let claim = claim.clone();
        Self { claim, marker: None, block_left_ms: None, taken: now, until: now, generation: None }
    }

    /// The sent marker that an earlier acquisition wrote, if there is one.
    #[must_use]
    pub const fn marker(&self) -> Option<&SentMarker> {
        self.marker.as_ref()
    }

    /// Whether the id was in doubt when the lease was acquired.
    #[must_use]
    pub fn was_in_doubt(&self) -> bool {
        self.block_left_ms.is_some_and(|left| left > 0)
    }

    /// Whether the in-doubt block and the sent marker were written together with the lease.
    #[must_use]
    pub fn is_intent_recorded(&self) -> bool {
        self.claim.posts()
    }

    /// The remaining time of the lease, counted from before Redis was asked, so never too long.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// What remains by now of [`Self::block_left_ms`]; 0 if there was no block.
    pub(super) fn block_left_ms(&self) -> i64 {
        let passed_ms = i64::try_from(self.taken.elapsed().as_millis()).unwrap_or(i64::MAX);
        match self.block_left_ms {
            Some(left) if left > 0 => left.saturating_sub(passed_ms).max(1),
            _ => 0,
        }
    }
}
