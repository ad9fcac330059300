//! The one connection to Redis (single server, Cluster or Sentinel). It is checked all the time,
//! and opened again whenever it fails.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    ErrorKind, FromRedisValue, RedisError, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
    cmd,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    address::{BadUrl, RedisOptions},
    claim::Owner,
    eviction,
    guard::{self, Guard},
    outage::{Outage, describe},
    probe,
    target::{RESPONSE_TIMEOUT, Target},
};

/// How often the connection is checked.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
/// The time within which a failed connection is noticed: until the next check, and its time-out.
pub(super) const NOTICED_WITHIN: Duration =
    Duration::from_secs(PING_EVERY.as_secs() + RESPONSE_TIMEOUT.as_secs());
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A connection that all jobs share. Clones use the same socket.
#[derive(Clone)]
pub(super) enum Wire {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Wire {
    /// A section of `INFO`, from the single server or from each primary of a Cluster.
    pub(super) async fn info(&mut self, section: &str) -> RedisResult<Vec<String>> {
        let mut info = cmd("INFO");
        info.arg(section);
        match self {
            Self::Single(connection) => Ok(vec![info.query_async(connection).await?]),
            Self::Cluster(connection) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let said = connection.route_command(info, all).await?;
                let by_node: HashMap<String, String> = FromRedisValue::from_redis_value(said)?;
                Ok(by_node.into_values().collect())
            }
        }
    }
}

/// Keeps the connection, and knows whether it works.
pub(super) struct Link {
    target: Target,
    owner: Owner,
    /// The connection, and its generation: a number that grows with each connection.
    wire: Mutex<(u64, Option<Wire>)>,
    guard: Guard,
    up: watch::Sender<bool>,
    failed: Notify,
    outage: Outage,
    /// The policy by which Redis may evict keys, as read on the last connection.
    eviction: Mutex<Option<String>>,
}

impl Link {
    pub(super) fn new(
        options: &RedisOptions,
        owner: Owner,
        guard: Guard,
    ) -> Result<Arc<Self>, BadUrl> {
        let target = Target::new(options)?;
        let (up, _) = watch::channel(false);
        let wire = Mutex::new((0, None));
        let (failed, outage, eviction) = (Notify::new(), Outage::default(), Mutex::default());
        Ok(Arc::new(Self { target, owner, wire, guard, up, failed, outage, eviction }))
    }

    /// Connects, and connects again after each failure, until the token is cancelled.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        while !stop.is_cancelled() {
            let kept = async {
                let wire = self.target.connect(&self.owner).await?;
                self.keep(wire, &mut backoff).await
            };
            let error = tokio::select! {
                () = stop.cancelled() => return,
                kept = kept => kept.err(),
            };
            // The reason is recorded before `up` changes, so that everybody who sees the change can
            // read it.
            if let Some(error) = error
                && self.outage.begins(&error)
            {
                let error = describe(&error);
                tracing::warn!(error, "Redis unavailable: captures paused");
            }
            self.up.send_replace(false);
            self.guard.disconnected();
            self.lock().1 = None;
            let jitter =
                rand::random_range(0..=u64::try_from(backoff.as_millis()).unwrap_or(0) / 2);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff + Duration::from_millis(jitter)) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Makes a new connection the present one, and checks it until it fails.
    async fn keep(&self, mut wire: Wire, backoff: &mut Duration) -> RedisResult<()> {
        probe::whole(&self.owner, &wire, self.target.reason(&self.owner)).await?;
        let server = guard::server(&mut wire).await?;
        let server = server.as_deref();
        self.guard.settle(&mut wire, server).await?;
        self.look_at_eviction(&mut wire).await;
        {
            let mut current = self.lock();
            *current = (current.0 + 1, Some(wire.clone()));
        }
        self.outage.ends();
        self.up.send_replace(true);
        tracing::info!("Redis connected");
        *backoff = BACKOFF_MIN;
        loop {
            let has_failed = tokio::select! {
                () = tokio::time::sleep(PING_EVERY) => false,
                () = self.failed.notified() => true,
            };
            // One time-out for all checks: the client of a Cluster repeats each call for a long
            // time.
            let looked = async {
                self.guard.ping(&mut wire).await?;
                if has_failed {
                    probe::spread(&self.owner, &wire).await?;
                } else {
                    probe::run(&self.owner, &wire).await?;
                }
                self.guard.check(&mut wire, server).await
            };
            match tokio::time::timeout(RESPONSE_TIMEOUT, looked).await {
                Ok(looked) => looked?,
                Err(_) => {
                    let text = "the server did not respond in time";
                    return Err(RedisError::from((ErrorKind::Io, text)));
                }
            }
        }
    }

    /// Logs a warning if Redis may evict keys, once for each policy.
    async fn look_at_eviction(&self, wire: &mut Wire) {
        let policy = eviction::policy(wire).await;
        let mut known = self.eviction.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(policy) = policy.as_ref().filter(|_| *known != policy) {
            tracing::warn!(
                maxmemory_policy = policy,
                "Redis may evict keys when its memory is full: leases and recorded outcomes may be \
                 lost; set `maxmemory-policy noeviction`"
            );
        }
        *known = policy;
    }

    /// The policy by which Redis may evict keys; `None` if it evicts none, or that is unknown.
    pub(super) fn eviction_policy(&self) -> Option<String> {
        self.eviction.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The present connection, if it works.
    pub(super) fn wire(&self) -> Option<Wire> {
        self.lock().1.clone()
    }

    /// Why there is no connection to use, as a sentence for operators.
    pub(super) fn absence(&self) -> String {
        let withheld = self.guard.withholds().map(str::to_owned);
        withheld.or_else(|| self.outage.reason()).unwrap_or_else(|| "not connected yet".to_owned())
    }

    /// Why no lease is granted although there is a connection. A command may have to wait before
    /// that is known.
    pub(super) async fn withholds(&self) -> Option<&'static str> {
        if let Some(until) = self.guard.patience() {
            tokio::time::sleep_until(until).await;
        }
        self.guard.withholds()
    }

    /// Connects for one command, which tries a lease at a payment that does not exist.
    pub(super) async fn borrow_connection(&self) -> RedisResult<()> {
        let wire = self.target.connect(&self.owner).await?;
        probe::whole(&self.owner, &wire, self.target.reason(&self.owner)).await?;
        let mut current = self.lock();
        *current = (current.0 + 1, Some(wire));
        Ok(())
    }

    /// Drops the connection of [`Self::borrow_connection`].
    pub(super) fn drop_connection(&self) {
        self.lock().1 = None;
    }

    /// The generation of the present connection. Leases of another generation may be lost.
    pub(super) fn epoch(&self) -> Option<u64> {
        let current = self.lock();
        current.1.as_ref().map(|_| current.0)
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Option<Wire>)> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports a failed call, so that the connection is checked at once.
    pub(super) fn suspect(&self, error: &RedisError) {
        if self.outage.call_failed(error) {
            let error = describe(error);
            tracing::warn!(error, "Redis refused a lease command: the job waits");
        }
        self.failed.notify_one();
    }

    /// Whether the connection works and leases are granted; notifies of changes.
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }
}

impl ConnectionLike for Wire {
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
