//! Throwing letters away, with a reason, and with the evidence where money may have moved.

use std::collections::BTreeMap;

use super::{Action, Desk, DeskError, Filter, Flow};
use crate::domain::{
    class::{Class, Codes},
    evidence::Seen,
    letter::DeadLetter,
    replay::{Policy, Refusal},
};

/// What is thrown away.
#[derive(Clone, Debug, Default)]
pub struct Discard {
    /// Which letters.
    pub filter: Filter,
    /// At most so many.
    pub limit: Option<u64>,
    /// And so many of each class: those that somebody was asked about.
    pub caps: Option<BTreeMap<Class, u64>>,
    /// Nothing is thrown away, and nothing written down.
    pub is_plan: bool,
}

impl Desk {
    /// Discards letters, each written down before; `told` hears of each, with why it stays if it does.
    ///
    /// # Errors
    /// The walk ended early; letters that were not told of are where they were.
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

/// Whether nobody knows, by the letter alone, that its id captured nothing.
fn may_have_captured(letter: &DeadLetter) -> bool {
    matches!(letter.class, Class::Conflict | Class::InDoubt | Class::Poison)
        || Policy::of(letter.class, letter.signed) == Policy::FreshId && !letter.signed
}

/// Why a letter that may have captured must stay: its money would be forgotten.
fn keep(letter: &DeadLetter, seen: &Seen) -> Option<Refusal> {
    let is_conflict = letter.class == Class::Conflict;
    // The gateway says that there is no such payment, or that its authorization is gone: nothing more will be known.
    let is_gone = |code: &Option<String>| {
        let class = code.as_deref().map(|code| Codes::default().class_of(code));
        matches!(class, Some(Class::Order | Class::Authorization))
    };
    match seen {
        Seen::Captured(_) if !is_conflict => Some(Refusal::new(
            "it is captured, and its publisher was not told so yet",
            "dead replay tells it and closes the letter",
        )),
        Seen::InProcess => Some(Refusal::new(
            "the gateway is still processing a capture of its id",
            "wait until that is over",
        )),
        Seen::Nothing { code, reason } if !is_gone(code) => Some(Refusal::new(
            format!("nobody can say what its id came to: {reason}"),
            "try again when the gateway answers inquiries",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{outcome::Capture, tests::letter};

    #[test]
    fn a_letter_that_may_have_captured_goes_only_with_evidence() {
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
