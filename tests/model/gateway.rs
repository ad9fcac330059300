//! The gateway: idempotent by id, and as unreliable as a configuration allows. It mirrors
//! `src/sandbox/ledger.rs` and `src/sandbox/answer.rs`, which do the same over HTTP.

use crate::{
    domain::{CONFLICT, IN_PROCESS, Inquiry, PROCESS_FAIL, RISK, Said, Shown, UNKNOWN, Word},
    redis::FinalOutcome,
    state::{Message, Setup, State, child_of},
};

/// An action of the gateway without a caller that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// It executes a request that no worker waits for any more.
    Executes { id: u8, amount: u8, said: Said },
    /// The request is lost.
    Vanishes { id: u8 },
    /// A capture in process ends.
    Decides { id: u8, said: Said },
}

const fn bit(amount: u8) -> u8 {
    1 << amount
}

/// Whether the gateway looks up the id before it replies with this code, and repeats it forever.
const fn is_kept(word: Word) -> bool {
    matches!(word, RISK | PROCESS_FAIL)
}

fn final_outcome(said: Said) -> Option<FinalOutcome> {
    match said {
        Said::Captured => Some(FinalOutcome::Captured),
        Said::Failed(word) if is_kept(word) => Some(FinalOutcome::Failed(word)),
        _ => None,
    }
}

impl Setup {
    /// Whether the gateway may give this reply to a capture: the final verdict about an id never
    /// changes.
    pub(crate) fn may_say(&self, state: &State, message: &Message, said: Said) -> bool {
        let account = &state.gateway[usize::from(message.id)];
        let amount_kept = account.verdict.map(|(_, amount)| amount).or(account.processing);
        let is_other = amount_kept.is_some_and(|amount| amount != message.amount);
        match said {
            Said::Failed(CONFLICT) => is_other,
            Said::Unsure(IN_PROCESS) => account.verdict.is_none() && !is_other,
            said => match final_outcome(said) {
                None => true,
                Some(_) if is_other || account.processing.is_some() => false,
                Some(final_outcome) => {
                    account.verdict.is_none_or(|(kept, _)| kept == final_outcome)
                }
            },
        }
    }

    /// Changes the gateway's state by a request that gets this reply.
    pub(crate) fn receive(&self, state: &mut State, message: &Message, said: Said) {
        let account = &mut state.gateway[usize::from(message.id)];
        account.said_failed |= matches!(said, Said::Failed(_));
        if account.verdict.is_some() {
            return;
        }
        match said {
            Said::Unsure(IN_PROCESS) => {
                account.processing = Some(message.amount);
                account.in_flight = 0;
            }
            Said::Unsure(UNKNOWN) | Said::Nothing => {
                if self.in_flight && account.processing.is_none() {
                    account.in_flight |= bit(message.amount);
                }
            }
            said => {
                if let Some(final_outcome) = final_outcome(said) {
                    account.verdict = Some((final_outcome, message.amount));
                    account.in_flight = 0;
                }
            }
        }
    }

    /// What an inquiry shows about an id and its family. `None` if the gateway replies only after
    /// their requests in progress have ended.
    pub(crate) fn inquiry(&self, state: &State, message: &Message) -> Option<Inquiry> {
        let lives = |id: Option<u8>| {
            let Some(id) = id else { return Some(false) };
            let shown = self.shown(state, &Message { id, ..*message })?;
            Some(matches!(shown, Shown::Success | Shown::OtherAmount | Shown::Processing))
        };
        let child = child_of(message.id);
        let parent = message.id.checked_sub(3);
        let origin = message.id.checked_sub(6);
        Some(Inquiry {
            shown: self.shown(state, message)?,
            child_lives: lives(child)?,
            later_lives: lives(child.and_then(child_of))?,
            forebear_lives: lives(parent)? || lives(origin)?,
        })
    }

    fn shown(&self, state: &State, message: &Message) -> Option<Shown> {
        let account = &state.gateway[usize::from(message.id)];
        let is_posted = || state.posting().any(|(id, _)| id == message.id);
        if !self.late && account.verdict.is_none() && (account.in_flight != 0 || is_posted()) {
            return None;
        }
        Some(match (account.verdict, account.processing) {
            (Some((FinalOutcome::Captured, amount)), _) if amount == message.amount => {
                Shown::Success
            }
            (Some((FinalOutcome::Captured, _)), _) => Shown::OtherAmount,
            (Some((FinalOutcome::Failed(word) | FinalOutcome::Closed(word), _)), _) => {
                Shown::Fail(word)
            }
            (None, Some(_)) => Shown::Processing,
            (None, None) => Shown::NoSuchCapture,
        })
    }

    /// The actions that the gateway may take next without a caller.
    pub(crate) fn lates(&self, state: &State) -> Vec<Late> {
        let mut lates = Vec::new();
        for (id, account) in (0_u8..).zip(&state.gateway) {
            let decisions = self.says.iter().filter(|said| final_outcome(**said).is_some());
            if account.processing.is_some() {
                lates.extend(decisions.map(|said| Late::Decides { id, said: *said }));
            } else if account.in_flight != 0 {
                lates.push(Late::Vanishes { id });
                let in_process = Said::Unsure(IN_PROCESS);
                let begins = self.says.iter().filter(|said| **said == in_process);
                for said in decisions.chain(begins) {
                    let amounts = (0..2).filter(|amount| account.in_flight & bit(*amount) != 0);
                    lates.extend(amounts.map(|amount| Late::Executes { id, amount, said: *said }));
                }
            }
        }
        lates
    }

    pub(crate) fn late(&self, state: &mut State, late: Late) {
        match late {
            Late::Vanishes { id } => state.gateway[usize::from(id)].in_flight = 0,
            Late::Executes { id, amount, said: Said::Unsure(_) } => {
                let account = &mut state.gateway[usize::from(id)];
                account.processing = Some(amount);
                account.in_flight = 0;
            }
            Late::Executes { id, amount, said } => {
                let account = &mut state.gateway[usize::from(id)];
                account.verdict = final_outcome(said).map(|final_outcome| (final_outcome, amount));
                account.said_failed |= matches!(said, Said::Failed(_));
                account.in_flight = 0;
            }
            Late::Decides { id, said } => {
                let account = &mut state.gateway[usize::from(id)];
                let amount = account.processing.take();
                account.verdict = final_outcome(said).zip(amount);
                account.said_failed |= matches!(said, Said::Failed(_));
            }
        }
    }
}
