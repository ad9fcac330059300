//! What settings must be to each other, and what deserves a second look.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{Settings, time};
use crate::{
    broker::DELAY_MS_MAX,
    domain::forward::{CAPTURE_TYPE, ForwardFields},
};

/// What a call may take beyond its time-out: scheduling, and clocks that do not agree.
const MARGIN: Duration = Duration::from_secs(1);
const PREFIX_CHARS_MAX: usize = 100;
const AGENT_TOKEN_CHARS_MAX: usize = 128;

impl Settings {
    /// Every relation that can't be safe.
    pub(super) fn relations(&self) -> Vec<String> {
        let mut wrong = self.times();
        wrong.extend(self.schedules());
        wrong.extend(self.names());
        wrong.extend(self.forwarded_names());
        wrong
    }

    fn forwarded_names(&self) -> Vec<String> {
        let refused = ForwardFields::new(&self.gateway.forward_fields).err().unwrap_or_default();
        let error = |name: &String| {
            format!(
                "gateway.forward_fields must not name `{name}`: the worker reads or writes that \
                 field itself"
            )
        };
        refused.iter().map(error).collect()
    }

    fn times(&self) -> Vec<String> {
        let Self { gateway, lease, drain, breaker, retry, .. } = self;
        let mut wrong = Vec::new();
        for (key, duration) in [
            ("gateway.timeout", gateway.timeout),
            ("gateway.inquiry_timeout", gateway.inquiry_timeout),
            ("lease.hold_in_doubt", lease.hold_in_doubt),
            ("breaker.pause", breaker.pause),
            ("retry.max_age", retry.max_age),
        ] {
            if duration < Duration::from_millis(1) {
                wrong.push(format!("{key} must be at least 1ms, found {}", time(duration)));
            }
        }
        let mut at_least = |key: &str, value: Duration, least: Duration, why: &str| {
            if value < least {
                let (value, least) = (time(value), time(least));
                wrong.push(format!("{key} must be at least {least} ({why}), found {value}"));
            }
        };
        let capture = gateway.timeout.saturating_add(MARGIN);
        let inquiry = gateway.inquiry_timeout.saturating_add(MARGIN);
        at_least("lease.ttl", lease.ttl, capture, "gateway.timeout + 1s");
        at_least("lease.ttl", lease.ttl, inquiry, "gateway.inquiry_timeout + 1s");
        at_least("drain.timeout", drain.timeout, capture, "gateway.timeout + 1s");
        at_least("lease.hold_in_doubt", lease.hold_in_doubt, gateway.timeout, "gateway.timeout");
        at_least("lease.remember", lease.remember, retry.max_age, "retry.max_age");
        at_least("breaker.max_pause", breaker.max_pause, breaker.pause, "breaker.pause");
        if let Some(first) = retry.schedule.first() {
            at_least("retry.max_age", retry.max_age, *first, "the first delay of retry.schedule");
        }
        wrong
    }

