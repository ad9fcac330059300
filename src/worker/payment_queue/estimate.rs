//! When a payment queue is expected to be empty, so that a job which finds it full is deferred for
//! about that long.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::domain::settlement::schedule::fit;

/// The assumed time that a job has the slot, before one was measured. Too short is better than too
/// long: a job that comes back too early is only deferred again, but while all jobs are deferred
/// for too long, nothing is captured.
const SLOT_TIME_FIRST: Duration = Duration::from_millis(10);
/// How late a deferred job may come back: RabbitMQ does not expire messages at the exact time.
/// Deferrals are shortened by this.
const LATENESS: Duration = Duration::from_millis(100);
/// The resolution at which the return times of deferred jobs are counted.
const TICK: Duration = Duration::from_millis(10);

/// What is known about the time that the queue of one payment needs. Times are counted from when
/// the worker began.
#[derive(Default)]
pub(super) struct Estimate {
    /// How many deferred jobs come back at which time, in ticks.
    deferred: BTreeMap<u32, u32>,
    /// The moving average of the time that a job has the slot.
    pub(super) slot_time: Option<Duration>,
    /// When a job last passed the slot on. `None` while no job has it.
    slot_passed: Option<Instant>,
}

impl Estimate {
    /// The time until the queue is expected to be empty if this many jobs wait in it. Counts one
    /// more job that is deferred until then, by one of these delays.
    pub(super) fn defer(&mut self, waiting: usize, delays: &[Duration], now: Duration) -> Duration {
        self.drop_returned(now);
        let wait = self.empty_in(waiting, now).saturating_sub(LATENESS);
        let jobs = self.deferred.entry(ticks(now + fit(delays, wait))).or_default();
        *jobs = jobs.saturating_add(1);
        wait
    }

    /// Whether deferred jobs are still to come back.
    pub(super) fn expects_jobs(&mut self, now: Duration) -> bool {
        self.drop_returned(now);
        !self.deferred.is_empty()
    }

    /// Updates the moving average of the time that a job has the slot. The new value weighs an
    /// eighth.
    pub(super) fn slot_passed(&mut self, now: Instant) {
        if let Some(before) = self.slot_passed.replace(now) {
            let took = now.duration_since(before);
            self.slot_time = Some(self.slot_time.map_or(took, |so_far| (so_far * 7 + took) / 8));
        }
    }

    /// Records that no job has the slot. The time until one takes it must not be measured.
    pub(super) const fn slot_freed(&mut self) {
        self.slot_passed = None;
    }

    fn drop_returned(&mut self, now: Duration) {
        self.deferred = self.deferred.split_off(&ticks(now));
    }

    /// The expected time for the waiting jobs, and for the deferred jobs that come back before
    /// those have ended.
    fn empty_in(&self, waiting: usize, now: Duration) -> Duration {
        let time_of = |jobs: u32| self.slot_time.unwrap_or(SLOT_TIME_FIRST).saturating_mul(jobs);
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let mut empty_at = now + time_of(waiting.saturating_add(1));
        for (back, jobs) in &self.deferred {
            if *back > ticks(empty_at) {
                break;
            }
            empty_at += time_of(*jobs);
        }
        empty_at.saturating_sub(now)
    }
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}
