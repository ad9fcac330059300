//! The queues that can be browsed.

use crate::{
    broker::names::{AUDIT_KEY, Exchange, Names},
    domain::capture::class::Class,
};

/// A queue that can be browsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrowsedQueue {
    /// The dead-letter queue of a class.
    DeadLetters(Class),
    /// The queue of audit records.
    Audit,
}

impl BrowsedQueue {
    pub(super) fn queue(self, names: &Names) -> String {
        match self {
            Self::DeadLetters(class) => names.dead_queue(class),
            Self::Audit => names.audit(),
        }
    }

    /// The exchange and the routing key with which the queue is bound.
    pub(super) const fn address(self) -> (Exchange, &'static str) {
        match self {
            Self::DeadLetters(class) => (Exchange::Dead, class.name()),
            Self::Audit => (Exchange::Audit, AUDIT_KEY),
        }
    }
}
