//! The limits of settings and the relations between them, and warnings about probable mistakes.

use std::time::Duration;

use secrecy::ExposeSecret;
use url::{Host, Url};

use super::{
    Settings,
    shown::{shown, times},
};
use crate::{
    broker::{self, DELAY_MS_MAX},
    domain::{
        duration::show as time,
        job::forward::{CAPTURE_TYPE, ForwardFields},
    },
    lease,
};

/// How much longer than its time limit a call may take: scheduling, and clocks that differ.
const MARGIN: Duration = Duration::from_secs(1);
const PREFIX_CHARS_MAX: usize = 100;
const AGENT_TOKEN_CHARS_MAX: usize = 128;

/// The error about `broker.url`. It does not quote the URL: in one that can't be parsed, any part
/// may be the password.
pub const BROKER_URL: &str = "broker.url must be amqp://user:password@host:port/vhost or \
    amqps://... (its value is not shown): percent-encode every character of user, password and \
    virtual host that is neither a letter nor a digit (`/` is %2F, `#` is %23, `@` is %40)";

/// The error about `gateway.proxy`. It does not quote the URL, which may contain a password.
const PROXY: &str = "gateway.proxy must be http:// or https:// and a host, with an optional port, \
    user and password (its value is not shown): percent-encode every character of user and \
    password that is neither a letter nor a digit";

/// An error in the settings, and the keys that it is about.
pub(super) struct Wrong {
    pub(super) keys: Vec<String>,
    pub(super) text: String,
}

impl Wrong {
    fn new(keys: &[&str], text: impl Into<String>) -> Self {
        Self { keys: keys.iter().map(|key| (*key).to_owned()).collect(), text: text.into() }
    }
}

impl Settings {
    /// Every limit that a value exceeds, and every relation that can't be safe.
    pub(super) fn relations(&self) -> Vec<Wrong> {
        let mut wrong = self.times();
        wrong.extend(self.schedules());
        wrong.extend(self.names());
        wrong.extend(self.forwarded_names());
        wrong.extend(self.addresses());
        wrong
    }

    fn forwarded_names(&self) -> Vec<Wrong> {
        const KEY: &str = "gateway.forward_fields";
        let refused = ForwardFields::new(&self.gateway.forward_fields).err().unwrap_or_default();
        let error = |name: &String| {
            let text = format!(
                "{KEY} must not name `{name}`: the worker itself reads or writes that field"
            );
            Wrong::new(&[KEY], text)
        };
        refused.iter().map(error).collect()
    }

