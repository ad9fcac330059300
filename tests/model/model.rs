//! The protocol as a state machine: who may do what next, and what must always hold.

use capture_worker::domain::class::Class;
use stateright::{Model, Property};

use crate::{
    domain::{Carried, DENIED},
    gateway::Late,
    redis::{Fate, IDS, NOBODY, PAYMENTS, Redis, Token},
    state::{
        Account, Act, Budget, Job, Message, Setup, State, Step, Told, token_of_later,
        token_of_operator, token_of_slot, worker_of,
    },
    worker::{Move, come_through},
};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happens {
    /// The broker hands this message of the queue to this slot.
    Delivers {
        message: usize,
        slot: usize,
    },
    Works {
        slot: usize,
        step: Move,
    },
    Gateway(Late),
    /// A background call to Redis comes through.
    ComesThrough {
        later: usize,
    },
    TakesUp {
        operator: usize,
        letter: usize,
    },
    /// An operator's next step; `deaf`: the inquiry is not answered.
    Acts {
        operator: usize,
        deaf: bool,
    },
    /// A worker's process dies, or (`dies` is false) its session with the broker does.
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
    /// Whose acquisition a token is, if it lives: the slot.
    fn slot_of(token: Token) -> Option<usize> {
        (0..4).find(|slot| token_of_slot(*slot) == token)
    }

    /// A lease ends by its time if nobody renews it: its holder is gone, has not claimed it yet, or stands still.
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
            // Whoever stands in it and lives asks often enough.
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
            Happens::TakesUp { operator, letter } => self.take_up(state, operator, letter),
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
            letter: None,
        };
        let mut queue: Vec<_> = (0_u8..).zip(self.jobs).map(message).collect();
        let mut dead = Vec::new();
        let (mut gateway, mut told) = ([Account::default(); IDS], [Told::default(); IDS]);
        for (message, class) in queue.iter_mut().zip(self.dead) {
            let carried = Carried { word: DENIED, sent: true, attempts: 1, ..Carried::default() };
            let signed = *class != Class::InDoubt;
            dead.push(Message { carried, letter: Some((*class, signed)), ..*message });
            gateway[usize::from(message.id)].said_failed = true;
            told[usize::from(message.id)].failed |= signed;
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
            told,
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
                let letters = self.letters(state).into_iter();
                actions.extend(letters.map(|letter| Happens::TakesUp { operator, letter }));
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
            Property::always(TOLD, ended_is_told),
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

/// Every copy of a job is somewhere, or was told about.
pub(crate) const NO_LOSS: &str = "nothing is lost";
/// What is a dead letter, and nothing else any more, was told about.
pub(crate) const TOLD: &str = "what has ended was told";
/// At most one capture for each job that a publisher wrote, fresh ids included.
pub(crate) const ONE_CAPTURE: &str = "nothing is captured twice";
/// An id that was told to have failed by the gateway's verdict has not captured and can't by what is under way, until an
/// operator sends the same id again, as long as Redis keeps what it was told: where it has forgotten a failure for want of
/// a capture, a copy may capture, and CAPTURED overrides FAILED.
pub(crate) const FAILED_STANDS: &str = "failed stands";
/// When an id is given up for want of time as `expired`, `unreachable` or unsigned `access`, nothing that may have
/// captured it was sent. Another copy may be sent afterwards: such a FAILED is true of a copy.
pub(crate) const UNSENT_IS_TRUE: &str = "unsent is true";
/// An id that was told to have captured has.
pub(crate) const CAPTURED_IS_TRUE: &str = "captured is true";
/// No two capture calls of a payment are under way at once, as long as Redis keeps what it was told. A call is under
/// way from the moment in which its worker has made sure of the lease until it returns or times out, and counts unless
/// its worker stood still meanwhile until the lease was over.
pub(crate) const NO_OVERLAP: &str = "no two captures of a payment side by side";
/// While one id of a payment is in doubt, no capture of another begins, until the doubt or its hold ends.
pub(crate) const HOLD: &str = "a doubt keeps others out";
/// An id that was told to have failed by the gateway's signed verdict was given an `F` by the gateway.
pub(crate) const SIGNED_IS_TRUE: &str = "signed is true";
/// When nothing is under way any more, no hold is left of an id whose outcome is on record.
pub(crate) const HOLD_ENDS: &str = "a hold ends with its outcome";
/// A fresh id is posted only if none of its forebears has captured or can by what is under way.
pub(crate) const FRESH: &str = "fresh only after the end";
/// Where nothing can happen any more, nothing is left to do.
pub(crate) const NO_DEAD_END: &str = "no dead end";

fn is_active(state: &State, copy: u8) -> bool {
    let operators = state.operators.iter().flatten().map(|(letter, _)| letter);
    let slots = state.slots.iter().flatten().filter(|job| !job.cut).map(|job| &job.message);
    state.queue.iter().chain(slots).chain(operators).any(|message| message.copy == copy)
}

fn copies(model: &Setup) -> impl Iterator<Item = u8> {
    (0_u8..).zip(model.jobs).map(|(copy, _)| copy)
}

fn no_loss(model: &Setup, state: &State) -> bool {
    copies(model).all(|copy| {
        state.ended & (1 << copy) != 0
            || is_active(state, copy)
            || state.dead.iter().any(|letter| letter.copy == copy)
    })
}

fn ended_is_told(model: &Setup, state: &State) -> bool {
    copies(model).all(|copy| state.ended & (1 << copy) != 0 || is_active(state, copy))
}

fn one_capture(_: &Setup, state: &State) -> bool {
    (0..3).all(|id| (0..3).filter(|n| state.has_captured(id + 3 * n)).count() <= 1)
}

fn failed_stands(_: &Setup, state: &State) -> bool {
    state.forgot
        || (0_u8..).zip(&state.told).all(|(id, told)| !told.failed || !state.may_have_captured(id))
}

fn captured_is_true(_: &Setup, state: &State) -> bool {
    (0_u8..).zip(&state.told).all(|(id, told)| !told.captured || state.has_captured(id))
}

fn no_overlap(model: &Setup, state: &State) -> bool {
    let posting = |payment| {
        let live = state.posting().filter(|(_, lease)| !lease.overdue);
        live.filter(|(id, _)| model.payment(*id) == payment).count()
    };
    state.forgot || (posting(0) <= 1 && posting(1) <= 1)
}

fn hold_keeps_out(model: &Setup, state: &State) -> bool {
    let mut posting = state.posting().filter(|(_, lease)| !lease.overdue);
    posting.all(|(id, _)| {
        let doubt = state.doubt[usize::from(model.payment(id))];
        state.forgot || doubt.is_none_or(|doubt| doubt == id)
    })
}

fn fresh_only_after_the_end(_: &Setup, state: &State) -> bool {
    let mut children = state.posting().filter(|(id, _)| *id >= 3);
    children.all(|(id, _)| (1..=id / 3).all(|n| !state.may_have_captured(id - 3 * n)))
}

fn signed_is_true(_: &Setup, state: &State) -> bool {
    let told = state.told.iter().zip(&state.gateway);
    told.into_iter().all(|(told, account)| !told.failed || account.said_failed)
}

fn hold_ends_with_its_outcome(_: &Setup, state: &State) -> bool {
    let has_outcome = |id: u8| {
        let known = state.redis.keys[usize::from(id)].known;
        matches!(known, Some((_, Fate::Captured | Fate::Failed(_))))
    };
    !state.is_ended()
        || state.redis.payments.iter().all(|at| at.hold.is_none_or(|(_, id)| !has_outcome(id)))
}

fn no_dead_end(model: &Setup, state: &State) -> bool {
    let mut actions = Vec::new();
    state.is_ended() || {
        model.actions(state, &mut actions);
        !actions.is_empty()
    }
}

/// What some run must come to, where a configuration says so.
fn examples() -> Vec<Property<Setup>> {
    vec![
        Property::sometimes("all captured", |_, state: &State| {
            state.is_ended()
                && state.dead.is_empty()
                && (0..3)
                    .all(|id| state.told[id].captured || state.gateway[id] == Account::default())
                && state.told.iter().any(|told| told.captured)
        }),
        Property::sometimes("known outcome", |_, state: &State| {
            let is_known = |job: &Job| matches!(job.step, Step::Settles { remembered: true, .. });
            state.slots.iter().flatten().any(is_known)
        }),
        Property::sometimes("hand-over", |_, state: &State| {
            state.posting().any(|(_, lease)| lease.handed)
        }),
        Property::sometimes("granted to the other worker", |_, state: &State| {
            let stands = |slot: usize| {
                matches!(state.slots[slot], Some(Job { step: Step::Stands { .. }, .. }))
            };
            let grants = |token| Setup::slot_of(token).is_some_and(stands);
            state.redis.payments.iter().any(|payment| payment.lease.is_some_and(grants))
        }),
        Property::sometimes("fresh id captured", |_, state: &State| {
            state.is_ended() && state.told.iter().skip(3).any(|told| told.captured)
        }),
        Property::sometimes("failed", |_, state: &State| {
            state.is_ended() && state.told.iter().any(|told| told.failed)
        }),
        Property::sometimes("dead in doubt, captured after a replay", |_, state: &State| {
            let replayed = |job: &Job| job.message.carried.replays > 0;
            state.slots.iter().flatten().any(replayed) && state.told[0].captured
        }),
        Property::sometimes("poison", |_, state: &State| is_dead(state, Class::Poison)),
        Property::sometimes("expired", |_, state: &State| is_dead(state, Class::Expired)),
        Property::sometimes("conflict", |_, state: &State| is_dead(state, Class::Conflict)),
        Property::sometimes("unproven failure proven", |_, state: &State| {
            let verdict = state
                .gateway
                .iter()
                .any(|account| account.verdict.is_some_and(|(fate, _)| fate != Fate::Captured));
            !verdict
                && state.dead.iter().any(|letter| {
                    letter.carried.attempts > 1 && letter.letter.is_some_and(|(_, signed)| signed)
                })
        }),
    ]
}

fn is_dead(state: &State, class: Class) -> bool {
    state.dead.iter().any(|letter| letter.letter.is_some_and(|(is, _)| is == class))
}
