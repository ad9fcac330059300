//! A job: the request to capture, as its publisher wrote it, read strictly.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    fields::{self, Fields},
    money::{Money, MoneyError, shorten},
};

/// The largest body of a job, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The largest `metadata`, in bytes of compact JSON.
pub const METADATA_BYTES_MAX: usize = 4 * 1024;
/// The longest id, in code points.
pub const ID_CHARS_MAX: usize = 64;

pub(super) const JOB_FIELDS: [&str; 6] =
    ["captureRequestId", "paymentId", "captureAmount", "amount", "expiresAt", "metadata"];
const AMOUNT_FIELDS: [&str; 2] = ["currency", "value"];

/// One shipment's capture: valid by every rule of the message contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The idempotency key, unique per capture.
    pub capture_request_id: String,
    /// The payment that was authorized at checkout.
    pub payment_id: String,
    /// How much of it to capture.
    pub amount: Money,
    /// Past this no capture is begun.
    pub expires_at: Option<OffsetDateTime>,
    /// The publisher's own, carried into the result.
    pub metadata: Option<Map<String, Value>>,
}

/// A body that breaks the message contract: why, and what of it could be read all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The rule that is broken.
    pub reason: JobError,
    /// What a result can still say about it.
    pub subject: Subject,
}

/// What a result says about the job it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// The id, where it could be read once and is valid.
    pub capture_request_id: Option<String>,
    /// The payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// The amount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_amount: Option<Money>,
    /// The publisher's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// When its time is over; no part of a result.
    #[serde(skip)]
    pub expires_at: Option<OffsetDateTime>,
}

/// The first rule of the message contract that a body breaks: which field, which rule, what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Too many bytes.
    #[error("the body must be at most {BODY_BYTES_MAX} bytes, found {0}")]
    TooLong(usize),
    /// Not text.
    #[error("the body must be UTF-8: byte {0} is not")]
    NotUtf8(usize),
    /// Not one JSON object.
    #[error("the body must be one JSON object: {0}")]
    NotAnObject(String),
    /// A known field stands twice.
    #[error("`{0}` must stand only once")]
    Repeated(String),
    /// A required field is absent.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// Another JSON type than the rule asks for.
    #[error("`{field}` must be {expected}, found {found}")]
    WrongType {
        /// The field.
        field: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// An id of the wrong length.
    #[error("`{field}` must be 1 to {ID_CHARS_MAX} characters, found {found}")]
    IdLength {
        /// The field.
        field: &'static str,
        /// Its length.
        found: usize,
    },
    /// An id with a control character.
    #[error("`{field}` must have no control characters, found U+{found:04X}")]
    IdControl {
        /// The field.
        field: &'static str,
        /// The character.
        found: u32,
    },
    /// Neither amount.
    #[error(
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, found neither"
    )]
    NoAmount,
    /// Both amounts.
    #[error(
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, found both"
    )]
    TwoAmounts,
    /// An amount that is no money.
    #[error("`{field}`: {error}")]
    Money {
        /// The field.
        field: &'static str,
        /// The rule that is broken.
        error: MoneyError,
    },
    /// Not a time.
    #[error("`expiresAt` must be an RFC 3339 time such as \"2026-11-30T18:00:00Z\", found `{0}`")]
    NotATime(String),
    /// Too much metadata.
    #[error("`metadata` must be at most {METADATA_BYTES_MAX} bytes as compact JSON, found {0}")]
    MetadataTooLong(usize),
}

impl Job {
    /// Reads a body by the message contract.
    ///
    /// # Errors
    /// The first rule that is broken, with what could be read all the same.
    pub fn parse(body: &[u8]) -> Result<Self, Box<Malformed>> {
        read(body).map_err(|reason| Box::new(Malformed { reason, subject: read_subject(body) }))
    }

    /// What a result says about this job.
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

    /// Whether its time is over.
    #[must_use]
    pub fn is_past_expiry(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|expires_at| now >= expires_at)
    }
}

fn read(body: &[u8]) -> Result<Job, JobError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(JobError::TooLong(body.len()));
    }
    let fields = read_fields(body)?;
    if let Some(name) = fields.repeated() {
        return Err(JobError::Repeated(name.to_owned()));
    }
    let [capture_request_id, payment_id, capture_amount, amount, expires_at, metadata] =
        fields.into_values();
    Ok(Job {
        capture_request_id: read_id("captureRequestId", capture_request_id)?,
        payment_id: read_id("paymentId", payment_id)?,
        amount: read_amount(capture_amount, amount)?,
        expires_at: expires_at.map(read_time).transpose()?,
        metadata: metadata.map(read_metadata).transpose()?,
    })
}

