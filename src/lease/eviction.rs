//! Whether Redis may evict keys: under a policy other than `noeviction` a full memory takes leases,
//! blocks and outcomes away while their payments need them.

use std::collections::HashMap;

use redis::{
    FromRedisValue, RedisResult,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
    cmd,
};

use super::link::Wire;

/// The first policy of a primary that is not `noeviction`; `None` also if nobody tells, such as
/// without permission for `INFO`.
pub(super) async fn policy(wire: &mut Wire) -> Option<String> {
    let infos = memory(wire).await.unwrap_or_default();
    let policies = infos
        .iter()
        .flat_map(|info| info.lines().filter_map(|line| line.strip_prefix("maxmemory_policy:")));
    policies.map(str::trim).find(|policy| *policy != "noeviction").map(ToOwned::to_owned)
}

/// What each primary says of its memory.
async fn memory(wire: &mut Wire) -> RedisResult<Vec<String>> {
    let mut info = cmd("INFO");
    info.arg("memory");
    match wire {
        Wire::Single(connection) => Ok(vec![info.query_async(connection).await?]),
        Wire::Cluster(connection) => {
            let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            let said = connection.route_command(info, all).await?;
            let by_node: HashMap<String, String> = FromRedisValue::from_redis_value(said)?;
            Ok(by_node.into_values().collect())
        }
    }
}
