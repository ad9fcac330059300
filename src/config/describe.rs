//! The settings in words, for `check`. Of a secret, only whether it is set.

use std::{fmt, path::PathBuf};

use secrecy::ExposeSecret;

use super::{
    Settings,
    settings::TlsSettings,
    shown::{shown_path, times},
};
use crate::{broker, domain::duration::show as time, lease};

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

impl TlsSettings {
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