/// Reads of a bad body what is good in it, each field for itself.
fn read_subject(body: &[u8]) -> Subject {
    let Ok(fields) = read_fields(body) else { return Subject::default() };
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
        metadata: metadata.and_then(|raw| read_metadata(raw).ok()).filter(|_| once("metadata")),
        expires_at: None,
    }
}

fn read_fields(body: &[u8]) -> Result<Fields<'_, 6>, JobError> {
    let text = std::str::from_utf8(body).map_err(|error| JobError::NotUtf8(error.valid_up_to()))?;
    fields::read(text, JOB_FIELDS).map_err(|error| JobError::NotAnObject(error.to_string()))
}

fn read_id(field: &'static str, raw: Option<&RawValue>) -> Result<String, JobError> {
    let id = read_string(field, raw.ok_or(JobError::Missing(field))?)?;
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
    let (field, raw, convert): (_, _, Convert) = match (smallest, major) {
        (Some(raw), None) => ("captureAmount", raw, Money::from_smallest),
        (None, Some(raw)) => ("amount", raw, Money::from_major),
        (None, None) => return Err(JobError::NoAmount),
        (Some(_), Some(_)) => return Err(JobError::TwoAmounts),
    };
    let wrong = || JobError::WrongType {
        field: field.to_owned(),
        expected: "an object with `currency` and `value`",
        found: fields::type_of(raw),
    };
    let fields = fields::read(raw.get(), AMOUNT_FIELDS).map_err(|_| wrong())?;
    if let Some(name) = fields.repeated() {
        return Err(JobError::Repeated(format!("{field}.{name}")));
    }
    let [currency, value] = fields.into_values();
    let (missing_currency, missing_value) = match field {
        "amount" => ("amount.currency", "amount.value"),
        _ => ("captureAmount.currency", "captureAmount.value"),
    };
    let currency =
        read_string(missing_currency, currency.ok_or(JobError::Missing(missing_currency))?)?;
    let value = read_string(missing_value, value.ok_or(JobError::Missing(missing_value))?)?;
    convert(&currency, &value).map_err(|error| JobError::Money { field, error })
}

fn read_time(raw: &RawValue) -> Result<OffsetDateTime, JobError> {
    let text = read_string("expiresAt", raw)?;
    OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| JobError::NotATime(shorten(&text)))
}

fn read_metadata(raw: &RawValue) -> Result<Map<String, Value>, JobError> {
    let wrong = |field: String, expected, found| JobError::WrongType { field, expected, found };
    // Each value as it stands: one key of all would make a general reader of JSON take its text for JSON once more.
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(raw.get())
        .map_err(|_| wrong("metadata".into(), "an object of strings", fields::type_of(raw)))?;
    let mut map = Map::new();
    for (key, value) in members {
        let text: String = serde_json::from_str(value.get()).map_err(|_| {
            wrong(format!("metadata.{}", shorten(&key)), "a string", fields::type_of(value))
        })?;
        map.insert(key, Value::String(text));
    }
    let bytes = serde_json::to_string(&map).map_or(usize::MAX, |text| text.len());
    if bytes > METADATA_BYTES_MAX { Err(JobError::MetadataTooLong(bytes)) } else { Ok(map) }
}

