//! Logs, metrics, traces, and the state that the probes report.

mod health;
mod logs;
mod metrics;
mod settled;
pub mod traces;

pub(crate) use self::logs::takes_colour;

pub use self::{
    health::Health,
    logs::start,
    metrics::{InFlight, LeaseResult, Metrics, QueueSeen},
    settled::Times,
    traces::Traces,
};
