//! An operator who replays dead letters: `src/dead_letters/replay.rs::{act, close_parent, under_lease, carry_out}`.

use capture_worker::domain::{class::Class, replay::Policy};

use crate::{
    domain::{Carried, Shown},
    redis::{Asked, Claim, Fate, Mode},
    settle::publish_captured,
    state::{Act, Message, Mutation, Replay, Setup, State, Verdict, child_of, token_of_operator},
    worker::resolve,
};

/// `src/domain/replay.rs::Policy::of`, itself; `None`: never.
fn policy(class: Class, signed: bool) -> Option<Verdict> {
    match Policy::of(class, signed) {
        Policy::Never => None,
        Policy::SameId | Policy::SameBytes => Some(Verdict::Same),
        Policy::FreshId => Some(Verdict::Fresh),
    }
}

/// `src/domain/replay.rs::{replayed, fresh}`: attempts and returns are cleared, the same id keeps that it was sent.
fn replayed(carried: Carried, verdict: Verdict) -> Carried {
    let is_same = verdict == Verdict::Same;
    Carried {
        attempts: 0,
        word: if is_same { carried.word } else { 0 },
        sent: is_same && carried.sent,
        redelivered: false,
        replays: 1,
        returns: 0,
    }
}

impl Setup {
    fn policy_of(&self, letter: &Message) -> Option<Verdict> {
        let (class, signed) = letter.letter?;
        let verdict = match policy(class, signed) {
            Some(_)
                if class == Class::InDoubt
                    && self.mutation == Some(Mutation::FreshWithoutInquiry) =>
            {
                Verdict::Fresh
            }
            verdict => verdict?,
        };
        (verdict != Verdict::Fresh || child_of(letter.id).is_some()).then_some(verdict)
    }

    /// The letters that an operator may take up.
    pub(crate) fn letters(&self, state: &State) -> Vec<usize> {
        if state.budget.acts == 0 {
            return Vec::new();
        }
        let is_replayable = |n: &usize| self.policy_of(&state.dead[*n]).is_some();
        (0..state.dead.len()).filter(is_replayable).collect()
    }

    pub(crate) fn take_up(&self, state: &mut State, operator: usize, letter: usize) {
        let letter = state.dead.remove(letter);
        state.budget.acts -= 1;
        let act = match self.policy_of(&letter) {
            Some(Verdict::Fresh) if self.mutation == Some(Mutation::FreshWithoutInquiry) => {
                Act::Decided { verdict: Verdict::Fresh, leased: false }
            }
            Some(Verdict::Fresh) => Act::Looks,
            _ => Act::Decided { verdict: Verdict::Same, leased: false },
        };
        state.operators[operator] = Some((letter, act));
    }

    /// Whether the operator can go on: an inquiry may have to wait for the gateway.
    pub(crate) fn can_act(&self, state: &State, operator: usize) -> bool {
        match &state.operators[operator] {
            Some((letter, Act::Asks { .. })) => self.shown(state, letter).is_some(),
            act => act.is_some(),
        }
    }

    /// The next step of an operator.
    pub(crate) fn act(&self, state: &mut State, operator: usize) {
        let Some((letter, act)) = state.operators[operator] else { return };
        let (id, amount) = (letter.id, letter.amount);
        let token = token_of_operator(operator);
        let claim = Claim { payment: self.payment(id), token, id, amount, posts: false };
        let refuse = Act::Decided { verdict: Verdict::Refuse, leased: false };
        let next = match act {
            Act::Looks if self.replay == Replay::Inquires => Some(Act::Asks { leased: false }),
            Act::Looks => Some(match state.redis.acquire(claim, false) {
                Asked::Known(Fate::Captured) => {
                    Act::Decided { verdict: Verdict::Settle, leased: false }
                }
                Asked::Known(Fate::Failed(_)) => Act::Asks { leased: false },
                Asked::Held { .. } | Asked::Hold { .. } => refuse,
                Asked::Taken { hold_was_there: true, .. } => {
                    Act::Decided { verdict: Verdict::Refuse, leased: true }
                }
                Asked::Taken { .. } => Act::Asks { leased: true },
            }),
            Act::Asks { leased } => {
                let verdict = match self.shown(state, &letter) {
                    Some(Shown::Success) => Verdict::Settle,
                    Some(Shown::Fail(_) | Shown::NoSuchCapture) => Verdict::Fresh,
                    _ => Verdict::Refuse,
                };
                Some(Act::Decided { verdict, leased })
            }
            Act::Decided { verdict, leased: true } => {
                let mode = match verdict {
                    Verdict::Settle => Mode::Final(Fate::Captured),
                    Verdict::Fresh => Mode::Close(Fate::Failed(letter.carried.word)),
                    Verdict::Same | Verdict::Refuse => Mode::Forget,
                };
                resolve(state, claim, mode, false);
                let mine = state.redis.release(claim, mode);
                state.is_over(token);
                let lost = !mine && verdict == Verdict::Fresh;
                let verdict = if lost { Verdict::Refuse } else { verdict };
                Some(Act::Decided { verdict, leased: false })
            }
            Act::Decided { verdict, leased: false } => replay(state, letter, verdict),
            Act::Acks => None,
        };
        state.operators[operator] = next.map(|next| (letter, next));
    }

    /// An operator's process dies: the letter is in its queue again.
    pub(crate) fn operator_falls(state: &mut State, operator: usize) {
        if let Some((letter, _)) = state.operators[operator].take() {
            state.bury(letter);
            state.is_over(token_of_operator(operator));
        }
    }
}

/// Publishes what was decided.
fn replay(state: &mut State, letter: Message, verdict: Verdict) -> Option<Act> {
    let carried = replayed(letter.carried, verdict);
    let expires = letter.expires && !matches!(letter.letter, Some((Class::Expired, _)));
    match verdict {
        Verdict::Refuse => {
            state.bury(letter);
            return None;
        }
        Verdict::Settle => publish_captured(state, letter),
        Verdict::Same => {
            state.ended &= !(1 << letter.copy);
            state.told[usize::from(letter.id)].failed = false;
            state.enqueue(Message { carried, expires, letter: None, ..letter });
        }
        Verdict::Fresh => {
            state.ended &= !(1 << letter.copy);
            let id = child_of(letter.id).unwrap_or(letter.id);
            state.enqueue(Message { id, carried, letter: None, ..letter });
        }
    }
    Some(Act::Acks)
}
