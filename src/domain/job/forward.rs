//! The fields of a job that go to the gateway byte for byte, beside the contract's three.
//!
//! The gateway treats a capture as final unless its `captureType` says otherwise, and it compares
//! every field of a repeated request. So these fields are neither dropped nor rewritten.

use std::sync::{Arc, LazyLock};

use serde_json::value::RawValue;

use super::{
    error::JobError,
    fields::{self, JOB_FIELDS},
};
use crate::domain::money::shorten;

/// The fields that are forwarded unless the settings name others.
pub const FORWARD_FIELDS: [&str; 5] =
    ["captureType", "isLastCapture", "transit", "goods", "shippings"];

/// The field that says whether more captures of the payment may follow.
pub const CAPTURE_TYPE: &str = "captureType";
const GOODS: &str = "goods";

/// The names of the fields that are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardFields(Arc<[String]>);

static DEFAULT: LazyLock<ForwardFields> =
    LazyLock::new(|| ForwardFields(FORWARD_FIELDS.map(str::to_owned).into()));

impl Default for ForwardFields {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl ForwardFields {
    /// A list of names. A name that is given twice counts once.
    ///
    /// # Errors
    /// The names that can't be forwarded: the contract's own, which the worker reads or writes
    /// itself, and the empty name.
    pub fn new(names: &[String]) -> Result<Self, Vec<String>> {
        let is_refused = |name: &&String| name.is_empty() || JOB_FIELDS.contains(&name.as_str());
        let refused: Vec<String> = names.iter().filter(is_refused).cloned().collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        let mut once: Vec<String> = Vec::with_capacity(names.len());
        for name in names {
            if !once.contains(name) {
                once.push(name.clone());
            }
        }
        Ok(Self(once.into()))
    }

    /// An empty list: nothing is forwarded.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::default())
    }

    pub(in crate::domain) fn names(&self) -> &[String] {
        &self.0
    }
}

/// Whether more captures of the payment may follow. The gateway treats an absent value as `FINAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureType {
    /// `FINAL`: the rest of the authorization is given up.
    Final,
    /// `NON_FINAL`: more captures may follow.
    NonFinal,
}

/// The fields that a job forwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// `,"name":value` for each field, in the job's order.
    members: String,
    capture_type: Option<CaptureType>,
    has_goods: bool,
}

impl Forwarded {
    /// The fields as members of a JSON object, each with a comma before it; empty if there are
    /// none.
    #[must_use]
    pub fn members(&self) -> &str {
        &self.members
    }

    /// `captureType`, if the job gives it.
    #[must_use]
    pub const fn capture_type(&self) -> Option<CaptureType> {
        self.capture_type
    }

    /// Whether the job lists the goods that its amount pays for.
    #[must_use]
    pub const fn has_goods(&self) -> bool {
        self.has_goods
    }

    /// Reads the fields that were found. A null value counts as absent.
    pub(in crate::domain) fn read(found: &[(&str, &RawValue)]) -> Result<Self, JobError> {
        let mut forwarded = Self::default();
        for (name, value) in found.iter().filter(|(_, value)| !fields::is_null(value)) {
            match *name {
                CAPTURE_TYPE => forwarded.capture_type = Some(capture_type(value)?),
                GOODS => forwarded.has_goods = true,
                _ => {}
            }
            forwarded.members.push(',');
            forwarded.members.push_str(&serde_json::to_string(name).unwrap_or_default());
            forwarded.members.push(':');
            forwarded.members.push_str(value.get());
        }
        Ok(forwarded)
    }
}

fn capture_type(value: &RawValue) -> Result<CaptureType, JobError> {
    match serde_json::from_str::<String>(value.get()) {
        Ok(text) if text == "FINAL" => Ok(CaptureType::Final),
        Ok(text) if text == "NON_FINAL" => Ok(CaptureType::NonFinal),
        Ok(text) => Err(JobError::CaptureType(format!("`{}`", shorten(&text)))),
        Err(_) => Err(JobError::CaptureType(fields::found(value).to_owned())),
    }
}
