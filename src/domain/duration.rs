//! Durations as text: one number and one unit, in settings, on the command line and in output.
//!
//! Everything else is refused. A list that lost its commas ("5s 15s") must not be added up, and `M`
//! must not mean months.

use std::time::Duration;

/// The longest duration that is accepted: a hundred years. Below it, times and sums of durations
/// can't overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// The units in milliseconds, largest first.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// The text is not one number and one unit.
    #[error("must be a duration such as \"5s\" (one number and one unit of ms, s, m, h, d)")]
    Form,
    /// The duration is longer than [`DURATION_MAX`].
    #[error("must be a duration such as \"5s\", and at most 36500d")]
    TooLong,
}

/// Reads a duration of the form `^[0-9]+(ms|s|m|h|d)$`.
///
/// # Errors
/// The text has another form, or is longer than [`DURATION_MAX`].
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or(BadDuration::Form)?;
    let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(BadDuration::Form)?;
    if number.is_empty() {
        return Err(BadDuration::Form);
    }
    // There are only digits, so a number that can't be parsed is too large.
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*ms))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or(BadDuration::TooLong)
}

/// Writes a duration in its largest whole unit, as [`parse`] reads it. Fractions of a millisecond
/// are dropped.
#[must_use]
pub fn show(duration: Duration) -> String {
    let ms = duration.as_millis();
    let whole = UNITS.iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(u128::from(*unit)));
    whole
        .map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", ms / u128::from(*unit)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_is_written_in_its_largest_whole_unit() {
        for (ms, text) in [
            (0, "0s"),
            (1, "1ms"),
            (1500, "1500ms"),
            (90_000, "90s"),
            (86_400_000, "1d"),
            (90_000_000, "25h"),
        ] {
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn the_longest_duration_is_read_and_a_longer_one_refused() {
        assert_eq!(parse("36500d"), Ok(DURATION_MAX));
        assert_eq!(parse("36501d"), Err(BadDuration::TooLong));
        assert_eq!(parse(&format!("{}h", u64::MAX)), Err(BadDuration::TooLong));
        assert_eq!(parse("99999999999999999999ms"), Err(BadDuration::TooLong));
    }

    proptest! {
        #[test]
        fn a_written_duration_is_read_again(ms in 0..=36_500_u64 * 86_400_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }

        #[test]
        fn only_digits_and_a_unit_are_read(
            text in "[0-9+. _-]{0,6}(ms|s|m|h|d|M|us|y| )?[0-9]?(s)?",
        ) {
            let end = text.bytes().take_while(u8::is_ascii_digit).count();
            let is_one = end > 0 && ["ms", "s", "m", "h", "d"].contains(&&text[end..]);
            prop_assert_eq!(parse(&text).is_ok(), is_one);
        }
    }
}
