//! What a result reports about its job, valid or not.

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::domain::money::Money;

/// What a result reports about its job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// The id, if the body gives it once and it is valid.
    pub capture_request_id: Option<String>,
    /// `paymentId`, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// The amount, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_amount: Option<Money>,
    /// The publisher's own data, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// `expiresAt` of the job, which is no part of a result.
    #[serde(skip)]
    pub expires_at: Option<OffsetDateTime>,
}
