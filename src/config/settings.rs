//! The settings by section, as `config/default.toml` documents them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;
use serde::Deserialize;

use super::values::{
    self, LogFormat, RateLimit, address, duration, durations, keys, number, optional, secret, texts,
};
use crate::{
    broker::TopologyMode,
    domain::{capture::class::Codes, job::forward::ForwardFields},
};

/// All settings of the program, by section. `config/default.toml` documents each key: its meaning,
/// unit and limits.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// The connection to RabbitMQ, and the names that the program uses there.
    pub broker: BrokerSettings,
    /// The connection to Redis.
    pub redis: RedisSettings,
    /// The gateway's address, the merchant's credentials and the limits of calls.
    pub gateway: GatewaySettings,
    /// How long Redis keeps leases, in-doubt blocks and outcomes.
    pub lease: LeaseSettings,
    /// The delays of retries and deferrals.
    pub retry: RetrySettings,
    /// When failures of the gateway pause captures, and how often it is probed then.
    pub breaker: BreakerSettings,
    #[serde(rename = "classes", default)]
    pub(super) class_names: BTreeMap<String, String>,
    /// The table of result codes, including the additions of `[classes]`.
    #[serde(skip)]
    pub classes: Codes,
    /// The server of probes and metrics.
    pub http: HttpSettings,
    /// How the process ends after a signal.
    pub drain: DrainSettings,
    /// The format and the levels of log lines.
    pub log: LogSettings,
    /// Where traces are exported to.
    #[serde(default)]
    pub traces: TracesSettings,
    /// Keys whose values can't be read. Their defaults replace them until the errors are reported.
    #[serde(skip)]
    pub(super) unusable: BTreeSet<String>,
    /// Environment variables that are set and name a proxy. They are not used and cause a warning.
    #[serde(skip)]
    pub(super) proxy_variables: Vec<String>,
}

/// The settings of section `[broker]`: the connection to RabbitMQ.
#[derive(Debug, Deserialize)]
pub struct BrokerSettings {
    /// The URL, `amqp://` or `amqps://`. It may contain a password.
    #[serde(deserialize_with = "secret")]
    pub url: SecretString,
    #[serde(default, deserialize_with = "optional")]
    pub(super) url_file: Option<PathBuf>,
    /// The prefix of all exchange and queue names.
    pub prefix: String,
    /// The maximum number of jobs in flight in this process.
    #[serde(deserialize_with = "number")]
    pub prefetch: u16,
    /// Whether exchanges and queues are declared or checked at start.
    #[serde(deserialize_with = "values::topology")]
    pub topology: TopologyMode,
    /// The certificate files for `amqps://`.
    #[serde(flatten)]
    pub tls: TlsSettings,
}

/// The settings of section `[redis]`.
#[derive(Debug, Deserialize)]
pub struct RedisSettings {
    /// The URL or URLs, as `redis.url` documents them. They may contain a password.
    #[serde(deserialize_with = "secret")]
    pub url: SecretString,
    #[serde(default, deserialize_with = "optional")]
    pub(super) url_file: Option<PathBuf>,
    /// The user name at the Sentinels.
    #[serde(default, deserialize_with = "optional")]
    pub sentinel_username: Option<String>,
    /// The password at the Sentinels. Without it they receive the URL's credentials.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub sentinel_password: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) sentinel_password_file: Option<PathBuf>,
    /// The certificate files for `rediss://`.
    #[serde(flatten)]
    pub tls: TlsSettings,
}

/// The certificate files of a connection. All are PEM and are read at start.
#[derive(Debug, Default, Deserialize)]
pub struct TlsSettings {
    /// A private certificate authority that signed the server's certificate.
    #[serde(default, deserialize_with = "optional")]
    pub ca_file: Option<PathBuf>,
    /// The client certificate. It is set if and only if its key is set.
    #[serde(default, deserialize_with = "optional")]
    pub client_cert_file: Option<PathBuf>,
    /// The private key of the client certificate.
    #[serde(default, deserialize_with = "optional")]
    pub client_key_file: Option<PathBuf>,
}

