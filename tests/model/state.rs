//! The state of the model, and the bounds of a configuration.

use capture_worker::domain::capture::class::Class;

use crate::{
    domain::{Came, Carried, DENIED, Known, Left, Said, Todo},
    redis::{Claim, FinalOutcome, IDS, Mode, NOBODY, Redis, Tells, Token},
};

/// The number of deliveries in hand: two workers with at most two each.
pub(crate) const SLOTS: usize = 4;
pub(crate) const OPERATORS: usize = 2;
pub(crate) const LATER: usize = 2;

/// A message: a job, or a dead letter if it has a class. `copy` distinguishes the copies of a job.
/// It stays with a message everywhere, so that the loss of any copy is detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message {
    pub(crate) id: u8,
    pub(crate) copy: u8,
    pub(crate) amount: u8,
    pub(crate) expires: bool,
    pub(crate) carried: Carried,
    pub(crate) dead_class: Option<(Class, bool)>,
}

/// An acquired lease: `src/lease/held.rs::Lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease {
    pub(crate) marker: Option<Tells>,
    /// In-doubt block and sent marker are written.
    pub(crate) intent_recorded: bool,
    /// An inquiry has shown that there is no such capture, so the job posts.
    pub(crate) denied: bool,
    /// It expired while its worker was paused.
    pub(crate) overdue: bool,
    /// The doubt about its id began under this lease.
    pub(crate) opened: bool,
    /// It was handed over by another job.
    pub(crate) handed: bool,
}

/// The position of a delivery in the pipeline: the awaits of `src/worker/pipeline.rs` and of the
/// files that it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Delivered, and possibly behind another job in the local payment queue.
    Fresh,
    /// In the waiting list in Redis.
    Stands { marked: bool },
    /// The lease is acquired.
    Holds(Lease),
    /// An inquiry is in progress.
    Inquires(Lease),
    /// A capture is in progress.
    Posts(Lease),
    /// The reply is judged. The job still has the lease.
    Judged { lease: Lease, came: Came, sent: Left, called: bool },
    /// The settlement is to be published, then the delivery acked.
    Settles { todo: Todo, dead_letter: bool, result: bool, remembered: bool },
    /// The delivery is to be acked.
    Acks,
    /// In a mutation only: acked and not yet published.
    AckedFirst { todo: Todo },
}

/// A delivery in hand. With `cut`, its session is lost, and the broker has requeued the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) step: Step,
    pub(crate) cut: bool,
}

/// An operator's decision about a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    /// Send the same id again.
    Same,
    /// Send a fresh id.
    Fresh,
    /// It captured: publish this result.
    Settle,
    /// Refuse: the dead letter returns to its queue.
    Refuse,
}

/// Mirrors the type `src/dead_letters/act.rs::Closing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Closing {
    None,
    /// The lease is acquired for the operator.
    Lease,
    /// A failure is already recorded.
    Replace,
}

/// The position of an operator in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Act {
    /// The dead letter is read.
    Looks,
    /// An inquiry about the id is next.
    Asks { closing: Closing },
    /// Decided, with the remaining work in Redis.
    Decided { verdict: Verdict, closing: Closing },
    /// Published; the ack is next.
    Acks,
}

/// A call to Redis that continues in the background: `src/worker/release.rs::roll_back`
/// and `release_later`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Later {
    pub(crate) worker: usize,
    pub(crate) claim: Claim,
    pub(crate) mode: Mode,
    pub(crate) opened: bool,
}

/// An id at the gateway. Its first final verdict never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    /// The final verdict and its amount.
    pub(crate) verdict: Option<(FinalOutcome, u8)>,
    /// In process, for this amount.
    pub(crate) processing: Option<u8>,
    /// Requests (one bit per amount) that no worker waits for and that may still be executed.
    pub(crate) in_flight: u8,
    /// The gateway has given a signed `F` to this id.
    pub(crate) said_failed: bool,
}

/// The results that were published about an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    pub(crate) captured: bool,
    /// Failed by the gateway's signed verdict, since the last replay of the same id.
    pub(crate) failed: bool,
}

/// The faults that may still happen, and the number of replays that operators may still make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Deaths of a process.
    pub(crate) crashes: u8,
    /// Lost sessions with the broker, without the death of the worker.
    pub(crate) cuts: u8,
    /// Pauses of a worker until its lease has expired.
    pub(crate) pauses: u8,
    /// Calls to Redis without a reply.
    pub(crate) outages: u8,
    /// Losses of all data in Redis.
    pub(crate) losses: u8,
    /// Replays that an operator begins.
    pub(crate) acts: u8,
}

