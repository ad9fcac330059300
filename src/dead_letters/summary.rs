//! Summaries of dead letters, class by class.

use std::collections::BTreeMap;

use super::Captures;
use crate::domain::{
    capture::class::Class,
    replay::{ReplayPolicy, dead_letter::DeadLetter},
};

/// How many different codes are counted one by one. A code is text from outside, so the number of
/// different ones has no limit of its own.
const CODES_MAX: usize = 100;
/// The name under which all further codes are counted.
const OTHERS: &str = "others";

/// The summaries of the classes that have dead letters, and the captures of all of them.
#[derive(Clone, Debug, Default)]
pub struct Summaries {
    /// One summary for each class, in the order in which the classes were read.
    pub classes: Vec<Summary>,
    /// The captures of all classes. One that has copies in two classes counts once here.
    pub captures: Captures,
}

impl Summaries {
    /// Adds a dead letter. Those of one class must follow each other, and end with
    /// [`Self::end_class`].
    pub(super) fn add(&mut self, dead_letter: &DeadLetter) {
        if self.classes.last().is_none_or(|last| last.class != dead_letter.class) {
            self.classes.push(Summary::of(dead_letter.class));
        }
        if let Some(summary) = self.classes.last_mut() {
            summary.add(dead_letter);
        }
    }

    /// Adds the captures of the class that was added last to those of all classes.
    pub(super) fn end_class(&mut self) {
        if let Some(last) = self.classes.last_mut() {
            self.captures.absorb(&mut last.captures);
        }
    }

    /// The number of dead letters of all classes.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        self.classes.iter().map(|summary| summary.dead_letters).sum()
    }

    /// When the oldest and the newest of all were dead-lettered, in epoch milliseconds.
    #[must_use]
    pub fn dead_at_ms(&self) -> Option<(i64, i64)> {
        let ages = self.classes.iter().filter_map(|summary| summary.dead_at_ms);
        ages.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
    }

    /// The number of dead letters whose amount is not readable.
    #[must_use]
    pub fn without_amount(&self) -> u64 {
        self.classes.iter().map(|summary| summary.without_amount).sum()
    }
}

/// How many dead letters a class has, their ages, money, codes and policies.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The class of all these dead letters.
    pub class: Class,
    /// The number of dead letters. Copies of one capture count one by one.
    pub dead_letters: u64,
    /// When the oldest and the newest were dead-lettered, in epoch milliseconds.
    pub dead_at_ms: Option<(i64, i64)>,
    /// The distinct captures among them, and their money.
    pub captures: Captures,
    /// The number of dead letters whose amount is not readable.
    pub without_amount: u64,
    /// The number of dead letters with each code.
    pub codes: BTreeMap<String, u64>,
    /// The number that the broker itself dead-lettered, by its reason.
    pub broker_reasons: BTreeMap<&'static str, u64>,
    /// What to do, each advice once, in the order of the queue.
    pub advice: Vec<&'static str>,
    /// The number of dead letters under each replay policy.
    pub policies: BTreeMap<ReplayPolicy, u64>,
}

impl Summary {
    /// The summary of a class without dead letters.
    #[must_use]
    pub fn of(class: Class) -> Self {
        Self {
            class,
            dead_letters: 0,
            dead_at_ms: None,
            captures: Captures::default(),
            without_amount: 0,
            codes: BTreeMap::new(),
            broker_reasons: BTreeMap::new(),
            advice: Vec::new(),
            policies: BTreeMap::new(),
        }
    }

