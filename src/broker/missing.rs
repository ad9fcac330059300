//! Queues that were deleted by a user or by a policy with `expires`. The messages in them are lost,
//! so each is reported even if the queue is declared again at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a queue counts as missing after it was last found missing. A metrics scrape every
/// minute or two must see it, and a policy that deletes queues every few seconds must not flood the
/// log.
const REMEMBERED: Duration = Duration::from_secs(300);

/// The queues that this process found missing. All its sessions share this record.
#[derive(Clone, Debug, Default)]
pub struct MissingQueues(Arc<Mutex<MissingRecord>>);

#[derive(Debug, Default)]
struct MissingRecord {
    /// Whether the topology was declared once: a queue that is missing later was deleted.
    declared: bool,
    /// When each queue, by name, was last found missing.
    last_missed: BTreeMap<String, Instant>,
}

impl MissingQueues {
    /// Records that a queue does not exist, and logs it unless that was logged lately.
    pub(super) fn report(&self, queue: &str) {
        let was_missing = self.is_missing(queue);
        self.record().last_missed.insert(queue.to_owned(), Instant::now());
        if !was_missing {
            tracing::error!(
                queue,
                "queue not found: any messages in it are lost; look for a policy with `expires` \
                 or for who deleted the queue"
            );
        }
    }

    /// Whether a queue was found missing within the last few minutes.
    pub(super) fn is_missing(&self, queue: &str) -> bool {
        let record = self.record();
        record.last_missed.get(queue).is_some_and(|missed| missed.elapsed() < REMEMBERED)
    }

    /// Records that the whole topology was declared.
    pub(super) fn declared(&self) {
        self.record().declared = true;
    }

    /// Whether this process has declared the whole topology before.
    pub(super) fn was_declared(&self) -> bool {
        self.record().declared
    }

    fn record(&self) -> MutexGuard<'_, MissingRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
