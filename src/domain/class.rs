//! Result codes and the classes of dead letters that they fall into.
//!
//! The table is a snapshot of the gateway's documentation; a code that it does not know is trusted for its status
//! (`resultStatus`) and falls into [`Class::UnknownCode`] until `[classes]` in the settings maps it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a job was given up, which is also what an operator may do about it. One dead-letter queue for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The authorization is gone: a new payment is needed.
    Authorization,
    /// The transaction's state forbids a capture.
    Order,
    /// Too much money, or too many captures.
    Limit,
    /// What the merchant's contract does not allow.
    Contract,
    /// Our credentials or set-up.
    Access,
    /// The request itself is at fault.
    Request,
    /// The id was used with other values: an earlier capture exists and may have succeeded.
    Conflict,
    /// Refused by risk control.
    Risk,
    /// The payer's account.
    Payer,
    /// The gateway failed the capture for reasons of its own.
    Provider,
    /// A final failure whose code is not in the table.
    UnknownCode,
    /// Sent, and nobody could say in time whether it captured.
    InDoubt,
    /// The gateway could never be reached with it.
    Unreachable,
    /// Its time was over before it was sent.
    Expired,
    /// Not a job by the message contract.
    Malformed,
    /// It was handed back by the broker again and again.
    Poison,
}

impl Class {
    /// Every class, in the order of the documentation.
    pub const ALL: [Self; 16] = [
        Self::Authorization,
        Self::Order,
        Self::Limit,
        Self::Contract,
        Self::Access,
        Self::Request,
        Self::Conflict,
        Self::Risk,
        Self::Payer,
        Self::Provider,
        Self::UnknownCode,
        Self::InDoubt,
        Self::Unreachable,
        Self::Expired,
        Self::Malformed,
        Self::Poison,
    ];

    /// The name in queues, routing keys, headers and settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Order => "order",
            Self::Limit => "limit",
            Self::Contract => "contract",
            Self::Access => "access",
            Self::Request => "request",
            Self::Conflict => "conflict",
            Self::Risk => "risk",
            Self::Payer => "payer",
            Self::Provider => "provider",
            Self::UnknownCode => "unknown_code",
            Self::InDoubt => "in_doubt",
            Self::Unreachable => "unreachable",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Poison => "poison",
        }
    }

    /// Whether `[classes]` may map a new code to this class: the classes of a verdict, less `access` (where an
    /// unsigned answer counts) and `conflict` (where an earlier capture may have succeeded).
    #[must_use]
    pub const fn is_mappable(self) -> bool {
        matches!(
            self,
            Self::Authorization
                | Self::Order
                | Self::Limit
                | Self::Contract
                | Self::Request
                | Self::Risk
                | Self::Payer
                | Self::Provider
                | Self::UnknownCode
        )
    }

    /// Whether an `F` of this class may be about the call and not about the capture: the gateway checks access and
    /// form before it looks at the id, so on a sent id such an `F` does not prove that nothing was captured.
    #[must_use]
    pub const fn may_precede_the_id(self) -> bool {
        matches!(self, Self::Access | Self::Request | Self::Provider | Self::UnknownCode)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no class's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no class of dead letters")]
pub struct NoSuchClass(pub String);

impl FromStr for Class {
    type Err = NoSuchClass;

    fn from_str(text: &str) -> Result<Self, NoSuchClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == text)
            .ok_or_else(|| NoSuchClass(text.to_owned()))
    }
}

/// The code of success.
pub const SUCCESS: &str = "SUCCESS";
/// The capture is being processed: inquire, do not post again.
pub const CAPTURE_IN_PROCESS: &str = "CAPTURE_IN_PROCESS";
/// The inquiry's word for the same.
pub const PAYMENT_IN_PROCESS: &str = "PAYMENT_IN_PROCESS";
/// The gateway does not know: post the same request again.
pub const UNKNOWN_EXCEPTION: &str = "UNKNOWN_EXCEPTION";
/// Too many calls: the same request again, slower.
pub const REQUEST_TRAFFIC_EXCEED_LIMIT: &str = "REQUEST_TRAFFIC_EXCEED_LIMIT";

