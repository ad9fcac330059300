//! The rate limiter of gateway calls. The call rate never exceeds `gateway.rate_limit`, and is
//! reduced while the gateway reports too many calls.
//!
//! A throttling reply halves the call rate, at most once per second. Each second without one
//! shortens the interval between calls by a tenth, until the configured rate is restored.
//! `Retry-After` stops all calls for that time. Calls are evenly spaced, without bursts.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::telemetry::{Metrics, ProbeState};

const SECOND: Duration = Duration::from_secs(1);
/// The longest interval between calls that throttling leads to, unless the configured one is
/// longer.
const INTERVAL_MAX: Duration = SECOND;
/// When the interval falls below this, throttling is over and the configured rate is restored.
const INTERVAL_MIN: Duration = Duration::from_micros(500);
/// The longest `Retry-After` that is honored.
const STOP_MAX: Duration = Duration::from_secs(60);

/// Decides when each call to the gateway may be sent.
pub(super) struct RateLimiter {
    /// The interval between calls by `gateway.rate_limit`; zero without a limit.
    floor: Duration,
    state: Mutex<RateState>,
    metrics: Arc<Metrics>,
    probe_state: Arc<ProbeState>,
}

struct RateState {
    /// The current interval between calls; zero means unlimited.
    interval: Duration,
    /// When the next call may be sent.
    next: Instant,
    /// When the interval last changed.
    changed: Instant,
    /// When the current second of counting began.
    since: Instant,
    /// Calls in the current second and in the one before it: the measured call rate, from which
    /// throttling starts.
    calls: u32,
    calls_before: u32,
}

impl RateLimiter {
    /// A rate limiter for a limit of (calls, period); `None` means unlimited.
    pub(super) fn new(
        limit: Option<(NonZeroU32, Duration)>,
        metrics: Arc<Metrics>,
        probe_state: Arc<ProbeState>,
    ) -> Self {
        let floor = limit.map_or(Duration::ZERO, |(calls, period)| period / calls.get());
        let now = Instant::now();
        let state = RateState {
            interval: floor,
            next: now,
            changed: now,
            since: now,
            calls: 0,
            calls_before: 0,
        };
        let limiter = Self { floor, state: Mutex::new(state), metrics, probe_state };
        limiter.report(per_second(floor));
        limiter
    }

    /// Waits until a call may be sent. Returns `false` at once if that would take longer than
    /// `patience`.
    pub(super) async fn wait(&self, patience: Duration) -> bool {
        let due = {
            let mut state = self.lock();
            let now = Instant::now();
            let due = state.next.max(now);
            if due > now + patience {
                return false;
            }
            state.next = due + state.interval;
            state.count(now);
            due
        };
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        true
    }

    /// Reduces the call rate after the gateway has reported too many calls.
    pub(super) fn throttled(&self, retry_after: Option<Duration>) {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(stop) = retry_after {
            state.next = state.next.max(now + stop.min(STOP_MAX));
        }
        let first = state.interval == self.floor;
        if !first && now < state.changed + SECOND {
            return;
        }
        state.changed = now;
        let as_seen = SECOND / state.calls.max(state.calls_before).max(1);
        state.interval = (state.interval.max(as_seen) * 2).min(INTERVAL_MAX.max(self.floor));
        let calls_per_second = per_second(state.interval);
        self.report(calls_per_second);
        if first {
            tracing::warn!(calls_per_second, "throttled by the gateway: call rate reduced");
        }
    }

    /// Raises the call rate after a reply that did not report too many calls.
    pub(super) fn not_throttled(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.interval == self.floor || now < state.changed + SECOND {
            return;
        }
        state.changed = now;
        state.interval = (state.interval * 9 / 10).max(self.floor);
        if state.interval < INTERVAL_MIN {
            state.interval = self.floor;
        }
        self.report(per_second(state.interval));
        if state.interval == self.floor {
            tracing::info!("call rate restored after throttling");
        }
    }

    fn report(&self, calls_per_second_max: u64) {
        self.metrics.call_rate(calls_per_second_max);
        self.probe_state.set_call_rate(calls_per_second_max);
    }

    fn lock(&self) -> MutexGuard<'_, RateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RateState {
    fn count(&mut self, now: Instant) {
        if now >= self.since + SECOND {
            let is_next = now < self.since + SECOND * 2;
            self.calls_before = if is_next { self.calls } else { 0 };
            self.calls = 0;
            self.since = now;
        }
        self.calls = self.calls.saturating_add(1);
    }
}

/// Calls per second at this interval; 0 if it is zero, which means unlimited.
fn per_second(interval: Duration) -> u64 {
    u64::try_from(SECOND.as_micros().checked_div(interval.as_micros()).unwrap_or(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(limit: Option<(u32, Duration)>) -> RateLimiter {
        let limit = limit.map(|(calls, period)| (NonZeroU32::new(calls).unwrap(), period));
        RateLimiter::new(limit, Arc::default(), Arc::default())
    }

    async fn time_of(limiter: &RateLimiter, calls: u32) -> Duration {
        let begun = Instant::now();
        for _ in 0..calls {
            assert!(limiter.wait(Duration::from_secs(3600)).await);
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_evenly_spaced_under_a_limit_and_unlimited_without() {
        assert_eq!(time_of(&limiter(None), 1000).await, Duration::ZERO);
        let limiter = limiter(Some((100, SECOND)));
        assert_eq!(time_of(&limiter, 101).await, SECOND);
        assert!(limiter.wait(Duration::from_millis(10)).await);
        assert!(!limiter.wait(Duration::ZERO).await, "the next call would have to wait");
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_halves_the_call_rate_and_quiet_seconds_restore_it() {
        let limiter = limiter(None);
        for _ in 0..100 {
            assert!(limiter.wait(SECOND).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // All calls under way get the same throttling reply: together they reduce the rate once.
        for _ in 0..20 {
            limiter.throttled(None);
        }
        assert_eq!(limiter.lock().interval, Duration::from_millis(20));
        tokio::time::sleep(SECOND).await;
        limiter.throttled(Some(Duration::from_secs(3)));
        assert_eq!(limiter.lock().interval, Duration::from_millis(40));
        assert_eq!(time_of(&limiter, 1).await, Duration::from_secs(3));
        for _ in 0..60 {
            limiter.not_throttled();
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(time_of(&limiter, 100).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_call_rate_stays_between_one_per_second_and_the_limit() {
        let limiter = limiter(Some((10, SECOND)));
        for _ in 0..10 {
            limiter.throttled(None);
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(limiter.lock().interval, INTERVAL_MAX);
        for _ in 0..60 {
            limiter.not_throttled();
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(limiter.lock().interval, Duration::from_millis(100));
    }
}