fn read_string(field: &'static str, raw: &RawValue) -> Result<String, JobError> {
    serde_json::from_str(raw.get()).map_err(|_| JobError::WrongType {
        field: field.to_owned(),
        expected: "a string",
        found: match fields::type_of(raw) {
            "a string" => "half of a surrogate pair",
            other => other,
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"captureRequestId":"c1","paymentId":"p1","captureAmount":{"currency":"HKD","value":"10"}}"#;

    #[track_caller]
    fn check(body: &str, error: &str) {
        let malformed = Job::parse(body.as_bytes()).expect_err(body);
        assert_eq!(malformed.reason.to_string(), error);
    }

    fn with(fields: &str) -> String {
        format!(
            r#"{{"captureRequestId":"c1","paymentId":"p1","captureAmount":{{"currency":"HKD","value":"10"}},{fields}}}"#
        )
    }

    #[test]
    fn the_gateways_own_body_is_a_job() {
        let job = Job::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(job.capture_request_id, "c1");
        assert_eq!(job.amount.to_string(), "HKD 0.10");
    }

    #[test]
    fn unknown_fields_may_be_anything_and_repeat() {
        assert!(Job::parse(with(r#""x":1,"x":[{"deep":null}],"":2"#).as_bytes()).is_ok());
        let deep = format!(r#""x":{}1{}"#, "[".repeat(5000), "]".repeat(5000));
        assert!(Job::parse(with(&deep).as_bytes()).is_ok());
    }

    #[test]
    fn every_rule_has_its_own_words() {
        check("", "the body must be one JSON object: EOF while parsing a value at line 1 column 0");
        check("[]", "the body must be one JSON object: found a list at line 1 column 2");
        check("{}", "`captureRequestId` is missing");
        check(r#"{"captureRequestId":7}"#, "`captureRequestId` must be a string, found a number");
        check(
            r#"{"captureRequestId":""}"#,
            "`captureRequestId` must be 1 to 64 characters, found 0",
        );
        check(
            r#"{"captureRequestId":"a\u0085b"}"#,
            "`captureRequestId` must have no control characters, found U+0085",
        );
        check(r#"{"captureRequestId":"c1"}"#, "`paymentId` is missing");
        check(
            r#"{"captureRequestId":"c1","paymentId":"p1"}"#,
            "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, found neither",
        );
        check(
            &with(r#""amount":null"#),
            "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, found both",
        );
        check(&with(r#""paymentId":"p2""#), "`paymentId` must stand only once");
        check(
            &with(r#""expiresAt":"tomorrow""#),
            "`expiresAt` must be an RFC 3339 time such as \"2026-11-30T18:00:00Z\", found `tomorrow`",
        );
        check(&with(r#""expiresAt":null"#), "`expiresAt` must be a string, found null");
        check(&with(r#""metadata":{"a":1}"#), "`metadata.a` must be a string, found a number");
        check(
            &with(r#""metadata":"a""#),
            "`metadata` must be an object of strings, found a string",
        );
        check(
            r#"{"captureRequestId":"c","paymentId":"p","amount":{"currency":"HKD","value":12.5}}"#,
            "`amount.value` must be a string, found a number",
        );
        check(
            r#"{"captureRequestId":"c","paymentId":"p","amount":{"currency":"HKD","currency":"HKD","value":"1"}}"#,
            "`amount.currency` must stand only once",
        );
        check(
            r#"{"captureRequestId":"c","paymentId":"p","amount":{"currency":"HKD","value":"1.005"}}"#,
            "`amount`: `value` has 3 decimals, but HKD has 2: amounts are never rounded",
        );
        check(
            &with(&format!(r#""metadata":{{"a":"{}"}}"#, "x".repeat(5000))),
            "`metadata` must be at most 4096 bytes as compact JSON, found 5008",
        );
        check(&" ".repeat(70_000), "the body must be at most 65536 bytes, found 70000");
        assert_eq!(Job::parse(b"{\"a\":\"\xff\"}").unwrap_err().reason, JobError::NotUtf8(6));
    }

    #[test]
    fn lengths_count_code_points() {
        let id = |id: String| GOOD.replace("c1", &id);
        assert!(Job::parse(id("é".repeat(64)).as_bytes()).is_ok());
        assert!(Job::parse(id("é".repeat(65)).as_bytes()).is_err());
    }

    #[test]
    fn a_bad_body_still_tells_whose_it_is_if_that_can_be_read_once() {
        let subject = |body: &str| Job::parse(body.as_bytes()).unwrap_err().subject;
        let read = subject(&GOOD.replace("\"10\"", "10"));
        assert_eq!(read.capture_request_id.as_deref(), Some("c1"));
        assert_eq!(read.payment_id.as_deref(), Some("p1"));
        assert_eq!(read.capture_amount, None);
        assert_eq!(subject(&with(r#""captureRequestId":"c1""#)).capture_request_id, None);
        assert_eq!(subject("{\"captureRequestId\":\"c1\"").capture_request_id, None);
        let long = with(&format!(r#""x":"{}""#, "x".repeat(BODY_BYTES_MAX)));
        assert_eq!(subject(&long).capture_request_id.as_deref(), Some("c1"));
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _checked = Job::parse(&body).is_ok();
        }

        #[test]
        fn no_change_of_one_byte_makes_the_parser_panic(at in 0..GOOD.len(), byte in any::<u8>()) {
            let mut body = GOOD.as_bytes().to_vec();
            body[at] = byte;
            if let Ok(job) = Job::parse(&body) {
                prop_assert!(job.amount.value() > 0);
            }
        }
    }
}
