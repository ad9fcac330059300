//! The names of the headers that this program reads and writes.

pub(in crate::broker) const ATTEMPT: &str = "x-capture-attempt";
pub(in crate::broker) const DEFERRALS: &str = "x-capture-deferrals";
pub(in crate::broker) const FIRST_SEEN: &str = "x-capture-first-seen";
pub(in crate::broker) const LAST_CODE: &str = "x-capture-last-code";
pub(in crate::broker) const LAST_STATUS: &str = "x-capture-last-status";
pub(in crate::broker) const SENT: &str = "x-capture-sent";
pub(in crate::broker) const REPLAYS: &str = "x-capture-replays";
pub(in crate::broker) const RETURNS: &str = "x-capture-returns";
pub(in crate::broker) const PARENT: &str = "x-capture-parent";
pub(in crate::broker) const ORIGIN: &str = "x-capture-origin";
pub(in crate::broker) const PRIORITY: &str = "x-capture-priority";
pub(in crate::broker) const REFUSALS: &str = "x-capture-refusals";
pub(in crate::broker) const ENDED: &str = "x-capture-ended";
pub(in crate::broker) const CLASS: &str = "x-capture-class";
pub(in crate::broker) const CODE: &str = "x-capture-code";
pub(in crate::broker) const STATUS: &str = "x-capture-status";
pub(in crate::broker) const MESSAGE: &str = "x-capture-message";
pub(in crate::broker) const DEAD_AT: &str = "x-capture-dead-at";
pub(in crate::broker) const SIGNED: &str = "x-capture-signed";
pub(in crate::broker) const BROKER_REASON: &str = "x-capture-broker-reason";
pub(in crate::broker) const BROKER_QUEUE: &str = "x-capture-broker-queue";
pub(in crate::broker) const DELIVERY_COUNT: &str = "x-delivery-count";

/// The headers of this program: every republish writes them again or leaves them out.
pub(in crate::broker) const OURS: [&str; 21] = [
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
pub(in crate::broker) const ACTED_ON: [&str; 4] = ["CC", "BCC", "x-death", DELIVERY_COUNT];
pub(in crate::broker) const ACTED_ON_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
