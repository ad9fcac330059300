//! The state that the liveness and readiness probes report.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the main loop may stall before the liveness probe fails. It is longer than opening a
/// broker session may take, so that a slow broker does not get the worker restarted.
const TURNS_WITHIN: Duration = Duration::from_secs(120);

/// The state that the liveness and readiness probes report.
pub struct Health {
    session_open: AtomicBool,
    draining: AtomicBool,
    refused: Mutex<Option<String>>,
    turned: Mutex<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            session_open: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            refused: Mutex::default(),
            turned: Mutex::new(Instant::now()),
        }
    }
}

impl Health {
    /// Records that the broker session opened (`true`) or ended (`false`).
    pub fn session(&self, open: bool) {
        self.session_open.store(open, Ordering::Relaxed);
    }

    /// Records why the broker refuses publishes to an exchange; `None` once it accepts them again.
    pub fn refused(&self, why: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Records that the worker's main loop made progress.
    pub fn turned(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Records that the worker has begun to drain. It is then live, and not ready.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the main loop makes progress. This never depends on broker, Redis or gateway: a
    /// restart would not fix them.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let turned = *self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        self.draining.load(Ordering::Relaxed) || turned.elapsed() < TURNS_WITHIN
    }

    /// Why the worker is not ready, in words for people; `None` if it is. The state of Redis is not
    /// included.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            Some("draining".into())
        } else if !self.session_open.load(Ordering::Relaxed) {
            Some("no broker session".into())
        } else {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }
}
