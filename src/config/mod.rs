//! Settings: `config/default.toml` is the defaults and documents every key; a file overrides it; the environment
//! overrides both. What can't be safe together is refused at the start, all at once.

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
    domain::{class::Codes, duration::show as time, forward::ForwardFields},
    lease,
};

/// The defaults, with the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// All settings.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// RabbitMQ.
    pub broker: Broker,
    /// Redis.
    pub redis: Redis,
    /// The gateway and who calls it.
    pub gateway: GatewaySettings,
    /// Times of the lease.
    pub lease: Lease,
    /// When jobs are tried again.
    pub retry: Retry,
    /// When the gateway is given a pause.
    pub breaker: Breaker,
    #[serde(rename = "classes", default)]
    class_names: BTreeMap<String, String>,
    /// The table of result codes, with the additions of `[classes]`.
    #[serde(skip)]
    pub classes: Codes,
    /// Probes and metrics.
    pub http: Http,
    /// The end of the process.
    pub drain: Drain,
    /// Logs.
    pub log: Log,
    /// Traces.
    #[serde(default)]
    pub traces: Traces,
    /// Keys whose values can't be used: the defaults stand in for them until the errors are told.
    #[serde(skip)]
    unusable: BTreeSet<String>,
    /// Variables that name a proxy for other programs.
    #[serde(skip)]
    proxy_variables: Vec<String>,
}

/// `[broker]`.
#[derive(Debug, Deserialize)]
pub struct Broker {
    /// Where it is.
    #[serde(deserialize_with = "secret")]
    pub url: SecretString,
    #[serde(default, deserialize_with = "optional")]
    url_file: Option<PathBuf>,
    /// The prefix of all names.
    pub prefix: String,
    /// Jobs in flight.
    #[serde(deserialize_with = "number")]
    pub prefetch: u16,
    /// What is done about exchanges and queues at the start.
    #[serde(deserialize_with = "values::topology")]
    pub topology: Topology,
    /// Private certificates.
    #[serde(flatten)]
    pub tls: Tls,
}

/// `[redis]`.
#[derive(Debug, Deserialize)]
pub struct Redis {
    /// Where it is.
    #[serde(deserialize_with = "secret")]
    pub url: SecretString,
    #[serde(default, deserialize_with = "optional")]
    url_file: Option<PathBuf>,
    /// Who we are for the Sentinels.
    #[serde(default, deserialize_with = "optional")]
    pub sentinel_username: Option<String>,
    /// The password for it.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub sentinel_password: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    sentinel_password_file: Option<PathBuf>,
    /// Private certificates.
    #[serde(flatten)]
    pub tls: Tls,
}

/// Private certificates of a connection.
#[derive(Debug, Default, Deserialize)]
pub struct Tls {
    /// A private certificate authority.
    #[serde(default, deserialize_with = "optional")]
    pub ca_file: Option<PathBuf>,
    /// Our certificate.
    #[serde(default, deserialize_with = "optional")]
    pub client_cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(default, deserialize_with = "optional")]
    pub client_key_file: Option<PathBuf>,
}

/// `[gateway]`.
#[derive(Debug, Deserialize)]
pub struct GatewaySettings {
    /// Its address.
    #[serde(default, deserialize_with = "optional")]
    pub base_url: Option<String>,
    /// The path of captures.
    pub capture_path: String,
    /// The path of inquiries.
    pub inquiry_path: String,
    /// The merchant's client id.
    #[serde(default, deserialize_with = "optional")]
    pub client_id: Option<String>,
    /// Which of the merchant's keys signs.
    #[serde(deserialize_with = "number")]
    pub key_version: u32,
    /// The merchant's private key.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub private_key: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    private_key_file: Option<PathBuf>,
    /// The gateway's public keys.
    #[serde(default, deserialize_with = "keys")]
    pub public_key: Vec<String>,
    #[serde(default, deserialize_with = "optional")]
    public_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "texts")]
    forward_fields: Vec<String>,
    /// Only for integrators.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub agent_token: Option<SecretString>,
    /// The time of a capture.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// The time of an inquiry.
    #[serde(deserialize_with = "duration")]
    pub inquiry_timeout: Duration,
    /// The HTTP proxy that tunnels to it.
    #[serde(default, deserialize_with = "values::optional_secret")]
    pub proxy: Option<SecretString>,
    #[serde(default, deserialize_with = "optional")]
    proxy_file: Option<PathBuf>,
    /// The most jobs that begin.
    #[serde(default, deserialize_with = "optional")]
    pub rate_limit: Option<RateLimit>,
}

/// `[lease]`.
#[derive(Debug, Deserialize)]
pub struct Lease {
    /// A lease whose worker died.
    #[serde(deserialize_with = "duration")]
    pub ttl: Duration,
    /// The hold of an id in doubt.
    #[serde(deserialize_with = "duration")]
    pub hold_in_doubt: Duration,
    /// Final outcomes and marks.
    #[serde(deserialize_with = "duration")]
    pub remember: Duration,
}

/// `[retry]`.
#[derive(Debug, Deserialize)]
pub struct Retry {
    /// The waits between attempts.
    #[serde(deserialize_with = "durations")]
    pub schedule: Vec<Duration>,
    /// The waits of deferrals.
    #[serde(deserialize_with = "durations")]
    pub defer_schedule: Vec<Duration>,
    /// Past this nothing is retried or deferred.
    #[serde(deserialize_with = "duration")]
    pub max_age: Duration,
}

/// `[breaker]`.
#[derive(Debug, Deserialize)]
pub struct Breaker {
    /// Consecutive failures that open it.
    #[serde(deserialize_with = "number")]
    pub failures: u32,
    /// The first pause.
    #[serde(deserialize_with = "duration")]
    pub pause: Duration,
    /// The longest.
    #[serde(deserialize_with = "duration")]
    pub max_pause: Duration,
}

/// `[http]`.
#[derive(Debug, Deserialize)]
pub struct Http {
    /// Where probes and metrics are served.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
}

/// `[drain]`.
#[derive(Debug, Deserialize)]
pub struct Drain {
    /// How long jobs in flight may take.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

/// `[log]`.
#[derive(Debug, Deserialize)]
pub struct Log {
    /// Absent: text on a terminal, else JSON.
    #[serde(default, deserialize_with = "optional")]
    pub format: Option<LogFormat>,
    /// Levels.
    pub filter: String,
}

/// `[traces]`.
#[derive(Debug, Default, Deserialize)]
pub struct Traces {
    /// The collector; absent: no traces.
    #[serde(default, deserialize_with = "optional")]
    pub endpoint: Option<String>,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For programs.
    Json,
    /// For people.
    Text,
}

impl Settings {
    /// Every key with its value, in the order of the defaults' file; of secrets, only that they are set.
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
    /// The fields of jobs that go to the gateway.
    #[must_use]
    pub fn forward_fields(&self) -> ForwardFields {
        // Names that can't be forwarded were refused when the settings were loaded.
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
