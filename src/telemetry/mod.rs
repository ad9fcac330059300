//! Logs, metrics, traces, and the state that the probes report.

mod decisions;
mod in_flight;
mod labels;
mod logs;
mod metrics;
mod probe_state;
pub mod traces;

pub(crate) use self::logs::takes_colour;

pub use self::{
    decisions::DecisionFacts,
    in_flight::JobInFlight,
    labels::LeaseResult,
    logs::start,
    metrics::{Metrics, QueueSeen},
    probe_state::ProbeState,
    traces::TraceExport,
};
