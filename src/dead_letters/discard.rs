//! Discards dead letters: with a reason and, where money may have moved, only with evidence from
//! the gateway.

use std::collections::BTreeMap;

use super::{Action, Desk, DeskError, Filter, Flow};
use crate::domain::{
    capture::class::{Class, Codes},
    replay::{Policy, Refusal, dead_letter::DeadLetter, evidence::Seen},
};

/// Which dead letters a command discards.
#[derive(Clone, Debug, Default)]
pub struct Discard {
    /// Selects the dead letters.
    pub filter: Filter,
    /// The most dead letters that are visited.
    pub limit: Option<u64>,
    /// The most of each class: as many as the operator confirmed. A class that is absent has none.
    pub caps: Option<BTreeMap<Class, u64>>,
    /// A dry run: nothing is discarded, and nothing is recorded in the audit.
    pub is_plan: bool,
}

impl Desk {
    /// Discards dead letters. Each one is recorded in the audit first. `told` is called for each
    /// one, with the evidence or with the reason why it stays.
    ///
    /// # Errors
    /// The command ended early. Dead letters that were not reported to `told` are unchanged.
    pub async fn discard(
        &self,
        discard: &Discard,
        mut told: impl FnMut(&DeadLetter, Result<Option<&str>, &Refusal>),
    ) -> Result<(), DeskError> {
        let mut left = discard.limit;
        for class in discard.filter.classes() {
            let mut cap = discard.caps.as_ref().map(|caps| caps.get(&class).copied().unwrap_or(0));
            let visit = async |_: &_, letter: DeadLetter| {
                if left == Some(0) || cap == Some(0) {
                    return Ok(Flow::Stop);
                }
                (left, cap) = (left.map(|left| left - 1), cap.map(|cap| cap - 1));
                self.discard_one(&letter, discard.is_plan, &mut told).await
            };
            self.walk(class, &discard.filter, visit).await?;
            if left == Some(0) {
                break;
            }
        }
        Ok(())
    }

    async fn discard_one(
        &self,
        letter: &DeadLetter,
        is_plan: bool,
        told: &mut impl FnMut(&DeadLetter, Result<Option<&str>, &Refusal>),
    ) -> Result<Flow, DeskError> {
        let seen = match &letter.job {
            Ok(job) if may_have_captured(letter) => {
                Some(self.inquire(job, &letter.history).await.0)
            }
            _ => None,
        };
        let evidence = seen.as_ref().map(Seen::words);
        if let Some(refusal) = seen.as_ref().and_then(|seen| keep(letter, seen)) {
            if !is_plan {
                self.refuse(letter, &refusal, evidence).await?;
            }
            told(letter, Err(&refusal));
            return Ok(Flow::Keep);
        }
        if is_plan {
            told(letter, Ok(evidence.as_deref()));
            return Ok(Flow::Keep);
        }
        let record = self.record(Action::Discard, letter).seeing(evidence.clone());
        self.audit(&record).await?;
        told(letter, Ok(evidence.as_deref()));
        Ok(Flow::Remove)
    }
}

/// Whether the dead letter alone does not prove that its id captured nothing.
fn may_have_captured(letter: &DeadLetter) -> bool {
    matches!(letter.class, Class::Conflict | Class::InDoubt | Class::Poison)
        || Policy::of(letter.class, letter.signed) == Policy::FreshId && !letter.signed
}

/// Why a dead letter that may have captured must stay, if it must: without it, no operator would
/// find out about the money.
fn keep(letter: &DeadLetter, seen: &Seen) -> Option<Refusal> {
    let is_conflict = letter.class == Class::Conflict;
    // The gateway has no such payment, or its authorization has ended: another inquiry will not
    // show more.
    let is_gone = |code: &Option<String>| {
        let class = code.as_deref().map(|code| Codes::default().class_of(code));
        matches!(class, Some(Class::Order | Class::Authorization))
    };
    match seen {
        Seen::Captured(_) if !is_conflict => Some(Refusal::new(
            "it is captured, and the result is not published yet",
            "run dead replay, which publishes the result and removes the dead letter",
        )),
        Seen::InProcess => Some(Refusal::new(
            "the gateway is still processing a capture of its id",
            "try again when the gateway has finished",
        )),
        Seen::Nothing { code, reason } if !is_gone(code) => Some(Refusal::new(
            format!("the outcome of its id is unknown: {reason}"),
            "try again when the gateway answers inquiries",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{capture::outcome::Capture, tests::letter};

    #[test]
    fn what_may_have_captured_is_discarded_only_with_evidence() {
        let silent = Seen::Nothing { reason: "time-out".into(), code: None };
        let denied = Seen::Nothing { reason: "F".into(), code: Some("ACCESS_DENIED".into()) };
        let refused = Seen::Nothing { reason: "F".into(), code: Some("ORDER_NOT_EXIST".into()) };
        let captured = Seen::Captured(Capture::default());
        for (class, seen, stays) in [
            (Class::InDoubt, &captured, true),
            (Class::Conflict, &captured, false),
            (Class::InDoubt, &silent, true),
            (Class::Conflict, &silent, true),
            (Class::Conflict, &denied, true),
            (Class::Conflict, &refused, false),
            (Class::InDoubt, &Seen::InProcess, true),
            (Class::InDoubt, &Seen::NoSuchCapture, false),
        ] {
            assert_eq!(keep(&letter(class, "c"), seen).is_some(), stays, "{class} {seen:?}");
        }
        assert!(!may_have_captured(&letter(Class::Risk, "c")));
    }
}
