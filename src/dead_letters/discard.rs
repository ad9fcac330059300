//! Discards dead letters: with a reason and, where money may have moved, only with evidence from
//! the gateway.

use std::collections::BTreeMap;

use super::{Action, Desk, DeskError, Filter, Flow};
use crate::domain::{
    capture::class::Class,
    replay::{
        dead_letter::DeadLetter,
        discard::{may_discard, may_have_captured},
        evidence::CaptureSeen,
        refusal::DiscardRefusal,
    },
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
    /// Discards dead letters. Each one is recorded in the audit first. `report` is called for each
    /// one, with the evidence or with the reason why it stays.
    ///
    /// # Errors
    /// The command ended early. Dead letters that were not reported to `report` are unchanged.
    pub async fn discard(
        &self,
        discard: &Discard,
        mut report: impl FnMut(&DeadLetter, Result<Option<&str>, &DiscardRefusal>),
    ) -> Result<(), DeskError> {
        let mut left = discard.limit;
        for class in discard.filter.classes() {
            let mut cap = discard.caps.as_ref().map(|caps| caps.get(&class).copied().unwrap_or(0));
            let visit = async |_: &_, dead_letter: DeadLetter| {
                if left == Some(0) || cap == Some(0) {
                    return Ok(Flow::Stop);
                }
                (left, cap) = (left.map(|left| left - 1), cap.map(|cap| cap - 1));
                self.discard_one(&dead_letter, discard.is_plan, &mut report).await
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
        dead_letter: &DeadLetter,
        is_plan: bool,
        report: &mut impl FnMut(&DeadLetter, Result<Option<&str>, &DiscardRefusal>),
    ) -> Result<Flow, DeskError> {
        let seen = match &dead_letter.job {
            Ok(job) if may_have_captured(dead_letter) => {
                Some(self.inquire(job, &dead_letter.history).await.0)
            }
            _ => None,
        };
        let evidence = seen.as_ref().map(CaptureSeen::words);
        if let Err(refusal) = seen.as_ref().map_or(Ok(()), |seen| may_discard(dead_letter, seen)) {
            if !is_plan {
                self.refuse(dead_letter, &refusal, evidence).await?;
            }
            report(dead_letter, Err(&refusal));
            return Ok(Flow::Keep);
        }
        if is_plan {
            report(dead_letter, Ok(evidence.as_deref()));
            return Ok(Flow::Keep);
        }
        let record = self.record(Action::Discard, dead_letter).seeing(evidence.clone());
        self.audit(&record).await?;
        report(dead_letter, Ok(evidence.as_deref()));
        Ok(Flow::Remove)
    }
}
