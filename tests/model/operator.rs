//! An operator who replays dead letters. Mirrors
//! `src/dead_letters/replay.rs::{act, close_parent, under_lease, carry_out}`.

use capture_worker::domain::capture::class::Class;

use crate::{
    domain::{Carried, Inquiry},
    redis::{Asked, Claim, FinalOutcome, Mode},
    replaying::{Decided, decide_replay, replays_fresh},
    settle::publish_captured,
    state::{
        Act, Closing, Message, Mutation, Replay, Setup, State, Verdict, child_of, token_of_operator,
    },
    worker::resolve,
};

/// What a replay of a class sends. `None` means that it sends nothing.
fn policy(class: Class, signed: bool) -> Option<Verdict> {
    let is_fresh = replays_fresh(class, signed)?;
    Some(if is_fresh { Verdict::Fresh } else { Verdict::Same })
}

/// Mirrors `src/domain/replay.rs::{replayed, fresh}`. Attempts and returns are reset; the same id
/// keeps the fact that it was sent.
fn replayed(carried: Carried, verdict: Verdict) -> Carried {
    let is_same = verdict == Verdict::Same;
    Carried {
        attempts: 0,
        word: if is_same { carried.word } else { 0 },
        sent: is_same && carried.sent,
        redelivered: false,
        replays: carried.replays.saturating_add(1),
        returns: 0,
    }
}

impl Setup {
    fn policy_of(&self, dead_letter: &Message) -> Option<Verdict> {
        let (class, signed) = dead_letter.dead_class?;
        let verdict = match policy(class, signed) {
            Some(_)
                if class == Class::InDoubt
                    && self.mutation == Some(Mutation::FreshWithoutInquiry) =>
            {
                Verdict::Fresh
            }
            verdict => verdict?,
        };
        (verdict != Verdict::Fresh || child_of(dead_letter.id).is_some()).then_some(verdict)
    }

    /// The dead letters that an operator may take.
    pub(crate) fn dead_letters(&self, state: &State) -> Vec<usize> {
        if state.budget.acts == 0 {
            return Vec::new();
        }
        let is_replayable = |n: &usize| self.policy_of(&state.dead[*n]).is_some();
        (0..state.dead.len()).filter(is_replayable).collect()
    }

    pub(crate) fn take_up(&self, state: &mut State, operator: usize, dead_letter: usize) {
        let dead_letter = state.dead.remove(dead_letter);
        state.budget.acts -= 1;
        let act = match self.policy_of(&dead_letter) {
            Some(Verdict::Fresh) if self.mutation == Some(Mutation::FreshWithoutInquiry) => {
                Act::Decided { verdict: Verdict::Fresh, closing: Closing::None }
            }
            Some(Verdict::Fresh) => Act::Looks,
            _ => Act::Asks { closing: Closing::None },
        };
        state.operators[operator] = Some((dead_letter, act));
    }

    /// Whether the operator can take a step. An inquiry may have to wait for the gateway.
    pub(crate) fn can_act(&self, state: &State, operator: usize) -> bool {
        match &state.operators[operator] {
            Some((dead_letter, Act::Asks { .. })) => self.inquiry(state, dead_letter).is_some(),
            act => act.is_some(),
        }
    }

    /// Mirrors `src/dead_letters/act.rs::{same_id, close_parent, under_lease}`, with the inquiry's
    /// reply.
    fn decide(&self, dead_letter: &Message, mut seen: Inquiry) -> Verdict {
        let Some((class, signed)) = dead_letter.dead_class else { return Verdict::Refuse };
        let policy = self.policy_of(dead_letter).unwrap_or(Verdict::Refuse);
        if self.mutation == Some(Mutation::OnlyTheChild) {
            seen.later_lives = false;
        }
        if self.mutation == Some(Mutation::OneInquiry)
            && seen == Inquiry::UNANSWERED
            && policy == Verdict::Same
        {
            return Verdict::Same;
        }
        match decide_replay(class, signed, dead_letter.carried, seen) {
            Decided::Send => policy,
            Decided::Settle => Verdict::Settle,
            Decided::Refuse => Verdict::Refuse,
        }
    }

