//! Delays: their names in the broker, and which delay fits a wait.

use std::time::Duration;

/// The name of a delay in queue names and routing keys: a number and the largest whole unit of
/// `ms`, `s`, `m`, `h`.
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

/// The longest of these ascending delays that is no longer than `wait`, or the first if all are
/// longer.
#[must_use]
pub fn fit(delays: &[Duration], wait: Duration) -> Duration {
    let fitting = delays.iter().rev().find(|delay| **delay <= wait);
    fitting.or_else(|| delays.first()).copied().unwrap_or(Duration::from_secs(1))
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

    #[test]
    fn a_delay_fits_if_it_ends_before_the_wait() {
        let delays = [250, 1000, 4000].map(Duration::from_millis);
        for (wait, fitting) in [(0, 250), (250, 250), (999, 250), (1000, 1000), (90_000, 4000)] {
            let fitted = fit(&delays, Duration::from_millis(wait));
            assert_eq!(fitted, Duration::from_millis(fitting), "{wait}");
        }
    }
}
