//! What a worker keeps in Redis: the names of its keys, and the identity of the server whose leases
//! are valid.

use std::time::Duration;

use redis::{AsyncConnectionConfig, RedisResult};

/// The time limit of a call, for a Redis that a test has stopped.
const LIMIT: Duration = Duration::from_secs(5);

/// The prefix of all keys of a deployment and a merchant. Tests use ids that percent-encoding does
/// not change.
pub fn owner(prefix: &str, client_id: &str) -> String {
    format!("{prefix}:{client_id}")
}

/// Records the server at this URL as the one whose leases are valid. A worker does so after it has
/// waited for the calls in progress. A test need not wait, because a server that it has just
/// started has granted no lease. If the server does not reply, workers wait.
pub async fn name_server(redis_url: &str, owner: &str) {
    drop(tokio::time::timeout(LIMIT, name(redis_url, owner)).await);
}

async fn name(redis_url: &str, owner: &str) -> RedisResult<()> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(LIMIT));
    let client = redis::Client::open(redis_url)?;
    let mut redis = client.get_multiplexed_async_connection_with_config(&config).await?;
    let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default();
    redis::cmd("SET").arg(format!("{owner}:server")).arg(run_id).exec_async(&mut redis).await
}
