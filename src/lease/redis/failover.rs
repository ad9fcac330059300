//! Detects that Redis may have lost leases. A failover may lose the latest of them, and a server
//! that comes back empty has lost all. Then no lease is granted until every call has ended that
//! began under a lost lease.
//!
//! The owner's key `…:server` holds the `run_id` of the server at which the leases are valid (for a
//! Cluster, those of all primaries). A server draws a new `run_id` at each start. If another server
//! responds, or the key is gone, the first worker that notices writes `…:settling`, which expires
//! when no call can be under way any more. All workers wait for that, then record the new server.
//! A process that has just started waits as well: it can't know about the calls of other processes.
//!
//! A command never records the server, because it does not wait. It acquires no lease until a
//! worker has recorded the server.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{ErrorKind, RedisError, RedisResult, cmd};
use tokio::time::Instant;

use super::connection::{NOTICED_WITHIN, PING_EVERY, RedisConnection};
use crate::lease::{Owner, Role};

/// Whether leases may be lost, and how long new ones are withheld because of it.
pub(in crate::lease) struct FailoverGuard {
    role: Role,
    ping: String,
    server: String,
    settling: String,
    /// After this time, all calls that are under way now have ended, and their workers have noticed
    /// that the connection failed.
    calls_end_within: Duration,
    /// Whether no lease is granted at present although Redis responds.
    is_withheld: AtomicBool,
    /// Until when a command waits that may not read the `run_id`. It can't tell whether leases were
    /// lost, so it waits until the calls have ended that were under way when it connected.
    wait_until: Mutex<Option<Instant>>,
}

impl FailoverGuard {
    /// `longest_call`: the longest duration of a capture call.
    pub(in crate::lease) fn new(owner: &Owner, role: Role, longest_call: Duration) -> Self {
        Self {
            role,
            ping: owner.key("ping"),
            server: owner.key("server"),
            settling: owner.key("settling"),
            calls_end_within: longest_call + NOTICED_WITHIN,
            is_withheld: AtomicBool::new(false),
            wait_until: Mutex::new(None),
        }
    }

    /// Until when a command must wait before it acquires a lease.
    pub(super) fn wait_until(&self) -> Option<Instant> {
        *self.wait_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no lease is granted although Redis responds.
    pub(super) fn withheld(&self) -> Option<&'static str> {
        self.is_withheld.load(Ordering::Relaxed).then_some(match self.role {
            Role::Worker => {
                "leases may have been lost: none is granted until the calls under way have ended"
            }
            Role::Command => {
                "Redis may have lost leases: start a worker, and wait until it is ready"
            }
        })
    }

    /// Checks that Redis accepts writes. A replica, or a server with a full memory or too few
    /// replicas, responds and still can't store leases.
    pub(super) async fn ping(&self, connection: &mut RedisConnection) -> RedisResult<()> {
        cmd("SET").arg(&[&self.ping, "1", "PX", "1000"]).query_async(connection).await
    }

    /// Resets the state after the connection was lost.
    pub(super) fn disconnected(&self) {
        self.is_withheld.store(false, Ordering::Relaxed);
    }

    /// Returns when a worker may acquire leases at this server: at once if it is the recorded
    /// server, otherwise when all calls under way have ended. A command does not wait here; it
    /// learns the reason when it acquires a lease.
    pub(super) async fn wait_until_safe(
        &self,
        connection: &mut RedisConnection,
        server: Option<&str>,
    ) -> RedisResult<()> {
        if self.role == Role::Command {
            let until = server.is_none().then(|| Instant::now() + self.calls_end_within);
            *self.wait_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
            return self.update_command(connection, server).await;
        }
        let recorded = self.recorded_server(connection).await?;
        if server.is_some() && recorded.as_deref() == server {
            return Ok(());
        }
        self.is_withheld.store(true, Ordering::Relaxed);
        let ms = u64::try_from(self.calls_end_within.as_millis()).unwrap_or(u64::MAX);
        let mut begin = cmd("SET");
        begin.arg(&[&self.settling, "1", "NX", "PX"]).arg(ms);
        begin.exec_async(connection).await?;
        let wait_ms = self.left_ms(connection).await?;
        let reason = match (&recorded, server) {
            (None, _) => "no server is recorded",
            (Some(_), None) => "INFO is not permitted",
            (Some(_), Some(_)) => "another server is recorded",
        };
        tracing::warn!(
            reason,
            wait_ms,
            "Redis may have lost leases: captures paused until the calls under way have ended"
        );
        self.wait_for_calls(connection).await?;
        self.is_withheld.store(false, Ordering::Relaxed);
        // Without INFO, the key only says that a worker has waited since Redis was last emptied.
        cmd("SET").arg(&[&self.server, server.unwrap_or("unknown")]).exec_async(connection).await
    }

