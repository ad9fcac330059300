//! The one connection to Redis: single server, Cluster or Sentinel; watched, and made again whenever it fails.

use std::{
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, ClientTlsConfig, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    claim::Owner,
    guard::{self, Guard},
    outage::{Outage, describe},
    probe,
};

/// How long Redis may take to answer, and to be connected to.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a quiet connection is tried.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);
/// Whoever has a connection knows within this that it has failed: by the next try, and its time-out.
pub(super) const NOTICED_WITHIN: Duration =
    Duration::from_secs(PING_EVERY.as_secs() + RESPONSE_TIMEOUT.as_secs());
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Where Redis is.
#[derive(Clone, Default)]
pub struct RedisOptions {
    /// `redis://`, `rediss://`, several of them separated by commas (a Cluster), or
    /// `redis-sentinel://[:password@]host:port,host:port[/db]#service`.
    pub url: String,
    /// The PEM file of a private certificate authority.
    pub ca: Option<Vec<u8>>,
    /// The PEM files of our certificate and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// The URL is not one of those that [`RedisOptions::url`] takes.
#[derive(Debug, thiserror::Error)]
#[error("redis.url can't be used: {0}")]
pub struct BadUrl(String);

/// A connection that many jobs share.
#[derive(Clone)]
pub(super) enum Wire {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

enum Target {
    Single(Box<redis::Client>),
    /// With a client for each address, to ask for the reason of a failure.
    Cluster(Box<ClusterClient>, Vec<redis::Client>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

/// The connection, and whether it works.
pub(super) struct Link {
    target: Target,
    owner: Owner,
    /// The connection, and a number that grows with each.
    wire: Mutex<(u64, Option<Wire>)>,
    guard: Guard,
    up: watch::Sender<bool>,
    failed: Notify,
    outage: Outage,
}

impl Link {
    pub(super) fn new(
        options: &RedisOptions,
        owner: Owner,
        guard: Guard,
    ) -> Result<Arc<Self>, BadUrl> {
        let target = Target::parse(options)?;
        let (up, _) = watch::channel(false);
        let wire = Mutex::new((0, None));
        let (failed, outage) = (Notify::new(), Outage::default());
        Ok(Arc::new(Self { target, owner, wire, guard, up, failed, outage }))
    }

    /// Keeps the connection until the token is cancelled.
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
            // Whoever sees that it is away is to find the reason.
            if let Some(error) = error
                && self.outage.begins(&error)
            {
                let error = describe(&error);
                tracing::warn!(error, "Redis is away: no capture begins without a lease");
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

    /// Holds a fresh connection up as long as it answers.
    async fn keep(&self, mut wire: Wire, backoff: &mut Duration) -> RedisResult<()> {
        probe::whole(&self.owner, &wire, self.target.reason(&self.owner)).await?;
        let server = guard::server(&mut wire).await?;
        let server = server.as_deref();
        self.guard.settle(&mut wire, server).await?;
        {
            let mut current = self.lock();
            *current = (current.0 + 1, Some(wire.clone()));
        }
        self.outage.ends();
        self.up.send_replace(true);
        tracing::info!("Redis answers");
        *backoff = BACKOFF_MIN;
        loop {
            let has_failed = tokio::select! {
                () = tokio::time::sleep(PING_EVERY) => false,
                () = self.failed.notified() => true,
            };
            // As a whole: the client of a Cluster tries each call again and again.
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
                Err(_) => return Err(RedisError::from((ErrorKind::Io, "no answer in time"))),
            }
        }
    }

    /// The connection, if there is one that works.
    pub(super) fn wire(&self) -> Option<Wire> {
        self.lock().1.clone()
    }

    /// Why there is no connection to use.
    pub(super) fn absence(&self) -> String {
        let withheld = self.guard.withholds().map(str::to_owned);
        withheld
            .or_else(|| self.outage.reason())
            .unwrap_or_else(|| "it has not answered yet".to_owned())
    }

    /// Why no lease may be taken although there is a connection; a command may have to wait before it can tell.
    pub(super) async fn withholds(&self) -> Option<&'static str> {
        if let Some(until) = self.guard.patience() {
            tokio::time::sleep_until(until).await;
        }
        self.guard.withholds()
    }

    /// Connects for one command, which takes the lease of a payment that does not exist.
    pub(super) async fn borrow_connection(&self) -> RedisResult<()> {
        let wire = self.target.connect(&self.owner).await?;
        probe::whole(&self.owner, &wire, self.target.reason(&self.owner)).await?;
        let mut current = self.lock();
        *current = (current.0 + 1, Some(wire));
        Ok(())
    }

    /// The end of [`Self::borrow_connection`].
    pub(super) fn drop_connection(&self) {
        self.lock().1 = None;
    }

    /// Which connection it is, if there is one: leases that were taken on another one may be lost.
    pub(super) fn epoch(&self) -> Option<u64> {
        let current = self.lock();
        current.1.as_ref().map(|_| current.0)
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Option<Wire>)> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call on the connection failed: look at it now rather than at the next tick.
    pub(super) fn suspect(&self, error: &RedisError) {
        if self.outage.call_failed(error) {
            let error = describe(error);
            tracing::warn!(error, "Redis refused a call of the lease: its job waits");
        }
        self.failed.notify_one();
    }

    /// Whether Redis answers, and when that changes.
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }
}

impl Target {
    fn parse(options: &RedisOptions) -> Result<Self, BadUrl> {
        let bad = |error: RedisError| BadUrl(error.category().to_owned());
        let certificates = TlsCertificates {
            client_tls: options
                .client
                .clone()
                .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: options.ca.clone(),
        };
        if let Some(rest) = options.url.strip_prefix("redis-sentinel://") {
            return sentinel(rest, None);
        }
        if let Some(rest) = options.url.strip_prefix("rediss-sentinel://") {
            return sentinel(rest, Some(certificates));
        }
        let nodes: Vec<&str> =
            options.url.split(',').map(str::trim).filter(|node| !node.is_empty()).collect();
        let is_tls = options.url.starts_with("rediss://");
        match nodes.as_slice() {
            [] => Err(BadUrl("it is empty".into())),
            [node] => {
                let info = node.into_connection_info().map_err(bad)?;
                let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
                let certificates = is_tls.then_some(&certificates);
                single(info, certificates).map(|client| Self::Single(Box::new(client))).map_err(bad)
            }
            nodes => {
                let certificates = is_tls.then_some(certificates);
                let infos = nodes.iter().map(|node| node.into_connection_info());
                let askers = infos.map(|info| single(info?, certificates.as_ref()));
                let askers = askers.collect::<RedisResult<_>>().map_err(bad)?;
                let mut builder = ClusterClient::builder(nodes.iter().copied())
                    .connection_timeout(CONNECT_TIMEOUT)
                    .response_timeout(RESPONSE_TIMEOUT)
                    .tcp_settings(TcpSettings::default().set_nodelay(true));
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                let client = builder.build().map_err(bad)?;
                Ok(Self::Cluster(Box::new(client), askers))
            }
        }
    }

