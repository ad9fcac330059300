//! Checks whether Redis may evict keys. Under a policy other than `noeviction`, a full memory
//! removes leases, in-doubt blocks and recorded outcomes while their payments still need them.

use super::connection::RedisConnection;

/// The first policy of a primary that is not `noeviction`. Also `None` if the policy can't be read,
/// such as without permission for `INFO`.
pub(super) async fn policy(connection: &mut RedisConnection) -> Option<String> {
    let infos = connection.info("memory").await.unwrap_or_default();
    let policies = infos
        .iter()
        .flat_map(|info| info.lines().filter_map(|line| line.strip_prefix("maxmemory_policy:")));
    policies.map(str::trim).find(|policy| *policy != "noeviction").map(ToOwned::to_owned)
}