    fn schedules(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (key, delays) in [
            ("retry.schedule", &self.retry.schedule),
            ("retry.defer_schedule", &self.retry.defer_schedule),
        ] {
            if delays.is_empty() {
                wrong.push(format!("{key} must hold at least one delay, found none"));
            }
            if !delays.is_sorted() {
                wrong.push(format!("{key} must not grow shorter, found {}", super::times(delays)));
            }
            for delay in delays {
                let whole = Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(0));
                if whole != *delay || delay.is_zero() || delay.as_millis() > DELAY_MS_MAX {
                    let delay = time(*delay);
                    wrong.push(format!(
                        "{key}: a delay must be whole milliseconds, 1 to {DELAY_MS_MAX}, found {delay}"
                    ));
                }
            }
        }
        wrong
    }

    fn names(&self) -> Vec<String> {
        let Self { broker, redis, gateway, breaker, traces, .. } = self;
        let mut wrong = Vec::new();
        let mut must = |holds: bool, text: &str| {
            if !holds {
                wrong.push(text.to_owned());
            }
        };
        must(broker.prefetch > 0, "broker.prefetch must be at least 1, found 0");
        must(breaker.failures > 0, "breaker.failures must be at least 1, found 0");
        must(gateway.key_version > 0, "gateway.key_version must be at least 1, found 0");
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        must(
            (1..=PREFIX_CHARS_MAX).contains(&broker.prefix.len())
                && broker.prefix.chars().all(is_name)
                && !broker.prefix.starts_with("amq."),
            "broker.prefix must be 1 to 100 letters, digits, `.`, `_` or `-`, and not begin with `amq.`",
        );
        let url = broker.url.expose_secret();
        must(
            url.starts_with("amqp://") || url.starts_with("amqps://"),
            "broker.url must begin with amqp:// or amqps:// (its value is not shown)",
        );
        let is_redis = ["redis://", "rediss://", "redis-sentinel://", "rediss-sentinel://"]
            .iter()
            .any(|scheme| redis.url.expose_secret().starts_with(scheme));
        must(
            is_redis,
            "redis.url must begin with redis://, rediss:// or redis-sentinel:// (its value is not shown)",
        );
        for (section, tls) in [("broker", &broker.tls), ("redis", &redis.tls)] {
            must(
                tls.client_cert_file.is_some() == tls.client_key_file.is_some(),
                &format!("{section}.client_cert_file and {section}.client_key_file go together"),
            );
        }
        for (key, path) in
            [("capture_path", &gateway.capture_path), ("inquiry_path", &gateway.inquiry_path)]
        {
            must(
                is_path(path),
                &format!(
                    "gateway.{key} must begin with `/` and have no `?`, `#` or space, found {path}"
                ),
            );
        }
        if let Some(base_url) = &gateway.base_url {
            must(
                is_base_url(base_url),
                "gateway.base_url must be http:// or https://, a host, and at most a path: no user, `?` or `#`",
            );
        }
        if let Some(endpoint) = &traces.endpoint {
            must(
                is_base_url(endpoint),
                "traces.endpoint must be http:// or https://, a host, and at most a path: no user, `?` or `#`",
            );
        }
        let token = gateway.agent_token.as_ref().map(|token| token.expose_secret().chars().count());
        must(
            token.is_none_or(|chars| chars <= AGENT_TOKEN_CHARS_MAX),
            "gateway.agent_token must be at most 128 characters (its value is not shown)",
        );
        wrong
    }

    /// What can be meant so, and most often is not.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let gateway = &self.gateway;
        let mut warnings = Vec::new();
        if let Some(rest) = gateway.base_url.as_ref().and_then(|url| url.strip_prefix("http://")) {
            let loopback = ["127.", "localhost", "[::1]"];
            if !loopback.iter().any(|host| rest.starts_with(host)) {
                warnings.push(
                    "gateway.base_url is http://: payments travel in clear text; use https://"
                        .into(),
                );
            }
        }
        if !gateway.forward_fields.iter().any(|name| name == CAPTURE_TYPE) {
            warnings.push(format!(
                "gateway.forward_fields does not name {CAPTURE_TYPE}: the gateway takes every \
                 capture as the last one of its payment"
            ));
        }
        if let Some(client_id) = &gateway.client_id {
            let is_sandbox = client_id.starts_with("SANDBOX_");
            for (key, path) in
                [("capture_path", &gateway.capture_path), ("inquiry_path", &gateway.inquiry_path)]
            {
                if is_sandbox != path.contains("/sandbox/") {
                    let kind =
                        if is_sandbox { "a SANDBOX_ client id" } else { "a production client id" };
                    warnings.push(format!(
                        "{kind} with gateway.{key} = {path}: one of the two is wrong"
                    ));
                }
            }
        }
        warnings
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#'))
}

fn is_base_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.starts_with(['/', ':'])
            && rest.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@'))
    })
}
