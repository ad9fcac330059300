//! Queues that are gone: deleted by somebody, or by a policy with `expires`. What lay in them is
//! lost, so it is reported even if the queue is declared again at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// So long a queue counts as missing after it was last found missing: whoever scrapes the metric
/// once in a minute or two must see it, and a policy that deletes all queues every few seconds must
/// not fill the log.
const REMEMBERED: Duration = Duration::from_secs(300);

/// What this process knows of queues that are gone; all its sessions share it.
#[derive(Clone, Debug, Default)]
pub struct Missing(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Everything has been declared once: what does not exist afterwards has vanished.
    declared: bool,
    /// When each queue was last found missing.
    last_missed: BTreeMap<String, Instant>,
}

impl Missing {
    /// Takes down that a queue does not exist, and says so unless it was said lately.
    pub(super) fn report(&self, queue: &str) {
        let was_missing = self.is_missing(queue);
        self.known().last_missed.insert(queue.to_owned(), Instant::now());
        if !was_missing {
            tracing::error!(
                queue,
                "a queue is gone, and whatever lay in it is lost: look for a policy with expires, \
                 and for who may have deleted it"
            );
        }
    }

    /// Whether a queue is missing, or was a few minutes ago.
    pub(super) fn is_missing(&self, queue: &str) -> bool {
        let known = self.known();
        known.last_missed.get(queue).is_some_and(|missed| missed.elapsed() < REMEMBERED)
    }

    /// Everything has been declared.
    pub(super) fn declared(&self) {
        self.known().declared = true;
    }

    /// Whether everything was declared before.
    pub(super) fn was_declared(&self) -> bool {
        self.known().declared
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the broker's refusal of a passive declare says that there is no such queue. It answers
/// 404 too for a queue whose members don't answer, and tells the two apart by text alone.
pub(super) fn is_no_queue(refusal: &str) -> bool {
    refusal.contains("no queue '")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_does_not_answer_is_not_missing() {
        for (refusal, is_missing) in [
            ("NOT_FOUND - no queue 'capture.jobs' in vhost '/'", true),
            ("NOT_FOUND - queue 'capture.jobs' in vhost '/' process is stopped", false),
            ("NOT_FOUND - failed to perform operation on queue 'q' in vhost '/'", false),
        ] {
            assert_eq!(is_no_queue(refusal), is_missing, "{refusal}");
        }
    }
}
