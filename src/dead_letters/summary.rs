//! One class at a glance.

use std::collections::BTreeMap;

use crate::domain::{class::Class, letter::DeadLetter, money::Currency, replay::Policy};

/// Codes beyond so many are counted together: others may write what they like there.
const CODES_MAX: usize = 100;
/// What the rest is counted as.
const OTHERS: &str = "others";

/// What the letters of a class come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The class.
    pub class: Class,
    /// How many letters.
    pub letters: u64,
    /// When the first and the last of them were given up, in epoch milliseconds.
    pub dead_at_ms: Option<(i64, i64)>,
    /// The sum by currency, in the smallest unit, and of how many letters.
    pub money: BTreeMap<Currency, (u128, u64)>,
    /// Letters whose amount can't be read.
    pub without_amount: u64,
    /// How many of each code.
    pub codes: BTreeMap<String, u64>,
    /// How many the broker itself dead-lettered, by its reason.
    pub broker_reasons: BTreeMap<&'static str, u64>,
    /// What to do, in the order in which it was first met.
    pub advice: Vec<&'static str>,
    /// How many may be replayed in which way.
    pub policies: BTreeMap<Policy, u64>,
}

impl Summary {
    /// Of no letters.
    #[must_use]
    pub const fn of(class: Class) -> Self {
        Self {
            class,
            letters: 0,
            dead_at_ms: None,
            money: BTreeMap::new(),
            without_amount: 0,
            codes: BTreeMap::new(),
            broker_reasons: BTreeMap::new(),
            advice: Vec::new(),
            policies: BTreeMap::new(),
        }
    }

    /// Counts a letter.
    pub fn add(&mut self, letter: &DeadLetter) {
        self.letters += 1;
        if let Some(at) = letter.dead_at_ms {
            let (first, last) = self.dead_at_ms.unwrap_or((at, at));
            self.dead_at_ms = Some((first.min(at), last.max(at)));
        }
        match letter.amount() {
            Some(amount) => {
                let (sum, count) = self.money.entry(amount.currency()).or_default();
                *sum += u128::from(amount.value());
                *count += 1;
            }
            None => self.without_amount += 1,
        }
        if let Some(code) = &letter.code {
            let is_room = self.codes.len() < CODES_MAX || self.codes.contains_key(code);
            let code = if is_room { code.as_str() } else { OTHERS };
            *self.codes.entry(code.to_owned()).or_default() += 1;
        }
        if let Some(death) = &letter.broker_death {
            *self.broker_reasons.entry(death.reason.kind()).or_default() += 1;
        }
        let advice = letter.advice();
        if !self.advice.contains(&advice) {
            self.advice.push(advice);
        }
        *self.policies.entry(Policy::of(letter.class, letter.signed)).or_default() += 1;
    }

    /// The codes by how often they occur, most first.
    #[must_use]
    pub fn top_codes(&self) -> Vec<(&str, u64)> {
        let mut codes: Vec<_> =
            self.codes.iter().map(|(code, count)| (code.as_str(), *count)).collect();
        codes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        letter::{BrokerDeath, BrokerReason},
        tests::letter,
    };

    #[test]
    fn letters_are_counted_summed_and_dated() {
        let mut summary = Summary::of(Class::Access);
        for (n, code) in ["A", "B", "B"].into_iter().enumerate() {
            let mut access = letter(Class::Access, "c");
            access.code = Some(code.into());
            access.signed = n == 0;
            access.dead_at_ms = [Some(5), None, Some(3)][n];
            summary.add(&access);
        }
        assert_eq!((summary.letters, summary.dead_at_ms), (3, Some((3, 5))));
        assert_eq!(summary.money.values().collect::<Vec<_>>(), [&(300, 3)]);
        assert_eq!(summary.top_codes(), [("B", 2), ("A", 1)]);
        assert_eq!(summary.policies, [(Policy::SameId, 2), (Policy::FreshId, 1)].into());
    }

    #[test]
    fn what_the_broker_gave_up_is_counted_by_its_reason() {
        let mut summary = Summary::of(Class::Poison);
        for word in ["expired", "maxlen", "expired", "new in 9.0", ""] {
            let mut poison = letter(Class::Poison, "c");
            poison.broker_death = (!word.is_empty()).then(|| BrokerDeath {
                reason: BrokerReason::of(word),
                queue: "capture.jobs".into(),
            });
            summary.add(&poison);
        }
        assert_eq!(summary.broker_reasons, [("expired", 2), ("maxlen", 1), ("other", 1)].into());
        assert_eq!(summary.advice.len(), 4);
        assert!(summary.advice[0].starts_with("expired by a TTL before a worker took it"));
        assert_eq!(summary.advice[3], crate::domain::replay::advice(Class::Poison));
    }

    #[test]
    fn codes_without_number_take_no_memory_without_bound() {
        let mut summary = Summary::of(Class::UnknownCode);
        for n in 0..500 {
            let mut unknown = letter(Class::UnknownCode, "c");
            unknown.code = Some(format!("CODE_{n}"));
            summary.add(&unknown);
        }
        assert_eq!(summary.codes.len(), CODES_MAX + 1);
        assert_eq!(summary.codes[OTHERS], 400);
    }
}
