//! The steps of a worker: `src/worker/process.rs`, `src/worker/call.rs` and `src/broker/delivery.rs`, one await after the
//! other. What each method mirrors stands above it.

use capture_worker::domain::{class::Class, judge::Call};

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
    /// Ask for the lease, for the first time or again.
    Acquire,
    /// Ask for it; Redis does it, and the answer is lost.
    AcquireUnheard,
    /// Stand in line no longer.
    GiveUp,
    /// Make sure of the lease and begin the next call.
    Begin,
    /// The inquiry returns with this.
    Inquired(Inquiry),
    /// The capture returns with this.
    Posted(Said),
    /// Give the lease back.
    Release,
    /// Redis does not answer; it goes on in the background. `done`: Redis has done it all the same.
    ReleaseUnheard { done: bool },
    /// Give the lease to the job in this slot.
    HandOver { to: usize, stays: bool },
    /// The same, and the answer is lost: the job in that slot asks for itself.
    HandOverUnheard { to: usize },
    /// Publish the letter, the result, the job or the captured result.
    Publish,
    /// Publish the result of a letter.
    PublishResult,
    /// Ack.
    Ack,
}

const fn left(sent: bool) -> Left {
    if sent { Left::Yes } else { Left::No }
}

impl Setup {
    /// Which steps the job in a slot may take next.
    pub(crate) fn moves(&self, state: &State, slot: usize, moves: &mut Vec<Move>) {
        let Some(job) = &state.slots[slot] else { return };
        let has_away = state.budget.aways > 0 && state.later.iter().any(Option::is_none);
        match job.step {
            Step::Fresh => {
                if self.neighbour(state, slot, |step| !matches!(step, Step::Fresh)).is_none() {
                    moves.push(Move::Acquire);
                    if has_away && !job.cut {
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
                if has_away {
                    moves.push(Move::ReleaseUnheard { done: false });
                    moves.push(Move::ReleaseUnheard { done: true });
                }
                if let Some(to) = self.neighbour(state, slot, |step| matches!(step, Step::Fresh)) {
                    moves.push(Move::HandOver { to, stays: false });
                    if has_away {
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
            Step::Settles { letter, result, .. } => {
                if !letter {
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

    /// The local line, `src/worker/line.rs::Line`: the other job of the same worker and payment, if it stands at such a step and has a session.
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

    /// Takes a step.
    pub(crate) fn step(&self, state: &mut State, slot: usize, step: Move) {
        let Some(job) = state.slots[slot] else { return };
        let claim = self.claim(state, &job.message, token_of_slot(slot));
        match (step, job.step) {
            (Move::Acquire, Step::Fresh | Step::Stands { .. }) => {
                self.acquire(state, slot, job, claim);
            }
            (Move::AcquireUnheard, _) => {
                state.budget.aways -= 1;
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
                state.budget.aways -= 1;
                let mode = self.mode(came);
                if done {
                    self.release(state, claim, mode, lease);
                }
                give_up(state, slot, claim, mode, lease.opened);
                self.settle_called(state, slot, (true, None));
            }
            (Move::HandOverUnheard { to }, Step::Judged { lease, came, .. }) => {
                let Some(next) = state.slots[to] else { return };
                state.budget.aways -= 1;
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

    /// `src/lease/mod.rs::Leases::acquire`.
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

    /// `src/worker/process.rs::{attempt, pursue, acquire}`.
    fn acquire(&self, state: &mut State, slot: usize, job: Job, claim: Claim) {
        let is_poison = self.returns_max.is_some_and(|max| job.message.carried.returns >= max);
        if job.cut {
            // `src/broker/delivery.rs::Delivery::is_alive`.
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

    /// `src/worker/process.rs::pursue`, with what was acquired or handed over.
    fn taken(&self, state: &mut State, slot: usize, taken: Asked, announced: bool, handed: bool) {
        match taken {
            Asked::Known(fate) => {
                self.settle(state, slot, (Came::of_known(fate), Left::Yes, true));
            }
            // `src/worker/process.rs::Ended::replaced`.
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
                    announced,
                    denied: false,
                    overdue: false,
                    opened: false,
                    handed,
                };
                set(state, slot, Step::Holds(lease));
            }
        }
    }

    /// `src/worker/call.rs::UnderLease::{begin, inquire, post, secure}`.
    fn begin(&self, state: &mut State, slot: usize, (job, lease): (Job, Lease), claim: Claim) {
        let known = self.known(state, &job.message, lease.marker);
        let call = if lease.denied { Call::Post } else { known.first_call() };
        let judged = |came| Step::Judged { lease, came, sent: left(known.sent()), called: false };
        if call == Call::Expired {
            return set(state, slot, judged(Came::Expired { inquired: false }));
        }
        let posts = call == Call::Post;
        let renews = lease.overdue || posts && !lease.announced;
        let denied_at = lease.denied.then_some(job.message.carried.replays);
        if renews && state.redis.renew(claim, posts, denied_at) != Renewed::Kept {
            return set(state, slot, judged(Came::Deferred));
        }
        let mut lease = Lease { overdue: false, ..lease };
        if posts {
            let payment = usize::from(claim.payment);
            let is_held = state.redis.payments[payment].hold.is_some_and(|(_, id)| id == claim.id);
            lease.announced = true;
            if state.doubt[payment].is_none() && is_held {
                state.doubt[payment] = Some(claim.id);
                lease.opened = true;
            }
            set(state, slot, Step::Posts(lease));
        } else {
            set(state, slot, Step::Inquires(lease));
        }
    }

    /// `src/worker/call.rs::UnderLease::inquire`, after the reply.
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

    /// `src/worker/call.rs::UnderLease::post`, after the reply.
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

    /// `src/domain/outcome.rs::Outcome::release`.
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

    /// `src/lease/mod.rs::Leases::release`.
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

    /// `src/worker/call.rs::{give_on, pass}` and `src/lease/mod.rs::Leases::hand_over`: both jobs go on with what it says.
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

    /// `src/worker/call.rs::release`: what is on record may settle the job; else a lease that was lost makes every
    /// outcome doubtful but the signed word.
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

/// The doubt about an id ends with its lease, as far as the mode says so.
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

/// Goes on in the background, under a name of its own: `src/worker/process.rs::give_up`,
/// `src/worker/call.rs::release_later`.
fn give_up(state: &mut State, slot: usize, claim: Claim, mode: Mode, opened: bool) {
    if let Some(n) = state.later.iter().position(Option::is_none) {
        let token = token_of_later(n);
        state.rename(claim.token, token);
        let claim = Claim { token, ..claim };
        state.later[n] = Some(Later { worker: worker_of(slot), claim, mode, opened });
    }
}

/// A background call comes through.
pub(crate) fn come_through(state: &mut State, n: usize) {
    if let Some(later) = state.later[n].take() {
        resolve(state, later.claim, later.mode, later.opened);
        state.redis.release(later.claim, later.mode);
        state.rename(later.claim.token, NOBODY);
    }
}
