//! What the circuit breaker counts and remembers: failures, and the payments that they belong to.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::recent::RecentPayments;
use crate::domain::capture::health::FailedReply;

/// How many failed payments are kept for probes.
const FAILED_MAX: usize = 64;
/// How many healthy payments, and how many waiting ones, are kept for probes.
const OTHERS_MAX: usize = 16;
/// The payment id that a probe inquires about when no payment is known to be healthy. All payments
/// that this worker has seen may be faulty themselves, while the jobs behind them are not.
pub(super) const NO_PAYMENT: &str = "capture-worker-probe";
/// How often a payment must fail while others get normal replies before its failures are ignored.
/// One such failure may be the end of an outage.
pub(super) const STRIKES_MAX: u8 = 2;
/// How long the failures of such a payment are ignored.
const IGNORED_FOR: Duration = Duration::from_secs(600);
/// How many payments are tracked for such failures.
const TRACKED_MAX: usize = 1024;

/// The kind of call that a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum CallKind {
    Capture,
    Inquiry,
}

impl CallKind {
    /// The name in metrics and traces.
    pub(in crate::worker) const fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Inquiry => "inquiry",
        }
    }
}

/// The counts and the memory of a circuit breaker. Whether it is open is not kept here.
pub(super) struct BreakerState {
    /// Failures since the last normal reply to a capture.
    pub(super) failures: u32,
    /// How many of these failures were calls that were not sent.
    not_sent: u32,
    /// The payments of the other failures.
    pub(super) failed: RecentPayments,
    /// Healthy payments: their last call got a normal reply.
    healthy: RecentPayments,
    /// Payments whose health is unknown: their calls were not sent, or their jobs wait for the
    /// breaker.
    waiting: RecentPayments,
    /// Whether the next probe asks about a waiting payment. Without a healthy payment, every second
    /// probe does.
    asks_waiting: bool,
    /// Payments that failed while others got normal replies: how often, and when last.
    strikes: HashMap<String, (u8, Instant)>,
    /// Whether an inquiry has closed the breaker, so that one more failure opens it again.
    pub(super) on_trial: bool,
    /// When an inquiry closed the breaker. Reset when a capture gets a normal reply.
    pub(super) closed_by_probe: Option<Instant>,
    /// The pause before the next probe.
    pub(super) pause: Duration,
}

impl BreakerState {
    pub(super) fn new(pause: Duration) -> Self {
        Self {
            failures: 0,
            not_sent: 0,
            failed: RecentPayments::new(FAILED_MAX),
            healthy: RecentPayments::new(OTHERS_MAX),
            waiting: RecentPayments::new(OTHERS_MAX),
            asks_waiting: false,
            strikes: HashMap::new(),
            on_trial: false,
            closed_by_probe: None,
            pause,
        }
    }

    /// Counts a failure. Returns `false` if it is ignored because the fault lies with the payment.
    pub(super) fn count(&mut self, payment_id: &str, illness: FailedReply) -> bool {
        if illness == FailedReply::NotSent {
            self.not_sent = self.not_sent.saturating_add(1);
            self.waiting.put(payment_id);
        } else {
            self.healthy.remove(payment_id);
            self.waiting.remove(payment_id);
            if self.is_ignored(payment_id) {
                return false;
            }
            self.failed.put(payment_id);
        }
        self.failures = self.failures.saturating_add(1);
        true
    }

    /// Records that a job of this payment waits for the breaker, so that probes may ask about it.
    pub(super) fn wait(&mut self, payment_id: &str) {
        if !self.failed.contains(payment_id) && !self.healthy.contains(payment_id) {
            self.waiting.put(payment_id);
        }
    }

    /// The payments that the next probe inquires about: a failed one, if any, and another one.
    pub(super) fn targets(&mut self) -> (Option<String>, String) {
        let asks_waiting = self.asks_waiting;
        let other = match self.healthy.rotate() {
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
    pub(super) fn sources(&self) -> u32 {
        u32::try_from(self.failed.len()).unwrap_or(u32::MAX).saturating_add(self.not_sent)
    }

    /// Records that a call about this payment got a normal reply.
    pub(super) fn answered(&mut self, call: CallKind, payment_id: &str) {
        if call == CallKind::Capture {
            self.failed.remove(payment_id);
            self.strikes.remove(payment_id);
            self.strike(1);
        }
        self.waiting.remove(payment_id);
        if !self.failed.contains(payment_id) {
            self.healthy.put(payment_id);
        }
    }

    /// Records that the recently failed payments failed while others got normal replies.
    pub(super) fn strike(&mut self, strikes: u8) {
        let now = Instant::now();
        if self.strikes.len() + self.failed.len() > TRACKED_MAX {
            self.strikes.retain(|_, (_, last)| now.duration_since(*last) < IGNORED_FOR);
        }
        for payment_id in self.failed.iter() {
            if self.strikes.len() < TRACKED_MAX || self.strikes.contains_key(payment_id) {
                let (so_far, last) = self.strikes.entry(payment_id.clone()).or_insert((0, now));
                *so_far = so_far.saturating_add(strikes);
                *last = now;
            }
        }
    }

    fn is_ignored(&mut self, payment_id: &str) -> bool {
        match self.strikes.get(payment_id) {
            Some((_, last)) if last.elapsed() >= IGNORED_FOR => {
                self.strikes.remove(payment_id);
                false
            }
            Some((strikes, _)) => *strikes >= STRIKES_MAX,
            None => false,
        }
    }

    /// Begins to count consecutive failures anew.
    pub(super) fn reset_failures(&mut self) {
        self.failures = 0;
        self.not_sent = 0;
        self.failed.clear();
    }

    pub(super) fn double_pause(&mut self, max_pause: Duration) {
        self.pause = (self.pause * 2).min(max_pause);
    }
}
