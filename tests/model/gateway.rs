//! The gateway: idempotent by id, and as unreliable as a configuration allows. It mirrors `src/sandbox/ledger.rs` and
//! `src/sandbox/answer.rs`, which do the same over HTTP.

use crate::{
    domain::{CONFLICT, IN_PROCESS, Inquiry, PROCESS_FAIL, RISK, Said, Shown, UNKNOWN, Word},
    redis::Fate,
    state::{Message, Setup, State, child_of},
};

/// What the gateway does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// A request that nobody waits for is executed.
    Executes { id: u8, amount: u8, said: Said },
    /// It is lost.
    Vanishes { id: u8 },
    /// What was in process is decided.
    Decides { id: u8, said: Said },
}

const fn bit(amount: u8) -> u8 {
    1 << amount
}

/// Whether the gateway has looked at the id before it says this, and keeps it for ever.
const fn is_kept(word: Word) -> bool {
    matches!(word, RISK | PROCESS_FAIL)
}

fn fate(said: Said) -> Option<Fate> {
    match said {
        Said::Captured => Some(Fate::Captured),
        Said::Failed(word) if is_kept(word) => Some(Fate::Failed(word)),
        _ => None,
    }
}

impl Setup {
    /// Whether the gateway may say this to a capture: what it has once said of an id it says again.
    pub(crate) fn may_say(&self, state: &State, message: &Message, said: Said) -> bool {
        let account = &state.gateway[usize::from(message.id)];
        let amount_kept = account.verdict.map(|(_, amount)| amount).or(account.processing);
        let is_other = amount_kept.is_some_and(|amount| amount != message.amount);
        match said {
            Said::Failed(CONFLICT) => is_other,
            Said::Unsure(IN_PROCESS) => account.verdict.is_none() && !is_other,
            said => match fate(said) {
                None => true,
                Some(_) if is_other || account.processing.is_some() => false,
                Some(fate) => account.verdict.is_none_or(|(kept, _)| kept == fate),
            },
        }
    }

    /// What a request leaves behind at the gateway that is answered so.
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
                if let Some(fate) = fate(said) {
                    account.verdict = Some((fate, message.amount));
                    account.in_flight = 0;
                }
            }
        }
    }

    /// What an inquiry shows of an id and its family; `None` if it is answered only after the requests of all of
    /// them that are under way.
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
            (Some((Fate::Captured, amount)), _) if amount == message.amount => Shown::Success,
            (Some((Fate::Captured, _)), _) => Shown::OtherAmount,
            (Some((Fate::Failed(word) | Fate::Closed(word), _)), _) => Shown::Fail(word),
            (None, Some(_)) => Shown::Processing,
            (None, None) => Shown::NoSuchCapture,
        })
    }

    /// What the gateway may do next by itself.
    pub(crate) fn lates(&self, state: &State) -> Vec<Late> {
        let mut lates = Vec::new();
        for (id, account) in (0_u8..).zip(&state.gateway) {
            let decisions = self.says.iter().filter(|said| fate(**said).is_some());
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
                account.verdict = fate(said).map(|fate| (fate, amount));
                account.said_failed |= matches!(said, Said::Failed(_));
                account.in_flight = 0;
            }
            Late::Decides { id, said } => {
                let account = &mut state.gateway[usize::from(id)];
                let amount = account.processing.take();
                account.verdict = fate(said).zip(amount);
                account.said_failed |= matches!(said, Said::Failed(_));
            }
        }
    }
}
