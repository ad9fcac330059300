//! What the probes say.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the loop may stand still before the liveness probe says so: longer than opening a session may take.
const TURNS_WITHIN: Duration = Duration::from_secs(120);

/// What the probes say.
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
    /// The broker's session opened, or was lost.
    pub fn session(&self, open: bool) {
        self.session_open.store(open, Ordering::Relaxed);
    }

    /// The broker refuses what is published to an exchange, for this reason; or takes it again.
    pub fn refused(&self, why: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The worker's loop turned.
    pub fn turned(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The worker stops.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the loop turns: never a matter of broker, Redis or gateway.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let turned = *self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        self.draining.load(Ordering::Relaxed) || turned.elapsed() < TURNS_WITHIN
    }

    /// Why the worker is not ready, as far as it knows itself.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            Some("draining".into())
        } else if !self.session_open.load(Ordering::Relaxed) {
            Some("no session with the broker".into())
        } else {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }
}