/// Every code of a final failure that the documentation names, with its class.
pub const FINAL_CODES: &[(&str, Class)] = &[
    ("AUTH_CANCELLED", Class::Authorization),
    ("AUTH_EXPIRED", Class::Authorization),
    ("AUTH_NOT_FOUND", Class::Authorization),
    ("ORDER_IS_CANCELED", Class::Order),
    ("ORDER_STATUS_INVALID", Class::Order),
    ("ORDER_NOT_EXIST", Class::Order),
    ("ORDER_IS_CLOSED", Class::Order),
    ("CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT", Class::Limit),
    ("USER_AMOUNT_EXCEED_LIMIT", Class::Limit),
    ("PAYMENT_COUNT_EXCEED_LIMIT", Class::Limit),
    ("CURRENCY_NOT_SUPPORT", Class::Contract),
    ("MULTI_CAPTURE_NOT_SUPPORTED", Class::Contract),
    ("INVALID_CONTRACT", Class::Contract),
    ("NO_PAY_OPTIONS", Class::Contract),
    ("INVALID_MERCHANT_STATUS", Class::Contract),
    ("PAYMENT_NOT_QUALIFIED", Class::Contract),
    ("ACCESS_DENIED", Class::Access),
    ("INVALID_SIGNATURE", Class::Access),
    ("SIGNATURE_INVALID", Class::Access),
    ("KEY_NOT_FOUND", Class::Access),
    ("CLIENT_INVALID", Class::Access),
    ("INVALID_CLIENT", Class::Access),
    ("INVALID_API", Class::Access),
    ("NO_INTERFACE_DEF", Class::Access),
    ("METHOD_NOT_SUPPORTED", Class::Access),
    ("MEDIA_TYPE_NOT_ACCEPTABLE", Class::Access),
    ("PARAM_ILLEGAL", Class::Request),
    ("REPEAT_REQ_INCONSISTENT", Class::Conflict),
    ("RISK_REJECT", Class::Risk),
    ("USER_BALANCE_NOT_ENOUGH", Class::Payer),
    ("USER_NOT_EXIST", Class::Payer),
    ("USER_STATUS_ABNORMAL", Class::Payer),
    ("PROCESS_FAIL", Class::Provider),
    ("SYSTEM_ERROR", Class::Provider),
];

/// The codes that the documentation names with another status than `F`: they have no class, and none can be given.
pub const OTHER_CODES: &[&str] = &[
    SUCCESS,
    CAPTURE_IN_PROCESS,
    PAYMENT_IN_PROCESS,
    UNKNOWN_EXCEPTION,
    REQUEST_TRAFFIC_EXCEED_LIMIT,
];

/// The table of codes with the additions of `[classes]`.
#[derive(Clone, Debug, Default)]
pub struct Codes {
    added: BTreeMap<String, Class>,
}

/// What is wrong with an entry of `[classes]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MappingError {
    /// The table of the program knows the code already.
    #[error("`{0}` is known already: only codes absent from the built-in table can be mapped")]
    Known(String),
    /// No verdict of an unknown code may be of this class.
    #[error(
        "`{code}` can't be of class `{class}`: only classes of a verdict other than access and conflict can be mapped"
    )]
    NotMappable {
        /// The code to be mapped.
        code: String,
        /// The class it was to have.
        class: Class,
    },
}

impl Codes {
    /// The built-in table and these additions.
    ///
    /// # Errors
    /// Every addition that may not be made.
    pub fn with(added: BTreeMap<String, Class>) -> Result<Self, Vec<MappingError>> {
        let errors: Vec<_> = added
            .iter()
            .filter_map(|(code, class)| {
                if built_in(code).is_some() || OTHER_CODES.contains(&code.as_str()) {
                    Some(MappingError::Known(code.clone()))
                } else if !class.is_mappable() {
                    Some(MappingError::NotMappable { code: code.clone(), class: *class })
                } else {
                    None
                }
            })
            .collect();
        if errors.is_empty() { Ok(Self { added }) } else { Err(errors) }
    }

    /// The class of a final failure with this code.
    #[must_use]
    pub fn class_of(&self, code: &str) -> Class {
        built_in(code).or_else(|| self.added.get(code).copied()).unwrap_or(Class::UnknownCode)
    }
}

fn built_in(code: &str) -> Option<Class> {
    FINAL_CODES.iter().find(|(known, _)| *known == code).map(|(_, class)| *class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_codes_changes_only_in_review() {
        let table: String =
            FINAL_CODES.iter().map(|(code, class)| format!("{class:<14} {code}\n")).collect();
        insta::assert_snapshot!(table, @r"
        ");
    }

    #[test]
    fn every_class_is_read_back_from_its_name() {
        for class in Class::ALL {
            assert_eq!(class.name().parse(), Ok(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
        assert_eq!("Order".parse::<Class>(), Err(NoSuchClass("Order".into())));
    }

    #[test]
    fn an_unknown_code_is_of_its_own_class_until_it_is_mapped() {
        assert_eq!(Codes::default().class_of("BRAND_NEW"), Class::UnknownCode);
        let codes = Codes::with([("BRAND_NEW".into(), Class::Payer)].into()).unwrap();
        assert_eq!(codes.class_of("BRAND_NEW"), Class::Payer);
        assert_eq!(codes.class_of("AUTH_EXPIRED"), Class::Authorization);
    }

    #[test]
    fn known_codes_and_classes_that_are_no_verdict_cannot_be_mapped() {
        for (code, class) in [
            ("RISK_REJECT", Class::Payer),
            ("SUCCESS", Class::Payer),
            ("NEW", Class::Access),
            ("NEW", Class::Conflict),
            ("NEW", Class::InDoubt),
            ("NEW", Class::Poison),
        ] {
            assert!(Codes::with([(code.to_owned(), class)].into()).is_err(), "{code} {class}");
        }
    }
}
