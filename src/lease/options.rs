//! What the process that acquires leases chooses.

use std::time::Duration;

/// Who acquires leases. It decides what happens when Redis may have lost leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A worker waits until all calls under way have ended, then records the new server.
    Worker,
    /// A command never records a server, and acquires no lease unless a worker has recorded it.
    Command,
}

/// The times to live of leases and of what they leave behind in Redis.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// A lease that is not released.
    pub ttl: Duration,
    /// The in-doubt block, counted from the last time that the id was sent
    /// (`lease.hold_in_doubt`).
    pub in_doubt_block: Duration,
    /// A recorded outcome, and a sent marker.
    pub remember: Duration,
    /// The longest duration of a capture call. When Redis may have lost leases, no lease is
    /// acquired for this time.
    pub longest_call: Duration,
}
