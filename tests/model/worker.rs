//! The steps of a worker: the awaits of `acquire.rs`, `gateway_call.rs` and `release.rs` in
//! `src/worker`, and of `src/broker/delivery.rs`. The comment of each method names what it mirrors.

use capture_worker::domain::capture::{class::Class, judge::NextCall};

use crate::{
    domain::{Came, Inquiry, Left, Said},
    redis::{Asked, Claim, Mode, NOBODY, Record, Renewed},
    state::{
        Job, Later, Lease, Mutation, Setup, State, Step, token_of_later, token_of_slot, worker_of,
    },
};

/// A step of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Try to acquire the lease, for the first time or again.
    Acquire,
    /// Try to acquire it; Redis executes the call, and the reply is lost.
    AcquireUnheard,
    /// Leave the waiting list.
    GiveUp,
    /// Verify the lease and begin the next call.
    Begin,
    /// The inquiry returns this reply.
    Inquired(Inquiry),
    /// The capture returns this reply.
    Posted(Said),
    /// Release the lease at the end.
    Release,
    /// Release it without a reply of Redis; the call continues in the background. With `done`,
    /// Redis has executed it.
    ReleaseUnheard { done: bool },
    /// Hand the lease over to the job in this slot.
    HandOver { to: usize, stays: bool },
    /// Hand it over, and the reply is lost: the job in that slot tries to acquire the lease.
    HandOverUnheard { to: usize },
    /// Publish the dead letter, the result, the job or the captured result.
    Publish,
    /// Publish the result of a dead letter.
    PublishResult,
    /// Ack the delivery, which ends it.
    Ack,
}

const fn left(sent: bool) -> Left {
    if sent { Left::Yes } else { Left::No }
}

impl Setup {
    /// Adds the steps that the job in a slot may take next.
    pub(crate) fn moves(&self, state: &State, slot: usize, moves: &mut Vec<Move>) {
        let Some(job) = &state.slots[slot] else { return };
        let has_outage = state.budget.outages > 0 && state.later.iter().any(Option::is_none);
        match job.step {
            Step::Fresh => {
                if self.neighbour(state, slot, |step| !matches!(step, Step::Fresh)).is_none() {
                    moves.push(Move::Acquire);
                    if has_outage && !job.cut {
                        moves.push(Move::AcquireUnheard);
                    }
                }
            }
            Step::Stands { .. } => moves.extend([Move::Acquire, Move::GiveUp]),
            Step::Holds(_) => moves.push(Move::Begin),
            Step::Inquires(_) => {
                if let Some(inquiry) = self.inquiry(state, &job.message) {
                    moves.push(Move::Inquired(inquiry));
                }
                if self.deaf {
                    moves.push(Move::Inquired(Inquiry::UNANSWERED));
                }
            }
            Step::Posts(_) => {
                let said =
                    self.says.iter().filter(|said| self.may_say(state, &job.message, **said));
                moves.extend(said.map(|said| Move::Posted(*said)));
            }
            Step::Judged { .. } => {
                moves.push(Move::Release);
                if has_outage {
                    moves.push(Move::ReleaseUnheard { done: false });
                    moves.push(Move::ReleaseUnheard { done: true });
                }
                if let Some(to) = self.neighbour(state, slot, |step| matches!(step, Step::Fresh)) {
                    moves.push(Move::HandOver { to, stays: false });
                    if has_outage {
                        moves.push(Move::HandOverUnheard { to });
                    }
                    if !state.redis.payments[usize::from(self.payment(job.message.id))]
                        .line
                        .is_empty()
                    {
                        moves.push(Move::HandOver { to, stays: true });
                    }
                }
            }
            Step::Settles { dead_letter, result, .. } => {
                if !dead_letter {
                    moves.push(Move::Publish);
                }
                if !result {
                    moves.push(Move::PublishResult);
                }
            }
            Step::Acks => moves.push(Move::Ack),
            Step::AckedFirst { .. } => moves.push(Move::Publish),
        }
    }

