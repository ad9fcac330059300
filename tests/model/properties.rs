//! The rules that must always hold, and the states that some run must reach.

use capture_worker::domain::capture::class::Class;
use stateright::{Model as _, Property};

use crate::{
    redis::FinalOutcome,
    state::{Account, Job, Setup, State, Step},
};

/// Every copy of a job is in a queue or in work, or has a result.
pub(crate) const NO_LOSS: &str = "nothing is lost";
/// A copy that exists only as a dead letter has a result.
pub(crate) const PUBLISHED: &str = "every ended copy has a result";
/// At most one capture for each job that a publisher wrote, fresh ids included.
pub(crate) const ONE_CAPTURE: &str = "nothing is captured twice";
/// An id that was reported as failed by the gateway's verdict has not captured, and no request in
/// progress can capture it, until an operator sends the same id again. This holds as long as Redis
/// keeps its data. If Redis has lost a failure that rests on the absence of a capture, a copy may
/// capture, and CAPTURED overrides FAILED.
pub(crate) const FAILED_STANDS: &str = "failed is final";
/// When a job runs out of time as `expired`, `unreachable` or unsigned `access`, no request that
/// may have captured its id was sent. Another copy may be sent afterwards: such a FAILED is true of
/// a copy.
pub(crate) const UNSENT_IS_TRUE: &str = "unsent is true";
/// An id that was reported as captured has captured.
pub(crate) const CAPTURED_IS_TRUE: &str = "captured is true";
/// No two capture calls of a payment are in progress at once, as long as Redis keeps its data. A
/// call is in progress from the moment in which its worker has verified the lease until it returns
/// or times out. It does not count if its worker was paused meanwhile until the lease had expired.
pub(crate) const NO_OVERLAP: &str = "captures of a payment never overlap";
/// While one id of a payment is in doubt, no capture of another begins, until the doubt or its
/// in-doubt block ends.
pub(crate) const HOLD: &str = "a doubt blocks other captures";
/// The gateway gave an `F` to every id that was reported as failed by its signed verdict.
pub(crate) const SIGNED_IS_TRUE: &str = "signed is true";
/// When nothing is in progress any more, no id with a recorded outcome has an in-doubt block.
pub(crate) const HOLD_ENDS: &str = "an in-doubt block ends with its outcome";
/// A fresh id is posted only if none of its ancestors has captured or can capture by a request in
/// progress.
pub(crate) const FRESH: &str = "fresh only after the end";
/// If no step is possible, no work remains.
pub(crate) const NO_DEAD_END: &str = "no dead end";

fn is_active(state: &State, copy: u8) -> bool {
    let operators = state.operators.iter().flatten().map(|(dead_letter, _)| dead_letter);
    let slots = state.slots.iter().flatten().filter(|job| !job.cut).map(|job| &job.message);
    state.queue.iter().chain(slots).chain(operators).any(|message| message.copy == copy)
}

fn copies(model: &Setup) -> impl Iterator<Item = u8> {
    (0_u8..).zip(model.jobs).map(|(copy, _)| copy)
}

pub(crate) fn no_loss(model: &Setup, state: &State) -> bool {
    copies(model).all(|copy| {
        state.ended & (1 << copy) != 0
            || is_active(state, copy)
            || state.dead.iter().any(|dead_letter| dead_letter.copy == copy)
    })
}

pub(crate) fn ended_is_published(model: &Setup, state: &State) -> bool {
    copies(model).all(|copy| state.ended & (1 << copy) != 0 || is_active(state, copy))
}

pub(crate) fn one_capture(_: &Setup, state: &State) -> bool {
    (0..3).all(|id| (0..3).filter(|n| state.has_captured(id + 3 * n)).count() <= 1)
}

pub(crate) fn failed_stands(_: &Setup, state: &State) -> bool {
    state.forgot
        || (0_u8..)
            .zip(&state.published)
            .all(|(id, published)| !published.failed || !state.may_have_captured(id))
}

