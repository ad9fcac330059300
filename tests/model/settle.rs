//! The end of a delivery: what is published before it is acked, and what the broker does if the
//! worker dies.

use crate::{
    domain::{Came, Left, Said, Todo},
    ended::Ended,
    state::{Job, Message, Mutation, Setup, State, Step, token_of_later, token_of_slot, worker_of},
    worker::{Move, set},
};

impl Setup {
    /// Mirrors `src/worker/pipeline.rs::process`: the acquisition has ended, and the message to
    /// publish is decided.
    pub(crate) fn settle(
        &self,
        state: &mut State,
        slot: usize,
        (came, sent, remembered): (Came, Left, bool),
    ) {
        state.is_over(token_of_slot(slot));
        let Some(job) = state.slots[slot] else { return };
        if job.cut {
            // As with `src/broker/delivery.rs::SessionLost`, nothing is published or acked.
            state.slots[slot] = None;
            return;
        }
        let mut todo = Ended {
            came,
            sent,
            remembered,
            carried: job.message.carried,
            is_old: self.ages && state.is_old,
            delays: self.delays,
        }
        .settle();
        if let (Some(Mutation::ForgetSent), Todo::Retry(carried)) = (self.mutation, &mut todo) {
            carried.sent = false;
        }
        if let Todo::Dead { signed: false, in_doubt: false, .. } = todo {
            state.lied |= state.may_have_captured(job.message.id);
        }
        let step = match todo {
            _ if self.mutation == Some(Mutation::AckFirst) => Step::AckedFirst { todo },
            Todo::Dead { .. } => {
                Step::Settles { todo, dead_letter: false, result: false, remembered }
            }
            _ => Step::Settles { todo, dead_letter: false, result: true, remembered },
        };
        set(state, slot, step);
    }

    /// Mirrors the function `src/broker/delivery.rs::Delivery::settle`.
    pub(crate) fn publish_or_ack(&self, state: &mut State, slot: usize, job: Job, step: Move) {
        let message = job.message;
        match (step, job.step) {
            (Move::Publish, Step::Settles { todo, result, remembered, .. }) => {
                publish(state, message, todo);
                let settles = Step::Settles { todo, dead_letter: true, result, remembered };
                set(state, slot, if result { Step::Acks } else { settles });
            }
            (Move::PublishResult, Step::Settles { todo, dead_letter, remembered, .. }) => {
                publish_result(state, message, todo);
                let settles = Step::Settles { todo, dead_letter, result: true, remembered };
                set(state, slot, if dead_letter { Step::Acks } else { settles });
            }
            (Move::Publish, Step::AckedFirst { todo }) => {
                publish(state, message, todo);
                publish_result(state, message, todo);
                state.slots[slot] = None;
            }
            _ => state.slots[slot] = None,
        }
    }

    /// A worker dies or loses its session. Its deliveries return to the queue.
    pub(crate) fn fall(&self, state: &mut State, worker: usize, dies: bool) {
        for slot in (0..state.slots.len()).filter(|slot| worker_of(*slot) == worker) {
            let Some(job) = state.slots[slot] else { continue };
            if !job.cut && !matches!(job.step, Step::AckedFirst { .. }) {
                let mut message = job.message;
                message.carried.redelivered = true;
                message.carried.returns += u8::from(self.returns_max.is_some());
                state.enqueue(message);
            }
            let at_the_end = matches!(job.step, Step::Settles { .. } | Step::Acks);
            if dies || at_the_end {
                if matches!(job.step, Step::Posts(_)) {
                    self.receive(state, &job.message, Said::Nothing);
                }
                state.slots[slot] = None;
                state.is_over(token_of_slot(slot));
            } else {
                state.slots[slot] = Some(Job { cut: true, ..job });
            }
        }
        for n in (0..state.later.len()).filter(|_| dies) {
            if state.later[n].is_some_and(|later| later.worker == worker) {
                state.later[n] = None;
                state.is_over(token_of_later(n));
            }
        }
    }
}

fn publish(state: &mut State, message: Message, todo: Todo) {
    match todo {
        Todo::Captured => publish_captured(state, message),
        Todo::Retry(carried) => state.enqueue(Message { carried, ..message }),
        Todo::Dead { class, signed, carried, .. } => {
            state.add_dead_letter(Message {
                carried,
                dead_class: Some((class, signed)),
                ..message
            });
        }
    }
}

fn publish_result(state: &mut State, message: Message, todo: Todo) {
    if let Todo::Dead { in_doubt, signed, .. } = todo {
        state.published[usize::from(message.id)].failed |= signed && !in_doubt;
        state.ended |= 1 << message.copy;
    }
}

pub(crate) fn publish_captured(state: &mut State, message: Message) {
    state.published[usize::from(message.id)].captured = true;
    state.ended |= 1 << message.copy;
}
