//! Compares the submitted jobs with the results, the gateway's ledger and the dead letters.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use crate::{
    day::{CaptureType, Day, Expected, Shipment, major_units},
    sandbox::Ledger,
};

/// Amounts by currency, in smallest units.
pub(crate) type Sums = BTreeMap<String, u128>;

/// The final result of each id, by the rules that consumers of results follow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes {
    /// Status, class and amount by `captureRequestId`.
    by_id: BTreeMap<String, Outcome>,
    /// The number of results, including repeated ones.
    pub(crate) results: usize,
}

#[derive(Clone, Debug)]
struct Outcome {
    status: String,
    class: Option<String>,
    currency: String,
    value: u128,
}

impl Outcomes {
    /// CAPTURED is final. FAILED overrides `IN_DOUBT`. Otherwise the latest result wins.
    pub(crate) fn read<'a>(results: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut outcomes = Self::default();
        for result in results {
            outcomes.results += 1;
            let text = |name: &str| result.get(name)?.as_str().map(str::to_owned);
            let Some(id) = text("captureRequestId") else { continue };
            let amount = |name: &str| result.get("captureAmount")?.get(name)?.as_str();
            let outcome = Outcome {
                status: text("status").unwrap_or_default(),
                class: text("class"),
                currency: amount("currency").unwrap_or_default().to_owned(),
                value: amount("value").and_then(|value| value.parse().ok()).unwrap_or_default(),
            };
            let stands = outcomes.by_id.get(&id).is_some_and(|standing| {
                standing.status == "CAPTURED"
                    || (standing.status == "FAILED" && outcome.status == "IN_DOUBT")
            });
            if !stands {
                outcomes.by_id.insert(id, outcome);
            }
        }
        outcomes
    }

    pub(crate) fn count(&self, status: &str) -> usize {
        self.by_id.values().filter(|outcome| outcome.status == status).count()
    }

    /// The number of ids that have a result.
    pub(crate) fn ended(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn has_ended(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    fn captured_money(&self) -> Sums {
        let captured = self.by_id.values().filter(|outcome| outcome.status == "CAPTURED");
        sums(captured.map(|outcome| (outcome.currency.as_str(), outcome.value)))
    }
}

/// Everything that is compared at the end of the day.
pub(crate) struct Evidence<'a> {
    pub(crate) day: &'a Day,
    pub(crate) outcomes: &'a Outcomes,
    pub(crate) ledger: &'a Ledger,
    /// The ids of the dead letters by class.
    pub(crate) dead: &'a BTreeMap<&'static str, Vec<String>>,
    /// The number of jobs that are still in the queue or in a wait queue.
    pub(crate) left_over: u32,
}

