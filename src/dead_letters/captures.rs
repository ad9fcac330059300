//! Counts distinct captures and sums their money. Two dead letters with the same captureRequestId
//! are copies of one capture, which moves its money once. Everything that reports or limits money
//! counts here: the list, the dry run, and the act.

use std::collections::{BTreeMap, HashMap};

use crate::domain::money::{Currency, Money};

/// The captures that were counted so far, each one once, whatever the order and the number of its
/// copies. Where copies differ, the largest amount of each currency counts.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    /// The largest amount of each id in each currency. Nearly every id has one.
    largest: HashMap<Box<str>, Vec<Money>>,
    /// The captures without a readable id.
    nameless: (u64, BTreeMap<Currency, u128>),
    distinct: u64,
    money: BTreeMap<Currency, u128>,
}

impl Captures {
    /// Counts the capture of a dead letter or of a job that a replay sends. Without a readable id
    /// it can't be a known copy of another one, so it counts for itself.
    pub fn add(&mut self, id: Option<&str>, amount: Option<Money>) {
        if let Some(amount) = amount {
            let above = self.above(id, amount);
            *self.money.entry(amount.currency()).or_default() += u128::from(above);
        }
        let Some(id) = id else {
            self.distinct += 1;
            self.nameless.0 += 1;
            if let Some(amount) = amount {
                let sum = self.nameless.1.entry(amount.currency()).or_default();
                *sum += u128::from(amount.value());
            }
            return;
        };
        if !self.largest.contains_key(id) {
            self.distinct += 1;
            self.largest.insert(id.into(), Vec::new());
        }
        let (Some(amount), Some(amounts)) = (amount, self.largest.get_mut(id)) else { return };
        match amounts.iter_mut().find(|known| known.currency() == amount.currency()) {
            Some(known) => *known = amount.max(*known),
            None => {
                // A hundred thousand ids need not reserve room for amounts that they don't have.
                amounts.reserve_exact(1);
                amounts.push(amount);
            }
        }
    }

    /// What [`Captures::add`] would add to the sum of the amount's currency, in its smallest unit:
    /// a copy adds only what is above the amount that is counted for its id.
    #[must_use]
    pub fn above(&self, id: Option<&str>, amount: Money) -> u64 {
        let counted = id.and_then(|id| self.largest.get(id));
        let largest =
            counted.into_iter().flatten().find(|known| known.currency() == amount.currency());
        amount.value().saturating_sub(largest.map_or(0, |known| known.value()))
    }

    /// Whether the sum of the amount's currency stays within `max`, in its smallest unit, when the
    /// amount is added.
    #[must_use]
    pub fn is_within(&self, id: Option<&str>, amount: Money, max: u64) -> bool {
        let sum = self.money.get(&amount.currency()).copied().unwrap_or_default();
        sum + u128::from(self.above(id, amount)) <= u128::from(max)
    }

    /// The number of distinct captures.
    #[must_use]
    pub const fn distinct(&self) -> u64 {
        self.distinct
    }

    /// The sum of each currency over distinct captures, in its smallest unit.
    #[must_use]
    pub const fn money(&self) -> &BTreeMap<Currency, u128> {
        &self.money
    }

