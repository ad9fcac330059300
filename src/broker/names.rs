//! The names of the exchanges and queues of this program.

use std::time::Duration;

use crate::domain::{capture::class::Class, settlement::schedule::delay_name};

/// The routing key of audit records, with which their queue is bound.
pub(super) const AUDIT_KEY: &str = "audit";

/// The exchanges that this program publishes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// New jobs, replayed jobs, and jobs that return from a wait queue.
    Jobs,
    /// Jobs on their way to a wait queue.
    Wait,
    /// Dead letters, routed by class.
    Dead,
    /// Results, routed by status and class.
    Results,
    /// Records of the acts of operators.
    Audit,
}

impl Exchange {
    /// The name without the prefix (`broker.prefix`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Wait => "wait",
            Self::Dead => "dead",
            Self::Results => "results",
            Self::Audit => "audit",
        }
    }
}

/// The names of exchanges and queues, which all begin with `broker.prefix`.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// The names that begin with this prefix.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The prefix, as `broker.prefix` sets it.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of an exchange, with the prefix.
    #[must_use]
    pub fn exchange(&self, exchange: Exchange) -> String {
        format!("{}.{}", self.prefix, exchange.name())
    }

    /// The name of the exchange of jobs, and of its queue.
    #[must_use]
    pub fn jobs(&self) -> String {
        self.exchange(Exchange::Jobs)
    }

    /// The name of the exchange that routes to the wait queues.
    #[must_use]
    pub fn wait(&self) -> String {
        self.exchange(Exchange::Wait)
    }

    /// The name of the exchange of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        self.exchange(Exchange::Dead)
    }

    /// The name of the exchange of results.
    #[must_use]
    pub fn results(&self) -> String {
        self.exchange(Exchange::Results)
    }

    /// The name of the exchange of audit records, and of its queue.
    #[must_use]
    pub fn audit(&self) -> String {
        self.exchange(Exchange::Audit)
    }

    /// The name of the wait queue with this delay.
    #[must_use]
    pub fn wait_queue(&self, delay: Duration) -> String {
        format!("{}.wait.{}", self.prefix, delay_name(delay))
    }

    /// The name of the dead-letter queue of a class.
    #[must_use]
    pub fn dead_queue(&self, class: Class) -> String {
        format!("{}.dead.{class}", self.prefix)
    }
}
