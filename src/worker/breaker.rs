//! The breaker: when the gateway answers nobody, or does not know us, every job would fail alike. It
//! opens, consumption pauses, and inquiries probe, with growing pauses, whether it is over. Nothing is
//! captured meanwhile.
//!
//! One payment that gets no normal answer is no outage. So failures open the breaker only if they come
//! from several payments, and a probe asks about a payment that failed and about one that did not: one
//! normal answer closes it. A payment that fails while others are answered is then ill by itself, and
//! its failures count no more for a while.
//!
//! An inquiry may be answered where captures are not. So the breaker that a probe has closed is on trial
//! until a capture is answered: one more failure opens it again, and the next pause is the longer one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        class::Codes,
        health::{Health, Illness, health},
    },
    gateway::Gateway,
    telemetry::Metrics,
};

/// Failures of fewer payments than this do not open the breaker, unless they were not sent.
const PAYMENTS_MIN: u32 = 3;
/// How many payments that failed are kept for probes.
const FAILED_MAX: usize = 64;
/// How many other payments are kept for probes, of those that were answered and of those that wait.
const OTHERS_MAX: usize = 16;
/// A probe asks about this where no payment is known to have been answered: all payments that this
/// worker has seen so far may be ill by themselves, while jobs behind them are not.
const NO_PAYMENT: &str = "capture-worker-probe";
/// So often a payment fails while others are answered until it counts as ill by itself: once may be the
/// end of an outage.
const STRIKES_MAX: u8 = 2;
/// How long the failures of such a payment do not count.
const ILL_FOR: Duration = Duration::from_secs(600);
/// How many such payments are kept.
const ILL_MAX: usize = 1024;

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
    /// How many of them were not sent.
    not_sent: u32,
    /// The payments of the others.
    failed: Recent,
    /// Payments that were answered.
    well: Recent,
    /// Payments of which nothing is known: their calls were not sent, or their jobs wait in hand.
    waiting: Recent,
    /// Where no payment was answered, every second probe asks about one that waits.
    asks_waiting: bool,
    /// Payments that failed while others were answered: how often, and when last.
    strikes: HashMap<String, (u8, Instant)>,
    /// An inquiry has closed the breaker, and one more failure opens it again.
    on_trial: bool,
    /// When an inquiry has closed the breaker, until a capture is answered.
    closed_by_probe: Option<Instant>,
    /// Before the next probe.
    pause: Duration,
}

/// Which normal answer has closed the breaker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClosedBy {
    /// One to a capture.
    Capture,
    /// One to an inquiry.
    Inquiry,
    /// One to an inquiry about a payment that had not failed, just after one about a payment that had
    /// failed got none.
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

    /// Whether nothing is to be captured now.
    pub(super) fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// Whether it is open, and when that changes.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.is_open.subscribe()
    }

    /// Returns when it is closed. Probes may ask about the payment that waits for that.
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
        // The sender lives as long as this.
        drop(self.watch().wait_for(|open| !open).await);
    }

    /// Takes note of how a call was answered.
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
        // What refuses one request says too little of the next one.
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
                "the breaker opens: captures pause"
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
        tracing::info!(ill_by_themselves, "the breaker closes: the gateway answers");
    }

    /// Probes whenever it is open, until the token is cancelled.
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

    /// Takes note of what a probe came to: of a payment that failed, then of another one.
    fn probed(&self, of_failed: Option<&Health>, other: &str, of_other: Option<&Health>) {
        let mut state = self.lock();
        let by = match (of_failed, of_other) {
            // That the payment itself is ill shows only if the gateway was reached, and only beside a real payment.
            (Some(Health::Ill(illness, _)), Some(Health::Well))
                if *illness != Illness::NotSent && other != NO_PAYMENT =>
            {
                ClosedBy::AnotherPayment
            }
            (Some(Health::Well | Health::Throttled(_)), _)
            | (_, Some(Health::Well | Health::Throttled(_))) => ClosedBy::Inquiry,
            (Some(Health::Ill(_, reason)), None) | (_, Some(Health::Ill(_, reason))) => {
                tracing::debug!(reason, "a probe failed");
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
    /// Counts a failure. `false`: it is one of a payment that is ill by itself.
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

    /// About which payments a probe asks: one that failed, and another one.
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

    /// From how many payments the failures in a row come. What was not sent counts whatever its payment.
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

    /// The payments that failed lately did so while others were answered.
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

/// The payments that came last, each once.
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

    /// The one whose turn it is, which then comes last.
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