impl Evidence<'_> {
    /// All differences. There are none if every job was captured once or became a dead letter.
    pub(crate) fn differences(&self) -> Vec<String> {
        let mut found = self.outcome_differences();
        found.extend(self.ledger_differences());
        found.extend(self.dead_letter_differences());
        let (expected, ledger) = (self.expected_money(), self.ledger_money());
        let results = self.outcomes.captured_money();
        if expected != ledger || expected != results {
            found.push(format!(
                "money: expected {expected:?}, the ledger has {ledger:?}, the results {results:?}"
            ));
        }
        if self.left_over > 0 {
            found.push(format!("{} jobs are still queued", self.left_over));
        }
        if self.ledger.overlaps > 0 {
            found.push(format!("{} capture calls overlapped on a payment", self.ledger.overlaps));
        }
        found
    }

    fn outcome_differences(&self) -> Vec<String> {
        let expected = self.day.expected();
        let mut found = Vec::new();
        for (id, expected) in &expected {
            let outcome = self.outcomes.by_id.get(*id);
            let is = outcome.map(|outcome| (outcome.status.as_str(), outcome.class.as_deref()));
            let must = match expected {
                Expected::Captured => ("CAPTURED", None),
                Expected::Dead(class) => ("FAILED", Some(*class)),
            };
            if is != Some(must) {
                found.push(format!("{id}: expected {must:?}, the results have {is:?}"));
            }
        }
        let unknown = self.outcomes.by_id.keys().filter(|id| !expected.contains_key(id.as_str()));
        found.extend(unknown.map(|id| format!("{id}: has a result, but was not submitted")));
        found
    }

    fn ledger_differences(&self) -> Vec<String> {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for capture in &self.ledger.captures {
            *times.entry(&capture.capture_request_id).or_default() += 1;
        }
        let mut found = Vec::new();
        for (id, expected) in self.day.expected() {
            let must = usize::from(expected == Expected::Captured);
            let is = times.remove(id).unwrap_or_default();
            if is != must {
                found.push(format!("{id}: expected {must} captures, the ledger has {is}"));
            }
        }
        found.extend(times.keys().map(|id| format!("{id}: was captured, but not submitted")));
        found.extend(self.order_differences());
        found
    }

    /// After the final capture, the gateway releases the rest of the authorization, so it must be
    /// the last capture of its payment.
    fn order_differences(&self) -> Vec<String> {
        let at = |id: &str| {
            self.ledger.captures.iter().position(|capture| capture.capture_request_id == id)
        };
        let shipments = &self.day.shipments;
        let is_last = |shipment: &&Shipment| shipment.capture_type == CaptureType::Final;
        let mut found = Vec::new();
        for last in shipments.iter().filter(is_last) {
            let others = shipments.iter().filter(|other| other.payment == last.payment);
            if others.filter_map(|other| at(&other.id)).max() != at(&last.id) {
                found.push(format!(
                    "{}: the final capture of {} was not its last",
                    last.id, last.payment
                ));
            }
        }
        found
    }

    fn dead_letter_differences(&self) -> Vec<String> {
        let mut must: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (id, expected) in self.day.expected() {
            if let Expected::Dead(class) = expected {
                must.entry(class).or_default().push(id);
            }
        }
        let classes =
            self.dead.keys().chain(must.keys()).collect::<std::collections::BTreeSet<_>>();
        let mut found = Vec::new();
        for class in classes {
            let mut is: Vec<&str> =
                self.dead.get(class).into_iter().flatten().map(String::as_str).collect();
            is.sort_unstable();
            // Each copy of a refused job becomes a dead letter too, so an id may occur repeatedly.
            is.dedup();
            let must = must.get(class).map(Vec::as_slice).unwrap_or_default();
            if is != must {
                found.push(format!(
                    "dead letters of class {class}: expected {must:?}, found {is:?}"
                ));
            }
        }
        found
    }

    fn expected_money(&self) -> Sums {
        let captured = self.day.shipments.iter().filter(|job| job.expected == Expected::Captured);
        sums(captured.map(|job| (job.money.currency, u128::from(job.money.value))))
    }

    fn ledger_money(&self) -> Sums {
        sums(self.ledger.captures.iter().map(|capture| {
            let amount = &capture.capture_amount;
            (amount.currency.as_str(), amount.value.parse().unwrap_or_default())
        }))
    }

    /// The totals of the day as a table.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        let mut line = |name: &str, text: &str| writeln!(table, "  {name:<26}{text:>22}").ok();
        let day = self.day;
        line("jobs submitted", &(day.shipments.len() + 1).to_string());
        line("  and copies of them", &day.copies.len().to_string());
        line("payments", &day.payments().to_string());
        line("  shipped in parts", &day.final_captures().to_string());
        line("results", &self.outcomes.results.to_string());
        for status in ["CAPTURED", "FAILED", "IN_DOUBT"] {
            line(&format!("  jobs {status}"), &self.outcomes.count(status).to_string());
        }
        line("dead letters", &self.dead.values().map(Vec::len).sum::<usize>().to_string());
        for (class, ids) in self.dead.iter().filter(|(_, ids)| !ids.is_empty()) {
            line(&format!("  {class}"), &ids.len().to_string());
        }
        line("captures in the ledger", &self.ledger.captures.len().to_string());
        for (currency, value) in self.ledger_money() {
            line(&format!("  {currency}"), &major_units(&currency, value));
        }
        table
    }
}

fn sums<'a>(amounts: impl Iterator<Item = (&'a str, u128)>) -> Sums {
    let mut sums = Sums::new();
    for (currency, value) in amounts {
        *sums.entry(currency.to_owned()).or_default() += value;
    }
    sums
}
