//! Times as the gateway writes them.

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
