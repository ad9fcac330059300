//! Everything that names the Redis client: addresses, the one connection and its supervision, the
//! scripts, and their replies.

mod address;
mod client;
mod connection;
mod eviction;
mod failover;
mod outage;
mod probe;
mod replies;
mod scripts;
mod supervisor;

pub use self::address::{BadUrl, RedisOptions, SentinelLogin, check_url, without_credentials};
pub(super) use self::{
    failover::FailoverGuard,
    replies::{AcquireReply, ReleaseReply, RenewReply},
    scripts::Scripts,
    supervisor::RedisSupervisor,
};
