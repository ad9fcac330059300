//! Money: an amount in the smallest unit of an ISO 4217 currency. It is exact or refused, never
//! rounded.

use std::fmt;

use iso_currency::Currency as Iso;
use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde::{Deserialize, Serialize, Serializer};

/// The most digits that the gateway accepts for a value in the smallest unit.
const DIGITS_MAX: usize = 16;

/// The rupiah has two decimals, but the gateway accepts whole rupiah only (its page "currencies").
const WHOLE_UNITS_ONLY: &[(&str, u64)] = &[("IDR", 100)];

/// A currency of ISO 4217 that has a smallest unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency {
    iso: Iso,
    exponent: u32,
}

/// A capture's amount: 1 to 9,999,999,999,999,999 of the currency's smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Money {
    currency: Currency,
    value: u64,
}

/// Which rule an amount breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The text is not an ISO 4217 code in upper case.
    #[error("`currency` must be an upper-case ISO 4217 code, found `{0}`")]
    UnknownCurrency(String),
    /// A code such as XAU, for which no smallest unit is defined.
    #[error("`currency` {0} has no smallest unit in ISO 4217, so no amount can be captured in it")]
    NoSmallestUnit(String),
    /// A value in the smallest unit must be digits only.
    #[error("`value` must be 1 to 16 digits in the currency's smallest unit, found `{0}`")]
    NotDigits(String),
    /// A value in the major unit must be a plain decimal.
    #[error("`value` must be a plain decimal in major units such as \"129.90\", found `{0}`")]
    NotDecimal(String),
    /// The value has a leading zero, such as `007` or `00.50`.
    #[error("`value` must have no leading zero, found `{0}`")]
    LeadingZero(String),
    /// The amount is zero: there is nothing to capture.
    #[error("`value` must be greater than 0, found `{0}`")]
    Zero(String),
    /// The amount is larger than the gateway accepts.
    #[error("`value` must be at most 16 digits in the smallest unit, found `{0}`")]
    TooLarge(String),
    /// The value has more decimals than the currency, and money is never rounded.
    #[error(
        "`value` has {found} decimals, but {currency} has {allowed}: amounts are never rounded"
    )]
    TooManyDecimals {
        /// The code of the currency.
        currency: String,
        /// How many decimals the currency has.
        allowed: u32,
        /// How many decimals were given.
        found: usize,
    },
    /// The gateway accepts only whole units of this currency.
    #[error(
        "`value` in {currency} must be a multiple of {multiple} in the smallest unit, \
         found `{found}`"
    )]
    NotMultiple {
        /// The code of the currency.
        currency: String,
        /// What the value must be a multiple of.
        multiple: u64,
        /// The value that was found.
        found: u64,
    },
}

impl Currency {
    /// The currency with this upper-case code.
    ///
    /// # Errors
    /// The code is not in ISO 4217, or the currency has no smallest unit.
    pub fn from_code(code: &str) -> Result<Self, MoneyError> {
        let iso = Iso::from_code(code)
            .filter(|iso| iso.code() == code)
            .ok_or_else(|| MoneyError::UnknownCurrency(shorten(code)))?;
        let exponent = iso.exponent().ok_or_else(|| MoneyError::NoSmallestUnit(code.to_owned()))?;
        Ok(Self { iso, exponent: u32::from(exponent) })
    }

    /// The code of ISO 4217, such as HKD.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.iso.code()
    }

    /// How many decimals the major unit has.
    #[must_use]
    pub const fn exponent(self) -> u32 {
        self.exponent
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Money {
    /// An amount as the gateway writes it: digits of the smallest unit.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn from_smallest(currency: &str, value: &str) -> Result<Self, MoneyError> {
        let currency = Currency::from_code(currency)?;
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(MoneyError::NotDigits(shorten(value)));
        }
        if value.len() > DIGITS_MAX {
            return Err(MoneyError::TooLarge(shorten(value)));
        }
        if value.len() > 1 && value.starts_with('0') {
            return Err(MoneyError::LeadingZero(shorten(value)));
        }
        let number = value.parse().map_err(|_| MoneyError::NotDigits(shorten(value)))?;
        Self::checked(currency, number, value)
    }

    /// An amount as people write it: a plain decimal of the major unit.
    ///
    /// # Errors
    /// The rule that is broken. More decimals than the currency has are refused, even if they are
    /// zeros.
    pub fn from_major(currency: &str, value: &str) -> Result<Self, MoneyError> {
        let currency = Currency::from_code(currency)?;
        let (whole, decimals) = match value.split_once('.') {
            Some((whole, decimals)) => (whole, Some(decimals)),
            None => (value, None),
        };
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !decimals.is_none_or(digits) {
            return Err(MoneyError::NotDecimal(shorten(value)));
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return Err(MoneyError::LeadingZero(shorten(value)));
        }
        let found = decimals.map_or(0, str::len);
        if u32::try_from(found).map_or(true, |found| found > currency.exponent) {
            let allowed = currency.exponent;
            let currency = currency.code().to_owned();
            return Err(MoneyError::TooManyDecimals { currency, allowed, found });
        }
        if whole.len() > DIGITS_MAX {
            return Err(MoneyError::TooLarge(shorten(value)));
        }
        let number = Decimal::from_str_exact(value)
            .ok()
            .and_then(|major| major.checked_mul(Decimal::from(10_u64.pow(currency.exponent))))
            .filter(|smallest| smallest.fract().is_zero())
            .and_then(|smallest| smallest.to_u64())
            .ok_or_else(|| MoneyError::TooLarge(shorten(value)))?;
        Self::checked(currency, number, value)
    }

    fn checked(currency: Currency, value: u64, text: &str) -> Result<Self, MoneyError> {
        if value == 0 {
            return Err(MoneyError::Zero(shorten(text)));
        }
        if value >= 10_u64.pow(16) {
            return Err(MoneyError::TooLarge(shorten(text)));
        }
        for (code, multiple) in WHOLE_UNITS_ONLY {
            if *code == currency.code() && !value.is_multiple_of(*multiple) {
                let currency = currency.code().to_owned();
                return Err(MoneyError::NotMultiple {
                    currency,
                    multiple: *multiple,
                    found: value,
                });
            }
        }
        Ok(Self { currency, value })
    }

    /// The currency of the amount.
    #[must_use]
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// The value in the smallest unit.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.value
    }

    /// The value in the major unit, with all decimals of the currency.
    #[must_use]
    pub fn major(self) -> Decimal {
        major(self.currency, u128::from(self.value))
    }
}

