//! Settings. `config/default.toml` holds the defaults and documents every key. A settings file
//! overrides it, and environment variables override both. Combinations that can't be safe are
//! refused at start, all of them at once.

mod describe;
mod load;
mod needs;
mod relations;
mod settings;
mod shown;
mod sources;
mod values;

pub(crate) use self::shown::shown_path;
pub use self::{
    needs::{GatewayAccess, SettingsErrors},
    relations::BROKER_URL,
    settings::{
        BreakerSettings, BrokerSettings, DrainSettings, GatewaySettings, HttpSettings,
        LeaseSettings, LogSettings, RedisSettings, RetrySettings, Settings, TlsSettings,
        TracesSettings,
    },
    sources::DEFAULTS,
    values::{LogFormat, RateLimit},
};

#[cfg(test)]
mod tests;
