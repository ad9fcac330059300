//! The state that the liveness and readiness probes report.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the main loop may stall before the liveness probe fails. It is longer than opening a
/// broker session may take, so that a slow broker does not get the worker restarted.
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);

/// The state that the liveness and readiness probes report. The worker writes it, and the HTTP
/// endpoints read it.
pub struct ProbeState {
    session_open: AtomicBool,
    draining: AtomicBool,
    publish_refusal: Mutex<Option<String>>,
    last_progress: Mutex<Instant>,
    breaker_open: AtomicBool,
    calls_per_second_max: AtomicU64,
}

impl Default for ProbeState {
    fn default() -> Self {
        Self {
            session_open: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            publish_refusal: Mutex::default(),
            last_progress: Mutex::new(Instant::now()),
            breaker_open: AtomicBool::new(false),
            calls_per_second_max: AtomicU64::new(0),
        }
    }
}

impl ProbeState {
    /// Records that the broker session opened (`true`) or ended (`false`).
    pub fn set_session_open(&self, is_open: bool) {
        self.session_open.store(is_open, Ordering::Relaxed);
    }

    /// Records why the broker refuses publishes to an exchange; `None` once it accepts them again.
    pub fn set_publish_refusal(&self, why: Option<String>) {
        *lock(&self.publish_refusal) = why;
    }

    /// Records that the worker's main loop made progress.
    pub fn record_progress(&self) {
        *lock(&self.last_progress) = Instant::now();
    }

    /// Records that the worker has begun to drain. It is then live, and not ready.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Records that the circuit breaker opened (`true`) or closed (`false`).
    pub fn set_breaker_open(&self, is_open: bool) {
        self.breaker_open.store(is_open, Ordering::Relaxed);
    }

    /// Records the current limit of calls per second; 0 means unlimited.
    pub fn set_call_rate(&self, calls_per_second_max: u64) {
        self.calls_per_second_max.store(calls_per_second_max, Ordering::Relaxed);
    }

    /// Whether the main loop makes progress. This never depends on broker, Redis or gateway: a
    /// restart would not fix them.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let last_progress = *lock(&self.last_progress);
        self.draining.load(Ordering::Relaxed) || last_progress.elapsed() < PROGRESS_WITHIN
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
            lock(&self.publish_refusal).clone()
        }
    }

    /// What currently limits calls to the gateway, in words for people.
    #[must_use]
    pub fn call_limits(&self) -> String {
        let breaker = if self.breaker_open.load(Ordering::Relaxed) { "open" } else { "closed" };
        match self.calls_per_second_max.load(Ordering::Relaxed) {
            0 => format!("breaker {breaker}, calls not limited"),
            max => format!("breaker {breaker}, at most {max} calls per second"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
