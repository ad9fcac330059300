//! The breaker: when the gateway answers nobody, or does not know us, every job would fail alike. It opens, consumption
//! pauses, and one inquiry at a time looks whether it is over, with growing pauses. Nothing is captured meanwhile.
//!
//! An inquiry may be answered where captures are not. So the breaker that a probe has closed is on trial until a capture is
//! answered: one more failure opens it again, and the next pause is the longer one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        class::Codes,
        judge::{Health, health},
    },
    gateway::Gateway,
    telemetry::Metrics,
};

/// When the breaker opens, and how long it waits between two probes.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// So many failures in a row.
    pub failures: u32,
    /// Before the first probe; twice as long before each one after it.
    pub pause: Duration,
    /// Never longer than this.
    pub max_pause: Duration,
}

/// Which call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Capture,
    Inquiry,
}

/// The breaker of one worker.
pub(super) struct Breaker {
    options: BreakerOptions,
    state: Mutex<State>,
    is_open: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

struct State {
    /// Failures since the last capture that was answered.
    failures: u32,
    on_trial: bool,
    /// Before the next probe.
    pause: Duration,
    /// The payment of the last call that failed: a probe asks about it.
    payment_id: String,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions, metrics: Arc<Metrics>) -> Self {
        let (is_open, _) = watch::channel(false);
        let state =
            State { failures: 0, on_trial: false, pause: options.pause, payment_id: String::new() };
        Self { options, state: Mutex::new(state), is_open, metrics }
    }

    /// Whether nothing is to be captured now.
    pub(super) fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// Whether it is open, and when that changes.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.is_open.subscribe()
    }

    /// Returns when it is closed.
    pub(super) async fn closed(&self) {
        // The sender lives as long as this.
        drop(self.watch().wait_for(|open| !open).await);
    }

    /// Takes note of how a call was answered.
    pub(super) fn heard(&self, call: Call, payment_id: &str, health: &Health) {
        let mut state = self.lock();
        match health {
            Health::Ill(reason) => self.failed(&mut state, payment_id, reason),
            Health::Well | Health::Throttled(_) => {
                if call == Call::Capture {
                    state.failures = 0;
                    state.on_trial = false;
                    state.pause = self.options.pause;
                }
                self.close(&mut state, call);
            }
        }
    }

    fn failed(&self, state: &mut State, payment_id: &str, reason: &str) {
        state.failures = state.failures.saturating_add(1);
        payment_id.clone_into(&mut state.payment_id);
        let opens = state.on_trial || state.failures >= self.options.failures;
        if opens && !self.is_open.send_replace(true) {
            if state.on_trial {
                state.pause = (state.pause * 2).min(self.options.max_pause);
            }
            let (failures, pause_ms) = (state.failures, state.pause.as_millis());
            self.metrics.breaker(true);
            tracing::error!(reason, failures, %pause_ms, "the breaker opens: captures pause");
        }
    }

    fn close(&self, state: &mut State, call: Call) {
        if self.is_open.send_replace(false) {
            state.on_trial = call == Call::Inquiry;
            state.failures = 0;
            self.metrics.breaker(false);
            tracing::info!("the breaker closes: the gateway answers");
        }
    }

    /// Probes whenever it is open, until the token is cancelled.
    pub(super) async fn probe(&self, gateway: &Gateway, codes: &Codes, stop: CancellationToken) {
        let mut open = self.watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                opened = open.wait_for(|open| *open) => if opened.is_err() { return },
            }
            let (pause, payment_id) = {
                let state = self.lock();
                (state.pause.mul_f32(rand::random_range(0.9..1.1)), state.payment_id.clone())
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.closed() => continue,
            }
            let reply = gateway.inquire(&payment_id).await;
            let health = health(&reply, codes);
            if let Health::Ill(reason) = &health {
                tracing::debug!(reason, "a probe failed");
                let mut state = self.lock();
                state.pause = (state.pause * 2).min(self.options.max_pause);
            } else {
                self.heard(Call::Inquiry, &payment_id, &health);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: BreakerOptions = BreakerOptions {
        failures: 3,
        pause: Duration::from_secs(1),
        max_pause: Duration::from_secs(5),
    };

    fn breaker() -> Breaker {
        Breaker::new(OPTIONS, Arc::default())
    }

    fn ill(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.heard(Call::Capture, "p", &Health::Ill("refused".into()));
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row() {
        let breaker = breaker();
        ill(&breaker, 2);
        breaker.heard(Call::Capture, "p", &Health::Well);
        ill(&breaker, 2);
        assert!(!breaker.is_open());
        // An inquiry that is answered says nothing of captures.
        breaker.heard(Call::Inquiry, "p", &Health::Well);
        ill(&breaker, 1);
        assert!(breaker.is_open());
        breaker.heard(Call::Capture, "p", &Health::Throttled(None));
        assert!(!breaker.is_open());
        ill(&breaker, 2);
        assert!(!breaker.is_open());
    }

    #[test]
    fn closed_by_an_inquiry_it_is_on_trial_until_a_capture_is_answered() {
        let breaker = breaker();
        ill(&breaker, 3);
        for pause in [2, 4, 5, 5] {
            breaker.heard(Call::Inquiry, "p", &Health::Well);
            assert!(!breaker.is_open());
            ill(&breaker, 1);
            assert!(breaker.is_open());
            assert_eq!(breaker.lock().pause, Duration::from_secs(pause));
        }
        breaker.heard(Call::Inquiry, "p", &Health::Well);
        breaker.heard(Call::Capture, "p", &Health::Well);
        ill(&breaker, 2);
        assert!(!breaker.is_open());
        assert_eq!(breaker.lock().pause, OPTIONS.pause);
    }
}
