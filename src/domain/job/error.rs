//! The rules of the message contract: which one a body breaks, and what can still be read of it.

use super::subject::Subject;
use crate::domain::money::MoneyError;

/// The largest body of a job, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The largest `metadata`, in bytes of compact JSON.
pub const METADATA_BYTES_MAX: usize = 4 * 1024;
/// The longest id, in code points.
pub const ID_CHARS_MAX: usize = 64;

/// The values of `content_encoding` for compressed bodies.
const COMPRESSIONS: [&str; 10] =
    ["gzip", "x-gzip", "deflate", "zlib", "compress", "br", "brotli", "zstd", "snappy", "lz4"];

/// A body that breaks the message contract: the reason, and what could still be read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The rule that is broken.
    pub reason: JobError,
    /// What a result can still report about the job.
    pub subject: Subject,
}

/// The first rule of the message contract that a body breaks: the field, the rule, and what was
/// found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The body has too many bytes.
    #[error("the body must be at most {BODY_BYTES_MAX} bytes, found {0}")]
    TooLong(usize),
    /// The body is not UTF-8 text.
    #[error("the body must be UTF-8: byte {0} is not")]
    NotUtf8(usize),
    /// The body is compressed data instead of text.
    #[error("the body is compressed: publish it uncompressed")]
    Compressed,
    /// The body is not one JSON object.
    #[error("the body must be one JSON object: {0}")]
    NotAnObject(String),
    /// A known field occurs twice.
    #[error("`{0}` must stand only once")]
    Repeated(String),
    /// A required field is absent.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field has another JSON type than the rule asks for.
    #[error("`{field}` must be {expected}, found {found}")]
    WrongType {
        /// The name of the field.
        field: String,
        /// What the value must be.
        expected: &'static str,
        /// What the value is.
        found: &'static str,
    },
    /// An id has the wrong length.
    #[error("`{field}` must be 1 to {ID_CHARS_MAX} characters, found {found}")]
    IdLength {
        /// The name of the field.
        field: &'static str,
        /// The length of the id in code points.
        found: usize,
    },
    /// An id contains a control character.
    #[error("`{field}` must have no control characters, found U+{found:04X}")]
    IdControl {
        /// The name of the field.
        field: &'static str,
        /// The code point of the control character.
        found: u32,
    },
    /// Neither amount is given.
    #[error(
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, \
         found neither"
    )]
    NoAmount,
    /// Both amounts are given.
    #[error(
        "one of `captureAmount` (smallest unit) and `amount` (major unit) must be given, \
         found both"
    )]
    TwoAmounts,
    /// An amount breaks a rule of `Money`.
    #[error("`{field}`: {error}")]
    Money {
        /// The name of the field.
        field: &'static str,
        /// The rule that is broken.
        error: MoneyError,
    },
    /// `expiresAt` is not a time.
    #[error("`expiresAt` must be an RFC 3339 time such as \"2026-11-30T18:00:00Z\", found `{0}`")]
    NotATime(String),
    /// `captureType` is neither of its two values.
    #[error("`captureType` must be \"FINAL\" or \"NON_FINAL\", found {0}")]
    CaptureType(String),
    /// `metadata` is too large.
    #[error("`metadata` must be at most {METADATA_BYTES_MAX} bytes as compact JSON, found {0}")]
    MetadataTooLong(usize),
}

impl Malformed {
    /// The same reason, for a message with this `content_encoding`. Compression explains why a body
    /// is not text or not JSON.
    #[must_use]
    pub fn with_encoding(mut self: Box<Self>, content_encoding: Option<&str>) -> Box<Self> {
        let is_compressed = content_encoding.is_some_and(|encoding| {
            COMPRESSIONS.iter().any(|name| encoding.trim().eq_ignore_ascii_case(name))
        });
        if is_compressed && matches!(self.reason, JobError::NotUtf8(_) | JobError::NotAnObject(_)) {
            self.reason = JobError::Compressed;
        }
        self
    }
}