    /// Adds a dead letter to the summary.
    pub fn add(&mut self, dead_letter: &DeadLetter) {
        self.dead_letters += 1;
        if let Some(at) = dead_letter.dead_at_ms {
            let (first, last) = self.dead_at_ms.unwrap_or((at, at));
            self.dead_at_ms = Some((first.min(at), last.max(at)));
        }
        self.captures.add(dead_letter.id(), dead_letter.amount());
        self.without_amount += u64::from(dead_letter.amount().is_none());
        if let Some(code) = &dead_letter.code {
            let is_room = self.codes.len() < CODES_MAX || self.codes.contains_key(code);
            let code = if is_room { code.as_str() } else { OTHERS };
            *self.codes.entry(code.to_owned()).or_default() += 1;
        }
        if let Some(death) = &dead_letter.broker_death {
            *self.broker_reasons.entry(death.reason.kind()).or_default() += 1;
        }
        let advice = dead_letter.advice();
        if !self.advice.contains(&advice) {
            self.advice.push(advice);
        }
        *self
            .policies
            .entry(ReplayPolicy::of(dead_letter.class, dead_letter.signed))
            .or_default() += 1;
    }

    /// The codes with their counts, the most frequent first.
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
        replay::dead_letter::{BrokerDeath, BrokerReason},
        tests::dead_letter,
    };

    #[test]
    fn dead_letters_are_counted_summed_and_dated() {
        let mut summary = Summary::of(Class::Access);
        for (n, code) in ["A", "B", "B"].into_iter().enumerate() {
            let mut access = dead_letter(Class::Access, ["c", "d", "c"][n]);
            access.code = Some(code.into());
            access.signed = n == 0;
            access.dead_at_ms = [Some(5), None, Some(3)][n];
            summary.add(&access);
        }
        assert_eq!((summary.dead_letters, summary.dead_at_ms), (3, Some((3, 5))));
        assert_eq!(summary.captures.distinct(), 2);
        assert_eq!(summary.captures.money().values().collect::<Vec<_>>(), [&200]);
        assert_eq!(summary.top_codes(), [("B", 2), ("A", 1)]);
        assert_eq!(
            summary.policies,
            [(ReplayPolicy::SameId, 2), (ReplayPolicy::FreshId, 1)].into()
        );
    }

    #[test]
    fn a_capture_with_copies_in_two_classes_counts_once_in_total() {
        let mut summaries = Summaries::default();
        for (class, ids) in
            [(Class::Risk, [("a", 7), ("b", 9)]), (Class::InDoubt, [("a", 5), ("a", 6)])]
        {
            for (id, at) in ids {
                let mut dead = dead_letter(class, id);
                dead.dead_at_ms = Some(at);
                summaries.add(&dead);
            }
            summaries.end_class();
        }
        let distinct = |summary: &Summary| (summary.dead_letters, summary.captures.distinct());
        assert_eq!(summaries.classes.iter().map(distinct).collect::<Vec<_>>(), [(2, 2), (2, 1)]);
        assert_eq!((summaries.dead_letters(), summaries.captures.distinct()), (4, 2));
        assert_eq!(summaries.captures.money().values().collect::<Vec<_>>(), [&200]);
        assert_eq!(summaries.dead_at_ms(), Some((5, 9)));
    }

    #[test]
    fn dead_letters_of_the_broker_are_counted_by_its_reason() {
        let mut summary = Summary::of(Class::Poison);
        for word in ["expired", "maxlen", "expired", "new in 9.0", ""] {
            let mut poison = dead_letter(Class::Poison, "c");
            poison.broker_death = (!word.is_empty()).then(|| BrokerDeath {
                reason: BrokerReason::of(word),
                queue: "capture.jobs".into(),
            });
            summary.add(&poison);
        }
        assert_eq!(summary.broker_reasons, [("expired", 2), ("maxlen", 1), ("other", 1)].into());
        assert_eq!(summary.advice.len(), 4);
        assert!(summary.advice[0].starts_with("expired by a TTL before a worker took it"));
        assert_eq!(summary.advice[3], crate::domain::replay::dead_letter::advice(Class::Poison));
    }

    #[test]
    fn the_memory_for_different_codes_is_bounded() {
        let mut summary = Summary::of(Class::UnknownCode);
        for n in 0..500 {
            let mut unknown = dead_letter(Class::UnknownCode, "c");
            unknown.code = Some(format!("CODE_{n}"));
            summary.add(&unknown);
        }
        assert_eq!(summary.codes.len(), CODES_MAX + 1);
        assert_eq!(summary.codes[OTHERS], 400);
    }
}
