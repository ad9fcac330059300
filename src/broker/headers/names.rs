//! The names of the headers that this program reads and writes.

pub(super) const ATTEMPT: &str = "x-capture-attempt";
pub(super) const DEFERRALS: &str = "x-capture-deferrals";
pub(super) const FIRST_SEEN: &str = "x-capture-first-seen";
pub(super) const LAST_CODE: &str = "x-capture-last-code";
pub(super) const LAST_STATUS: &str = "x-capture-last-status";
pub(super) const SENT: &str = "x-capture-sent";
pub(super) const REPLAYS: &str = "x-capture-replays";
pub(super) const RETURNS: &str = "x-capture-returns";
pub(super) const PARENT: &str = "x-capture-parent";
pub(super) const ORIGIN: &str = "x-capture-origin";
pub(super) const PRIORITY: &str = "x-capture-priority";
pub(super) const REFUSALS: &str = "x-capture-refusals";
pub(super) const ENDED: &str = "x-capture-ended";
pub(super) const CLASS: &str = "x-capture-class";
pub(super) const CODE: &str = "x-capture-code";
pub(super) const STATUS: &str = "x-capture-status";
pub(super) const MESSAGE: &str = "x-capture-message";
pub(super) const DEAD_AT: &str = "x-capture-dead-at";
pub(super) const SIGNED: &str = "x-capture-signed";
pub(super) const BROKER_REASON: &str = "x-capture-broker-reason";
pub(super) const BROKER_QUEUE: &str = "x-capture-broker-queue";
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";
pub(super) const TRACEPARENT: &str = "traceparent";
pub(super) const TRACESTATE: &str = "tracestate";

/// The headers of this program: every republish writes them again or leaves them out.
pub(super) const OURS: [&str; 21] = [
    ATTEMPT,
    DEFERRALS,
    FIRST_SEEN,
    LAST_CODE,
    LAST_STATUS,
    SENT,
    REPLAYS,
    RETURNS,
    PARENT,
    ORIGIN,
    PRIORITY,
    REFUSALS,
    ENDED,
    CLASS,
    CODE,
    STATUS,
    MESSAGE,
    DEAD_AT,
    SIGNED,
    BROKER_REASON,
    BROKER_QUEUE,
];
/// The headers that the broker acts on: never republished.
pub(super) const ACTED_ON: [&str; 4] = ["CC", "BCC", "x-death", DELIVERY_COUNT];
pub(super) const ACTED_ON_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
