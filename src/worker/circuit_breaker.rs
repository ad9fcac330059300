//! The circuit breaker. When the gateway is unreachable or does not accept our credentials, every
//! job would fail the same way. The breaker then opens: consumption pauses, nothing is captured,
//! and inquiries probe the gateway at growing intervals until it works again.
//!
//! One payment that gets no normal reply is not an outage. Failures therefore open the breaker only
//! if they come from several payments. A probe inquires about a payment that failed and about one
//! that did not, and one normal reply closes the breaker. If only the payment that failed still
//! gets no normal reply, the fault lies with that payment, and its failures are ignored for a
//! while.
//!
//! The gateway may reply to inquiries while captures still fail. A breaker that a probe has closed
//! is therefore on trial until a capture gets a normal reply: one more failure opens it again, and
//! the next pause is twice as long.

mod recent;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub(super) use self::state::CallKind;
use self::state::{BreakerState, NO_PAYMENT, STRIKES_MAX};
use crate::{
    domain::capture::{
        class::Codes,
        health::{FailedReply, GatewayHealth, health},
    },
    gateway::Gateway,
    telemetry::{Metrics, ProbeState},
};

/// Failures of fewer payments than this do not open the breaker. Calls that were not sent count
/// separately: their failure can't be due to the payment.
const PAYMENTS_MIN: u32 = 3;

/// When the breaker opens, and how long it waits between two probes.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// The number of consecutive failures that opens it.
    pub failures: u32,
    /// The pause before the first probe. It doubles after each failed probe.
    pub pause: Duration,
    /// The longest pause between two probes.
    pub max_pause: Duration,
}

/// The circuit breaker of one worker.
pub(super) struct CircuitBreaker {
    options: BreakerOptions,
    state: Mutex<BreakerState>,
    is_open: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    probe_state: Arc<ProbeState>,
}

/// The kind of normal reply that closed the breaker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClosedBy {
    /// A reply to a capture.
    Capture,
    /// A reply to an inquiry.
    Inquiry,
    /// A reply to an inquiry about a payment that had not failed, when an inquiry about a failed
    /// payment had just got no normal reply.
    AnotherPayment,
}

impl CircuitBreaker {
    pub(super) fn new(
        options: BreakerOptions,
        metrics: Arc<Metrics>,
        probe_state: Arc<ProbeState>,
    ) -> Self {
        let (is_open, _) = watch::channel(false);
        let state = Mutex::new(BreakerState::new(options.pause));
        Self { options, state, is_open, metrics, probe_state }
    }

