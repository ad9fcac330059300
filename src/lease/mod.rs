//! The lease and the in-doubt block of a payment, in Redis. Capture calls of one payment never run
//! at the same time, and while one capture is in doubt, no other capture of the payment begins.
//!
//! The keys are listed at `claim::PaymentKeys`. The owner's key `:server` names the server at which
//! the leases are valid (see `redis/failover.rs`). All types of the Redis client stay in `redis`.
//!
//! The lease only orders captures; the idempotency key protects the money. This module does not
//! decide what an outcome means.

mod claim;
mod error;
mod held;
mod inspect;
mod leases;
mod options;
mod record;
mod redis;
mod results;
mod trial;

pub use self::redis::{BadUrl, RedisOptions, SentinelLogin, check_url, without_credentials};
pub use self::{
    claim::{Claim, Owner},
    error::Unavailable,
    held::Lease,
    inspect::{InDoubtBlock, Inspection},
    leases::Leases,
    options::{LeaseTimes, Role},
    results::{Acquired, Released, Renewed},
};