/// The state of the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) queue: Vec<Message>,
    pub(crate) dead: Vec<Message>,
    pub(crate) slots: [Option<Job>; SLOTS],
    pub(crate) operators: [Option<(Message, Act)>; OPERATORS],
    pub(crate) later: [Option<Later>; LATER],
    pub(crate) redis: Redis,
    pub(crate) gateway: [Account; IDS],
    pub(crate) published: [Published; IDS],
    /// The copies (one bit each) about which a result was published.
    pub(crate) ended: u8,
    /// By payment: the id that was sent, is not resolved, and whose in-doubt block has not ended.
    pub(crate) doubt: [Option<u8>; 2],
    pub(crate) budget: Budget,
    /// Whether `expiresAt` has passed.
    pub(crate) past_expiry: bool,
    /// Whether the jobs are older than `retry.max_age`.
    pub(crate) is_old: bool,
    /// Redis has lost its data at least once.
    pub(crate) forgot: bool,
    /// A job ran out of time and was reported as never sent, although its id may have captured.
    pub(crate) lied: bool,
}

/// Mutations of the protocol that the model must detect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The ack comes before the publish.
    AckFirst,
    /// A release deletes the lease without comparing the token.
    ReleaseAnyLease,
    /// An `F` given before the gateway looked up the id is final for a sent id.
    BelieveEveryF,
    /// A retry has no header that the id was sent, and the lease writes no sent marker.
    ForgetSent,
    /// A fresh id replaces an id in doubt without an inquiry.
    FreshWithoutInquiry,
    /// An acquisition does not check the in-doubt block.
    NoHold,
    /// A signed refusal of class `access` ends its job without a record.
    ForgetAccess,
    /// A job that stops waiting for the lease uses the sent marker that it read before.
    StaleMark,
    /// Only the operator's command searches for descendants of an id, and only for its child.
    OnlyTheChild,
    /// A replayed id that was sent is inquired about only in its first attempt, and is posted even
    /// without a reply.
    OneInquiry,
    /// An `F` that only headers report ends an id.
    TrustHeaders,
    /// A fresh id is posted without an inquiry and without a check of its ancestors.
    NoForebears,
}

/// What a replay does before a fresh id replaces its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// It inquires about the parent.
    Inquires,
    /// It inquires under the parent's lease, and records the parent as failed when it releases it.
    Closes,
}

/// A configuration: the messages at the beginning, and the bounds of the search.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    /// The jobs by id and amount. Each is a separate copy.
    pub(crate) jobs: &'static [(u8, u8)],
    /// The payment of each id.
    pub(crate) payments: [u8; 3],
    /// The maximum number of deliveries in hand of each worker.
    pub(crate) prefetch: [usize; 2],
    pub(crate) delays: u8,
    pub(crate) budget: Budget,
    pub(crate) operators: usize,
    /// The replies that the gateway may give. It may always give none.
    pub(crate) says: &'static [Said],
    /// Whether a request may be executed after its caller has stopped waiting.
    pub(crate) in_flight: bool,
    /// Whether this may happen after an inquiry that does not show the request.
    pub(crate) late: bool,
    /// Whether an inquiry may have no reply.
    pub(crate) deaf: bool,
    /// The delivery limit of the broker, if any.
    pub(crate) returns_max: Option<u8>,
    pub(crate) expires: bool,
    pub(crate) ages: bool,
    /// Whether the publisher's headers claim that the id was sent and that the gateway refused it.
    pub(crate) forged: bool,
    /// The classes of the jobs that are dead letters at the beginning. Each was sent, and was
    /// refused before the gateway looked up its id. If empty, the jobs are in the queue.
    pub(crate) dead: &'static [Class],
    pub(crate) replay: Replay,
    pub(crate) mutation: Option<Mutation>,
    /// Whether it is small enough to check that an end can be reached from every state.
    pub(crate) ends: bool,
    /// The examples that the search must find.
    pub(crate) reaches: &'static [&'static str],
    /// The properties that the search must find broken.
    pub(crate) breaks: &'static [&'static str],
}

impl Setup {
    pub(crate) fn payment(&self, id: u8) -> u8 {
        self.payments[usize::from(id % 3)]
    }

