//! The filter that selects dead letters, for every command that has one.

use std::time::Duration;

use crate::domain::{capture::class::Class, replay::dead_letter::DeadLetter};

/// Selects dead letters. Every condition must hold. A list holds if one entry matches; an empty
/// list always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The dead letter is in the queue of one of these classes.
    pub classes: Vec<Class>,
    /// Its result code is one of these.
    pub codes: Vec<String>,
    /// Its captureRequestId is one of these.
    pub ids: Vec<String>,
    /// Its paymentId is one of these.
    pub payments: Vec<String>,
    /// It was dead-lettered longer ago than this.
    pub older_than: Option<Duration>,
    /// It was dead-lettered at most this long ago.
    pub newer_than: Option<Duration>,
}

impl Filter {
    /// The classes whose queues must be browsed.
    #[must_use]
    pub fn classes(&self) -> Vec<Class> {
        let is_meant = |class: &Class| self.classes.is_empty() || self.classes.contains(class);
        Class::ALL.into_iter().filter(is_meant).collect()
    }

    /// Whether there is no condition, so that every dead letter is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a dead letter is selected. A condition on an id, a code or an age does not hold for
    /// a dead letter that lacks a readable one.
    #[must_use]
    pub fn takes(&self, dead_letter: &DeadLetter, now_ms: i64) -> bool {
        let is_one = |list: &[String], text: Option<&str>| {
            list.is_empty() || text.is_some_and(|text| list.iter().any(|entry| entry == text))
        };
        let age_ms = dead_letter.age_ms(now_ms);
        let is_aged = |limit: Option<Duration>, older: bool| {
            let limit_ms = limit.map(|limit| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
            limit_ms.is_none_or(|limit| age_ms.is_some_and(|age| (age > limit) == older))
        };
        (self.classes.is_empty() || self.classes.contains(&dead_letter.class))
            && is_one(&self.codes, dead_letter.code.as_deref())
            && is_one(&self.ids, dead_letter.id())
            && is_one(&self.payments, dead_letter.payment_id())
            && is_aged(self.older_than, true)
            && is_aged(self.newer_than, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::dead_letter;

    #[test]
    fn every_condition_must_hold() {
        let mut risk = dead_letter(Class::Risk, "c1");
        risk.code = Some("RISK_REJECT".into());
        risk.dead_at_ms = Some(1_000);
        let takes = |filter: Filter| filter.takes(&risk, 61_000);
        let minute = Some(Duration::from_secs(60));
        assert!(takes(Filter::default()));
        assert!(takes(Filter { ids: vec!["x".into(), "c1".into()], ..Filter::default() }));
        assert!(!takes(Filter { ids: vec!["c".into()], ..Filter::default() }));
        assert!(!takes(Filter { classes: vec![Class::Order], ..Filter::default() }));
        let code = |code: &str| vec![code.to_owned()];
        assert!(!takes(Filter {
            codes: code("RISK_REJECT"),
            payments: code("other"),
            ..Filter::default()
        }));
        assert!(!takes(Filter { older_than: minute, ..Filter::default() }));
        assert!(takes(Filter { older_than: Some(Duration::from_secs(59)), ..Filter::default() }));
        assert!(takes(Filter { newer_than: minute, ..Filter::default() }));
        risk.dead_at_ms = None;
        for filter in [
            Filter { older_than: minute, ..Filter::default() },
            Filter { newer_than: minute, ..Filter::default() },
        ] {
            assert!(!filter.takes(&risk, 61_000), "without an age, neither condition holds");
        }
    }
}