    /// Mirrors the payment queue, `src/worker/payment_queue.rs`: finds the other job of the same
    /// worker and payment, if it is at such a step and has a session.
    fn neighbour(&self, state: &State, slot: usize, is: fn(&Step) -> bool) -> Option<usize> {
        let other = slot ^ 1;
        let payment = |job: &Job| self.payment(job.message.id);
        let [mine, theirs] = [state.slots[slot].as_ref()?, state.slots[other].as_ref()?];
        let past_lease = |step: &Step| {
            matches!(step, Step::Settles { .. } | Step::Acks | Step::AckedFirst { .. })
        };
        let found =
            payment(mine) == payment(theirs) && is(&theirs.step) && !past_lease(&theirs.step);
        found.then_some(other)
    }

    /// Takes this step of the job in a slot.
    pub(crate) fn step(&self, state: &mut State, slot: usize, step: Move) {
        let Some(job) = state.slots[slot] else { return };
        let claim = self.claim(state, &job.message, token_of_slot(slot));
        match (step, job.step) {
            (Move::Acquire, Step::Fresh | Step::Stands { .. }) => {
                self.acquire(state, slot, job, claim);
            }
            (Move::AcquireUnheard, _) => {
                state.budget.outages -= 1;
                self.ask(state, claim, false);
                give_up(state, slot, claim, Mode::Forget, false);
                self.settle(state, slot, (Came::Deferred, Left::Unknown, false));
            }
            (Move::GiveUp, Step::Stands { marked }) => {
                state.redis.release(claim, Mode::Forget);
                let sent = match left(marked) {
                    Left::No if self.mutation != Some(Mutation::StaleMark) => Left::Unknown,
                    sent => sent,
                };
                self.settle(state, slot, (Came::Deferred, sent, false));
            }
            (Move::Begin, Step::Holds(lease)) => self.begin(state, slot, (job, lease), claim),
            (Move::Inquired(inquiry), Step::Inquires(lease)) => {
                self.inquired(state, slot, (job, lease), inquiry);
            }
            (Move::Posted(said), Step::Posts(lease)) => {
                self.posted(state, slot, (job, lease), said);
            }
            (Move::Release, Step::Judged { lease, came, .. }) => {
                let mode = self.mode(came);
                let released = self.release(state, claim, mode, lease);
                self.settle_called(state, slot, released);
            }
            (Move::ReleaseUnheard { done }, Step::Judged { lease, came, .. }) => {
                state.budget.outages -= 1;
                let mode = self.mode(came);
                if done {
                    self.release(state, claim, mode, lease);
                }
                give_up(state, slot, claim, mode, lease.opened);
                self.settle_called(state, slot, (true, None));
            }
            (Move::HandOverUnheard { to }, Step::Judged { lease, came, .. }) => {
                let Some(next) = state.slots[to] else { return };
                state.budget.outages -= 1;
                let mode = self.mode(came);
                let next = self.claim(state, &next.message, token_of_slot(to));
                resolve(state, claim, mode, lease.opened);
                state.redis.hand_over(claim, mode, next, true);
                give_up(state, slot, claim, mode, lease.opened);
                self.settle_called(state, slot, (true, None));
            }
            (Move::HandOver { to, stays }, Step::Judged { lease, came, .. }) => {
                self.hand_over(state, slot, (claim, came, lease), (to, stays));
            }
            (Move::Publish | Move::PublishResult | Move::Ack, _) => {
                self.publish_or_ack(state, slot, job, step);
            }
            _ => {}
        }
    }

    /// Mirrors the function `src/lease/leases.rs::Leases::acquire`.
    fn ask(&self, state: &mut State, claim: Claim, waits: bool) -> Asked {
        let payment = usize::from(claim.payment);
        if self.mutation == Some(Mutation::NoHold) {
            state.redis.payments[payment].hold = None;
        }
        let taken = state.redis.acquire(claim, waits);
        if self.mutation == Some(Mutation::ForgetSent) {
            state.redis.keys[usize::from(claim.id)].mark = None;
        }
        taken
    }

    /// Mirrors `src/worker/pipeline.rs::attempt` and `src/worker/acquire.rs::acquire`.
    fn acquire(&self, state: &mut State, slot: usize, job: Job, claim: Claim) {
        let is_poison = self.returns_max.is_some_and(|max| job.message.carried.returns >= max);
        if job.cut {
            // As `src/broker/delivery.rs::Delivery::is_alive` decides.
            state.redis.release(claim, Mode::Forget);
            state.is_over(claim.token);
            state.slots[slot] = None;
        } else if is_poison {
            self.settle(state, slot, (Came::Poison, Left::Unknown, false));
        } else {
            let taken = self.ask(state, claim, true);
            self.taken(state, slot, taken, claim.posts, false);
        }
    }

