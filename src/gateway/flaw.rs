//! Why a reply can't be verified as the gateway's.

use reqwest::header::{HeaderMap, HeaderName};

/// Why a reply can't be verified as the gateway's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The gateway leaves the header out when it can't tell who calls. Otherwise something removed
    /// it in transit.
    #[error("it has no `signature` header")]
    NoSignature,
    /// The header is missing, although the signature covers it.
    #[error("it is signed but has no `response-time` header, which the signature covers")]
    NoTime,
    /// A header occurs twice, so it is not clear which value counts.
    #[error("its `{0}` header occurs twice")]
    Twice(&'static str),
    /// The header is not text, so the gateway can't have written it.
    #[error("its `{0}` header is not ASCII text")]
    NoText(&'static str),
    /// The reply is for another merchant.
    #[error("its `client-id` header names another client id than gateway.client_id")]
    OtherClient,
    /// The reply is signed with another key, or over another text.
    #[error("it is signed with another key than gateway.public_key, or was changed on the way")]
    Key,
    /// It may be the reply to an earlier call.
    #[error(
        "its clock and ours differ by more than 5 minutes, or its response-time can't be read: \
         check NTP"
    )]
    Stale,
}

/// The one value of a header; `None` if the header is absent.
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
