//! Settings. `config/default.toml` holds the defaults and documents every key. A settings file
//! overrides it, and environment variables override both. Combinations that can't be safe are
//! refused at start, all of them at once.

mod load;
mod needs;
mod relations;
mod sources;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub(crate) use self::load::shown_path;
use self::values::{address, duration, durations, keys, number, optional, secret, texts};
pub use self::{
    needs::{GatewayAccess, SettingsErrors},
    relations::BROKER_URL,
    values::RateLimit,
};
use crate::{
    broker::{self, Topology},
    domain::{capture::class::Codes, duration::show as time, job::forward::ForwardFields},
    lease,
};

/// The defaults, with the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// All settings of the program, by section. `config/default.toml` documents each key: its meaning,
/// unit and limits.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// The connection to RabbitMQ, and the names that the program uses there.
    pub broker: Broker,
    /// The connection to Redis.
    pub redis: Redis,
    /// The gateway's address, the merchant's credentials and the limits of calls.
    pub gateway: GatewaySettings,
    /// How long Redis keeps leases, in-doubt blocks and outcomes.
    pub lease: Lease,
    /// The delays of retries and deferrals.
    pub retry: Retry,
    /// When failures of the gateway pause captures, and how often it is probed then.
    pub breaker: Breaker,
    #[serde(rename = "classes", default)]
    class_names: BTreeMap<String, String>,
    /// The table of result codes, including the additions of `[classes]`.
    #[serde(skip)]
    pub classes: Codes,
    /// The server of probes and metrics.
    pub http: Http,
    /// How the process ends after a signal.
    pub drain: Drain,
    /// The format and the levels of log lines.
    pub log: Log,
    /// Where traces are exported to.
    #[serde(default)]
    pub traces: Traces,
    /// Keys whose values can't be read. Their defaults replace them until the errors are reported.
    #[serde(skip)]
    unusable: BTreeSet<String>,
    /// Environment variables that are set and name a proxy. They are not used and cause a warning.
    #[serde(skip)]
    proxy_variables: Vec<String>,
}

/// The settings of section `[broker]`: the connection to RabbitMQ.
#[derive(Debug, Deserialize)]
pub struct Broker {
    /// The URL, `amqp://` or `amqps://`. It may contain a password.
    #[serde(deserialize_with = "secret")]
    pub url: SecretString,
    #[serde(default, deserialize_with = "optional")]
    url_file: Option<PathBuf>,
    /// The prefix of all exchange and queue names.
    pub prefix: String,
    /// The maximum number of jobs in flight in this process.
    #[serde(deserialize_with = "number")]
    pub prefetch: u16,
    /// Whether exchanges and queues are declared or checked at start.
    #[serde(deserialize_with = "values::topology")]
    pub topology: Topology,
    /// The certificate files for `amqps://`.
    #[serde(flatten)]
    pub tls: Tls,
}

/// The settings of section `[redis]`.
#[derive(Debug, Deserialize)]
pub struct Redis {
    /// The URL or URLs, as `redis.url` documents them. They may contain a password.
    #[serde(deserialize_with = "secret")]
    pub url: SecretString,
    #[serde(default, deserialize_with = "optional")]
    url_file: Option<PathBuf>,
    /// The user name at the Sentinels.
    #[serde(default, deserialize_with = "optional")]
    pub sentinel_username: Option<String>,
    /// The password at the Sentinels. Without it they receive the URL's credentials.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub sentinel_password: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    sentinel_password_file: Option<PathBuf>,
    /// The certificate files for `rediss://`.
    #[serde(flatten)]
    pub tls: Tls,
}

/// The certificate files of a connection. All are PEM and are read at start.
#[derive(Debug, Default, Deserialize)]
pub struct Tls {
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
    private_key_file: Option<PathBuf>,
    /// The public keys of the gateway; several while it changes them.
    #[serde(default, deserialize_with = "keys")]
    pub public_key: Vec<String>,
    #[serde(default, deserialize_with = "optional")]
    public_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "texts")]
    forward_fields: Vec<String>,
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
    proxy_file: Option<PathBuf>,
    /// The maximum rate of calls of this process, captures and inquiries together.
    #[serde(default, deserialize_with = "optional")]
    pub rate_limit: Option<RateLimit>,
}