    /// Mirrors `src/worker/pipeline.rs::execute`, with the acquired or handed-over lease.
    fn taken(
        &self,
        state: &mut State,
        slot: usize,
        taken: Asked,
        intent_recorded: bool,
        handed: bool,
    ) {
        match taken {
            Asked::Known(final_outcome) => {
                self.settle(state, slot, (Came::of_known(final_outcome), Left::Yes, true));
            }
            // As `src/worker/attempt_end.rs::AttemptEnd::replaced` does.
            Asked::Replaced => {
                let conflict = Came::Failed(Class::Conflict, crate::domain::NO_WORD);
                self.settle(state, slot, (conflict, Left::Yes, true));
            }
            Asked::Held { marked, .. } => set(state, slot, Step::Stands { marked }),
            Asked::Hold { marked } => {
                self.settle(state, slot, (Came::Deferred, left(marked), false));
            }
            Asked::Taken { marker, .. } => {
                let lease = Lease {
                    marker,
                    intent_recorded,
                    denied: false,
                    overdue: false,
                    opened: false,
                    handed,
                };
                set(state, slot, Step::Holds(lease));
            }
        }
    }

    /// Mirrors `src/worker/gateway_call.rs::CallsUnderLease::{run, inquire, post, last_check}`.
    fn begin(&self, state: &mut State, slot: usize, (job, lease): (Job, Lease), claim: Claim) {
        let known = self.known(state, &job.message, lease.marker);
        let call = if lease.denied { NextCall::Post } else { known.first_call() };
        let judged = |came| Step::Judged { lease, came, sent: left(known.sent()), called: false };
        if call == NextCall::Expired {
            return set(state, slot, judged(Came::Expired { inquired: false }));
        }
        let posts = call == NextCall::Post;
        let renews = lease.overdue || posts && !lease.intent_recorded;
        let denied_at = lease.denied.then_some(job.message.carried.replays);
        if renews && state.redis.renew(claim, posts, denied_at) != Renewed::Kept {
            return set(state, slot, judged(Came::Deferred));
        }
        let mut lease = Lease { overdue: false, ..lease };
        if posts {
            let payment = usize::from(claim.payment);
            let is_held = state.redis.payments[payment].hold.is_some_and(|(_, id)| id == claim.id);
            lease.intent_recorded = true;
            if state.doubt[payment].is_none() && is_held {
                state.doubt[payment] = Some(claim.id);
                lease.opened = true;
            }
            set(state, slot, Step::Posts(lease));
        } else {
            set(state, slot, Step::Inquires(lease));
        }
    }

    /// Mirrors `src/worker/gateway_call.rs::CallsUnderLease::inquire`, after the reply.
    fn inquired(
        &self,
        state: &mut State,
        slot: usize,
        (job, lease): (Job, Lease),
        inquiry: Inquiry,
    ) {
        let known = self.known(state, &job.message, lease.marker);
        let inquiry = match self.mutation {
            Some(Mutation::OnlyTheChild | Mutation::OneInquiry) => {
                Inquiry { shown: inquiry.shown, ..Inquiry::NO_FAMILY }
            }
            _ => inquiry,
        };
        let step = match known.judge_inquiry(inquiry) {
            Some(came) => Step::Judged { lease, came, sent: left(known.sent()), called: true },
            None => Step::Holds(Lease { denied: true, ..lease }),
        };
        set(state, slot, step);
    }

    /// Mirrors `src/worker/gateway_call.rs::CallsUnderLease::post`, after the reply.
    fn posted(&self, state: &mut State, slot: usize, (job, lease): (Job, Lease), said: Said) {
        self.receive(state, &job.message, said);
        let known = self.known(state, &job.message, lease.marker);
        let mut judged_by = known;
        if self.mutation == Some(Mutation::BelieveEveryF) {
            judged_by.marker = None;
            judged_by.carried.sent = false;
            judged_by.carried.redelivered = false;
        }
        let came = judged_by.judge_capture(said);
        set(state, slot, Step::Judged { lease, came, sent: left(known.sent()), called: true });
    }

