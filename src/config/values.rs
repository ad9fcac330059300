//! Reads the values of settings, in the same way from TOML and from the environment.

use std::{fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use super::shown::shown;
use crate::{broker::TopologyMode, domain::duration};

/// A maximum rate of calls, such as `100/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The number of calls in one period.
    pub calls: NonZeroU32,
    /// One second or one minute.
    pub period: Duration,
}

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("must be a rate such as \"100/s\" or \"600/m\", found {}", shown(text));
        let (calls, period) = text.split_once('/').ok_or_else(wrong)?;
        let period = match period {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return Err(wrong()),
        };
        let calls = digits(calls).and_then(NonZeroU32::new).ok_or_else(wrong)?;
        Ok(Self { calls, period })
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.period == Duration::from_secs(1) { 's' } else { 'm' };
        write!(f, "{}/{unit}", self.calls)
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, for programs.
    Json,
    /// Plain text, for people.
    Text,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(format!("must be \"json\" or \"text\", found {}", shown(text))),
        }
    }
}

/// Reads a number that consists of digits only: no sign, no fraction, and no `yes` for 1.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

pub(super) fn number<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr + Limits,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    digits(&text).ok_or_else(|| {
        let (max, found) = (T::MAX, shown(&text));
        D::Error::custom(format!("must be a whole number from 0 to {max}, found {found}"))
    })
}

/// The largest value of an integer type, for errors.
pub(super) trait Limits {
    const MAX: u32;
}

impl Limits for u16 {
    const MAX: u32 = 65_535;
}

impl Limits for u32 {
    const MAX: Self = Self::MAX;
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let found = shown(&text);
        D::Error::custom(format!(
            "must be an address and a port such as \"127.0.0.1:9090\", found {found}"
        ))
    })
}

/// Reads an optional value from text. An empty text counts as absent.
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

pub(super) fn topology<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<TopologyMode, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "declare" => Ok(TopologyMode::Declare),
        "check" => Ok(TopologyMode::Check),
        "none" => Ok(TopologyMode::None),
        other => Err(D::Error::custom(format!(
            "must be \"declare\", \"check\" or \"none\", found {}",
            shown(other)
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
    duration::parse(text).map_err(|error| format!("{error}, found {}", shown(text)))
}

/// Reads a list of names, or one text that is split at commas and blanks.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(Texts(|c| c == ',' || c.is_whitespace()))
}

/// Reads a list of keys, or one text that is split at commas only, because a key may contain blanks
/// and line feeds.
pub(super) fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(Texts(|c| c == ','))
}

/// Reads a list, or one text that is split at the characters that the function accepts.
struct Texts(fn(char) -> bool);

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings, or one string separated by commas")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let items = text.split(self.0).map(str::trim).filter(|item| !item.is_empty());
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