    async fn wait_for_calls(&self, connection: &mut RedisConnection) -> RedisResult<()> {
        loop {
            let Ok(left @ 1..) = u64::try_from(self.left_ms(connection).await?) else {
                return Ok(());
            };
            tokio::time::sleep(Duration::from_millis(left).min(PING_EVERY)).await;
            self.ping(connection).await?;
        }
    }

    /// How many milliseconds leases are still withheld; negative if they are not.
    async fn left_ms(&self, connection: &mut RedisConnection) -> RedisResult<i64> {
        cmd("PTTL").arg(&self.settling).query_async(connection).await
    }

    async fn recorded_server(
        &self,
        connection: &mut RedisConnection,
    ) -> RedisResult<Option<String>> {
        cmd("GET").arg(&self.server).query_async(connection).await
    }

    /// Checks a connection again. Fails if a worker's leases may have been lost since `server` was
    /// read.
    pub(super) async fn check(
        &self,
        connection: &mut RedisConnection,
        server: Option<&str>,
    ) -> RedisResult<()> {
        if self.role == Role::Command {
            return self.update_command(connection, server).await;
        }
        if self.is_recorded(connection, server).await? {
            return Ok(());
        }
        let text = "leases may have been lost: the recorded server is another one";
        Err(RedisError::from((ErrorKind::Client, text)))
    }

    /// Updates whether a command may acquire leases. It may do so after a failover, too, once the
    /// workers have recorded the new server.
    async fn update_command(
        &self,
        connection: &mut RedisConnection,
        server: Option<&str>,
    ) -> RedisResult<()> {
        let is_cluster = matches!(connection, RedisConnection::Cluster(_)) && server.is_some();
        let now = if is_cluster { self::server(connection).await? } else { None };
        let is_settling = self.left_ms(connection).await? > 0;
        let is_safe =
            self.is_recorded(connection, now.as_deref().or(server)).await? && !is_settling;
        self.is_withheld.store(!is_safe, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the server is the recorded one. A connection to a single server ends with that
    /// server. One to a Cluster outlives failovers, so the servers are read again. Without `INFO`,
    /// any recorded server is accepted.
    async fn is_recorded(
        &self,
        connection: &mut RedisConnection,
        server: Option<&str>,
    ) -> RedisResult<bool> {
        let is_same = match (&*connection, server) {
            (RedisConnection::Single(_), _) | (_, None) => true,
            (RedisConnection::Cluster(_), Some(_)) => {
                self::server(connection).await?.as_deref() == server
            }
        };
        let recorded = self.recorded_server(connection).await?;
        Ok(is_same
            && server
                .map_or_else(|| recorded.is_some(), |server| recorded.as_deref() == Some(server)))
    }
}

/// The `run_id` of the server, or those of all primaries of a Cluster. `None` if an ACL forbids
/// `INFO`.
pub(super) async fn server(connection: &mut RedisConnection) -> RedisResult<Option<String>> {
    let infos = match connection.info("server").await {
        Err(error) if error.code() == Some("NOPERM") => return Ok(None),
        infos => infos?,
    };
    let mut ids: Vec<&str> = infos.iter().filter_map(|info| run_id(info)).collect();
    ids.sort_unstable();
    if ids.len() < infos.len() || ids.is_empty() {
        return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "INFO has no run_id")));
    }
    Ok(Some(ids.join(",")))
}

fn run_id(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("run_id:"))
}
