//! The family of a `captureRequestId`: the fresh ids that an operator's replays derive from it.
//! Each id has exactly one child.
//!
//! An id that was replaced must stay replaced, even if Redis has lost the record. The gateway's
//! list of transactions is the evidence. An id is never posted while one of its descendants is
//! active: it has captured, or is not proven to have failed. A fresh id is never posted while one
//! of its ancestors is active. The worker and the operator's commands use the same functions.

use sha2::{Digest, Sha256};

use super::reply::{Standing, Transaction};
use crate::domain::{job::history::History, money::Money};

/// How many generations of fresh ids are searched. Each generation takes an operator's replay of a
/// final failure.
const GENERATIONS: usize = 32;

/// The one fresh id that may replace an id. It depends on nothing but its parent, so one parent has
/// one child, whichever copy of it is replayed, how often and by which operator.
#[must_use]
pub fn fresh_id(parent: &str) -> String {
    let digest = Sha256::new().chain_update("capture-worker/fresh-id/1\n").chain_update(parent);
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("cw-{}", &hex[..40])
}

/// An active id of the family: it has captured, or may still capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveId {
    /// Its `captureRequestId` at the gateway.
    pub id: String,
    /// Its amount, if the gateway gives it.
    pub amount: Option<Money>,
}

/// The active descendants of an id, as far as they matter for a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descendants {
    /// The child: the fresh id that replaces the id itself.
    pub child: Option<ActiveId>,
    /// The nearest one in the generations after the child.
    pub later: Option<ActiveId>,
}

impl Descendants {
    /// Finds them in the transactions of the payment. A generation that the gateway does not know
    /// does not end the search: its capture may have been refused before the gateway looked up the
    /// id, and its own child may have captured.
    #[must_use]
    pub fn of(transactions: &[Transaction], id: &str) -> Self {
        let mut found = Self::default();
        let mut id = fresh_id(id);
        for generation in 0..GENERATIONS {
            let active = transactions.iter().find(|item| {
                item.request_id.as_ref() == Some(&id) && item.standing() != Standing::Failed
            });
            if let Some(item) = active {
                let amount = item.amount.clone().and_then(Result::ok);
                let active = Some(ActiveId { id: id.clone(), amount });
                if generation == 0 {
                    found.child = active;
                } else {
                    found.later = active;
                    break;
                }
            }
            id = fresh_id(&id);
        }
        found
    }

    /// The nearest active descendant.
    #[must_use]
    pub const fn nearest(&self) -> Option<&ActiveId> {
        match &self.child {
            Some(child) => Some(child),
            None => self.later.as_ref(),
        }
    }
}

/// The nearest active ancestor of an id. The headers name the parent and the id that the publisher
/// wrote. The ids between them are derived from the latter.
#[must_use]
pub fn active_ancestor(
    transactions: &[Transaction],
    id: &str,
    history: &History,
) -> Option<ActiveId> {
    let mut ancestors = Vec::new();
    if let Some(origin) = &history.origin {
        let mut next = origin.clone();
        while next != id && ancestors.len() < GENERATIONS {
            let child = fresh_id(&next);
            ancestors.push(next);
            next = child;
        }
        // An origin that does not lead to this id is not an ancestor.
        if next != id {
            ancestors.clear();
        }
    }
    ancestors.extend(history.parent.clone());
    let find_active = |ancestor: &String| {
        transactions.iter().find(|item| {
            item.request_id.as_ref() == Some(ancestor) && item.standing() != Standing::Failed
        })
    };
    let active =
        ancestors.iter().rev().find_map(|ancestor| Some((ancestor, find_active(ancestor)?)));
    active.map(|(id, item)| ActiveId {
        id: id.clone(),
        amount: item.amount.clone().and_then(Result::ok),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, status: &str) -> Transaction {
        Transaction {
            kind: Some("CAPTURE".into()),
            request_id: Some(id.into()),
            status: Some(status.into()),
            ..Transaction::default()
        }
    }

    fn nth(generation: usize) -> String {
        (0..generation).fold("parent".to_owned(), |id, _| fresh_id(&id))
    }

    #[test]
    fn an_active_descendant_is_found_behind_unknown_generations() {
        for generation in 2..=GENERATIONS {
            let items = [item("other", "SUCCESS"), item(&nth(generation), "SUCCESS")];
            let found = Descendants::of(&items, "parent");
            assert_eq!(found.child, None);
            assert_eq!(found.later.map(|active| active.id), Some(nth(generation)));
        }
        let beyond = [item(&nth(GENERATIONS + 1), "SUCCESS")];
        assert_eq!(Descendants::of(&beyond, "parent"), Descendants::default());
    }

    #[test]
    fn an_active_ancestor_is_found_from_parent_and_origin() {
        let of = |origin: &str, parent: &str| History {
            origin: Some(origin.into()),
            parent: Some(parent.into()),
            ..History::default()
        };
        let (id, history) = (nth(3), of("parent", &nth(2)));
        for generation in 0..3 {
            let items = [item(&nth(generation), "SUCCESS"), item(&nth(generation), "FAIL")];
            let found = active_ancestor(&items, &id, &history).map(|active| active.id);
            assert_eq!(found, Some(nth(generation)));
            assert_eq!(active_ancestor(&items[1..], &id, &history), None);
        }
        let others = [item("other", "SUCCESS"), item(&id, "SUCCESS")];
        assert_eq!(active_ancestor(&others, &id, &history), None);
        assert_eq!(active_ancestor(&others, &id, &of("other", &nth(2))), None);
        assert_eq!(active_ancestor(&others, "parent", &History::default()), None);
    }

    #[test]
    fn a_descendant_is_active_until_proven_to_have_failed() {
        for status in ["SUCCESS", "PROCESSING", "PENDING", "HIBERNATING", ""] {
            let found = Descendants::of(&[item(&nth(1), "FAIL"), item(&nth(1), status)], "parent");
            assert_eq!(found.nearest().map(|active| active.id.as_str()), Some(nth(1).as_str()));
        }
        let dead = [item(&nth(1), "FAIL"), item(&nth(2), "CANCELLED")];
        assert_eq!(Descendants::of(&dead, "parent"), Descendants::default());
        let odd = Transaction { kind: Some("REFUND".into()), ..item(&nth(1), "FAIL") };
        assert!(Descendants::of(&[odd], "parent").child.is_some());
    }
}