    pub(crate) fn known(&self, state: &State, message: &Message, marker: Option<Tells>) -> Known {
        let past_expiry = self.expires && message.expires && state.past_expiry;
        let Message { mut carried, amount, .. } = *message;
        let mut marker = marker;
        if self.mutation == Some(Mutation::OneInquiry) {
            let is_first = carried.sent && carried.replays > 0 && carried.attempts == 0;
            marker = marker.or_else(|| carried.sent.then(Tells::default));
            carried.replays = u8::from(is_first);
        }
        let looks_not = [Mutation::NoForebears, Mutation::FreshWithoutInquiry];
        if self.mutation.is_some_and(|is| looks_not.contains(&is)) && !carried.sent {
            carried.replays = 0;
        }
        if self.mutation == Some(Mutation::TrustHeaders) && carried.word == DENIED {
            let refused = Some((amount, DENIED));
            marker = Some(Tells { refused, ..marker.unwrap_or_default() });
        }
        Known { carried, marker, amount, past_expiry }
    }

    /// Mirrors `src/lease/claim.rs::Claim::of`, with the token of a slot.
    pub(crate) fn claim(&self, state: &State, message: &Message, token: Token) -> Claim {
        use capture_worker::domain::capture::judge::NextCall;
        // As `src/worker/gateway_call.rs::posts_at_once` does.
        let posts = self.known(state, message, None).first_call() == NextCall::Post;
        let Message { id, amount, .. } = *message;
        Claim { payment: self.payment(id), token, id, amount, posts }
    }
}

/// The worker that a slot belongs to.
pub(crate) const fn worker_of(slot: usize) -> usize {
    slot / 2
}

fn nth(first: u8, n: usize) -> Token {
    Token(first + u8::try_from(n).unwrap_or(0))
}

/// The token of the acquisition in a slot.
pub(crate) fn token_of_slot(slot: usize) -> Token {
    nth(1, slot)
}

/// The token of an operator's acquisition.
pub(crate) fn token_of_operator(operator: usize) -> Token {
    nth(5, operator)
}

/// The token of an acquisition that a background call releases.
pub(crate) fn token_of_later(later: usize) -> Token {
    nth(7, later)
}

impl State {
    pub(crate) fn enqueue(&mut self, message: Message) {
        let place = self.queue.partition_point(|other| *other < message);
        self.queue.insert(place, message);
    }

    pub(crate) fn add_dead_letter(&mut self, message: Message) {
        let place = self.dead.partition_point(|other| *other < message);
        self.dead.insert(place, message);
    }

    /// Replaces a token, when an acquisition ends or continues in the background. The scripts only
    /// compare tokens, so their values don't matter.
    pub(crate) fn rename(&mut self, from: Token, to: Token) {
        let change = |token: &mut Token| {
            if *token == from {
                *token = to;
            }
        };
        for payment in &mut self.redis.payments {
            payment.lease.iter_mut().for_each(change);
            payment.hold.iter_mut().for_each(|(token, _)| change(token));
            payment.line.iter_mut().for_each(change);
        }
        for keys in &mut self.redis.keys {
            keys.mark.iter_mut().for_each(|mark| change(&mut mark.by));
        }
    }

    pub(crate) fn is_over(&mut self, token: Token) {
        self.rename(token, NOBODY);
    }

    /// The ids and leases of the capture calls in progress.
    pub(crate) fn posting(&self) -> impl Iterator<Item = (u8, Lease)> {
        self.slots.iter().flatten().filter_map(|job| match job.step {
            Step::Posts(lease) => Some((job.message.id, lease)),
            _ => None,
        })
    }

    /// Whether this id has captured, or may capture by a request in progress or in process.
    pub(crate) fn may_have_captured(&self, id: u8) -> bool {
        let account = &self.gateway[usize::from(id)];
        match account.verdict {
            Some((final_outcome, _)) => final_outcome == FinalOutcome::Captured,
            None => {
                account.processing.is_some()
                    || account.in_flight != 0
                    || self.posting().any(|(posted, _)| posted == id)
            }
        }
    }

    pub(crate) fn has_captured(&self, id: u8) -> bool {
        matches!(self.gateway[usize::from(id)].verdict, Some((FinalOutcome::Captured, _)))
    }

    /// Whether no work remains in progress.
    pub(crate) fn is_ended(&self) -> bool {
        self.queue.is_empty()
            && self.slots.iter().all(Option::is_none)
            && self.operators.iter().all(Option::is_none)
    }
}

/// The fresh id of an id, if the model has it. One parent has one child (`x-capture-parent`).
pub(crate) const fn child_of(id: u8) -> Option<u8> {
    if id < 6 { Some(id + 3) } else { None }
}
