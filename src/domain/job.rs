//! A job: a request to capture, as its publisher wrote it, validated strictly.

pub mod error;
pub(super) mod fields;
pub mod forward;
pub mod history;
pub mod subject;
pub mod trace;

use std::collections::BTreeMap;

use serde_json::{Map, Value, value::RawValue};
use time::OffsetDateTime;

pub use self::{
    error::{BODY_BYTES_MAX, ID_CHARS_MAX, JobError, METADATA_BYTES_MAX, Malformed},
    subject::Subject,
};
use self::{
    fields::{Fields, JOB_FIELDS},
    forward::{ForwardFields, Forwarded},
};
use super::{
    money::{Money, MoneyError, shorten},
    time::parse_rfc3339,
};

const AMOUNT_FIELDS: [&str; 2] = ["currency", "value"];
/// The byte order mark, which some .NET serializers write before the JSON.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// The first bytes of compressed data: gzip, Zstandard, xz.
const COMPRESSED: [&[u8]; 3] =
    [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
/// The capture of one shipment: valid by every rule of the message contract, except that its
/// forwarded fields may break theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The idempotency key, unique per capture.
    pub capture_request_id: String,
    /// The payment that was authorized at checkout.
    pub payment_id: String,
    /// The amount to capture.
    pub amount: Money,
    /// After this time no capture is begun.
    pub expires_at: Option<OffsetDateTime>,
    /// The publisher's own data, copied into the result.
    pub metadata: Option<Map<String, Value>>,
    /// The forwarded fields of the capture request; empty if they break the rules.
    pub forwarded: Forwarded,
    /// The rule that the forwarded fields break. Such a job is never posted. It still counts as a
    /// job: a request for its id may have been sent under other rules, so the gateway is asked
    /// first.
    pub forward_error: Option<Box<JobError>>,
}

impl Job {
    /// Reads a body by the message contract, with the fields that are forwarded by default.
    ///
    /// # Errors
    /// The first rule that is broken, with what could still be read.
    pub fn parse(body: &[u8]) -> Result<Self, Box<Malformed>> {
        Self::parse_with(body, &ForwardFields::default())
    }

    /// Reads a body by the message contract.
    ///
    /// # Errors
    /// The first rule that is broken, with what could still be read. A rule that only the forwarded
    /// fields break is no error: see [`Job::forward_error`].
    pub fn parse_with(body: &[u8], forward: &ForwardFields) -> Result<Self, Box<Malformed>> {
        read(body, forward)
            .map_err(|reason| Box::new(Malformed { reason, subject: read_subject(body) }))
    }

    /// Returns the job if its forwarded fields break no rule either. This is for new jobs, which
    /// were never sent.
    ///
    /// # Errors
    /// The rule that the forwarded fields break.
    pub fn complete(mut self) -> Result<Self, Box<Malformed>> {
        match self.forward_error.take() {
            Some(reason) => Err(Box::new(Malformed { reason: *reason, subject: self.subject() })),
            None => Ok(self),
        }
    }

    /// What a result reports about this job.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject {
            capture_request_id: Some(self.capture_request_id.clone()),
            payment_id: Some(self.payment_id.clone()),
            capture_amount: Some(self.amount),
            metadata: self.metadata.clone(),
            expires_at: self.expires_at,
        }
    }

    /// Whether `expiresAt` has passed.
    #[must_use]
    pub fn is_past_expiry(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|expires_at| now >= expires_at)
    }
}

fn read(body: &[u8], forward: &ForwardFields) -> Result<Job, JobError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(JobError::TooLong(body.len()));
    }
    let fields = read_fields(body, forward)?;
    if let Some(name) = fields.repeated() {
        return Err(JobError::Repeated(name.to_owned()));
    }
    let (values, more) = fields.into_parts();
    let [capture_request_id, payment_id, capture_amount, amount, expires_at, metadata] = values;
    let forwarded = match more.repeated {
        Some(name) => Err(JobError::Repeated(shorten(name))),
        None => Forwarded::read(&more.found),
    };
    let (forwarded, forward_error) = match forwarded {
        Ok(forwarded) => (forwarded, None),
        Err(error) => (Forwarded::default(), Some(Box::new(error))),
    };
    Ok(Job {
        capture_request_id: read_id("captureRequestId", capture_request_id)?,
        payment_id: read_id("paymentId", payment_id)?,
        amount: read_amount(capture_amount, amount)?,
        expires_at: given(expires_at).map(read_time).transpose()?,
        metadata: given(metadata).map(read_metadata).transpose()?,
        forwarded,
        forward_error,
    })
}

/// An optional field that is null counts as absent: many serializers write null for unset fields.
fn given(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| !fields::is_null(raw))
}

