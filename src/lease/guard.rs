//! Whether the Redis that answers still has the leases that were given. A fail-over may lose the last of them, a server that
//! comes back empty has lost all: then nobody takes a lease until every call has ended that was begun under a lost one.
//!
//! `capture:server` names the server whose leases are good by its `run_id`, which it draws at each start (of a Cluster, by
//! those of all primaries). Where another one answers, or the name is gone, the first worker to notice writes
//! `capture:settling`, which lives as long as a call may still be under way; all wait for its end, then name the server.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult,
    cluster_routing::MultipleNodeRoutingInfo, cluster_routing::RoutingInfo, cmd,
};

use super::link::{PING_EVERY, Wire, ping};

const SERVER: &str = "capture:server";
const SETTLING: &str = "capture:settling";

/// Which server answers; `None` if we may not ask (an access list without `INFO`).
pub(super) async fn server(wire: &mut Wire) -> RedisResult<Option<String>> {
    let mut info = cmd("INFO");
    info.arg("server");
    let infos = match said(wire, info).await {
        Err(error) if error.code() == Some("NOPERM") => return Ok(None),
        infos => infos?,
    };
    let mut ids: Vec<&str> = infos.iter().filter_map(|info| run_id(info)).collect();
    ids.sort_unstable();
    if ids.len() < infos.len() || ids.is_empty() {
        return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "INFO without a run_id")));
    }
    Ok(Some(ids.join(",")))
}

/// What each primary says.
async fn said(wire: &mut Wire, info: Cmd) -> RedisResult<Vec<String>> {
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

fn run_id(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("run_id:"))
}

/// Returns when leases may be taken at this server: at once, if it is the one that is named; else when all calls have
/// ended. `is_new`: this process has not been connected before, so where nothing is written nothing is known to be lost.
pub(super) async fn settle(
    wire: &mut Wire,
    server: Option<&str>,
    is_new: bool,
    calls_end_within: Duration,
    settling: &AtomicBool,
) -> RedisResult<()> {
    let named: Option<String> = cmd("GET").arg(SERVER).query_async(wire).await?;
    if server.is_some() && named.as_deref() == server {
        return Ok(());
    }
    let others_wait = left_ms(wire).await? > 0;
    if others_wait || named.is_some() || !is_new {
        settling.store(true, Ordering::Relaxed);
        let ms = u64::try_from(calls_end_within.as_millis()).unwrap_or(u64::MAX);
        let mut settle = cmd("SET");
        settle.arg(&[SETTLING, "1", "NX", "PX"]).arg(ms);
        settle.exec_async(wire).await?;
        let wait_ms = left_ms(wire).await?;
        tracing::warn!(
            wait_ms,
            "another Redis answers, or one that was emptied: leases may be lost; captures wait for the calls under way"
        );
        wait(wire).await?;
        settling.store(false, Ordering::Relaxed);
    }
    match server {
        Some(server) => cmd("SET").arg(&[SERVER, server]).exec_async(wire).await,
        None => Ok(()),
    }
}

async fn wait(wire: &mut Wire) -> RedisResult<()> {
    loop {
        let Ok(left @ 1..) = u64::try_from(left_ms(wire).await?) else { return Ok(()) };
        tokio::time::sleep(Duration::from_millis(left).min(PING_EVERY)).await;
        ping(wire).await?;
    }
}

/// Negative if there is nothing to wait for.
async fn left_ms(wire: &mut Wire) -> RedisResult<i64> {
    cmd("PTTL").arg(SETTLING).query_async(wire).await
}

/// An error if the leases may have been lost since `server` was asked for.
pub(super) async fn check(wire: &mut Wire, server: Option<&str>) -> RedisResult<()> {
    let Some(server) = server else { return Ok(()) };
    // The connection to a single server ends with it; that to a Cluster outlives fail-overs.
    let is_same = match wire {
        Wire::Single(_) => true,
        Wire::Cluster(_) => self::server(wire).await?.as_deref() == Some(server),
    };
    let named: Option<String> = cmd("GET").arg(SERVER).query_async(wire).await?;
    if is_same && named.as_deref() == Some(server) {
        return Ok(());
    }
    Err(RedisError::from((ErrorKind::Client, "its leases may be lost")))
}
