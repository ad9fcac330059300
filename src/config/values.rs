//! How the values of settings are read, from TOML and from the environment alike.

use std::{fmt, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use super::LogFormat;
use crate::broker::Topology;

/// So many calls in so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many.
    pub calls: NonZeroU32,
    /// In how long.
    pub period: Duration,
}

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be a rate such as \"100/s\" or \"600/m\", found `{text}`");
        let (calls, period) = text.split_once('/').ok_or_else(wrong)?;
        let period = match period.trim() {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(wrong()),
        };
        Ok(Self { calls: calls.trim().parse().map_err(|_| wrong())?, period })
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.period == Duration::from_secs(1) { 's' } else { 'm' };
        write!(f, "{}/{unit}", self.calls)
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(format!("must be \"json\" or \"text\", found `{text}`")),
        }
    }
}

/// A text that becomes a value; empty counts as absent.
pub(super) fn optional<'de, T: FromStr, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    T::Err: fmt::Display,
{
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

/// Asserts that a path is read like any other text.
const _: fn(&str) -> Result<PathBuf, std::convert::Infallible> = PathBuf::from_str;

pub(super) fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

pub(super) fn optional_secret<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SecretString>, D::Error> {
    optional::<String, D>(deserializer).map(|text| text.map(SecretString::from))
}

pub(super) fn topology<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Topology, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "declare" => Ok(Topology::Declare),
        "check" => Ok(Topology::Check),
        "none" => Ok(Topology::None),
        other => Err(D::Error::custom(format!(
            "must be \"declare\", \"check\" or \"none\", found `{other}`"
        ))),
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    read_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(super) fn durations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Duration>, D::Error> {
    let texts = texts(deserializer)?;
    texts.iter().map(|text| read_duration(text).map_err(D::Error::custom)).collect()
}

fn read_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("must be a duration such as \"5s\", found `{text}`: {error}"))
}

/// A list of texts, or one text that is split at commas.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;

    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts, or one text with commas")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(items.map(ToOwned::to_owned).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_any(Texts)
}