    /// Takes the next step of an operator.
    pub(crate) fn act(&self, state: &mut State, operator: usize, deaf: bool) {
        let Some((dead_letter, act)) = state.operators[operator] else { return };
        let (id, amount) = (dead_letter.id, dead_letter.amount);
        let token = token_of_operator(operator);
        let claim = Claim { payment: self.payment(id), token, id, amount, posts: false };
        let decided = |verdict| Act::Decided { verdict, closing: Closing::None };
        let next = match act {
            Act::Looks if self.replay == Replay::Inquires => {
                Some(Act::Asks { closing: Closing::None })
            }
            Act::Looks => Some(match state.redis.acquire(claim, false) {
                Asked::Known(FinalOutcome::Captured) => decided(Verdict::Settle),
                Asked::Known(_) => Act::Asks { closing: Closing::Replace },
                Asked::Held { .. } | Asked::Hold { .. } | Asked::Replaced => {
                    decided(Verdict::Refuse)
                }
                Asked::Taken { hold_was_there: true, .. } => {
                    Act::Decided { verdict: Verdict::Refuse, closing: Closing::Lease }
                }
                Asked::Taken { .. } => Act::Asks { closing: Closing::Lease },
            }),
            Act::Asks { closing } => {
                let seen = self.inquiry(state, &dead_letter).filter(|_| !deaf);
                let verdict = self.decide(&dead_letter, seen.unwrap_or(Inquiry::UNANSWERED));
                Some(Act::Decided { verdict, closing })
            }
            Act::Decided { verdict, closing: Closing::Lease } => {
                let mode = match verdict {
                    Verdict::Settle => Mode::Final(FinalOutcome::Captured),
                    Verdict::Fresh => Mode::Replace(FinalOutcome::Closed(dead_letter.carried.word)),
                    Verdict::Same | Verdict::Refuse => Mode::Forget,
                };
                resolve(state, claim, mode, false);
                let released = state.redis.release(claim, mode);
                state.is_over(token);
                Some(decided(closed(verdict, released.0, released.1)))
            }
            Act::Decided { verdict: Verdict::Fresh, closing: Closing::Replace } => {
                let mode = Mode::Replaced(FinalOutcome::Failed(dead_letter.carried.word));
                let (_, found) = state.redis.release(claim, mode);
                state.is_over(token);
                Some(decided(closed(Verdict::Fresh, found.is_some(), found)))
            }
            Act::Decided { verdict, .. } => replay(state, dead_letter, verdict),
            Act::Acks => None,
        };
        state.operators[operator] = next.map(|next| (dead_letter, next));
    }

    /// An operator's process dies. Its dead letter returns to the queue.
    pub(crate) fn operator_falls(state: &mut State, operator: usize) {
        if let Some((dead_letter, _)) = state.operators[operator].take() {
            state.add_dead_letter(dead_letter);
            state.is_over(token_of_operator(operator));
        }
    }
}

/// Mirrors `src/dead_letters/act.rs::instead_of_fresh`: the outcome that was already recorded when
/// the id was to be recorded as failed.
fn closed(verdict: Verdict, mine: bool, found: Option<(u8, FinalOutcome)>) -> Verdict {
    match (verdict, found) {
        (Verdict::Fresh, Some((_, FinalOutcome::Captured))) => Verdict::Settle,
        (Verdict::Fresh, _) if !mine => Verdict::Refuse,
        (verdict, _) => verdict,
    }
}

/// Publishes the message that was decided.
fn replay(state: &mut State, dead_letter: Message, verdict: Verdict) -> Option<Act> {
    let carried = replayed(dead_letter.carried, verdict);
    let expires =
        dead_letter.expires && !matches!(dead_letter.dead_class, Some((Class::Expired, _)));
    match verdict {
        Verdict::Refuse => {
            state.add_dead_letter(dead_letter);
            return None;
        }
        Verdict::Settle => publish_captured(state, dead_letter),
        Verdict::Same => {
            state.ended &= !(1 << dead_letter.copy);
            state.published[usize::from(dead_letter.id)].failed = false;
            state.enqueue(Message { carried, expires, dead_class: None, ..dead_letter });
        }
        Verdict::Fresh => {
            state.ended &= !(1 << dead_letter.copy);
            let id = child_of(dead_letter.id).unwrap_or(dead_letter.id);
            state.enqueue(Message { id, carried, dead_class: None, ..dead_letter });
        }
    }
    Some(Act::Acks)
}