    /// Mirrors the function `src/domain/capture/outcome.rs::Outcome::release`.
    fn mode(&self, came: Came) -> Mode {
        match came {
            Came::Failed(Class::Access, _) | Came::Closed(Class::Access, _)
                if self.mutation == Some(Mutation::ForgetAccess) =>
            {
                Mode::End
            }
            came => came.release(),
        }
    }

    /// Mirrors the function `src/lease/leases.rs::Leases::release`.
    fn release(
        &self,
        state: &mut State,
        claim: Claim,
        mode: Mode,
        lease: Lease,
    ) -> (bool, Option<Record>) {
        resolve(state, claim, mode, lease.opened);
        if self.mutation == Some(Mutation::ReleaseAnyLease) {
            state.redis.payments[usize::from(claim.payment)].lease = Some(claim.token);
        }
        state.redis.release(claim, mode)
    }

    /// Mirrors `src/worker/release.rs::release_or_hand_over` and
    /// `src/lease/leases.rs::Leases::hand_over`. Both jobs continue with the reply.
    fn hand_over(
        &self,
        state: &mut State,
        slot: usize,
        (claim, came, lease): (Claim, Came, Lease),
        (to, stays): (usize, bool),
    ) {
        let Some(next) = state.slots[to] else { return };
        let mode = self.mode(came);
        let next_claim = self.claim(state, &next.message, token_of_slot(to));
        resolve(state, claim, mode, lease.opened);
        let (released, taken) = state.redis.hand_over(claim, mode, next_claim, stays);
        self.settle_called(state, slot, released);
        self.taken(state, to, taken, next_claim.posts, true);
    }

    /// Mirrors `src/worker/release.rs::release`. A recorded outcome may settle the job. Otherwise,
    /// after a lost lease, every outcome except a signed verdict is in doubt.
    fn settle_called(&self, state: &mut State, slot: usize, (mine, found): (bool, Option<Record>)) {
        let Some(Job { step: Step::Judged { came, sent, called, .. }, message, .. }) =
            state.slots[slot]
        else {
            return;
        };
        let settled = came.settled_by(found, message.amount, mine);
        let lost = !mine && called && !came.is_final();
        let or = if lost { Came::InDoubt(crate::domain::NO_WORD) } else { came };
        let came = settled.unwrap_or(or);
        self.settle(state, slot, (came, sent, false));
    }
}

pub(crate) fn set(state: &mut State, slot: usize, step: Step) {
    if let Some(job) = &mut state.slots[slot] {
        job.step = step;
    }
}

/// Ends the doubt about an id with its lease, if the mode says so.
pub(crate) fn resolve(state: &mut State, claim: Claim, mode: Mode, opened: bool) {
    let doubt = &mut state.doubt[usize::from(claim.payment)];
    let has_lease = state.redis.payments[usize::from(claim.payment)].lease == Some(claim.token);
    let ends = match mode {
        Mode::Final(_) => true,
        Mode::Close(_) | Mode::Replace(_) | Mode::End => has_lease,
        Mode::Back => has_lease && opened,
        Mode::Forget | Mode::Replaced(_) | Mode::Keep { .. } => false,
    };
    if ends && *doubt == Some(claim.id) {
        *doubt = None;
    }
}

/// Continues in the background with its own token. Mirrors `src/worker/release.rs::{roll_back,
/// release_later}`.
fn give_up(state: &mut State, slot: usize, claim: Claim, mode: Mode, opened: bool) {
    if let Some(n) = state.later.iter().position(Option::is_none) {
        let token = token_of_later(n);
        state.rename(claim.token, token);
        let claim = Claim { token, ..claim };
        state.later[n] = Some(Later { worker: worker_of(slot), claim, mode, opened });
    }
}

/// Redis executes a background call.
pub(crate) fn come_through(state: &mut State, n: usize) {
    if let Some(later) = state.later[n].take() {
        resolve(state, later.claim, later.mode, later.opened);
        state.redis.release(later.claim, later.mode);
        state.rename(later.claim.token, NOBODY);
    }
}
