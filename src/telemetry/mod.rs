//! Logs, metrics, traces, and what the probes say.

mod health;
mod logs;
mod metrics;
mod settled;
pub mod traces;

pub use self::{
    health::Health,
    logs::start,
    metrics::{InFlight, LeaseResult, Metrics, QueueSeen},
    settled::Times,
    traces::Traces,
};
