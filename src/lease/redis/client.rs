//! Connects to Redis: to a single server, to a Cluster (which one address may turn out to be), or
//! to the primary that Sentinels name. Sentinels may ask for a password.

use std::{slice, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, IntoConnectionInfo as _,
    RedisError, RedisResult, TlsCertificates, TlsMode,
    aio::MultiplexedConnection,
    cluster::ClusterClient,
    cmd,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::sync::Mutex;

use super::{
    address::{Address, BadUrl, RedisOptions, SentinelAddress, SentinelLogin},
    connection::{RESPONSE_TIMEOUT, RedisConnection},
    probe,
};
use crate::lease::Owner;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The clients that connect to what `redis.url` names.
pub(super) enum RedisClient {
    Node(Box<NodeClient>),
    /// The client of the Cluster, and one for each node, which is asked why connecting failed.
    Cluster(Box<ClusterClient>, Vec<Client>),
    Sentinel(Box<PrimaryClient>),
}

/// One address, of a single server or a node of a Cluster.
pub(super) struct NodeClient {
    client: Client,
    certificates: Option<TlsCertificates>,
}

/// A primary that Sentinels monitor.
pub(super) struct PrimaryClient {
    client: Mutex<SentinelClient>,
    /// The client for Sentinels that ask for a password, with the credentials of the URL.
    with_password: Option<Mutex<SentinelClient>>,
    /// One client for each Sentinel, without credentials.
    sentinels: Vec<Client>,
}

impl RedisClient {
    pub(super) fn new(options: &RedisOptions) -> Result<Self, BadUrl> {
        let certificates = TlsCertificates {
            client_tls: options
                .client
                .clone()
                .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: options.ca.clone(),
        };
        match Address::parse(&options.url)? {
            Address::Node(info) => {
                let certificates = is_tls(&info).then_some(certificates);
                let client = client(info, certificates.as_ref())?;
                Ok(Self::Node(Box::new(NodeClient { client, certificates })))
            }
            Address::Cluster(nodes) => {
                let certificates = nodes.first().is_some_and(is_tls).then_some(certificates);
                let each = nodes.iter().cloned();
                let askers = each.map(|node| client(node, certificates.as_ref()));
                let askers = askers.collect::<Result<_, _>>()?;
                let client = cluster(nodes, certificates).map_err(|_| BadUrl::Client)?;
                Ok(Self::Cluster(Box::new(client), askers))
            }
            Address::Sentinel(address) => {
                let certificates = address.is_tls.then_some(certificates);
                PrimaryClient::new(&address, options.sentinel.as_ref(), certificates.as_ref())
                    .map(|primary| Self::Sentinel(Box::new(primary)))
            }
        }
    }

    pub(super) async fn connect(&self, owner: &Owner) -> RedisResult<RedisConnection> {
        let connected = match self {
            Self::Node(node) => node.connect().await,
            Self::Cluster(client, _) => {
                client.get_async_connection().await.map(RedisConnection::Cluster)
            }
            Self::Sentinel(primary) => primary.connect().await.map(RedisConnection::Single),
        };
        match connected {
            Err(error) if error.code().is_none() => Err(self.reason(owner).await.unwrap_or(error)),
            connected => connected,
        }
    }

    /// Why connecting failed, as a server reports it.
    pub(super) async fn reason(&self, owner: &Owner) -> Option<RedisError> {
        match self {
            Self::Node(node) => {
                probe::refusal(owner, slice::from_ref(&node.client), &config()).await
            }
            Self::Cluster(_, nodes) => probe::refusal(owner, nodes, &config()).await,
            Self::Sentinel(primary) => {
                let client = primary.client.lock().await.async_get_client().await.ok()?;
                probe::refusal(owner, &[client], &config()).await
            }
        }
    }
}

impl NodeClient {
    /// Connects to the server, or to the whole Cluster if the server is a node of one. Used as a
    /// single server, a node would serve some payments and refuse the others.
    async fn connect(&self) -> RedisResult<RedisConnection> {
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config()).await?;
        if !is_cluster(&mut connection).await? {
            return Ok(RedisConnection::Single(connection));
        }
        tracing::debug!("Redis Cluster found at the single address of redis.url");
        let nodes = vec![self.client.get_connection_info().clone()];
        let client = cluster(nodes, self.certificates.clone())?;
        client.get_async_connection().await.map(RedisConnection::Cluster)
    }
}