    /// Whether the breaker is open: nothing may be captured.
    pub(super) fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// A receiver of the state: `true` while the breaker is open.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.is_open.subscribe()
    }

    /// Waits until the breaker is closed. Meanwhile, probes may inquire about this payment.
    pub(super) async fn closed_for(&self, payment_id: &str) {
        self.lock().wait(payment_id);
        self.closed().await;
    }

    async fn closed(&self) {
        // The sender lives as long as `self`, so the wait ends only when the breaker closes.
        drop(self.watch().wait_for(|open| !open).await);
    }

    /// Records the reply to a call, which may open or close the breaker.
    pub(super) fn record_reply(&self, call: CallKind, payment_id: &str, health: &GatewayHealth) {
        let mut state = self.lock();
        match health {
            GatewayHealth::Unhealthy(illness, reason) => {
                self.failed(&mut state, payment_id, *illness, reason)
            }
            GatewayHealth::Healthy | GatewayHealth::Throttled(_) => {
                if *health == GatewayHealth::Healthy {
                    state.answered(call, payment_id);
                }
                if call == CallKind::Capture {
                    state.reset_failures();
                    state.on_trial = false;
                    state.closed_by_probe = None;
                    state.pause = self.options.pause;
                }
                let by = match call {
                    CallKind::Capture => ClosedBy::Capture,
                    CallKind::Inquiry => ClosedBy::Inquiry,
                };
                self.close(&mut state, by);
            }
        }
    }

    fn failed(
        &self,
        state: &mut BreakerState,
        payment_id: &str,
        illness: FailedReply,
        reason: &str,
    ) {
        if !state.count(payment_id, illness) {
            return;
        }
        let BreakerOptions { failures, pause, max_pause } = self.options;
        let in_a_row = state.failures >= failures && state.sources() >= PAYMENTS_MIN.min(failures);
        // A reply that refuses one request says too little about the next one to end the trial.
        let opens = in_a_row || state.on_trial && illness != FailedReply::Refused;
        if opens && !self.is_open.send_replace(true) {
            match state.closed_by_probe {
                Some(at) if at.elapsed() <= max_pause => state.double_pause(max_pause),
                Some(_) => state.pause = pause,
                None => {}
            }
            let (failures, payments) = (state.failures, state.sources());
            let pause_ms = state.pause.as_millis();
            self.report(true);
            tracing::error!(
                reason, failures, payments, %pause_ms,
                "circuit breaker opened: captures paused"
            );
        }
    }

    fn close(&self, state: &mut BreakerState, by: ClosedBy) {
        if !self.is_open.send_replace(false) {
            return;
        }
        let faulty_payments = if by == ClosedBy::AnotherPayment { state.failed.len() } else { 0 };
        if faulty_payments > 0 {
            state.strike(STRIKES_MAX);
        }
        state.on_trial = by == ClosedBy::Inquiry;
        state.closed_by_probe = (by != ClosedBy::Capture).then(Instant::now);
        state.reset_failures();
        self.report(false);
        tracing::info!(
            ill_by_themselves = faulty_payments,
            "circuit breaker closed: captures resumed"
        );
    }

    /// Probes the gateway while the breaker is open. Runs until the token is cancelled.
    pub(super) async fn probe(&self, gateway: &Gateway, codes: &Codes, stop: CancellationToken) {
        let mut open = self.watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                opened = open.wait_for(|open| *open) => if opened.is_err() { return },
            }
            let pause = self.lock().pause.mul_f32(rand::random_range(0.9..1.1));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.closed() => continue,
            }
            let (failed, other) = self.lock().targets();
            let ask = async |payment_id: &str| health(&gateway.inquire(payment_id).await, codes);
            let of_failed = match &failed {
                Some(payment_id) => Some(ask(payment_id).await),
                None => None,
            };
            let of_other = match of_failed {
                Some(GatewayHealth::Healthy | GatewayHealth::Throttled(_)) => None,
                Some(GatewayHealth::Unhealthy(..)) | None => Some(ask(&other).await),
            };
            self.record_probe(of_failed.as_ref(), &other, of_other.as_ref());
        }
    }

    /// Records the results of a probe: of a failed payment, then of another payment.
    fn record_probe(
        &self,
        of_failed: Option<&GatewayHealth>,
        other: &str,
        of_other: Option<&GatewayHealth>,
    ) {
        let mut state = self.lock();
        let by = match (of_failed, of_other) {
            // The fault lies with the failed payment only if the gateway was reached, and only if a
            // real payment got a normal reply beside it.
            (Some(GatewayHealth::Unhealthy(illness, _)), Some(GatewayHealth::Healthy))
                if *illness != FailedReply::NotSent && other != NO_PAYMENT =>
            {
                ClosedBy::AnotherPayment
            }
            (Some(GatewayHealth::Healthy | GatewayHealth::Throttled(_)), _)
            | (_, Some(GatewayHealth::Healthy | GatewayHealth::Throttled(_))) => ClosedBy::Inquiry,
            (Some(GatewayHealth::Unhealthy(_, reason)), None)
            | (_, Some(GatewayHealth::Unhealthy(_, reason))) => {
                tracing::debug!(reason, "circuit breaker probe failed");
                return state.double_pause(self.options.max_pause);
            }
            (None, None) => return,
        };
        self.close(&mut state, by);
    }

    fn report(&self, is_open: bool) {
        self.metrics.breaker_changed(is_open);
        self.probe_state.set_breaker_open(is_open);
    }

    fn lock(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
