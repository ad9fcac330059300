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

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::capture::{
        class::Codes,
        health::{Health, Illness, health},
    },
    gateway::Gateway,
    telemetry::Metrics,
};

/// Failures of fewer payments than this do not open the breaker. Calls that were not sent count
/// separately: their failure can't be due to the payment.
const PAYMENTS_MIN: u32 = 3;
/// How many failed payments are kept for probes.
const FAILED_MAX: usize = 64;
/// How many healthy payments, and how many waiting ones, are kept for probes.
const OTHERS_MAX: usize = 16;
/// The payment id that a probe inquires about when no payment is known to be healthy. All payments
/// that this worker has seen may be faulty themselves, while the jobs behind them are not.
const NO_PAYMENT: &str = "capture-worker-probe";
/// How often a payment must fail while others get normal replies before its failures are ignored.
/// One such failure may be the end of an outage.
const STRIKES_MAX: u8 = 2;
/// How long the failures of such a payment are ignored.
const ILL_FOR: Duration = Duration::from_secs(600);
/// How many payments are tracked for such failures.
const ILL_MAX: usize = 1024;

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

/// The kind of call that a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Capture,
    Inquiry,
}

/// The circuit breaker of one worker.
pub(super) struct Breaker {
    options: BreakerOptions,
    state: Mutex<State>,
    is_open: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

struct State {
    /// Failures since the last normal reply to a capture.
    failures: u32,
    /// How many of these failures were calls that were not sent.
    not_sent: u32,
    /// The payments of the other failures.
    failed: Recent,
    /// Healthy payments: their last call got a normal reply.
    well: Recent,
    /// Payments whose health is unknown: their calls were not sent, or their jobs wait for the
    /// breaker.
    waiting: Recent,
    /// Whether the next probe asks about a waiting payment. Without a healthy payment, every second
    /// probe does.
    asks_waiting: bool,
    /// Payments that failed while others got normal replies: how often, and when last.
    strikes: HashMap<String, (u8, Instant)>,
    /// Whether an inquiry has closed the breaker, so that one more failure opens it again.
    on_trial: bool,
    /// When an inquiry closed the breaker. Reset when a capture gets a normal reply.
    closed_by_probe: Option<Instant>,
    /// The pause before the next probe.
    pause: Duration,
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

impl Breaker {
    pub(super) fn new(options: BreakerOptions, metrics: Arc<Metrics>) -> Self {
        let (is_open, _) = watch::channel(false);
        let state = State {
            failures: 0,
            not_sent: 0,
            failed: Recent::new(FAILED_MAX),
            well: Recent::new(OTHERS_MAX),
            waiting: Recent::new(OTHERS_MAX),
            asks_waiting: false,
            strikes: HashMap::new(),
            on_trial: false,
            closed_by_probe: None,
            pause: options.pause,
        };
        Self { options, state: Mutex::new(state), is_open, metrics }
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
        {
            let mut state = self.lock();
            if !state.failed.contains(payment_id) && !state.well.contains(payment_id) {
                state.waiting.put(payment_id);
            }
        }
        self.closed().await;
    }

    async fn closed(&self) {
        // The sender lives as long as `self`, so the wait ends only when the breaker closes.
        drop(self.watch().wait_for(|open| !open).await);
    }

    /// Records the reply to a call, which may open or close the breaker.
    pub(super) fn heard(&self, call: Call, payment_id: &str, health: &Health) {
        let mut state = self.lock();
        match health {
            Health::Ill(illness, reason) => self.failed(&mut state, payment_id, *illness, reason),
            Health::Well | Health::Throttled(_) => {
                if *health == Health::Well {
                    state.answered(call, payment_id);
                }
                if call == Call::Capture {
                    state.begin_row();
                    state.on_trial = false;
                    state.closed_by_probe = None;
                    state.pause = self.options.pause;
                }
                let by = match call {
                    Call::Capture => ClosedBy::Capture,
                    Call::Inquiry => ClosedBy::Inquiry,
                };
                self.close(&mut state, by);
            }
        }
    }

    fn failed(&self, state: &mut State, payment_id: &str, illness: Illness, reason: &str) {
        if !state.count(payment_id, illness) {
            return;
        }
        let BreakerOptions { failures, pause, max_pause } = self.options;
        let in_a_row = state.failures >= failures && state.sources() >= PAYMENTS_MIN.min(failures);
        // A reply that refuses one request says too little about the next one to end the trial.
        let opens = in_a_row || state.on_trial && illness != Illness::Refused;
        if opens && !self.is_open.send_replace(true) {
            match state.closed_by_probe {
                Some(at) if at.elapsed() <= max_pause => state.double_pause(max_pause),
                Some(_) => state.pause = pause,
                None => {}
            }
            let (failures, payments) = (state.failures, state.sources());
            let pause_ms = state.pause.as_millis();
            self.metrics.breaker(true);
            tracing::error!(
                reason, failures, payments, %pause_ms,
                "circuit breaker opened: captures paused"
            );
        }
    }

    fn close(&self, state: &mut State, by: ClosedBy) {
        if !self.is_open.send_replace(false) {
            return;
        }
        let ill_by_themselves = if by == ClosedBy::AnotherPayment { state.failed.len() } else { 0 };
        if ill_by_themselves > 0 {
            state.strike(STRIKES_MAX);
        }
        state.on_trial = by == ClosedBy::Inquiry;
        state.closed_by_probe = (by != ClosedBy::Capture).then(Instant::now);
        state.begin_row();
        self.metrics.breaker(false);
        tracing::info!(ill_by_themselves, "circuit breaker closed: captures resumed");
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
                Some(Health::Well | Health::Throttled(_)) => None,
                Some(Health::Ill(..)) | None => Some(ask(&other).await),
            };
            self.probed(of_failed.as_ref(), &other, of_other.as_ref());
        }
    }

