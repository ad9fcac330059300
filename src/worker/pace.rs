//! The pace of calls: never faster than `gateway.rate_limit`, and slower while the gateway says that it is too fast.
//!
//! A traffic-limit answer halves the pace, at most once a second; each second without one gives a tenth back, until
//! calls are as free as before. `Retry-After` stops all calls for so long. Calls are evenly spaced, without bursts.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::telemetry::Metrics;

const SECOND: Duration = Duration::from_secs(1);
/// The slowest that traffic-limit answers make it: one call in so long.
const INTERVAL_MAX: Duration = SECOND;
/// Faster than this nothing needs to be held back.
const INTERVAL_MIN: Duration = Duration::from_micros(500);
/// What `Retry-After` may ask for at most.
const STOP_MAX: Duration = Duration::from_secs(60);

/// When calls may leave.
pub(super) struct Pace {
    /// The interval of `gateway.rate_limit`; zero without one.
    floor: Duration,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

struct State {
    /// Between two calls; zero: as they come.
    interval: Duration,
    /// When the next call may leave.
    next: Instant,
    /// When the pace changed last.
    changed: Instant,
    /// Calls since, and in the second before, to know how fast we are.
    since: Instant,
    calls: u32,
    calls_before: u32,
}

impl Pace {
    /// At most so many calls in such a time.
    pub(super) fn new(limit: Option<(NonZeroU32, Duration)>, metrics: Arc<Metrics>) -> Self {
        let floor = limit.map_or(Duration::ZERO, |(calls, period)| period / calls.get());
        let now = Instant::now();
        let state = State {
            interval: floor,
            next: now,
            changed: now,
            since: now,
            calls: 0,
            calls_before: 0,
        };
        let pace = Self { floor, state: Mutex::new(state), metrics };
        pace.metrics.pace(per_second(floor));
        pace
    }

    /// Waits until a call may leave; at once `false` if that would take longer than `patience`.
    pub(super) async fn slot(&self, patience: Duration) -> bool {
        let slot = {
            let mut state = self.lock();
            let now = Instant::now();
            let slot = state.next.max(now);
            if slot > now + patience {
                return false;
            }
            state.next = slot + state.interval;
            state.count(now);
            slot
        };
        if slot > Instant::now() {
            tokio::time::sleep_until(slot).await;
        }
        true
    }

    /// The gateway says: too many calls.
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
        self.metrics.pace(calls_per_second);
        if first {
            tracing::warn!(calls_per_second, "too many calls for the gateway: slower");
        }
    }

    /// A call was answered, and not for being one too many.
    pub(super) fn went_well(&self) {
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
        self.metrics.pace(per_second(state.interval));
        if state.interval == self.floor {
            tracing::info!("calls are as fast again as before");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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

/// Calls a second at this interval; 0 if they are free.
fn per_second(interval: Duration) -> u64 {
    u64::try_from(SECOND.as_micros().checked_div(interval.as_micros()).unwrap_or(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(limit: Option<(u32, Duration)>) -> Pace {
        let limit = limit.map(|(calls, period)| (NonZeroU32::new(calls).unwrap(), period));
        Pace::new(limit, Arc::default())
    }

    async fn time_of(pace: &Pace, calls: u32) -> Duration {
        let begun = Instant::now();
        for _ in 0..calls {
            assert!(pace.slot(Duration::from_secs(3600)).await);
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_evenly_spaced_under_a_limit_and_free_without_one() {
        assert_eq!(time_of(&pace(None), 1000).await, Duration::ZERO);
        let pace = pace(Some((100, SECOND)));
        assert_eq!(time_of(&pace, 101).await, SECOND);
        assert!(pace.slot(Duration::from_millis(10)).await);
        assert!(!pace.slot(Duration::ZERO).await, "no patience");
    }

    #[tokio::test(start_paused = true)]
    async fn a_traffic_limit_halves_the_pace_and_seconds_without_one_give_it_back() {
        let pace = pace(None);
        for _ in 0..100 {
            assert!(pace.slot(SECOND).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Many calls under way are told the same: that counts once.
        for _ in 0..20 {
            pace.throttled(None);
        }
        assert_eq!(pace.lock().interval, Duration::from_millis(20));
        tokio::time::sleep(SECOND).await;
        pace.throttled(Some(Duration::from_secs(3)));
        assert_eq!(pace.lock().interval, Duration::from_millis(40));
        assert_eq!(time_of(&pace, 1).await, Duration::from_secs(3));
        for _ in 0..60 {
            pace.went_well();
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(time_of(&pace, 100).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_becomes_slower_than_a_call_a_second_nor_faster_than_the_limit() {
        let pace = pace(Some((10, SECOND)));
        for _ in 0..10 {
            pace.throttled(None);
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(pace.lock().interval, INTERVAL_MAX);
        for _ in 0..60 {
            pace.went_well();
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(pace.lock().interval, Duration::from_millis(100));
    }
}
