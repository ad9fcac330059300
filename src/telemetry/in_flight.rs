//! The jobs in flight: how many there are, and how old the oldest one is.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;

/// The jobs in flight of one worker.
#[derive(Default)]
pub(super) struct JobsInFlight {
    count: Gauge,
    creations: Arc<Mutex<Creations>>,
}

/// The creation times of the jobs in flight in epoch milliseconds, oldest first. A sequence number
/// tells jobs of the same millisecond apart.
#[derive(Default)]
struct Creations {
    last_number: u64,
    times: BTreeSet<(i64, u64)>,
}

impl JobsInFlight {
    /// The gauge to register.
    pub(super) fn count(&self) -> Gauge {
        self.count.clone()
    }

    pub(super) fn start(&self, created_ms: i64) -> JobInFlight {
        self.count.inc();
        let mut creations = lock(&self.creations);
        creations.last_number += 1;
        let entry = (created_ms, creations.last_number);
        creations.times.insert(entry);
        JobInFlight { count: self.count.clone(), creations: Arc::clone(&self.creations), entry }
    }

    /// The age of the oldest job, or zero if there is none.
    pub(super) fn oldest_age(&self, now_ms: i64) -> Duration {
        let oldest_ms = lock(&self.creations).times.first().map(|(created_ms, _)| *created_ms);
        let age_ms = oldest_ms.map_or(0, |created_ms| now_ms.saturating_sub(created_ms).max(0));
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }
}

/// Counts one job as in flight until it is dropped.
pub struct JobInFlight {
    count: Gauge,
    creations: Arc<Mutex<Creations>>,
    entry: (i64, u64),
}

impl Drop for JobInFlight {
    fn drop(&mut self) {
        self.count.dec();
        lock(&self.creations).times.remove(&self.entry);
    }
}

fn lock(creations: &Mutex<Creations>) -> MutexGuard<'_, Creations> {
    creations.lock().unwrap_or_else(PoisonError::into_inner)
}