pub(crate) fn captured_is_true(_: &Setup, state: &State) -> bool {
    (0_u8..)
        .zip(&state.published)
        .all(|(id, published)| !published.captured || state.has_captured(id))
}

pub(crate) fn no_overlap(model: &Setup, state: &State) -> bool {
    let posting = |payment| {
        let live = state.posting().filter(|(_, lease)| !lease.overdue);
        live.filter(|(id, _)| model.payment(*id) == payment).count()
    };
    state.forgot || (posting(0) <= 1 && posting(1) <= 1)
}

pub(crate) fn hold_keeps_out(model: &Setup, state: &State) -> bool {
    let mut posting = state.posting().filter(|(_, lease)| !lease.overdue);
    posting.all(|(id, _)| {
        let doubt = state.doubt[usize::from(model.payment(id))];
        state.forgot || doubt.is_none_or(|doubt| doubt == id)
    })
}

pub(crate) fn fresh_only_after_the_end(_: &Setup, state: &State) -> bool {
    let mut children = state.posting().filter(|(id, _)| *id >= 3);
    children.all(|(id, _)| (1..=id / 3).all(|n| !state.may_have_captured(id - 3 * n)))
}

pub(crate) fn signed_is_true(_: &Setup, state: &State) -> bool {
    let published = state.published.iter().zip(&state.gateway);
    published.into_iter().all(|(published, account)| !published.failed || account.said_failed)
}

pub(crate) fn hold_ends_with_its_outcome(_: &Setup, state: &State) -> bool {
    let has_outcome = |id: u8| {
        let known = state.redis.keys[usize::from(id)].known;
        matches!(known, Some((_, FinalOutcome::Captured | FinalOutcome::Failed(_))))
    };
    !state.is_ended()
        || state.redis.payments.iter().all(|at| at.hold.is_none_or(|(_, id)| !has_outcome(id)))
}

pub(crate) fn no_dead_end(model: &Setup, state: &State) -> bool {
    let mut actions = Vec::new();
    state.is_ended() || {
        model.actions(state, &mut actions);
        !actions.is_empty()
    }
}

/// The states that some run must reach, if a configuration requires it.
pub(crate) fn examples() -> Vec<Property<Setup>> {
    vec![
        Property::sometimes("all captured", |_, state: &State| {
            state.is_ended()
                && state.dead.is_empty()
                && (0..3).all(|id| {
                    state.published[id].captured || state.gateway[id] == Account::default()
                })
                && state.published.iter().any(|published| published.captured)
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
            state.is_ended() && state.published.iter().skip(3).any(|published| published.captured)
        }),
        Property::sometimes("failed", |_, state: &State| {
            state.is_ended() && state.published.iter().any(|published| published.failed)
        }),
        Property::sometimes("dead in doubt, captured after a replay", |_, state: &State| {
            let replayed = |job: &Job| job.message.carried.replays > 0;
            state.slots.iter().flatten().any(replayed) && state.published[0].captured
        }),
        Property::sometimes("poison", |_, state: &State| is_dead(state, Class::Poison)),
        Property::sometimes("expired", |_, state: &State| is_dead(state, Class::Expired)),
        Property::sometimes("conflict", |_, state: &State| is_dead(state, Class::Conflict)),
        Property::sometimes("unproven failure proven", |_, state: &State| {
            let verdict = state.gateway.iter().any(|account| {
                account
                    .verdict
                    .is_some_and(|(final_outcome, _)| final_outcome != FinalOutcome::Captured)
            });
            !verdict
                && state.dead.iter().any(|dead_letter| {
                    dead_letter.carried.attempts > 1
                        && dead_letter.dead_class.is_some_and(|(_, signed)| signed)
                })
        }),
    ]
}

fn is_dead(state: &State, class: Class) -> bool {
    state.dead.iter().any(|dead_letter| dead_letter.dead_class.is_some_and(|(is, _)| is == class))
}
