//! Result codes, and the class of dead letters that each final code belongs to.
//!
//! The table is a snapshot of the gateway's documentation. For a code that is not in the table, the
//! worker trusts `resultStatus`; the code belongs to [`Class::UnknownCode`] until `[classes]` in
//! the settings maps it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a job was given up, which also decides what an operator may do about it. Each class has its
/// own dead-letter queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The authorization no longer exists or has expired: a new payment is needed.
    Authorization,
    /// The transaction's state forbids a capture.
    Order,
    /// The amount or the number of captures exceeds a limit.
    Limit,
    /// The merchant's contract does not allow the capture.
    Contract,
    /// Our credentials or our configuration at the gateway are wrong.
    Access,
    /// The request itself is wrong.
    Request,
    /// The id was used before with other values: an earlier capture exists and may have succeeded.
    Conflict,
    /// Risk control refused the capture.
    Risk,
    /// The payer's account does not allow the payment.
    Payer,
    /// The gateway failed the capture because of an internal error.
    Provider,
    /// A final failure whose code is not in the table.
    UnknownCode,
    /// The request may have been sent, and its outcome was still unknown when retries or time ran
    /// out.
    InDoubt,
    /// The gateway could not be reached in any attempt.
    Unreachable,
    /// `expiresAt` passed, or the job reached its maximum age, before anything was sent.
    Expired,
    /// The body breaks the message contract.
    Malformed,
    /// The broker had to take the job back too often: it may crash workers.
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

    /// The name in queue names, routing keys, headers and settings.
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

    /// Whether `[classes]` may map a new code to this class. Allowed are the classes of signed
    /// verdicts, except `access` (an unsigned reply counts there) and `conflict` (an earlier
    /// capture may have succeeded).
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

    /// Whether an `F` of this class may be about the call and not about the capture. The gateway
    /// checks credentials and form before it looks up the id, so for an id that was sent such an
    /// `F` does not prove that nothing was captured.
    #[must_use]
    pub const fn may_precede_the_id(self) -> bool {
        matches!(self, Self::Access | Self::Request | Self::Provider | Self::UnknownCode)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the name of a class.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a class of dead letters; the classes are {classes}",
    classes = Class::ALL.map(Class::name).join(", ")
)]
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

/// The code of a successful call.
pub const SUCCESS: &str = "SUCCESS";
/// The capture is being processed: inquire, do not post again.
pub const CAPTURE_IN_PROCESS: &str = "CAPTURE_IN_PROCESS";
/// The same state, as an inquiry names it.
pub const PAYMENT_IN_PROCESS: &str = "PAYMENT_IN_PROCESS";
/// The gateway does not know the outcome: post the same request again.
pub const UNKNOWN_EXCEPTION: &str = "UNKNOWN_EXCEPTION";
/// Too many calls: post the same request again at a lower rate.
pub const REQUEST_TRAFFIC_EXCEED_LIMIT: &str = "REQUEST_TRAFFIC_EXCEED_LIMIT";

/// Every code of a final failure in the gateway's documentation, with its class.
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

/// The codes that the documentation lists with another status than `F`. They have no class, and
/// `[classes]` can't give them one.
pub const OTHER_CODES: &[&str] = &[
    SUCCESS,
    CAPTURE_IN_PROCESS,
    PAYMENT_IN_PROCESS,
    UNKNOWN_EXCEPTION,
    REQUEST_TRAFFIC_EXCEED_LIMIT,
];

/// The built-in table of codes plus the additions from `[classes]`.
#[derive(Clone, Debug, Default)]
pub struct Codes {
    added: BTreeMap<String, Class>,
}

/// What is wrong with an entry of `[classes]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MappingError {
    /// The built-in table already contains the code.
    #[error("`{0}` is in the built-in table: only codes that are not in it can be mapped")]
    Known(String),
    /// A code can't be mapped to this class.
    #[error(
        "`{code}` can't be mapped to class `{class}`: use authorization, order, limit, contract, \
         request, risk, payer, provider or unknown_code"
    )]
    NotMappable {
        /// The code in the settings.
        code: String,
        /// The class that the settings give it.
        class: Class,
    },
}

impl Codes {
    /// The built-in table with these additions.
    ///
    /// # Errors
    /// Every addition that is not allowed.
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
        authorization  AUTH_CANCELLED
        authorization  AUTH_EXPIRED
        authorization  AUTH_NOT_FOUND
        order          ORDER_IS_CANCELED
        order          ORDER_STATUS_INVALID
        order          ORDER_NOT_EXIST
        order          ORDER_IS_CLOSED
        limit          CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT
        limit          USER_AMOUNT_EXCEED_LIMIT
        limit          PAYMENT_COUNT_EXCEED_LIMIT
        contract       CURRENCY_NOT_SUPPORT
        contract       MULTI_CAPTURE_NOT_SUPPORTED
        contract       INVALID_CONTRACT
        contract       NO_PAY_OPTIONS
        contract       INVALID_MERCHANT_STATUS
        contract       PAYMENT_NOT_QUALIFIED
        access         ACCESS_DENIED
        access         INVALID_SIGNATURE
        access         SIGNATURE_INVALID
        access         KEY_NOT_FOUND
        access         CLIENT_INVALID
        access         INVALID_CLIENT
        access         INVALID_API
        access         NO_INTERFACE_DEF
        access         METHOD_NOT_SUPPORTED
        access         MEDIA_TYPE_NOT_ACCEPTABLE
        request        PARAM_ILLEGAL
        conflict       REPEAT_REQ_INCONSISTENT
        risk           RISK_REJECT
        payer          USER_BALANCE_NOT_ENOUGH
        payer          USER_NOT_EXIST
        payer          USER_STATUS_ABNORMAL
        provider       PROCESS_FAIL
        provider       SYSTEM_ERROR
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
    fn an_unmapped_code_is_of_class_unknown_code() {
        assert_eq!(Codes::default().class_of("BRAND_NEW"), Class::UnknownCode);
        let codes = Codes::with([("BRAND_NEW".into(), Class::Payer)].into()).unwrap();
        assert_eq!(codes.class_of("BRAND_NEW"), Class::Payer);
        assert_eq!(codes.class_of("AUTH_EXPIRED"), Class::Authorization);
    }

    #[test]
    fn built_in_codes_and_classes_without_a_verdict_are_not_mappable() {
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
