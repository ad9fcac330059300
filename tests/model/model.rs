//! The protocol as a state machine: the possible next steps, and the rules that must always hold.

use capture_worker::domain::capture::class::Class;
use stateright::{Model, Property};

use crate::{
    domain::{Carried, DENIED},
    gateway::Late,
    properties::{
        CAPTURED_IS_TRUE, FAILED_STANDS, FRESH, HOLD, HOLD_ENDS, NO_DEAD_END, NO_LOSS, NO_OVERLAP,
        ONE_CAPTURE, PUBLISHED, SIGNED_IS_TRUE, UNSENT_IS_TRUE, captured_is_true,
        ended_is_published, examples, failed_stands, fresh_only_after_the_end,
        hold_ends_with_its_outcome, hold_keeps_out, no_dead_end, no_loss, no_overlap, one_capture,
        signed_is_true,
    },
    redis::{IDS, NOBODY, PAYMENTS, Redis, Token},
    state::{
        Account, Act, Budget, Job, Message, Published, Setup, State, Step, token_of_later,
        token_of_operator, token_of_slot, worker_of,
    },
    worker::{Move, come_through},
};

/// One step of any participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happens {
    /// The broker delivers this message of the queue to this slot.
    Delivers {
        message: usize,
        slot: usize,
    },
    Works {
        slot: usize,
        step: Move,
    },
    Gateway(Late),
    /// Redis executes a background call.
    ComesThrough {
        later: usize,
    },
    TakesUp {
        operator: usize,
        dead_letter: usize,
    },
    /// An operator's next step. With `deaf`, the inquiry gets no reply.
    Acts {
        operator: usize,
        deaf: bool,
    },
    /// A worker's process dies, or only its session with the broker is lost (`dies` is false).
    Falls {
        worker: usize,
        dies: bool,
    },
    OperatorFalls {
        operator: usize,
    },
    LeaseExpires {
        payment: usize,
    },
    HoldExpires {
        payment: usize,
    },
    LineExpires {
        payment: usize,
    },
    ExpiresAtPasses,
    MaxAgePasses,
    RedisForgets,
}

impl Setup {
    /// The slot whose acquisition has this token, if it still exists.
    pub(crate) fn slot_of(token: Token) -> Option<usize> {
        (0..4).find(|slot| token_of_slot(*slot) == token)
    }

    /// Whether a lease may expire. It does if nobody renews it: its holder has ended, has not
    /// claimed it yet, or is paused.
    fn lease_may_expire(state: &State, payment: usize) -> bool {
        let Some(token) = state.redis.payments[payment].lease else { return false };
        if token == NOBODY || (0..2).any(|n| token == token_of_later(n)) {
            return true;
        }
        if (0..2).any(|n| token == token_of_operator(n)) {
            return state.budget.pauses > 0;
        }
        match Self::slot_of(token).and_then(|slot| state.slots[slot]) {
            Some(Job { step: Step::Fresh | Step::Stands { .. }, .. }) | None => true,
            Some(_) => state.budget.pauses > 0,
        }
    }

    fn lease_expires(state: &mut State, payment: usize) {
        let Some(token) = state.redis.payments[payment].lease.take() else { return };
        if (0..2).any(|n| token == token_of_operator(n)) {
            state.budget.pauses -= 1;
        }
        let Some(job) = Self::slot_of(token).and_then(|slot| state.slots[slot].as_mut()) else {
            return;
        };
        if let Step::Holds(lease)
        | Step::Inquires(lease)
        | Step::Posts(lease)
        | Step::Judged { lease, .. } = &mut job.step
        {
            lease.overdue = true;
            state.budget.pauses -= 1;
        }
    }

    fn falls(&self, state: &State, actions: &mut Vec<Happens>) {
        for worker in 0..2 {
            let mut jobs = (0..4).filter(|slot| worker_of(*slot) == worker);
            let is_busy = jobs.any(|slot| state.slots[slot].is_some_and(|job| !job.cut));
            if is_busy && state.budget.crashes > 0 {
                actions.push(Happens::Falls { worker, dies: true });
            }
            if is_busy && state.budget.cuts > 0 {
                actions.push(Happens::Falls { worker, dies: false });
            }
        }
        for operator in 0..self.operators {
            if state.operators[operator].is_some() && state.budget.crashes > 0 {
                actions.push(Happens::OperatorFalls { operator });
            }
        }
    }

    fn deliveries(&self, state: &State, actions: &mut Vec<Happens>) {
        for worker in 0..2 {
            let mut slots = 2 * worker..2 * worker + self.prefetch[worker];
            let Some(slot) = slots.find(|slot| state.slots[*slot].is_none()) else { continue };
            for message in 0..state.queue.len() {
                if message == 0 || state.queue[message] != state.queue[message - 1] {
                    actions.push(Happens::Delivers { message, slot });
                }
            }
        }
    }

    fn time_passes(&self, state: &State, actions: &mut Vec<Happens>) {
        for (n, payment) in state.redis.payments.iter().enumerate() {
            if Self::lease_may_expire(state, n) {
                actions.push(Happens::LeaseExpires { payment: n });
            }
            if payment.hold.is_some() {
                actions.push(Happens::HoldExpires { payment: n });
            }
            // A live waiter asks often enough to keep the waiting list, so it expires without one.
            if !payment.line.is_empty() && payment.line.iter().all(|token| *token == NOBODY) {
                actions.push(Happens::LineExpires { payment: n });
            }
        }
        if self.expires && !state.past_expiry {
            actions.push(Happens::ExpiresAtPasses);
        }
        if self.ages && !state.is_old {
            actions.push(Happens::MaxAgePasses);
        }
        if state.budget.losses > 0 && state.redis != Redis::default() {
            actions.push(Happens::RedisForgets);
        }
    }