    async fn connect(&self, owner: &Owner) -> RedisResult<Wire> {
        let config = config();
        let connected = match self {
            Self::Single(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Wire::Single)
            }
            Self::Cluster(client, _) => client.get_async_connection().await.map(Wire::Cluster),
            Self::Sentinel(client) => {
                let mut client = client.lock().await;
                client.get_async_connection_with_config(&config).await.map(Wire::Single)
            }
        };
        match connected {
            Err(error) if error.code().is_none() => Err(self.reason(owner).await.unwrap_or(error)),
            connected => connected,
        }
    }

    /// Why it could not be connected to, in the words of a server.
    async fn reason(&self, owner: &Owner) -> Option<RedisError> {
        match self {
            Self::Single(client) => probe::refusal(owner, slice::from_ref(client), &config()).await,
            Self::Cluster(_, nodes) => probe::refusal(owner, nodes, &config()).await,
            Self::Sentinel(client) => {
                let primary = client.lock().await.async_get_client().await.ok()?;
                probe::refusal(owner, &[primary], &config()).await
            }
        }
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

fn single(
    info: ConnectionInfo,
    certificates: Option<&TlsCertificates>,
) -> RedisResult<redis::Client> {
    match certificates {
        Some(certificates) => redis::Client::build_with_tls(info, certificates.clone()),
        None => redis::Client::open(info),
    }
}

/// Reads `[:password@]host:port,host:port[/db]#service`.
fn sentinel(rest: &str, certificates: Option<TlsCertificates>) -> Result<Target, BadUrl> {
    let (rest, service) = rest
        .split_once('#')
        .filter(|(_, service)| !service.is_empty())
        .ok_or_else(|| BadUrl("a Sentinel URL ends in `#` and the name of the service".into()))?;
    let (rest, db) = rest.split_once('/').unwrap_or((rest, "0"));
    let db = db.parse().map_err(|_| BadUrl("the database must be a number".into()))?;
    let (credentials, hosts) = match rest.rsplit_once('@') {
        Some((credentials, hosts)) => (credentials.split_once(':'), hosts),
        None => (None, rest),
    };
    let is_tls = certificates.is_some();
    let mut addresses = Vec::new();
    for host in hosts.split(',') {
        let scheme = if is_tls { "rediss" } else { "redis" };
        let info = format!("{scheme}://{host}")
            .into_connection_info()
            .map_err(|_| BadUrl("a Sentinel's address must be `host:port`".into()))?;
        addresses.push(info.addr().clone());
    }
    let bad = |error: RedisError| BadUrl(error.category().to_owned());
    let mut builder = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master)
        .map_err(bad)?
        .set_client_to_redis_db(db)
        .set_client_to_redis_tcp_settings(TcpSettings::default().set_nodelay(true));
    if let Some((username, password)) = credentials {
        builder = builder.set_client_to_redis_password(password);
        if !username.is_empty() {
            builder = builder.set_client_to_redis_username(username);
        }
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_certificates(certificates);
    }
    let client = builder.build().map_err(bad)?;
    Ok(Target::Sentinel(Box::new(tokio::sync::Mutex::new(client))))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, BadUrl> {
        Target::parse(&RedisOptions { url: url.into(), ..RedisOptions::default() })
    }

    #[test]
    fn the_url_says_what_kind_of_redis_it_is() {
        assert!(matches!(parse("redis://:secret@127.0.0.1:6379/2"), Ok(Target::Single(_))));
        assert!(matches!(parse("redis://a:1,redis://b:2"), Ok(Target::Cluster(..))));
        assert!(matches!(
            parse("redis-sentinel://:secret@a:26379,b:26379/1#main"),
            Ok(Target::Sentinel(_))
        ));
    }

    #[test]
    fn a_bad_url_is_told_without_its_password() {
        for url in ["", "http://secret@h", "redis-sentinel://:secret@a:1", "redis://:secret@h:x"] {
            let error = parse(url).map(|_| ()).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
