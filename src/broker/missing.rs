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
pub struct Missing(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Whether the topology was declared once: a queue that is missing later was deleted.
    declared: bool,
    /// When each queue, by name, was last found missing.
    last_missed: BTreeMap<String, Instant>,
}

impl Missing {
    /// Records that a queue does not exist, and logs it unless that was logged lately.
    pub(super) fn report(&self, queue: &str) {
        let was_missing = self.is_missing(queue);
        self.known().last_missed.insert(queue.to_owned(), Instant::now());
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
        let known = self.known();
        known.last_missed.get(queue).is_some_and(|missed| missed.elapsed() < REMEMBERED)
    }

    /// Records that the whole topology was declared.
    pub(super) fn declared(&self) {
        self.known().declared = true;
    }

    /// Whether this process has declared the whole topology before.
    pub(super) fn was_declared(&self) -> bool {
        self.known().declared
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the broker refused a passive declare because the queue does not exist. It also responds
/// with 404 for a queue whose members don't respond, and only the text tells the two apart.
pub(super) fn is_no_queue(refusal: &str) -> bool {
    refusal.contains("no queue '")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_does_not_respond_is_not_missing() {
        for (refusal, is_missing) in [
            ("NOT_FOUND - no queue 'capture.jobs' in vhost '/'", true),
            ("NOT_FOUND - queue 'capture.jobs' in vhost '/' process is stopped", false),
            ("NOT_FOUND - failed to perform operation on queue 'q' in vhost '/'", false),
        ] {
            assert_eq!(is_no_queue(refusal), is_missing, "{refusal}");
        }
    }
}