    fn times(&self) -> Vec<Wrong> {
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
                let text = format!("{key} must be at least 1ms, found {}", time(duration));
                wrong.push(Wrong::new(&[key], text));
            }
        }
        // `why` says how `least` is computed: the name of the other key, and what is added to it.
        let mut at_least = |key: &str, value: Duration, least: Duration, other: &str, why: &str| {
            if value < least {
                let (value, least) = (time(value), time(least));
                let text = format!("{key} must be at least {least} ({why}), found {value}");
                wrong.push(Wrong::new(&[key, other], text));
            }
        };
        let capture = gateway.timeout.saturating_add(MARGIN);
        let inquiry = gateway.inquiry_timeout.saturating_add(MARGIN);
        let (of_capture, of_inquiry) = ("gateway.timeout", "gateway.inquiry_timeout");
        at_least("lease.ttl", lease.ttl, capture, of_capture, "gateway.timeout + 1s");
        at_least("lease.ttl", lease.ttl, inquiry, of_inquiry, "gateway.inquiry_timeout + 1s");
        at_least("drain.timeout", drain.timeout, capture, of_capture, "gateway.timeout + 1s");
        for (key, value, least, other) in [
            ("lease.hold_in_doubt", lease.hold_in_doubt, gateway.timeout, of_capture),
            ("lease.remember", lease.remember, retry.max_age, "retry.max_age"),
            ("breaker.max_pause", breaker.max_pause, breaker.pause, "breaker.pause"),
        ] {
            at_least(key, value, least, other, other);
        }
        if let Some(first) = retry.schedule.first() {
            let why = "the first delay of retry.schedule";
            at_least("retry.max_age", retry.max_age, *first, "retry.schedule", why);
        }
        wrong
    }

    fn schedules(&self) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        for (key, delays) in [
            ("retry.schedule", &self.retry.schedule),
            ("retry.defer_schedule", &self.retry.defer_schedule),
        ] {
            let mut must = |holds: bool, text: String| {
                if !holds {
                    wrong.push(Wrong::new(&[key], format!("{key}{text}")));
                }
            };
            must(!delays.is_empty(), " must have at least one delay, found none".into());
            must(
                delays.is_sorted(),
                format!(
                    ": no delay may be shorter than the one before it, found {}",
                    times(delays)
                ),
            );
            for delay in delays {
                let delay_text = time(*delay);
                must(
                    (1..=DELAY_MS_MAX).contains(&delay.as_millis()),
                    format!(
                        ": a delay must be a whole number of milliseconds, 1 to {DELAY_MS_MAX}, \
                         found {delay_text}"
                    ),
                );
            }
        }
        wrong
    }

    fn names(&self) -> Vec<Wrong> {
        let Self { broker, redis, gateway, breaker, .. } = self;
        let mut wrong = Vec::new();
        let mut must = |holds: bool, keys: &[&str], text: &str| {
            if !holds {
                wrong.push(Wrong::new(keys, text));
            }
        };
        for (key, is_zero) in [
            ("broker.prefetch", broker.prefetch == 0),
            ("breaker.failures", breaker.failures == 0),
            ("gateway.key_version", gateway.key_version == 0),
        ] {
            must(!is_zero, &[key], &format!("{key} must be at least 1, found 0"));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        must(
            (1..=PREFIX_CHARS_MAX).contains(&broker.prefix.len())
                && broker.prefix.chars().all(is_name)
                && !broker.prefix.starts_with("amq."),
            &["broker.prefix"],
            "broker.prefix must be 1 to 100 letters, digits, `.`, `_` or `-`, and must not begin \
             with `amq.`",
        );
        for (section, tls) in [("broker", &broker.tls), ("redis", &redis.tls)] {
            let (cert, key) =
                (format!("{section}.client_cert_file"), format!("{section}.client_key_file"));
            must(
                tls.client_cert_file.is_some() == tls.client_key_file.is_some(),
                &[&cert, &key],
                &format!("{cert} and {key} must be set together: set both or neither"),
            );
        }
        for (name, path) in
            [("capture_path", &gateway.capture_path), ("inquiry_path", &gateway.inquiry_path)]
        {
            let (key, found) = (format!("gateway.{name}"), shown(path));
            must(
                is_path(path),
                &[&key],
                &format!(
                    "{key} must begin with `/` and contain no `?`, `#` or space, found {found}"
                ),
            );
        }
        let token = gateway.agent_token.as_ref().map(|token| token.expose_secret().chars().count());
        must(
            token.is_none_or(|chars| chars <= AGENT_TOKEN_CHARS_MAX),
            &["gateway.agent_token"],
            "gateway.agent_token must be at most 128 characters (its value is not shown)",
        );
        wrong
    }

    /// No error shows a URL: in one that can't be parsed, any part may be the password.
    fn addresses(&self) -> Vec<Wrong> {
        let Self { broker, redis, gateway, traces, .. } = self;
        let mut wrong = Vec::new();
        if !broker::is_valid_url(broker.url.expose_secret()) {
            wrong.push(Wrong::new(&["broker.url"], BROKER_URL));
        }
        if let Err(error) = lease::check_url(redis.url.expose_secret()) {
            wrong.push(Wrong::new(&["redis.url"], error.to_string()));
        }
        if redis.sentinel_username.is_some() && redis.sentinel_password.is_none() {
            wrong.push(Wrong::new(
                &["redis.sentinel_username", "redis.sentinel_password"],
                "redis.sentinel_username requires redis.sentinel_password, which is not set",
            ));
        }
        if let Some(proxy) = &gateway.proxy {
            if !is_proxy(proxy.expose_secret()) {
                wrong.push(Wrong::new(&["gateway.proxy"], PROXY));
            }
            let is_plain = |url: &String| url.starts_with("http://");
            if gateway.base_url.as_ref().is_some_and(is_plain) {
                wrong.push(Wrong::new(
                    &["gateway.proxy", "gateway.base_url"],
                    "gateway.proxy requires an https:// gateway.base_url: the worker uses a proxy \
                     only to open a tunnel (CONNECT)",
                ));
            }
        }
        for (key, url) in
            [("gateway.base_url", &gateway.base_url), ("traces.endpoint", &traces.endpoint)]
        {
            if url.as_ref().is_some_and(|url| !is_base_url(url)) {
                let text = format!(
                    "{key} must be http:// or https:// and a host, with an optional path and \
                     without user, `?` and `#` (its value is not shown)"
                );
                wrong.push(Wrong::new(&[key], text));
            }
        }
        wrong
    }

    /// Settings that are valid but probably a mistake: one text per warning.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let gateway = &self.gateway;
        let mut warnings = Vec::new();
        let url = gateway.base_url.as_ref().and_then(|url| Url::parse(url).ok());
        if url.as_ref().is_some_and(|url| url.scheme() == "http" && !is_loopback(url)) {
            warnings.push(
                "gateway.base_url is http://: payments are sent in clear text; use https://".into(),
            );
        }
        let is_local = url.as_ref().is_some_and(is_loopback);
        if !self.proxy_variables.is_empty() && gateway.proxy.is_none() && !is_local {
            warnings.push(format!(
                "{} is set and not used: set gateway.proxy if calls to the gateway need a proxy",
                self.proxy_variables.join(", ")
            ));
        }
        let asks_sentinels = self.redis.url.expose_secret().contains("-sentinel://");
        if self.redis.sentinel_password.is_some() && !asks_sentinels {
            warnings.push(
                "redis.sentinel_password is set and not used: redis.url is not redis-sentinel://"
                    .into(),
            );
        }
        if !gateway.forward_fields.iter().any(|name| name == CAPTURE_TYPE) {
            warnings.push(format!(
                "gateway.forward_fields does not name {CAPTURE_TYPE}: the gateway treats every \
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
                        "gateway.client_id is {kind}, but gateway.{key} is {path}: correct one of \
                         them"
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

fn is_base_url(text: &str) -> bool {
    let is_plain =
        text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@' | '\\'));
    let starts = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    let url = Url::parse(text).ok();
    is_plain && starts && url.is_some_and(|url| url.has_host())
}

fn is_proxy(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        // The parser reads a backslash as a slash: a password with one would be cut there.
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && (url.username().is_empty() || url.password().is_some())
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && !text.contains('\\')
    })
}

/// Whether a URL leads to this machine only. `localhost.evil.example` does not.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}