    /// Counts everything that `other` has counted. Takes its ids, because those of a large class
    /// take much memory, and leaves it its counts: nothing may be added to it any more.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        if self.distinct == 0 {
            let (distinct, money) = (other.distinct, other.money.clone());
            *self = std::mem::take(other);
            (other.distinct, other.money) = (distinct, money);
            return;
        }
        for (id, amounts) in std::mem::take(&mut other.largest) {
            self.add(Some(&id), None);
            amounts.into_iter().for_each(|amount| self.add(Some(&id), Some(amount)));
        }
        let (count, sums) = std::mem::take(&mut other.nameless);
        self.distinct += count;
        self.nameless.0 += count;
        for (currency, sum) in sums {
            *self.nameless.1.entry(currency).or_default() += sum;
            *self.money.entry(currency).or_default() += sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::{
        capture::class::Class,
        replay::{Changes, prepare},
        tests::dead_letter,
    };

    fn money(currency: &str, value: u64) -> Money {
        Money::from_smallest(currency, &value.to_string()).unwrap()
    }

    type Entry<'a> = (Option<&'a str>, Option<Money>);

    fn captures_of(entries: &[Entry<'_>]) -> Captures {
        let mut captures = Captures::default();
        entries.iter().for_each(|(id, amount)| captures.add(*id, *amount));
        captures
    }

    fn counts(captures: &Captures) -> (u64, Vec<(&'static str, u128)>) {
        let sums = captures.money().iter().map(|(currency, sum)| (currency.code(), *sum));
        (captures.distinct(), sums.collect())
    }

    fn counted(entries: &[Entry<'_>]) -> (u64, Vec<(&'static str, u128)>) {
        counts(&captures_of(entries))
    }

    #[test]
    fn copies_are_one_capture_and_one_sum_of_money() {
        let hkd = |value| Some(money("HKD", value));
        let jpy = |value| Some(money("JPY", value));
        let c = Some("c");
        for (entries, distinct, sums) in [
            (vec![], 0, vec![]),
            (vec![(c, hkd(73_888)), (c, hkd(73_888))], 1, vec![("HKD", 73_888)]),
            (vec![(c, hkd(70)), (c, hkd(100)), (c, hkd(40))], 1, vec![("HKD", 100)]),
            (vec![(c, hkd(70)), (c, jpy(5)), (c, jpy(9))], 1, vec![("HKD", 70), ("JPY", 9)]),
            (vec![(c, hkd(70)), (Some("d"), hkd(70))], 2, vec![("HKD", 140)]),
            (vec![(None, hkd(70)), (None, hkd(70)), (None, None)], 3, vec![("HKD", 140)]),
            (vec![(c, None), (c, hkd(70)), (c, None)], 1, vec![("HKD", 70)]),
        ] {
            assert_eq!(counted(&entries), (distinct, sums), "{entries:?}");
        }
    }

    #[test]
    fn a_limit_lets_a_copy_through_up_to_the_counted_amount() {
        let mut captures = Captures::default();
        let within =
            |captures: &Captures, id, value| captures.is_within(id, money("HKD", value), 100);
        assert!(within(&captures, Some("c"), 100) && !within(&captures, Some("c"), 101));
        captures.add(Some("c"), Some(money("HKD", 90)));
        assert!(within(&captures, Some("c"), 90) && within(&captures, Some("c"), 100));
        assert!(!within(&captures, Some("c"), 101));
        assert!(within(&captures, Some("d"), 10) && !within(&captures, Some("d"), 11));
        assert!(!within(&captures, None, 90), "without an id it is no copy");
        assert!(!captures.is_within(Some("c"), money("JPY", 1), 0), "another currency");
    }

    #[test]
    fn copies_of_one_parent_are_one_capture_under_its_fresh_id() {
        let mut captures = Captures::default();
        for _ in 0..2 {
            let parent = dead_letter(Class::Risk, "parent");
            let replay = prepare(&parent, &Changes::default(), OffsetDateTime::UNIX_EPOCH).unwrap();
            assert_ne!(replay.id.as_deref(), parent.id());
            captures.add(replay.id.as_deref(), replay.amount);
        }
        assert_eq!((captures.distinct(), captures.money().values().sum::<u128>()), (1, 100));
    }

    /// Ids, amounts and currencies from small sets, so that copies are frequent.
    fn entries() -> impl Strategy<Value = Vec<Entry<'static>>> {
        let id = prop::option::weighted(0.9, prop::sample::select(vec!["a", "b", "c", "d"]));
        let amount = (prop::sample::select(vec!["HKD", "JPY", "USD"]), 1_u64..1000)
            .prop_map(|(currency, value)| money(currency, value));
        prop::collection::vec((id, prop::option::weighted(0.9, amount)), 0..30)
    }

    proptest! {
        #[test]
        fn order_and_copies_change_nothing(
            entries in entries().prop_shuffle(),
            shuffled in any::<u64>(),
            copied in prop::collection::vec(any::<Index>(), 0..10),
        ) {
            let expected = counted(&entries);
            let mut others = entries.clone();
            let named: Vec<_> = entries.iter().filter(|(id, _)| id.is_some()).collect();
            if !named.is_empty() {
                others.extend(copied.iter().map(|index| **index.get(&named)));
            }
            others.sort_by_key(|entry| {
                use std::hash::{DefaultHasher, Hash as _, Hasher as _};
                let mut hasher = DefaultHasher::new();
                (shuffled, entry).hash(&mut hasher);
                hasher.finish()
            });
            prop_assert_eq!(counted(&others), expected);
        }

        #[test]
        fn classes_together_count_as_if_they_were_one(
            classes in prop::collection::vec(entries(), 0..4),
        ) {
            let mut all = Captures::default();
            for class in &classes {
                let mut captures = captures_of(class);
                all.absorb(&mut captures);
                prop_assert_eq!(counts(&captures), counted(class), "a class keeps its counts");
            }
            prop_assert_eq!(counts(&all), counted(&classes.concat()));
        }

        #[test]
        fn each_id_counts_its_largest_amount_of_each_currency(entries in entries()) {
            let mut largest: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            let mut sums: BTreeMap<&str, u128> = BTreeMap::new();
            for (id, amount) in &entries {
                match (id, amount) {
                    (Some(id), Some(amount)) => {
                        let known = largest.entry((id, amount.currency().code())).or_default();
                        *known = (*known).max(amount.value());
                    }
                    (None, Some(amount)) => {
                        *sums.entry(amount.currency().code()).or_default() +=
                            u128::from(amount.value());
                    }
                    (_, None) => {}
                }
            }
            for ((_, currency), value) in largest {
                *sums.entry(currency).or_default() += u128::from(value);
            }
            let mut ids: Vec<_> = entries.iter().filter_map(|(id, _)| *id).collect();
            ids.sort_unstable();
            ids.dedup();
            let nameless = entries.iter().filter(|(id, _)| id.is_none()).count();
            let (distinct, money) = counted(&entries);
            prop_assert_eq!(usize::try_from(distinct).unwrap(), ids.len() + nameless);
            prop_assert_eq!(money.into_iter().collect::<BTreeMap<_, _>>(), sums);
        }
    }
}