/// The settings of section `[lease]`: how long Redis keeps what workers write there.
#[derive(Debug, Deserialize)]
pub struct Lease {
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
pub struct Retry {
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
pub struct Breaker {
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
pub struct Http {
    /// The address that serves probes and metrics. Port 0 selects a free port.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
}

/// The settings of section `[drain]`.
#[derive(Debug, Deserialize)]
pub struct Drain {
    /// How long jobs in flight may take after SIGTERM.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

/// The settings of section `[log]`.
#[derive(Debug, Deserialize)]
pub struct Log {
    /// The format of log lines. If absent, it is text on a terminal and JSON otherwise.
    #[serde(default, deserialize_with = "optional")]
    pub format: Option<LogFormat>,
    /// The log levels, in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// The settings of section `[traces]`.
#[derive(Debug, Default, Deserialize)]
pub struct Traces {
    /// The address of the collector. If absent, no traces are exported.
    #[serde(default, deserialize_with = "optional")]
    pub endpoint: Option<String>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, for programs.
    Json,
    /// Plain text, for people.
    Text,
}

impl Settings {
    /// Every key with its value, in the order of `config/default.toml`. Of a secret, only whether
    /// it is set.
    #[must_use]
    pub fn describe(&self) -> Vec<(String, String)> {
        let Self {
            broker, redis, gateway, lease, retry, breaker, http, drain, log, traces, ..
        } = self;
        let mut lines = Vec::new();
        let mut line = |key: &str, value: String| lines.push((key.to_owned(), value));
        let broker_url = broker::without_credentials(broker.url.expose_secret());
        line("broker.url", broker_url.unwrap_or_else(|| "set".into()));
        line("broker.prefix", broker.prefix.clone());
        line("broker.prefetch", broker.prefetch.to_string());
        line("broker.topology", format!("{:?}", broker.topology).to_lowercase());
        for (key, value) in broker.tls.describe() {
            line(&format!("broker.{key}"), value);
        }
        let redis_url = lease::without_credentials(redis.url.expose_secret());
        line("redis.url", redis_url.unwrap_or_else(|| "set".into()));
        line("redis.sentinel_username", or_none(redis.sentinel_username.as_ref()));
        line("redis.sentinel_password", is_set(redis.sentinel_password.is_some()));
        for (key, value) in redis.tls.describe() {
            line(&format!("redis.{key}"), value);
        }
        line("gateway.base_url", or_none(gateway.base_url.as_ref()));
        line("gateway.capture_path", gateway.capture_path.clone());
        line("gateway.inquiry_path", gateway.inquiry_path.clone());
        line("gateway.client_id", or_none(gateway.client_id.as_ref()));
        line("gateway.key_version", gateway.key_version.to_string());
        line("gateway.private_key", is_set(gateway.private_key.is_some()));
        line("gateway.public_key", format!("{} keys", gateway.public_key.len()));
        line("gateway.forward_fields", gateway.forward_fields.join(", "));
        line("gateway.agent_token", is_set(gateway.agent_token.is_some()));
        line("gateway.timeout", time(gateway.timeout));
        line("gateway.inquiry_timeout", time(gateway.inquiry_timeout));
        line("gateway.proxy", is_set(gateway.proxy.is_some()));
        line("gateway.rate_limit", or_none(gateway.rate_limit.as_ref()));
        line("lease.ttl", time(lease.ttl));
        line("lease.hold_in_doubt", time(lease.hold_in_doubt));
        line("lease.remember", time(lease.remember));
        line("retry.schedule", times(&retry.schedule));
        line("retry.defer_schedule", times(&retry.defer_schedule));
        line("retry.max_age", time(retry.max_age));
        line("breaker.failures", breaker.failures.to_string());
        line("breaker.pause", time(breaker.pause));
        line("breaker.max_pause", time(breaker.max_pause));
        for (code, class) in &self.class_names {
            line(&format!("classes.{code}"), class.clone());
        }
        line("http.listen", http.listen.to_string());
        line("drain.timeout", time(drain.timeout));
        let format = log.format.map(|format| format!("{format:?}").to_lowercase());
        line("log.format", or_none(format.as_ref()));
        line("log.filter", log.filter.clone());
        line("traces.endpoint", or_none(traces.endpoint.as_ref()));
        lines
    }
}

impl GatewaySettings {
    /// The fields of a job that are copied into the capture request.
    #[must_use]
    pub fn forward_fields(&self) -> ForwardFields {
        // `Settings::load` has already refused names that can't be forwarded.
        ForwardFields::new(&self.forward_fields).unwrap_or_default()
    }
}

impl Tls {
    fn describe(&self) -> [(&'static str, String); 3] {
        let file =
            |file: &Option<PathBuf>| or_none(file.as_ref().map(|file| shown_path(file)).as_ref());
        [
            ("ca_file", file(&self.ca_file)),
            ("client_cert_file", file(&self.client_cert_file)),
            ("client_key_file", file(&self.client_key_file)),
        ]
    }
}

fn or_none(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "none".into(), ToString::to_string)
}

fn is_set(set: bool) -> String {
    if set { "set".into() } else { "none".into() }
}

fn times(durations: &[Duration]) -> String {
    durations.iter().copied().map(time).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
