//! Why an answer can't be verified as the gateway's.

use reqwest::header::{HeaderMap, HeaderName};

/// Why an answer can't be verified as the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The gateway leaves it out where it can't tell who calls; otherwise something took it away.
    #[error("it has no `signature` header")]
    NoSignature,
    /// The signature covers it.
    #[error("it is signed and has no `response-time` header, which the signature covers")]
    NoTime,
    /// It is not known which one is meant.
    #[error("its `{0}` header stands there twice")]
    Twice(&'static str),
    /// It can't be what the gateway wrote.
    #[error("its `{0}` header is not ASCII text")]
    NoText(&'static str),
    /// Another merchant's answer.
    #[error("its `client-id` header names another client id than gateway.client_id")]
    OtherClient,
    /// By another key, or another text.
    #[error("it is signed with another key than gateway.public_key, or was changed on the way")]
    Key,
    /// It may answer an earlier call.
    #[error(
        "its clock and ours differ by more than 5 minutes, or its response-time can't be read: check NTP"
    )]
    Stale,
}

/// The one value of a header, if it has one.
pub(super) fn single<'h>(
    headers: &'h HeaderMap,
    name: &'static HeaderName,
) -> Result<Option<&'h str>, Flaw> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Flaw::NoText(name.as_str())),
        (Some(_), Some(_)) => Err(Flaw::Twice(name.as_str())),
    }
}
