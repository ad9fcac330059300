//! Whether the Redis that answers still has the leases that were given. A fail-over may lose the last of them, a server that
//! comes back empty has lost all: then nobody takes a lease until every call has ended that was begun under a lost one.
//!
//! The owner's key `…:server` names the server whose leases are good by its `run_id`, which it draws at each start (of a
//! Cluster, by those of all primaries). Where another one answers, or the name is gone, the first worker to notice writes
//! `…:settling`, which lives as long as a call may still be under way; all workers wait for its end, then name the server.
//! That holds for a process that has just started, too: it can't know whether others have calls under way.
//!
//! A command never names the server, since it does not wait; without the name it takes no lease.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{ErrorKind, RedisError, RedisResult, cmd};
use tokio::time::Instant;

use super::{
    Role,
    claim::Owner,
    link::{NOTICED_WITHIN, PING_EVERY, Wire},
};

/// What is known and done about leases that may be lost.
pub(super) struct Guard {
    role: Role,
    ping: String,
    server: String,
    settling: String,
    /// By then all calls have ended that are under way now, and whoever made them knows that Redis was away.
    calls_end_within: Duration,
    /// It answers, and gives no lease now.
    withholds: AtomicBool,
    /// A command that may not ask which server answers can't tell whether leases were lost: it waits until the calls have
    /// ended that were under way when it connected.
    patience: Mutex<Option<Instant>>,
}

impl Guard {
    /// `longest_call`: the longest that a capture call may take.
    pub(super) fn new(owner: &Owner, role: Role, longest_call: Duration) -> Self {
        Self {
            role,
            ping: owner.key("ping"),
            server: owner.key("server"),
            settling: owner.key("settling"),
            calls_end_within: longest_call + NOTICED_WITHIN,
            withholds: AtomicBool::new(false),
            patience: Mutex::new(None),
        }
    }

    /// Until when a command waits before it takes a lease.
    pub(super) fn patience(&self) -> Option<Instant> {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no lease is given although Redis answers.
    pub(super) fn withholds(&self) -> Option<&'static str> {
        self.withholds.load(Ordering::Relaxed).then_some(match self.role {
            Role::Worker => {
                "it answers, and may have lost leases: none is given until the calls under way have ended"
            }
            Role::Command => "Redis may have lost leases: start a worker",
        })
    }

    /// Whether Redis takes writes: one that only answers (a replica, a full memory, too few replicas) gives no leases.
    pub(super) async fn ping(&self, wire: &mut Wire) -> RedisResult<()> {
        cmd("SET").arg(&[&self.ping, "1", "PX", "1000"]).query_async(wire).await
    }

    /// Nothing is known of a connection that is not there.
    pub(super) fn disconnected(&self) {
        self.withholds.store(false, Ordering::Relaxed);
    }

    /// Returns when a worker may take leases at this server: at once, if it is the one that is named; else when all
    /// calls have ended. A command does not wait; it is told when it asks for a lease.
    pub(super) async fn settle(&self, wire: &mut Wire, server: Option<&str>) -> RedisResult<()> {
        if self.role == Role::Command {
            let until = server.is_none().then(|| Instant::now() + self.calls_end_within);
            *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = until;
            return self.look(wire, server).await;
        }
        let named = self.named(wire).await?;
        if server.is_some() && named.as_deref() == server {
            return Ok(());
        }
        self.withholds.store(true, Ordering::Relaxed);
        let ms = u64::try_from(self.calls_end_within.as_millis()).unwrap_or(u64::MAX);
        let mut settle = cmd("SET");
        settle.arg(&[&self.settling, "1", "NX", "PX"]).arg(ms);
        settle.exec_async(wire).await?;
        let wait_ms = self.left_ms(wire).await?;
        let reason = match (&named, server) {
            (None, _) => "no server is named",
            (Some(_), None) => "INFO is not permitted",
            (Some(_), Some(_)) => "another server is named",
        };
        tracing::warn!(
            reason,
            wait_ms,
            "Redis may have lost leases: captures wait for the calls under way"
        );
        self.wait(wire).await?;
        self.withholds.store(false, Ordering::Relaxed);
        // Without INFO the name says no more than that a worker has waited since Redis was last emptied.
        cmd("SET").arg(&[&self.server, server.unwrap_or("unknown")]).exec_async(wire).await
    }

    async fn wait(&self, wire: &mut Wire) -> RedisResult<()> {
        loop {
            let Ok(left @ 1..) = u64::try_from(self.left_ms(wire).await?) else { return Ok(()) };
            tokio::time::sleep(Duration::from_millis(left).min(PING_EVERY)).await;
            self.ping(wire).await?;
        }
    }

    /// How long leases are still withheld; negative if they are not.
    async fn left_ms(&self, wire: &mut Wire) -> RedisResult<i64> {
        cmd("PTTL").arg(&self.settling).query_async(wire).await
    }

    async fn named(&self, wire: &mut Wire) -> RedisResult<Option<String>> {
        cmd("GET").arg(&self.server).query_async(wire).await
    }

    /// Looks again at a connection. An error if a worker's leases may have been lost since `server` was asked for.
    pub(super) async fn check(&self, wire: &mut Wire, server: Option<&str>) -> RedisResult<()> {
        if self.role == Role::Command {
            return self.look(wire, server).await;
        }
        if self.is_named(wire, server).await? {
            return Ok(());
        }
        Err(RedisError::from((ErrorKind::Client, "its leases may be lost")))
    }

    /// Whether a command may take leases now: also of another server than the one that it connected to, if the workers
    /// have named that by now.
    async fn look(&self, wire: &mut Wire, server: Option<&str>) -> RedisResult<()> {
        let is_cluster = matches!(wire, Wire::Cluster(_)) && server.is_some();
        let now = if is_cluster { self::server(wire).await? } else { None };
        let is_settling = self.left_ms(wire).await? > 0;
        let is_good = self.is_named(wire, now.as_deref().or(server)).await? && !is_settling;
        self.withholds.store(!is_good, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the server is the one that is named. The connection to a single server ends with it; that to a Cluster
    /// outlives fail-overs, so that its servers are asked for anew. Without `INFO` any name does.
    async fn is_named(&self, wire: &mut Wire, server: Option<&str>) -> RedisResult<bool> {
        let is_same = match (&*wire, server) {
            (Wire::Single(_), _) | (_, None) => true,
            (Wire::Cluster(_), Some(_)) => self::server(wire).await?.as_deref() == server,
        };
        let named = self.named(wire).await?;
        Ok(is_same
            && server.map_or_else(|| named.is_some(), |server| named.as_deref() == Some(server)))
    }
}

/// Which server answers; `None` if we may not ask (an access list without `INFO`).
pub(super) async fn server(wire: &mut Wire) -> RedisResult<Option<String>> {
    let infos = match wire.info("server").await {
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

fn run_id(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("run_id:"))
}