impl PrimaryClient {
    fn new(
        address: &SentinelAddress,
        login: Option<&SentinelLogin>,
        certificates: Option<&TlsCertificates>,
    ) -> Result<Self, BadUrl> {
        let own = SentinelLogin {
            username: address.redis.username().map(ToOwned::to_owned),
            password: address.redis.password().unwrap_or_default().to_owned(),
        };
        let fallback = Some(&own).filter(|own| login.is_none() && !own.password.is_empty());
        let of = |login| sentinel(address, login, certificates).map(Mutex::new);
        let sentinels = address.sentinels.iter().map(|address| {
            let info = address.clone().into_connection_info().map_err(|_| BadUrl::Client)?;
            client(info, certificates)
        });
        Ok(Self {
            client: of(login)?,
            with_password: fallback.map(|own| of(Some(own))).transpose()?,
            sentinels: sentinels.collect::<Result<_, _>>()?,
        })
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let connected = connect_by(&self.client).await;
        match (&connected, &self.with_password) {
            // With several Sentinels, the client reports one error, which may hide the NOAUTH of
            // another Sentinel. So ask each of them.
            (Err(_), Some(with_password)) if self.ask_for_password().await => {
                connect_by(with_password).await
            }
            _ => connected,
        }
    }

    /// Whether a Sentinel requires a password.
    async fn ask_for_password(&self) -> bool {
        for client in &self.sentinels {
            let asked = async {
                let mut connection =
                    client.get_multiplexed_async_connection_with_config(&config()).await?;
                cmd("ROLE").exec_async(&mut connection).await
            };
            if asked.await.is_err_and(|error| error.code() == Some("NOAUTH")) {
                return true;
            }
        }
        false
    }
}

async fn connect_by(client: &Mutex<SentinelClient>) -> RedisResult<MultiplexedConnection> {
    client.lock().await.get_async_connection_with_config(&config()).await
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. })
}

fn client(info: ConnectionInfo, certificates: Option<&TlsCertificates>) -> Result<Client, BadUrl> {
    let info = info.set_tcp_settings(tcp());
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        None => Client::open(info),
    };
    client.map_err(|_| BadUrl::Client)
}

fn cluster(
    nodes: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
) -> RedisResult<ClusterClient> {
    let mut builder = ClusterClient::builder(nodes)
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(RESPONSE_TIMEOUT)
        .tcp_settings(tcp());
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build()
}

fn sentinel(
    address: &SentinelAddress,
    login: Option<&SentinelLogin>,
    certificates: Option<&TlsCertificates>,
) -> Result<SentinelClient, BadUrl> {
    let bad = |_: RedisError| BadUrl::Client;
    let sentinels = address.sentinels.iter().cloned();
    let mut builder =
        SentinelClientBuilder::new(sentinels, &address.service, SentinelServerType::Master)
            .map_err(bad)?
            .set_client_to_redis_db(address.redis.db())
            .set_client_to_redis_protocol(address.redis.protocol())
            .set_client_to_redis_tcp_settings(tcp());
    if let Some(username) = address.redis.username() {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = address.redis.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(SentinelLogin { username, password }) = login {
        builder = builder.set_client_to_sentinel_password(password);
        if let Some(username) = username {
            builder = builder.set_client_to_sentinel_username(username);
        }
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_certificates(certificates.clone());
    }
    builder.build().map_err(bad)
}

/// Whether this server is a node of a Cluster; false if it does not say.
async fn is_cluster(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    // An ACL may forbid either command, and a provider may have renamed it.
    let is_refused = |error: &RedisError| matches!(error.code(), Some("NOPERM" | "ERR"));
    let info: RedisResult<String> = cmd("INFO").arg("cluster").query_async(connection).await;
    match info {
        Ok(info) => return Ok(info.lines().any(|line| line == "cluster_enabled:1")),
        Err(error) if !is_refused(&error) => return Err(error),
        Err(_) => {}
    }
    match cmd("CLUSTER").arg("INFO").query_async::<String>(connection).await {
        Ok(_) => Ok(true),
        Err(error) if !is_refused(&error) => Err(error),
        // A single server refuses this command, too.
        Err(_) => Ok(false),
    }
}
