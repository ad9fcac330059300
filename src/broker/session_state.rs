//! The state of a session, which its tasks share: whether it is lost, and whether the broker blocks
//! publishing.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

/// A handle of the state of one session. It is cheap to clone.
#[derive(Clone, Default)]
pub(super) struct SessionState {
    lost: CancellationToken,
    blocked: Arc<AtomicBool>,
}

impl SessionState {
    /// Returns when the session is lost or closed.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Records whether the broker blocks publishing, and logs a change.
    pub(super) fn set_blocked(&self, blocked: bool) {
        if self.blocked.swap(blocked, Ordering::Relaxed) == blocked {
            return;
        }
        if blocked {
            tracing::warn!(blocked, "broker blocked publishing");
        } else {
            tracing::warn!(blocked, "broker unblocked publishing");
        }
    }

    /// Marks the session as lost, and logs the reason the first time.
    pub(super) fn end(&self, reason: &str) {
        if !self.is_lost() {
            tracing::warn!(reason, "broker session lost: unacked jobs are redelivered");
            self.lost.cancel();
        }
    }

    /// Ends the session on purpose, which is not logged.
    pub(super) fn close(&self) {
        self.lost.cancel();
    }
}
