//! Medians and percentiles, and the gaps between the calls of the hot payment.

use crate::gateway::Call;

/// The median; for an even number of values, the mean of the middle two.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 50)
}

/// The value below which `percent` per cent of the values are.
pub(crate) fn percentile(values: impl IntoIterator<Item = f64>, percent: usize) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let (low, high) = (last * percent / 100, (last * percent).div_ceil(100));
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(low), at(high))
}

/// The times from the end of one call of the hot payment to the start of the next, in milliseconds:
/// within one worker, and across workers. Calls that overlap are counted instead.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    pub(crate) within: Vec<f64>,
    pub(crate) across: Vec<f64>,
    pub(crate) overlaps: usize,
}

impl Gaps {
    pub(crate) fn of(calls: &[Call]) -> Self {
        let mut hot: Vec<&Call> = calls.iter().filter(|call| call.is_hot).collect();
        hot.sort_by_key(|call| call.began);
        let mut gaps = Self::default();
        for (one, next) in hot.iter().zip(hot.iter().skip(1)) {
            let Some(gap) = next.began.checked_duration_since(one.ended) else {
                gaps.overlaps += 1;
                continue;
            };
            let gap_ms = gap.as_secs_f64() * 1000.0;
            let gaps = if one.worker == next.worker { &mut gaps.within } else { &mut gaps.across };
            gaps.push(gap_ms);
        }
        gaps
    }
}
