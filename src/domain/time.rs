//! Times as text and as numbers: RFC 3339, ISO 8601 as the gateway writes it, epoch milliseconds.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Reads an ISO 8601 time with its offset. The gateway and its SDKs write the offset as `Z`,
/// `+08:00`, `+0800` or `+08`.
#[must_use]
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    // The offset begins at the last sign. The signs of the date come before the `T`.
    let offset_at = text.rfind(['+', '-']).filter(|at| text.find('T').is_some_and(|t| t < *at));
    let Some(at) = offset_at else { return OffsetDateTime::parse(text, &Rfc3339).ok() };
    let (time, offset) = text.split_at(at);
    let full = match offset.len() {
        3 => format!("{time}{offset}:00"),
        5 if offset.is_ascii() && !offset.contains(':') => {
            format!("{time}{}:{}", &offset[..3], &offset[3..])
        }
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&full, &Rfc3339).ok()
}

/// Writes a time in RFC 3339; empty if its year is not in the range of that format.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// Reads a time in RFC 3339, and nothing else.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// A time as epoch milliseconds.
#[must_use]
pub fn epoch_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// Writes epoch milliseconds in RFC 3339, if they are in the range of that format.
#[must_use]
pub fn rfc3339_of_ms(ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    time.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_read_in_each_of_its_forms() {
        let expected = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for text in [
            "2027-01-15T08:00:00Z",
            "2027-01-15T08:00:00.000Z",
            "2027-01-15T16:00:00+08:00",
            "2027-01-15T16:00:00+0800",
            "2027-01-15T16:00:00+08",
            " 2027-01-15T03:00:00-0500 ",
            "2027-01-15T03:00:00.000-05",
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in ["", "+08", "2027-01-15", "2027-01-15T16:00:00", "1800000000000", "T+é+1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
