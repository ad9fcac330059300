//! Which letters are meant.

use std::time::Duration;

use crate::domain::{class::Class, letter::DeadLetter};

/// Every condition must hold; of a list, one entry. An empty list holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In the queue of one of these classes.
    pub classes: Vec<Class>,
    /// With one of these codes.
    pub codes: Vec<String>,
    /// With one of these ids.
    pub ids: Vec<String>,
    /// Of one of these payments.
    pub payments: Vec<String>,
    /// Given up longer ago than this.
    pub older_than: Option<Duration>,
    /// Given up less long ago than this.
    pub newer_than: Option<Duration>,
}

impl Filter {
    /// The classes whose queues have to be looked at.
    #[must_use]
    pub fn classes(&self) -> Vec<Class> {
        let is_meant = |class: &Class| self.classes.is_empty() || self.classes.contains(class);
        Class::ALL.into_iter().filter(is_meant).collect()
    }

    /// Whether nothing is named, and so everything is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a letter is meant. One that has no readable id, code or age is not meant by a condition on it.
    #[must_use]
    pub fn takes(&self, letter: &DeadLetter, now_ms: i64) -> bool {
        let is_one = |list: &[String], text: Option<&str>| {
            list.is_empty() || text.is_some_and(|text| list.iter().any(|entry| entry == text))
        };
        let age_ms = letter.age_ms(now_ms);
        let is_aged = |limit: Option<Duration>, older: bool| {
            let limit_ms = limit.map(|limit| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
            limit_ms.is_none_or(|limit| age_ms.is_some_and(|age| (age > limit) == older))
        };
        (self.classes.is_empty() || self.classes.contains(&letter.class))
            && is_one(&self.codes, letter.code.as_deref())
            && is_one(&self.ids, letter.id())
            && is_one(&self.payments, letter.payment_id())
            && is_aged(self.older_than, true)
            && is_aged(self.newer_than, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::letter;

    #[test]
    fn every_condition_must_hold() {
        let mut risk = letter(Class::Risk, "c1");
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
            assert!(!filter.takes(&risk, 61_000), "no age is neither");
        }
    }
}
