//! Builds the parts of a worker from the settings.

use std::{num::NonZeroU32, path::Path, time::Duration};

use secrecy::ExposeSecret;

use super::{Exit, print_error, tls};
use crate::{
    broker::{self, BrokerOptions, MissingQueues},
    config::{BROKER_URL, BreakerSettings, Settings, SettingsErrors},
    domain::settlement::RetryPolicy,
    gateway::{
        Gateway, GatewayOptions,
        signing::{SigningKey, VerifyingKeys},
    },
    lease::{LeaseTimes, Leases, Owner, RedisOptions, Role, SentinelLogin},
    telemetry::{self, TraceExport},
    worker::BreakerOptions,
};

/// A service whose settings a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Broker,
    Redis,
    Gateway,
}

impl Service {
    pub(super) const ALL: &[Self] = &[Self::Broker, Self::Redis, Self::Gateway];
}

/// Loads the settings, or prints everything that is wrong with them: syntax, values, and what is
/// missing or wrong for these services.
pub(super) fn load(config: Option<&Path>, services: &[Service]) -> Result<Settings, Exit> {
    // Variables of other programs may hold any bytes and must not stop this one. A variable of this
    // program that is not UTF-8 is reported as a bad value.
    let ours = std::env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    });
    Settings::load(config, ours).map_err(|errors| {
        let mut more = Vec::new();
        for service in services {
            let Some(rest) = errors.rest() else { break };
            more.extend(match service {
                Service::Broker => broker_options(rest).err().unwrap_or_default(),
                Service::Redis => leases(rest, Role::Command).err().unwrap_or_default(),
                Service::Gateway => gateway(rest).err().unwrap_or_default(),
            });
        }
        let mut told = errors.into_texts();
        more.retain(|error| !told.contains(error));
        told.append(&mut more);
        print_error(&format!("error: the settings are not valid:\n  {}", told.join("\n  ")));
        Exit::Usage
    })
}

pub(super) fn start_telemetry(settings: &Settings) -> Result<TraceExport, String> {
    let (log, traces) = (&settings.log, &settings.traces);
    telemetry::start(log.format, &log.filter, traces.endpoint.as_deref())
}

/// The options of the broker. `delays` holds each delay of both schedules once: each needs a queue.
pub(super) fn broker_options(settings: &Settings) -> Result<BrokerOptions, Vec<String>> {
    let broker = &settings.broker;
    let (ca, client) = tls::read("broker", &broker.tls)?;
    let ca = ca
        .map(String::from_utf8)
        .transpose()
        .map_err(|_| vec!["broker.ca_file is not PEM: it is not UTF-8 text".to_owned()])?;
    if !broker::is_valid_url(broker.url.expose_secret()) {
        return Err(vec![BROKER_URL.to_owned()]);
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
        missing: MissingQueues::default(),
    })
}

/// The leases of these settings. Each command that uses them also calls [`gateway`], which reports
/// a missing `gateway.client_id`. So no key is ever written to Redis without it.
pub(super) fn leases(settings: &Settings, role: Role) -> Result<Leases, Vec<String>> {
    let client_id = settings.gateway.client_id.as_deref().unwrap_or_default();
    let owner = Owner::new(&settings.broker.prefix, client_id);
    let (ca, client) = tls::read("redis", &settings.redis.tls)?;
    let redis = &settings.redis;
    let sentinel = redis.sentinel_password.as_ref().map(|password| SentinelLogin {
        username: redis.sentinel_username.clone(),
        password: password.expose_secret().to_owned(),
    });
    let url = redis.url.expose_secret().to_owned();
    let options = RedisOptions { url, sentinel, ca, client };
    let times = LeaseTimes {
        ttl: settings.lease.ttl,
        in_doubt_block: settings.lease.hold_in_doubt,
        remember: settings.lease.remember,
        longest_call: settings.gateway.timeout,
    };
    Leases::new(&options, owner, role, times).map_err(|error| vec![error.to_string()])
}

/// The gateway of these settings, or one error for each setting that is missing or wrong.
pub(super) fn gateway(settings: &Settings) -> Result<Gateway, Vec<String>> {
    let access = settings.require_gateway();
    let private_key = settings.gateway.private_key.as_ref();
    let signing_key = private_key.map(|key| SigningKey::parse(key.expose_secret()));
    let public_key = Some(settings.gateway.public_key.join("\n")).filter(|key| !key.is_empty());
    let verifying_keys = public_key.map(|keys| VerifyingKeys::parse(&keys));
    let (access, signing_key, verifying_keys) = match (access, signing_key, verifying_keys) {
        (Ok(access), Some(Ok(signing_key)), Some(Ok(verifying_keys))) => {
            (access, signing_key, verifying_keys)
        }
        (access, signing_key, verifying_keys) => {
            let mut errors = access.err().map(SettingsErrors::into_texts).unwrap_or_default();
            for (key, error) in [
                ("private_key", signing_key.and_then(Result::err)),
                ("public_key", verifying_keys.and_then(Result::err)),
            ] {
                errors.extend(error.map(|error| format!("gateway.{key}: {error}")));
            }
            return Err(errors);
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
        proxy: gateway.proxy.as_ref().map(|proxy| proxy.expose_secret().to_owned()),
    })
    .map_err(|error| vec![error.to_string()])
}

pub(super) fn policy(settings: &Settings) -> RetryPolicy {
    RetryPolicy {
        schedule: settings.retry.schedule.clone(),
        defer_schedule: settings.retry.defer_schedule.clone(),
        max_age: settings.retry.max_age,
    }
}

pub(super) fn breaker(settings: &Settings) -> BreakerOptions {
    let BreakerSettings { failures, pause, max_pause } = settings.breaker;
    BreakerOptions { failures, pause, max_pause }
}

pub(super) fn rate_limit(settings: &Settings) -> Option<(NonZeroU32, Duration)> {
    settings.gateway.rate_limit.map(|limit| (limit.calls, limit.period))
}