/// The settings of section `[gateway]`.
#[derive(Debug, Deserialize)]
pub struct GatewaySettings {
    /// The address, `https://` or `http://`, with an optional path.
    #[serde(default, deserialize_with = "optional")]
    pub base_url: Option<String>,
    /// The path of the capture call.
    pub capture_path: String,
    /// The path of the inquiry call.
    pub inquiry_path: String,
    /// The client id of the merchant.
    #[serde(default, deserialize_with = "optional")]
    pub client_id: Option<String>,
    /// The version of the merchant's key that signs, as the gateway numbers it.
    #[serde(deserialize_with = "number")]
    pub key_version: u32,
    /// The merchant's private RSA key, as base64 or PEM.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub private_key: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) private_key_file: Option<PathBuf>,
    /// The public keys of the gateway; several while it changes them.
    #[serde(default, deserialize_with = "keys")]
    pub public_key: Vec<String>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) public_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "texts")]
    pub(super) forward_fields: Vec<String>,
    /// The agent token. Only integrators have one.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub agent_token: Option<SecretString>,
    /// The time limit of a capture call, including the connection.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// The time limit of an inquiry, including the connection.
    #[serde(deserialize_with = "duration")]
    pub inquiry_timeout: Duration,
    /// The URL of the HTTP proxy that opens a tunnel to the gateway. It may contain a password.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub proxy: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    pub(super) proxy_file: Option<PathBuf>,
    /// The maximum rate of calls of this process, captures and inquiries together.
    #[serde(default, deserialize_with = "optional")]
    pub rate_limit: Option<RateLimit>,
}

/// The settings of section `[lease]`: how long Redis keeps what workers write there.
#[derive(Debug, Deserialize)]
pub struct LeaseSettings {
    /// How long the lease of a payment lasts if its worker died.
    #[serde(deserialize_with = "duration")]
    pub ttl: Duration,
    /// How long after its last send an id in doubt blocks its payment.
    #[serde(deserialize_with = "duration")]
    pub hold_in_doubt: Duration,
    /// How long final outcomes and sent markers are kept.
    #[serde(deserialize_with = "duration")]
    pub remember: Duration,
}

/// The settings of section `[retry]`: delays and the maximum age of jobs.
#[derive(Debug, Deserialize)]
pub struct RetrySettings {
    /// The delays between attempts: n delays allow n + 1 attempts.
    #[serde(deserialize_with = "durations")]
    pub schedule: Vec<Duration>,
    /// The delays of deferrals, which use no attempt. The last one repeats.
    #[serde(deserialize_with = "durations")]
    pub defer_schedule: Vec<Duration>,
    /// The age beyond which a job is neither retried nor deferred.
    #[serde(deserialize_with = "duration")]
    pub max_age: Duration,
}

/// The settings of section `[breaker]`.
#[derive(Debug, Deserialize)]
pub struct BreakerSettings {
    /// The number of consecutive failures that opens the breaker.
    #[serde(deserialize_with = "number")]
    pub failures: u32,
    /// The delay before the first probe. It doubles after each failed probe.
    #[serde(deserialize_with = "duration")]
    pub pause: Duration,
    /// The longest delay between two probes.
    #[serde(deserialize_with = "duration")]
    pub max_pause: Duration,
}

/// The settings of section `[http]`.
#[derive(Debug, Deserialize)]
pub struct HttpSettings {
    /// The address that serves probes and metrics. Port 0 selects a free port.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
}

/// The settings of section `[drain]`.
#[derive(Debug, Deserialize)]
pub struct DrainSettings {
    /// How long jobs in flight may take after SIGTERM.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

/// The settings of section `[log]`.
#[derive(Debug, Deserialize)]
pub struct LogSettings {
    /// The format of log lines. If absent, it is text on a terminal and JSON otherwise.
    #[serde(default, deserialize_with = "optional")]
    pub format: Option<LogFormat>,
    /// The log levels, in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// The settings of section `[traces]`.
#[derive(Debug, Default, Deserialize)]
pub struct TracesSettings {
    /// The address of the collector. If absent, no traces are exported.
    #[serde(default, deserialize_with = "optional")]
    pub endpoint: Option<String>,
}

impl GatewaySettings {
    /// The fields of a job that are copied into the capture request.
    #[must_use]
    pub fn forward_fields(&self) -> ForwardFields {
        // `Settings::load` has already refused names that can't be forwarded.
        ForwardFields::new(&self.forward_fields).unwrap_or_default()
    }
}
