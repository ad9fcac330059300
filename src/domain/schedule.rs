//! The names of delays.

use std::time::Duration;

/// A delay as it is named in queues and routing keys: in the largest whole unit of `ms`, `s`, `m`, `h`.
#[must_use]
pub fn delay_name(delay: Duration) -> String {
    let ms = delay.as_millis();
    match ms {
        ms if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        ms if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_named_by_its_largest_whole_unit() {
        for (ms, name) in
            [(250, "250ms"), (90_000, "90s"), (60_000, "1m"), (86_400_000, "24h"), (1001, "1001ms")]
        {
            assert_eq!(delay_name(Duration::from_millis(ms)), name);
        }
    }
}
