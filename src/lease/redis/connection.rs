//! A connection to Redis, to a single server or to a Cluster.

use std::{collections::HashMap, time::Duration};

use redis::{
    FromRedisValue, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
    cmd,
};

/// The time limit for a response of Redis.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the connection is checked.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
/// The time within which a failed connection is noticed: until the next check, and its time-out.
pub(super) const NOTICED_WITHIN: Duration =
    Duration::from_secs(PING_EVERY.as_secs() + RESPONSE_TIMEOUT.as_secs());

/// A connection that all jobs share. Clones use the same socket.
#[derive(Clone)]
pub(super) enum RedisConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl RedisConnection {
    /// A section of `INFO`, from the single server or from each primary of a Cluster.
    pub(super) async fn info(&mut self, section: &str) -> RedisResult<Vec<String>> {
        let mut info = cmd("INFO");
        info.arg(section);
        match self {
            Self::Single(connection) => Ok(vec![info.query_async(connection).await?]),
            Self::Cluster(connection) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let reply = connection.route_command(info, all).await?;
                let by_node: HashMap<String, String> = FromRedisValue::from_redis_value(reply)?;
                Ok(by_node.into_values().collect())
            }
        }
    }
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a redis::Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