/// Reads the valid fields of an invalid body, each on its own.
fn read_subject(body: &[u8]) -> Subject {
    let none = ForwardFields::none();
    let Ok(fields) = read_fields(body, &none) else { return Subject::default() };
    let once = |name: &str| !fields.is_repeated(name);
    let [capture_request_id, payment_id, capture_amount, amount, _, metadata] = *fields.values();
    Subject {
        capture_request_id: read_id("captureRequestId", capture_request_id)
            .ok()
            .filter(|_| once("captureRequestId")),
        payment_id: read_id("paymentId", payment_id).ok().filter(|_| once("paymentId")),
        capture_amount: read_amount(capture_amount, amount)
            .ok()
            .filter(|_| once("captureAmount") && once("amount")),
        metadata: given(metadata)
            .and_then(|raw| read_metadata(raw).ok())
            .filter(|_| once("metadata")),
        expires_at: None,
    }
}

fn read_fields<'a>(body: &'a [u8], forward: &'a ForwardFields) -> Result<Fields<'a, 6>, JobError> {
    fields::read(text_of(body)?, JOB_FIELDS, forward.names())
        .map_err(|error| JobError::NotAnObject(error.to_string()))
}

/// The text of a body, without a byte order mark.
///
/// # Errors
/// The body is compressed or not UTF-8.
pub fn text_of(body: &[u8]) -> Result<&str, JobError> {
    if COMPRESSED.iter().any(|beginning| body.starts_with(beginning)) {
        return Err(JobError::Compressed);
    }
    let text = std::str::from_utf8(body).map_err(|error| JobError::NotUtf8(error.valid_up_to()))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

fn read_id(field: &'static str, raw: Option<&RawValue>) -> Result<String, JobError> {
    let id = read_string(|| field.to_owned(), raw.ok_or(JobError::Missing(field))?)?;
    let chars = id.chars().count();
    if chars == 0 || chars > ID_CHARS_MAX {
        return Err(JobError::IdLength { field, found: chars });
    }
    match id.chars().find(|c| c.is_control()) {
        Some(control) => Err(JobError::IdControl { field, found: u32::from(control) }),
        None => Ok(id),
    }
}

fn read_amount(smallest: Option<&RawValue>, major: Option<&RawValue>) -> Result<Money, JobError> {
    type Convert = fn(&str, &str) -> Result<Money, MoneyError>;
    let (field, raw, convert): (_, _, Convert) = match (given(smallest), given(major)) {
        (Some(raw), None) => ("captureAmount", raw, Money::from_smallest),
        (None, Some(raw)) => ("amount", raw, Money::from_major),
        (None, None) => return Err(JobError::NoAmount),
        (Some(_), Some(_)) => return Err(JobError::TwoAmounts),
    };
    let fields = fields::read(raw.get(), AMOUNT_FIELDS, &[]).map_err(|_| JobError::WrongType {
        field: field.to_owned(),
        expected: "an object with `currency` and `value`",
        found: found_for_object(raw),
    })?;
    if let Some(name) = fields.repeated() {
        return Err(JobError::Repeated(format!("{field}.{name}")));
    }
    let ([currency, value], _) = fields.into_parts();
    let (missing_currency, missing_value) = match field {
        "amount" => ("amount.currency", "amount.value"),
        _ => ("captureAmount.currency", "captureAmount.value"),
    };
    let text = |field: &'static str, raw: Option<&RawValue>| {
        read_string(|| field.to_owned(), raw.ok_or(JobError::Missing(field))?)
    };
    let currency = text(missing_currency, currency)?;
    let value = text(missing_value, value)?;
    convert(&currency, &value).map_err(|error| JobError::Money { field, error })
}

fn read_time(raw: &RawValue) -> Result<OffsetDateTime, JobError> {
    let text = read_string(|| "expiresAt".into(), raw)?;
    parse_rfc3339(&text).ok_or_else(|| JobError::NotATime(shorten(&text)))
}

fn read_metadata(raw: &RawValue) -> Result<Map<String, Value>, JobError> {
    // Each value is read as raw JSON. `serde_json` gives one private key a special meaning: in a
    // general value, it would parse the string under that key as JSON once more.
    let members: BTreeMap<String, &RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| JobError::WrongType {
            field: "metadata".into(),
            expected: "an object of strings",
            found: found_for_object(raw),
        })?;
    let mut map = Map::new();
    for (key, value) in members {
        let text = read_string(|| format!("metadata.{}", shorten(&key)), value)?;
        map.insert(key, Value::String(text));
    }
    let bytes = serde_json::to_string(&map).map_or(usize::MAX, |text| text.len());
    if bytes > METADATA_BYTES_MAX { Err(JobError::MetadataTooLong(bytes)) } else { Ok(map) }
}

/// What was found instead of a readable object.
fn found_for_object(raw: &RawValue) -> &'static str {
    match fields::type_of(raw) {
        // The JSON was parsed before, so this is the only reason why a key can't be read.
        "an object" => "a key with half of a surrogate pair",
        other => other,
    }
}

fn read_string(field: impl FnOnce() -> String, raw: &RawValue) -> Result<String, JobError> {
    serde_json::from_str(raw.get()).map_err(|_| JobError::WrongType {
        field: field(),
        expected: "a string",
        found: fields::found(raw),
    })
}

#[cfg(test)]
mod tests;