    /// Records the results of a probe: of a failed payment, then of another payment.
    fn probed(&self, of_failed: Option<&Health>, other: &str, of_other: Option<&Health>) {
        let mut state = self.lock();
        let by = match (of_failed, of_other) {
            // The fault lies with the failed payment only if the gateway was reached, and only if a
            // real payment got a normal reply beside it.
            (Some(Health::Ill(illness, _)), Some(Health::Well))
                if *illness != Illness::NotSent && other != NO_PAYMENT =>
            {
                ClosedBy::AnotherPayment
            }
            (Some(Health::Well | Health::Throttled(_)), _)
            | (_, Some(Health::Well | Health::Throttled(_))) => ClosedBy::Inquiry,
            (Some(Health::Ill(_, reason)), None) | (_, Some(Health::Ill(_, reason))) => {
                tracing::debug!(reason, "circuit breaker probe failed");
                return state.double_pause(self.options.max_pause);
            }
            (None, None) => return,
        };
        self.close(&mut state, by);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a failure. Returns `false` if it is ignored because the fault lies with the payment.
    fn count(&mut self, payment_id: &str, illness: Illness) -> bool {
        if illness == Illness::NotSent {
            self.not_sent = self.not_sent.saturating_add(1);
            self.waiting.put(payment_id);
        } else {
            self.well.remove(payment_id);
            self.waiting.remove(payment_id);
            if self.is_ill(payment_id) {
                return false;
            }
            self.failed.put(payment_id);
        }
        self.failures = self.failures.saturating_add(1);
        true
    }

    /// The payments that the next probe inquires about: a failed one, if any, and another one.
    fn targets(&mut self) -> (Option<String>, String) {
        let asks_waiting = self.asks_waiting;
        let other = match self.well.rotate() {
            Some(payment_id) => Some(payment_id),
            None => {
                self.asks_waiting = !asks_waiting;
                if asks_waiting { self.waiting.rotate() } else { None }
            }
        };
        (self.failed.rotate(), other.unwrap_or_else(|| NO_PAYMENT.to_owned()))
    }

    /// The number of payments that the consecutive failures come from. Each call that was not sent
    /// counts as one, whatever its payment.
    fn sources(&self) -> u32 {
        u32::try_from(self.failed.len()).unwrap_or(u32::MAX).saturating_add(self.not_sent)
    }

    fn answered(&mut self, call: Call, payment_id: &str) {
        if call == Call::Capture {
            self.failed.remove(payment_id);
            self.strikes.remove(payment_id);
            self.strike(1);
        }
        self.waiting.remove(payment_id);
        if !self.failed.contains(payment_id) {
            self.well.put(payment_id);
        }
    }

    /// Records that the recently failed payments failed while others got normal replies.
    fn strike(&mut self, strikes: u8) {
        let now = Instant::now();
        if self.strikes.len() + self.failed.len() > ILL_MAX {
            self.strikes.retain(|_, (_, last)| now.duration_since(*last) < ILL_FOR);
        }
        for payment_id in self.failed.iter() {
            if self.strikes.len() < ILL_MAX || self.strikes.contains_key(payment_id) {
                let (so_far, last) = self.strikes.entry(payment_id.clone()).or_insert((0, now));
                *so_far = so_far.saturating_add(strikes);
                *last = now;
            }
        }
    }

    fn is_ill(&mut self, payment_id: &str) -> bool {
        match self.strikes.get(payment_id) {
            Some((_, last)) if last.elapsed() >= ILL_FOR => {
                self.strikes.remove(payment_id);
                false
            }
            Some((strikes, _)) => *strikes >= STRIKES_MAX,
            None => false,
        }
    }

    fn begin_row(&mut self) {
        self.failures = 0;
        self.not_sent = 0;
        self.failed.clear();
    }

    fn double_pause(&mut self, max_pause: Duration) {
        self.pause = (self.pause * 2).min(max_pause);
    }
}

/// The most recent payments, each once, up to a maximum.
struct Recent {
    payment_ids: VecDeque<String>,
    max: usize,
}

impl Recent {
    const fn new(max: usize) -> Self {
        Self { payment_ids: VecDeque::new(), max }
    }

    fn put(&mut self, payment_id: &str) {
        if self.payment_ids.back().is_some_and(|last| last == payment_id) {
            return;
        }
        self.remove(payment_id);
        if self.payment_ids.len() >= self.max {
            self.payment_ids.pop_front();
        }
        self.payment_ids.push_back(payment_id.to_owned());
    }

    /// Takes the payment at the front and moves it to the back, so that calls rotate through all.
    fn rotate(&mut self) -> Option<String> {
        let payment_id = self.payment_ids.pop_front()?;
        self.payment_ids.push_back(payment_id.clone());
        Some(payment_id)
    }

    fn contains(&self, payment_id: &str) -> bool {
        self.payment_ids.iter().any(|known| known == payment_id)
    }

    fn remove(&mut self, payment_id: &str) {
        self.payment_ids.retain(|known| known != payment_id);
    }

    fn clear(&mut self) {
        self.payment_ids.clear();
    }

    fn len(&self) -> usize {
        self.payment_ids.len()
    }

    fn iter(&self) -> impl Iterator<Item = &String> {
        self.payment_ids.iter()
    }
}

#[cfg(test)]
mod tests;
