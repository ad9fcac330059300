//! From settings to the parts of a worker.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::ExposeSecret;

use super::{Exit, complain};
use crate::{
    broker::{BrokerOptions, Missing, Session},
    config::{Breaker, Settings, Tls},
    domain::settle::Policy,
    gateway::{
        Gateway, GatewayOptions,
        signing::{SigningKey, VerifyingKeys},
    },
    lease::{LeaseTimes, Leases, Owner, RedisOptions, Role},
    telemetry::{self, Traces},
    worker::BreakerOptions,
};

/// Loads the settings, or says everything that is wrong with them.
pub(super) fn load(config: Option<&Path>) -> Result<Settings, Exit> {
    // A variable of another program may hold anything; one of ours that is no text fails as a bad value.
    let ours = std::env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    });
    Settings::load(config, ours).map_err(|errors| {
        complain(&format!("error: the settings can't be used:\n{errors}"));
        Exit::Usage
    })
}

pub(super) fn start_telemetry(settings: &Settings) -> Result<Traces, String> {
    let (log, traces) = (&settings.log, &settings.traces);
    telemetry::start(log.format, &log.filter, traces.endpoint.as_deref())
}

/// The broker's options, with every delay that needs a queue.
pub(super) fn broker_options(settings: &Settings) -> Result<BrokerOptions, Vec<String>> {
    let broker = &settings.broker;
    let (ca, client) = tls("broker", &broker.tls)?;
    let ca = ca
        .map(String::from_utf8)
        .transpose()
        .map_err(|_| vec!["broker.ca_file is no PEM text".to_owned()])?;
    if !Session::takes(broker.url.expose_secret()) {
        return Err(vec![
            "broker.url is no AMQP URL (amqp://user:password@host:port/vhost)".to_owned(),
        ]);
    }
    let mut delays = settings.retry.schedule.clone();
    delays.extend(&settings.retry.defer_schedule);
    delays.sort_unstable();
    delays.dedup();
    Ok(BrokerOptions {
        url: broker.url.expose_secret().to_owned(),
        prefix: broker.prefix.clone(),
        prefetch: broker.prefetch,
        topology: broker.topology,
        delays,
        ca,
        client,
        on_publish: None,
        missing: Missing::default(),
    })
}

/// The leases of these settings. Each command that uses them calls the gateway too, and [`gateway`] reports a
/// `gateway.client_id` that is missing: no key is ever written without it.
pub(super) fn leases(settings: &Settings, role: Role) -> Result<Leases, Vec<String>> {
    let client_id = settings.gateway.client_id.as_deref().unwrap_or_default();
    let owner = Owner::new(&settings.broker.prefix, client_id);
    let (ca, client) = tls("redis", &settings.redis.tls)?;
    let options = RedisOptions { url: settings.redis.url.expose_secret().to_owned(), ca, client };
    let times = LeaseTimes {
        ttl: settings.lease.ttl,
        hold_in_doubt: settings.lease.hold_in_doubt,
        remember: settings.lease.remember,
        longest_call: settings.gateway.timeout,
    };
    Leases::new(&options, owner, role, times).map_err(|error| vec![error.to_string()])
}

/// The gateway of these settings, or every key that is missing or bad.
pub(super) fn gateway(settings: &Settings) -> Result<Gateway, Vec<String>> {
    let access = settings.require_gateway().map_err(|errors| vec![errors.to_string()])?;
    let signing_key = SigningKey::parse(access.private_key.expose_secret())
        .map_err(|error| format!("gateway.private_key: {error}"));
    let verifying_keys = VerifyingKeys::parse(&access.public_key)
        .map_err(|error| format!("gateway.public_key: {error}"));
    let (signing_key, verifying_keys) = match (signing_key, verifying_keys) {
        (Ok(signing_key), Ok(verifying_keys)) => (signing_key, verifying_keys),
        (signing, verifying) => {
            return Err([signing.err(), verifying.err()].into_iter().flatten().collect());
        }
    };
    let gateway = &settings.gateway;
    Gateway::new(GatewayOptions {
        base_url: access.base_url,
        capture_path: gateway.capture_path.clone(),
        inquiry_path: gateway.inquiry_path.clone(),
        client_id: access.client_id,
        key_version: gateway.key_version,
        signing_key,
        verifying_keys,
        agent_token: gateway.agent_token.as_ref().map(|token| token.expose_secret().to_owned()),
        timeout: gateway.timeout,
        inquiry_timeout: gateway.inquiry_timeout,
    })
    .map_err(|error| vec![error.to_string()])
}

pub(super) fn policy(settings: &Settings) -> Policy {
    Policy {
        schedule: settings.retry.schedule.clone(),
        defer_schedule: settings.retry.defer_schedule.clone(),
        max_age: settings.retry.max_age,
    }
}

pub(super) fn breaker(settings: &Settings) -> BreakerOptions {
    let Breaker { failures, pause, max_pause } = settings.breaker;
    BreakerOptions { failures, pause, max_pause }
}

pub(super) fn rate_limit(settings: &Settings) -> Option<(NonZeroU32, Duration)> {
    settings.gateway.rate_limit.map(|limit| (limit.calls, limit.period))
}

type Pem = Vec<u8>;
type TlsFiles = (Option<Pem>, Option<(Pem, Pem)>);

/// The private authority, and our certificate with its key.
fn tls(section: &str, tls: &Tls) -> Result<TlsFiles, Vec<String>> {
    let mut errors = Vec::new();
    let mut read = |key: &str, file: &Option<PathBuf>| {
        let file = file.as_ref()?;
        std::fs::read(file)
            .map_err(|error| errors.push(format!("{section}.{key} {}: {error}", file.display())))
            .ok()
    };
    let ca = read("ca_file", &tls.ca_file);
    let certificate = read("client_cert_file", &tls.client_cert_file);
    let key = read("client_key_file", &tls.client_key_file);
    if errors.is_empty() { Ok((ca, certificate.zip(key))) } else { Err(errors) }
}