    fn apply(&self, state: &mut State, action: Happens) {
        match action {
            Happens::Delivers { message, slot } => {
                let message = state.queue.remove(message);
                state.slots[slot] = Some(Job { message, step: Step::Fresh, cut: false });
            }
            Happens::Works { slot, step } => self.step(state, slot, step),
            Happens::Gateway(late) => self.late(state, late),
            Happens::ComesThrough { later } => come_through(state, later),
            Happens::TakesUp { operator, dead_letter } => {
                self.take_up(state, operator, dead_letter)
            }
            Happens::Acts { operator, deaf } => self.act(state, operator, deaf),
            Happens::Falls { worker, dies } => {
                let budget = &mut state.budget;
                *(if dies { &mut budget.crashes } else { &mut budget.cuts }) -= 1;
                self.fall(state, worker, dies);
            }
            Happens::OperatorFalls { operator } => {
                state.budget.crashes -= 1;
                Self::operator_falls(state, operator);
            }
            Happens::LeaseExpires { payment } => Self::lease_expires(state, payment),
            Happens::HoldExpires { payment } => {
                state.redis.payments[payment].hold = None;
                state.doubt[payment] = None;
            }
            Happens::LineExpires { payment } => state.redis.payments[payment].line.clear(),
            Happens::ExpiresAtPasses => state.past_expiry = true,
            Happens::MaxAgePasses => state.is_old = true,
            Happens::RedisForgets => {
                state.budget.losses -= 1;
                state.redis = Redis::default();
                state.doubt = [None; PAYMENTS];
                state.forgot = true;
            }
        }
    }
}

impl Model for Setup {
    type State = State;
    type Action = Happens;

    fn init_states(&self) -> Vec<State> {
        let message = |(copy, (id, amount)): (u8, &(u8, u8))| Message {
            id: *id,
            copy,
            amount: *amount,
            expires: self.expires,
            carried: if self.forged {
                Carried { word: DENIED, sent: true, ..Carried::default() }
            } else {
                Carried::default()
            },
            dead_class: None,
        };
        let mut queue: Vec<_> = (0_u8..).zip(self.jobs).map(message).collect();
        let mut dead = Vec::new();
        let (mut gateway, mut published) = ([Account::default(); IDS], [Published::default(); IDS]);
        for (message, class) in queue.iter_mut().zip(self.dead) {
            let carried = Carried { word: DENIED, sent: true, attempts: 1, ..Carried::default() };
            let signed = *class != Class::InDoubt;
            dead.push(Message { carried, dead_class: Some((*class, signed)), ..*message });
            gateway[usize::from(message.id)].said_failed = true;
            published[usize::from(message.id)].failed |= signed;
        }
        if !dead.is_empty() {
            queue.clear();
        }
        let ended = (0..dead.len()).fold(0, |ended, copy| ended | 1 << copy);
        queue.sort_unstable();
        dead.sort_unstable();
        vec![State {
            queue,
            dead,
            slots: [None; 4],
            operators: [None; 2],
            later: [None; 2],
            redis: Redis::default(),
            gateway,
            published,
            ended,
            doubt: [None; PAYMENTS],
            budget: Budget { ..self.budget },
            past_expiry: false,
            is_old: false,
            forgot: false,
            lied: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Happens>) {
        self.deliveries(state, actions);
        let mut moves = Vec::new();
        for slot in 0..state.slots.len() {
            self.moves(state, slot, &mut moves);
            actions.extend(moves.drain(..).map(|step| Happens::Works { slot, step }));
        }
        actions.extend(self.lates(state).into_iter().map(Happens::Gateway));
        let later = state.later.iter().enumerate().filter(|(_, later)| later.is_some());
        actions.extend(later.map(|(later, _)| Happens::ComesThrough { later }));
        for operator in 0..self.operators {
            let asks = matches!(state.operators[operator], Some((_, Act::Asks { .. })));
            if asks && self.deaf {
                actions.push(Happens::Acts { operator, deaf: true });
            }
            if self.can_act(state, operator) {
                actions.push(Happens::Acts { operator, deaf: false });
            } else if state.operators[operator].is_none() {
                let dead_letters = self.dead_letters(state).into_iter();
                actions.extend(
                    dead_letters.map(|dead_letter| Happens::TakesUp { operator, dead_letter }),
                );
            }
        }
        self.falls(state, actions);
        self.time_passes(state, actions);
    }

    fn next_state(&self, state: &State, action: Happens) -> Option<State> {
        let mut next = state.clone();
        self.apply(&mut next, action);
        Some(self.canonical(next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NO_LOSS, no_loss),
            Property::always(PUBLISHED, ended_is_published),
            Property::always(ONE_CAPTURE, one_capture),
            Property::always(FAILED_STANDS, failed_stands),
            Property::always(UNSENT_IS_TRUE, |_, state: &State| !state.lied),
            Property::always(CAPTURED_IS_TRUE, captured_is_true),
            Property::always(NO_OVERLAP, no_overlap),
            Property::always(HOLD, hold_keeps_out),
            Property::always(FRESH, fresh_only_after_the_end),
            Property::always(SIGNED_IS_TRUE, signed_is_true),
            Property::always(HOLD_ENDS, hold_ends_with_its_outcome),
            Property::always(NO_DEAD_END, no_dead_end),
        ];
        let examples =
            examples().into_iter().filter(|example| self.reaches.contains(&example.name));
        properties.extend(examples);
        properties
    }
}
