//! The one connection to Redis (single server, Cluster or Sentinel). It is checked all the time,
//! and opened again whenever it fails.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation, cmd};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    address::{BadUrl, RedisOptions},
    client::RedisClient,
    connection::{PING_EVERY, RESPONSE_TIMEOUT, RedisConnection},
    eviction,
    failover::{self, FailoverGuard},
    outage::{Outage, describe},
    probe,
};
use crate::lease::{Owner, Unavailable};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Keeps the connection, and knows whether it works.
pub(in crate::lease) struct RedisSupervisor {
    client: RedisClient,
    owner: Owner,
    /// The connection, and its generation: a number that grows with each connection.
    connection: Mutex<(u64, Option<RedisConnection>)>,
    guard: FailoverGuard,
    up: watch::Sender<bool>,
    failed: Notify,
    outage: Outage,
    /// The policy by which Redis may evict keys, as read on the last connection.
    eviction: Mutex<Option<String>>,
}

impl RedisSupervisor {
    pub(in crate::lease) fn new(
        options: &RedisOptions,
        owner: Owner,
        guard: FailoverGuard,
    ) -> Result<Arc<Self>, BadUrl> {
        let client = RedisClient::new(options)?;
        let (up, _) = watch::channel(false);
        let connection = Mutex::new((0, None));
        let (failed, outage, eviction) = (Notify::new(), Outage::default(), Mutex::default());
        Ok(Arc::new(Self { client, owner, connection, guard, up, failed, outage, eviction }))
    }

    /// Connects, and connects again after each failure, until the token is cancelled.
    pub(in crate::lease) async fn keep_connected(&self, stop: CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        while !stop.is_cancelled() {
            let kept = async {
                let connection = self.client.connect(&self.owner).await?;
                self.keep(connection, &mut backoff).await
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
    async fn keep(
        &self,
        mut connection: RedisConnection,
        backoff: &mut Duration,
    ) -> RedisResult<()> {
        probe::check_all(&self.owner, &connection, self.client.reason(&self.owner)).await?;
        let server = failover::server(&mut connection).await?;
        let server = server.as_deref();
        self.guard.wait_until_safe(&mut connection, server).await?;
        self.check_eviction(&mut connection).await;
        {
            let mut current = self.lock();
            *current = (current.0 + 1, Some(connection.clone()));
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
            let checked = async {
                self.guard.ping(&mut connection).await?;
                if has_failed {
                    probe::spread(&self.owner, &connection).await?;
                } else {
                    probe::run(&self.owner, &connection).await?;
                }
                self.guard.check(&mut connection, server).await
            };
            match tokio::time::timeout(RESPONSE_TIMEOUT, checked).await {
                Ok(checked) => checked?,
                Err(_) => {
                    let text = "the server did not respond in time";
                    return Err(RedisError::from((ErrorKind::Io, text)));
                }
            }
        }
    }

    /// Logs a warning if Redis may evict keys, once for each policy.
    async fn check_eviction(&self, connection: &mut RedisConnection) {
        let policy = eviction::policy(connection).await;
        let mut last = self.eviction.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(policy) = policy.as_ref().filter(|_| *last != policy) {
            tracing::warn!(
                maxmemory_policy = policy,
                "Redis may evict keys when its memory is full: leases and recorded outcomes may be \
                 lost; set `maxmemory-policy noeviction`"
            );
        }
        *last = policy;
    }

    /// The policy by which Redis may evict keys; `None` if it evicts none, or that is unknown.
    pub(in crate::lease) fn eviction_policy(&self) -> Option<String> {
        self.eviction.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a script on the present connection.
    pub(in crate::lease) async fn run<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, Unavailable> {
        let mut connection = self.connection()?;
        let reply = call.invoke_async(&mut connection).await;
        reply.map_err(|error| self.call_failed(&error))
    }

    /// Sends one command about one key.
    pub(in crate::lease) async fn read<T: FromRedisValue>(
        &self,
        command: &str,
        key: &str,
    ) -> Result<T, Unavailable> {
        let mut connection = self.connection()?;
        let reply = cmd(command).arg(key).query_async(&mut connection).await;
        reply.map_err(|error| self.call_failed(&error))
    }

    /// The present connection, if it works.
    fn connection(&self) -> Result<RedisConnection, Unavailable> {
        let connection = self.lock().1.clone();
        connection.ok_or_else(|| Unavailable::new(self.unavailable_reason()))
    }

    /// Why there is no connection to use, as a sentence for operators.
    pub(in crate::lease) fn unavailable_reason(&self) -> String {
        let withheld = self.guard.withheld().map(str::to_owned);
        withheld.or_else(|| self.outage.reason()).unwrap_or_else(|| "not connected yet".to_owned())
    }

    /// Why no lease is granted although there is a connection. A command may have to wait before
    /// that is known.
    pub(in crate::lease) async fn withheld(&self) -> Option<&'static str> {
        if let Some(until) = self.guard.wait_until() {
            tokio::time::sleep_until(until).await;
        }
        self.guard.withheld()
    }

    /// Connects once, without keeping the connection, after a check of all of Redis.
    pub(in crate::lease) async fn connect_once(&self) -> Result<(), Unavailable> {
        let connected = async {
            let connection = self.client.connect(&self.owner).await?;
            let reason = self.client.reason(&self.owner);
            probe::check_all(&self.owner, &connection, reason).await?;
            Ok(connection)
        };
        let connection =
            connected.await.map_err(|error: RedisError| Unavailable::new(describe(&error)))?;
        let mut current = self.lock();
        *current = (current.0 + 1, Some(connection));
        Ok(())
    }

    /// Drops the connection of [`Self::connect_once`].
    pub(in crate::lease) fn drop_connection(&self) {
        self.lock().1 = None;
    }

    /// The generation of the present connection. Leases of another generation may be lost.
    pub(in crate::lease) fn generation(&self) -> Option<u64> {
        let current = self.lock();
        current.1.as_ref().map(|_| current.0)
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Option<RedisConnection>)> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a failed call, so that the connection is checked at once.
    fn call_failed(&self, error: &RedisError) -> Unavailable {
        let text = describe(error);
        if self.outage.call_failed(error) {
            tracing::warn!(error = text, "Redis refused a lease command: the job waits");
        }
        self.failed.notify_one();
        Unavailable::new(text)
    }

    /// Whether the connection works and leases are granted; notifies of changes.
    pub(in crate::lease) fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }
}