/// A sum in the smallest unit as a decimal of the major unit.
#[must_use]
pub fn major(currency: Currency, smallest: u128) -> Decimal {
    let smallest = i128::try_from(smallest).unwrap_or(i128::MAX);
    Decimal::try_from_i128_with_scale(smallest, currency.exponent).unwrap_or(Decimal::MAX)
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.currency.code(), self.major())
    }
}

/// The JSON form of an amount: `{"currency":"HKD","value":"12990"}`, in the smallest unit.
#[derive(Serialize, Deserialize)]
pub(crate) struct WireAmount<'a> {
    pub(crate) currency: std::borrow::Cow<'a, str>,
    pub(crate) value: std::borrow::Cow<'a, str>,
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WireAmount { currency: self.currency.code().into(), value: self.value.to_string().into() }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = WireAmount::deserialize(deserializer)?;
        Self::from_smallest(&wire.currency, &wire.value).map_err(serde::de::Error::custom)
    }
}

/// Shortens a text for a log line or a header, and replaces its control characters.
pub(crate) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    let mut short: String =
        text.chars().take(CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_gateways_decimals_agree_with_the_table() {
        for code in ["CLP", "JPY", "KRW", "VND"] {
            assert_eq!(Currency::from_code(code).unwrap().exponent(), 0, "{code}");
        }
        for code in [
            "AUD", "BDT", "BRL", "CAD", "CNY", "EUR", "GBP", "HKD", "IDR", "MXN", "MYR", "NZD",
            "PEN", "PHP", "PKR", "PLN", "SGD", "THB", "TWD", "USD",
        ] {
            assert_eq!(Currency::from_code(code).unwrap().exponent(), 2, "{code}");
        }
        assert_eq!(Currency::from_code("KWD").unwrap().exponent(), 3);
    }

    #[test]
    fn the_smallest_unit_is_digits_without_a_leading_zero() {
        let value = |text| Money::from_smallest("HKD", text).map(Money::value);
        assert_eq!(value("1"), Ok(1));
        assert_eq!(value("9999999999999999"), Ok(9_999_999_999_999_999));
        for bad in ["", "0", "01", "-1", "+1", "1.0", "1e3", " 1", "10000000000000000", "١"] {
            assert!(value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn major_units_convert_exactly_or_not_at_all() {
        let value = |code, text| Money::from_major(code, text).map(Money::value);
        assert_eq!(value("HKD", "129.90"), Ok(12990));
        assert_eq!(value("HKD", "129.9"), Ok(12990));
        assert_eq!(value("HKD", "0.01"), Ok(1));
        assert_eq!(value("HKD", "5"), Ok(500));
        assert_eq!(value("JPY", "1500"), Ok(1500));
        assert_eq!(value("KWD", "1.234"), Ok(1234));
        assert_eq!(value("HKD", "99999999999999.99"), Ok(9_999_999_999_999_999));
        for (code, bad) in [
            ("HKD", "129.900"),
            ("JPY", "1500.0"),
            ("HKD", "0"),
            ("HKD", "0.00"),
            ("HKD", "00.50"),
            ("HKD", "01"),
            ("HKD", ".5"),
            ("HKD", "5."),
            ("HKD", "-5"),
            ("HKD", "1,000"),
            ("HKD", "1e3"),
            ("HKD", "100000000000000"),
            ("HKD", "99999999999999999999999999999999999999"),
            ("hkd", "1"),
            ("XAU", "1"),
            ("ZZZ", "1"),
        ] {
            assert!(value(code, bad).is_err(), "{code} {bad}");
        }
    }

    #[test]
    fn rupiah_amounts_are_whole() {
        assert!(Money::from_smallest("IDR", "100").is_ok());
        assert!(Money::from_smallest("IDR", "150").is_err());
        assert!(Money::from_major("IDR", "1.50").is_err());
        assert_eq!(Money::from_major("IDR", "15000").unwrap().value(), 1_500_000);
    }

    #[test]
    fn money_reads_as_people_write_it() {
        assert_eq!(Money::from_smallest("HKD", "12990").unwrap().to_string(), "HKD 129.90");
        assert_eq!(Money::from_smallest("JPY", "5").unwrap().to_string(), "JPY 5");
    }

    proptest! {
        #[test]
        fn no_decimal_is_ever_rounded(
            value in 1_u64..10_000_000_000_000_000, code in "HKD|JPY|KWD|EUR",
        ) {
            let money = Money::from_smallest(&code, &value.to_string()).unwrap();
            let back = Money::from_major(&code, &money.major().to_string()).unwrap();
            prop_assert_eq!(back, money);
        }

        #[test]
        fn any_text_is_money_or_an_error(code in ".{0,4}", value in "[0-9.]{0,40}|.{0,20}") {
            let read = [Money::from_smallest(&code, &value), Money::from_major(&code, &value)];
            for money in read.into_iter().flatten() {
                prop_assert!(money.value() > 0 && money.value() < 10_u64.pow(16));
            }
        }
    }
}
